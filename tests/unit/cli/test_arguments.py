"""What people type: ids, times, durations, and the options that choose recipients."""

import datetime

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from mailrail.cli import arguments as a
from mailrail.pb.queue.v1 import admin_pb2

NOW = datetime.datetime(2026, 11, 22, 18, 0, tzinfo=datetime.UTC)
ID = "01a204a4-762e-7201-aece-0c198e12775d"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("5m", 300), ("1h30m", 5400), ("2d", 172800), ("-1h", -3600), ("+1D2H", 93600)],
)
def test_durations_are_read_as_people_write_them(text: str, seconds: int) -> None:
    assert a.duration(text).total_seconds() == seconds


@pytest.mark.parametrize("text", ["", "-", "soon", "5x", "1m1h", "1.5h", "5 m", "²", "٣m", "99999999999d"])
def test_what_is_no_duration_ends_the_command_with_an_example(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as ended:
        a.duration(text)
    assert ended.value.exit_code == 2
    assert "write 90s, 5m, 1h30m or 2d" in capsys.readouterr().err


def test_times_are_absolute_or_from_now() -> None:
    assert a.moment("now", NOW) == NOW
    assert a.moment("-2h", NOW) == NOW - datetime.timedelta(hours=2)
    assert a.moment("+30m", NOW) == NOW + datetime.timedelta(minutes=30)
    assert a.moment("2026-11-22T18:00:00Z", NOW) == NOW
    assert a.moment("2026-11-22T20:00:00+02:00", NOW) == NOW
    local = datetime.datetime(2026, 11, 22, 18, 0).astimezone()
    assert a.moment("2026-11-22T18:00", NOW) == local


@pytest.mark.parametrize("text", ["tomorrow", "18:00h", "2026-13-01", "", "-999999d"])
def test_what_is_no_time_ends_the_command(text: str) -> None:
    with pytest.raises(typer.Exit):
        a.moment(text, NOW)


def test_a_name_without_a_namespace_is_in_default_and_a_login_stays_one() -> None:
    assert a.qualified("alice") == "default/alice"
    assert a.qualified("mail/alice") == "mail/alice"
    assert a.qualified("alice@example.org") == "alice@example.org"
    assert a.qualified("") == ""
    found = a.object_ref("MailTransport", "smarthost")
    assert (found.kind, found.namespace, found.name) == ("MailTransport", "default", "smarthost")


def test_a_login_is_no_account_of_mail_in_the_queue(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit):
        a.selection([], account="alice@example.org")
    assert "write the account's NAMESPACE/NAME" in capsys.readouterr().err
    assert a.account_name("mail/a@b") == "mail/a@b"


def test_ids_are_numbers_of_recipients_or_uuids_of_messages() -> None:
    chosen = a.selection(["17", ID, ID.replace("-", "")])
    assert list(chosen.recipient_ids) == [17]
    assert [m.hex() for m in chosen.message_ids] == [ID.replace("-", "")] * 2


def test_options_become_fields_and_absent_ones_stay_absent() -> None:
    chosen = a.selection(
        [],
        from_="bob",
        to="",
        account="alice",
        on_hold=False,
        transport="",
        due_before="2026-11-22T18:00Z",
        all=False,
    )
    expected = admin_pb2.Filter(account="default/alice", on_hold=False)
    setattr(expected, "from", "bob")
    expected.due_before.FromDatetime(NOW.replace(tzinfo=None))
    assert chosen == expected


@given(st.text(max_size=40) | st.text("0123456789²٣", max_size=25))
def test_any_id_is_taken_or_refused_with_a_sentence(text: str) -> None:
    try:
        chosen = a.selection([text])
    except typer.Exit:
        return
    assert len(chosen.recipient_ids) + len(chosen.message_ids) == 1
