"""The pool of a service: what a restart or a failover of Postgres broke is not handed out."""

import grpc
import psycopg
import pytest
from psycopg_pool import PoolTimeout

from mailrail.kit.postgres import Login, pool
from mailrail.local.postgres.server import EmbeddedPostgres
from mailrail_queue.rpc.answering import Rows, answering
from mailrail_queue.store.connection import Database

from testkit.failover import pair


async def test_connections_that_the_server_ended_are_never_handed_out(
    empty_database: str, postgres: EmbeddedPostgres
) -> None:
    name = empty_database.rsplit("/", 1)[1]
    async with pool(Login.of(empty_database), "public", size=4) as connections:
        await connections.wait()
        async with connections.connection() as connection:
            await connection.execute("SELECT 1")
        with psycopg.connect(postgres.superuser_url(name), autocommit=True) as administration:
            administration.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        for _ in range(4):
            async with connections.connection() as connection:
                row = await (await connection.execute("SELECT 42")).fetchone()
            assert row == (42,)


async def test_a_pool_that_keeps_none_opens_its_first_connection_when_it_is_asked_for(empty_database: str) -> None:
    count = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'seldom'"
    async with pool(Login.of(empty_database), "public", kept=0, application="seldom") as connections:
        await connections.wait()
        with psycopg.connect(empty_database) as other:
            assert other.execute(count).fetchone() == (0,)
        async with connections.connection() as connection:
            assert await (await connection.execute(count)).fetchone() == (1,)


async def test_a_server_that_is_gone_without_a_word_is_noticed_soon(empty_database: str) -> None:
    async with pool(Login.of(empty_database), "public", size=1) as connections, connections.connection() as connection:
        parameters = connection.info.get_parameters()
        assert (parameters["tcp_user_timeout"], parameters["keepalives_idle"]) == ("20000", "20")


async def test_a_connection_to_a_standby_is_neither_handed_out_nor_kept() -> None:
    """The address leads to a demoted server for a while, and connections that stand are kept, as kube-proxy does."""
    with pair() as servers:
        servers.primary.sql("CREATE TABLE t (n int); GRANT ALL ON t TO mailrail")
        servers.wait_until_followed()
        async with pool(Login.of(servers.url), "public", size=4, timeout=2.0) as connections:
            async with connections.connection() as connection:
                await connection.execute("INSERT INTO t VALUES (1)")
            servers.lead_to(servers.standby)
            with pytest.raises(PoolTimeout):
                async with connections.connection() as connection:
                    pass
            servers.lead_to(servers.primary, cut=False)
            async with connections.connection(timeout=20) as connection:
                await connection.execute("INSERT INTO t VALUES (2)")
            query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'mailrail'"
            assert servers.standby.one(query) == 0, "none is kept to the standby"
        assert servers.primary.one("SELECT count(*) FROM t") == 2


async def test_a_standby_is_named_as_what_it_is_to_lanes_and_administrators() -> None:
    class Refused(Exception):
        pass

    class Context:
        def auth_context(self) -> dict[str, list[bytes]]:
            return {}

        def peer(self) -> str:
            return "ipv4:127.0.0.1:1"

        async def abort(self, code: grpc.StatusCode, text: str) -> None:
            raise Refused(code.name, text)

    with pair() as servers:
        database = Database(Login.of(servers.standby.url), "test")
        try:
            with pytest.raises(psycopg.OperationalError, match=r"postgres is a standby now.*target_session_attrs"):
                await database.lane("x").run("CREATE TABLE t (n int)")
        finally:
            await database.close()
        async with pool(Login.of(servers.primary.url), "public", size=1) as connections:

            async def change() -> None:
                async with answering(Context()), Rows(connections).use() as connection:  # type: ignore[arg-type]
                    await connection.execute("SET default_transaction_read_only = on")
                    await connection.execute("CREATE TABLE t (n int)")

            with pytest.raises(Refused) as refused:
                await change()
            assert refused.value.args[0] == "UNAVAILABLE"
            assert "the database is unreachable: postgres takes no writes" in refused.value.args[1]
