"""Between the queue and its Postgres: a pooler in session mode does, another is told from the first look."""

import asyncio

import psycopg
import pytest
from integration.config.conftest import config_service

from mailrail.kit import postgres as kit
from mailrail_queue.__main__ import assemble
from mailrail_queue.store.connection import Database

from testkit.conditions import eventually
from testkit.peers.pgbouncer import pgbouncer
from testkit.queue import QUICK, running_queue

pytestmark = [pytest.mark.peer("pgbouncer"), pytest.mark.timeout(180)]


async def test_a_pooler_in_transaction_mode_is_refused_with_a_sentence(
    database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from dataclasses import replace

    with pgbouncer(database, "transaction") as url:
        queue, _ = assemble(replace(QUICK, database_url=url, node_id="a"))
        preparing = asyncio.create_task(queue.prepare())
        try:
            await eventually(lambda: "a pooler in transaction mode is in between" in capsys.readouterr().out)
            assert not preparing.done()
        finally:
            preparing.cancel()
            await asyncio.gather(preparing, return_exceptions=True)


async def test_a_pooler_in_session_mode_is_as_good_as_none(database: str) -> None:
    with pgbouncer(database, "session") as url:
        async with running_queue(url) as q:
            outbound, ingress = await q.outbound(), await q.ingress()
            await ingress.accept("bob@away.example")
            await eventually(outbound.has(1))
            outbound.finish(outbound.deliveries[0])
            await q.until("SELECT count(*) = 1 FROM history")


async def test_a_pooler_with_too_few_connections_is_told_of_in_seconds(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kit, "ANSWERS_WITHIN", 1.0)
    with pgbouncer(database, "session", size=2) as url:
        opened = Database(kit.Login.of(url), "test")
        lanes = [opened.lane(str(number)) for number in range(3)]
        try:
            assert await lanes[0].run("SELECT 1") == [(1,)]
            assert await lanes[1].run("SELECT 1") == [(1,)]
            async with asyncio.timeout(20):
                with pytest.raises(psycopg.OperationalError, match="too few connections to the server"):
                    await lanes[2].run("SELECT 1")
            assert await lanes[0].run("SELECT 1") == [(1,)]
        finally:
            await opened.close()


async def test_config_behind_a_pooler_with_too_few_connections_says_so_and_is_not_ready(
    database: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(kit, "ANSWERS_WITHIN", 1.0)
    with pgbouncer(database, "session", size=1) as url:
        async with config_service(url) as service:
            await eventually(lambda: f"too few connections to the server: {kit.NEEDED}" in capsys.readouterr().out)
            assert not service.ready
            assert not service.follower.watch.silent


async def test_config_behind_a_pooler_in_transaction_mode_says_so_and_is_not_ready(
    database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pgbouncer(database, "transaction") as url:
        async with config_service(url) as service:
            await eventually(lambda: "a pooler in transaction mode is in between" in capsys.readouterr().out)
            assert not service.ready


async def test_without_a_pooler_one_query_tells_that_there_is_none(database: str) -> None:
    async with await psycopg.AsyncConnection.connect(database, autocommit=True) as connection:
        await kit.refuse_shared_sessions(connection)
