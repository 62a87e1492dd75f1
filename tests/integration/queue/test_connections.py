"""How many connections a process opens, and what it does with too few."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest
from prometheus_client import REGISTRY

from mailrail.core.limits import CHUNK_SIZE
from mailrail.kit import migrations
from mailrail.kit.postgres import CONNECTIONS, NEEDED
from mailrail_queue.__main__ import assemble
from mailrail_queue.settings import QueueSettings
from mailrail_queue.store import connection
from mailrail_queue.upkeep import server_room
from mailrail_queue.upkeep.server_room import ServerRoom

from testkit.conditions import eventually
from testkit.failover import single
from testkit.queue import QUICK, a_revision, configure, message_id, running_queue

DOCS = Path(__file__).resolve().parents[3] / "docs"


async def test_the_documented_number_of_connections_is_what_a_process_opens() -> None:
    queue, _ = assemble(replace(QUICK, node_id="a"))
    lanes, watch, pool_of_config, follower = len(queue.database._lanes), 1, 8, 1
    assert lanes + watch + QueueSettings().admin_connections == CONNECTIONS["queue"]
    assert pool_of_config + follower + watch == CONNECTIONS["config"]
    for page in ("how-to/kubernetes.md", "runbooks/MailrailDatabaseErrors.md"):
        text = " ".join((DOCS / page).read_text().split())
        assert f"queue process needs {CONNECTIONS['queue']}" in text, page
        assert f"a config process {CONNECTIONS['config']}" in text, page
        assert f"an outbound process {CONNECTIONS['outbound']}" in text, page
        assert f"a dmarc process {CONNECTIONS['dmarc']}" in text, page


async def test_with_too_few_connections_the_queue_is_not_ready_and_says_how_many_it_needs(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Those come first without which mail would be accepted that nobody retries."""
    with single() as server:
        migrations.migrate(server.url, migrations.load_all(("queue",)))
        role = urlsplit(server.url).username
        server.sql(f"ALTER ROLE {role} CONNECTION LIMIT 6")
        queue, _ = assemble(replace(QUICK, database_url=server.url, node_id="a"))
        configure(queue, a_revision())
        preparing = asyncio.create_task(queue.prepare())
        try:
            await eventually(
                lambda: (
                    f"6 of {len(queue.database._lanes)} connections" in (said := capsys.readouterr().out)
                    and NEEDED in said
                )
            )
            held = server.sql(
                "SELECT application_name FROM pg_stat_activity WHERE application_name LIKE 'mailrail queue a %'"
            )
            assert {name.removeprefix("mailrail queue a ") for (name,) in held} == {
                "heartbeat",
                "owner",
                "work",
                "lease",
                "finish 1",
                "ids",
            }
            assert not preparing.done()
            assert not queue.ready
            server.sql(f"ALTER ROLE {role} CONNECTION LIMIT 30")
            await asyncio.wait_for(preparing, 30)
        finally:
            preparing.cancel()
            await asyncio.gather(preparing, return_exceptions=True)
            await queue.database.close()


async def test_lanes_that_are_seldom_used_give_their_sessions_back_and_open_at_their_next_use(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An idle session takes 2.4 MiB of Postgres."""
    monkeypatch.setattr(connection, "_REST_AFTER", 0.5)
    async with running_queue(database, node="a") as q:

        async def sessions() -> set[str]:
            rows = await q.sql(
                "SELECT application_name FROM pg_stat_activity WHERE application_name LIKE 'mailrail queue a %'"
            )
            return {name.removeprefix("mailrail queue a ") for (name,) in rows}

        always = {"heartbeat", "owner", "work", "lease", "finish 1", "finish 2", "ids", "accept 1", "accept 2"}
        always |= {"upkeep", "backlog", "watch"}

        async def at_rest() -> bool:
            return await sessions() == always

        condition: Callable[[], bool | Awaitable[bool | None] | None] = at_rest

        await eventually(condition)
        ingress = await q.ingress()
        number = message_id()
        ingress.chunk(number, b"x" * CHUNK_SIZE)
        await q.until("SELECT count(*) = 1 FROM chunk")
        assert await q.queue.group_commit.outcome(message_id()) is None
        await eventually(condition)


def exported(name: str, **labels: str) -> float | None:
    """A sample as a scrape sees it; None: there is none."""
    return REGISTRY.get_sample_value(f"mailrail_queue_postgres_{name}", labels)


async def test_sessions_are_counted_beside_each_limit_of_server_database_and_role() -> None:
    with single(max_connections="90", superuser_reserved_connections="5") as server:
        migrations.migrate(server.url, migrations.load_all(("queue",)))
        role, name = urlsplit(server.url).username, urlsplit(server.url).path.removeprefix("/")
        as_superuser = (
            "SELECT count(*), count(*) FILTER (WHERE datname = current_database()),"
            " count(*) FILTER (WHERE usename = %s) FROM pg_stat_activity"
            " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
        )
        async with running_queue(server.url, count_seconds=600.0) as q:

            async def measured() -> ServerRoom:
                return await server_room.measure(q.queue.counting.lane)

            assert (await measured()).limits == {"server": 85}
            assert exported("connections_allowed", limit="role") is None, "there is no such limit"
            server.sql(f"ALTER ROLE {role} CONNECTION LIMIT 70")
            server.sql(f"ALTER DATABASE {name} CONNECTION LIMIT 60")
            elsewhere = await psycopg.AsyncConnection.connect(server.postgres.superuser_url())
            beside = await psycopg.AsyncConnection.connect(server.postgres.superuser_url(name))
            async with elsewhere, beside:

                async def settled() -> ServerRoom | None:
                    """Once no session comes or goes: those of the test's own questions end after their answers."""
                    now = await measured()
                    found = (now.connections["server"], now.connections["database"], now.connections["role"])
                    alone = found[0] - found[1] == found[1] - found[2] == 1
                    return now if alone and [found] == server.sql(as_superuser, role) else None

                condition: Callable[[], ServerRoom | Awaitable[ServerRoom | None] | None] = settled
                now = await eventually(condition)
                assert now.limits == {"server": 85, "database": 60, "role": 70}
                for what, count in now.connections.items():
                    assert exported("connections", limit=what) == count
                    assert exported("connections_allowed", limit=what) == now.limits[what]
                ((size,),) = server.sql("SELECT pg_database_size(current_database())")
                assert now.octets == exported("database_bytes") == pytest.approx(size, rel=0.2)
