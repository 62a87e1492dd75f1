"""What administrators do to recipients (ADM-01, ADM-02; reference F3).

Every change bumps a row's version, which each lease statement looks at again (ADM-01), so a change and a lease never
both win. A recipient whose attempt runs is not touched under its feet: the change is noted on its row and applies when
the attempt ends, and a call answers `pending` for it (ADM-02). Changes go in batches of their own transactions, however
many recipients a filter finds; each batch sees the rows as they are then. Recipients that were queued after the call
began are left alone.
"""

# ruff: noqa: E501, S608 -- statements keep their own lines, and are put together from constants of our own alone

import contextlib
import hashlib
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Final, LiteralString, NamedTuple, TypeVar
from uuid import UUID

import psycopg
from google.protobuf.text_format import MessageToString

from mailrail.core.search import SearchPart
from mailrail.kit import log
from mailrail.kit.postgres import storable
from mailrail.pb.queue.v1 import admin_pb2, types_pb2
from mailrail_queue import metrics
from mailrail_queue.admin.base import CALLER, AdminContext, backoff_names
from mailrail_queue.admin.change_result import ChangeResult, PartlyDone
from mailrail_queue.admin.filters import TEN_YEARS, BadRequest, Where, asked, instant, is_empty, live_where, seconds
from mailrail_queue.admin.operation import Operation, Place
from mailrail_queue.admin.walk import ENTRIES
from mailrail_queue.delivery.endings import by_administrator, end_unleased
from mailrail_queue.delivery.ports import Notify
from mailrail_queue.delivery.verdicts import facts_of
from mailrail_queue.store import columns as c
from mailrail_queue.store import faults, fencing, timeline
from mailrail_queue.store import waiting as waiting_store
from mailrail_queue.store.connection import Connection, run
from mailrail_queue.store.waiting import EndRequest, Waiting

BATCH: Final = 500
"""Recipients changed in one transaction."""
_TRIES: Final = 20
"""Of one transaction that met another in a circle; each try waits a second until Postgres sees that."""
_FILTER_SHOWN: Final = 500
"""Characters of a filter in the log."""
_MOST_ACTOR: Final = 200
"""Characters of the name of a caller in the timeline."""
T = TypeVar("T")

# The backoff of a kicked recipient's site ends; owners learn it from `changed`.
_END_BACKOFF: Final[LiteralString] = """UPDATE site SET backoff_until = now(), changed = clock_timestamp()
    WHERE name = ANY(%(name)s) AND backoff_until > now()"""
_SET_TRANSPORT: Final[LiteralString] = f"""WITH stored AS (
        UPDATE recipient r SET override_transport = %(transport)s, version = r.version + 1, site = CASE WHEN r.token IS NULL THEN x.site ELSE r.site END
        FROM unnest(%(id)s, %(site)s) AS x (id, site) WHERE r.id = x.id
        RETURNING r.id, r.token IS NOT NULL AS leased, r.shard, r.site, r.due, r.token IS NULL AND r.held_since IS NULL AS waits
    ), noted AS (
        {fencing.NOTE}
    )
    SELECT id, leased, shard FROM stored"""
_REQUEST: Final[
    LiteralString
] = """UPDATE recipient r SET request = %(request)s, request_reason = %(reason)s, version = r.version + 1
    WHERE r.id = ANY(%(id)s) AND r.token IS NOT NULL RETURNING r.id, r.shard"""

# By recipient_message; those whose attempt runs are changed for the next one. What was so before is no entry of the timeline.
_MESSAGE_SIZES: Final[LiteralString] = (
    "SELECT message_id, count(*), max(id) FROM recipient WHERE message_id = ANY(%(message_id)s) GROUP BY message_id ORDER BY message_id"
)
_SET_TLS: Final[LiteralString] = f"""WITH found AS MATERIALIZED (
        SELECT r.id, r.tls_requirement AS before FROM recipient r WHERE r.message_id = ANY(%(message_id)s) AND r.id > %(past)s ORDER BY r.id LIMIT {BATCH} FOR UPDATE
    ), stored AS (
        UPDATE recipient r SET tls_requirement = %(tls)s, version = r.version + 1
        FROM found f WHERE r.id = f.id RETURNING r.id, r.message_id, f.before, r.token IS NOT NULL AS leased, r.shard
    ), told AS (
        INSERT INTO timeline (recipient_id, message_id, data)
        SELECT s.id, s.message_id, coalesce((%(entry)s)[s.before + 1], (%(entry)s)[1]) FROM stored s WHERE s.before <> %(tls)s ORDER BY s.id
    )
    SELECT id, leased, shard FROM stored ORDER BY id"""

