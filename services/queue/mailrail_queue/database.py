"""The queue's way to Postgres: a few connections of its own for the message path, each for one kind of work.

A *lane* is one connection with a lock around it. The statements of the message path are few and always the same, so
on a lane they stay prepared; work of one kind never waits for another kind. A lane opens its connection when it is
first used and opens it anew after a failure; each time it sets synchronous_commit itself and reads what decides
whether a commit is durable (ACC-06), before the first statement runs.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, LiteralString

import psycopg
from psycopg import AsyncConnection
from psycopg.rows import tuple_row

from mailrail.kit import log
from mailrail.kit.postgres import ServerState, server_state
from mailrail_queue import columns, metrics

Row = tuple[Any, ...]

_TIMEOUTS = (
    # A statement that hangs must not hold up mail for ever; the longest batch takes far less.
    "SET statement_timeout = '30s'",
    "SET idle_in_transaction_session_timeout = '30s'",
    "SET lock_timeout = '10s'",
    # Every statement of the message path reaches its rows by index. A plan made while a table was small must not turn
    # into a scan of it once there are millions of rows in it.
    "SET enable_seqscan = off",
    "SET enable_mergejoin = off",
    "SET jit = off",
)


class NotDurable(Exception):
    """Postgres would answer a commit that a power cut undoes; nothing is written to it (ACC-06)."""


class Database:
    """The lanes of a process and what is known of the server behind them."""

    def __init__(self, url: str, application: str, *, unsafe: bool = False) -> None:
        self._url = url
        self._application = application
        self._unsafe = unsafe
        self._lanes: list[Lane] = []
        self._log = log.get_logger()
        self.state: ServerState | None = None
        self.clock_offset = 0.0
        """Seconds that Postgres's clock is ahead of ours, as of the last statement that told."""
        self.on_new_timeline: Callable[[], None] = lambda: None
        """Called when the server is not the one that it was: what memory says of it may be untrue."""

    def lane(self, name: str) -> "Lane":
        """A new lane; `name` shows in pg_stat_activity."""
        lane = Lane(self, f"{self._application} {name}")
        self._lanes.append(lane)
        return lane

    def now(self) -> float:
        """Unix seconds by Postgres's clock, as well as we know it."""
        return time.time() + self.clock_offset

    def heard(self, moment: float) -> None:
        """Postgres said that it is `moment` (Unix seconds)."""
        self.clock_offset = moment - time.time()

    async def close(self) -> None:
        """Close every lane."""
        for lane in self._lanes:
            await lane.close()

    async def open(self, name: str) -> AsyncConnection[Row]:
        """A connection fit for promise 1. Raises psycopg.OperationalError, NotDurable."""
        connection: AsyncConnection[Row] = await AsyncConnection.connect(
            self._url,
            autocommit=True,
            application_name=name,
            connect_timeout=5,
            row_factory=tuple_row,
            prepare_threshold=0,
            keepalives_idle=20,
            keepalives_interval=5,
            keepalives_count=3,
            tcp_user_timeout=20_000,
        )
        try:
            await connection.execute("SET synchronous_commit = on")
            await connection.execute("SET search_path = queue")
            await connection.execute("SET timezone = 'UTC'")
            for statement in _TIMEOUTS:
                await connection.execute(statement)
            self._judge(await server_state(connection))
        except BaseException:
            await connection.close()
            raise
        columns.register(connection.adapters)
        return connection

    def _judge(self, state: ServerState) -> None:
        if not (state.fsync and state.full_page_writes):
            setting = "full_page_writes" if state.fsync else "fsync"
            if not self._unsafe:
                raise NotDurable(
                    f"Postgres runs with {setting}=off: accepted mail would not survive a power cut. Turn it on; "
                    "MAILRAIL_QUEUE_UNSAFE=true serves all the same"
                )
        before, self.state = self.state, state
        if before is not None and (before.timeline, before.system) != (state.timeline, state.system):
            self._log.warning("postgres has a new timeline", timeline=state.timeline, before=before.timeline)
            self.on_new_timeline()


class Lane:
    """One connection for one kind of work, one statement or transaction at a time."""

    def __init__(self, database: Database, name: str) -> None:
        self._database = database
        self._name = name
        self._lock = asyncio.Lock()
        self._connection: AsyncConnection[Row] | None = None

    @asynccontextmanager
    async def use(self) -> AsyncIterator[AsyncConnection[Row]]:
        """The connection, for the caller alone. Raises psycopg.Error, NotDurable."""
        async with self._lock:
            connection = self._connection
            if connection is None or connection.closed:
                try:
                    connection = self._connection = await self._database.open(self._name)
                except (psycopg.Error, NotDurable):
                    metrics.DATABASE_ERRORS.labels(what="connect").inc()
                    raise
            try:
                yield connection
            except BaseException as error:
                # A statement that was cut off in the middle leaves a connection of which nothing is known.
                if isinstance(error, psycopg.Error):
                    metrics.DATABASE_ERRORS.labels(what="statement").inc()
                sure = isinstance(error, psycopg.Error) and not connection.broken and not connection.closed
                if not sure:
                    self._connection = None
                    with contextlib.suppress(Exception):
                        await connection.close()
                raise

    async def run(self, statement: LiteralString, parameters: dict[str, Any] | None = None) -> list[Row]:
        """One statement, prepared, in a transaction of its own; its rows."""
        async with self.use() as connection:
            return await run(connection, statement, parameters)

    async def close(self) -> None:
        """Close the connection; waits for the statement that runs."""
        async with self._lock:
            if self._connection is not None:
                await self._connection.close()
                self._connection = None


async def run(
    connection: AsyncConnection[Row], statement: LiteralString, parameters: dict[str, Any] | None = None
) -> list[Row]:
    """One prepared statement on a connection; its rows, none when it gives none."""
    cursor = connection.cursor(binary=True)
    await cursor.execute(statement, parameters, prepare=True)
    return await cursor.fetchall() if cursor.description else []
