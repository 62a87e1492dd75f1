"""Due mail that is not dialled: of sites that rest or are missing, that cannot be read, or whose attempts were cut off.

A site in backoff has its due recipients counted set-wise, without content and without a dial (SHD-05).
"""

from collections.abc import Sequence

from mailrail.core.delivery.judge import INTERRUPTIONS_FORGIVEN
from mailrail.core.delivery.outcome import Outcome, Scope, Verdict, of_trouble
from mailrail.core.route.site import SiteKind
from mailrail.core.smtp.answer import Trouble
from mailrail.kit import log
from mailrail.pb.queue.v1 import types_pb2
from mailrail_queue import metrics
from mailrail_queue.delivery.parts import Parts
from mailrail_queue.delivery.ports import Notice
from mailrail_queue.delivery.results import Decided, Finisher
from mailrail_queue.delivery.site_health import SiteHealth
from mailrail_queue.delivery.sites import SiteState
from mailrail_queue.delivery.verdicts import attempt_recipient_of, facts_of, status_of
from mailrail_queue.routing.router import RoutePlan, Router
from mailrail_queue.schedule.due_sites import DueSites
from mailrail_queue.schedule.worklist import Worklist
from mailrail_queue.store import faults
from mailrail_queue.store import mail as store
from mailrail_queue.store import sites as site_store
from mailrail_queue.store.connection import Lane
from mailrail_queue.store.mail import Aside, Connection, Deferral, Waiting
from mailrail_queue.store.rows import (
    RECIPIENT_UNREADABLE,
    attempt_of,
    is_recipient,
)

_BACKOFF = 250
"""Recipients of a resting site counted in one statement (SHD-05)."""


