"""Statements of the outbox of facts for TLS reports: counted, given to their reader, acknowledged, deleted.

    open     sessions of a day with equal facts; further ones count on
    given    the reader has it; it counts no more, and sessions of later make another row

The reader may see a row again, under the same id, until it has acknowledged it. An id never comes again, so a reader
that keeps ids with what it made of them counts every session once, whoever is killed when.
"""

# ruff: noqa: E501 -- statements keep their own lines

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Final, LiteralString

from mailrail.core.tlsrpt.counts import CountedSessions
from mailrail.core.tlsrpt.facts import encode, fingerprint
from mailrail_outbound.store.connection import Connection, run

DAYS: Final = 5
"""Days for which facts wait for their reader: a report is due the day after (RFC 8460 4.1), and may be tried for a day."""

# By tlsrpt_open, in its order: see learned.WRITE. What is counted already counts on, whatever the bounds say.
ADD: Final[LiteralString] = """INSERT INTO tlsrpt AS t (zone, day, fingerprint, facts, sessions)
    SELECT x.zone, x.day, x.fingerprint, x.facts, x.sessions
    FROM unnest(%(zone)s::text[], %(day)s::date[], %(fingerprint)s::bytea[], %(facts)s::bytea[], %(sessions)s::bigint[])
        AS x (zone, day, fingerprint, facts, sessions)
    WHERE EXISTS (SELECT FROM tlsrpt o WHERE o.zone = x.zone AND o.day = x.day AND o.fingerprint = x.fingerprint AND NOT o.given)
        OR (%(room)s AND (SELECT count(*) FROM (SELECT FROM tlsrpt z WHERE z.zone = x.zone AND NOT z.given LIMIT %(most_of_zone)s) b) < %(most_of_zone)s)
    ORDER BY x.zone, x.day, x.fingerprint
    ON CONFLICT (zone, day, fingerprint) WHERE NOT given DO UPDATE SET sessions = t.sessions + excluded.sessions
    RETURNING t.fingerprint, t.day"""
# Who counts locks rows in another order: those it holds now are given another time.
GIVE: Final[LiteralString] = """WITH next AS (
        SELECT id FROM tlsrpt WHERE id > %(after)s ORDER BY id LIMIT %(count)s FOR UPDATE SKIP LOCKED
    ), marked AS (
        UPDATE tlsrpt t SET given = true FROM next WHERE t.id = next.id RETURNING t.id, t.day, t.facts, t.sessions
    )
    SELECT id, day, facts, sessions FROM marked ORDER BY id"""
ACKNOWLEDGE: Final[LiteralString] = "DELETE FROM tlsrpt WHERE id = ANY (%(id)s::bigint[]) AND given RETURNING id"
COUNT: Final[LiteralString] = "SELECT count(*) FROM (SELECT FROM tlsrpt LIMIT %(most)s) a"
# By its primary key: what is old has low ids.
FORGET: Final[LiteralString] = """DELETE FROM tlsrpt WHERE id = ANY (ARRAY(
        SELECT id FROM tlsrpt ORDER BY id LIMIT %(count)s FOR UPDATE SKIP LOCKED
    )) AND day < (now() AT TIME ZONE 'UTC')::date - %(days)s RETURNING sessions"""


@dataclass(frozen=True, slots=True)
class GivenSessions:
    """A row as its reader gets it."""

    id: int
    day: date
    facts: bytes
    """mailrail.core.tlsrpt.facts.decode reads them."""
    sessions: int


async def add(
    connection: Connection, batch: Sequence[CountedSessions], *, room: bool, most_of_zone: int
) -> list[CountedSessions]:
    """Count sessions, each day and facts once in a batch; those that found no place. `room`: the outbox takes new rows."""
    encoded = {(fingerprint(octets), one.day): (one, octets) for one in batch for octets in (encode(one.facts),)}
    rows = await run(
        connection,
        ADD,
        {
            "zone": [one.zone for one, _ in encoded.values()],
            "day": [day for _, day in encoded],
            "fingerprint": [mark for mark, _ in encoded],
            "facts": [octets for _, octets in encoded.values()],
            "sessions": [one.sessions for one, _ in encoded.values()],
            "room": room,
            "most_of_zone": most_of_zone,
        },
    )
    kept = {(bytes(mark), day) for mark, day in rows}
    return [one for key, (one, _) in encoded.items() if key not in kept]


async def give(connection: Connection, count: int, after: int = 0) -> list[GivenSessions]:
    """Rows above the id `after`, in order, for the reader. After an empty answer it begins again with 0: what was
    stored, or counted on, meanwhile may have a lower id than what it has seen."""
    rows = await run(connection, GIVE, {"after": after, "count": count})
    return [GivenSessions(number, day, bytes(facts), sessions) for number, day, facts, sessions in rows]


async def acknowledge(connection: Connection, ids: Sequence[int]) -> int:
    """The reader has these, durably: they are deleted. How many there were."""
    return len(await run(connection, ACKNOWLEDGE, {"id": list(ids)}))


async def count(connection: Connection, most: int) -> int:
    """How many rows there are; `most`, where there are as many or more."""
    ((found,),) = await run(connection, COUNT, {"most": most})
    return int(found)


async def forget(connection: Connection, count: int) -> int:
    """Delete some rows that no report can use any more; how many sessions that were."""
    return sum(sessions for (sessions,) in await run(connection, FORGET, {"count": count, "days": DAYS}))
