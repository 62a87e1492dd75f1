"""What administrators see of the queue and do to it (ADM-01, ADM-02; reference F3).

Every change bumps a row's version, which each lease statement looks at again (ADM-01), so a change and a lease never
both win. A recipient whose attempt runs is not touched under its feet: the change is noted on its row and applies when
the attempt ends, and a call answers `pending` for it (ADM-02). Changes go in batches of their own transactions, however
many recipients a filter finds; a row that changes meanwhile is seen as it is then.
"""

# ruff: noqa: E501, S608 -- statements keep their own lines, and are put together from constants of this module alone

import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, LiteralString
from uuid import UUID

import psycopg

from mailrail.core.delivery.judge import Standing, judge
from mailrail.core.delivery.outcome import Outcome, Verdict
from mailrail.core.delivery.schedule import base_delay, expires_at
from mailrail.core.dsn.due import Asked
from mailrail.core.hold import HoldRule
from mailrail.core.route import Decision, Explanation, explain
from mailrail.core.site import Site, shard
from mailrail.core.smtp.address import AddressError, domain_to_ascii, parse_literal
from mailrail.core.smtp.reply import EnhancedCode
from mailrail.pb.queue.v1 import admin_pb2, types_pb2
from mailrail_queue import columns as c
from mailrail_queue import store
from mailrail_queue.addresses import Addresses
from mailrail_queue.changes import Changes
from mailrail_queue.database import run
from mailrail_queue.dsn import Notifier
from mailrail_queue.finish import facts_of, passenger_of
from mailrail_queue.ports import Notice
from mailrail_queue.reading import attempt_of, envelope_of
from mailrail_queue.routing import Facts, Router, domain_of
from mailrail_queue.store import Connection, Ending, Waiting

BATCH: Final = 500
"""Recipients changed in one transaction."""
PAGE: Final = 50
MOST_PAGE: Final = 1000
EXPLAINED_ATTEMPTS: Final = 200
"""Attempts to come that Explain looks ahead."""
_TEN_YEARS: Final = 316_224_000  # seconds
_FAIL, _DROP = 1, 2
_ADMIN = EnhancedCode(5, 7, 0)
_CANCELLED = "delivery cancelled by an administrator"


class BadRequest(ValueError):
    """The call cannot be understood or must not be done; the text says what to change."""


class NotFound(LookupError):
    """There is no such thing."""


# --- filters ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Where:
    """Conditions on recipients (alias r) or history (alias h), and their parameters."""

    text: LiteralString
    parameters: Mapping[str, Any]


def domain_argument(text: str) -> str:
    """A domain as people type it, as columns hold it. Raises BadRequest."""
    try:
        return parse_literal(text) if text.startswith("[") else domain_to_ascii(text)
    except AddressError as error:
        raise BadRequest(f"{text!r}: {error}") from error


def is_empty(wanted: admin_pb2.Filter) -> bool:
    """Nothing is set."""
    return not wanted.ListFields()


def live_where(wanted: admin_pb2.Filter) -> Where:
    """The recipients in the queue that a filter means: AND of what is set (reference H28). Raises BadRequest."""
    parts: list[LiteralString] = []
    parameters: dict[str, Any] = {}
    _common(wanted, "r", parts, parameters)
    if wanted.HasField("on_hold"):
        parts.append("(r.held IS NOT NULL) = %(on_hold)s")
        parameters["on_hold"] = wanted.on_hold
    if wanted.transport:
        parts.append("r.own_transport = %(transport)s")
        parameters["transport"] = wanted.transport
    if wanted.from_domain:
        parts.append("r.from_domain = %(from_domain)s")
        parameters["from_domain"] = domain_argument(wanted.from_domain)
    if getattr(wanted, "from"):
        parts.append(
            "EXISTS (SELECT FROM message m WHERE m.id = r.message_id AND strpos(lower(m.mail_from), lower(%(from)s)) > 0)"
        )
        parameters["from"] = getattr(wanted, "from")
    if wanted.to_domain:
        parts.append("r.shard = %(to_shard)s")
        parameters["to_shard"] = shard(domain_argument(wanted.to_domain))
    # The due time of a leased recipient has no meaning: a filter by it is about those that wait.
    _times(wanted.due_after, wanted.due_before, wanted, "due", "r.token IS NULL AND r.due", parts, parameters)
    return Where(" AND ".join(parts) or "true", parameters)


def history_where(wanted: admin_pb2.Filter) -> Where:
    """The same for finished ones; `due` is when they finished. Raises BadRequest."""
    parts: list[LiteralString] = []
    parameters: dict[str, Any] = {}
    _common(wanted, "h", parts, parameters)
    if wanted.HasField("on_hold") and wanted.on_hold:
        parts.append("false")
    if wanted.transport:
        raise BadRequest("history keeps no transport set by administrators; see the attempts of a message")
    if getattr(wanted, "from"):
        parts.append("strpos(lower(h.mail_from), lower(%(from)s)) > 0")
        parameters["from"] = getattr(wanted, "from")
    if wanted.from_domain:
        parts.append("right(lower(h.mail_from), length(%(from_domain)s) + 1) = '@' || lower(%(from_domain)s)")
        parameters["from_domain"] = domain_argument(wanted.from_domain)
    _times(wanted.due_after, wanted.due_before, wanted, "due", "h.finished", parts, parameters)
    return Where(" AND ".join(parts) or "true", parameters)


