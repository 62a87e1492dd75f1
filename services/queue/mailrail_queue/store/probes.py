"""Statements about mail probes (decision 20): what arrived is found in history, and deleted there."""

# ruff: noqa: S608 -- statements are put together from constants of our own alone

from datetime import datetime
from typing import Final, LiteralString
from uuid import UUID

from mailrail.core.probe import SUFFIX
from mailrail_queue.store.connection import Connection, run

_IS_PROBE: Final = "h.mail_from = '' AND h.account IS NULL AND h.address LIKE '%%@%%' || %(suffix)s"
# By history_message. Its one recipient is final, so nothing names the content; it has no chunks and no mailbox.
_TAKE: Final[LiteralString] = f"""WITH arrived AS (
    DELETE FROM history h WHERE h.message_id = %(id)s AND {_IS_PROBE} RETURNING 1
), swept AS (
    DELETE FROM message m WHERE m.id = %(id)s AND EXISTS (SELECT FROM arrived)
      AND NOT EXISTS (SELECT FROM recipient r WHERE r.message_id = m.id)
)
SELECT count(*) FROM arrived"""
# By history_finished: the stretch that the content sweeper is passing.
_SWEEP: Final[LiteralString] = f"""WITH d AS (
    DELETE FROM history h WHERE h.finished > %(position)s AND h.finished <= %(until)s AND {_IS_PROBE} RETURNING 1
)
SELECT count(*) FROM d"""


async def take(connection: Connection, message_id: UUID) -> bool:
    """Whether this probe has arrived; then it is deleted."""
    ((count,),) = await run(connection, _TAKE, {"id": message_id, "suffix": SUFFIX})
    return bool(count)


async def sweep(connection: Connection, position: datetime, until: datetime) -> int:
    """Delete the probes that arrived in this stretch of time and that nobody took. Returns how many."""
    parameters = {"position": position, "until": until, "suffix": SUFFIX}
    ((count,),) = await run(connection, _SWEEP, parameters)
    return int(count)
