"""The cache of MTA-STS policies: memory before a Postgres that is shared, hangs, is killed, set back and full."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Awaitable, Callable, Iterator
from urllib.parse import urlsplit

import psycopg
import pytest

from mailrail.core.mtasts.answer import FetchFailed
from mailrail.core.mtasts.cache import DnsTrouble, PolicyStep
from mailrail.core.mtasts.policy import Mode, Policy
from mailrail.core.mtasts.record import StsRecord
from mailrail.core.policy_record import NoRecord
from mailrail.kit import migrations
from mailrail.local.postgres.server import EmbeddedPostgres
from mailrail_outbound import metrics
from mailrail_outbound.store import mta_sts
from mailrail_outbound.tls_policy import cache as cache_module
from mailrail_outbound.tls_policy.cache import PolicyCache, PolicyUnread
from mailrail_outbound.tls_policy.fetch import FetchPutOff

from testkit.conditions import eventually
from testkit.faultproxy import FaultProxy
from testkit.policies import REFUSED, PolicyWorld, policy_process

ENFORCE = Policy(Mode.ENFORCE, 7 * 86_400, ("mx.example.org",))
TESTING = Policy(Mode.TESTING, 7 * 86_400, ("mx.example.org",))
FIRST, SECOND = StsRecord("id1"), StsRecord("id2")
NOTHING = NoRecord("there is no TXT record")
BROKEN = DnsTrouble("SERVFAIL", 0.0)


@pytest.fixture
def there() -> PolicyWorld:
    return PolicyWorld()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is in memory is looked up in Postgres again at once, and so is what Postgres did not answer."""
    monkeypatch.setattr(cache_module, "_FRESH", 0.0)
    monkeypatch.setattr(cache_module, "_AGAIN", 0.05)


