"""Statements about the timeline of recipients: what happened to them beside their attempts (ADM-05)."""

# ruff: noqa: E501 -- statements keep their own lines

from collections.abc import Iterable, Sequence
from typing import Final, LiteralString

from mailrail_queue.store import columns as c
from mailrail_queue.store.connection import Connection, run

MOST_ENTRIES: Final = 200
"""Entries that a live recipient keeps: of more, the first half and the newest half."""

# History takes over what is of a recipient that is final, a page of the table at a time. Not as it becomes so: that statement is the one
# that all mail passes through. A recipient that this snapshot lacks is in history already.
_TAKE_OVER: Final[LiteralString] = """WITH page AS (
    SELECT recipient_id, id FROM timeline WHERE recipient_id > %(past)s ORDER BY recipient_id, id LIMIT %(count)s
), gone AS (
    DELETE FROM timeline t USING (SELECT DISTINCT recipient_id FROM page) p
    WHERE t.recipient_id = p.recipient_id AND NOT EXISTS (SELECT FROM recipient r WHERE r.id = t.recipient_id AND r.message_id = t.message_id)
    RETURNING t.recipient_id, t.message_id, t.id, t.data
), kept AS (
    UPDATE history h SET timeline = coalesce(h.timeline, '{}') || g.entries
    FROM (SELECT recipient_id, message_id, array_agg(data ORDER BY id) AS entries FROM gone GROUP BY 1, 2) g
    WHERE h.message_id = g.message_id AND h.id = g.recipient_id
)
SELECT (SELECT max(recipient_id) FROM page), (SELECT count(*) FROM page), (SELECT count(*) FROM gone)"""

# By the key; of those that have more than is kept, what lies between the halves.
_TRIM: Final[LiteralString] = """DELETE FROM timeline t USING (
    SELECT recipient_id, id, row_number() OVER w AS number, count(*) OVER (PARTITION BY recipient_id) AS all_of_it
    FROM timeline WHERE recipient_id = ANY(%(id)s) WINDOW w AS (PARTITION BY recipient_id ORDER BY id)
) x WHERE t.recipient_id = x.recipient_id AND t.id = x.id AND x.number > %(half)s AND x.number <= x.all_of_it - %(half)s"""

_READ: Final[LiteralString] = """SELECT recipient_id, message_id, data FROM timeline
    WHERE recipient_id = ANY(%(id)s) ORDER BY recipient_id, id"""


async def trim(connection: Connection, ids: Sequence[int]) -> None:
    """Keep at most MOST_ENTRIES of each of these recipients."""
    await run(connection, _TRIM, {"id": c.bigints(ids), "half": MOST_ENTRIES // 2})


async def read(connection: Connection, ids: Iterable[int], message_id: bytes) -> dict[int, list[bytes]]:
    """Recipient id → its entries that are not in history, in order: of these recipients of a message."""
    found: dict[int, list[bytes]] = {}
    for recipient_id, message, data in await run(connection, _READ, {"id": c.bigints(list(ids))}):
        if message.bytes == message_id:
            found.setdefault(recipient_id, []).append(data)
    return found


async def take_over(connection: Connection, past: int, count: int) -> tuple[int, int]:
    """Put entries of recipients that are final into their history, a page of `count` behind the recipient `past`.

    Returns where the next page begins, 0 at the end, and how many entries were taken.
    """
    ((last, seen, taken),) = await run(connection, _TAKE_OVER, {"past": past, "count": count})
    return (int(last) if seen == count else 0), int(taken)
