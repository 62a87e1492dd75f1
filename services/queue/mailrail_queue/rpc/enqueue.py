"""gRPC of mail that comes in: Enqueue streams, translated into commits and chunks; no decisions (ACC-02, ACC-07)."""

import asyncio
import math
import random
import time
from collections import deque
from collections.abc import AsyncIterator

import grpc
import psycopg

from mailrail.core.limits import CHUNK_SIZE, INLINE_LIMIT
from mailrail.core.uncommitted import UncommittedBody
from mailrail.pb.queue.v1 import enqueue_pb2, enqueue_pb2_grpc
from mailrail_queue import metrics
from mailrail_queue.accept.pending import (
    FULL,
    MALFORMED,
    MAX_RECIPIENTS,
    NO_ROOM,
    UNAVAILABLE,
    UPLOAD_GONE,
    CommitOutcome,
    PendingCommit,
)
from mailrail_queue.app import QueueProcess
from mailrail_queue.rpc.answering import Context
from mailrail_queue.rpc.streaming import pulse
from mailrail_queue.store.connection import DATABASE_FAILURE

_ROTATE = 600.0
"""Seconds after which a stream of Enqueue is asked to make room for another: new replicas get their share."""
_CLOSES_WITHIN = 2.0
"""Seconds in which a caller of Enqueue that was asked to leave closes its side; one that does not is left."""
_TELL_TIME = 10.0
"""Seconds after which a stream that has nothing else to say tells the database's time: clocks drift."""
_ROWS = 4
"""Rows of a large body in one transaction, as far as they are here: a flush of the disk for each takes longer."""
_UPLOAD_TRIES = 20
"""Times, half a second apart, that rows are tried while Postgres is out of reach."""


class _ChunkWriter:
    """A large body on its way in, written as rows of 256 KiB by a task of its own."""

    def __init__(self, stream: "EnqueueStream", message_id: bytes, size: int) -> None:
        """`size`: octets that it is expected to have; 0: not known."""
        self.id = message_id
        self.size = 0
        self.failed = False
        self._why = UPLOAD_GONE
        self._stream = stream
        self._waiting: deque[bytes] = deque()  # none longer than a row
        self._octets = 0  # of those
        self._number = 0
        self._begun = False
        self._uncommitted = stream.queue.uncommitted.body("", size)
        self._more = asyncio.Event()
        self._commit: enqueue_pb2.Commit | None = None
        self._aborted = False
        self.task = asyncio.get_running_loop().create_task(self._write())

    def add(self, data: bytes) -> None:
        """Take a part."""
        for at in range(0, len(data), CHUNK_SIZE):
            self._waiting.append(data[at : at + CHUNK_SIZE])
        self._octets += len(data)
        self.size += len(data)
        self._more.set()

    def commit(self, commit: enqueue_pb2.Commit) -> None:
        """No more comes; store the rest, then the message."""
        self._commit = commit
        self._more.set()

    def abort(self) -> None:
        """Forget it all."""
        self._aborted = True
        self._more.set()

    async def _write(self) -> None:
        stream = self._stream
        while not self._aborted:
            while rows := self._take_rows():
                octets = sum(map(len, rows))
                if not self.failed and not (self._fits(octets) and await self._store(rows)):
                    self.failed = True
                    self._forget()
                stream.refund(octets)
                if self._aborted:
                    break
            if self._commit is not None and not self._aborted:
                stream.uploads.pop(self.id, None)
                if self.failed:
                    stream.refuse(self.id, self._why)
                    break
                commit = self._commit
                stream.commit(self.id, commit, commit.prefix, commit.body, self._number, self._uncommitted)
                return
            self._more.clear()
            if not self._aborted:
                await self._more.wait()
        stream.uploads.pop(self.id, None)
        stream.refund(self._octets)
        self._forget()

    def _take_rows(self) -> list[bytes]:
        """What is here for whole rows, and for the shorter one at the end once no more comes; some at a time."""
        rows: list[bytes] = []
        while len(rows) < _ROWS and self._octets >= (CHUNK_SIZE if self._commit is None else 1):
            row = self._waiting.popleft()
            while len(row) < CHUNK_SIZE and self._waiting:  # a part that came was shorter than a row
                part = self._waiting.popleft()
                lacking = CHUNK_SIZE - len(row)
                row += part[:lacking]
                if part[lacking:]:
                    self._waiting.appendleft(part[lacking:])
            self._octets -= len(row)
            rows.append(row)
        return rows

    def _forget(self) -> None:
        """What may have been stored of it goes."""
        self._uncommitted.give_up(time.monotonic())
        if self._begun:
            self._stream.queue.group_commit.bodies.forget(self.id)
            self._begun = False

    def _fits(self, octets: int) -> bool:
        """Whether there is room for more of what may never be committed, in our part of it (ACC-07)."""
        queue, body, now = self._stream.queue, self._uncommitted, time.monotonic()
        queue.uncommitted.limit = queue.settings.upload_octets // max(1, queue.dispatcher.owners)
        if (not body.octets and body.begin(now) is not None) or body.add(octets, now) is not None:
            self._why = NO_ROOM
            return False
        return True

    async def _store(self, rows: list[bytes]) -> bool:
        self._begun = True
        for _ in range(_UPLOAD_TRIES):
            try:
                kept = await self._stream.queue.group_commit.bodies.store(self.id, self._number, rows)
                self._number += len(rows)
                return kept
            except psycopg.DataError:
                return False
            except psycopg.errors.DiskFull:
                self._why = FULL
                return False
            except DATABASE_FAILURE:
                if self._aborted:
                    return False
                await asyncio.sleep(0.5)
        self._why = UNAVAILABLE
        return False


