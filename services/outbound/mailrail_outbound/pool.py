"""Connections by the key that they are reused under, and the jobs that wait for one (design 4, Deliver).

A job goes to an idle connection of its key; else a new one is dialled, up to the limits of the destination, of the
address and of the process, and to the share of it that addresses of its standing may hold (server_addresses.py); else
it waits. A connection that has finished takes the next waiting job of its key. When a new connection fails while others
of its key live, the server wants no more of us and fewer are used for a while; when it was the only one, all jobs that
wait for that host fail with it.

Connections that a server closed behind our back are found out by a transaction that no reply touched, those on which it
takes no more messages by one that it refused before the content (core/smtp/client.py, `Transaction.wants_fresh`): such
a job goes once to a fresh connection, in the same attempt. So does one whose connection broke while a TLS session was
resumed (TLS-10c). How many messages a connection carried until then is kept for a while, so that the next ones end in
time.

While others wait for their share, connections that have not been answered for long are bounded, and the oldest of those
beyond it are broken off; long is shorter for addresses of which nothing is known. Otherwise servers have all the time
that RFC 5321 4.5.3.2 gives them.
"""

import asyncio
import itertools
import ssl
from collections import deque
from functools import partial
from typing import NamedTuple

from mailrail.core.delivery.shares import QUICK, QUICK_SECONDS, SLOW, UNPROVEN, SiteStanding, standing_of
from mailrail.core.line import DatedLine
from mailrail.core.outbound.give_back import BACK, BACK_OCTETS, CreditHeld, Held, who_goes_back
from mailrail.core.outbound.targets import ConnectionKey
from mailrail.core.smtp.answer import Answer, Stage, Trouble
from mailrail.core.tlspolicy.resumption import SessionCache
from mailrail.kit import log
from mailrail.kit.wheel import Wheel
from mailrail_outbound import metrics
from mailrail_outbound.server_addresses import ServerAddress, ServerAddresses
from mailrail_outbound.settings import OutboundSettings
from mailrail_outbound.smtp import ClientConnection, Dial, Job
from mailrail_outbound.tls import SESSION_READS

_LOOK_AT_WAITING = 15.0  # seconds between looks at those that wait
_LOOK_AT_OPEN = 0.5  # seconds between looks at how long connections have not been answered
_LOOK_AT_FIRST = 0.25  # the same, while first connections wait
_SILENCE = frozenset({Trouble.UNREACHABLE, Trouble.TIMEOUT})  # of an address, whatever name led to it
_FEWER_FOR = 60.0  # seconds that a destination's refusal of further connections or messages is respected


class PoolJob(Job):
    """What the pool needs of a job besides what a connection needs."""

    dial: Dial
    dialled: list[str]
    """IPs that were dialled for it, in order; the pool adds to it."""

    waits_since: float | None
    """The loop's time since which it stands in line; the pool's own."""

    @property
    def mail_began(self) -> float:
        """Unix seconds at which its message began; where there is none, the job itself."""
        raise NotImplementedError

    @property
    def held(self) -> Held | None:
        """What its delivery holds of the queue's credit; None: it is of no delivery."""
        return None

    def end_without_session(self, answer: Answer, connection: ClientConnection | None) -> None:
        """No connection came about."""

    def end_waiting(self, seconds: float) -> None:
        """None was free for so long."""


class _Waiter(NamedTuple):
    """A job that may go back to the queue (give_back.Waiter)."""

    job: PoolJob
    counts_for: SiteStanding
    octets: int
    address: SiteStanding
    since: float


class _Destination:
    """Everything of one key."""

    __slots__ = (
        "carries",
        "carries_until",
        "connecting",
        "dead",
        "fewer",
        "fewer_until",
        "idle",
        "line",
        "live",
        "mail_began",
        "total",
        "waiting",
    )

    def __init__(self) -> None:
        self.waiting: deque[PoolJob] = deque()
        self.total = 0  # connections, from the decision to dial to their end
        self.connecting = 0  # those of them whose session is not set up
        self.live: set[ClientConnection] = set()  # those of them whose socket is connected, or nearly
        self.idle: list[ClientConnection] = []
        self.line: DatedLine[ConnectionKey] | None = None  # where it waits for a further connection
        self.mail_began = 0.0  # the newest of those that waited since nobody did
        self.dead: dict[str, float] | None = None  # addresses that gave none just now → until when they are passed over
        self.fewer: int | None = None
        self.fewer_until = 0.0
        self.carries = 0  # messages that a connection was seen to carry before the server took no more
        self.carries_until = 0.0


