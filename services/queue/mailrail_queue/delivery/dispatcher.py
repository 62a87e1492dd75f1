"""Deliveries and the sites they leave from: what may be handed to outbound now, and to which process (SHD-03, SHD-04).

A *delivery* is what is done under one committed lease, with its content in memory until it is handed on (LSE-06). It
waits at its *site* until the site's window has room, the limits of its transport allow it, and an outbound process has
credit. Sites map to outbound processes by rendezvous hashing, so that connections are used again; a process without
credit is passed over for the next in order.

Nothing here does I/O or waits. `pump` hands on all that may go; a part that changes what it depends on calls it.
"""

import heapq
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from mailrail.core.delivery.window import LIMIT, SiteWindow
from mailrail.core.ids import history_of
from mailrail.core.revision.revision import Transport
from mailrail.core.route.site import SiteKind
from mailrail_queue import metrics
from mailrail_queue.delivery.attempt import Delivery, Stream
from mailrail_queue.delivery.sites import UNBOUNDED, Bucket, SiteState, TransportState
from mailrail_queue.delivery.verdicts import backoff_reason_of
from mailrail_queue.routing.router import TRANSPORT, RoutePlan, Router, reference, reference_text
from mailrail_queue.store.rows import attempt_of

_SLOT = 20.0
"""Seconds for which a limit smaller than the number of owners stays with the same ones; then others have their turn."""


class DispatcherEvents(Protocol):
    """What the dispatcher notices and other parts act on. It is called in the middle of the dispatcher's work: it may
    add to lists and wake tasks, and must not wait."""

    def deliver_locally(self, delivery: Delivery) -> None:
        """The delivery ends in the queue itself: mailbox, or a `fail` transport."""

    def take_back(self, deliveries: Sequence[Delivery]) -> None:
        """These cannot be handed on: their lease is too short (LSE-01), their site is in backoff, or they are of
        another history. Their attempts are undone."""

    def fetch_more(self, site: SiteState) -> None:
        """The site has room and nothing in memory, but due recipients in the database."""

    def claim_probe(self, site: SiteState) -> None:
        """The site may be probed after a backoff, and other owners may want to do that too."""


