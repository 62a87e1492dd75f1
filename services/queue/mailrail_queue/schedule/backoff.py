"""Due mail of sites in backoff and of missing transports: counted without content and without a dial (SHD-05)."""

from collections.abc import Sequence

from mailrail.core.delivery.outcome import Outcome, Scope, Verdict, of_trouble
from mailrail.core.route.site import SiteKind
from mailrail.core.smtp.answer import Trouble
from mailrail.pb.queue.v1 import types_pb2
from mailrail_queue import metrics
from mailrail_queue.delivery.parts import Parts
from mailrail_queue.delivery.ports import Notice
from mailrail_queue.delivery.results import Finisher
from mailrail_queue.delivery.site_health import SiteHealth
from mailrail_queue.delivery.sites import SiteState
from mailrail_queue.delivery.verdicts import attempt_recipient_of, not_dialled, status_of
from mailrail_queue.routing.router import RoutePlan
from mailrail_queue.schedule.corrupt import CorruptMail
from mailrail_queue.schedule.due_sites import DueSites
from mailrail_queue.schedule.worklist import Worklist
from mailrail_queue.store import faults
from mailrail_queue.store import results as result_store
from mailrail_queue.store import sites as site_store
from mailrail_queue.store import waiting as waiting_store
from mailrail_queue.store.connection import Lane
from mailrail_queue.store.results import Deferral
from mailrail_queue.store.rows import (
    attempt_of,
)
from mailrail_queue.store.waiting import Waiting

_BACKOFF = 250
"""Recipients of a site in backoff that are counted in one statement (SHD-05)."""


class Backoff:
    """Counts attempts without a dial."""

    def __init__(
        self,
        parts: Parts,
        lane: Lane,
        worklist: Worklist,
        finisher: Finisher,
        site_health: SiteHealth,
        due_sites: DueSites,
        corrupt: CorruptMail,
    ) -> None:
        self._database = parts.database
        self._dispatcher = parts.dispatcher
        self._router = parts.router
        self._lane = lane
        self._worklist = worklist
        self._finisher = finisher
        self._site_health = site_health
        self._due_sites = due_sites
        self._corrupt = corrupt

    async def back_off(self, site: SiteState) -> None:
        """Count the due recipients of a site in backoff or with a missing transport (SHD-05; design 4, Attempt)."""
        router = self._router()
        shards = [n for n in site.due if n in self._worklist.ownership.epochs]
        wanted = [(n, site.key, max(1, _BACKOFF // max(1, len(shards)))) for n in shards]
        if not wanted:
            site.due.clear()
            return
        async with self._lane.use() as connection:
            rows = await self._corrupt.readable(connection, await waiting_store.fetch_due(connection, wanted))
            if site.kind is not SiteKind.MISSING:
                # A kick ends the backoff and makes recipients due in one transaction: they are to be tried.
                # So the backoff is looked at after them.
                names = [site.key]
                if site.kind is SiteKind.PROXY and site.transport is not None:
                    names.append(f"{SiteKind.TRANSPORT}:{site.transport.name}")
                for known in await site_store.sites(connection, names):
                    self._site_health.learn(known)
                if not site.in_backoff(self._dispatcher.clock()):
                    self._worklist.turn.setdefault(site.key)
                    return
        counted: list[tuple[Waiting, RoutePlan, bytes]] = []
        moved: list[tuple[Waiting, str]] = []
        found: dict[int, int] = {}
        for row in rows:
            found[row.shard] = found.get(row.shard, 0) + 1
            if row.request:
                self._worklist.requests = True
                continue
            plan = await self._corrupt.plan(router, row)
            if plan is None:
                continue
            if plan.key != row.site:
                moved.append((row, plan.key))
            else:
                counted.append((row, plan, b"" if plan.missing else self._last_error(site)))
        await self._due_sites.re_key(moved)
        if counted:
            await self.count(counted)
        await self._due_sites.settle([(n, key) for n, key, count in wanted if found.get(n, 0) < count])
        if site.due:
            self._worklist.turn.setdefault(site.key)

    def _last_error(self, site: SiteState) -> bytes:
        if site.last_error:
            return site.last_error
        attempt = types_pb2.Attempt()
        attempt.reply.enhanced = "4.4.1"
        transport = site.transport.window.last_error if site.transport is not None else ""
        attempt.reply.lines.append(site.window.last_error or transport or "the destination has not answered recently")
        return attempt.SerializeToString()

    async def count(self, counted: Sequence[tuple[Waiting, RoutePlan, bytes]]) -> None:
        """A counted attempt for each, with the last error, without a dial. What cannot be written is put on hold."""
        await faults.by_halves(counted, self._count, lambda one, error: self._corrupt.hold_one(one[0], error))

    async def _count(self, counted: Sequence[tuple[Waiting, RoutePlan, bytes]]) -> None:
        deferrals: list[Deferral] = []
        notices: dict[int, Notice] = {}
        finals = []
        now = self._database.now()
        for row, plan, last in counted:
            attempt = types_pb2.Attempt() if plan.missing else not_dialled(attempt_of(last))
            attempt.number = row.attempts + 1
            attempt.outcome = types_pb2.OUTCOME_DEFERRED
            attempt.dialled = False
            plan.describe(attempt)
            attempt.started.FromNanoseconds(int(now * 1e9))
            attempt.ended.CopyFrom(attempt.started)
            if plan.missing:
                verdict = of_trouble(Trouble.MISSING, detail=plan.decision.reason)
                attempt.reply.enhanced = str(verdict.status)
                attempt.reply.lines.append(verdict.text)
            else:
                text = " ".join(attempt.reply.lines)
                verdict = Verdict(Outcome.DEFERRED, status_of(attempt, "4.4.1"), text, None, Scope.SITE)
            recipient = attempt_recipient_of(row, attempts=row.attempts + 1)
            judgement = self._finisher.judge(verdict, recipient)
            if judgement.final:
                finals.append((row, attempt, judgement, True))
                continue
            assert judgement.retry_in is not None
            deferrals.append(
                Deferral(
                    row.id,
                    row.message_id,
                    0,
                    row.version,
                    judgement.retry_in,
                    attempt.SerializeToString(),
                    judgement.dsn is not None,
                    None,
                    row.shard,
                )
            )
            if judgement.dsn is not None:
                notices[row.id] = Notice(recipient, judgement, attempt)
        if finals:
            await self._finisher.end_waiting(self._lane, finals)
        if not deferrals:
            return
        async with (
            self._lane.use() as connection,
            self._finisher.notifications.transaction(connection) as notify,
        ):
            done = await result_store.back_off(connection, self._worklist.ownership, deferrals)
            await notify([n for i, n in notices.items() if i in done])
        metrics.count_attempts([types_pb2.OUTCOME_DEFERRED] * len(done))
