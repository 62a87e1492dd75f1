"""The queue process: its parts, in the order in which they need each other, and how they start and stop.

Mail enters by `accept`, leaves by `lease`, comes back by `finish`, and waits under `owner`. `dispatch` stands between
them and holds what is in memory; `worklist` says what is to be looked at. See the README for the way of a message.
"""

import asyncio
import time
from collections.abc import Sequence
from typing import Protocol
from uuid import uuid4

from mailrail.core.uncommitted import Uncommitted
from mailrail.kit import clock, log, migrations, postgres
from mailrail.kit.config_client import Configuration
from mailrail.kit.history import NewHistory
from mailrail_queue import metrics
from mailrail_queue.accept.batches import GroupCommit
from mailrail_queue.delivery.attempt import Delivery
from mailrail_queue.delivery.dispatcher import Dispatcher
from mailrail_queue.delivery.lease_writer import LeaseWriter
from mailrail_queue.delivery.leases import LeaseManager
from mailrail_queue.delivery.local import LocalDelivery
from mailrail_queue.delivery.parts import Parts
from mailrail_queue.delivery.results import Finisher
from mailrail_queue.delivery.site_health import SiteHealth
from mailrail_queue.delivery.sites import SiteState
from mailrail_queue.mailbox.delivery import MailboxDelivery
from mailrail_queue.notify.dsn import Notifier
from mailrail_queue.notify.signing import OwnMailSigner
from mailrail_queue.routing.router import Router, reference_text
from mailrail_queue.schedule.peers import Peers
from mailrail_queue.schedule.scheduler import Scheduler
from mailrail_queue.schedule.shards import Shards
from mailrail_queue.schedule.shared_sites import SharedSites
from mailrail_queue.schedule.worklist import Worklist
from mailrail_queue.settings import QueueSettings
from mailrail_queue.store.connection import DATABASE_FAILURE, Database
from mailrail_queue.store.data_history import QueueHistory
from mailrail_queue.upkeep.backlog import BacklogCounter
from mailrail_queue.upkeep.sweeping import Upkeep


class NotConfigured(Exception):
    """No configuration revision has come yet."""


class Arrivals(Protocol):
    """A stream that brings mail."""

    ready: asyncio.Event
    """Set when it has something to say."""


class _Wiring:
    """Carries what the dispatcher notices to the part that acts on it (`DispatcherEvents`).

    Those parts need the dispatcher and are made after it, so they are looked up when they are needed.
    """

    def __init__(self, queue: "QueueProcess") -> None:
        self._queue = queue

    def deliver_locally(self, delivery: Delivery) -> None:
        self._queue.local_delivery.deliver(delivery)

    def take_back(self, deliveries: Sequence[Delivery]) -> None:
        self._queue.lease_writer.take_back(deliveries)

    def fetch_more(self, site: SiteState) -> None:
        self._queue.worklist.fetch_more(site)

    def claim_probe(self, site: SiteState) -> None:
        self._queue.shared_sites.claim_probe(site)


