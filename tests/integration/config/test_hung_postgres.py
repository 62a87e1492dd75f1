"""A Postgres that hangs: config says so, serves what it has, and goes on by itself (ACC-09)."""

import time
from pathlib import Path

import pytest
from integration.config.conftest import config_service

from mailrail.kit import migrations
from mailrail_config import metrics

from testkit.conditions import eventually
from testkit.failover import pair, single

pytestmark = pytest.mark.timeout(300)


async def test_config_is_not_ready_while_postgres_is_silent_and_goes_on_after_it_ACC_09(
    keys_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with single() as server:
        migrations.migrate(server.url, migrations.load_all(("config",)))
        async with config_service(server.url) as service:
            await eventually(lambda: service.ready)
            with server.frozen():
                began = time.monotonic()
                await eventually(lambda: not service.ready and metrics.POSTGRES_UP._value.get() == 0, 15)
                print(f"noticed after {time.monotonic() - began:.1f} s")
            await eventually(lambda: service.ready and metrics.POSTGRES_UP._value.get() == 1)
            assert capsys.readouterr().out.count("Postgres does not answer") == 1


async def test_config_follows_an_address_that_leads_away_from_a_hung_server_ACC_09() -> None:
    with pair() as servers:
        migrations.migrate(servers.url, migrations.load_all(("config",)))
        servers.wait_until_followed()
        async with config_service(servers.url) as service:
            await eventually(lambda: service.ready)
            await servers.aside(servers.wait_until_followed)
            with servers.primary.frozen():
                await eventually(lambda: service.follower.watch.silent, 15)
                await servers.aside(servers.standby.promote)
                servers.lead_to(servers.standby, cut=False)
                await eventually(lambda: service.ready, 90)
