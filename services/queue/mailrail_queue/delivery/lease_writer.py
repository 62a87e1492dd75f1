"""Writes what becomes of leases and sites apart from results: renewals, attempts undone, leases lost, backoffs.

Everything is noted in memory first and written in batches, on one lane. What Postgres did not take is written again. A
row that cannot be written costs itself alone: its lease runs out, and the lease sweep deals with it.
"""

import asyncio
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mailrail.kit import log
from mailrail.pb.queue.v1 import types_pb2
from mailrail_queue import metrics
from mailrail_queue.delivery.attempt import Delivery
from mailrail_queue.delivery.parts import Parts
from mailrail_queue.delivery.ports import AttemptRecipient, Schedule
from mailrail_queue.delivery.results import Finisher
from mailrail_queue.delivery.stream import OutboundStream
from mailrail_queue.store import faults
from mailrail_queue.store import leases as lease_store
from mailrail_queue.store import results as result_store
from mailrail_queue.store import sites as site_store
from mailrail_queue.store import waiting as waiting_store
from mailrail_queue.store.connection import TROUBLE, Lane
from mailrail_queue.store.results import Deferral
from mailrail_queue.store.waiting import Waiting

_AT_ONCE = 500
"""Rows of one statement."""
_RETRY_AFTER = 0.5
"""Seconds until what could not be written is tried again."""
_LAST_WORDS = 5.0
"""Seconds that a clean stop spends on giving leases back."""


@dataclass(frozen=True, slots=True)
class SiteBackoff:
    """A backoff of a site or transport, for other owners to learn of (design 4, Attempt)."""

    failures: int
    """Backoffs in a row, this one included."""
    seconds: float
    """How long it lasts from now."""
    last_error: bytes
    """Attempt."""


