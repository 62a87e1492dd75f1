"""What administrators do to recipients (ADM-01, ADM-02; reference F3).

Every change bumps a row's version, which each lease statement looks at again (ADM-01), so a change and a lease never
both win. A recipient whose attempt runs is not touched under its feet: the change is noted on its row and applies when
the attempt ends, and a call answers `pending` for it (ADM-02). Changes go in batches of their own transactions, however
many recipients a filter finds; a row that changes meanwhile is seen as it is then.
"""

# ruff: noqa: E501, S608 -- statements keep their own lines, and are put together from constants of our own alone

import contextlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, LiteralString, TypeVar

import psycopg

from mailrail.core.delivery.judge import Standing, judge
from mailrail.core.delivery.outcome import Outcome, Verdict
from mailrail.core.dsn.due import Asked
from mailrail.core.smtp.reply import EnhancedCode
from mailrail.kit import log
from mailrail.kit.postgres import storable
from mailrail.pb.queue.v1 import admin_pb2, types_pb2
from mailrail_queue import metrics
from mailrail_queue.admin.base import AdminBase, backoff_names
from mailrail_queue.admin.change_count import Changes
from mailrail_queue.admin.filters import TEN_YEARS, BadRequest, Where, instant, is_empty, live_where, seconds
from mailrail_queue.delivery.ports import Notice, Notify
from mailrail_queue.delivery.verdicts import REQUEST_DROP, REQUEST_FAIL, attempt_recipient_of, facts_of
from mailrail_queue.store import columns as c
from mailrail_queue.store import faults
from mailrail_queue.store import mail as store
from mailrail_queue.store.connection import run
from mailrail_queue.store.mail import Connection, Ending, Waiting

BATCH: Final = 500
"""Recipients changed in one transaction."""
_TRIES: Final = 20
"""Of one transaction that met another in a circle; each try waits a second until Postgres sees that."""
_ADMIN = EnhancedCode(5, 7, 0)
T = TypeVar("T")
_CANCELLED = "delivery cancelled by an administrator"

# A kicked recipient's site rests no more; owners learn it from `changed`.
_WAKE_SITES: Final[LiteralString] = """UPDATE site SET backoff_until = now(), changed = clock_timestamp()
    WHERE name = ANY(%(name)s) AND backoff_until > now()"""
_SET_TRANSPORT: Final[LiteralString] = f"""WITH stored AS (
        UPDATE recipient r SET override_transport = %(transport)s, version = r.version + 1, site = CASE WHEN r.token IS NULL THEN x.site ELSE r.site END
        FROM unnest(%(id)s, %(site)s) AS x (id, site) WHERE r.id = x.id
        RETURNING r.id, r.token IS NOT NULL AS leased, r.shard, r.site, r.due, r.token IS NULL AND r.held_since IS NULL AS waits
    ), noted AS (
        {store.NOTE}
    )
    SELECT id, leased, shard FROM stored"""
_REQUEST: Final[
    LiteralString
] = """UPDATE recipient r SET request = %(request)s, request_reason = %(reason)s, version = r.version + 1
    WHERE r.id = ANY(%(id)s) AND r.token IS NOT NULL RETURNING r.id, r.shard"""

_LEFT: Final[LiteralString] = (
    "UPDATE recipient SET held_since = coalesce(held_since, now()), hold_reason = %(reason)s, version = version + 1 WHERE id = %(id)s"
)


async def _whole(transaction: Callable[[], Awaitable[T]]) -> T:
    """Run a transaction, again where Postgres ended it for a deadlock.

    A change locks its recipients by their ids; what the queue itself leases, defers and ends in one statement is locked
    in whatever order Postgres finds it, so the two may wait for each other. Nothing of the one that is ended is left.
    """
    for _ in range(_TRIES - 1):
        with contextlib.suppress(psycopg.errors.DeadlockDetected):
            return await transaction()
    return await transaction()


