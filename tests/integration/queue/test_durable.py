"""What is seen is not yet durable: an answer that rests on found work waits as a commit does (DUR-01)."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator

import psycopg
import pytest

from mailrail.kit import migrations, postgres
from mailrail.pb.queue.v1 import admin_pb2
from mailrail_config.store import NewRevision, Published, RevisionStore
from mailrail_queue.admin.filters import NotFound
from mailrail_queue.rpc.answering import Rows

from testkit.conditions import eventually
from testkit.failover import Pair, pair
from testkit.queue import commit_of, running_queue

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def servers() -> Iterator[Pair]:
    """A primary whose commits wait for its standby."""
    with pair(synchronous=True) as made:
        migrations.migrate(made.url, migrations.load_all(("queue", "config")))
        yield made


@pytest.fixture(autouse=True)
def standby_is_back(servers: Pair) -> Iterator[None]:
    """Each test begins with a standby that follows."""
    yield
    if not servers.standby.running:
        servers.standby.start()
    servers.wait_until_followed(synchronous=True)


async def waits(servers: Pair, application: str, many: int = 1) -> None:
    """Wait until so many of its commits wait for the standby."""

    async def so() -> bool:
        return await servers.aside(servers.primary.waits, application) == many

    condition: Callable[[], bool | Awaitable[bool | None] | None] = so
    await eventually(condition, what=f"{application} waits for the standby")


async def test_a_commit_whose_wait_for_the_standby_is_cancelled_is_not_answered_DUR_01(servers: Pair) -> None:
    """pg_cancel_backend on a commit that hangs: Postgres says that it succeeded, and warns that nobody may have it."""
    async with running_queue(servers.url) as q:
        ingress = await q.ingress()
        await ingress.accept("before@d.example")
        await servers.aside(servers.standby.stop)
        (answer,) = ingress.commit(commit_of("during@d.example"))
        await waits(servers, "accept")
        await servers.aside(
            servers.primary.sql,
            "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE application_name LIKE '%accept%'",
        )

        async def answered_or_waits_again() -> bool:
            waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND query LIKE '%emit_message%'"
            return answer.done() or bool(await servers.aside(servers.primary.one, waits))

        condition: Callable[[], bool | Awaitable[bool | None] | None] = answered_or_waits_again
        await eventually(condition)
        assert not answer.done()
        await servers.aside(servers.standby.start)
        assert (await asyncio.wait_for(answer, 60)).accepted


async def test_a_call_of_an_administrator_that_finds_its_work_done_waits_for_the_standby_DUR_01(servers: Pair) -> None:
    async with postgres.pool(postgres.Login.of(servers.url), "queue", application="administration") as pool:
        rows = Rows(pool)

        async def call() -> admin_pb2.HoldResponse:
            async with rows.change() as connection:
                await connection.execute("UPDATE recipient SET held_since = now() WHERE held_since IS NULL AND false")
                return admin_pb2.HoldResponse()

        async def missing() -> None:
            async with rows.change():
                raise NotFound("no hold rule 7")

        assert await call() == admin_pb2.HoldResponse()
        await servers.aside(servers.standby.stop)
        calls = [asyncio.create_task(call()), asyncio.create_task(missing())]
        await waits(servers, "administration", 2)
        assert not any(one.done() for one in calls)
        await servers.aside(servers.standby.start)
        assert await asyncio.wait_for(calls[0], 60) == admin_pb2.HoldResponse()
        with pytest.raises(NotFound):
            await asyncio.wait_for(calls[1], 60)


async def test_an_administrators_wait_that_is_cancelled_is_trouble_and_no_answer_DUR_01(servers: Pair) -> None:
    async with postgres.pool(postgres.Login.of(servers.url), "queue", application="administration") as pool:
        rows = Rows(pool)

        async def call() -> None:
            async with rows.change():
                pass

        await call()
        await servers.aside(servers.standby.stop)
        calling = asyncio.create_task(call())
        await waits(servers, "administration")
        cancel = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE application_name = 'administration'"
        await servers.aside(servers.primary.sql, cancel)
        with pytest.raises(psycopg.OperationalError, match="standby was cancelled"):
            await asyncio.wait_for(calling, 60)


async def test_a_publish_that_finds_its_revision_stored_waits_for_the_standby_DUR_01(servers: Pair) -> None:
    async with postgres.pool(postgres.Login.of(servers.url), "config", application="config") as pool:
        store = RevisionStore(pool)
        head, _, _ = await store.acquire("test")
        new = NewRevision("sum", b"{}", b"", "[]", "", ())

        async def publish() -> Published:
            return await store.publish(head.epoch, head.revision or 0, new, [], {})

        await servers.aside(servers.standby.stop)
        first = asyncio.create_task(publish())
        await waits(servers, "config")
        await servers.aside(servers.primary.end_backends, "config")
        with pytest.raises(psycopg.OperationalError):
            await asyncio.wait_for(first, 60)
        head = await store.head()
        again = asyncio.create_task(publish())
        await eventually(lambda: again.done() or servers.primary.waits("config"))
        assert not again.done()
        await servers.aside(servers.standby.start)
        assert (await asyncio.wait_for(again, 60)).unchanged
