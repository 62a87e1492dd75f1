"""DANE over real handshakes: what a server presents is compared before anything of ours is sent, and never forgotten.

What the DNS says of a host is given here (`Known`); how it is found out is tested with a real resolver elsewhere.
"""

import contextlib
import datetime
import hashlib
import ssl
from dataclasses import dataclass, field
from typing import Any

import pytest

from mailrail.core.dane.demand import DaneDemand
from mailrail.core.dane.tlsa import TlsaRecord
from mailrail.core.revision.revision import TlsMode, Transport, TransportKind
from mailrail.core.smtp.answer import Answer
from mailrail.core.tlspolicy.decision import Requirement, TlsDecision
from mailrail.core.tlspolicy.facts import DnsFacts, Tlsa
from mailrail.core.tlsrpt.result_type import ResultType
from mailrail_outbound import metrics
from mailrail_outbound.dialling import Dialler, Host
from mailrail_outbound.hops import DialPlan, NextHop
from mailrail_outbound.ports import Delivery, RecipientReport, Result
from mailrail_outbound.smtp import ClientConnection
from mailrail_outbound.tls import TlsStream, client_context, presented_chain

from testkit.ca import Authority, Certificate
from testkit.chains import Issued, issue
from testkit.conditions import eventually
from testkit.outbound import OutboundBench, secret_ref, transport
from testkit.peers.postfix import Postfix
from testkit.smtp_peer import Close, SmtpPeer

HOST = "localhost"
BASE = "mx.provider.example"
LAST_YEAR = datetime.datetime(2025, 6, 1, tzinfo=datetime.UTC)
VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]

ROOT = issue("Root", ca=True)
ISSUER = issue("Issuer", by=ROOT, ca=True)
SERVER = issue(BASE, BASE, by=ISSUER)
OLD = issue("wrong.example", "wrong.example", ends=LAST_YEAR)
"""Expired, of another name, vouched for by nobody."""


def record(usage: int, selector: int, matching: int, of: Issued) -> TlsaRecord:
    content = of.key_info if selector else of.der
    return TlsaRecord(usage, selector, matching, hashlib.sha256(content).digest() if matching else content)


def demand(*records: TlsaRecord, base: str = HOST, names: tuple[str, ...] = (BASE,)) -> DaneDemand:
    return DaneDemand.of(base, records, names)


@dataclass
class Known:
    """What the DNS says of the host now; None: nothing that counts."""

    dane: DaneDemand | None = None
    decisions: list[TlsDecision] = field(default_factory=list)


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> Known:
    found = Known()
    plan_for = Dialler.plan_for

    def with_facts(dialler: Dialler, hop: NextHop, delivery: Delivery, host: Host) -> DialPlan:
        dane = found.dane
        if dane is not None:
            facts = DnsFacts(True, True, True, Tlsa.USABLE, dane.matching)
            host = host._replace(dns=facts, dane=dane)
        plan = plan_for(dialler, hop, delivery, host)
        found.decisions.append(plan.decision)
        return plan

    monkeypatch.setattr(Dialler, "plan_for", with_facts)
    return found


@pytest.fixture
def failures(monkeypatch: pytest.MonkeyPatch) -> list[Answer]:
    """Why connections gave no session."""
    told: list[Answer] = []
    tell_failed = ClientConnection._tell_failed

    def noted(connection: ClientConnection, answer: Answer) -> None:
        told.append(answer)
        tell_failed(connection, answer)

    monkeypatch.setattr(ClientConnection, "_tell_failed", noted)
    return told


def via_peer(peer: SmtpPeer, **fields: Any) -> Transport:
    return transport(TransportKind.SMTP, host=HOST, port=peer.port, **fields)


async def send(bench: OutboundBench, via: Transport, **fields: Any) -> RecipientReport:
    return (await bench.deliver(bench.delivery(via, **fields))).recipients[0]


