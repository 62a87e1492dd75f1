"""What owners of shards tell each other of shared sites: which are in backoff, who may probe (design 4, Attempt).

A site's mail lies in many shards, and so may have several owners. Each writes what it learns of a site into the table
`site`, and the others read it at their next heartbeat. Only one owner at a time may probe a site.
"""

import asyncio
import random

from mailrail.kit import log
from mailrail_queue.delivery.dispatcher import Dispatcher
from mailrail_queue.delivery.site_health import SiteHealth
from mailrail_queue.delivery.sites import SiteState
from mailrail_queue.schedule.worklist import Worklist
from mailrail_queue.store import faults
from mailrail_queue.store import sites as site_store
from mailrail_queue.store import waiting as waiting_store
from mailrail_queue.store.connection import TROUBLE, Lane

_PROBE_SECONDS = 130.0
"""For how long the right to probe a shared site is kept from other owners."""
_PAUSE = 10.0
"""Seconds until a claim that failed for another reason than Postgres being out of reach is tried again."""
_KNOWN = 20_000
"""Sites in memory beyond which those of others are not learned any more."""


class SharedSites:
    """Learns what other owners wrote, and claims the right to probe."""

    def __init__(self, lane: Lane, dispatcher: Dispatcher, site_health: SiteHealth, worklist: Worklist) -> None:
        self._lane, self._dispatcher, self._site_health, self._worklist = lane, dispatcher, site_health, worklist
        self._seen = (0.0, "")
        """Unix seconds and site of the newest change that was learned."""
        self._claiming: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._log = log.get_logger()

    async def learn(self) -> None:
        """Read what other owners, or this process before a restart, wrote of sites."""
        while True:
            async with self._lane.use() as connection:
                rows = await site_store.sites_changed(connection, *self._seen)
            for row in rows:
                self._seen = (row.changed, row.name)
                if row.failures and (row.backoff_seconds or 0) > 0 and len(self._dispatcher.sites) < _KNOWN:
                    self._worklist.site(row.name)
                self._site_health.learn(row)
            if len(rows) < waiting_store.PAGE:
                break

    def claim_probe(self, site: SiteState) -> None:
        """Ask for the right to probe a site; the dispatcher hears when we have it."""
        if site.key in self._claiming:
            return
        self._claiming.add(site.key)
        task = asyncio.get_running_loop().create_task(self._claim(site))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _claim(self, site: SiteState) -> None:
        try:
            parameters = {"name": site.key, "token": random.getrandbits(62), "seconds": _PROBE_SECONDS}
            rows = await self._lane.run(site_store.CLAIM_PROBE, parameters)
            if rows:
                site.claimed = True
                self._worklist.fetch_more(site)
                self._dispatcher.wake_all()
                self._dispatcher.pump()
            else:
                await asyncio.sleep(2.0)
        except TROUBLE:
            await asyncio.sleep(1.0)
        except Exception as error:
            faults.failed(self._log, "probes", error, site=site.key)
            await asyncio.sleep(_PAUSE)
        finally:
            self._claiming.discard(site.key)
