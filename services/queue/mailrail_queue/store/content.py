"""The content of messages: in their row, or in chunks of their own when it is large (ACC-02, LSE-06)."""

# ruff: noqa: E501 -- statements keep their own lines, and are put together from constants of ours alone

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, LiteralString
from uuid import UUID

from mailrail.core.limits import CHUNK_SIZE
from mailrail_queue.store import columns as c
from mailrail_queue.store.connection import Connection, run


@dataclass(frozen=True, slots=True)
class ChunkRows:
    """Rows of one upload, the chunks from number `first` on (from 0)."""

    message_id: bytes
    first: int
    parts: Sequence[bytes]


# Parts of large bodies, before their commits (ACC-02). Later parts need their upload's row: the sweeper may have taken it. The ids of both
# are an array, not a join, which might copy the parts.
STORE_CHUNKS: Final[LiteralString] = """WITH begun AS (
    INSERT INTO upload (message_id) SELECT unnest(%(begun)s) ON CONFLICT (message_id) DO UPDATE SET started = now() RETURNING message_id
), known AS MATERIALIZED (
    SELECT message_id FROM upload WHERE message_id = ANY(%(known)s) FOR KEY SHARE
) INSERT INTO chunk (message_id, number, data) SELECT x.message_id, x.number, x.data
  FROM unnest(%(id)s, %(number)s, %(data)s) AS x (message_id, number, data)
  WHERE x.message_id = ANY(ARRAY(SELECT message_id FROM begun UNION ALL SELECT message_id FROM known))
  ON CONFLICT (message_id, number) DO UPDATE SET data = excluded.data RETURNING message_id"""


async def store_chunks(connection: Connection, uploads: Sequence[ChunkRows]) -> set[bytes]:
    """Store rows of uploads, each with an id of its own, all or none of an upload's. Returns the ids of those stored:
    the others were swept meanwhile. What Postgres keeps while it stores them is all of them, and should be less than
    its work_mem (4 MB by itself), or it writes them to a file as well."""
    begun = [one.message_id for one in uploads if one.first == 0]
    known = [one.message_id for one in uploads if one.first > 0]
    parameters = {
        "begun": c.uuids(begun),
        "known": c.uuids(known),
        "id": c.uuids([one.message_id for one in uploads for _ in one.parts]),
        "number": c.bigints([number for one in uploads for number, _ in enumerate(one.parts, one.first)]),
        "data": c.octets([part for one in uploads for part in one.parts]),
    }
    return {row[0].bytes for row in await run(connection, STORE_CHUNKS, parameters)}


# A large body that is there whole, in the transaction that stores its message: it needs no upload.
ADD_CHUNKS: Final[LiteralString] = """INSERT INTO chunk (message_id, number, data)
    SELECT %(id)s, x.number, x.data FROM unnest(%(number)s, %(data)s) AS x (number, data)"""


async def add_chunks(connection: Connection, message_id: bytes, body: bytes) -> int:
    """Store a whole body in chunks. Returns how many there are."""
    parts = [body[start : start + CHUNK_SIZE] for start in range(0, len(body), CHUNK_SIZE)]
    parameters = {"id": UUID(bytes=message_id), "number": c.bigints(range(len(parts))), "data": c.octets(parts)}
    await run(connection, ADD_CHUNKS, parameters)
    return len(parts)


# The commit of a large body takes its upload away, in the transaction that names the chunks.
CLAIM_UPLOADS: Final[LiteralString] = "DELETE FROM upload WHERE message_id = ANY(%(id)s) RETURNING message_id"
ABORT_UPLOADS: Final[
    LiteralString
] = """WITH u AS (DELETE FROM upload WHERE message_id = ANY(%(id)s) RETURNING message_id)
    DELETE FROM chunk USING u WHERE chunk.message_id = u.message_id"""


async def claim_uploads(connection: Connection, ids: Sequence[bytes]) -> set[bytes]:
    """Those of `ids` whose chunks are there; they are the caller's now, if its transaction commits."""
    return {row[0].bytes for row in await run(connection, CLAIM_UPLOADS, {"id": c.uuids(ids)})}


async def abort_uploads(connection: Connection, ids: Sequence[bytes]) -> None:
    """Forget bodies whose commit will not come."""
    await run(connection, ABORT_UPLOADS, {"id": c.uuids(ids)})


# What was claimed and not stored after all: nobody else would ever find it (ACC-02). A message that is there keeps its own.
DROP_CHUNKS: Final[LiteralString] = """DELETE FROM chunk c WHERE c.message_id = ANY(%(id)s)
    AND NOT EXISTS (SELECT FROM message m WHERE m.id = c.message_id AND m.chunks > 0)"""