class Changing(AdminBase):
    """Changing recipients."""

    _log = log.get_logger()

    async def hold(self, connection: Connection, wanted: admin_pb2.Filter, reason: str) -> Changes:
        """Put on hold; what is already keeps its reason and time. A leased one is held when its attempt ends."""
        return await self._change(
            connection,
            wanted,
            "UPDATE recipient r SET held_since = now(), hold_reason = %(reason)s, version = r.version + 1 FROM found f WHERE r.id = f.id AND r.held_since IS NULL",
            {"reason": storable(reason[:1000]) or "held by an administrator"},
        )

    async def unhold(self, connection: Connection, wanted: admin_pb2.Filter) -> Changes:
        """Take the hold away; the time on hold counts for no lifetime (design 4, Attempt)."""
        return await self._change(
            connection,
            wanted,
            "UPDATE recipient r SET uncounted_seconds = r.uncounted_seconds + extract(epoch FROM now() - r.held_since), held_since = NULL, hold_reason = NULL,"
            " version = r.version + 1 FROM found f WHERE r.id = f.id AND r.held_since IS NOT NULL",
            {},
        )

    async def kick(self, connection: Connection, wanted: admin_pb2.Filter) -> Changes:
        """Due now, and its site is tried again at once; a leased one is due again when its attempt ends."""
        return await self._change(
            connection,
            wanted,
            "UPDATE recipient r SET due = CASE WHEN r.token IS NULL THEN now() ELSE r.due END,"
            " due_after_attempt = CASE WHEN r.token IS NULL THEN r.due_after_attempt ELSE now() END, version = r.version + 1 FROM found f WHERE r.id = f.id",
            {},
            wake_sites=True,
        )

    async def schedule(self, connection: Connection, request: admin_pb2.ScheduleRequest) -> Changes:
        """Due at a time, or moved by a duration. Raises BadRequest."""
        when = request.WhichOneof("when")
        if when == "at":
            moment: LiteralString = "%(at)s::timestamptz"
            later: LiteralString = moment
            parameters: dict[str, Any] = {"at": instant(request.at)}
        elif when == "from_now":
            moment = later = "now() + %(seconds)s * interval '1 second'"
            parameters = {"seconds": seconds(request.from_now)}
        elif when == "from_scheduled":
            moment = "r.due + %(seconds)s * interval '1 second'"
            later = "coalesce(r.due_after_attempt, now()) + %(seconds)s * interval '1 second'"
            parameters = {"seconds": seconds(request.from_scheduled)}
        else:
            raise BadRequest("say when: at, from_now or from_scheduled")
        # Moved again and again a time leaves what Python can show, and no list could be shown any more.
        furthest: LiteralString = f"now() + {TEN_YEARS} * interval '1 second'"
        moment, later = f"LEAST({moment}, {furthest})", f"LEAST({later}, {furthest})"
        return await self._change(
            connection,
            request.filter,
            f"UPDATE recipient r SET due = CASE WHEN r.token IS NULL THEN {moment} ELSE r.due END,"
            f" due_after_attempt = CASE WHEN r.token IS NULL THEN r.due_after_attempt ELSE {later} END, version = r.version + 1 FROM found f WHERE r.id = f.id",
            parameters,
        )

    async def set_tls(self, connection: Connection, wanted: admin_pb2.Filter, requirement: int) -> Changes:
        """Change what a recipient demands of TLS: required, no, or default (design 7). Raises BadRequest."""
        if requirement not in types_pb2.TlsRequirement.values():
            raise BadRequest("the TLS requirement is unspecified (default), required or no")
        return await self._change(
            connection,
            wanted,
            "UPDATE recipient r SET tls_requirement = %(tls)s, version = r.version + 1 FROM found f WHERE r.id = f.id",
            {"tls": requirement},
        )

    async def set_transport(self, connection: Connection, wanted: admin_pb2.Filter, transport: str | None) -> Changes:
        """Override all routes, or (None) let them decide again (reference H28). Raises BadRequest without such a transport."""
        router = self._router()
        if transport is not None and not router.has(transport):
            known = ", ".join(sorted(f"{t.ref.namespace}/{t.ref.name}" for t in router.transports())[:20]) or "none"
            raise BadRequest(f"no transport {transport}; there are: {known}")

        async def batch(found: list[Waiting], _: Notify) -> list[tuple[int, bool, int]]:
            sites = []
            for row in found:
                row.override_transport = transport
                sites.append(router.plan(facts_of(row), row.attempts).key)
            rows = await run(
                connection,
                _SET_TRANSPORT,
                {
                    "id": c.bigints([row.id for row in found]),
                    "site": c.names(sites),
                    "transport": transport,
                },
            )
            return [(row[0], row[1], row[2]) for row in rows]

        return await self._each(connection, wanted, batch)

    async def fail(self, connection: Connection, wanted: admin_pb2.Filter, reason: str) -> Changes:
        """Final now, with a DSN; where an attempt runs, its end decides: `delivered` wins (ADM-02)."""
        why = storable(reason[:1000])
        return await self._each(
            connection, wanted, lambda found, notify: self._end(connection, found, REQUEST_FAIL, why, notify)
        )

    async def drop(self, connection: Connection, wanted: admin_pb2.Filter) -> Changes:
        """Final now, and nobody is told."""
        return await self._each(
            connection, wanted, lambda found, notify: self._end(connection, found, REQUEST_DROP, "", notify)
        )

    async def _end(
        self, connection: Connection, found: list[Waiting], request: int, reason: str, notify: Notify
    ) -> list[tuple[int, bool, int]]:
        free = [row for row in found if row.token is None]
        now = self._clock()
        endings: list[Ending] = []
        notices: dict[int, Notice] = {}
        for row in free:
            attempt = types_pb2.Attempt(number=row.attempts, reason=reason or _CANCELLED)
            attempt.started.FromNanoseconds(int(now * 1e9))
            attempt.ended.FromNanoseconds(int(now * 1e9))
            if request == REQUEST_DROP:
                attempt.outcome = types_pb2.OUTCOME_CANCELLED
            else:
                attempt.outcome = types_pb2.OUTCOME_FAILED
                attempt.reply.code, attempt.reply.enhanced = 554, str(_ADMIN)
                attempt.reply.lines.append(reason or _CANCELLED)
                recipient = attempt_recipient_of(row)
                verdict = Verdict(Outcome.FAILED, _ADMIN, reason)
                standing = Standing(
                    accepted=recipient.accepted,
                    attempts=recipient.attempts,
                    null_sender=recipient.null_sender,
                    sender_authentication=recipient.sender_authentication,
                    notify=Asked(recipient.notify),
                )
                schedule = self._router().schedule(recipient.facts)
                judgement = judge(verdict, standing, schedule, now=now, jitter=0.0)
                notices[row.id] = Notice(recipient, judgement, attempt)
            state = store.CANCELLED if request == REQUEST_DROP else store.FAILED
            endings.append(
                Ending(row.id, row.message_id, 0, row.version, state, attempt.outcome, attempt.SerializeToString())
            )
        done = await store.finish_as(connection, endings) if endings else {}
        # A drop may stand on the row already.
        await notify([n for i, n in notices.items() if done.get(i) == store.FAILED])
        asked = await run(
            connection,
            _REQUEST,
            {
                "id": c.bigints([row.id for row in found if row.token is not None]),
                "request": request,
                "reason": reason or None,
            },
        )
        applied = [(row.id, False, row.shard) for row in free if row.id in done]
        return applied + [(row[0], True, row[1]) for row in asked]

    async def _change(
        self,
        connection: Connection,
        wanted: admin_pb2.Filter,
        update: LiteralString,
        parameters: dict[str, Any],
        *,
        wake_sites: bool = False,
    ) -> Changes:
        """Run an UPDATE over `found`, batch by batch; what became due earlier is noted for the owners."""
        where = self._for_change(wanted)
        statement: LiteralString = f"""WITH found AS (
            SELECT r.id FROM recipient r WHERE r.id > %(past)s AND {where.text} ORDER BY r.id LIMIT {BATCH} FOR UPDATE
        ), stored AS (
            {update}
            RETURNING r.id, r.token IS NOT NULL AS leased, r.shard, r.site, r.due, r.token IS NULL AND r.held_since IS NULL AS waits
        ), noted AS (
            {store.NOTE}
        )
        SELECT f.id, s.leased, s.shard, s.site FROM found f LEFT JOIN stored s ON s.id = f.id ORDER BY f.id"""
        changes = Changes()
        shards: set[int] = set()
        past = 0

        async def batch() -> tuple[list[Any], list[Any]]:
            # With the end of its site's rest, or the owner would find the mail due at a site that rests, and count it.
            async with connection.transaction():
                rows = await run(connection, statement, {**where.parameters, **parameters, "past": past})
                changed = [row for row in rows if row[1] is not None]  # the others are as it was asked already
                if wake_sites and changed:
                    sites = {row[3] for row in changed}
                    await run(connection, _WAKE_SITES, {"name": c.names(sorted(backoff_names(sites)))})
            return rows, changed

        while True:
            rows, changed = await _whole(batch)
            changes.add((row[0], row[1]) for row in changed)
            shards |= {row[2] for row in changed}
            if len(rows) < BATCH:
                break
            past = rows[-1][0]
        if shards:
            self._changed(shards)
        return changes

    async def _each(
        self,
        connection: Connection,
        wanted: admin_pb2.Filter,
        batch: Callable[[list[Waiting], Notify], Awaitable[list[tuple[int, bool, int]]]],
    ) -> Changes:
        """Hand the recipients, locked, to `batch` inside a transaction, some at a time."""
        where = self._for_change(wanted)
        statement: LiteralString = f"""SELECT {store.WAITING} FROM recipient r WHERE r.id > %(past)s AND r.queued <= %(began)s AND {where.text}
            ORDER BY r.id LIMIT {BATCH} FOR UPDATE OF r"""
        changes = Changes()
        shards: set[int] = set()
        past = 0
        # Notifications that a batch makes are none of what was meant: failed as well, they would tell nobody.
        [(began,)] = await run(connection, "SELECT now()")

        async def some() -> tuple[list[Waiting], list[tuple[int, bool, int]]]:
            async with self._notifier.transaction(connection) as notify:
                rows = await run(connection, statement, {**where.parameters, "past": past, "began": began})
                found = [store.waiting(row) for row in rows]
                done: list[tuple[int, bool, int]] = []

                async def change(part: Sequence[Waiting]) -> None:
                    async with connection.transaction():  # a savepoint: what fails leaves the others' changes alone
                        done.extend(await batch(list(part), notify))

                await faults.by_halves(found, change, lambda row, error: self._leave(connection, row, error))
            return found, done

        while True:
            found, done = await _whole(some)
            changes.add((i, pending) for i, pending, _ in done)
            shards |= {number for _, _, number in done}
            if len(found) < BATCH:
                break
            past = found[-1].id
        if shards:
            self._changed(shards)
        return changes

    async def _leave(self, connection: Connection, row: Waiting, error: Exception) -> None:
        """One that cannot be changed is no reason to leave the others: it is on hold, and the reason says why."""
        faults.failed(self._log, "administration", error, recipient=row.id)
        reason = f"what was asked for it cannot be done: {faults.said(error)}"
        await run(connection, _LEFT, {"id": row.id, "reason": reason})
        metrics.CORRUPT.inc()

    @staticmethod
    def _for_change(wanted: admin_pb2.Filter) -> Where:
        if is_empty(wanted):
            raise BadRequest("an empty filter changes nothing: name recipients, or set `all` to mean every one")
        return live_where(wanted)
