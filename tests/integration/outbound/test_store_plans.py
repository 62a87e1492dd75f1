"""What each statement of outbound's tables reads follows from its batch, and not from how much is in them.

The tables are as full as their bounds let them be, with statistics of that, and the plan is the one for any parameters,
which a statement that stays prepared gets.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import UTC, datetime
from typing import Any, Final

import psycopg
import pytest

from mailrail.core.mtasts.answer import FetchFailed, FetchTrouble
from mailrail.core.mtasts.cache import CachedPolicy
from mailrail.core.mtasts.policy import Mode, Policy
from mailrail.core.outbound.learned import LearnedDomain, Offered
from mailrail.core.tlsrpt.counts import CountedSessions
from mailrail.core.tlsrpt.facts import AppliedPolicy, PolicyType, ReportedSession
from mailrail.kit import migrations
from mailrail.kit.postgres import Login
from mailrail_outbound.store import learned, mta_sts, tlsrpt
from mailrail_outbound.store.connection import Connection, DomainDatabase

from testkit.plans import Plan, explaining
from testkit.postgres import embedded_postgres

POLICIES: Final = 50_000
LEARNED: Final = 200_000
FACTS: Final = 100_000
PER_ROW: Final = 60
"""Blocks that a statement may look at for each row of its batch."""
ONCE: Final = 60
"""Blocks that it may look at besides."""
BOUNDS: Final = 1500
"""Blocks for counting a table, or a zone, up to its bound by an index."""
ROOM: Final = mta_sts.Room(most=POLICIES + 1000, most_of_zone=2000, most_large=2000)
POLICY: Final = Policy(Mode.ENFORCE, 86_400, ("mx.example.org",))
TODAY: Final = datetime.now(UTC).date()

FILL: Final = f"""
    INSERT INTO outbound.mta_sts (domain, zone, record_id, policy, fetched, ends, refresh, forget)
    SELECT 'd' || i || '.z' || i % 500 || '.example', 'z' || i % 500 || '.example', 'id', CASE WHEN i % 30 = 0 THEN repeat(md5(i::text), 200) ELSE 'version: STSv1' END, now(), now() + interval '9 days',
        CASE WHEN i % 2 = 0 THEN now() + make_interval(secs => i - 2000) END, now() + interval '10 days' - make_interval(mins => CASE WHEN i % 50 = 0 THEN 20000 ELSE 0 END)
    FROM generate_series(1, {POLICIES}) i;
    INSERT INTO outbound.learned SELECT 'd' || i || '.example', '', true, false, now() - make_interval(mins => i) FROM generate_series(1, {LEARNED}) i;
    INSERT INTO outbound.tlsrpt (zone, day, fingerprint, facts, sessions, given)
    SELECT 'z' || i % 500 || '.example', (now() AT TIME ZONE 'UTC')::date, sha256(i::text::bytea), repeat('x', 300)::bytea, 1, i <= 1000
    FROM generate_series(1, {FACTS}) i;
    ANALYZE;
