"""What administrators see of the queue: recipients, history, messages, sites, counts (reference F3; FIN-03)."""

# ruff: noqa: E501, S608 -- statements keep their own lines, and are put together from constants of our own alone

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Final, LiteralString

import psycopg

from mailrail.core.delivery.schedule import expires_at
from mailrail.core.route.site import SHARDS
from mailrail.core.search import SearchPart
from mailrail.pb.queue.v1 import admin_pb2, types_pb2
from mailrail_queue.admin.base import AdminContext, stamp
from mailrail_queue.admin.filters import (
    NotCounted,
    NotFound,
    PageTokens,
    asked,
    chosen,
    history_lead,
    history_where,
    leased_lead,
    live_where,
    make_place,
    message_id_argument,
    page_size,
    read_place,
    waiting_lead,
)
from mailrail_queue.admin.walk import BEGINNING, Budget, Path, walk
from mailrail_queue.admin.where import is_sending
from mailrail_queue.delivery.verdicts import as_said
from mailrail_queue.routing.router import RecipientFacts, account_pb, domain_of, named_pb
from mailrail_queue.store import census, timeline
from mailrail_queue.store import columns as c
from mailrail_queue.store.connection import Connection, Row, run
from mailrail_queue.store.rows import attempt_of, envelope_of, timeline_entry_of

_LIVE: Final[
    LiteralString
] = """r.id, r.message_id, r.address, m.mail_from, r.attempts, r.queued, r.due, r.last_attempt_started, r.held_since, r.hold_reason,
    r.account, r.override_transport, r.tls_requirement, r.site, r.last_attempt, m.envelope, m.size, r.origin, r.version, r.uncounted_seconds, r.token IS NOT NULL, r.is_local,
    r.gateway, r.from_domain, r.lease_until"""
_HISTORY: Final[
    LiteralString
] = """h.finished, h.id, h.message_id, h.state, h.outcome, h.attempts, h.tls_requirement, h.origin, h.queued, h.size, h.address,
    h.mail_from, h.account, h.site, h.envelope, h.last_attempt, h.earlier_attempts, h.timeline"""


_WITH_MESSAGE: Final[LiteralString] = "LEFT JOIN message m ON m.id = r.message_id"

MOST_RECIPIENTS = 10_000
"""Recipients of one message that are shown with their attempts, of those that wait and of those that have ended."""
_OF_MESSAGE: Final[LiteralString] = """SELECT (SELECT count(*) FROM recipient WHERE message_id = %(id)s)
    + (SELECT count(*) FROM history WHERE message_id = %(id)s)"""
EXACT: Final = 10_000
"""Recipients, or stored messages, that GetStats counts; of more it says what the owners counted, or estimates."""
_STATS: Final[
    LiteralString
] = """SELECT count(*), count(*) FILTER (WHERE token IS NULL AND held_since IS NULL AND due <= now()), count(*) FILTER (WHERE token IS NOT NULL),
    count(*) FILTER (WHERE held_since IS NOT NULL), min(queued) FROM (SELECT token, held_since, due, queued FROM recipient LIMIT %(most)s) r"""
# What the census has not: by recipient_lease, and by recipient_message, for ids of messages are in the order of time.
_LEASED_NOW: Final[
    LiteralString
] = """SELECT count(*), count(*) FILTER (WHERE held_since IS NOT NULL), (SELECT min(o.queued) FROM (SELECT queued FROM recipient ORDER BY message_id LIMIT 100) o)
    FROM recipient WHERE token IS NOT NULL"""
