"""What the services in front of the queue share: connections for their statements, and errors as a status.

INVALID_ARGUMENT says what to change, also where a request holds what this release does not know; NOT_FOUND;
FAILED_PRECONDITION before a long queue was counted once;
UNAVAILABLE while Postgres or the configuration is out of reach; DEADLINE_EXCEEDED when a filter takes too long over a
large queue; ABORTED when others were at the same rows, or when a change ended in the middle: the text says how many
recipients were changed; RESOURCE_EXHAUSTED when the disk is full.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import grpc
import psycopg
from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from mailrail.kit.postgres import settle, why_read_only
from mailrail.kit.rpc import caller_roles
from mailrail_queue.admin.base import CALLER
from mailrail_queue.admin.change_result import PartlyDone
from mailrail_queue.admin.difference import AnotherRuns
from mailrail_queue.admin.filters import BadRequest, NotCounted, NotFound
from mailrail_queue.app import NotConfigured
from mailrail_queue.mailbox.store import ContentIncomplete
from mailrail_queue.store import columns
from mailrail_queue.store.connection import Connection

Context = grpc.aio.ServicerContext[Any, Any]
Pool = AsyncConnectionPool[Connection]


class answering:
    """Turns errors into a status that says what to do, and notes the caller for the log.

    A `request` with a field that this release does not know is refused. Without that condition a filter of a later
    command would mean more recipients than its user named, and `drop` would drop them.
    """

    def __init__(self, context: Context, request: Message | None = None) -> None:
        self._context = context
        self._request = request

    async def __aenter__(self) -> None:
        if self._request is not None and (number := unknown_field(self._request)) is not None:
            text = (
                f"the request has a field (number {number}) that this queue does not know: it comes from a later"
                " release. Upgrade the queue, or leave out the option that is new"
            )
            await self._context.abort(grpc.StatusCode.INVALID_ARGUMENT, text)
        CALLER.set(", ".join(sorted(caller_roles(self._context))) or self._context.peer())

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        status = status_of(error)
        if status is not None:
            await self._context.abort(*status)


def unknown_field(message: Message) -> int | None:
    """The number of a field of a message, or of one in it, that this release does not know."""
    unknown = UnknownFieldSet(message)
    if len(unknown):
        return int(unknown[0].field_number)
    for described, value in message.ListFields():
        if described.message_type is not None:
            for part in value if described.is_repeated else (value,):
                if (found := unknown_field(part)) is not None:
                    return found
    return None


_TAKES_TURNS = (
    psycopg.errors.DeadlockDetected,
    psycopg.errors.LockNotAvailable,
    psycopg.errors.SerializationFailure,
)
"""Postgres is there, and others were at the same rows."""


def status_of(error: BaseException | None) -> tuple[grpc.StatusCode, str] | None:
    """The status of a call that ended so; None: no error that is known here."""
    said = str(error).strip()
    match error:
        case PartlyDone():
            cause = status_of(error.__cause__)
            why = cause[1] if cause is not None else type(error.__cause__).__name__
            return grpc.StatusCode.ABORTED, f"{said}; repeat the call for the others. It stopped because {why}"
        case BadRequest():
            return grpc.StatusCode.INVALID_ARGUMENT, said
        case NotFound():
            return grpc.StatusCode.NOT_FOUND, said
        case ContentIncomplete():
            return grpc.StatusCode.DATA_LOSS, said
        case NotCounted():
            return grpc.StatusCode.FAILED_PRECONDITION, said
        case AnotherRuns():
            return grpc.StatusCode.RESOURCE_EXHAUSTED, said
        case NotConfigured():
            return grpc.StatusCode.UNAVAILABLE, said
        case psycopg.errors.QueryCanceled():
            text = "the database took too long: narrow the filter, or name recipients"
            return grpc.StatusCode.DEADLINE_EXCEEDED, text
        case psycopg.DataError():
            return grpc.StatusCode.INVALID_ARGUMENT, f"invalid value: {said}"
        case psycopg.errors.DiskFull():
            return grpc.StatusCode.RESOURCE_EXHAUSTED, f"the database has no space left: {said}"
        case _ if isinstance(error, _TAKES_TURNS):
            return grpc.StatusCode.ABORTED, f"the database cancelled the call because of others: {said}; repeat it"
        case psycopg.OperationalError() | PoolTimeout() | OSError():
            return grpc.StatusCode.UNAVAILABLE, f"the database is unreachable: {said}"
        case psycopg.Error():  # else UNKNOWN, and the name of a class
            return grpc.StatusCode.INTERNAL, f"the database refused: {said}"
        case _:
            return None


# Administration never takes more than one processor from mail.
_SETTINGS: Final = """SELECT set_config('statement_timeout', '30s', false), set_config('lock_timeout', '10s', false),
    set_config('max_parallel_workers_per_gather', '0', false)"""


class Rows:
    """Connections for administration, set up for the statements of this service."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    @asynccontextmanager
    async def use(self) -> AsyncIterator[Connection]:
        """One connection. Raises psycopg_pool.PoolTimeout, and psycopg.OperationalError where nothing is written."""
        async with self._pool.connection() as connection:
            columns.register(connection.adapters)
            await connection.execute(_SETTINGS)
            try:
                yield connection
            except psycopg.errors.ReadOnlySqlTransaction as error:  # the pool gives it up when it leads to a standby
                raise psycopg.OperationalError(why_read_only(connection, error)) from error

    @asynccontextmanager
    async def change(self) -> AsyncIterator[Connection]:
        """The same for a call that changes something: what it found done already is durable when it answers (DUR-01).

        Raises also psycopg.OperationalError.
        """
        async with self.use() as connection:
            try:
                yield connection
            except NotFound:  # as after a call that was cut off and did it
                await settle(connection)
                raise
            await settle(connection)
