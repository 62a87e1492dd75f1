"""What the services in front of the queue share: connections for their statements, and errors as a status.

INVALID_ARGUMENT says what to change; NOT_FOUND; UNAVAILABLE while Postgres or the configuration is out of reach;
DEADLINE_EXCEEDED when a filter takes too long over a large queue.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import psycopg
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from mailrail.kit.postgres import settle, why_read_only
from mailrail_queue.admin.filters import BadRequest, NotFound
from mailrail_queue.app import NotConfigured
from mailrail_queue.mailbox.store import ContentIncomplete
from mailrail_queue.store import columns
from mailrail_queue.store.mail import Connection

Context = grpc.aio.ServicerContext[Any, Any]
Pool = AsyncConnectionPool[Connection]


class answering:
    """Turns what goes wrong inside into a status that says what to do."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def __aenter__(self) -> None:
        return None

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        match error:
            case BadRequest():
                await self._context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
            case NotFound():
                await self._context.abort(grpc.StatusCode.NOT_FOUND, str(error))
            case ContentIncomplete():
                await self._context.abort(grpc.StatusCode.DATA_LOSS, str(error))
            case NotConfigured():
                await self._context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
            case psycopg.errors.QueryCanceled():
                text = "the database took too long: narrow the filter, or name recipients"
                await self._context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, text)
            case psycopg.DataError():
                text = f"a value is not one that can be looked for: {str(error).strip()}"
                await self._context.abort(grpc.StatusCode.INVALID_ARGUMENT, text)
            case psycopg.OperationalError() | PoolTimeout() | OSError():
                text = f"the database is out of reach: {str(error).strip()}"
                await self._context.abort(grpc.StatusCode.UNAVAILABLE, text)
            case psycopg.Error():  # else UNKNOWN, and the name of a class
                text = f"the database refused: {str(error).strip()}"
                await self._context.abort(grpc.StatusCode.INTERNAL, text)


class Rows:
    """Connections for administration, set up for the statements of this service."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    @asynccontextmanager
    async def use(self) -> AsyncIterator[Connection]:
        """One connection. Raises psycopg_pool.PoolTimeout, and psycopg.OperationalError where nothing is written."""
        async with self._pool.connection() as connection:
            columns.register(connection.adapters)
            await connection.execute("SET statement_timeout = '30s'")
            await connection.execute("SET lock_timeout = '10s'")
            try:
                yield connection
            except psycopg.errors.ReadOnlySqlTransaction as error:  # the pool gives it up when it leads to a standby
                raise psycopg.OperationalError(why_read_only(connection, error)) from error

    @asynccontextmanager
    async def change(self) -> AsyncIterator[Connection]:
        """The same for a call that changes something: what it found done is durable too when it answers (DUR-01).

        Raises also psycopg.OperationalError.
        """
        async with self.use() as connection:
            try:
                yield connection
            except NotFound:  # as after a call that was cut off and did it
                await settle(connection)
                raise
            await settle(connection)