_MESSAGES: Final[LiteralString] = (
    "SELECT count(*), coalesce(sum(size), 0)::bigint FROM (SELECT size FROM message WHERE NOT barred LIMIT %(most)s) m"
)
_BLOCKS: Final[LiteralString] = (
    """SELECT sum(pg_relation_size(relid))::bigint / current_setting('block_size')::integer FROM pg_partition_tree('message') WHERE isleaf"""
)
_SAMPLE: Final[LiteralString] = (
    "SELECT count(*), coalesce(sum(size), 0)::bigint FROM message TABLESAMPLE SYSTEM (%(percent)s) WHERE NOT barred"
)
_SAMPLED: Final = 1_000
"""Blocks of `message` that a sample reads, about."""
# A page of sites by name: of each shard the first that have mail, those that failed, and those with an attempt under way. Then what each
# has, counted up to a bound.
_SITES: Final[LiteralString] = """WITH leased AS MATERIALIZED (
        SELECT site AS name, count(*) AS n FROM recipient WHERE token IS NOT NULL GROUP BY site
    ), due AS MATERIALIZED (
        SELECT d.* FROM generate_series(0, 255) AS w (shard) CROSS JOIN LATERAL (
            SELECT t.shard, t.site AS name, t.next_due FROM site_due t WHERE t.shard = w.shard AND t.site > %(after)s ORDER BY t.site LIMIT %(count)s
        ) d
    ), named AS MATERIALIZED (
        SELECT n.name FROM (SELECT name FROM due UNION SELECT name FROM leased WHERE name > %(after)s UNION (
            SELECT name FROM site WHERE failures > 0 AND name > %(after)s ORDER BY name LIMIT %(count)s)) n
        ORDER BY n.name LIMIT %(count)s
    ), placed AS MATERIALIZED (
        SELECT name, array_agg(shard) AS shards, min(next_due) AS next_due FROM due WHERE name <= (SELECT max(name) FROM named) GROUP BY name
    )
    SELECT n.name, q.n + coalesce(l.n, 0), coalesce(l.n, 0)::bigint, p.next_due,
           CASE WHEN s.backoff_until > now() THEN s.backoff_until END, CASE WHEN s.failures > 0 THEN s.last_error END, q.n >= %(most)s
    FROM named n LEFT JOIN placed p ON p.name = n.name LEFT JOIN leased l ON l.name = n.name LEFT JOIN site s ON s.name = n.name
    CROSS JOIN LATERAL (
        SELECT count(*) AS n FROM (SELECT FROM unnest(p.shards) AS w (shard) CROSS JOIN LATERAL (
            SELECT FROM recipient r WHERE r.shard = w.shard AND r.site = n.name AND r.token IS NULL AND r.held_since IS NULL LIMIT %(most)s
        ) b LIMIT %(most)s) c
    ) q ORDER BY n.name"""
_COUNTED_OF_PAGE: Final = 200_000
"""Recipients that are counted for a page of sites, evenly over its sites."""


_LEASED: Final = Path("recipient r", "r", "lease_until", "r.token IS NOT NULL", _LIVE, _WITH_MESSAGE)
_WAITING: Final = Path("recipient r", "r", "due", "r.token IS NULL", _LIVE, _WITH_MESSAGE)
_FINISHED: Final = Path("history h", "h", "finished", "true", _HISTORY, descending=True)


@dataclass(slots=True)
class RecipientPage:
    """A page of a list."""

    recipients: list[admin_pb2.Recipient] = field(default_factory=list)
    next_token: str = ""
    incomplete: bool = False
    """It ends where the walk was broken off: more may be found from `next_token` on (QRY-05)."""
    looked_to: datetime | None = None
    """Of one that is incomplete: the due time (or, of history, the end) of the last recipient that was looked at."""


