"""Files that somebody else may have open, and streams that may take a part of what they are given.

On Windows a file that another process has open can be neither replaced nor removed, and somebody always has one open
for a moment: a command that reads it, a virus scanner, an indexer. So whoever replaces or removes a file does it here
(`scripts/check_portable.py`): it is tried again until the other one is done.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

PATIENCE: Final = 2.0
"""Seconds for which a file that somebody has open is waited for."""
_PAUSE: Final = 0.02
_IN_USE: Final = (5, 32)
"""Errors of Windows for such a file: ERROR_ACCESS_DENIED (the target of a replacement) and ERROR_SHARING_VIOLATION."""


class OctetWriter(Protocol):
    """A binary stream, raw or buffered."""

    def write(self, octets: memoryview, /) -> int | None:
        """Take some of them; says how many. None: none just now."""


def replace(unfinished: Path, path: Path, *, patience: float = PATIENCE) -> None:
    """Give a finished file, or a folder, its name. What had that name is replaced, whole or not at all.

    Raises OSError; then `unfinished` is as it was.
    """
    _patiently(lambda: unfinished.replace(path), patience)


def remove(path: Path, *, patience: float = PATIENCE) -> None:
    """Remove a file, which need not be there. Raises OSError."""
    _patiently(lambda: path.unlink(missing_ok=True), patience)


def _patiently(act: Callable[[], object], patience: float) -> None:
    deadline = time.monotonic() + patience
    while True:
        try:
            act()
        except OSError as error:
            if getattr(error, "winerror", None) not in _IN_USE or time.monotonic() >= deadline:
                raise
        else:
            return
        time.sleep(_PAUSE)


def write_whole(stream: OctetWriter, octets: bytes) -> None:
    """Write all of it. A stream without a buffer (`python -u`, PYTHONUNBUFFERED) takes a part of a long text. Raises
    OSError."""
    left = memoryview(octets)
    while left:
        left = left[stream.write(left) or 0 :]


def show_no_boxes() -> None:
    """On Windows: have a program that cannot be loaded fail at once, instead of asking somebody at the screen.

    Children inherit it.
    """
    if sys.platform == "win32":
        import ctypes

        ctypes.windll.kernel32.SetErrorMode(0x0001 | 0x0002)  # SEM_FAILCRITICALERRORS, SEM_NOGPFAULTERRORBOX
