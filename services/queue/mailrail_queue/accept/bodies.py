"""Large bodies before their commit: stored in chunks as they arrive, deleted if the commit does not come (ACC-02)."""

import asyncio
from collections.abc import Sequence
from typing import Final

from mailrail.kit import log
from mailrail_queue.store import content as content_store
from mailrail_queue.store.connection import DATABASE_FAILURE, Database

_STEP: Final = 10
"""Bodies deleted in one transaction: each may be 100 MB, and Postgres marks every page of it."""
_AGAIN: Final = 1.0
"""Seconds until a deletion that failed is tried again."""
_MOST: Final = 100_000
"""Bodies that may wait to be deleted; the sweeper deletes the others."""


class Bodies:
    """Stores chunks, and deletes bodies whose commit will not come."""

    def __init__(self, database: Database) -> None:
        self._store_lane = database.lane("upload")
        self._delete_lane = database.lane("forget")
        self._forgotten: dict[bytes, None] = {}
        self._wake = asyncio.Event()
        self._log = log.get_logger()

    @property
    def idle(self) -> bool:
        """No body waits to be deleted."""
        return not self._forgotten

    async def store(self, message_id: bytes, first: int, parts: Sequence[bytes]) -> bool:
        """Store parts of a large body, the chunks from number `first` on (ACC-02). False: the upload is gone. Raises
        psycopg.Error, NotDurable."""
        async with self._store_lane.use() as connection:
            return await content_store.upload_chunks(connection, message_id, first, parts)

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
