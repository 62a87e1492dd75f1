"""Hands deliveries to outbound processes and takes their results (LSE-01 to LSE-07).

A process opens one stream to each queue replica, says who it is and what it still works on, and gives credit. The desk
keeps account of each stream, renews the leases of what is reported alive, tells the site's window how a delivery went
the moment its result is in, and passes the result on to be written.
"""

import asyncio
import random
import time
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache

from mailrail.core.ids import history_of
from mailrail.core.route.site import SiteKind
from mailrail.kit import log
from mailrail.pb.queue.v1 import lease_pb2, types_pb2
from mailrail_queue import metrics
from mailrail_queue.delivery.attempt import Delivery
from mailrail_queue.delivery.dispatcher import Dispatcher
from mailrail_queue.delivery.ports import AttemptRecipient
from mailrail_queue.delivery.results import DeliveryResults, Finisher
from mailrail_queue.delivery.sites import SiteState, TransportState
from mailrail_queue.delivery.stream import OutboundStream
from mailrail_queue.delivery.verdicts import attempt_recipient_of, facts_of
from mailrail_queue.routing.router import Router
from mailrail_queue.settings import QueueSettings
from mailrail_queue.store import faults
from mailrail_queue.store import mail as store
from mailrail_queue.store import sites as site_store
from mailrail_queue.store.connection import TROUBLE, Database
from mailrail_queue.store.data_history import QueueHistory
from mailrail_queue.store.mail import Deferral, Waiting
from mailrail_queue.store.sites import SiteRow

_RENEW_BELOW = 95.0
"""Seconds left below which a lease is renewed; most deliveries end long before."""
_MOST_MX_HOSTS = 32
_NOT_ATTEMPTED = (types_pb2.OUTCOME_NOT_ATTEMPTED, types_pb2.OUTCOME_CANCELLED)


@lru_cache(maxsize=4096)
def _mx_group(hosts: tuple[str, ...]) -> str:
    """The name of a set of MX hosts."""
    return ",".join(sorted({h.lower() for h in hosts}))


