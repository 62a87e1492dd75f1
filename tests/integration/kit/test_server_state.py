"""What a service learns of the server behind a new connection (ACC-06)."""

import os
import shutil
import signal

import psycopg

from mailrail.kit.postgres import server_state
from mailrail.local.postgres.server import EmbeddedPostgres


async def timeline(url: str) -> int:
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        return (await server_state(connection)).timeline


async def test_a_promotion_is_seen_at_once_not_with_the_next_checkpoint_ACC_06(
    disposable_postgres: EmbeddedPostgres,
) -> None:
    server = disposable_postgres
    assert await timeline(server.url()) == 1
    with psycopg.connect(server.url()) as connection:  # what a promoted server has to write, and takes its time for
        connection.execute("CREATE TABLE much AS SELECT n, repeat('x', 500) AS x FROM generate_series(1, 50000) n")
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)
    server.wait(30)
    server.halt()
    standby = server.data / "standby.signal"
    shutil.copy(server.data / "PG_VERSION", standby)
    owner = (server.data / "PG_VERSION").stat()
    os.chown(standby, owner.st_uid, owner.st_gid)
    server.start()
    assert await timeline(server.url()) == 1  # a standby follows the timeline that it has
    with psycopg.connect(server.superuser_url(), autocommit=True) as connection:
        connection.execute("SET statement_timeout = '60s'")
        assert connection.execute("SELECT pg_promote()").fetchone() == (True,)
    assert await timeline(server.url()) == 2
