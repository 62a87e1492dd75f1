"""Traffic through a queue that is killed or cut off, or whose Postgres is.

An ingress and an outbound that keep at it over any number of streams, as the real ones do, and remember of each
recipient what was said and sent.
"""

import asyncio
import contextlib

import grpc

from mailrail.pb.queue.v1 import enqueue_pb2, lease_pb2

from testkit.failover import Ledger
from testkit.queue import FakeIngress, FakeOutbound, commit_of, message_id, result_of


class Ingress:
    """Sends messages over whatever stream stands and asks after those whose answer was lost (ACC-04)."""

    def __init__(self, port: int, ledger: Ledger | None = None) -> None:
        self.port = port
        self.ledger = ledger or Ledger()
        self.accepted = self.ledger.accepted
        self.refused = self.ledger.refused

    async def send(self, numbers: range, pace: float = 0.0) -> None:
        """Send one message for each number, ten at a time, with `pace` seconds after each ten."""
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
                    await asyncio.sleep(pace)
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

    def __init__(self, *ports: int, ledger: Ledger | None = None) -> None:
        self.ports = ports
        self.sent = (ledger or Ledger()).sent
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
                    in_progress=[(token, [r.id for r in result.recipients]) for token, result in mine.items()]
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
