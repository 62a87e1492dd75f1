"""A queue in this process, on a real Postgres and real gRPC, with what stands on either side of it: an ingress that
commits mail and an outbound that takes deliveries. Both ends are driven by the test.
"""

import asyncio
import contextlib
import itertools
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import grpc
import psycopg

from mailrail.core import ids
from mailrail.core.revision import revision as rev
from mailrail.kit import rpc
from mailrail.kit.config_client import Configuration
from mailrail.pb.queue.v1 import enqueue_pb2, enqueue_pb2_grpc, lease_pb2, lease_pb2_grpc, types_pb2
from mailrail_queue.__main__ import assemble
from mailrail_queue.app import QueueProcess
from mailrail_queue.settings import QueueSettings

from testkit.conditions import eventually

GATEWAY = rev.ObjectRef("MailGateway", "default", "main")
ACCOUNT = rev.ObjectRef("MailAccount", "default", "alice")
DOMAIN = rev.ObjectRef("MailDomain", "default", "home")
RELAY = rev.ObjectRef("MailTransport", "default", "relay")


def a_revision(
    *,
    transports: Iterable[rev.Transport] = (),
    rules: Iterable[rev.Rule] = (),
    retry: rev.RetrySchedule | None = None,
    limits: rev.AccountLimits | None = None,
) -> rev.Revision:
    """One gateway, one domain with a mailbox account, and these transports and global rules."""
    gateway = rev.Gateway(GATEWAY, "mx.home.example", (), ACCOUNT, retry=retry or rev.RetrySchedule())
    account = rev.Account(
        ACCOUNT,
        "uid-alice",
        DOMAIN,
        "alice@home.example",
        ("alice@home.example",),
        limits=limits or rev.AccountLimits(),
    )
    return rev.Revision(
        gateways=(gateway,),
        domains=(rev.Domain(DOMAIN, "home.example", rev.DomainDelivery.MAILBOX),),
        accounts=(account,),
        transports=tuple(transports),
        global_routes=(rev.RouteLevel(GATEWAY, tuple(rules)),),
    )


def relay(**limits: Any) -> rev.Transport:
    """A smarthost."""
    return rev.Transport(RELAY, rev.TransportKind.SMTP, host="127.0.0.1", port=25, limits=rev.TransportLimits(**limits))


def rule_to(transport: rev.ObjectRef | None, *to: str, minimum_attempts: int = 0, missing: bool = False) -> rev.Rule:
    """A global rule."""
    route = rev.ObjectRef("MailRoute", "default", "global")
    match = rev.Match(to_domains=to, minimum_attempts=minimum_attempts)
    return rev.Rule(route, 0, "0", (match,), transport, missing)


def message_id() -> bytes:
    """A fresh id, as ingress makes it."""
    return ids.message_id(time.time(), os.urandom(10))


def commit_of(
    *to: str | types_pb2.EnvelopeRecipient,
    body: bytes | None = b"Subject: hello\r\n\r\nhello\r\n",
    prefix: bytes = b"Received: by test\r\n",
    mail_from: str = "sender@away.example",
    submitted: bool = False,
    **envelope: Any,
) -> enqueue_pb2.Commit:
    """What ingress says at the end of a message."""
    commit = enqueue_pb2.Commit(prefix=prefix)
    if body is not None:
        commit.body = body
        commit.size = len(prefix) + len(body)
    env = commit.envelope
    env.CopyFrom(types_pb2.Envelope(**{"mail_from": mail_from, "origin": types_pb2.ORIGIN_MX, **envelope}))
    env.gateway.CopyFrom(types_pb2.ObjectRef(kind=GATEWAY.kind, namespace=GATEWAY.namespace, name=GATEWAY.name))
    env.received.GetCurrentTime()
    if submitted:
        env.origin = types_pb2.ORIGIN_SUBMISSION
        env.account.CopyFrom(types_pb2.ObjectRef(kind=ACCOUNT.kind, namespace=ACCOUNT.namespace, name=ACCOUNT.name))
    for address in to:
        rcpt = (
            address
            if isinstance(address, types_pb2.EnvelopeRecipient)
            else types_pb2.EnvelopeRecipient(address=address, rcpt_to=address)
        )
        if rcpt.address.endswith("@home.example") and not rcpt.HasField("domain"):
            rcpt.domain.CopyFrom(types_pb2.ObjectRef(kind=DOMAIN.kind, namespace=DOMAIN.namespace, name=DOMAIN.name))
            rcpt.mailbox_account.CopyFrom(env.account if submitted else _account())
            rcpt.mailbox = "Inbox"
        commit.recipients.append(rcpt)
    return commit


