"""What an owner of shards does: it walks the sites that are due (SHD-02 to SHD-04).

What is due is found by site, never by row: an index of (shard, site, next due) is asked each second and whenever
something woke us. Sites with room are fetched from in turn, a bounded number of recipients each. Which shards they are
is the matter of `shards`; what is not dialled, that of `undialled`.
"""

import asyncio
import time
from collections.abc import Iterable, Sequence
from typing import Any

from mailrail.core.delivery.judge import INTERRUPTIONS_FORGIVEN
from mailrail.core.delivery.schedule import is_last
from mailrail.core.site import SiteKind
from mailrail.pb.queue.v1 import types_pb2
from mailrail_queue import metrics, site_store, store
from mailrail_queue.accept import PER_DELIVERY
from mailrail_queue.dispatch import Cargo, Flight, SiteState, told
from mailrail_queue.finish import facts_of, passenger_of
from mailrail_queue.ports import Passenger
from mailrail_queue.reading import (
    ENVELOPE_UNREADABLE,
    attempt_of,
    dialled_of,
    is_envelope,
)
from mailrail_queue.routing import Facts, Plan, Router
from mailrail_queue.shards import DATABASE_TROUBLE, SHARDS
from mailrail_queue.store import Waiting
from mailrail_queue.undialled import Undialled

_FETCH = 200
"""Recipients fetched of one site at once (SHD-03)."""
_ROUND = 1000
"""Recipients fetched of all sites in one step."""
_PER_SHARD = 100
"""Due sites of a shard that one look reads; the next look goes on from there."""


