"""Named statements about sites, shards and the processes that own them, beside those about mail (`store`).

The rules of `store` hold here too: one statement a batch, fenced by owner and epoch of the shard (SHD-01), by index only.
"""

# ruff: noqa: E501, S608 -- statements keep their own lines, and are put together from constants of ours alone

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, LiteralString

from mailrail_queue.store import columns as c
from mailrail_queue.store.connection import Connection, run
from mailrail_queue.store.fencing import NOTE, OWN, Ownership
from mailrail_queue.store.waiting import PAGE, WAITING, Waiting, waiting

# --- sites ----------------------------------------------------------------------------------------------------------

# Sites of my shards that are due, so many a shard, from where the last look ended (SHD-03): many may have become due in one moment.
DUE_SITES: Final[LiteralString] = """SELECT d.shard, d.site, extract(epoch FROM d.next_due)::float8
    FROM unnest(%(shard)s, %(after)s, %(past)s) AS w (shard, after, past)
    CROSS JOIN LATERAL (
        SELECT * FROM site_due t WHERE t.shard = w.shard AND t.next_due >= to_timestamp(w.after) AND t.next_due <= now()
          AND (t.next_due > to_timestamp(w.after) OR t.site > w.past)
        ORDER BY t.next_due, t.site LIMIT %(count)s
    ) d"""


async def due_sites(
    connection: Connection, cursors: Mapping[int, tuple[float, str]], count: int
) -> list[tuple[int, str, float]]:
    """(shard, site, next due) of due sites, `count` at most a shard, in their order.

    `cursors`: shard → next due (Unix seconds) and name of the site past which to look.
    """
    rows = await run(
        connection,
        DUE_SITES,
        {
            "shard": c.smallints(list(cursors)),
            "after": c.floats([after for after, _ in cursors.values()]),
            "past": c.names([past for _, past in cursors.values()]),
            "count": count,
        },
    )
    return [(row[0], row[1], row[2]) for row in rows]


# A site of a shard has nothing more that is due: when will it have? The first time (`again`) no later than in 5 s, for a transaction that
# stored more may have looked at this row before it was moved, and may not be visible yet.
SETTLE: Final[LiteralString] = f"""WITH {OWN}, x AS (
    SELECT w.shard, w.site, w.again, (
        SELECT t.due FROM recipient t WHERE t.shard = w.shard AND t.site = w.site AND t.token IS NULL AND t.held_since IS NULL
        ORDER BY t.due LIMIT 1
    ) AS due
    FROM unnest(%(shard)s, %(site)s, %(again)s) AS w (shard, site, again) JOIN own ON own.number = w.shard
), emptied AS (
    DELETE FROM site_due d USING x WHERE d.shard = x.shard AND d.site = x.site AND x.due IS NULL AND NOT x.again
)
UPDATE site_due d SET next_due = CASE WHEN x.again THEN LEAST(x.due, now() + interval '5 seconds') ELSE x.due END
FROM x WHERE d.shard = x.shard AND d.site = x.site AND (x.again OR x.due IS NOT NULL)
RETURNING d.shard, d.site, d.next_due <= now()"""


async def settle(
    connection: Connection, ownership: Ownership, looked: Sequence[tuple[int, str, bool]]
) -> set[tuple[int, str]]:
    """Move the next due time of (shard, site, again). Returns those that turned out to be due after all."""
    rows = await run(
        connection,
        SETTLE,
        {
            "shard": c.smallints([s for s, _, _ in looked]),
            "site": c.names([n for _, n, _ in looked]),
            "again": c.booleans([a for _, _, a in looked]),
            **ownership.parameters(s for s, _, _ in looked),
        },
    )
    return {(row[0], row[1]) for row in rows if row[2]}


# The slow round: every site of a shard with its earliest due time, by a loose walk of recipient_due (one step a site, not a row),
# against what site_due says.
VERIFY: Final[LiteralString] = f"""WITH RECURSIVE w AS (
    (SELECT t.site, t.due FROM recipient t WHERE t.shard = %(number)s AND t.token IS NULL AND t.held_since IS NULL
     ORDER BY t.site, t.due LIMIT 1)
    UNION ALL
    SELECT n.site, n.due FROM w CROSS JOIN LATERAL (
        SELECT t.site, t.due FROM recipient t WHERE t.shard = %(number)s AND t.token IS NULL AND t.held_since IS NULL AND t.site > w.site
        ORDER BY t.site, t.due LIMIT 1) n
), stored AS (SELECT %(number)s::smallint AS shard, site, due, true AS waits FROM w)
{NOTE} RETURNING shard"""