"""  # noqa: E501 -- of constants alone


@pytest.fixture(scope="module")
def full() -> Iterator[str]:
    with embedded_postgres(autovacuum="off") as server:
        url = server.url("mailrail")
        migrations.migrate(url, migrations.load("outbound"))
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(FILL.encode())
            connection.execute("VACUUM ANALYZE")
        yield url


@pytest.fixture
async def watched(full: str) -> AsyncIterator[tuple[Connection, list[Plan]]]:
    connection = await DomainDatabase(Login.of(full), "plans").open("plans", writes=True)
    async with connection, explaining(connection, "force_generic_plan") as found:
        yield connection, found.plans


def domains(count: int) -> list[str]:
    return [f"d{i}.z{i % 500}.example" for i in range(7, 7 + count)]


def counted(count: int, *, known: bool) -> list[CountedSessions]:
    names = [f"{'z' if known else 'new'}{i}.example" for i in range(count)]
    return [CountedSessions(TODAY, ReportedSession(AppliedPolicy(PolicyType.NONE, name)), 1) for name in names]


Ask = Callable[[Connection, int], Awaitable[Any]]


async def _store(connection: Connection, _: int) -> None:
    now, _found = await mta_sts.read(connection, ["d7.z7.example"])
    assert await mta_sts.store(connection, "d7.z7.example", CachedPolicy("id2", POLICY, now), ROOM)


async def _store_new(connection: Connection, _: int) -> None:
    now, _found = await mta_sts.read(connection, ["new.z7.example"])
    assert await mta_sts.store(connection, "new.z7.example", CachedPolicy("id2", POLICY, now), ROOM)


async def _store_large(connection: Connection, _: int) -> None:
    large = Policy(Mode.ENFORCE, 86_400, tuple(f"mx{i}.example.org" for i in range(300)))
    now, _found = await mta_sts.read(connection, ["d7.z7.example"])
    assert await mta_sts.store(connection, "d7.z7.example", CachedPolicy("id2", large, now), ROOM)


async def _fail(connection: Connection, _: int) -> None:
    assert await mta_sts.store_failure(connection, "d7.z7.example", "id", FetchFailed(FetchTrouble.FETCH, "no"), ROOM)


async def _claim(connection: Connection, _: int) -> None:
    assert await mta_sts.claim(connection, "d7.z7.example", 60.0, ROOM) is mta_sts.Claim.OURS


async def _claim_due(connection: Connection, count: int) -> None:
    assert len(await mta_sts.claim_due(connection, count, 60.0)) == count


async def _forget_policies(connection: Connection, count: int) -> None:
    assert await mta_sts.forget(connection, count) == count


async def _learn(connection: Connection, count: int) -> None:
    batch = [LearnedDomain(f"d{i}.example", "", Offered(False, False), 1.0) for i in range(1, count + 1)]
    await learned.write(connection, batch, 1.0)


async def _read_learned(connection: Connection, count: int) -> None:
    assert len(await learned.read(connection, [f"d{i}.example" for i in range(1, count + 1)])) == count


async def _count_new(connection: Connection, count: int) -> None:
    assert await tlsrpt.add(connection, counted(count, known=False), room=True, most_of_zone=500) == []


async def _count_known_zone(connection: Connection, count: int) -> None:
    assert await tlsrpt.add(connection, counted(count, known=True), room=True, most_of_zone=2000) == []


async def _give(connection: Connection, count: int) -> None:
    assert len(await tlsrpt.give(connection, count)) == count


async def _acknowledge(connection: Connection, count: int) -> None:
    assert await tlsrpt.acknowledge(connection, list(range(1, count + 1))) == count


@pytest.mark.parametrize(
    ("ask", "count", "bound"),
    [
        (lambda connection, count: mta_sts.read(connection, domains(count)), 200, ONCE),
        (lambda connection, count: mta_sts.note_mailed(connection, domains(count)), 200, ONCE),
        (_store, 1, ONCE),
        (_store_new, 1, BOUNDS),
        (_store_large, 1, 2000 + BOUNDS),
        (_fail, 1, ONCE),
        (_claim, 1, ONCE),
        (_claim_due, 20, ONCE),
        (_forget_policies, 100, ONCE),
        (_learn, 200, ONCE),
        (_read_learned, 200, ONCE),
        (lambda connection, count: learned.forget(connection, count, LEARNED), 100, BOUNDS),
        (_count_new, 100, ONCE),
        (_count_known_zone, 20, BOUNDS),
        (_give, 100, ONCE),
        (_acknowledge, 100, ONCE),
        (lambda connection, _: tlsrpt.count(connection, FACTS), 1, BOUNDS),
        (lambda connection, count: tlsrpt.forget(connection, count), 100, ONCE),
    ],
)
async def test_a_statement_reads_what_its_batch_needs(
    watched: tuple[Connection, list[Plan]], ask: Ask, count: int, bound: int
) -> None:
    connection, plans = watched
    await ask(connection, count)
    assert plans
    for plan in plans:
        assert plan.buffers <= PER_ROW * count + bound, f"{plan.statement}\n{plan.tree}"
