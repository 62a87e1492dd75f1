"""What one server is told about one message (EXT-08, EXT-11, DSN-04, DSN-05, DSN-27, SOUT-12, SOUT-18, AUTH-06)."""

from dataclasses import replace
from typing import Any

import pytest

from mailrail.core.delivery.outcome import HopKind
from mailrail.core.outbound.envelope import (
    BDAT_ABOVE,
    ContentFacts,
    Envelope,
    EnvelopePlan,
    EnvelopeRecipient,
    Form,
    form_for,
    inspect,
    plan,
)
from mailrail.core.outbound.host_failover import verdict_on
from mailrail.core.smtp.answer import Trouble
from mailrail.core.smtp.capabilities import Capabilities
from mailrail.core.smtp.parameters import BodyType

SEVEN = ContentFacts(100, eight_bit=False, binary=False, header_eight_bit=False)
EIGHT = ContentFacts(100, eight_bit=True, binary=False, header_eight_bit=False)
BINARY = ContentFacts(100, eight_bit=True, binary=True, header_eight_bit=False)
HEADER = ContentFacts(100, eight_bit=True, binary=False, header_eight_bit=True)
EVERYTHING = Capabilities("mx", True, True, True, True, True, True, True, size_offered=True, auth=("PLAIN",), size=None)


def make(
    envelope: Envelope, content: ContentFacts, capabilities: Capabilities, *to: EnvelopeRecipient, **more: Any
) -> EnvelopePlan:
    recipients = list(enumerate(to or (EnvelopeRecipient("b@example.org"),)))
    return plan(envelope, recipients, content, capabilities, form=form_for(content, capabilities), **more)


@pytest.mark.parametrize(
    ("content", "capabilities", "form"),
    [
        (SEVEN, Capabilities(), Form.AS_IS),
        (EIGHT, Capabilities(), Form.SEVEN_BIT),
        (EIGHT, Capabilities(eight_bit_mime=True), Form.AS_IS),
        (BINARY, Capabilities(), Form.SEVEN_BIT),
        (BINARY, Capabilities(eight_bit_mime=True), Form.EIGHT_BIT),
        (BINARY, Capabilities(eight_bit_mime=True, chunking=True), Form.EIGHT_BIT),
        (BINARY, EVERYTHING, Form.AS_IS),
    ],
)
def test_content_is_made_fit_for_the_hop_EXT_08(content: ContentFacts, capabilities: Capabilities, form: Form) -> None:
    assert form_for(content, capabilities) is form


@pytest.mark.parametrize(
    ("content", "facts"),
    [
        (b"A: b\r\n\r\nx\r\n", ContentFacts(11, False, False, False)),
        (b"A: b\r\n\r\n\xe9\r\n", ContentFacts(11, True, False, False)),
        (b"A: \xe9\r\n\r\nx\r\n", ContentFacts(11, True, False, True)),
        (b"A: b\r\n\r\nx\ny\r\n", ContentFacts(13, False, True, False)),
        (b"A: b\r\n\r\nx\0y\r\n", ContentFacts(13, False, True, False)),
        (b"A: b\r\n\r\n\xe9\r", ContentFacts(10, True, True, False)),
    ],
)
def test_content_is_looked_at_as_it_is(content: bytes, facts: ContentFacts) -> None:
    assert inspect(content) == facts


