"""A database of Mailrail copied into another one, whole, so that mail goes on there: `mailrail cluster move-database`.

    drain     take all shards of the queue, so that no delivery begins, and let those under way end (SHD-01)
    fence     make both databases read-only and end every session that began before: nothing is accepted any more, and
              ingress answers 451, so that mail waits at its senders
    copy      schemas, rows and sequences, in one transaction of the target
    compare   rows of each table, by number and content, before that transaction commits
    open      the target takes writes; the source stays fenced, so nobody goes on in it by mistake

Both fences are settings of the databases themselves (default_transaction_read_only), which outlive this process, and
the services go by them. So a run that was killed is simply repeated: before the commit the target holds nothing yet,
after it a second run finds two equal databases and only opens the target. `give_up` ends an unfinished move.

Where ids go on is not decided here: the copy is on another server than its history began on, so the first process that
uses it begins a new history and raises all counters (HIS-01).
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from graphlib import TopologicalSorter
from typing import Any, Final, LiteralString, cast

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from mailrail.kit import migrations
from mailrail.kit.postgres import ALIVE, session

Connection = psycopg.Connection[tuple[Any, ...]]

FENCE: Final = "default_transaction_read_only"
_LOCK: Final = 0x6D61_696C_6D6F_7665  # "mailmove": one move at a time
_OWNER: Final = "mailrail cluster move-database"
_MOVED: Final = "moved by Mailrail"
"""How the comment on a source begins once all is done."""
_OF_DATABASE: Final = "FROM pg_database WHERE datname = current_database()"
_BEAT: Final = 1.0
"""Seconds between heartbeats of the one that holds all shards; the queue calls it dead after several."""
_SESSIONS: Final = 30.0
"""Seconds for sessions that were told to end."""
_REPORT: Final = 10.0
"""Seconds between words on a table that takes long."""


class MoveRefused(Exception):
    """The move did not begin, or was given up and left the source as it is; the text says why and what to do."""


@dataclass(frozen=True)
class Holdings:
    """Mail in a database."""

    queued: int = 0
    """Recipients that are not final."""
    mailbox_messages: int = 0

    def __bool__(self) -> bool:
        return self != Holdings()

    def __str__(self) -> str:
        return f"{self.queued} queued recipients and {self.mailbox_messages} messages in mailboxes"


@dataclass(frozen=True)
class MovedTable:
    """A table of the target that has the same rows as that of the source."""

    name: str
    rows: int


@dataclass(frozen=True)
class Move:
    """What was done."""

    tables: tuple[MovedTable, ...] = ()
    holdings: Holdings = Holdings()
    copied: bool = True
    """False: an earlier run had copied everything, and this one found both equal."""
    seconds: float = 0.0


@dataclass(frozen=True)
class _Table:
    """A table that holds rows, or a partition that does."""

    schema: str
    name: str
    parent: str | None
    bound: str | None
    columns: tuple[str, ...]
    foreign: bool
    """It holds numbers of transactions (xid8), which mean nothing on another server."""

    @property
    def identifier(self) -> sql.Identifier:
        return sql.Identifier(self.schema, self.name)

    @property
    def label(self) -> str:
        return f"{self.schema}.{self.name}"

    @property
    def list(self) -> sql.Composed:
        return sql.SQL(", ").join(map(sql.Identifier, self.columns))


# --- what is there --------------------------------------------------------------------------------------------------


def connect(url: str, *, within: int = 5) -> Connection:
    """A session that says itself all that it depends on, and may write to a fenced database. Raises psycopg.Error.

    `within`: seconds for the server to answer.
    """
    connection: Connection = psycopg.connect(
        url, autocommit=True, connect_timeout=within, application_name=_OWNER, **ALIVE
    )
    try:
        connection.execute(session(connection.info.server_version, **{FENCE: "off"}))
    except BaseException:
        connection.close()
        raise
    return connection


def lineage(connection: Connection) -> str:
    """What a database and all its copies have in common: when its first migrations were applied. Empty: it has none."""
    found = []
    for schema in migrations.SERVICES:
        if _there(connection, schema):
            query = sql.SQL("SELECT applied_at::text FROM {} WHERE number = 1")
            row = connection.execute(query.format(sql.Identifier(schema, "migrations"))).fetchone()
            found += [f"{schema} {row[0]}"] if row else []
    return ", ".join(found)


def holdings(connection: Connection) -> Holdings:
    """The mail in a database; none where it has no schema of the queue."""
    if not _there(connection, "queue"):
        return Holdings()
    return Holdings(
        *_one(connection, "SELECT (SELECT count(*) FROM queue.recipient), (SELECT count(*) FROM queue.mailbox_message)")
    )


def fenced(connection: Connection) -> bool:
    """Whether a database takes no writes by its own setting."""
    query: LiteralString = """SELECT EXISTS (SELECT FROM pg_db_role_setting s JOIN pg_database d ON d.oid = setdatabase
        WHERE d.datname = current_database() AND s.setrole = 0 AND %s = ANY(s.setconfig))"""
    return bool(_one(connection, query, f"{FENCE}=on")[0])


def moved_to(connection: Connection) -> str:
    """Where a database was moved, in words; empty: it was not."""
    (text,) = _one(connection, f"SELECT shobj_description(oid, 'pg_database') {_OF_DATABASE}")
    return str(text) if text and text.startswith(_MOVED) else ""


def _there(connection: Connection, schema: str) -> bool:
    return bool(_one(connection, "SELECT to_regclass(%s) IS NOT NULL", f"{schema}.migrations")[0])


def _one(connection: Connection, query: LiteralString, *values: object) -> tuple[Any, ...]:
    row = connection.execute(query, values or None).fetchone()
    assert row is not None
    return row


# --- the move -------------------------------------------------------------------------------------------------------


def move(source: str, target: str, *, drain: float = 60.0, say: Callable[[str], None] = lambda _: None) -> Move:
    """Copy the database at one URL into that at the other, and leave the first fenced. May be repeated.

    `drain`: seconds that deliveries under way may take to end. `say` gets a line a step. Raises MoveRefused,
    migrations.MigrationError, and psycopg.Error where a server is out of reach or refuses.
    """
    began = time.monotonic()
    with connect(source) as old, connect(target) as new, _alone(old):
        if _identity(old) == _identity(new):
            raise MoveRefused("source and target are the same database")
        ours = lineage(old)
        if not ours:
            raise MoveRefused(
                f"the database {old.info.dbname} on {old.info.host} has no schema of Mailrail: name another"
            )
        if lineage(new) == ours and not fenced(new):
            say("the target holds this database already, and takes writes")
            return Move(holdings=holdings(new), copied=False, seconds=time.monotonic() - began)
        if lineage(new) != ours:
            _refuse_others(new)
        if not fenced(old):
            migrations.migrate(source, say=say)
            _refuse_newer(old)
            _drain(old, drain, say)
        held = holdings(old)
        say(f"moving {held}")
        fence(source, old)
        fence(target, new)
        say("both databases are read-only: nothing is accepted until this is done")
        copied = lineage(new) != ours
        if copied:
            migrations.migrate(_writing(target), say=say)
        tables = _copy(old, new, copy=copied, say=say)
        _describe(old, f"{_MOVED} to database {new.info.dbname} on {new.info.host}; read-only since")
        release(new)
    say(f"the target has {sum(t.rows for t in tables)} rows in {len(tables)} tables, as the source; it takes writes")
    return Move(tuple(tables), held, copied, time.monotonic() - began)


def give_up(source: str, target: str) -> None:
    """Let the source of an unfinished move take writes again. MoveRefused after a finished one, psycopg.Error."""
    with connect(source) as old, connect(target) as new, _alone(old):
        if lineage(old) == lineage(new) and not fenced(new):
            raise MoveRefused("the move is finished: mail is accepted in the target, and would be in two databases")
        release(old)


def fence(url: str, connection: Connection) -> None:
    """Make a database read-only for every session but those of `connect`, and end those that began before.

    Raises MoveRefused where that cannot be had.
    """
    name = sql.Identifier(connection.info.dbname)
    try:
        connection.execute(sql.SQL("ALTER DATABASE {} SET {} = on").format(name, sql.Identifier(FENCE)))
    except psycopg.errors.InsufficientPrivilege as error:
        raise MoveRefused(
            f"role {connection.info.user} does not own the database {connection.info.dbname} on {connection.info.host},"
            " and only its owner can make it read-only for the time of the move: ALTER DATABASE ... OWNER TO ..."
        ) from error
    (since,) = _one(connection, "SELECT clock_timestamp()")
    # A superuser's session is none of ours: monitoring, or the server's own upkeep.
    older: LiteralString = """SELECT a.pid, a.usename FROM pg_stat_activity a JOIN pg_roles r ON r.oid = a.usesysid
        WHERE a.datname = current_database() AND a.pid <> pg_backend_pid() AND NOT r.rolsuper
        AND (a.backend_start IS NULL OR a.backend_start < %s)"""
    deadline = time.monotonic() + _SESSIONS
    while sessions := connection.execute(older, (since,)).fetchall():
        for pid, user in sessions:
            try:
                connection.execute("SELECT pg_terminate_backend(%s)", (pid,))
            except psycopg.errors.InsufficientPrivilege as error:
                raise MoveRefused(
                    f"session {pid} of role {user} may still write, and role {connection.info.user} may not end it:"
                    " end it, and run this again"
                ) from error
        if time.monotonic() > deadline:
            raise MoveRefused(f"{len(sessions)} sessions of before do not end; run this again")
        time.sleep(0.1)
    with psycopg.connect(url, connect_timeout=5) as probe:
        row = probe.execute(sql.SQL("SHOW {}").format(sql.Identifier(FENCE))).fetchone()
    if row != ("on",):
        raise MoveRefused(
            f"a setting of role {connection.info.user} or of the URL says {FENCE} = off, which keeps the database"
            " writable: take it away, and run this again"
        )


def release(connection: Connection) -> None:
    """Let a database take writes again, wherever it was moved to."""
    name = sql.Identifier(connection.info.dbname)
    if moved_to(connection):
        connection.execute(sql.SQL("COMMENT ON DATABASE {} IS NULL").format(name))
    connection.execute(sql.SQL("ALTER DATABASE {} RESET {}").format(name, sql.Identifier(FENCE)))


def _writing(url: str) -> str:
    """The URL for a session that may write to a fenced database."""
    options = str(conninfo_to_dict(url).get("options") or "")
    return make_conninfo(url, options=f"{options} -c {FENCE}=off".strip())


def _describe(connection: Connection, text: str) -> None:
    (now,) = _one(connection, "SELECT date_trunc('second', now())::text")
    connection.execute(
        sql.SQL("COMMENT ON DATABASE {} IS {}").format(sql.Identifier(connection.info.dbname), f"{text} {now}")
    )


@contextmanager
def _alone(connection: Connection) -> Iterator[None]:
    deadline = time.monotonic() + _SESSIONS
    while not _one(connection, "SELECT pg_try_advisory_lock(%s)", _LOCK)[0]:
        if time.monotonic() > deadline:
            raise MoveRefused("another process moves this database: wait until it ends")
        time.sleep(0.5)
    yield  # the lock goes with the session


def _identity(connection: Connection) -> tuple[Any, ...]:
    return _one(connection, "SELECT (pg_control_system()).system_identifier, current_database()")


def _refuse_others(new: Connection) -> None:
    """The target may have empty schemas, and nothing that somebody has use for."""
    for schema, tables in (
        ("queue", ("message", "recipient", "mailbox_message", "history")),
        ("config", ("revisions",)),
    ):
        for table in tables if _there(new, schema) else ():
            query = sql.SQL("SELECT EXISTS (SELECT FROM {})").format(sql.Identifier(schema, table))
            row = new.execute(query).fetchone()
            if row is not None and row[0]:
                raise MoveRefused(
                    f"the database {new.info.dbname} on {new.info.host} is in use: {schema}.{table} has rows."
                    " Name an empty one"
                )


def _refuse_newer(old: Connection) -> None:
    for schema in migrations.SERVICES:
        if _there(old, schema):
            query = sql.SQL("SELECT max(number) FROM {}").format(sql.Identifier(schema, "migrations"))
            (found,) = cast("tuple[int]", old.execute(query).fetchone())
            known = migrations.needed_version(schema)
            if found > known:
                raise MoveRefused(
                    f"schema {schema} is at version {found}, and this release knows {known}: use the image of the"
                    " release that made it"
                )


def _drain(old: Connection, within: float, say: Callable[[str], None]) -> None:
    """Own all shards as a queue process of its own, so that nobody leases, until no lease is left or time is up."""
    deadline, told = time.monotonic() + within, False
    name = f"{_OWNER} {old.info.backend_pid} {time.time_ns()}"
    while True:
        with old.transaction():
            old.execute(
                """INSERT INTO queue.process (id, name, address) VALUES (%s, %s, '')
                ON CONFLICT (id) DO UPDATE SET seen = now()""",
                (name, _OWNER),
            )
            old.execute(
                """UPDATE queue.shard SET owner = %s, epoch = epoch + 1, since = now()
                WHERE owner IS DISTINCT FROM %s""",
                (name, name),
            )
        (leased,) = _one(old, "SELECT count(*) FROM queue.recipient WHERE token IS NOT NULL")
        if not leased:
            break
        if time.monotonic() > deadline:
            say(f"{leased} deliveries did not end in {within:.0f} s: their mail is sent again after the move")
            break
        if not told:
            say(f"no delivery begins any more; waiting up to {within:.0f} s for {leased} that are under way")
            told = True
        time.sleep(_BEAT)
    with old.transaction():
        old.execute("DELETE FROM queue.process WHERE id = %s", (name,))
        old.execute("UPDATE queue.shard SET owner = NULL WHERE owner = %s", (name,))


# --- tables ---------------------------------------------------------------------------------------------------------

_TABLES: Final[LiteralString] = """SELECT n.nspname, c.relname, p.relname, pg_get_expr(c.relpartbound, c.oid),
    (SELECT array_agg(a.attname::text ORDER BY a.attnum) FROM pg_attribute a
        WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''),
    EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND a.atttypid = 'xid8'::regtype)
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    LEFT JOIN pg_inherits i ON i.inhrelid = c.oid LEFT JOIN pg_class p ON p.oid = i.inhparent
    WHERE n.nspname = ANY(%s) AND c.relkind = 'r' AND c.relpersistence = 'p' ORDER BY 1, 2"""
_REFERENCES: Final[LiteralString] = """SELECT n.nspname || '.' || c.relname, m.nspname || '.' || d.relname
    FROM pg_constraint f JOIN pg_class c ON c.oid = f.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace
    JOIN pg_class d ON d.oid = f.confrelid JOIN pg_namespace m ON m.oid = d.relnamespace
    WHERE f.contype = 'f' AND n.nspname = ANY(%s)"""
_SEQUENCES: Final[LiteralString] = """SELECT n.nspname, c.relname FROM pg_class c
    JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = ANY(%s) AND c.relkind = 'S' ORDER BY 1, 2"""
_UNLOGGED: Final[LiteralString] = """SELECT n.nspname, c.relname FROM pg_class c
    JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = ANY(%s) AND c.relkind = 'r' AND c.relpersistence = 'u'"""


def _tables(connection: Connection) -> list[_Table]:
    """The tables with rows, those before that others refer to. Unlogged ones hold what comes again by itself."""
    schemas = list(migrations.SERVICES)
    rows = connection.execute(_TABLES, (schemas,)).fetchall()
    found = {t.label: t for t in (_Table(s, n, p, b, tuple(c or ()), f) for s, n, p, b, c, f in rows)}
    order: TopologicalSorter[str] = TopologicalSorter(dict.fromkeys(found, ()))
    for table, other in connection.execute(_REFERENCES, (schemas,)).fetchall():
        if table in found and other in found and table != other:
            order.add(table, other)
    return [found[label] for label in order.static_order()]


def _copy(old: Connection, new: Connection, *, copy: bool, say: Callable[[str], None]) -> list[MovedTable]:
    """Everything in one transaction of the target, compared before it commits; or, without `copy`, compared alone."""
    done: list[MovedTable] = []
    with old.transaction(), new.transaction():
        old.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        tables = _tables(old)
        if copy:
            tables = [t for t in tables if _has_place(new, t, say)]
            _empty(new)
        for table in tables:
            if copy:
                _copy_rows(old, new, table, say)
            there, here = (_content(c, table) for c in (old, new))
            if there != here:
                raise MoveRefused(
                    f"{table.label}: the source has {there[0]} rows and the target {here[0]}, or their content differs:"
                    " nothing was kept in the target. Run this again"
                )
            say(f"{table.label}: {there[0]} rows")
            done.append(MovedTable(table.label, there[0]))
        if copy:
            _copy_sequences(old, new)
            _renumber_events(new)
    return done


def _has_place(new: Connection, table: _Table, say: Callable[[str], None]) -> bool:
    """Make the partition where the target has none like it: days of history that migrations made long ago."""
    if _one(new, "SELECT to_regclass(%s) IS NOT NULL", table.label)[0]:
        return True
    if table.parent is None or table.bound is None:
        say(f"{table.label} is not part of this release's schema, and stays behind")
        return False
    parent = sql.Identifier(table.schema, table.parent)
    new.execute(sql.SQL("CREATE TABLE {} (LIKE {} INCLUDING ALL)").format(table.identifier, parent))
    # The bound is what Postgres itself wrote of the source's catalogue.
    bound = sql.SQL(cast(Any, table.bound))
    new.execute(sql.SQL("ALTER TABLE {} ATTACH PARTITION {} {}").format(parent, table.identifier, bound))
    return True


def _empty(new: Connection) -> None:
    """Take away what migrations put into new tables."""
    names = [t.identifier for t in _tables(new)]
    unlogged = new.execute(_UNLOGGED, (list(migrations.SERVICES),)).fetchall()
    names += [sql.Identifier(schema, name) for schema, name in unlogged]
    new.execute(sql.SQL("TRUNCATE {}").format(sql.SQL(", ").join(names)))


def _copy_rows(old: Connection, new: Connection, table: _Table, say: Callable[[str], None]) -> None:
    form = sql.SQL("COPY {} ({}) {} (FORMAT binary)")
    out = form.format(table.identifier, table.list, sql.SQL("TO STDOUT"))
    into = form.format(table.identifier, table.list, sql.SQL("FROM STDIN"))
    octets, told = 0, time.monotonic()
    with old.cursor().copy(out) as reading, new.cursor().copy(into) as writing:
        for block in reading:
            writing.write(block)
            octets += len(block)
            if time.monotonic() - told > _REPORT:
                told = time.monotonic()
                say(f"{table.label}: {octets / 1e6:.0f} MB so far")


def _content(connection: Connection, table: _Table) -> tuple[Any, ...]:
    """Number of rows, and a sum over their content that does not depend on their order."""
    total: sql.Composable = sql.SQL("0")
    if not table.foreign:
        row = sql.SQL("sha256(convert_to(ROW({})::text, 'UTF8'))").format(table.list)
        digits = sql.SQL("('x' || left(encode({}, 'hex'), 15))::bit(60)::bigint").format(row)
        total = sql.SQL("coalesce(sum({}), 0)").format(digits)
    found = connection.execute(sql.SQL("SELECT count(*), {} FROM {}").format(total, table.identifier)).fetchone()
    assert found is not None
    return found


def _copy_sequences(old: Connection, new: Connection) -> None:
    for schema, name in old.execute(_SEQUENCES, (list(migrations.SERVICES),)).fetchall():
        query = sql.SQL("SELECT last_value, is_called FROM {}").format(sql.Identifier(schema, name))
        last, called = cast("tuple[int, bool]", old.execute(query).fetchone())
        where = sql.Identifier(schema, name).as_string(new)
        if _one(new, "SELECT to_regclass(%s) IS NOT NULL", where)[0]:
            new.execute("SELECT setval(%s::regclass, %s, %s)", (where, last, called))


def _renumber_events(new: Connection) -> None:
    """Events are read by the transaction that wrote them, and those of the source are none of this server: all of them
    become this one's. A consumer begins with the first that it has not acknowledged, and may see some again."""
    if not _there(new, "queue"):
        return
    new.execute(
        """UPDATE queue.event_consumer c SET transaction = pg_current_xact_id(), position = coalesce(
            (SELECT min(e.id) - 1 FROM queue.event e WHERE (e.transaction, e.id) > (c.transaction, c.position)),
            (SELECT max(e.id) FROM queue.event e), 0)"""
    )
    new.execute("UPDATE queue.event SET transaction = pg_current_xact_id()")
