"""kill -9 in the middle: nothing that was accepted is lost, and nothing is sent twice that need not be (promise 1)."""

import asyncio
import contextlib
import os
import signal
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import grpc
import pytest

from mailrail.kit import migrations
from mailrail.local.postgres import EmbeddedPostgres
from mailrail.pb.queue.v1 import enqueue_pb2, lease_pb2

from testkit.conditions import eventually
from testkit.ports import free_port
from testkit.processes import Program
from testkit.queue import FakeIngress, FakeOutbound, commit_of, message_id, result_of, running_queue, sql

pytestmark = pytest.mark.timeout(400)

TESTS = Path(__file__).resolve().parents[2]


class Ingress:
    """Sends messages over whatever stream stands and asks after those whose answer was lost (ACC-04)."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.accepted: set[str] = set()
        self.refused: set[str] = set()

    async def send(self, numbers: range) -> None:
        """Send one message for each number, ten at a time."""
        queue = list(numbers)
        while queue:
            channel = grpc.aio.insecure_channel(
                f"127.0.0.1:{self.port}", options=[("grpc.use_local_subchannel_pool", 1)]
            )
            stream = await FakeIngress(channel).open()
            try:
                while queue and stream.broken is None:
                    part, queue = queue[:10], queue[10:]
                    await self._ten(stream, part)
            finally:
                await stream.close()
                await channel.close()
            if stream.broken is not None:
                await asyncio.sleep(0.1)

    async def _ten(self, stream: FakeIngress, part: list[int]) -> None:
        names = [f"user{n}@d{n % 7}.example" for n in part]
        ids = [message_id() for _ in part]
        futures = stream.commit(*(commit_of(name) for name in names), ids=ids)
        for name, number, answer in zip(
            names, ids, await asyncio.gather(*futures, return_exceptions=True), strict=True
        ):
            if isinstance(answer, enqueue_pb2.EnqueueResult):
                (self.accepted if answer.accepted else self.refused).add(name)
            elif await self._outcome(number):
                self.accepted.add(name)
            else:
                self.refused.add(name)

    async def _outcome(self, number: bytes) -> bool:
        request = enqueue_pb2.GetOutcomeRequest(message_id=number)
        while True:
            options = [("grpc.use_local_subchannel_pool", 1)]
            async with grpc.aio.insecure_channel(f"127.0.0.1:{self.port}", options=options) as channel:
                with contextlib.suppress(grpc.aio.AioRpcError):
                    return (await FakeIngress(channel).stub.GetOutcome(request, timeout=10)).accepted
            await asyncio.sleep(0.1)


class Outbound:
    """Delivers at once and remembers its results until they are committed, over any number of streams (LSE-02).

    It keeps a stream to each replica; results whose replica stays away go to another, which can write them too.
    """

    def __init__(self, *ports: int) -> None:
        self.ports = ports
        self.sent: Counter[str] = Counter()
        self.results: dict[int, lease_pb2.DeliveryResult] = {}
        self._home: dict[int, int] = {}
        self._streams: dict[int, FakeOutbound] = {}

    def _deliver(self, port: int, delivery: lease_pb2.Delivery) -> lease_pb2.DeliveryResult:
        """The final dot."""
        for rcpt in delivery.recipients:
            self.sent[rcpt.address] += 1
        result = self.results[delivery.token] = result_of(delivery)
        self._home[delivery.token] = port
        return result

    async def run(self) -> None:
        """Take deliveries until cancelled."""
        async with asyncio.TaskGroup() as group:
            for port in self.ports:
                group.create_task(self._link(port))

    async def _link(self, port: int) -> None:
        while True:
            options = [("grpc.use_local_subchannel_pool", 1)]
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
                stream = FakeOutbound(channel, "outbound-1")
                stream.answer = lambda delivery: self._deliver(port, delivery)
                mine = {token: r for token, r in self.results.items() if self._home[token] == port}
                await stream.open(
                    working=[(token, [r.id for r in result.recipients]) for token, result in mine.items()]
                )
                if mine:
                    stream.send(results=list(mine.values()))
                self._streams[port] = stream
                try:
                    while stream._task is not None and not stream._task.done():
                        for token in stream.committed:
                            self.results.pop(token, None)
                        orphans = [r for t, r in self.results.items() if self._home[t] not in self._streams]
                        if orphans:
                            for result in orphans:
                                self._home[result.token] = port
                            stream.send(results=orphans)
                        await asyncio.sleep(0.05)
                finally:
                    self._streams.pop(port, None)
                    await stream.close()
            await asyncio.sleep(0.1)


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
                assert len(q.queue.agenda.ownership.epochs) == 256
            finally:
                delivering.cancel()
                await asyncio.gather(delivering, return_exceptions=True)
    finally:
        await asyncio.to_thread(program.stop)