class Listing:
    """Looking at the queue."""

    def __init__(self, context: AdminContext) -> None:
        self._router, self._clock, self._counted = context.router, context.clock, context.counted

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
         *_) = row  # fmt: skip
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
    ) -> RecipientPage:
        """A page of recipients in the queue: those with an attempt under way, then the others, oldest due first."""
        conditions = asked(wanted, SearchPart.QUEUE, self._clock())
        where = live_where(wanted, conditions)
        size = page_size(size)
        tokens = PageTokens("recipients", chosen(wanted))
        phase, moment, last = read_place(tokens.read(token), "L")
        budget = Budget()
        page = RecipientPage()
        # Two walks: along recipient_lease, then along recipient_listed or what the filter leads to.
        paths = {
            "L": replace(_LEASED, lead=leased_lead(wanted, conditions)),
            "W": replace(_WAITING, lead=waiting_lead(wanted, conditions)),
        }
        walks = {None: "LW", True: "L", False: "W"}[is_sending(conditions)]
        for name in walks if phase == "L" else "W":
            here = (moment, last) if name == phase else BEGINNING
            walked = await walk(
                connection, paths[name], where.text, where.parameters, here, size + 1 - len(page.recipients), budget
            )
            for row in walked.rows:
                if len(page.recipients) == size:
                    return page
                page.recipients.append(self._live(row))
                page.next_token = tokens.make(make_place(name, row[24] if name == "L" else row[6], row[0]))
            if not walked.ended or (name == "L" and "W" in walks and budget.spent):
                page.incomplete, page.looked_to = True, None if name == "L" else walked.place[0]
                rest = ("W", *BEGINNING) if walked.ended else (name, *walked.place)
                page.next_token = tokens.make(make_place(*rest))
                return page
        page.next_token = ""
        return page

    async def history(self, connection: Connection, wanted: admin_pb2.Filter, size: int, token: str) -> RecipientPage:
        """A page of finished recipients, newest first (FIN-03)."""
        conditions = asked(wanted, SearchPart.HISTORY, self._clock())
        where = history_where(wanted, conditions)
        size = page_size(size)
        tokens = PageTokens("history", chosen(wanted))
        _, moment, last = read_place(tokens.read(token), "H", end=True)
        path = replace(_FINISHED, lead=history_lead(wanted, conditions))
        walked = await walk(connection, path, where.text, where.parameters, (moment, last), size + 1, Budget())
        page = RecipientPage([self._finished(row) for row in walked.rows[:size]])
        if len(walked.rows) > size:
            page.next_token = tokens.make(make_place("H", *walked.rows[size - 1][:2]))
        elif not walked.ended:
            page.incomplete, page.looked_to = True, walked.place[0]
            page.next_token = tokens.make(make_place("H", *walked.place))
        return page

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
        # Those of history, too: an entry may have come while its recipient became final.
        ids = itertools.chain((row[0] for row in live), (row[1] for row in done))
        entries = await timeline.read(connection, ids, identity.bytes)
        for row in live:
            answer.recipients.append(_timeline(self._live(row), attempts.get(row[0], []), entries.get(row[0], [])))
        for row in done:
            last = [row[15]] if row[15] is not None else []
            told = [*(row[17] or []), *entries.get(row[1], [])]
            answer.recipients.append(_timeline(self._finished(row), [*(row[16] or []), *last], told))
        return answer

    async def stats(self, connection: Connection) -> admin_pb2.GetStatsResponse:
        """Counts for an overview; of a long queue from the census (QRY-07, QRY-08). Raises NotCounted, psycopg.Error."""
        answer = admin_pb2.GetStatsResponse()
        row = await self._bounded(connection, _STATS)
        if row is not None:
            answer.queued, answer.due, answer.leased, answer.on_hold = row[:4]
            stamp(answer.oldest, row[4])
        else:
            total = await census.read(connection)
            if total.shards < SHARDS:
                raise NotCounted("the queue has not counted its recipients yet: ask again in a minute")
            ((leased, leased_and_held, oldest),) = await run(connection, _LEASED_NOW)
            answer.queued, answer.due = total.waiting + total.held + leased, total.due
            answer.leased, answer.on_hold = leased, total.held + leased_and_held
            stamp(answer.oldest, oldest)
            stamp(answer.counted, total.counted)
        stored = await self._bounded(connection, _MESSAGES)
        if stored is not None:
            answer.messages, answer.bytes = stored
        else:
            ((blocks,),) = await run(connection, _BLOCKS)
            part = min(1.0, _SAMPLED / max(1, blocks))
            ((messages, octets),) = await run(connection, _SAMPLE, {"percent": 100 * part})
            answer.messages, answer.bytes, answer.estimated = int(messages / part), int(octets / part), True
        return answer

    @staticmethod
    async def _bounded(connection: Connection, statement: LiteralString) -> Row | None:
        """The answer of a count of at most EXACT rows; None when there are more, or it takes long to find so many."""
        try:
            async with connection.transaction():
                await connection.execute("SET LOCAL statement_timeout = '300ms'")
                await connection.execute("SET LOCAL enable_seqscan = on")
                (row,) = await run(connection, statement, {"most": EXACT + 1})
        except psycopg.errors.QueryCanceled:
            return None
        return row if row[0] <= EXACT else None

    async def sites(self, connection: Connection, size: int, token: str) -> tuple[list[admin_pb2.Site], str]:
        """A page of sites that have mail or trouble, by name (SHD-03)."""
        size = page_size(size)
        tokens = PageTokens("sites")
        most = min(10_000, _COUNTED_OF_PAGE // size)
        parameters = {"after": tokens.read(token) or "", "count": size + 1, "most": most}
        rows = await run(connection, _SITES, parameters)
        found = []
        for name, queued, leased, next_due, backoff_until, error, more in rows[:size]:
            site = admin_pb2.Site(name=name, queued=queued, in_flight=leased, queued_at_least=more)
            if more:
                site.queued = max(queued, self._counted(name) + leased)
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


def _timeline(
    recipient: admin_pb2.Recipient, attempts: Iterable[bytes], entries: Iterable[bytes]
) -> admin_pb2.RecipientTimeline:
    found = admin_pb2.RecipientTimeline(recipient=recipient, entries=map(timeline_entry_of, entries))
    for data in attempts:
        if data:
            found.attempts.append(attempt_of(data))
    return found
