"""Mail that a new revision frees: its transport is no longer missing, or was corrected (ADM-03)."""

import asyncio
from collections.abc import Callable, Iterable, Sequence

from mailrail.core.route.site import SiteKind
from mailrail.kit import log
from mailrail_queue.delivery.verdicts import facts_of
from mailrail_queue.routing.router import Router
from mailrail_queue.schedule.shared_sites import SharedSites
from mailrail_queue.schedule.worklist import Worklist
from mailrail_queue.store import faults
from mailrail_queue.store import sites as site_store
from mailrail_queue.store.connection import TROUBLE, Lane
from mailrail_queue.store.waiting import Waiting

_PAUSE = 10.0
"""Seconds until what failed for another reason than Postgres being out of reach is tried again."""


class Revisions:
    """Looks at the mail of our shards after each revision."""

    def __init__(self, lane: Lane, worklist: Worklist, shared_sites: SharedSites, router: Callable[[], Router]) -> None:
        self._lane, self._worklist, self._shared_sites, self._router = lane, worklist, shared_sites, router
        self._log = log.get_logger()

    async def run(self) -> None:
        """Reconsider after each revision, until cancelled."""
        while True:
            await self._worklist.revised.wait()
            self._worklist.revised.clear()
            changed, self._worklist.changed = self._worklist.changed, set()
            try:
                await self.reconsider(sorted(changed))
            except TROUBLE as error:
                self._lane.warn(self._log, "cannot make mail due after a new revision; trying again", error)
                self._worklist.revise(changed)
                await asyncio.sleep(0.5)
            except Exception as error:
                faults.failed(self._log, "revisions", error)
                self._worklist.revise(changed)
                await asyncio.sleep(_PAUSE)

    async def reconsider(self, changed: Sequence[str]) -> None:
        """Make mail due at once whose missing transport is there now (ADM-03).

        So is mail of a transport in backoff, if the revision changed the transport (`changed`, "NAMESPACE/NAME"): an
        administrator who corrects a relay's password need not wait for the end of the backoff.
        """
        shards = list(self._worklist.ownership.epochs)
        if not shards:
            return
        router = self._router()
        async with self._lane.use() as connection:
            names = [
                name
                for name in await site_store.missing_sites(connection, shards)
                if self._is_back(router, name) or self._goes(router, await site_store.sample(connection, shards, name))
            ]
            if changed:
                names += await site_store.end_backoff(connection, [f"{SiteKind.TRANSPORT}:{name}" for name in changed])
        if changed:
            # Before their mail is looked at: in backoff, that is a counted attempt.
            await self._shared_sites.learn()
        for name in names:
            while True:
                async with self._lane.use() as connection:
                    woken = await site_store.wake_site(connection, self._worklist.ownership, name)
                if not woken:
                    break
                for number in woken:
                    self._worklist.note(number, name)
                self._worklist.wake.set()
        self._worklist.look_anew()

    @staticmethod
    def _goes(router: Router, rows: Iterable[Waiting]) -> bool:
        """Whether another route takes any of these now, although their old transport is still missing."""
        return any(not router.plan(facts_of(row), row.attempts).missing for row in rows)

    @staticmethod
    def _is_back(router: Router, name: str) -> bool:
        what = name.removeprefix(f"{SiteKind.MISSING}:")
        return router.has(what) if "/" in what else what in router.table.by_name
