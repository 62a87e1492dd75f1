"""The five indicators of a domain, from a real DNS, a real Postgres and policy hosts, each failing alone (BAR-01)."""

import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any

import grpc
import pytest

from mailrail.core.dane.tlsa import TlsaRecord
from mailrail.core.mtasts.policy import Mode, Policy
from mailrail.core.outbound.learned import LearnedDomain, Offered
from mailrail.core.tlspolicy.indicators import DomainSecurity, Light
from mailrail.kit.lookup_turns import LookupTurns
from mailrail.kit.postgres import Login
from mailrail.kit.resolver import DnsResolver
from mailrail.pb.outbound.v1 import outbound_pb2, outbound_pb2_grpc
from mailrail_outbound import domain_security as module
from mailrail_outbound import metrics
from mailrail_outbound.domain_security import DomainSecurityReader
from mailrail_outbound.rpc import OutboundServicer
from mailrail_outbound.store import learned
from mailrail_outbound.store.connection import DomainDatabase
from mailrail_outbound.tls_policy.dane import DaneLookup
from mailrail_outbound.tls_policy.sts import StsLookup

from testkit.dns import DnsServer, Failure
from testkit.outbound import SETTINGS
from testkit.policies import REFUSED, PolicyWorld, policy_process

RECORD, TLSA = "_mta-sts.example.org", "_25._tcp.mx.example.org"
USABLE, UNUSABLE = "3 1 1 " + "ab" * 32, "1 1 1 " + "ab" * 32
YES, NO, UNKNOWN, ERROR = Light
NOWHERE = "postgresql://127.0.0.1:1/nowhere"


@pytest.fixture
def dns() -> Iterator[DnsServer]:
    """example.org is signed, has one MX host, and no policy."""
    with DnsServer() as server:
        server.secure_zone("example.org")
        server.add("example.org", "MX", "20 worse.example.org.", "10 mx.example.org.")
        server.add("mx.example.org", "A", "192.0.2.1")
        yield server


@contextlib.asynccontextmanager
async def reading(
    url: str, dns: DnsServer, there: PolicyWorld | None = None, *, trusted: bool = True
) -> AsyncIterator[DomainSecurityReader]:
    turns = LookupTurns(10, 5.0)
    resolver = DnsResolver(dns.endpoint, timeout=1.0, count=metrics.DNS.inc, turns=turns, trust_ad=trusted)
    database = DomainDatabase(Login.of(url), "security")
    async with policy_process(url, there or PolicyWorld()) as policies:
        sts, dane = StsLookup(resolver, policies), DaneLookup(resolver)
        yield DomainSecurityReader(resolver, sts, dane, database, replace(SETTINGS, direct_port=25))
    await database.close()


def lights(found: DomainSecurity) -> tuple[Light, ...]:
    return tuple(each.light for _, each in found.each())


async def test_a_domain_of_which_nothing_is_known_but_its_dns_BAR_01b(database: str, dns: DnsServer) -> None:
    async with reading(database, dns) as reader:
        assert lights(await reader.of("example.org", "")) == (UNKNOWN, NO, YES, NO, UNKNOWN)


@pytest.mark.parametrize(
    ("offered", "starttls", "require_tls"),
    [(Offered(True, True), YES, YES), (Offered(True, False), YES, NO), (Offered(False, False), NO, NO)],
)
async def test_what_the_last_session_by_that_transport_showed_BAR_01b(
    database: str, dns: DnsServer, offered: Offered, starttls: Light, require_tls: Light
) -> None:
    store, now = DomainDatabase(Login.of(database), "before"), time.time()
    async with store.writing.use() as connection:
        await learned.write(connection, [LearnedDomain("example.org", "default/relay", offered, now - 60)], now)
    await store.close()
    async with reading(database, dns) as reader:
        found = await reader.of("example.org", "default/relay")
        assert (found.starttls.light, found.require_tls.light) == (starttls, require_tls)
        assert found.starttls.seen is not None
        assert 50 < now - found.starttls.seen < 70
        direct = await reader.of("example.org", "")
        assert (direct.starttls.light, direct.require_tls.light) == (UNKNOWN, UNKNOWN)


