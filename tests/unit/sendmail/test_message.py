"""A message between standard input and its file."""

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailrail.core.smtp.address import Address
from mailrail.sendmail.message import HeaderWishes, InputLines, MessageFacts, read_message
from mailrail.sendmail.settings import RewriteFrom
from mailrail.sendmail.status import ExitStatus, Stop

WISHES = HeaderWishes(
    author=Address("ada", "example.org"),
    replacement=Address("alerts", "example.org"),
    full_name="",
    rewrite_from=RewriteFrom.LOCAL,
    default_domain="",
    message_id="<1@example.org>",
    now=1_700_000_000.0,
    recipients=False,
    waive_tls=False,
)
DATE = b"Date: Tue, 14 Nov 2023 22:13:20 +0000\r\n"
WHOLE = b"From: a@b.test\r\nDate: x\r\nMessage-ID: <y@b.test>\r\n"


def made(text: bytes, wishes: HeaderWishes = WISHES, piece: int = 1 << 20, **how: bool) -> tuple[bytes, MessageFacts]:
    out: list[bytes] = []
    pieces = (text[at : at + piece] for at in range(0, len(text), piece))
    facts = read_message(
        pieces,
        out.append,
        wishes,
        dot_is_text=how.get("dot_is_text", True),
        terminal=how.get("terminal", False),
        limit=1 << 20,
    )
    return b"".join(out), facts


def test_what_a_message_lacks_is_added_SML_05() -> None:
    text, facts = made(b"Subject: hi\n\nbody\n")
    assert text == (b"Subject: hi\r\nFrom: ada@example.org\r\n" + DATE + b"Message-ID: <1@example.org>\r\n\r\nbody\r\n")
    assert facts.message_id == "<1@example.org>"
    assert facts.size == len(text)


def test_what_a_message_has_stays_as_it_is_SML_05() -> None:
    assert made(WHOLE + b"\r\nbody\r\n")[0] == WHOLE + b"\r\nbody\r\n"


@pytest.mark.parametrize("text", [b"From: a@b.test\rX: y\r\rbody\r", b"From: a@b.test\nX: y\n\nbody\n"])
def test_every_line_end_becomes_crlf_SML_05(text: bytes) -> None:
    found = made(text)[0]
    assert found.startswith(b"From: a@b.test\r\nX: y\r\n")
    assert found.endswith(b"\r\n\r\nbody\r\n")
    assert found.count(b"\r") == found.count(b"\n") == found.count(b"\r\n")


@pytest.mark.parametrize("text", [b"hello\nthere\n", b"\nhello\nthere\n"])
def test_text_without_a_header_becomes_the_body_SML_05(text: bytes) -> None:
    assert made(text)[0].endswith(b"Message-ID: <1@example.org>\r\n\r\nhello\r\nthere\r\n")


def test_a_line_without_a_colon_ends_the_header_SML_05() -> None:
    assert made(WHOLE + b"no field here\nTo: x@y.test\n")[0] == WHOLE + b"\r\nno field here\r\nTo: x@y.test\r\n"


def test_nothing_is_a_message_too() -> None:
    assert made(b"")[0] == b"From: ada@example.org\r\n" + DATE + b"Message-ID: <1@example.org>\r\n"


def test_a_header_whose_last_line_has_no_end_gets_one() -> None:
    assert made(b"Subject: hi")[0].startswith(b"Subject: hi\r\nFrom: ")


def test_bcc_is_never_sent_SML_05() -> None:
    text, facts = made(
        WHOLE + b"Bcc: x@y.test,\n z@y.test\nResent-Bcc: q@y.test\nReturn-Path: <a@b>\nTo: t@y.test\n\n."
    )
    assert text == WHOLE + b"To: t@y.test\r\n\r\n."
    assert facts.recipients == []


def test_recipients_are_read_from_to_cc_and_bcc_SML_01() -> None:
    wishes = replace(WISHES, recipients=True)
    header = WHOLE + b"To: t@y.test, root\nCc: Ada <c@y.test>\nBcc: b@y.test\nTo: again@y.test\n"
    found = made(header + b"\n", wishes)[1].recipients
    assert [str(each) for each in found] == ["t@y.test", "root", "again@y.test", "c@y.test", "b@y.test"]
    resent = made(header + b"Resent-To: r@y.test\nResent-Bcc: s@y.test\n\n", wishes)[1].recipients
    assert [str(each) for each in resent] == ["r@y.test", "s@y.test"]


@pytest.mark.parametrize(
    ("header", "rewrite", "expected"),
    [
        (b"From: root (Cron Daemon)", RewriteFrom.LOCAL, b"From: Cron Daemon <alerts@example.org>"),
        (b"From: root", RewriteFrom.LOCAL, b"From: alerts@example.org"),
        (b"From: Ada <root@box>", RewriteFrom.LOCAL, b"From: Ada <alerts@example.org>"),
        (b"From: a@b.test", RewriteFrom.LOCAL, b"From: a@b.test"),
        (b"From: root", RewriteFrom.NEVER, b"From: root"),
        (b"From: Ada <a@b.test>", RewriteFrom.ALWAYS, b"From: Ada <alerts@example.org>"),
        (b"From: <broken", RewriteFrom.LOCAL, b"From: <broken"),
        (b"From:", RewriteFrom.NEVER, b"From: ada@example.org"),
    ],
)
def test_from_is_rewritten_as_configured_SML_02(header: bytes, rewrite: RewriteFrom, expected: bytes) -> None:
    text = made(header + b"\nDate: x\nMessage-ID: <y@b.test>\n\n", replace(WISHES, rewrite_from=rewrite))[0]
    assert [line for line in text.split(b"\r\n") if line.lower().startswith(b"from:")] == [expected]


