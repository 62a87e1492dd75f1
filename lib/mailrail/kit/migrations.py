"""Schema migrations: each service's SQL files, applied in order, safe from several processes at once (DBS-01, DBS-02).

A service ships `mailrail_<service>/sql/migrations/NNNN_name.sql`, numbered from 0001 without gaps; its schema bears its
name. Every applied step is a row of `<schema>.migrations`. While a file runs, `search_path` is that schema.

A file runs as a whole, in one transaction together with its record, unless its first lines hold the comment

    -- mailrail: no-transaction

which is for `CREATE INDEX CONCURRENTLY` and the like: such a file holds one statement, which must be repeatable (of
several, Postgres makes a transaction). An index that an interrupted build left invalid is dropped and built again.

The checksum of a file leaves out its comments and the spaces between its words, so that a comment can be corrected
after a release. For it a comment is whatever follows `--` in a line, also within quotes: write none there.

The lock is `pg_try_advisory_lock`, polled on a session of its own and outside any transaction: a blocking
`pg_advisory_lock` would hold a snapshot while it waits, and a concurrent index build waits for all older snapshots, so
the two would wait for each other. Session locks do not survive a pooler in transaction mode; `--direct-url` goes
around it.

Services call `check` and stay NOT_SERVING below the version that they were built for. None migrates, but config where
its setting `migrate` says so: a bundled Postgres may come back empty when nobody runs `mailrail migrate` any more. A
newer database is fine, because every migration keeps the release before it working.
"""

import hashlib
import importlib.resources
import importlib.util
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import psycopg
from psycopg import sql

from mailrail.kit.postgres import session, why_read_only

SERVICES = ("config", "queue", "outbound", "dmarc")
"""Every service that may own a schema; those without `sql/migrations` own none."""

LOCK_KEY = 0x6D61_696C_7261_696C  # "mailrail"; one lock a database, whatever the schemas
MARKER = "-- mailrail: no-transaction"
STATEMENT_LOCK_TIMEOUT = "5s"  # a migration that waits for a table lock blocks everybody behind it, so it waits shortly
ATTEMPTS = 20  # of a step that did not get its table lock


_COMMENT = re.compile(r"--[^\n]*")


class MigrationError(RuntimeError):
    """Migrations cannot be read or applied; the message says which and what to do."""


class Unfit(RuntimeError):
    """The database is not one that this service can work on; the text says why and what to do."""


class SchemaOutdated(Unfit):
    """The database is older than this service needs."""

    def __init__(self, schema: str, found: int, needed: int) -> None:
        super().__init__(
            f"schema {schema} is at version {found} and this release needs {needed}:"
            " run `mailrail migrate` against the same database"
        )
        self.schema = schema
        self.found = found
        self.needed = needed


