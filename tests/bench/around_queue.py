"""`python -m bench.around_queue`: what a queue has around it, to measure the queue alone.

One process besides Postgres: a fresh embedded Postgres with the schema, a config service with one fixed revision, and
once it is told to (a number on its standard input) an ingress that commits so many messages and an outbound that takes
and answers each of them at once. Both work as the real ones do: one stream each, many messages a frame.

It prints `serving on CONFIG postgres PID URL`, and after each order `done SECONDS`.
"""

import argparse
import asyncio
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from bench.stand_in import GATEWAY, PREFIX, Config, content, known, revision
from mailrail.core.limits import CHUNK_SIZE, INLINE_LIMIT
from mailrail.core.revision.revision import encode
from mailrail.kit import migrations
from mailrail.kit.run import new_event_loop
from mailrail.local.postgres.server import EmbeddedPostgres
from mailrail.pb.config.v1 import config_pb2_grpc
from mailrail.pb.queue.v1 import enqueue_pb2, enqueue_pb2_grpc, lease_pb2, lease_pb2_grpc, types_pb2

CREDIT = 1000  # deliveries, as outbound gives
LINGER = 0.002  # seconds in which frames gather, as ingress and outbound let them
FETCHES = 20


class Ingress:
    """Commits messages on one stream, so many at a time: each of its sessions waits for its answer (250)."""

    def __init__(self, stub: "enqueue_pb2_grpc.EnqueueServiceAsyncStub", sessions: int, body: bytes) -> None:
        self._stub = stub
        self._sessions = sessions
        self._body = body
        self._out: asyncio.Queue[enqueue_pb2.EnqueueRequest] = asyncio.Queue()
        self._free = sessions
        self._wake = asyncio.Event()

    async def listen(self) -> None:
        """Read answers for ever."""

        async def requests() -> AsyncIterator[enqueue_pb2.EnqueueRequest]:
            while True:
                yield await self._out.get()

        async for response in self._stub.Enqueue(requests()):
            for result in response.results:
                if not result.accepted:
                    raise RuntimeError(f"the queue refused a message: {result.refusal}")
            self._free += len(response.results)
            self._wake.set()
        raise RuntimeError("the queue ended the Enqueue stream")

    async def send(self, count: int) -> None:
        """Commit so many messages."""
        while count:
            while not self._free:
                self._wake.clear()
                await self._wake.wait()
            await asyncio.sleep(LINGER)
            now = min(self._free, count)
            self._free -= now
            count -= now
            for _ in range(now):
                for request in self._message():
                    self._out.put_nowait(request)

    async def send_together(self, count: int) -> None:
        """Commit a message of so many sessions, all in one gRPC message, and wait for the answers."""
        self._free = self._sessions - count
        together = enqueue_pb2.EnqueueRequest()
        for _ in range(count):
            for request in self._message():
                together.MergeFrom(request)
        self._out.put_nowait(together)
        while self._free < self._sessions:
            self._wake.clear()
            await self._wake.wait()

    def _message(self) -> list[enqueue_pb2.EnqueueRequest]:
        number = uuid.uuid4().bytes
        request = enqueue_pb2.EnqueueRequest()
        inline = len(self._body) <= INLINE_LIMIT
        if not inline:
            for start in range(0, len(self._body), CHUNK_SIZE):
                chunk = request.frames.add(message_id=number)
                chunk.chunk.data = self._body[start : start + CHUNK_SIZE]
        commit = request.frames.add(message_id=number).commit
        commit.prefix = PREFIX
        commit.size = len(PREFIX) + len(self._body)
        if inline:
            commit.body = self._body
        envelope = commit.envelope
        envelope.mail_from, envelope.origin = "source@source.test", types_pb2.ORIGIN_MX
        envelope.gateway.kind, envelope.gateway.namespace, envelope.gateway.name = (
            GATEWAY.kind,
            GATEWAY.namespace,
            GATEWAY.name,
        )
        envelope.received.GetCurrentTime()
        envelope.config_revision = 1
        commit.recipients.add(address="sink@sink.test", rcpt_to="sink@sink.test")
        return [request]


