"""The group commit: it takes messages, stores them in batches and answers each one once it is durable (ACC).

A commit waits until a lane is free; the commits that gather meanwhile share the next transaction. While mail comes in
steadily, a batch waits a millisecond for more; an idle queue stores a commit at once. A fresh recipient whose site can
take it soon is stored with its first lease, and its delivery leaves from memory after the commit (SHD-02, LSE-06).

Failures: when Postgres refuses a batch for its data, the batch is split until the guilty message is alone (ACC-03).
When the connection is lost in the middle, the outcome is unknown and the batch is stored again; ids that exist are left
alone, so this is harmless. If that lasts too long, the caller gets no answer and asks `GetOutcome`.
"""

import asyncio
import math
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import psycopg

from mailrail.core.ids import began
from mailrail.kit import log
from mailrail.kit.postgres import settle
from mailrail.kit.server_watch import SILENT_AFTER
from mailrail_queue import metrics
from mailrail_queue.accept.bodies import Bodies
from mailrail_queue.accept.limits import over_limit
from mailrail_queue.accept.line import CommitLine
from mailrail_queue.accept.pending import (
    BARRED,
    BROKEN,
    EXISTED,
    FULL,
    LATE,
    OVER_LIMIT,
    STORED,
    UNAVAILABLE,
    UNSTORABLE,
    UPLOAD_GONE,
    CommitOutcome,
    PendingCommit,
    PreparedCommit,
)
from mailrail_queue.accept.prepare import Conditions, expanded_notices, prepare, without
from mailrail_queue.delivery.dispatcher import Dispatcher
from mailrail_queue.delivery.ports import Notifications
from mailrail_queue.routing.router import Router
from mailrail_queue.settings import QueueSettings
from mailrail_queue.store import accept as accept_store
from mailrail_queue.store import blocks
from mailrail_queue.store import content as content_store
from mailrail_queue.store import results as result_store
from mailrail_queue.store import waiting as waiting_store
from mailrail_queue.store.connection import DATABASE_FAILURE, TROUBLE, Connection, Database, Lane, sure
from mailrail_queue.store.data_history import QueueHistory
from mailrail_queue.store.fencing import Ownership
from mailrail_queue.store.hold_rules import HoldRules, read_hold_rules
from mailrail_queue.store.ids import Ids
from mailrail_queue.store.results import Deferral

_REFUSE_AFTER = 10.0
"""Seconds without Postgres after which mail that was never sent to it is refused (451) instead of kept waiting."""
_GIVE_UP_AFTER = 60.0
"""Seconds after which a commit of unknown outcome is left without an answer, where its caller does not say how long it
waits; it asks GetOutcome (ACC-04)."""
_FRESH_IDS = 3
"""Times that a batch is given new ids, because some of those that it had are there already."""


class Worklist(Protocol):
    """What this process owns, and where it writes down the work that it learns of."""

    @property
    def ownership(self) -> Ownership:
        """The shards of this process."""

    def add_stored(self, where: Mapping[tuple[int, str], float]) -> None:
        """Recipients were stored due in these (shard, site). With each is when the newest of their messages began (Unix
        seconds)."""


