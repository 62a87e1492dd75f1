"""Postgres for a service: a pool of async connections that commit durably, and the check that they can (ACC-06).

One URL and one role suffice (DBS-01). Every connection sets `synchronous_commit=on` itself and its own `search_path`,
so neither a server's nor a role's default can weaken promise 1.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, LiteralString

import psycopg
from psycopg import AsyncConnection
from psycopg.conninfo import make_conninfo
from psycopg_pool import AsyncConnectionPool

from mailrail.kit.settings import DatabaseSettings

ALIVE: Mapping[str, Any] = MappingProxyType(
    {"keepalives_idle": 20, "keepalives_interval": 5, "keepalives_count": 3, "tcp_user_timeout": 20_000}
)
"""Parameters of a connection that notices a server whose node is gone without a word; else a query to it waits for as
long as TCP tries, a quarter of an hour."""


def database_of(settings: DatabaseSettings) -> str:
    """Where a service's tables live, as libpq reads it: its URL, with user and password where they are given apart."""
    apart = {"user": settings.database_user, "password": settings.database_password}
    given = {name: value for name, value in apart.items() if value}
    return make_conninfo(settings.database_url, **given) if given else settings.database_url


def storable(text: str) -> str:
    """A text for people to read, as a text column can hold it: NUL and lone surrogates become escapes.

    What a stranger said may hold anything, and must not make the row unwritable that quotes it.
    """
    if not text.isascii():
        text = text.encode("utf-8", "backslashreplace").decode()
    return text.replace("\0", "\\x00")


class Unsafe(Exception):
    """The server would answer a commit that a power cut can undo; the text says which setting."""


@dataclass(frozen=True)
class ServerState:
    """What decides whether a commit is durable, and whether memory of before is still true."""

    version: int  # as server_version_num: 150004
    fsync: bool
    full_page_writes: bool
    timeline: int
    system: str  # system identifier: another cluster altogether is another system

    def check(self) -> None:
        """Raises Unsafe when commits are not durable."""
        if not self.fsync:
            raise Unsafe("Postgres runs with fsync=off: a power cut loses accepted mail. Turn it on, or set unsafe")
        if not self.full_page_writes:
            raise Unsafe("Postgres runs with full_page_writes=off: a power cut tears pages. Turn it on, or set unsafe")


SERVER: Final[LiteralString] = """CASE WHEN pg_is_in_recovery() THEN (pg_control_checkpoint()).timeline_id
    ELSE ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::int END,
    (pg_control_system()).system_identifier::text"""
"""SQL of the timeline and the identity of the server that answers."""


async def server_state(connection: AsyncConnection[Any]) -> ServerState:
    """Read fsync, full_page_writes, timeline and identity (ACC-06).

    A promoted server writes its new timeline into the control file with its next checkpoint, minutes later; the name
    of the WAL file that it writes to has it at once.
    """
    cursor = await connection.execute(
        "SELECT current_setting('server_version_num')::int, current_setting('fsync') = 'on',"
        " current_setting('full_page_writes') = 'on',"
        f" {SERVER}"
    )
    row = await cursor.fetchone()
    assert row is not None
    return ServerState(*row)


NOT_WAITED = "SyncRepWaitForLSN"
"""Where in Postgres the warning comes from that a commit's wait for a standby was cancelled (pg_cancel_backend). The
commit is then said to have succeeded."""


class Doubtful(psycopg.OperationalError):
    """What was committed may be on no standby although one has to have it: as if no answer had come. Ask again."""


async def settle(connection: AsyncConnection[Any]) -> None:
    """Return once everything that this connection has seen is as durable as a commit of our own would be.

    A row that can be seen is not yet on a synchronous standby: Postgres commits, then waits, and when that wait is cut
    off the row stays, wherever else it is or is not. Whoever finds its work done and says so calls this first, outside
    any transaction (DUR-01). It commits something, which waits for all that is before it in the log.

    Raises psycopg.OperationalError when that wait was cut off as well: nobody knows, and it has to be asked again.
    """
    cancelled: list[bool] = []

    def hear(told: psycopg.errors.Diagnostic) -> None:
        if told.source_function == NOT_WAITED:
            cancelled.append(True)

    connection.add_notice_handler(hear)
    try:
        await connection.execute("SELECT pg_logical_emit_message(true, 'mailrail', '')")
    finally:
        connection.remove_notice_handler(hear)
    if cancelled:
        raise Doubtful("the wait for a synchronous standby was cancelled")


@asynccontextmanager
async def pool(
    url: str, schema: str, *, size: int = 8, application: str = "mailrail", timeout: float = 10.0
) -> AsyncIterator[AsyncConnectionPool[AsyncConnection[tuple[Any, ...]]]]:
    """A pool whose connections look into `schema` and commit durably. It opens even while Postgres is down.

    `timeout`: seconds that a caller waits for a connection before psycopg_pool.PoolTimeout.
    """

    async def configure(connection: AsyncConnection[Any]) -> None:
        await connection.set_autocommit(True)
        await connection.execute("SET synchronous_commit = on")
        await connection.execute(psycopg.sql.SQL("SET search_path = {}").format(psycopg.sql.Identifier(schema)))
        await connection.execute("SET timezone = 'UTC'")
        await connection.execute("SET idle_in_transaction_session_timeout = '60s'")

    made: AsyncConnectionPool[AsyncConnection[tuple[Any, ...]]] = AsyncConnectionPool(
        url,
        kwargs={"application_name": application, "connect_timeout": 5, "autocommit": True, **ALIVE},
        configure=configure,
        # Connections of before a restart of Postgres would fail once each, long after it is back.
        check=AsyncConnectionPool.check_connection,
        min_size=min(2, size),
        max_size=size,
        timeout=timeout,
        max_lifetime=3600.0,
        reconnect_timeout=5.0,
        open=False,
    )
    await made.open(wait=False)
    try:
        yield made
    finally:
        await made.close()
