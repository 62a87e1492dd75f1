"""Migrations on a real server (DBS-01, DBS-02)."""

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from mailrail.kit import migrations, roles
from mailrail.kit.migrations import Migration, MigrationError
from mailrail.local.postgres.server import EmbeddedPostgres

from testkit.conditions import wait_until
from testkit.postgres import embedded_postgres, oldest_programs

LETTERS = ("0001_letters.sql", "CREATE TABLE letters (id int); INSERT INTO letters SELECT generate_series(1, 1000);")
INDEX = ("0002_by_id.sql", "-- mailrail: no-transaction\nCREATE UNIQUE INDEX CONCURRENTLY by_id ON letters (id);")


def _steps(*files: tuple[str, str]) -> tuple[Migration, ...]:
    return migrations.parse("queue", files)


def _rows(url: str, query: bytes) -> list[tuple[object, ...]]:
    with psycopg.connect(url) as connection:
        return connection.execute(query).fetchall()


def _valid(url: str, index: str) -> list[tuple[object, ...]]:
    with psycopg.connect(url) as connection:
        return connection.execute(
            "SELECT i.indisvalid FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid WHERE c.relname = %s", (index,)
        ).fetchall()


def test_steps_are_applied_once_and_recorded_by_schema_DBS_02(empty_database: str) -> None:
    steps = _steps(LETTERS, ("0002_more.sql", "INSERT INTO letters VALUES (7000);"))
    assert [a.migration.number for a in migrations.migrate(empty_database, steps)] == [1, 2]
    assert migrations.migrate(empty_database, steps) == []
    assert _rows(empty_database, b"SELECT max(id) FROM queue.letters") == [(7000,)]
    recorded = _rows(empty_database, b"SELECT number, name, checksum FROM queue.migrations ORDER BY 1")
    assert recorded == [(1, "letters", steps[0].checksum), (2, "more", steps[1].checksum)]


def test_later_steps_alone_are_applied_to_an_older_database(empty_database: str) -> None:
    migrations.migrate(empty_database, _steps(LETTERS))
    assert [a.migration.label for a in migrations.migrate(empty_database, _steps(LETTERS, INDEX))] == [
        "queue/0002_by_id"
    ]


def test_a_step_that_fails_leaves_nothing_behind_DBS_02(empty_database: str) -> None:
    steps = _steps(("0001_letters.sql", "CREATE TABLE letters (id int); SELECT nonsense;"))
    with pytest.raises(MigrationError, match=r"queue/0001_letters: .*nonsense"):
        migrations.migrate(empty_database, steps)
    assert _rows(empty_database, b"SELECT to_regclass('queue.letters')") == [(None,)]
    migrations.migrate(empty_database, _steps(LETTERS))


def test_a_changed_step_is_refused(empty_database: str) -> None:
    migrations.migrate(empty_database, _steps(LETTERS))
    with pytest.raises(MigrationError, match="has queue/0001_letters in another form than this release has"):
        migrations.migrate(empty_database, _steps(("0001_letters.sql", "CREATE TABLE letters (id bigint);")))


BEFORE_0_1_0 = (
    (1, "queue", "43017f1a2cb09c8836dd69d51d1fca5c596db0a63eef8d7a920933473605018c"),
    (2, "events", "bb8dccadd970cee229aa8897966a8676f2c02aa59f0349b78574bdda3eeaea22"),
    (3, "partitions_for_a_role", "b5698b6322c477d219967aa4ca4e4e7093595ac2cca1529c7e40a72a0037608b"),
)
"""What a database has recorded that was made by the last version with the schema of before."""


@pytest.fixture
def database_of_before(empty_database: str) -> str:
    """The least of such a database: what was recorded, and a table."""
    with psycopg.connect(empty_database, autocommit=True) as connection:
        connection.execute("CREATE SCHEMA queue")
        connection.execute("CREATE TABLE queue.node (id text)")
        connection.execute(
            "CREATE TABLE queue.migrations (number integer PRIMARY KEY, name text NOT NULL, checksum text NOT NULL,"
            " seconds double precision NOT NULL, applied timestamptz NOT NULL DEFAULT now())"
        )
        for number, name, checksum in BEFORE_0_1_0:
            connection.execute("INSERT INTO queue.migrations VALUES (%s, %s, %s, 0)", (number, name, checksum))
    return empty_database


async def test_a_database_of_before_0_1_0_is_refused_with_a_sentence_DBS_02(database_of_before: str) -> None:
    said = r"queue/0001_queue .* from before 0\.1\.0, .* run empty .* DROP SCHEMA queue CASCADE .* --state folder"
    with pytest.raises(MigrationError, match=said):
        migrations.migrate(database_of_before)
    assert _rows(database_of_before, b"SELECT to_regclass('queue.recipient')") == [(None,)]
    async with await psycopg.AsyncConnection.connect(database_of_before, autocommit=True) as connection:
        with pytest.raises(migrations.Unfit, match=said):
            await migrations.check(connection, "queue")


