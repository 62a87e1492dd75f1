"""Large bodies before their commit: stored in chunks as they arrive, deleted if the commit does not come (ACC-02)."""

import asyncio
import contextlib
from collections import deque
from collections.abc import Sequence
from typing import Final

from mailrail.kit import log
from mailrail_queue.store import content as content_store
from mailrail_queue.store.connection import DATABASE_FAILURE, Database
from mailrail_queue.store.content import ChunkRows

ROWS: Final = 8
"""Rows of all uploads in one transaction: a transaction costs as much CPU as two rows do. Their 2 MiB fit the smallest
work_mem that is usual."""
_STEP: Final = 10
"""Bodies deleted in one transaction: each may be 100 MB, and Postgres marks every page of it."""
_AGAIN: Final = 1.0
"""Seconds until a deletion that failed is tried again."""
_MOST: Final = 100_000
"""Bodies that may wait to be deleted; the sweeper deletes the others."""


class RowsToStore:
    """Rows of an upload, and what became of them."""

    __slots__ = ("failed", "kept", "rows")

    def __init__(self, rows: ChunkRows) -> None:
        self.rows = rows
        self.kept: bool | None = None
        self.failed: Exception | None = None


def take_rows(waiting: deque[RowsToStore]) -> list[RowsToStore]:
    """Those at the front that go into one transaction: at least one, ROWS rows at most, no upload twice."""
    taken: dict[bytes, RowsToStore] = {}
    count = 0
    while waiting:
        rows = waiting[0].rows
        count += len(rows.parts)
        if taken and (count > ROWS or rows.message_id in taken):
            break
        taken[rows.message_id] = waiting.popleft()
    return list(taken.values())


class Bodies:
    """Stores chunks, and deletes bodies whose commit will not come."""

    def __init__(self, database: Database) -> None:
        self._store_lane = database.lane("upload")
        self._delete_lane = database.lane("forget")
        self._waiting: deque[RowsToStore] = deque()
        self._storing = asyncio.Lock()
        self._forgotten: dict[bytes, None] = {}
        self._wake = asyncio.Event()
        self._log = log.get_logger()

    @property
    def idle(self) -> bool:
        """No body waits to be deleted."""
        return not self._forgotten

    async def store(self, message_id: bytes, first: int, parts: Sequence[bytes]) -> bool:
        """Store parts of a large body, the chunks from number `first` on (ACC-02), together with what other uploads
        have when it is their turn. False: the upload is gone. Raises psycopg.Error, NotDurable."""
        mine = RowsToStore(ChunkRows(message_id, first, parts))
        self._waiting.append(mine)
        try:
            async with self._storing:  # whoever waited longest stores; often another has done it for us by then
                while mine.kept is None and mine.failed is None:
                    await self._store(take_rows(self._waiting))
        finally:
            with contextlib.suppress(ValueError):  # it was given up before its turn came
                self._waiting.remove(mine)
        if mine.failed is not None:
            raise mine.failed
        return bool(mine.kept)

    async def _store(self, together: list[RowsToStore]) -> None:
        try:
            async with self._store_lane.use() as connection:
                kept = await content_store.store_chunks(connection, [one.rows for one in together])
        except Exception as error:  # every one of them hears of it, and tries again or gives up by itself
            for one in together:
                one.failed = error
            return
        except BaseException:  # the one that stores was given up, the others were not
            self._waiting.extendleft(reversed(together))
            raise
        for one in together:
            one.kept = one.rows.message_id in kept

    def forget(self, message_id: bytes) -> None:
        """Delete a body soon whose commit will not come. The sweeper deletes the bodies that this misses."""
        if len(self._forgotten) < _MOST:
            self._forgotten[message_id] = None
            self._wake.set()

    async def run(self) -> None:
        """Delete such bodies, a few at a time, until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._forgotten:
                ids = list(self._forgotten)[:_STEP]
                try:
                    async with self._delete_lane.use() as connection:
                        await content_store.abort_uploads(connection, ids)
                except DATABASE_FAILURE as error:
                    self._delete_lane.warn(
                        self._log, "cannot delete uncommitted bodies; trying again", error, bodies=len(ids)
                    )
                    await asyncio.sleep(_AGAIN)
                    continue
                for message_id in ids:
                    del self._forgotten[message_id]