def _account() -> types_pb2.ObjectRef:
    return types_pb2.ObjectRef(kind=ACCOUNT.kind, namespace=ACCOUNT.namespace, name=ACCOUNT.name)


class FakeIngress:
    """One Enqueue stream."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.stub: enqueue_pb2_grpc.EnqueueServiceAsyncStub = enqueue_pb2_grpc.EnqueueServiceStub(channel)
        self.credit = 0
        self.go_away = False
        self.database_silent = False
        self.broken: grpc.aio.AioRpcError | None = None
        self._out: asyncio.Queue[enqueue_pb2.EnqueueRequest | None] = asyncio.Queue()
        self._answers: dict[bytes, asyncio.Future[enqueue_pb2.EnqueueResult]] = {}
        self._task: asyncio.Task[None] | None = None

    async def open(self) -> "FakeIngress":
        """Open the stream and wait for the first credit."""
        started = asyncio.Event()

        async def frames() -> AsyncIterator[enqueue_pb2.EnqueueRequest]:
            while (request := await self._out.get()) is not None:
                yield request

        async def read() -> None:
            try:
                async for response in self.stub.Enqueue(frames()):
                    self.credit += response.credit
                    self.go_away = self.go_away or response.go_away
                    self.database_silent = response.database_silent
                    started.set()
                    for result in response.results:
                        future = self._answers.pop(result.message_id, None)
                        if future is not None and not future.done():
                            future.set_result(result)
            except grpc.aio.AioRpcError as error:
                self.broken = error
                for future in self._answers.values():
                    if not future.done():
                        future.set_exception(error)
                started.set()

        self._task = asyncio.create_task(read())
        await asyncio.wait_for(started.wait(), 60)
        return self

    def send(self, *frames: enqueue_pb2.EnqueueFrame) -> None:
        """Send frames as one batch."""
        for frame in frames:
            if frame.WhichOneof("step") == "chunk":
                self.credit -= len(frame.chunk.data)
            elif frame.WhichOneof("step") == "commit":
                self.credit -= len(frame.commit.prefix) + len(frame.commit.body)
        self._out.put_nowait(enqueue_pb2.EnqueueRequest(frames=frames))

    def commit(
        self, *commits: enqueue_pb2.Commit, ids: Iterable[bytes] = ()
    ) -> list[asyncio.Future[enqueue_pb2.EnqueueResult]]:
        """Commit messages in one batch of frames; a future each."""
        given = list(ids) or [message_id() for _ in commits]
        futures = []
        for number in given:
            future = asyncio.get_running_loop().create_future()
            self._answers[number] = future
            futures.append(future)
        self.send(*(enqueue_pb2.EnqueueFrame(message_id=i, commit=c) for i, c in zip(given, commits, strict=True)))
        return futures

    async def accept(self, *to: str, id: bytes = b"", **how: Any) -> bytes:
        """Commit one message and see it accepted; its id."""
        number = id or message_id()
        (future,) = self.commit(commit_of(*to, **how), ids=[number])
        result = await asyncio.wait_for(future, 60)
        assert result.accepted, result.refusal
        return number

    def chunk(self, number: bytes, data: bytes, size: int = 0) -> None:
        """Send a part of a large body."""
        self.send(enqueue_pb2.EnqueueFrame(message_id=number, chunk=enqueue_pb2.BodyChunk(data=data, size=size)))

    def finish(self) -> None:
        """Send nothing more, as one does that was asked to go away."""
        self._out.put_nowait(None)

    async def close(self) -> None:
        """End the stream."""
        self.finish()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)


class FakeOutbound:
    """One Lease stream. Deliveries gather in `deliveries`; the test answers them."""

    def __init__(self, channel: grpc.aio.Channel, node: str = "outbound-1") -> None:
        self.node = node
        self.stub: lease_pb2_grpc.LeaseServiceAsyncStub = lease_pb2_grpc.LeaseServiceStub(channel)
        self.deliveries: list[lease_pb2.Delivery] = []
        self.committed: set[int] = set()
        self.cancelled: set[int] = set()
        self.counts_octets = False
        self.renewals: dict[int, float] = {}
        self.history: int | None = None
        self.clocks: list[float] = []
        """What came back of the clock that our requests told."""
        self.go_away = False
        self.answer: Callable[[lease_pb2.Delivery], lease_pb2.DeliveryResult | None] | None = None
        """Answers each delivery as it comes, when set."""
        self._out: asyncio.Queue[lease_pb2.LeaseRequest | None] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None

    async def open(
        self,
        credit: int = 1000,
        in_progress: Iterable[tuple[int, Iterable[int]]] = (),
        revision: int = 1,
        octets: int | None = None,
    ) -> "FakeOutbound":
        """Open the stream, say Hello, give credit. `octets` None: as a release that does not speak of them."""
        hello = lease_pb2.Hello(process=self.node, config_revision=revision)
        for token, numbers in in_progress:
            hello.in_progress.add(token=token, recipient_ids=numbers)
        self._out.put_nowait(lease_pb2.LeaseRequest(hello=hello, credit=credit, credit_octets=octets))

        async def requests() -> AsyncIterator[lease_pb2.LeaseRequest]:
            while (request := await self._out.get()) is not None:
                yield request

        async def read() -> None:
            with contextlib.suppress(grpc.aio.AioRpcError):
                async for response in self.stub.Lease(requests()):
                    self.clocks.append(response.clock)
                    self.committed.update(response.committed)
                    self.cancelled.update(response.cancel)
                    self.go_away = self.go_away or response.go_away
                    self.counts_octets = self.counts_octets or response.counts_octets
                    if response.HasField("history"):
                        self.history = response.history
                    self.renewals |= {r.token: r.remaining_seconds for r in response.renewals}
                    self.deliveries.extend(response.deliveries)
                    if self.answer is not None:
                        results = [r for d in response.deliveries if (r := self.answer(d)) is not None]
                        if results:
                            self.send(results=results, credit=len(results))

        self._task = asyncio.create_task(read())
        return self

    def send(self, **request: Any) -> None:
        """Send a request."""
        self._out.put_nowait(lease_pb2.LeaseRequest(**request))

    @property
    def ended(self) -> bool:
        """Whether the stream is over, whoever ended it."""
        return self._task is not None and self._task.done()

    def has(self, count: int) -> Callable[[], bool]:
        """The condition that so many deliveries came."""
        return lambda: len(self.deliveries) == count

    def finish(self, *deliveries: lease_pb2.Delivery, **result: Any) -> None:
        """Answer deliveries alike."""
        self.send(results=[result_of(d, **result) for d in deliveries], credit=len(deliveries))

    async def close(self) -> None:
        """End the stream as a process that dies would."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._out.put_nowait(None)