class Pool:
    """All connections of a process (smtp.Owner)."""

    def __init__(self, settings: OutboundSettings) -> None:
        self._settings = settings
        self._timeouts = settings.timeouts
        self._loop = asyncio.get_running_loop()
        self._wheel = Wheel(self._loop, settings.tick)
        self._destinations: dict[ConnectionKey, _Destination] = {}
        self._dials: set[asyncio.Task[None]] = set()
        self._tls_sessions = SessionCache[ssl.SSLSession](settings.tls_sessions, reads=SESSION_READS)
        self._servers = ServerAddresses(settings.connections)
        self.credit = CreditHeld(settings.capacity, settings.held_octets)
        """What deliveries in progress hold of it, whatever they wait for; who begins and ends them keeps it."""
        self._closing = False
        self._gave_back = 0.0
        self._looks_at_open: asyncio.TimerHandle | None = None
        self._looks: asyncio.TimerHandle | None = None
        self._log = log.get_logger()
        metrics.OPEN.set_function(lambda: self._servers.open)
        metrics.WAITING.set_function(lambda: self.waiting)

    # --- for the application -----------------------------------------------------------------------------------

    def submit(self, job: PoolJob) -> None:
        """Run a job on a connection of its key. It is told of its end (`end_without_session`, `end_transaction`)."""
        destination = self._destinations.get(job.dial.key)
        if destination is None:
            destination = self._destinations[job.dial.key] = _Destination()
        if destination.idle and not job.fresh_only and not destination.waiting:
            connection = destination.idle[-1]
            self._not_idle(connection)
            destination.waiting.appendleft(job)
            connection.work()
        else:
            destination.waiting.append(job)
        if destination.waiting:
            self._wait(job, destination)

    def _wait(self, job: PoolJob, destination: _Destination) -> None:
        """A job waits from now on, and perhaps others do."""
        mail_began = job.mail_began
        if len(destination.waiting) == 1 or destination.mail_began < mail_began:
            destination.mail_began = mail_began
            if destination.line is not None:
                destination.line.renew(job.dial.key, mail_began)
        self._dial_more(job.dial.key, destination)
        self._mind_waiting(job)

    def _mind_waiting(self, job: PoolJob) -> None:
        if job.waits_since is None:
            job.waits_since = self._loop.time()
        if self._looks is None and not self._closing:
            self._looks = self._loop.call_later(
                min(_LOOK_AT_WAITING, self._settings.connection_wait), self._look_at_waiting
            )

    def _look_at_waiting(self) -> None:
        """End jobs that have waited too long: their leases would be renewed for ever."""
        self._looks = None
        wait = self._settings.connection_wait
        since = self._loop.time() - wait
        for key, destination in list(self._destinations.items()):
            # The first ones wait for dials in progress, each step of which has a time limit of its own.
            behind = itertools.islice(destination.waiting, destination.connecting, None)
            for job in [j for j in behind if j.waits_since is not None and j.waits_since <= since]:
                destination.waiting.remove(job)
                self._end_waiting(job, wait)
            self._forget_if_empty(key, destination)
        left = next((job for d in self._destinations.values() for job in d.waiting), None)
        if left is not None:
            self._mind_waiting(left)

    def _end_waiting(self, job: PoolJob, seconds: float) -> None:
        try:
            job.end_waiting(seconds)
        except Exception:  # the other jobs must be ended, too
            self._log.exception("unexpected error while ending a delivery that waited too long", host=job.dial.host)

    def withdraw(self, job: PoolJob) -> bool:
        """Take back a job that still waits. False: it runs already."""
        destination = self._destinations.get(job.dial.key)
        if destination is None:
            return False
        try:
            destination.waiting.remove(job)
        except ValueError:
            return False
        self._forget_if_empty(job.dial.key, destination)
        return True

    def standing(self, job: PoolJob) -> SiteStanding:
        """How the address answered last that a job was dialled at, or would be."""
        dial = job.dial
        destination = self._destinations.get(dial.key)
        if job.dialled:
            address = job.dialled[-1]
        else:
            address = (self._addresses(dial, destination) if destination is not None else dial.addresses)[0]
        return self._servers.standing(dial, address)

    @property
    def connections(self) -> list[ClientConnection]:
        """Those that are open now."""
        return [c for d in self._destinations.values() for c in d.live]

    @property
    def waiting(self) -> int:
        """Jobs that wait for a connection."""
        return sum(len(d.waiting) for d in self._destinations.values())

    def close_idle(self) -> None:
        """Send QUIT on every idle connection."""
        for connection in list(self._servers.idle):
            self._quit_idle(connection)

    async def close(self) -> None:
        """End everything now; what runs ends as broken."""
        self._closing = True
        for connection in self.connections:
            connection.abort(Trouble.CLOSED, "this process stops")
        for task in list(self._dials):
            task.cancel()
        await asyncio.gather(*self._dials, return_exceptions=True)
        self._wheel.stop()
        if self._looks is not None:
            self._looks.cancel()
            self._looks = None
        if self._looks_at_open is not None:
            self._looks_at_open.cancel()
            self._looks_at_open = None

    # --- dialling --------------------------------------------------------------------------------------------------

    def _limit(self, job: PoolJob, destination: _Destination) -> int:
        limit = job.dial.limit or self._settings.connections_per_destination
        if destination.fewer is not None:
            if self._loop.time() < destination.fewer_until:
                return min(limit, destination.fewer)
            destination.fewer = None
        return limit

    def _message_limit(self, destination: _Destination) -> int:
        limit = self._settings.messages_per_connection
        return min(limit, destination.carries) if self._loop.time() < destination.carries_until else limit

    def _dial_more(self, key: ConnectionKey, destination: _Destination) -> None:
        while len(destination.waiting) > destination.connecting and not self._closing and destination.line is None:
            job = destination.waiting[destination.connecting]
            if destination.total >= self._limit(job, destination):
                if job.fresh_only and destination.idle:
                    self._quit_idle(destination.idle[0])  # useless to this job, and in its place
                return
            addresses = self._addresses(job.dial, destination)
            server = self._servers.server(job.dial, addresses[0])
            if server.open >= self._limit_at(server, job.dial):
                server.line.add(key, destination.mail_began)
                destination.line = server.line
                if server.idle:
                    self._quit_idle(next(iter(server.idle)))
                return
            if not self._servers.room(server) and not (self._servers.room(server, more=1) and self._close_one_idle()):
                destination.line = self._servers.stand(server, key, destination.mail_began)
                self._servers.forget_if_unused(server)
                return
            destination.connecting += 1
            destination.total += 1
            self._servers.enter(server)
            self._mind_open()
            task = self._loop.create_task(self._dial(job, destination, addresses, server))
            self._dials.add(task)
            task.add_done_callback(self._dials.discard)

    def _limit_at(self, server: ServerAddress, dial: Dial) -> int:
        """Connections to one address, whatever names lead to it."""
        limit = dial.limit or self._settings.connections_per_destination
        if server.unknown:
            return min(limit, self._settings.connections_first)
        return limit if not dial.key.transport else self._settings.connections  # a transport has a limit of its own

    def _addresses(self, dial: Dial, destination: _Destination) -> tuple[str, ...]:
        if destination.dead is None:
            return dial.addresses
        now = self._loop.time()
        return tuple(a for a in dial.addresses if destination.dead.get(a, 0.0) <= now) or dial.addresses

    def _close_one_idle(self) -> bool:
        connection = next(iter(self._servers.idle), None)
        if connection is None:
            return False
        self._quit_idle(connection)
        return True

    def _quit_idle(self, connection: ClientConnection) -> None:
        self._not_idle(connection)
        connection.quit()

    def _not_idle(self, connection: ClientConnection) -> None:
        connection.destination.idle.remove(connection)
        del connection.server.idle[connection]
        del self._servers.idle[connection]

    async def _dial(
        self, job: PoolJob, destination: _Destination, addresses: tuple[str, ...], first: ServerAddress
    ) -> None:
        """Connect to one of the addresses. `first` has been entered already."""
        dial = job.dial
        failures: list[str] = []
        connection: ClientConnection | None = None
        began = self._loop.time()
        server: ServerAddress | None = first
        try:
            for address in addresses:
                if server is None:
                    server = self._enter_next(dial, destination, address, addresses)
                    if server is None:
                        return
                connection = ClientConnection(
                    self,
                    dial,
                    address,
                    timeouts=self._timeouts,
                    wheel=self._wheel,
                    message_limit=self._message_limit(destination),
                    tls_sessions=self._tls_sessions,
                )
                connection.destination, connection.server = destination, server
                connection.asked = began
                host, port = dial.proxy or (address, dial.port)
                job.dialled.append(address)
                destination.live.add(connection)
                try:
                    async with asyncio.timeout(self._timeouts.connect) as connection.connect_limit:
                        await self._loop.create_connection(
                            lambda connection=connection: connection, host, port, local_addr=_source(dial.sources, host)
                        )
                except (OSError, TimeoutError) as error:
                    connection.disown()  # it may have been made in the moment in which its time was over
                    destination.live.discard(connection)
                    failures.append(f"{address} port {dial.port}: {connection.gives_way or _in_words(error)}")
                    if not dial.proxy:
                        self._failed_at(server, Answer(Stage.CONNECT, None, Trouble.UNREACHABLE, failures[-1]))
                    self._leave(server)
                    server = None
                    if connection.gives_way:
                        break
                    continue
                return
        except asyncio.CancelledError:
            self._ended(destination, server, connecting=True)
            raise
        except Exception as error:  # a fault of ours: unanswered, the job would keep its lease for ever
            if connection is not None:
                destination.live.discard(connection)
            self._log.exception("unexpected error while dialling", host=dial.host)
            failures.append(f"an internal error of outbound: {type(error).__name__}")
        self._ended(destination, server, connecting=True)
        metrics.CONNECTIONS.inc("proxy" if dial.proxy else "unreachable")
        stage, trouble = (Stage.PROXY, Trouble.PROXY) if dial.proxy else (Stage.CONNECT, Trouble.UNREACHABLE)
        self._dial_failed(dial.key, destination, Answer(stage, None, trouble, "; ".join(failures)), None)

    def _enter_next(
        self, dial: Dial, destination: _Destination, address: str, addresses: tuple[str, ...]
    ) -> ServerAddress | None:
        """Count a dial on to its next address. None: as many as may be are under way there; its key waits for them."""
        server = self._servers.server(dial, address)
        if server.open < self._limit_at(server, dial):
            self._servers.enter(server)
            return server
        until = self._loop.time() + _FEWER_FOR
        destination.dead = dict.fromkeys(addresses[: addresses.index(address)], until)
        self._ended(destination, None, connecting=True)
        self._dial_more(dial.key, destination)
        self._feed()
        return None

    def _failed_at(self, server: ServerAddress, answer: Answer) -> None:
        """An address gave no session. If it gives none to anybody and says nothing, what waits for it under other names
        needs not find that out one after the other."""
        if server.sessions:
            return
        if server.standing is not UNPROVEN:
            self._servers.rate(server, UNPROVEN)
        if answer.trouble not in _SILENCE or answer.stage not in (Stage.CONNECT, Stage.GREETING):
            return
        for key in server.line:
            destination = self._destinations.get(key)
            if destination is None or destination.line is not server.line:  # what failed before it led there
                continue
            jobs = destination.waiting
            if not destination.total and all(job.dial.addresses == (server.key.address,) for job in jobs):
                for job in jobs:
                    job.dialled.append(server.key.address)
                self._end_waiting_jobs(destination, answer, None)
                self._forget_if_empty(key, destination)

    def _ended(self, destination: _Destination, server: ServerAddress | None, *, connecting: bool) -> None:
        destination.total -= 1
        destination.connecting -= connecting
        if server is not None:
            self._leave(server)

    def _leave(self, server: ServerAddress) -> None:
        self._servers.leave(server)
        if server.line:
            self._dial_from(server.line)

    def _dial_failed(
        self, key: ConnectionKey, destination: _Destination, answer: Answer, connection: ClientConnection | None
    ) -> None:
        others = destination.connecting + sum(c.ready for c in destination.live)
        if others:
            destination.fewer = others
            destination.fewer_until = self._loop.time() + _FEWER_FOR
        else:
            self._end_waiting_jobs(destination, answer, connection)
        self._forget_if_empty(key, destination)
        self._feed()

    def _end_waiting_jobs(self, destination: _Destination, answer: Answer, connection: ClientConnection | None) -> None:
        jobs, destination.waiting = destination.waiting, deque()
        for job in jobs:
            try:
                job.end_without_session(answer, connection)
            except Exception:  # the other jobs must be ended, too
                self._log.exception("unexpected error after a host failed", host=job.dial.host)
                job.end_after_crash(None)

    # --- how long they are not answered -------------------------------------------------------------------------------

    def _mind_open(self) -> None:
        if self._looks_at_open is None and not self._closing:
            look = _LOOK_AT_FIRST if self._servers.unproven_waiting else _LOOK_AT_OPEN
            seconds = min(look, self._settings.slow_seconds / 2, self._settings.first_seconds / 2)
            self._looks_at_open = self._loop.call_later(seconds, self._look_at_open)

    def _look_at_open(self) -> None:
        """See who is slow, and break off who has not answered for long where others wait."""
        self._looks_at_open = None
        now = self._loop.time()
        slow_since = now - self._settings.slow_seconds
        quick_since = now - QUICK_SECONDS
        first_since = now - self._settings.first_seconds
        unanswered: list[ClientConnection] = []
        first: list[ClientConnection] = []
        for connection in self.connections:
            if not connection.waits:
                continue
            server: ServerAddress = connection.server
            if server.standing is QUICK and min(connection.asked, connection.began) < quick_since:
                self._servers.rate(server, SLOW)
            if connection.asked < slow_since:
                if connection.unanswered:
                    unanswered.append(connection)
            elif server.unknown and connection.asked < first_since and connection.unanswered:
                first.append(connection)
        # Half of the share that is theirs, where files are short and connections few.
        allowed = min(self._settings.slow_connections, self._settings.connections // 4)
        most = min(len(unanswered) - allowed, self._servers.waiting)
        if most > 0:
            unanswered.sort(key=lambda connection: connection.asked)
            self._break_off(unanswered[:most], self._settings.slow_seconds)
        # Of addresses of which nothing is known, those that have waited longest may go on: they are let have what the
        # RFC gives them, and all others what most servers need.
        most = min(len(first) + len(unanswered) - allowed, len(first), self._servers.unproven_waiting)
        if most > 0:
            first.sort(key=lambda connection: connection.asked, reverse=True)
            self._break_off(first[:most], self._settings.first_seconds)
        self._give_back(now)
        if self._servers.open:
            self._mind_open()

    @staticmethod
    def _break_off(connections: list[ClientConnection], seconds: float) -> None:
        for connection in connections:
            metrics.GAVE_WAY.inc()
            connection.give_way(seconds)

    def _give_back(self, now: float) -> None:
        """Where so many deliveries are in progress that the queue has no credit for others of their standing, some of
        those that wait go back, a few at a time: a site that is new has its first delivery soon."""
        seconds = min(1.0, now - self._gave_back)
        most = int(seconds * BACK)
        if not most:
            return
        self._gave_back = now
        if not self.credit.may_be_crowded:
            return
        credit = self.credit.copy()
        waiting: list[tuple[PoolJob, Held, SiteStanding, float]] = []
        for destination in self._destinations.values():
            for job in itertools.islice(destination.waiting, destination.connecting, None):
                held, since = job.held, job.waits_since
                if held is None or since is None:
                    continue
                counts_for = held.after(now - since, partial(self.standing, job))
                if counts_for is not held.standing:
                    credit.discard(held.standing, held.octets)
                    credit.add(counts_for, held.octets)
                if counts_for is not None and not held.begun:
                    waiting.append((job, held, counts_for, since))
        if not credit.is_crowded:
            return
        waiters = [
            _Waiter(job, counts_for, held.octets, self.standing(job), since) for job, held, counts_for, since in waiting
        ]
        for one in who_goes_back(credit, waiters, now=now, most=most, octets=seconds * BACK_OCTETS):
            if self.withdraw(one.job):
                self._end_waiting(one.job, now - one.since)

    # --- what connections tell ---------------------------------------------------------------------------------------

    def next_job(self, connection: ClientConnection) -> PoolJob | None:
        """See smtp.Owner."""
        destination: _Destination = connection.destination
        if not destination.waiting:
            return None
        used = connection.session.transactions > 0
        if used and destination.waiting[0].fresh_only:
            for job in itertools.islice(destination.waiting, 1, 20):
                if not job.fresh_only:
                    destination.waiting.remove(job)
                    return job
            return None
        return destination.waiting.popleft()

    def on_ready(self, connection: ClientConnection) -> None:
        """See smtp.Owner."""
        destination: _Destination = connection.destination
        server: ServerAddress = connection.server
        connection.setting_up = False
        destination.connecting -= 1
        connection.gave_session = True
        server.sessions += 1
        if server.standing is UNPROVEN:
            self._servers.rate(server, SLOW)  # until it has answered for a message
            if destination.line is not None:
                destination.line.discard(connection.key)
                destination.line = None
            self._loop.call_soon(self._dial_after_first, connection.key, destination, server)

    def _dial_after_first(self, key: ConnectionKey, destination: _Destination, server: ServerAddress) -> None:
        """More may be dialled than before the first session."""
        self._dial_more(key, destination)
        before = -1
        while server.line and server.open != before:
            before = server.open
            self._dial_from(server.line)
        self._feed()

    def on_answered(self, connection: ClientConnection, seconds: float) -> None:
        """See smtp.Owner."""
        server: ServerAddress = connection.server
        standing = standing_of(seconds)
        if standing is not server.standing:
            self._servers.rate(server, standing)
            self._feed()

    def on_idle(self, connection: ClientConnection) -> None:
        """See smtp.Owner."""
        destination: _Destination = connection.destination
        server: ServerAddress = connection.server
        waits = destination.waiting or server.line  # what waits wants fresh ones
        if self._closing or waits or (self._servers.waiting and self._servers.next(more=1) is not None):
            connection.quit()
        elif connection not in self._servers.idle:
            destination.idle.append(connection)
            server.idle[connection] = None
            self._servers.idle[connection] = None
            connection.keep_idle(self._settings.idle_seconds)

    def on_failed(self, connection: ClientConnection, answer: Answer) -> None:
        """See smtp.Owner."""
        destination: _Destination = connection.destination
        connection.failure_reported = True
        if connection.setting_up:
            connection.setting_up = False
            destination.connecting -= 1
        if connection.resumption_failed and not self._closing:
            return  # no word about the host: `forget` dials again, for a full handshake
        if answer.fault is None or not answer.fault.of_demand:  # else a stranger's policy would speak for all its mail
            self._failed_at(connection.server, answer)
        self._dial_failed(connection.key, destination, answer, connection)

    def requeue(self, job: Job, connection: ClientConnection) -> None:
        """See smtp.Owner."""
        assert isinstance(job, PoolJob)
        destination: _Destination = connection.destination
        destination.waiting.appendleft(job)  # first, or a fresh connection would be used up by others
        job.waits_since = None
        self._wait(job, destination)

    def limit_messages(self, connection: ClientConnection, messages: int) -> None:
        """See smtp.Owner."""
        destination: _Destination = connection.destination
        destination.carries = messages
        destination.carries_until = self._loop.time() + _FEWER_FOR
        for each in destination.live:
            each.message_limit = min(each.message_limit, messages)

    def forget(self, connection: ClientConnection) -> None:
        """See smtp.Owner."""
        destination: _Destination = connection.destination
        server: ServerAddress = connection.server
        if connection in self._servers.idle:
            self._not_idle(connection)
        destination.live.discard(connection)
        server.sessions -= connection.gave_session
        self._ended(destination, server, connecting=connection.setting_up)
        connection.setting_up = False
        if destination.waiting and not connection.session.transactions and not connection.failure_reported:
            # It was ready and ended before it took anything: dialling on and on would not make it better.
            answer = connection.answer or Answer(Stage.GREETING, None, Trouble.CLOSED, "the server closed")
            self._dial_failed(connection.key, destination, answer, connection)
            return
        if destination.waiting:
            self._dial_more(connection.key, destination)
        self._forget_if_empty(connection.key, destination)
        self._feed()

    def _feed(self) -> None:
        """Dial for those whose turn it is, as far as there is room."""
        while (line := self._servers.next()) is not None:
            self._dial_from(line)

    def _dial_from(self, line: DatedLine[ConnectionKey]) -> None:
        key = line.take()
        destination = self._destinations.get(key)
        if destination is not None:
            destination.line = None
            self._dial_more(key, destination)
            self._forget_if_empty(key, destination)

    def _forget_if_empty(self, key: ConnectionKey, destination: _Destination) -> None:
        if not destination.waiting:
            if destination.line is not None:
                destination.line.discard(key)
                destination.line = None
            if not destination.total:
                self._destinations.pop(key, None)


def _source(sources: tuple[str, ...], server: str) -> tuple[str, int] | None:
    for source in sources:
        if (":" in source) == (":" in server):
            return (source, 0)
    return None


def _in_words(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no connection in time"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
