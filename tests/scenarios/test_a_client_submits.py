"""Mail from an ordinary client: swaks to the MX port, and to both submission ports with AUTH.

The hops behind are sinks: what was accepted arrives there, once, as it was sent. One takes all mail, one wants a login
and TLS, and one is a store that speaks LMTP.
"""

import re
import smtplib
import ssl
from collections.abc import Iterator

import pytest

from testkit.ca import Authority
from testkit.conditions import wait_until
from testkit.next_hop import NextHop
from testkit.peers.swaks import AUTH_FAILED, RCPT_REFUSED, swaks
from testkit.ports import loopback_address
from testkit.rail import (
    LOGIN,
    PASSWORD,
    Rail,
    basics,
    by_transport,
    domain,
    everything_through,
    route,
    rule,
    secret,
    transport,
)

AUTHORITY = Authority()

pytestmark = [pytest.mark.peer("swaks"), pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def hop() -> Iterator[NextHop]:
    with NextHop() as sink:
        yield sink


@pytest.fixture(scope="module")
def smarthost() -> Iterator[NextHop]:
    """It takes mail of the user `rail` alone, inside TLS."""
    address = loopback_address()
    context = AUTHORITY.issue("smarthost.test", address).server_context()
    with NextHop(address=address, tls=context, accounts={"rail": "s3cret, with a space"}) as sink:
        yield sink


@pytest.fixture(scope="module")
def store() -> Iterator[NextHop]:
    with NextHop(lmtp=True) as sink:
        yield sink


@pytest.fixture(scope="module")
def rail(hop: NextHop, smarthost: NextHop, store: NextHop) -> Iterator[Rail]:
    submission = {
        "host": smarthost.address,
        "port": smarthost.port,
        "auth": {"secretRef": {"name": "smarthost-login"}},
        "tls": {"caFile": "smarthost-ca.pem"},
    }
    documents = [
        *basics(),
        domain("listed", "listed.example.org", by_transport("hop", listed=["known"])),
        domain("verified", "verified.example.org", by_transport("hop", "Verify")),
        domain("stored", "stored.example.org", by_transport("store", "Any")),
        transport("store", lmtp={"host": store.address, "port": store.port}),
        transport("smarthost", submission=submission),
        secret("smarthost-login", username="rail", password="s3cret, with a space"),
        route("abroad", ("MailGateway", "local"), rule("abroad", "smarthost", to=["abroad.test"])),
        *everything_through(hop.address, hop.port),
    ]
    with Rail(documents, files={"smarthost-ca.pem": AUTHORITY.pem}) as running:
        yield running


def login(mechanism: str = "PLAIN", password: str = PASSWORD) -> tuple[str, ...]:
    return ("--auth", mechanism, "--auth-user", LOGIN, "--auth-password", password)


def test_a_stranger_reaches_a_mailbox_on_the_mx_port(rail: Rail) -> None:
    said = swaks(*rail.mx, "--from", "bob@elsewhere.test", "--to", LOGIN, "--header", "Subject: to alice")
    assert said.accepted, said.text
    rail.wait_until_empty()
    assert any(message["subject"] == "to alice" for message in rail.mailbox(LOGIN))


def test_a_stranger_reaches_the_next_hop_of_a_listed_recipient_and_nobody_else_there(rail: Rail, hop: NextHop) -> None:
    said = swaks(*rail.mx, "--from", "bob@elsewhere.test", "--to", "known@listed.example.org")
    assert said.accepted, said.text
    receipt = hop.wait_for_recipient("known@listed.example.org")
    assert receipt.sender == "bob@elsewhere.test"
    assert receipt.hello == "rail.example.org"


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN"])
def test_an_account_submits_over_starttls(rail: Rail, hop: NextHop, mechanism: str) -> None:
    recipient = f"{mechanism.lower()}@partner.test"
    said = swaks(*rail.submission, "--tls", *login(mechanism), "--from", LOGIN, "--to", recipient)
    assert said.accepted, said.text
    receipt = hop.wait_for_recipient(recipient)
    assert receipt.sender == LOGIN
    # Received says how it came: over TLS, authenticated (RFC 3848)
    assert "with ESMTPSA" in " ".join(receipt.parsed.get_all("Received", [])[0].split())


def test_an_account_submits_over_implicit_tls(rail: Rail, hop: NextHop) -> None:
    said = swaks(*rail.submissions, "--tls-on-connect", *login(), "--from", LOGIN, "--to", "implicit@partner.test")
    assert said.accepted, said.text
    hop.wait_for_recipient("implicit@partner.test")


def test_a_submission_without_date_and_message_id_gets_both_and_loses_bcc(rail: Rail, hop: NextHop) -> None:
    data = f"From: <{LOGIN}>\\nTo: <bare@partner.test>\\nBcc: <secret@partner.test>\\nSubject: bare\\n\\nbody\\n"
    said = swaks(*rail.submission, "--tls", *login(), "--from", LOGIN, "--to", "bare@partner.test", "--data", data)
    assert said.accepted, said.text
    message = hop.wait_for_recipient("bare@partner.test").parsed
    assert message["Message-ID"]
    assert message["Date"]
    assert message["Bcc"] is None


def test_internationalized_mail_goes_on_to_a_smarthost_that_wants_a_login(rail: Rail, smarthost: NextHop) -> None:
    content = "Subject: Grüße\r\n\r\nGrüße aus Köln\r\n".encode()
    with smtplib.SMTP(*rail.submission) as client:
        client.starttls(context=ssl._create_unverified_context())
        client.login(LOGIN, PASSWORD)
        client.sendmail(LOGIN, ["jürgen@abroad.test"], content, ["SMTPUTF8", "BODY=8BITMIME"])
    message = smarthost.wait_for_recipient("jürgen@abroad.test")
    assert (message.sender, message.login, message.tls) == (LOGIN, "rail", "TLSv1.3")
    assert {"SMTPUTF8", "BODY=8BITMIME"} <= set(message.sender_parameters)
    assert message.header("Subject") == "Grüße"
    assert message.content.endswith("\r\n\r\nGrüße aus Köln\r\n".encode())


def test_each_recipient_at_a_store_has_its_own_end_LMTP_02(rail: Rail, hop: NextHop, store: NextHop) -> None:
    store.answers.give("END", "550 5.2.1 mailbox disabled", to="disabled@stored.example.org")
    recipients = "one@stored.example.org,disabled@stored.example.org,two@stored.example.org"
    said = swaks(*rail.mx, "--from", "bob@elsewhere.test", "--to", recipients)
    assert said.accepted, said.text
    notification = hop.wait_for_recipient("bob@elsewhere.test")
    assert notification.sender == ""
    reported = re.findall(rb"^Final-Recipient: rfc822; *(.*?)\r$", notification.content, re.M)
    assert reported == [b"disabled@stored.example.org"]
    stored = sorted(to for message in store.messages for to in message.recipients)
    assert stored == ["one@stored.example.org", "two@stored.example.org"]


def test_a_wrong_password_is_refused(rail: Rail) -> None:
    wrong = login(password="not it")
    said = swaks(*rail.submission, "--tls", *wrong, "--from", LOGIN, "--to", "x@partner.test")
    assert said.status == AUTH_FAILED, said.text
    assert any(reply.startswith("535 5.7.8") for reply in said.replies), said.text


def test_nothing_is_taken_on_submission_without_authentication(rail: Rail) -> None:
    said = swaks(*rail.submission, "--tls", "--from", LOGIN, "--to", "x@partner.test")
    assert not said.accepted
    assert any(reply.startswith("530 5.7.0") for reply in said.replies), said.text


def test_an_account_may_not_send_as_somebody_else(rail: Rail) -> None:
    said = swaks(*rail.submission, "--tls", *login(), "--from", "boss@example.org", "--to", "x@partner.test")
    assert not said.accepted
    assert any(reply.startswith(("550 5.7.", "553 5.7.")) for reply in said.replies), said.text


def test_an_unknown_recipient_of_a_listed_domain_is_refused_on_submission(rail: Rail) -> None:
    said = swaks(*rail.submission, "--tls", *login(), "--from", LOGIN, "--to", "unknown@listed.example.org")
    assert said.status == RCPT_REFUSED, said.text
    assert any(reply.startswith("550 5.1.1") for reply in said.replies), said.text


def test_a_next_hop_that_refuses_a_sender_once_is_tried_for_the_next_message_SOUT_08(rail: Rail, hop: NextHop) -> None:
    hop.answers.give("MAIL", "550 5.7.1 not from you", to=LOGIN, times=1)
    for recipient in ("refused@partner.test", "taken@partner.test"):
        said = swaks(*rail.submission, "--tls", *login(), "--from", LOGIN, "--to", recipient)
        assert said.accepted, said.text
        rail.wait_until_empty()
    assert [hop.received(f"{name}@partner.test") != [] for name in ("refused", "taken")] == [False, True]


def test_a_next_hop_that_refuses_the_sender_of_a_probe_knows_no_recipient_and_gets_mail_all_the_same_SOUT_08(
    rail: Rail, hop: NextHop
) -> None:
    """It says 550 to MAIL FROM:<> and so nothing about a recipient: 451, for as long as it does. Nothing of it is held
    against other mail for that host."""
    probed = (*rail.mx, "--from", "bob@elsewhere.test", "--to", "anybody@verified.example.org")
    hop.answers.give("MAIL", "550 5.7.1 no bounces here", to="@")  # the null sender's domain
    said = swaks(*probed)
    assert said.status == RCPT_REFUSED, said.text
    assert any(reply.startswith("451 4.3.0") for reply in said.replies), said.text
    said = swaks(*rail.submission, "--tls", *login(), "--from", LOGIN, "--to", "at-once@partner.test")
    assert said.accepted, said.text
    hop.wait_for_recipient("at-once@partner.test", within=20)
    hop.answers.withdraw("MAIL", to="@")
    wait_until(lambda: swaks(*probed).accepted, 60, "the next probe is answered")
    hop.wait_for_recipient("anybody@verified.example.org")
