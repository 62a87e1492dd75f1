"""The resolver against a name server that fails, is slow, or was right until a moment ago."""

import asyncio
import contextlib

import pytest

from mailrail.core.outbound.lookup_order import NameHistory
from mailrail.core.outbound.targets import Mx
from mailrail.kit import clock, lookup_turns
from mailrail.kit import resolver as resolver_module
from mailrail.kit.lookup_turns import MAIL_BEGAN, ROUND, LookupTurns
from mailrail.kit.resolver import Cache, DnsResolver, LookupFailed, NoSuchDomain

from testkit.conditions import eventually
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


async def test_names_that_nobody_answers_for_leave_half_of_the_lookups_to_names_that_were_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with DnsServer() as dns:
        dns.add("known.test", "MX", "10 mx.known.test.", ttl=60)
        for i in range(20):
            dns.fail(f"d{i}.test", Failure.SILENT)
        resolver = DnsResolver(dns.endpoint, timeout=600.0, turns=LookupTurns(4, 600.0))
        await resolver.mx("known.test")
        silent = [asyncio.ensure_future(resolver.mx(f"d{i}.test")) for i in range(20)]
        asked = {f"d{i}.test" for i in range(20)}
        await eventually(lambda: len({query.name for query in dns.queries} & asked) == 2)
        later(monkeypatch, 61)
        async with asyncio.timeout(30):
            assert await resolver.mx("known.test") == (Mx(10, "mx.known.test"),)
        assert dns.asked("known.test") == 2
        assert len({query.name for query in dns.queries} & asked) == 2
        for each in silent:
            each.cancel()
        await asyncio.gather(*silent, return_exceptions=True)


async def test_a_silent_name_gives_way_to_others_that_wait_and_a_new_one_has_the_next_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lookup_turns, "FIRST_PATIENCE", 0.2)
    with DnsServer() as dns:
        dns.add("new.test", "MX", "10 mx.new.test.")
        for i in range(5):
            dns.fail(f"d{i}.test", Failure.SILENT)
        resolver = DnsResolver(dns.endpoint, timeout=600.0, turns=LookupTurns(2, 600.0))
        silent = [asyncio.ensure_future(resolver.mx(f"d{i}.test")) for i in range(5)]
        await eventually(lambda: dns.asked("d0.test"))
        assert await resolver.mx("new.test") == (Mx(10, "mx.new.test"),)
        assert sum(each.done() for each in silent) == 1
        with pytest.raises(LookupFailed, match=r"d0\.test: no answer in 0 s while others waited"):
            await silent[0]
        # The last one has nobody to give way to.
        await eventually(lambda: sum(each.done() for each in silent) == 4)
        (last,) = [each for each in silent if not each.done()]
        last.cancel()
        await asyncio.gather(*silent, return_exceptions=True)


async def test_names_that_fail_displace_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolver_module, "_ENTRIES", 3)
    with DnsServer() as dns:
        for name in ("a.test", "b.test", "c.test", "d.test"):
            dns.add(name, "MX", "10 mx.test.")
        resolver = DnsResolver(dns.endpoint)
        for name in ("a.test", "b.test", *(f"d{i}.test" for i in range(10))):
            with contextlib.suppress(NoSuchDomain):
                await resolver.mx(name)
        assert resolver.kept_mx("a.test") == (Mx(10, "mx.test"),)
        await resolver.mx("c.test")
        await resolver.mx("d.test")
        assert resolver.kept_mx("a.test") is not None
        assert resolver.kept_mx("b.test") is None  # its last use was before that of a.test