@dataclass(frozen=True, slots=True)
class Migration:
    """One file."""

    schema: str
    number: int
    name: str
    text: str
    transactional: bool

    @property
    def label(self) -> str:
        """As people name it: `queue/0001_messages`."""
        return f"{self.schema}/{self.number:04}_{self.name}"

    @property
    def bare(self) -> str:
        """The text without comments, its words one space apart. For comparing, not for running."""
        return " ".join(_COMMENT.sub("", self.text).split())

    @property
    def checksum(self) -> str:
        """SHA-256 of the bare text."""
        return hashlib.sha256(self.bare.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Applied:
    """One step that `migrate` has just carried out."""

    migration: Migration
    seconds: float


# --- reading --------------------------------------------------------------------------------------------------------

_FILE = re.compile(r"(\d{4})_([a-z0-9_]+)\.sql")


def parse(schema: str, files: Iterable[tuple[str, str]]) -> tuple[Migration, ...]:
    """Migrations from (file name, text) pairs, in order. Raises MigrationError on bad names, gaps, or a
    `no-transaction` file that holds anything but one repeatable statement."""
    found: list[Migration] = []
    for file, text in sorted(files):
        match = _FILE.fullmatch(file)
        if match is None:
            raise MigrationError(f"{schema}/{file}: a migration is named NNNN_what_it_does.sql")
        header = [line.strip() for line in text.splitlines()[:10]]
        migration = Migration(schema, int(match[1]), match[2], text, MARKER not in header)
        if migration.number != len(found) + 1:
            raise MigrationError(
                f"{migration.label}: expected number {len(found) + 1:04}; numbers have no gaps and no doubles"
            )
        if not migration.transactional and not _REPEATABLE.fullmatch(migration.bare):
            raise MigrationError(
                f"{migration.label}: outside a transaction one statement that may be repeated after a crash is allowed"
                " (CREATE INDEX CONCURRENTLY, DROP INDEX CONCURRENTLY IF EXISTS, REINDEX, ANALYZE, VACUUM),"
                f" not: {migration.bare[:60]}"
            )
        found.append(migration)
    return tuple(found)


def load(service: str) -> tuple[Migration, ...]:
    """The migrations that a service ships; empty when it owns no schema or is not installed."""
    package = f"mailrail_{service}"
    if importlib.util.find_spec(package) is None:
        return ()
    folder = importlib.resources.files(package) / "sql" / "migrations"
    if not folder.is_dir():
        return ()
    return parse(
        service, ((f.name, f.read_text(encoding="utf-8")) for f in folder.iterdir() if f.name.endswith(".sql"))
    )


def load_all(services: Sequence[str] = SERVICES) -> tuple[Migration, ...]:
    """The migrations of all given services, in the order of `services`."""
    return tuple(m for service in services for m in load(service))


def needed_version(service: str) -> int:
    """The version that this release of a service was built for: the number of its last migration, 0 without any."""
    migrations = load(service)
    return migrations[-1].number if migrations else 0


_KEY = re.compile(r"\bPRIMARY KEY\b|\bUNIQUE \(|\bCREATE UNIQUE INDEX\b", re.IGNORECASE)


def keys(service: str) -> int:
    """How many unique keys the migrations give to the tables of a service's schema, partitions aside; 0 for a service
    that owns none."""
    migrations = load(service)
    return len(_KEY.findall(" ".join(migration.bare for migration in migrations))) + 1 if migrations else 0


_NAME = r'(?:"(?:[^"]|"")+"|[A-Za-z_][\w$]*)'
_INDEX = re.compile(
    rf"CREATE (?:UNIQUE )?INDEX CONCURRENTLY (?:IF NOT EXISTS )?(?P<name>{_NAME})"
    rf" ON (?:ONLY )?(?:(?P<schema>{_NAME})\.)?{_NAME}",
    re.IGNORECASE,
)
_REPEATABLE = re.compile(
    rf"(?:{_INDEX.pattern}|DROP INDEX CONCURRENTLY IF EXISTS |REINDEX |ANALYZE\b|VACUUM\b)[^;]*;?", re.IGNORECASE
)


def _folded(name: str) -> str:
    """A name as the catalog holds it: quoted ones as they are, others in lower case."""
    return name[1:-1].replace('""', '"') if name.startswith('"') else name.lower()


# --- applying -------------------------------------------------------------------------------------------------------

type_connection = psycopg.Connection[tuple[object, ...]]


def migrate(
    url: str,
    migrations: Sequence[Migration] | None = None,
    *,
    direct_url: str | None = None,
    timeout: float = 600.0,
    say: Callable[[str], None] = lambda _: None,
) -> list[Applied]:
    """Bring the database up to date and answer what was done; nothing when it was.

    `direct_url` is used in place of `url` where a pooler stands between. `timeout`: seconds to wait for another process
    that is migrating. `say` gets one line a step. Raises MigrationError; psycopg.OperationalError when out of reach.
    """
    wanted = load_all() if migrations is None else tuple(migrations)
    with psycopg.connect(direct_url or url, autocommit=True, application_name="mailrail migrate") as connection:
        _refuse_old_servers(connection)
        if (problem := wrong_encoding(connection)) is not None:
            raise MigrationError(problem)
        connection.execute(session(connection.info.server_version))
        with _lock(connection, timeout, say):
            done: list[Applied] = []
            try:
                for schema in dict.fromkeys(m.schema for m in wanted):
                    done += _migrate_schema(connection, schema, [m for m in wanted if m.schema == schema], say)
            except psycopg.errors.ReadOnlySqlTransaction as error:
                raise MigrationError(why_read_only(connection, error)) from error
            return done


def wait_for_database(url: str, seconds: float, say: Callable[[str], None]) -> None:
    """Return as soon as it lets us in; after so many seconds raise psycopg.OperationalError, which says why not."""
    deadline = time.monotonic() + seconds
    told = False
    while True:
        try:
            psycopg.connect(url, connect_timeout=5, application_name="mailrail migrate").close()
            return
        except psycopg.OperationalError as error:
            if time.monotonic() >= deadline:
                raise
            if not told:
                say(f"waiting up to {seconds:g} s for the database: {error}".splitlines()[0])
                told = True
        time.sleep(1)


def _refuse_old_servers(connection: type_connection) -> None:
    if connection.info.server_version < 150000:
        version = connection.info.parameter_status("server_version")
        raise MigrationError(f"this server is Postgres {version}; Mailrail needs 15 or newer")


def wrong_encoding(connection: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> str | None:
    """A sentence when the database's texts are not kept as UTF-8, in which all of ours are; None when they are.

    It cannot be changed of a database that exists. SQL_ASCII, what `initdb` chooses where no locale is set, would take
    any octets and give them back as such.
    """
    encoding = connection.info.parameter_status("server_encoding")
    if encoding in (None, "UTF8"):
        return None
    return (
        f"the database {connection.info.dbname} has the encoding {encoding}; Mailrail needs UTF8."
        " Make one with CREATE DATABASE ... ENCODING 'UTF8' TEMPLATE template0, and name that one"
    )


@contextmanager
def _lock(connection: type_connection, timeout: float, say: Callable[[str], None]) -> Iterator[None]:
    deadline = time.monotonic() + timeout
    told = False
    while not _one(connection, sql.SQL("SELECT pg_try_advisory_lock({})").format(LOCK_KEY)):
        if not told:
            say(
                f"another process is migrating this database ({_lock_holder(connection)});"
                f" waiting up to {timeout:.0f} s"
            )
            told = True
        if time.monotonic() >= deadline:
            raise MigrationError(
                f"another process holds the migration lock for more than {timeout:.0f} s: {_lock_holder(connection)}. "
                "Let it finish, or end that session, then run `mailrail migrate` again"
            )
        time.sleep(0.2)
    try:
        held = _one(
            connection,
            sql.SQL(
                "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid() AND granted"
                " AND ((classid::bigint << 32) | objid::bigint) = {}"
            ).format(LOCK_KEY),
        )
        if not held:
            raise MigrationError(
                "the lock was taken on another session than the next statement ran on: a pooler in transaction mode"
                " stands between. Give --direct-url with the address of Postgres itself"
            )
        yield
    finally:
        if not connection.closed and not connection.broken:
            connection.execute(sql.SQL("SELECT pg_advisory_unlock({})").format(LOCK_KEY))


def _lock_holder(connection: type_connection) -> str:
    row = connection.execute(
        sql.SQL(
            "SELECT a.pid, a.application_name, coalesce(host(a.client_addr), 'local')"
            " FROM pg_locks l JOIN pg_stat_activity a USING (pid)"
            " WHERE l.locktype = 'advisory' AND l.granted AND ((l.classid::bigint << 32) | l.objid::bigint) = {}"
        ).format(LOCK_KEY)
    ).fetchone()
    return f"backend {row[0]}, {row[1]!r} from {row[2]}" if row else "it has just finished"


def _one(connection: type_connection, query: sql.Composed) -> object:
    row = connection.execute(query).fetchone()
    return row[0] if row else None


def _changed(migration: Migration) -> str:
    return (
        f"the database has {migration.label} in another form than this release has: it was made by a version from"
        " before 0.1.0, whose databases cannot be used any more. Let the queue run empty with that version; then give"
        f" Mailrail a new database, or run DROP SCHEMA {migration.schema} CASCADE and `mailrail migrate` (local mode:"
        " remove the --state folder). If you have edited the file yourself, put the change into a new migration"
    )


def _migrate_schema(
    connection: type_connection, schema: str, wanted: Sequence[Migration], say: Callable[[str], None]
) -> list[Applied]:
    # Made only where it is missing: a server that takes no writes, and has all that is needed, is no reason to fail.
    if not _one(connection, sql.SQL("SELECT to_regclass({})").format(f"{schema}.migrations")):
        connection.execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(sql.Identifier(schema)))
        connection.execute(
            sql.SQL(
                "CREATE TABLE IF NOT EXISTS {}.migrations ("
                "number integer PRIMARY KEY, name text NOT NULL, checksum text NOT NULL,"
                " applied_at timestamptz NOT NULL DEFAULT now(), seconds double precision NOT NULL)"
            ).format(sql.Identifier(schema))
        )
    rows = connection.execute(
        sql.SQL("SELECT number, checksum FROM {}.migrations").format(sql.Identifier(schema))
    ).fetchall()
    recorded = {cast("int", number): checksum for number, checksum in rows}
    newest = max((m.number for m in wanted), default=0)
    if (found := max(recorded, default=0)) > newest:
        say(
            f"schema {schema} is at version {found}, and this release knows {newest}: it works on what the release"
            " after it made, and on nothing newer. Further back, restore a backup of that time"
        )
    done: list[Applied] = []
    for migration in wanted:
        if migration.number in recorded:
            if recorded[migration.number] != migration.checksum:
                raise MigrationError(_changed(migration))
            if not migration.transactional:
                _rebuild_invalid(connection, migration, say)
            continue
        began = time.monotonic()
        if migration.transactional:
            _apply_in_transaction(connection, migration)
        else:
            _apply_alone(connection, migration, say)
        applied = Applied(migration, time.monotonic() - began)
        say(f"{migration.label} applied in {applied.seconds:.2f} s")
        done.append(applied)
    return done


def _record(connection: type_connection, migration: Migration, seconds: float) -> None:
    connection.execute(
        sql.SQL("INSERT INTO {}.migrations (number, name, checksum, seconds) VALUES (%s, %s, %s, %s)").format(
            sql.Identifier(migration.schema)
        ),
        (migration.number, migration.name, migration.checksum, seconds),
    )


def _run(connection: type_connection, text: str) -> None:
    # Bytes, because psycopg wants a text query to be a literal: these come from our own package's files.
    connection.execute(text.encode())


def _apply_in_transaction(connection: type_connection, migration: Migration) -> None:
    for attempt in range(1, ATTEMPTS + 1):
        began = time.monotonic()
        try:
            with connection.transaction():
                connection.execute(sql.SQL("SET LOCAL search_path = {}").format(sql.Identifier(migration.schema)))
                connection.execute(sql.SQL("SET LOCAL lock_timeout = {}").format(STATEMENT_LOCK_TIMEOUT))
                _run(connection, migration.text)
                _record(connection, migration, time.monotonic() - began)
            return
        except psycopg.errors.LockNotAvailable as error:
            if attempt == ATTEMPTS:
                raise MigrationError(
                    f"{migration.label}: a table stayed locked by others; nothing was changed. Run it again"
                ) from error
            time.sleep(0.5)
        except psycopg.errors.ReadOnlySqlTransaction:
            raise
        except psycopg.errors.Error as error:
            if isinstance(error, psycopg.OperationalError) and connection.broken:
                raise
            raise MigrationError(f"{migration.label}: {error}; nothing of it was kept") from error


def _apply_alone(connection: type_connection, migration: Migration, say: Callable[[str], None]) -> None:
    began = time.monotonic()
    with _search_path(connection, migration.schema):
        try:
            index = _INDEX.match(migration.bare)
            if index is None:
                _run(connection, migration.text)
            else:
                _build_index(connection, migration, index, say)
        except psycopg.errors.Error as error:
            if isinstance(error, psycopg.OperationalError) and connection.broken:
                raise
            raise MigrationError(
                f"{migration.label}: {error}; run `mailrail migrate` again to go on from there"
            ) from error
    _record(connection, migration, time.monotonic() - began)


@contextmanager
def _search_path(connection: type_connection, schema: str) -> Iterator[None]:
    connection.execute(sql.SQL("SET search_path = {}").format(sql.Identifier(schema)))
    try:
        yield
    finally:
        if not connection.broken:
            connection.execute("RESET search_path")


def _index_state(connection: type_connection, schema: str, name: str) -> bool | None:
    """Whether an index is valid; None when there is none of that name."""
    row = connection.execute(
        "SELECT i.indisvalid AND i.indisready FROM pg_index i"
        " JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE n.nspname = %s AND c.relname = %s",
        (schema, name),
    ).fetchone()
    return None if row is None else bool(row[0])


def _build_index(
    connection: type_connection, migration: Migration, index: re.Match[str], say: Callable[[str], None]
) -> None:
    schema = _folded(index["schema"]) if index["schema"] else migration.schema
    name = _folded(index["name"])
    state = _index_state(connection, schema, name)
    if state is True:
        return
    if state is False:
        say(
            f"{migration.label}: index {schema}.{name} is invalid, left by an interrupted build;"
            " dropping and building it again"
        )
        connection.execute(sql.SQL("DROP INDEX CONCURRENTLY IF EXISTS {}").format(sql.Identifier(schema, name)))
    _run(connection, migration.text)


def _rebuild_invalid(connection: type_connection, migration: Migration, say: Callable[[str], None]) -> None:
    """An index of a recorded step that has become invalid since (an interrupted REINDEX, say) is built anew.

    One that is gone stays gone: a later migration may have dropped it.
    """
    index = _INDEX.match(migration.bare)
    if index is None:
        return
    schema = _folded(index["schema"]) if index["schema"] else migration.schema
    if _index_state(connection, schema, _folded(index["name"])) is False:
        with _search_path(connection, migration.schema):
            _build_index(connection, migration, index, say)


# --- checking -------------------------------------------------------------------------------------------------------


def _version_query(schema: str) -> sql.Composed:
    return sql.SQL("SELECT coalesce(max(number), 0) FROM {}.migrations").format(sql.Identifier(schema))


def _checksums_query(schema: str) -> sql.Composed:
    return sql.SQL("SELECT number, checksum FROM {}.migrations").format(sql.Identifier(schema))


async def version(connection: psycopg.AsyncConnection[tuple[object, ...]], schema: str) -> int:
    """The version of a schema in the database; 0 when it was never migrated."""
    try:
        row = await (await connection.execute(_version_query(schema))).fetchone()
    except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
        await connection.rollback()
        return 0
    return cast("int", row[0]) if row else 0


# A key is an index; partitions have theirs from their table.
_KEYS = """SELECT count(*) FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid
    WHERE c.relnamespace = to_regnamespace(%s) AND NOT c.relispartition AND i.indisunique AND i.indisvalid"""


async def refuse_incomplete(connection: psycopg.AsyncConnection[Any], service: str, needed: int) -> None:
    """Raises psycopg.OperationalError while the tables of the service's schema have fewer than its `keys`.

    pg_restore makes the tables, then fills them, then makes their keys: a table that has its key has its rows. Until
    then it would take a row twice, and its highest id is not known.
    """
    row = await (await connection.execute(_KEYS, (service,))).fetchone()
    found = int(row[0]) if row else 0
    if found < needed:
        raise psycopg.OperationalError(
            f"schema {service} has {found} of {needed} keys: it is being restored, or its restore broke off."
            " Let the restore end, or begin it again with a new database"
        )


async def check(connection: psycopg.AsyncConnection[tuple[object, ...]], service: str) -> int:
    """The version of the service's schema (DBS-02). Raises Unfit; SchemaOutdated when it is below what this release
    needs; psycopg.OperationalError while it is being restored."""
    if (problem := wrong_encoding(connection)) is not None:
        raise Unfit(problem)
    found, needed = await version(connection, service), needed_version(service)
    if found:  # what was made otherwise cannot be brought up to date either
        rows = await (await connection.execute(_checksums_query(service))).fetchall()
        recorded = {cast("int", number): checksum for number, checksum in rows}
        for migration in load(service)[:found]:
            if recorded.get(migration.number) != migration.checksum:
                raise Unfit(_changed(migration))
    if found < needed:
        raise SchemaOutdated(service, found, needed)
    await refuse_incomplete(connection, service, keys(service))
    return found
