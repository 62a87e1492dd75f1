"""Deliveries and the sites they leave from: what may be handed to outbound now, and to which process (SHD-03, SHD-04).

A *delivery* is what is done under one committed lease, with its content in memory until it is handed on (LSE-06). It
waits at its *site* until the site's window has room, the limits of its transport allow it, and an outbound process has
credit for sites of its standing (`core.delivery.shares`). Sites map to outbound processes by rendezvous hashing, so
that connections are used again; a process without credit is passed over for the next in order. Sites that find no
credit anywhere wait in lines for each standing, and have one delivery each in turn (`core.line`): a site that is new
waits for few others.

Nothing here does I/O or waits. `pump` hands on all that may go; a part that changes what it depends on calls it.
"""

import heapq
import zlib
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence, Sized
from typing import Protocol

from mailrail.core.delivery.mx_group import MxGroup
from mailrail.core.delivery.shares import (
    FIRST_PART,
    QUICK,
    QUICK_SECONDS,
    SITE_AHEAD_SECONDS,
    SLOW,
    UNPROVEN,
    SiteStanding,
    Throughput,
    may_add,
    standing_of,
)
from mailrail.core.delivery.window import LIMIT, SiteWindow
from mailrail.core.ids import began, history_of
from mailrail.core.line import Lines, Need
from mailrail.core.revision.revision import Transport
from mailrail.core.route.site import SiteKind
from mailrail_queue import metrics
from mailrail_queue.delivery.attempt import Delivery, Stream
from mailrail_queue.delivery.mx_counts import MxCounts
from mailrail_queue.delivery.sites import UNBOUNDED, Bucket, SiteState, TransportState
from mailrail_queue.delivery.verdicts import backoff_reason_of
from mailrail_queue.routing.router import TRANSPORT, RoutePlan, Router, reference, reference_text
from mailrail_queue.store.rows import attempt_of