def _common(wanted: admin_pb2.Filter, a: LiteralString, parts: list[LiteralString], parameters: dict[str, Any]) -> None:
    if wanted.recipient_ids:
        if max(wanted.recipient_ids) >= 2**63:
            raise BadRequest(f"there is no recipient {max(wanted.recipient_ids)}")
        parts.append(a + ".id = ANY(%(ids)s)")
        parameters["ids"] = c.bigints(list(wanted.recipient_ids))
    if wanted.message_ids:
        if any(len(i) != 16 for i in wanted.message_ids):
            raise BadRequest("a message id has 16 octets")
        parts.append(a + ".message_id = ANY(%(message_ids)s)")
        parameters["message_ids"] = c.uuids(list(wanted.message_ids))
    if wanted.account:
        parts.append(a + ".account = %(account)s")
        parameters["account"] = wanted.account
    if wanted.to:
        parts.append("strpos(lower(" + a + ".address), lower(%(to)s)) > 0")
        parameters["to"] = wanted.to
    if wanted.to_domain:
        parts.append("right(lower(" + a + ".address), length(%(to_domain)s) + 1) = '@' || lower(%(to_domain)s)")
        parameters["to_domain"] = domain_argument(wanted.to_domain)
    if wanted.HasField("submitted_only"):
        operator: LiteralString = " = " if wanted.submitted_only else " <> "
        parts.append(a + ".origin" + operator + "%(submission)s")
        parameters["submission"] = types_pb2.ORIGIN_SUBMISSION
    _times(wanted.queued_after, wanted.queued_before, wanted, "queued", a + ".queued", parts, parameters)


def instant(moment: Any) -> datetime:
    """A Timestamp as a time with its zone. Raises BadRequest for one that is no time."""
    try:
        found: datetime = moment.ToDatetime(UTC)
    except (ValueError, OverflowError) as error:
        raise BadRequest(f"not a time: {error}") from error
    return found


def seconds(length: Any) -> float:
    """A Duration in seconds, of ten years at most either way. Raises BadRequest."""
    if abs(length.seconds) > _TEN_YEARS:
        raise BadRequest("a move by more than ten years is not meant")
    return float(length.seconds + length.nanos / 1e9)


def _times(
    after: Any,
    before: Any,
    wanted: admin_pb2.Filter,
    name: LiteralString,
    column: LiteralString,
    parts: list[LiteralString],
    parameters: dict[str, Any],
) -> None:
    for bound, moment, operator in (("after", after, " > "), ("before", before, " < ")):
        key = f"{name}_{bound}"
        if wanted.HasField(key):  # type: ignore[arg-type]
            bound_name: LiteralString = "after" if bound == "after" else "before"
            comparison: LiteralString = " > " if operator == " > " else " < "
            parts.append(column + comparison + "%(" + name + "_" + bound_name + ")s")
            parameters[key] = instant(moment)  # compared by instant (reference H17)


# --- rows ---------------------------------------------------------------------------------------------------------------

_LIVE: Final[
    LiteralString
] = """r.id, r.message_id, r.address, m.mail_from, r.attempts, r.queued, r.due, r.last_attempt, r.held, r.hold_reason,
    r.account, r.own_transport, r.tls, r.site, r.last, m.envelope, m.size, r.origin, r.version, r.paused, r.token IS NOT NULL, r.local,
    r.gateway, r.from_domain, r.lease_until"""
_HISTORY: Final[
    LiteralString
] = """h.finished, h.id, h.message_id, h.state, h.outcome, h.attempts, h.tls, h.origin, h.queued, h.size, h.address,
    h.mail_from, h.account, h.site, h.envelope, h.last, h.timeline"""


def _stamp(field_of: Any, moment: datetime | None) -> None:
    if moment is not None:
        field_of.FromDatetime(moment)


def _account_pb(name: str) -> types_pb2.ObjectRef:
    namespace, _, rest = name.partition("/")
    return types_pb2.ObjectRef(kind="MailAccount", namespace=namespace, name=rest)