def only(context: ssl.SSLContext, version: ssl.TLSVersion) -> ssl.SSLContext:
    context.maximum_version = version
    return context


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(("selector", "matching"), [(0, 0), (0, 1), (1, 0), (1, 1)])
async def test_a_server_whose_own_certificate_is_named_gets_mail_though_it_expired_under_another_name_DANE_10(
    known: Known, version: ssl.TLSVersion, selector: int, matching: int
) -> None:
    async with SmtpPeer(tls=only(OLD.server_context(), version)) as peer:
        known.dane = demand(record(3, selector, matching, OLD))
        via = via_peer(peer)
        async with OutboundBench.running(via) as bench:
            result = await send(bench, via)
        assert result.result is Result.DELIVERED, result.text
        assert result.tls is not None
        assert result.tls.verified
        assert known.decisions[0].mode is TlsMode.VERIFIED
        assert not known.decisions[0].plaintext_may_follow


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_server_that_no_record_names_gets_nothing_of_ours_DANE_10(
    known: Known, failures: list[Answer], version: ssl.TLSVersion
) -> None:
    async with SmtpPeer(tls=only(SERVER.server_context(ISSUER, ROOT), version)) as peer:
        known.dane = demand(record(3, 1, 1, OLD), record(2, 0, 1, OLD))
        via = via_peer(peer)
        async with OutboundBench.running(via) as bench:
            result = await send(bench, via)
        assert result.result is Result.DEFERRED
        assert "DANE: no TLSA record of localhost names" in result.text
        assert peer.commands == ["EHLO mail.sender.example", "STARTTLS"]
        assert len(peer.sessions) == 1  # and there is no second one in the clear
    (answer,) = failures
    assert answer.fault is not None
    assert (answer.fault.type, answer.fault.reason) == (ResultType.VALIDATION_FAILURE, "tlsa-mismatch")


@pytest.mark.parametrize("sent_with", [(ISSUER,), (ISSUER, ROOT), (ROOT, ISSUER), (OLD, ROOT, ISSUER)])
async def test_an_issuer_that_is_named_is_found_among_what_is_sent_in_any_order_DANE_11(
    known: Known, sent_with: tuple[Issued, ...]
) -> None:
    async with SmtpPeer(tls=SERVER.server_context(*sent_with)) as peer:
        known.dane = demand(record(2, 0, 1, ISSUER))
        via = via_peer(peer)
        async with OutboundBench.running(via) as bench:
            assert (await send(bench, via)).result is Result.DELIVERED


@pytest.mark.parametrize(
    ("server", "sent_with", "fault"),
    [
        (SERVER, (), (ResultType.VALIDATION_FAILURE, "tlsa-mismatch")),
        (
            issue(BASE, BASE, by=ISSUER, ends=LAST_YEAR),
            (ISSUER,),
            (ResultType.CERTIFICATE_EXPIRED, "certificate-expired"),
        ),
        (
            issue("x", "other.example", by=ISSUER),
            (ISSUER,),
            (ResultType.CERTIFICATE_HOST_MISMATCH, "host-mismatch"),
        ),
        (issue(BASE, by=ISSUER), (ISSUER,), (ResultType.CERTIFICATE_HOST_MISMATCH, "host-mismatch")),
        (issue(BASE, BASE, by=issue("Issuer")), (ISSUER,), (ResultType.CERTIFICATE_NOT_TRUSTED, "no-chain")),
    ],
    ids=["not sent", "expired", "other name", "common name", "forged"],
)
async def test_below_an_issuer_date_name_and_chain_count_DANE_11(
    known: Known,
    failures: list[Answer],
    server: Issued,
    sent_with: tuple[Issued, ...],
    fault: tuple[ResultType, str],
) -> None:
    async with SmtpPeer(tls=server.server_context(*sent_with)) as peer:
        known.dane = demand(record(2, 0, 1, ISSUER))
        via = via_peer(peer)
        async with OutboundBench.running(via) as bench:
            assert (await send(bench, via)).result is Result.DEFERRED
        assert not any(line.startswith("MAIL") for line in peer.commands)
    (answer,) = failures
    assert answer.fault is not None
    assert (answer.fault.type, answer.fault.reason) == fault


