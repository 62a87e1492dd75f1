"""Mail that comes with REQUIRETLS (RFC 8689) goes on with it, over verified TLS, or comes back; and it stays required.

The next hops are smarthosts whose names our transports verify: one that offers REQUIRETLS, one that does not, and one
that is reached without TLS.
"""

import contextlib
import email
import email.message
import re
import smtplib
from collections.abc import Iterator

import pytest

from testkit.background import background
from testkit.ca import Authority, trusting_anybody
from testkit.conditions import wait_until
from testkit.ports import loopback_address
from testkit.rail import LOGIN, PASSWORD, Document, Rail, basics, domain, gateway, route, rule, secret, transport
from testkit.smtp_peer import PeerMessage, PeerSession, SmtpPeer

pytestmark = pytest.mark.timeout(300)

AUTHORITY = Authority()
REFUSED = "550 5.1.1 unknown user"


@contextlib.contextmanager
def served(peer: SmtpPeer) -> Iterator[SmtpPeer]:
    background().call(peer.__aenter__())
    try:
        yield peer
    finally:
        background().call(peer.__aexit__())


def smarthost(*offered: str) -> SmtpPeer:
    """One with TLS, which says these extensions inside it, refuses `nobody`, and `held` for now until it is `open`."""

    def rcpt(_: PeerSession, line: str) -> str | None:
        if "<nobody@" in line:
            return REFUSED
        return "451 4.3.0 not now" if "<held@" in line and not getattr(peer, "open", False) else None

    host = loopback_address()
    peer = SmtpPeer(
        host=host,
        tls=AUTHORITY.issue(host).server_context(),
        extensions_after_tls=["PIPELINING", *offered],
        replies={"RCPT": rcpt},
    )
    return peer


@pytest.fixture(scope="module")
def offers() -> Iterator[SmtpPeer]:
    with served(smarthost("REQUIRETLS")) as peer:
        yield peer


@pytest.fixture(scope="module")
def lacks() -> Iterator[SmtpPeer]:
    with served(smarthost("SIZE")) as peer:
        yield peer


@pytest.fixture(scope="module")
def rail(offers: SmtpPeer, lacks: SmtpPeer) -> Iterator[Rail]:
    with Rail(documents(offers, lacks), files={"hop-ca.pem": AUTHORITY.pem}) as running:
        yield running


def documents(offers: SmtpPeer, lacks: SmtpPeer) -> list[Document]:
    verified = {"mode": "Verified", "caFile": "hop-ca.pem"}
    aliases = [{"localPart": "team", "to": ["ada@offers.test", "bob@offers.test"]}]
    return [
        *(one for one in basics() if one["kind"] not in ("MailGateway", "MailDomain")),
        gateway(retry={"delaysSeconds": [1], "lifetimeSeconds": 600, "maxAttempts": 100}),
        domain("example-org", "example.org", aliases=aliases),
        transport("offers", smtp={"host": offers.host, "port": offers.port, "tls": verified}),
        transport("lacks", smtp={"host": lacks.host, "port": lacks.port, "tls": verified}),
        transport("plain", smtp={"host": offers.host, "port": offers.port, "tls": {"mode": "Disabled"}}),
        route(
            "all",
            ("MailGateway", "local"),
            *(rule(name, name, to=[f"{name}.test"]) for name in ("offers", "lacks", "plain")),
        ),
    ]


def send(rail: Rail, sender: str, *recipients: str, message_id: str, options: tuple[str, ...] = ()) -> None:
    """Send with REQUIRETLS: alice submits, all others come to the MX."""
    text = f"From: <{sender}>\r\nMessage-ID: {message_id}\r\nSubject: secret\r\n\r\nnobody else may read this\r\n"
    with smtplib.SMTP(*(rail.submission if sender == LOGIN else rail.mx)) as client:
        client.starttls(context=trusting_anybody())
        client.ehlo()
        assert client.has_extn("REQUIRETLS")
        if sender == LOGIN:
            client.login(LOGIN, PASSWORD)
        assert not client.sendmail(sender, recipients, text, mail_options=["REQUIRETLS", *options])


def arrived(peer: SmtpPeer, text: str, count: int = 1, within: float = 60.0) -> list[PeerMessage]:
    """The messages with this text, once there are so many."""

    def found() -> list[PeerMessage]:
        return [message for message in list(peer.messages) if text.encode() in message.content]

    wait_until(
        lambda: len(found()) >= count, within, lambda: f"{count} with {text!r}; the server heard {peer.commands}"
    )
    return found()


def status_of(rail: Rail, message_id: str) -> str:
    """Status of the first recipient in the notification that alice got of a message."""
    found = rail.wait_for_mail(LOGIN, lambda one: one["in_reply_to"] == message_id)
    parts = email.message_from_bytes(rail.read(found)).walk()
    payload = next(part for part in parts if part.get_content_type() == "message/delivery-status").get_payload()
    assert isinstance(payload, list)
    fields = payload[1]
    assert isinstance(fields, email.message.Message)
    return str(fields["Status"]).split()[0]


def test_each_copy_of_an_alias_goes_on_with_requiretls_RTLS_10_RTLS_18(rail: Rail, offers: SmtpPeer) -> None:
    send(rail, LOGIN, "team@example.org", message_id="<alias@example.org>")
    wait_until(
        lambda: sum(len(m.rcpts) for m in arrived(offers, "<alias@example.org>")) == 2, 60, "both addresses have it"
    )
    for message in arrived(offers, "<alias@example.org>"):
        assert message.mail == f"MAIL FROM:<{LOGIN}> REQUIRETLS"
        assert message.session.tls == "TLSv1.3"
        assert b" with ESMTPSA (requiretls)\r\n" in message.content