async def verify(connection: Connection, number: int) -> int:
    """Compare a shard's sites with its recipients; how many were wrong (and are right now)."""
    return len(await run(connection, VERIFY, {"number": number}))


# The same for some sites, a while after they were settled: a transaction that was under way then may have left its recipients to a row
# that has moved since.
LOOK_BACK: Final[LiteralString] = f"""WITH stored AS (
    SELECT w.shard, w.site, t.due, true AS waits FROM unnest(%(shard)s, %(site)s) AS w (shard, site) CROSS JOIN LATERAL (
        SELECT t.due FROM recipient t WHERE t.shard = w.shard AND t.site = w.site AND t.token IS NULL AND t.held_since IS NULL
        ORDER BY t.due LIMIT 1) t
)
{NOTE} RETURNING shard, site"""


async def look_back(connection: Connection, looked: Sequence[tuple[int, str]]) -> list[tuple[int, str]]:
    """Compare these (shard, site) with their recipients; those that were wrong (and are right now)."""
    rows = await run(
        connection,
        LOOK_BACK,
        {"shard": c.smallints([s for s, _ in looked]), "site": c.names([n for _, n in looked])},
    )
    return [(row[0], row[1]) for row in rows]


# Routing changed where these go (SHD-04).
RE_KEY: Final[LiteralString] = f"""WITH {OWN}, x AS MATERIALIZED (
    SELECT w.* FROM unnest(%(id)s, %(version)s, %(site)s, %(shard)s) AS w (id, version, site, shard)
    JOIN own ON own.number = w.shard ORDER BY w.id
), stored AS (
    UPDATE recipient r SET site = x.site FROM x WHERE r.id = x.id AND r.shard = x.shard AND r.version = x.version AND r.token IS NULL
    RETURNING r.shard, r.site, r.due, r.held_since IS NULL AS waits
), noted AS (
    {NOTE}
)
SELECT DISTINCT shard, site FROM stored"""


async def re_key(
    connection: Connection, ownership: Ownership, moved: Sequence[tuple[Waiting, str]]
) -> list[tuple[int, str]]:
    """Move recipients to another site. Returns the (shard, site) that have more now."""
    rows = await run(
        connection,
        RE_KEY,
        {
            "id": c.bigints([w.id for w, _ in moved]),
            "version": c.bigints([w.version for w, _ in moved]),
            "site": c.names([s for _, s in moved]),
            "shard": c.smallints([w.shard for w, _ in moved]),
            **ownership.parameters(w.shard for w, _ in moved),
        },
    )
    return [(row[0], row[1]) for row in rows]


# Recipients of a site are due now, a bounded batch of them (ADM-03: what they waited for is there).
WAKE_SITE: Final[LiteralString] = f"""WITH {OWN}, found AS (
    SELECT f.id FROM own CROSS JOIN LATERAL (
        SELECT t.id FROM recipient t WHERE t.shard = own.number AND t.site = %(site)s AND t.token IS NULL AND t.held_since IS NULL
          AND t.due > now() ORDER BY t.due LIMIT 500
    ) f LIMIT 500
), stored AS (
    UPDATE recipient r SET due = now() FROM found f WHERE r.id = f.id AND r.token IS NULL RETURNING r.shard, r.site, r.due, r.held_since IS NULL AS waits
), noted AS ({NOTE})
SELECT DISTINCT shard FROM stored"""
# Which sites wait for something that is missing? A step a site, as in VERIFY.
MISSING_SITES: Final[LiteralString] = (
    """SELECT DISTINCT site FROM site_due WHERE shard = ANY(%(shard)s) AND site LIKE 'missing:%%'"""
)


# Some of the recipients of a site, whenever they are due: two a shard.
SAMPLE: Final[LiteralString] = f"""SELECT {WAITING} FROM unnest(%(shard)s) AS w (shard) CROSS JOIN LATERAL (
        SELECT * FROM recipient t WHERE t.shard = w.shard AND t.site = %(site)s AND t.token IS NULL AND t.held_since IS NULL
        ORDER BY t.due LIMIT 2) r"""


async def sample(connection: Connection, shards: Sequence[int], site: str) -> list[Waiting]:
    """Some of the recipients that wait at a site."""
    return [waiting(row) for row in await run(connection, SAMPLE, {"shard": c.smallints(shards), "site": site})]


async def wake_site(connection: Connection, ownership: Ownership, site: str) -> list[int]:
    """Make up to 500 recipients of a site due now; the shards concerned, empty when none is left."""
    rows = await run(connection, WAKE_SITE, {"site": site, **ownership.parameters(ownership.epochs)})
    return [row[0] for row in rows]


