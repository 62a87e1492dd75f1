"""What a floor demands decides about the very next attempt (decision 18).

Mail waits where no host keeps it, fails where that is said, and goes once nobody demands it any more.
"""

import email
import email.message
import smtplib
from collections.abc import Iterator
from typing import Any

import pytest

from testkit.background import background
from testkit.conditions import wait_until
from testkit.ports import loopback_address
from testkit.rail import LOGIN, PASSWORD, Document, Rail, basics, gateway, route, rule, transport
from testkit.smtp_peer import SmtpPeer

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def clear() -> Iterator[SmtpPeer]:
    """A smarthost that offers no TLS."""
    peer = SmtpPeer(host=loopback_address())
    background().call(peer.__aenter__())
    yield peer
    background().call(peer.__aexit__())


def documents(peer: SmtpPeer, **of_gateway: Any) -> list[Document]:
    proven = rule("proven", "relay", to=["bank.test"])
    proven["require"] = {"tls": {"minimum": "Authenticated", "proofs": ["DANE"], "otherwise": "Fail"}}
    return [
        *(one for one in basics() if one["kind"] != "MailGateway"),
        gateway(retry={"delaysSeconds": [1], "lifetimeSeconds": 600, "maxAttempts": 200}, **of_gateway),
        transport("relay", smtp={"host": peer.host, "port": peer.port}),
        route("all", ("MailGateway", "local"), proven, rule("rest", "relay")),
    ]


def send(rail: Rail, to: str, message_id: str) -> None:
    text = f"From: <{LOGIN}>\r\nMessage-ID: {message_id}\r\nSubject: secret\r\n\r\nhello\r\n"
    with smtplib.SMTP(*rail.submission) as client:
        client.starttls()
        client.login(LOGIN, PASSWORD)
        assert not client.sendmail(LOGIN, to, text)


def test_mail_waits_while_its_floor_is_not_kept_and_goes_once_nobody_demands_it(clear: SmtpPeer) -> None:
    with Rail(documents(clear, security={"minimum": "Encrypted"})) as rail:
        send(rail, "friend@there.test", "<waits@example.org>")
        waiting = rail.wait_for_recipient("friend@there.test", lambda one: one["attempts"] >= 2)
        explained = " ".join(rail.cli("explain", waiting["id"]).split())
        assert "MailGateway default/local demands TLS; mail that finds none waits" in explained
        assert not any(line.startswith("MAIL") for line in clear.commands)
        checked = " ".join(rail.cli("tls", "check", "--required", LOGIN, "friend@there.test", status=1).split())
        assert "5.7.10: the message requires TLS, and the transport says tls.mode Opportunistic" in checked
        rail.write("all.yaml", documents(clear))
        wait_until(lambda: len(clear.messages) == 1, 60, "the mail, which nobody holds back any more")
        wait_until(
            lambda: "the last session was without TLS" in rail.cli("tls", "there.test", "--transport", "relay"),
            60,
            lambda: f"what the session showed; {rail.cli('tls', 'there.test', '--transport', 'relay')}",
        )


def test_a_rule_that_says_fail_tells_the_sender_at_once_and_its_host_is_not_dialled(clear: SmtpPeer) -> None:
    with Rail(documents(clear)) as rail:
        send(rail, "teller@bank.test", "<fails@example.org>")
        found = rail.wait_for_mail(LOGIN, lambda one: one["in_reply_to"] == "<fails@example.org>")
        parts = email.message_from_bytes(rail.read(found)).walk()
        payload = next(part for part in parts if part.get_content_type() == "message/delivery-status").get_payload()
        assert isinstance(payload, list)
        fields = payload[1]
        assert isinstance(fields, email.message.Message)
        assert str(fields["Status"]).split()[0] == "5.7.5"
        assert clear.sessions == []


def test_floors_that_leave_no_proof_are_told_before_they_hold_up_mail(clear: SmtpPeer) -> None:
    with Rail(documents(clear)) as rail:
        contradiction = documents(clear, security={"minimum": "Authenticated", "proofs": ["PKIX"]})
        rail.write("all.yaml", contradiction)
        told = "MailRoute default/all: spec.rules[0]: MailGateway default/local and MailRoute default/all rule proven "
        wait_until(
            lambda: told + "leave no proof that all of them allow" in " ".join(rail.cli("config", "status").split()),
            60,
            lambda: f"what is told of the route; {rail.cli('config', 'status')}",
        )
