"""Files that only their owner may read."""

import contextlib
import os
from pathlib import Path

from mailrail.kit.files import remove, replace


def write_private(path: Path, content: bytes) -> None:
    """Write a file for its owner alone, whole or not at all: under another name first, closed, then renamed."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    remove(unfinished)
    with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    try:
        replace(unfinished, path)
    except OSError:
        with contextlib.suppress(OSError):
            remove(unfinished)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Have the new name on disk as well: a cluster must not outlive the file with its passwords. Windows has no such
    call."""
    with contextlib.suppress(OSError):
        opened = os.open(folder, os.O_RDONLY)  # windows: refused there, as the docstring says
        try:
            os.fsync(opened)
        finally:
            os.close(opened)
