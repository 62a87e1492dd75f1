"""The queue folder: messages that wait, and messages that failed. Nothing in it is lost by a crash (SML-06).

    tmp/            what is being written
    queue/ID.eml    a message that waits, with
    queue/ID.json   its envelope; a message is there when this file is
    failed/         the same, for what is never sent by itself
    lock            held by the process that sends what waits
    heartbeat       touched by a process that comes again

A file is written in tmp, flushed to the disk, and only then linked under its name; then the folder is flushed. The
message is linked before its envelope and removed after it, so an envelope always has its message. IDs begin with the
time, so names sort by age. All of it is for its owner alone.
"""

import contextlib
import errno
import os
import re
import stat
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import IO, Any, BinaryIO, Final

from mailrail.sendmail.status import ExitStatus, Stop

FORMAT: Final = 1
"""Of an envelope file. One with another number is left alone and named."""
HEARTBEAT_SECONDS: Final = 3600.0
"""A heartbeat is good for so long (SML-06)."""
LEFT_OVER_SECONDS: Final = 7 * 86_400.0
"""After so long what lies in tmp belongs to nobody: its process was killed, and its caller was never told 0."""
ENVELOPE_LIMIT: Final = 16 * 1024 * 1024
"""Octets of an envelope file: ten thousand recipients with their replies."""
_ID: Final = re.compile(r"[0-9]{20}-[0-9a-f]{16}(?:-notice)?")

step: Callable[[str], None] = lambda name: None  # noqa: E731
"""Called before each step that a crash could come between; tests stop the process there."""


@dataclass(slots=True)
class KeptRecipient:
    """One recipient who has not got the message yet."""

    address: str
    reply: str = ""
    """What was said last, or what went wrong."""
    notify: list[str] = field(default_factory=list)
    orcpt: str | None = None


@dataclass(slots=True)
class KeptEnvelope:
    """All that is known of a kept message but its octets."""

    id: str
    created: float
    """Unix time."""
    sender: str
    """Empty: the null reverse-path."""
    recipients: list[KeptRecipient]
    ret: str | None = None
    envid: str | None = None
    body: str | None = None
    require_tls: bool = False
    size: int = 0
    eight_bit: bool = False
    header_utf8: bool = False
    nul: bool = False
    longest: int = 0
    signed: bool = False
    attempts: int = 0
    next_try: float = 0.0
    """Unix time."""
    notice: bool = False
    """A notice of ours: nobody is told when it fails."""
    format: int = FORMAT


class BadEnvelope(ValueError):
    """A file in the folder that is no envelope of ours."""


