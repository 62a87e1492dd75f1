"""kill -9 in the middle: nothing that was accepted is lost, and nothing is sent twice that need not be (promise 1)."""

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from mailrail.core.route.site import SHARDS
from mailrail.kit import migrations
from mailrail.local.postgres.server import EmbeddedPostgres

from testkit.conditions import eventually
from testkit.ports import free_port
from testkit.processes import Program
from testkit.queue import running_queue, sql
from testkit.queue_traffic import Ingress, Outbound

pytestmark = pytest.mark.timeout(400)

TESTS = Path(__file__).resolve().parents[2]


async def everything_delivered(url: str, ingress: Ingress, outbound: Outbound) -> None:
    async def done() -> bool:
        return ingress.accepted <= set(outbound.sent) and not (await sql(url, "SELECT count(*) FROM recipient"))[0][0]

    condition: Callable[[], bool | Awaitable[bool | None] | None] = done
    await eventually(condition, within=90, what=lambda: f"{len(ingress.accepted - set(outbound.sent))} not delivered")
    again = {name: count for name, count in outbound.sent.items() if count > 1}
    assert again == {}, "outbound lives and remembers, so nothing may be sent twice"
    assert not ingress.refused & set(outbound.sent), "what was refused was not sent"


async def test_a_queue_killed_in_the_middle_loses_nothing_and_doubles_nothing(database: str) -> None:
    port = free_port()

    def start() -> Program:
        # Leases outlast a start on a busy machine: one that ran out before is no fault, and doubles what was delivered.
        command = [sys.executable, "-m", "testkit.queue_process", database, "queue-a", str(port), "60", "30"]
        program = Program(command, name="queue", env={"PYTHONPATH": str(TESTS)})
        program.wait_for_line("serving", within=60)
        return program

    ingress, outbound = Ingress(port), Outbound(port)
    program = await asyncio.to_thread(start)
    delivering = asyncio.create_task(outbound.run())
    try:
        sending = asyncio.create_task(ingress.send(range(600)))
        for count in (100, 300):
            await eventually(lambda n=count: len(ingress.accepted) >= n, within=60)  # type: ignore[misc]
            program.kill()
            await asyncio.to_thread(program.stop)
            program = await asyncio.to_thread(start)
        await asyncio.wait_for(sending, 120)
        await everything_delivered(database, ingress, outbound)
        assert len(ingress.accepted) > 500
    finally:
        delivering.cancel()
        await asyncio.gather(delivering, return_exceptions=True)
        program.stop()


async def test_a_postgres_killed_in_the_middle_loses_nothing_and_doubles_nothing(
    disposable_postgres: EmbeddedPostgres,
) -> None:
    server = disposable_postgres
    url = server.url("mailrail")
    migrations.migrate(url, migrations.load_all(("queue",)))
    async with running_queue(url) as q:
        ingress, outbound = Ingress(q.port), Outbound(q.port)
        delivering = asyncio.create_task(outbound.run())
        try:
            sending = asyncio.create_task(ingress.send(range(600)))
            for count in (100, 300):
                await eventually(lambda n=count: len(ingress.accepted) >= n, within=60)  # type: ignore[misc]
                pid = server.pid
                assert pid is not None
                os.kill(pid, signal.SIGKILL)
                await asyncio.to_thread(server.wait, 30)
                await asyncio.to_thread(server.restart)
            await asyncio.wait_for(sending, 120)
            await everything_delivered(url, ingress, outbound)
            assert len(ingress.accepted) == 600, "while Postgres is away for a moment, mail waits"
        finally:
            delivering.cancel()
            await asyncio.gather(delivering, return_exceptions=True)


async def test_one_of_two_replicas_killed_loses_nothing_and_the_other_takes_its_shards_over(database: str) -> None:
    port = free_port()
    command = [sys.executable, "-m", "testkit.queue_process", database, "queue-b", str(port), "12", "6"]
    program = Program(command, name="queue", env={"PYTHONPATH": str(TESTS)})
    try:
        await asyncio.to_thread(program.wait_for_line, "serving", 60)
        async with running_queue(database, node="queue-a", lease_seconds=12.0, handout_seconds=6.0) as q:
            await q.until("SELECT count(*) = 2 FROM (SELECT owner FROM shard GROUP BY owner HAVING count(*) = 128) x")
            ingress, outbound = Ingress(q.port), Outbound(q.port, port)
            delivering = asyncio.create_task(outbound.run())
            try:
                sending = asyncio.create_task(ingress.send(range(400)))
                await eventually(lambda: len(ingress.accepted) >= 150, within=60)
                program.kill()
                await asyncio.wait_for(sending, 120)
                assert len(ingress.accepted) == 400
                await everything_delivered(database, ingress, outbound)
                assert len(q.queue.worklist.ownership.epochs) == SHARDS
            finally:
                delivering.cancel()
                await asyncio.gather(delivering, return_exceptions=True)
    finally:
        await asyncio.to_thread(program.stop)
