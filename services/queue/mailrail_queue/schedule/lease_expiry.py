"""Leases that ran out: their outbound process is gone or hangs, and their mail is due again (LSE-04)."""

import asyncio
import contextlib
import random
from collections.abc import Sequence

from mailrail.kit import clock, log
from mailrail.pb.queue.v1 import types_pb2
from mailrail_queue import metrics
from mailrail_queue.delivery.parts import Parts
from mailrail_queue.delivery.results import Finisher
from mailrail_queue.schedule.worklist import Worklist
from mailrail_queue.store import faults
from mailrail_queue.store import leases as lease_store
from mailrail_queue.store.connection import TROUBLE, Lane

_AT_ONCE = 500
"""Leases that are taken back in one transaction."""
_PAUSE = 1.0
"""Seconds until a sweep that failed is tried again at the earliest."""


class LeaseExpiry:
    """Sweeps the leases of our shards."""

    def __init__(self, parts: Parts, lane: Lane, worklist: Worklist, finisher: Finisher) -> None:
        self._settings = parts.settings
        self._database = parts.database
        self._dispatcher = parts.dispatcher
        self._lane = lane
        self._worklist = worklist
        self._finisher = finisher
        self._sweeps = 0
        self._swept_until = 0.0
        """When the last sweep began, in Unix seconds by Postgres's clock."""
        self._swept_for = worklist.ownership
        """The shards that the last sweep looked at; those taken over since are looked at from the beginning."""
        self._log = log.get_logger()

    async def run(self) -> None:
        """Sweep every few seconds, until cancelled."""
        while True:
            try:
                await self.sweep()
            except TROUBLE as error:
                self._lane.warn(self._log, "cannot take back leases; trying again", error)
                await asyncio.sleep(_PAUSE)
            except Exception as error:
                faults.failed(self._log, "lease_sweep", error)
                await asyncio.sleep(_PAUSE)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._settings.sweep_seconds * random.uniform(0.8, 1.0)):
                    await self._database.jumped.wait()

    async def sweep(self) -> int:
        """Take back leases that ran out (LSE-04). Returns how many."""
        await self._heed_clock()
        ownership = self._worklist.ownership
        shards = list(ownership.epochs)
        if not shards:
            return 0
        # Dead entries of the index lie before the last sweep; every sixth sweep looks at all the same.
        again = ownership is self._swept_for and self._sweeps % 6
        since = max(0.0, self._swept_until - 60.0) if again else 0.0
        self._sweeps += 1
        started = self._database.now()
        total, count = 0, _AT_ONCE
        while True:
            try:
                async with (
                    self._lane.use() as connection,
                    self._finisher.notifications.transaction(connection) as notify,
                ):
                    # What has a result in memory is no lost lease: while Postgres was away it could not be written.
                    rows = await lease_store.expire(
                        connection, ownership, shards, since, count, self._finisher.unwritten
                    )
                    await self._finisher.interruptions.record(connection, rows, notify)
            except Exception as error:
                if not faults.is_guilty(error) or (count == 1 and not await self._hold_corrupt(shards, since, error)):
                    raise
                count = count // 8 if count > 8 else 1 if count > 1 else _AT_ONCE  # in small steps up to the guilty one
                continue
            for row in rows:
                self._release(row.token)
            total += len(rows)
            if any(row.request for row in rows):
                self._worklist.requests = True
            if len(rows) < count:
                break
        self._swept_until, self._swept_for = started, ownership
        if total:
            metrics.count_attempts([types_pb2.OUTCOME_INTERRUPTED] * total)
            self._log.info("leases ran out", recipients=total)
            self._worklist.look_anew()
        return total

    async def _heed_clock(self) -> None:
        """Ask Postgres for the time: leases run by its clock, and must not all end because the clock was set."""
        asked = clock.now()
        ((moment,),) = await self._lane.run(lease_store.NOW)
        self._database.set_server_time(moment, asked)
        jump = self._database.jump
        if jump is None:
            return
        async with self._lane.use() as connection:
            moved = await lease_store.move_leases(connection, jump, self._settings.lease_seconds)
        if self._database.jump is jump:
            self._database.jump = None
            self._database.jumped.clear()
        self._swept_until = 0.0
        self._log.warning("leases moved with Postgres's clock", seconds=round(jump.seconds, 1), recipients=moved)

    def _release(self, token: int) -> None:
        delivery = self._dispatcher.deliveries.get(token)
        if delivery is not None:
            if delivery.stream is not None:
                delivery.stream.cancel(delivery.token)
                delivery.site.window.undo()
            self._dispatcher.release(delivery)

    async def _hold_corrupt(self, shards: Sequence[int], since: float, error: Exception) -> bool:
        """Put on hold the recipient whose lease ran out first and cannot be taken back. False: there is none."""
        faults.failed(self._log, "lease_sweep", error)
        reason = f"the lease ran out, but that cannot be stored: {faults.said(error)}"
        async with self._lane.use() as connection, connection.transaction():
            found = await lease_store.first_expired(connection, shards, since, self._finisher.unwritten)
            if found is None:
                return False
            await faults.hold_corrupt(connection, self._worklist.ownership, [found], reason, self._log, undo=False)
        self._release(found.token)
        return True
