"""The outbox: what happened to recipients, for others to react to, in order and without a gap (FIN-01).

An event is written by the very statement that makes a recipient final or puts it back (store.FINISH, store.DEFER), so it
exists exactly if that happened. A consumer reads from where it acknowledged last, as often as it takes: at least once.
While nobody subscribes nothing is written. What all consumers have acknowledged is removed; a consumer that stays away
for a week is no reason to write or keep anything.
"""

# ruff: noqa: E501 -- statements keep their own lines

from dataclasses import dataclass
from datetime import datetime
from typing import Final, LiteralString

from mailrail.pb.queue.v1 import types_pb2
from mailrail_queue.store.connection import Connection, run
from mailrail_queue.store.rows import attempt_of

SUBSCRIBE: Final[
    LiteralString
] = """INSERT INTO event_consumer (name, transaction) VALUES (%(name)s, pg_snapshot_xmin(pg_current_snapshot()))
    ON CONFLICT (name) DO UPDATE SET seen = now()"""
UNSUBSCRIBE: Final[LiteralString] = "DELETE FROM event_consumer WHERE name = %(name)s"
# Transactions below the oldest that still runs are decided: nothing with a lower place can appear any more.
READ: Final[LiteralString] = """WITH me AS (
        UPDATE event_consumer SET seen = now() WHERE name = %(name)s RETURNING transaction, position
    )
    SELECT e.transaction::text::bigint, e.id, e.at, e.kind, e.recipient_id, e.message_id, e.data FROM me
    JOIN event e ON (e.transaction, e.id) > (me.transaction, me.position) AND e.transaction < pg_snapshot_xmin(pg_current_snapshot())
    ORDER BY e.transaction, e.id LIMIT %(count)s"""
ACKNOWLEDGE: Final[
    LiteralString
] = """UPDATE event_consumer SET transaction = %(transaction)s::text::xid8, position = %(position)s, seen = now()
    WHERE name = %(name)s AND (transaction, position) < (%(transaction)s::text::xid8, %(position)s)"""
CLEAR: Final[LiteralString] = """DELETE FROM event e USING (
        SELECT transaction, position FROM event_consumer WHERE seen > now() - interval '7 days' ORDER BY transaction, position LIMIT 1
    ) slowest WHERE (e.transaction, e.id) <= (slowest.transaction, slowest.position)"""


@dataclass(frozen=True, slots=True)
class ConsumerPosition:
    """Where a consumer stands."""

    transaction: int
    position: int


@dataclass(frozen=True, slots=True)
class OutboxEvent:
    """Something that happened to a recipient."""

    place: ConsumerPosition
    at: datetime
    kind: types_pb2.EventKind.ValueType  # DEFERRED for each temporary failure
    recipient_id: int
    message_id: bytes
    attempt: types_pb2.Attempt


async def subscribe(connection: Connection, name: str) -> None:
    """Events are kept for `name` from now on; one that had subscribed before goes on where it was."""
    await run(connection, SUBSCRIBE, {"name": name})


async def unsubscribe(connection: Connection, name: str) -> None:
    """No more events for `name`."""
    await run(connection, UNSUBSCRIBE, {"name": name})


async def read(connection: Connection, name: str, count: int) -> list[OutboxEvent]:
    """The next events for `name`, oldest first; the same again until they are acknowledged."""
    rows = await run(connection, READ, {"name": name, "count": count})
    return [
        OutboxEvent(
            ConsumerPosition(row[0], row[1]),
            row[2],
            types_pb2.EventKind.ValueType(row[3]),
            row[4],
            row[5].bytes,
            attempt_of(row[6]),
        )
        for row in rows
    ]


async def acknowledge(connection: Connection, name: str, place: ConsumerPosition) -> None:
    """`name` has dealt with everything up to `place`; what no consumer needs any more goes away."""
    parameters = {"name": name, "transaction": str(place.transaction), "position": place.position}
    await run(connection, ACKNOWLEDGE, parameters)
    await run(connection, CLEAR)