def rows(
    url: str, query: str = "SELECT domain, record_id FROM outbound.mta_sts ORDER BY 1"
) -> list[tuple[object, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(query.encode())
        return cursor.fetchall() if cursor.description else []


def reads(source: str) -> float:
    return metrics.POLICY_READS.of(source).number


@contextlib.contextmanager
def through(url: str) -> Iterator[tuple[str, FaultProxy]]:
    """The same database through a proxy that can hang."""
    place = urlsplit(url)
    with FaultProxy((place.hostname or "", place.port or 0)) as proxy:
        yield place._replace(netloc=f"{place.username}:{place.password}@{proxy.address}:{proxy.port}").geturl(), proxy


async def saved(url: str, *expected: tuple[str, str]) -> None:
    await eventually(lambda: rows(url) == list(expected))


# --- what a delivery goes by ---


async def test_a_policy_is_fetched_once_for_all_processes_and_after_a_restart_nobody_fetches_STS_17b(
    database: str, there: PolicyWorld
) -> None:
    there.policies["example.org"] = ENFORCE
    async with policy_process(database, there) as one, policy_process(database, there) as other:
        verdicts = await asyncio.gather(
            *(each.verdict("example.org", FIRST) for each in (one, other) for _ in range(20))
        )
        assert {(verdict.step, verdict.policy) for verdict in verdicts} == {(PolicyStep.USE, ENFORCE)}
        await saved(database, ("example.org", "id1"))
    async with policy_process(database, there) as anew:
        assert (await anew.verdict("example.org", BROKEN)).policy == ENFORCE, "whoever breaks the DNS changes nothing"
    assert there.fetches == {"example.org": 1}


async def test_a_warm_domain_costs_no_statement_and_what_has_no_policy_is_known_too(
    database: str, there: PolicyWorld
) -> None:
    there.policies["with.example"] = ENFORCE
    async with policy_process(database, there) as cache:
        assert cache.kept_verdict("with.example", FIRST) is None
        await cache.verdict("with.example", FIRST)
        await cache.verdict("without.example", NOTHING)
        before = reads("postgres")
        for _ in range(100):
            kept = cache.kept_verdict("with.example", FIRST), cache.kept_verdict("without.example", NOTHING)
            assert [verdict.step for verdict in kept if verdict is not None] == [PolicyStep.USE, PolicyStep.WITHOUT]
        await asyncio.sleep(0)
        assert reads("postgres") == before
        # A record that says that there is something new is worth a wait.
        assert cache.kept_verdict("without.example", FIRST) is None
        assert cache.kept_verdict("with.example", SECOND) is None


async def test_many_domains_are_read_by_a_few_statements(database: str, there: PolicyWorld) -> None:
    async with policy_process(database, there) as cache:
        batches: list[int] = []
        read = mta_sts.read

        async def counted(connection: object, domains: list[str]) -> object:
            batches.append(len(domains))
            return await read(connection, domains)  # type: ignore[arg-type]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(mta_sts, "read", counted)
            await asyncio.gather(*(cache.verdict(f"d{i}.example", NOTHING) for i in range(1000)))
        assert sum(batches) == 1000
        assert len(batches) <= 4


async def test_a_failed_fetch_is_told_to_all_processes_which_ask_no_more_for_that_id_and_do_for_another_STS_18a(
    database: str, there: PolicyWorld
) -> None:
    async with policy_process(database, there) as one, policy_process(database, there) as other:
        assert (await one.verdict("example.org", FIRST)).step is PolicyStep.WITHOUT
        await saved(database, ("example.org", ""))
        assert (await other.verdict("example.org", FIRST)).step is PolicyStep.WITHOUT
        assert there.fetches["example.org"] == 1
        there.policies["example.org"] = ENFORCE
        assert (await other.verdict("example.org", SECOND)).policy == ENFORCE
        assert there.fetches["example.org"] == 2


async def test_who_has_a_policy_uses_it_while_another_process_fetches_the_next_one(
    database: str, there: PolicyWorld
) -> None:
    there.policies["example.org"] = ENFORCE
    async with policy_process(database, there) as one, policy_process(database, there) as other:
        await one.verdict("example.org", FIRST)
        await saved(database, ("example.org", "id1"))
        assert (await other.verdict("example.org", FIRST)).policy == ENFORCE
        there.go_on.clear()
        there.policies["example.org"] = TESTING
        fetching = asyncio.create_task(one.verdict("example.org", SECOND))
        await eventually(lambda: there.fetches["example.org"] == 2)
        used = await other.verdict("example.org", SECOND)
        assert used.policy == ENFORCE
        assert "another process fetches" in used.reason
        there.go_on.set()
        assert (await fetching).policy == TESTING
        await saved(database, ("example.org", "id2"))
        assert (await other.verdict("example.org", SECOND)).policy == TESTING
        assert there.fetches["example.org"] == 2


async def test_a_fetch_that_was_put_off_is_no_word_of_the_domain_and_is_made_by_who_asks_next(
    database: str, there: PolicyWorld
) -> None:
    there.policies["example.org"] = FetchPutOff("too many others are fetched")
    async with policy_process(database, there) as one, policy_process(database, there) as other:
        assert (await one.verdict("example.org", FIRST)).step is PolicyStep.DEFER
        there.policies["example.org"] = ENFORCE
        assert (await other.verdict("example.org", FIRST)).policy == ENFORCE
        there.policies["example.org"] = FetchPutOff("too many others are fetched")
        assert (await other.verdict("example.org", SECOND)).policy == ENFORCE, "what is cached holds"


# --- without Postgres ---


async def test_without_postgres_what_is_in_memory_counts_and_no_other_domain_passes_for_one_without_policy(
    database: str, there: PolicyWorld, impatient: None
) -> None:
    there.policies["with.example"] = ENFORCE
    with through(database) as (url, proxy):
        async with policy_process(url, there) as cache:
            await cache.verdict("with.example", FIRST)
            await cache.verdict("without.example", NOTHING)
            await saved(database, ("with.example", "id1"))
            proxy.refuse()
            for record in (FIRST, NOTHING, BROKEN):
                assert (await cache.verdict("with.example", record)).policy == ENFORCE
                with pytest.raises(PolicyUnread, match=r"whether never\.example has an MTA-STS policy is not known"):
                    await cache.verdict("never.example", record)
            assert (await cache.verdict("without.example", NOTHING)).step is PolicyStep.WITHOUT
            assert there.fetches == {"with.example": 1}
            # A policy that is found meanwhile is fetched, holds, and is saved once Postgres is back.
            there.policies["without.example"] = ENFORCE
            assert (await cache.verdict("without.example", FIRST)).policy == ENFORCE
            assert (await cache.verdict("without.example", BROKEN)).policy == ENFORCE
            assert metrics.POLICIES_UNSAVED._value.get() == 1
            proxy.resume()
            await saved(database, ("with.example", "id1"), ("without.example", "id1"))
            await eventually(lambda: metrics.POLICIES_UNSAVED._value.get() == 0)

            async def known() -> bool:
                with contextlib.suppress(PolicyUnread):
                    return (await cache.verdict("never.example", NOTHING)).step is PolicyStep.WITHOUT
                return False

            condition: Callable[[], bool | Awaitable[bool | None] | None] = known
            await eventually(condition)


async def test_a_postgres_that_hangs_holds_nobody_up_for_more_than_a_few_seconds_and_takes_nothing_away(
    database: str, there: PolicyWorld, impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "_USABLE", 0.0)
    there.policies["with.example"] = ENFORCE
    with through(database) as (url, proxy):
        async with policy_process(url, there) as cache:
            await cache.verdict("with.example", FIRST)
            await saved(database, ("with.example", "id1"))
            proxy.stall()
            async with asyncio.timeout(20):
                assert (await cache.verdict("with.example", BROKEN)).policy == ENFORCE
                with pytest.raises(PolicyUnread):
                    await cache.verdict("never.example", NOTHING)
            assert cache.kept_verdict("with.example", NOTHING) is not None, "it is known to be away: nobody waits"
            proxy.resume()


async def test_a_policy_survives_a_postgres_that_is_set_back_or_made_empty(
    database: str, there: PolicyWorld, impatient: None
) -> None:
    there.policies["example.org"] = ENFORCE
    async with policy_process(database, there) as one, policy_process(database, there) as other:
        await one.verdict("example.org", FIRST)
        await saved(database, ("example.org", "id1"))
        there.policies["example.org"] = TESTING
        before = rows(database, "SELECT record_id, policy, fetched, ends, refresh, forget FROM outbound.mta_sts")
        await one.verdict("example.org", SECOND)
        await saved(database, ("example.org", "id2"))
        rows(database, "TRUNCATE outbound.mta_sts")
        assert (await one.verdict("example.org", NOTHING)).policy == TESTING
        await saved(database, ("example.org", "id2"))
        assert (await other.verdict("example.org", NOTHING)).policy == TESTING, "and all processes have it"
        rows(database, f"UPDATE outbound.mta_sts SET record_id = 'id1', fetched = '{before[0][2]}'")
        await eventually(
            lambda: one.kept_verdict("example.org", NOTHING) is not None and rows(database) == [("example.org", "id2")]
        )


async def test_a_server_that_is_killed_costs_no_policy(
    disposable_postgres: EmbeddedPostgres, there: PolicyWorld, impatient: None
) -> None:
    url = disposable_postgres.url()
    migrations.migrate(url, migrations.load("outbound"))
    there.policies["example.org"] = ENFORCE
    async with policy_process(url, there) as cache:
        await cache.verdict("example.org", FIRST)
        await saved(url, ("example.org", "id1"))
        assert disposable_postgres.pid is not None
        os.kill(disposable_postgres.pid, signal.SIGKILL)
        await asyncio.to_thread(disposable_postgres.wait, 30)
        assert (await cache.verdict("example.org", BROKEN)).policy == ENFORCE
        with pytest.raises(PolicyUnread):
            await cache.verdict("other.example", NOTHING)
        await asyncio.to_thread(disposable_postgres.start)

        async def back() -> bool:
            with contextlib.suppress(PolicyUnread):
                return (await cache.verdict("other.example", NOTHING)).step is PolicyStep.WITHOUT
            return False

        condition: Callable[[], bool | Awaitable[bool | None] | None] = back
        await eventually(condition)
        assert rows(url) == [("example.org", "id1")]


# --- bounds ---


async def test_a_policy_for_which_postgres_has_no_room_holds_in_memory_and_pushes_nothing_out(
    database: str, there: PolicyWorld
) -> None:
    names = [f"d{i}.evil.example" for i in range(6)]
    there.policies = dict.fromkeys([*names, "good.test"], ENFORCE)
    async with policy_process(database, there, most_of_zone=2, most_unsaved=3) as cache:
        await cache.verdict("good.test", FIRST)
        for name in names:
            await cache.verdict(name, FIRST)
            await eventually(lambda: not cache._to_write.is_set() and not cache._wanted)
        await eventually(lambda: len(rows(database)) == 3)
        assert ("good.test", "id1") in rows(database)
        assert metrics.POLICIES_UNSAVED._value.get() == 3
        for name in names[-3:]:
            assert (await cache.verdict(name, BROKEN)).policy == ENFORCE, name


async def test_memory_is_bounded_and_what_was_pushed_out_is_read_again_and_fetched_no_second_time(
    database: str, there: PolicyWorld
) -> None:
    names = [f"d{i}.example" for i in range(200)]
    there.policies = dict.fromkeys(names, ENFORCE)
    async with policy_process(database, there, octets=50 * 1700) as cache:
        for name in names:
            await cache.verdict(name, FIRST)
        await eventually(lambda: len(rows(database)) == 200)
        await eventually(lambda: not cache._unsaved)
        await asyncio.gather(*(cache.verdict(f"n{i}.example", NOTHING) for i in range(300)))
        assert sum(entry.weight for entry in cache._entries.values()) == cache._weight <= 50 * 1700
        for name in names:
            assert (await cache.verdict(name, BROKEN)).policy == ENFORCE
    assert set(there.fetches.values()) == {1}


@pytest.mark.parametrize("outcome", [REFUSED, FetchPutOff("too many others are fetched")], ids=["failed", "put-off"])
async def test_a_policy_that_is_pushed_out_of_memory_while_the_next_one_is_fetched_still_holds_STS_16b(
    database: str, there: PolicyWorld, outcome: FetchFailed | FetchPutOff
) -> None:
    """Whoever forges a new id, blocks the policy host and has others fill the memory must gain nothing."""
    there.policies["example.org"] = ENFORCE
    async with policy_process(database, there, octets=50 * 1700) as cache:
        await cache.verdict("example.org", FIRST)
        await saved(database, ("example.org", "id1"))
        await eventually(lambda: not cache._unsaved)
        there.go_on.clear()
        there.policies["example.org"] = outcome
        fetching = asyncio.create_task(cache.verdict("example.org", SECOND))
        await eventually(lambda: there.fetches["example.org"] == 2)
        await asyncio.gather(*(cache.verdict(f"n{i}.example", NOTHING) for i in range(300)))
        assert "example.org" not in cache._entries
        there.go_on.set()
        assert (await fetching).policy == ENFORCE
        assert (await cache.verdict("example.org", NOTHING)).policy == ENFORCE


# --- refresh ---


async def test_a_policy_that_is_mailed_is_refreshed_before_its_end_by_one_process_STS_19a(
    database: str, there: PolicyWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "_REFRESH_EVERY", 0.05)
    there.policies["example.org"] = ENFORCE
    async with policy_process(database, there) as one, policy_process(database, there):
        await one.verdict("example.org", FIRST)
        await saved(database, ("example.org", "id1"))
        there.policies["example.org"] = TESTING
        there.records["example.org"] = BROKEN
        rows(database, "UPDATE outbound.mta_sts SET fetched = fetched - interval '2 days', refresh = now()")
        await eventually(lambda: "testing" in str(rows(database, "SELECT policy FROM outbound.mta_sts")))
        assert there.fetches["example.org"] == 2
        assert rows(database, "SELECT record_id, refresh > now() FROM outbound.mta_sts") == [("id1", True)]


async def test_a_refresh_that_fails_takes_no_policy_away_is_told_and_is_made_again_later_STS_16a_STS_20(
    database: str, there: PolicyWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "_REFRESH_EVERY", 0.05)
    there.policies["example.org"] = ENFORCE
    async with policy_process(database, there) as one:
        await one.verdict("example.org", FIRST)
        await saved(database, ("example.org", "id1"))
        there.policies["example.org"] = REFUSED
        told = metrics.POLICY_FETCHES.of("not_refreshed")
        before = told.number
        rows(database, "UPDATE outbound.mta_sts SET fetched = fetched - interval '2 days', refresh = now()")
        await eventually(lambda: rows(database, "SELECT failure <> '' FROM outbound.mta_sts") == [(True,)])
        assert (await one.verdict("example.org", NOTHING)).policy == ENFORCE
        assert rows(database, "SELECT refresh > now() + interval '50 minutes' FROM outbound.mta_sts") == [(True,)]
        assert told.number == before + 1
        assert there.fetches["example.org"] == 2


async def test_a_policy_that_is_pushed_out_of_memory_while_it_is_refreshed_still_holds_STS_16b(
    database: str, there: PolicyWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "_REFRESH_EVERY", 0.05)
    there.policies["example.org"] = ENFORCE
    async with policy_process(database, there, octets=50 * 1700) as cache:
        await cache.verdict("example.org", FIRST)
        await saved(database, ("example.org", "id1"))
        there.go_on.clear()
        there.policies["example.org"] = REFUSED
        rows(database, "UPDATE outbound.mta_sts SET refresh = now()")
        await eventually(lambda: there.fetches["example.org"] == 2)
        await asyncio.gather(*(cache.verdict(f"n{i}.example", NOTHING) for i in range(300)))
        assert "example.org" not in cache._entries
        there.go_on.set()
        await eventually(lambda: rows(database, "SELECT failure <> '' FROM outbound.mta_sts") == [(True,)])
        assert (await cache.verdict("example.org", FIRST)).policy == ENFORCE


async def test_that_mail_went_to_a_domain_is_written_now_and_then_and_not_for_each_message_STS_25(
    database: str, there: PolicyWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "_WRITE_EVERY", 0.05)
    there.policies["example.org"] = ENFORCE
    async with policy_process(database, there) as one:
        await one.verdict("example.org", FIRST)
        await saved(database, ("example.org", "id1"))
        await eventually(lambda: not one._unsaved)
        rows(database, "UPDATE outbound.mta_sts SET mailed = now() - interval '2 days', refresh = NULL")
        for _ in range(100):
            await one.verdict("example.org", FIRST)
        fresh = "SELECT mailed > now() - interval '1 hour', refresh IS NOT NULL FROM outbound.mta_sts"
        await eventually(lambda: rows(database, fresh) == [(True, True)])
        await eventually(lambda: one._mailed == {})


async def test_a_mistake_of_ours_leaves_nobody_waiting_and_is_over_with_its_cause(
    database: str, there: PolicyWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "_AGAIN", 0.05)
    monkeypatch.setattr(cache_module, "_REFRESH_EVERY", 0.05)

    async def broken(*_: object) -> None:
        raise RuntimeError("a mistake")

    async with policy_process(database, there) as cache:
        with pytest.MonkeyPatch.context() as patch:
            for name in ("read", "claim_due", "note_mailed"):
                patch.setattr(mta_sts, name, broken)
            for _ in range(3):
                with pytest.raises(PolicyUnread, match="a mistake of ours"):
                    await cache.verdict("example.org", NOTHING)
        await eventually_read(cache)


async def eventually_read(cache: PolicyCache) -> None:
    async def known() -> bool:
        with contextlib.suppress(PolicyUnread):
            return (await cache.verdict("example.org", NOTHING)).step is PolicyStep.WITHOUT
        return False

    condition: Callable[[], bool | Awaitable[bool | None] | None] = known
    await eventually(condition)