class EnqueueStream:
    """One stream of Enqueue: its credit, its uploads, its answers."""

    def __init__(self, queue: QueueProcess) -> None:
        self.queue = queue
        self.uploads: dict[bytes, _ChunkWriter] = {}
        self.ready = asyncio.Event()
        self.closed = False
        self.broken = False
        self._outstanding = 0
        self._refund = 0
        self._results: list[tuple[bytes, CommitOutcome]] = []
        self._under_way: dict[bytes, int] = {}
        self._uploaded: dict[bytes, list[UncommittedBody]] = {}  # bodies whose commit is under way
        self._ended = False
        self._told = time.monotonic()
        self._silence_told = False

    # --- in ---

    async def read(self, requests: AsyncIterator[enqueue_pb2.EnqueueRequest]) -> None:
        """Take frames until the caller stops sending."""
        try:
            async for request in requests:
                for frame in request.frames:
                    self._frame(frame)
        finally:
            self.closed = True
            self.ready.set()

    def _frame(self, frame: enqueue_pb2.EnqueueFrame) -> None:
        if self._ended or self.broken:
            return  # the answer could not be sent: the caller asks another replica for the outcome (ACC-04)
        message_id = frame.message_id
        step = frame.WhichOneof("step")
        if step == "commit":
            commit = frame.commit
            prefix, body = commit.prefix, commit.body  # each look at a field of bytes copies it
            octets = len(prefix) + len(body)
            self._outstanding += octets
            if self._overdrawn():
                return
            if len(message_id) != 16 or not 0 < len(commit.recipients) <= MAX_RECIPIENTS:
                self.refund(octets)
                self._drop(message_id)
                self.refuse(message_id, MALFORMED)
                return
            upload = self.uploads.get(message_id)
            if upload is None and len(body) > INLINE_LIMIT:  # too long for a row: the same as if it had come in chunks
                upload = self.uploads[message_id] = _ChunkWriter(self, message_id, len(body))
                commit.body = b""
                upload.add(body)
            if upload is not None:
                upload.commit(commit)
            elif commit.HasField("body"):
                self.commit(message_id, commit, prefix, body, 0)
            else:
                self.refund(len(prefix))
                self.refuse(message_id, UPLOAD_GONE)  # its chunks went down with another stream
        elif step == "chunk":
            data = frame.chunk.data
            self._outstanding += len(data)
            if self._overdrawn() or len(message_id) != 16:
                self.broken = True
                self.ready.set()
                return
            upload = self.uploads.get(message_id)
            if upload is None:
                upload = self.uploads[message_id] = _ChunkWriter(self, message_id, frame.chunk.size)
            upload.add(data)
        elif step == "abort":
            self._drop(message_id)

    def _drop(self, message_id: bytes) -> None:
        """Its body, if it has one here, will not be committed."""
        upload = self.uploads.pop(message_id, None)
        if upload is not None:
            upload.abort()

    def _overdrawn(self) -> bool:
        """Whether the caller takes no notice of credit (ACC-07): the stream breaks, and it asks GetOutcome."""
        if self._outstanding > 2 * self.queue.settings.stream_credit:
            self.broken = True
            self.ready.set()
        return self.broken

    def commit(
        self,
        message_id: bytes,
        commit: enqueue_pb2.Commit,
        prefix: bytes,
        body: bytes,
        chunks: int,
        uploaded: UncommittedBody | None = None,
    ) -> None:
        """All of a message is here; `uploaded` was stored before."""
        if uploaded is not None:
            self._uploaded.setdefault(message_id, []).append(uploaded)
        size = len(prefix) + len(body)
        self._under_way[message_id] = self._under_way.get(message_id, 0) + size
        until = commit.valid_until / 1e6 or math.inf
        if commit.envelope.purpose and not chunks:
            prefix = self._signed(commit, prefix, body)
        self.queue.group_commit.submit(
            PendingCommit(message_id, commit, prefix, body, chunks, self, size + 512, time.monotonic(), until)
        )

    def _signed(self, commit: enqueue_pb2.Commit, prefix: bytes, body: bytes) -> bytes:
        """The prefix with the signatures of a report of ours on top (DKIM-10b). Who makes it keeps it so small that it
        comes whole."""
        fields = self.queue.signer.sign(commit.envelope.purpose, prefix + body, time.time())
        if fields and commit.size:
            commit.size += len(fields)
        return fields + prefix

    # --- out ---

    def refund(self, octets: int) -> None:
        """So much was dealt with: the caller may send as much again."""
        self._outstanding -= octets
        self._refund += octets
        if self._refund >= 256 * 1024:
            self.ready.set()

    def refuse(self, message_id: bytes, outcome: CommitOutcome) -> None:
        """Refuse what does not come as far as the group commit."""
        metrics.REFUSED.labels(reason=outcome.reason).inc()
        self.answer(message_id, outcome)

    def answer(self, message_id: bytes, outcome: CommitOutcome) -> None:
        """Tell what became of a commit."""
        if self._uploaded:
            self._settled(message_id, accepted=outcome.accepted)
        self.refund(self._under_way.pop(message_id, 0))
        self._results.append((message_id, outcome))
        self.ready.set()

    def leave_unanswered(self, message_id: bytes) -> None:
        """The outcome of a commit is unknown: the stream breaks, and its caller asks GetOutcome."""
        self._settled(message_id, accepted=False)
        self._under_way.pop(message_id, None)
        self.broken = True
        self.ready.set()

    def _settled(self, message_id: bytes, *, accepted: bool) -> None:
        """Its body belongs to a message, or is given up."""
        for body in self._uploaded.pop(message_id, ()):
            if accepted:
                body.commit()
            else:
                body.give_up(time.monotonic())

    @property
    def busy(self) -> bool:
        """Something is under way."""
        return bool(self._under_way or self.uploads or self._results)

    def take(self) -> enqueue_pb2.EnqueueResponse | None:
        """What is to be said now."""
        self.ready.clear()
        silent = self.queue.database.watch.silent
        news = self._results or self._refund or silent != self._silence_told
        if not news and time.monotonic() - self._told < _TELL_TIME:
            return None
        self._silence_told = silent
        response = enqueue_pb2.EnqueueResponse(
            credit=self._refund, database_time=self._database_time(), database_silent=silent
        )
        add = response.results.add
        for message_id, outcome in self._results:
            add(message_id=message_id, accepted=outcome.accepted, refusal=outcome.reply)
        self._results, self._refund = [], 0
        return response

    def first(self) -> enqueue_pb2.EnqueueResponse:
        """What is said before anything else."""
        self._silence_told = self.queue.database.watch.silent
        return enqueue_pb2.EnqueueResponse(
            credit=self.queue.settings.stream_credit,
            database_time=self._database_time(),
            database_silent=self._silence_told,
        )

    def _database_time(self) -> int:
        self._told = time.monotonic()
        return int(self.queue.database.earliest() * 1e6)

    def end(self) -> None:
        """The stream ended: bodies whose commit did not come are forgotten, and no frame counts any more (ACC-05)."""
        self._ended = True
        uploads, self.uploads = list(self.uploads.values()), {}
        for upload in uploads:
            upload.abort()


