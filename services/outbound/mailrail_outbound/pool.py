"""Connections by the key that they are reused under, and the jobs that wait for one (design 4, Deliver).

A job goes to an idle connection of its key; else a new one is dialled, up to the destination's limit and the process's;
else it waits. A connection that has finished takes the next waiting job of its key. When a new connection fails while
others of its key live, the server wants no more of us and fewer are used for a while; when it was the only one, all
jobs that wait for that host fail with it.

Connections that a server closed behind our back are found out by a transaction that no reply touched, those on which it
takes no more messages by one that it refused before the content (core/smtp/client.py, `Transaction.wants_fresh`): such
a job goes once to a fresh connection, in the same attempt. So does one whose connection broke while a TLS session was
resumed (TLS-10c). How many messages a connection carried until then is kept for a while, so that the next ones end in
time.
"""

import asyncio
import itertools
import ssl
from collections import deque

from mailrail.core.outbound.targets import ConnectionKey
from mailrail.core.smtp.answer import Answer, Stage, Trouble
from mailrail.core.tlspolicy.resumption import SessionCache
from mailrail.kit import log
from mailrail.kit.wheel import Wheel
from mailrail_outbound import metrics
from mailrail_outbound.settings import OutboundSettings
from mailrail_outbound.smtp import ClientConnection, Dial, Job
from mailrail_outbound.tls import SESSION_READS

_LOOK_AT_WAITING = 15.0  # seconds between looks at those that wait
_FEWER_FOR = 60.0  # seconds that a destination's refusal of further connections or messages is respected


class PoolJob(Job):
    """What the pool needs of a job besides what a connection needs."""

    dial: Dial
    dialled: list[str]
    """IPs that were dialled for it, in order; the pool adds to it."""

    waits_since: float | None
    """The loop's time since which it stands in line; the pool's own."""

    def end_without_session(self, answer: Answer, connection: ClientConnection | None) -> None:
        """No connection came about."""

    def end_waiting(self, seconds: float) -> None:
        """None was free for so long."""