class QueueFolder:
    """One folder. Methods raise OSError; what they write is on the disk when they return."""

    def __init__(self, path: Path) -> None:
        self.path = path

    # --- the folder itself ---

    def make(self) -> None:
        """Make it and check that it is ours alone. Raises OSError, Stop."""
        for folder in (self.path, self._tmp, self.waiting, self.failed):
            folder.mkdir(parents=folder == self.path, exist_ok=True, mode=0o700)
        self.check()

    def check(self) -> None:
        """Refuse a folder that others may write into: they could put mail in under our name. Raises OSError, Stop."""
        if sys.platform == "win32":
            return
        about = self.path.stat()
        if about.st_uid != os.geteuid() or about.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise Stop(
                ExitStatus.CANNOT_KEEP,
                f"the queue folder {self.path} is open to others: give it to this user alone (chmod 700), or name"
                " another one with `queue` in the configuration",
            )

    @property
    def _tmp(self) -> Path:
        return self.path / "tmp"

    @property
    def waiting(self) -> Path:
        """What is to be sent."""
        return self.path / "queue"

    @property
    def failed(self) -> Path:
        """What is never sent by itself."""
        return self.path / "failed"

    # --- writing ---

    def create(self, id: str) -> IO[bytes]:
        """A new message file to write into; it is nobody's until `keep`."""
        descriptor = os.open(self._new(id), os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o600)
        return os.fdopen(descriptor, "w+b")

    def discard(self, id: str) -> None:
        """Forget a message that was created and not kept."""
        for name in (f"{id}.eml", f"{id}.json"):
            with contextlib.suppress(OSError):
                (self._tmp / name).unlink()

    def keep(self, message: IO[bytes], *parts: tuple[KeptEnvelope, Path]) -> None:
        """Keep a created message, which this closes: in `waiting`, in `failed`, or in both for different recipients."""
        id = parts[0][0].id
        step("flush message")
        message.flush()
        os.fsync(message.fileno())
        message.close()  # Windows links no file that is open
        for envelope, where in parts:
            step("link message")
            _link(self._new(id), where / f"{id}.eml")
            step("flush folder")
            _flush_folder(where)
            self._write_envelope(envelope, where)
        step("remove message from tmp")
        self._new(id).unlink(missing_ok=True)

    def put(self, envelope: KeptEnvelope, text: bytes) -> None:
        """Keep a small message of ours in `waiting`, if it is not there: doing it again after a crash changes nothing.
        Only for who holds the lock."""
        if (self.waiting / f"{envelope.id}.json").exists():
            return
        self.discard(envelope.id)
        (self.waiting / f"{envelope.id}.eml").unlink(missing_ok=True)  # of a crash: no envelope names it
        with self.create(envelope.id) as file:
            file.write(text)
            self.keep(file, (envelope, self.waiting))

    def message_path(self, id: str, where: Path) -> Path:
        """Where the octets of a kept message are."""
        return where / f"{id}.eml"

    def update(self, envelope: KeptEnvelope) -> None:
        """Write the envelope of a message that waits anew."""
        self._write_envelope(envelope, self.waiting)

    def fail(self, envelope: KeptEnvelope, *, remains: KeptEnvelope | None = None) -> Path:
        """Move a message that waits, or some of its recipients, to `failed`; `remains` still waits. A crash on the way
        leaves it in both, and it is tried and moved once more."""
        id = envelope.id
        step("link failed message")
        with contextlib.suppress(FileExistsError):
            _link(self.waiting / f"{id}.eml", self.failed / f"{id}.eml")
        _flush_folder(self.failed)
        with contextlib.suppress(FileNotFoundError, BadEnvelope):
            earlier = self.read(id, self.failed)
            known = {each.address for each in envelope.recipients}
            envelope.recipients[:0] = [each for each in earlier.recipients if each.address not in known]
        self._write_envelope(envelope, self.failed)
        if remains is None:
            self.remove(id)
        else:
            self.update(remains)
        return self.failed / f"{id}.eml"

    def remove(self, id: str) -> None:
        """Forget a message that waited: it was sent."""
        step("remove envelope")
        (self.waiting / f"{id}.json").unlink(missing_ok=True)
        # Before the message goes the envelope must be gone on the disk: an envelope always has its message.
        _flush_folder(self.waiting)
        step("remove message")
        (self.waiting / f"{id}.eml").unlink(missing_ok=True)

    def _write_envelope(self, envelope: KeptEnvelope, where: Path) -> None:
        import json

        text = json.dumps(asdict(envelope), ensure_ascii=True).encode() + b"\n"
        new = self._tmp / f"{envelope.id}.json"
        step("write envelope")
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0), 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        step("name envelope")
        new.replace(where / f"{envelope.id}.json")
        step("flush folder of envelope")
        _flush_folder(where)

    def _new(self, id: str) -> Path:
        return self._tmp / f"{id}.eml"

    # --- reading ---

    def ids(self, where: Path) -> list[str]:
        """The messages of `waiting` or `failed`, oldest first."""
        try:
            names = [each.name for each in where.iterdir()]
        except FileNotFoundError:
            return []
        stems = (name.removesuffix(".json") for name in names if name.endswith(".json"))
        return sorted(stem for stem in stems if _ID.fullmatch(stem))

    def read(self, id: str, where: Path) -> KeptEnvelope:
        """An envelope. Raises FileNotFoundError where it went meanwhile, BadEnvelope."""
        with (where / f"{id}.json").open("rb") as file:
            octets = file.read(ENVELOPE_LIMIT + 1)
        return read_envelope(octets, id)

    def open(self, id: str, where: Path) -> BinaryIO:
        """The octets of a message."""
        return (where / f"{id}.eml").open("rb")

    def sweep(self, now: float) -> None:
        """Remove what killed processes left in tmp, and messages without an envelope: their callers were told no 0."""
        for folder, suffixes in ((self._tmp, (".eml", ".json")), (self.waiting, (".eml",)), (self.failed, (".eml",))):
            for path in list(folder.iterdir()):
                with contextlib.suppress(FileNotFoundError):
                    if now - path.stat().st_mtime < LEFT_OVER_SECONDS or path.suffix not in suffixes:
                        continue
                    if folder == self._tmp or not (folder / f"{path.stem}.json").exists():
                        path.unlink()

    # --- who sends what waits ---

    def beat(self) -> None:
        """Say that a process comes again by itself and sends what waits."""
        path = self.path / "heartbeat"
        path.touch(mode=0o600)
        os.utime(path)

    def is_flushed(self, now: float) -> bool:
        """Whether somebody will send what waits: a heartbeat of the last hour. One from the future is none: a clock was
        put back, and it would count for ever."""
        try:
            age = now - (self.path / "heartbeat").stat().st_mtime
        except OSError:
            return False
        return -60.0 <= age <= HEARTBEAT_SECONDS

    @contextlib.contextmanager
    def locked(self) -> Iterator[bool]:
        """Whether we are the one process that sends what waits; it is, until the end of the block."""
        with (self.path / "lock").open("a+b") as file:
            got = _lock(file)
            try:
                yield got
            finally:
                if got:
                    _unlock(file)


