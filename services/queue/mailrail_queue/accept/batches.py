"""Mail comes in: bodies in chunks, commits in groups, one answer each, and never one before it is true (ACC).

A commit waits here only until a lane is free; what gathered meanwhile shares the next transaction. While mail comes in
steadily a batch waits a millisecond for company, when idle not at all. Fresh mail whose site can take it soon is
stored with its first lease and leaves from memory once the commit has returned (SHD-02, LSE-06).

How it fails: a batch that Postgres refuses for its data is split until the guilty message stands alone (ACC-03). A
connection lost in the middle leaves the outcome open; the batch is stored again, which is harmless, since ids that are
there are left alone. Only when that goes on for too long does the caller get no answer, and asks `GetOutcome`.
"""

import asyncio
import math
import struct
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import psycopg

from mailrail.core.delivery.hold import first_match
from mailrail.core.delivery.judge import Judgement
from mailrail.core.delivery.outcome import Outcome
from mailrail.core.dsn.due import Asked, DsnKind, due
from mailrail.core.ids import header_key
from mailrail.core.smtp.reply import EnhancedCode
from mailrail.kit import log
from mailrail.kit.postgres import settle
from mailrail.pb.queue.v1 import types_pb2
from mailrail_queue import metrics
from mailrail_queue.accept.pending import (
    _REASONS,
    BARRED,
    BROKEN,
    FULL,
    LATE,
    OVER_LIMIT,
    UNAVAILABLE,
    UNSTORABLE,
    UPLOAD_GONE,
    PendingCommit,
)
from mailrail_queue.delivery.attempt import PER_DELIVERY, Delivery, DeliveryContent, recipient_fields
from mailrail_queue.delivery.dispatcher import Dispatcher
from mailrail_queue.delivery.ports import AttemptRecipient, Notice, Notifications
from mailrail_queue.delivery.verdicts import asked_of
from mailrail_queue.routing.router import RecipientFacts, RoutePlan, Router, domain_of, reference_text
from mailrail_queue.settings import QueueSettings
from mailrail_queue.store import mail as store
from mailrail_queue.store.connection import Database, Lane, NotDurable, sure
from mailrail_queue.store.data_history import QueueHistory
from mailrail_queue.store.hold_rules import HoldRules, read_hold_rules
from mailrail_queue.store.ids import Ids
from mailrail_queue.store.mail import Connection, Deferral, NewMessage, NewRecipient, Ownership

_REFUSE_AFTER = 10.0
"""Seconds without Postgres after which mail that was never sent to it is refused (451) instead of kept waiting."""
_GIVE_UP_AFTER = 60.0
"""Seconds after which a commit of unknown outcome is left without an answer, where its caller does not say how long it
waits; it asks GetOutcome (ACC-04)."""
_FRESH_IDS = 3
"""Times that a batch is given new ids, because some of those that it had are there already."""
_FORGET_STEP = 10
"""Bodies deleted in one transaction: each may be 100 MB, and Postgres marks every page of it."""
_FORGET_AGAIN = 1.0
"""Seconds until what could not be deleted is tried again."""
_FORGOTTEN = 100_000
"""Bodies that may wait to be deleted; more are left to the sweeper."""
_OVERHEAD = 64
"""Octets counted for a message besides its content."""

_OURS = (types_pb2.ORIGIN_SUBMISSION, types_pb2.ORIGIN_SYSTEM)
_EXPANDED = Judgement(Outcome.DELIVERED, EnhancedCode(2, 0, 0), None, DsnKind.EXPANDED)


_Member = tuple[RoutePlan, NewRecipient, AttemptRecipient, dict[str, Any]]


