"""A real Postgres for tests: one embedded server for each test process, a fresh database for each test.

Fixtures (registered in `tests/conftest.py`):

- `postgres`: the server of this pytest process (an xdist worker has its own). Do not stop or kill it.
- `database`: the URL of a fresh database with the migrations of every service, owned by a role that is no superuser.
- `empty_database`: the URL of a fresh database without any schema.
- `database_for`: `database_for("queue")` gives a fresh database with only that service's schema, at each call another.
- `disposable_postgres`: a server of the test's own, to be killed and started again.

`MAILRAIL_TEST_POSTGRES` names the folder of another server's programs, such as /usr/lib/postgresql/15/bin, to run any
test on that version.

A database is copied from a template, some 40 ms; the template is migrated once a process. Databases are dropped after
the test, by force when connections are left open.
"""

import contextlib
import itertools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from mailrail.kit import migrations
from mailrail.local.postgres.binaries import Binaries
from mailrail.local.postgres.server import OWNER, EmbeddedPostgres

from testkit.peers import require_peer

SETTINGS = {
    "max_connections": "150",  # many tests at once
    "log_min_messages": "fatal",  # a test that provokes errors should not fill the output
}
"""Settings of test servers over those of local mode. Still durable: services refuse a server that is not (ACC-06)."""


def oldest_programs() -> Path:
    """The programs of the oldest Postgres that we promise to work on (DBS-02)."""
    require_peer("postgres")
    return Path("/usr/lib/postgresql/15/bin")


@contextlib.contextmanager
def embedded_postgres(programs: Path | None = None, **settings: str) -> Iterator[EmbeddedPostgres]:
    """A server with data in a temporary folder of its own, removed with everything else it made."""
    other = programs or os.environ.get("MAILRAIL_TEST_POSTGRES")
    binaries = Binaries(Path(other)) if other else None
    folder = Path(tempfile.mkdtemp(prefix="mailrail-postgres-"))
    folder.chmod(0o711)  # as root the server runs as a user of its own, which must pass through
    server = EmbeddedPostgres(folder / "server", settings={**SETTINGS, **settings}, binaries=binaries)
    try:
        yield server.start()
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


class Databases:
    """Makes and drops databases on one server."""

    def __init__(self, server: EmbeddedPostgres) -> None:
        self.server = server
        self._numbers = itertools.count(1)
        self._templates: dict[tuple[str, ...], str] = {}

    def template(self, services: tuple[str, ...]) -> str:
        """The name of a database migrated for `services`, made at first need."""
        if services not in self._templates:
            name = f"template_{len(self._templates) + 1}"
            self._create(name, "template0")
            migrations.migrate(self.server.url(name), migrations.load_all(services))
            self._templates[services] = name
        return self._templates[services]

    def fresh(self, services: tuple[str, ...] = ()) -> str:
        """The name of a new database with the schemas of `services`."""
        source = self.template(services) if services else "template0"
        name = f"test_{next(self._numbers)}"
        self._create(name, source)
        return name

    def drop(self, name: str) -> None:
        """Drop a database, ending the sessions that still use it."""
        with psycopg.connect(self.server.superuser_url(), autocommit=True) as connection:
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

    def _create(self, name: str, template: str) -> None:
        with psycopg.connect(self.server.superuser_url(), autocommit=True) as connection:
            connection.execute(
                sql.SQL("CREATE DATABASE {} OWNER {} TEMPLATE {}").format(*map(sql.Identifier, (name, OWNER, template)))
            )


@pytest.fixture(scope="session")
def postgres() -> Iterator[EmbeddedPostgres]:
    """The server of this pytest process."""
    with embedded_postgres() as server:
        yield server


@pytest.fixture(scope="session")
def _databases(postgres: EmbeddedPostgres) -> Databases:
    return Databases(postgres)


@pytest.fixture
def database_for(_databases: Databases) -> Iterator[Callable[..., str]]:
    """`database_for("queue", "outbound")`: the URL of a fresh database with these services' schemas."""
    made: list[str] = []

    def make(*services: str) -> str:
        made.append(_databases.fresh(services))
        return _databases.server.url(made[-1])

    yield make
    for name in made:
        _databases.drop(name)


@pytest.fixture
def database(database_for: Callable[..., str]) -> str:
    """The URL of a fresh database with the schemas of all services."""
    return database_for(*migrations.SERVICES)


@pytest.fixture
def empty_database(database_for: Callable[..., str]) -> str:
    """The URL of a fresh database without any schema of ours."""
    return database_for()


@pytest.fixture
def disposable_postgres() -> Iterator[EmbeddedPostgres]:
    """A server of the test's own, with its database `mailrail`, which it may stop, kill and start again."""
    with embedded_postgres() as server:
        yield server
