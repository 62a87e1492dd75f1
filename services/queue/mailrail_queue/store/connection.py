"""The queue's way to Postgres: a few connections of its own for the message path, each for one kind of work.

A *lane* is one connection with a lock around it. The statements of the message path are few and always the same, so
on a lane they stay prepared; work of one kind never waits for another kind. All lanes are opened at the start, and a
lane opens its connection anew after a failure; each time it sets synchronous_commit itself and reads what decides
whether a commit is durable (ACC-06), before the first statement runs.
"""

import asyncio
import contextlib
import math
import re
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, LiteralString
from weakref import WeakKeyDictionary, WeakSet, ref

import psycopg
from psycopg import AsyncConnection
from psycopg.adapt import Transformer
from psycopg.errors import error_from_result
from psycopg.pq import ExecStatus, Format, TransactionStatus
from psycopg.pq.abc import PGconn, PGresult
from psycopg.rows import tuple_row
from structlog.typing import FilteringBoundLogger

from mailrail.kit import clock, log
from mailrail.kit.history import History
from mailrail.kit.postgres import (
    NEEDED,
    NOT_WAITED,
    Doubtful,
    Login,
    ServerState,
    Unsafe,
    ended,
    enter,
    refuse_shared_sessions,
    server_state,
    why_read_only,
)
from mailrail.kit.server_watch import ServerWatch
from mailrail_queue import metrics
from mailrail_queue.store import columns
from mailrail_queue.store.outage import Outage

Row = tuple[Any, ...]
Connection = AsyncConnection[Row]

_OWN: Mapping[str, str] = MappingProxyType(
    {
        # A statement that hangs must not hold up mail for ever; the longest batch takes far less.
        "statement_timeout": "30s",
        "idle_in_transaction_session_timeout": "30s",
        "lock_timeout": "10s",
        # Every statement of the message path reaches its rows by index. A plan made while a table was small must not
        # turn into a scan of it once there are millions of rows in it.
        "enable_seqscan": "off",
        "enable_mergejoin": "off",
        "jit": "off",
        # Nothing here gains from a second process, and what counts for the gauges must not take it from mail.
        "max_parallel_workers_per_gather": "0",
    }
)
"""Settings of a lane besides those of every connection of ours."""


_ORDER: Final = ("heartbeat", "owner", "work", "lease", "finish 1", "ids", "accept 1", "outcome 1")
"""Lanes that are opened first, in this order: the shards, due mail, results; then what takes new mail."""


_SELDOM: Final = ("content 1", "content 2", "outcome 1", "outcome 2", "upload", "forget")
"""Lanes that stand still for hours: for content of many octets, and for what became of a commit. They are opened with
all others, so that there is room for them, and rest when they are not used; to open one takes some 15 ms."""
_REST_AFTER = 60.0
"""Seconds without use after which one of them closes: its session takes 2.4 MiB of Postgres."""


_NO_ROOM: Final = ("too many", "remaining connection slots", "no more connections")
"""What Postgres and PgBouncer say when they take no more connections."""
_JUMP = 5.0
"""Seconds by which Postgres's clock is set that are worth a word: leases have 30 to spare (LSE-01)."""


@dataclass(frozen=True, slots=True)
class Jump:
    """Postgres's clock was set while we looked."""

    seconds: float  # forward; negative: back
    before: float  # Unix seconds by the clock as it was, when it was noticed


class NotDurable(Exception):
    """Postgres would answer a commit that a power cut undoes; nothing is written to it (ACC-06)."""


TROUBLE = (psycopg.OperationalError, psycopg.InterfaceError, NotDurable, OSError)
"""Postgres is out of reach or not what it should be: whoever meets this waits and tries again."""
DATABASE_FAILURE = (psycopg.Error, NotDurable, OSError)
"""The same, and what Postgres refuses: the statement was not carried out, for whatever reason."""