class Worklist(Protocol):
    """What this process owns, and where it writes down the work that it learns of."""

    @property
    def ownership(self) -> Ownership:
        """The shards of this process."""

    def add_stored(self, where: set[tuple[int, str]]) -> None:
        """Recipients were stored due in these (shard, site)."""


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
        self._upload_lane = database.lane("upload")
        self._outcome_lanes = [database.lane("outcome 1"), database.lane("outcome 2")]
        self._asked = 0
        self._forget_lane = database.lane("forget")
        self._forgotten: dict[bytes, None] = {}
        self._forget = asyncio.Event()
        self.ids = Ids(database.lane("ids"), history)
        self.holds = HoldRules()
        self._waiting: deque[PendingCommit] = deque()
        self._wake = asyncio.Event()
        self._turn = asyncio.Lock()
        self._busy = 0
        self._down_since: float | None = None
        self._steady = 0.0
        self._closed = False
        self._log = log.get_logger()

    # --- in ---

    @property
    def idle(self) -> bool:
        """No commit waits for its answer, and no body to be forgotten."""
        return not self._waiting and not self._busy and not self._forgotten

    def submit(self, pending: PendingCommit) -> None:
        """Take a commit; its caller is answered, or, once closed, asks GetOutcome of another replica."""
        if self._closed:
            pending.lost()
            return
        self._waiting.append(pending)
        self._wake.set()

    def close(self) -> None:
        """Take no more: what still waits is not stored here."""
        self._closed = True
        while self._waiting:
            self._waiting.popleft().lost()

    async def add_chunk(self, message_id: bytes, number: int, data: bytes) -> bool:
        """Store a part of a large body (ACC-02). False: the upload is gone. Raises psycopg.Error, NotDurable."""
        async with self._upload_lane.use() as connection:
            return await store.add_chunk(connection, message_id, number, data)

    def forget(self, message_id: bytes) -> None:
        """Delete a body whose commit will not come, soon; the sweeper finds what this misses."""
        if len(self._forgotten) < _FORGOTTEN:
            self._forgotten[message_id] = None
            self._forget.set()

    async def _keep_forgetting(self) -> None:
        """Delete what was forgotten, some of it at a time, until cancelled."""
        while True:
            await self._forget.wait()
            self._forget.clear()
            while self._forgotten:
                ids = list(self._forgotten)[:_FORGET_STEP]
                try:
                    async with self._forget_lane.use() as connection:
                        await store.abort_uploads(connection, ids)
                except (psycopg.Error, NotDurable, OSError) as error:
                    self._log.info(
                        "cannot delete uncommitted bodies; trying again", error=str(error).strip(), bodies=len(ids)
                    )
                    await asyncio.sleep(_FORGET_AGAIN)
                    continue
                for message_id in ids:
                    del self._forgotten[message_id]

    async def outcome(self, message_id: bytes) -> float | None:
        """When a message was accepted (Unix seconds); None: not, and never will be (ACC-04). Raises psycopg.Error.

        On lanes of its own: a client waits for it, and bodies that are being stored must not make it wait longer.
        """
        self._asked += 1
        async with self._outcome_lanes[self._asked % len(self._outcome_lanes)].use() as connection:
            accepted = await store.outcome(connection, message_id)
        if accepted is None:
            self.forget(message_id)  # what may have been uploaded of it
        return accepted

    # --- batches ---

    async def run(self) -> None:
        """Store batches until cancelled."""
        async with asyncio.TaskGroup() as group:
            for lane in self._lanes:
                group.create_task(self._work(lane))
            group.create_task(self._keep_forgetting())

    async def _work(self, lane: Lane) -> None:
        linger = self._settings.linger
        while True:
            async with self._turn:  # one gathers, while the other may be storing
                while not self._waiting:
                    self._wake.clear()
                    await self._wake.wait()
                if linger and time.monotonic() - self._steady < 0.05 and len(self._waiting) < 16:
                    await asyncio.sleep(linger)
                batch = self._take()
                self._busy += 1
            if len(batch) > 1:
                self._steady = time.monotonic()
            try:
                await self._store(lane, batch)
            except asyncio.CancelledError:  # we stop, and only another replica can tell what became of it (ACC-04)
                for pending in batch:
                    pending.lost()
                raise
            except Exception:
                self._log.exception("unexpected error while storing a batch", messages=len(batch))
                for pending in batch:
                    pending.lost()
            finally:
                self._busy -= 1

    def _take(self) -> list[PendingCommit]:
        batch: dict[bytes, PendingCommit] = {}
        room = self._settings.batch_bytes
        while self._waiting and len(batch) < self._settings.batch_messages:
            if batch and self._waiting[0].size > room:
                break
            pending = self._waiting.popleft()
            first = batch.setdefault(pending.id, pending)
            if first is not pending:
                first.duplicates += (pending.caller,)
            room -= pending.size
        return list(batch.values())

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
                return
            except psycopg.errors.DiskFull as error:  # Postgres's word that nothing of this try was stored
                self._log.error("Postgres has no space left; mail is refused", error=str(error).strip())
                for pending in batch:
                    if pending.id not in doubtful:
                        metrics.REFUSED.labels(reason="unavailable").inc()
                        self._refuse(pending, FULL)
                batch = self._not_for_ever([a for a in batch if a.id in doubtful], error)
                await asyncio.sleep(delay)
                delay = min(2.0, delay * 2)
            except (UnicodeEncodeError, struct.error, psycopg.Error, NotDurable, OSError) as error:
                if isinstance(error, psycopg.OperationalError | psycopg.InterfaceError | NotDurable | OSError):
                    for pending in batch:
                        pending.sent = pending.sent or attempted
                    batch = self._not_for_ever(batch, error)
                    await asyncio.sleep(delay)
                    delay = min(2.0, delay * 2)
                    continue
                if store.given_twice(error) and fresh_ids < _FRESH_IDS:  # not the mail's fault (ACC-05)
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
        """Postgres is out of reach: those of the batch that wait on."""
        now = time.monotonic()
        if self._down_since is None:
            self._down_since = now
            self._log.warning("Postgres is unreachable; mail waits", error=str(error).strip(), messages=len(batch))
        keep: list[PendingCommit] = []
        for pending in batch:
            if not pending.sent and now - max(pending.since, self._down_since) > _REFUSE_AFTER:
                metrics.REFUSED.labels(reason="unavailable").inc()
                self._refuse(pending, UNAVAILABLE)
            elif pending.sent and self._given_up(pending, now):
                pending.lost()
            else:
                keep.append(pending)
        return keep

    def _given_up(self, pending: PendingCommit, now: float) -> bool:
        """Whether its caller waits no longer, as well as we know the time while Postgres is away."""
        if pending.until < math.inf:
            return self._database.earliest() > pending.until
        return now - pending.since > _GIVE_UP_AFTER

    def _refuse_guilty(self, pending: PendingCommit, error: Exception) -> None:
        # Only what cannot be written down is the message's fault. Keys and checks are of our making, what makes them
        # fail is ours too: such mail comes again (ACC-05: never a 5yz for what the sender can do nothing about).
        data = isinstance(error, psycopg.DataError | UnicodeEncodeError | struct.error)
        data = data and not isinstance(error, psycopg.errors.SequenceGeneratorLimitExceeded)
        self._log.error(
            "a message cannot be stored", message_id=pending.id.hex(), error=str(error).strip(), its_data=data
        )
        metrics.REFUSED.labels(reason="data").inc()
        self._refuse(pending, UNSTORABLE if data else BROKEN)

    def _refuse(self, pending: PendingCommit, reply: types_pb2.Reply) -> None:
        """Refuse what is not in the database, and never will be: its body goes as well."""
        if pending.chunks:
            self.forget(pending.id)
        pending.answer(False, reply)

    async def _store_once(self, connection: Connection, batch: list[PendingCommit]) -> None:
        again = any(a.sent for a in batch)
        count = sum(len(a.commit.recipients) for a in batch)
        await self.ids.ensure(count, count, connection)
        router, ownership, holds = self._router(), self._worklist.ownership, self.holds
        large: list[PendingCommit] = []
        limited: list[PendingCommit] = []
        expanded: list[PendingCommit] = []
        for pending in batch:
            if pending.new is None or again:
                self._prepare(pending, router, ownership, holds)
            pending.sent = True
            if pending.chunks:
                large.append(pending)
            if pending.new is not None and pending.new.account in router.limits:
                limited.append(pending)
            if pending.expanded:
                expanded.append(pending)
        before = self._dispatcher.clock()
        refused: dict[bytes, types_pb2.Reply] = {}
        chosen = batch
        if large or limited or expanded:
            async with self._notifications.transaction(connection) as notify:
                if large:
                    claimed = await store.claim_uploads(connection, [a.id for a in large])
                    refused.update({a.id: UPLOAD_GONE for a in large if a.id not in claimed})
                if limited:
                    refused.update(await self._over_limit(connection, router, limited, refused))
                chosen = [a for a in batch if a.id not in refused]
                done = await self._insert(connection, router, ownership, holds, chosen)
                if large and (refused or done.messages < len(chosen)):
                    await store.drop_chunks(connection, [a.id for a in large])
                if expanded:
                    there = await self._conflicts(connection, chosen, done) if done.messages < len(chosen) else {}
                    notices = [n for a in expanded if a.id not in refused and a.id not in there for n in _expanded(a)]
                    await notify(notices)
        else:
            done = await self._insert(connection, router, ownership, holds, chosen)
        metrics.COMMIT_SECONDS.observe(self._dispatcher.clock() - before)
        metrics.BATCH.observe(len(batch))
        self._database.heard(done.now, before)
        conflicts: dict[bytes, bool] = {}
        if done.messages < len(chosen) or refused:
            conflicts = await store.existing(connection, [a.id for a in batch])
            late = [a.id for a in chosen if a.id not in conflicts] if done.messages < len(chosen) else []
            if late and again:  # an earlier try may still be under way: barred first, which waits for it (ACC-04)
                for message_id in late:
                    await store.outcome(connection, message_id)
                conflicts = await store.existing(connection, [a.id for a in batch])
            else:
                refused |= dict.fromkeys(late, LATE)
            if done.messages == len(chosen):
                conflicts = {i: barred for i, barred in conflicts.items() if i in refused}
            else:
                conflicts = await self._sort_conflicts(connection, chosen, conflicts, refused)
        if again:
            await self._give_back(connection, [a for a in batch if a.id in conflicts and a.earlier])
        if conflicts:
            await settle(connection)  # found, not stored by this statement: not durable because it is seen (DUR-01)
        sure(connection)
        self._hand_on(batch, refused, conflicts, done, before)

    async def _insert(
        self,
        connection: Connection,
        router: Router,
        ownership: Ownership,
        holds: HoldRules,
        chosen: list[PendingCommit],
    ) -> store.Stored:
        while True:
            done = await store.store(
                connection,
                ownership,
                self._settings.lease_seconds,
                [a.new for a in chosen if a.new is not None],
                [r for a in chosen for r in a.recipients],
                holds=holds.version,
            )
            if done.hold_version == holds.version:
                return done
            # Rules came or went while the batch was under way, and nothing was stored: made anew under those of now.
            holds = self.holds = await read_hold_rules(connection)
            count = sum(len(a.commit.recipients) for a in chosen)
            await self.ids.ensure(count, count, connection)
            for pending in chosen:
                self._prepare(pending, router, ownership, holds)

    async def _conflicts(
        self, connection: Connection, chosen: list[PendingCommit], done: store.Stored
    ) -> dict[bytes, bool]:
        """Ids that were there before this statement: those none of whose recipients it stored."""
        ours = {w.id for w in await store.live(connection, [a.recipients[0].id for a in chosen if a.recipients])}
        return {a.id: False for a in chosen if a.recipients and a.recipients[0].id not in ours}

    async def _sort_conflicts(
        self,
        connection: Connection,
        chosen: list[PendingCommit],
        existing: dict[bytes, bool],
        refused: dict[bytes, types_pb2.Reply],
    ) -> dict[bytes, bool]:
        """Of the ids that exist now, those that were there before: message id → barred.

        Which they are shows by the recipients: ours bear the ids that we gave them.
        """
        fresh = {w.id for w in await store.live(connection, [r.id for a in chosen for r in a.recipients[:1]])}
        found: dict[bytes, bool] = {}
        for pending in chosen:
            if pending.id in existing and not (pending.recipients and pending.recipients[0].id in fresh):
                found[pending.id] = existing[pending.id]
        for message_id in refused:
            if message_id in existing:
                found[message_id] = existing[message_id]
        return found

    async def _give_back(self, connection: Connection, arrivings: Sequence[PendingCommit]) -> None:
        """An earlier try was committed after all, under leases that were never handed on: due again at once."""
        earlier = [r for a in arrivings for r in a.earlier]
        if earlier:
            await store.defer(connection, [Deferral(r.id, r.message_id, r.token, 1, 0.0, None) for r in earlier])
            self._worklist.add_stored({(r.shard, r.site) for r in earlier})

    async def _over_limit(
        self,
        connection: Connection,
        router: Router,
        limited: list[PendingCommit],
        refused: dict[bytes, types_pb2.Reply],
    ) -> dict[bytes, types_pb2.Reply]:
        """Count what accounts with limits send, under a lock that ends with this transaction (ACC-08)."""
        over: dict[bytes, types_pb2.Reply] = {}
        there = await store.existing(connection, [a.id for a in limited])
        by_account: dict[str, list[PendingCommit]] = {}
        for pending in limited:
            if pending.id not in refused and pending.id not in there:  # what is committed already was counted then
                assert pending.new is not None
                by_account.setdefault(pending.new.account or "", []).append(pending)
        for account in sorted(by_account):  # in order: two batches never wait for each other in a ring
            limits = router.limits[account]
            messages, recipients = await store.lock_usage(connection, account)
            new_messages = new_recipients = 0
            for pending in by_account[account]:
                count = len(pending.commit.recipients)
                too_many = limits.messages_per_day is not None and messages + new_messages + 1 > limits.messages_per_day
                too_wide = (
                    limits.recipients_per_day is not None
                    and recipients + new_recipients + count > limits.recipients_per_day
                )
                if too_many or too_wide:
                    over[pending.id] = OVER_LIMIT
                else:
                    new_messages += 1
                    new_recipients += count
            if new_messages:
                await store.count_usage(connection, account, new_messages, new_recipients)
        return over

    # --- one message ---

    def _prepare(self, pending: PendingCommit, router: Router, ownership: Ownership, holds: HoldRules) -> None:
        """Rows and deliveries of a message; nothing is reserved and nothing leaves before the commit."""
        message_id, commit, prefix, body = pending.id, pending.commit, pending.prefix, pending.body
        envelope = commit.envelope
        mail_from, tls, origin = envelope.mail_from, envelope.tls_requirement, envelope.origin
        from_domain = domain_of(mail_from) or (mail_from and "localhost")
        account = reference_text(envelope.account) if envelope.HasField("account") else None
        gateway = reference_text(envelope.gateway) if envelope.HasField("gateway") else None
        ours = origin in _OURS
        sender_authentication = types_pb2.SENDER_AUTHENTICATION_YES if ours else envelope.sender_authentication
        release = float(envelope.release.seconds) if envelope.HasField("release") else 0.0
        if release and envelope.future_release_request.startswith("for;") and envelope.HasField("received"):
            # HOLDFOR counts from when ingress took the message, by whatever clock it has (RFC 4865 4.1).
            release += self._database.now() - envelope.received.ToNanoseconds() / 1e9
        key = header_key(envelope.message_id) if envelope.message_id else 0
        inline = pending.chunks == 0
        size = commit.size or len(prefix) + len(body)
        data = envelope.SerializeToString()
        pending.new = NewMessage(
            message_id,
            mail_from,
            account,
            size,
            pending.chunks,
            data,
            prefix,
            body if inline else None,
            pending.until,
        )
        if pending.recipients:
            pending.earlier += tuple(r for r in pending.recipients if r.token)
        pending.recipients = handed = []
        pending.deliveries = deliveries = []
        pending.expanded = False
        flying: list[_Member] = []
        accepted = self._database.now()
        for rcpt in commit.recipients:
            address = rcpt.address
            facts = RecipientFacts(domain_of(address), from_domain, account, ours, rcpt.HasField("domain"), gateway)
            plan = router.plan(facts, 0)
            hold_reason = None
            if holds.rules:
                rule = first_match(
                    holds.rules, account=account, sender_domain=from_domain, recipient_domain=facts.domain
                )
                hold_reason = rule.reason if rule is not None else None
            row = rcpt.SerializeToString()
            new = NewRecipient(
                self.ids.recipient(),
                message_id,
                plan.shard,
                plan.key,
                0,
                release,
                hold_reason,
                tls,
                origin,
                sender_authentication,
                address,
                gateway,
                account,
                from_domain,
                facts.is_local,
                key,
                row,
            )
            handed.append(new)
            if rcpt.expanded and due(
                DsnKind.EXPANDED,
                Asked.SUCCESS,
                null_sender=not mail_from,
                sender_authentication=sender_authentication,
            ):
                pending.expanded = True
            if hold_reason is None and not release and inline and plan.shard in ownership.epochs and not plan.missing:
                recipient = AttemptRecipient(
                    id=new.id,
                    message_id=message_id,
                    shard=plan.shard,
                    version=1,
                    attempts=1,
                    interruptions=0,
                    accepted=accepted,
                    uncounted_seconds=0.0,
                    null_sender=from_domain == "",
                    sender_authentication=sender_authentication,
                    delayed_dsn_decided=False,
                    tls_requirement=tls,
                    address=address,
                    facts=facts,
                    notify=asked_of(rcpt.notify) if rcpt.notify else 0,
                    envelope_recipient=row,
                )
                flying.append((plan, new, recipient, recipient_fields(new.id, rcpt)))
        if not flying:
            return
        now = self._dispatcher.clock()
        held = len(prefix) + len(body) + _OVERHEAD
        for members in group_by_transaction(flying):
            plan = members[0][0]
            site = self._dispatcher.site(plan)
            if not self._dispatcher.accepts_fresh(site, held, now):
                continue
            limit = min(PER_DELIVERY, plan.transport.limits.recipients_per_message if plan.transport else PER_DELIVERY)
            for start in range(0, len(members), max(1, limit)):
                part = members[start : start + max(1, limit)]
                token = self.ids.token()
                for _, new, _, _ in part:
                    new.token = token
                recipients = [p for _, _, p, _ in part]
                content = DeliveryContent(data, [fields for _, _, _, fields in part], prefix, body, size)
                deliveries.append(Delivery(token, message_id, plan, site, recipients, held, 0.0, accepted, 1, content))

    def _hand_on(
        self,
        batch: Sequence[PendingCommit],
        refused: dict[bytes, types_pb2.Reply],
        conflicts: dict[bytes, bool],
        done: store.Stored,
        before: float,
    ) -> None:
        """The commit has returned: answer, and let what was born leased go."""
        deadline = before + self._settings.lease_seconds
        due: set[tuple[int, str]] = set()
        origins: list[int] = []
        born = waiting = held = later = 0
        for pending in batch:
            message_id = pending.id
            if message_id in conflicts:
                barred = conflicts[message_id]
                if barred:
                    metrics.REFUSED.labels(reason="barred").inc()
                pending.answer(not barred, BARRED if barred else None)
                continue
            if message_id in refused:
                reply = refused[message_id]
                metrics.REFUSED.labels(reason=_REASONS[reply.lines[0]]).inc()
                pending.answer(False, reply)
                continue
            owned: set[int] = set()
            for new in pending.recipients:
                if new.hold_reason is not None:
                    held += 1
                elif new.token and new.shard in done.owned:
                    born += 1
                    owned.add(new.id)
                elif new.release:
                    later += 1
                else:
                    waiting += 1
                    due.add((new.shard, new.site))
            origins.append(pending.recipients[0].origin)
            for delivery in pending.deliveries:
                if len(owned) < len(pending.recipients):
                    self._leave_behind(delivery, owned)
                if delivery.recipients:
                    delivery.deadline = deadline
                    delivery.started = done.now
                    for recipient in delivery.recipients:
                        recipient.accepted = done.now
                    self._dispatcher.add(delivery)
            pending.answer(True, None)
        metrics.count_accepted(origins)
        metrics.count_stored({"born_leased": born, "due": waiting, "held": held, "released_later": later})
        if born:
            self._dispatcher.pump()
        if due:
            self._worklist.add_stored(due)

    @staticmethod
    def _leave_behind(delivery: Delivery, owned: set[int]) -> None:
        """Recipients that were stored due after all do not fly."""
        staying = {p.id for p in delivery.recipients if p.id not in owned}
        if staying and delivery.content is not None:
            delivery.recipients = [p for p in delivery.recipients if p.id not in staying]
            kept = [fields for fields in delivery.content.recipients if fields["id"] not in staying]
            delivery.content = delivery.content._replace(recipients=kept)


