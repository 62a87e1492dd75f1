"""The stream to the queue.

One long-lived stream carries all messages. What waits goes out in one gRPC message: at once when no other transaction
is open, else some milliseconds later (kit/linger.py). Octets are sent only on credit (ACC-07).

When the stream breaks, bodies that were being uploaded are lost (ACC-05). For commits that were written, ingress asks
with GetOutcome until the outcome is known (ACC-04). Commits that were not written go to the next stream.

Each commit says until when ingress waits for it, by the clock of the database, which the stream tells. So a queue that
stood still and wakes up later stores no message that its sender was told to send again. When the queue ends a stream,
the next one follows within moments; what begins in between waits for it.
"""

import asyncio
import contextlib
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Final

import grpc

from mailrail.core.limits import CHUNK_SIZE, SMALL_LIMIT
from mailrail.core.smtp.reply import EnhancedCode, Reply
from mailrail.kit import log, rpc
from mailrail.kit.linger import linger
from mailrail.kit.settings import BadSettings
from mailrail.pb.queue.v1 import enqueue_pb2, enqueue_pb2_grpc, types_pb2
from mailrail_ingress import metrics
from mailrail_ingress.frames import abort_frame, chunk_frame, commit_frame
from mailrail_ingress.held_octets import LEAST, HeldOctets
from mailrail_ingress.ports import ACCEPTED, NO_CREDIT, CommitAnswer, OpenTransactions, ReceivedMessage, Upload
from mailrail_ingress.settings import IngressSettings

BATCH_OCTETS: Final = 1024 * 1024
"""Octets of one gRPC message from which on nothing is added to it."""
BATCH_FRAMES: Final = 256
MESSAGE_CREDIT: Final = 1024 * 1024
"""Octets of one message that may wait to be sent, and as many again that the queue has not dealt with: one upload
takes neither all credit nor more memory the larger it is (ACC-07)."""
LARGE_CREDIT: Final = 0.875
"""Part of a stream's credit that all large messages together may take: some is always there for a small one."""
BODIES_CREDIT: Final = 0.5
"""Part of a stream's credit that large bodies which travel with their commits may take: some is always there for
uploads."""
UPLOADS_PART: Final = 0.5
"""Part of the budget (held_octets.py) that all messages together may have waiting to be sent, a frame each apart. With
more uploads than it holds, each may keep less: memory stays bounded however many clients upload while the queue is
stalled, and headers find room."""
RECONNECT_DELAY: Final = 0.2
"""Seconds between attempts to open a stream."""
LONGEST_DELAY: Final = 2.0
"""Seconds between questions for the outcome of one commit, at most."""
PATIENCE: Final = 5.0
"""Seconds that a commit which was not written yet, and a body that begins, wait for a new stream."""
SETTLING: Final = 5.0
"""Seconds beyond its time in which ingress asks for the outcome of a commit: it may have been stored at the last
moment."""
CREDIT_CHECK: Final = 0.5
"""Seconds between checks for commits that have waited too long for credit."""
CONNECT_TIMEOUT: Final = 5.0
"""Seconds until the queue must have given its first credit on a stream."""
_AWAY: Final = Reply.of(451, "4.3.0", "mail cannot be stored for now; try again later")

_ENQUEUE: Final = f"/{enqueue_pb2.DESCRIPTOR.services_by_name['EnqueueService'].full_name}/Enqueue"