def new_id(now: float, randomness: bytes) -> str:
    """The id of a message: its age in the order of names, and 64 bits of chance."""
    return f"{int(now * 1e6):020d}-{randomness[:8].hex()}"


def read_envelope(octets: bytes, id: str) -> KeptEnvelope:
    """An envelope out of its file. Raises BadEnvelope."""
    if len(octets) > ENVELOPE_LIMIT:
        raise BadEnvelope(f"the envelope of {id} is too large")
    import json

    try:
        found = json.loads(octets)
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            raise BadEnvelope(f"the envelope of {id} is of another version of Mailrail")
        known = {each.name: each.type for each in fields(KeptEnvelope)}
        values = {name: value for name, value in found.items() if name in known}
        recipients = [_read_recipient(one) for one in values["recipients"]]
        envelope = KeptEnvelope(**{**values, "recipients": recipients})
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        if isinstance(error, BadEnvelope):
            raise
        raise BadEnvelope(f"the envelope of {id} cannot be read") from error
    _check_types(envelope, id)
    return envelope


def _read_recipient(found: dict[str, Any]) -> KeptRecipient:
    orcpt = found.get("orcpt")
    return KeptRecipient(
        str(found["address"]),
        str(found.get("reply", "")),
        [str(word) for word in found.get("notify", [])],
        None if orcpt is None else str(orcpt),
    )


def _check_types(envelope: KeptEnvelope, id: str) -> None:
    kinds: dict[str, Any] = {
        "created": (int, float),
        "next_try": (int, float),
        "sender": str,
        "ret": (str, type(None)),
        "envid": (str, type(None)),
        "body": (str, type(None)),
        "size": int,
        "longest": int,
        "attempts": int,
        "require_tls": bool,
        "eight_bit": bool,
        "header_utf8": bool,
        "nul": bool,
        "signed": bool,
        "notice": bool,
    }
    good = all(isinstance(getattr(envelope, name), kind) for name, kind in kinds.items())
    if not good or envelope.id != id:
        raise BadEnvelope(f"the envelope of {id} cannot be read")


# --- files, portably --------------------------------------------------------------------------------------------------


def _link(source: Path, target: Path) -> None:
    """Give a file a second name, never in place of another file; where there are no links, its only new one."""
    try:
        os.link(source, target)
    except FileExistsError:
        if not _same(source, target):
            raise
    except FileNotFoundError:
        if not target.exists():
            raise
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if target.exists():
            raise FileExistsError(errno.EEXIST, "there is such a file", str(target)) from error
        source.rename(target)


_NO_LINKS: Final = {
    errno.EPERM,
    errno.EOPNOTSUPP,
    errno.ENOTSUP,
    errno.EMLINK,
    errno.ENOSYS,
    errno.EINVAL,
    errno.EACCES,
}


def _same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except FileNotFoundError:
        return False


def _flush_folder(folder: Path) -> None:
    """The names in a folder to the disk. Windows writes them with the file."""
    if sys.platform == "win32":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


if sys.platform == "win32":
    import msvcrt

    def _lock(file: IO[bytes]) -> bool:
        file.seek(0)
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

    def _unlock(file: IO[bytes]) -> None:
        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def _lock(file: IO[bytes]) -> bool:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True

    def _unlock(file: IO[bytes]) -> None:
        fcntl.flock(file, fcntl.LOCK_UN)
