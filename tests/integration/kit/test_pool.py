"""The pool of a service: what a restart of Postgres broke is not handed out."""

import psycopg

from mailrail.kit.postgres import pool
from mailrail.local.postgres import EmbeddedPostgres


async def test_connections_that_the_server_ended_are_never_handed_out(
    empty_database: str, postgres: EmbeddedPostgres
) -> None:
    name = empty_database.rsplit("/", 1)[1]
    async with pool(empty_database, "public", size=4) as connections:
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


async def test_a_server_that_is_gone_without_a_word_is_noticed_soon(empty_database: str) -> None:
    async with pool(empty_database, "public", size=1) as connections, connections.connection() as connection:
        parameters = connection.info.get_parameters()
        assert (parameters["tcp_user_timeout"], parameters["keepalives_idle"]) == ("20000", "20")