class Administration:
    """The queue as administrators use it. One instance a process; `use` gives connections with `queue` as schema."""

    def __init__(
        self,
        router: Callable[[], Router],
        addresses: Callable[[], Addresses],
        notifier: Notifier,
        *,
        changed: Callable[[set[int]], None] = lambda shards: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`changed` is told the shards whose recipients changed, to wake their owners (ADM-02)."""
        self._router = router
        self._addresses = addresses
        self._notifier = notifier
        self._changed = changed
        self._clock = clock

    # --- looking ---

    def _live(self, row: Sequence[Any]) -> admin_pb2.Recipient:
        (identity, message_id, address, mail_from, attempts, queued, due, last_attempt, held, hold_reason, account, own, tls, site, last,
         raw, size, origin, version, paused, leased, local, gateway, from_domain, _) = row  # fmt: skip
        found = admin_pb2.Recipient(
            id=identity,
            message_id=message_id.bytes,
            address=address,
            mail_from=mail_from or "",
            state=types_pb2.RECIPIENT_STATE_LEASED if leased else types_pb2.RECIPIENT_STATE_QUEUED,
            attempts=attempts,
            on_hold=held is not None,
            hold_reason=hold_reason or "",
            tls_requirement=tls,
            site=site,
            size=size or 0,
            origin=origin,
            version=version,
        )
        found.queued.FromDatetime(queued)
        if not leased:
            found.next_attempt.FromDatetime(due)
        _stamp(found.last_attempt, last_attempt)
        if last is not None:
            found.last.CopyFrom(attempt_of(last))
            found.outcome = found.last.outcome
        if account:
            found.account.CopyFrom(_account_pb(account))
        if own:
            namespace, _, name = own.partition("/")
            found.own_transport.CopyFrom(types_pb2.ObjectRef(kind="MailTransport", namespace=namespace, name=name))
        facts = Facts(domain_of(address), from_domain, account, origin != types_pb2.ORIGIN_MX, local, gateway, own)
        on_hold = self._clock() - held.timestamp() if held is not None else 0.0
        expires = expires_at(
            self._router().schedule(facts),
            accepted=queued.timestamp(),
            paused=paused + max(0.0, on_hold),
            null_sender=from_domain == "",
        )
        found.expires.FromNanoseconds(int(expires * 1e9))
        _described(found, raw)
        return found

    def _finished(self, row: Sequence[Any]) -> admin_pb2.Recipient:
        (finished, identity, message_id, state, outcome, attempts, tls, origin, queued, size, address, mail_from, account, site, raw, last,
         _) = row  # fmt: skip
        found = admin_pb2.Recipient(
            id=identity,
            message_id=message_id.bytes,
            address=address,
            mail_from=mail_from,
            state=state,
            outcome=outcome,
            attempts=attempts,
            tls_requirement=tls,
            site=site,
            size=size,
            origin=origin,
        )
        found.queued.FromDatetime(queued)
        found.finished.FromDatetime(finished)
        if account:
            found.account.CopyFrom(_account_pb(account))
        if last is not None:
            found.last.CopyFrom(attempt_of(last))
            _copy_time(found.last, found)
        _described(found, raw)
        return found

    async def recipients(
        self, connection: Connection, wanted: admin_pb2.Filter, size: int, token: str
    ) -> tuple[list[admin_pb2.Recipient], str]:
        """A page of recipients in the queue: those with an attempt under way, then the others, oldest due first."""
        where = live_where(wanted)
        size = page_size(size)
        phase, moment, last = page_token(token, "L")
        found: list[admin_pb2.Recipient] = []
        next_token = ""
        for name in ("L", "W") if phase == "L" else ("W",):
            # Two walks, each along its own index: recipient_lease, then recipient_listed.
            column: LiteralString = "r.lease_until" if name == "L" else "r.due"
            state: LiteralString = "r.token IS NOT NULL" if name == "L" else "r.token IS NULL"
            at, after = (moment, last) if name == phase else (_BEGINNING, 0)
            rows = await run(
                connection,
                f"SELECT {_LIVE} FROM recipient r LEFT JOIN message m ON m.id = r.message_id WHERE {state} AND ({column}, r.id) > (%(at)s, %(after)s)"
                f" AND {where.text} ORDER BY {column}, r.id LIMIT %(count)s",
                {**where.parameters, "at": at, "after": after, "count": size + 1 - len(found)},
            )
            for row in rows:
                if len(found) == size:
                    return found, next_token
                found.append(self._live(row))
                next_token = make_token(name, row[24] if name == "L" else row[6], row[0])
        return found, ""

    async def history(
        self, connection: Connection, wanted: admin_pb2.Filter, size: int, token: str
    ) -> tuple[list[admin_pb2.Recipient], str]:
        """A page of finished recipients, newest first (FIN-03)."""
        where = history_where(wanted)
        size = page_size(size)
        _, moment, last = page_token(token, "H", end=True)
        rows = await run(
            connection,
            f"SELECT {_HISTORY} FROM history h WHERE (h.finished, h.id) < (%(at)s, %(after)s) AND {where.text}"
            " ORDER BY h.finished DESC, h.id DESC LIMIT %(count)s",
            {**where.parameters, "at": moment, "after": last, "count": size + 1},
        )
        found = [self._finished(row) for row in rows[:size]]
        return found, make_token("H", rows[size - 1][0], rows[size - 1][1]) if len(rows) > size else ""

    async def message(self, connection: Connection, message_id: bytes) -> admin_pb2.GetMessageResponse:
        """A message whole: envelope, recipients live and finished, every attempt. Raises NotFound, BadRequest."""
        if len(message_id) != 16:
            raise BadRequest("a message id has 16 octets")
        identity = UUID(bytes=message_id)
        live = await run(
            connection,
            f"SELECT {_LIVE} FROM recipient r LEFT JOIN message m ON m.id = r.message_id WHERE r.message_id = %(id)s ORDER BY r.id LIMIT 10000",
            {"id": identity},
        )
        attempts: dict[int, list[bytes]] = {}
        for recipient_id, data in await run(
            connection,
            "SELECT recipient_id, data FROM attempt WHERE recipient_id = ANY(%(id)s) ORDER BY recipient_id, id",
            {"id": c.bigints([row[0] for row in live])},
        ):
            attempts.setdefault(recipient_id, []).append(data)
        done = await run(
            connection,
            f"SELECT {_HISTORY} FROM history h WHERE h.message_id = %(id)s ORDER BY h.id LIMIT 10000",
            {"id": identity},
        )
        if not live and not done:
            raise NotFound(f"no message {identity}")
        raw, size = (live[0][15], live[0][16]) if live else (done[0][14], done[0][9])
        answer = admin_pb2.GetMessageResponse(size=size or 0)
        answer.envelope.CopyFrom(envelope_of(raw))
        for row in live:
            answer.recipients.append(_timeline(self._live(row), attempts.get(row[0], [])))
        for row in done:
            last = [row[15]] if row[15] is not None else []
            answer.recipients.append(_timeline(self._finished(row), [*(row[16] or []), *last]))
        return answer

    async def stats(self, connection: Connection) -> admin_pb2.GetStatsResponse:
        """Counts for an overview. Counting takes a pass over the queue; past 5 s the planner's estimate stands in."""
        answer = admin_pb2.GetStatsResponse()
        try:
            async with connection.transaction():
                await connection.execute("SET LOCAL statement_timeout = '5s'")
                await connection.execute("SET LOCAL enable_seqscan = on")
                rows = await run(connection, _STATS)
        except psycopg.errors.QueryCanceled:
            rows = await run(connection, _ESTIMATES)
        queued, due, leased, held, oldest, messages, octets = rows[0]
        answer.queued, answer.due, answer.leased, answer.on_hold = queued, due, leased, held
        answer.messages, answer.bytes = messages, octets
        _stamp(answer.oldest, oldest)
        return answer

    async def sites(self, connection: Connection, size: int, token: str) -> tuple[list[admin_pb2.Site], str]:
        """A page of sites that have mail or trouble, by name (SHD-03)."""
        size = page_size(size)
        rows = await run(connection, _SITES, {"after": token, "count": size + 1})
        found = []
        for name, queued, leased, next_due, paused, error in rows[:size]:
            site = admin_pb2.Site(name=name, queued=queued, in_flight=leased)
            _stamp(site.next_due, next_due)
            _stamp(site.paused_until, paused)
            if error is not None:
                attempt = attempt_of(error)
                site.last_error = " ".join(attempt.reply.lines)[:500]
            found.append(site)
        return found, rows[size - 1][0] if len(rows) > size else ""

    # --- changing ---

    async def hold(self, connection: Connection, wanted: admin_pb2.Filter, reason: str) -> Changes:
        """Put on hold; what is already keeps its reason and time. A leased one is held when its attempt ends."""
        return await self._change(
            connection,
            wanted,
            "UPDATE recipient r SET held = now(), hold_reason = %(reason)s, version = r.version + 1 FROM found f WHERE r.id = f.id AND r.held IS NULL",
            {"reason": reason[:1000] or "held by an administrator"},
        )

    async def unhold(self, connection: Connection, wanted: admin_pb2.Filter) -> Changes:
        """Take the hold away; the time on hold counts for no lifetime (design 4, Attempt)."""
        return await self._change(
            connection,
            wanted,
            "UPDATE recipient r SET paused = r.paused + extract(epoch FROM now() - r.held), held = NULL, hold_reason = NULL,"
            " version = r.version + 1 FROM found f WHERE r.id = f.id AND r.held IS NOT NULL",
            {},
        )

    async def kick(self, connection: Connection, wanted: admin_pb2.Filter) -> Changes:
        """Due now, and its site is tried again at once; a leased one is due again when its attempt ends."""
        return await self._change(
            connection,
            wanted,
            "UPDATE recipient r SET due = CASE WHEN r.token IS NULL THEN now() ELSE r.due END,"
            " after_due = CASE WHEN r.token IS NULL THEN r.after_due ELSE now() END, version = r.version + 1 FROM found f WHERE r.id = f.id",
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
            later = "coalesce(r.after_due, now()) + %(seconds)s * interval '1 second'"
            parameters = {"seconds": seconds(request.from_scheduled)}
        else:
            raise BadRequest("say when: at, from_now or from_scheduled")
        # Moved again and again a time leaves what Python can show, and no list could be shown any more.
        furthest: LiteralString = f"now() + {_TEN_YEARS} * interval '1 second'"
        moment, later = f"LEAST({moment}, {furthest})", f"LEAST({later}, {furthest})"
        return await self._change(
            connection,
            request.filter,
            f"UPDATE recipient r SET due = CASE WHEN r.token IS NULL THEN {moment} ELSE r.due END,"
            f" after_due = CASE WHEN r.token IS NULL THEN r.after_due ELSE {later} END, version = r.version + 1 FROM found f WHERE r.id = f.id",
            parameters,
        )

    async def set_tls(self, connection: Connection, wanted: admin_pb2.Filter, requirement: int) -> Changes:
        """Change what a recipient demands of TLS: required, no, or default (design 7). Raises BadRequest."""
        if requirement not in types_pb2.TlsRequirement.values():
            raise BadRequest("the TLS requirement is unspecified (default), required or no")
        return await self._change(
            connection,
            wanted,
            "UPDATE recipient r SET tls = %(tls)s, version = r.version + 1 FROM found f WHERE r.id = f.id",
            {"tls": requirement},
        )

    async def set_transport(self, connection: Connection, wanted: admin_pb2.Filter, transport: str | None) -> Changes:
        """Override all routes, or (None) let them decide again. Raises BadRequest when there is no such transport (H28)."""
        router = self._router()
        if transport is not None and not router.has(transport):
            known = ", ".join(sorted(f"{t.ref.namespace}/{t.ref.name}" for t in router.transports())[:20]) or "none"
            raise BadRequest(f"no transport {transport}; there are: {known}")

        async def batch(found: list[Waiting]) -> list[tuple[int, bool, int]]:
            sites = []
            for row in found:
                row.own_transport = transport
                sites.append(router.plan(facts_of(row), row.attempts).key)
            rows = await run(
                connection,
                _SET_TRANSPORT,
                {
                    "id": c.bigints([row.id for row in found]),
                    "site": c.texts(sites),
                    "transport": transport,
                },
            )
            return [(row[0], row[1], row[2]) for row in rows]

        return await self._each(connection, wanted, batch)

    async def fail(self, connection: Connection, wanted: admin_pb2.Filter, reason: str) -> Changes:
        """Final now, with a DSN; where an attempt runs, its end decides: `delivered` wins (ADM-02)."""
        return await self._each(connection, wanted, lambda found: self._end(connection, found, _FAIL, reason[:1000]))

    async def drop(self, connection: Connection, wanted: admin_pb2.Filter) -> Changes:
        """Final now, and nobody is told."""
        return await self._each(connection, wanted, lambda found: self._end(connection, found, _DROP, ""))

    async def _end(
        self, connection: Connection, found: list[Waiting], request: int, reason: str
    ) -> list[tuple[int, bool, int]]:
        free = [row for row in found if row.token is None]
        now = self._clock()
        endings: list[Ending] = []
        notices: dict[int, Notice] = {}
        for row in free:
            attempt = types_pb2.Attempt(number=row.attempts, reason=reason or _CANCELLED)
            attempt.started.FromNanoseconds(int(now * 1e9))
            attempt.ended.FromNanoseconds(int(now * 1e9))
            if request == _DROP:
                attempt.outcome = types_pb2.OUTCOME_CANCELLED
            else:
                attempt.outcome = types_pb2.OUTCOME_FAILED
                attempt.reply.code, attempt.reply.enhanced = 554, str(_ADMIN)
                attempt.reply.lines.append(reason or _CANCELLED)
                passenger = passenger_of(row)
                verdict = Verdict(Outcome.FAILED, _ADMIN, reason)
                standing = Standing(
                    accepted=passenger.accepted,
                    attempts=passenger.attempts,
                    null_sender=passenger.null_sender,
                    vouched=passenger.vouched,
                    notify=Asked(passenger.notify),
                )
                schedule = self._router().schedule(passenger.facts)
                judgement = judge(verdict, standing, schedule, now=now, jitter=0.0)
                notices[row.id] = Notice(passenger, judgement, attempt)
            state = store.CANCELLED if request == _DROP else store.FAILED
            endings.append(Ending(row.id, 0, row.version, state, attempt.outcome, attempt.SerializeToString()))
        done = await store.finish(connection, endings) if endings else set()
        told = [n for i, n in notices.items() if i in done]
        if told:
            await self._notifier.notify(connection, told)
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
            RETURNING r.id, r.token IS NOT NULL AS leased, r.shard, r.site, r.due, r.token IS NULL AND r.held IS NULL AS waits
        ), noted AS (
            {store._NOTE}
        )
        SELECT f.id, s.leased, s.shard, s.site FROM found f LEFT JOIN stored s ON s.id = f.id ORDER BY f.id"""
        changes = Changes()
        shards: set[int] = set()
        past = 0
        while True:
            # With the end of its site's rest, or the owner would find the mail due at a site that rests, and count it.
            async with connection.transaction():
                rows = await run(connection, statement, {**where.parameters, **parameters, "past": past})
                changed = [row for row in rows if row[1] is not None]  # the others are as it was asked already
                if wake_sites and changed:
                    sites = {row[3] for row in changed}
                    await run(connection, _WAKE_SITES, {"name": c.texts(sorted(_resting_as(sites)))})
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
        batch: Callable[[list[Waiting]], Awaitable[list[tuple[int, bool, int]]]],
    ) -> Changes:
        """Hand the recipients, locked, to `batch` inside a transaction, some at a time."""
        where = self._for_change(wanted)
        statement: LiteralString = f"""SELECT {store._WAITING} FROM recipient r WHERE r.id > %(past)s AND r.queued <= %(began)s AND {where.text}
            ORDER BY r.id LIMIT {BATCH} FOR UPDATE OF r"""
        changes = Changes()
        shards: set[int] = set()
        past = 0
        # Notifications that a batch makes are none of what was meant: failed as well, they would tell nobody.
        [(began,)] = await run(connection, "SELECT now()")
        while True:
            async with connection.transaction():
                rows = await run(connection, statement, {**where.parameters, "past": past, "began": began})
                found = [store._waiting(row) for row in rows]
                done = await batch(found) if found else []
            self._notifier.stored()
            changes.add((i, pending) for i, pending, _ in done)
            shards |= {number for _, _, number in done}
            if len(rows) < BATCH:
                break
            past = found[-1].id
        if shards:
            self._changed(shards)
        return changes

    @staticmethod
    def _for_change(wanted: admin_pb2.Filter) -> Where:
        if is_empty(wanted):
            raise BadRequest("an empty filter changes nothing: name recipients, or set `all` to mean every one")
        return live_where(wanted)

    # --- hold rules ---

    async def create_hold_rule(
        self, connection: Connection, rule: admin_pb2.HoldRule
    ) -> tuple[admin_pb2.HoldRule, int]:
        """Hold what matches from now on, and what is queued already (H27). Returns the rule and how many were held."""
        account = rule.account or None
        from_domain = domain_argument(rule.from_domain) if rule.from_domain else None
        to_domain = domain_argument(rule.to_domain) if rule.to_domain else None
        async with connection.transaction():
            rows = await run(
                connection,
                "INSERT INTO hold_rule (account, from_domain, to_domain, comment) VALUES (%(account)s, %(from)s, %(to)s, %(comment)s)"
                " RETURNING id, created",
                {"account": account, "from": from_domain, "to": to_domain, "comment": rule.comment[:500]},
            )
            await run(connection, "UPDATE hold_version SET version = version + 1")
        identity, created = rows[0]
        # Committed first, so that mail stored from here on sees the rule; what came before is held now.
        made = HoldRule(identity, account, from_domain, to_domain, rule.comment[:500])
        wanted = admin_pb2.Filter(account=rule.account, from_domain=rule.from_domain, to_domain=rule.to_domain)
        wanted.all = True
        held = await self.hold(connection, wanted, made.reason)
        answer = _rule_pb((identity, account, from_domain, to_domain, created, rule.comment[:500]))
        return answer, held.count.recipients

    async def hold_rules(self, connection: Connection) -> list[admin_pb2.HoldRule]:
        """All rules, oldest first."""
        rows = await run(
            connection, "SELECT id, account, from_domain, to_domain, created, comment FROM hold_rule ORDER BY id"
        )
        return [_rule_pb(row) for row in rows]

    async def delete_hold_rule(self, connection: Connection, identity: int) -> None:
        """Remove a rule; what it holds stays on hold. Raises NotFound."""
        async with connection.transaction():
            rows = await run(connection, "DELETE FROM hold_rule WHERE id = %(id)s RETURNING id", {"id": identity})
            if not rows:
                raise NotFound(f"no hold rule {identity}")
            await run(connection, "UPDATE hold_version SET version = version + 1")

    # --- explain ---

    async def explain(self, connection: Connection, request: admin_pb2.ExplainRequest) -> admin_pb2.ExplainResponse:
        """Where would this go at attempt n, and why (promise 3). Raises NotFound, BadRequest."""
        subject = await self._subject(connection, request)
        router = self._router()
        attempt = request.attempt if request.HasField("attempt") else subject.next_attempt
        if not 1 <= attempt <= 100_000:
            raise BadRequest("attempts are numbered from 1")
        envelope = router.envelope(subject.facts)
        told = explain(router.table, envelope, attempt - 1)
        site = told.decision.site(subject.facts.domain)
        answer = admin_pb2.ExplainResponse(
            attempt=attempt,
            decision=subject.unknown or decision_pb(told.decision),
            config_revision=router.number,
            site=site.key,
            shard=shard(subject.facts.domain),
        )
        for note in subject.notes:
            answer.tried.add(level="recipient", matched=False, reason=note)
        if subject.unknown is None:
            _add_tried(answer, told)
            self._plan(answer, subject, attempt)
        await self._add_pause(connection, answer, site)
        return answer

    async def _subject(self, connection: Connection, request: admin_pb2.ExplainRequest) -> "_Subject":
        if request.HasField("recipient_id"):
            known = request.recipient_id < 2**63
            rows = await store.live(connection, [request.recipient_id]) if known else []
            if not rows:
                raise NotFound(f"recipient {request.recipient_id} is not in the queue")
            row = rows[0]
            due = await run(connection, "SELECT due, token IS NULL FROM recipient WHERE id = %(id)s", {"id": row.id})
            return _Subject(
                facts_of(row),
                row.attempts + 1,
                accepted=row.queued,
                paused=row.paused,
                due=due[0][0].timestamp() if due and due[0][1] else self._clock(),
            )
        if not request.to:
            raise BadRequest("say which: a recipient in the queue, or the address `to` of an imagined one")
        addresses = self._addresses()
        sender, account = getattr(request, "from"), None
        if request.account:
            found = addresses.account(request.account)
            if found is None:
                raise BadRequest(f"no account {request.account}")
            account = f"{found.ref.namespace}/{found.ref.name}"
        to = self._address(request.to)
        resolved = addresses.resolve(to)
        first = resolved[0]
        notes = []
        if [r.address for r in resolved] != [to]:
            notes.append(f"{to} stands for {', '.join(r.address for r in resolved[:20])}; this is {first.address}")
        gateway = first.domain.gateway if first.domain is not None else None
        facts = Facts(
            domain_of(first.address),
            domain_of(self._address(sender)) if sender else "",
            account,
            account is not None,
            first.domain is not None,
            f"{gateway.namespace}/{gateway.name}" if gateway is not None else None,
        )
        unknown = None
        if first.domain is not None and first.domain.delivery.value == "mailbox" and first.account is None:
            unknown = admin_pb2.Decision(
                kind=admin_pb2.Decision.KIND_UNKNOWN_RECIPIENT,
                level="domain delivery",
                reason=f"{first.domain.ref} has no account, alias or catch-all for {first.address}: refused 550 5.1.1",
            )
        now = self._clock()
        return _Subject(facts, 1, accepted=now, paused=0.0, due=now, notes=notes, unknown=unknown)

    @staticmethod
    def _address(text: str) -> str:
        local, at, domain = text.rpartition("@")
        if not at or not local:
            raise BadRequest(f"{text!r} is no address: local@domain")
        return f"{local}@{domain_argument(domain)}"

    def _plan(self, answer: admin_pb2.ExplainResponse, subject: "_Subject", attempt: int) -> None:
        """The attempts to come, in runs of equal decision; the schedule without jitter."""
        router = self._router()
        schedule = router.schedule(subject.facts)
        expires = expires_at(
            schedule, accepted=subject.accepted, paused=subject.paused, null_sender=not subject.facts.from_domain
        )
        due, before = subject.due, None
        for number in range(attempt, attempt + EXPLAINED_ATTEMPTS):
            decision = router.table.evaluate(router.envelope(subject.facts), number - 1)
            if decision != before:
                planned = answer.planned.add(attempt=number, decision=decision_pb(decision))
                planned.due.FromNanoseconds(int(due * 1e9))
                before = decision
            planned.last_attempt = number
            planned.last_due.FromNanoseconds(int(due * 1e9))
            if due >= expires or (schedule.max_attempts is not None and number >= schedule.max_attempts):
                return
            due += base_delay(schedule, number)

    async def _add_pause(self, connection: Connection, answer: admin_pb2.ExplainResponse, site: Site) -> None:
        rows = await run(
            connection,
            "SELECT max(paused_until) FROM site WHERE name = ANY(%(name)s) AND paused_until > now()",
            {"name": c.texts(sorted(_resting_as({site.key})))},
        )
        if rows[0][0] is not None:
            answer.site_paused_until.FromDatetime(rows[0][0])


@dataclass(frozen=True, slots=True)
class _Subject:
    """What Explain is asked about. Times are Unix seconds."""

    facts: Facts
    next_attempt: int
    accepted: float
    paused: float
    due: float
    notes: list[str] = field(default_factory=list)
    unknown: admin_pb2.Decision | None = None


_KINDS = {
    "transport": admin_pb2.Decision.KIND_TRANSPORT,
    "direct": admin_pb2.Decision.KIND_DIRECT,
    "mailbox": admin_pb2.Decision.KIND_MAILBOX,
    "missing": admin_pb2.Decision.KIND_DEFERRED,
}
_LEVELS = {"delivery": "domain delivery"}


def decision_pb(decision: Decision) -> admin_pb2.Decision:
    """A decision as the agreements write it."""
    found = admin_pb2.Decision(
        kind=_KINDS[decision.via.value],
        level=_LEVELS.get(decision.level.value, decision.level.value),
        reason=decision.reason,
    )
    ref = decision.transport.ref if decision.transport is not None else decision.missing
    if ref is not None:
        found.transport.CopyFrom(types_pb2.ObjectRef(kind=ref.kind, namespace=ref.namespace, name=ref.name))
    if decision.rule is not None:
        route = decision.rule.route
        found.route.CopyFrom(types_pb2.ObjectRef(kind=route.kind, namespace=route.namespace, name=route.name))
        found.rule_index, found.rule = decision.rule.index, decision.rule.name
    return found


def _add_tried(answer: admin_pb2.ExplainResponse, told: Explanation) -> None:
    for step in told.tried:
        tried = answer.tried.add(
            level=_LEVELS.get(step.level.value, step.level.value), matched=step.matched, reason=step.reason
        )
        if step.rule is not None:
            route = step.rule.route
            tried.route.CopyFrom(types_pb2.ObjectRef(kind=route.kind, namespace=route.namespace, name=route.name))
            tried.rule_index, tried.rule = step.rule.index, step.rule.name
    if told.unlisted:
        answer.tried.add(level="", matched=False, reason=f"and {told.unlisted} more rules that do not match")


# --- pages --------------------------------------------------------------------------------------------------------------

_BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)
_END = datetime(9999, 1, 1, tzinfo=UTC)


def page_size(asked: int) -> int:
    """Rows of a page: 50 unless said otherwise, 1000 at most."""
    return min(asked or PAGE, MOST_PAGE)


def make_token(phase: str, moment: datetime, identity: int) -> str:
    """Where a page ended: opaque to callers."""
    return f"{phase}:{moment.isoformat()}:{identity}"


def page_token(token: str, first: str, *, end: bool = False) -> tuple[str, datetime, int]:
    """Read a token; the beginning (or end) of everything when there is none. Raises BadRequest."""
    if not token:
        return (first, _END, 2**62) if end else (first, _BEGINNING, 0)
    phase, _, rest = token.partition(":")
    moment, _, identity = rest.rpartition(":")
    try:
        parsed = datetime.fromisoformat(moment)
        number = int(identity)
    except ValueError:
        raise BadRequest("the page token is not one of ours") from None
    if phase not in ("L", "W", "H") or parsed.tzinfo is None or not 0 <= number < 2**63:
        raise BadRequest("the page token is not one of ours")
    return phase, parsed, number


# --- statements -----------------------------------------------------------------------------------------------------------

_STATS: Final[
    LiteralString
] = """SELECT count(*), count(*) FILTER (WHERE token IS NULL AND held IS NULL AND due <= now()),
    count(*) FILTER (WHERE token IS NOT NULL), count(*) FILTER (WHERE held IS NOT NULL), min(queued),
    (SELECT count(*) FROM message WHERE NOT barred), (SELECT coalesce(sum(size), 0)::bigint FROM message WHERE NOT barred)
    FROM recipient"""
_ESTIMATES: Final[
    LiteralString
] = """SELECT (SELECT greatest(reltuples, 0)::bigint FROM pg_class WHERE oid = 'recipient'::regclass), 0::bigint,
    (SELECT count(*) FROM recipient WHERE token IS NOT NULL), 0::bigint, NULL::timestamptz,
    (SELECT greatest(reltuples, 0)::bigint FROM pg_class WHERE oid = 'message'::regclass), 0::bigint"""
# A page of sites by name, then what each has: waiting ones by recipient_due, counted up to a bound; leased ones by recipient_lease.
_SITES: Final[LiteralString] = """WITH named AS (
        SELECT n.name FROM (SELECT site AS name FROM site_due UNION SELECT name FROM site WHERE failures > 0
                            UNION SELECT site FROM recipient WHERE token IS NOT NULL) n
        WHERE n.name > %(after)s ORDER BY n.name LIMIT %(count)s
    ), leased AS (
        SELECT site, count(*) AS n FROM recipient WHERE token IS NOT NULL GROUP BY site
    )
    SELECT n.name,
           coalesce((SELECT sum(q.n) FROM site_due d CROSS JOIN LATERAL (
                SELECT count(*) AS n FROM (SELECT 1 FROM recipient r WHERE r.shard = d.shard AND r.site = d.site AND r.token IS NULL
                                           AND r.held IS NULL LIMIT 100000) b) q WHERE d.site = n.name), 0)::bigint + coalesce(l.n, 0),
           coalesce(l.n, 0)::bigint, (SELECT min(d.next_due) FROM site_due d WHERE d.site = n.name),
           CASE WHEN s.paused_until > now() THEN s.paused_until END, CASE WHEN s.failures > 0 THEN s.last_error END
    FROM named n LEFT JOIN leased l ON l.site = n.name LEFT JOIN site s ON s.name = n.name ORDER BY n.name"""
# A kicked recipient's site rests no more; owners learn it from `changed`.
_WAKE_SITES: Final[LiteralString] = """UPDATE site SET paused_until = now(), changed = clock_timestamp()
    WHERE name = ANY(%(name)s) AND paused_until > now()"""
_SET_TRANSPORT: Final[LiteralString] = f"""WITH stored AS (
        UPDATE recipient r SET own_transport = %(transport)s, version = r.version + 1, site = CASE WHEN r.token IS NULL THEN x.site ELSE r.site END
        FROM unnest(%(id)s, %(site)s) AS x (id, site) WHERE r.id = x.id
        RETURNING r.id, r.token IS NOT NULL AS leased, r.shard, r.site, r.due, r.token IS NULL AND r.held IS NULL AS waits
    ), noted AS (
        {store._NOTE}
    )
    SELECT id, leased, shard FROM stored"""
_REQUEST: Final[
    LiteralString
] = """UPDATE recipient r SET request = %(request)s, request_reason = %(reason)s, version = r.version + 1
    WHERE r.id = ANY(%(id)s) AND r.token IS NOT NULL RETURNING r.id, r.shard"""


def _resting_as(sites: set[str]) -> set[str]:
    """Names under which these sites may rest: a proxy rests as a whole under the name of its transport."""
    return sites | {f"transport:{name.split(':')[1]}" for name in sites if name.startswith("proxy:")}


def _described(found: admin_pb2.Recipient, envelope: bytes | None) -> None:
    if envelope:
        known = envelope_of(envelope)
        found.subject, found.header_message_id = known.subject, known.message_id


def _copy_time(attempt: types_pb2.Attempt, found: admin_pb2.Recipient) -> None:
    if attempt.HasField("started"):
        found.last_attempt.CopyFrom(attempt.started)


def _timeline(recipient: admin_pb2.Recipient, attempts: Iterable[bytes]) -> admin_pb2.RecipientTimeline:
    found = admin_pb2.RecipientTimeline(recipient=recipient)
    for data in attempts:
        if data:
            found.attempts.append(attempt_of(data))
    return found


def _rule_pb(row: Sequence[Any]) -> admin_pb2.HoldRule:
    identity, account, from_domain, to_domain, created, comment = row
    rule = admin_pb2.HoldRule(
        id=identity,
        account=account or "",
        from_domain=from_domain or "",
        to_domain=to_domain or "",
        comment=comment,
    )
    _stamp(rule.created, created)
    return rule