async def test_a_service_starts_on_a_database_that_is_as_this_release_made_it(
    database_for: Callable[..., str],
) -> None:
    async with await psycopg.AsyncConnection.connect(database_for("queue"), autocommit=True) as connection:
        assert await migrations.check(connection, "queue") == migrations.needed_version("queue")


def test_a_comment_may_be_corrected_after_its_file_was_applied(empty_database: str) -> None:
    migrations.migrate(empty_database, _steps(("0001_a.sql", "-- The letters.\nCREATE TABLE a (id int);  -- a number")))
    corrected = "-- All letters,\n-- each once.\nCREATE TABLE a (id   int);"
    assert migrations.migrate(empty_database, _steps(("0001_a.sql", corrected))) == []


def test_a_second_statement_outside_a_transaction_is_refused_by_postgres_too(empty_database: str) -> None:
    two = "-- mailrail: no-transaction\nCREATE INDEX CONCURRENTLY a ON letters (id); SELECT 1"
    step = Migration("queue", 2, "two", two, transactional=False)
    migrations.migrate(empty_database, _steps(LETTERS))
    with pytest.raises(MigrationError, match="cannot run inside a transaction block"):
        migrations.migrate(empty_database, (*_steps(LETTERS), step))


def test_line_endings_of_a_checkout_on_windows_are_no_change(empty_database: str) -> None:
    migrations.migrate(empty_database, _steps(("0001_a.sql", "CREATE TABLE a (\n id int);\n")))
    assert migrations.migrate(empty_database, _steps(("0001_a.sql", "CREATE TABLE a (\r\n id int);\r\n"))) == []


def test_a_database_of_a_newer_release_is_left_alone_and_said_to_be_one(empty_database: str) -> None:
    migrations.migrate(empty_database, _steps(LETTERS, INDEX))
    said: list[str] = []
    assert migrations.migrate(empty_database, _steps(LETTERS), say=said.append) == []
    assert len(said) == 1
    assert "schema queue is at version 2, and this release knows 1" in said[0]
    assert _valid(empty_database, "by_id") == [(True,)]


def test_an_index_that_an_interrupted_build_left_invalid_is_built_again_DBS_02(empty_database: str) -> None:
    migrations.migrate(empty_database, _steps(LETTERS))
    with psycopg.connect(empty_database, autocommit=True) as connection:
        connection.execute("INSERT INTO queue.letters VALUES (1)")  # a double, so that the unique build fails
    with pytest.raises(MigrationError, match=r"queue/0002_by_id: could not create unique index"):
        migrations.migrate(empty_database, _steps(LETTERS, INDEX))
    assert _valid(empty_database, "by_id") == [(False,)]
    assert _rows(empty_database, b"SELECT number FROM queue.migrations") == [(1,)]
    with psycopg.connect(empty_database, autocommit=True) as connection:
        connection.execute("DELETE FROM queue.letters a USING queue.letters b WHERE a.id = b.id AND a.ctid < b.ctid")
    said: list[str] = []
    migrations.migrate(empty_database, _steps(LETTERS, INDEX), say=said.append)
    assert _valid(empty_database, "by_id") == [(True,)]
    assert any("index queue.by_id is invalid" in line for line in said)


def test_an_index_that_became_invalid_after_its_step_is_built_again(
    empty_database: str, postgres: EmbeddedPostgres
) -> None:
    migrations.migrate(empty_database, _steps(LETTERS, INDEX))
    name = empty_database.rsplit("/", 1)[1]
    with psycopg.connect(postgres.superuser_url(name), autocommit=True) as connection:
        connection.execute("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'queue.by_id'::regclass")
    assert migrations.migrate(empty_database, _steps(LETTERS, INDEX)) == []
    assert _valid(empty_database, "by_id") == [(True,)]


def test_an_index_that_was_dropped_on_purpose_stays_dropped(empty_database: str) -> None:
    drop = ("0003_drop.sql", "-- mailrail: no-transaction\nDROP INDEX CONCURRENTLY IF EXISTS by_id;")
    migrations.migrate(empty_database, _steps(LETTERS, INDEX, drop))
    assert migrations.migrate(empty_database, _steps(LETTERS, INDEX, drop)) == []
    assert _valid(empty_database, "by_id") == []


