"""What administrators see of the queue: recipients, history, messages, sites, counts (reference F3; FIN-03)."""

# ruff: noqa: E501, S608 -- statements keep their own lines, and are put together from constants of our own alone

from collections.abc import Iterable, Sequence
from typing import Any, Final, LiteralString

import psycopg

from mailrail.core.delivery.schedule import expires_at
from mailrail.pb.queue.v1 import admin_pb2, types_pb2
from mailrail_queue.admin.base import AdminContext, stamp
from mailrail_queue.admin.filters import (
    BEGINNING,
    NotFound,
    PageTokens,
    chosen,
    history_where,
    live_where,
    make_place,
    message_id_argument,
    page_size,
    read_place,
)
from mailrail_queue.delivery.verdicts import as_said
from mailrail_queue.routing.router import RecipientFacts, account_pb, domain_of, named_pb
from mailrail_queue.store import columns as c
from mailrail_queue.store.connection import Connection, run
from mailrail_queue.store.rows import attempt_of, envelope_of

_LIVE: Final[
    LiteralString
] = """r.id, r.message_id, r.address, m.mail_from, r.attempts, r.queued, r.due, r.last_attempt_started, r.held_since, r.hold_reason,
    r.account, r.override_transport, r.tls_requirement, r.site, r.last_attempt, m.envelope, m.size, r.origin, r.version, r.uncounted_seconds, r.token IS NOT NULL, r.is_local,
    r.gateway, r.from_domain, r.lease_until"""
_HISTORY: Final[
    LiteralString
] = """h.finished, h.id, h.message_id, h.state, h.outcome, h.attempts, h.tls_requirement, h.origin, h.queued, h.size, h.address,
    h.mail_from, h.account, h.site, h.envelope, h.last_attempt, h.earlier_attempts"""


MOST_RECIPIENTS = 10_000
"""Recipients of one message that are shown with their attempts, of those that wait and of those that have ended."""
_OF_MESSAGE: Final[LiteralString] = """SELECT (SELECT count(*) FROM recipient WHERE message_id = %(id)s)
    + (SELECT count(*) FROM history WHERE message_id = %(id)s)"""
_STATS: Final[
    LiteralString
] = """SELECT count(*), count(*) FILTER (WHERE token IS NULL AND held_since IS NULL AND due <= now()),
    count(*) FILTER (WHERE token IS NOT NULL), count(*) FILTER (WHERE held_since IS NOT NULL), min(queued),
    (SELECT count(*) FROM message WHERE NOT barred), (SELECT coalesce(sum(size), 0)::bigint FROM message WHERE NOT barred)
    FROM recipient"""