class GroupCommit:
    """Takes commits, groups them, stores them, answers."""

    def __init__(
        self,
        settings: QueueSettings,
        database: Database,
        dispatcher: Dispatcher,
        router: Callable[[], Router],
        worklist: Worklist,
        history: QueueHistory,
        notifications: Notifications,
    ) -> None:
        self._settings = settings
        self._database = database
        self._dispatcher = dispatcher
        self._router = router
        self._worklist = worklist
        self._notifications = notifications
        self._lanes = [database.lane("accept 1"), database.lane("accept 2")]
        self.bodies = Bodies(database)
        self._outcome_lanes = [database.lane("outcome 1"), database.lane("outcome 2")]
        self._asked = 0
        self.ids = Ids(database.lane("ids"), history)
        self._hold_rules = HoldRules()
        self._waiting = CommitLine()
        self._wake = asyncio.Event()
        self._turn = asyncio.Lock()
        self._busy = 0
        self._in_hand = 0
        """Messages of the batches that are being stored."""
        self._down_since: float | None = None
        self._steady = 0.0
        self._closed = False
        self._log = log.get_logger()
        database.outage.count("messages_waiting", lambda: len(self._waiting) + self._in_hand)

    # --- in ---

    @property
    def idle(self) -> bool:
        """No commit waits for its answer, and no body to be deleted."""
        return not self._waiting and not self._busy and self.bodies.idle

    def submit(self, pending: PendingCommit) -> None:
        """Take a commit and answer its caller. After `close` the caller gets no answer and asks another replica."""
        if self._closed:
            pending.leave_unanswered()
            return
        self._waiting.add(pending)
        self._wake.set()

    def close(self) -> None:
        """Take no more commits, and leave those that wait unanswered."""
        self._closed = True
        for pending in self._waiting.take_older(math.inf):
            pending.leave_unanswered()

    async def outcome(self, message_id: bytes) -> float | None:
        """When a message was accepted (Unix seconds); None: not, and never will be (ACC-04). Raises psycopg.Error.

        On lanes of its own: a client waits for it, and bodies that are being stored must not make it wait longer.
        """
        self._asked += 1
        async with self._outcome_lanes[self._asked % len(self._outcome_lanes)].use() as connection:
            accepted = await accept_store.outcome(connection, message_id)
        if accepted is None:
            self.bodies.forget(message_id)  # what may have been uploaded of it
        return accepted

    async def in_history(self, message_id: bytes) -> bool:
        """Whether a message that `outcome` does not know was there before. Raises psycopg.Error."""
        async with self._outcome_lanes[self._asked % len(self._outcome_lanes)].use() as connection:
            return await accept_store.in_history(connection, message_id)

    def set_hold_rules(self, rules: HoldRules) -> None:
        """Prepare messages under these rules, which the heartbeat reads."""
        self._hold_rules = rules

    # --- batches ---

    async def run(self) -> None:
        """Store batches until cancelled."""
        async with asyncio.TaskGroup() as group:
            for lane in self._lanes:
                group.create_task(self._work(lane))
            group.create_task(self._refuse_in_silence())
            group.create_task(self.bodies.run())

    async def _work(self, lane: Lane) -> None:
        linger = self._settings.linger
        while True:
            async with self._turn:  # one gathers, while the other may be storing
                while not self._waiting:
                    self._wake.clear()
                    await self._wake.wait()
                if linger and time.monotonic() - self._steady < 0.05 and len(self._waiting) < 16:
                    await asyncio.sleep(linger)
                batch = self._waiting.take(self._settings.batch_messages, self._settings.batch_bytes)
                self._busy += 1
                self._in_hand += len(batch)
            if len(batch) > 1:
                self._steady = time.monotonic()
            try:
                await self._store(lane, batch)
            except asyncio.CancelledError:  # this process stops; another replica can tell the outcome (ACC-04)
                for pending in batch:
                    pending.leave_unanswered()
                raise
            except Exception:
                self._log.exception("unexpected error while storing a batch", messages=len(batch))
                for pending in batch:
                    pending.leave_unanswered()
            finally:
                self._busy -= 1
                self._in_hand -= len(batch)

    async def _refuse_in_silence(self) -> None:
        """While Postgres answers nothing, no lane comes back to see how long the others have waited (ACC-09)."""
        silent_since = 0.0
        while True:
            await asyncio.sleep(1.0)
            if not self._database.watch.silent:
                silent_since = 0.0
                continue
            now = time.monotonic()
            silent_since = silent_since or now - SILENT_AFTER
            if now - silent_since > _REFUSE_AFTER:
                for pending in self._waiting.take_older(now - _REFUSE_AFTER):  # none of them was sent
                    self._refuse(pending, UNAVAILABLE)

    async def _store(self, lane: Lane, batch: list[PendingCommit]) -> None:
        delay = 0.1
        fresh_ids, twice = 0, False
        while batch:
            attempted = False
            doubtful = {a.id for a in batch if a.sent}
            try:
                if twice:
                    await self.ids.begin_anew()
                    twice = False
                async with lane.use() as connection:
                    attempted = True
                    await self._store_once(connection, batch)
                self._down_since = None
                if self._database.outage.full:
                    self._database.outage.full = False
                    self._log.info("Postgres has space again; mail is accepted")
                return
            except psycopg.errors.DiskFull as error:  # Postgres's word that nothing of this try was stored
                if not self._database.outage.full:
                    self._log.error("Postgres has no space left; mail is refused", error=str(error).strip())
                self._database.outage.full = True
                for pending in batch:
                    if pending.id not in doubtful:
                        self._refuse(pending, FULL)
                batch = self._not_for_ever([a for a in batch if a.id in doubtful], error)
                await asyncio.sleep(delay)
                delay = min(2.0, delay * 2)
            except (UnicodeEncodeError, struct.error, *DATABASE_FAILURE) as error:
                if isinstance(error, TROUBLE):
                    for pending in batch:
                        pending.sent = pending.sent or attempted
                    batch = self._not_for_ever(batch, error)
                    await asyncio.sleep(delay)
                    delay = min(2.0, delay * 2)
                    continue
                if blocks.given_twice(error) and fresh_ids < _FRESH_IDS:  # not the mail's fault (ACC-05)
                    fresh_ids, twice = fresh_ids + 1, True
                    self._log.error("duplicate ids; taking new ones", error=str(error).strip())
                    continue
                if len(batch) > 1:  # ACC-03: one by one, so that only the guilty one is refused
                    for pending in batch:
                        await self._store(lane, [pending])
                    return
                self._refuse_guilty(batch[0], error)
                return

    def _not_for_ever(self, batch: list[PendingCommit], error: Exception) -> list[PendingCommit]:
        """Postgres is unreachable: refuse or leave the messages that waited too long. Returns those that wait on."""
        now = time.monotonic()
        if self._down_since is None:
            self._down_since = now
            self._database.outage.step(self._log, "mail waits for Postgres", error, messages=len(batch))
        keep: list[PendingCommit] = []
        for pending in batch:
            if not pending.sent and now - max(pending.since, self._down_since) > _REFUSE_AFTER:
                self._refuse(pending, UNAVAILABLE)
            elif pending.sent and self._given_up(pending, now):
                pending.leave_unanswered()
            else:
                keep.append(pending)
        return keep

    def _given_up(self, pending: PendingCommit, now: float) -> bool:
        """Whether its caller has stopped waiting, by the best estimate of Postgres's clock."""
        if pending.until < math.inf:
            return self._database.earliest() > pending.until
        return now - pending.since > _GIVE_UP_AFTER

    def _refuse_guilty(self, pending: PendingCommit, error: Exception) -> None:
        # Only a value that cannot be stored is the message's fault. A key or a check that fails is ours, and the sender
        # shall try again (ACC-05: never a 5yz for a fault that the sender cannot mend).
        data = isinstance(error, psycopg.DataError | UnicodeEncodeError | struct.error)
        data = data and not isinstance(error, psycopg.errors.SequenceGeneratorLimitExceeded)
        self._log.error(
            "a message cannot be stored", message_id=pending.id.hex(), error=str(error).strip(), its_data=data
        )
        self._refuse(pending, UNSTORABLE if data else BROKEN)

    def _refuse(self, pending: PendingCommit, outcome: CommitOutcome) -> None:
        """Refuse a message that is not in the database and never will be, and delete its body."""
        if pending.chunks:
            self.bodies.forget(pending.id)
        pending.answer(outcome)

    async def _store_once(self, connection: Connection, batch: list[PendingCommit]) -> None:
        again = any(pending.sent for pending in batch)
        under = self._conditions()
        prepared = await self._prepare(connection, batch, under)
        for pending in batch:
            pending.sent = True
        before = self._dispatcher.clock()
        large = [one.pending.id for one in prepared if one.message.chunks]
        limited = [one for one in prepared if one.message.account in under.router.limits]
        refused: list[PreparedCommit] = []
        if large or limited or any(one.expanded for one in prepared):
            async with self._notifications.transaction(connection) as notify:
                if large:
                    claimed = await content_store.claim_uploads(connection, large)
                    _refuse_unclaimed(prepared, claimed)
                if limited:
                    await self._refuse_over_limit(connection, under.router, limited)
                refused = [one for one in prepared if one.outcome is not None]
                chosen, done = await self._insert(connection, [one for one in prepared if one.outcome is None], under)
                missing = done.messages < len(chosen)
                if large and (missing or refused):
                    await content_store.drop_chunks(connection, large)
                expanded = [one for one in chosen if one.expanded]
                if expanded and missing:
                    ours = await self._stored_by_us(connection, expanded)
                    expanded = [one for one in expanded if one.pending.id in ours]
                await notify([notice for one in expanded for notice in expanded_notices(one)])
        else:
            chosen, done = await self._insert(connection, prepared, under)
            missing = done.messages < len(chosen)
        metrics.COMMIT_SECONDS.observe(self._dispatcher.clock() - before)
        metrics.BATCH.observe(len(batch))
        self._database.set_server_time(done.now, before)
        if missing or refused:
            await self._find_outcomes(connection, refused, chosen if missing else [], again=again)
        sure(connection)
        self._hand_on(refused, chosen, done, before)

    def _conditions(self) -> Conditions:
        return Conditions(
            self._router(), self._worklist.ownership, self._hold_rules, self._database.now(), self._dispatcher.clock()
        )

    async def _prepare(
        self, connection: Connection, batch: Sequence[PendingCommit], under: Conditions
    ) -> list[PreparedCommit]:
        """What is to be stored of each message, with ids that no try before has used."""
        count = sum(len(pending.commit.recipients) for pending in batch)
        await self.ids.ensure(count, count, connection)
        prepared = [prepare(pending, under, self.ids, self._dispatcher) for pending in batch]
        for one in prepared:
            if one.deliveries:
                one.pending.born_leased += tuple([new for new in one.recipients if new.token])
        return prepared

    async def _insert(
        self, connection: Connection, chosen: list[PreparedCommit], under: Conditions
    ) -> tuple[list[PreparedCommit], accept_store.Stored]:
        """Store messages. Returns them, prepared anew if hold rules changed since, and what the statement did."""
        while True:
            done = await accept_store.store(
                connection,
                under.ownership,
                self._settings.lease_seconds,
                [one.message for one in chosen],
                [new for one in chosen for new in one.recipients],
                holds=under.holds.version,
            )
            if done.hold_version == under.holds.version:
                return chosen, done
            self._hold_rules = await read_hold_rules(connection)
            under = self._conditions()
            chosen = await self._prepare(connection, [one.pending for one in chosen], under)

    async def _stored_by_us(self, connection: Connection, chosen: Sequence[PreparedCommit]) -> set[bytes]:
        """Ids of those messages that this very statement stored: their recipients bear the ids that we gave them."""
        firsts = [one.recipients[0].id for one in chosen if one.recipients]
        found = {row.id for row in await waiting_store.live(connection, firsts)}
        return {one.pending.id for one in chosen if one.recipients and one.recipients[0].id in found}

    async def _find_outcomes(
        self, connection: Connection, refused: list[PreparedCommit], chosen: list[PreparedCommit], *, again: bool
    ) -> None:
        """What became of messages that were refused, or of `chosen`, some of which the statement did not store.

        `again`: an earlier try may have stored them, or still be under way.
        """
        ids = [one.pending.id for one in (*refused, *chosen)]
        existing = await accept_store.existing(connection, ids)
        late = [one for one in chosen if one.pending.id not in existing]
        if late and again:  # barred first, which waits for the earlier try (ACC-04)
            for one in late:
                await accept_store.outcome(connection, one.pending.id)
            existing = await accept_store.existing(connection, ids)
        else:
            for one in late:
                one.outcome = LATE
        ours = await self._stored_by_us(connection, chosen) if chosen else set()
        found: list[PreparedCommit] = []
        for one in (*refused, *chosen):
            message_id = one.pending.id
            if message_id in existing and message_id not in ours:
                one.outcome = BARRED if existing[message_id] else EXISTED
                found.append(one)
        if again:
            await self._give_back(connection, [one.pending for one in found])
        if found:
            await settle(connection)  # another statement stored them: visible, but perhaps not durable yet (DUR-01)

    async def _give_back(self, connection: Connection, found: Sequence[PendingCommit]) -> None:
        """An earlier try was committed after all, under leases that were never handed on: due again at once."""
        leased = {new.id: new for pending in found for new in pending.born_leased}
        if leased:
            deferrals = [Deferral(r.id, r.message_id, r.token, 1, 0.0, None) for r in leased.values()]
            rows = await result_store.defer(connection, deferrals)
            back = sorted((leased[row[0]] for row in rows), key=lambda new: new.message_id)  # by time: the newest last
            self._worklist.add_stored({(new.shard, new.site): began(new.message_id) for new in back})

    async def _refuse_over_limit(self, connection: Connection, router: Router, limited: list[PreparedCommit]) -> None:
        """Count what accounts with limits send, under a lock that ends with this transaction (ACC-08)."""
        there = await accept_store.existing(connection, [one.pending.id for one in limited])
        by_account: dict[str, list[PreparedCommit]] = {}
        for one in limited:
            if one.outcome is None and one.pending.id not in there:  # a committed one was counted when it was committed
                by_account.setdefault(one.message.account or "", []).append(one)
        for account in sorted(by_account):  # in order, so that two batches cannot deadlock
            wanted = by_account[account]
            messages, recipients = await accept_store.lock_usage(connection, account)
            over = over_limit(router.limits[account], messages, recipients, [len(one.recipients) for one in wanted])
            for one, refused in zip(wanted, over, strict=True):
                if refused:
                    one.outcome = OVER_LIMIT
            taken = [len(one.recipients) for one in wanted if one.outcome is None]
            if taken:
                await accept_store.count_usage(connection, account, len(taken), sum(taken))

    def _hand_on(
        self,
        refused: Sequence[PreparedCommit],
        chosen: Sequence[PreparedCommit],
        done: accept_store.Stored,
        before: float,
    ) -> None:
        """After the commit: answer the callers and hand the deliveries of born leased recipients to the dispatcher."""
        deadline = before + self._settings.lease_seconds
        due: dict[tuple[int, str], float] = {}
        origins: list[int] = []
        born = waiting = held = later = 0
        for one in (*refused, *chosen):
            if one.outcome is not None:
                one.pending.answer(one.outcome)
                continue
            owned: set[int] = set()
            for new in one.recipients:
                if new.hold_reason is not None:
                    held += 1
                elif new.token and new.shard in done.owned:
                    born += 1
                    owned.add(new.id)
                elif new.release:
                    later += 1
                else:
                    waiting += 1
                    where = new.shard, new.site
                    due[where] = max(due.get(where, 0.0), began(one.pending.id))
            origins.append(one.recipients[0].origin)
            for delivery in one.deliveries:
                if len(owned) < len(one.recipients):
                    without(delivery, {p.id for p in delivery.recipients if p.id not in owned})
                if delivery.recipients:
                    delivery.deadline = deadline
                    delivery.started = done.now
                    for recipient in delivery.recipients:
                        recipient.accepted = done.now
                    self._dispatcher.add(delivery)
            one.pending.answer(STORED)
        metrics.count_accepted(origins)
        metrics.count_stored({"born_leased": born, "due": waiting, "held": held, "released_later": later})
        if born:
            self._dispatcher.pump()
        if due:
            self._worklist.add_stored(due)


def _refuse_unclaimed(prepared: Sequence[PreparedCommit], claimed: set[bytes]) -> None:
    """Large messages whose content is no longer there."""
    for one in prepared:
        if one.message.chunks and one.pending.id not in claimed:
            one.outcome = UPLOAD_GONE