@pytest.mark.parametrize(
    ("envelope", "content", "line"),
    [
        (Envelope(""), SEVEN, "MAIL FROM:<> SIZE=100"),
        (Envelope("a@b", body=BodyType.SEVEN_BIT), SEVEN, "MAIL FROM:<a@b> SIZE=100 BODY=7BIT"),
        (Envelope("a@b", body=BodyType.EIGHT_BIT_MIME), SEVEN, "MAIL FROM:<a@b> SIZE=100 BODY=8BITMIME"),
        (Envelope("a@b"), EIGHT, "MAIL FROM:<a@b> SIZE=100 BODY=8BITMIME"),
        (Envelope("a@b", body=BodyType.SEVEN_BIT), EIGHT, "MAIL FROM:<a@b> SIZE=100 BODY=8BITMIME"),
        (Envelope("a@b"), BINARY, "MAIL FROM:<a@b> SIZE=100 BODY=BINARYMIME"),
        (Envelope("a@b", smtputf8=True), SEVEN, "MAIL FROM:<a@b> SIZE=100"),
        (Envelope("ä@b", smtputf8=True), SEVEN, "MAIL FROM:<ä@b> SIZE=100 SMTPUTF8"),
        (Envelope("a@b", smtputf8=True), HEADER, "MAIL FROM:<a@b> SIZE=100 BODY=8BITMIME SMTPUTF8"),
        (Envelope("a@b"), HEADER, "MAIL FROM:<a@b> SIZE=100 BODY=8BITMIME"),
        (Envelope("a@b", ret="FULL", envid="x+20y"), SEVEN, "MAIL FROM:<a@b> SIZE=100 RET=FULL ENVID=x+20y"),
    ],
)
def test_mail_says_what_is_needed_and_no_more(envelope: Envelope, content: ContentFacts, line: str) -> None:
    assert make(envelope, content, EVERYTHING).mail_line.decode() == line + "\r\n"


def test_nothing_is_said_to_a_hop_that_offered_nothing() -> None:
    envelope = Envelope("a@b", BodyType.EIGHT_BIT_MIME, ret="FULL", envid="x", auth="y")
    made = make(envelope, EIGHT, Capabilities(), EnvelopeRecipient("b@c", ("NEVER",), "rfc822;b@c"), authenticated=True)
    assert made.mail_line == b"MAIL FROM:<a@b>\r\n"
    assert made.rcpt_lines == (b"RCPT TO:<b@c>\r\n",)
    assert not made.dsn


def test_auth_is_passed_on_authenticated_hops_only_AUTH_06() -> None:
    envelope = Envelope("a@b", auth="e+3Dmc2@b")
    assert b" AUTH=e+3Dmc2@b" in make(envelope, SEVEN, EVERYTHING, authenticated=True).mail_line
    assert b"AUTH" not in make(envelope, SEVEN, EVERYTHING).mail_line


@pytest.mark.parametrize(
    ("capabilities", "sender", "line"),
    [
        (EVERYTHING, "a@b", b"ORCPT=utf-8;gr\\x{FC}n@x.example"),
        (EVERYTHING, "ä@b", "ORCPT=utf-8;grün@x.example".encode()),
    ],
)
def test_a_utf_8_orcpt_takes_the_form_that_the_transaction_allows_DSN_27(
    capabilities: Capabilities, sender: str, line: bytes
) -> None:
    recipient = EnvelopeRecipient("b@c", (), "utf-8;grün@x.example")
    (rcpt,) = make(Envelope(sender, smtputf8=True), SEVEN, capabilities, recipient).rcpt_lines
    assert rcpt == b"RCPT TO:<b@c> " + line + b"\r\n"


def test_a_declared_size_that_is_too_small_refuses_all_recipients() -> None:
    made = make(
        Envelope("a@b"),
        SEVEN,
        Capabilities(size_offered=True, size=99),
        EnvelopeRecipient("b@c"),
        EnvelopeRecipient("d@e"),
    )
    assert made.rcpt_lines == ()
    assert [(i, answer.trouble) for i, answer in made.refused] == [(0, Trouble.TOO_LARGE), (1, Trouble.TOO_LARGE)]


def test_without_smtputf8_only_those_are_refused_who_need_it() -> None:
    made = make(
        Envelope("a@b", smtputf8=True), SEVEN, Capabilities(), EnvelopeRecipient("ä@c"), EnvelopeRecipient("d@e")
    )
    assert made.indexes == (1,)
    assert [(i, answer.trouble) for i, answer in made.refused] == [(0, Trouble.NEEDS_SMTPUTF8)]


