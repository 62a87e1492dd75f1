"""Postgres for a service: a pool of async connections that commit durably, and the check that they can (ACC-06).

One URL and one role suffice (DBS-01). Every connection says itself what it depends on (`session`), so neither a
server's, a database's nor a role's default can weaken promise 1 or change what a value means.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, LiteralString
from weakref import WeakSet

import psycopg
import psycopg.sql
from psycopg import AsyncConnection
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg_pool import AsyncConnectionPool

from mailrail.kit import log
from mailrail.kit.settings import BadSettings, DatabaseSettings, port_number, read_again

ALIVE: Mapping[str, Any] = MappingProxyType(
    {"keepalives_idle": 20, "keepalives_interval": 5, "keepalives_count": 3, "tcp_user_timeout": 20_000}
)
"""Parameters of a connection that notices a server whose node is gone without a word; else a query to it waits for as
long as TCP tries, a quarter of an hour."""


def unreadable(url: str) -> str | None:
    """A sentence when libpq would make nothing of this URL, or something else than was meant; None when all is well.

    A password with a raw `@` or `/` in it ends early, and its rest is taken for a host, a port or a database: libpq's
    own words, and a resolver's, would show it. This says nothing of what is in the URL.
    """
    try:
        parts = conninfo_to_dict(url)
    except psycopg.ProgrammingError:
        parts = None
    if parts is not None:
        where = [str(parts.get(name) or "") for name in ("host", "port", "dbname")]
        misread = "://" in url and url.count("@") > 1 and any("@" in part for part in where)
        if not misread and all(not port or port_number(port) for port in where[1].split(",")):
            return None
    return (
        "not the URL of a Postgres; write postgresql://USER:PASSWORD@HOST:5432/DATABASE, with each special character of"
        " user and password percent-encoded (@ is %40, / is %2F, % is %25, a space is %20)"
    )


def database_of(settings: DatabaseSettings) -> str:
    """Where a service's tables live, as libpq reads it: its URL, with user and password where they are given apart.

    Raises BadSettings.
    """
    if (problem := unreadable(settings.database_url)) is not None:
        raise BadSettings(f"MAILRAIL_DATABASE_URL is {problem}, or give the password apart: MAILRAIL_DATABASE_PASSWORD")
    apart = {"user": settings.database_user, "password": settings.database_password}
    given = {name: value for name, value in apart.items() if value}
    return make_conninfo(settings.database_url, **given) if given else settings.database_url


class Login:
    """Where a service's tables live and as whom it logs in, as it is now.

    A password, a URL or a certificate in a mounted Secret is rotated under a running process. So each new connection
    asks anew (libpq itself reads the files of certificates for each); connections that stand are left alone.
    """

    def __init__(self, settings: DatabaseSettings) -> None:
        """Raises BadSettings."""
        self._settings = settings
        self._last = database_of(settings)
        self._problem = ""
        self.connections: WeakSet[AsyncConnection[Any]] = WeakSet()
        """Those that were made by it, perhaps closed by now."""
        self._log = log.get_logger()

    @classmethod
    def of(cls, url: str) -> "Login":
        """To where a URL leads that does not change."""
        return cls(DatabaseSettings(database_url=url))

    def conninfo(self) -> str:
        """For libpq. While a file cannot be read, or makes no sense, what it said before stays in use."""
        try:
            self._last, self._problem = database_of(read_again(self._settings)), ""
        except BadSettings as error:
            if str(error) != self._problem:
                self._problem = str(error)
                self._log.warning("cannot read the login for Postgres; the last one stays in use", reason=str(error))
        return self._last

    async def connect(self, application: str, **how: Any) -> AsyncConnection[Any]:
        """A new connection in autocommit. Raises psycopg.OperationalError; a refused password with where it is from."""
        try:
            connection = await AsyncConnection.connect(self.conninfo(), **connecting(application), **how)
            self.connections.add(connection)
            return connection
        except psycopg.OperationalError as error:
            if "authentication failed" not in str(error):
                raise
            raise type(error)(f"{str(error).strip()}. {self._password_source()}") from error

    def _password_source(self) -> str:
        settings = self._settings
        apart = settings.database_password or "database_password" in settings.files
        field = "database_password" if apart else "database_url"
        if (file := settings.files.get(field)) is not None:
            return f"The password is that in {file}, which is read again for each connection: put the right one there"
        variable = f"MAILRAIL_{field.upper()}"
        if field == "database_url" and not conninfo_to_dict(settings.database_url).get("password"):
            return f"{variable} has no password, so it is libpq's: PGPASSWORD or a password file"
        return (
            f"The password is that of {variable}, which a running process cannot read again: restart it with the"
            f" right one. It is read again for each connection where {variable}_FILE names a file"
        )


def connecting(application: str) -> dict[str, Any]:
    """Parameters of every connection of a service."""
    return {"application_name": application, "connect_timeout": 5, "autocommit": True, **ALIVE}


CONNECTIONS: Mapping[str, int] = MappingProxyType({"queue": 24, "config": 10, "outbound": 2, "dmarc": 4})
"""Most connections that one process of a service opens, with default settings: what a server, a role or a pooler has to
allow for each."""
NEEDED = (
    "a queue process needs {queue}, a config process {config}, an outbound process {outbound} and a dmarc process"
    " {dmarc}"
).format(**CONNECTIONS)


SESSION: Mapping[str, str] = MappingProxyType(
    {
        # A commit that is answered is on disk (ACC-06); that its wait for a standby was cut off is a warning (DUR-01).
        "synchronous_commit": "on",
        "client_min_messages": "warning",
        # How values are written: we read and write them as they are by default.
        "client_encoding": "UTF8",
        "standard_conforming_strings": "on",
        "datestyle": "ISO, MDY",
        "intervalstyle": "postgres",
        "timezone": "UTC",
        "bytea_output": "hex",
        "extra_float_digits": "1",
        "array_nulls": "on",
        "transform_null_equals": "off",
        # What a transaction sees. Fencing compares what others commit meanwhile, which only read committed shows. Rows
        # that a policy would hide are an error and no mail that is silently not there.
        "default_transaction_isolation": "read committed",
        "default_transaction_deferrable": "off",
        "row_security": "off",
        # Limits are set by whoever knows how long the work takes.
        "statement_timeout": "0",
        "lock_timeout": "0",
        "idle_in_transaction_session_timeout": "0",
        "idle_session_timeout": "0",
        "transaction_timeout": "0",
    }
)
"""Every setting of a session that we depend on. `default_transaction_read_only` is not among them: a hosted server sets
it while its disk is full, and who writes on all the same brings it down."""

_SINCE: Mapping[str, int] = MappingProxyType({"transaction_timeout": 170000})
"""Settings that older servers than these (server_version_num) do not know."""


def session(version: int, schema: str | None = None, **own: str) -> psycopg.sql.Composed:
    """The one statement that gives a session its settings: SESSION, under those of the caller's `own`.

    `version`: server_version_num. `schema`: what `search_path` shall be; None leaves it. To be executed on its own,
    right after connecting; settings of the role, of the database or in the URL's `options` do not stand against it.
    """
    wanted = {**SESSION, **own}
    if schema is not None:
        wanted["search_path"] = '"' + schema.replace('"', '""') + '"'
    calls = [
        psycopg.sql.SQL("set_config({}, {}, false)").format(name, value)
        for name, value in wanted.items()
        if version >= _SINCE.get(name, 0)
    ]
    return psycopg.sql.SQL("SELECT {}").format(psycopg.sql.SQL(", ").join(calls))


async def enter(connection: AsyncConnection[Any], schema: str, **own: str) -> None:
    """Give a new connection its settings (`session`). Raises psycopg.Error."""
    await _first(connection, session(connection.info.server_version, schema, **own))


async def _first(connection: AsyncConnection[Any], query: psycopg.sql.Composed | LiteralString) -> Any:
    """The first value of a new connection's first query, not prepared.

    A pooler says yes to a login before it has a connection to the server, and lets the first query wait for one, for
    minutes or for ever. Raises psycopg.errors.ConnectionTimeout after ANSWERS_WITHIN seconds, saying so.
    """
    try:
        async with asyncio.timeout(ANSWERS_WITHIN):
            row = await (await connection.execute(query, prepare=False)).fetchone()
    except TimeoutError:
        raise psycopg.errors.ConnectionTimeout(
            f"the login succeeded, and the first query got no answer in {ANSWERS_WITHIN:g} s. If a pooler stands"
            f" between, it has too few connections to the server: {NEEDED}"
        ) from None
    return row[0] if row is not None else None


_BACKEND: Final[LiteralString] = "SELECT pg_backend_pid()"


async def refuse_shared_sessions(connection: AsyncConnection[Any]) -> None:
    """Raises psycopg.OperationalError where a pooler gives each transaction whatever session is free.

    There settings, locks and prepared statements of one client are met by another. Asked of a new connection that is
    in no transaction. Without a pooler this costs one query: the backend is the one that the login named. With one, a
    second connection shows whether the first keeps its backend while it is idle.
    """
    mine = await _first(connection, _BACKEND)
    if mine == connection.info.backend_pid:
        return
    place = make_conninfo(connection.info.dsn, password=connection.info.password)
    async with await AsyncConnection.connect(place, autocommit=True) as other:
        for _ in range(5):  # others come and go meanwhile, so that it may be given back its own by chance
            async with other.transaction():
                theirs = await _first(other, _BACKEND)
                meanwhile = await _first(connection, _BACKEND)
            if theirs == mine or meanwhile != mine or await _first(connection, _BACKEND) != mine:
                raise psycopg.OperationalError(
                    "a pooler in transaction mode is in between, and this service needs sessions of its own: use the"
                    " address of Postgres itself, or a pooler in session mode"
                )


def ended(connection: AsyncConnection[Any]) -> bool:
    """Whether the server ended a connection while nothing ran on it: then what comes next was never sent (ACC-05)."""
    if connection.closed:
        return True
    try:
        for _ in range(2):  # the server's last words, then the end; neither waits
            connection.pgconn.consume_input()
    except psycopg.Error:
        return True
    return False


def why_read_only(connection: psycopg.Connection[Any] | AsyncConnection[Any], error: Exception) -> str:
    """A sentence for 25006, read_only_sql_transaction: why this server takes no writes, and what to do.

    The server itself reports both settings to its clients (Postgres 14, protocol 55.2.7), so this asks nothing.
    """
    status = connection.pgconn.parameter_status
    if status(b"in_hot_standby") == b"on":
        return (
            "postgres is a standby now: the address leads to a server that takes no writes. Lead it to the primary, or"
            " name all servers in the URL with target_session_attrs=read-write"
        )
    if status(b"default_transaction_read_only") == b"on":
        return (
            "postgres takes no writes: default_transaction_read_only is on. Hosted servers set it when their disk is"
            " full: make room there; who set it for the role or the database may reset it"
        )
    return f"postgres takes no writes: {str(error).strip()}"


async def check_connection(connection: AsyncConnection[Any]) -> None:
    """For a pool: whether a connection leads to a server that answers and can write.

    Raises psycopg.OperationalError; a standby answers queries for as long as one likes, and none of ours that counts.
    """
    cursor = await connection.execute("SELECT pg_is_in_recovery()")
    row = await cursor.fetchone()
    if row is not None and row[0]:
        raise psycopg.OperationalError(
            "this server is a standby: lead the address to the primary, or name all servers in the URL with"
            " target_session_attrs=read-write"
        )


ANSWERS_WITHIN = 10.0
"""Seconds for the first query of a new connection, which does next to nothing."""


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
    synchronous_commit: str = "on"

    def check(self) -> None:
        """Raises Unsafe when commits are not durable."""
        if not self.fsync:
            raise Unsafe("Postgres runs with fsync=off: a power cut loses accepted mail. Turn it on")
        if not self.full_page_writes:
            raise Unsafe("Postgres runs with full_page_writes=off: a power cut tears pages. Turn it on")
        if self.synchronous_commit != "on":
            raise Unsafe(
                f"synchronous_commit was set to on, but the next statement has {self.synchronous_commit}: a power cut"
                " loses accepted mail. A pooler in transaction mode is in between: use the address of Postgres"
                " itself, or a pooler in session mode"
            )


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
        f" {SERVER}, current_setting('synchronous_commit')"
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
    login: Login,
    schema: str,
    *,
    size: int = 8,
    kept: int = 1,
    application: str = "mailrail",
    timeout: float = 10.0,
    opened: Callable[[AsyncConnection[Any]], Awaitable[None]] | None = None,
) -> AsyncIterator[AsyncConnectionPool[AsyncConnection[tuple[Any, ...]]]]:
    """A pool whose connections look into `schema` and commit durably. It opens even while Postgres is down.

    `timeout`: seconds that a caller waits for a connection before psycopg_pool.PoolTimeout. A statement may take a
    minute. Connections beyond `kept` are opened when they are asked for, and close after a minute without use. A
    connection to a standby is never handed out, nor kept. `opened` is told of each before its first use; one for which
    it raises is given to nobody.
    """

    async def configure(connection: AsyncConnection[Any]) -> None:
        login.connections.add(connection)
        try:
            await connection.set_autocommit(True)
            await enter(connection, schema, statement_timeout="60s", idle_in_transaction_session_timeout="60s")
            await check_connection(connection)
            if opened is not None:
                await opened(connection)
        except BaseException as error:
            if isinstance(error, psycopg.errors.ConnectionTimeout):  # else nobody is told more than that there is none
                log.get_logger().warning("cannot open a connection", application=application, error=str(error))
            await connection.close()  # the pool forgets it as it is
            raise

    made: AsyncConnectionPool[AsyncConnection[tuple[Any, ...]]] = AsyncConnectionPool(
        login.conninfo,
        kwargs=connecting(application),
        configure=configure,
        # Connections of before a restart of Postgres would fail once each, long after it is back; those to a server
        # that was made a standby would do so for an hour.
        check=check_connection,
        min_size=kept,
        max_size=size,
        timeout=timeout,
        max_idle=60.0,
        max_lifetime=3600.0,
        reconnect_timeout=5.0,
        open=False,
    )
    await made.open(wait=False)
    try:
        yield made
    finally:
        await made.close()
