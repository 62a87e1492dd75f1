"""Which shards are this process's (SHD-01).

Every two seconds each process writes that it lives, and reads which other processes do. It takes over shards of dead
processes under a new epoch, and releases surplus ones.
"""

import asyncio
import contextlib
import random

from mailrail.core.route.site import SHARDS
from mailrail.kit import clock, log
from mailrail_queue import metrics
from mailrail_queue.accept.batches import GroupCommit
from mailrail_queue.delivery.parts import Parts
from mailrail_queue.schedule.peers import Peers
from mailrail_queue.schedule.shared_sites import SharedSites
from mailrail_queue.schedule.worklist import Worklist
from mailrail_queue.store import faults
from mailrail_queue.store import shards as shard_store
from mailrail_queue.store.connection import DATABASE_FAILURE, TROUBLE, Lane, run
from mailrail_queue.store.hold_rules import read_hold_rules


class Shards:
    """The shards of this process, beside those of others."""

    def __init__(
        self,
        parts: Parts,
        lane: Lane,
        worklist: Worklist,
        group_commit: GroupCommit,
        peers: Peers,
        shared_sites: SharedSites,
    ) -> None:
        self._settings = parts.settings
        self._database = parts.database
        self._history = parts.history
        self._dispatcher = parts.dispatcher
        self._router = parts.router
        self._lane = lane
        self._worklist = worklist
        self._group_commit = group_commit
        self._peers = peers
        self._shared_sites = shared_sites
        self.address = ""
        """HOST:PORT at which peers reach this process."""
        self.healthy = False
        """Postgres answered the last heartbeat."""
        self._started: str | None = None
        self._log = log.get_logger()

    async def run(self) -> None:
        """Send heartbeats until cancelled. A failure of Postgres makes this process unhealthy; it does not end it."""
        while True:
            try:
                await self.beat()
            except TROUBLE as error:
                if self.healthy:
                    self._lane.warn(self._log, "heartbeat failed", error)
                self.healthy = False
                metrics.POSTGRES_UP.set(0)
            except Exception as error:
                faults.failed(self._log, "heartbeat", error)
                self.healthy = False
                metrics.POSTGRES_UP.set(0)
            self._dispatcher.measure()
            self._dispatcher.forget_idle(self._dispatcher.clock() - 600.0)
            await asyncio.sleep(self._settings.heartbeat_seconds * random.uniform(0.9, 1.1))

    async def beat(self) -> None:
        """One heartbeat: write that we live, read who else does, take and release shards (SHD-01)."""
        settings = self._settings
        me = self._worklist.run_id
        async with self._lane.use() as connection:
            await self._history.of.beat(connection)
            if self._started is None:
                rows = await run(connection, shard_store.STARTED)
                self._started = str(rows[0][0].isoformat())
            asked = clock.now()
            rows = await run(
                connection,
                shard_store.HEARTBEAT,
                {
                    "id": me,
                    "name": settings.node_id,
                    "address": self.address,
                    "started": self._started,
                    "dead": settings.dead_seconds,
                },
            )
            others: dict[str, str] = {row[0]: row[1] for row in rows if row[0] is not None}
            self._database.set_server_time(rows[0][2], asked)
            live = sorted([me, *others])
            mine = {row[0]: row[1] for row in await run(connection, shard_store.MINE, {"id": me})}
            fair = -(-SHARDS // len(live))
            if len(mine) > fair:
                surplus = sorted(mine)[fair:]
                await run(connection, shard_store.RELEASE, {"id": me, "number": shard_store.shard_column(surplus)})
                for number in surplus:
                    del mine[number]
            elif len(mine) < fair:
                taken = await run(connection, shard_store.ACQUIRE, {"id": me, "live": live, "count": fair - len(mine)})
                for number, epoch in taken:
                    mine[number] = epoch
                    self._worklist.unverified.append(number)
            owners = {row[0]: row[1] for row in await run(connection, shard_store.OWNERS)} if others else {}
            holds = await read_hold_rules(connection)
        self._group_commit.set_hold_rules(holds)
        self._worklist.own(mine)
        self._peers.learn(
            {n: others[o] for n, o in owners.items() if others.get(o)},
            frozenset(a for a in others.values() if a),
        )
        self._dispatcher.owners = len(live)
        self._dispatcher.owner_index = live.index(me)
        self._dispatcher.configure(self._router().transports())
        # A hint of a request may have been lost, or the shard's owner of then may be gone (ADM-02).
        self._worklist.requests = True
        self.healthy = True
        metrics.POSTGRES_UP.set(0 if self._database.outage.full else 1)
        await self._shared_sites.learn()

    async def leave(self) -> None:
        """A clean stop: others may take the shards at once."""
        self._worklist.disown()
        try:
            async with asyncio.timeout(3):
                await self._lane.run(shard_store.LEAVE, {"id": self._worklist.run_id})
        except (*DATABASE_FAILURE, TimeoutError) as error:
            self._log.info("shutdown: shards not released", error=str(error))

    async def forget(self) -> None:
        """Remove this process from the history of the database, at its very end (HIS-01)."""
        with contextlib.suppress(*DATABASE_FAILURE, TimeoutError):
            async with asyncio.timeout(3), self._lane.use() as connection:
                await self._history.of.leave(connection)
