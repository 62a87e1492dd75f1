"""The loop of an owner of shards: it works through due mail, site by site (SHD-03).

Sites with due work come from the worklist, which `due_sites` fills each second, and whenever something woke it; those
that wait for a share of what may be leased have their turn as soon as some of it comes back. The scheduler takes them
in turn. Of a site with room it fetches a bounded number of recipients and leases them; recipients of a site in backoff
are counted by `backoff`.
"""

import asyncio
import itertools
import random
import time
from collections import deque
from collections.abc import Sequence

from mailrail.core.delivery.shares import SiteStanding
from mailrail.core.route.site import SiteKind
from mailrail.kit import log
from mailrail_queue.delivery.attempt import Delivery
from mailrail_queue.delivery.lease_writer import LeaseWriter
from mailrail_queue.delivery.leases import LeaseManager
from mailrail_queue.delivery.parts import Parts
from mailrail_queue.delivery.results import Finisher
from mailrail_queue.delivery.site_health import SiteHealth
from mailrail_queue.delivery.sites import SiteState
from mailrail_queue.delivery.verdicts import facts_of
from mailrail_queue.routing.router import RoutePlan, Router
from mailrail_queue.schedule.backoff import Backoff
from mailrail_queue.schedule.corrupt import CorruptMail
from mailrail_queue.schedule.due_sites import DueSites
from mailrail_queue.schedule.due_work import choose, leased_delivery, sort_due
from mailrail_queue.schedule.endings import Endings
from mailrail_queue.schedule.lease_expiry import LeaseExpiry
from mailrail_queue.schedule.new_revision import Revisions
from mailrail_queue.schedule.shared_sites import SharedSites
from mailrail_queue.schedule.worklist import Worklist
from mailrail_queue.store import blocks, faults
from mailrail_queue.store import content as content_store
from mailrail_queue.store import leases as lease_store
from mailrail_queue.store import results as result_store
from mailrail_queue.store import waiting as waiting_store
from mailrail_queue.store.connection import TROUBLE
from mailrail_queue.store.ids import Ids
from mailrail_queue.store.results import Deferral
from mailrail_queue.store.rows import (
    CONTENT_MISSING,
    ENVELOPE_UNREADABLE,
    is_envelope,
)
from mailrail_queue.store.waiting import Waiting

_FETCH = 200
"""Recipients fetched of one site at once (SHD-03)."""
_CONTENT = 16 * 1024 * 1024
"""Octets of bodies read in one step."""
_ROUND = 1000
"""Recipients fetched of all sites in one step."""
_SITES = 1000
"""Sites looked at in one step: most may have no room, and other work is not to wait for all of them."""
_IN_BACKOFF = 20
"""Sites in backoff whose due recipients are counted in one step."""
_CALLED = 100
"""Sites of a standing that waited for their turn and have it in one step."""
_CALL_SECONDS = 0.1
"""Seconds between two looks whether sites that wait for their turn may have it. Credit comes back by ones, and a step
for each would cost as many statements."""
_PAUSE = 10.0
"""Seconds for which a site is left alone after work at it failed."""

_Group = tuple[RoutePlan, list[Waiting]]
"""Recipients of a message that share a delivery."""


