"""An administrator changes what waiting mail demands of TLS: stuck mail goes, and other mail goes no more (ADM-05)."""

import contextlib
import re
import smtplib
from collections.abc import Iterator

import pytest

from testkit.background import background
from testkit.ca import trusting_anybody
from testkit.conditions import wait_until
from testkit.ports import free_port, loopback_address
from testkit.rail import LOGIN, PASSWORD, Document, Rail, basics, gateway, route, rule, transport
from testkit.signed_world import SignedWorld
from testkit.smtp_peer import SmtpPeer

pytestmark = pytest.mark.timeout(300)


@contextlib.contextmanager
def served(peer: SmtpPeer) -> Iterator[SmtpPeer]:
    background().call(peer.__aenter__())
    try:
        yield peer
    finally:
        background().call(peer.__aexit__())


def patient() -> list[Document]:
    """The basics, with no second attempt but one that an administrator asks for."""
    others = [one for one in basics() if one["kind"] != "MailGateway"]
    return [*others, gateway(retry={"delaysSeconds": [3600], "lifetimeSeconds": 86400, "maxAttempts": 100})]


def submit(rail: Rail, recipient: str) -> str:
    """The number of the recipient, once an attempt was deferred."""
    with smtplib.SMTP_SSL(*rail.submissions, context=trusting_anybody()) as client:
        client.login(LOGIN, PASSWORD)
        text = f"From: <{LOGIN}>\r\nMessage-ID: <{recipient}>\r\nSubject: hello\r\n\r\nmind the gap\r\n"
        client.sendmail(LOGIN, [recipient], text)
    waiting = rail.wait_for_recipient(recipient, lambda one: "last" in one)
    return str(waiting["id"])


@pytest.mark.peer("nsd")
@pytest.mark.peer("unbound")
def test_mail_that_is_stuck_for_a_wrong_tlsa_record_goes_once_an_administrator_says_no_RTLS_22b_ADM_05() -> None:
    with contextlib.ExitStack() as stack:
        world = stack.enter_context(SignedWorld(port=free_port(loopback_address())))
        host = "mx.mismatch.test"
        context = world.certificates[host].server_context()
        peer = stack.enter_context(served(SmtpPeer(host=world.addresses[host], port=world.port, tls=context)))
        options = ("--resolver", world.resolver.endpoint, "--trust-ad")
        settings = {"MAILRAIL_OUTBOUND_DIRECT_PORT": str(world.port)}
        rail = stack.enter_context(Rail(patient(), options=options, settings=settings))
        number = submit(rail, "friend@mismatch.test")
        assert "kept from the host (tlsa)" in rail.cli("explain", number)
        assert peer.messages == []
        said = rail.cli("queue", "set-tls", "no", number, "--reason", "they have told us that the record is old")
        assert said == '1 recipient set to TLS "no": sent without TLS if necessary\n'
        rail.cli("queue", "kick", number)
        wait_until(lambda: len(peer.messages) == 1, 60, lambda: f"it came; the server heard {peer.commands}")
        assert peer.messages[0].session.tls == "TLSv1.3", "TLS is made where it can be"
        rail.wait_until_empty()
        shown = rail.cli("queue", "show", number)
        assert re.search(r"^ *to +no \(before: default\)$", shown, re.MULTILINE), shown
        assert "they have told us that the record is old" in shown
        assert shown.index("kept from the host (tlsa)") < shown.index("(before: default)") < shown.index("attempt 2")
        assert rail.counted("mailrail_queue_tls_recipients_total", "requirement", "proof") == {("no", "none"): 1}


def test_mail_that_an_administrator_protects_goes_no_more_where_there_is_no_tls_and_comes_back_RTLS_17b_ADM_05() -> (
    None
):
    refuses = SmtpPeer(host=loopback_address(), replies={"RCPT": "451 4.3.0 not now"})
    with served(refuses):
        plain = transport("plain", smtp={"host": refuses.host, "port": refuses.port, "tls": {"mode": "Disabled"}})
        documents = [
            *patient(),
            plain,
            route("all", ("MailGateway", "local"), rule("plain", "plain", to=["plain.test"])),
        ]
        with Rail(documents) as rail:
            number = submit(rail, "friend@plain.test")
            heard = len(refuses.commands)
            rail.cli("queue", "set-tls", "required", number)
            rail.cli("queue", "kick", number)
            found = rail.wait_for_mail(LOGIN, lambda one: one["in_reply_to"] == "<friend@plain.test>")
            bounce = rail.read(found)
            assert b"Status: 5.7.10" in bounce
            assert b"mind the gap" not in bounce
            assert refuses.commands[heard:] == [], "nothing was dialled"
            assert found["tls_requirement"] == "TLS_REQUIREMENT_REQUIRED"
