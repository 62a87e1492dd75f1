"""What is printed: bounded, harmless to a terminal, and JSON for programs."""

import datetime
import io
import json
import sys

import pytest
from google.protobuf.duration_pb2 import Duration
from hypothesis import given
from hypothesis import strategies as st

from mailrail.cli import output
from mailrail.pb.queue.v1 import admin_pb2, types_pb2

NOW = datetime.datetime(2026, 11, 22, 18, 0, tzinfo=datetime.UTC)


def test_escape_sequences_of_strangers_are_shown_not_obeyed() -> None:
    assert output.clean("a\x1b[2Jb\x9bc\u202ed") == "a\\x1b[2Jb\\x9bc\\u202ed"
    assert output.clean("plain, ünïcode, 漢字") == "plain, ünïcode, 漢字"


@given(st.text())
def test_no_control_character_ever_reaches_a_terminal(text: str) -> None:
    assert all(c.isprintable() or c in "\n\t" for c in output.clean(text))


def test_a_message_of_the_api_becomes_plain_json() -> None:
    recipient = admin_pb2.Recipient(
        id=7,
        message_id=bytes(range(16)),
        address="bob@example.org",
        state=types_pb2.RECIPIENT_STATE_QUEUED,
        outcome=types_pb2.OUTCOME_DEFERRED,
        last=types_pb2.Attempt(number=1, reply=types_pb2.Reply(code=451, lines=["later"])),
    )
    recipient.queued.FromDatetime(NOW.replace(tzinfo=None))
    found = output.plain(recipient)
    assert found["id"] == "7"  # 64 bits, of which many readers of JSON keep 53
    assert found["message_id"] == "00010203-0405-0607-0809-0a0b0c0d0e0f"
    assert (found["state"], found["outcome"], found["tls_requirement"]) == ("queued", "deferred", "unspecified")
    assert found["queued"] == "2026-11-22T18:00:00.000Z"
    assert found["next_attempt"] is None
    assert found["account"] is None
    assert found["last"]["reply"]["lines"] == ["later"]
    json.dumps(found)


def test_of_a_choice_only_what_is_set_is_shown() -> None:
    request = admin_pb2.ScheduleRequest(from_now=Duration(seconds=90))
    found = output.plain(request)
    assert found["from_now"] == 90
    assert "at" not in found


def test_an_enum_of_a_newer_version_is_shown_as_its_number() -> None:
    found = output.plain(admin_pb2.Recipient(state=99))  # type: ignore[arg-type]
    assert found["state"] == 99


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.2, "now"), (5, "in 5s"), (-61, "1m ago"), (7300, "in 2h"), (-3 * 86400, "3d ago")]
)
def test_distances_are_told_in_one_unit(seconds: float, words: str) -> None:
    assert output.distance(seconds) == words


@pytest.mark.parametrize(
    ("octets", "words"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 << 20, "5.0 MiB"), (3 << 42, "12.0 TiB")]
)
def test_sizes_are_told_in_one_unit(octets: int, words: str) -> None:
    assert output.size_of(octets) == words


def test_an_empty_table_is_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    output.table(("A", "B"), [], none="nothing here")
    assert capsys.readouterr().out == "nothing here\n"


def test_rows_stay_on_one_line_when_nobody_looks_and_markup_is_text(capsys: pytest.CaptureFixture[str]) -> None:
    output.table(("ID", "SUBJECT"), [("1", "[bold]x[/bold] " + "long " * 60 + "\n\x1b]0;t\x07")], none="")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["ID", "SUBJECT"]
    assert "[bold]x[/bold]" in lines[1]
    assert "\x1b" not in "".join(lines)


LONG = "4.4.1 no connection to the next hop: 127.0.0.1 port 2525: Connection refused, and so on for longer than a line"


def test_a_row_for_a_pipe_is_one_line_however_long_without_blanks_at_its_end(
    capsys: pytest.CaptureFixture[str],
) -> None:
    output.table(("ID", "REPLY", "NOTE"), [("1", LONG * 5, ""), ("2", "", "x")], none="", prose=1)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[1] == f"1   {LONG * 5}"
    assert all(line == line.rstrip() for line in lines)


def test_on_a_narrow_terminal_sentences_stand_below_their_row_and_addresses_keep_their_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(output, "terminal_width", lambda: 60)
    row = ("1002", "alice@example.org", "bob@smarthost.example", LONG)
    output.table(("ID", "FROM", "TO", "LAST REPLY"), [row], none="", prose=1)
    head, first, *below = capsys.readouterr().out.splitlines()
    assert head.split() == ["ID", "FROM", "TO"]
    assert first == "1002  alice@example.org  bob@smarthost.example"
    assert all(line.startswith("    ") and len(line) <= 60 for line in below)
    assert " ".join(line.strip() for line in below) == LONG


def test_columns_are_aligned_by_what_a_terminal_shows(capsys: pytest.CaptureFixture[str]) -> None:
    output.table(("A", "B"), [("漢字", "x"), ("abcd", "y")], none="")
    assert capsys.readouterr().out.splitlines()[1:] == ["漢字  x", "abcd  y"]


def test_in_a_table_today_needs_no_date() -> None:
    recipient = admin_pb2.Recipient()
    recipient.next_attempt.FromDatetime(NOW.replace(tzinfo=None) + datetime.timedelta(seconds=1))
    full = output.when(recipient, "next_attempt", NOW)
    assert output.when(recipient, "next_attempt", NOW, brief=True) == full.split(" ", 1)[1]
    later = NOW + datetime.timedelta(days=3)
    assert output.when(recipient, "next_attempt", later, brief=True) == output.when(recipient, "next_attempt", later)


def test_json_escapes_what_a_terminal_hides_or_turns_around(capsys: pytest.CaptureFixture[str]) -> None:
    hidden = "a\u202eb\u200bc\u2028d\ufeffe\U000e0041"
    output.print_json({"address": hidden, "name": "Grüße"})
    said = capsys.readouterr().out
    assert json.loads(said) == {"address": hidden, "name": "Grüße"}
    assert said.isprintable() or all(c.isprintable() or c == "\n" for c in said)
    assert "Grüße" in said


@pytest.mark.parametrize(("encoding", "shown"), [("utf-8", "→"), ("cp1252", ">"), ("ascii", ">")])
def test_an_arrow_is_one_column_wide_in_every_encoding(
    monkeypatch: pytest.MonkeyPatch, encoding: str, shown: str
) -> None:
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    assert output.arrow() == shown
