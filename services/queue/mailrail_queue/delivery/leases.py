"""Hands deliveries to outbound processes and takes their results (LSE-01 to LSE-07).

An outbound process opens one stream to each queue replica, says who it is and what it still works on, and gives credit.
The lease manager keeps account of the streams. It renews the leases of what is reported alive, tells the site's window
how a delivery went the moment its result is in, and passes the result on to be written.
"""

import asyncio
from collections.abc import Iterable, Sequence

from mailrail.core.ids import history_of
from mailrail.kit import log
from mailrail.pb.queue.v1 import lease_pb2
from mailrail_queue import metrics
from mailrail_queue.delivery.attempt import Delivery
from mailrail_queue.delivery.lease_writer import LeaseWriter
from mailrail_queue.delivery.parts import Parts
from mailrail_queue.delivery.results import DeliveryResults, Finisher
from mailrail_queue.delivery.site_health import SiteHealth
from mailrail_queue.delivery.stream import OutboundStream
from mailrail_queue.delivery.verdicts import attempt_recipient_of, facts_of
from mailrail_queue.store import waiting as waiting_store
from mailrail_queue.store.connection import Lane
from mailrail_queue.store.waiting import Waiting

_RENEW_BELOW = 95.0
"""Seconds left below which a lease is renewed; most deliveries end long before."""
_PAGE = 1000
"""Recipients looked up in one statement."""
_MOST_CREDIT = 100_000
"""Deliveries that one message of a stream may add to its credit."""
_MOST_OCTETS = 1 << 40
"""Octets that one message of a stream may add to its credit."""


