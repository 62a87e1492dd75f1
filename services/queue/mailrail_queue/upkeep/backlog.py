"""How many due recipients wait, and what for: the figures for scaling and alerts.

They are counted for the shards of this process from time to time, on a connection of their own. A count reads a bounded
number of index entries, however long the backlog (SHD-03); beyond the bounds below it shows the bound.
"""

import asyncio
import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, LiteralString

from mailrail.core.route.site import SiteKind
from mailrail.kit import log
from mailrail_queue import metrics
from mailrail_queue.delivery.dispatcher import Dispatcher
from mailrail_queue.delivery.sites import SiteState
from mailrail_queue.store import columns as c
from mailrail_queue.store import faults
from mailrail_queue.store.connection import TROUBLE, Database
from mailrail_queue.upkeep import server_room

PER_SITE: Final = 5_000
"""Most recipients that are counted of one site in one shard."""
MOST: Final = 50_000
"""Most recipients that are counted at sites in backoff, and at all others, of one process."""
_WAITING_PER_SITE: Final = 500
"""Most recipients that are counted of one site in backoff in one shard, to find the worst."""
_WAITING_PLACES: Final = 500
"""Most sites in backoff, once for each shard, that are looked at for the worst: 250,000 index entries at most."""


class Waits(StrEnum):
    """What a due recipient waits for."""

    READY = "ready"  # its turn: more queue or outbound processes would help
    LIMITED = "limited"  # its site's window or a limit of its transport has no room (SHD-04)
    BACKOFF = "backoff"  # its site or transport is in backoff, or the transport is missing (SHD-05)


@dataclass(frozen=True, slots=True)
class Backlog:
    """Due recipients and the age of the oldest, by what they wait for."""

    recipients: dict[Waits, int]
    oldest: dict[Waits, float]
    """Seconds since the longest-waiting one fell due; 0 when there is none."""


# Sites with due mail, longest due first, and of each what recipient_due holds. The outer LIMIT ends the nested loop.
_COUNT: Final[LiteralString] = """WITH d AS (
    SELECT shard, site FROM site_due
    WHERE shard = ANY(%(shard)s) AND next_due <= now() AND (site = ANY(%(in_backoff)s)) = %(wanted)s
    ORDER BY next_due LIMIT %(most)s
), due AS (
    SELECT d.site, r.due FROM d CROSS JOIN LATERAL (
        SELECT r.due FROM recipient r
        WHERE r.shard = d.shard AND r.site = d.site AND r.token IS NULL AND r.held_since IS NULL AND r.due <= now()
        ORDER BY r.due LIMIT %(per_site)s
    ) r LIMIT %(most)s
)
SELECT site, count(*), extract(epoch FROM now() - min(due))::float8 FROM due GROUP BY site"""
# Of sites in backoff, what waits, due or not: each retry moves it into the future, so little of it is ever due.
_WAITING: Final[LiteralString] = """SELECT w.site, sum(w.waits)::bigint FROM (
    SELECT d.site, q.waits FROM site_due d CROSS JOIN LATERAL (
        SELECT count(*) AS waits FROM (
            SELECT FROM recipient r
            WHERE r.shard = d.shard AND r.site = d.site AND r.token IS NULL AND r.held_since IS NULL LIMIT %(per_site)s
        ) r
    ) q WHERE d.shard = ANY(%(shard)s) AND d.site = ANY(%(site)s) LIMIT %(most)s
) w GROUP BY w.site"""
# An estimate from the statistics, which reads no row.
_STORED: Final[LiteralString] = "SELECT pg_stat_get_live_tuples('recipient'::regclass)"


class BacklogCounter:
    """Keeps the gauges of the backlog, and on the same connection those of the server's room."""

    def __init__(
        self,
        database: Database,
        dispatcher: Dispatcher,
        shards: Callable[[], Iterable[int]],
        every: float,
        named_sites: int,
    ) -> None:
        """`shards`: those that this process owns now. `every`: seconds between two counts. `named_sites`: sites in
        backoff that a metric names."""
        self.lane = database.lane("backlog")
        self._dispatcher = dispatcher
        self._shards = shards
        self._every = every
        self._named_sites = named_sites
        self._log = log.get_logger()

    async def run(self) -> None:
        """Count until cancelled. Without Postgres the last figures stay."""
        dice = random.Random()
        while True:
            began = time.monotonic()
            try:
                await self.measure()
            except TROUBLE as error:
                self._log.info("cannot count the backlog", error=str(error).strip())
            except Exception as error:
                faults.failed(self._log, "backlog", error)
            # A machine that is slow for other reasons is not asked more often for that.
            await asyncio.sleep(max(self._every, 20 * (time.monotonic() - began)) * dice.uniform(0.9, 1.1))

    async def measure(self) -> Backlog:
        """Count once and set the gauges. Raises psycopg.Error, NotDurable."""
        backlog = await self.count()
        for wait in Waits:
            metrics.BACKLOG.labels(state=wait.value).set(backlog.recipients[wait])
            metrics.BACKLOG_OLDEST.labels(state=wait.value).set(backlog.oldest[wait])
        metrics.NAMED_SITES.set({(key,): waits for key, waits in (await self.worst_sites()).items()})
        ((stored,),) = await self.lane.run(_STORED)
        metrics.STORED.set(int(stored))
        await server_room.measure(self.lane)
        return backlog

    async def count(self) -> Backlog:
        """What is due in our shards. Raises psycopg.Error, NotDurable."""
        backlog = Backlog(dict.fromkeys(Waits, 0), dict.fromkeys(Waits, 0.0))
        shards = list(self._shards())
        if not shards:
            return backlog
        now = self._dispatcher.clock()
        sites = self._dispatcher.sites
        in_backoff = self._in_backoff(now)
        for wanted in (False, True):
            if wanted and not in_backoff:
                break
            rows = await self.lane.run(
                _COUNT,
                {
                    "shard": c.smallints(shards),
                    "in_backoff": c.names(in_backoff),
                    "wanted": wanted,
                    "most": MOST,
                    "per_site": PER_SITE,
                },
            )
            for key, count, oldest in rows:
                site = sites.get(key)
                if wanted:
                    wait = Waits.BACKOFF
                elif site is None or self._dispatcher.room(site, now) > 0:
                    wait = Waits.READY
                else:
                    wait = Waits.LIMITED
                backlog.recipients[wait] += int(count)
                backlog.oldest[wait] = max(backlog.oldest[wait], float(oldest))
        return backlog

    async def worst_sites(self) -> dict[str, int]:
        """The sites in backoff where most recipients wait, most first. Raises psycopg.Error, NotDurable."""
        shards, keys = list(self._shards()), self._in_backoff(self._dispatcher.clock()) if self._named_sites else []
        if not shards or not keys:
            return {}
        parameters = {
            "shard": c.smallints(shards),
            "site": c.names(keys),
            "per_site": _WAITING_PER_SITE,
            "most": _WAITING_PLACES,
        }
        rows = [(str(key), int(waits)) for key, waits in await self.lane.run(_WAITING, parameters) if waits]
        rows.sort(key=lambda row: (-row[1], row[0]))
        return dict(rows[: self._named_sites])

    def _in_backoff(self, now: float) -> list[str]:
        return [key for key, site in self._dispatcher.sites.items() if _in_backoff(site, now)]


def _in_backoff(site: SiteState, now: float) -> bool:
    return site.kind is SiteKind.MISSING or site.in_backoff(now)