_ESTIMATES: Final[
    LiteralString
] = """SELECT (SELECT greatest(reltuples, 0)::bigint FROM pg_class WHERE oid = 'recipient'::regclass), 0::bigint,
    (SELECT count(*) FROM recipient WHERE token IS NOT NULL), 0::bigint, NULL::timestamptz,
    (SELECT sum(greatest(reltuples, 0))::bigint FROM pg_class WHERE oid IN (SELECT relid FROM pg_partition_tree('message') WHERE isleaf)), 0::bigint"""
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
                                           AND r.held_since IS NULL LIMIT 100000) b) q WHERE d.site = n.name), 0)::bigint + coalesce(l.n, 0),
           coalesce(l.n, 0)::bigint, (SELECT min(d.next_due) FROM site_due d WHERE d.site = n.name),
           CASE WHEN s.backoff_until > now() THEN s.backoff_until END, CASE WHEN s.failures > 0 THEN s.last_error END
    FROM named n LEFT JOIN leased l ON l.site = n.name LEFT JOIN site s ON s.name = n.name ORDER BY n.name"""


class Listing:
    """Looking at the queue."""

    def __init__(self, context: AdminContext) -> None:
        self._router, self._clock = context.router, context.clock

    def _live(self, row: Sequence[Any]) -> admin_pb2.Recipient:
        (identity, message_id, address, mail_from, attempts, queued, due, last_attempt, held, hold_reason, account, own, tls, site, last,
         raw, size, origin, version, uncounted_seconds, leased, is_local, gateway, from_domain, _) = row  # fmt: skip
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
        stamp(found.last_attempt, last_attempt)
        if last is not None:
            found.last.CopyFrom(attempt_of(last))
            found.outcome = found.last.outcome
        if account:
            found.account.CopyFrom(account_pb(account))
        if own:
            found.override_transport.CopyFrom(named_pb("MailTransport", own))
        facts = RecipientFacts(
            domain_of(address), from_domain, account, origin != types_pb2.ORIGIN_MX, is_local, gateway, own
        )
        on_hold = self._clock() - held.timestamp() if held is not None else 0.0
        expires = expires_at(
            self._router().schedule(facts),
            accepted=queued.timestamp(),
            uncounted_seconds=uncounted_seconds + max(0.0, on_hold),
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
            found.account.CopyFrom(account_pb(account))
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
        tokens = PageTokens("recipients", chosen(wanted))
        phase, moment, last = read_place(tokens.read(token), "L")
        found: list[admin_pb2.Recipient] = []
        next_token = ""
        for name in ("L", "W") if phase == "L" else ("W",):
            # Two walks, each along its own index: recipient_lease, then recipient_listed.
            column: LiteralString = "r.lease_until" if name == "L" else "r.due"
            state: LiteralString = "r.token IS NOT NULL" if name == "L" else "r.token IS NULL"
            at, after = (moment, last) if name == phase else (BEGINNING, 0)
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
                next_token = tokens.make(make_place(name, row[24] if name == "L" else row[6], row[0]))
        return found, ""

    async def history(
        self, connection: Connection, wanted: admin_pb2.Filter, size: int, token: str
    ) -> tuple[list[admin_pb2.Recipient], str]:
        """A page of finished recipients, newest first (FIN-03)."""
        where = history_where(wanted)
        size = page_size(size)
        tokens = PageTokens("history", chosen(wanted))
        _, moment, last = read_place(tokens.read(token), "H", end=True)
        rows = await run(
            connection,
            f"SELECT {_HISTORY} FROM history h WHERE (h.finished, h.id) < (%(at)s, %(after)s) AND {where.text}"
            " ORDER BY h.finished DESC, h.id DESC LIMIT %(count)s",
            {**where.parameters, "at": moment, "after": last, "count": size + 1},
        )
        found = [self._finished(row) for row in rows[:size]]
        if len(rows) <= size:
            return found, ""
        return found, tokens.make(make_place("H", rows[size - 1][0], rows[size - 1][1]))

    async def message(self, connection: Connection, message_id: bytes) -> admin_pb2.GetMessageResponse:
        """A message whole: envelope, recipients live and finished, every attempt. Raises NotFound, BadRequest."""
        identity = message_id_argument(message_id)
        live = await run(
            connection,
            f"SELECT {_LIVE} FROM recipient r LEFT JOIN message m ON m.id = r.message_id WHERE r.message_id = %(id)s ORDER BY r.id LIMIT %(most)s",
            {"id": identity, "most": MOST_RECIPIENTS},
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
            f"SELECT {_HISTORY} FROM history h WHERE h.message_id = %(id)s ORDER BY h.id LIMIT %(most)s",
            {"id": identity, "most": MOST_RECIPIENTS},
        )
        if not live and not done:
            raise NotFound(f"no message {identity}")
        raw, size = (live[0][15], live[0][16]) if live else (done[0][14], done[0][9])
        answer = admin_pb2.GetMessageResponse(size=size or 0, recipients_total=len(live) + len(done))
        if MOST_RECIPIENTS in (len(live), len(done)):
            answer.recipients_total = (await run(connection, _OF_MESSAGE, {"id": identity}))[0][0]
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
        stamp(answer.oldest, oldest)
        return answer

    async def sites(self, connection: Connection, size: int, token: str) -> tuple[list[admin_pb2.Site], str]:
        """A page of sites that have mail or trouble, by name (SHD-03)."""
        size = page_size(size)
        tokens = PageTokens("sites")
        rows = await run(connection, _SITES, {"after": tokens.read(token) or "", "count": size + 1})
        found = []
        for name, queued, leased, next_due, backoff_until, error in rows[:size]:
            site = admin_pb2.Site(name=name, queued=queued, in_flight=leased)
            stamp(site.next_due, next_due)
            stamp(site.backoff_until, backoff_until)
            if error is not None:
                attempt = attempt_of(error)
                site.last_error = as_said(attempt)[:500]
            found.append(site)
        return found, tokens.make(rows[size - 1][0]) if len(rows) > size else ""


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
