"""Dmarc's way to Postgres: a small pool. While it is away ingress keeps what it has, and reports wait."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import psycopg
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from mailrail.kit import log, migrations, postgres
from mailrail_dmarc import metrics
from mailrail_dmarc.settings import DmarcSettings

Connection = AsyncConnection[tuple[Any, ...]]
Pool = AsyncConnectionPool[Connection]

CONNECTIONS: Final = 4
"""Of a process, at most: see mailrail.kit.postgres.CONNECTIONS."""
DATABASE_ERRORS = (psycopg.Error, PoolTimeout, OSError)
"""Postgres is unreachable or refuses; the caller may try again."""
_LOOK: Final = 2.0
"""Seconds between two looks whether Postgres is there."""


class DmarcDatabase:
    """The pool, and whether Postgres is there."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._log = log.get_logger()
        self.problem: str | None = ""
        """Why it is of no use now; empty: it was not asked yet; None: it answers and takes writes."""

    @property
    def ready(self) -> bool:
        """It answered when it was last asked."""
        return self.problem is None

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """A connection in autocommit. Raises what DATABASE_ERRORS has."""
        async with self._pool.connection() as connection:
            yield connection

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        """A transaction; what it wrote is durable when this ends. Raises what DATABASE_ERRORS has."""
        async with self._pool.connection() as connection, connection.transaction():
            yield connection

    async def run(self) -> None:
        """Look whether it is there, until cancelled: for readiness, the metric and the log."""
        while True:
            problem: str | None = None
            try:
                async with self.connection() as connection:
                    await migrations.check(connection, "dmarc")
            except migrations.Unfit as error:
                problem = str(error)
            except DATABASE_ERRORS as error:
                problem = f"Postgres is unreachable: {str(error).strip()}"
            except Exception as error:  # whatever it is: the next look may do better
                problem = f"a mistake of ours: {type(error).__name__}: {error}"[:500]
            metrics.POSTGRES_UP.of().number = problem is None
            if problem != self.problem:
                if problem is None:
                    self._log.info("Postgres answers")
                else:
                    self._log.warning("Postgres cannot be used; reports wait for it", reason=problem)
            self.problem = problem
            await asyncio.sleep(_LOOK)


@asynccontextmanager
async def database(settings: DmarcSettings) -> AsyncIterator[DmarcDatabase]:
    """The way to Postgres while the context lasts. Raises BadSettings."""
    login = postgres.Login(settings)
    async with postgres.pool(
        login, "dmarc", size=CONNECTIONS, application=f"mailrail dmarc {settings.node_id}"
    ) as pool:
        yield DmarcDatabase(pool)
