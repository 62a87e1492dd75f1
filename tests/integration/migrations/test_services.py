"""A service on a schema that is older than itself, or newer (DBS-02)."""

import asyncio
import base64
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import psycopg
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from mailrail.kit import migrations
from mailrail.kit.migrations import Migration
from mailrail_config.__main__ import start as start_config
from mailrail_config.rpc import SERVICE
from mailrail_config.settings import ConfigSettings
from mailrail_queue.__main__ import ENQUEUE
from mailrail_queue.__main__ import start as start_queue
from mailrail_queue.settings import QueueSettings

from testkit.conditions import eventually
from testkit.ingress import KEY, FakeConfig
from testkit.ports import free_port
from testkit.queue import a_revision

Ready = Callable[[], bool | Awaitable[bool | None] | None]


def one_more(service: str) -> tuple[Migration, ...]:
    """The steps of a release after this one."""
    steps = migrations.load(service)
    return (*steps, Migration(service, len(steps) + 1, "newer", "CREATE TABLE newer (id int);", True))


@contextlib.asynccontextmanager
async def running(service: str, url: str, keys: Path, **more: Any) -> AsyncIterator[Ready]:
    """The service as a process has it, in this loop; gives a question: whether it is ready."""
    listen, stop = f"127.0.0.1:{free_port('127.0.0.1')}", asyncio.Event()
    config = FakeConfig()  # type: ignore[abstract]
    await config.serve()
    await config.publish(a_revision(), {})
    (keys / "k1").write_bytes(base64.b64encode(KEY))
    common: dict[str, Any] = {
        "database_url": url,
        "grpc_listen": listen,
        "plaintext": True,
        "node_id": "test",
        "stop_grace": 0.2,
    }
    if service == "queue":
        settings = QueueSettings(config_target=f"127.0.0.1:{config.port}", sealing_keys_dir=keys, **common)
        task = asyncio.create_task(start_queue(settings, stop))
    else:
        task = asyncio.create_task(start_config(ConfigSettings(**common, **more), stop))
    name = ENQUEUE if service == "queue" else SERVICE
    try:
        async with grpc.aio.insecure_channel(listen) as channel:
            stub = health_pb2_grpc.HealthStub(channel)

            async def ready() -> bool:
                answer = await stub.Check(health_pb2.HealthCheckRequest(service=name), wait_for_ready=True, timeout=30)
                return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

            yield ready
    finally:
        stop.set()
        await asyncio.wait_for(task, 60)
        await config.stop()


@pytest.mark.parametrize("service", ["queue", "config"])
async def test_a_service_is_not_ready_below_its_schema_and_says_what_it_needs_DBS_02(
    service: str, database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = one_more(service)
    monkeypatch.setattr(migrations, "load", lambda _: steps)
    async with running(service, database, tmp_path) as ready:
        said = ""

        def told() -> bool:
            nonlocal said
            said += capsys.readouterr().out
            return f"{service} is at version {len(steps) - 1} and this release needs {len(steps)}" in said

        await eventually(told)
        with pytest.raises(AssertionError):
            await eventually(ready, within=1)
        await asyncio.to_thread(migrations.migrate, database, steps)
        await eventually(ready)


@pytest.mark.parametrize("service", ["queue", "config"])
async def test_a_service_serves_on_a_schema_that_is_ahead_of_it_DBS_02(
    service: str, database: str, tmp_path: Path
) -> None:
    await asyncio.to_thread(migrations.migrate, database, one_more(service))
    async with running(service, database, tmp_path) as ready:
        await eventually(ready)


async def test_config_makes_a_schema_that_is_gone_where_it_may_so_that_a_lost_volume_heals_by_itself_DBS_02(
    empty_database: str, tmp_path: Path
) -> None:
    async def there() -> bool | None:
        """Whether somebody has made the queue's schema."""
        async with await psycopg.AsyncConnection.connect(empty_database) as connection:
            return await migrations.version(connection, "queue") == migrations.needed_version("queue")

    async with running("config", empty_database, tmp_path, migrate=True) as ready:
        await eventually(ready)
        async with running("queue", empty_database, tmp_path) as queue_ready:
            await eventually(queue_ready)
            async with await psycopg.AsyncConnection.connect(empty_database, autocommit=True) as connection:
                # As a Postgres that comes back on a new volume: no schema, and no session of before.
                await connection.execute("DROP SCHEMA queue CASCADE")
                await connection.execute("DROP SCHEMA config CASCADE")
                await connection.execute(
                    """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                    WHERE datname = current_database() AND pid <> pg_backend_pid()"""
                )
            is_back: Ready = there
            await eventually(is_back)
            await eventually(ready)
            await eventually(queue_ready)