async def test_an_issuer_written_out_in_the_record_need_not_be_sent_DANE_11(known: Known) -> None:
    async with SmtpPeer(tls=SERVER.server_context()) as peer:
        via = via_peer(peer)
        async with OutboundBench.running(via) as bench:
            for selector in (0, 1):
                known.dane = demand(record(2, selector, 0, ISSUER))
                assert (await send(bench, via)).result is Result.DELIVERED


async def test_the_server_is_asked_for_under_its_base_domain_DANE_17(known: Known) -> None:
    asked: list[str | None] = []
    context = OLD.server_context()
    context.sni_callback = lambda connection, name, context: asked.append(name)
    async with SmtpPeer(tls=context) as peer:
        via = via_peer(peer)
        async with OutboundBench.running(via, messages_per_connection=1) as bench:
            known.dane = demand(record(3, 1, 1, OLD), base=BASE)
            assert (await send(bench, via)).result is Result.DELIVERED
            known.dane = None
            assert (await send(bench, via)).result is Result.DELIVERED
    assert asked == [BASE, HOST]


async def test_without_starttls_a_host_with_records_gets_nothing(known: Known, failures: list[Answer]) -> None:
    closes = {"STARTTLS": Close("220 go")}
    async with SmtpPeer() as stripped, SmtpPeer(extensions=["STARTTLS"], replies=closes) as broken:
        for peer in (stripped, broken):
            known.dane = demand(record(3, 1, 1, OLD))
            via = via_peer(peer)
            async with OutboundBench.running(via) as bench:
                assert (await send(bench, via)).result is Result.DEFERRED
            assert len(peer.sessions) == 1
            assert peer.messages == []
    assert [answer.fault.type for answer in failures if answer.fault is not None] == [
        ResultType.STARTTLS_NOT_SUPPORTED,
        ResultType.VALIDATION_FAILURE,
    ]


async def test_a_certificate_that_is_good_for_pkix_does_not_make_up_for_it(known: Known) -> None:
    authority = Authority()
    async with SmtpPeer(tls=authority.issue(HOST).server_context()) as peer:
        via = via_peer(peer, tls=TlsMode.VERIFIED, ca=secret_ref("ca"))
        async with OutboundBench.running(via, secrets={"ca": authority.pem}) as bench:
            known.dane = demand(record(3, 1, 1, OLD))
            assert (await send(bench, via)).result is Result.DEFERRED
            assert peer.messages == []
            known.dane = None
            assert (await send(bench, via)).result is Result.DELIVERED


@pytest.mark.parametrize(("name", "delivered"), [(HOST, True), ("other.example", False)])
async def test_with_pkix_besides_the_name_of_the_host_counts_though_sni_says_the_base_domain(
    known: Known, name: str, delivered: bool
) -> None:
    root = issue("PKIX", ca=True)
    server = issue("x", name, by=root)
    asked: list[str | None] = []
    context = server.server_context()
    context.sni_callback = lambda connection, name, context: asked.append(name)
    async with SmtpPeer(tls=context) as peer:
        via = via_peer(peer, tls=TlsMode.VERIFIED, ca=secret_ref("ca"))
        known.dane = demand(record(3, 1, 1, server), base=BASE)
        async with OutboundBench.running(via, secrets={"ca": root.pem}) as bench:
            result = await send(bench, via)
        assert (result.result is Result.DELIVERED) is delivered, result.text
        assert delivered or "the server's certificate is for other.example, not for localhost" in result.text
        assert bool(peer.messages) is delivered
    assert asked == [BASE]


# --- what was proven once -----------------------------------------------------------------------------------------


async def test_a_connection_serves_only_what_its_own_handshake_met_RTLS_28(known: Known) -> None:
    async with SmtpPeer(tls=OLD.server_context()) as peer:
        via = via_peer(peer)
        async with OutboundBench.running(via) as bench:
            assert (await send(bench, via)).result is Result.DELIVERED
            assert len(peer.sessions) == 1
            known.dane = demand(record(3, 1, 1, OLD))
            for _ in range(3):
                assert (await send(bench, via)).result is Result.DELIVERED
            assert len(peer.sessions) == 2  # one that was proven, for all three
            known.dane = demand(record(3, 1, 1, SERVER))
            assert (await send(bench, via)).result is Result.DEFERRED  # other records: the open one proves nothing
            assert len(peer.messages) == 4