class LeaseManager:
    """All outbound streams of a process, and what their messages do."""

    def __init__(
        self,
        settings: QueueSettings,
        database: Database,
        dispatcher: Dispatcher,
        finisher: Finisher,
        router: Callable[[], Router],
        history: QueueHistory,
    ) -> None:
        self._settings = settings
        self._history = history
        self._database = database
        self._dispatcher = dispatcher
        self._finisher = finisher
        self._router = router
        self._lane = database.lane("lease")
        self._dice = random.Random()
        self._renewals: dict[int, tuple[Delivery | None, OutboundStream, list[tuple[int, int]]]] = {}
        self._renew = asyncio.Event()
        self._undo: list[Deferral] = []
        self._lost: list[tuple[int, bytes, int]] = []
        self._known: list[AttemptRecipient] = []
        """Recipients that were in memory when the database went back: are they there?"""
        self._rests: dict[str, tuple[int, float, bytes] | None] = {}
        self.went_back: Callable[[], None] = lambda: None
        """Recipients are due again."""
        self._log = log.get_logger()
        dispatcher.too_old = self._too_old

    # --- streams ---

    async def hello(self, stream: OutboundStream, hello: lease_pb2.Hello) -> None:
        """A process is there: adopt what it works on (LSE-02), and take back what it should have but has not.

        Raises psycopg.Error, NotDurable or OSError while nobody can tell what it works on rightly.
        """
        listed = {w.token: list(w.recipient_ids) for w in hello.in_progress}  # all, for what is left out is sent again
        await self._adopt(stream, listed)
        missing = [
            f
            for f in self._dispatcher.deliveries.values()
            if f.node == stream.node and f.token not in listed and f.stream is not stream
        ]
        if missing:
            loop = asyncio.get_running_loop()
            loop.call_later(self._settings.goodbye_seconds, self._forsaken, [f.token for f in missing], stream)
        self._log.info("outbound connected", outbound=stream.node, working=len(listed), missing=len(missing))

    def joined(self, stream: OutboundStream) -> None:
        """From now on it is handed deliveries, as its credit allows."""
        before = self._dispatcher.streams.get(stream.node)
        self._dispatcher.connect(stream)
        stream.history(self._history.number)
        if isinstance(before, OutboundStream) and before is not stream:
            before.close()  # the same process came back before we noticed that it was gone
        metrics.OUTBOUND.set(len(self._dispatcher.streams))
        self._dispatcher.pump()

    def left(self, stream: OutboundStream) -> None:
        """It is gone; what it works on stays leased."""
        if self._dispatcher.disconnect(stream):
            metrics.OUTBOUND.set(len(self._dispatcher.streams))
            self._log.info("outbound disconnected", outbound=stream.node)

    async def _adopt(self, stream: OutboundStream, listed: dict[int, list[int]]) -> None:
        strangers: list[int] = []
        for token in listed:
            delivery = self._dispatcher.deliveries.get(token)
            if delivery is not None:
                delivery.stream, delivery.node = stream, stream.node
            else:
                strangers.append(token)
        if not strangers:
            return
        before = self._dispatcher.clock()
        async with self._lane.use() as connection:
            held = [i for token in strangers for i in listed[token]]
            await self._history.compare(connection, strangers, held)
            number = self._history.number
            ids = [i for token in strangers if history_of(token) == number for i in listed[token]]
            rows = [
                w for start in range(0, len(ids), 1000) for w in await store.live(connection, ids[start : start + 1000])
            ]
        by_token: dict[int, list[Waiting]] = {}
        for row in rows:
            if row.token is not None and row.remaining > 0:
                by_token.setdefault(row.token, []).append(row)
        for token in strangers:
            found = by_token.get(token)
            if (
                known := self._dispatcher.deliveries.get(token)
            ) is not None:  # another stream of it adopted it meanwhile
                known.stream, known.node = stream, stream.node
            elif found:
                self._dispatcher.adopt(self._delivery_of(token, found, before), stream)
            else:
                stream.cancel(token)  # lost: another may have it already

    def _delivery_of(self, token: int, rows: Sequence[Waiting], before: float) -> Delivery:
        first = rows[0]
        plan = self._router().plan(facts_of(first), max(0, first.attempts - 1))
        site = self._dispatcher.site(plan)
        recipients: list[AttemptRecipient] = [attempt_recipient_of(row) for row in rows]
        return Delivery(
            token,
            first.message_id,
            plan,
            site,
            recipients,
            0,
            before + first.remaining,
            first.started or self._database.now(),
            first.attempts,
            None,
        )

    def _forsaken(self, tokens: Iterable[int], stream: OutboundStream) -> None:
        """The process that had these is back, had its time to speak, and does not have them."""
        for token in tokens:
            delivery = self._dispatcher.deliveries.get(token)
            if delivery is None or delivery.stream is stream or delivery.node != stream.node:
                continue
            delivery.site.window.undo()
            self._dispatcher.release(delivery)
            self._lost += [(p.id, p.message_id, token) for p in delivery.recipients if p.id not in delivery.answered]
        self._renew.set()

    # --- what they say ---

    def credit(self, stream: OutboundStream, more: int) -> None:
        """It takes so many more deliveries."""
        stream.credit += min(more, 100_000)
        self._dispatcher.credit_came()
        self._dispatcher.pump()

    def alive(self, stream: OutboundStream, tokens: Iterable[int]) -> None:
        """It still works on these: renew their leases (LSE-01)."""
        now = self._dispatcher.clock()
        for token in tokens:
            delivery = self._dispatcher.deliveries.get(token)
            if delivery is None:
                stream.cancel(token)  # its lease is lost (or its results are in)
            elif delivery.deadline - now < _RENEW_BELOW:
                waiting = [(p.id, token) for p in delivery.recipients if p.id not in delivery.answered]
                self._renewals[token] = (delivery, stream, waiting)
        if self._renewals:
            self._renew.set()

    def results(self, stream: OutboundStream, results: Iterable[lease_pb2.DeliveryResult]) -> None:
        """How deliveries went: the windows hear it now, the database with the next batch."""
        deliveries = self._dispatcher.deliveries
        for message in results:
            delivery = deliveries.get(message.token)
            if delivery is not None and message.message_id != delivery.message_id:
                delivery = None  # of another message: nothing is said of this delivery (HIS-03)
            if delivery is not None:
                if message.done:
                    self._judge_site(delivery, message)
                    self._dispatcher.release(delivery)
                else:
                    delivery.answered.update(r.id for r in message.recipients)
            self._finisher.submit(DeliveryResults(message.token, message, delivery, stream.node, stream.committed))
        self._dispatcher.pump()

    def _judge_site(self, delivery: Delivery, message: lease_pb2.DeliveryResult) -> None:
        site = delivery.site
        window = site.window
        site.claimed = False
        if message.mx_hosts and site.kind is SiteKind.DOMAIN:
            self._dispatcher.regroup(site, _mx_group(tuple(message.mx_hosts[:_MOST_MX_HOSTS])))
        blamed: types_pb2.Attempt | None = None
        transport_failed = False
        dialled = False
        for result in message.recipients:
            if result.attempt.outcome not in _NOT_ATTEMPTED:
                dialled = True
            if result.transport_failure or result.site_failure:
                blamed = result.attempt
                transport_failed = transport_failed or result.transport_failure
        if not dialled:
            window.undo()
            return
        now = self._dispatcher.clock()
        if blamed is None:
            rested = window.resting_until is not None
            window.succeed()
            transport = site.transport
            if transport is not None and transport.window.resting_until is not None:
                transport.window.succeed()
                self._rests[f"{SiteKind.TRANSPORT}:{transport.name}"] = None
            if rested:
                site.last_error = b""
                self._rests[site.key] = None
                self._dispatcher.wake_all()
            if rested or self._rests:
                self._renew.set()
            return
        error = " ".join(blamed.reply.lines)[:500] or blamed.reason
        site.last_error = blamed.SerializeToString()
        if transport_failed and site.kind is not SiteKind.TRANSPORT and site.transport is not None:
            window.undo()
            self._rest_transport(site.transport, error, site.last_error, now)
            return
        if window.fail(now, error, jitter=self._dice.uniform(-1, 1), transport=transport_failed):
            self._note_rest(site, now)

    def _rest_transport(self, transport: TransportState, error: str, last: bytes, now: float) -> None:
        transport.window.start()
        transport.window.fail(now, error, jitter=self._dice.uniform(-1, 1), transport=True)
        until = transport.window.resting_until or now
        self._rests[f"{SiteKind.TRANSPORT}:{transport.name}"] = (transport.window._rests, until - now, last)
        self._renew.set()

    def _note_rest(self, site: SiteState, now: float) -> None:
        until = site.window.resting_until or now
        self._rests[site.key] = (site.window._rests, max(0.0, until - now), site.last_error)
        self._log.info("site in backoff", site=site.key, seconds=round(until - now), error=site.window.last_error[:200])
        self._renew.set()
        if site.pending:  # leased, but not to be dialled now: back, undone (LSE-04)
            pending = [f for f in site.pending if not f.gone]
            site.pending.clear()
            for delivery in pending:
                self._dispatcher.release(delivery)
            self._too_old(pending)

    def learn_rest(self, row: SiteRow, now: float) -> None:
        """What another owner, or this one before a restart, wrote of a site."""
        site = self._dispatcher.sites.get(row.name)
        window = site.window if site is not None else None
        if window is None and row.name.startswith(f"{SiteKind.TRANSPORT}:"):
            transport = self._dispatcher.transports.get(row.name.removeprefix(f"{SiteKind.TRANSPORT}:"))
            window = transport.window if transport is not None else None
        if window is None:
            return
        if row.failures == 0:
            if window.resting_until is not None:
                window.in_flight += 1  # what `succeed` ends
                window.succeed()
                self._dispatcher.wake_all()
        elif row.paused_for is None or row.paused_for <= 0:
            if window.resting(now):  # an administrator kicked its mail
                window.wake()
                self._dispatcher.wake_all()
        elif not window.resting(now) and not (window.resting_until is not None and window._rests == row.failures):
            window.resting_until = now + row.paused_for
            window._rests = row.failures
            if site is not None and row.last_error:
                site.last_error = row.last_error

    def cancel(self, tokens: Iterable[int]) -> None:
        """An administrator wants recipients under these leases failed or dropped: abort what can be (ADM-02)."""
        for token in tokens:
            delivery = self._dispatcher.deliveries.get(token)
            if delivery is None:
                continue
            if delivery.stream is not None:
                delivery.stream.cancel(delivery.token)
            elif delivery.content is not None:
                self._dispatcher.release(delivery)
                self._too_old([delivery])

    # --- the database's side ---

    def begin_history(self, number: int) -> int:
        """The database went back: every delivery is closed, and outbound hears of it (HIS-03). How many were closed."""
        closed = self._dispatcher.close_all()
        # What was not handed on was not dialled. Its lease may be there, with the very recipient: then it is undone.
        self._too_old([delivery for delivery in closed if delivery.stream is None])
        self._known += [p for delivery in closed for p in delivery.recipients if p.id not in delivery.answered]
        for stream in self._dispatcher.streams.values():
            stream.history(number)
        self._renew.set()
        return len(closed)

    async def _look_for_known(self) -> None:
        """Say how many of the recipients that memory knew are not in the database any more (HIS-04)."""
        missing: list[AttemptRecipient] = []
        while self._known:
            known = self._known[:500]
            async with self._lane.use() as connection:
                there = await store.there(connection, [(p.id, p.message_id) for p in known])
            del self._known[: len(known)]
            missing += [p for p in known if p.id not in there]
        if missing:
            metrics.HISTORY.labels(what="recipients_missing").inc(len(missing))
            messages = sorted({p.message_id.hex() for p in missing})
            self._log.error(
                "mail lost: recipients in memory are missing from the database, which was set back",
                recipients=len(missing),
                messages=messages[:20],
            )

    def _too_old(self, deliveries: list[Delivery]) -> None:
        """Leases that will not be handed on: the attempts are undone (LSE-04)."""
        for delivery in deliveries:
            if not delivery.gone:
                self._dispatcher.release(delivery)
            self._undo += [
                Deferral(p.id, p.message_id, delivery.token, p.version, 0.0, None) for p in delivery.recipients
            ]
        self._renew.set()

    def give_back(self, leased: Iterable[tuple[Waiting, int]]) -> None:
        """These (recipient, token) were leased and no delivery came of it: that is undone (LSE-04)."""
        self._undo += [Deferral(row.id, row.message_id, token, row.version, 0.0, None) for row, token in leased]
        self._renew.set()

    async def run(self) -> None:
        """Renew, take back and note, in batches, until cancelled."""
        while True:
            await self._renew.wait()
            self._renew.clear()
            try:
                await self._write()
            except TROUBLE as error:
                self._log.warning("cannot write leases; trying again", error=str(error).strip())
                self._renew.set()
                await asyncio.sleep(0.5)
            except Exception as error:
                faults.failed(self._log, "leases", error)
                self._renew.set()
                await asyncio.sleep(0.5)

    async def _write(self) -> None:
        if self._renewals:
            batch = dict(self._renewals)
            before = self._dispatcher.clock()
            async with self._lane.use() as connection:
                pairs = [pair for _, _, found in batch.values() for pair in found]
                kept = await store.renew(connection, self._settings.lease_seconds, pairs)
            for token, (delivery, stream, found) in batch.items():
                if (
                    self._renewals.get(token) is batch[token]
                ):  # what Postgres did not take is tried again, until it does
                    del self._renewals[token]
                if all(i in kept for i, _ in found):
                    if delivery is not None:
                        delivery.deadline = before + self._settings.lease_seconds
                    remaining = before + self._settings.lease_seconds - self._dispatcher.clock()
                    stream.renewed(token, remaining)
                elif not any(i in kept for i, _ in found):
                    stream.cancel(token)
        while self._undo:
            undo = self._undo[:500]
            await faults.by_halves(undo, self._write_undone, lambda one, error: self._left(one.id, error))
            del self._undo[: len(undo)]
        while self._lost:
            lost = self._lost[:500]
            await faults.by_halves(lost, self._write_lost, lambda one, error: self._left(one[0], error))
            del self._lost[: len(lost)]
        if self._known:
            await self._look_for_known()
        while self._rests:
            name, rest = next(iter(self._rests.items()))
            try:
                await self._write_rest(name, rest)
            except Exception as error:
                if not faults.is_guilty(error):
                    raise
                faults.failed(self._log, "leases", error, site=name)  # other owners do not hear of this rest
            if self._rests.get(name) == rest:
                del self._rests[name]

    async def _write_undone(self, undo: Sequence[Deferral]) -> None:
        async with self._lane.use() as connection:
            rows = await store.defer(connection, undo)
        self._finisher.deferred([(shard, request) for _, shard, request in rows])
        metrics.count_attempts([types_pb2.OUTCOME_NOT_ATTEMPTED] * len(rows))
        self.went_back()

    async def _left(self, recipient: int, error: Exception) -> None:
        """Its lease runs out, and the sweep sets it aside if it cannot be written then either."""
        faults.failed(self._log, "leases", error, recipient=recipient)

    async def _write_lost(self, lost: Sequence[tuple[int, bytes, int]]) -> None:
        async with (
            self._lane.use() as connection,
            self._finisher.notifications.transaction(connection) as notify,
        ):
            expired = await store.lose(connection, lost)
            await self._finisher.cut_off(connection, expired, notify)
        self._finisher.deferred([(row.shard, row.request) for row in expired])
        metrics.count_attempts([types_pb2.OUTCOME_INTERRUPTED] * len(expired))
        self.went_back()

    async def _write_rest(self, name: str, rest: tuple[int, float, bytes] | None) -> None:
        if rest is None:
            await self._lane.run(site_store.RECOVER, {"name": name})
        else:
            failures, seconds, error = rest
            parameters = {"name": name, "failures": failures, "seconds": seconds, "error": error}
            await self._lane.run(site_store.REST, parameters)

    async def release_all(self) -> None:
        """A clean stop: give back what was never handed on, so that nobody waits for leases to run out."""
        self._too_old(self._dispatcher.drop_pending())
        deadline = time.monotonic() + 5.0
        while (self._undo or self._lost) and time.monotonic() < deadline:
            try:
                await self._write()
            except TROUBLE:
                await asyncio.sleep(0.2)
            except Exception as error:  # the leases of the rest run out
                faults.failed(self._log, "leases", error)
                return
