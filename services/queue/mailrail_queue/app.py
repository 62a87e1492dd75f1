"""The queue as a whole: its parts, in the order in which they need each other, and how they start and stop.

Mail enters by `accept`, leaves by `lease`, comes back by `finish`, and waits under `owner`. `dispatch` stands between
them and holds what is in memory; `worklist` says what is to be looked at. See the README for the way of a message.
"""

import asyncio
import time
from typing import Protocol
from uuid import uuid4

import psycopg

from mailrail.core.route.site import SiteKind
from mailrail.core.uncommitted import Uncommitted
from mailrail.kit import clock, log, migrations, postgres
from mailrail.kit.config_client import Configuration
from mailrail.kit.history import NewHistory
from mailrail.pb.queue.v1 import lease_pb2, types_pb2
from mailrail_queue import metrics
from mailrail_queue.accept.batches import GroupCommit
from mailrail_queue.delivery.attempt import Delivery
from mailrail_queue.delivery.dispatcher import Dispatcher
from mailrail_queue.delivery.leases import LeaseManager
from mailrail_queue.delivery.results import DeliveryResults, Finisher
from mailrail_queue.mailbox.delivery import MailboxDelivery
from mailrail_queue.notify.dsn import Notifier
from mailrail_queue.routing.router import Router, reference_text
from mailrail_queue.schedule.peers import Peers
from mailrail_queue.schedule.scheduler import Scheduler
from mailrail_queue.schedule.shards import Shards
from mailrail_queue.schedule.shared_sites import SharedSites
from mailrail_queue.schedule.worklist import Worklist
from mailrail_queue.settings import QueueSettings
from mailrail_queue.store.connection import Database, NotDurable
from mailrail_queue.store.data_history import QueueHistory
from mailrail_queue.upkeep.backlog import BacklogCounter
from mailrail_queue.upkeep.sweeping import Upkeep


class NotConfigured(Exception):
    """No configuration revision has come yet."""


class Arrivals(Protocol):
    """A stream that brings mail."""

    ready: asyncio.Event
    """Set when it has something to say."""