async def test_domains_share_the_connections_of_a_host_unless_names_count_RTLS_28(known: Known) -> None:
    server = issue("x", "one.example", "two.example", by=ISSUER)
    async with SmtpPeer(tls=server.server_context(ISSUER)) as peer:
        via = via_peer(peer)
        async with OutboundBench.running(via) as bench:
            for names in (("one.example",), ("two.example",), ("one.example",)):
                known.dane = demand(record(3, 1, 1, server), names=names)
                assert (await send(bench, via)).result is Result.DELIVERED
            assert len(peer.sessions) == 1
            for names in (("one.example",), ("two.example",), ("one.example",)):
                known.dane = demand(record(2, 0, 1, ISSUER), names=names)
                assert (await send(bench, via)).result is Result.DELIVERED
            assert len(peer.sessions) == 3
            known.dane = demand(record(2, 0, 1, ISSUER), names=("three.example",))
            assert (await send(bench, via)).result is Result.DEFERRED


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_session_is_resumed_for_the_records_that_it_met_and_for_no_others_TLS_10a(
    known: Known, version: ssl.TLSVersion
) -> None:
    async with SmtpPeer(tls=only(OLD.server_context(), version)) as peer:
        via = via_peer(peer)
        async with OutboundBench.running(via, messages_per_connection=1) as bench:
            for _ in range(3):
                assert (await send(bench, via)).result is Result.DELIVERED
            known.dane = demand(record(3, 1, 1, OLD))
            told = [(await send(bench, via)).tls for _ in range(3)]
            assert [session.resumed for session in peer.sessions] == [False, False, True, False, False, True]
            assert all(tls is not None and tls.verified for tls in told)
            known.dane = demand(record(3, 1, 1, OLD), record(3, 0, 1, SERVER))
            assert (await send(bench, via)).result is Result.DELIVERED
            assert not peer.sessions[-1].resumed
            known.dane = demand(record(3, 0, 1, SERVER))
            assert (await send(bench, via)).result is Result.DEFERRED


def test_a_session_ends_with_the_chain_that_was_matched_TLS_10b() -> None:
    client, server = TlsStream(client_context(verify=False), HOST, verified_name=None), OLD.server_context()
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    theirs = server.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(3):
        client.handshake(to_client.read())
        to_server.write(client.outgoing())
        with contextlib.suppress(ssl.SSLWantReadError):
            theirs.do_handshake()
    theirs.write(b"220 hello\r\n")
    client.decrypt(to_client.read())
    assert client.session()[1] > 1000
    client.until = datetime.datetime.now(datetime.UTC).timestamp() + 100
    assert 0 < client.session()[1] <= 100


# --- TLS-Required: No ---------------------------------------------------------------------------------------------


async def test_what_is_compared_for_reports_alone_stops_nothing_and_is_told_every_time(known: Known) -> None:
    before = metrics.DANE.of("tlsa_mismatch").number
    async with SmtpPeer(tls=OLD.server_context()) as peer:
        via = via_peer(peer)
        async with OutboundBench.running(via, messages_per_connection=1) as bench:
            known.dane = demand(record(3, 1, 1, SERVER))
            for _ in range(3):
                result = await send(bench, via, requirement=Requirement.NO)
                assert result.result is Result.DELIVERED
                assert result.tls is not None
                assert (result.tls.version, result.tls.verified) == ("TLSv1.3", False)
            # A session that is resumed shows no certificate, so there is none here.
            assert [session.resumed for session in peer.sessions] == [False, False, False]
            known.dane = demand(record(3, 1, 1, OLD))
            result = await send(bench, via, requirement=Requirement.NO)
            assert result.tls is not None
            assert result.tls.verified
    assert metrics.DANE.of("tlsa_mismatch").number == before + 3