# By the key alone.
_STRETCH: Final[LiteralString] = "SELECT id FROM recipient WHERE id > %(past)s ORDER BY id OFFSET %(skip)s LIMIT 1"
_HIGHEST: Final = 2**63 - 1

_LEFT: Final[LiteralString] = (
    "UPDATE recipient SET held_since = coalesce(held_since, now()), hold_reason = %(reason)s, version = version + 1 WHERE id = %(id)s"
)


class Changed(NamedTuple):
    """A recipient that was changed."""

    id: int
    pending: bool
    """It takes effect when the attempt under way has ended."""
    shard: int


class WalkStep(NamedTuple):
    """What one transaction of a walk did."""

    past: int
    """The id of the last recipient that was looked at."""
    exhausted: bool
    """Nothing is left up to the id that it could look to."""
    changed: list[Changed]

    @classmethod
    def through(cls, ids: Sequence[int], place: Place, changed: list[Changed]) -> "WalkStep":
        """A step that looked at these recipients, up to BATCH of them, from `place` on."""
        return cls(ids[-1] if ids else place.past, len(ids) < BATCH, changed)


def grouped(sizes: Sequence[tuple[UUID, int]], most: int) -> list[list[UUID]]:
    """Messages, each with how many recipients it has, in groups of at most `most` recipients; one with more is alone."""
    groups: list[list[UUID]] = []
    room = 0
    for message_id, size in sizes:
        if size > room:
            groups.append([])
            room = most
        groups[-1].append(message_id)
        room -= size
    return groups


class _WholeMessages:
    """The messages of the recipients that a filter finds, and how far a change of all their recipients has come.

    It moves on with the last statement of a transaction: one that was broken off before does the same again.
    """

    def __init__(self) -> None:
        self.groups: list[list[UUID]] = []
        self.past = 0
        """The last recipient of the first group that was changed."""
        self.last = 0
        self.exhausted = False
        self._ahead: dict[UUID, int] = {}  # messages with recipients that the walk has not come to: the last of them

    def found(self, rows: Sequence[tuple[int, UUID]], past: int) -> list[UUID]:
        """The filter found these recipients, with their messages, behind `past`. Returns the messages not met before."""
        self.last = rows[-1][0] if rows else past
        self.exhausted = len(rows) < BATCH
        new = sorted({message_id for _, message_id in rows} - self._ahead.keys())
        self._ahead = {message_id: end for message_id, end in self._ahead.items() if end > self.last}
        return new

    def remember(self, ends: Iterable[tuple[UUID, int]]) -> None:
        """The last recipient of each of them."""
        self._ahead.update((message_id, end) for message_id, end in ends if end > self.last)

    def advance(self, changed: Sequence[int]) -> None:
        """These recipients of the first group were changed, BATCH at most."""
        if len(changed) < BATCH:
            self.groups.pop(0)
            self.past = 0
        else:
            self.past = max(changed)


def _uuids(ids: Sequence[UUID]) -> c.UuidColumn:
    return c.uuids([one.bytes for one in ids])


def _tls_entries(to: types_pb2.TlsRequirement.ValueType, reason: str, now: float) -> c.BytesColumn:
    """The entry of the timeline for each requirement that there may have been before, by its number."""
    entries = []
    for before in range(max(types_pb2.TlsRequirement.values()) + 1):
        entry = types_pb2.TimelineEntry(actor=CALLER.get()[:_MOST_ACTOR])
        entry.at.FromNanoseconds(int(now * 1e9))
        entry.tls_set.to, entry.tls_set.reason = to, reason
        setattr(entry.tls_set, "from", before)
        entries.append(entry.SerializeToString())
    return c.octets(entries)


async def _again_after_deadlock(transaction: Callable[[], Awaitable[T]]) -> T:
    """Run a transaction, again where Postgres ended it for a deadlock, of which nothing is left.

    Recipients are locked in the order of their ids, here and by the queue's own batches. What else a transaction writes
    (the due times of sites, events) may still make two of them wait for each other.
    """
    for _ in range(_TRIES - 1):
        with contextlib.suppress(psycopg.errors.DeadlockDetected):
            return await transaction()
    return await transaction()


