"""Where the messages of a sink that runs as a command go: lines of JSON, and a Maildir.

Both are told of a message before it is answered, and raise CannotKeep where they cannot take it.
"""

import base64
import contextlib
import datetime
import json
import mailbox
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from mailrail.sink.message import CannotKeep, SinkMessage

FULL: Final = "452 4.3.1 the sink has taken all that it may take"
NO_ROOM: Final = "452 4.3.1 the sink cannot write; its log says why"


class NoMaildir(Exception):
    """A folder cannot be used as a Maildir. The text says why and what to name instead."""


def as_json(message: SinkMessage, now: datetime.datetime, file: Path | None) -> dict[str, Any]:
    """A message as JSON takes it. With `file` that says where the content is, else the content itself.

    Content that is not UTF-8 is there in base64, as `content_base64`.
    """
    said = {
        "time": now.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "sender": _text(message.sender),
        "recipients": [_text(one) for one in message.recipients],
        "sender_parameters": [_text(word) for word in message.sender_parameters],
        "recipient_parameters": [[_text(word) for word in words] for words in message.recipient_parameters],
        "hello": _text(message.hello),
        "client": message.client,
        "tls": message.tls,
        "login": message.login,
        "size": len(message.content),
    }
    if file is not None:
        return said | {"file": str(file)}
    try:
        return said | {"content": message.content.decode()}
    except UnicodeDecodeError:
        return said | {"content_base64": base64.b64encode(message.content).decode()}


def _text(said: str) -> str:
    """What came in a command; octets that are not UTF-8 are shown as `\\xNN`."""
    return said.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


class Maildir:
    """A folder with `tmp`, `new` and `cur`. A message is written and synced in `tmp`, then it appears in `new`."""

    def __init__(self, folder: Path) -> None:
        """Make the folder if it is not there. Raises NoMaildir."""
        self.folder = folder
        try:
            if folder.exists() and not folder.is_dir():
                raise NoMaildir(f"{folder} is no folder; name a Maildir, or a folder that is not there yet")
            parts = [folder / name for name in ("tmp", "new", "cur")]
            if folder.exists() and any(folder.iterdir()) and not all(part.is_dir() for part in parts):
                raise NoMaildir(
                    f"{folder} is no Maildir and not empty; name a Maildir, or a folder that is not there yet"
                )
            for part in parts:
                part.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise NoMaildir(f"{folder} cannot be used: {error.strerror}; name another folder") from None
        self._maildir = mailbox.Maildir(folder, create=False)

    def add(self, message: SinkMessage) -> Path:
        """Write a message, with the fields that delivery adds and the line ends of this system. Raises OSError."""
        head = [f"Return-Path: <{_field(message.sender)}>"]
        head += [f"Delivered-To: {_field(one)}" for one in message.recipients]
        content = message.content.replace(b"\r\n", b"\n")
        try:
            key = self._maildir.add("".join(line + "\n" for line in head).encode() + content)
        except mailbox.Error as error:
            raise OSError(str(error)) from error
        return self.folder / "new" / key


def _field(address: str) -> str:
    """An address within a header field: a line end in it must not begin another field."""
    return "".join(c if c.isprintable() else "?" for c in _text(address))


class WholeLines:
    """Lines of a file or a pipe, past the buffers of Python: what was written is out of this process."""

    def __init__(self, descriptor: int) -> None:
        self.writing = False
        """Whether a write is under way; it lasts for as long as nobody reads from a full pipe."""
        self._descriptor = descriptor
        self._torn = False

    def write(self, line: bytes) -> None:
        """Write a line; it begins anew also where an earlier one was not written whole. Raises OSError."""
        rest = memoryview(b"\n" + line if self._torn else line)
        self.writing = True
        try:
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
                self._torn = bool(rest)
        finally:
            self.writing = False


class Keeper:
    """Takes messages up to a number, writes each as one line of JSON, and counts them."""

    def __init__(
        self,
        write: Callable[[bytes], None],
        clock: Callable[[], datetime.datetime],
        complain: Callable[[str], None],
        *,
        maildir: Maildir | None = None,
        limit: int = 0,
    ) -> None:
        """`write` takes a line whole, or raises OSError; `limit`: so many messages and no more, 0 for any number."""
        self.taken = 0
        self._write = write
        self._clock = clock
        self._complain = complain
        self._maildir = maildir
        self._limit = limit

    def receive(self, message: SinkMessage) -> None:
        """Keep a message. Raises CannotKeep."""
        if self._limit and self.taken >= self._limit:
            raise CannotKeep(FULL)
        file: Path | None = None
        try:
            file = self._maildir.add(message) if self._maildir is not None else None
            self._write(json.dumps(as_json(message, self._clock(), file)).encode() + b"\n")
        except OSError as error:
            if file is not None:
                with contextlib.suppress(OSError):
                    file.unlink()  # windows: nobody knows its name yet. It was refused, so it will come again
            self._complain(f"cannot write a message, so it was refused: {error.strerror or error}")
            raise CannotKeep(NO_ROOM) from error
        self.taken += 1
