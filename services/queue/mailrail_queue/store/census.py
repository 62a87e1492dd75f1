"""Statements of the census: how many recipients wait, by shard and site (QRY-07).

Owners count their shards behind the mail, some shards a statement, from the index of waiting recipients alone. What
they found is a row a shard, which anybody sums.
"""

# ruff: noqa: E501 -- statements keep their own lines

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, LiteralString, NamedTuple

from mailrail_queue.store import columns as c
from mailrail_queue.store.connection import Connection, run

# By recipient_due, of which nothing but the index is read where vacuum has been.
COUNT: Final[LiteralString] = """SELECT w.shard, q.site, q.waiting, q.due, q.oldest
    FROM unnest(%(shard)s) AS w (shard) CROSS JOIN LATERAL (
        SELECT r.site, count(*) AS waiting, count(*) FILTER (WHERE r.due <= now()) AS due, extract(epoch FROM now() - min(r.due))::float8 AS oldest
        FROM recipient r WHERE r.shard = w.shard AND r.token IS NULL AND r.held_since IS NULL GROUP BY r.site
    ) q"""
# By recipient_held, whole: to compare each with the shards that are ours would cost more than to count those of others.
HELD: Final[LiteralString] = (
    "SELECT shard, count(*) FROM recipient WHERE held_since IS NOT NULL AND token IS NULL GROUP BY shard"
)
WRITE: Final[LiteralString] = """INSERT INTO census (shard, waiting, due, held)
    SELECT * FROM unnest(%(shard)s, %(waiting)s, %(due)s, %(held)s) AS x (shard, waiting, due, held) ORDER BY shard
    ON CONFLICT (shard) DO UPDATE SET counted = now(), waiting = excluded.waiting, due = excluded.due, held = excluded.held"""
READ: Final[
    LiteralString
] = """SELECT count(*), coalesce(sum(waiting), 0)::bigint, coalesce(sum(due), 0)::bigint, coalesce(sum(held), 0)::bigint, min(counted)
    FROM census"""


class SiteCount(NamedTuple):
    """What waits at a site, in one shard."""

    shard: int
    site: str
    waiting: int
    """Neither leased nor on hold."""
    due: int
    """Of those."""
    oldest: float
    """Seconds since the first of them fell due; negative: none has."""


class ShardCount(NamedTuple):
    """What waits in a shard."""

    waiting: int
    due: int
    held: int


@dataclass(frozen=True, slots=True)
class Total:
    """The sum of all shards."""

    shards: int
    """That were ever counted."""
    waiting: int
    due: int
    held: int
    counted: datetime | None
    """When, where that was longest ago."""


async def count(connection: Connection, shards: Sequence[int]) -> list[SiteCount]:
    """What waits in these shards, by site (COUNT)."""
    return [SiteCount(*row) for row in await run(connection, COUNT, {"shard": c.smallints(shards)})]


async def held(connection: Connection) -> dict[int, int]:
    """Shard → recipients on hold, of the shards that have any (HELD)."""
    return {row[0]: row[1] for row in await run(connection, HELD)}


async def write(connection: Connection, counts: Mapping[int, ShardCount]) -> None:
    """Note what shards have (WRITE)."""
    found = list(counts.values())
    parameters = {
        "shard": c.smallints(list(counts)),
        "waiting": c.bigints([one.waiting for one in found]),
        "due": c.bigints([one.due for one in found]),
        "held": c.bigints([one.held for one in found]),
    }
    await run(connection, WRITE, parameters)


async def read(connection: Connection) -> Total:
    """The sum of what the owners counted last (READ)."""
    (row,) = await run(connection, READ)
    return Total(*row)