async def test_fresh_names_that_are_answered_at_once_give_way_to_the_next_fresh_one() -> None:
    with DnsServer() as dns:
        dns.add("new.test", "MX", "10 mx.new.test.")
        for i in range(20):
            dns.fail(f"d{i}.test", Failure.SILENT)
        resolver = DnsResolver(dns.endpoint, timeout=600.0, turns=LookupTurns(8, 600.0))
        silent = [asyncio.ensure_future(resolver.mx(f"d{i}.test")) for i in range(20)]
        await eventually(lambda: sum(dns.asked(f"d{i}.test") > 0 for i in range(20)) == 4)
        fresh = [asyncio.ensure_future(resolver.mx(name)) for name in ("new.test", *(f"no{i}.test" for i in range(10)))]
        async with asyncio.timeout(30):  # ten unknown names stand before it, and there are four turns in 5 s
            assert await fresh[0] == (Mx(10, "mx.new.test"),)
        assert sum(each.done() for each in silent) <= 4
        for each in (*silent, *fresh):
            each.cancel()
        await asyncio.gather(*silent, *fresh, return_exceptions=True)


async def test_a_name_that_was_never_looked_up_is_soon_however_many_silent_ones_come_after_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lookup_turns, "FIRST_PATIENCE", 0.1)
    with DnsServer() as dns:
        dns.add("new.test", "MX", "10 mx.new.test.")
        names = [f"d{i}.test" for i in range(300)]
        for name in names:
            dns.fail(name, Failure.SILENT)
        resolver = DnsResolver(dns.endpoint, timeout=600.0, turns=LookupTurns(40, 600.0))
        silent = [asyncio.ensure_future(resolver.mx(name)) for name in names[:150]]
        await eventually(lambda: sum(dns.asked(name) > 0 for name in names) >= 20)
        new = asyncio.ensure_future(resolver.mx("new.test"))
        await asyncio.sleep(0)
        silent += [asyncio.ensure_future(resolver.mx(name)) for name in names[150:]]
        async with asyncio.timeout(20):  # 150 names before and after it, of which twenty have a turn at a time
            assert await new == (Mx(10, "mx.new.test"),)
        for each in silent:
            each.cancel()
        await asyncio.gather(*silent, return_exceptions=True)


async def test_a_name_for_the_newest_mail_is_looked_up_before_silent_ones_of_older_mail_that_come_after_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lookup_turns, "FIRST_PATIENCE", 0.2)
    with DnsServer() as dns:
        dns.add("new.test", "MX", "10 mx.new.test.")
        before, after = ([f"{name}{i}.test" for i in range(20)] for name in ("before", "after"))
        for name in (*before, *after):
            dns.fail(name, Failure.SILENT)
        resolver = DnsResolver(dns.endpoint, timeout=600.0, turns=LookupTurns(4, 600.0))

        async def look_up(name: str, mail_began: float) -> object:
            MAIL_BEGAN.set(mail_began)
            return await resolver.mx(name)

        silent = [asyncio.create_task(look_up(name, 1000.0)) for name in before]
        await eventually(lambda: len(dns.queries) == 2)
        new = asyncio.create_task(look_up("new.test", 2000.0))
        await asyncio.sleep(0)
        silent += [asyncio.create_task(look_up(name, 1000.0)) for name in after]
        async with asyncio.timeout(30):
            assert await new == (Mx(10, "mx.new.test"),)
        asked = [query.name for query in dns.queries]
        assert set(asked[: asked.index("new.test")]) <= set(before)
        for each in silent:
            each.cancel()
        await asyncio.gather(*silent, return_exceptions=True)


@pytest.mark.parametrize("rounds", [0, 3])
async def test_a_name_that_waits_for_old_mail_is_looked_up_for_the_newest_that_waits_for_it_too(
    rounds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookup_turns, "FIRST_PATIENCE", 0.2)
    with DnsServer() as dns:
        dns.add("mx.new.test", "A", "192.0.2.1")
        names = [f"d{i}.test" for i in range(30)]
        for name in names:
            dns.fail(name, Failure.SILENT)
        resolver = DnsResolver(dns.endpoint, timeout=600.0, turns=LookupTurns(4, 600.0))

        async def look_up(name: str, mail_began: float) -> object:
            MAIL_BEGAN.set(mail_began)
            return await resolver.addresses(name, ("ipv4",))

        silent = [asyncio.create_task(look_up(name, 1500.0)) for name in names]
        await eventually(lambda: len(dns.queries) == 2)
        old = asyncio.create_task(look_up("mx.new.test", 1000.0))
        for _ in range(rounds):  # of the event loop
            await asyncio.sleep(0)
        new = asyncio.create_task(look_up("mx.new.test", 2000.0))
        async with asyncio.timeout(30):
            assert await new == ("192.0.2.1",)
        assert await old == ("192.0.2.1",)
        assert [query.name for query in dns.queries].index("mx.new.test") <= 4
        for each in silent:
            each.cancel()
        await asyncio.gather(*silent, return_exceptions=True)


