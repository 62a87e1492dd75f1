"""Statements that count evaluations and contacts. Each batch is one transaction, and counted once however often it comes.

Whoever counts for a domain locks its row first, in the order of domains, and whoever fixes a period of it does the same
(store/reports.py): what is counted belongs either to a period that is not fixed yet, or to the next one.
"""

# ruff: noqa: E501 -- statements keep their own lines

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from enum import IntEnum
from typing import Final, LiteralString
from uuid import UUID

from mailrail.core.outbound.zone import zone_of
from mailrail_dmarc.store.connection import Connection

DOMAIN_WEIGHT: Final = 4
"""A domain takes as much room as so many records."""
CONTACT_DAYS: Final = 30
"""Days for which mail with somebody makes his refused mail a cause for a report."""

_BATCH: Final[LiteralString] = "INSERT INTO batch (id) VALUES (%s) ON CONFLICT DO NOTHING RETURNING true"
# Also locks; `covered` is as it is once nobody else holds the row.
_LOCK: Final[LiteralString] = """INSERT INTO domain (domain, zone)
    SELECT x.domain, x.zone FROM unnest(%s::text[], %s::text[]) AS x (domain, zone) ORDER BY x.domain
    ON CONFLICT (domain) DO UPDATE SET changed = now() RETURNING domain, covered"""
_ROOM: Final[LiteralString] = (
    """SELECT zone, sum(records + %s)::bigint FROM domain WHERE zone = ANY (%s) GROUP BY zone"""
)
_HOURS: Final[LiteralString] = """INSERT INTO domain_hour AS h (domain, hour, policy, interval_hours, seen)
    SELECT * FROM unnest(%s::text[], %s::bigint[], %b::bytea[], %s::smallint[], %s::timestamptz[]) AS x (domain, hour, policy, interval_hours, seen)
    ON CONFLICT (domain, hour) DO UPDATE SET policy = excluded.policy, interval_hours = excluded.interval_hours, seen = excluded.seen
    WHERE excluded.seen >= h.seen"""
_COUNT: Final[LiteralString] = """WITH counted AS (
        INSERT INTO evaluation AS e (domain, hour, source, fingerprint, cause, our_domain, organization, facts, messages)
        SELECT * FROM unnest(%s::text[], %s::bigint[], %s::inet[], %b::bytea[], %s::smallint[], %s::text[], %s::text[], %b::bytea[], %s::bigint[])
            AS x (domain, hour, source, fingerprint, cause, our_domain, organization, facts, messages)
        ON CONFLICT (domain, hour, source, fingerprint, cause) DO UPDATE SET messages = e.messages + excluded.messages
        RETURNING e.domain, (xmax = 0) AS fresh
    )
    UPDATE domain d SET records = d.records + c.fresh
    FROM (SELECT domain, count(*) FILTER (WHERE fresh) AS fresh FROM counted GROUP BY domain) c WHERE d.domain = c.domain"""
_CONTACTS: Final[LiteralString] = """INSERT INTO contact AS c (our_domain, domain, day)
    SELECT * FROM unnest(%s::text[], %s::text[], %s::date[]) AS x (our_domain, domain, day) ORDER BY 1, 2
    ON CONFLICT (our_domain, domain) DO UPDATE SET day = excluded.day WHERE excluded.day > c.day"""
_HELD: Final[LiteralString] = """SELECT (SELECT coalesce(sum(records + %s), 0)::bigint FROM domain),
    (SELECT count(*) FROM (SELECT FROM contact LIMIT %s) c)"""