class Outbound:
    """Takes every delivery, reads its content, says that it was relayed, and counts what is committed."""

    def __init__(self, stub: "lease_pb2_grpc.LeaseServiceAsyncStub") -> None:
        self._stub = stub
        self._results: list[lease_pb2.DeliveryResult] = []
        self._reading = asyncio.Semaphore(FETCHES)
        self._tasks: set[asyncio.Task[None]] = set()
        self.committed = 0
        self.changed = asyncio.Event()

    async def listen(self) -> None:
        """Work for ever."""
        ready = asyncio.Event()
        self._ready = ready

        async def requests() -> AsyncIterator[lease_pb2.LeaseRequest]:
            yield lease_pb2.LeaseRequest(hello=lease_pb2.Hello(process="bench", config_revision=1), credit=CREDIT)
            while True:
                await ready.wait()
                await asyncio.sleep(LINGER)
                ready.clear()
                results, self._results = self._results, []
                yield lease_pb2.LeaseRequest(results=results, credit=len(results))

        async for response in self._stub.Lease(requests()):
            for delivery in response.deliveries:
                if delivery.HasField("body"):
                    self._answer(delivery)
                else:
                    task = asyncio.create_task(self._fetch(delivery))
                    self._tasks.add(task)
                    task.add_done_callback(self._tasks.discard)
            if response.committed:
                self.committed += len(response.committed)
                self.changed.set()
        raise RuntimeError("the queue ended the Lease stream")

    async def _fetch(self, delivery: lease_pb2.Delivery) -> None:
        async with self._reading:
            wanted = lease_pb2.FetchContentRequest(token=delivery.token, message_id=delivery.message_id)
            async for _ in self._stub.FetchContent(wanted):
                pass
        self._answer(delivery)

    def _answer(self, delivery: lease_pb2.Delivery) -> None:
        result = known(lease_pb2.DeliveryResult, token=delivery.token, message_id=delivery.message_id, done=True)
        for recipient in delivery.recipients:
            attempt = result.recipients.add(id=recipient.id).attempt
            attempt.outcome = types_pb2.OUTCOME_RELAYED
            attempt.dialled = True
            attempt.reply.code, attempt.reply.enhanced, attempt.reply.remote = 250, "2.0.0", True
            attempt.reply.lines.append("ok")
        self._results.append(result)
        self._ready.set()


async def work(queue: str, sessions: int, size: int, in_step: bool) -> None:
    """Do as standard input orders, until it closes."""
    orders = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    config = grpc.aio.server()
    body = encode(revision(0, ("127.0.0.1", 25)))
    config_pb2_grpc.add_ConfigServiceServicer_to_server(Config(body), config)  # type: ignore[abstract]
    port = config.add_insecure_port("127.0.0.1:0")
    await config.start()
    with tempfile.TemporaryDirectory(prefix="mailrail-bench-") as name:
        folder = Path(name)
        folder.chmod(0o711)  # as root the server runs as a user of its own, which must pass through
        with EmbeddedPostgres(folder / "server") as postgres:
            await asyncio.to_thread(migrations.migrate, postgres.url())
            print(f"serving on 127.0.0.1:{port} postgres {postgres.pid} {postgres.url()}", flush=True)
            options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
            async with grpc.aio.insecure_channel(queue, options=options) as channel:
                first = await orders.readline()
                await _serving(channel)
                ingress = Ingress(enqueue_pb2_grpc.EnqueueServiceStub(channel), sessions, content(size))
                outbound = Outbound(lease_pb2_grpc.LeaseServiceStub(channel))
                ends = [asyncio.create_task(ingress.listen()), asyncio.create_task(outbound.listen())]
                try:
                    line = first
                    while line:
                        taken = await _order(int(line), sessions if in_step else 0, ingress, outbound, ends)
                        print(f"done {taken:.6f}", flush=True)
                        line = await orders.readline()
                finally:
                    for end in ends:
                        end.cancel()
                    await asyncio.gather(*ends, return_exceptions=True)
    await config.stop(0)


async def _serving(channel: grpc.aio.Channel) -> None:
    """Wait until the queue says that it takes mail."""
    health = health_pb2_grpc.HealthStub(channel)
    service = enqueue_pb2.DESCRIPTOR.services_by_name["EnqueueService"].full_name
    async with asyncio.timeout(60):
        while True:
            answer = await health.Check(health_pb2.HealthCheckRequest(service=service), wait_for_ready=True)
            if answer.status == health_pb2.HealthCheckResponse.SERVING:
                return
            await asyncio.sleep(0.05)


async def _order(
    count: int, rounds_of: int, ingress: Ingress, outbound: Outbound, ends: list[asyncio.Task[None]]
) -> float:
    """Seconds from the first commit until the result of the last delivery is committed."""
    wanted = outbound.committed + count
    start = time.monotonic()

    async def done() -> None:
        if rounds_of:
            for first in range(0, count, rounds_of):
                await ingress.send_together(min(rounds_of, count - first))
        else:
            await ingress.send(count)
        while outbound.committed < wanted:
            outbound.changed.clear()
            await outbound.changed.wait()

    running = asyncio.create_task(done())
    await asyncio.wait((running, *ends), return_when=asyncio.FIRST_COMPLETED)
    taken = time.monotonic() - start
    if not running.done():
        running.cancel()
        for end in ends:
            if end.done():
                end.result()
    running.result()
    return taken


def main() -> None:
    """The command line: where the queue will be, how many sessions commit, how large messages are."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--queue", required=True)
    parser.add_argument("--sessions", type=int, default=40)
    parser.add_argument("--size", type=int, default=2048)
    parser.add_argument("--in-step", action="store_true", help="all sessions commit at once, and then wait for the end")
    chosen = parser.parse_args()
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(work(chosen.queue, chosen.sessions, chosen.size, chosen.in_step))


if __name__ == "__main__":
    main()