class RecipientChanges:
    """Changing recipients."""

    def __init__(self, context: AdminContext) -> None:
        self._router, self._notifier = context.router, context.notifier
        self._wake, self._clock = context.wake, context.clock
        self._log = log.get_logger()

    async def hold(self, connection: Connection, wanted: admin_pb2.Filter, reason: str) -> ChangeResult:
        """Put on hold; what is already keeps its reason and time. A leased one is held when its attempt ends."""
        return await self._update(
            connection,
            "hold",
            wanted,
            "UPDATE recipient r SET held_since = now(), hold_reason = %(reason)s, version = r.version + 1 FROM found f WHERE r.id = f.id AND r.held_since IS NULL",
            {"reason": storable(reason[:1000]) or "held by an administrator"},
        )

    async def unhold(self, connection: Connection, wanted: admin_pb2.Filter) -> ChangeResult:
        """Take the hold away; the time on hold counts for no lifetime (design 4, Attempt)."""
        return await self._update(
            connection,
            "unhold",
            wanted,
            "UPDATE recipient r SET uncounted_seconds = r.uncounted_seconds + extract(epoch FROM now() - r.held_since), held_since = NULL, hold_reason = NULL,"
            " version = r.version + 1 FROM found f WHERE r.id = f.id AND r.held_since IS NOT NULL",
            {},
        )

    async def kick(self, connection: Connection, wanted: admin_pb2.Filter) -> ChangeResult:
        """Due now, and its site is tried again at once; a leased one is due again when its attempt ends."""
        return await self._update(
            connection,
            "kick",
            wanted,
            "UPDATE recipient r SET due = CASE WHEN r.token IS NULL THEN now() ELSE r.due END,"
            " due_after_attempt = CASE WHEN r.token IS NULL THEN r.due_after_attempt ELSE now() END, version = r.version + 1 FROM found f WHERE r.id = f.id",
            {},
            end_backoff=True,
        )

    async def schedule(self, connection: Connection, request: admin_pb2.ScheduleRequest) -> ChangeResult:
        """Due at a time, or moved by a duration. With an operation id, each recipient is moved once however often the
        call is repeated. Raises BadRequest."""
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
            raise BadRequest("give a time: at, from_now or from_scheduled")
        # Moved again and again a time leaves what Python can show, and no list could be shown any more.
        furthest: LiteralString = f"now() + {TEN_YEARS} * interval '1 second'"
        moment, later = f"LEAST({moment}, {furthest})", f"LEAST({later}, {furthest})"
        return await self._update(
            connection,
            "schedule",
            request.filter,
            f"UPDATE recipient r SET due = CASE WHEN r.token IS NULL THEN {moment} ELSE r.due END,"
            f" due_after_attempt = CASE WHEN r.token IS NULL THEN r.due_after_attempt ELSE {later} END, version = r.version + 1 FROM found f WHERE r.id = f.id",
            parameters,
            operation=_operation_of(request),
        )

    async def set_tls(
        self, connection: Connection, wanted: admin_pb2.Filter, requirement: int, reason: str = ""
    ) -> ChangeResult:
        """Change what messages demand of TLS: required, no, or default (design 7), from their next attempt on.

        Of each message that has a recipient which the filter finds, all recipients are changed: a sender demands it of
        the message, and a notification about several of them has one requirement. The timeline says what was changed
        (ADM-05). Raises BadRequest.
        """
        if requirement not in types_pb2.TlsRequirement.values():
            raise BadRequest("the TLS requirement is unspecified (default), required or no")
        where = self._for_change(wanted)
        find: LiteralString = f"""SELECT r.id, r.message_id FROM recipient r
            WHERE r.id > %(past)s AND r.id <= %(up_to)s AND r.queued <= %(began)s AND {where.text} ORDER BY r.id LIMIT {BATCH}"""
        to = types_pb2.TlsRequirement.ValueType(requirement)
        why = storable(reason[:1000])
        messages = _WholeMessages()

        async def step(place: Place, up_to: int, _: Notify) -> WalkStep:
            if not messages.groups:
                bounds = {"past": place.past, "up_to": up_to, "began": place.began}
                found = [(row[0], row[1]) for row in await run(connection, find, {**where.parameters, **bounds})]
                new = messages.found(found, place.past)
                sizes = await run(connection, _MESSAGE_SIZES, {"message_id": _uuids(new)}) if new else []
                messages.remember((row[0], row[2]) for row in sizes)
                messages.groups = grouped([(row[0], row[1]) for row in sizes], BATCH)
            if not messages.groups:
                return WalkStep(messages.last, messages.exhausted, [])
            rows = await run(
                connection,
                _SET_TLS,
                {
                    "message_id": _uuids(messages.groups[0]),
                    "past": messages.past,
                    "tls": requirement,
                    "entry": _tls_entries(to, why, self._clock()),
                },
            )
            await timeline.trim(connection, [row[0] for row in rows])
            changed = [Changed(row[0], row[1], row[2]) for row in rows]
            messages.advance([row[0] for row in rows])
            if messages.groups:
                return WalkStep(place.past, False, changed)
            return WalkStep(messages.last, messages.exhausted, changed)

        return await self._walk(connection, "set_tls", wanted, step, None)

    async def set_transport(
        self, connection: Connection, wanted: admin_pb2.Filter, transport: str | None
    ) -> ChangeResult:
        """Override all routes, or (None) let them decide again (reference H28). Raises BadRequest without such a transport."""
        router = self._router()
        if transport is not None and not router.has(transport):
            known = ", ".join(sorted(f"{t.ref.namespace}/{t.ref.name}" for t in router.transports())[:20]) or "none"
            raise BadRequest(f"transport {transport} does not exist; there are: {known}")

        async def bind(found: list[Waiting], _: Notify) -> list[Changed]:
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
            return [Changed(row[0], row[1], row[2]) for row in rows]

        return await self._each(connection, "set_transport", wanted, bind)

    async def fail(self, connection: Connection, wanted: admin_pb2.Filter, reason: str) -> ChangeResult:
        """Final now, with a DSN; where an attempt runs, its end decides: `delivered` wins (ADM-02)."""
        why = storable(reason[:1000])
        return await self._each(
            connection, "fail", wanted, lambda found, notify: self._end(connection, found, EndRequest.FAIL, why, notify)
        )

    async def drop(self, connection: Connection, wanted: admin_pb2.Filter) -> ChangeResult:
        """Final now, without a DSN."""
        return await self._each(
            connection, "drop", wanted, lambda found, notify: self._end(connection, found, EndRequest.DROP, "", notify)
        )

    async def _end(
        self, connection: Connection, found: list[Waiting], request: int, reason: str, notify: Notify
    ) -> list[Changed]:
        free = [row for row in found if row.token is None]
        schedule, now = self._router().schedule, self._clock()
        done = await end_unleased(
            connection, notify, [by_administrator(row, request, reason, schedule, now) for row in free]
        )
        asked = await run(
            connection,
            _REQUEST,
            {
                "id": c.bigints([row.id for row in found if row.token is not None]),
                "request": request,
                "reason": reason or None,
            },
        )
        applied = [Changed(row.id, False, row.shard) for row in free if row.id in done]
        return applied + [Changed(row[0], True, row[1]) for row in asked]

    # --- walking through what a filter finds ---

    async def _update(
        self,
        connection: Connection,
        what: str,
        wanted: admin_pb2.Filter,
        update: LiteralString,
        parameters: dict[str, Any],
        *,
        end_backoff: bool = False,
        operation: Operation | None = None,
    ) -> ChangeResult:
        """Run an UPDATE over `found`, batch by batch; sites that became due earlier are noted for the owners."""
        where = self._for_change(wanted)
        statement: LiteralString = f"""WITH found AS (
            SELECT r.id FROM recipient r WHERE r.id > %(past)s AND r.id <= %(up_to)s AND r.queued <= %(began)s AND {where.text} ORDER BY r.id LIMIT {BATCH} FOR UPDATE
        ), stored AS (
            {update}
            RETURNING r.id, r.token IS NOT NULL AS leased, r.shard, r.site, r.due, r.token IS NULL AND r.held_since IS NULL AS waits
        ), noted AS (
            {fencing.NOTE}
        )
        SELECT f.id, s.leased, s.shard, s.site FROM found f LEFT JOIN stored s ON s.id = f.id ORDER BY f.id"""

        async def step(place: Place, up_to: int, _: Notify) -> WalkStep:
            bounds = {"past": place.past, "up_to": up_to, "began": place.began}
            rows = await run(connection, statement, {**where.parameters, **parameters, **bounds})
            changed = [row for row in rows if row[1] is not None]  # the others were as asked before
            if end_backoff and changed:
                # In the same transaction, or the owner would find the mail due at a site in backoff, and count it.
                sites = {row[3] for row in changed}
                await run(connection, _END_BACKOFF, {"name": c.names(sorted(backoff_names(sites)))})
            return WalkStep.through(
                [row[0] for row in rows], place, [Changed(row[0], row[1], row[2]) for row in changed]
            )

        return await self._walk(connection, what, wanted, step, operation)

    async def _each(
        self,
        connection: Connection,
        what: str,
        wanted: admin_pb2.Filter,
        change: Callable[[list[Waiting], Notify], Awaitable[list[Changed]]],
    ) -> ChangeResult:
        """Hand the recipients, locked, to `change`, some at a time."""
        where = self._for_change(wanted)
        statement: LiteralString = f"""SELECT {waiting_store.WAITING} FROM recipient r WHERE r.id > %(past)s AND r.id <= %(up_to)s AND r.queued <= %(began)s AND {where.text}
            ORDER BY r.id LIMIT {BATCH} FOR UPDATE OF r"""

        async def step(place: Place, up_to: int, notify: Notify) -> WalkStep:
            bounds = {"past": place.past, "up_to": up_to, "began": place.began}
            rows = await run(connection, statement, {**where.parameters, **bounds})
            found = [waiting_store.waiting(row) for row in rows]
            done: list[Changed] = []

            async def work(part: Sequence[Waiting]) -> None:
                async with connection.transaction():  # a savepoint: what fails leaves the others' changes alone
                    done.extend(await change(list(part), notify))

            await faults.by_halves(found, work, lambda row, error: self._leave(connection, row, error))
            return WalkStep.through([row.id for row in found], place, done)

        return await self._walk(connection, what, wanted, step, None)

    async def _walk(
        self,
        connection: Connection,
        what: str,
        wanted: admin_pb2.Filter,
        step: Callable[[Place, int, Notify], Awaitable[WalkStep]],
        operation: Operation | None,
    ) -> ChangeResult:
        """Do `step` for BATCH recipients at most, each time in a transaction, until none are left (ADM-04).

        A filter that finds little reads no more in one statement than a list does (QRY-05): `step` gets the id up to
        which it may look. To recipients or messages that are named an index leads (QRY-04), and nothing else is read.
        Only recipients that were queued when the call began: mail that comes while it runs is not meant, nor are the
        notifications that it makes. Raises PartlyDone if it fails after some were changed.
        """
        result = ChangeResult()
        shards: set[int] = set()
        if operation is not None:
            place = await operation.begin(connection)
        else:
            [(began,)] = await run(connection, "SELECT now()")
            place = Place(began)

        stretch = _HIGHEST if wanted.recipient_ids or wanted.message_ids else 0  # its last id

        async def batch() -> tuple[Place, list[Changed]]:
            nonlocal stretch
            async with self._notifier.transaction(connection) as notify:
                here = await operation.place(connection) if operation is not None else place
                if here.finished:
                    return here, []
                if here.past >= stretch:
                    ends = await run(connection, _STRETCH, {"past": here.past, "skip": ENTRIES - 1})
                    stretch = ends[0][0] if ends else _HIGHEST
                done = await step(here, stretch, notify)
                past = stretch if done.exhausted and stretch < _HIGHEST else done.past
                after = Place(here.began, past, finished=done.exhausted and stretch == _HIGHEST)
                if operation is not None:
                    await operation.advance(connection, after, [one.pending for one in done.changed])
            return after, done.changed

        try:
            while not place.finished:
                place, changed = await _again_after_deadlock(batch)
                result.add((one.id, one.pending) for one in changed)
                shards.update(one.shard for one in changed)
            if operation is not None:
                result.count_all(*await operation.counts(connection))
        except Exception as error:
            if result.count.recipients:
                raise PartlyDone(result) from error
            raise
        finally:
            if shards:
                self._wake(shards)
            self._log.info(
                "an administrator changed recipients",
                change=what,
                by=CALLER.get(),
                filter=MessageToString(wanted, as_one_line=True)[:_FILTER_SHOWN],
                recipients=result.count.recipients,
                pending=result.count.pending,
                finished=place.finished,
            )
        return result

    async def _leave(self, connection: Connection, row: Waiting, error: Exception) -> None:
        """One that cannot be changed is no reason to leave the others: it is on hold, and the reason says why."""
        faults.failed(self._log, "administration", error, recipient=row.id)
        reason = f"the requested change failed: {faults.said(error)}"
        await run(connection, _LEFT, {"id": row.id, "reason": reason})
        metrics.CORRUPT.inc()

    def _for_change(self, wanted: admin_pb2.Filter) -> Where:
        conditions = asked(wanted, SearchPart.QUEUE, self._clock())
        if is_empty(wanted) or (not conditions and len(wanted.ListFields()) == 1 and wanted.where):
            raise BadRequest("an empty filter changes nothing: name recipients, or set `all`")
        return live_where(wanted, conditions)


def _operation_of(request: admin_pb2.ScheduleRequest) -> Operation | None:
    if not request.operation_id:
        return None
    if len(request.operation_id) != 16:
        raise BadRequest("an operation id has 16 octets")
    return Operation(request.operation_id, hashlib.sha256(request.SerializeToString(deterministic=True)).digest())