def test_several_processes_at_once_apply_each_step_once_DBS_02(empty_database: str, tmp_path: Path) -> None:
    script = """
import sys
from mailrail.kit import migrations
steps = migrations.parse("queue", [
    ("0001_a.sql", "CREATE TABLE a (id int); INSERT INTO a SELECT generate_series(1, 20000); SELECT pg_sleep(0.2);"),
    ("0002_b.sql", "-- mailrail: no-transaction\\nCREATE INDEX CONCURRENTLY a_id ON a (id);"),
    ("0003_c.sql", "CREATE TABLE c (id int); INSERT INTO c VALUES (1); SELECT pg_sleep(0.2);"),
])
print(len(migrations.migrate(sys.argv[1], steps)))
"""
    running = [
        subprocess.Popen([sys.executable, "-c", script, empty_database], stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    applied = [process.communicate(timeout=120)[0].strip() for process in running]
    assert [process.returncode for process in running] == [0] * 4
    assert sorted(applied) == ["0", "0", "0", "3"]
    assert _rows(empty_database, b"SELECT count(*) FROM queue.c") == [(1,)]
    assert _valid(empty_database, "a_id") == [(True,)]


def test_a_process_killed_in_the_middle_leaves_a_database_that_the_next_one_finishes(empty_database: str) -> None:
    script = """
import sys
from mailrail.kit import migrations
migrations.migrate(sys.argv[1], migrations.parse("queue", [
    ("0001_a.sql", "CREATE TABLE a (id int);"), ("0002_b.sql", "CREATE TABLE b (id int); SELECT pg_sleep(60);")]))
"""
    doomed = subprocess.Popen([sys.executable, "-c", script, empty_database])
    try:
        wait_until(
            lambda: _rows(empty_database, b"SELECT 1 FROM pg_stat_activity WHERE query LIKE 'CREATE TABLE b%'"), 30
        )
    finally:
        doomed.kill()
        doomed.wait(10)
    with psycopg.connect(empty_database, autocommit=True) as connection:  # its session lives until the sleep ends
        connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'CREATE TABLE b%'")
    steps = _steps(("0001_a.sql", "CREATE TABLE a (id int);"), ("0002_b.sql", "CREATE TABLE b (id int);"))
    assert [a.migration.number for a in migrations.migrate(empty_database, steps, timeout=30)] == [2]


def test_waiting_for_another_migration_ends_and_names_the_holder(empty_database: str) -> None:
    with psycopg.connect(empty_database, autocommit=True, application_name="somebody") as holder:
        holder.execute("SELECT pg_advisory_lock(%s::bigint)", (migrations.LOCK_KEY,))
        said: list[str] = []
        with pytest.raises(MigrationError, match=r"'somebody' from 127\.0\.0\.1"):
            migrations.migrate(empty_database, _steps(LETTERS), timeout=0.3, say=said.append)
        assert any("another process is migrating" in line for line in said)


def test_waiting_holds_no_snapshot_that_a_concurrent_index_would_wait_for_DBS_02(empty_database: str) -> None:
    """The reason for polling: a blocked pg_advisory_lock() would keep its snapshot while an index is built."""
    migrations.migrate(empty_database, _steps(LETTERS))
    with psycopg.connect(empty_database, autocommit=True) as holder:
        holder.execute("SELECT pg_advisory_lock(%s::bigint)", (migrations.LOCK_KEY,))
        told = threading.Event()
        waiter = threading.Thread(
            target=migrations.migrate,
            args=(empty_database, _steps(LETTERS, INDEX)),
            kwargs={"say": lambda _: told.set()},
        )
        waiter.start()
        try:
            assert told.wait(30)
            holder.execute("SET statement_timeout = '20s'")
            holder.execute("CREATE UNIQUE INDEX CONCURRENTLY by_id ON queue.letters (id)")
        finally:
            holder.execute("SELECT pg_advisory_unlock(%s::bigint)", (migrations.LOCK_KEY,))
            waiter.join(60)
    assert not waiter.is_alive()
    assert _valid(empty_database, "by_id") == [(True,)]


def test_a_table_that_somebody_locks_is_waited_for_in_short_tries(
    empty_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrations, "STATEMENT_LOCK_TIMEOUT", "50ms")
    migrations.migrate(empty_database, _steps(LETTERS))
    steps = _steps(LETTERS, ("0002_wide.sql", "ALTER TABLE letters ADD COLUMN wide text;"))
    with psycopg.connect(empty_database) as busy:
        busy.execute("LOCK TABLE queue.letters IN ACCESS SHARE MODE")
        migrating = threading.Thread(target=migrations.migrate, args=(empty_database, steps))
        migrating.start()
        with psycopg.connect(empty_database, autocommit=True) as reader:  # nobody queues up behind it for long
            reader.execute("SET statement_timeout = '5s'")
            assert reader.execute("SELECT count(*) FROM queue.letters").fetchone() == (1000,)
        busy.rollback()
        migrating.join(30)
    assert _rows(empty_database, b"SELECT number FROM queue.migrations ORDER BY 1") == [(1,), (2,)]


async def test_services_only_check_the_version_DBS_02(empty_database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def needed(_: str) -> int:
        return 2

    monkeypatch.setattr(migrations, "needed_version", needed)
    monkeypatch.setattr(migrations, "load", lambda _: _steps(LETTERS, INDEX))
    async with await psycopg.AsyncConnection.connect(empty_database, autocommit=True) as connection:
        with pytest.raises(migrations.SchemaOutdated, match="queue is at version 0 and this release needs 2"):
            await migrations.check(connection, "queue")
        migrations.migrate(empty_database, _steps(LETTERS))
        with pytest.raises(migrations.SchemaOutdated, match="`mailrail migrate`"):
            await migrations.check(connection, "queue")
        migrations.migrate(empty_database, _steps(LETTERS, INDEX, ("0003_newer.sql", "CREATE TABLE newer (id int);")))
        assert await migrations.check(connection, "queue") == 3


def test_a_role_for_each_service_reaches_its_own_schema_alone_DBS_01(
    empty_database: str, postgres: EmbeddedPostgres
) -> None:
    name = empty_database.rsplit("/", 1)[1]
    url = postgres.superuser_url(name)
    for schema in ("queue", "config"):
        migrations.migrate(url, migrations.parse(schema, [("0001_t.sql", "CREATE TABLE t (id int);")]))
    assert roles.grant_roles(url, ["queue", "config"]) == ["mailrail_queue", "mailrail_config"]
    assert roles.grant_roles(url, ["queue", "config"]) == ["mailrail_queue", "mailrail_config"]
    migrations.migrate(
        url,
        migrations.parse(
            "queue", [("0001_t.sql", "CREATE TABLE t (id int);"), ("0002_u.sql", "CREATE TABLE u (id int);")]
        ),
    )
    with psycopg.connect(url) as connection:
        connection.execute("SET ROLE mailrail_queue")
        connection.execute("INSERT INTO queue.t VALUES (1)")
        connection.execute("INSERT INTO queue.u VALUES (1)")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("SELECT * FROM config.t")


def test_the_migrations_of_all_services_apply_to_an_empty_database(empty_database: str) -> None:
    everything = migrations.load_all()
    assert [a.migration for a in migrations.migrate(empty_database, everything)] == list(everything)
    assert migrations.migrate(empty_database) == []


async def test_a_schema_that_lacks_a_key_is_told_from_a_complete_one(database: str) -> None:
    async with await psycopg.AsyncConnection.connect(database, autocommit=True) as connection:
        for service in migrations.SERVICES:
            await migrations.refuse_incomplete(connection, service, migrations.keys(service))
        for service, table in ("queue", "mailbox"), ("config", "head"):
            await connection.execute(f"ALTER TABLE {service}.{table} DROP CONSTRAINT {table}_pkey CASCADE".encode())
            with pytest.raises(psycopg.OperationalError, match="being restored") as raised:
                await migrations.refuse_incomplete(connection, service, migrations.keys(service))
            assert f"{migrations.keys(service) - 1} of {migrations.keys(service)} keys" in str(raised.value)


def test_the_migrations_of_all_services_apply_to_postgres_15_too_DBS_02() -> None:
    with embedded_postgres(oldest_programs()) as server:
        everything = migrations.load_all()
        assert [a.migration for a in migrations.migrate(server.url(), everything)] == list(everything)
        assert str(_rows(server.url(), b"SHOW server_version_num")[0][0]).startswith("15")


def test_no_index_depends_on_the_order_of_a_locale_which_the_operating_system_changes(database: str) -> None:
    """After another release of glibc or ICU, on the server or on the standby that takes over, it would miss rows."""
    others = _rows(
        database,
        b"SELECT i.indexrelid::regclass::text, c.collname FROM pg_index i"
        b" CROSS JOIN LATERAL unnest(i.indcollation) AS o (number) JOIN pg_collation c ON c.oid = o.number"
        b" JOIN pg_class t ON t.oid = i.indexrelid JOIN pg_namespace n ON n.oid = t.relnamespace"
        b" WHERE n.nspname IN ('queue', 'config') AND c.collname <> 'C'"
        b" AND t.relname <> 'migrations_pkey'",
    )
    assert others == []


def test_a_server_that_takes_no_writes_is_told_of_when_something_is_to_be_done(
    empty_database: str, postgres: EmbeddedPostgres
) -> None:
    name = empty_database.rsplit("/", 1)[1]
    with psycopg.connect(postgres.superuser_url(name), autocommit=True) as connection:
        connection.execute(
            sql.SQL("ALTER DATABASE {} SET default_transaction_read_only = on").format(sql.Identifier(name))
        )
    for steps in (None, _steps(LETTERS)):
        with pytest.raises(migrations.MigrationError, match=r"takes no writes: .*disk is full"):
            migrations.migrate(empty_database, steps)