async def missing_sites(connection: Connection, shards: Sequence[int]) -> list[str]:
    """Keys of the sites of these shards that wait for a missing transport or domain."""
    return [row[0] for row in await run(connection, MISSING_SITES, {"shard": c.smallints(shards)})]


# Of these sites, the ones that have failed and are in backoff, or were a moment ago; then their backoff ends. Another owner may
# have been quicker: each looks at failures, which only a success takes away. Owners learn the rest from `changed`.
FAILED_SITES: Final[LiteralString] = "SELECT name FROM site WHERE name = ANY(%(name)s) AND failures > 0"
END_BACKOFF: Final[LiteralString] = """UPDATE site SET backoff_until = now(), changed = clock_timestamp()
    WHERE name = ANY(%(name)s) AND backoff_until > now()"""


async def end_backoff(connection: Connection, names: Sequence[str]) -> list[str]:
    """End the backoff of these sites; answers the keys of those that had failed."""
    failed = [row[0] for row in await run(connection, FAILED_SITES, {"name": c.names(names)})]
    if failed:
        await run(connection, END_BACKOFF, {"name": c.names(failed)})
    return failed


@dataclass(frozen=True, slots=True)
class SiteRow:
    """What is known of a site beyond one attempt."""

    name: str
    failures: int
    backoff_seconds: float | None  # from now; None: it is in none
    last_error: bytes | None
    changed: float


BACK_OFF_SITE: Final[LiteralString] = """INSERT INTO site (name, failures, backoff_until, last_error)
    VALUES (%(name)s, %(failures)s, now() + %(seconds)s * interval '1 second', %(error)s)
    ON CONFLICT (name) DO UPDATE SET failures = excluded.failures, backoff_until = excluded.backoff_until, last_error = excluded.last_error,
        probe_token = NULL, probe_until = NULL, changed = clock_timestamp()"""
RECOVER: Final[
    LiteralString
] = """UPDATE site SET failures = 0, backoff_until = NULL, probe_token = NULL, probe_until = NULL,
    changed = clock_timestamp() WHERE name = %(name)s AND failures > 0"""
SITES_CHANGED: Final[
    LiteralString
] = f"""SELECT name, failures, extract(epoch FROM backoff_until - now())::float8, last_error,
    extract(epoch FROM changed)::float8 FROM site WHERE changed >= to_timestamp(%(after)s)
      AND (changed > to_timestamp(%(after)s) OR name > %(past)s) ORDER BY changed, name LIMIT {PAGE}"""
SITE: Final[LiteralString] = """SELECT name, failures, extract(epoch FROM backoff_until - now())::float8, last_error,
    extract(epoch FROM changed)::float8 FROM site WHERE name = ANY(%(name)s) AND failures > 0"""
# Transports that fail or have failed and not worked since: a range of the primary key. A kick ends a backoff, and does not prove anything.
FAILING_TRANSPORTS: Final[
    LiteralString
] = """SELECT substr(name, length('transport:') + 1), backoff_until, last_error FROM site
    WHERE name >= 'transport:' AND name < 'transport;' AND failures > 0 AND backoff_until > now() - interval '1 hour'
    ORDER BY name LIMIT 1000"""
# The right to probe a site that several owners share: one at a time (design 4, Attempt).
CLAIM_PROBE: Final[
    LiteralString
] = """UPDATE site SET probe_token = %(token)s, probe_until = now() + %(seconds)s * interval '1 second'
    WHERE name = %(name)s AND (probe_until IS NULL OR probe_until < now()) RETURNING name"""


@dataclass(frozen=True, slots=True)
class FailingTransport:
    """NAMESPACE/NAME of a transport that has failed and not worked since."""

    name: str
    backoff_until: datetime
    last_error: bytes  # Attempt


async def failing_transports(connection: Connection) -> list[FailingTransport]:
    """At most 1,000, by name: in backoff, or in one that ended within the last hour."""
    rows = await run(connection, FAILING_TRANSPORTS, {})
    return [FailingTransport(name, until, error or b"") for name, until, error in rows]


async def sites_changed(connection: Connection, after: float, past: str) -> list[SiteRow]:
    """Sites that an owner saw fail or recover since: a page of PAGE past this time (Unix seconds) and name."""
    return [SiteRow(*row) for row in await run(connection, SITES_CHANGED, {"after": after, "past": past})]


async def sites(connection: Connection, names: Sequence[str]) -> list[SiteRow]:
    """Those of these sites that have failed."""
    return [SiteRow(*row) for row in await run(connection, SITE, {"name": c.names(names)})]