class QueueProcess:
    """One queue process."""

    def __init__(self, settings: QueueSettings) -> None:
        self.settings = settings
        self.run_id = f"{settings.node_id}/{uuid4().hex[:12]}"
        self._router: Router | None = None
        self._log = log.get_logger()
        where = postgres.database_of(settings)
        self.database = Database(where, f"mailrail queue {settings.node_id}", unsafe=settings.unsafe)
        self.history = QueueHistory(self.run_id, self._new_history)
        self.database.history = self.history.of
        self.dispatcher = Dispatcher(
            clock.now,
            handout_seconds=settings.handout_seconds,
            content_budget=settings.born_leased_bytes,
            rounds=settings.born_leased_rounds,
        )
        self.uncommitted = Uncommitted(settings.upload_octets)
        metrics.UPLOADING.set_function(lambda: self.uncommitted.octets(time.monotonic()))
        self.peers = Peers(settings)
        self.worklist = Worklist(self.dispatcher, self.peers, self.router, run_id=self.run_id)
        self.mailboxes = MailboxDelivery(self.router)
        self.notifier = Notifier(self.router, self.mailboxes, self.worklist.woken_or_peer)
        self.finisher = Finisher(
            self.database, self.dispatcher, self.router, self.history, self.notifier, self.mailboxes
        )
        self.group_commit = GroupCommit(
            settings, self.database, self.dispatcher, self.router, self.worklist, self.history, self.notifier
        )
        self.leases = LeaseManager(settings, self.database, self.dispatcher, self.finisher, self.router, self.history)
        beats = self.database.lane("heartbeat")
        self.shared_sites = SharedSites(beats, self.dispatcher, self.leases, self.worklist)
        self.shards = Shards(
            settings,
            self.database,
            beats,
            self.dispatcher,
            self.group_commit,
            self.peers,
            self.worklist,
            self.shared_sites,
            self.router,
            self.history,
        )
        self.owner = Scheduler(
            settings,
            self.database,
            self.dispatcher,
            self.group_commit,
            self.finisher,
            self.leases,
            self.worklist,
            self.shared_sites,
            self.router,
        )
        # Whoever learns of work writes it down.
        self.dispatcher.has_room = self.worklist.has_room
        self.finisher.deferred = self.worklist.deferred
        self.leases.went_back = self.worklist.wake.set
        self.dispatcher.claim = self.shared_sites.claim
        self.upkeep = Upkeep(settings, self.database, self.history_days)
        self.counting = BacklogCounter(
            self.database, self.dispatcher, lambda: self.worklist.ownership.epochs, settings.count_seconds
        )
        self.dispatcher.deliver_here = self._deliver_here
        self.arrivals: set[Arrivals] = set()
        """The open streams that bring mail."""
        self.stopping = asyncio.Event()
        self.stopped = asyncio.Event()
        """Everything is given back: whoever still holds a stream waits for nothing."""
        self.ready = False
        self._running: asyncio.Task[None] | None = None

    # --- configuration ---

    def router(self) -> Router:
        """The revision in force. Raises NotConfigured before the first."""
        if self._router is None:
            raise NotConfigured("no configuration revision has come yet")
        return self._router

    def configure(self, configuration: Configuration) -> None:
        """Swap in a revision, whole (design 2). Recipients are routed by it from their next attempt on."""
        before = self._router.revision.transports if self._router is not None else ()
        known = {one.ref: one.digest for one in before}
        self._router = Router(configuration.number, configuration.revision)
        self.dispatcher.configure(configuration.revision.transports)
        if self._running is not None:
            now = configuration.revision.transports
            changed = [reference_text(one.ref) for one in now if known.get(one.ref, one.digest) != one.digest]
            self.worklist.revise(changed)

    def history_days(self) -> int:
        """How long history is kept: the longest that any gateway says."""
        if self._router is None:
            return 14
        return max((g.history_days for g in self._router.revision.gateways), default=14)

    # --- start and stop ---

    async def prepare(self) -> None:
        """Wait for a database that is durable and new enough; says why it waits."""
        said = ""
        lane = self.database.lane("start")
        while True:
            try:
                await self.database.refuse_shared_sessions()
                async with lane.use() as connection:
                    await migrations.check(connection, "queue")
                    self.dispatcher.history = await self.history.of.begin(connection)
                    self.group_commit.ids.forget()
                    return
            except (psycopg.Error, NotDurable, OSError, migrations.Unfit) as error:
                if str(error) != said:
                    said = str(error)
                    self._log.warning("waiting for the database", error=said.strip())
                await asyncio.sleep(0.5)

    async def start(self) -> None:
        """Take part: own shards, take mail, hand it out. `prepare` and the first revision came before."""
        await self.upkeep.start()
        try:
            while True:
                try:
                    await self.shards.beat()
                    break
                except (psycopg.Error, NotDurable, OSError) as error:
                    self._log.warning("waiting for the database", error=str(error).strip())
                    await asyncio.sleep(0.5)
        except asyncio.CancelledError:  # told to stop as it began: nobody shall wait until it is taken for dead
            await self.shards.leave()
            raise
        self._running = asyncio.get_running_loop().create_task(self._run())
        self.ready = True

    @property
    def serving(self) -> bool:
        """Whether mail can be taken durably now, and due work was looked for once.

        A step that fails again and again later on is told by an alert and changes nothing here: fresh mail leaves from
        memory all the same, the other steps go on, and what does not is kept. To refuse all mail for it, which every
        replica would do alike, would make an outage out of a delay.
        """
        return self.ready and self.owner.looked and self.shards.healthy and not self.stopping.is_set()

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as group:
            parts = (
                self.group_commit,
                self.finisher,
                self.leases,
                self.shards,
                self.owner,
                self.peers,
                self.upkeep,
                self.counting,
            )
            for part in parts:
                group.create_task(part.run())

    def failed(self) -> BaseException | None:
        """Why the parts stopped running, if they did: a mistake of ours that a restart may heal."""
        if self._running is not None and self._running.done() and not self._running.cancelled():
            return self._running.exception()
        return None

    async def stop(self, grace: float) -> None:
        """Start nothing new, finish what runs, give back what was not handed on, let go of the shards."""
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
        """The database went back: what memory knows of it may be untrue, and all deliveries of before end (HIS-03)."""
        self.database.generation += 1
        self.group_commit.ids.forget()
        self.dispatcher.history = new.number
        closed = self.leases.begin_history(new.number)
        metrics.HISTORIES.inc()
        metrics.HISTORY.labels(what="deliveries").inc(closed)
        self._log.error(
            "database was set back: all earlier deliveries are closed",
            why=new.why or "another process noticed first",
            history=new.number,
            before=new.before,
            deliveries=closed,
            results_waiting=self.finisher.waiting,
        )
        self.worklist.look_anew()

    def _deliver_here(self, delivery: Delivery) -> None:
        """Mail for the built-in mailbox, and what a `fail` transport refuses: no outbound process takes part."""
        message = lease_pb2.DeliveryResult(token=delivery.token, done=True)
        for recipient in delivery.recipients:
            result = message.recipients.add(id=recipient.id)
            attempt = result.attempt
            attempt.dialled = False
            if delivery.plan.site.kind is SiteKind.MAILBOX:
                refusal = self.mailboxes.refusal(recipient)
                if refusal is None:
                    attempt.outcome = types_pb2.OUTCOME_DELIVERED
                    attempt.reply.CopyFrom(
                        types_pb2.Reply(code=250, enhanced="2.1.5", lines=["delivered to the built-in mailbox"])
                    )
                    continue
                attempt.reply.CopyFrom(refusal)
            else:
                transport = delivery.plan.transport
                code = transport.code if transport is not None and transport.code is not None else 554
                text = transport.text if transport is not None and transport.text else "delivery is refused by a route"
                first, _, rest = text.partition(" ")
                enhanced = first if first[:2] in ("4.", "5.") and first.count(".") == 2 else f"{code // 100}.7.0"
                attempt.reply.CopyFrom(
                    types_pb2.Reply(code=code, enhanced=enhanced, lines=[rest if first == enhanced and rest else text])
                )
            permanent = attempt.reply.code >= 500
            attempt.outcome = types_pb2.OUTCOME_FAILED if permanent else types_pb2.OUTCOME_DEFERRED
        self.finisher.submit(DeliveryResults(delivery.token, message, delivery, "", lambda _: None))
        self.dispatcher.release(delivery)
