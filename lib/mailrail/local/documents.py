"""A folder of resource documents, read as local mode and `mailrail config check` read it.

Files are `*.yaml`, `*.yml` and `*.json` below the folder, hidden ones and editors' leavings aside. What cannot be read
is reported with its place and counts as unchanged (CFG-01), a folder that cannot be listed like a file that cannot be
read; one file never keeps another from being used. Contents for `caFile` come along, so that the compiler itself
touches no file.
"""

import os
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mailrail.core.config.diagnostics import SourceLocation
from mailrail.core.config.loader import FILE_LIMIT, Cache, Document, Loaded, Unreadable, load
from mailrail.core.config.reading import Sources

SUFFIXES: Final = (".yaml", ".yml", ".json")
FILES_LIMIT: Final = 10_000
DEPTH_LIMIT: Final = 8
CA_FILE_LIMIT: Final = 1024 * 1024
LOCAL_TLS: Final = "local-tls"
"""The Secret with the certificate that local mode makes; every folder may refer to it."""

Stamp = tuple[int, int, int]
Snapshot = dict[str, Stamp]
_ABSENT: Final[Stamp] = (0, 0, 0)
_CLOSED: Final[Stamp] = (0, 0, -1)
"""Of a file that could not be read at the last reading, and still cannot be."""


@dataclass(frozen=True, slots=True)
class _File:
    """A document file: its path (text, for a look at thousands of them must cost little), and how people name it."""

    path: str
    origin: str


class _NotAFile(OSError):
    """A pipe, a device or a folder where a document should be: opening a pipe would wait for its writer for ever."""