def read_reply(reply: types_pb2.Reply) -> Reply:
    """A refusal of the queue as the client hears it: printable ASCII, one code, within the limits of SMTP."""
    code = int(reply.code)
    if not 400 <= code <= 599:
        return _AWAY
    try:
        enhanced = EnhancedCode.parse(reply.enhanced)
        if enhanced.category != code // 100:
            raise ValueError(reply.enhanced)
    except ValueError:
        enhanced = EnhancedCode(code // 100, 0, 0)
    texts = ["".join(c if " " <= c <= "~" else "?" for c in line)[:400] for line in reply.lines[:10]]
    return Reply.of(code, enhanced, *(texts or ["refused"]))


_Enqueue = grpc.aio.StreamStreamMultiCallable[bytes, enqueue_pb2.EnqueueResponse]
_Call = grpc.aio.StreamStreamCall[bytes, enqueue_pb2.EnqueueResponse]


class DatabaseClock:
    """The clock of the database behind the queue, by what the queue told of it and what has passed since.

    It is never ahead of the database's: what it says is over is over there as well. Steps of our own clock change
    nothing.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        """`clock`: monotonic, seconds."""
        self._clock = clock
        self._ahead: float | None = None

    def set_time(self, moment: float) -> None:
        """The queue said that it is `moment` there (Unix seconds)."""
        self._ahead = moment - self._clock()

    def microseconds(self, seconds: float) -> int:
        """The time in so many seconds, in Unix microseconds; 0: no queue has told the time yet."""
        return 0 if self._ahead is None else int((self._clock() + self._ahead + seconds) * 1e6)


class _Commit:
    """A commit that was handed over and not answered."""

    __slots__ = ("answered", "asked", "done", "frame", "octets", "since", "uploaded")

    def __init__(
        self,
        frame: tuple[bytes, ...],
        octets: int,
        done: Callable[[CommitAnswer], None],
        *,
        since: float,
        uploaded: bool,
    ) -> None:
        self.frame = frame
        self.octets = octets
        self.done = done
        self.since = since  # on the loop's clock
        self.uploaded = uploaded
        self.asked = False  # after what became of it
        self.answered = False

    @property
    def large(self) -> bool:
        """It brings a large body with it. One whose body was uploaded waits for its chunks instead."""
        return self.octets > SMALL_LIMIT and not self.uploaded


class _Upload:
    """A body above the inline limit: chunks that wait for their turn on the stream."""

    __slots__ = ("chunks", "closed", "id", "lost", "resume", "size", "stream", "waiting", "wants_credit")

    def __init__(
        self,
        stream: "_Uploads",
        message_id: bytes,
        resume: Callable[[], None],
        lost: Callable[[], None],
        size: int = 0,
    ) -> None:
        self.stream = stream
        self.id = message_id
        self.resume = resume
        self.lost = lost
        self.size = size  # octets that are expected, until the first chunk said so; 0: not known
        self.chunks: deque[bytes] = deque()
        self.waiting = 0
        self.wants_credit = False
        self.closed = False

    def send(self, data: bytes) -> bool:
        """See ports.Upload."""
        if self.closed:
            return True  # lost: the session was told, and drops what still comes
        for at in range(0, len(data), CHUNK_SIZE):
            self.chunks.append(data[at : at + CHUNK_SIZE])
        self._set_waiting(self.waiting + len(data))
        self.stream.work.set()
        self.wants_credit = self.waiting >= self.stream.room
        return not self.wants_credit

    def abort(self) -> None:
        """See ports.Upload."""
        if not self.closed:
            self.close()
            if self.stream.uploads.pop(self.id, None) is not None:
                self.stream.aborts.append(self.id)
                self.stream.work.set()

    def close(self) -> None:
        """Nothing more is sent of it."""
        self.closed = True
        self.chunks.clear()
        self._set_waiting(0)

    def mark_sent(self, octets: int) -> None:
        """Octets were sent."""
        self._set_waiting(self.waiting - octets)

    def _set_waiting(self, octets: int) -> None:
        if octets != self.waiting:
            before, self.waiting = self.waiting, octets
            self.stream.budget.change(before, octets)


class _LostUpload:
    """The upload of a message that began when no stream was open."""

    def send(self, data: bytes) -> bool:
        """Drop it: the session hears of the loss in a moment."""
        return True

    def abort(self) -> None:
        """There is nothing to forget."""


class _Uploads:
    """Uploads on a stream, or waiting for one."""

    def __init__(self, budget: HeldOctets) -> None:
        self.budget = budget
        self.work = asyncio.Event()
        self.uploads: OrderedDict[bytes, _Upload] = OrderedDict()
        self.aborts: deque[bytes] = deque()

    @property
    def room(self) -> int:
        """Octets of one upload that may wait to be sent."""
        share = int(self.budget.limit * UPLOADS_PART) // max(1, len(self.uploads))
        return min(MESSAGE_CREDIT, max(LEAST, share))


class _Stream(_Uploads):
    """One Enqueue stream: what waits for it, what is under way on it, and how much it may still send."""

    def __init__(
        self,
        call: _Call,
        credit: int,
        linger: Callable[[], float],
        answer: Callable[[_Commit, CommitAnswer], None],
        budget: HeldOctets,
        clock: DatabaseClock | None = None,
    ) -> None:
        super().__init__(budget)
        self._clock = clock
        self.unwritten: OrderedDict[bytes, _Commit] = OrderedDict()
        self.written: dict[bytes, _Commit] = {}
        self.draining = asyncio.Event()
        """The queue said GoAway: nothing new starts here (ACC-07)."""
        self.database_silent = False
        """The queue said that its database answers nothing (ACC-09)."""
        self._call = call
        self._credit = credit
        self._all_credit = credit  # while nothing is under way
        self._commits = 0  # octets of commits that are not answered
        self._bodies = 0  # of those that bring large bodies
        self._linger = linger
        self._answer = answer
        self._loop = asyncio.get_running_loop()
        self._log = log.get_logger()

    async def run(self) -> None:
        """Read and write until the stream breaks, or until it has drained."""
        reader = asyncio.create_task(self._read())
        try:
            await self._write(reader)
        finally:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)

    async def _read(self) -> None:
        try:
            while isinstance(response := await self._call.read(), enqueue_pb2.EnqueueResponse):
                if response.database_time and self._clock is not None:
                    self._clock.set_time(response.database_time / 1e6)
                self.database_silent = response.database_silent
                for result in response.results:
                    commit = self.written.pop(result.message_id, None)
                    if commit is not None:
                        self._commits -= commit.octets
                        if commit.large:
                            self._bodies -= commit.octets
                        self._answer(
                            commit, ACCEPTED if result.accepted else CommitAnswer(False, read_reply(result.refusal))
                        )
                if response.credit:
                    self._credit += int(response.credit)
                    self.work.set()
                if response.go_away:
                    self.draining.set()
                    self.work.set()
                elif self.draining.is_set() and not self.written:
                    self.work.set()
        except grpc.aio.AioRpcError as error:
            self._log.warning("queue stream lost", code=error.code().name, details=(error.details() or "")[:300])
        finally:
            self.work.set()

    async def _write(self, reader: "asyncio.Task[None]") -> None:
        while not reader.done():
            self.work.clear()
            batch = self._batch()
            if batch:
                await self._call.write(batch)
                if not any(upload.chunks for upload in self.uploads.values()) and (wait := self._linger()) > 0:
                    await asyncio.sleep(wait)  # as below: what came during the write is not sent on its own
                continue
            if self.draining.is_set() and not (self.uploads or self.written or self.unwritten):
                await self._call.done_writing()
                return
            await self.work.wait()
            # Alone: at once. With others under way, a moment's wait brings several into one gRPC message.
            if (wait := self._linger()) > 0:
                await asyncio.sleep(wait)

    def _batch(self) -> bytes:
        """An EnqueueRequest of what may go out now, within credit and bounds: aborts, commits, chunks of uploads.

        Small commits go first, since a client waits for each; one that brings a large body and a frame of an upload go
        with them as well, so that none keeps another out however much there is of it.
        """
        frames: list[bytes] = []
        while self.aborts:
            frames.append(abort_frame(self.aborts.popleft()))
        octets = self._add_commits(frames, 0)
        octets = self._add_chunks(frames, octets)
        if self.unwritten:  # those whose last chunk has just gone
            self._add_commits(frames, octets)
        return b"".join(frames)

    def _add_commits(self, frames: list[bytes], octets: int) -> int:
        """Returns `octets` and theirs. Recipients count as well: there may be many, and a gRPC message is bounded."""
        count = 0
        large: list[tuple[bytes, _Commit]] = []
        for message_id, commit in list(self.unwritten.items()):
            if count >= BATCH_FRAMES or octets >= BATCH_OCTETS:
                break
            if commit.large:
                large.append((message_id, commit))
                continue
            if commit.uploaded and self.uploads[message_id].chunks:
                continue  # its body goes first
            if commit.octets > self._credit:
                break
            octets += self._add_commit(frames, message_id, commit)
            count += 1
            if commit.uploaded:
                self.uploads.pop(message_id).close()
        before = octets
        for message_id, commit in large:
            if (octets > before and octets >= BATCH_OCTETS) or not self._may_send_body(commit.octets):
                break
            octets += self._add_commit(frames, message_id, commit)
            self._bodies += commit.octets
        return octets

    def _add_commit(self, frames: list[bytes], message_id: bytes, commit: _Commit) -> int:
        """Returns its octets, recipients and all."""
        self._credit -= commit.octets
        self._commits += commit.octets
        del self.unwritten[message_id]
        self.written[message_id] = commit
        frames.extend(commit.frame)
        return sum(map(len, commit.frame))

    def _may_send_body(self, octets: int) -> bool:
        """Whether there is credit for a commit that brings so large a body; for one at a time there always may be."""
        if octets > self._credit:
            return False
        if not self._bodies:
            return True
        large = self._bodies + self._uploading + octets
        return large <= self._all_credit * LARGE_CREDIT and self._bodies + octets <= self._all_credit * BODIES_CREDIT

    @property
    def _uploading(self) -> int:
        """Octets of uploads that the queue has not dealt with."""
        return self._all_credit - self._credit - self._commits

    def _add_chunks(self, frames: list[bytes], octets: int) -> int:
        """One frame of each upload in turn until the request is full, and at least one. Returns as above."""
        most = min(MESSAGE_CREDIT * len(self.uploads), int(self._all_credit * LARGE_CREDIT) - self._bodies)
        sent = False
        for message_id, upload in list(self.uploads.items()):
            if sent and octets >= BATCH_OCTETS:
                break
            if not upload.chunks:
                continue
            size = len(upload.chunks[0])
            uploading = self._uploading
            if size > self._credit or (uploading and uploading + size > most):
                break
            data = upload.chunks.popleft()
            self._credit -= size
            octets += size
            sent = True
            upload.mark_sent(size)
            frames += chunk_frame(message_id, data, upload.size)
            upload.size = 0
            self.uploads.move_to_end(message_id)  # the next round begins with another
            if upload.wants_credit and upload.waiting <= self.room // 2:
                upload.wants_credit = False
                self._loop.call_soon(upload.resume)
        return octets

    def turn_away(self, before: float) -> None:
        """Refuse commits from before then that never had the credit to be sent (ACC-07)."""
        for message_id, commit in [entry for entry in self.unwritten.items() if entry[1].since < before]:
            del self.unwritten[message_id]
            if commit.uploaded:
                self.uploads.pop(message_id).close()
                self.aborts.append(message_id)
            self._answer(commit, CommitAnswer(False, NO_CREDIT))
            self.work.set()


class EnqueueClient:
    """The queue, over one Enqueue stream at a time (and those that drain); `ports.Queue`."""

    def __init__(self, settings: IngressSettings, budget: HeldOctets, open_transactions: OpenTransactions) -> None:
        """`open_transactions`: a commit waits for others only while other transactions are open."""
        self._settings = settings
        self._open_transactions = open_transactions
        self._budget = budget
        self._loop = asyncio.get_running_loop()
        self._log = log.get_logger()
        self._stream: _Stream | None = None
        self._clock = DatabaseClock(self._loop.time)
        self._unassigned: OrderedDict[bytes, _Commit] = OrderedDict()  # commits that wait for a stream
        self._unassigned_uploads = _Uploads(budget)  # bodies that do
        self._last_open = -PATIENCE  # when there was a stream last
        self._away_since: float | None = self._loop.time()  # until somebody is told that there is none
        self._streams: list[_Stream] = []  # the open one and those that drain
        self._pending = 0
        metrics.QUEUE_PENDING.set_function(lambda: self._pending)
        self._answered = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    def _linger(self) -> float:
        return linger(self._open_transactions.number)

    # --- ports.Queue ---

    @property
    def available(self) -> bool:
        """A stream is open, or was a moment ago and another may be soon. See ports.Queue."""
        if self._stream is not None:
            return not self._stream.database_silent
        return self._loop.time() < self._last_open + PATIENCE

    def upload(self, message_id: bytes, resume: Callable[[], None], lost: Callable[[], None], size: int = 0) -> Upload:
        """See ports.Queue."""
        if not self.available:
            self._loop.call_soon(lost)
            return _LostUpload()
        place = self._stream or self._unassigned_uploads
        upload = _Upload(place, message_id, resume, lost, size)
        place.uploads[message_id] = upload
        if place is self._unassigned_uploads:
            self._loop.call_later(PATIENCE, self._give_up_upload, message_id)
        return upload

    def commit(self, message: ReceivedMessage, done: Callable[[CommitAnswer], None]) -> None:
        """See ports.Queue."""
        octets = len(message.prefix) + len(message.body or b"")
        uploaded = message.body is None
        frame = commit_frame(message, self._clock.microseconds(self._settings.answer_timeout))
        commit = _Commit(frame, octets, done, since=self._loop.time(), uploaded=uploaded)
        self._pending += 1
        stream = self._stream
        if uploaded:
            stream = next((s for s in self._streams if message.id in s.uploads), None)
            if stream is None and message.id not in self._unassigned_uploads.uploads:
                self._answer(commit, CommitAnswer(False, _AWAY))
                return
        if stream is None:
            self._take_in(message.id, commit)
        else:
            stream.unwritten[message.id] = commit
            stream.work.set()

    def _take_in(self, message_id: bytes, commit: _Commit) -> None:
        """No stream is open: the commit waits for the next one, PATIENCE at most."""
        self._unassigned[message_id] = commit
        self._loop.call_later(PATIENCE, self._give_up, message_id)

    def _give_up(self, message_id: bytes) -> None:
        commit = self._unassigned.pop(message_id, None)
        if commit is not None:
            upload = self._unassigned_uploads.uploads.pop(message_id, None)
            if upload is not None:
                upload.close()
            self._answer(commit, CommitAnswer(False, _AWAY))

    def _give_up_upload(self, message_id: bytes) -> None:
        """No stream came for the upload. One that is whole has a commit, which waits for both."""
        if message_id in self._unassigned_uploads.uploads and message_id not in self._unassigned:
            upload = self._unassigned_uploads.uploads.pop(message_id)
            upload.close()
            upload.lost()

    def _answer(self, commit: _Commit, answer: CommitAnswer) -> None:
        if commit.answered:
            return  # asked after, and answered at the same time
        commit.answered = True
        self._pending -= 1
        self._answered.set()
        try:
            commit.done(answer)
        except Exception:  # a mistake of ours about one client; all others wait for their answers on the same stream
            self._log.exception("unexpected error while passing on an answer")

    # --- streams ---

    @asynccontextmanager
    async def running(self) -> AsyncIterator["EnqueueClient"]:
        """Keep a stream open while the context lasts; on the way out, await answers that are due within the grace."""
        tasks = [asyncio.create_task(self._keep_open()), asyncio.create_task(self._turn_away())]
        try:
            yield self
        finally:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._settings.stop_grace):
                    while self._pending:
                        self._answered.clear()
                        await self._answered.wait()
            everything = [*tasks, *self._tasks]
            for one in everything:
                one.cancel()
            await asyncio.gather(*everything, return_exceptions=True)

    async def _keep_open(self) -> None:
        """Open a stream whenever there is none, or the one there is drains."""
        while True:
            opened = asyncio.Event()
            running = self._start(self._stream_once(opened))
            wake = [asyncio.ensure_future(opened.wait()), running]
            await asyncio.wait(wake, return_when=asyncio.FIRST_COMPLETED)
            wake[0].cancel()
            if self._stream is not None:
                draining = asyncio.ensure_future(self._stream.draining.wait())
                await asyncio.wait([running, draining], return_when=asyncio.FIRST_COMPLETED)
                draining.cancel()
                if not running.done():
                    self._leave()
                    continue  # GoAway: the next stream opens while this one finishes what it has
            await asyncio.sleep(RECONNECT_DELAY)

    def _leave(self) -> None:
        """Nothing new starts on the stream that was open."""
        self._stream = None
        self._last_open = self._away_since = self._loop.time()
        metrics.QUEUE_STREAM.set(0)

    async def _turn_away(self) -> None:
        """Bound how long clients wait for credit and for answers."""
        while True:
            await asyncio.sleep(CREDIT_CHECK)
            now = self._loop.time()
            for stream in list(self._streams):
                stream.turn_away(now - self._settings.credit_timeout)
                over = now - self._settings.answer_timeout
                late = {i: commit for i, commit in stream.written.items() if commit.since < over and not commit.asked}
                if late:  # the queue stores them no more; what became of them it may still tell
                    self._ask(late)

    def _start(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _stream_once(self, opened: asyncio.Event) -> None:
        """One stream from its first credit to its end."""
        stream: _Stream | None = None
        try:
            async with rpc.channel(self._settings, self._settings.queue_target, "queue") as channel:
                # Requests are octets already (frames.py); a stub would have them made of protobuf's objects.
                enqueue: _Enqueue = channel.stream_stream(
                    _ENQUEUE, response_deserializer=enqueue_pb2.EnqueueResponse.FromString
                )
                call: _Call = enqueue()
                async with asyncio.timeout(CONNECT_TIMEOUT):
                    first = await call.read()
                if not isinstance(first, enqueue_pb2.EnqueueResponse):
                    return
                if first.database_time:
                    self._clock.set_time(first.database_time / 1e6)
                stream = _Stream(call, int(first.credit), self._linger, self._answer, self._budget, self._clock)
                stream.database_silent = first.database_silent
                self._open(stream)
                opened.set()
                await stream.run()
                call.cancel()
        except (
            grpc.aio.AioRpcError,
            grpc.aio.UsageError,
            asyncio.InvalidStateError,
            TimeoutError,
            OSError,
            BadSettings,
        ) as error:
            self._log.debug("queue stream failed", error=str(error))
            self._tell_away(error)
        finally:
            if stream is not None:
                self._close_stream(stream)

    def _tell_away(self, error: Exception) -> None:
        """Say once that mail is put off, and why: a target that names no queue looks like one that restarts."""
        if self._stream is None and self._away_since is not None and self._loop.time() > self._away_since + PATIENCE:
            self._away_since = None
            detail = error.details() if isinstance(error, grpc.aio.AioRpcError) else str(error)
            self._log.warning(
                "no queue answers; clients hear 451 until one does. Look whether it runs, and at "
                "MAILRAIL_INGRESS_QUEUE_TARGET",
                target=self._settings.queue_target,
                error=detail or type(error).__name__,
            )

    def _open(self, stream: _Stream) -> None:
        self._stream = stream
        self._streams.append(stream)
        metrics.QUEUE_STREAM.set(1)
        self._log.info("queue stream open", target=self._settings.queue_target)
        stream.unwritten.update(self._unassigned)
        self._unassigned.clear()
        for upload in self._unassigned_uploads.uploads.values():
            upload.stream = stream
        stream.uploads.update(self._unassigned_uploads.uploads)
        self._unassigned_uploads.uploads.clear()
        self._unassigned_uploads.aborts.clear()  # nothing of them was sent
        stream.work.set()

    def _close_stream(self, stream: _Stream) -> None:
        """A stream has ended: its uploads are lost, ingress asks for the outcome of written commits, and the others go
        to the next stream."""
        self._streams.remove(stream)
        if self._stream is stream:
            self._leave()
        for message_id, commit in stream.unwritten.items():
            if commit.uploaded:
                self._answer(commit, CommitAnswer(False, _AWAY))
            elif self._stream is not None:
                self._stream.unwritten[message_id] = commit
                self._stream.work.set()
            else:
                self._take_in(message_id, commit)
        stream.unwritten.clear()
        for upload in list(stream.uploads.values()):
            if not upload.closed:
                upload.close()
                upload.lost()
        stream.uploads.clear()
        self._ask({i: commit for i, commit in stream.written.items() if not commit.asked})
        stream.written.clear()

    def _ask(self, written: dict[bytes, _Commit]) -> None:
        """Find out what became of commits (ACC-04). Asking also bars them from being committed later."""
        for commit in written.values():
            commit.asked = True
        if written:
            self._start(self._ask_after(written))

    def _asks_until(self, commit: _Commit) -> float:
        """When to stop asking, by the loop's clock. By what its frame said, no queue stores the commit from then on."""
        return commit.since + self._settings.answer_timeout + SETTLING

    async def _ask_after(self, written: dict[bytes, _Commit]) -> None:
        said = ""
        while written:
            try:
                async with rpc.channel(self._settings, self._settings.queue_target, "queue") as channel:
                    stub: enqueue_pb2_grpc.EnqueueServiceAsyncStub = enqueue_pb2_grpc.EnqueueServiceStub(channel)
                    await asyncio.gather(*(self._ask_one(stub, i, commit) for i, commit in written.items()))
                    return
            except BadSettings as error:  # our own certificate cannot be read just now
                if str(error) != said:
                    said = str(error)
                    self._log.error("cannot ask the queue for an outcome", error=said)
            await asyncio.sleep(RECONNECT_DELAY)
            now = self._loop.time()
            for message_id, commit in list(written.items()):
                if commit.answered or now > self._asks_until(commit):
                    del written[message_id]
                    self._unknown(message_id, commit)

    async def _ask_one(
        self, stub: "enqueue_pb2_grpc.EnqueueServiceAsyncStub", message_id: bytes, commit: _Commit
    ) -> None:
        request = enqueue_pb2.GetOutcomeRequest(message_id=message_id)
        delay = RECONNECT_DELAY
        try:
            async with asyncio.timeout_at(self._asks_until(commit)):
                while not commit.answered:
                    try:
                        outcome = await stub.GetOutcome(request, timeout=5)
                    except grpc.aio.AioRpcError:
                        await asyncio.sleep(delay)
                        delay = min(LONGEST_DELAY, delay * 1.5)
                        continue
                    self._answer(commit, ACCEPTED if outcome.accepted else CommitAnswer(False, _AWAY))
        except TimeoutError:
            pass
        finally:
            self._unknown(message_id, commit)

    def _unknown(self, message_id: bytes, commit: _Commit) -> None:
        """No queue told the outcome, and none stores the commit any more."""
        if not commit.answered:
            metrics.UNKNOWN.inc()
            self._log.warning("commit outcome unknown", id=message_id.hex())
            self._answer(commit, CommitAnswer(False, _AWAY))
