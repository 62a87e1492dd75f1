"""Config says in a sentence which server it cannot follow head on, and is not ready there."""

import pytest
from integration.config.conftest import config_service

from mailrail.kit import migrations

from testkit.conditions import eventually
from testkit.failover import pair
from testkit.peers.pgbouncer import pgbouncer

pytestmark = pytest.mark.timeout(180)


async def said(capsys: pytest.CaptureFixture[str], sentence: str) -> None:
    seen: list[str] = []

    def heard() -> bool:
        seen.append(capsys.readouterr().out)
        return sentence in "".join(seen)

    await eventually(heard, what=lambda: f"{sentence!r} in {''.join(seen)}")


@pytest.mark.peer("pgbouncer")
async def test_a_pooler_in_transaction_mode_is_not_followed(database: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pgbouncer(database, "transaction") as url:
        async with config_service(url):
            await said(capsys, "a pooler in transaction mode is in between")


async def test_a_standby_is_not_followed(capsys: pytest.CaptureFixture[str]) -> None:
    with pair() as servers:
        migrations.migrate(servers.url, migrations.load_all(("config",)))
        servers.wait_until_followed()
        async with config_service(servers.standby.url):
            await said(capsys, "postgres is a standby now")
