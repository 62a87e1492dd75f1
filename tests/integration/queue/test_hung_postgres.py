"""A Postgres that hangs: connections stand, TCP is alive, and nothing is answered (ACC-09). It is no outage that breaks
anything off, so it has to be looked for."""

import asyncio
import time
from collections.abc import Iterator
from functools import partial

import pytest

from mailrail.kit import migrations
from mailrail_queue import metrics

from testkit.conditions import eventually
from testkit.failover import Pair, Server, pair, single
from testkit.queue import RunningQueue, commit_of, running_queue

pytestmark = pytest.mark.timeout(300)

NOTICED = 15.0
"""Seconds within which a hang is noticed."""


@pytest.fixture
def server() -> Iterator[Server]:
    """A Postgres of this test's own, migrated."""
    with single() as made:
        migrations.migrate(made.url, migrations.load_all(("queue",)))
        yield made


def postgres_up() -> float:
    return float(metrics.POSTGRES_UP._value.get())


def in_hand(q: RunningQueue, messages: int) -> bool:
    return q.queue.group_commit._in_hand == messages


async def test_a_hung_server_is_noticed_and_told_once_and_all_goes_on_after_it_ACC_09(
    server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    async with running_queue(server.url) as q:
        ingress, outbound = await q.ingress(), await q.outbound()
        await ingress.accept("before@away.example")
        await eventually(outbound.has(1))
        await eventually(lambda: postgres_up() == 1)
        capsys.readouterr()
        with server.frozen():
            began = time.monotonic()
            await eventually(lambda: not q.queue.serving and postgres_up() == 0 and ingress.database_silent, NOTICED)
            print(f"noticed after {time.monotonic() - began:.1f} s")
            outbound.finish(outbound.deliveries[0])
        await eventually(lambda: q.queue.serving and postgres_up() == 1 and not ingress.database_silent)
        await ingress.accept("after@away.example")
        await eventually(outbound.has(2))
        await q.until("SELECT count(*) = 1 FROM history WHERE state = 3")
        said = capsys.readouterr().out
        assert said.count("Postgres does not answer") == said.count("Postgres answers again") == 1
        assert "Postgres is unreachable" not in said


async def test_mail_under_way_waits_for_a_hung_server_and_mail_behind_it_is_refused_ACC_04_ACC_09(
    server: Server,
) -> None:
    async with running_queue(server.url) as q:
        ingress = await q.ingress()
        await ingress.accept("before@away.example")
        with server.frozen():
            under_way = []
            for number in range(2):  # one on each of the two lanes
                under_way += ingress.commit(commit_of(f"under-way-{number}@away.example"))
                await eventually(partial(in_hand, q, number + 1))
            (behind,) = ingress.commit(commit_of("behind@away.example"))
            result = await asyncio.wait_for(behind, 2 * NOTICED)
            assert (result.accepted, result.refusal.code, result.refusal.enhanced) == (False, 451, "4.3.0")
            assert not any(future.done() for future in under_way)
        for future in under_way:
            assert (await asyncio.wait_for(future, 30)).accepted
        await q.until("SELECT count(*) = 3 FROM recipient")
        assert await q.one("SELECT count(*) FROM recipient WHERE address LIKE 'behind%'") == 0


async def test_a_queue_that_stood_still_itself_blames_no_server_for_it(server: Server) -> None:
    """The time for which a process is stopped is none in which the server could have answered."""
    async with running_queue(server.url) as q:
        watch = q.queue.database.watch
        await eventually(lambda: watch._connection is not None)
        time.sleep(10)
        await asyncio.sleep(0)
        assert not watch.silent
        await (await q.ingress()).accept("after@away.example")
        assert q.queue.serving


@pytest.fixture
def servers() -> Iterator[Pair]:
    """A primary and a standby that follows it."""
    with pair() as made:
        migrations.migrate(made.url, migrations.load_all(("queue",)))
        made.wait_until_followed()
        yield made


async def test_connections_to_a_hung_server_are_broken_off_once_its_address_leads_to_another_ACC_09(
    servers: Pair,
) -> None:
    async with running_queue(servers.url) as q:
        ingress = await q.ingress()
        await ingress.accept("before@away.example")
        await servers.aside(servers.wait_until_followed)
        with servers.primary.frozen():
            (under_way,) = ingress.commit(commit_of("under-way@away.example"))
            await eventually(lambda: q.queue.database.watch.silent, NOTICED)
            await servers.aside(servers.standby.promote)
            servers.lead_to(servers.standby, cut=False)
            assert (await asyncio.wait_for(under_way, 60)).accepted
            await eventually(lambda: q.queue.serving, 60)
            await ingress.accept("after@away.example")
            rows = await servers.aside(servers.standby.sql, "SELECT address FROM queue.recipient")
        assert sorted(address for (address,) in rows) == [
            "after@away.example",
            "before@away.example",
            "under-way@away.example",
        ]


async def test_a_wait_for_a_synchronous_standby_is_told_and_is_no_hang_DUR_02(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pair(synchronous=True) as servers:
        migrations.migrate(servers.url, migrations.load_all(("queue",)))
        async with running_queue(servers.url) as q:
            ingress, watch = await q.ingress(), q.queue.database.watch
            await ingress.accept("before@away.example")
            await servers.aside(servers.standby.stop)
            (during,) = ingress.commit(commit_of("during@away.example"))
            await eventually(lambda: watch.waiting > 0 and metrics.WAITING_FOR_STANDBY._value.get() == watch.waiting)
            said = capsys.readouterr().out
            assert "commits wait for a synchronous standby" in said
            await asyncio.sleep(NOTICED)  # longer than a hang takes to be noticed
            assert not watch.silent
            assert not ingress.database_silent
            assert q.queue.serving
            assert not during.done()
            await servers.aside(servers.standby.start)
            assert (await asyncio.wait_for(during, 60)).accepted
            await eventually(lambda: watch.waiting == 0 and metrics.WAITING_FOR_STANDBY._value.get() == 0)
            assert "no commit waits for a standby any more" in capsys.readouterr().out