@pytest.mark.parametrize(("mode", "light"), [(Mode.ENFORCE, YES), (Mode.TESTING, NO), (Mode.NONE, NO), (None, ERROR)])
async def test_what_the_policy_says_BAR_01b(database: str, dns: DnsServer, mode: Mode | None, light: Light) -> None:
    there = PolicyWorld()
    there.policies["example.org"] = Policy(mode, 604_800, ("mx.example.org",)) if mode is not None else REFUSED
    dns.add(RECORD, "TXT", '"v=STSv1; id=1;"')
    async with reading(database, dns, there) as reader:
        found = (await reader.of("example.org", "")).mta_sts
        assert found.light is light
        lines = ("version: STSv1", f"mode: {mode}", "mx: mx.example.org", "max_age: 604800")
        assert found.details == (lines if mode is not None else ())


@pytest.mark.parametrize(
    ("records", "fails", "dnssec", "dane"),
    [
        (USABLE, None, YES, YES),
        (UNUSABLE, None, YES, NO),
        ("", TLSA, YES, ERROR),
        ("", "mx.example.org", YES, ERROR),
        ("", "example.org", ERROR, UNKNOWN),
    ],
)
async def test_what_the_dns_says_of_the_first_mx_host_BAR_01b(
    database: str, dns: DnsServer, records: str, fails: str | None, dnssec: Light, dane: Light
) -> None:
    """BAR-01b, and BAR-02 for records that cannot be used."""
    if records:
        dns.add(TLSA, "TLSA", records)
    if fails is not None:
        dns.fail(fails, Failure.SERVFAIL)
    async with reading(database, dns) as reader:
        found = await reader.of("example.org", "")
        assert (found.dnssec.light, found.dane.light) == (dnssec, dane), found
        assert found.mta_sts.light in (NO, ERROR)
        why = f"{TlsaRecord.from_text(UNUSABLE)}: certificate usage 1 is not used for SMTP"
        assert found.dane.details == {USABLE: (USABLE,), UNUSABLE: (why,)}.get(records, ())


async def test_without_a_trusted_resolver_nothing_is_known_of_dnssec_BAR_01b(database: str, dns: DnsServer) -> None:
    async with reading(database, dns, trusted=False) as reader:
        assert lights(await reader.of("example.org", ""))[2:4] == (UNKNOWN, UNKNOWN)


async def test_an_unsigned_domain_has_neither_BAR_01b(database: str, dns: DnsServer) -> None:
    dns.add("plain.example", "MX", "10 mx.example.org.")
    dns.add(TLSA, "TLSA", USABLE)
    async with reading(database, dns) as reader:
        assert lights(await reader.of("plain.example", ""))[2:4] == (NO, NO)


async def test_without_postgres_what_the_dns_says_is_told_all_the_same_BAR_01b(dns: DnsServer) -> None:
    dns.add(TLSA, "TLSA", USABLE)
    async with reading(NOWHERE, dns) as reader:
        assert lights(await reader.of("example.org", "")) == (ERROR, ERROR, YES, YES, ERROR)


async def test_a_dns_that_never_answers_ends_in_time_BAR_01b(
    database: str, dns: DnsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WITHIN", 0.3)
    dns.fail("example.org", Failure.SILENT)
    async with reading(database, dns) as reader:
        found = await reader.of("example.org", "")
        assert (found.dnssec.light, found.starttls.light) == (ERROR, UNKNOWN)
        assert "within" in found.dnssec.sentence


async def test_the_same_question_is_asked_once_in_a_while_BAR_01b(database: str, dns: DnsServer) -> None:
    async with reading(database, dns) as reader:
        first = await reader.of("example.org", "")
        assert await reader.of("example.org", "") is first


async def test_the_call_names_the_domain_as_people_write_it_and_refuses_what_is_none_BAR_01b(
    database: str, dns: DnsServer
) -> None:
    dns.secure_zone("xn--mller-kva.example")
    dns.add("xn--mller-kva.example", "MX", "10 mx.example.org.")
    unused: Any = None
    async with reading(database, dns) as reader:
        server = grpc.aio.server()
        outbound_pb2_grpc.add_OutboundServiceServicer_to_server(OutboundServicer(unused, unused, reader), server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                stub = outbound_pb2_grpc.OutboundServiceStub(channel)
                ask = outbound_pb2.GetDomainSecurityRequest
                found = await stub.GetDomainSecurity(ask(domain="Müller.example."))
                assert found.dnssec.light == outbound_pb2.SecurityIndicator.LIGHT_YES
                assert found.dnssec.HasField("seen")
                assert not found.starttls.HasField("seen")
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await stub.GetDomainSecurity(ask(domain="not a domain"))
                assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        finally:
            await server.stop(None)
