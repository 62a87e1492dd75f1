"""Outbound's way to Postgres, which may be away: mail goes on without it (services/outbound/README.md).

A *lane* is one connection with a lock around it, for one kind of work; statements stay prepared on it. Whoever uses it
has an answer, or `Unavailable`, within seconds: while Postgres is away without a try, and when it hangs as soon as
`ANSWERS_WITHIN` is over. Both are opened at the start, so that there is room for them. The one that reads rests while
nobody uses it: what deliveries ask is mostly in memory.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from types import MappingProxyType
from typing import Any, Final, LiteralString

import psycopg
from psycopg import AsyncConnection
from psycopg.rows import tuple_row

from mailrail.kit import clock, log, migrations
from mailrail.kit.postgres import NEEDED, Login, check_connection, ended, enter, refuse_shared_sessions, why_read_only
from mailrail.kit.server_watch import break_off
from mailrail_outbound import metrics

Row = tuple[Any, ...]
Connection = AsyncConnection[Row]

ANSWERS_WITHIN: Final = 5.0
"""Seconds for a statement; the longest batch takes some hundredths."""
_AGAIN: Final = 1.0
"""Seconds until a lane that failed tries again; who comes meanwhile is told at once."""
_LOOK: Final = 5.0
"""Seconds between two looks whether Postgres is there."""
_REST_AFTER: Final = 60.0
"""Seconds without use after which the lane that reads closes: its session takes 2.4 MiB of Postgres."""
_OWN: Mapping[str, str] = MappingProxyType(
    {
        "statement_timeout": "5s",
        "lock_timeout": "2s",
        "idle_in_transaction_session_timeout": "10s",
        # Each statement reaches its rows by index. A plan made while a table was small must not become a scan of it.
        "enable_seqscan": "off",
        "jit": "off",
        "max_parallel_workers_per_gather": "0",
    }
)
"""Settings of a lane besides those of every connection of ours."""


class Unavailable(Exception):
    """Postgres did not do it, or nobody knows whether it did; the text says why."""


async def run(connection: Connection, statement: LiteralString, parameters: Mapping[str, Any]) -> list[Row]:
    """One statement, prepared; its rows. Raises psycopg.Error."""
    cursor = await connection.execute(statement, parameters, prepare=True)
    return await cursor.fetchall() if cursor.description is not None else []


class DomainDatabase:
    """The lanes of a process, and whether Postgres is there."""

    def __init__(self, login: Login, node_id: str) -> None:
        self._login = login
        self._application = f"mailrail outbound {node_id}"
        self._log = log.get_logger()
        self.reading = DomainLane(self, "read", writes=False)
        """For what deliveries wait for."""
        self.writing = DomainLane(self, "write", writes=True)
        """For what nobody waits for."""
        self._usable = asyncio.Event()
        """It could be used at least once."""
        self.problem: str | None = ""
        """Why it is of no use now; empty: it was not asked yet; None: it answers and takes writes."""

    async def wait_first(self, within: float) -> None:
        """Return once it can be used, or after so many seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within):
                await self._usable.wait()

    async def run(self) -> None:
        """Look whether it is there, until cancelled: for the metric, the log, and to be connected when it is needed."""
        while True:
            problem: str | None = None
            for lane in (self.reading, self.writing):
                try:
                    if lane is not self.reading or not await lane.rested(_REST_AFTER):
                        await lane.look()
                except Unavailable as error:
                    problem = problem or str(error)
                except Exception as error:  # whatever it is: mail goes on
                    problem = f"a mistake of ours: {type(error).__name__}: {error}"[:500]
            self._tell(problem)
            await asyncio.sleep(_AGAIN if problem is not None else _LOOK)

    def _tell(self, problem: str | None) -> None:
        metrics.POSTGRES_UP.set(problem is None)
        if problem is None:
            self._usable.set()
        if problem != self.problem:
            if problem is None:
                self._log.info("Postgres answers")
            else:
                self._log.warning("Postgres cannot be used; mail goes on as far as memory knows", reason=problem)
        self.problem = problem

    async def close(self) -> None:
        """Close the lanes."""
        for lane in (self.reading, self.writing):
            await lane.close()

    async def open(self, name: str, *, writes: bool) -> Connection:
        """A new connection with all that a lane depends on. Raises psycopg.Error, migrations.Unfit, OSError."""
        connection: Connection = await self._login.connect(f"{self._application} {name}", row_factory=tuple_row)
        try:
            with _broken_off_in_time(connection):
                await refuse_shared_sessions(connection)
                await enter(connection, "outbound", **_OWN)
                await migrations.check(connection, "outbound")
                if writes:
                    await check_connection(connection)
                    if connection.info.parameter_status("default_transaction_read_only") == "on":
                        raise psycopg.OperationalError(why_read_only(connection, Exception()))
        except BaseException:
            await connection.close()
            raise
        return connection