class Dispatcher:
    """All deliveries and sites of a process."""

    def __init__(
        self,
        clock: Callable[[], float],
        events: DispatcherEvents,
        *,
        handout_seconds: float,
        content_budget: int,
        rounds: int,
    ) -> None:
        self.clock = clock
        self._events = events
        self.sites: dict[str, SiteState] = {}
        self.transports: dict[str, TransportState] = {}
        self.deliveries: dict[int, Delivery] = {}
        self.streams: dict[str, Stream] = {}
        self.history: int | None = None
        """Deliveries of another history of the database are refused (HIS-03); None: none is."""
        self.pending_bytes = 0
        self.pending_deliveries = 0
        self.owners = 1
        self.owner_index = 0
        self._handout_seconds = handout_seconds
        self._content_budget = content_budget
        self._rounds = rounds
        self._line: deque[SiteState] = deque()
        self._starved: dict[str, SiteState] = {}
        self._timed: list[tuple[float, int, SiteState]] = []
        self._timed_count = 0
        self._groups: dict[str, int] = {}
        self._generation = 0

    # --- sites ---

    def site(self, plan: RoutePlan) -> SiteState:
        """The state of a plan's site."""
        site = self.sites.get(plan.key)
        if site is None:
            site = self._make(plan.key, plan.site.kind, plan.transport)
        elif (
            site.transport is None and plan.transport is not None
        ):  # it was made from its key before its transport was known
            site.transport = self.transport(plan.transport)
        return site

    def _make(self, key: str, kind: SiteKind, transport: Transport | None) -> SiteState:
        if kind in (SiteKind.MAILBOX, SiteKind.LOCAL, SiteKind.MISSING):
            window = SiteWindow(limit=UNBOUNDED, size=UNBOUNDED)
        else:
            window = SiteWindow(limit=self._site_limit(kind, transport))
        state = self.transport(transport) if transport is not None else None
        site = self.sites[key] = SiteState(key, kind, window, state, kind is SiteKind.TRANSPORT, used=self.clock())
        return site

    def site_of_key(self, key: str, router: Router) -> SiteState:
        """The state of a site that is known by its stored key alone."""
        site = self.sites.get(key)
        if site is not None:
            return site
        word, _, rest = key.partition(":")
        try:
            kind = SiteKind(word)
        except ValueError:
            kind = SiteKind.MISSING  # written by another release; its route decides anew when it is due
        transport: Transport | None = None
        if kind in (SiteKind.PROXY, SiteKind.TRANSPORT, SiteKind.LOCAL):
            transport = router.table.transports.get(reference(TRANSPORT, rest.partition(":")[0]))
        return self._make(key, kind, transport)

    @staticmethod
    def _site_limit(kind: SiteKind, transport: Transport | None) -> float:
        if transport is None:
            return LIMIT
        if kind is SiteKind.TRANSPORT:
            return float(transport.limits.connections or LIMIT)
        return float(transport.limits.connections_per_destination or LIMIT)

    def transport(self, transport: Transport) -> TransportState:
        """The state of a transport."""
        name = reference_text(transport.ref)
        state = self.transports.get(name)
        if state is None:
            state = self.transports[name] = TransportState(name)
            self._configure(state, transport)
        return state

    def _configure(self, state: TransportState, transport: Transport) -> None:
        state.connections = transport.limits.connections
        rate = transport.limits.rate
        if rate is None:
            state.bucket = None
        elif state.bucket is None:
            state.bucket = Bucket(rate.per_second / self.owners)
        else:
            state.bucket.rate = rate.per_second / self.owners
        state.share = self._share(state.connections)

    def _share(self, limit: int | None) -> int | None:
        """This owner's part of a limit that all owners share; it may be 0 for a while when there are more owners."""
        if limit is None or self.owners <= 1:
            return limit
        turn = (self.owner_index + int(self.clock() / _SLOT)) % self.owners
        return limit // self.owners + (1 if turn < limit % self.owners else 0)

    def configure(self, transports: Iterable[Transport]) -> None:
        """New limits, or another number of owners to share them with."""
        for transport in transports:
            name = reference_text(transport.ref)
            state = self.transports.get(name)
            if state is not None:
                self._configure(state, transport)
            for key in (f"{SiteKind.TRANSPORT}:{name}",):
                site = self.sites.get(key)
                if site is not None:
                    site.window.limit = self._site_limit(site.kind, transport)
                    site.window.size = min(site.window.size, site.window.limit)
        self.wake_all()

    def forget_idle(self, before: float) -> None:
        """Drop the state of sites that have had nothing to do since; a site in backoff is kept."""
        now = self.clock()
        for key in [
            k
            for k, s in self.sites.items()
            if s.used < before
            and not (s.pending or s.due or s.queued or s.window.in_flight)
            and not s.window.in_backoff(now)
        ]:
            del self.sites[key]

    def measure(self) -> None:
        """Set the gauges that tell what is in memory."""
        now = self.clock()
        metrics.PENDING.set(self.pending_deliveries)
        metrics.PENDING_BYTES.set(self.pending_bytes)
        metrics.IN_FLIGHT.set(len(self.deliveries) - self.pending_deliveries)
        in_backoff = sum(1 for s in self.sites.values() if s.in_backoff(now))
        metrics.SITES.labels(state="backoff").set(in_backoff)
        metrics.SITES.labels(state="active").set(len(self.sites) - in_backoff)
        # A smarthost is in backoff as a site; a proxy, or any transport after trouble of our own, as a transport.
        failing = {
            s.key.partition(":")[2]: s.last_error for s in self.sites.values() if s.shared and s.window.failing(now)
        }
        failing |= {t.name: t.last_error for t in self.transports.values() if t.window.failing(now)}
        reasons = {name: backoff_reason_of(attempt_of(error)) for name, error in failing.items()}
        metrics.set_transports_in_backoff(reasons)

    # --- streams ---

    def connect(self, stream: Stream) -> None:
        """An outbound process takes deliveries from now on."""
        self.streams[stream.node] = stream
        self._generation += 1
        self.wake_all()

    def disconnect(self, stream: Stream) -> bool:
        """An outbound process is gone; its deliveries stay leased until it is back or the leases run out. False: it had
        been replaced or removed."""
        if self.streams.get(stream.node) is not stream:
            return False
        del self.streams[stream.node]
        self._generation += 1
        return True

    def _stream_for(self, site: SiteState) -> Stream | None:
        if site.generation != self._generation:
            site.order = tuple(
                sorted(self.streams.values(), key=lambda s: zlib.crc32(f"{s.node}\0{site.key}".encode()), reverse=True)
            )
            site.generation = self._generation
        for stream in site.order:
            if stream.credit > 0:
                return stream
        return None

    def on_credit(self) -> None:
        """A stream takes more deliveries: look again at sites that waited for credit."""
        starved, self._starved = self._starved, {}
        for site in starved.values():
            self._enqueue(site)

    # --- deliveries ---

    def accepts_fresh(self, site: SiteState, size: int, now: float) -> bool:
        """Whether a fresh message may be born leased here: it would leave from memory soon (LSE-06)."""
        if site.is_local:
            return self.pending_bytes + size <= self._content_budget
        return (
            bool(self.streams)
            and self.pending_bytes + size <= self._content_budget
            and not site.window.probing
            and not site.in_backoff(now)
            and len(site.pending) < self._rounds * site.window.size
        )

    def add(self, delivery: Delivery) -> None:
        """A lease is committed: the delivery waits at its site.

        One of another history, or whose token another has, takes no part: its attempt is undone.
        """
        if delivery.token in self.deliveries or self.history not in (None, history_of(delivery.token)):
            delivery.ended = True
            self._events.take_back([delivery])
            return
        self.deliveries[delivery.token] = delivery
        self.pending_bytes += delivery.size
        self.pending_deliveries += 1
        delivery.site.pending.append(delivery)
        delivery.site.used = self.clock()
        self._enqueue(delivery.site)

    def adopt(self, delivery: Delivery, stream: Stream) -> None:
        """A delivery that an outbound process works on already (LSE-02)."""
        delivery.stream, delivery.node, delivery.content = stream, stream.node, None
        self.deliveries[delivery.token] = delivery
        self._hand_out(delivery)

    def _hand_out(self, delivery: Delivery) -> None:
        site = delivery.site
        site.used = self.clock()
        site.window.start()
        if site.transport is not None:
            site.transport.in_flight += 1
        if site.mx_group:
            self._groups[site.mx_group] = self._groups.get(site.mx_group, 0) + 1

    def release(self, delivery: Delivery) -> None:
        """A delivery ended or was taken back: free its place in the limits. The caller tells the window."""
        if delivery.ended:
            return  # it was taken back meanwhile
        delivery.ended = True
        if self.deliveries.get(delivery.token) is delivery:
            del self.deliveries[delivery.token]
        if delivery.content is not None:  # never left
            self._unload(delivery)
            return
        site = delivery.site
        if site.transport is not None:
            site.transport.in_flight -= 1
        if site.mx_group and site.mx_group in self._groups:
            self._groups[site.mx_group] -= 1
            if self._groups[site.mx_group] <= 0:
                del self._groups[site.mx_group]
        self._enqueue(site)

    def _unload(self, delivery: Delivery) -> None:
        delivery.content = None
        self.pending_bytes -= delivery.size
        self.pending_deliveries -= 1

    def regroup(self, site: SiteState, group: str) -> None:
        """The MX set of a site was seen: sites with the same one share a limit (SHD-03)."""
        if site.mx_group == group:
            return
        if site.mx_group and site.mx_group in self._groups:
            self._groups[site.mx_group] -= site.window.in_flight
            if self._groups[site.mx_group] <= 0:
                del self._groups[site.mx_group]
        site.mx_group = group
        if site.window.in_flight:
            self._groups[group] = self._groups.get(group, 0) + site.window.in_flight

    # --- handing on ---

    def _enqueue(self, site: SiteState) -> None:
        if not site.queued:
            site.queued = True
            self._line.append(site)

    def wake_all(self) -> None:
        """Look at every site that has something pending."""
        self._starved.clear()
        for site in self.sites.values():
            if site.pending or site.due:
                self._enqueue(site)

    def next_timer(self) -> float | None:
        """When (monotonic) the next site that waits for its rate may go on; None if none waits."""
        return self._timed[0][0] if self._timed else None

    def room(self, site: SiteState, now: float) -> int:
        """How many more transactions may start at a site by its window and shared limits, without regard to rates."""
        if site.is_local:
            return 1000
        room = site.window.room(now)
        transport = site.transport
        if transport is not None and room > 0:
            if transport.window.in_backoff(now):
                return 0
            if transport.window.probing:  # the transport's own probe: one at a time
                room = min(room, 1 - transport.in_flight)
            share = self._share(transport.connections)
            if share is not None:
                room = min(room, share - transport.in_flight)
        if site.mx_group and room > 0:
            room = min(room, int(site.window.limit) - self._groups.get(site.mx_group, 0))
        return max(0, room)

    def pump(self) -> None:
        """Hand on everything that may go now, site by site in turn."""
        now = self.clock()
        while self._timed and self._timed[0][0] <= now:
            site = heapq.heappop(self._timed)[2]
            site.timed = False
            self._enqueue(site)
        line = self._line
        for _ in range(len(line)):
            site = line.popleft()
            site.queued = False
            if site.pending:
                self._pump_site(site, now)
            if not site.pending and site.due and self.room(site, now) > 0:
                self._events.fetch_more(site)

    def _pump_site(self, site: SiteState, now: float) -> None:
        pending = site.pending
        if site.is_local:
            while pending:
                delivery = pending.popleft()
                if not delivery.ended:
                    self._events.deliver_locally(delivery)
            return
        room = self.room(site, now)
        in_backoff = site.in_backoff(now)
        old: list[Delivery] = []
        bucket = site.transport.bucket if site.transport is not None else None
        while pending:
            delivery = pending[0]
            if delivery.ended:
                pending.popleft()
                continue
            remaining = delivery.deadline - now
            # A site in backoff has nothing pending, but for what was being committed when the backoff began: that goes
            # back too, or it would hold its lease for nothing while a later route could take it (SHD-05).
            if remaining < self._handout_seconds or in_backoff:
                pending.popleft()
                old.append(delivery)
                continue
            if room <= 0:
                break
            if site.window.probing and site.shared and self.owners > 1 and not site.claimed:
                self._events.claim_probe(site)  # after a backoff: one probe at a time, of all owners
                break
            if bucket is not None and (wait := bucket.wait(now)) > 0:
                if not site.timed:
                    site.timed = True
                    self._timed_count += 1
                    heapq.heappush(self._timed, (now + wait, self._timed_count, site))
                break
            stream = self._stream_for(site)
            if stream is None:
                self._starved[site.key] = site
                break
            pending.popleft()
            room -= 1
            if bucket is not None:
                bucket.take()
            content = delivery.content
            assert content is not None, "a pending delivery has its content"
            self._unload(delivery)
            delivery.stream, delivery.node = stream, stream.node
            self._hand_out(delivery)
            stream.credit -= 1
            stream.send(delivery, content, remaining)
        if old:
            self._events.take_back(old)

    def close_all(self) -> list[Delivery]:
        """End every delivery, handed on or not: the database was set back, and their leases may be gone (HIS-03).

        Outbound breaks off what it can, and every place in the limits is free. What was closed.
        """
        closed = list(self.deliveries.values())
        for delivery in closed:
            if delivery.content is None:
                if delivery.stream is not None:
                    delivery.stream.cancel(delivery.token)
                delivery.site.window.undo()
            self.release(delivery)
        for site in self.sites.values():
            site.pending.clear()
            site.claimed = False
        return closed

    def drop_pending(self) -> list[Delivery]:
        """Remove and return the deliveries that were not handed on."""
        dropped = [f for s in self.sites.values() for f in s.pending if not f.ended]
        for site in self.sites.values():
            site.pending.clear()
        for delivery in dropped:
            self.release(delivery)
        return dropped
