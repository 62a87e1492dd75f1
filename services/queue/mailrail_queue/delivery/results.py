"""Results of attempts, judged and committed in batches (FIN-01, LSE-03, LSE-04).

Each recipient's result becomes an *ending* (final), a *deferral* (tried again), an *undoing* (it was not dialled) or a
mere *record* (too late to count). Most recipients are delivered at the first attempt and need no DSN; their endings
share one statement. Endings that need a DSN or a copy in the built-in mailbox share a transaction with it, so that the
state and what follows from it are one.
"""

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import psycopg
from google.protobuf.timestamp_pb2 import Timestamp

from mailrail.core.delivery import judge as judging
from mailrail.core.delivery.judge import Judgement
from mailrail.core.delivery.outcome import Verdict
from mailrail.core.ids import history_of
from mailrail.kit import log
from mailrail.kit.postgres import settle
from mailrail.pb.queue.v1 import lease_pb2, types_pb2
from mailrail_queue import metrics
from mailrail_queue.delivery.attempt import Delivery
from mailrail_queue.delivery.endings import Decided, by_administrator, end_unleased, standing_of
from mailrail_queue.delivery.interruptions import Interruptions
from mailrail_queue.delivery.parts import Parts
from mailrail_queue.delivery.ports import Arrival, AttemptRecipient, Mailboxes, Notice, Notifications, Schedule
from mailrail_queue.delivery.sorting import SUCCEEDED, Sorted, Weight, sort, weigh_late
from mailrail_queue.delivery.verdicts import NOT_ATTEMPTED, attempt_recipient_of
from mailrail_queue.routing.lacking import with_lacking
from mailrail_queue.routing.router import RoutePlan
from mailrail_queue.store import blocks, faults
from mailrail_queue.store import leases as lease_store
from mailrail_queue.store import results as result_store
from mailrail_queue.store import waiting as waiting_store
from mailrail_queue.store.connection import DATABASE_FAILURE, TROUBLE, Lane
from mailrail_queue.store.corrupt import CorruptRecipient
from mailrail_queue.store.fencing import Ownership
from mailrail_queue.store.results import Deferral, Ending, Record
from mailrail_queue.store.waiting import Waiting

_BATCH = 256
"""Deliveries whose results share a transaction."""
_GATHER = 0.02
"""Seconds that results wait for more while they come steadily. Nothing waits for them: windows move when a result
comes, and outbound keeps it until it is written."""
_ENOUGH = 64
"""Results that are written at once; a larger batch is hardly cheaper."""
_RETRY_AFTER = 0.5
"""Seconds until a batch is tried again after Postgres failed."""
_FRESH_IDS = 3
"""Times that a batch is written with new ids, because some of those that it had are there already."""


@dataclass(slots=True)
class DeliveryResults:
    """The results of one delivery, as they came."""

    token: int
    message: lease_pb2.DeliveryResult
    delivery: Delivery | None
    node: str
    on_committed: Callable[[int], None]
    """Called with the token once all of it is in the database (outbound may forget it then)."""
    plan: RoutePlan | None = None

    @property
    def message_id(self) -> bytes:
        """Of the message that was delivered."""
        return self.delivery.message_id if self.delivery is not None else self.message.message_id

    @property
    def is_local(self) -> bool:
        """The queue itself made it: what it means is not done before it is written."""
        return self.delivery is not None and self.delivery.site.is_local