class Owner(Undialled):
    """This process as an owner of shards."""

    # --- loops ---

    async def run(self) -> None:
        """Everything that an owner does, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._beats())
            group.create_task(self._looks())
            group.create_task(self._sweeps_loop())
            group.create_task(self._timers())
            group.create_task(self._revisions())

    async def _timers(self) -> None:
        """Wake sites whose rate, rest or turn lets them go on."""
        while True:
            at = self._dispatcher.next_timer()
            now = self._dispatcher.clock()
            await asyncio.sleep(0.2 if at is None else min(0.2, max(0.002, at - now)))
            if at is not None and at <= self._dispatcher.clock():
                self._dispatcher.pump()

    async def _looks(self) -> None:
        last = 0.0
        while True:
            try:
                if time.monotonic() - last >= self._settings.look_seconds or self._stale():
                    last = time.monotonic()
                    await self._look()
                if self._requests:
                    self._requests = False
                    await self._grant_requests()
                progress = await self._step()
            except DATABASE_TROUBLE as error:
                self._log.warning("due work waits for postgres", error=str(error).strip())
                await asyncio.sleep(0.5)
                continue
            except Exception:
                self._log.exception("a step of the owner failed")
                await asyncio.sleep(0.5)
                continue
            if not progress:
                try:
                    async with asyncio.timeout(max(0.01, self._settings.look_seconds - (time.monotonic() - last))):
                        await self._wake.wait()
                except TimeoutError:
                    self._dispatcher.wake_all()
                    self._dispatcher.pump()
                self._wake.clear()

    def _stale(self) -> bool:
        return any(cursor == 0.0 for cursor in self._cursors.values()) and bool(self._cursors)

    async def _look(self) -> None:
        """Which sites of our shards are due? From where the last look ended, so that none waits behind others."""
        if not self._cursors:
            return
        async with self._lane.use() as connection:
            rows = await site_store.due_sites(connection, self._cursors, _PER_SHARD)
        counts: dict[int, int] = {}
        latest: dict[int, float] = {}
        for number, key, due in rows:
            counts[number] = counts.get(number, 0) + 1
            latest[number] = max(latest.get(number, 0.0), due)
            self._note(number, key)
        for number in self._cursors:
            # A full answer goes on from its end at the next look; else begin anew. 1.0: looked at, nothing special.
            self._cursors[number] = latest[number] if counts.get(number, 0) >= _PER_SHARD else 1.0
        await self._look_back()
        if self._unverified:
            await self._verify(self._unverified.pop())
        elif self._dice.random() < 0.5:
            await self._verify(self._dice.choice(list(self._cursors)))

    async def _look_back(self) -> None:
        """Did a transaction that was under way when a site was settled leave recipients there?"""
        now = self._dispatcher.clock()
        looked: list[tuple[int, str]] = []
        while self._settled and self._settled[0][0] <= now and len(looked) < _ROUND:
            _, number, key = self._settled.popleft()
            if number in self.ownership.epochs:
                looked.append((number, key))
        if looked:
            async with self._lane.use() as connection:
                for number, key in await site_store.look_back(connection, list(dict.fromkeys(looked))):
                    self._note(number, key)

    async def _verify(self, number: int) -> None:
        """The slow round: does a shard know of all its sites?"""
        if number not in self.ownership.epochs:
            return
        async with self._lane.use() as connection:
            wrong = await site_store.verify(connection, number)
        if wrong:
            self._log.info("sites found by the slow round", shard=number, sites=wrong)
            self._cursors[number] = 0.0

    # --- due work ---

    async def _step(self) -> bool:
        """Work on the sites whose turn it is. Returns whether there is more to do at once."""
        dispatcher = self._dispatcher
        now = dispatcher.clock()
        wanted: list[tuple[int, str, int]] = []
        resting: list[SiteState] = []
        room_left = _ROUND
        for key in list(self._turn):
            site = dispatcher.sites.get(key)
            if site is None or not site.due:
                self._turn.pop(key, None)
                continue
            if site.kind is SiteKind.MISSING or site.resting(now):
                self._turn.pop(key, None)
                resting.append(site)
                if len(resting) >= 20:
                    break
                continue
            take = self._appetite(site, now)
            if take <= 0:
                self._turn.pop(key, None)  # it comes back when it has room: `hungry`, or the next look
                continue
            self._turn.pop(key, None)
            shards = [n for n in site.due if n in self.ownership.epochs]
            self._dice.shuffle(shards)
            each = max(1, take // max(1, len(shards)))
            for number in shards[:take]:
                wanted.append((number, key, each))
                room_left -= each
            if room_left <= 0:
                break
        for site in resting:
            await self._back_off(site)
        if wanted:
            await self._fetch(wanted)
        return bool(self._turn)

    def _appetite(self, site: SiteState, now: float) -> int:
        """Recipients to fetch of a site now; 0: it has no room."""
        dispatcher = self._dispatcher
        if site.here:
            return _FETCH if dispatcher.pending_bytes < self._settings.born_leased_bytes else 0
        if not dispatcher.streams or dispatcher.pending_bytes >= self._settings.born_leased_bytes:
            return 0
        room = dispatcher.room(site, now)
        if room <= 0:
            return 0
        if site.window.resting_until is not None and site.shared and dispatcher.owners > 1 and not site.claimed:
            self._claim(site)
            return 0
        groups = 2 * room - len(site.pending)
        if groups <= 0:
            return 0
        return _FETCH if site.grouped else min(_FETCH, max(16, 2 * groups))

    async def _fetch(self, wanted: list[tuple[int, str, int]]) -> None:
        dispatcher = self._dispatcher
        router = self._router()
        before = dispatcher.clock()
        async with self._work_lane.use() as connection:
            rows = await self._readable(connection, await store.fetch_due(connection, wanted))
        ended = await self._end_worn([row for row in rows if row.interrupted > INTERRUPTIONS_FORGIVEN])
        found: dict[tuple[int, str], int] = {}
        groups: dict[tuple[object, ...], tuple[Plan, list[Waiting]]] = {}
        moved: list[tuple[Waiting, str]] = []
        missing: list[tuple[Waiting, Plan]] = []
        for row in rows:
            where = (row.shard, row.site)
            found[where] = found.get(where, 0) + 1
            if row.request:
                self._requests = True
                continue
            if row.id in ended:
                continue
            plan = router.plan(facts_of(row), row.attempts)
            if plan.missing:
                missing.append((row, plan))
            elif plan.key != row.site:
                moved.append((row, plan.key))
            else:
                group = (row.message_id, plan.grouping, plan.template.domain, row.tls, row.attempts)
                groups.setdefault(group, (plan, []))[1].append(row)
        left = await self._lease_groups(router, list(groups.values()), before)
        if moved:
            async with self._work_lane.use() as connection:
                for number, key in await site_store.re_key(connection, self.ownership, moved):
                    self._note(number, key)
        if missing:
            await self._count_undialled(router, [(row, plan, b"") for row, plan in missing])
        drained = [
            (number, key)
            for number, key, count in wanted
            if found.get((number, key), 0) < count and (number, key) not in left
        ]
        await self._settle(drained)
        for number, key, _ in wanted:
            if (number, key) not in drained:
                self._turn.setdefault(key)
        dispatcher.pump()

    async def _end_worn(self, rows: Sequence[Waiting]) -> set[int]:
        """Judge those whose last attempt was cut off once too often (LSE-04). Returns the ids that are final now.

        Nobody judges an attempt that has no result: mail that kills whatever takes it would come back for ever.
        """
        if not rows:
            return set()
        async with self._work_lane.use() as connection:
            newest = await store.newest_attempts(connection, [row.id for row in rows])
        finals = []
        for row in rows:
            attempt = attempt_of(newest.get(row.id))
            if row.request or attempt.outcome != types_pb2.OUTCOME_INTERRUPTED:
                continue
            attempt, _, judgement = self._finisher.judge_cut_off(row, attempt)
            if judgement.final:
                finals.append((row, attempt, judgement, False))
        if finals:
            await self._finisher.end_waiting(self._work_lane, finals)
        return {row.id for row, _, _, _ in finals}

    async def _lease_groups(
        self, router: Router, groups: list[tuple[Plan, list[Waiting]]], before: float
    ) -> set[tuple[int, str]]:
        """Lease what the sites have room for. Returns the (shard, site) of which some were left where they are."""
        dispatcher = self._dispatcher
        now = dispatcher.clock()
        allowed: dict[str, int] = {}
        chosen: list[tuple[Plan, SiteState, list[Waiting]]] = []
        left: set[tuple[int, str]] = set()
        for plan, members in groups:
            site = dispatcher.site(plan)
            site.grouped = site.grouped or len(members) > 1
            if plan.key not in allowed:
                room = 2 * dispatcher.room(site, now) - len(site.pending)
                allowed[plan.key] = _FETCH if site.here else max(0, room)
            limit = plan.transport.limits.recipients_per_message if plan.transport is not None else PER_DELIVERY
            limit = max(1, min(PER_DELIVERY, limit))
            for start in range(0, len(members), limit):
                part = members[start : start + limit]
                if allowed[plan.key] <= 0:
                    left.update((row.shard, row.site) for row in part)
                    continue
                allowed[plan.key] -= 1
                chosen.append((plan, site, part))
        if not chosen:
            return left
        count = len(chosen)
        await self._intake.ids.ensure(0, count)
        tokens = [self._intake.ids.token() for _ in chosen]
        wanted = [(row, token, plan.key) for (plan, _, part), token in zip(chosen, tokens, strict=True) for row in part]
        before = dispatcher.clock()
        async with self._work_lane.use() as connection:
            leased, moment = await store.lease(connection, self.ownership, self._settings.lease_seconds, wanted)
            if not leased:
                return left
            ids = {row.message_id for row, _, _ in wanted if row.id in leased}
            contents = await store.contents(connection, ids)
            damaged = {i for i, content in contents.items() if not is_envelope(content.envelope)}
            if damaged:
                rows = [(row, token) for row, token, _ in wanted if row.id in leased and row.message_id in damaged]
                await self._set_aside(connection, rows, ENVELOPE_UNREADABLE)
                leased -= {row.id for row, _ in rows}
        self._database.heard(moment)
        lost: list[tuple[int, int]] = []
        for (plan, site, part), token in zip(chosen, tokens, strict=True):
            members = [row for row in part if row.id in leased]
            if not members:
                continue
            content = contents.get(members[0].message_id)
            if content is None:  # cannot be: only the sweeper deletes content, and never that of a live recipient
                self._log.error("content is missing", message_id=members[0].message_id.hex())
                lost += [(row.id, token) for row in members]
                continue
            flight = self._flight(router, plan, site, token, members, content, moment)
            flight.deadline = before + self._settings.lease_seconds
            dispatcher.add(flight)
        return left

    def _flight(
        self,
        router: Router,
        plan: Plan,
        site: SiteState,
        token: int,
        members: list[Waiting],
        content: store.Content,
        moment: float,
    ) -> Flight:
        first = members[0]
        attempt = first.attempts + 1
        envelope = types_pb2.Envelope.FromString(content.envelope)
        envelope.tls_requirement = types_pb2.TlsRequirement.ValueType(first.tls)
        schedule = router.schedule(facts_of(first))
        last = is_last(
            schedule,
            attempts=attempt,
            now=moment,
            accepted=first.queued,
            paused=first.paused,
            null_sender=first.from_domain == "",
        )
        passengers: list[Passenger] = []
        recipients: list[dict[str, Any]] = []
        hosts: dict[str, list[str]] = {}
        for row in members:
            passenger = passenger_of(row, attempts=row.attempts + 1)
            passengers.append(passenger)
            recipients.append(told(row.id, types_pb2.EnvelopeRecipient.FromString(row.rcpt)))
            for host, ips in dialled_of(row.dialled).items():
                if len(ips) > len(hosts.get(host, ())):  # most often they travelled together
                    hosts[host] = ips
        cargo = Cargo(envelope.SerializeToString(), recipients, content.prefix, content.body, content.size, last, hosts)
        size = len(content.prefix) + len(content.body or b"")
        return Flight(token, first.message_id, plan, site, passengers, size, 0.0, moment, attempt, cargo)

    # --- requests, missing transports ---

    async def _grant_requests(self) -> None:
        """Fail and drop requests: at once where nothing runs, else ask outbound to abort (ADM-02)."""
        shards = list(self.ownership.epochs)
        async with self._lane.use() as connection:
            everywhere = await store.requested(connection, range(SHARDS) if self._dispatcher.flights else shards)
        self._desk.cancel(row for row in everywhere if row.token is not None)
        free = [row for row in everywhere if row.token is None and row.shard in self.ownership.epochs]
        if free:
            await self._finisher.end_waiting(self._lane, [self._finisher.by_administrator(row) for row in free])
            if len(everywhere) >= 500:
                self._requests = True

    async def _revisions(self) -> None:
        while True:
            await self._revised.wait()
            self._revised.clear()
            changed, self._changed = self._changed, set()
            try:
                await self._reconsider(sorted(changed))
            except DATABASE_TROUBLE as error:
                self._log.warning("mail that a revision may free waits for postgres", error=str(error).strip())
                self.revised(changed)
                await asyncio.sleep(0.5)

    async def _reconsider(self, changed: Sequence[str]) -> None:
        """A new revision is in force: what waited for something that is there now is due at once (ADM-03).

        So is what a transport's backoff held up, if the transport is not what it was (`changed`, "NAMESPACE/NAME"):
        whoever corrects a relay's password must not wait for the end of a rest that the wrong one has earned.
        """
        shards = list(self.ownership.epochs)
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
                names += await site_store.resume_sites(connection, [f"{SiteKind.TRANSPORT}:{name}" for name in changed])
        if changed:
            await self._learn_sites()  # before their mail is looked at: while a site rests, that is a counted attempt
        for name in names:
            while True:
                async with self._lane.use() as connection:
                    woken = await site_store.wake_site(connection, self.ownership, name)
                if not woken:
                    break
                for number in woken:
                    self._note(number, name)
                self._wake.set()
        self._cursors = dict.fromkeys(self._cursors, 0.0)
        self._wake.set()

    @staticmethod
    def _goes(router: Router, rows: Iterable[Waiting]) -> bool:
        """Whether another route takes any of these now, although what they waited for is still missing."""
        return any(not router.plan(facts_of(row), row.attempts).missing for row in rows)

    @staticmethod
    def _is_back(router: Router, name: str) -> bool:
        what = name.removeprefix(f"{SiteKind.MISSING}:")
        return router.has(what) if "/" in what else what in router.table.by_name

    # --- leases that ran out ---

    async def _sweeps_loop(self) -> None:
        while True:
            try:
                await self.sweep()
            except DATABASE_TROUBLE as error:
                self._log.warning("the lease sweep waits for postgres", error=str(error).strip())
            await asyncio.sleep(self._settings.sweep_seconds * self._dice.uniform(0.8, 1.0))

    async def sweep(self) -> int:
        """Take back leases that ran out (LSE-04). Returns how many."""
        shards = list(self.ownership.epochs)
        if not shards:
            return 0
        # Dead entries of the index lie before the last sweep; every sixth sweep looks at all the same.
        since = 0.0 if self._sweeps % 6 == 0 else max(0.0, self._swept_until - 60.0)
        self._sweeps += 1
        started = self._database.now()
        total = 0
        while True:
            async with self._lane.use() as connection, connection.transaction():
                rows = await store.expire(connection, self.ownership, shards, since, 500)
                await self._finisher.cut_off(connection, rows)
            self._finisher.told()
            for row in rows:
                flight = self._dispatcher.flights.get(row.token)
                if flight is not None:
                    if flight.stream is not None:
                        flight.stream.cancel(flight.token)
                        flight.site.window.undo()
                    self._dispatcher.land(flight)
            total += len(rows)
            if any(row.request for row in rows):
                self._requests = True
            if len(rows) < 500:
                break
        self._swept_until = started
        if total:
            metrics.count_attempts([types_pb2.OUTCOME_INTERRUPTED] * total)
            self._log.info("leases ran out", recipients=total)
            self._cursors = dict.fromkeys(self._cursors, 0.0)
            self._wake.set()
        return total

    def facts(self, row: Waiting) -> Facts:
        """Routing facts of a stored recipient (for explanations)."""
        return facts_of(row)