async def test_names_that_were_silent_before_stand_in_no_way_of_new_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookup_turns, "FIRST_PATIENCE", 0.01)
    monkeypatch.setattr(lookup_turns, "PATIENCE", 2.0)
    with DnsServer() as dns:
        dns.add("new.test", "MX", "10 mx.new.test.")
        dns.fail("slow.test", Failure.SILENT)
        names = [f"d{i}.test" for i in range(100)]
        for name in names:
            dns.fail(name, Failure.SERVFAIL)
        resolver = DnsResolver(dns.endpoint, timeout=600.0, turns=LookupTurns(8, 600.0))
        for name in names:
            with pytest.raises(LookupFailed):
                await resolver.mx(name)
            dns.fail(name, Failure.SILENT)
        later(monkeypatch, 6)
        asked = len(dns.queries)
        silent = [asyncio.ensure_future(resolver.mx(name)) for name in names]
        await eventually(lambda: len(dns.queries) > asked + 1)
        assert await resolver.mx("new.test") == (Mx(10, "mx.new.test"),)
        assert not any(each.done() for each in silent)
        # A new one that is silent gives way to none of them: they have all the turns that are theirs.
        slow = asyncio.ensure_future(resolver.mx("slow.test"))
        await eventually(lambda: any(each.done() for each in silent))
        assert not slow.done()
        silent.append(slow)
        for each in silent:
            each.cancel()
        await asyncio.gather(*silent, return_exceptions=True)


async def test_what_came_of_a_name_last_is_what_is_known_of_it() -> None:
    now = 0.0
    cache = Cache(lambda: now, entries=10)

    async def come(of: object) -> tuple[float, object]:
        return 5.0, of

    async def look_up(outcome: object) -> NameHistory:
        nonlocal now
        now += 10.0  # what was kept has expired
        with contextlib.suppress(LookupFailed):
            await cache.get("example.org", lambda: come(outcome))
        return cache.history("example.org")

    assert cache.history("example.org") is NameHistory.NEW
    assert await look_up(["192.0.2.1"]) is NameHistory.ANSWERED
    assert await look_up(LookupFailed("silent")) is NameHistory.FAILED, "it answered once, and has every turn for that"
    assert await look_up([]) is NameHistory.ANSWERED
    assert await look_up(LookupFailed("silent")) is NameHistory.FAILED
    assert await look_up(["192.0.2.1"]) is NameHistory.ANSWERED


async def test_look_ups_of_unknown_names_begin_a_few_at_a_time_and_known_ones_at_once() -> None:
    turns = LookupTurns(1000, 600.0)
    begun: list[NameHistory] = []
    over = asyncio.Event()

    async def look_up(history: NameHistory) -> None:
        async with turns.turn(object(), history):
            begun.append(history)
            await over.wait()

    unknown = [NameHistory.NEW] * 100 + [NameHistory.FAILED] * 50
    known = [NameHistory.ANSWERED] * 100
    tasks = [asyncio.create_task(look_up(history)) for history in (*unknown, *known)]
    await asyncio.sleep(0)  # all ask
    await asyncio.sleep(0)  # and those whose turn it is begin
    assert begun.count(NameHistory.ANSWERED) == 100
    assert len(begun) == 100 + ROUND
    await eventually(lambda: len(begun) == 250)
    over.set()
    await asyncio.gather(*tasks)