def _content(path: Path, limit: int) -> bytes:
    """What a regular file holds, one octet more than `limit` at most. Raises OSError, ValueError for a NUL in it."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise _NotAFile("it is not a regular file")
    with path.open("rb") as stream:
        return stream.read(limit + 1)


def _stamp(path: str | Path) -> Stamp | None:
    try:
        status = os.stat(path)  # noqa: PTH116  # a Path for each of thousands of files doubles the cost of a look
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def _readable(path: Path) -> bool:
    try:
        _content(path, 0)
    except (OSError, ValueError):
        return False
    return True


class Folder:
    """One folder of documents (or one file). Keeps parsed documents, so that a change costs what changed."""

    def __init__(
        self,
        path: Path,
        certificate: Path | None = None,
        certificate_key: Path | None = None,
        *,
        watched: Path | None = None,
    ) -> None:
        """`watched`: a folder beside whose files count in snapshots (sealing keys), and hold no documents."""
        self.path = path
        self._watched = watched
        self._certificate = (certificate, certificate_key)
        self._ca_files: frozenset[str] = frozenset()
        self._closed: frozenset[str] = frozenset()
        self._cache: Cache = {}

    def exists(self) -> bool:
        """Whether there is anything to read. A folder that vanished says nothing about the objects that were in it."""
        try:
            return self.path.exists()
        except OSError:  # a folder above it is closed to us
            return False

    def snapshot(self) -> Snapshot:
        """Time, size and identity of every file that counts; two equal snapshots mean that nothing changed.

        A file that could not be read has another stamp once it can be: an editor that lets go of it, and a chmod,
        change nothing else.
        """
        found: Snapshot = {}
        for file in self._files():
            found[file.path] = _stamp(file.path) or _ABSENT
        extra = [self.path.parent / c if self.path.is_file() else self.path / c for c in self._ca_files]
        beside = sorted(self._watched.iterdir()) if self._watched is not None and self._watched.is_dir() else []
        for path in (*extra, *beside, *(p for p in self._certificate if p is not None)):
            found[str(path)] = _stamp(path) or _ABSENT
        for name in self._closed & found.keys():
            if not _readable(Path(name)):
                found[name] = _CLOSED
        return found

    def _files(self, unlisted: list[Unreadable] | None = None) -> Iterator[_File]:
        """The document files. Folders whose files are not known go into `unlisted`, with a name that ends in `/`."""
        unlisted = unlisted if unlisted is not None else []
        if not self.exists():  # it vanished after somebody looked
            unlisted.append(Unreadable(SourceLocation(f"{self.path.name}/"), "the folder does not exist"))
            return
        if not self.path.is_dir():
            yield _File(str(self.path), str(self.path))
            return

        def note_unreadable(error: OSError) -> None:
            reason = f"the folder cannot be read: {error.strerror or error}"
            unlisted.append(Unreadable(SourceLocation(self._origin(Path(error.filename))), reason))

        count = 0
        for where, folders, names in os.walk(self.path, onerror=note_unreadable):
            here = Path(where)
            prefix = self._origin(here)
            folders[:] = sorted(f for f in folders if not f.startswith("."))
            if len(here.relative_to(self.path).parts) >= DEPTH_LIMIT:
                reason = f"the folder is nested deeper than {DEPTH_LIMIT} levels and is not read"
                unlisted += (Unreadable(SourceLocation(self._origin(here / f)), reason) for f in folders)
                folders.clear()
            for name in sorted(names):
                if name.startswith((".", "#", "~")) or not name.endswith(SUFFIXES):
                    continue
                count += 1
                if count > FILES_LIMIT:
                    reason = f"there are more than {FILES_LIMIT} files, and those from {name} on are not read"
                    unlisted.append(Unreadable(SourceLocation(self._origin(self.path)), reason))
                    return
                yield _File(os.path.join(where, name), prefix + name)  # noqa: PTH118  # as above

    def _origin(self, folder: Path) -> str:
        """How people name ours or a folder below it, with a / at the end."""
        below = folder.relative_to(self.path).as_posix()
        return f"{self.path.name}/" if below == "." else f"{self.path.name}/{below}/"

    def read(self) -> Sources:
        """All documents as they are now. Raises nothing: what cannot be read is in the answer."""
        fresh: Cache = {}
        loaded: list[Loaded] = []
        unlisted: list[Unreadable] = []
        closed: set[str] = set()
        for file in self._files(unlisted):
            loaded.append(self._load(file, fresh, closed))
        self._cache = fresh
        documents = tuple(d for one in loaded for d in one.documents)
        unreadable = (*(u for one in loaded for u in one.unreadable), *unlisted)
        self._ca_files = frozenset(_ca_files(documents))
        files = {
            name: content for name in sorted(self._ca_files) if (content := self._ca_file(name, closed)) is not None
        }
        secret = self._local_tls(closed)
        self._closed = frozenset(closed)
        everything = (*documents, *((secret,) if secret is not None else ()))
        return Sources(everything, unreadable, files=files, now=int(time.time()))

    def _load(self, file: _File, fresh: Cache, closed: set[str]) -> Loaded:
        try:
            content = _content(Path(file.path), FILE_LIMIT)
        except OSError as error:
            closed.add(file.path)
            reason = f"the file cannot be read: {error.strerror or error}"
            return Loaded(file.origin, (), (Unreadable(SourceLocation(file.origin, 1), reason),))
        one: Cache = _Both(self._cache, fresh)
        return load(content, file.origin, one)

    def _ca_file(self, name: str, closed: set[str]) -> bytes | None:
        base = self.path.parent if self.path.is_file() else self.path
        try:
            content = _content(base / name, CA_FILE_LIMIT)
        except (OSError, ValueError):  # ValueError: a NUL in the name
            closed.add(str(base / name))
            return None
        return content if len(content) <= CA_FILE_LIMIT else None

    def _local_tls(self, closed: set[str]) -> Document | None:
        """The certificate that local mode made, as a Secret like any other."""
        certificate, key = self._certificate
        if certificate is None or key is None:
            return None
        try:
            data = {"tls.crt": certificate.read_text("ascii"), "tls.key": key.read_text("ascii")}
        except (OSError, ValueError):
            closed.update((str(certificate), str(key)))
            return None
        return Document(
            {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": LOCAL_TLS}, "stringData": data},
            SourceLocation(),
        )


class _Both(dict[str, Any]):
    """The cache of the last reading, of which only what this reading used is kept."""

    def __init__(self, last: Cache, fresh: Cache) -> None:
        super().__init__()
        self._last, self._fresh = last, fresh

    def get(self, key: str, default: Any = None) -> Any:
        found = self._fresh.get(key)
        if found is None:
            found = self._last.get(key)
            if found is not None:
                self._fresh[key] = found
        return default if found is None else found

    def __setitem__(self, key: str, value: Any) -> None:
        self._fresh[key] = value


def _ca_files(documents: tuple[Document, ...]) -> Iterator[str]:
    """Every caFile that a transport names, valid or not as the rest of it may be."""
    for document in documents:
        if document.content.get("kind") != "MailTransport":
            continue
        spec = document.content.get("spec")
        for member in spec.values() if isinstance(spec, dict) else ():
            tls = member.get("tls") if isinstance(member, dict) else None
            name = tls.get("caFile") if isinstance(tls, dict) else None
            if isinstance(name, str) and 0 < len(name) <= 1024:
                yield name
