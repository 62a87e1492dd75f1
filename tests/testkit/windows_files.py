"""A file system that behaves as that of Windows does, below one folder, for tests on any system.

`windows_files(folder)` is a context: within it

- a file that this process, or a child of it, has open can be neither replaced nor removed nor renamed, and no more can
  a folder that has such a file in it (errors 32 and 5);
- a rename never replaces what is there (error 183), and a folder cannot be opened (error 5);
- names are the same whatever their case, `\\` separates as `/` does, and names that Windows does not allow are refused
  (error 123): `a:b`, `what?`, `con`, one that ends in a dot or a blank.

`held(path)` opens a file as another program does that lets nobody else move it.
"""

import builtins
import contextlib
import errno
import io
import os
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, Final
from unittest import mock

import psutil

_RESERVED: Final = frozenset(
    ("con", "prn", "aux", "nul", *(f"com{n}" for n in range(1, 10)), *(f"lpt{n}" for n in range(1, 10)))
)
_FORBIDDEN: Final = frozenset('<>:"|?*')
ACCESS_DENIED, SHARING_VIOLATION, INVALID_NAME, ALREADY_EXISTS = 5, 32, 123, 183


def windows_error(number: int, path: str) -> OSError:
    """What Python raises there."""
    kind, code = {
        ACCESS_DENIED: (PermissionError, errno.EACCES),
        SHARING_VIOLATION: (PermissionError, errno.EACCES),
        INVALID_NAME: (OSError, errno.EINVAL),
        ALREADY_EXISTS: (FileExistsError, errno.EEXIST),
    }[number]
    error = kind(code, os.strerror(code), path)
    error.winerror = number  # type: ignore[attr-defined,unused-ignore]  # elsewhere errors have no such thing
    return error


@contextlib.contextmanager
def held(path: Path) -> Iterator[IO[bytes]]:
    """Have a file open, as a virus scanner has it for a moment."""
    with path.open("rb") as file:
        yield file


@contextlib.contextmanager
def windows_files(folder: Path) -> Iterator[None]:
    """Within it, what is below `folder` behaves so. On Windows itself nothing is changed."""
    if sys.platform == "win32":
        yield
        return
    volume = _Volume(os.path.realpath(folder))
    with contextlib.ExitStack() as stack:

        def put(module: Any, name: str, made: object) -> None:
            stack.enter_context(mock.patch.object(module, name, made))

        for name in ("stat", "lstat", "listdir", "scandir", "mkdir", "chmod", "utime", "access", "readlink"):
            put(os, name, volume.named(getattr(os, name)))
        for name in ("unlink", "remove", "rmdir"):
            put(os, name, volume.removing(getattr(os, name)))
        put(os, "rename", volume.moving(os.rename, replaces=False))
        put(os, "replace", volume.moving(os.replace, replaces=True))
        put(os, "open", volume.opening(os.open))
        opening = volume.opening(io.open)
        put(io, "open", opening)
        put(builtins, "open", opening)
        put(shutil, "_use_fd_functions", False)  # as there, where no folder can be opened
        yield


class _Volume:
    def __init__(self, root: str) -> None:
        self._root = root

    def named(self, real: Callable[..., Any]) -> Callable[..., Any]:
        """A call whose first argument is a path."""

        def call(path: Any = ".", *args: Any, **options: Any) -> Any:
            return real(self._found(path), *args, **options)

        return call

    def opening(self, real: Callable[..., Any]) -> Callable[..., Any]:
        """A call that opens a file."""

        def call(path: Any, *args: Any, **options: Any) -> Any:
            found = self._found(path)
            if self._is_ours(found) and _is_folder(found):
                raise windows_error(ACCESS_DENIED, found)
            return real(found, *args, **options)

        return call

    def removing(self, real: Callable[..., Any]) -> Callable[..., Any]:
        """A call that takes a file away."""

        def call(path: Any, *args: Any, **options: Any) -> Any:
            found = self._found(path)
            self._refuse_open(found, SHARING_VIOLATION)
            return real(found, *args, **options)

        return call

    def moving(self, real: Callable[..., Any], *, replaces: bool) -> Callable[..., Any]:
        """A call that gives a file another name."""

        def call(source: Any, target: Any, *args: Any, **options: Any) -> Any:
            before, after = self._found(source), self._found(target)
            self._refuse_open(before, SHARING_VIOLATION)
            same = _exists(before) and _exists(after) and os.path.samestat(_lstat(before), _lstat(after))
            if self._is_ours(after) and not same:
                if _is_folder(after) or (_is_folder(before) and _exists(after)):
                    raise windows_error(ACCESS_DENIED if replaces else ALREADY_EXISTS, after)
                if not replaces and _exists(after):
                    raise windows_error(ALREADY_EXISTS, after)
                self._refuse_open(after, ACCESS_DENIED)
            if same:  # a name gets another case
                after = os.path.join(os.path.dirname(after), os.path.basename(os.fsdecode(target).replace("\\", "/")))
            return real(before, after, *args, **options)

        return call

    def _is_ours(self, path: Any) -> bool:
        return isinstance(path, str) and (path == self._root or path.startswith(self._root + os.sep))

    def _found(self, path: Any) -> Any:
        """The path with the names that are really there; as it is when it is not below our folder."""
        try:
            text = os.fsdecode(path)
        except TypeError:  # the number of an open file
            return path
        whole = os.path.abspath(text)
        if not self._is_ours(whole):
            return path
        here = self._root
        for name in whole[len(self._root) :].replace("\\", "/").split("/"):
            if name in ("", "."):
                continue
            if (
                _FORBIDDEN & set(name)
                or any(ord(c) < 32 for c in name)
                or name[-1] in " ."
                or name.split(".")[0].rstrip().lower() in _RESERVED
            ):
                raise windows_error(INVALID_NAME, whole)
            here = os.path.join(here, _as_it_is(here, name))
        return here

    def _refuse_open(self, path: Any, number: int) -> None:
        if self._is_ours(path) and any(each == path or each.startswith(path + os.sep) for each in _open_files()):
            raise windows_error(number, path)


_stat, _lstat, _listdir = os.stat, os.lstat, os.listdir
"""What they are without us."""


def _is_folder(path: str) -> bool:
    try:
        return stat.S_ISDIR(_stat(path).st_mode)
    except OSError:
        return False


def _exists(path: str) -> bool:
    try:
        _lstat(path)
    except OSError:
        return False
    return True


def _as_it_is(folder: str, name: str) -> str:
    if _exists(os.path.join(folder, name)):
        return name
    try:
        there = _listdir(folder)
    except OSError:
        return name
    return next((each for each in there if each.lower() == name.lower()), name)


def _open_files() -> Iterator[str]:
    """What we and our children have open."""
    us = psutil.Process()
    for process in (us, *us.children(recursive=True)):
        with contextlib.suppress(psutil.Error, OSError):
            yield from (each.path for each in process.open_files())