def group_by_transaction(members: list[_Member]) -> Iterable[list[_Member]]:
    """Recipients of a message that may share a transaction, in groups (design 4, Deliver)."""
    if len(members) == 1:
        return (members,)
    groups: dict[tuple[tuple[str, str], str], list[_Member]] = {}
    for member in members:
        plan = member[0]
        groups.setdefault((plan.grouping, plan.template.domain), []).append(member)
    return groups.values()


def _expanded(pending: PendingCommit) -> list[Notice]:
    """Notices of lists that were expanded, one for each address that was given (DSN-23); they are due (DSN-26a)."""
    notices: dict[str, Notice] = {}
    for new, rcpt in zip(pending.recipients, pending.commit.recipients, strict=True):
        if rcpt.expanded and rcpt.rcpt_to not in notices:
            attempt = types_pb2.Attempt(number=0)
            facts = RecipientFacts(
                domain_of(rcpt.address), new.from_domain, new.account, True, new.is_local, new.gateway
            )
            recipient = AttemptRecipient(
                id=new.id,
                message_id=pending.id,
                shard=new.shard,
                version=1,
                attempts=0,
                interruptions=0,
                accepted=0.0,
                uncounted_seconds=0.0,
                null_sender=new.from_domain == "",
                sender_authentication=new.sender_authentication,
                delayed_dsn_decided=False,
                tls_requirement=new.tls_requirement,
                address=rcpt.rcpt_to or rcpt.address,
                facts=facts,
                notify=int(Asked.SUCCESS),
                envelope_recipient=new.envelope_recipient,
            )
            notices[rcpt.rcpt_to] = Notice(recipient, _EXPANDED, attempt)
    return list(notices.values())