class Database:
    """The lanes of a process and what is known of the server behind them."""

    def __init__(self, login: Login, application: str, *, history: History | None = None, unsafe: bool = False) -> None:
        self._login = login
        self._application = application
        self._unsafe = unsafe
        self._lanes: list[Lane] = []
        self._log = log.get_logger()
        self.state: ServerState | None = None
        self.outage = Outage()
        self._ahead = time.time() - clock.now()
        """Seconds by which Postgres's clock (Unix time) is ahead of `kit.clock`; the host's own until Postgres told."""
        self._least = -math.inf
        """The same, and by no means more; -inf until Postgres told."""
        self._told = False
        self.jump: Jump | None = None
        """By how much Postgres's clock was set since `Expiry` looked."""
        self.jumped = asyncio.Event()
        """Set with `jump`."""
        self._history = history
        """Asked by each connection before its first statement: what memory says of the data may be untrue."""
        self.answers = 0
        """Times that a lane was used and the server answered."""
        self.watch = ServerWatch(
            login,
            application,
            "queue",
            changed=self._on_watch,
            answers=lambda: self.answers,
        )
        self.generation = 0
        """Connections of an earlier one are opened anew: they may lead to another server than the newest does."""

    def lane(self, name: str) -> "Lane":
        """A new lane; `name` shows in pg_stat_activity."""
        rank = _ORDER.index(name) if name in _ORDER else len(_ORDER)
        lane = Lane(self, f"{self._application} {name}", rank, seldom=name in _SELDOM)
        self._lanes.append(lane)
        return lane

    def reopen(self) -> None:
        """Let each lane open its connection anew before its next statement: the database went back."""
        self.generation += 1

    def now(self) -> float:
        """Unix seconds by Postgres's clock: what it told last and what passed since, by a clock that nobody sets."""
        return clock.now() + self._ahead

    def earliest(self) -> float:
        """Unix seconds by Postgres's clock, and never later than it shows; 0 until Postgres told."""
        return max(0.0, clock.now() + self._least)

    def set_server_time(self, moment: float, asked: float) -> None:
        """Postgres said that it is `moment` (Unix seconds), after it was asked at `asked` (`kit.clock`).

        What fits in between question and answer changes nothing; what does not was set: by hand, by NTP, or because
        another server has Postgres's place.
        """
        before = self._ahead
        self._ahead = min(max(before, moment - clock.now()), moment - asked)
        self._least = min(max(self._least, moment - clock.now()), moment - asked)
        seconds = self._ahead - before
        if self._told and abs(seconds) > _JUMP:
            earlier = self.jump.seconds if self.jump is not None else 0.0
            self.jump = Jump(earlier + seconds, clock.now() + before)
            self.jumped.set()
            metrics.CLOCK_JUMPS.inc()
            self._log.warning("Postgres's clock jumped", seconds=round(seconds, 1))
        self._told = True

    def _on_watch(self) -> None:
        metrics.WAITING_FOR_STANDBY.set(self.watch.waiting)
        if self.watch.silent:
            metrics.POSTGRES_UP.set(0)  # the next heartbeat that succeeds sets it again

    async def open_lanes(self) -> None:
        """Open every lane that is closed, those first without which mail would stand still. Raises as `Lane.use`.

        With too few connections each would else get its own by luck, and mail be accepted that nobody can retry.
        """
        for lane in sorted(self._lanes, key=lambda one: one.rank):
            try:
                async with lane.use():
                    pass
            except psycopg.OperationalError as error:
                if not any(text in str(error) for text in _NO_ROOM):
                    raise
                raise type(error)(
                    f"{str(error).strip()}. {sum(one.open for one in self._lanes)} of {len(self._lanes)} connections of"
                    f" the message path are open; {NEEDED}: raise max_connections, or the role's CONNECTION LIMIT"
                ) from error

    async def rest(self) -> None:
        """Close lanes that are seldom used and were not for a while, until cancelled. Their next use opens them."""
        while True:
            await asyncio.sleep(_REST_AFTER / 4)
            for lane in self._lanes:
                if lane.seldom and not lane.used_within(_REST_AFTER):
                    await lane.close()

    async def close(self) -> None:
        """Close every lane."""
        for lane in self._lanes:
            await lane.close()

    async def refuse_shared_sessions(self) -> None:
        """Raises psycopg.OperationalError where a pooler in transaction mode stands between, with what to do.

        To be called before the first lane opens: there, what a lane prepares meets what other lanes prepared.
        """
        async with await self._login.connect(f"{self._application} start") as connection:
            await refuse_shared_sessions(connection)

    async def open(self, name: str) -> AsyncConnection[Row]:
        """A connection fit for promise 1. Raises psycopg.OperationalError, NotDurable."""
        connection: AsyncConnection[Row] = await self._login.connect(name, row_factory=tuple_row, prepare_threshold=0)
        try:
            await enter(connection, "queue", **_OWN)
            self._judge(await server_state(connection))
            if self._history is not None:
                await self._history.check(connection)
        except BaseException:
            await connection.close()
            raise
        columns.register(connection.adapters)
        _heed(connection)
        return connection

    def _judge(self, state: ServerState) -> None:
        if not self._unsafe:
            try:
                state.check()
            except Unsafe as error:
                raise NotDurable(f"{error}. Set MAILRAIL_QUEUE_UNSAFE=true to serve nevertheless") from None
        self.state = state