class EnqueueServicer(enqueue_pb2_grpc.EnqueueServiceServicer):
    """Mail in."""

    def __init__(self, queue: QueueProcess) -> None:
        self._queue = queue

    async def Enqueue(
        self, requests: AsyncIterator[enqueue_pb2.EnqueueRequest], context: Context
    ) -> AsyncIterator[enqueue_pb2.EnqueueResponse]:
        queue = self._queue
        if not queue.ready or queue.stopping.is_set():
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the queue is not ready")
        stream = EnqueueStream(queue)
        queue.arrivals.add(stream)
        reader = asyncio.create_task(stream.read(requests))
        pulse_task = asyncio.create_task(pulse(stream.ready))
        rotate = time.monotonic() + _ROTATE * random.uniform(0.8, 1.2)
        leaving = False
        patience = 0.0
        try:
            yield stream.first()
            while True:
                response = stream.take()
                if response is not None:
                    yield response
                if stream.broken:
                    await context.abort(grpc.StatusCode.UNAVAILABLE, "the outcome is not known; ask GetOutcome")
                # Asked to leave, the caller closes its side; a commit that was on its way by then is answered.
                gone = stream.closed or (leaving and time.monotonic() > patience)
                if gone and not stream.busy:
                    return
                if not leaving and (queue.stopping.is_set() or time.monotonic() > rotate):
                    leaving = True
                    patience = time.monotonic() + _CLOSES_WITHIN
                    yield enqueue_pb2.EnqueueResponse(go_away=True)
                await stream.ready.wait()
        finally:  # without await (kit.rpc)
            queue.arrivals.discard(stream)
            reader.cancel()
            pulse_task.cancel()
            stream.end()

    async def FindMessage(
        self, request: enqueue_pb2.FindMessageRequest, context: Context
    ) -> enqueue_pb2.FindMessageResponse:
        outcome = await self.GetOutcome(enqueue_pb2.GetOutcomeRequest(message_id=request.message_id), context)
        if outcome.accepted:
            return enqueue_pb2.FindMessageResponse(accepted=True)
        try:  # after it is barred: what was accepted before then is in history by now, or was found
            found = await self._queue.group_commit.in_history(request.message_id)
        except DATABASE_FAILURE as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, f"the database is unreachable: {error}"[:200])
            raise
        return enqueue_pb2.FindMessageResponse(accepted=found, history=found)

    async def GetOutcome(
        self, request: enqueue_pb2.GetOutcomeRequest, context: Context
    ) -> enqueue_pb2.GetOutcomeResponse:
        if len(request.message_id) != 16:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "message_id takes 16 octets")
        if not self._queue.ready:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the queue is not ready")
        try:
            accepted = await self._queue.group_commit.outcome(request.message_id)
        except DATABASE_FAILURE as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, f"the database is unreachable: {error}"[:200])
            raise
        response = enqueue_pb2.GetOutcomeResponse(accepted=accepted is not None)
        if accepted is not None:
            response.accepted_at.FromNanoseconds(int(accepted * 1e9))
        return response
