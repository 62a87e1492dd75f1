"""How many recipients wait, and what for: the census, and the figures for scaling and alerts (QRY-07).

Each process counts the shards that it owns, on a connection of its own, some shards a statement: from the index, with
pauses that leave mail nine tenths of a processor, and no more often than every few seconds. However long the backlog
is, no statement of it is long. The rows of `census` are what all processes have; the gauges are this process's part.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Final, LiteralString, TypeVar

from mailrail.core.route.site import SiteKind
from mailrail.kit import log
from mailrail_queue import metrics
from mailrail_queue.delivery.dispatcher import Dispatcher
from mailrail_queue.delivery.sites import SiteState
from mailrail_queue.store import census, faults
from mailrail_queue.store.census import ShardCount, SiteCount
from mailrail_queue.store.connection import TROUBLE, Connection, Database
from mailrail_queue.upkeep import server_room

_T = TypeVar("_T")
_STEP: Final = 20_000
"""Recipients that one statement counts, where shards are alike: some ms."""
_FIRST_SHARDS: Final = 4
"""Shards of the first statement, when nothing is known yet."""
_PAUSE: Final = 9
"""Times as long as a statement took, nothing is asked after it."""
LARGE: Final = 1_000
"""From so many recipients on, what waits at a site is remembered until the next count."""


class Waits(StrEnum):
    """What a due recipient waits for."""

    READY = "ready"  # its turn: more queue or outbound processes would help
    LIMITED = "limited"  # its site's window or a limit of its transport has no room (SHD-04)
    BACKOFF = "backoff"  # its site or transport is in backoff, or the transport is missing (SHD-05)


@dataclass(slots=True)
class Backlog:
    """Due recipients and the age of the oldest, by what they wait for."""

    recipients: dict[Waits, int]
    oldest: dict[Waits, float]
    """Seconds since the longest-waiting one fell due; 0 when there is none."""
    in_backoff: dict[str, int]
    """Recipients, due or not, at each site in backoff: each retry moves them into the future."""
    large: dict[str, int]
    """The same at every site that has at least LARGE."""


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
        self.large: Mapping[str, int] = {}
        """What waits in our shards at each site that has at least LARGE, as of the last count."""

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
            # The count itself is mostly pauses; a machine that is slow for other reasons makes them longer.
            await asyncio.sleep(max(1.0, self._every - (time.monotonic() - began)) * dice.uniform(0.9, 1.1))

    async def measure(self) -> Backlog:
        """Count once and set the gauges. Raises psycopg.Error, NotDurable."""
        backlog = await self.count()
        for wait in Waits:
            metrics.BACKLOG.labels(state=wait.value).set(backlog.recipients[wait])
            metrics.BACKLOG_OLDEST.labels(state=wait.value).set(backlog.oldest[wait])
        metrics.NAMED_SITES.set({(key,): waits for key, waits in self.worst_sites(backlog).items()})
        ((stored,),) = await self.lane.run(_STORED)
        metrics.STORED.set(int(stored))
        await server_room.measure(self.lane)
        return backlog

    async def count(self) -> Backlog:
        """Count what waits in our shards, and write it down. Raises psycopg.Error, NotDurable."""
        backlog = Backlog(dict.fromkeys(Waits, 0), dict.fromkeys(Waits, 0.0), {}, {})
        shards = sorted(self._shards())
        at_once, waiting = _FIRST_SHARDS, 0
        held: dict[int, int] = {}
        if shards:
            held = await self._paused(census.held)
        counted = 0
        while counted < len(shards):
            some = shards[counted : counted + at_once]
            found = await self._paused(partial(self._count, shards=some, held=held))
            self._add(backlog, found)
            counted, waiting = counted + len(some), waiting + sum(one.waiting for one in found)
            at_once = max(1, _STEP * counted // max(1, waiting))
        self.large = backlog.large = {key: waits for key, waits in backlog.large.items() if waits >= LARGE}
        return backlog

    async def _paused(self, ask: Callable[[Connection], Awaitable[_T]]) -> _T:
        began = time.monotonic()
        async with self.lane.use() as connection:
            found = await ask(connection)
        await asyncio.sleep(_PAUSE * (time.monotonic() - began))
        return found

    async def _count(self, connection: Connection, shards: Sequence[int], held: Mapping[int, int]) -> list[SiteCount]:
        found = await census.count(connection, shards)
        counts = {shard: ShardCount(0, 0, held.get(shard, 0)) for shard in shards}
        for one in found:
            waiting, due, on_hold = counts[one.shard]
            counts[one.shard] = ShardCount(waiting + one.waiting, due + one.due, on_hold)
        await census.write(connection, counts)
        return found

    def _add(self, backlog: Backlog, found: Iterable[SiteCount]) -> None:
        now, sites = self._dispatcher.clock(), self._dispatcher.sites
        for one in found:
            site = sites.get(one.site)
            if site is not None and _in_backoff(site, now):
                wait = Waits.BACKOFF
                backlog.in_backoff[one.site] = backlog.in_backoff.get(one.site, 0) + one.waiting
            elif site is None or self._dispatcher.room(site, now) > 0:
                wait = Waits.READY
            else:
                wait = Waits.LIMITED
            if one.due:
                backlog.recipients[wait] += one.due
                backlog.oldest[wait] = max(backlog.oldest[wait], one.oldest)
            # The site of a domain is in one shard; others are in all of them.
            if one.waiting >= LARGE or not one.site.startswith(f"{SiteKind.DOMAIN}:"):
                backlog.large[one.site] = backlog.large.get(one.site, 0) + one.waiting

    def worst_sites(self, backlog: Backlog) -> dict[str, int]:
        """The sites in backoff where most recipients wait, most first."""
        rows = sorted(backlog.in_backoff.items(), key=lambda row: (-row[1], row[0]))
        return dict(rows[: self._named_sites])


def _in_backoff(site: SiteState, now: float) -> bool:
    return site.kind is SiteKind.MISSING or site.in_backoff(now)
