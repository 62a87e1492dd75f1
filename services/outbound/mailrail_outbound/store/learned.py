"""Statements of what was learned of recipient domains (RTLS-29)."""

# ruff: noqa: E501 -- statements keep their own lines

from collections.abc import Sequence
from typing import Final, LiteralString

from mailrail.core.outbound.learned import LearnedDomain, Offered
from mailrail_outbound.store.connection import Connection, run

# In the order of the key, so that processes which write the same domains wait for each other in one direction.
WRITE: Final[LiteralString] = """INSERT INTO learned AS l (domain, transport, starttls, requiretls, seen)
    SELECT x.domain, x.transport, x.starttls, x.requiretls, now() - make_interval(secs => x.age)
    FROM unnest(%(domain)s::text[], %(transport)s::text[], %(starttls)s::boolean[], %(requiretls)s::boolean[], %(age)s::float8[])
        AS x (domain, transport, starttls, requiretls, age) ORDER BY x.domain, x.transport
    ON CONFLICT (domain, transport) DO UPDATE SET starttls = excluded.starttls, requiretls = excluded.requiretls, seen = excluded.seen
    WHERE l.seen < excluded.seen"""
READ: Final[
    LiteralString
] = """SELECT l.domain, l.transport, l.starttls, l.requiretls, extract(epoch FROM l.seen)::float8
    FROM unnest(%(domain)s::text[]) AS d (domain) JOIN learned l ON l.domain = d.domain"""
# By learned_seen: those that were seen long ago, and the oldest of those that are too many. By ctid, of rows that are locked: a join with
# the key might read the whole table.
FORGET: Final[LiteralString] = """DELETE FROM learned WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM learned WHERE seen < now() - interval '90 days'
            OR (SELECT count(*) FROM learned) > %(most)s
        ORDER BY seen LIMIT %(count)s FOR UPDATE SKIP LOCKED
    )) RETURNING domain"""


async def write(connection: Connection, batch: Sequence[LearnedDomain], now: float) -> None:
    """Keep what sessions have shown, each once. `now`: by the clock of `seen`."""
    await run(
        connection,
        WRITE,
        {
            "domain": [one.domain for one in batch],
            "transport": [one.transport for one in batch],
            "starttls": [one.offered.starttls for one in batch],
            "requiretls": [one.offered.requiretls for one in batch],
            "age": [max(0.0, now - one.seen) for one in batch],
        },
    )


async def read(connection: Connection, domains: Sequence[str]) -> list[LearnedDomain]:
    """What is known of these domains, by any transport. `seen`: seconds since the epoch."""
    rows = await run(connection, READ, {"domain": list(domains)})
    return [
        LearnedDomain(domain, transport, Offered(tls, require), seen) for domain, transport, tls, require, seen in rows
    ]


async def forget(connection: Connection, count: int, most: int) -> int:
    """Delete some that are old, or the oldest while there are more than `most`; how many."""
    return len(await run(connection, FORGET, {"count": count, "most": most}))
