"""A resolver that is declared trusted and stops validating is found out, which nothing else would show."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from integration.outbound.test_service import world

from mailrail.kit.resolver import DnsResolver
from mailrail_outbound import metrics, resolver_watch
from mailrail_outbound.settings import OutboundSettings

from testkit.conditions import eventually
from testkit.dns import DnsServer, Failure
from testkit.signed_world import SignedWorld

SOA = "ns.example. postmaster.example. 1 3600 600 86400 300"


@pytest.fixture
def dns() -> Iterator[DnsServer]:
    with DnsServer() as server:
        server.add("signed.example", "SOA", SOA, secure=True)
        yield server


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolver_watch, "_EVERY", 0.02)
    metrics.RESOLVER_VALIDATES.set(0)


@contextlib.asynccontextmanager
async def watching(endpoint: str, probe: str, *, trust_ad: bool = True) -> AsyncIterator[asyncio.Task[None]]:
    resolver = DnsResolver(endpoint, trust_ad=trust_ad, timeout=2.0)
    task = asyncio.create_task(resolver_watch.watch(resolver, probe))
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def validates() -> bool:
    return bool(metrics.RESOLVER_VALIDATES._value.get())


async def test_a_trusted_resolver_that_stops_validating_is_told_and_so_is_its_return_DANE_01(
    dns: DnsServer, capsys: pytest.CaptureFixture[str]
) -> None:
    async with watching(dns.endpoint, "signed.example"):
        await eventually(validates)
        assert "does not validate" not in capsys.readouterr().out
        dns.set("signed.example", "SOA", SOA, secure=False)
        await eventually(lambda: not validates())
        asked = dns.asked("signed.example", "SOA")
        await eventually(lambda: dns.asked("signed.example", "SOA") > asked + 3)
        said = capsys.readouterr().out
        assert said.count("declared trusted does not validate, so there is no DANE") == 1, said
        assert "MAILRAIL_OUTBOUND_RESOLVER_PROBE" in said
        dns.set("signed.example", "SOA", SOA, secure=True)
        await eventually(validates)


async def test_a_dns_that_does_not_answer_says_nothing_of_validation(dns: DnsServer) -> None:
    async with watching(dns.endpoint, "signed.example"):
        await eventually(validates)
        dns.fail("signed.example", Failure.SERVFAIL)
        asked = dns.asked("signed.example", "SOA")
        await eventually(lambda: dns.asked("signed.example", "SOA") > asked + 3)
        assert validates()


async def test_of_a_resolver_that_nobody_trusts_nothing_is_asked(dns: DnsServer) -> None:
    async with watching(dns.endpoint, "signed.example", trust_ad=False) as task:
        await asyncio.wait_for(asyncio.shield(task), 60)
        assert not validates()
        assert dns.asked("signed.example") == 0


async def test_a_process_of_outbound_looks_from_its_start_on(dns: DnsServer, tmp_path: Path) -> None:
    async with world(tmp_path, resolver=dns.endpoint, resolver_trust_ad=True, resolver_probe="signed.example"):
        await eventually(validates)


@pytest.mark.peer("nsd")
@pytest.mark.peer("unbound")
async def test_a_real_resolver_that_validates_is_seen_to(often: None) -> None:
    with SignedWorld(port=2525) as signed:
        for probe in (OutboundSettings().resolver_probe, "secure.test"):
            metrics.RESOLVER_VALIDATES.set(0)
            async with watching(signed.resolver.endpoint, probe):
                await eventually(validates)
        async with watching(signed.resolver.endpoint, "unsigned.test"):
            await eventually(lambda: not validates())
