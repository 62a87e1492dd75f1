"""Statements about mail probes (decision 20): found in history by message, and deleted with it."""

from typing import Final, LiteralString
from uuid import UUID

from mailrail.core.probe import SUFFIX
from mailrail_queue.store.connection import Connection, run

# By history_message. Its one recipient is final, so nothing names the content; it has no chunks and no mailbox.
_TAKE: Final[LiteralString] = """WITH arrived AS (
    DELETE FROM history h WHERE h.message_id = %(id)s AND h.mail_from = '' AND h.account IS NULL
      AND h.address LIKE '%%@%%' || %(suffix)s RETURNING 1
), swept AS (
    DELETE FROM message m WHERE m.id = %(id)s AND EXISTS (SELECT FROM arrived)
      AND NOT EXISTS (SELECT FROM recipient r WHERE r.message_id = m.id)
)
SELECT count(*) FROM arrived"""


async def take(connection: Connection, message_id: UUID) -> bool:
    """Whether this probe has arrived; then it is deleted."""
    ((count,),) = await run(connection, _TAKE, {"id": message_id, "suffix": SUFFIX})
    return bool(count)
