"""Statements of outbound's tables on a real Postgres: who gets what, what is bounded, and two processes at once."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest

from mailrail.core.mtasts.answer import FetchFailed, FetchTrouble
from mailrail.core.mtasts.cache import LATELY, REFRESH, CachedPolicy
from mailrail.core.mtasts.policy import Mode, Policy
from mailrail.core.outbound.learned import LearnedDomain, Offered
from mailrail.core.tlsrpt.counts import CountedSessions
from mailrail.core.tlsrpt.facts import AppliedPolicy, FailedSession, PolicyType, ReportedSession, decode
from mailrail.core.tlsrpt.result_type import ResultType
from mailrail.kit.postgres import Login
from mailrail_outbound.store import learned, mta_sts, tlsrpt
from mailrail_outbound.store.connection import Connection, DomainDatabase

ROOM = mta_sts.Room(most=100, most_of_zone=50)
POLICY = Policy(Mode.ENFORCE, 7 * 86_400, ("mx.example.org", "*.mail.example.org"))
REFUSED = FetchFailed(FetchTrouble.WEBPKI, "the certificate does not prove it")
TODAY = datetime.now(UTC).date()


@pytest.fixture
async def two(database: str) -> AsyncIterator[tuple[Connection, Connection]]:
    """Connections of two processes."""
    made = [await DomainDatabase(Login.of(database), f"process {i}").open("test", writes=True) for i in (1, 2)]
    async with made[0], made[1]:
        yield made[0], made[1]


async def known(connection: Connection, domain: str = "example.org") -> tuple[float, mta_sts.StoredPolicy]:
    now, found = await mta_sts.read(connection, [domain])
    return now, found[domain]


async def sql(connection: Connection, query: str) -> list[tuple[object, ...]]:
    cursor = await connection.execute(query.encode())
    return await cursor.fetchall() if cursor.description is not None else []


# --- MTA-STS ---


async def test_a_policy_that_one_process_fetched_is_read_by_another_and_survives_a_restart_STS_17b(
    two: tuple[Connection, Connection], database: str
) -> None:
    first, second = two
    now, nothing = await known(first)
    assert (nothing.cached, nothing.failure) == (None, None)
    cached = CachedPolicy("id1", POLICY, now - 10)
    assert await mta_sts.store(first, "example.org", cached, ROOM)
    later, found = await known(second)
    assert later >= now
    assert found.cached is not None
    assert (found.cached.id, found.cached.policy) == ("id1", POLICY)
    assert found.cached.fetched == pytest.approx(cached.fetched, abs=0.001)
    assert found.cached.expires == pytest.approx(cached.fetched + POLICY.max_age, abs=0.001)
    anew = DomainDatabase(Login.of(database), "after a restart")
    try:
        async with anew.reading.use() as connection:
            assert (await known(connection))[1] == found
    finally:
        await anew.close()


async def test_a_policy_fetched_later_replaces_one_fetched_before_and_never_the_other_way_STS_25(
    two: tuple[Connection, Connection],
) -> None:
    first, second = two
    now, _ = await known(first)
    weaker = Policy(Mode.NONE, 86_400)
    assert await mta_sts.store(first, "example.org", CachedPolicy("id1", POLICY, now - 20), ROOM)
    assert await mta_sts.store(second, "example.org", CachedPolicy("id2", weaker, now - 10), ROOM)
    assert not await mta_sts.store(first, "example.org", CachedPolicy("id1", POLICY, now - 15), ROOM)
    found = (await known(first))[1].cached
    assert found is not None
    assert (found.id, found.policy) == ("id2", weaker)


async def test_a_clock_that_is_ahead_gives_no_policy_a_longer_life_STS_17b(two: tuple[Connection, Connection]) -> None:
    first, second = two
    now, _ = await known(first)
    assert await mta_sts.store(first, "example.org", CachedPolicy("id1", POLICY, now + 5000), ROOM)
    later, found = await known(second)
    assert found.cached is not None
    assert found.cached.fetched <= later


async def test_a_failed_fetch_is_known_to_all_until_one_succeeds_and_takes_no_policy_away_STS_18a_STS_16a(
    two: tuple[Connection, Connection],
) -> None:
    first, second = two
    now, _ = await known(first)
    assert await mta_sts.store_failure(first, "example.org", "id1", REFUSED, ROOM)
    _, found = await known(second)
    assert found.cached is None
    assert found.failure is not None
    assert (found.failure.id, found.failure.failed) == ("id1", REFUSED)
    assert found.failure.at == pytest.approx(now, abs=30)
    assert await mta_sts.store(second, "example.org", CachedPolicy("id1", POLICY, now), ROOM)
    assert (await known(first))[1].failure is None
    assert await mta_sts.store_failure(first, "example.org", "id2", REFUSED, ROOM)
    _, after = await known(second)
    assert after.cached is not None
    assert after.cached.policy == POLICY
    assert after.failure is not None
    assert after.failure.id == "id2"


async def test_one_process_at_a_time_fetches_and_another_may_once_it_is_done_or_dead(
    two: tuple[Connection, Connection],
) -> None:
    first, second = two
    both = await asyncio.gather(*(mta_sts.claim(one, "example.org", 600.0, ROOM) for one in two))
    assert sorted(claim.name for claim in both) == ["ANOTHERS", "OURS"]
    assert await mta_sts.claim(second, "example.org", 600.0, ROOM) is mta_sts.Claim.ANOTHERS
    assert await mta_sts.store_failure(first, "example.org", "id1", REFUSED, ROOM)
    assert await mta_sts.claim(second, "example.org", 0.0, ROOM) is mta_sts.Claim.OURS
    assert await mta_sts.claim(first, "example.org", 600.0, ROOM) is mta_sts.Claim.OURS, "the second one's ran out"


async def test_domains_below_one_zone_take_their_share_and_no_more_and_push_nothing_out(
    two: tuple[Connection, Connection],
) -> None:
    first, _ = two
    now, _ = await known(first)
    room = mta_sts.Room(most=5, most_of_zone=3)
    cached = CachedPolicy("id1", POLICY, now)
    stored = [await mta_sts.store(first, f"a{i}.evil.example", cached, room) for i in range(6)]
    assert stored == [True] * 3 + [False] * 3
    assert await mta_sts.claim(first, "a9.evil.example", 60.0, room) is mta_sts.Claim.NO_ROOM
    assert await mta_sts.store(first, "a.good.example", cached, room)
    assert await mta_sts.claim(first, "b.good.example", 60.0, room) is mta_sts.Claim.OURS
    assert not await mta_sts.store(first, "c.good.example", cached, room), "the table is full"
    assert not await mta_sts.store_failure(first, "d.good.example", "id1", REFUSED, room)
    assert await mta_sts.store(first, "a1.evil.example", CachedPolicy("id2", POLICY, now + 1), room), "it is there"
    assert await sql(first, "SELECT count(*) FROM mta_sts") == [(5,)]


async def test_long_policies_are_few_also_in_rows_that_are_there(two: tuple[Connection, Connection]) -> None:
    first, _ = two
    now, _ = await known(first)
    room = mta_sts.Room(most=50, most_of_zone=50, most_large=3, most_large_of_zone=2)
    large = CachedPolicy("id1", Policy(Mode.ENFORCE, 86_400, tuple(f"mx{i}.example.org" for i in range(300))), now)
    small = CachedPolicy("id1", POLICY, now - 1)
    names = [f"a{i}.evil.example" for i in range(3)]
    for name in names:
        assert await mta_sts.store(first, name, small, room)
    assert [await mta_sts.store(first, name, large, room) for name in names] == [True, True, False]
    assert (await known(first, names[2]))[1].cached == small, "what was there holds"
    assert await mta_sts.store(first, "good.test", large, room)
    assert not await mta_sts.store(first, "better.test", large, room)
    assert await mta_sts.store(first, "good.test", CachedPolicy("id2", large.policy, now), room), "it has its place"


async def test_what_was_mailed_lately_is_claimed_for_a_refresh_when_it_is_due_and_by_one_process_STS_25(
    two: tuple[Connection, Connection],
) -> None:
    first, second = two
    now, _ = await known(first)
    for domain, age in (("old.example", REFRESH + 60), ("fresh.example", 60.0), ("unmailed.example", REFRESH + 60)):
        assert await mta_sts.store(first, domain, CachedPolicy("id1", POLICY, now - age), ROOM)
    ended = CachedPolicy("id1", Policy(Mode.ENFORCE, 86_400, ("mx",)), now - 90_000)
    assert await mta_sts.store(first, "ended.example", ended, ROOM)
    await sql(
        first,
        f"UPDATE mta_sts SET mailed = now() - make_interval(secs => {LATELY + 60}) WHERE domain = 'unmailed.example'",
    )
    due = [*await mta_sts.claim_due(first, 10, 600.0), *await mta_sts.claim_due(second, 10, 600.0)]
    assert [one.domain for one in due] == ["old.example"]
    assert await mta_sts.claim(second, "old.example", 60.0, ROOM) is mta_sts.Claim.ANOTHERS
    # What nobody mails is in nobody's way, until it is mailed again.
    assert await sql(first, "SELECT domain FROM mta_sts WHERE refresh IS NULL ORDER BY domain") == [
        ("ended.example",),
        ("unmailed.example",),
    ]
    await mta_sts.note_mailed(first, ["unmailed.example", "unknown.example"])
    assert [one.domain for one in await mta_sts.claim_due(second, 10, 600.0)] == ["unmailed.example"]


async def test_a_failed_refresh_waits_for_an_hour_and_one_of_a_short_life_for_mail(
    two: tuple[Connection, Connection],
) -> None:
    first, _ = two
    now, _ = await known(first)
    assert await mta_sts.store(first, "example.org", CachedPolicy("id1", POLICY, now - REFRESH - 60), ROOM)
    brief = Policy(Mode.ENFORCE, 600, ("mx",))
    assert await mta_sts.store(first, "brief.example", CachedPolicy("id1", brief, now - 400), ROOM)
    await sql(first, "UPDATE mta_sts SET mailed = now() - interval '2 days'")
    await mta_sts.note_mailed(first, ["brief.example"])
    assert [one.domain for one in await mta_sts.claim_due(first, 10, 0.0)] == ["example.org"]
    assert await mta_sts.store_failure(first, "example.org", "id1", REFUSED, ROOM)
    assert await mta_sts.claim_due(first, 10, 0.0) == []
    ((minutes,),) = await sql(
        first, "SELECT extract(epoch FROM refresh - now())::int / 60 FROM mta_sts WHERE refresh IS NOT NULL"
    )
    assert minutes in (59, 60)


async def test_what_is_of_no_use_is_forgotten_and_nothing_else(two: tuple[Connection, Connection]) -> None:
    first, _ = two
    now, _ = await known(first)
    short = Policy(Mode.ENFORCE, 3600, ("mx",))
    assert await mta_sts.store(first, "ended.example", CachedPolicy("id1", short, now - 3600 - 86_460), ROOM)
    assert await mta_sts.store(first, "holds.example", CachedPolicy("id1", POLICY, now - 86_460), ROOM)
    assert await mta_sts.store_failure(first, "failed.example", "id1", REFUSED, ROOM)
    assert await mta_sts.forget(first, 10) == 1
    assert await sql(first, "SELECT domain FROM mta_sts ORDER BY 1") == [("failed.example",), ("holds.example",)]


async def test_a_policy_that_cannot_be_read_counts_as_none_and_is_fetched_again(
    two: tuple[Connection, Connection],
) -> None:
    first, _ = two
    now, _ = await known(first)
    assert await mta_sts.store(first, "example.org", CachedPolicy("id1", POLICY, now), ROOM)
    await sql(first, "UPDATE mta_sts SET policy = 'version: STSv9', trouble = 'of-later', failed = now()")
    _, found = await known(first)
    assert found.cached is None
    assert found.failure is not None
    assert found.failure.failed.trouble is FetchTrouble.FETCH


# --- what was learned ---


async def test_what_a_later_session_showed_is_kept_by_domain_and_transport_RTLS_29(
    two: tuple[Connection, Connection],
) -> None:
    first, second = two
    no, yes = Offered(starttls=False, requiretls=False), Offered(starttls=True, requiretls=True)
    await learned.write(
        first, [LearnedDomain("a.example", "", yes, 90.0), LearnedDomain("a.example", "ns/relay", no, 80.0)], 100.0
    )
    await learned.write(
        second, [LearnedDomain("a.example", "", no, 70.0), LearnedDomain("b.example", "", yes, 100.0)], 100.0
    )
    found = {
        (one.domain, one.transport): one for one in await learned.read(first, ["a.example", "b.example", "c.example"])
    }
    assert {key: one.offered for key, one in found.items()} == {
        ("a.example", ""): yes,
        ("a.example", "ns/relay"): no,
        ("b.example", ""): yes,
    }
    ages = found["b.example", ""].seen - found["a.example", ""].seen
    assert ages == pytest.approx(10, abs=5)


async def test_two_processes_that_write_the_same_domains_at_once_do_not_lock_each_other_out(
    two: tuple[Connection, Connection],
) -> None:
    names = [f"d{i}.example" for i in range(300)]
    yes = Offered(starttls=True, requiretls=False)
    for step in range(5):
        batches = [[LearnedDomain(name, "", yes, float(step)) for name in order] for order in (names, names[::-1])]
        await asyncio.gather(*(learned.write(one, batch, 10.0) for one, batch in zip(two, batches, strict=True)))
    assert await sql(two[0], "SELECT count(*) FROM learned") == [(300,)]


async def test_the_oldest_that_was_learned_goes_when_there_is_too_much(two: tuple[Connection, Connection]) -> None:
    first, _ = two
    yes = Offered(starttls=True, requiretls=False)
    batch = [LearnedDomain(f"d{i}.example", "", yes, float(i)) for i in range(10)]
    await learned.write(first, batch, 10.0)
    assert await learned.forget(first, 3, most=20) == 0
    assert await learned.forget(first, 3, most=8) == 3
    assert await sql(first, "SELECT domain FROM learned ORDER BY seen LIMIT 1") == [("d3.example",)]
    await sql(first, "UPDATE learned SET seen = now() - interval '91 days' WHERE domain = 'd7.example'")
    assert await learned.forget(first, 3, most=20) == 1


# --- facts for reports ---


def facts(domain: str = "example.org", ip: str = "") -> ReportedSession:
    policy = AppliedPolicy(PolicyType.STS, domain, ("version: STSv1",), ("mx.example.org",))
    return ReportedSession(policy, FailedSession(ResultType.STARTTLS_NOT_SUPPORTED, receiving_ip=ip) if ip else None)


async def add(
    connection: Connection, *counted: CountedSessions, room: bool = True, most_of_zone: int = 100
) -> list[CountedSessions]:
    return await tlsrpt.add(connection, counted, room=room, most_of_zone=most_of_zone)


async def test_sessions_with_equal_facts_are_one_row_a_day_whichever_process_counted_them(
    two: tuple[Connection, Connection],
) -> None:
    first, second = two
    failed = facts(ip="192.0.2.1")
    for one in two:
        batch = (CountedSessions(TODAY, facts(), 5), CountedSessions(TODAY, failed, 2))
        assert await add(one, *batch) == []
    assert await add(first, CountedSessions(TODAY - timedelta(days=1), facts(), 1)) == []
    given = await tlsrpt.give(second, 10)
    found = sorted((row.day, row.sessions, decode(row.facts)) for row in given if row.day == TODAY)
    assert [(sessions, each) for _, sessions, each in sorted(found, key=lambda one: one[1])] == [
        (4, failed),
        (10, facts()),
    ]
    assert len(given) == 3


async def test_every_session_is_given_once_however_often_the_reader_dies_between(
    two: tuple[Connection, Connection],
) -> None:
    first, reader = two
    kept: dict[int, int] = {}
    for _ in range(3):
        assert await add(first, CountedSessions(TODAY, facts(), 5)) == []
        (row,) = await tlsrpt.give(reader, 10, after=max(kept, default=0))
        again = await tlsrpt.give(reader, 10)  # it died, and begins anew
        assert row in again
        kept |= {each.id: each.sessions for each in again}
        assert await add(first, CountedSessions(TODAY, facts(), 1)) == [], "sessions of after it was given"
        late = [each for each in await tlsrpt.give(reader, 10) if each.id not in kept]
        kept |= {each.id: each.sessions for each in late}
        assert await tlsrpt.acknowledge(reader, list(kept)) > 0
        assert await tlsrpt.acknowledge(reader, list(kept)) == 0, "it asked twice, having had no answer"
    assert sum(kept.values()) == 18
    assert await tlsrpt.give(reader, 10) == []


async def test_what_the_reader_has_not_been_given_cannot_be_acknowledged(two: tuple[Connection, Connection]) -> None:
    first, reader = two
    assert await add(first, CountedSessions(TODAY, facts(), 1)) == []
    assert await tlsrpt.acknowledge(reader, list(range(100))) == 0
    assert len(await tlsrpt.give(reader, 1)) == 1


async def test_counting_goes_on_while_the_reader_takes_and_no_session_is_lost_or_counted_twice(
    two: tuple[Connection, Connection],
) -> None:
    first, reader = two
    kept: dict[int, int] = {}

    async def count() -> None:
        for _ in range(200):
            assert await add(first, *(CountedSessions(TODAY, facts(f"d{i}.example"), 1) for i in range(3))) == []

    counting = asyncio.create_task(count())
    while not counting.done() or await tlsrpt.count(reader, 10):
        rows = await tlsrpt.give(reader, 2)
        kept |= {row.id: row.sessions for row in rows}
        await tlsrpt.acknowledge(reader, [row.id for row in rows])
        await asyncio.sleep(0)
    await counting
    assert sum(kept.values()) == 600


async def test_what_finds_no_place_is_told_and_what_is_counted_already_counts_on(
    two: tuple[Connection, Connection],
) -> None:
    first, _ = two
    one, other = CountedSessions(TODAY, facts("a.evil.example"), 1), CountedSessions(TODAY, facts("b.evil.example"), 7)
    elsewhere = CountedSessions(TODAY, facts("good.example"), 1)
    assert await add(first, one, most_of_zone=1) == []
    assert await add(first, one, other, elsewhere, most_of_zone=1) == [other]
    assert await add(first, one, other, elsewhere, room=False) == [other]
    assert sorted(await sql(first, "SELECT sessions FROM tlsrpt")) == [(2,), (3,)]


async def test_facts_that_no_report_can_use_are_dropped_and_counted(two: tuple[Connection, Connection]) -> None:
    first, _ = two
    old = TODAY - timedelta(days=tlsrpt.DAYS + 2)
    assert await add(first, CountedSessions(old, facts(), 4), CountedSessions(TODAY, facts(), 1)) == []
    assert await tlsrpt.forget(first, 10) == 4
    assert await tlsrpt.forget(first, 10) == 0
    assert await tlsrpt.count(first, 10) == 1


async def test_a_row_that_is_counted_on_now_is_given_another_time_and_nobody_waits(
    two: tuple[Connection, Connection],
) -> None:
    """Both at once, each waiting for a row that the other has, would be a deadlock."""
    first, reader = two
    one, other = (CountedSessions(TODAY, facts(name), 1) for name in ("a.example", "b.example"))
    assert await add(first, one, other) == []
    async with first.transaction():
        assert await add(first, other) == []
        async with asyncio.timeout(30):
            (early,) = await tlsrpt.give(reader, 10)
        assert decode(early.facts) == one.facts
        assert await add(first, one) == [], "another row: that one has been given"
    given = await tlsrpt.give(reader, 10)
    assert sorted((decode(row.facts).policy.domain, row.sessions) for row in given) == [
        ("a.example", 1),
        ("a.example", 1),
        ("b.example", 2),
    ]
