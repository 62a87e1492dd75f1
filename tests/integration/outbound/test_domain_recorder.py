"""What is written of domains behind the mail: through outages, bounded, and never at the cost of a delivery."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import psycopg
import pytest

from mailrail.core.outbound.learned import Offered
from mailrail.core.tlsrpt.facts import AppliedPolicy, PolicyType, ReportedSession
from mailrail.kit.postgres import Login
from mailrail_outbound import domain_recorder, metrics
from mailrail_outbound.domain_recorder import DomainRecorder
from mailrail_outbound.store.connection import DomainDatabase

from testkit.conditions import eventually
from testkit.faultproxy import FaultProxy

YES = Offered(starttls=True, requiretls=False)
NO = Offered(starttls=False, requiretls=False)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(domain_recorder, "_EVERY", 0.05)
    monkeypatch.setattr(domain_recorder, "_SWEEP", 0.2)


@contextlib.asynccontextmanager
async def facts_of(url: str) -> AsyncIterator[DomainRecorder]:
    database = DomainDatabase(Login.of(url), "facts")
    made = DomainRecorder(database)
    running = asyncio.create_task(made.run())
    try:
        yield made
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await made.flush(5.0)
        await database.close()


def session(domain: str) -> ReportedSession:
    return ReportedSession(AppliedPolicy(PolicyType.NONE, domain))


def rows(url: str, query: str) -> list[tuple[object, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(query.encode())
        return cursor.fetchall() if cursor.description else []


SESSIONS = "SELECT coalesce(sum(sessions), 0)::int, count(*)::int FROM outbound.tlsrpt"


async def test_thousands_of_sessions_are_a_few_rows(database: str) -> None:
    async with facts_of(database) as facts:
        for number in range(5000):
            facts.report([session(f"d{number % 5}.example")])
            facts.learn(f"d{number % 5}.example", "", YES)
            if number % 1000 == 0:
                await eventually(lambda: len(facts._sessions) == 0)
        await eventually(lambda: rows(database, SESSIONS) == [(5000, 5)])
        await eventually(lambda: rows(database, "SELECT count(*)::int FROM outbound.learned") == [(5,)])


async def test_of_what_many_sessions_show_between_two_writes_the_last_word_is_written_RTLS_29(database: str) -> None:
    said = "SELECT domain, transport, starttls FROM outbound.learned ORDER BY 1, 2"
    async with facts_of(database) as facts:
        for offered in (YES, YES, NO, YES, NO, NO):
            facts.learn("a.example", "", offered)
            facts.learn("a.example", "ns/relay", YES)
        await eventually(lambda: rows(database, said) == [("a.example", "", False), ("a.example", "ns/relay", True)])
        facts.learn("a.example", "", YES)
        await eventually(lambda: rows(database, said) == [("a.example", "", True), ("a.example", "ns/relay", True)])


async def test_each_session_of_whose_domain_nothing_can_be_kept_is_counted(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(domain_recorder, "_WAITING", 2)
    before = metrics.LEARNED.of("dropped").number
    async with facts_of(database) as facts:
        for name in ("a", "b", "c", "c", "c"):
            facts.learn(f"{name}.example", "", YES)
        await eventually(lambda: metrics.LEARNED.of("dropped").number == before + 3)


async def test_what_waits_while_postgres_is_away_is_written_when_it_is_back(database: str) -> None:
    parts = psycopg.conninfo.conninfo_to_dict(database)
    with FaultProxy((str(parts["host"]), int(str(parts["port"])))) as proxy:
        through = psycopg.conninfo.make_conninfo(database, host=proxy.address, port=proxy.port)
        async with facts_of(through) as facts:
            facts.report([session("a.example")])
            await eventually(lambda: rows(database, SESSIONS) == [(1, 1)])
            for trouble in (proxy.refuse, proxy.cut):
                trouble()
                for _ in range(10):
                    facts.report([session("a.example"), session("b.example")])
                    facts.learn("a.example", "", YES)
                proxy.resume()
                await eventually(lambda: not len(facts._sessions) and not len(facts._learned))
            await eventually(lambda: rows(database, SESSIONS) == [(41, 2)])


async def test_a_process_that_is_told_to_stop_writes_what_it_has(database: str) -> None:
    async with facts_of(database) as facts:
        facts.report([session("a.example")] * 7)
    assert rows(database, SESSIONS) == [(7, 1)]


async def test_what_finds_no_room_is_counted_and_what_is_old_is_swept(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(domain_recorder, "MOST_FACTS", 3)

    def told(result: str) -> float:
        return metrics.TLSRPT_SESSIONS.of(result).number

    async with facts_of(database) as facts:
        before = {result: told(result) for result in ("stored", "no_room", "too_old")}
        for name in ("a", "b", "c"):
            facts.report([session(f"{name}.example")])
        await eventually(lambda: rows(database, SESSIONS) == [(3, 3)])
        await eventually(lambda: facts._rows == 3)
        await eventually(lambda: metrics.TLSRPT_ROWS._value.get() == metrics.TLSRPT_ROWS_ALLOWED._value.get() == 3)
        facts.report([session("a.example"), session("d.example"), session("e.example")])
        await eventually(lambda: told("no_room") - before["no_room"] == 2)
        assert rows(database, SESSIONS) == [(4, 3)]
        assert told("stored") - before["stored"] == 4
        rows(database, "UPDATE outbound.tlsrpt SET day = day - 9 WHERE sessions = 2")
        await eventually(lambda: told("too_old") - before["too_old"] == 2)
        facts.report([session("d.example")])
        await eventually(lambda: rows(database, SESSIONS) == [(3, 3)])
        today = datetime.now(UTC).date()
        assert set(rows(database, "SELECT day FROM outbound.tlsrpt")) <= {(today,)}
