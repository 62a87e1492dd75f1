"""Ids that Postgres gives in blocks: of recipients, and of leases (tokens)."""

import asyncio
from collections import deque
from collections.abc import Iterator

from mailrail.core.ids import pack_token
from mailrail_queue.store import blocks
from mailrail_queue.store.connection import Connection, Lane, run
from mailrail_queue.store.data_history import QueueHistory


class Ids:
    """Ids for recipients and tokens, in blocks of 1000 from Postgres."""

    def __init__(self, lane: Lane, history: QueueHistory) -> None:
        self._lane = lane
        self._history = history
        self._base = 0
        """The token whose counter is 0, of the history that this process is in."""
        self._lock = asyncio.Lock()
        self._recipients: deque[range] = deque()
        self._tokens: deque[range] = deque()
        self.forget()

    def forget(self) -> None:
        """What was given in another history may be given again there: start anew (HIS-02)."""
        self._base = pack_token(self._history.number, 0)
        self._recipients.clear()
        self._tokens.clear()
        self._recipient: Iterator[int] = iter(())
        self._token: Iterator[int] = iter(())
        self._left_recipients = self._left_tokens = 0

    async def begin_anew(self) -> None:
        """Ids that are given here were given before, so the database went back. Raises psycopg.Error."""
        self.forget()
        number = self._history.number
        async with self._lane.use() as connection:
            await self._history.doubt(connection, "it gives ids that it has given before", number)

    async def ensure(self, recipients: int, tokens: int, connection: Connection | None = None) -> None:
        """Have so many of each at hand. Raises psycopg.Error."""
        while self._left_recipients < recipients or self._left_tokens < tokens:
            async with self._lock:
                if self._left_recipients >= recipients and self._left_tokens >= tokens:
                    return
                if connection is None:
                    rows = await self._lane.run(blocks.BLOCKS)
                else:
                    rows = await run(connection, blocks.BLOCKS)
                self._extend(rows[0][0], rows[0][1])

    def _extend(self, recipient: int, token: int) -> None:
        self._recipients.append(range(recipient, recipient + blocks.BLOCK))
        self._tokens.append(range(token, token + blocks.BLOCK))
        self._left_recipients += blocks.BLOCK
        self._left_tokens += blocks.BLOCK
        self._history.gave(recipient, token)

    def recipient(self) -> int:
        """The next recipient id; `ensure` was called."""
        self._left_recipients -= 1
        for value in self._recipient:
            return value
        self._recipient = iter(self._recipients.popleft())
        return next(self._recipient)

    def token(self) -> int:
        """The next token; `ensure` was called."""
        self._left_tokens -= 1
        for value in self._token:
            return self._base + value
        self._token = iter(self._tokens.popleft())
        return self._base + next(self._token)
