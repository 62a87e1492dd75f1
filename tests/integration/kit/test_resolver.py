"""The resolver against a name server that fails, is slow, or was right until a moment ago."""

import asyncio

import pytest

from mailrail.core.outbound.targets import Mx
from mailrail.kit import clock
from mailrail.kit.resolver import DnsResolver, LookupFailed, NoSuchDomain

from testkit.dns import DnsServer, Failure


def later(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    now = clock.now
    monkeypatch.setattr(clock, "now", lambda: now() + seconds)


async def test_an_answer_is_kept_no_longer_for_the_machine_having_been_suspended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with DnsServer() as dns:
        dns.add("one.example.org", "A", "127.0.0.1")
        resolver = DnsResolver(dns.endpoint)
        for _ in range(2):
            assert await resolver.addresses("one.example.org", ("ipv4",)) == ("127.0.0.1",)
        assert dns.asked("one.example.org") == 1
        later(monkeypatch, 86400)
        assert await resolver.addresses("one.example.org", ("ipv4",)) == ("127.0.0.1",)
        assert dns.asked("one.example.org") == 2


async def test_a_failure_is_kept_for_five_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    with DnsServer() as dns:
        dns.fail("example.org", Failure.SERVFAIL)
        resolver = DnsResolver(dns.endpoint)
        for _ in range(2):
            with pytest.raises(LookupFailed):
                await resolver.mx("example.org")
        asked = dns.asked("example.org")
        dns.mend("example.org")
        dns.add("example.org", "MX", "10 mx.example.org.")
        later(monkeypatch, 4)
        with pytest.raises(LookupFailed):
            await resolver.mx("example.org")
        assert dns.asked("example.org") == asked
        later(monkeypatch, 2)
        assert await resolver.mx("example.org") == (Mx(10, "mx.example.org"),)


async def test_an_unknown_name_is_asked_for_again_after_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    with DnsServer() as dns:
        resolver = DnsResolver(dns.endpoint)
        for _ in range(2):
            with pytest.raises(NoSuchDomain):
                await resolver.records("example.org", "TXT")
        assert dns.asked("example.org") == 1
        dns.add("example.org", "TXT", '"here now"')
        later(monkeypatch, 61)
        (record,) = await resolver.records("example.org", "TXT")
        assert record.to_text() == '"here now"'


async def test_lookups_of_one_name_at_the_same_time_share_one_query_and_are_counted_once() -> None:
    with DnsServer() as dns:
        dns.add("example.org", "MX", "10 MX.example.org.")
        counted: list[tuple[str, str]] = []
        resolver = DnsResolver(dns.endpoint, count=lambda kind, result: counted.append((kind, result)))
        answers = await asyncio.gather(*(resolver.mx("example.org") for _ in range(5)))
        assert answers == [(Mx(10, "mx.example.org"),)] * 5
        assert dns.asked("example.org") == 1
        assert counted == [("mx", "answer")]


async def test_a_caller_may_want_answers_kept_for_less_than_their_ttl(monkeypatch: pytest.MonkeyPatch) -> None:
    with DnsServer() as dns:
        dns.add("example.org", "TXT", '"before"', ttl=3600)
        resolver = DnsResolver(dns.endpoint, longest=60.0)
        await resolver.records("example.org", "TXT")
        dns.set("example.org", "TXT", '"after"')
        later(monkeypatch, 61)
        (record,) = await resolver.records("example.org", "TXT")
        assert record.to_text() == '"after"'


async def test_a_name_that_the_dns_has_no_room_for_does_not_exist() -> None:
    with DnsServer() as dns:
        resolver = DnsResolver(dns.endpoint)
        for name in (f"{'a' * 64}.example", ".".join(["a" * 60] * 5)):
            with pytest.raises(NoSuchDomain):
                await resolver.mx(name)
        assert dns.queries == []