def result_of(
    delivery: lease_pb2.Delivery,
    outcome: types_pb2.Outcome.ValueType = types_pb2.OUTCOME_RELAYED,
    *,
    code: int = 0,
    enhanced: str = "",
    text: str = "said the server",
    site_failure: bool = False,
    transport_failure: bool = False,
    mx_hosts: Iterable[str] = (),
) -> lease_pb2.DeliveryResult:
    """The same result for all recipients of a delivery."""
    codes = {types_pb2.OUTCOME_DEFERRED: (451, "4.2.0"), types_pb2.OUTCOME_FAILED: (550, "5.1.1")}
    default = codes.get(outcome, (250, "2.0.0"))
    result = lease_pb2.DeliveryResult(
        token=delivery.token, message_id=delivery.message_id, done=True, mx_hosts=mx_hosts
    )
    for rcpt in delivery.recipients:
        found = result.recipients.add(id=rcpt.id, site_failure=site_failure, transport_failure=transport_failure)
        found.attempt.outcome = outcome
        found.attempt.dialled = outcome != types_pb2.OUTCOME_NOT_ATTEMPTED
        found.attempt.reply.code = code or default[0]
        found.attempt.reply.enhanced = enhanced or default[1]
        found.attempt.reply.lines.append(text)
        found.attempt.reply.remote = True
    return result


