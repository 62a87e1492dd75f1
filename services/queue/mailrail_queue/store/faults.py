"""What goes on when one thing fails: the loops of a process, and a batch of which one row is guilty.

Trouble with Postgres passes: whoever meets it waits and tries again. Anything else would come again at each try. So a
loop says so in one line and goes on with its next turn, and a batch is tried by halves until the guilty row stands
alone; that one is put on hold with the reason, as mail is that cannot be read, and all others go on. Where very many
rows fail, the fault is in the code and not in them: they stay due, and their sites are left alone for a while.
"""

import traceback
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar

import psycopg
from structlog.typing import FilteringBoundLogger

from mailrail.kit.postgres import storable
from mailrail_queue import metrics
from mailrail_queue.store import blocks
from mailrail_queue.store import corrupt as corrupt_store
from mailrail_queue.store import results as result_store
from mailrail_queue.store.connection import TROUBLE, Connection
from mailrail_queue.store.corrupt import CorruptRecipient
from mailrail_queue.store.fencing import Ownership

Row = TypeVar("Row")

_NOBODYS: Final = (*TROUBLE, psycopg.ProgrammingError, psycopg.NotSupportedError)
"""What no row can be blamed for: Postgres is out of reach, or its schema and rights are not what we know."""
_MOST = 300  # characters of an error
HOLDS: Final = 100
"""Recipients that one process puts on hold in `HOLDS_WINDOW` because work on them fails."""
HOLDS_WINDOW: Final = 600.0
"""Seconds."""


class TooManyFail(Exception):
    """Work fails for more recipients than can all be corrupt: nobody is put on hold for it."""


class HoldAllowance:
    """How many recipients may still be put on hold because work on them fails.

    Damage concerns few rows. A release that fails for each of them must not put all mail on hold: it would stay there
    when the fault is mended.
    """

    def __init__(self, most: int = HOLDS, seconds: float = HOLDS_WINDOW) -> None:
        self._most, self._seconds = most, seconds
        self._taken: deque[float] = deque()

    def take(self, now: float) -> bool:
        """Whether one more may be put on hold at `now` (seconds of a steady clock); it counts then."""
        while self._taken and self._taken[0] <= now - self._seconds:
            self._taken.popleft()
        if len(self._taken) >= self._most:
            return False
        self._taken.append(now)
        return True


def said(error: BaseException) -> str:
    """What went wrong, in words that fit into one line and hold nothing of the row: no detail, no values."""
    if isinstance(error, psycopg.Error):
        text = error.diag.message_primary or str(error).partition("\n")[0]
    else:
        text = f"{type(error).__name__}: {error}".partition("\n")[0]
    return storable(text)[:_MOST]


def where(error: BaseException) -> str:
    """The innermost line of ours that raised it: `finish.py:312 judge`."""
    ours = [frame for frame in traceback.extract_tb(error.__traceback__) if "mailrail" in frame.filename]
    if not ours:
        return ""
    return f"{ours[-1].filename.rpartition('/')[2]}:{ours[-1].lineno} {ours[-1].name}"


def failed(logger: FilteringBoundLogger, step: str, error: BaseException, **fields: object) -> None:
    """A step failed for another reason than Postgres being out of reach: one line, and a count. It is tried again."""
    metrics.FAILURES.labels(step=step).inc()
    logger.error("a step failed", step=step, error=said(error), at=where(error), **fields)


def is_guilty(error: Exception) -> bool:
    """Whether what was to be written or read may be the cause, and not Postgres or its schema."""
    return not (isinstance(error, _NOBODYS) or result_store.lacks_partition(error) or blocks.given_twice(error))


async def by_halves(
    rows: Sequence[Row],
    work: Callable[[Sequence[Row]], Awaitable[object]],
    alone: Callable[[Row, Exception], Awaitable[object]],
) -> None:
    """Do `work` for all rows; where a row is guilty, for halves, and `alone` for each that fails by itself.

    `work` is done again for rows for which it was done in part: what it finds done it must leave as it is. Raises what
    no row can be blamed for.
    """
    if not rows:
        return
    try:
        await work(rows)
    except Exception as error:
        if not is_guilty(error):
            raise
        if len(rows) == 1:
            await alone(rows[0], error)
            return
    else:
        return
    middle = len(rows) // 2
    await by_halves(rows[:middle], work, alone)
    await by_halves(rows[middle:], work, alone)


async def hold_corrupt(
    connection: Connection,
    ownership: Ownership,
    rows: Sequence[CorruptRecipient],
    reason: str,
    logger: FilteringBoundLogger,
    *,
    undo: bool = True,
    withdraw: bool = False,
) -> set[int]:
    """Put recipients on hold that nobody can send or end, and say so. Returns the ids that were still as found.

    `undo`: the attempt of a leased one never began. `withdraw`: an administrator's request cannot be granted.
    """
    held = await corrupt_store.hold_corrupt(connection, ownership, rows, reason, undo=undo, withdraw=withdraw)
    metrics.CORRUPT.inc(len(held))
    for row in rows:
        if row.id in held:
            logger.error("corrupt, on hold", recipient=row.id, message=row.message_id.hex(), reason=reason)
    return held