class LeaseWriter:
    """The queue of what is to be written of leases and sites."""

    def __init__(self, parts: Parts, lane: Lane, finisher: Finisher, schedule: Schedule) -> None:
        self._lease_seconds = parts.settings.lease_seconds
        self._lane = lane
        self._dispatcher = parts.dispatcher
        self._finisher = finisher
        self._schedule = schedule
        self._wake = asyncio.Event()
        self._renewals: dict[int, tuple[Delivery, OutboundStream, list[tuple[int, int]]]] = {}
        """Token → its delivery, the stream to tell, and (recipient id, token) of what is renewed."""
        self._undo: list[Deferral] = []
        self._lost: list[tuple[int, bytes, int]] = []
        self._known: list[AttemptRecipient] = []
        self._backoffs: dict[str, SiteBackoff | None] = {}
        self._log = log.get_logger()

    # --- what is to be written ---

    def renew(self, delivery: Delivery, stream: OutboundStream) -> None:
        """Renew the lease of what has no result yet, and tell the stream (LSE-01)."""
        leases = [(p.id, delivery.token) for p in delivery.recipients if p.id not in delivery.answered]
        self._renewals[delivery.token] = (delivery, stream, leases)
        self._wake.set()

    def take_back(self, deliveries: Iterable[Delivery]) -> None:
        """These deliveries were not handed on and will not be: their attempts are undone (LSE-04)."""
        for delivery in deliveries:
            if not delivery.ended:
                self._dispatcher.release(delivery)
            self._undo += [
                Deferral(p.id, p.message_id, delivery.token, p.version, 0.0, None) for p in delivery.recipients
            ]
        self._wake.set()

    def undo(self, leased: Iterable[tuple[Waiting, int]]) -> None:
        """These (recipient, token) were leased and never became a delivery: their attempts are undone (LSE-04)."""
        self._undo += [Deferral(row.id, row.message_id, token, row.version, 0.0, None) for row, token in leased]
        self._wake.set()

    def lose(self, delivery: Delivery) -> None:
        """No process works on this delivery any more: recipients without a result were interrupted (LSE-04)."""
        self._lost += [
            (p.id, p.message_id, delivery.token) for p in delivery.recipients if p.id not in delivery.answered
        ]
        self._wake.set()

    def look_for(self, deliveries: Iterable[Delivery]) -> None:
        """The database went back: say which recipients of these deliveries it does not have any more (HIS-04)."""
        self._known += [p for delivery in deliveries for p in delivery.recipients if p.id not in delivery.answered]
        self._wake.set()

    def note_backoff(self, name: str, backoff: SiteBackoff | None) -> None:
        """A site or transport is in backoff, or None: it is well again."""
        self._backoffs[name] = backoff
        self._wake.set()

    # --- writing ---

    async def run(self) -> None:
        """Write what is noted, until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            try:
                await self._write()
            except TROUBLE as error:
                self._lane.warn(self._log, "cannot write leases; trying again", error)
                self._wake.set()
                await asyncio.sleep(_RETRY_AFTER)
            except Exception as error:
                faults.failed(self._log, "leases", error)
                self._wake.set()
                await asyncio.sleep(_RETRY_AFTER)

    async def flush(self) -> None:
        """A clean stop: give leases back now, so that mail does not wait for them to run out."""
        deadline = time.monotonic() + _LAST_WORDS
        while (self._undo or self._lost) and time.monotonic() < deadline:
            try:
                await self._write()
            except TROUBLE:
                await asyncio.sleep(0.2)
            except Exception as error:  # the leases of the rest run out
                faults.failed(self._log, "leases", error)
                return

    async def _write(self) -> None:
        if self._renewals:
            await self._write_renewals()
        while self._undo:
            undo = self._undo[:_AT_ONCE]
            await faults.by_halves(undo, self._write_undone, lambda one, error: self._leave(one.id, error))
            del self._undo[: len(undo)]
        while self._lost:
            lost = self._lost[:_AT_ONCE]
            await faults.by_halves(lost, self._write_lost, lambda one, error: self._leave(one[0], error))
            del self._lost[: len(lost)]
        if self._known:
            await self._look_for_known()
        while self._backoffs:
            name, backoff = next(iter(self._backoffs.items()))
            try:
                await self._write_backoff(name, backoff)
            except Exception as error:
                if not faults.is_guilty(error):
                    raise
                faults.failed(self._log, "leases", error, site=name)  # other owners do not learn of this backoff
            if self._backoffs.get(name) == backoff:
                del self._backoffs[name]

    async def _write_renewals(self) -> None:
        batch = dict(self._renewals)
        before = self._dispatcher.clock()
        async with self._lane.use() as connection:
            pairs = [pair for _, _, found in batch.values() for pair in found]
            kept = await lease_store.renew(connection, self._lease_seconds, pairs)
        for token, (delivery, stream, found) in batch.items():
            if self._renewals.get(token) is batch[token]:  # only now: what Postgres did not take is tried again
                del self._renewals[token]
            if all(i in kept for i, _ in found):
                delivery.deadline = before + self._lease_seconds
                stream.tell_renewal(token, delivery.deadline - self._dispatcher.clock())
            elif not any(i in kept for i, _ in found):
                stream.cancel(token)

    async def _write_undone(self, undo: Sequence[Deferral]) -> None:
        async with self._lane.use() as connection:
            rows = await result_store.defer(connection, undo)
        self._schedule.add_deferred([(shard, request) for _, shard, request in rows])
        metrics.count_attempts([types_pb2.OUTCOME_NOT_ATTEMPTED] * len(rows))
        self._schedule.wake_up()

    async def _write_lost(self, lost: Sequence[tuple[int, bytes, int]]) -> None:
        async with (
            self._lane.use() as connection,
            self._finisher.notifications.transaction(connection) as notify,
        ):
            expired = await lease_store.lose(connection, lost)
            await self._finisher.interruptions.record(connection, expired, notify)
        self._schedule.add_deferred([(row.shard, row.request) for row in expired])
        metrics.count_attempts([types_pb2.OUTCOME_INTERRUPTED] * len(expired))
        self._schedule.wake_up()

    async def _write_backoff(self, name: str, backoff: SiteBackoff | None) -> None:
        if backoff is None:
            await self._lane.run(site_store.RECOVER, {"name": name})
            return
        parameters = {
            "name": name,
            "failures": backoff.failures,
            "seconds": backoff.seconds,
            "error": backoff.last_error,
        }
        await self._lane.run(site_store.BACK_OFF_SITE, parameters)

    async def _look_for_known(self) -> None:
        missing: list[AttemptRecipient] = []
        while self._known:
            known = self._known[:_AT_ONCE]
            async with self._lane.use() as connection:
                there = await waiting_store.there(connection, [(p.id, p.message_id) for p in known])
            del self._known[: len(known)]
            missing += [p for p in known if p.id not in there]
        if missing:
            metrics.HISTORY.labels(kind="recipients_missing").inc(len(missing))
            messages = sorted({p.message_id.hex() for p in missing})
            self._log.error(
                "mail lost: recipients in memory are missing from the database, which was set back",
                recipients=len(missing),
                messages=messages[:20],
            )

    async def _leave(self, recipient: int, error: Exception) -> None:
        """Let its lease run out: the sweep puts it on hold if it cannot be written then either."""
        faults.failed(self._log, "leases", error, recipient=recipient)