class QueueProcess:
    """One queue process."""

    def __init__(self, settings: QueueSettings) -> None:
        self.settings = settings
        self.run_id = f"{settings.node_id}/{uuid4().hex[:12]}"
        self._router: Router | None = None
        self._log = log.get_logger()
        self.history = QueueHistory(self.run_id, self._new_history)
        self.login = postgres.Login(settings)
        self.database = Database(
            self.login,
            f"mailrail queue {settings.node_id}",
            history=self.history.of,
            unsafe=settings.unsafe,
        )
        self.dispatcher = Dispatcher(
            clock.now,
            _Wiring(self),
            handout_seconds=settings.handout_seconds,
            content_budget=settings.born_leased_bytes,
            delivery_budget=settings.pending_deliveries,
            rounds=settings.born_leased_rounds,
        )
        parts = Parts(settings, self.database, self.history, self.dispatcher, self.router)
        self.uncommitted = Uncommitted(settings.upload_octets)
        metrics.UPLOADING.set_function(lambda: self.uncommitted.octets(time.monotonic()))
        self.peers = Peers(settings)
        self.worklist = Worklist(self.dispatcher, self.peers, self.router, run_id=self.run_id)
        self.mailboxes = MailboxDelivery(self.router)
        self.signer = OwnMailSigner()
        self.notifier = Notifier(self.router, self.mailboxes, self.worklist.wake_owners, self.signer)
        self.finisher = Finisher(parts, self.worklist, self.notifier, self.mailboxes)
        self.local_delivery = LocalDelivery(self.dispatcher, self.finisher, self.mailboxes)
        self.group_commit = GroupCommit(
            settings, self.database, self.dispatcher, self.router, self.worklist, self.history, self.notifier
        )
        lease_lane, self._beats = self.database.lane("lease"), self.database.lane("heartbeat")
        self.lease_writer = LeaseWriter(parts, lease_lane, self.finisher, self.worklist)
        site_health = SiteHealth(self.dispatcher, self.lease_writer)
        self.leases = LeaseManager(parts, lease_lane, self.finisher, self.lease_writer, site_health)
        self.shared_sites = SharedSites(self._beats, self.dispatcher, site_health, self.worklist)
        self.shards = Shards(parts, self._beats, self.worklist, self.group_commit, self.peers, self.shared_sites)
        self.owner = Scheduler(
            parts,
            self.worklist,
            self.group_commit.ids,
            self.finisher,
            self.leases,
            self.lease_writer,
            site_health,
            self.shared_sites,
        )
        self.upkeep = Upkeep(settings, self.database)
        self.counting = BacklogCounter(
            self.database,
            self.dispatcher,
            lambda: self.worklist.ownership.epochs,
            settings.count_seconds,
            settings.named_sites,
        )
        self.arrivals: set[Arrivals] = set()
        """The open streams that bring mail."""
        self.stopping = asyncio.Event()
        self.stopped = asyncio.Event()
        """Everything is given back: a stream that is still open may end."""
        self.ready = False
        self._running: asyncio.Task[None] | None = None

    # --- configuration ---

    def router(self) -> Router:
        """The revision in force. Raises NotConfigured before the first."""
        if self._router is None:
            raise NotConfigured("no configuration revision has come yet")
        return self._router

    def configure(self, configuration: Configuration) -> None:
        """Put a revision in force, whole (design 2). It routes recipients from their next attempt on."""
        before = self._router.revision.transports if self._router is not None else ()
        known = {one.ref: one.digest for one in before}
        self._router = Router(configuration.number, configuration.revision)
        self.signer.configure(configuration.revision, configuration.secrets)
        self.dispatcher.configure(configuration.revision.transports)
        if self._running is not None:
            now = configuration.revision.transports
            changed = [reference_text(one.ref) for one in now if known.get(one.ref, one.digest) != one.digest]
            self.worklist.revise(changed)

    # --- start and stop ---

    async def prepare(self) -> None:
        """Wait for a database that is durable and new enough; says why it waits."""
        said = ""
        while True:
            try:
                await self.database.refuse_shared_sessions()
                async with self._beats.use() as connection:
                    await migrations.check(connection, "queue")
                    self.dispatcher.history = await self.history.of.begin(connection)
                    self.group_commit.ids.forget()
                await self.database.open_lanes()
                return
            except (*DATABASE_FAILURE, migrations.Unfit) as error:
                if str(error) != said:
                    said = str(error)
                    self._log.warning("waiting for the database", error=said.strip())
                await asyncio.sleep(0.5)

    async def start(self) -> None:
        """Own shards, take mail and hand it out. Call `prepare` and `configure` first."""
        await self.upkeep.start()
        try:
            while True:
                try:
                    await self.shards.beat()
                    break
                except DATABASE_FAILURE as error:
                    self._log.warning("waiting for the database", error=str(error).strip())
                    await asyncio.sleep(0.5)
        except (
            asyncio.CancelledError
        ):  # stopped while it started: other processes need not wait until it counts as dead
            await self.shards.leave()
            raise
        self._running = asyncio.get_running_loop().create_task(self._run())
        self.ready = True

    @property
    def serving(self) -> bool:
        """Whether mail can be stored durably now, and due work was looked for once.

        A step that fails again and again later on is told by an alert and changes nothing here: fresh mail leaves from
        memory all the same, the other steps go on, and what does not is kept. To refuse all mail for it, which every
        replica would do alike, would make an outage out of a delay.
        """
        healthy = self.shards.healthy and not self.database.watch.silent
        return self.ready and self.owner.looked and healthy and not self.stopping.is_set()

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as group:
            parts = (
                self.group_commit,
                self.finisher,
                self.lease_writer,
                self.shards,
                self.owner,
                self.peers,
                self.upkeep,
                self.counting,
                self.database.watch,
            )
            for part in parts:
                group.create_task(part.run())
            group.create_task(self.database.rest())

    def failed(self) -> BaseException | None:
        """Why the parts stopped, if they did: a fault in our code that a restart may cure."""
        if self._running is not None and self._running.done() and not self._running.cancelled():
            return self._running.exception()
        return None

    async def stop(self, grace: float) -> None:
        """Start nothing new, finish what runs, give back leases that were not handed on, release the shards."""
        self.stopping.set()
        for stream in self.arrivals:
            stream.ready.set()  # so that it says GoAway now
        deadline = time.monotonic() + grace
        while time.monotonic() < deadline:
            if (
                not self.arrivals
                and self.group_commit.idle
                and self.finisher.idle
                and len(self.dispatcher.deliveries) == (self.dispatcher.pending_deliveries)
            ):
                break
            await asyncio.sleep(0.02)
        self.group_commit.close()
        if self._running is not None:
            # Before anything is given back: a heartbeat would take shards again, and the owner of due work lease more.
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)
        await self.shards.leave()
        await self.leases.release_all()
        await self.shards.forget()
        self.stopped.set()
        await self.database.close()

    # --- the rest ---

    def _new_history(self, new: NewHistory) -> None:
        """The database was set back: forget what memory knows of it, and close all deliveries (HIS-03)."""
        self.database.reopen()
        self.group_commit.ids.forget()
        self.dispatcher.history = new.number
        closed = self.leases.begin_history(new.number)
        metrics.HISTORIES.inc()
        metrics.HISTORY.labels(kind="deliveries").inc(closed)
        self._log.error(
            "database was set back: all earlier deliveries are closed",
            why=new.why or "another process has begun the new history",
            history=new.number,
            before=new.before,
            deliveries=closed,
            results_waiting=self.finisher.waiting,
        )
        self.worklist.look_anew()