@pytest.mark.parametrize(("sender", "content", "status"), [("ä@b", SEVEN, "5.6.7"), ("a@b", HEADER, "5.6.9")])
def test_without_smtputf8_a_message_that_needs_it_goes_to_nobody_and_its_status_says_why_SOUT_18a(
    sender: str, content: ContentFacts, status: str
) -> None:
    made = make(Envelope(sender, smtputf8=True), content, Capabilities(eight_bit_mime=True))
    assert made.rcpt_lines == ()
    ((_, answer),) = made.refused
    assert str(verdict_on(answer, hop=HopKind.FOREIGN).status) == status


def test_a_recipient_that_needs_smtputf8_itself_is_told_so_and_not_that_the_header_does_SOUT_18a() -> None:
    """A sender who writes a plainer header would only bounce again."""
    made = make(
        Envelope("a@b", smtputf8=True), HEADER, Capabilities(), EnvelopeRecipient("ä@c"), EnvelopeRecipient("d@e")
    )
    assert made.rcpt_lines == ()
    statuses = [(i, str(verdict_on(answer, hop=HopKind.FOREIGN).status)) for i, answer in made.refused]
    assert statuses == [(0, "5.6.7"), (1, "5.6.9")]


def test_angle_brackets_inside_a_quoted_local_part_are_no_harm_RFC5321_4_1_2() -> None:
    made = make(
        Envelope('"<s>"@b'),
        SEVEN,
        EVERYTHING,
        EnvelopeRecipient('"a>b"@c'),
        EnvelopeRecipient('"a"b>@c'),
        EnvelopeRecipient('"a>\r\n"@c'),
    )
    assert made.indexes == (0,)
    assert made.mail_line.startswith(b'MAIL FROM:<"<s>"@b>')
    assert made.rcpt_lines[0].startswith(b'RCPT TO:<"a>b"@c>')


def test_an_address_can_never_become_a_command_SOUT_12a() -> None:
    made = make(Envelope("a@b"), SEVEN, EVERYTHING, EnvelopeRecipient("b@c>\r\nDATA\r\n"), EnvelopeRecipient("fine@c"))
    assert made.indexes == (1,)
    envelope = Envelope("a@b", envid="x\r\nRSET")
    assert make(envelope, SEVEN, EVERYTHING).mail_line.count(b"\r\n") == 1


@pytest.mark.parametrize(
    ("size", "chunking", "bdat"),
    [(BDAT_ABOVE, True, False), (BDAT_ABOVE + 1, True, True), (BDAT_ABOVE + 1, False, False)],
)
def test_large_content_goes_by_bdat_where_it_is_offered(size: int, chunking: bool, bdat: bool) -> None:
    content = ContentFacts(size, False, False, False)
    assert make(Envelope("a@b"), content, Capabilities(chunking=chunking)).bdat is bdat


@pytest.mark.parametrize("sender", ["a@b", ""])
def test_a_message_that_requires_tls_goes_only_to_a_server_that_offers_requiretls_RTLS_18_RTLS_19b(sender: str) -> None:
    made = make(Envelope(sender), SEVEN, Capabilities(), require_tls=True)
    assert [answer.trouble for _, answer in made.refused] == [Trouble.REQUIRETLS]
    line = make(Envelope(sender), SEVEN, Capabilities(require_tls=True), require_tls=True).mail_line
    assert line == f"MAIL FROM:<{sender}> REQUIRETLS\r\n".encode()
    assert b"REQUIRETLS" not in make(Envelope(sender), SEVEN, Capabilities(require_tls=True)).mail_line


def test_requiretls_follows_size_body_and_smtputf8() -> None:
    envelope = Envelope("ä@b", body=BodyType.EIGHT_BIT_MIME, smtputf8=True, ret="HDRS")
    line = make(envelope, SEVEN, replace(EVERYTHING, require_tls=True), require_tls=True).mail_line.decode()
    assert line == "MAIL FROM:<ä@b> SIZE=100 BODY=8BITMIME SMTPUTF8 REQUIRETLS RET=HDRS\r\n"