_READ_ONLY = psycopg.errors.ReadOnlySqlTransaction
_INCOMPLETE = (
    psycopg.errors.InvalidSchemaName,
    psycopg.errors.UndefinedTable,
    psycopg.errors.UndefinedFunction,
    psycopg.errors.InvalidColumnReference,
)
"""What Postgres says where tables, functions or the keys of tables are not there yet; the last is of ON CONFLICT."""


class Lane:
    """One connection for one kind of work, one statement or transaction at a time."""

    def __init__(self, database: Database, name: str, rank: int, *, seldom: bool) -> None:
        self.rank = rank
        """Lanes of a lower one are opened first."""
        self.seldom = seldom
        """It need not keep its connection when nobody uses it."""
        self._used = time.monotonic()
        self._database = database
        self._name = name
        self._lock = asyncio.Lock()
        self._connection: AsyncConnection[Row] | None = None
        self._generation = 0

    @property
    def open(self) -> bool:
        """It has a connection that is not known to be lost."""
        return self._connection is not None and not self._connection.closed

    def used_within(self, seconds: float) -> bool:
        """Whether it is in use, or was so recently."""
        return self._lock.locked() or time.monotonic() - self._used < seconds

    def warn(self, logger: FilteringBoundLogger, event: str, error: Exception, **fields: object) -> None:
        """Log that a step on this lane is tried again, unless Postgres is unreachable for all (`Outage`)."""
        self._database.outage.step(logger, event, error, **fields)

    @asynccontextmanager
    async def use(self) -> AsyncIterator[AsyncConnection[Row]]:
        """The connection, for the caller alone. Raises psycopg.Error, NotDurable.

        A server that was made a standby, takes no writes for another reason, or has not all of our schema, is out of
        reach: OperationalError.
        """
        async with self._lock:
            self._used = time.monotonic()
            connection = self._connection
            if connection is not None and (self._generation != self._database.generation or ended(connection)):
                self._connection = None
                await connection.close()
            if connection is None or connection.closed:
                try:
                    connection = self._connection = await self._database.open(self._name)
                    self._generation = self._database.generation
                except (psycopg.Error, NotDurable) as error:
                    metrics.DATABASE_ERRORS.labels(kind="connect").inc()
                    if not self.seldom:  # for want of room, perhaps; were it out of reach for all, others would say so
                        self._database.outage.begin(error)
                    raise
                self._database.outage.end()
            try:
                yield connection
                sure(connection)
                self._database.answers += 1
            except BaseException as error:
                # A statement that was cut off in the middle leaves a connection of which nothing is known.
                if isinstance(error, psycopg.Error):
                    metrics.DATABASE_ERRORS.labels(kind="statement").inc()
                whole = isinstance(error, psycopg.Error) and not connection.broken and not connection.closed
                whole = whole and connection not in _doubtful
                # Asked before it is closed, which forgets what the server said of itself.
                why = why_read_only(connection, error) if isinstance(error, _READ_ONLY) else None
                if isinstance(error, _INCOMPLETE):  # no fault of the mail; the next connection asks what is there
                    why = f"schema queue is not complete, is the database being restored? {error}"
                if why is not None or not whole:
                    self._connection = None
                    with contextlib.suppress(Exception):
                        await connection.close()
                if why is not None:
                    # Another server has its place, perhaps. To all callers it is as if it were gone: they wait, and try
                    # again.
                    raise psycopg.OperationalError(why) from error
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


class Statement:
    """One of the few statements that every message passes through: all its parameters are columns."""

    __slots__ = ("name", "order", "psycopg_text", "text")

    def __init__(self, name: str, text: LiteralString) -> None:
        order: dict[str, int] = {}

        def number(found: re.Match[str]) -> str:
            return f"${order.setdefault(found[1], len(order) + 1)}"

        self.name = f"mailrail_{name}".encode()
        self.psycopg_text: LiteralString = text
        self.text = re.sub(r"%\((\w+)\)s", number, text).replace("%%", "%").encode()
        self.order = tuple(order)