@dataclass(slots=True)
class _Work:
    """A batch, sorted by what is to be written."""

    plain: list[Ending] = field(default_factory=list)
    endings: list[Ending] = field(default_factory=list)
    deferrals: list[Deferral] = field(default_factory=list)
    notices: dict[int, Notice] = field(default_factory=dict)
    arrivals: dict[int, Arrival] = field(default_factory=dict)
    records: list[Record] = field(default_factory=list)
    lost: list[tuple[int, bytes, int]] = field(default_factory=list)
    outcomes: list[int] = field(default_factory=list)
    first_attempt_seconds: list[float] = field(default_factory=list)
    taken: list[tuple[int, int]] = field(default_factory=list)
    """See metrics.count_tls."""
    kept: list[tuple[int, int]] = field(default_factory=list)

    def note_tls(self, attempt: types_pb2.Attempt, requirement: int) -> None:
        """Count what TLS did for a recipient, or kept it from."""
        outcome = attempt.outcome
        if outcome == types_pb2.OUTCOME_RELAYED or outcome == types_pb2.OUTCOME_DELIVERED:
            tls = attempt.tls
            self.taken.append((requirement, tls.proof if tls.version else metrics.CLEAR))
        elif requirement == types_pb2.TLS_REQUIREMENT_REQUIRED and _kept_by_tls(attempt):
            self.kept.append((attempt.tls_cause, outcome))

    def add(self, found: lease_pb2.RecipientResult, one: Sorted, *, counted: bool = True) -> None:
        """Take a result that was sorted. Endings without a DSN or an arrival, most of them, share one statement.

        `counted`: in the metrics of attempts.
        """
        if counted:
            self.outcomes.append(found.attempt.outcome)
        change = one.change
        if isinstance(change, Deferral):
            self.deferrals.append(change)
        elif one.notice is None and one.arrival is None and change.state == result_store.DELIVERED:
            self.plain.append(change)
        else:
            self.endings.append(change)
        if one.notice is not None:
            self.notices[change.id] = one.notice
        if one.arrival is not None:
            self.arrivals[change.id] = one.arrival


def _kept_by_tls(attempt: types_pb2.Attempt) -> bool:
    """An outbound that does not say the cause has the status that only TLS gives (RTLS-17b)."""
    if attempt.outcome not in (types_pb2.OUTCOME_DEFERRED, types_pb2.OUTCOME_FAILED):
        return False
    return bool(attempt.tls_cause) or (not attempt.reply.remote and attempt.status in ("5.7.10", "5.7.30"))


def _set_time(stamp: Timestamp, moment: float) -> None:
    """Unix seconds. By hand: the library takes two calls more, for each attempt."""
    whole = int(moment)
    stamp.seconds, stamp.nanos = whole, int((moment - whole) * 1e9)