class _Destination:
    """Everything of one key."""

    __slots__ = ("carries", "carries_until", "connecting", "fewer", "fewer_until", "idle", "live", "total", "waiting")

    def __init__(self) -> None:
        self.waiting: deque[PoolJob] = deque()
        self.total = 0  # connections, from the decision to dial to their end
        self.connecting = 0  # those of them whose session is not set up
        self.live: set[ClientConnection] = set()  # those of them whose socket is connected, or nearly
        self.idle: list[ClientConnection] = []
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
        self._open = 0
        self._starved: deque[ConnectionKey] = deque()  # keys with waiting jobs that the process's limit stopped
        self._closing = False
        self._looks: asyncio.TimerHandle | None = None
        self._log = log.get_logger()
        metrics.OPEN.set_function(lambda: self._open)
        metrics.WAITING.set_function(lambda: self.waiting)

    # --- for the application -----------------------------------------------------------------------------------

    def submit(self, job: PoolJob) -> None:
        """Run a job on a connection of its key. It is told of its end (`end_without_session`, `end_transaction`)."""
        destination = self._destinations.get(job.dial.key)
        if destination is None:
            destination = self._destinations[job.dial.key] = _Destination()
        if destination.idle and not job.fresh_only and not destination.waiting:
            connection = destination.idle.pop()
            destination.waiting.appendleft(job)
            connection.work()
        else:
            destination.waiting.append(job)
        if destination.waiting:
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
                try:
                    job.end_waiting(wait)
                except Exception:
                    self._log.exception(
                        "unexpected error while ending a delivery that waited too long", host=job.dial.host
                    )
            self._forget_if_empty(key, destination)
        left = next((job for d in self._destinations.values() for job in d.waiting), None)
        if left is not None:
            self._mind_waiting(left)

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
        for destination in list(self._destinations.values()):
            for connection in list(destination.idle):
                connection.quit()

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
        while len(destination.waiting) > destination.connecting and not self._closing:
            job = destination.waiting[destination.connecting]
            if destination.total >= self._limit(job, destination):
                if job.fresh_only and destination.idle:
                    destination.idle[0].quit()  # useless to this job, and in its place
                return
            if self._open >= self._settings.connections and not self._close_one_idle():
                if key not in self._starved:
                    self._starved.append(key)
                return
            destination.connecting += 1
            destination.total += 1
            self._count(1)
            task = self._loop.create_task(self._dial(job, destination))
            self._dials.add(task)
            task.add_done_callback(self._dials.discard)

    def _close_one_idle(self) -> bool:
        for destination in self._destinations.values():
            if destination.idle:
                destination.idle[0].quit()
                return True
        return False

    def _count(self, change: int) -> None:
        self._open += change

    async def _dial(self, job: PoolJob, destination: _Destination) -> None:
        dial = job.dial
        failures: list[str] = []
        connection: ClientConnection | None = None
        try:
            for address in dial.addresses:
                connection = ClientConnection(
                    self,
                    dial,
                    address,
                    timeouts=self._timeouts,
                    wheel=self._wheel,
                    message_limit=self._message_limit(destination),
                    tls_sessions=self._tls_sessions,
                )
                connection.destination = destination
                peer, port = dial.proxy or (address, dial.port)
                job.dialled.append(address)
                destination.live.add(connection)
                try:
                    async with asyncio.timeout(self._timeouts.connect):
                        await self._loop.create_connection(
                            lambda connection=connection: connection, peer, port, local_addr=_source(dial.sources, peer)
                        )
                except (OSError, TimeoutError) as error:
                    connection.disown()  # it may have been made in the moment in which its time was over
                    destination.live.discard(connection)
                    failures.append(f"{address} port {dial.port}: {_in_words(error)}")
                    continue
                return
        except asyncio.CancelledError:
            self._ended(destination, connecting=True)
            raise
        except Exception as error:  # a fault of ours: unanswered, the job would keep its lease for ever
            if connection is not None:
                destination.live.discard(connection)
            self._log.exception("unexpected error while dialling", host=dial.host)
            failures.append(f"an internal error of outbound: {type(error).__name__}")
        self._ended(destination, connecting=True)
        metrics.CONNECTIONS.inc("proxy" if dial.proxy else "unreachable")
        stage, trouble = (Stage.PROXY, Trouble.PROXY) if dial.proxy else (Stage.CONNECT, Trouble.UNREACHABLE)
        self._dial_failed(dial.key, destination, Answer(stage, None, trouble, "; ".join(failures)), None)

    def _ended(self, destination: _Destination, *, connecting: bool) -> None:
        destination.total -= 1
        destination.connecting -= connecting
        self._count(-1)

    def _dial_failed(
        self, key: ConnectionKey, destination: _Destination, answer: Answer, connection: ClientConnection | None
    ) -> None:
        others = destination.connecting + sum(c.ready for c in destination.live)
        if others:
            destination.fewer = others
            destination.fewer_until = self._loop.time() + _FEWER_FOR
        else:
            jobs, destination.waiting = destination.waiting, deque()
            for job in jobs:
                try:
                    job.end_without_session(answer, connection)
                except Exception:  # the other jobs must be ended, too
                    self._log.exception("unexpected error after a host failed", host=job.dial.host)
                    job.end_after_crash(None)
        self._forget_if_empty(key, destination)
        self._feed_starved()

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
        connection.setting_up = False
        connection.destination.connecting -= 1

    def on_idle(self, connection: ClientConnection) -> None:
        """See smtp.Owner."""
        destination: _Destination = connection.destination
        if self._closing or self._starved or destination.waiting:  # what waits wants fresh ones
            connection.quit()
        elif connection not in destination.idle:
            destination.idle.append(connection)
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
        self._dial_failed(connection.key, destination, answer, connection)

    def requeue(self, job: Job, connection: ClientConnection) -> None:
        """See smtp.Owner."""
        assert isinstance(job, PoolJob)
        destination: _Destination = connection.destination
        destination.waiting.appendleft(job)  # first, or a fresh connection would be used up by others
        job.waits_since = None
        self._dial_more(connection.key, destination)
        self._mind_waiting(job)

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
        self._ended(destination, connecting=connection.setting_up)
        connection.setting_up = False
        destination.live.discard(connection)
        if connection in destination.idle:
            destination.idle.remove(connection)
        if destination.waiting and not connection.session.transactions and not connection.failure_reported:
            # It was ready and ended before it took anything: dialling on and on would not make it better.
            answer = connection.answer or Answer(Stage.GREETING, None, Trouble.CLOSED, "the server closed")
            self._dial_failed(connection.key, destination, answer, connection)
            return
        if destination.waiting:
            self._dial_more(connection.key, destination)
        self._forget_if_empty(connection.key, destination)
        self._feed_starved()

    def _feed_starved(self) -> None:
        while self._starved and self._open < self._settings.connections:
            key = self._starved.popleft()
            destination = self._destinations.get(key)
            if destination is not None:
                self._dial_more(key, destination)

    def _forget_if_empty(self, key: ConnectionKey, destination: _Destination) -> None:
        if not destination.waiting and not destination.total:
            self._destinations.pop(key, None)


def _source(sources: tuple[str, ...], peer: str) -> tuple[str, int] | None:
    for source in sources:
        if (":" in source) == (":" in peer):
            return (source, 0)
    return None


def _in_words(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no connection in time"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