class ReportCause(IntEnum):
    """Why messages count, as it is stored: never another meaning for a number."""

    REQUIRED = 0
    REPORT_ADDRESS = 1
    REFUSED = 2


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Messages with equal facts, checked."""

    domain: str
    policy: bytes
    source: str
    facts: bytes
    seen: datetime
    messages: int
    cause: ReportCause
    our_domain: str
    organization: str
    interval_hours: int

    @property
    def hour(self) -> int:
        """The hour in which it was seen."""
        return int(self.seen.timestamp()) // 3600


@dataclass(frozen=True, slots=True)
class MailContact:
    """A domain of ours had mail with another."""

    our_domain: str
    domain: str
    day: date


@dataclass(frozen=True, slots=True)
class RecordsHeld:
    """How much is kept, at some moment."""

    records: int = 0
    """Domains have their weight in it."""
    contacts: int = 0
    """At most one more than were asked for."""


@dataclass(frozen=True, slots=True)
class RecordRoom:
    """What a batch may take."""

    records: bool = True
    """There is room for further records."""
    contacts: bool = True
    zone_records: int = 1_000_000


@dataclass(slots=True)
class Counted:
    """What became of a batch."""

    stored: int = 0
    """Messages."""
    dropped: int = 0
    again: bool = False
    """It was counted before."""


async def record(
    connection: Connection,
    batch: UUID,
    evaluations: Sequence[Evaluation],
    contacts: Sequence[MailContact],
    room: RecordRoom,
) -> Counted:
    """Count a batch, within a transaction of the caller's."""
    counted = Counted()
    if await (await connection.execute(_BATCH, (batch,))).fetchone() is None:
        counted.again = True
        return counted
    await _count(connection, evaluations, room, counted)
    await _remember(connection, contacts, room)
    return counted


async def _count(connection: Connection, evaluations: Sequence[Evaluation], room: RecordRoom, counted: Counted) -> None:
    zones = {each.domain: zone_of(each.domain) for each in evaluations}
    full = await _full(connection, set(zones.values()), room)
    fitting = [each for each in evaluations if zones[each.domain] not in full]
    counted.dropped += sum(each.messages for each in evaluations if zones[each.domain] in full)
    if not fitting:
        return
    domains = sorted({each.domain for each in fitting})
    cursor = await connection.execute(_LOCK, (domains, [zones[domain] for domain in domains]))
    covered = {str(domain): int(hour) for domain, hour in await cursor.fetchall()}
    # What comes late, for a period that is fixed, counts for the next: it is told, and periods do not overlap.
    hours = [max(each.hour, covered[each.domain]) for each in fitting]
    newest: dict[tuple[str, int], Evaluation] = {}
    rows: dict[tuple[str, int, str, bytes, ReportCause], tuple[Evaluation, int]] = {}
    for each, hour in zip(fitting, hours, strict=True):
        known = newest.get((each.domain, hour))
        if known is None or each.seen >= known.seen:
            newest[each.domain, hour] = each
        key = (each.domain, hour, each.source, hashlib.sha256(each.facts).digest(), each.cause)
        rows[key] = (each, each.messages + (rows[key][1] if key in rows else 0))
    of_hours = sorted(newest.items())
    await connection.execute(
        _HOURS,
        (
            [domain for (domain, _), _ in of_hours],
            [hour for (_, hour), _ in of_hours],
            [each.policy for _, each in of_hours],
            [each.interval_hours for _, each in of_hours],
            [each.seen for _, each in of_hours],
        ),
    )
    await connection.execute(
        _COUNT,
        (
            [key[0] for key in rows],
            [key[1] for key in rows],
            [key[2] for key in rows],
            [key[3] for key in rows],
            [int(key[4]) for key in rows],
            [each.our_domain for each, _ in rows.values()],
            [each.organization for each, _ in rows.values()],
            [each.facts for each, _ in rows.values()],
            [messages for _, messages in rows.values()],
        ),
    )
    counted.stored += sum(messages for _, messages in rows.values())


async def held(connection: Connection, most_contacts: int) -> RecordsHeld:
    """How much there is. It looks at each domain, so it is asked now and then."""
    row = await (await connection.execute(_HELD, (DOMAIN_WEIGHT, most_contacts + 1))).fetchone()
    assert row is not None
    return RecordsHeld(int(row[0]), int(row[1]))


async def _full(connection: Connection, zones: set[str], room: RecordRoom) -> set[str]:
    """The zones that get no further records. Several batches at once may go some thousand records beyond."""
    if not zones or not room.records:
        return zones
    cursor = await connection.execute(_ROOM, (DOMAIN_WEIGHT, sorted(zones)))
    return {str(zone) for zone, records in await cursor.fetchall() if records >= room.zone_records}


async def _remember(connection: Connection, contacts: Iterable[MailContact], room: RecordRoom) -> None:
    """Where contacts have no room none is new, which makes fewer reports."""
    last: dict[tuple[str, str], date] = {}
    for each in contacts:
        key = (each.our_domain, each.domain)
        last[key] = max(each.day, last.get(key, each.day))
    if last and room.contacts:
        await connection.execute(
            _CONTACTS, ([ours for ours, _ in last], [other for _, other in last], list(last.values()))
        )