class Finisher:
    """Judges and commits results; two batches may be under way at once."""

    def __init__(self, parts: Parts, schedule: Schedule, notifications: Notifications, mailboxes: Mailboxes) -> None:
        self._database = parts.database
        self._lanes = [parts.database.lane("finish 1"), parts.database.lane("finish 2")]
        self._dispatcher = parts.dispatcher
        self._router = parts.router
        self._history = parts.history
        self._schedule = schedule
        self.notifications = notifications
        self._mailboxes = mailboxes
        self._waiting: list[DeliveryResults] = []
        self._writing: dict[Lane, list[DeliveryResults]] = {}
        self._wake = asyncio.Event()
        self._turn = asyncio.Lock()
        self._steady = False
        """The last batch was of several: more are on their way."""
        self._busy = 0
        self._log = log.get_logger()
        self._dice = random.Random()
        self.interruptions = Interruptions(parts.database, self.judge)
        self._database.outage.count("results_waiting", lambda: self.waiting + sum(map(len, self._writing.values())))

    @property
    def idle(self) -> bool:
        """Nothing is waiting to be written."""
        return not self._waiting and not self._busy

    @property
    def unwritten(self) -> list[int]:
        """Ids of recipients that have results in memory which are not written yet."""
        results = [*self._waiting, *(result for batch in self._writing.values() for result in batch)]
        return [found.id for result in results for found in result.message.recipients]

    @property
    def waiting(self) -> int:
        """Deliveries whose results are not written yet, those of the batches under way apart."""
        return len(self._waiting)

    def submit(self, result: DeliveryResults) -> None:
        """Take a result; it is written with the next batch."""
        self._waiting.append(result)
        self._wake.set()

    async def run(self) -> None:
        """Write batches until cancelled."""
        async with asyncio.TaskGroup() as group:
            for lane in self._lanes:
                group.create_task(self._work(lane))

    async def _work(self, lane: Lane) -> None:
        while True:
            async with self._turn:  # one gathers, while the other may be writing
                while not self._waiting:
                    self._wake.clear()
                    await self._wake.wait()
                if self._steady and len(self._waiting) < _ENOUGH:
                    await asyncio.sleep(_GATHER)
                batch, self._waiting = self._waiting[:_BATCH], self._waiting[_BATCH:]
                self._steady = len(batch) > 1
                self._busy += 1
                self._writing[lane] = batch
            try:
                await self._write(lane, batch)
            except Exception as error:
                faults.failed(self._log, "results", error, deliveries=len(batch))
            finally:
                self._busy -= 1
                del self._writing[lane]

    async def _write(self, lane: Lane, batch: list[DeliveryResults]) -> None:
        delay = _RETRY_AFTER
        partitions_made = False
        fresh_ids = 0
        while True:
            try:
                await self._commit(lane, batch)
                break
            except TROUBLE as error:
                # Nothing is lost: the statements name tokens, so writing what was written already changes nothing.
                lane.warn(self._log, "cannot write results; trying again", error, deliveries=len(batch))
                await asyncio.sleep(delay)
                delay = min(5.0, delay * 2)
            except Exception as error:
                if result_store.lacks_partition(error) and not partitions_made:
                    # What was delivered would be delivered again, for ever, could its end not be written.
                    partitions_made = await self.make_partitions(lane)
                    continue
                if blocks.given_twice(error) and fresh_ids < _FRESH_IDS:  # of a notification, an event or a mailbox
                    fresh_ids += 1
                    await self.raise_ids(lane, error)
                    continue
                if len(batch) > 1:
                    for result in batch:
                        await self._write(lane, [result])
                    return
                if not faults.is_guilty(error) or not await self._write_apart(lane, batch[0], error):
                    # Its lease runs out and it is tried again, visibly.
                    faults.failed(self._log, "results", error, token=batch[0].token)
                    return
                break
        for result in batch:
            if result.message.done:
                result.on_committed(result.token)

    async def raise_ids(self, lane: Lane, error: Exception) -> None:
        """Let ids go on beyond all that are stored: some were given that are there already."""
        self._log.error("duplicate ids; taking new ones", error=str(error).strip())
        try:
            await lane.run(blocks.RAISE_IDS, {"recipients": 0, "tokens": 0})
        except DATABASE_FAILURE as trouble:
            self._log.warning("cannot take new ids", error=str(trouble).strip())
            await asyncio.sleep(_RETRY_AFTER)

    async def _write_apart(self, lane: Lane, result: DeliveryResults, error: Exception) -> bool:
        """Write each recipient of a delivery by itself. The one that cannot be written is put on hold with the reason:
        dialled again it would be sent again, after each lease, for ever. False: that could not be written either."""
        message = result.message
        if len(message.recipients) > 1 or (message.recipients and message.done):
            for found in message.recipients:
                part = lease_pb2.DeliveryResult(
                    token=result.token,
                    message_id=message.message_id,
                    recipients=[found],
                    dialled_hosts=message.dialled_hosts,
                )
                await self._write(lane, [replace(result, message=part)])
            rest = lease_pb2.DeliveryResult(token=result.token, message_id=message.message_id, done=message.done)
            await self._write(lane, [replace(result, message=rest, on_committed=lambda token: None)])
            return True
        if not message.recipients:
            return False
        (found,) = message.recipients
        faults.failed(self._log, "results", error, token=result.token, recipient=found.id)
        outcome = metrics.OUTCOMES.get(found.attempt.outcome, "unknown")
        reason = f"the attempt ended ({outcome}), but its result cannot be stored: {faults.said(error)}"
        shard = next((p.shard for p in result.delivery.recipients if p.id == found.id), 0) if result.delivery else 0
        message_id = result.delivery.message_id if result.delivery else b""
        one = [CorruptRecipient(found.id, message_id, shard, 0, result.token)]
        while True:
            try:
                async with lane.use() as connection:
                    await faults.hold_corrupt(connection, Ownership("", {}), one, reason, self._log, undo=False)
                return True
            except TROUBLE as trouble:
                lane.warn(self._log, "cannot write results; trying again", trouble, deliveries=1)
                await asyncio.sleep(_RETRY_AFTER)
            except psycopg.Error:
                return False

    async def make_partitions(self, lane: Lane) -> bool:
        """Make those of history that are missing (FIN-03). False: Postgres is out of reach."""
        try:
            await lane.run(result_store.MAKE_PARTITIONS, {"ahead": result_store.PARTITIONS_AHEAD})
        except DATABASE_FAILURE as error:
            self._log.warning("cannot create partitions of history", error=str(error).strip())
            await asyncio.sleep(_RETRY_AFTER)
            return not isinstance(error, psycopg.OperationalError)
        return True

    async def _commit(self, lane: Lane, batch: list[DeliveryResults]) -> None:
        """Write a batch, of which some may be written already: every statement is idempotent by recipient and token."""
        work = _Work()
        number = self._history.number
        others = {id(r) for r in batch if history_of(r.token) != number}
        strangers = [r for r in batch if r.delivery is None or id(r) in others]
        known: dict[int, Waiting] = {}
        if strangers:
            async with lane.use() as connection:
                ids = [rr.id for r in strangers for rr in r.message.recipients]
                await self._history.compare(connection, [r.token for r in strangers], ids)
                known = {w.id: w for w in await waiting_store.live(connection, ids)}
        for result in batch:
            if result.delivery is not None and id(result) not in others:
                self._sort_delivery(work, result, result.delivery)
            else:
                self._sort_stranger(work, result, known, other=id(result) in others)
        found = len(work.records) > 0 or any(rr.id not in known for r in strangers for rr in r.message.recipients)
        if work.plain:
            async with lane.use() as connection:
                found |= len(await result_store.finish(connection, work.plain)) < len(work.plain)
        counted: set[int] = set()
        if work.endings or work.notices or work.arrivals:
            counted = await self._commit_with_notices(lane, work)
        elif work.deferrals:
            async with lane.use() as connection:
                back = await result_store.defer(connection, work.deferrals)
            counted = {row[0] for row in back}
            self._put_back(back)
        late_ones = len(counted) < len(work.deferrals) + len(work.endings)
        if late_ones:
            # LSE-03: another owner took the lease back, or an earlier try wrote it; then it is recorded already.
            late = [(d.id, d.message_id, d.token, d.last_attempt) for d in work.deferrals]
            late += [
                (e.id, e.message_id, e.token, e.last_attempt) for e in work.endings if e.state != result_store.DELIVERED
            ]
            work.records += [(i, m, t, data) for i, m, t, data in late if data is not None and i not in counted]
        if work.records or work.lost:
            async with lane.use() as connection:
                if work.records:
                    await result_store.record(connection, work.records)
                expired = []
                if work.lost:
                    async with self.notifications.transaction(connection) as notify:
                        expired = await lease_store.lose(connection, work.lost)
                        await self.interruptions.record(connection, expired, notify)
                found |= len(expired) < len(work.lost)
            self._schedule.add_deferred([(row.shard, row.request) for row in expired])
        if found or late_ones:
            # It was written before: outbound forgets it once that is durable, and not when it can be seen (DUR-01).
            async with lane.use() as connection:
                await settle(connection)
        metrics.count_attempts(work.outcomes)
        metrics.count_tls(work.taken, work.kept)
        for seconds in work.first_attempt_seconds:
            metrics.FIRST_ATTEMPT_SECONDS.observe(seconds)

    def _put_back(self, rows: Sequence[tuple[int, int, int]]) -> None:
        if rows:
            self._schedule.add_deferred([(shard, request) for _, shard, request in rows])

    async def _commit_with_notices(self, lane: Lane, work: _Work) -> set[int]:
        """Write what others are told of, and all that goes with it. Returns the ids whose result counted."""
        async with lane.use() as connection, self.notifications.transaction(connection) as notify:
            ended = await result_store.finish_as(connection, work.endings) if work.endings else {}
            back = await result_store.defer(connection, work.deferrals) if work.deferrals else []
            # ADM-02: a dropped recipient gets no DSN, and one that is to be failed gets its DSN when it is failed.
            done = {number for number, state in ended.items() if state != result_store.CANCELLED}
            done |= {number for number, _, request in back if not request}
            arrivals = [a for i, a in work.arrivals.items() if i in done]
            if arrivals:
                await self._mailboxes.deliver(connection, arrivals)
            await notify([n for i, n in work.notices.items() if i in done])
        self._put_back(back)
        return {*ended, *(row[0] for row in back)}

    # --- judging ---

    def _sort_delivery(self, work: _Work, result: DeliveryResults, delivery: Delivery) -> None:
        recipients = {p.id: p for p in delivery.recipients}
        for found in result.message.recipients:
            recipient = recipients.get(found.id)
            if recipient is None:
                continue  # not of this delivery: nothing may be said of it
            found.attempt.number = recipient.attempts
            delivery.plan.describe(found.attempt)
            self._complete(found.attempt, delivery.started, result.node)
            probe = delivery.plan.probe
            if recipient.attempts == 1 and not probe and found.attempt.outcome not in NOT_ATTEMPTED:
                stamp = found.attempt.started  # by the clock of outbound, so perhaps earlier
                started = stamp.seconds + stamp.nanos / 1e9
                work.first_attempt_seconds.append(max(0.0, started - recipient.accepted - recipient.uncounted_seconds))
            change = sort(found, recipient, delivery.token, delivery.plan, result.message, self.judge, self.next_route)
            work.add(found, change, counted=not probe)
            if not delivery.plan.here:
                work.note_tls(found.attempt, recipient.tls_requirement)
            delivery.answered.add(found.id)
        if result.message.done:
            work.lost += [
                (i, p.message_id, delivery.token) for i, p in recipients.items() if i not in delivery.answered
            ]

    def _sort_stranger(self, work: _Work, result: DeliveryResults, known: dict[int, Waiting], *, other: bool) -> None:
        """Results of a delivery that this process did not hand out: of before a restart, or of another owner.

        `other`: of another history of the database.
        """
        for found in result.message.recipients:
            attempt, waiting = found.attempt, known.get(found.id)
            weight = weigh_late(
                attempt.outcome,
                waiting,
                result.token,
                result.message_id,
                other_history=other,
                is_local=result.is_local,
            )
            if other:
                counted = weight is Weight.WHOLE
                metrics.HISTORY.labels(kind="results_counted" if counted else "results_dropped").inc()
            if waiting is None or weight is Weight.NONE:
                continue
            if attempt.outcome in SUCCEEDED and waiting.token not in (None, result.token):
                self._revoke(waiting.token)
            attempt.number = max(1, waiting.attempts)
            self._complete(attempt, waiting.started or self._database.now(), result.node)
            if weight is Weight.RECORD:
                work.records.append((waiting.id, waiting.message_id, result.token, attempt.SerializeToString()))
            else:
                recipient = attempt_recipient_of(waiting)
                work.add(found, sort(found, recipient, result.token, None, result.message, self.judge, self.next_route))

    def _revoke(self, token: int | None) -> None:
        """Break off a newer delivery of a recipient that is delivered (LSE-03)."""
        newer = self._dispatcher.deliveries.get(token) if token else None
        if newer is not None and newer.stream is not None:
            newer.stream.cancel(newer.token)

    def _complete(self, attempt: types_pb2.Attempt, started: float, node: str) -> None:
        if not attempt.HasField("started"):
            _set_time(attempt.started, started)
        if not attempt.HasField("ended"):
            _set_time(attempt.ended, self._database.now())
        if not attempt.outbound:
            attempt.outbound = node

    def judge(self, verdict: Verdict, recipient: AttemptRecipient) -> Judgement:
        """What becomes of a recipient after this attempt."""
        schedule = self._router().schedule(recipient.facts)
        return judging.judge(
            verdict,
            standing_of(recipient),
            schedule,
            now=self._database.now(),
            jitter=self._dice.uniform(-1.0, 1.0),
        )

    def next_route(
        self, recipient: AttemptRecipient, tried: types_pb2.LackingTransport
    ) -> tuple[RoutePlan, bytes] | None:
        """Where a recipient goes that this transport cannot take, and what is remembered of it (SOUT-18c)."""
        lacking = with_lacking(recipient.facts.lacking, tried)
        if lacking is None:
            return None
        plan = self._router().next_plan(recipient.facts._replace(lacking=lacking), recipient.attempts)
        return (plan, lacking) if plan is not None else None

    # --- endings without a lease ---

    async def end_waiting(
        self,
        lane: Lane,
        waiting: Sequence[Decided],
    ) -> int:
        """Make recipients final that are not leased: (recipient, attempt, judgement, whether it was an attempt).

        Without a judgement it is dropped: cancelled, and nobody is told (ADM-02). Returns how many became final.
        """
        async with lane.use() as connection, self.notifications.transaction(connection) as notify:
            done = await end_unleased(connection, notify, waiting)
        metrics.count_attempts(done.values())
        return len(done)

    def by_administrator(self, row: Waiting) -> Decided:
        """What a fail or drop request makes of a recipient that is not leased (ADM-02)."""
        return by_administrator(row, row.request, row.request_reason, self._router().schedule, self._database.now())
