"""Statements about leases: given, renewed, run out or lost (LSE)."""

# ruff: noqa: E501, S608 -- statements keep their own lines, and are put together from constants of ours alone

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, LiteralString

from mailrail.core.delivery.judge import INTERRUPTIONS_FORGIVEN
from mailrail_queue.store import columns as c
from mailrail_queue.store.connection import Connection, Jump, Row, run
from mailrail_queue.store.corrupt import CorruptRecipient
from mailrail_queue.store.fencing import NOTE, OWN, Ownership
from mailrail_queue.store.waiting import Waiting

# The attempt is committed before anything is dialled (LSE-01). Version, hold and due time are looked at again (ADM-01).
LEASE: Final[LiteralString] = f"""WITH {OWN}, x AS MATERIALIZED (
        SELECT w.*, now() AS now FROM unnest(%(id)s, %(version)s, %(token)s, %(site)s, %(shard)s) AS w (id, version, token, site, shard)
        JOIN own ON own.number = w.shard ORDER BY w.id
    )
    UPDATE recipient r SET token = x.token, lease_until = now() + %(lease)s * interval '1 second', attempts = r.attempts + 1,
        last_attempt_started = now(), site = x.site
    FROM x WHERE r.id = x.id AND r.shard = x.shard AND r.version = x.version AND r.token IS NULL AND r.held_since IS NULL
      AND r.request = 0 AND r.due <= x.now
    RETURNING r.id, extract(epoch FROM now())::float8"""


async def lease(
    connection: Connection, ownership: Ownership, seconds: float, wanted: Sequence[tuple[Waiting, int, str]]
) -> tuple[set[int], float]:
    """Lease recipients under (token, site). Returns the ids that were still free, and Postgres's time."""
    wanted = sorted(wanted, key=lambda one: one[0].id)
    rows = await run(
        connection,
        LEASE,
        {
            "id": c.bigints([w.id for w, _, _ in wanted]),
            "version": c.bigints([w.version for w, _, _ in wanted]),
            "token": c.bigints([token for _, token, _ in wanted]),
            "site": c.names([site for _, _, site in wanted]),
            "shard": c.smallints([w.shard for w, _, _ in wanted]),
            "lease": seconds,
            **ownership.parameters(w.shard for w, _, _ in wanted),
        },
    )
    return {row[0] for row in rows}, (rows[0][1] if rows else 0.0)


# Leases that live on (LSE-01). One that ran out is not revived: it may be another's by now.
RENEW: Final[LiteralString] = """UPDATE recipient r SET lease_until = now() + %(lease)s * interval '1 second'
    FROM unnest(%(id)s, %(token)s) AS x (id, token)
    WHERE r.id = x.id AND r.token = x.token AND r.lease_until > now() RETURNING r.id"""


async def renew(connection: Connection, seconds: float, leases: Sequence[tuple[int, int]]) -> set[int]:
    """Renew (recipient id, token). Returns the ids whose lease still stood."""
    leases = sorted(leases)
    rows = await run(
        connection,
        RENEW,
        {"id": c.bigints([i for i, _ in leases]), "token": c.bigints([t for _, t in leases]), "lease": seconds},
    )
    return {row[0] for row in rows}


# Leases that ran out (LSE-04): due again at once; the first INTERRUPTIONS_FORGIVEN of a recipient raise no count.
EXPIRED: Final[LiteralString] = f"""WITH found AS (
    SELECT id, token, shard FROM recipient
    WHERE token IS NOT NULL AND lease_until < now() AND lease_until >= to_timestamp(%(since)s) AND shard = ANY(%(shard)s)
      AND id NOT IN (SELECT unnest(%(answered)s))
    ORDER BY lease_until LIMIT %(count)s FOR UPDATE SKIP LOCKED
), {OWN}, stored AS (
    UPDATE recipient r SET token = NULL, lease_until = NULL, due = coalesce(r.due_after_attempt, now()), due_after_attempt = NULL,
        interruptions = r.interruptions + 1, attempts = r.attempts - CASE WHEN r.interruptions < {INTERRUPTIONS_FORGIVEN} THEN 1 ELSE 0 END
    FROM found f JOIN own ON own.number = f.shard WHERE r.id = f.id
    RETURNING r.id, f.token, r.shard, r.site, r.due, r.held_since IS NULL AS waits, r.attempts, r.last_attempt_started, r.request, r.interruptions, r.message_id
), noted AS (
    {NOTE}
)
SELECT id, token, attempts, extract(epoch FROM coalesce(last_attempt_started, now()))::float8, request, shard, interruptions, message_id FROM stored"""
NOW: Final[LiteralString] = "SELECT extract(epoch FROM now())::float8"
# Postgres's clock was set: leases of before last as long as they did. Forward, those that can only be of before; back, no lease lasts
# longer than a fresh one.
MOVE_LEASES: Final[LiteralString] = """WITH found AS (
        SELECT id FROM recipient WHERE token IS NOT NULL
          AND (lease_until <= to_timestamp(%(until)s) OR lease_until > now() + %(lease)s * interval '1 second')
        ORDER BY id FOR UPDATE
    )
    UPDATE recipient r SET lease_until = LEAST(r.lease_until + %(forward)s * interval '1 second', now() + %(lease)s * interval '1 second')
    FROM found f WHERE r.id = f.id AND r.token IS NOT NULL RETURNING 1"""


