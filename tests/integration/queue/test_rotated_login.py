"""The login for Postgres is rotated under a running queue, as a mounted Secret is: no restart is needed."""

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from mailrail.kit import migrations
from mailrail.kit.postgres import Login, pool
from mailrail.kit.settings import DatabaseSettings, load

from testkit.ca import Authority, Certificate
from testkit.conditions import eventually
from testkit.failover import Server, single
from testkit.postgres import oldest_programs
from testkit.queue import running_queue


@pytest.fixture
def server() -> Iterator[Server]:
    """A Postgres of this test's own, migrated."""
    with single() as made:
        migrations.migrate(made.url, migrations.load_all(("queue",)))
        yield made


def rotate(server: Server, password: str) -> None:
    """Give the services' role another password, and end its connections, as a failover does."""
    role = urlsplit(server.url).username or ""
    server.sql(sql.SQL("ALTER ROLE {} PASSWORD {}").format(sql.Identifier(role), sql.Literal(password)).as_string())
    server.end_backends("mailrail")


@pytest.mark.parametrize("field", ["database_password", "database_url"])
async def test_a_rotated_password_is_read_for_the_next_connection(
    server: Server, tmp_path: Path, field: str, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = urlsplit(server.url)

    def value(password: str) -> str:
        return (
            password
            if field == "database_password"
            else parts._replace(netloc=f"{parts.username}:{password}@{parts.hostname}:{parts.port}").geturl()
        )

    file = tmp_path / "value"
    file.write_text(value(str(parts.password)))
    async with running_queue(server.url, files={field: file}) as q:
        ingress = await q.ingress()
        await ingress.accept("before@away.example")
        rotate(server, "another")
        await eventually(lambda: f"The password is that in {file}, which is read again" in capsys.readouterr().out)
        await eventually(lambda: not q.queue.serving)
        file.write_text(value("another"))
        await eventually(lambda: q.queue.serving, 15)
        await ingress.accept("after@away.example")


def test_a_password_that_cannot_be_read_again_is_said_to_be_so(server: Server) -> None:
    wrong = make_conninfo(server.url, password="wrong")
    settings = load(DatabaseSettings, "queue", {"MAILRAIL_DATABASE_URL": wrong})

    async def connect() -> None:
        await Login(settings).connect("test")

    with pytest.raises(psycopg.OperationalError, match=r"that of MAILRAIL_DATABASE_URL.*restart it.*_FILE") as refused:
        asyncio.run(connect())
    assert "wrong" not in str(refused.value)


async def test_an_unreadable_file_leaves_the_last_login_in_use(server: Server, tmp_path: Path) -> None:
    file = tmp_path / "uri"
    file.write_text(server.url)
    login = Login(load(DatabaseSettings, "queue", {"MAILRAIL_DATABASE_URL_FILE": str(file)}))
    file.unlink()
    async with await login.connect("test") as connection:
        assert await (await connection.execute("SELECT 1")).fetchone() == (1,)


def present(server: Server, certificate: Certificate) -> None:
    """Let the server speak TLS with this certificate from now on."""
    data = server.postgres.data
    for name, pem in (("server.crt", certificate.chain_pem), ("server.key", certificate.key_pem)):
        (data / name).write_bytes(pem)
        (data / name).chmod(0o600)
        shutil.chown(data / name, *(data.owner(), data.group()))
    server.set("ssl", "on")


@pytest.mark.peer("postgres")
async def test_a_pool_follows_a_rotated_authority(tmp_path: Path) -> None:
    with single(programs=oldest_programs()) as server:  # the embedded one speaks no TLS
        migrations.migrate(server.url, migrations.load_all(("queue",)))
        await follow_a_rotated_authority(server, tmp_path)


async def follow_a_rotated_authority(server: Server, tmp_path: Path) -> None:
    root, address = tmp_path / "ca.crt", urlsplit(server.url).hostname or ""
    authority = Authority()
    present(server, authority.issue(address))
    root.write_bytes(authority.pem)
    login = Login.of(make_conninfo(server.url, sslmode="verify-full", sslrootcert=str(root)))
    async with pool(login, "queue", size=1, timeout=15) as connections:
        async with connections.connection() as connection:
            assert connection.pgconn.ssl_in_use
        another = Authority()
        present(server, another.issue(address))
        server.end_backends("mailrail")
        with pytest.raises(psycopg.OperationalError, match="certificate verify failed"):
            await login.connect("test")
        root.write_bytes(another.pem)
        async with connections.connection() as connection:
            assert connection.pgconn.ssl_in_use
