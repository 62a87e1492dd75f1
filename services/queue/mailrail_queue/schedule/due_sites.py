"""Reads and corrects the table that says when a site of a shard has due mail (SHD-02, SHD-03).

Due mail is found by site, never by row. A transaction that stores mail takes no lock on a site's row, so the row may
for a moment say less than there is. So the scheduler looks at a site once more soon after it moved the row, and a slow
round compares everything.
"""

import random
from collections import deque
from collections.abc import Sequence

from mailrail.kit import log
from mailrail_queue.delivery.dispatcher import Dispatcher
from mailrail_queue.schedule.worklist import Worklist
from mailrail_queue.store import sites as site_store
from mailrail_queue.store.connection import Lane
from mailrail_queue.store.waiting import Waiting

_PER_SHARD = 100
"""Due sites of a shard that one look reads; the next look goes on from there."""
_LOOK_BACK = 5.0
"""Seconds after which a site that was found empty is looked at once more: longer than a transaction lasts (SHD-02)."""
_AT_ONCE = 1000
"""Sites looked back at in one statement."""
_REMEMBERED = 50_000
"""Sites whose emptiness is remembered."""


class DueSites:
    """The sites of our shards that have due mail."""

    def __init__(self, lane: Lane, dispatcher: Dispatcher, worklist: Worklist) -> None:
        self._lane, self._dispatcher, self._worklist = lane, dispatcher, worklist
        self._emptied: dict[tuple[int, str], float] = {}
        """(shard, site) found empty once → when; the second time its row is moved for good."""
        self._past: dict[tuple[int, float], str] = {}
        """(shard, its cursor) → the site of that time at which the last look ended: others may be due at the same."""
        self._settled: deque[tuple[float, int, str]] = deque(maxlen=_REMEMBERED)
        """(when to look back, shard, site) of rows that were moved for good."""
        self._log = log.get_logger()

    async def look(self) -> None:
        """Which sites of our shards are due? From where the last look ended, so that none waits behind others."""
        worklist = self._worklist
        if not worklist.cursors:
            return
        cursors = {number: (after, self._past.get((number, after), "")) for number, after in worklist.cursors.items()}
        self._past.clear()
        for number in cursors:  # 1.0: looked at, nothing special. Who is woken from here on may not be in what is read.
            worklist.cursors[number] = 1.0
        async with self._lane.use() as connection:
            rows = await site_store.due_sites(connection, cursors, _PER_SHARD)
        counts: dict[int, int] = {}
        latest: dict[int, tuple[float, str]] = {}
        for number, key, due in rows:
            counts[number] = counts.get(number, 0) + 1
            latest[number] = (due, key)
            worklist.note(number, key, due)
        for number, count in counts.items():
            # A full answer goes on from its end at the next look; else begin anew.
            if count >= _PER_SHARD and worklist.cursors.get(number) == 1.0:
                worklist.cursors[number] = latest[number][0]
                self._past[number, latest[number][0]] = latest[number][1]
        await self._look_back()
        if worklist.unverified:
            await self.verify(worklist.unverified.pop())
        elif random.random() < 0.5:
            await self.verify(random.choice(list(worklist.cursors)))

    async def settle(self, drained: Sequence[tuple[int, str]]) -> None:
        """These (shard, site) had nothing more that is due: when will they have?"""
        if not drained:
            return
        now = self._dispatcher.clock()
        looked: list[tuple[int, str, bool]] = []
        for number, key in drained:
            site = self._dispatcher.sites.get(key)
            if site is not None:
                site.due.pop(number, None)
            first = self._emptied.get((number, key))
            again = first is None or now - first > 60.0
            if again:
                self._emptied[(number, key)] = now
            else:
                del self._emptied[(number, key)]
                self._settled.append((now + _LOOK_BACK, number, key))
            looked.append((number, key, again))
        if len(self._emptied) > _REMEMBERED:
            self._emptied = {k: t for k, t in self._emptied.items() if now - t < 60.0}
        async with self._lane.use() as connection:
            still = await site_store.settle(connection, self._worklist.ownership, looked)
        for number, key in still:
            self._worklist.note(number, key)

    async def re_key(self, moved: Sequence[tuple[Waiting, str]]) -> None:
        """Routing changed where these recipients go: they wait at another site now (SHD-04)."""
        if not moved:
            return
        async with self._lane.use() as connection:
            for number, key in await site_store.re_key(connection, self._worklist.ownership, moved):
                self._worklist.note(number, key)

    async def _look_back(self) -> None:
        """Did a transaction that was under way when a site was settled leave recipients there?"""
        now = self._dispatcher.clock()
        looked: list[tuple[int, str]] = []
        while self._settled and self._settled[0][0] <= now and len(looked) < _AT_ONCE:
            _, number, key = self._settled.popleft()
            if number in self._worklist.ownership.epochs:
                looked.append((number, key))
        if looked:
            async with self._lane.use() as connection:
                for number, key in await site_store.look_back(connection, list(dict.fromkeys(looked))):
                    self._worklist.note(number, key)

    async def verify(self, number: int) -> None:
        """The slow round: does a shard know of all its sites?"""
        if number not in self._worklist.ownership.epochs:
            return
        async with self._lane.use() as connection:
            wrong = await site_store.verify(connection, number)
        if wrong:
            self._log.info("due-site table corrected", shard=number, sites=wrong)
            self._worklist.cursors[number] = 0.0
