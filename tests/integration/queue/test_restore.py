"""A dump is put back: what is in it goes on, what came later is gone, nobody stops answering (docs/how-to/backup.md).

The page says to stop the services for a restore. A queue that lives through one all the same must not stop answering.
"""

import asyncio
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import grpc
import psycopg
import pytest

from mailrail.kit import migrations
from mailrail.local.postgres.server import DATABASE, OWNER
from mailrail.pb.queue.v1 import lease_pb2
from mailrail_queue import metrics

from testkit.conditions import eventually
from testkit.failover import Ledger, Server, single
from testkit.queue import RunningQueue, commit_of, result_of, running_queue

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def server() -> Iterator[Server]:
    """A Postgres of this test's own, migrated."""
    with single() as made:
        migrations.migrate(made.url, migrations.load_all(("queue",)))
        yield made


def run(server: Server, program: str, *arguments: object) -> None:
    command = [server.program(program), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, timeout=120, text=True)
    assert done.returncode == 0, done.stderr


def dump(server: Server, file: Path) -> None:
    """As the page says."""
    run(server, "pg_dump", "--format=custom", f"--file={file}", server.postgres.superuser_url(DATABASE))


def put_back(server: Server, file: Path, *options: str) -> None:
    run(server, "pg_restore", "--exit-on-error", f"--dbname={server.postgres.superuser_url(DATABASE)}", *options, file)


def into_a_new_database(server: Server, file: Path) -> None:
    """As the page says."""
    new_database(server)
    put_back(server, file)


def new_database(server: Server) -> None:
    with psycopg.connect(server.postgres.superuser_url("postgres"), autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {DATABASE} WITH (FORCE)".encode())
        connection.execute(f"CREATE DATABASE {DATABASE} OWNER {OWNER} TEMPLATE template0 ENCODING 'UTF8'".encode())


def step_by_step(server: Server, file: Path) -> None:
    """A large dump: its tables, their rows and their keys come one after the other, and traffic goes on between."""
    new_database(server)
    listed = subprocess.run(
        [server.program("pg_restore"), "--list", file], capture_output=True, check=True, timeout=60, text=True
    )
    steps = [line for line in listed.stdout.splitlines() if line and not line.startswith(";")]
    for step in steps:
        (file.parent / "step").write_text(f"{step}\n")
        put_back(server, file, f"--use-list={file.parent / 'step'}")


def into_a_new_schema(server: Server, file: Path) -> None:
    """Sessions stay, and what they prepared is of tables that are gone."""
    while True:
        try:
            server.sql("DROP SCHEMA queue CASCADE")
            break
        except psycopg.errors.DeadlockDetected:  # with the traffic
            continue
    put_back(server, file)


class Traffic:
    """Mail that goes on coming, one message after the other, to an address each; what leaves is delivered."""

    def __init__(self, q: RunningQueue, ledger: Ledger, name: str) -> None:
        self._q, self._ledger, self._name = q, ledger, name
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        outbound, ingress = await self._q.outbound(), await self._q.ingress()
        outbound.answer = self._deliver
        number = 0
        while True:
            number += 1
            address = f"{self._name}{number}@away.example"
            (future,) = ingress.commit(commit_of(address))
            try:
                # Not `wait_for`, which swallows a cancellation that comes together with the result.
                async with asyncio.timeout(60):
                    result = await future
            except grpc.aio.AioRpcError:
                ingress = await self._q.ingress()
                continue
            (self._ledger.accepted if result.accepted else self._ledger.refused).add(address)

    def _deliver(self, delivery: lease_pb2.Delivery) -> lease_pb2.DeliveryResult:
        self._ledger.sent.update(recipient.address for recipient in delivery.recipients)
        return result_of(delivery)

    async def more(self, messages: int, within: float = 60.0) -> None:
        """Wait until so many more were accepted."""
        wanted = len(self._ledger.accepted) + messages
        await eventually(lambda: len(self._ledger.accepted) >= wanted, within, "mail is accepted")

    async def stop(self) -> None:
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task


@pytest.mark.parametrize("restore", [into_a_new_database, into_a_new_schema, step_by_step])
async def test_a_queue_that_lives_through_a_restore_goes_on_and_counts_it_HIS_04(
    server: Server, tmp_path: Path, restore: Callable[[Server, Path], None]
) -> None:
    async with running_queue(server.url) as q:
        traffic = Traffic(q, Ledger(), "n")
        try:
            await traffic.more(50)
            await asyncio.to_thread(dump, server, tmp_path / "dump")
            for _ in range(3):
                await traffic.more(50)
                histories = metrics.HISTORIES._value.get()
                await asyncio.to_thread(restore, server, tmp_path / "dump")
                await eventually(lambda before=histories: metrics.HISTORIES._value.get() > before, 60)  # type: ignore[misc]
                await eventually(lambda: q.queue.serving, 60)
                await traffic.more(20)
                assert q.queue.failed() is None
        finally:
            await traffic.stop()


@pytest.mark.parametrize("table", ["message", "dsn"])
async def test_mail_waits_until_every_key_is_back(database: str, table: str) -> None:
    """pg_restore makes keys last: without them a message would be refused, or a result be put on hold."""
    async with running_queue(database) as q:
        ingress = await q.ingress()
        await ingress.accept("before@away.example")
        (key,) = await q.one(
            "SELECT ARRAY[pg_get_constraintdef(oid)] FROM pg_constraint WHERE conname = %s", table + "_pkey"
        )
        await q.sql(f"ALTER TABLE {table} DROP CONSTRAINT {table}_pkey")
        await q.sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'mailrail queue%'"
        )
        (future,) = ingress.commit(commit_of("meanwhile@away.example"))
        await eventually(lambda: not q.queue.serving)
        assert not future.done()
        await q.sql(f"ALTER TABLE {table} ADD CONSTRAINT {table}_pkey {key}")
        async with asyncio.timeout(60):
            assert (await future).accepted


async def test_a_dump_under_load_and_a_restore_lose_and_double_only_what_came_after_it(
    server: Server, tmp_path: Path
) -> None:
    ledger = Ledger()
    async with running_queue(server.url) as q:
        traffic = Traffic(q, ledger, "before")
        await traffic.more(100)
        safe = set(ledger.accepted)
        dumping = asyncio.create_task(asyncio.to_thread(dump, server, tmp_path / "dump"))
        await traffic.more(100)
        await dumping
        await traffic.more(100)
        delivered = set(ledger.sent)
        await traffic.stop()
    await asyncio.to_thread(into_a_new_database, server, tmp_path / "dump")
    async with running_queue(server.url) as q:
        traffic = Traffic(q, ledger, "after")
        await traffic.more(50)
        safe |= {address for address in ledger.accepted if address.startswith("after")}
        await traffic.stop()
        outbound = await q.outbound()
        outbound.answer = lambda delivery: traffic._deliver(delivery)
        await q.until("SELECT count(*) = 0 FROM recipient", within=120)
        count = ledger.count(server)
    print(count)
    assert not count.lost & safe, "what was accepted before the dump, or after the restore, is there"
    assert not count.ended_unsent
    assert count.doubled <= delivered, "what was delivered before the restore may be delivered again"
    assert not count.refused_and_sent
