"""A terminal with a command in it: what is written there, and keys that are pressed. Not on Windows."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from testkit.conditions import eventually


class Terminal:
    """A terminal with the command in it, and what was written there."""

    def __init__(self, command: list[str]) -> None:
        import pty
        import termios

        self._ours, self._its = pty.openpty()
        os.set_blocking(self._ours, False)
        termios.tcsetwinsize(self._its, (30, 200))
        self._modes = termios.tcgetattr(self._its)
        environment = os.environ | {"TERM": "xterm", "PYTHONIOENCODING": "utf-8"}
        environment.pop("COLUMNS", None)
        environment.pop("LINES", None)
        self._written = b""
        self.process = subprocess.Popen(
            command, stdin=self._its, stdout=self._its, stderr=self._its, env=environment, start_new_session=True
        )

    def press(self, keys: bytes) -> None:
        os.write(self._ours, keys)

    @property
    def written(self) -> str:
        """All of it, so far."""
        try:
            while octets := os.read(self._ours, 65536):
                self._written += octets
        except BlockingIOError:
            pass
        return self._written.decode("utf-8", "replace")

    async def shows(self, words: str) -> None:
        """Wait for words that were not there when this was called."""
        at = len(self.written)
        await eventually(lambda: words in self.written[at:], 60, what=lambda: f"{words!r} in {self.written[at:]!r}")

    async def ends(self) -> int:
        """The exit status."""

        def ended() -> bool:
            self.written  # noqa: B018  # the command waits for its output to be taken
            return self.process.poll() is not None

        await eventually(ended, 60, what="the command ends")
        assert self.process.returncode is not None
        return self.process.returncode

    def is_as_before(self) -> bool:
        """Whether it echoes, and waits for whole lines, as it did."""
        import termios

        return termios.tcgetattr(self._its) == self._modes

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._ours)
        os.close(self._its)


@contextmanager
def terminal(command: list[str]) -> Iterator[Terminal]:
    made = Terminal(command)
    try:
        yield made
    finally:
        made.close()
