"""gRPC of mail that goes out: the Lease streams of outbound, and content that is too large for them; no decisions."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Final

import grpc

from mailrail.core.delivery.shares import StreamCredit
from mailrail.core.limits import CHUNK_SIZE
from mailrail.kit import log
from mailrail.pb.queue.v1 import lease_pb2, lease_pb2_grpc
from mailrail_queue import metrics
from mailrail_queue.app import QueueProcess
from mailrail_queue.delivery.stream import OutboundStream
from mailrail_queue.rpc.answering import Context
from mailrail_queue.rpc.streaming import pulse
from mailrail_queue.store import content as content_store
from mailrail_queue.store import corrupt as corrupt_store
from mailrail_queue.store.connection import DATABASE_FAILURE
from mailrail_queue.store.rows import CONTENT_INCOMPLETE

_ROWS: Final = 8
"""Rows of a large body that one statement reads: a statement for each row costs twice as much CPU."""
_ROWS_AHEAD: Final = 64
"""Rows that all calls of FetchContent may have read and not handed on, besides one each: 16 MiB, however many servers
take their time."""


class ReadAhead:
    """How many rows of large bodies may be read at once."""

    def __init__(self) -> None:
        self._taken = 0

    @contextmanager
    def rows(self, wanted: int) -> Iterator[int]:
        """Some of `wanted` rows, one at least, to be read and handed on while the context lasts."""
        more = max(0, min(wanted, _ROWS, 1 + _ROWS_AHEAD - self._taken) - 1)
        self._taken += more
        try:
            yield 1 + more
        finally:
            self._taken -= more


class LeaseServicer(lease_pb2_grpc.LeaseServiceServicer):
    """Mail out."""

    def __init__(self, queue: QueueProcess) -> None:
        self._queue = queue
        self._contents = [queue.database.lane("content 1"), queue.database.lane("content 2")]
        self._turn = 0
        self._ahead = ReadAhead()
        self._log = log.get_logger()

    async def Lease(
        self, requests: AsyncIterator[lease_pb2.LeaseRequest], context: Context
    ) -> AsyncIterator[lease_pb2.LeaseResponse]:
        queue = self._queue
        if not queue.ready or queue.stopping.is_set():
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the queue is not ready")
        first = await anext(aiter(requests), None)
        if first is None or not first.HasField("hello") or not first.hello.process:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the first request of a Lease stream says Hello")
            return
        octets = 0 if first.HasField("credit_octets") else None  # granted with the deliveries, once it is connected
        stream = OutboundStream(first.hello.process, first.clock, StreamCredit(octets=octets))
        try:
            await queue.leases.welcome(stream, first.hello)
        except DATABASE_FAILURE as error:  # outbound connects again; its deliveries go on meanwhile
            await context.abort(grpc.StatusCode.UNAVAILABLE, f"the database is unreachable: {error}"[:200])
        queue.leases.connect(stream)
        reader = asyncio.create_task(self._read(stream, first, requests))
        pulse_task = asyncio.create_task(pulse(stream.ready))
        leaving = False
        try:  # at once: a process that goes before it heard of us must not count as there
            yield lease_pb2.LeaseResponse(counts_octets=True)  # so that an idle outbound knows that its stream stands
            while not stream.closing and not queue.stopped.is_set():
                for response in stream.take():
                    yield response
                if queue.stopping.is_set() and not leaving:
                    leaving = True
                    stream.go_away()
                    queue.leases.disconnect(stream)
                await stream.ready.wait()
            for response in stream.take():
                yield response
        finally:  # without await (kit.rpc)
            reader.cancel()
            pulse_task.cancel()
            queue.leases.disconnect(stream)

    async def _read(
        self, stream: OutboundStream, first: lease_pb2.LeaseRequest, requests: AsyncIterator[lease_pb2.LeaseRequest]
    ) -> None:
        try:
            self._take(stream, first)
            async for request in requests:
                self._take(stream, request)
        except asyncio.CancelledError:
            raise
        except Exception:
            self._log.exception("cannot read a request of outbound", outbound=stream.node)
        finally:
            stream.close()

    def _take(self, stream: OutboundStream, request: lease_pb2.LeaseRequest) -> None:
        leases = self._queue.leases
        if request.clock:
            stream.clock = request.clock
        if request.credit or request.credit_octets:
            octets = request.credit_octets if request.HasField("credit_octets") else None
            leases.add_credit(stream, request.credit, octets)
        if request.resolved:
            leases.resolve(stream, request.resolved)
        if request.results:
            leases.take_results(stream, request.results)
        if request.alive:
            leases.renew(stream, request.alive)
        if request.go_away:
            leases.disconnect(stream)
        leases.pump()

    async def FetchContent(
        self, request: lease_pb2.FetchContentRequest, context: Context
    ) -> AsyncIterator[lease_pb2.FetchContentResponse]:
        message_id = request.message_id
        if len(message_id) != 16:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "message_id takes 16 octets")
        lane = self._contents[self._turn % len(self._contents)]
        self._turn += 1
        try:
            async with lane.use() as connection:
                leased = await content_store.is_leased(connection, message_id, request.token)
                found = await content_store.piece(connection, message_id, request.offset, CHUNK_SIZE)
            if found is None or not leased:
                await context.abort(grpc.StatusCode.NOT_FOUND, "no such message under this lease")
                return
            chunks, part = found
            offset = request.offset
            while part:  # of a body in the message's row
                yield lease_pb2.FetchContentResponse(data=part)
                offset += len(part)
                async with lane.use() as connection:
                    found = await content_store.piece(connection, message_id, offset, CHUNK_SIZE)
                part = found[1] if found is not None else None  # None: swept; outbound sees that it ends early
            if part is not None:
                return
            number, skip = divmod(offset, CHUNK_SIZE)
            while number < chunks:
                with self._ahead.rows(chunks - number) as rows:
                    async with lane.use() as connection:
                        parts = deque(await content_store.chunks(connection, message_id, number, rows))
                    if not parts:
                        await self._hold_corrupt(message_id)
                        await context.abort(grpc.StatusCode.DATA_LOSS, CONTENT_INCOMPLETE)
                    number += len(parts)
                    while parts:
                        data = parts.popleft()[skip:]
                        skip = 0
                        if data:
                            yield lease_pb2.FetchContentResponse(data=data)
        except DATABASE_FAILURE as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, f"the database is unreachable: {error}"[:200])

    async def _hold_corrupt(self, message_id: bytes) -> None:
        async with self._contents[0].use() as connection:
            held = await corrupt_store.hold_corrupt_message(connection, message_id, CONTENT_INCOMPLETE)
        metrics.CORRUPT.inc(len(held))
        for number in held:
            self._log.error("corrupt, on hold", recipient=number, message=message_id.hex(), reason=CONTENT_INCOMPLETE)
