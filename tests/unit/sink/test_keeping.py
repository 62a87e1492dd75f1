"""Where the messages of a sink go that runs as a command."""

import base64
import datetime
import json
import os
from pathlib import Path
from typing import Any

import pytest

from mailrail.sink import CannotKeep, SinkMessage
from mailrail.sink.keeping import FULL, NO_ROOM, Keeper, Maildir, NoMaildir, WholeLines

NOW = datetime.datetime(2026, 11, 30, 12, 0, 0, 250_000, tzinfo=datetime.UTC)
CONTENT = "Subject: Grüße\r\n\r\nGrüße\r\n".encode()


def message(**other: Any) -> SinkMessage:
    return SinkMessage(**{"sender": "a@b.test", "recipients": ("c@d.test",), "content": CONTENT} | other)


class Kept:
    """A keeper, the lines that it wrote, and what it complained of."""

    def __init__(self, **options: Any) -> None:
        self.lines: list[bytes] = []
        self.complaints: list[str] = []
        self.fault: OSError | None = None
        self.keeper = Keeper(self.write, lambda: NOW, self.complaints.append, **options)

    def write(self, line: bytes) -> None:
        if self.fault is not None:
            raise self.fault
        self.lines.append(line)

    def receive(self, one: SinkMessage) -> dict[str, Any]:
        self.keeper.receive(one)
        said: dict[str, Any] = json.loads(self.lines[-1])
        return said


def test_a_message_is_one_line_of_ascii_with_envelope_and_content() -> None:
    kept = Kept()
    said = kept.receive(
        message(
            sender_parameters=("BODY=8BITMIME",), recipient_parameters=(("NOTIFY=NEVER",),), hello="x", tls="TLSv1.3"
        )
    )
    assert said == {
        "time": "2026-11-30T12:00:00.250Z",
        "sender": "a@b.test",
        "recipients": ["c@d.test"],
        "sender_parameters": ["BODY=8BITMIME"],
        "recipient_parameters": [["NOTIFY=NEVER"]],
        "hello": "x",
        "client": "",
        "tls": "TLSv1.3",
        "login": "",
        "size": len(CONTENT),
        "content": CONTENT.decode(),
    }
    (line,) = kept.lines
    assert line.isascii()
    assert line.index(b"\n") == len(line) - 1


def test_octets_that_are_no_utf8_are_in_base64_and_escaped_in_addresses() -> None:
    said = Kept().receive(message(content=b"\xff\r\n", sender="a\udcff@b.test"))
    assert base64.b64decode(said["content_base64"]) == b"\xff\r\n"
    assert "content" not in said
    assert said["sender"] == "a\\xff@b.test"


def test_after_the_last_one_that_it_may_take_it_refuses() -> None:
    kept = Kept(limit=1)
    kept.receive(message())
    with pytest.raises(CannotKeep) as refused:
        kept.receive(message())
    assert (refused.value.reply, kept.keeper.taken, len(kept.lines)) == (FULL, 1, 1)


def test_what_cannot_be_written_is_refused_and_leaves_no_file(tmp_path: Path) -> None:
    kept = Kept(maildir=Maildir(tmp_path / "mail"))
    kept.fault = OSError(28, "No space left on device")
    with pytest.raises(CannotKeep) as refused:
        kept.receive(message())
    assert (refused.value.reply, kept.keeper.taken) == (NO_ROOM, 0)
    assert kept.complaints == ["cannot write a message, so it was refused: No space left on device"]
    assert [one for one in tmp_path.rglob("*") if one.is_file()] == []


def test_a_maildir_gets_the_message_in_new_with_its_envelope_on_top(tmp_path: Path) -> None:
    folder = tmp_path / "some" / "mail"
    kept = Kept(maildir=Maildir(folder))
    said = kept.receive(message(recipients=("c@d.test", "e@d.test"), sender=""))
    (file,) = (folder / "new").iterdir()
    assert (said["file"], "content" in said) == (str(file), False)
    head = b"Return-Path: <>\nDelivered-To: c@d.test\nDelivered-To: e@d.test\n"
    assert file.read_bytes().replace(b"\r\n", b"\n") == head + CONTENT.replace(b"\r\n", b"\n")
    assert {one.name for one in folder.iterdir()} == {"tmp", "new", "cur"}
    assert list((folder / "tmp").iterdir()) == []


def test_an_address_with_a_line_end_adds_no_field_to_the_file(tmp_path: Path) -> None:
    kept = Kept(maildir=Maildir(tmp_path))
    said = kept.receive(message(sender='"a\nBcc: x"@b.test'))
    assert Path(said["file"]).read_text("utf-8").splitlines()[0] == 'Return-Path: <"a?Bcc: x"@b.test>'


def test_a_maildir_that_is_there_is_used_and_other_folders_are_refused(tmp_path: Path) -> None:
    Maildir(tmp_path / "mail")
    Maildir(tmp_path / "mail")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter.txt").write_text("mine")
    with pytest.raises(NoMaildir, match="is no Maildir and not empty; name a Maildir, or a folder"):
        Maildir(tmp_path / "other")
    with pytest.raises(NoMaildir, match="is no folder"):
        Maildir(tmp_path / "other" / "letter.txt")
    assert [one.name for one in (tmp_path / "other").iterdir()] == ["letter.txt"]


def test_a_line_after_a_torn_one_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "lines"
    with file.open("wb", buffering=0) as out:
        lines = WholeLines(out.fileno())
        real, room = os.write, [5]

        def short(descriptor: int, octets: bytes) -> int:
            if not room[0]:
                raise OSError(28, "No space left on device")
            written = real(descriptor, octets[: room[0]])
            room[0] -= written
            return written

        monkeypatch.setattr(os, "write", short)
        with pytest.raises(OSError, match="No space"):
            lines.write(b"one and more\n")
        assert not lines.writing
        monkeypatch.setattr(os, "write", real)
        lines.write(b"two\n")
        lines.write(b"three\n")
    assert file.read_bytes() == b"one a\ntwo\nthree\n"
