"""Statements about shards and the processes that own them (SHD-01)."""

# ruff: noqa: E501 -- statements keep their own lines

from collections.abc import Sequence
from typing import Final, LiteralString

from mailrail_queue.store import columns as c

# We live; who else does? One row at least, for Postgres's time. Who was seen in the future was seen before its clock was set back.
HEARTBEAT: Final[LiteralString] = """WITH mine AS (
    INSERT INTO process (id, name, address, started) VALUES (%(id)s, %(name)s, %(address)s, %(started)s::timestamptz)
    ON CONFLICT (id) DO UPDATE SET seen = now(), address = excluded.address
), replaced AS (
    DELETE FROM process WHERE (name = %(name)s AND id <> %(id)s AND started < %(started)s::timestamptz)
        OR seen NOT BETWEEN now() - interval '1 hour' AND now() + interval '1 hour'
)
SELECT n.id, n.address, t.now FROM (SELECT extract(epoch FROM now())::float8 AS now) t LEFT JOIN process n
ON n.id <> %(id)s AND NOT (n.name = %(name)s AND n.started < %(started)s::timestamptz)
  AND n.seen BETWEEN now() - %(dead)s * interval '1 second' AND now() + %(dead)s * interval '1 second' ORDER BY n.id"""
STARTED: Final[LiteralString] = "SELECT now()"
LEAVE: Final[LiteralString] = """WITH left_ AS (DELETE FROM process WHERE id = %(id)s)
    UPDATE shard SET owner = NULL WHERE owner = %(id)s"""
MINE: Final[LiteralString] = "SELECT number, epoch FROM shard WHERE owner = %(id)s"
# Shards of nobody, or of a process that is no more; each acquisition is a new epoch (SHD-01).
ACQUIRE: Final[LiteralString] = """UPDATE shard SET owner = %(id)s, epoch = epoch + 1, since = now()
    WHERE number IN (
        SELECT number FROM shard WHERE owner IS NULL OR NOT (owner = ANY(%(live)s)) ORDER BY number LIMIT %(count)s FOR UPDATE SKIP LOCKED
    ) RETURNING number, epoch"""
RELEASE: Final[LiteralString] = "UPDATE shard SET owner = NULL WHERE owner = %(id)s AND number = ANY(%(number)s)"
OWNERS: Final[LiteralString] = "SELECT number, owner FROM shard WHERE owner IS NOT NULL"


def shard_column(numbers: Sequence[int]) -> c.Column:
    """Shard numbers as a parameter."""
    return c.smallints(numbers)