def test_the_name_of_the_author_is_used_where_from_is_missing_SML_01() -> None:
    assert made(b"\n", replace(WISHES, full_name="Ada, Countess"))[0].startswith(
        b'From: "Ada, Countess" <ada@example.org>\r\n'
    )
    assert made(b"\n", replace(WISHES, full_name="a\nBcc: x"))[0].startswith(b"From: ")
    assert b"\nBcc" not in made(b"\n", replace(WISHES, full_name="a\nBcc: x"))[0]


def test_the_waiver_of_tls_stands_once_SML_04() -> None:
    text = made(WHOLE + b"TLS-Required: perhaps\n\n", replace(WISHES, waive_tls=True))[0]
    assert text == WHOLE + b"TLS-Required: No\r\n\r\n"


@pytest.mark.parametrize(
    ("text", "size", "expected"),
    [
        (b"a\n.\nb\n.\n", 1, b"a\r\n.\r\nb\r\n"),
        (b"a\n.\nb\n.", 2, b"a\r\n.\r\nb\r\n"),
        (b"a\n..\n", 1, b"a\r\n..\r\n"),
        (b"a.\n", 1, b"a.\r\n"),
    ],
)
def test_a_dot_ends_no_pipe_and_is_dropped_as_last_line_SML_01(text: bytes, size: int, expected: bytes) -> None:
    assert made(WHOLE + b"\n" + text, piece=size, dot_is_text=False)[0] == WHOLE + b"\r\n" + expected
    kept = WHOLE + b"\n" + text
    assert made(kept, piece=size)[0] == kept.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")


def test_a_dot_ends_the_input_on_a_terminal_SML_01() -> None:
    text = WHOLE + b"\na\n.\nnot this\n"
    assert made(text, dot_is_text=False, terminal=True)[0] == WHOLE + b"\r\na\r\n"
    assert made(text, dot_is_text=True, terminal=True)[0].endswith(b"not this\r\n")


def test_the_facts_of_a_message_are_found_in_any_split_SML_05() -> None:
    text = WHOLE + b"Subject: \xc3\xa4\n\n" + b"x" * 1500 + b"\n\0\n"
    for piece in (1, 3, 7, 4096):
        facts = made(text, piece=piece)[1]
        assert (facts.eight_bit, facts.header_utf8, facts.nul, facts.longest) == (True, True, True, 1500)
    plain = made(WHOLE + b"\n\xc3\xa4\n", piece=1)[1]
    assert (plain.eight_bit, plain.header_utf8, plain.nul, plain.longest < 100) == (True, False, False, True)
    assert made(WHOLE + b"DKIM-Signature: x\n\n")[1].signed
    latin = made(WHOLE + b"Subject: \xe4\n\n")[1]
    assert (latin.eight_bit, latin.header_utf8) == (True, False)


def test_a_message_above_the_limit_is_refused_SML_12() -> None:
    with pytest.raises(Stop, match="is larger than 1048576 octets") as caught:
        made(WHOLE + b"\n" + b"x\n" * (1 << 20))
    assert caught.value.status is ExitStatus.DATA


@pytest.mark.parametrize("text", [b"X: " + b"y" * 300_000, b"X: y\n" * 1100, b"X:\n" + b" y\n" * 100_000])
def test_a_header_without_measure_is_refused_SML_12(text: bytes) -> None:
    with pytest.raises(Stop, match="the header of the message") as caught:
        made(text)
    assert caught.value.status is ExitStatus.DATA


def without_last_dot(text: bytes) -> bytes:
    if text in (b".", b".\r\n"):
        return b""
    return text[: text.rindex(b".")] if text.endswith((b"\r\n.\r\n", b"\r\n.")) else text


@pytest.mark.parametrize("piece", [1, 2, 3])
def test_lines_come_out_the_same_in_any_split(piece: int) -> None:
    for length in range(7):
        for letters in itertools.product(b"a.\r\n", repeat=length):
            text = bytes(letters)
            whole = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n").replace(b"\n", b"\r\n")
            for dot_is_text in (True, False):
                lines = InputLines(dot_is_text=dot_is_text)
                out = b"".join(lines.feed(text[at : at + piece]) for at in range(0, length, piece)) + lines.finish()
                assert out == (whole if dot_is_text else without_last_dot(whole)), text


@given(st.binary(max_size=300), st.integers(1, 50))
def test_any_octets_become_a_message_or_are_refused(text: bytes, piece: int) -> None:
    found, facts = made(text, piece=piece)
    assert found == made(text)[0]
    assert facts.size == len(found)
    head = found.partition(b"\r\n\r\n")[0].lower() + b"\r\n"
    for name in (b"from:", b"date:", b"message-id:"):
        assert head.startswith(name) or b"\n" + name in head
