"""A refused recipient's DSN lands in the sender's built-in mailbox, threaded with what was sent (design 9, DSN rules).

And the other ends of a message's life that a sender hears of: given up after its lifetime, delayed, delivered.
"""

import email
import email.message
import email.policy
import json
import smtplib
import ssl
from collections.abc import Iterator

import pytest

from testkit.next_hop import NextHop
from testkit.peers.swaks import swaks
from testkit.rail import LOGIN, PASSWORD, Rail, basics, everything_through, gateway

pytestmark = [pytest.mark.peer("swaks"), pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def hop() -> Iterator[NextHop]:
    with NextHop() as sink:
        yield sink


@pytest.fixture(scope="module")
def rail(hop: NextHop) -> Iterator[Rail]:
    documents = [
        *(one for one in basics() if one["kind"] != "MailGateway"),
        gateway(retry={"delaysSeconds": [1], "lifetimeSeconds": 600, "maxAttempts": 4, "delayedDsnAfter": 2}),
        *everything_through(hop.address, hop.port),
    ]
    with Rail(documents) as running:
        yield running


def submit(rail: Rail, recipient: str, message_id: str, *options: str) -> None:
    login = ("--auth", "PLAIN", "--auth-user", LOGIN, "--auth-password", PASSWORD)
    headers = ("--header", f"Message-Id: {message_id}", "--header", f"Subject: for {recipient}")
    said = swaks(*rail.submission, "--tls", *login, "--from", LOGIN, "--to", recipient, *headers, *options)
    assert said.accepted, said.text


def submit_asking(rail: Rail, recipient: str, message_id: str, notify: str) -> None:
    """Submit with NOTIFY of RFC 3461, which swaks cannot say."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    text = (
        f"From: <{LOGIN}>\r\nTo: <{recipient}>\r\nMessage-ID: {message_id}\r\nSubject: notify {notify}\r\n\r\nbody\r\n"
    )
    with smtplib.SMTP(*rail.submission) as client:
        client.starttls(context=context)
        client.login(LOGIN, PASSWORD)
        refused = client.sendmail(LOGIN, [recipient], text, rcpt_options=[f"NOTIFY={notify}"])
    assert not refused


def notification(rail: Rail, message_id: str, action: str) -> email.message.EmailMessage:
    """The DSN about a message with this action, once it is in alice's mailbox."""

    def is_it(one: dict[str, object]) -> bool:
        return (
            message_id in (str(one["in_reply_to"]), *map(str, one["references"] or ()))  # type: ignore[call-overload]
            and f"Action: {action}".encode() in rail.read(one)
        )

    found = rail.wait_for_mail(LOGIN, is_it, within=60)
    parsed = email.message_from_bytes(rail.read(found), policy=email.policy.default)
    assert isinstance(parsed, email.message.EmailMessage)
    return parsed


def status_fields(dsn: email.message.EmailMessage) -> email.message.Message:
    """The per-recipient fields of a DSN (the second group of message/delivery-status)."""
    part = next(part for part in dsn.walk() if part.get_content_type() == "message/delivery-status")
    groups = part.get_payload()
    assert isinstance(groups, list)
    recipient = groups[1]
    assert isinstance(recipient, email.message.Message)
    return recipient


def test_the_refusal_of_the_next_hop_comes_back_as_a_threaded_dsn(rail: Rail, hop: NextHop) -> None:
    hop.refuse("nobody@partner.test", "550 5.1.1 no such user here")
    submit(rail, "nobody@partner.test", "<refused-1@example.org>")
    dsn = notification(rail, "<refused-1@example.org>", "failed")
    assert dsn["In-Reply-To"] == "<refused-1@example.org>"
    assert dsn["References"] == "<refused-1@example.org>"
    assert dsn["Return-Path"] in (None, "<>")
    assert dsn.get_content_type() == "multipart/report"
    fields = status_fields(dsn)
    assert fields["Final-Recipient"] == "rfc822; nobody@partner.test"
    assert fields["Status"] == "5.1.1"
    assert "550 5.1.1 no such user here" in " ".join(str(fields["Diagnostic-Code"]).split())
    assert hop.attempts("nobody@partner.test") == 1  # 5yz is final at any attempt
    returned = [part for part in dsn.walk() if part.get_content_type() in ("message/rfc822", "text/rfc822-headers")]
    assert b"<refused-1@example.org>" in returned[0].as_bytes()


def test_the_command_line_shows_the_mailbox_with_the_dsn(rail: Rail, hop: NextHop) -> None:
    hop.refuse("shown@partner.test", "550 5.1.1 gone")
    submit(rail, "shown@partner.test", "<refused-2@example.org>")
    notification(rail, "<refused-2@example.org>", "failed")
    listed = json.loads(rail.cli("mailbox", "list", "--account", LOGIN, "--json"))
    dsn = next(one for one in listed if one["in_reply_to"] == "<refused-2@example.org>")
    assert dsn["dsn"] is True
    assert "shown@partner.test" in rail.cli("mailbox", "read", str(dsn["id"]))
    assert "INBOX" in rail.cli("mailbox", "boxes", "--account", LOGIN).upper()


def test_the_good_recipients_of_a_message_get_it_and_the_refused_one_is_reported(rail: Rail, hop: NextHop) -> None:
    hop.refuse("bad@partner.test", "553 5.1.3 strange address")
    submit(rail, "good@partner.test,bad@partner.test", "<mixed@example.org>")
    hop.wait_for_recipient("good@partner.test")
    dsn = notification(rail, "<mixed@example.org>", "failed")
    assert status_fields(dsn)["Final-Recipient"] == "rfc822; bad@partner.test"
    assert "good@partner.test" not in dsn.as_string().partition("message/delivery-status")[2].partition("\n--")[0]


def test_after_the_last_attempt_the_sender_hears_of_the_delay_and_of_the_end(rail: Rail, hop: NextHop) -> None:
    hop.refuse("slow@partner.test", "451 4.2.1 mailbox busy")
    submit(rail, "slow@partner.test", "<slow@example.org>")
    delayed = status_fields(notification(rail, "<slow@example.org>", "delayed"))
    assert delayed["Status"] == "4.2.1"
    failed = status_fields(notification(rail, "<slow@example.org>", "failed"))
    assert str(failed["Status"]).startswith(("5.4.7", "4.4.7", "5.2.1"))
    assert hop.attempts("slow@partner.test") == 4  # maxAttempts


def test_who_asked_for_it_hears_of_success_and_who_asked_for_nothing_hears_nothing(rail: Rail, hop: NextHop) -> None:
    submit_asking(rail, LOGIN, "<to-myself@example.org>", "SUCCESS")
    fields = status_fields(notification(rail, "<to-myself@example.org>", "delivered"))
    assert fields["Final-Recipient"] == f"rfc822; {LOGIN}"
    hop.refuse("quiet@partner.test", "550 5.1.1 nobody")
    submit_asking(rail, "quiet@partner.test", "<never@example.org>", "NEVER")
    rail.wait_until_empty()
    assert not [one for one in rail.mailbox(LOGIN) if one["in_reply_to"] == "<never@example.org>"]