_REMEMBERED = 20_000
"""Idle sites that answered, and are remembered for that: some 4 MiB."""
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
        delivery_budget: int,
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
        self.throughput = Throughput()
        self.parked: Sequence[Sized] = ((), (), ())
        """By standing, the sites whose due mail waits in the database because no more may be leased (`Worklist`)."""
        self.owners = 1
        self.owner_index = 0
        self._handout_seconds = handout_seconds
        self._content_budget = content_budget
        self._delivery_budget = delivery_budget
        self._rounds = rounds
        self._line: deque[SiteState] = deque()
        self._starved = (Lines[SiteState](), Lines[SiteState](), Lines[SiteState]())
        self._fresh_left: list[int | None] = [None, None, None]
        """How many fresh deliveries more may be born leased until the next `pump`, by standing; None: not looked at."""
        self._pending = [0, 0, 0]
        self._pending_octets = [0, 0, 0]
        self._answered: OrderedDict[str, SiteStanding] = OrderedDict()
        self._timed: list[tuple[float, int, SiteState]] = []
        self._timed_count = 0
        self._mx = MxCounts()
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
        site.standing = QUICK if site.is_local else self._answered.pop(key, UNPROVEN)
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
            and not (s.waiting or s.due or s.queued or s.window.in_flight)
            and not s.window.in_backoff(now)
        ]:
            site = self.sites.pop(key)
            if site.standing is not UNPROVEN and not site.is_local:
                self._answered[key] = site.standing
        while len(self._answered) > _REMEMBERED:
            self._answered.popitem(last=False)

    def measure(self) -> None:
        """Set the gauges that tell what is in memory."""
        now = self.clock()
        metrics.PENDING.set(self.pending_deliveries)
        metrics.PENDING_BYTES.set(self.pending_bytes)
        metrics.IN_FLIGHT.set(len(self.deliveries) - self.pending_deliveries)
        metrics.set_standings(self._pending, self._out(), [len(line) for line in self._starved])
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
            if stream.credit.free(site.standing) > 0:
                return stream
        return None

    def free(self, standing: SiteStanding) -> int:
        """How many deliveries more all outbound processes take for sites of this standing."""
        return sum([stream.credit.free(standing) for stream in self.streams.values()])

    def _out(self) -> list[int]:
        """Deliveries that all outbound processes work on, by standing."""
        return [sum([stream.credit.out[s] for stream in self.streams.values()]) for s in SiteStanding]

    # --- deliveries ---

    @property
    def pending_deliveries(self) -> int:
        """Deliveries that wait to be handed on."""
        return sum(self._pending)

    def may_lease(self, standing: SiteStanding) -> int:
        """How many deliveries more may be leased for sites of this standing, because they would leave soon (LSE-06)."""
        pending = self._pending
        if may_add(standing, self._pending_octets, self._content_budget) <= 0:
            return 0
        soon = self.throughput.ahead(standing)
        if free := self.free(standing):
            soon += free  # what is pending waits for windows, and not for this credit
        else:
            soon -= pending[standing]
        return max(0, min(soon, may_add(standing, pending, self._delivery_budget)))

    def accepts_fresh(self, site: SiteState, size: int, now: float) -> bool:
        """Whether a fresh message may be born leased here: it would leave from memory soon (LSE-06)."""
        if self.pending_bytes + size > self._content_budget:
            return False
        if site.is_local:
            return True
        if not self.streams or site.window.probing or site.in_backoff(now):
            return False
        if site.pending or (site.transport is not None and site.transport.bucket is not None):
            most = self._site_ahead(site, now)
            if site.due or site.older:  # what waits in the database has every other turn (SHD-04)
                most = min(most, site.window.size) if site.standing is UNPROVEN else most / 2
            if len(site.pending) >= most:
                return False
        standing = site.standing
        if self.parked[standing]:
            return False  # others of its standing wait in the database: it goes behind them
        left = self._fresh_left[standing]
        if left is None:
            left = self.may_lease(standing)
        self._fresh_left[standing] = max(0, left - 1)
        return left > 0

    def _site_ahead(self, site: SiteState, now: float) -> float:
        """Deliveries that a site takes before their leases are too short to be handed on."""
        size = site.window.size
        ahead = min(self._rounds * size, size * SITE_AHEAD_SECONDS / max(0.001, site.seconds))
        bucket = site.transport.bucket if site.transport is not None else None
        if bucket is not None:
            if bucket.wait(now) > SITE_AHEAD_SECONDS:
                return 0.0
            ahead = min(ahead, bucket.rate * SITE_AHEAD_SECONDS)
        return max(1.0, ahead)

    def older_wanted(self, site: SiteState, now: float) -> int:
        """How many deliveries of a site may wait in memory that come from the database; 0: it takes nothing now."""
        room = self.room(site, now)
        if site.pending and not site.window.probing and not site.in_backoff(now):
            # Fresh mail fills each place that becomes free: without a stock of its own, older mail would have no turn.
            wanted = max(2.0 * room, site.window.size)
        else:
            wanted = 2.0 * room if site.standing is QUICK else room
        ahead = self._site_ahead(site, now)
        return int(max(1.0, min(wanted, ahead / 2))) if wanted and ahead else 0

    def add(self, delivery: Delivery, *, older: bool = False) -> None:
        """A lease is committed: the delivery waits at its site. `older`: it comes from the database.

        One of another history, or whose token another has, takes no part: its attempt is undone.
        """
        if delivery.token in self.deliveries or self.history not in (None, history_of(delivery.token)):
            delivery.ended = True
            self._events.take_back([delivery])
            return
        site = delivery.site
        standing = delivery.standing = site.standing
        self.deliveries[delivery.token] = delivery
        self.pending_bytes += delivery.size
        self._pending[standing] += 1
        self._pending_octets[standing] += delivery.size
        (site.older if older else site.pending).append(delivery)
        if standing is UNPROVEN:
            site.mail_began = max(site.mail_began, began(delivery.message_id))
        site.used = self.clock()
        self._enqueue(site)

    def adopt(self, delivery: Delivery, stream: Stream) -> None:
        """A delivery that an outbound process works on already (LSE-02)."""
        delivery.content = None
        self.deliveries[delivery.token] = delivery
        self._hand_out(delivery, stream, self.clock())
        stream.credit.hold(delivery.standing, delivery.size)

    def adopt_again(self, delivery: Delivery, stream: Stream) -> None:
        """A process that connected anew still works on a delivery that it was handed before."""
        if delivery.content is None and delivery.stream is not stream:
            if delivery.stream is not None:
                delivery.stream.credit.let_go(delivery.standing, delivery.size)
            stream.credit.hold(delivery.standing, delivery.size)
        delivery.stream, delivery.node = stream, stream.node

    def _hand_out(self, delivery: Delivery, stream: Stream, now: float) -> None:
        site = delivery.site
        delivery.stream, delivery.node = stream, stream.node
        delivery.standing = site.standing
        delivery.handed_on = site.used = now
        site.tried = True
        site.window.start()
        if site.transport is not None:
            site.transport.in_flight += 1
        if site.mx_group is not None:
            self._mx.enter(delivery)

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
        if delivery.stream is not None:
            delivery.stream.credit.let_go(delivery.standing, delivery.size)
        self.throughput.ended[delivery.standing] += 1
        if site.transport is not None:
            site.transport.in_flight -= 1
        if delivery.counted_by:
            for other in self._mx.leave(delivery):
                self._enqueue(other)
        self._enqueue(site)

    def _unload(self, delivery: Delivery) -> None:
        delivery.content = None
        self.pending_bytes -= delivery.size
        self._pending[delivery.standing] -= 1
        self._pending_octets[delivery.standing] -= delivery.size

    def resolve(self, delivery: Delivery, group: MxGroup) -> None:
        """The MX hosts of a delivery are known, and it is not dialled yet: it counts by them from now on (SHD-03)."""
        if delivery.ended or delivery.content is not None or delivery.site.kind is not SiteKind.DOMAIN:
            return
        delivery.site.mx_group = group
        for other in self._mx.move(delivery, group):
            self._enqueue(other)

    def answered(self, delivery: Delivery) -> None:
        """The site answered a delivery, whatever it said: that is its standing from now on."""
        seconds = self.clock() - delivery.handed_on
        site = delivery.site
        site.seconds += 0.2 * (seconds - site.seconds)
        site.standing = standing_of(seconds)

    def _look_at_clocks(self, now: float) -> None:
        """A delivery that goes on for long counts as slow, and its site does, before there is a result. One that waits
        until its lease is too short is given back, whatever it waits for."""
        before = now - QUICK_SECONDS
        too_short = now + self._handout_seconds
        for delivery in self.deliveries.values():
            if not delivery.handed_on:
                if delivery.deadline < too_short:
                    self._enqueue(delivery.site)
            elif delivery.handed_on <= before:
                site = delivery.site
                site.seconds = max(site.seconds, now - delivery.handed_on)
                if site.standing is QUICK:
                    site.standing = SLOW
                if delivery.standing is QUICK and delivery.stream is not None:
                    delivery.stream.credit.move(delivery.size, QUICK, SLOW)
                    delivery.standing = SLOW

    # --- handing on ---

    def _enqueue(self, site: SiteState) -> None:
        if not site.queued:
            site.queued = True
            self._line.append(site)

    def wake_all(self) -> None:
        """Look at every site that has something to do. Those that wait for credit keep their turn."""
        for site in self.sites.values():
            if site.waiting or site.due:
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
        if site.mx_group is not None and room > 0:
            room = min(room, self._mx.room(site))
        return max(0, room)

    def pump(self) -> None:
        """Hand on everything that may go now, site by site in turn."""
        now = self.clock()
        self._fresh_left = [None, None, None]
        while self._timed and self._timed[0][0] <= now:
            site = heapq.heappop(self._timed)[2]
            site.timed = False
            self._enqueue(site)
        if now >= self.throughput.since + 1.0:
            self.throughput.measure(now)
            self._look_at_clocks(now)
        if any(self._starved):
            self._serve_starved(now)
        line = self._line
        for _ in range(len(line)):
            site = line.popleft()
            site.queued = False
            if site.pending or site.older:
                self._pump_site(site, now)
            if site.due:
                wanted = self.older_wanted(site, now)
                if 2 * len(site.older) <= wanted and wanted:
                    self._events.fetch_more(site)
                elif not wanted:
                    self._mx.wait(site)

    def _serve_starved(self, now: float) -> None:
        """Give credit to sites that waited for it, one delivery each in turn: quick ones first, so that their mail
        never waits for others; but the others are not to starve beside a flood of it."""
        out = self._out()
        whole = sum([stream.credit.whole for stream in self.streams.values()])
        first = int(FIRST_PART * whole) - out[UNPROVEN] - out[SLOW]
        if first > 0:
            self._serve(UNPROVEN, first, now)
        for standing in (QUICK, SLOW, UNPROVEN):
            self._serve(standing, whole, now)

    def _serve(self, standing: SiteStanding, most: int, now: float) -> None:
        waiting = self._starved[standing]
        while most > 0 and waiting and self.free(standing) > 0:  # looked at anew: one delivery may take all octets
            site = waiting.take()
            if site.starved is not standing:
                continue  # it waits in another line by now
            site.starved = None
            if site.standing is not standing:
                self._enqueue(site)
                continue
            handed = self._pump_site(site, now, most=1)
            most -= handed
            if handed and (site.pending or site.older):
                self._starve(site)

    def _starve(self, site: SiteState) -> None:
        if site.starved is not site.standing or site.need is not Need.MORE:  # by now it may have nothing
            site.starved = site.standing
            self._starved[site.standing].add(site, site.need, site.mail_began)

    def _pump_site(self, site: SiteState, now: float, most: int = 0) -> int:
        """Hand on what may go of a site, or give it back. `most`: it is its turn among those that wait for credit, and
        it may have so many; 0: any number, unless others wait. Returns how many were handed on."""
        pending, older = site.pending, site.older
        if site.is_local:
            for queue in (older, pending):
                while queue:
                    delivery = queue.popleft()
                    if not delivery.ended:
                        self._events.deliver_locally(delivery)
            return 0
        room = self.room(site, now)
        in_backoff = site.in_backoff(now)
        old: list[Delivery] = []
        handed = 0
        bucket = site.transport.bucket if site.transport is not None else None
        others_wait = not most and bool(self._starved[site.standing])
        while True:
            queue = older if older and (site.older_next or not pending) else pending
            if not queue:
                break
            delivery = queue[0]
            if delivery.ended:
                queue.popleft()
                continue
            remaining = delivery.deadline - now
            # A site in backoff has nothing pending, but for what was being committed when the backoff began: that goes
            # back too, or it would hold its lease for nothing while a later route could take it (SHD-05).
            if remaining < self._handout_seconds or in_backoff:
                queue.popleft()
                old.append(delivery)
                continue
            if room <= 0:
                self._mx.wait(site)
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
            stream = None if others_wait else self._stream_for(site)
            if stream is None:
                self._starve(site)
                break
            queue.popleft()
            site.older_next = queue is pending
            room -= 1
            if bucket is not None:
                bucket.take()
            content = delivery.content
            assert content is not None, "a pending delivery has its content"
            self._unload(delivery)
            self._hand_out(delivery, stream, now)
            stream.credit.take(delivery.standing, delivery.size)
            stream.send(delivery, content, remaining)
            handed += 1
            if handed == most:
                break
        waiting = pending if queue is older else older  # whose turn it was not
        while waiting and (waiting[0].ended or waiting[0].deadline - now < self._handout_seconds):
            delivery = waiting.popleft()
            if not delivery.ended:
                old.append(delivery)
        if old:
            self._events.take_back(old)
        return handed

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
            site.clear()
            site.claimed = False
        return closed

    def drop_pending(self) -> list[Delivery]:
        """Remove and return the deliveries that were not handed on."""
        dropped = [delivery for site in self.sites.values() for delivery in site.clear()]
        for delivery in dropped:
            self.release(delivery)
        return dropped
