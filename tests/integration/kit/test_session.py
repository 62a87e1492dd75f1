"""A session has the settings that we depend on, whatever the server, the database or the role says (ACC-06)."""

import base64
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from integration.config.conftest import config_service, consumer, publisher, sources
from psycopg import sql

from mailrail.core.revision.revision import Role
from mailrail.kit import migrations
from mailrail.kit.postgres import SESSION, Login, Unsafe, pool, server_state
from mailrail.local.postgres.server import OWNER, EmbeddedPostgres
from mailrail.pb.queue.v1 import types_pb2
from mailrail_config.store import NewRevision, RevisionStore, Sealed
from mailrail_queue.store.connection import Database

from testkit.conditions import eventually
from testkit.queue import commit_of, running_queue

HOSTILE = {
    "synchronous_commit": "off",
    "client_min_messages": "error",
    "client_encoding": "LATIN1",
    "standard_conforming_strings": "off",
    "datestyle": "SQL, DMY",
    "intervalstyle": "iso_8601",
    "timezone": "Pacific/Kiritimati",
    "bytea_output": "escape",
    "extra_float_digits": "0",
    "array_nulls": "off",
    "transform_null_equals": "on",
    "default_transaction_isolation": "serializable",
    "default_transaction_deferrable": "on",
    "row_security": "on",
    "statement_timeout": "900ms",
    "lock_timeout": "900ms",
    "idle_in_transaction_session_timeout": "900ms",
    "idle_session_timeout": "900ms",
    "transaction_timeout": "900ms",
    "search_path": "pg_catalog",
}
"""What an administrator may have set for another application: each of our settings, otherwise."""

LIMITS = {name for name in SESSION if name.endswith("_timeout")}


def set_for_role(postgres: EmbeddedPostgres, url: str, settings: dict[str, str]) -> None:
    """ALTER ROLE ... IN DATABASE ... SET: the strongest that there is besides the session itself."""
    name = url.rpartition("/")[2]
    with psycopg.connect(postgres.superuser_url(name), autocommit=True) as connection:
        for setting, value in settings.items():
            if setting == "transaction_timeout" and connection.info.server_version < 170000:
                continue
            if setting == "search_path":
                written: sql.Composable = sql.Identifier(value)
            else:
                written = sql.Literal(value)
            connection.execute(
                sql.SQL("ALTER ROLE {} IN DATABASE {} SET {} = {}").format(
                    sql.Identifier(OWNER), sql.Identifier(name), sql.Identifier(setting), written
                )
            )


@pytest.fixture
def hostile(empty_database: str, postgres: EmbeddedPostgres) -> str:
    """A database whose role has every setting otherwise, migrated under that."""
    set_for_role(postgres, empty_database, HOSTILE)
    migrations.migrate(empty_database)
    return empty_database


def test_the_settings_that_are_tried_are_all_that_we_depend_on() -> None:
    assert set(HOSTILE) == {*SESSION, "search_path"}
    assert not [name for name, value in SESSION.items() if HOSTILE[name].lower() == value.lower()]


async def test_lanes_pools_and_their_transactions_have_our_settings_ACC_06(hostile: str) -> None:
    database = Database(Login.of(hostile), "test")
    try:
        async with (
            database.lane("test").use() as lane,
            pool(Login.of(hostile), "config", size=1) as connections,
            connections.connection() as pooled,
        ):
            for connection, schema in ((lane, "queue"), (pooled, "config")):
                for name, wanted in {**SESSION, "search_path": f'"{schema}"'}.items():
                    cursor = await connection.execute("SELECT current_setting(%s, true)", (name,))
                    row = await cursor.fetchone()
                    assert row is not None
                    if name not in LIMITS:
                        assert row[0] == wanted, name
                    else:  # our own, where a limit is wanted
                        assert row[0] in (None, "0", "10s", "30s", "1min"), name
                cursor = await connection.execute("SHOW transaction_isolation")
                assert await cursor.fetchone() == ("read committed",)
    finally:
        await database.close()


async def test_mail_passes_and_is_told_of_under_every_strange_setting_at_once(hostile: str) -> None:
    async with running_queue(hostile) as q:
        outbound, ingress = await q.outbound(), await q.ingress()
        await ingress.accept("josé@dömäin.example", mail_from="ÿ@away.example", body=b"Subject: \xff\r\n\r\n\x00\\\r\n")
        await eventually(outbound.has(1))
        outbound.finish(outbound.deliveries[0], outcome=types_pb2.OUTCOME_FAILED, text="naïve \\ ❌")
        await q.until("SELECT count(*) = 1 FROM history WHERE address = %s", "josé@dömäin.example")
        await q.until("SELECT count(*) = 1 FROM recipient WHERE address = %s", "ÿ@away.example")


