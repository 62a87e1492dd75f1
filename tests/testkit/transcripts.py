"""What scripted servers heard and said, line by line, for whoever reads why a test failed.

Each server notes its sessions by itself. `tests/conftest.py` puts them into the report of a test that fails: those of
servers that served during the test, the newest last.
"""

from collections import deque
from collections.abc import Iterator
from typing import Final, Protocol

_MOST_LINES: Final = 200  # of a session
_MOST_SHOWN: Final = 400  # lines of a report
_LINE: Final = 200  # characters
_MOST_SERVERS: Final = 200


class Transcript:
    """One session."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._more = 0

    def client(self, line: str) -> None:
        """The client said this."""
        self._add("C: ", line)

    def server(self, octets: bytes) -> None:
        """The server said this, one line or several."""
        for line in octets[: _LINE * _MOST_LINES].decode("utf-8", "backslashreplace").splitlines():
            self._add("S: ", line)

    def note(self, text: str) -> None:
        """Something happened that is no line: a handshake, an end."""
        self._add("   -- ", text)

    def _add(self, who: str, text: str) -> None:
        if len(self._lines) >= _MOST_LINES:  # floods are endless
            self._more += 1
            return
        # ascii() without its quotes: a report must survive lone surrogates and control characters.
        self._lines.append(who + ascii(text)[1:-1][:_LINE])

    def __str__(self) -> str:
        return "\n".join([*self._lines, *([f"   -- and {self._more} more lines"] if self._more else [])])


class _Server(Protocol):
    @property
    def transcript(self) -> str: ...

    @property
    def served(self) -> bool: ...


_servers: deque[_Server] = deque(maxlen=_MOST_SERVERS)


def note_server(server: _Server) -> None:
    """A server begins to serve."""
    _servers.append(server)


def begin() -> None:
    """A test begins: forget servers that have ended."""
    for server in [one for one in _servers if not one.served]:
        _servers.remove(server)


def shown() -> str:
    """All that was said since, as far as a reader bears it."""
    lines = list(_lines())
    left = len(lines) - _MOST_SHOWN
    return "\n".join([f"({left} lines before)", *lines[left:]] if left > 0 else lines)


def _lines() -> Iterator[str]:
    for server in list(_servers):
        yield from server.transcript.splitlines()
