"""How many connections a process opens, and what it does with too few."""

import asyncio
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from mailrail.kit import migrations
from mailrail.kit.postgres import CONNECTIONS, NEEDED
from mailrail_queue.__main__ import assemble
from mailrail_queue.settings import QueueSettings

from testkit.conditions import eventually
from testkit.failover import single
from testkit.queue import QUICK, a_revision, configure

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
