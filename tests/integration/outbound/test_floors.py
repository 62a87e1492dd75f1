"""Floors of ours on real connections: what no host offers is not sent, and says whether it waits or fails."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mailrail.core.delivery.outcome import Scope
from mailrail.core.revision.revision import (
    Otherwise,
    Security,
    TlsMinimum,
    TlsMode,
    TlsProof,
    TransportKind,
    Unanswered,
)
from mailrail.core.smtp.answer import Trouble
from mailrail.core.tlspolicy.demands import Demand, Demanded, add_up
from mailrail.core.tlspolicy.facts import Purpose, Requirement
from mailrail.pb.queue.v1 import lease_pb2
from mailrail.sink import Options, Sink
from mailrail_outbound.clients import demanded_of
from mailrail_outbound.ports import RecipientReport, Result
from mailrail_queue.routing.router import security_pb

from testkit.ca import Authority
from testkit.dns import DnsServer
from testkit.outbound import OutboundBench, transport
from testkit.ports import loopback_address
from testkit.smtp_peer import SmtpPeer

ENCRYPTED = Security(TlsMinimum.ENCRYPTED)


def floor(security: Security) -> Demanded:
    return add_up([Demand("MailGateway default/edge", security)])


@pytest.fixture
def dns() -> Iterator[DnsServer]:
    with DnsServer() as server:
        yield server


async def send(dns: DnsServer, peer: Sink | SmtpPeer, **facts: Any) -> RecipientReport:
    """A message to example.org, whose only MX is this peer."""
    dns.add("example.org", "MX", "10 mx.example.org.")
    dns.add("mx.example.org", "A", peer.host)
    async with OutboundBench.running(resolver=dns.endpoint, direct_port=peer.port) as bench:
        return (await bench.deliver(bench.delivery(None, **facts))).recipients[0]


@pytest.mark.parametrize(
    ("otherwise", "result", "status"),
    [(Otherwise.DEFER, Result.DEFERRED, "4.7.5"), (Otherwise.FAIL, Result.FAILED, "5.7.5")],
)
async def test_a_host_that_offers_no_tls_gets_nothing_where_tls_is_the_least(
    dns: DnsServer, otherwise: Otherwise, result: Result, status: str
) -> None:
    async with SmtpPeer(host=loopback_address()) as peer:
        found = await send(dns, peer, demanded=floor(Security(TlsMinimum.ENCRYPTED, otherwise=otherwise)))
        assert (found.result, str(found.verdict.status)) == (result, status)
        assert [session.mail for session in peer.sessions] == [""]


async def test_what_one_sender_demands_makes_no_site_back_off(dns: DnsServer) -> None:
    """Mail of all others goes there as before."""
    async with SmtpPeer(host=loopback_address()) as peer:
        found = await send(dns, peer, demanded=floor(ENCRYPTED))
        assert found.verdict.scope is Scope.RECIPIENT


async def test_any_certificate_does_where_encryption_is_the_least(dns: DnsServer) -> None:
    context = Authority().issue("other.example").server_context()
    async with Sink(Options(tls=context), host=loopback_address()) as peer:
        found = await send(dns, peer, demanded=floor(ENCRYPTED))
        assert found.result is Result.DELIVERED
        assert peer.messages[0].tls


async def test_a_certificate_of_nobody_does_not_do_where_the_server_must_be_authenticated(dns: DnsServer) -> None:
    context = Authority().issue("mx.example.org").server_context()
    async with Sink(Options(tls=context), host=loopback_address()) as peer:
        found = await send(dns, peer, demanded=floor(Security(TlsMinimum.AUTHENTICATED)))
        assert (found.result, str(found.verdict.status)) == (Result.DEFERRED, "4.7.5")
        assert not peer.messages


async def test_a_host_without_the_proof_that_is_asked_for_is_not_dialled(dns: DnsServer) -> None:
    async with Sink(host=loopback_address()) as peer:
        dane = Security(TlsMinimum.AUTHENTICATED, (TlsProof.DANE,))
        found = await send(dns, peer, demanded=floor(dane))
        assert (found.result, str(found.verdict.status)) == (Result.DEFERRED, "4.7.5")
        assert "MailGateway default/edge demands more" in found.verdict.text
        assert peer.connections == 0


@pytest.mark.parametrize(
    ("mode", "otherwise", "result", "status", "scope"),
    [
        (TlsMode.OPPORTUNISTIC, Otherwise.DEFER, Result.DEFERRED, "4.7.5", Scope.RECIPIENT),
        (TlsMode.OPPORTUNISTIC, Otherwise.FAIL, Result.FAILED, "5.7.5", Scope.RECIPIENT),
        (TlsMode.REQUIRED, Otherwise.FAIL, Result.DEFERRED, "4.3.5", Scope.TRANSPORT),
    ],
)
async def test_a_floor_makes_a_smarthosts_opportunistic_tls_a_must_and_no_trouble_of_the_transport(
    mode: TlsMode, otherwise: Otherwise, result: Result, status: str, scope: Scope
) -> None:
    """What the transport demands itself is its own trouble: all its mail waits, and none of it bounces."""
    async with SmtpPeer() as peer:
        via = transport(TransportKind.SMTP, host="localhost", port=peer.port, tls=mode)
        security = Security(TlsMinimum.ENCRYPTED, otherwise=otherwise)
        async with OutboundBench.running(via) as bench:
            (found,) = (await bench.deliver(bench.delivery(via, demanded=floor(security)))).recipients
        assert (found.result, str(found.verdict.status), found.verdict.scope) == (result, status, scope)
        assert [session.mail for session in peer.sessions] == [""]


async def test_a_recipient_is_not_verified_in_clear_where_the_transport_demands_tls() -> None:
    async with SmtpPeer() as peer:
        via = transport(TransportKind.SMTP, host="localhost", port=peer.port, security=ENCRYPTED)
        async with OutboundBench.running(via) as bench:
            answer = await bench.app.verify("b@example.org", via.ref)
        assert answer.trouble is Trouble.TLS
        assert [session.rcpts for session in peer.sessions] == [[]]


@pytest.mark.parametrize(
    ("purpose", "result"), [(Purpose.DMARC_REPORT, Result.DEFERRED), (Purpose.TLS_REPORT, Result.DELIVERED)]
)
async def test_after_tls_failed_a_report_on_tls_goes_in_clear_and_one_on_dmarc_waits_DAGG_17a(
    dns: DnsServer, purpose: Purpose, result: Result
) -> None:
    broken = Authority().issue("mx.example.org").server_context()
    broken.set_ciphers("NULL:@SECLEVEL=0")
    broken.maximum_version = broken.minimum_version
    async with SmtpPeer(tls=broken, host=loopback_address()) as peer:
        found = await send(dns, peer, purpose=purpose)
        assert found.result is result


async def test_a_report_on_dmarc_goes_in_clear_to_who_offers_no_tls_DAGG_17a(dns: DnsServer) -> None:
    async with Sink(host=loopback_address()) as peer:
        assert (await send(dns, peer, purpose=Purpose.DMARC_REPORT)).result is Result.DELIVERED


async def test_a_required_message_goes_to_no_store_elsewhere_without_verified_tls() -> None:
    """RTLS-27b."""
    via = transport(TransportKind.LMTP, host="192.0.2.1", port=24, tls=TlsMode.REQUIRED)
    async with OutboundBench.running(via) as bench:
        made = bench.delivery(via, requirement=Requirement.REQUIRED)
        (found,) = (await bench.deliver(made)).recipients
    assert (found.result, str(found.verdict.status)) == (Result.FAILED, "5.7.10")


async def test_a_required_message_ends_at_a_store_on_this_machine_which_knows_no_requiretls_RTLS_27b() -> None:
    async with SmtpPeer(lmtp=True) as peer:
        via = transport(TransportKind.LMTP, host="localhost", port=peer.port, tls=TlsMode.NONE)
        async with OutboundBench.running(via) as bench:
            made = bench.delivery(via, requirement=Requirement.REQUIRED)
            (found,) = (await bench.deliver(made)).recipients
        assert found.result is Result.DELIVERED


@pytest.mark.parametrize(
    "security",
    [
        Security(TlsMinimum.ENCRYPTED, otherwise=Otherwise.FAIL),
        Security(TlsMinimum.AUTHENTICATED, (TlsProof.DANE, TlsProof.PKIX), when_unanswered=Unanswered.PROCEED),
        Security(when_unanswered=Unanswered.PROCEED),
    ],
)
def test_what_the_queue_writes_of_a_floor_is_what_outbound_reads(security: Security) -> None:
    wire = lease_pb2.Security.FromString(security_pb(floor(security)).SerializeToString())
    assert demanded_of(wire) == floor(security)


def test_words_of_a_later_release_are_never_read_as_something_weaker(tmp_path: Path) -> None:
    later = lease_pb2.Security.FromString(bytes([1 << 3, 9, 2 << 3, 9]))
    assert (later.minimum, list(later.proofs)) == (9, [9])
    assert demanded_of(later).impossible
    unknown_proof = lease_pb2.Security.FromString(bytes([1 << 3, 2, 2 << 3, 9]))
    assert demanded_of(unknown_proof).impossible