async def test_a_connection_that_met_nothing_never_serves_who_must_have_it_met_RTLS_28(known: Known) -> None:
    async with SmtpPeer(tls=OLD.server_context()) as peer:
        via = via_peer(peer)
        async with OutboundBench.running(via) as bench:
            known.dane = demand(record(3, 1, 1, SERVER))
            assert (await send(bench, via, requirement=Requirement.NO)).result is Result.DELIVERED
            assert (await send(bench, via)).result is Result.DEFERRED
            assert len(peer.messages) == 1


async def test_what_is_to_be_compared_goes_by_no_connection_that_compared_nothing(known: Known) -> None:
    async with SmtpPeer(tls=OLD.server_context()) as peer:
        via = via_peer(peer)
        async with OutboundBench.running(via) as bench:
            assert (await send(bench, via)).result is Result.DELIVERED
            known.dane = demand(record(3, 1, 1, OLD))
            for _ in range(2):
                result = await send(bench, via, requirement=Requirement.NO)
                assert result.tls is not None
                assert result.tls.verified
            assert len(peer.sessions) == 2


# --- hostile and foreign servers ----------------------------------------------------------------------------------


async def test_certificates_beyond_all_measure_end_the_handshake_and_no_mail_goes(
    known: Known, failures: list[Answer]
) -> None:
    many = issue("x", *(f"{i}.{'a' * 60}.{'b' * 60}.example" for i in range(800)), by=ISSUER)
    async with SmtpPeer(tls=many.server_context(*[ISSUER] * 10)) as peer:
        via = via_peer(peer)
        known.dane = demand(record(2, 0, 1, ISSUER))
        async with OutboundBench.running(via) as bench:
            assert (await send(bench, via)).result is Result.DEFERRED
            known.dane = demand(record(3, 1, 1, many))
            assert (await send(bench, via)).result is Result.DEFERRED
        assert peer.messages == []
    assert {answer.fault.type for answer in failures if answer.fault is not None} == {ResultType.VALIDATION_FAILURE}
    assert all("too" in answer.detail.lower() or "excessive" in answer.detail.lower() for answer in failures)


@pytest.mark.peer("postfix")
async def test_postfix_with_a_chain_of_its_own_is_proven_by_its_issuers_record(known: Known) -> None:
    chain = Certificate((BASE,), SERVER.pem + OLD.pem + ISSUER.pem + ROOT.pem, SERVER.key_pem)
    with Postfix(certificate=chain, address="127.0.0.1") as postfix:
        via = transport(TransportKind.SMTP, host=HOST, port=postfix.port)
        async with OutboundBench.running(via) as bench:
            for anchor in (ISSUER, ROOT):
                known.dane = demand(record(2, 1, 1, anchor), base=BASE)
                result = await send(bench, via)
                assert result.result is Result.DELIVERED, result.text
                assert result.tls is not None
                assert result.tls.verified
            known.dane = demand(record(2, 1, 1, OLD), base=BASE)
            assert (await send(bench, via)).result is Result.DEFERRED
        await eventually(lambda: postfix.count() == 2, within=60)


@pytest.mark.parametrize("version", VERSIONS)
def test_all_that_a_server_presents_is_had_in_its_order(version: ssl.TLSVersion) -> None:
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = only(SERVER.server_context(OLD, ROOT, ISSUER), version)
    server = context.wrap_bio(to_server, to_client, server_side=True)
    from_client = ssl.MemoryBIO()
    client = client_context(verify=False).wrap_bio(to_client, from_client, server_hostname=HOST)
    assert presented_chain(client) == ()
    for _ in range(3):
        with contextlib.suppress(ssl.SSLWantReadError):
            client.do_handshake()
        to_server.write(from_client.read())
        with contextlib.suppress(ssl.SSLWantReadError):
            server.do_handshake()
    assert presented_chain(client) == (SERVER.der, OLD.der, ROOT.der, ISSUER.der)