@dataclass
class RunningQueue:
    """A queue of this process and a way to its database."""

    queue: QueueProcess
    port: int
    url: str
    channel: grpc.aio.Channel
    ends: list[FakeIngress | FakeOutbound] = field(default_factory=list)

    async def ingress(self) -> FakeIngress:
        """A new Enqueue stream."""
        end = await FakeIngress(self.channel).open()
        self.ends.append(end)
        return end

    async def outbound(self, node: str = "outbound-1", **how: Any) -> FakeOutbound:
        """A new Lease stream. The queue knows of it, or has refused it."""
        end = await FakeOutbound(self.channel, node).open(**how)
        self.ends.append(end)
        await eventually(lambda: end.ended or node in self.queue.dispatcher.streams)
        return end

    def fill_windows(self, *domains: str) -> None:
        """Nothing more may start at these domains: what is leased for them waits in memory."""
        for domain in domains:
            window = self.queue.dispatcher.site_of_key(f"domain:{domain}", self.queue.router()).window
            window.in_flight = int(window.limit)

    def empty_windows(self) -> None:
        """Undo `fill_windows`."""
        for site in self.queue.dispatcher.sites.values():
            site.window.in_flight = 0
        self.queue.dispatcher.wake_all()
        self.queue.dispatcher.pump()

    def configure(self, revision: rev.Revision) -> None:
        """Swap in a revision, as the configuration client would."""
        configure(self.queue, revision)

    async def sql(self, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """Look into the database."""
        return await sql(self.url, query, *parameters)

    async def one(self, query: str, *parameters: Any) -> Any:
        """The one value that a query gives."""
        rows = await self.sql(query, *parameters)
        return rows[0][0] if rows else None

    async def until(self, query: str, *parameters: Any, within: float = 30.0) -> None:
        """Wait until the query's first value is true."""
        seen: list[Any] = []

        async def true() -> bool:
            seen[:] = [await self.one(query, *parameters)]
            return bool(seen[0])

        condition: Callable[[], bool | Awaitable[bool | None] | None] = true
        await eventually(condition, within, what=lambda: query)


_numbers = itertools.count(1)


def configure(queue: QueueProcess, revision: rev.Revision) -> None:
    """Swap a revision in."""
    number = next(_numbers)
    queue.configure(Configuration(number, rev.checksum(rev.encode(revision)), revision, {}))


async def sql(url: str, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
    """Run a query on a connection of its own."""
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        await connection.execute("SET search_path = queue")
        cursor = await connection.execute(query.encode(), parameters or None)
        return list(await cursor.fetchall()) if cursor.description else []


QUICK = QueueSettings(
    plaintext=True,
    look_seconds=0.1,
    heartbeat_seconds=0.3,
    dead_seconds=2.0,
    sweep_seconds=0.3,
    goodbye_seconds=0.3,
    upkeep_seconds=0.5,
    stop_grace=0.2,
)


@contextlib.asynccontextmanager
async def running_queue(
    url: str, revision: rev.Revision | None = None, *, node: str = "", **changes: Any
) -> AsyncIterator[RunningQueue]:
    """A queue that serves while the context lasts. `changes`: fields of its settings."""
    settings = replace(QUICK, database_url=url, node_id=node or f"queue-{next(_numbers)}", **changes)
    queue, services = assemble(settings)
    configure(queue, revision or a_revision())
    await queue.prepare()
    async with rpc.serve(settings, services) as server:
        queue.shards.address = f"127.0.0.1:{server.port}"
        await queue.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            running = RunningQueue(queue, server.port, url, channel)
            try:
                yield running
            finally:
                for end in running.ends:
                    await end.close()
                await queue.stop(settings.stop_grace)
