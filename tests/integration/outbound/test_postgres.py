"""Outbound beside its Postgres: away, without our schema, hung, and back. Mail goes on through all that."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, LiteralString
from urllib.parse import urlsplit

import psycopg
import pytest
from integration.outbound.test_service import World, world

from mailrail.core.revision.revision import Gateway, ObjectRef, Revision, TlsMode, TransportKind
from mailrail.kit import migrations, roles
from mailrail.kit.postgres import CONNECTIONS, NEEDED, Login
from mailrail.local.postgres.server import EmbeddedPostgres
from mailrail.pb.queue.v1 import types_pb2
from mailrail.sink import Sink
from mailrail_outbound import metrics
from mailrail_outbound.store import connection as connection_module
from mailrail_outbound.store.connection import DomainDatabase, DomainLane, Row, Unavailable, run

from testkit.conditions import eventually
from testkit.faultproxy import FaultProxy
from testkit.outbound import GATEWAY, transport
from testkit.peers.pgbouncer import pgbouncer

ACCOUNT = ObjectRef("MailAccount", "default", "pm")
NOWHERE = "postgresql://127.0.0.1:1/nowhere"
OURS = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'mailrail outbound %'"
BEFORE = ("config", "queue")
"""The schemas of release 0.1.0."""


async def on(lane: DomainLane, statement: LiteralString) -> list[Row]:
    async with lane.use() as connection:
        return await run(connection, statement, {})


def up() -> bool:
    return bool(metrics.POSTGRES_UP._value.get())


@contextlib.asynccontextmanager
async def delivering(
    tmp_path: Path, url: str, **settings: Any
) -> AsyncIterator[tuple[World, Callable[[], Awaitable[None]]]]:
    """Outbound on that database, and a call that sends a message through it and awaits its result."""
    async with Sink() as peer:
        via = transport(TransportKind.SMTP, host=peer.host, port=peer.port, tls=TlsMode.NONE)
        async with world(tmp_path, via, database_url=url, **settings) as here:

            async def deliver() -> None:
                delivery = here.delivery(via)
                here.queue.hand_out(delivery)
                assert (await here.result(delivery.token)).attempt.outcome == types_pb2.OUTCOME_DELIVERED

            yield here, deliver


async def test_outbound_is_ready_without_postgres_and_delivers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with delivering(tmp_path, NOWHERE) as (_, deliver):
        await deliver()
        said = ""

        def told() -> bool:
            nonlocal said
            said += capsys.readouterr().out
            return "Postgres cannot be used; mail goes on as far as memory knows" in said

        await eventually(told)
        assert not up()


async def test_after_an_upgrade_outbound_serves_before_the_schema_is_there_and_takes_it_when_it_comes(
    tmp_path: Path, database_for: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    url = database_for(*BEFORE)
    async with delivering(tmp_path, url) as (_, deliver):
        said = ""

        def told() -> bool:
            nonlocal said
            said += capsys.readouterr().out
            return "schema outbound is at version 0 and this release needs 1: run `mailrail migrate`" in said

        await eventually(told)
        await deliver()
        assert not up()
        migrations.migrate(url)
        await eventually(up)


async def test_a_process_that_starts_takes_nothing_before_the_schema_is_there_or_has_kept_it_waiting_for_long(
    tmp_path: Path, database_for: Callable[..., str]
) -> None:
    """Else a roll-out would replace processes that know policies by some that cannot read any yet."""
    url = database_for(*BEFORE)
    starting = asyncio.create_task(_deliver_once(tmp_path, url, database_wait=300.0))
    try:
        with psycopg.connect(url, autocommit=True) as connection:
            await eventually(lambda: (connection.execute(OURS).fetchone() or (0,))[0] > 0 or starting.done())
        assert not starting.done()
        migrations.migrate(url)
        await asyncio.wait_for(starting, 60)
    finally:
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)


async def _deliver_once(tmp_path: Path, url: str, **settings: Any) -> None:
    async with delivering(tmp_path, url, **settings) as (_, deliver):
        await deliver()
        assert up()


async def test_a_release_before_finds_its_schemas_as_they_were_after_a_rollback(database: str) -> None:
    steps = migrations.load_all(BEFORE)
    assert migrations.migrate(database, steps) == []
    async with await psycopg.AsyncConnection.connect(database, autocommit=True) as connection:
        for service in BEFORE:
            assert await migrations.check(connection, service) == migrations.needed_version(service)


async def test_a_postgres_that_hangs_stops_no_delivery_and_is_used_again_when_it_answers(
    tmp_path: Path, database: str
) -> None:
    place = urlsplit(database)
    with FaultProxy((place.hostname or "", place.port or 0)) as proxy:
        through = place._replace(netloc=f"{place.username}:{place.password}@{proxy.address}:{proxy.port}").geturl()
        async with delivering(tmp_path, through) as (_, deliver):
            await eventually(up)
            proxy.stall()
            await deliver()
            await eventually(lambda: not up())
            await deliver()
            proxy.resume()
            await eventually(up)
            proxy.cut()
            await deliver()
            proxy.resume()
            await eventually(up)


async def test_outbound_opens_as_many_connections_as_documented(tmp_path: Path, database: str) -> None:
    async with delivering(tmp_path, database) as (_, deliver):
        await eventually(up)
        await deliver()
        with psycopg.connect(database, autocommit=True) as connection:
            await eventually(lambda: connection.execute(OURS).fetchone() == (CONNECTIONS["outbound"],))


async def test_the_session_that_reads_rests_while_nobody_reads_and_is_back_when_somebody_does(
    database: str, postgres: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_module, "_REST_AFTER", 0.5)
    monkeypatch.setattr(connection_module, "_LOOK", 0.05)
    store = DomainDatabase(Login.of(database), "resting")
    looking = asyncio.create_task(store.run())
    try:
        async with await psycopg.AsyncConnection.connect(postgres.superuser_url(), autocommit=True) as connection:

            async def ours() -> list[str]:
                asked = OURS.replace("count(*)", "application_name").replace("%", "resting %")
                found = await connection.execute(asked)
                return sorted(name.rsplit(" ", 1)[1] for (name,) in await found.fetchall())

            async def reading_rests() -> None:
                while await ours() != ["write"]:
                    await asyncio.sleep(0.02)

            await asyncio.wait_for(store.wait_first(60), 60)
            assert up(), "both were there at the start, so there is room for them"
            await asyncio.wait_for(reading_rests(), 60)
            assert await on(store.reading, "SELECT count(*) FROM mta_sts") == [(0,)]
            await asyncio.wait_for(reading_rests(), 60)
            assert store.problem is None
            name = database.rsplit("/", 1)[1]
            await connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false".encode())
            with pytest.raises(Unavailable, match="not currently accepting connections"):
                await on(store.reading, "SELECT 1")
            await eventually(lambda: "not currently accepting connections" in (store.problem or ""))
            await connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true".encode())
            await eventually(lambda: store.problem is None)
    finally:
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)
        await store.close()


async def test_a_role_of_its_own_is_enough_for_outbound_DBS_01(database: str, postgres: EmbeddedPostgres) -> None:
    name = database.rsplit("/", 1)[1]
    (role,) = roles.grant_roles(postgres.superuser_url(name), ["outbound"])
    with psycopg.connect(postgres.superuser_url(name), autocommit=True) as connection:
        connection.execute(f"ALTER ROLE {role} LOGIN PASSWORD 'its own'".encode())
    own = f"postgresql://{role}:its%20own@127.0.0.1:{postgres.port}/{name}"
    store = DomainDatabase(Login.of(own), "own")
    try:
        for lane in (store.reading, store.writing):
            assert await on(lane, "SELECT current_user") == [(role,)]
        with pytest.raises(Unavailable, match="permission denied for schema queue"):
            await on(store.reading, "SELECT * FROM queue.message")
    finally:
        await store.close()


async def test_a_database_that_takes_no_writes_is_said_to_be_one_and_is_read_all_the_same(
    database: str, postgres: EmbeddedPostgres
) -> None:
    name = database.rsplit("/", 1)[1]
    with psycopg.connect(postgres.superuser_url(), autocommit=True) as connection:
        connection.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on".encode())
    store = DomainDatabase(Login.of(database), "fenced")
    try:
        with pytest.raises(Unavailable, match="default_transaction_read_only is on"):
            await on(store.writing, "SELECT 1")
        assert await on(store.reading, "SELECT count(*) FROM mta_sts") == [(0,)]
    finally:
        await store.close()


async def test_what_is_wrong_with_postgres_is_told_to_config_for_as_long_as_it_is(
    tmp_path: Path, database_for: Callable[..., str]
) -> None:
    """`mailrail config status` has it from there."""
    url = database_for(*BEFORE)
    async with delivering(tmp_path, url) as (here, _):
        await here.config.publish(Revision(gateways=(Gateway(GATEWAY, "mail.sender.example", (), ACCOUNT),)))
        (problem,) = await eventually(lambda: here.config.reported.problems)
        assert (problem.kind, problem.namespace, problem.name) == ("MailGateway", "default", "edge")
        assert (problem.part, problem.reason) == ("postgres", "PostgresUnavailable")
        assert "schema outbound is at version 0" in problem.message
        migrations.migrate(url)
        await eventually(lambda: not here.config.reported.problems)


@pytest.mark.peer("pgbouncer")
@pytest.mark.parametrize(
    ("mode", "size", "words"),
    [
        ("transaction", 10, "a pooler in transaction mode is in between"),
        ("session", 1, f"it may have too few connections to the server: {NEEDED}"),
    ],
)
async def test_a_pooler_that_will_not_do_is_told_with_a_sentence(
    database: str, mode: str, size: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_module, "ANSWERS_WITHIN", 1.0)
    with pgbouncer(database, mode, size=size) as url:
        store = DomainDatabase(Login.of(url), "pooled")
        try:
            with pytest.raises(Unavailable) as told:  # noqa: PT012 -- whichever of them finds no room
                await on(store.reading, "SELECT 1")
                await on(store.writing, "SELECT 1")
            assert words in str(told.value)
        finally:
            await store.close()


@pytest.mark.peer("pgbouncer")
async def test_a_pooler_in_session_mode_is_as_good_as_none(database: str) -> None:
    with pgbouncer(database, "session") as url:
        store = DomainDatabase(Login.of(url), "pooled")
        try:
            for lane in (store.reading, store.writing):
                assert await on(lane, "SELECT count(*) FROM mta_sts") == [(0,)]
        finally:
            await store.close()
