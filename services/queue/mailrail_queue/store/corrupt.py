"""Recipients that nobody can send or end go on hold, out of the way of all other mail."""

# ruff: noqa: E501, S608 -- statements keep their own lines, and are put together from constants of ours alone

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, LiteralString
from uuid import UUID

from mailrail.kit.postgres import storable
from mailrail_queue.store import columns as c
from mailrail_queue.store.connection import Connection, run
from mailrail_queue.store.fencing import OWN, Ownership, by_id

# All that is left of a message is on hold, which for one that is leased means: when its attempt ends.
HOLD_CORRUPT_MESSAGE: Final[LiteralString] = """WITH found AS (
        SELECT id FROM recipient WHERE message_id = %(id)s AND held_since IS NULL ORDER BY id FOR UPDATE
    )
    UPDATE recipient r SET held_since = now(), hold_reason = %(reason)s, version = r.version + 1 FROM found f WHERE r.id = f.id
    RETURNING r.id"""


async def hold_corrupt_message(connection: Connection, message_id: bytes, reason: str) -> list[int]:
    """Put all recipients of a message on hold. Returns the ids of those that were not."""
    rows = await run(connection, HOLD_CORRUPT_MESSAGE, {"id": UUID(bytes=message_id), "reason": reason})
    return [row[0] for row in rows]


@dataclass(frozen=True, slots=True)
class CorruptRecipient:
    """A recipient to be put on hold because nobody can send or end it."""

    id: int
    message_id: bytes
    shard: int
    version: int
    token: int  # of its lease; 0: it is not leased, `version` must fit, and its shard must be ours


# On hold, out of the way of all other mail, with the reason. Under its token `undo` takes back an attempt that never began.
HOLD_CORRUPT: Final[LiteralString] = f"""WITH {OWN}, x AS MATERIALIZED (
        SELECT w.*, own.number IS NOT NULL AS ours FROM unnest(%(id)s, %(version)s, %(token)s, %(shard)s) AS w (id, version, token, shard)
        LEFT JOIN own ON own.number = w.shard ORDER BY w.id
    )
    UPDATE recipient r SET held_since = coalesce(r.held_since, now()), hold_reason = %(reason)s, version = r.version + 1, token = NULL, lease_until = NULL,
        due = coalesce(r.due_after_attempt, r.due), due_after_attempt = NULL,
        attempts = r.attempts - CASE WHEN r.token IS NULL OR NOT %(undo)s THEN 0 ELSE 1 END,
        request = CASE WHEN %(withdraw)s THEN 0 ELSE r.request END
    FROM x WHERE r.id = x.id
      AND (r.token = x.token OR (x.token = 0 AND r.token IS NULL AND (r.held_since IS NULL OR %(withdraw)s) AND r.version = x.version
                                 AND x.ours AND r.shard = x.shard))
    RETURNING r.id"""


async def hold_corrupt(
    connection: Connection,
    ownership: Ownership,
    rows: Sequence[CorruptRecipient],
    reason: str,
    *,
    undo: bool,
    withdraw: bool,
) -> set[int]:
    """Put recipients on hold (HOLD_CORRUPT). Returns the ids that were still as they were found."""
    rows = sorted(rows, key=by_id)
    found = await run(
        connection,
        HOLD_CORRUPT,
        {
            "id": c.bigints([row.id for row in rows]),
            "version": c.bigints([row.version for row in rows]),
            "token": c.bigints([row.token for row in rows]),
            "shard": c.smallints([row.shard for row in rows]),
            "reason": storable(reason),
            "undo": undo,
            "withdraw": withdraw,
            **ownership.parameters(row.shard for row in rows),
        },
    )
    return {row[0] for row in found}
