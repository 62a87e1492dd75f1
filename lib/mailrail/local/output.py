"""What local mode writes: the lines of its children and its own, for people or as JSON."""

import contextlib
import json
import sys
import threading
from datetime import UTC, datetime

from mailrail.kit.files import write_whole


class Output:
    """Writes whole lines of the children, one at a time: prefixed for people, or JSON as it comes."""

    def __init__(self, log_format: str) -> None:
        self._json = log_format == "json"
        self._lock = threading.Lock()
        self._stream = sys.stderr.buffer  # standard output is for what people and scripts wait for: login and `ready`

    def lines(self, name: str, lines: list[bytes], level: str = "info") -> None:
        """Write lines of a child, given without their ends. `level` is for those that are not JSON."""
        if self._json:
            block = b"".join(_as_json(name, line, level) for line in lines)
        else:
            prefix = f"{name:<8} | ".encode()
            block = b"".join(prefix + line.rstrip(b"\r") + b"\n" for line in lines)
        with self._lock, contextlib.suppress(OSError, ValueError):
            write_whole(self._stream, block)
            self._stream.flush()

    def say(self, text: str) -> None:
        """Write what the supervisor does."""
        self.lines("local", text.encode().split(b"\n"))

    def warn(self, text: str) -> None:
        """Write what the supervisor does about something that should not have happened."""
        self.lines("local", text.encode().split(b"\n"), "warning")

    def announce(self, text: str) -> None:
        """Write a line to standard output, for people and scripts."""
        with self._lock, contextlib.suppress(OSError, ValueError):
            print(text, flush=True)


def _as_json(name: str, line: bytes, level: str) -> bytes:
    """A line as the services write theirs (kit/log.py)."""
    line = line.rstrip(b"\r")
    if line.startswith(b"{"):
        return line + b"\n"
    event = {"event": line.decode(errors="replace"), "service": name, "level": level, "timestamp": _now()}
    return json.dumps(event, ensure_ascii=False).encode() + b"\n"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