class Backoff:
    """What an owner does with due recipients without a dial."""

    def __init__(
        self,
        parts: Parts,
        lane: Lane,
        worklist: Worklist,
        finisher: Finisher,
        site_health: SiteHealth,
        due_sites: DueSites,
    ) -> None:
        self._database = parts.database
        self._dispatcher = parts.dispatcher
        self._router = parts.router
        self._lane = lane
        self._worklist = worklist
        self._finisher = finisher
        self._site_health = site_health
        self._due_sites = due_sites
        self.allowance = faults.HoldAllowance()
        """Of recipients on which work fails."""
        self._log = log.get_logger()

    # --- mail that cannot be read ---

    async def readable(self, connection: Connection, rows: list[Waiting]) -> list[Waiting]:
        """Those of these recipients that can be read; the others are set aside.

        One that an administrator wants failed or dropped need not be read for that, and stays.
        """
        damaged = [row for row in rows if not row.request and not is_recipient(row.envelope_recipient)]
        if not damaged:
            return rows
        await self.set_aside(connection, [(row, 0) for row in damaged], RECIPIENT_UNREADABLE)
        gone = {row.id for row in damaged}
        return [row for row in rows if row.id not in gone]

    async def set_aside(self, connection: Connection, rows: Sequence[tuple[Waiting, int]], reason: str) -> None:
        """Put (recipient, token of its lease or 0) on hold: nobody can send them, and all others must go on."""
        aside = [Aside(row.id, row.message_id, row.shard, row.version, token) for row, token in rows]
        await faults.set_aside(connection, self._worklist.ownership, aside, reason, self._log)

    async def set_aside_for(self, row: Waiting, error: Exception, *, withdraw: bool = False) -> None:
        """Put one on hold of which nothing can be written. `withdraw`: and what an administrator asked for it.

        Raises `faults.TooManyFail` where that happened to too many lately: it stays due.
        """
        faults.failed(self._log, "due mail", error, recipient=row.id)
        if not withdraw and not self.allowance.take(self._dispatcher.clock()):
            raise faults.TooManyFail(
                f"work fails for too many recipients to blame them: {faults.said(error)}"
            ) from error
        aside = [Aside(row.id, row.message_id, row.shard, row.version, 0)]
        reason = f"what is to be written of this recipient cannot be: {faults.said(error)}"
        if withdraw and row.request:
            reason = f"what was asked for it is withdrawn; {reason}"
        async with self._lane.use() as connection:
            await faults.set_aside(
                connection, self._worklist.ownership, aside, reason, self._log, undo=False, withdraw=withdraw
            )

    async def plan(self, router: Router, row: Waiting) -> RoutePlan | None:
        """Where a recipient goes now; None: nobody can tell, and it is set aside."""
        try:
            return router.plan(facts_of(row), row.attempts)
        except Exception as error:
            await self.set_aside_for(row, error)
            return None

    # --- attempts that were cut off ---

    async def end_worn(self, rows: Sequence[Waiting]) -> set[int]:
        """Judge those of these whose last attempt was cut off once too often (LSE-04). Returns ids that are final now.

        Nobody judges an attempt that has no result: mail that kills whatever takes it would come back for ever.
        """
        worn = [row for row in rows if row.interruptions > INTERRUPTIONS_FORGIVEN]
        if not worn:
            return set()
        async with self._lane.use() as connection:
            newest = await store.newest_attempts(connection, [row.id for row in worn])
        finals = []
        for row in worn:
            attempt = attempt_of(newest.get(row.id))
            if row.request or attempt.outcome != types_pb2.OUTCOME_INTERRUPTED:
                continue
            attempt, _, judgement = self._finisher.judge_cut_off(row, attempt)
            if judgement.final:
                finals.append((row, attempt, judgement, False))
        await self.end(finals)
        return {row.id for row, _, _, _ in finals}

    async def end(self, finals: Sequence[Decided]) -> None:
        """Make these final. One that cannot be is set aside, and what was asked for it is withdrawn (ADM-02)."""
        await faults.by_halves(
            finals,
            lambda some: self._finisher.end_waiting(self._lane, some),
            lambda one, error: self.set_aside_for(one[0], error, withdraw=True),
        )

    # --- attempts without a dial ---

    async def back_off(self, site: SiteState) -> None:
        """The due recipients of a site that rests, or whose transport is missing (SHD-05; design 4, Attempt)."""
        router = self._router()
        shards = [n for n in site.due if n in self._worklist.ownership.epochs]
        wanted = [(n, site.key, max(1, _BACKOFF // max(1, len(shards)))) for n in shards]
        if not wanted:
            site.due.clear()
            return
        async with self._lane.use() as connection:
            rows = await self.readable(connection, await store.fetch_due(connection, wanted))
            if site.kind is not SiteKind.MISSING:
                # A kick ends the rest and makes recipients due in one transaction: they are to be tried, not counted.
                # So the rest is looked at after them.
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
            plan = await self.plan(router, row)
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
        attempt.reply.lines.append(site.window.last_error or transport or "the destination did not answer lately")
        return attempt.SerializeToString()

    async def count(self, counted: Sequence[tuple[Waiting, RoutePlan, bytes]]) -> None:
        """A counted attempt for each, with the last error, without a dial. One that cannot be written is set aside."""
        await faults.by_halves(counted, self._count, lambda one, error: self.set_aside_for(one[0], error))

    async def _count(self, counted: Sequence[tuple[Waiting, RoutePlan, bytes]]) -> None:
        deferrals: list[Deferral] = []
        notices: dict[int, Notice] = {}
        finals = []
        now = self._database.now()
        for row, plan, last in counted:
            attempt = attempt_of(last)
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
                status = status_of(attempt.reply, "4.4.1")
                verdict = Verdict(Outcome.DEFERRED, status, text, None, Scope.SITE)
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
            done = await store.back_off(connection, self._worklist.ownership, deferrals)
            await notify([n for i, n in notices.items() if i in done])
        metrics.count_attempts([types_pb2.OUTCOME_DEFERRED] * len(done))
