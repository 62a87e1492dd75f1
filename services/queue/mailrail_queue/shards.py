"""Which shards are this process's, and with whom it shares the others (SHD-01).

Every two seconds a process says that it lives and sees who else does; shards of the dead are taken over under a new
epoch, surplus ones are let go. Owners tell each other of work by hints, and agree on who probes a site that they share.
"""

import asyncio
import random
from collections import deque
from collections.abc import Callable, Iterable, Sequence

import psycopg

from mailrail.kit import log
from mailrail_queue import metrics, site_store
from mailrail_queue.accept import Intake, read_holds
from mailrail_queue.database import Database, NotDurable, run
from mailrail_queue.dispatch import Dispatcher, SiteState
from mailrail_queue.finish import Finisher
from mailrail_queue.lease import Desk
from mailrail_queue.peers import Peers
from mailrail_queue.routing import Router
from mailrail_queue.settings import QueueSettings
from mailrail_queue.store import Ownership

SHARDS = 256
_PROBE_SECONDS = 130.0
"""For how long the right to probe a shared site is kept from other owners."""
DATABASE_TROUBLE = (psycopg.OperationalError, psycopg.InterfaceError, NotDurable, OSError)


class Shardholder:
    """This process as a holder of shards, and what it remembers of their work."""

    def __init__(
        self,
        settings: QueueSettings,
        database: Database,
        dispatcher: Dispatcher,
        intake: Intake,
        finisher: Finisher,
        desk: Desk,
        peers: Peers,
        router: Callable[[], Router],
        *,
        run_id: str,
    ) -> None:
        self._settings = settings
        self._database = database
        self._dispatcher = dispatcher
        self._intake = intake
        self._finisher = finisher
        self._desk = desk
        self._peers = peers
        self._router = router
        self._run_id = run_id
        self._lane = database.lane("owner")
        self._work_lane = database.lane("work")
        self._beat_lane = database.lane("heartbeat")
        self.ownership = Ownership(run_id, {})
        self.address = ""
        self.healthy = False
        """Postgres answered the last heartbeat."""
        self._started: str | None = None
        self._cursors: dict[int, float] = {}
        self._turn: dict[str, None] = {}
        """Keys of sites with due work in the database, in the order of their turns."""
        self._emptied: dict[tuple[int, str], float] = {}
        self._settled: deque[tuple[float, int, str]] = deque(maxlen=50_000)
        """(when to look back, shard, site) of sites whose next due time was moved for good."""
        self._unverified: list[int] = []
        self._sites_seen = 0.0
        self._requests = False
        self._swept_until = 0.0
        self._sweeps = 0
        self._wake = asyncio.Event()
        self._revised = asyncio.Event()
        self._changed: set[str] = set()
        """Transports that are not what they were, whose mail was not looked at since."""
        self._claiming: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._dice = random.Random()
        self._log = log.get_logger()
        dispatcher.hungry = self._hungry
        dispatcher.claim = self._claim
        intake.stored_due = self.stored_due
        finisher.deferred = self._deferred
        desk.went_back = self._wake.set

    # --- being told ---

    def stored_due(self, where: set[tuple[int, str]]) -> None:
        """Recipients were stored due in these (shard, site): ours are looked at, the owners of others are woken."""
        others: set[int] = set()
        for number, key in where:
            if number in self.ownership.epochs:
                self._note(number, key)
            else:
                others.add(number)
        if others:
            self._peers.wake(others)
        self._wake.set()

    def woken(self, shards: Iterable[int]) -> None:
        """Somebody says that there is work, or an administrator's request, in these shards."""
        for number in shards:
            if number in self._cursors:
                self._cursors[number] = 0.0
        self._requests = True
        self._wake.set()

    def woken_or_peer(self, shards: Iterable[int]) -> None:
        """Mail of our own making was stored due in these shards: ours are looked at, owners of others are woken."""
        found = set(shards)
        self.woken(found)
        others = {n for n in found if n not in self.ownership.epochs}
        if others:
            self._peers.wake(others)

    def revised(self, changed: Iterable[str]) -> None:
        """A new revision is in force; these transports ("NAMESPACE/NAME") are not what they were (ADM-03)."""
        self._changed.update(changed)
        self._revised.set()

    def administered(self, shards: Iterable[int]) -> None:
        """An administrator changed recipients in these shards: look at once, here and everywhere (ADM-02)."""
        found = set(shards)
        self.woken(found)
        self._peers.wake_everybody(found)

    def _deferred(self, rows: Sequence[tuple[int, int]]) -> None:
        asked = {number for number, request in rows if request}
        if asked:
            self.woken_or_peer(asked)  # ADM-02: the attempt is over; its shard may have another owner by now

    def _hungry(self, site: SiteState) -> None:
        self._turn.setdefault(site.key)
        self._wake.set()

    def _note(self, number: int, key: str) -> None:
        site = self._dispatcher.site_of_key(key, self._router())
        site.due.setdefault(number, False)
        self._turn.setdefault(key)

    # --- shards ---

    async def beat(self) -> None:
        """One heartbeat: say that we live, see who else does, take and let go of shards (SHD-01)."""
        settings = self._settings
        async with self._beat_lane.use() as connection:
            if self._started is None:
                rows = await run(connection, site_store.STARTED)
                self._started = str(rows[0][0].isoformat())
            rows = await run(
                connection,
                site_store.HEARTBEAT,
                {
                    "id": self._run_id,
                    "name": settings.node_id,
                    "address": self.address,
                    "started": self._started,
                    "dead": settings.dead_seconds,
                },
            )
            others: dict[str, str] = {row[0]: row[1] for row in rows}
            if rows:
                self._database.heard(rows[0][2])
            live = sorted([self._run_id, *others])
            mine = {row[0]: row[1] for row in await run(connection, site_store.MINE, {"id": self._run_id})}
            fair = -(-SHARDS // len(live))
            if len(mine) > fair:
                surplus = sorted(mine)[fair:]
                await run(
                    connection, site_store.RELEASE, {"id": self._run_id, "number": site_store.shard_column(surplus)}
                )
                for number in surplus:
                    del mine[number]
            elif len(mine) < fair:
                taken = await run(
                    connection, site_store.ACQUIRE, {"id": self._run_id, "live": live, "count": fair - len(mine)}
                )
                for number, epoch in taken:
                    mine[number] = epoch
                    self._unverified.append(number)
            owners = {row[0]: row[1] for row in await run(connection, site_store.OWNERS)} if others else {}
            holds = await read_holds(connection)
        self._intake.holds = holds
        self._own(mine)
        self._peers.learn(
            {n: others[o] for n, o in owners.items() if others.get(o)},
            frozenset(a for a in others.values() if a),
        )
        self._dispatcher.owners = len(live)
        self._dispatcher.owner_index = live.index(self._run_id)
        self._dispatcher.configure(self._router().transports())
        self._requests = True  # who asked may have been unheard, and who owned the shard may be no more (ADM-02)
        self.healthy = True
        metrics.POSTGRES_UP.set(1)
        await self._learn_sites()

    def _own(self, mine: dict[int, int]) -> None:
        before = self.ownership.epochs
        if mine == before:
            return
        gained = [n for n, e in mine.items() if before.get(n) != e]
        gone = [n for n in before if n not in mine]
        self.ownership = Ownership(self._run_id, mine)
        self._cursors = {n: self._cursors.get(n, 0.0) if n in before else 0.0 for n in mine}
        for site in self._dispatcher.sites.values():
            for number in gone:
                site.due.pop(number, None)
        metrics.SHARDS.set(len(mine))
        self._log.info("shards changed", owned=len(mine), gained=len(gained), released=len(gone))
        self._swept_until = 0.0
        self._requests = True
        if gained:
            self._revised.set()  # their owner may have been down when the revision came
        self._wake.set()

    async def _learn_sites(self) -> None:
        """What other owners, or this process before a restart, saw of sites."""
        async with self._beat_lane.use() as connection:
            rows = await site_store.sites_changed(connection, self._sites_seen)
        now = self._dispatcher.clock()
        for row in rows:
            self._sites_seen = max(self._sites_seen, row.changed)
            if row.failures and (row.paused_for or 0) > 0 and len(self._dispatcher.sites) < 20_000:
                self._dispatcher.site_of_key(row.name, self._router())
            self._desk.learn_rest(row, now)

    async def leave(self) -> None:
        """A clean stop: others may take the shards at once."""
        self.ownership = Ownership(self._run_id, {})
        self._cursors = {}
        try:
            async with asyncio.timeout(3):
                await self._beat_lane.run(site_store.LEAVE, {"id": self._run_id})
        except (psycopg.Error, NotDurable, OSError, TimeoutError) as error:
            self._log.info("left without a word", error=str(error))

    async def _beats(self) -> None:
        while True:
            try:
                await self.beat()
            except DATABASE_TROUBLE as error:
                if self.healthy:
                    self._log.warning("heartbeat failed", error=str(error).strip())
                self.healthy = False
                metrics.POSTGRES_UP.set(0)
            self._measure()
            await asyncio.sleep(self._settings.heartbeat_seconds * self._dice.uniform(0.9, 1.1))

    def _measure(self) -> None:
        dispatcher = self._dispatcher
        now = dispatcher.clock()
        metrics.PENDING.set(dispatcher.pending_flights)
        metrics.PENDING_BYTES.set(dispatcher.pending_bytes)
        metrics.IN_FLIGHT.set(len(dispatcher.flights) - dispatcher.pending_flights)
        resting = sum(1 for s in dispatcher.sites.values() if s.resting(now))
        metrics.SITES.labels(state="resting").set(resting)
        metrics.SITES.labels(state="active").set(len(dispatcher.sites) - resting)
        # A smarthost rests as a site; a proxy, or trouble of our own such as a refused login, as a transport.
        as_site = {s.key.partition(":")[2] for s in dispatcher.sites.values() if s.shared and s.window.resting(now)}
        as_whole = {t.name for t in dispatcher.transports.values() if t.window.resting(now)}
        metrics.TRANSPORTS_RESTING.set(len(as_site | as_whole))
        dispatcher.forget_idle(now - 600.0)

    # --- sites that several owners share ---

    def _claim(self, site: SiteState) -> None:
        """Ask for the right to probe a site that several owners share."""
        if site.key in self._claiming:
            return
        self._claiming.add(site.key)
        task = asyncio.get_running_loop().create_task(self._claim_now(site))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _claim_now(self, site: SiteState) -> None:
        try:
            parameters = {"name": site.key, "token": self._dice.getrandbits(62), "seconds": _PROBE_SECONDS}
            rows = await self._lane.run(site_store.CLAIM_PROBE, parameters)
            if rows:
                site.claimed = True
                self._turn.setdefault(site.key)
                self._wake.set()
                self._dispatcher.wake_all()
                self._dispatcher.pump()
            else:
                await asyncio.sleep(2.0)
        except DATABASE_TROUBLE:
            await asyncio.sleep(1.0)
        finally:
            self._claiming.discard(site.key)
