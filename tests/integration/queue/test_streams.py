"""Streams whose callers die: however the end comes, the queue lets go of them."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from mailrail.core.limits import CHUNK_SIZE
from mailrail.pb.queue.v1 import enqueue_pb2, lease_pb2
from mailrail_queue.rpc.enqueue import EnqueueServicer
from mailrail_queue.rpc.lease import LeaseServicer

from testkit.conditions import eventually
from testkit.queue import message_id, running_queue

TURNS = range(8)
"""Turns of the event loop between what the reader sees and what gRPC does to the handler, when a caller dies."""


async def die(
    handler: Callable[[AsyncIterator[Any], Any], AsyncIterator[Any]],
    begun: Callable[[], bool | Awaitable[bool | None] | None],
    turns: int,
    *said: Any,
) -> None:
    """Be a caller that says something, is heard (`begun`) and dies."""
    ended = asyncio.Event()

    async def requests() -> AsyncIterator[Any]:
        for one in said:
            yield one
        await ended.wait()

    async def drive() -> None:
        async for _ in handler(requests(), None):
            pass

    task = asyncio.create_task(drive())
    await eventually(begun)
    ended.set()
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize("turns", TURNS)
async def test_an_outbound_that_dies_is_handed_nothing_any_more_LSE_04(database: str, turns: int) -> None:
    async with running_queue(database) as q:
        hello = lease_pb2.LeaseRequest(hello=lease_pb2.Hello(process="mortal"), credit=10)
        streams = q.queue.dispatcher.streams
        await die(LeaseServicer(q.queue).Lease, lambda: "mortal" in streams, turns, hello)
        assert "mortal" not in streams


@pytest.mark.parametrize("turns", TURNS)
async def test_a_body_whose_ingress_dies_is_forgotten_ACC_05(database: str, turns: int) -> None:
    async with running_queue(database) as q:
        chunk = enqueue_pb2.BodyChunk(data=b"x" * CHUNK_SIZE)
        frame = enqueue_pb2.EnqueueFrame(message_id=message_id(), chunk=chunk)
        request = enqueue_pb2.EnqueueRequest(frames=[frame])
        await die(EnqueueServicer(q.queue).Enqueue, lambda: q.one("SELECT count(*) = 1 FROM chunk"), turns, request)
        await q.until("SELECT count(*) = 0 FROM chunk")
        assert not q.queue.arrivals