async def drop_chunks(connection: Connection, ids: Sequence[bytes]) -> None:
    """Delete the chunks of those of `ids`, all claimed by this transaction, that it did not store."""
    await run(connection, DROP_CHUNKS, {"id": c.uuids(ids)})


# Chunks that have neither a message nor an upload: nothing makes them, and nobody else would ever find them. In steps by index, from where
# the step before ended: the last row that was looked at (none: that was all), and how many were deleted.
STRAY_CHUNKS: Final[LiteralString] = """WITH looked AS MATERIALIZED (
        SELECT message_id, number FROM chunk WHERE (message_id, number) > (%(after_id)s, %(after_number)s)
        ORDER BY message_id, number LIMIT %(count)s
    ), stray AS (
        DELETE FROM chunk c USING (SELECT DISTINCT message_id FROM looked) l WHERE c.message_id = l.message_id
          AND NOT EXISTS (SELECT FROM message m WHERE m.id = c.message_id AND m.chunks > 0)
          AND NOT EXISTS (SELECT FROM upload u WHERE u.message_id = c.message_id) RETURNING c.number
    )
    SELECT (SELECT count(*) FROM stray), message_id, number FROM (SELECT) one LEFT JOIN
        (SELECT message_id, number FROM looked ORDER BY message_id DESC, number DESC LIMIT 1) last ON true"""


async def sweep_stray_chunks(
    connection: Connection, after: tuple[UUID, int] | None, count: int
) -> tuple[int, tuple[UUID, int] | None]:
    """Look at `count` chunk rows behind `after` (None: from the first). Returns how many chunks without message and
    upload were deleted, and the last row looked at, None at the end. Raises psycopg.Error."""
    after_id, after_number = after if after is not None else (UUID(int=0), -1)
    rows = await run(connection, STRAY_CHUNKS, {"after_id": after_id, "after_number": after_number, "count": count})
    deleted, last_id, last_number = rows[0]
    return deleted, None if last_id is None else (last_id, last_number)


@dataclass(slots=True)
class StoredMessage:
    """A message as a lease carries it."""

    id: bytes
    envelope: bytes
    prefix: bytes
    body: bytes | None  # None: in chunks, or not read
    size: int
    chunks: int  # 0: none


# With bodies as far as they have room together, the shortest first: 200 of 1 MiB would be read at once. The length of a body that is
# stored apart is known without reading it.
CONTENT: Final[LiteralString] = """SELECT id, envelope, prefix,
        CASE WHEN sum(length(body)) OVER (ORDER BY length(body), id) <= %(room)s THEN body END, size, chunks
    FROM message WHERE id = ANY(%(id)s) AND NOT barred"""
_ALL: Final = 1 << 62
"""Room for any number of bodies."""
PIECE: Final[LiteralString] = """SELECT chunks, substring(body FROM %(first)s FOR %(count)s)
    FROM message WHERE id = ANY(%(id)s) AND NOT barred"""
CHUNKS: Final[LiteralString] = """SELECT number, data FROM chunk
    WHERE message_id = ANY(%(id)s) AND number >= %(first)s ORDER BY number LIMIT %(count)s"""


# Content is handed out under a lease that stands.
IS_LEASED: Final[LiteralString] = (
    "SELECT 1 FROM recipient WHERE message_id = ANY(%(id)s) AND token = %(token)s AND lease_until > now() LIMIT 1"
)


async def is_leased(connection: Connection, message_id: bytes, token: int) -> bool:
    """Whether a recipient of the message is leased under this token."""
    return bool(await run(connection, IS_LEASED, {"id": c.uuids([message_id]), "token": token}))


async def contents(connection: Connection, ids: Iterable[bytes], room: int = _ALL) -> dict[bytes, StoredMessage]:
    """Messages with their inline bodies, or those of them that have room, all together, in so many octets."""
    rows = await run(connection, CONTENT, {"id": c.uuids(list(ids)), "room": room})
    return {row[0].bytes: StoredMessage(row[0].bytes, *row[1:]) for row in rows}


async def piece(connection: Connection, message_id: bytes, offset: int, octets: int) -> tuple[int, bytes | None] | None:
    """How many chunks a body has, and this part of it if it has none; None: there is no such message."""
    parameters = {"id": c.uuids([message_id]), "first": offset + 1, "count": octets}
    rows = await run(connection, PIECE, parameters)
    return (rows[0][0], rows[0][1]) if rows else None


async def chunks(connection: Connection, message_id: bytes, first: int, count: int) -> list[bytes]:
    """So many chunks of a large body from number `first` on; fewer where it ends, or where one is missing."""
    rows = await run(connection, CHUNKS, {"id": c.uuids([message_id]), "first": first, "count": count})
    return [data for expected, (number, data) in enumerate(rows, first) if number == expected]