class DomainLane:
    """One connection for one kind of work, one statement or transaction at a time."""

    def __init__(self, database: DomainDatabase, name: str, *, writes: bool) -> None:
        self._database, self._name, self._writes = database, name, writes
        self._lock = asyncio.Lock()
        self._connection: Connection | None = None
        self._failed = ""
        self._again = 0.0  # by kit.clock
        self._used = clock.now()
        self._rests = False

    @asynccontextmanager
    async def use(self) -> AsyncIterator[Connection]:
        """The connection, for the caller alone. Raises Unavailable."""
        self._used = clock.now()
        async with self._held() as connection:
            yield connection

    async def look(self) -> None:
        """Ask something, which is no use of it. Raises Unavailable."""
        async with self._held() as connection:
            await connection.execute("SELECT 1", prepare=False)

    async def rested(self, seconds: float) -> bool:
        """Close the connection where it is well and was not used for so long. Says whether none is wanted now."""
        if not self._lock.locked() and self._connection is not None and clock.now() - self._used >= seconds:
            self._rests = True
            await self.close()
        return self._rests

    @asynccontextmanager
    async def _held(self) -> AsyncIterator[Connection]:
        async with self._lock:
            self._rests = False
            if clock.now() < self._again:
                raise Unavailable(self._failed)
            try:
                connection = await self._connected()
                with _broken_off_in_time(connection):
                    try:
                        yield connection
                    except psycopg.errors.ReadOnlySqlTransaction as error:
                        raise psycopg.OperationalError(why_read_only(connection, error)) from error
            except (psycopg.Error, migrations.Unfit, OSError) as error:
                self._failed, self._again = str(error).strip() or type(error).__name__, clock.now() + _AGAIN
                await self._disconnect()
                raise Unavailable(self._failed) from error
            except BaseException:  # cut off in the middle: nothing is known of the connection
                await self._disconnect()
                raise

    async def close(self) -> None:
        """Close the connection; waits for the statement that runs."""
        async with self._lock:
            await self._disconnect()

    async def _connected(self) -> Connection:
        if self._connection is not None and ended(self._connection):
            await self._disconnect()
        if self._connection is None:
            self._connection = await self._database.open(self._name, writes=self._writes)
        return self._connection

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(Exception):
                await connection.close()


@contextlib.contextmanager
def _broken_off_in_time(connection: Connection) -> Iterator[None]:
    """Whoever waits longer gets psycopg.OperationalError: a server that hangs answers no request to cancel, either."""
    late = asyncio.Event()

    def on_late() -> None:
        late.set()
        break_off(connection)

    timer = asyncio.get_running_loop().call_later(ANSWERS_WITHIN, on_late)
    try:
        yield
    except psycopg.OperationalError as error:
        if not late.is_set():
            raise
        raise psycopg.errors.ConnectionTimeout(
            f"Postgres gave no answer in {ANSWERS_WITHIN:g} s. If a pooler stands between, it may have too few"
            f" connections to the server: {NEEDED}"
        ) from error
    finally:
        timer.cancel()