class LeaseManager:
    """All outbound streams of a process, and what their messages do."""

    def __init__(
        self, parts: Parts, lane: Lane, finisher: Finisher, writer: LeaseWriter, site_health: SiteHealth
    ) -> None:
        self._settings = parts.settings
        self._database = parts.database
        self._history = parts.history
        self._dispatcher = parts.dispatcher
        self._router = parts.router
        self._lane = lane
        self._finisher = finisher
        self._writer = writer
        self._site_health = site_health
        self._log = log.get_logger()

    # --- streams ---

    async def welcome(self, stream: OutboundStream, hello: lease_pb2.Hello) -> None:
        """An outbound process connected: adopt what it works on (LSE-02), take back what it should have but does not.

        Raises psycopg.Error, NotDurable or OSError: then it is unknown what the process rightly works on.
        """
        listed = {
            w.token: list(w.recipient_ids) for w in hello.in_progress
        }  # all of it: what is left out would be sent again
        await self._adopt(stream, listed)
        missing = [
            f
            for f in self._dispatcher.deliveries.values()
            if f.node == stream.node and f.token not in listed and f.stream is not stream
        ]
        if missing:
            loop = asyncio.get_running_loop()
            loop.call_later(self._settings.goodbye_seconds, self._lose_unlisted, [f.token for f in missing], stream)
        self._log.info("outbound connected", outbound=stream.node, working=len(listed), missing=len(missing))

    def connect(self, stream: OutboundStream) -> None:
        """Hand deliveries to the process from now on, as its credit allows."""
        before = self._dispatcher.streams.get(stream.node)
        self._dispatcher.connect(stream)
        stream.tell_history(self._history.number)
        if isinstance(before, OutboundStream) and before is not stream:
            before.close()  # the same process reconnected before the queue noticed that it was gone
        metrics.OUTBOUND.set(len(self._dispatcher.streams))
        self._dispatcher.pump()

    def disconnect(self, stream: OutboundStream) -> None:
        """The process is gone; what it works on stays leased."""
        if self._dispatcher.disconnect(stream):
            metrics.OUTBOUND.set(len(self._dispatcher.streams))
            self._log.info("outbound disconnected", outbound=stream.node)

    async def _adopt(self, stream: OutboundStream, listed: dict[int, list[int]]) -> None:
        strangers: list[int] = []
        for token in listed:
            delivery = self._dispatcher.deliveries.get(token)
            if delivery is not None:
                self._dispatcher.adopt_again(delivery, stream)
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
                w
                for start in range(0, len(ids), _PAGE)
                for w in await waiting_store.live(connection, ids[start : start + _PAGE])
            ]
        by_token: dict[int, list[Waiting]] = {}
        for row in rows:
            if row.token is not None and row.remaining > 0:
                by_token.setdefault(row.token, []).append(row)
        for token in strangers:
            found = by_token.get(token)
            known = self._dispatcher.deliveries.get(token)
            if known is not None:  # another stream of this process adopted it meanwhile
                self._dispatcher.adopt_again(known, stream)
            elif found:
                self._dispatcher.adopt(self._delivery_of(token, found, before), stream)
            else:
                stream.cancel(token)  # lost: another may have it already

    def _delivery_of(self, token: int, rows: Sequence[Waiting], before: float) -> Delivery:
        first = rows[0]
        plan = self._router().plan(facts_of(first), max(0, first.attempts - 1))
        site = self._dispatcher.site(plan)
        return Delivery(
            token,
            first.message_id,
            plan,
            site,
            [attempt_recipient_of(row) for row in rows],
            0,
            before + first.remaining,
            first.started or self._database.now(),
            first.attempts,
            None,
        )

    def _lose_unlisted(self, tokens: Iterable[int], stream: OutboundStream) -> None:
        """Count these as lost: their process is back, and did not list them in time."""
        for token in tokens:
            delivery = self._dispatcher.deliveries.get(token)
            if delivery is None or delivery.stream is stream or delivery.node != stream.node:
                continue
            delivery.site.window.undo()
            self._dispatcher.release(delivery)
            self._writer.lose(delivery)

    # --- requests of a stream ---

    def add_credit(self, stream: OutboundStream, more: int, octets: int | None) -> None:
        """The process takes so many more deliveries, and octets of their content. None: it does not speak of octets.

        `pump` hands them on.
        """
        stream.credit.grant(min(more, _MOST_CREDIT), None if octets is None else min(octets, _MOST_OCTETS))

    def resolve(self, stream: OutboundStream, found: Iterable[lease_pb2.Resolved]) -> None:
        """The process found MX hosts of deliveries that it works on: they count by them (SHD-03). `pump` goes on."""
        for message in found:
            delivery = self._dispatcher.deliveries.get(message.token)
            if delivery is not None and delivery.stream is stream:
                self._site_health.resolve(delivery, message.mx_hosts)

    def pump(self) -> None:
        """Hand on what may go now."""
        self._dispatcher.pump()

    def renew(self, stream: OutboundStream, tokens: Iterable[int]) -> None:
        """The process still works on these: renew their leases (LSE-01)."""
        now = self._dispatcher.clock()
        for token in tokens:
            delivery = self._dispatcher.deliveries.get(token)
            if delivery is None:
                stream.cancel(token)  # its lease is lost (or its results are in)
            elif delivery.deadline - now < _RENEW_BELOW:
                self._writer.renew(delivery, stream)

    def take_results(self, stream: OutboundStream, results: Iterable[lease_pb2.DeliveryResult]) -> None:
        """Take results of deliveries: windows move now, the database is written with the next batch. `pump` hands on
        what has room now."""
        deliveries = self._dispatcher.deliveries
        for message in results:
            delivery = deliveries.get(message.token)
            if delivery is not None and message.message_id != delivery.message_id:
                delivery = None  # the token came again for another message: not a result of this delivery (HIS-03)
            if delivery is not None:
                if message.done:
                    self._site_health.judge(delivery, message)
                    self._dispatcher.release(delivery)
                else:
                    delivery.answered.update(r.id for r in message.recipients)
            self._finisher.submit(DeliveryResults(message.token, message, delivery, stream.node, stream.acknowledge))

    def cancel(self, tokens: Iterable[int]) -> None:
        """An administrator wants recipients under these leases failed or dropped: abort what can be (ADM-02)."""
        for token in tokens:
            delivery = self._dispatcher.deliveries.get(token)
            if delivery is None:
                continue
            if delivery.stream is not None:
                delivery.stream.cancel(delivery.token)
            elif delivery.content is not None:
                self._writer.take_back([delivery])

    # --- ends ---

    def begin_history(self, number: int) -> int:
        """The database was set back: close every delivery, and tell outbound (HIS-03). Returns how many were closed."""
        closed = self._dispatcher.close_all()
        # What was not handed on was not dialled. Its lease may be there, with the very recipient: then it is undone.
        self._writer.take_back([delivery for delivery in closed if delivery.stream is None])
        self._writer.look_for(closed)
        for stream in self._dispatcher.streams.values():
            stream.tell_history(number)
        return len(closed)

    async def release_all(self) -> None:
        """A clean stop: give back leases that were never handed on, so that mail does not wait for them to run out."""
        self._writer.take_back(self._dispatcher.drop_pending())
        await self._writer.flush()
