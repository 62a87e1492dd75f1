"""Dmarc's way to the queue: one report at a time, over an Enqueue stream of its own.

A report goes under an id that is stored before. Where the answer is lost the queue is asked what became of that id, and
by the same call bars it from being stored later (ACC-04).
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import grpc

from mailrail.core.limits import CHUNK_SIZE, INLINE_LIMIT
from mailrail.kit import rpc
from mailrail.kit.settings import BadSettings
from mailrail.pb.queue.v1 import enqueue_pb2, enqueue_pb2_grpc
from mailrail_dmarc.settings import DmarcSettings

_FIRST_WITHIN: Final = 5.0
_ANSWERS_WITHIN: Final = 60.0
"""Seconds that a commit is waited for, and in which it may be stored."""


class QueueUnavailable(Exception):
    """The queue does not answer, or nobody knows what became of a message; the text says why."""


@dataclass(frozen=True, slots=True)
class SubmitAnswer:
    """What the queue said."""

    accepted: bool
    permanent: bool = False
    """It is refused for good."""
    text: str = ""


@dataclass(frozen=True, slots=True)
class OutgoingMail:
    """A message for the queue."""

    commit: enqueue_pb2.Commit
    """Without its body."""
    content: bytes


class QueueClient:
    """The queue as dmarc sees it."""

    def __init__(self, settings: DmarcSettings) -> None:
        self._settings = settings

    @asynccontextmanager
    async def _stub(self) -> AsyncIterator["enqueue_pb2_grpc.EnqueueServiceAsyncStub"]:
        try:
            async with rpc.channel(self._settings, self._settings.queue_target, "queue") as channel:
                yield enqueue_pb2_grpc.EnqueueServiceStub(channel)
        except grpc.aio.AioRpcError as error:
            raise QueueUnavailable(f"{error.code().name}: {error.details() or ''}"[:300]) from error
        except (grpc.aio.UsageError, asyncio.InvalidStateError, TimeoutError, OSError, BadSettings) as error:
            raise QueueUnavailable(str(error) or type(error).__name__) from error

    async def find(self, message_id: bytes) -> bool:
        """Whether the queue has the message or had it; if not, it never will. Raises QueueUnavailable."""
        async with self._stub() as stub:
            request = enqueue_pb2.FindMessageRequest(message_id=message_id)
            return (await stub.FindMessage(request, timeout=_ANSWERS_WITHIN)).accepted

    async def submit(self, message_id: bytes, mail: OutgoingMail) -> SubmitAnswer:
        """Hand a message over. Raises QueueUnavailable: then nobody knows, and `find` tells."""
        async with self._stub() as stub:
            call = stub.Enqueue()
            try:
                async with asyncio.timeout(_FIRST_WITHIN):
                    first = await _read(call)
                if first.database_silent:
                    raise QueueUnavailable("the database of the queue answers nothing")
                async with asyncio.timeout(_ANSWERS_WITHIN):
                    return await _submitted(call, first, message_id, mail)
            finally:
                call.cancel()


async def _read(call: Any) -> enqueue_pb2.EnqueueResponse:
    response = await call.read()
    if not isinstance(response, enqueue_pb2.EnqueueResponse):
        raise QueueUnavailable("the queue ended the stream")
    return response


async def _submitted(
    call: Any, first: enqueue_pb2.EnqueueResponse, message_id: bytes, mail: OutgoingMail
) -> SubmitAnswer:
    """Frames within credit (ACC-07), then the answer."""
    credit, time = first.credit, first.database_time
    frames = []
    content = mail.content
    commit = enqueue_pb2.Commit()
    commit.CopyFrom(mail.commit)
    commit.size = len(content)
    if len(content) <= INLINE_LIMIT:
        commit.body = content
        content = b""
    for at in range(0, len(content), CHUNK_SIZE):
        chunk = enqueue_pb2.BodyChunk(data=content[at : at + CHUNK_SIZE], size=0 if at else len(content))
        frames.append(enqueue_pb2.EnqueueFrame(message_id=message_id, chunk=chunk))
    for frame in frames:
        while credit < len(frame.chunk.data):
            response = await _read(call)
            credit, time = credit + response.credit, response.database_time or time
            if (answer := _answer(response, message_id)) is not None:
                return answer
        credit -= len(frame.chunk.data)
        await call.write(enqueue_pb2.EnqueueRequest(frames=[frame]))
    # A queue that stood still stores nothing that was given up meanwhile.
    commit.valid_until = int(time + _ANSWERS_WITHIN * 1e6) if time else 0
    frame = enqueue_pb2.EnqueueFrame(message_id=message_id, commit=commit)
    while credit < len(commit.body):
        credit += (await _read(call)).credit
    await call.write(enqueue_pb2.EnqueueRequest(frames=[frame]))
    while True:
        if (answer := _answer(await _read(call), message_id)) is not None:
            return answer


def _answer(response: enqueue_pb2.EnqueueResponse, message_id: bytes) -> SubmitAnswer | None:
    for result in response.results:
        if result.message_id == message_id:
            said = result.refusal
            text = " ".join((str(said.code), said.enhanced, *said.lines)).strip()[:300]
            return SubmitAnswer(result.accepted, said.code >= 500, "" if result.accepted else text)
    return None
