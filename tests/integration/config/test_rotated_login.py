"""Config reads a rotated password for its next connection, as the queue does."""

from pathlib import Path
from urllib.parse import urlsplit

from integration.config.conftest import config_service
from psycopg import sql

from mailrail.kit import migrations

from testkit.conditions import eventually
from testkit.failover import single


async def test_config_follows_head_again_once_the_mounted_password_is_the_right_one(tmp_path: Path) -> None:
    with single() as server:
        migrations.migrate(server.url, migrations.load_all(("config",)))
        parts = urlsplit(server.url)
        file = tmp_path / "password"
        file.write_text(parts.password or "")
        async with config_service(server.url, files={"database_password": file}) as service:
            await eventually(lambda: service.ready is True)
            change = sql.SQL("ALTER ROLE {} PASSWORD 'another'").format(sql.Identifier(parts.username or ""))
            server.sql(change.as_string())
            server.end_backends("mailrail")
            await eventually(lambda: service.ready is False)
            file.write_text("another")
            await eventually(lambda: service.ready is True, 15)
            async with service.store._pool.connection(timeout=15) as connection:
                assert await (await connection.execute("SELECT 1")).fetchone() == (1,)