async def test_configuration_is_stored_and_read_as_it_is_under_every_strange_setting_at_once_CFG_02(
    hostile: str, tmp_path: Path
) -> None:
    (tmp_path / "0001").write_bytes(base64.b64encode(bytes(range(32))))
    async with config_service(hostile) as service:
        outbound = consumer(tmp_path, service.target, Role.OUTBOUND)
        async with outbound.client.running():
            await publisher(tmp_path, service.target).publish(sources())
            got = await outbound.client.wait_first()
        password = got.revision.transports[0].password
        assert password is not None
        assert got.secret(password) == b"looking-glass"
        assert [row.revision for row in await service.store.history(10)] == [1]


OCTETS = bytes(range(256)) + b"\\x41\\\\"


async def test_octets_are_stored_as_they_are_by_binary_parameters_even_where_backslashes_escape_CFG_02(
    database_for: Callable[..., str],
) -> None:
    async with pool(Login.of(database_for("config")), "config", size=1) as connections:
        async with connections.connection() as connection:
            await connection.execute("SET standard_conforming_strings = off")  # the session's word, undone
        store = RevisionStore(connections)
        head, _, _ = await store.acquire("test")
        new = NewRevision("sum", OCTETS, OCTETS[::-1], "", "", ("a",))
        await store.publish(head.epoch, 0, new, [Sealed("a", "queue", "k", OCTETS)], {})
        assert await store.body(1) == OCTETS
        assert [value.sealed for value in await store.sealed("queue", ["a"])] == [OCTETS]
        again = NewRevision("sum", OCTETS, b"\\" + OCTETS, "", "", ("a",))
        assert (await store.publish(head.epoch, 1, again, [], {})).unchanged
        assert (await store.acquire("test"))[2] == b"\\" + OCTETS


async def test_that_commits_wait_for_the_disk_is_looked_up_again_after_it_was_set_ACC_06(database: str) -> None:
    async with await psycopg.AsyncConnection.connect(database, autocommit=True) as connection:
        (await server_state(connection)).check()
        await connection.execute("SET synchronous_commit = off")  # another's, behind a pooler in transaction mode
        with pytest.raises(Unsafe, match="synchronous_commit was set to on, but the next statement has off"):
            (await server_state(connection)).check()


# --- what cannot be set ----------------------------------------------------------------------------------------------


@pytest.fixture
def ascii_database(postgres: EmbeddedPostgres) -> Iterator[str]:
    """A database as `initdb` makes it where LANG is not set."""
    with psycopg.connect(postgres.superuser_url(), autocommit=True) as connection:
        connection.execute("CREATE DATABASE ascii OWNER mailrail ENCODING 'SQL_ASCII' TEMPLATE template0")
        yield postgres.url("ascii")
        connection.execute("DROP DATABASE ascii WITH (FORCE)")


async def test_a_database_that_does_not_keep_utf_8_is_refused_with_what_to_do(ascii_database: str) -> None:
    with pytest.raises(migrations.MigrationError, match=r"encoding SQL_ASCII; Mailrail needs UTF8\. Make one with"):
        migrations.migrate(ascii_database)
    # Nor does a service become ready on one that was migrated before that was looked at.
    async with await psycopg.AsyncConnection.connect(ascii_database, autocommit=True) as connection:
        with pytest.raises(migrations.Unfit, match="encoding SQL_ASCII; Mailrail needs UTF8"):
            await migrations.check(connection, "queue")


async def test_a_server_that_takes_no_writes_is_not_called_a_standby_when_it_is_full(
    database: str, postgres: EmbeddedPostgres
) -> None:
    """Hosted servers set default_transaction_read_only when their disk is full."""
    set_for_role(postgres, database, {"default_transaction_read_only": "on"})
    opened = Database(Login.of(database), "test")
    try:
        with pytest.raises(psycopg.OperationalError, match=r"default_transaction_read_only is on.*disk is full"):
            await opened.lane("x").run("INSERT INTO sweep_candidate (message_id) SELECT gen_random_uuid()")
    finally:
        await opened.close()
    assert migrations.migrate(database) == [], "nothing is to be done, so nothing is written"


async def test_a_queue_waits_and_says_why_where_nothing_can_be_written(
    database: str, postgres: EmbeddedPostgres
) -> None:
    async with running_queue(database) as q:
        ingress = await q.ingress()
        set_for_role(postgres, database, {"default_transaction_read_only": "on"})
        name = database.rpartition("/")[2]
        with psycopg.connect(postgres.superuser_url(name), autocommit=True) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            (answer,) = ingress.commit(commit_of("a@b.example"))
            await eventually(lambda: not q.queue.shards.healthy)
            assert not answer.done()
            connection.execute(
                sql.SQL("ALTER ROLE {} IN DATABASE {} RESET ALL").format(sql.Identifier(OWNER), sql.Identifier(name))
            )
        assert (await answer).accepted