class Scheduler:
    """Works through the worklist."""

    def __init__(
        self,
        parts: Parts,
        worklist: Worklist,
        ids: Ids,
        finisher: Finisher,
        leases: LeaseManager,
        writer: LeaseWriter,
        site_health: SiteHealth,
        shared_sites: SharedSites,
    ) -> None:
        self._settings = parts.settings
        self._database = parts.database
        self._dispatcher = parts.dispatcher
        self._router = parts.router
        self._worklist = worklist
        self._ids = ids
        self._finisher = finisher
        self._leases = leases
        self._writer = writer
        self._shared_sites = shared_sites
        self._log = log.get_logger()
        self.looked = False
        """Due work was looked for once since the start. Readiness waits for it: a release that cannot do that on this
        database must not take the place of one that can."""
        # What looks for work does not wait for what does it.
        self.lane = parts.database.lane("owner")
        self._work_lane = parts.database.lane("work")
        self.due_sites = DueSites(self.lane, self._dispatcher, worklist)
        self.corrupt = CorruptMail(parts, self._work_lane, worklist)
        self._endings = Endings(self._work_lane, finisher, self.corrupt)
        self._backoff = Backoff(parts, self._work_lane, worklist, finisher, site_health, self.due_sites, self.corrupt)
        self.revisions = Revisions(self.lane, worklist, shared_sites, self._router)
        self._expiry = LeaseExpiry(parts, self.lane, worklist, finisher)
        self._granted: dict[str, int] = {}
        """Key of a site → deliveries that it may lease in this step, so that one takes nothing of another's turn."""
        self.paused: dict[str, float] = {}
        """Key of a site → until when it is left alone, because work at it failed (the dispatcher's clock)."""

    # --- loops ---

    async def run(self) -> None:
        """Run the loops of an owner of shards, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._looks())
            group.create_task(self._timers())
            group.create_task(self._calls())
            group.create_task(self._expiry.run())
            group.create_task(self.revisions.run())

    async def _timers(self) -> None:
        """Wake sites whose rate lets them go on."""
        while True:
            at = self._dispatcher.next_timer()
            now = self._dispatcher.clock()
            await asyncio.sleep(0.2 if at is None else min(0.2, max(0.002, at - now)))
            if at is not None and at <= self._dispatcher.clock():
                try:
                    self._dispatcher.pump()
                except Exception as error:
                    faults.failed(self._log, "timers", error)
                    await asyncio.sleep(0.5)

    async def _calls(self) -> None:
        """Wake the work when sites that wait for their turn may have it: what was leased ended, or credit came."""
        while True:
            await asyncio.sleep(_CALL_SECONDS)
            if self._may_call():
                self._worklist.wake_up()

    def _may_call(self) -> bool:
        """Whether a site waits for its turn of whose standing more may be leased."""
        waiting = self._worklist.parked
        return any(waiting[standing] and self._dispatcher.may_lease(standing) > 0 for standing in SiteStanding)

    async def _looks(self) -> None:
        last = 0.0
        while True:
            try:
                if time.monotonic() - last >= self._settings.look_seconds or self._worklist.stale:
                    last = time.monotonic()
                    await self.due_sites.look()
                    self.looked = True
                if self._worklist.requests:
                    self._worklist.requests = False
                    await self._grant_requests()
                progress = await self._step()
            except TROUBLE as error:
                self._work_lane.warn(self._log, "cannot lease due mail; trying again", error)
                await asyncio.sleep(0.5)
                continue
            except Exception as error:
                faults.failed(self._log, "due_work", error)
                if result_store.lacks_partition(error):
                    await self._finisher.make_partitions(self._work_lane)
                elif blocks.given_twice(error):
                    await self._finisher.raise_ids(self._work_lane, error)
                await asyncio.sleep(0.5)
                continue
            if not progress:
                try:
                    async with asyncio.timeout(max(0.01, self._settings.look_seconds - (time.monotonic() - last))):
                        await self._worklist.wake.wait()
                except TimeoutError:
                    self._dispatcher.wake_all()
                    self._dispatcher.pump()
                self._worklist.wake.clear()

    # --- due work ---

    async def _step(self) -> bool:
        """Work on the sites whose turn it is. Returns whether there is more to do at once."""
        dispatcher = self._dispatcher
        now = dispatcher.clock()
        wanted: list[tuple[int, str, int]] = []
        in_backoff: list[SiteState] = []
        room_left = _ROUND
        left = [dispatcher.may_lease(standing) for standing in SiteStanding]
        granted = self._granted = {}
        parts: dict[str, int] = {}  # what each site that waited for its turn may lease
        for standing in SiteStanding:
            called = self._worklist.unpark(standing, min(left[standing], _CALLED))
            parts |= dict.fromkeys(called, max(1, left[standing] // max(1, len(called))))
        keys = deque(dict.fromkeys((*parts, *itertools.islice(self._worklist.turn, _SITES))))
        while keys and room_left > 0 and len(in_backoff) < _IN_BACKOFF:
            key = keys.popleft()
            site = dispatcher.sites.get(key)
            if site is None or not site.due:
                self._worklist.turn.pop(key, None)
                continue
            if self.paused.get(key, 0.0) > now:
                self._worklist.turn.pop(key, None)  # the next look finds it again
                continue
            if site.kind is SiteKind.MISSING or site.in_backoff(now):
                self._worklist.turn.pop(key, None)
                in_backoff.append(site)
                continue
            groups = self._appetite(site, now)
            if groups <= 0:
                self._worklist.turn.pop(key, None)  # it comes back when it has room (`fetch_more`), or at the next look
                continue
            if not site.is_local:
                overtakes = key not in parts and bool(self._worklist.parked[site.standing])
                groups = min(groups, left[site.standing], parts.get(key, groups))
                if groups <= 0 or overtakes:
                    self._worklist.park(site)
                    continue
                left[site.standing] -= groups
                granted[key] = groups
            least = 4 if key in parts else 16
            take = _FETCH if site.is_local or site.grouped else min(_FETCH, max(least, 2 * groups))
            self._worklist.turn.pop(key, None)
            shards = [n for n in site.due if n in self._worklist.ownership.epochs]
            random.shuffle(shards)
            each = max(1, take // max(1, len(shards)))
            for number in shards[:take]:
                wanted.append((number, key, each))
                room_left -= each
        for key in reversed([key for key in keys if key in parts]):
            self._worklist.park(dispatcher.sites[key], first=True)
        try:
            for site in in_backoff:
                try:
                    await self._backoff.back_off(site)
                except Exception as error:
                    if not faults.is_guilty(error):
                        raise
                    self._pause(site.key, error)
            await faults.by_halves(wanted, self._fetch, self._fetch_failed)
            await asyncio.sleep(0)
        except Exception:
            for key in [*(site.key for site in in_backoff), *(key for _, key, _ in wanted)]:
                self._worklist.turn.setdefault(key)
            raise
        return bool(self._worklist.turn) or self._may_call()

    async def _fetch_failed(self, wanted: tuple[int, str, int], error: Exception) -> None:
        self._pause(wanted[1], error)

    def _pause(self, key: str, error: Exception) -> None:
        """Leave a site alone for a while: work at it failed, and not because of one recipient. Other sites go on."""
        faults.failed(self._log, "due_work", error, site=key)
        now = self._dispatcher.clock()
        self.paused = {k: until for k, until in self.paused.items() if until > now}
        self.paused[key] = now + _PAUSE
        self._worklist.turn.pop(key, None)

    def _appetite(self, site: SiteState, now: float) -> int:
        """Deliveries to lease of a site now; 0: it has no room."""
        dispatcher = self._dispatcher
        if site.is_local:
            return _FETCH if dispatcher.pending_bytes < self._settings.born_leased_bytes else 0
        if not dispatcher.streams or dispatcher.pending_bytes >= self._settings.born_leased_bytes:
            return 0
        wanted = dispatcher.older_wanted(site, now) - len(site.older)
        if wanted <= 0:
            return 0
        if site.window.probing and site.shared and dispatcher.owners > 1 and not site.claimed:
            self._shared_sites.claim_probe(site)
            return 0
        return wanted

    async def _fetch(self, wanted: Sequence[tuple[int, str, int]]) -> None:
        dispatcher = self._dispatcher
        router = self._router()
        async with self._work_lane.use() as connection:
            rows = await self.corrupt.readable(connection, await waiting_store.fetch_due(connection, wanted))
        ended = await self._endings.end_over_interruption_limit(rows)
        found: dict[tuple[int, str], int] = {}
        planned: list[tuple[Waiting, RoutePlan]] = []
        for row in rows:
            where = (row.shard, row.site)
            found[where] = found.get(where, 0) + 1
            if row.request:
                self._worklist.requests = True
            elif row.id not in ended and (plan := await self.corrupt.plan(router, row)) is not None:
                planned.append((row, plan))
        work = sort_due(planned)
        left = await self._lease_groups(router, work.groups)
        await self.due_sites.re_key(work.moved)
        if work.missing:
            await self._backoff.count([(row, plan, b"") for row, plan in work.missing])
        drained = [
            (number, key)
            for number, key, count in wanted
            if found.get((number, key), 0) < count and (number, key) not in left
        ]
        await self.due_sites.settle(drained)
        for number, key, _ in wanted:
            if (number, key) not in drained:
                self._worklist.turn.setdefault(key)
        dispatcher.pump()

    async def _lease_groups(
        self, router: Router, groups: list[tuple[RoutePlan, list[Waiting]]]
    ) -> set[tuple[int, str]]:
        """Lease what the sites have room for. Returns the (shard, site) of which some were left where they are."""
        dispatcher = self._dispatcher
        now = dispatcher.clock()

        may_lease = [dispatcher.may_lease(standing) for standing in SiteStanding]

        def room_of(plan: RoutePlan) -> int:
            site = dispatcher.site(plan)
            if site.is_local:
                return _FETCH
            wanted = min(dispatcher.older_wanted(site, now) - len(site.older), self._granted.get(site.key, _FETCH))
            room = max(0, min(wanted, may_lease[site.standing]))
            may_lease[site.standing] -= room
            return room

        for plan, members in groups:
            if len(members) > 1:
                dispatcher.site(plan).grouped = True
        chosen, left = choose(groups, room_of)

        async def lease(some: Sequence[_Group]) -> None:
            await self._lease(router, some)

        async def alone(group: _Group, error: Exception) -> None:
            plan, members = group
            if len(members) > 1:
                await faults.by_halves([(plan, [row]) for row in members], lease, alone)
            else:
                await self.corrupt.hold_one(members[0], error)

        await faults.by_halves(chosen, lease, alone)
        return left

    def _room_for_content(self) -> int:
        """Octets of bodies to read at once; what has no room outbound fetches (LSE-06)."""
        return max(0, min(_CONTENT, self._settings.born_leased_bytes - self._dispatcher.pending_bytes))

    async def _lease(self, router: Router, groups: Sequence[_Group]) -> None:
        """Lease these recipients, a token for each group, and let them wait at their sites with their content."""
        await self._ids.ensure(0, len(groups))
        tokens = [self._ids.token() for _ in groups]
        wanted = [(row, token, plan.key) for (plan, part), token in zip(groups, tokens, strict=True) for row in part]
        before = self._dispatcher.clock()
        async with self._work_lane.use() as connection:
            leased, moment = await lease_store.lease(
                connection, self._worklist.ownership, self._settings.lease_seconds, wanted
            )
            if not leased:
                return
            self._database.set_server_time(moment, before)
            deliveries: list[Delivery] = []
            try:
                ids = {row.message_id for row, _, _ in wanted if row.id in leased}
                contents = await content_store.contents(connection, ids, self._room_for_content())
                corrupt = {i for i, content in contents.items() if not is_envelope(content.envelope)}
                for unfit, reason in ((corrupt, ENVELOPE_UNREADABLE), (ids - contents.keys(), CONTENT_MISSING)):
                    rows = [(row, token) for row, token, _ in wanted if row.id in leased and row.message_id in unfit]
                    if rows:
                        await self.corrupt.hold(connection, rows, reason)
                        leased -= {row.id for row, _ in rows}
                for (plan, part), token in zip(groups, tokens, strict=True):
                    members = [row for row in part if row.id in leased]
                    if members:
                        content = contents[members[0].message_id]
                        deliveries.append(
                            leased_delivery(
                                plan,
                                self._dispatcher.site(plan),
                                token,
                                members,
                                content,
                                router.schedule(facts_of(members[0])),
                                started=moment,
                                deadline=before + self._settings.lease_seconds,
                            )
                        )
            except (asyncio.CancelledError, *TROUBLE):  # else nothing comes of it until their leases run out
                self._writer.undo((row, token) for row, token, _ in wanted if row.id in leased)
                raise
            except Exception:  # one of them is guilty: at once, so that the others can be leased without it
                undone = [
                    Deferral(row.id, row.message_id, t, row.version, 0.0, None)
                    for row, t, _ in wanted
                    if row.id in leased
                ]
                await result_store.defer(connection, undone)
                raise
        for delivery in deliveries:
            self._dispatcher.add(delivery, older=True)

    # --- requests ---

    async def _grant_requests(self) -> None:
        """Fail and drop requests: at once where nothing runs, else ask outbound to abort (ADM-02)."""
        past = 0
        while self._dispatcher.deliveries:  # which may be of shards that had another owner, or have one by now
            async with self.lane.use() as connection:
                leased = await waiting_store.requested_leased(connection, past)
            self._leases.cancel(token for _, token in leased)
            if len(leased) < waiting_store.PAGE:
                break
            past = leased[-1][0]
        past = 0
        while shards := list(self._worklist.ownership.epochs):
            async with self.lane.use() as connection:
                free = await waiting_store.requested(connection, shards, past)
            await self._endings.end([self._finisher.by_administrator(row) for row in free])
            if len(free) < waiting_store.PAGE:
                break
            past = free[-1].id