async def move_leases(connection: Connection, jump: Jump, lease: float) -> int:
    """Let leases last as long as they did before Postgres's clock was set (MOVE_LEASES). Returns how many.

    Of all shards: another process may do the same, and then some last up to a whole `lease` (seconds) again.
    """
    until = jump.before + lease if jump.seconds > 0 else 0.0
    parameters = {"until": until, "forward": max(0.0, jump.seconds), "lease": lease}
    return len(await run(connection, MOVE_LEASES, parameters))


FIRST_EXPIRED: Final[LiteralString] = """SELECT id, message_id, shard, version, token FROM recipient
    WHERE token IS NOT NULL AND lease_until < now() AND lease_until >= to_timestamp(%(since)s) AND shard = ANY(%(shard)s)
      AND id NOT IN (SELECT unnest(%(answered)s))
    ORDER BY lease_until LIMIT 1 FOR UPDATE SKIP LOCKED"""
# The same for leases that are known to be lost: the process that had them is back and does not have them (LSE-02).
LOST: Final[LiteralString] = f"""WITH stored AS (
    UPDATE recipient r SET token = NULL, lease_until = NULL, due = coalesce(r.due_after_attempt, now()), due_after_attempt = NULL,
        interruptions = r.interruptions + 1, attempts = r.attempts - CASE WHEN r.interruptions < {INTERRUPTIONS_FORGIVEN} THEN 1 ELSE 0 END
    FROM unnest(%(id)s, %(message_id)s, %(token)s) AS x (id, message_id, token)
    WHERE r.id = x.id AND r.message_id = x.message_id AND r.token = x.token
    RETURNING r.id, x.token, r.shard, r.site, r.due, r.held_since IS NULL AS waits, r.attempts, r.last_attempt_started, r.request, r.interruptions, r.message_id
), noted AS (
    {NOTE}
)
SELECT id, token, attempts, extract(epoch FROM coalesce(last_attempt_started, now()))::float8, request, shard, interruptions, message_id FROM stored"""
# Of those that were taken back in this very transaction: not now, but later (unless an administrator said when).
PUT_OFF: Final[LiteralString] = """UPDATE recipient r SET due = now() + x.seconds * interval '1 second'
    FROM unnest(%(id)s, %(seconds)s) AS x (id, seconds) WHERE r.id = x.id AND r.token IS NULL AND r.due = now()"""


async def put_off(connection: Connection, waits: Sequence[tuple[int, float]]) -> None:
    """Let (recipient id, seconds) wait that this transaction made due (PUT_OFF)."""
    waits = sorted(waits)
    parameters = {"id": c.bigints([i for i, _ in waits]), "seconds": c.floats([s for _, s in waits])}
    await run(connection, PUT_OFF, parameters)


@dataclass(frozen=True, slots=True)
class Expired:
    """A lease that was lost."""

    id: int
    token: int
    attempts: int
    started: float
    request: int
    shard: int
    interruptions: int
    message_id: bytes


def _expired(row: Row) -> Expired:
    return Expired(row[0], row[1], row[2], row[3], row[4], row[5], row[6], row[7].bytes)


async def expire(
    connection: Connection,
    ownership: Ownership,
    shards: Sequence[int],
    since: float,
    count: int,
    answered: Sequence[int] = (),
) -> list[Expired]:
    """Take back leases that ran out after `since` (EXPIRED), `count` at most; not of `answered`, whose results wait."""
    parameters = {
        "answered": c.bigints(answered),
        "shard": c.smallints(shards),
        "since": since,
        "count": count,
        **ownership.parameters(shards),
    }
    return [_expired(row) for row in await run(connection, EXPIRED, parameters)]


async def first_expired(
    connection: Connection, shards: Sequence[int], since: float, answered: Sequence[int] = ()
) -> CorruptRecipient | None:
    """The recipient that `expire` would take back first (FIRST_EXPIRED), locked."""
    parameters = {"shard": c.smallints(shards), "since": since, "answered": c.bigints(answered)}
    rows = await run(connection, FIRST_EXPIRED, parameters)
    return CorruptRecipient(rows[0][0], rows[0][1].bytes, *rows[0][2:]) if rows else None


async def lose(connection: Connection, leases: Sequence[tuple[int, bytes, int]]) -> list[Expired]:
    """Take back leases (recipient id, message id, token) that nobody works on (LOST)."""
    leases = sorted(leases)
    parameters = {
        "id": c.bigints([i for i, _, _ in leases]),
        "message_id": c.uuids([m for _, m, _ in leases]),
        "token": c.bigints([t for _, _, t in leases]),
    }
    return [_expired(row) for row in await run(connection, LOST, parameters)]
