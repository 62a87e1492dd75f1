"""DANE with Postfix on the other side: signed zones, an nsd that serves them, an unbound that validates them for both.

What we send goes to a Postfix whose certificate the TLSA records name, or not; what Postfix sends with its level `dane`
comes to us, whose certificate they name, or not.
"""

import contextlib
import smtplib
import ssl
from collections.abc import Iterator

import pytest

from testkit.ca import Authority, trusting_anybody
from testkit.conditions import wait_until
from testkit.peers.postfix import Postfix
from testkit.peers.swaks import swaks
from testkit.ports import free_port, loopback_address
from testkit.rail import Rail, basics, domain
from testkit.signed_world import SignedWorld, tlsa

pytestmark = [pytest.mark.peer(name) for name in ("postfix", "nsd", "unbound", "swaks")]


@contextlib.contextmanager
def delivering(world: SignedWorld) -> Iterator[Rail]:
    """A rail that trusts the world's resolver and finds its mail hosts at their port."""
    options = ("--resolver", world.resolver.endpoint, "--trust-ad")
    with Rail(basics(), options=options, settings={"MAILRAIL_OUTBOUND_DIRECT_PORT": str(world.port)}) as rail:
        yield rail


def send(rail: Rail, recipient: str) -> None:
    said = swaks(*rail.mx, "--from", "bob@elsewhere.test", "--to", recipient)
    assert said.accepted, said.text


def certificate_of(rail: Rail) -> bytes:
    """What our MX shows, in PEM."""
    with smtplib.SMTP(*rail.mx) as client:
        client.starttls(context=trusting_anybody())
        assert isinstance(client.sock, ssl.SSLSocket)
        shown = client.sock.getpeercert(binary_form=True)
    assert shown is not None
    return ssl.DER_cert_to_PEM_cert(shown).encode()


def test_mail_reaches_the_postfix_that_the_dns_names_and_waits_before_one_with_another_certificate() -> None:
    with SignedWorld(port=free_port(loopback_address())) as world:
        hosts = [
            Postfix(
                name,
                address=world.addresses[name],
                port=world.port,
                certificate=world.certificates[name] if named else Authority().issue(name),
            )
            for name, named in (("mx.secure.test", True), ("mx.tlsa-alias.test", False))
        ]
        with contextlib.ExitStack() as stack:
            named, other = (stack.enter_context(host) for host in hosts)
            rail = stack.enter_context(delivering(world))
            send(rail, "friend@secure.test")
            wait_until(lambda: named.count() == 1, 60, named.logged)
            assert "TLS connection established from" in named.logged()
            send(rail, "friend@tlsa-alias.test")
            waiting = rail.wait_for_recipient("friend@tlsa-alias.test", lambda one: "last" in one)
            assert "no TLSA record of mx.tlsa-alias.test names the server's certificate" in str(waiting["last"])
            assert other.count() == 0
            assert rail.queued() == 1


def postfix_that_wants_proof(world: SignedWorld) -> Postfix:
    """A Postfix that delivers by MX to the world's port, with `dane`."""
    return Postfix(
        "sender.test",
        resolver=world.resolver.address,
        settings={
            "virtual_mailbox_domains": "",
            "smtp_tcp_port": str(world.port),
            "smtp_dns_support_level": "dnssec",
            "smtp_host_lookup": "dns",
            "smtp_tls_security_level": "dane",
            "smtp_tls_loglevel": "1",
            "minimal_backoff_time": "300s",
        },
    )


@pytest.mark.parametrize("ours", [True, False])
def test_postfix_delivers_to_us_when_the_dns_names_our_certificate_and_to_nobody_else(ours: bool) -> None:
    with Rail([*basics(), domain("ours", "ours.test")]) as rail:
        host, port = rail.mx
        world = SignedWorld(port=port, resolver_port=53)
        zone = world.zone("ours.test")
        zone.add("ours.test", "MX", "10 mx.ours.test.")
        zone.add("mx.ours.test", "A", host)
        named = certificate_of(rail) if ours else Authority().issue("mx.ours.test").chain_pem
        zone.add(world.tlsa_name("mx.ours.test"), "TLSA", tlsa(named, 3, 1, 1))
        with world, postfix_that_wants_proof(world) as sender:
            with smtplib.SMTP(sender.address, sender.port) as client:
                client.sendmail("a@sender.test", ["postmaster@ours.test"], "Subject: proven?\r\n\r\nbody\r\n")
            if ours:
                wait_until(lambda: "status=sent" in sender.logged(), 60, sender.logged)
                assert "Verified TLS connection established to mx.ours.test" in sender.logged()
            else:
                wait_until(lambda: "status=deferred" in sender.logged(), 60, sender.logged)
                assert "Server certificate not verified" in sender.logged()