_doubtful: WeakSet[AsyncConnection[Any]] = WeakSet()
"""Connections of which a commit may be on no standby, although one has to have it."""


def _heed(connection: AsyncConnection[Row]) -> None:
    """Notice when a commit's wait for a standby is cancelled: Postgres warns, and says that all is well."""
    there = ref(connection)

    def hear(told: psycopg.errors.Diagnostic) -> None:
        if told.source_function == NOT_WAITED and (found := there()) is not None:
            _doubtful.add(found)

    connection.add_notice_handler(hear)


def sure(connection: AsyncConnection[Row]) -> None:
    """Whether what was committed may be answered. Raises Doubtful, and the connection is given up."""
    if connection in _doubtful:
        raise Doubtful(
            "the wait for a synchronous standby was cancelled: it is unknown whether a standby has the commit"
        )


_prepared: WeakKeyDictionary[AsyncConnection[Any], set[bytes]] = WeakKeyDictionary()
"""Names of the statements that each connection knows."""


async def run_columns(
    connection: AsyncConnection[Row], statement: Statement, parameters: Mapping[str, columns.Column]
) -> list[Row]:
    """A statement on a connection, prepared at its first use; its rows. Raises psycopg.Error.

    It goes to libpq without a cursor, whose preparations cost as much as packing a batch does: 70 us a statement of
    client CPU, of which 30 are left here. Within a transaction a cursor takes it, since psycopg has everything that was
    prepared forgotten after a rollback, and only outside can what then fails be done again.
    """
    pgconn = connection.pgconn
    if pgconn.transaction_status != TransactionStatus.IDLE:
        return await run(connection, statement.psycopg_text, dict(parameters))
    values = [parameters[name] for name in statement.order]
    try:
        result = await _execute(connection, statement, values)
    except psycopg.errors.InvalidSqlStatementName:
        _prepared.pop(connection, None)
        result = await _execute(connection, statement, values)
    transformer = Transformer(connection)
    transformer.set_pgresult(result)
    return transformer.load_rows(0, result.ntuples, tuple)


async def _execute(connection: AsyncConnection[Row], statement: Statement, values: list[columns.Column]) -> PGresult:
    pgconn = connection.pgconn
    known = _prepared.setdefault(connection, set())
    if statement.name not in known:
        pgconn.send_prepare(statement.name, statement.text, [value.oid for value in values])
        await _result(pgconn)
        known.add(statement.name)
    binary = Format.BINARY
    pgconn.send_query_prepared(statement.name, [value.data for value in values], [binary] * len(values), binary)
    return await _result(pgconn)


async def _result(pgconn: PGconn) -> PGresult:
    """The one result of what was sent. Raises psycopg.Error."""
    failed: psycopg.Error | None = None
    while pgconn.flush():  # more than the socket takes at once: while that waits, the server may want to be read
        await _socket(pgconn.socket, write=True)
        pgconn.consume_input()
    results: list[PGresult] = []
    while True:
        while pgconn.is_busy():
            await _socket(pgconn.socket)
            pgconn.consume_input()
        result = pgconn.get_result()
        if result is None:
            break
        if result.status not in (ExecStatus.TUPLES_OK, ExecStatus.COMMAND_OK):
            failed = failed or error_from_result(result)
        results.append(result)
    if failed is not None:
        raise failed
    if not results:
        raise psycopg.OperationalError("the connection was lost")
    return results[0]


async def _socket(number: int, *, write: bool = False) -> None:
    """Wait until a socket can be read, or, when asked, written."""
    loop = asyncio.get_running_loop()
    waiter = loop.create_future()

    def wake() -> None:
        if not waiter.done():
            waiter.set_result(None)

    loop.add_reader(number, wake)
    if write:
        loop.add_writer(number, wake)
    try:
        await waiter
    finally:
        loop.remove_reader(number)
        if write:
            loop.remove_writer(number)


async def run(
    connection: AsyncConnection[Row], statement: LiteralString, parameters: dict[str, Any] | None = None
) -> list[Row]:
    """One prepared statement on a connection; its rows, none when it gives none."""
    cursor = connection.cursor(binary=True)
    await cursor.execute(statement, parameters, prepare=True)
    return await cursor.fetchall() if cursor.description else []