def test_a_smarthost_without_requiretls_gets_nothing_and_the_sender_hears_so(rail: Rail, lacks: SmtpPeer) -> None:
    """Case rtls-14."""
    send(rail, LOGIN, "friend@lacks.test", message_id="<lacks@example.org>")
    assert status_of(rail, "<lacks@example.org>") == "5.7.30"
    assert "STARTTLS" in lacks.commands
    assert not any(line.startswith("MAIL") and "<alice@" in line for line in lacks.commands)


def test_requiretls_is_taken_and_a_route_without_tls_cannot_honour_it_RTLS_02(rail: Rail, offers: SmtpPeer) -> None:
    send(rail, LOGIN, "friend@plain.test", message_id="<plain@example.org>")
    assert status_of(rail, "<plain@example.org>") == "5.7.10"
    assert not any("friend@plain.test" in line for line in offers.commands)


def test_the_bounce_of_a_required_message_is_required_itself_and_has_its_header_alone_RTLS_19b_RTLS_20(
    rail: Rail, offers: SmtpPeer
) -> None:
    """Case rtls-08."""
    ours = ("RET=FULL", "ENVID=case-08")
    send(rail, "ann@offers.test", "nobody@offers.test", message_id="<refused@offers.test>", options=ours)
    (bounce,) = arrived(offers, "Original-Envelope-Id: case-08")
    assert (bounce.mail, bounce.rcpts) == ("MAIL FROM:<> REQUIRETLS", ["RCPT TO:<ann@offers.test>"])
    *_, third = email.message_from_bytes(bounce.content).walk()
    assert third.get_content_type() == "text/rfc822-headers"
    assert b"<refused@offers.test>" in bounce.content
    assert b"nobody else may read this" not in bounce.content


def test_the_bounce_arrives_redacted_where_the_way_back_lacks_requiretls_RTLS_21b(rail: Rail, lacks: SmtpPeer) -> None:
    """Case rtls-07."""
    send(rail, "ann@lacks.test", "nobody@offers.test", message_id="<back@lacks.test>", options=("ENVID=case-07",))
    (bounce,) = arrived(lacks, "Original-Envelope-Id: case-07")
    assert bounce.mail.startswith("MAIL FROM:<>")
    assert "REQUIRETLS" not in bounce.mail
    assert bounce.session.tls == "TLSv1.3"
    kinds = [part.get_content_type() for part in email.message_from_bytes(bounce.content).walk()]
    assert "message/delivery-status" in kinds
    assert "text/rfc822-headers" not in kinds
    assert b"secret" not in bounce.content


def test_one_mailrail_hands_it_to_another_without_a_word_of_configuration_about_it() -> None:
    certificate = AUTHORITY.issue("127.0.0.1")
    key, chain = certificate.key_pem.decode(), certificate.chain_pem.decode()
    receiving = gateway()
    for listener in receiving["spec"]["listeners"]:
        listener["tls"]["certificateSecretRef"]["name"] = "mx-tls"
    theirs = [
        receiving,
        domain("example-org", "other.test"),
        *(one for one in basics() if one["kind"] not in ("MailGateway", "MailDomain")),
        secret("mx-tls", tls_crt=chain, tls_key=key),
    ]
    with Rail(theirs) as there:
        onward = {"host": "127.0.0.1", "port": there.mx[1], "tls": {"mode": "Verified", "caFile": "hop-ca.pem"}}
        ours = [
            *basics(),
            transport("onward", smtp=onward),
            route("all", ("MailGateway", "local"), rule("onward", "onward", to=["other.test"])),
        ]
        with Rail(ours, files={"hop-ca.pem": AUTHORITY.pem}) as here:
            send(here, LOGIN, "alice@other.test", message_id="<both@example.org>")
            mail = there.wait_for_mail("alice@other.test", lambda one: one["subject"] == "secret")
            received = email.message_from_bytes(there.read(mail)).get_all("Received", [])
            assert [" (requiretls)" in field for field in received] == [True, True]
            assert " with ESMTPS (requiretls)" in received[0]
            counted = there.counted("mailrail_ingress_tls_requirements_total", "origin", "requirement")
            assert counted["mx", "required"] == 1


def test_what_was_answered_250_stays_required_whoever_is_killed_RTLS_06(rail: Rail, offers: SmtpPeer) -> None:
    send(rail, LOGIN, "held@offers.test", message_id="<held@example.org>")
    held = rail.wait_for_recipient("held@offers.test", lambda one: int(one["attempts"]) > 0)
    for service in ("outbound", "ingress", "queue", "postgres"):
        rail.wait_until_back(service, rail.kill(service))
    back = rail.wait_for_recipient("held@offers.test", lambda one: int(one["attempts"]) > int(held["attempts"]))
    assert back["tls_requirement"] == "TLS_REQUIREMENT_REQUIRED"
    rail.restart()
    for command in (("queue", "show"), ("explain",)):
        assert re.search(r"^TLS +required$", rail.cli(*command, str(back["id"])), re.MULTILINE)
    offers.open = True  # type: ignore[attr-defined]
    (message,) = arrived(offers, "<held@example.org>")
    assert message.mail == f"MAIL FROM:<{LOGIN}> REQUIRETLS"
    assert message.session.tls == "TLSv1.3"
