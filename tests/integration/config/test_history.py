"""The store went back: epochs of before are over, and no number means two revisions (HIS-01, CFG-08)."""

import asyncio
from pathlib import Path

import psycopg
import pytest
from integration.config.conftest import Running, config_service, consumer, publisher, route, sources

from mailrail.core.config.stored import difference
from mailrail.core.revision.revision import Role
from mailrail.kit import postgres
from mailrail.kit.publisher import SetBack, Superseded
from mailrail.pb.config.v1 import config_pb2 as pb

from testkit.conditions import eventually

ANOTHER_SERVER = "UPDATE data_history SET timeline = timeline + 1000"


async def sql(service: Running, query: str) -> None:
    """Run a statement on the store."""
    async with service.store._pool.connection() as connection:
        await connection.execute(query.encode())


async def another_history(service: Running, before: int | None) -> None:
    await eventually(lambda: service.store.data_history.number != before, what="another history")


async def test_the_epoch_of_before_is_over_and_numbers_go_on_beyond_all_that_were_seen_CFG_08(
    database: str, keys_dir: Path
) -> None:
    async with config_service(database) as service:
        old = publisher(keys_dir, service.target)
        await old.publish(sources())
        await eventually(lambda: service.follower.head.revision == 1)
        before = service.store.data_history.number
        await sql(service, ANOTHER_SERVER)
        await another_history(service, before)
        with pytest.raises(SetBack):
            await old.publish(sources(route("a", "a.example")))
        outcome = await old.publish(sources(route("a", "a.example")))
        assert outcome.revision > 1000
        async with service.stub() as stub:
            acquired = await stub.AcquirePublisher(pb.AcquirePublisherRequest(identity="test"))
        assert acquired.history == service.store.data_history.number
        assert acquired.epoch > 1_000_000


async def test_after_the_data_went_back_whoever_acquires_first_supersedes_the_other_CFG_08(
    database: str, keys_dir: Path
) -> None:
    async with config_service(database) as service:
        old = publisher(keys_dir, service.target)
        await old.publish(sources())
        before = service.store.data_history.number
        await sql(service, ANOTHER_SERVER)
        await another_history(service, before)
        await publisher(keys_dir, service.target).publish(sources())
        with pytest.raises(Superseded):
            await old.publish(sources(route("a", "a.example")))


async def test_a_publisher_can_tell_that_the_store_lost_what_it_published_CFG_09(database: str, keys_dir: Path) -> None:
    async with config_service(database) as service:
        one = publisher(keys_dir, service.target)
        await one.publish(sources())
        await one.publish(sources(route("a", "a.example")))
        assert one.published is not None
        assert await one.newest() == one.published
        async with service.stub() as stub:  # an administrator's rollback is no loss
            await stub.Rollback(pb.RollbackRequest(revision=1))
        assert await one.newest() == one.published
        await sql(service, "UPDATE head SET revision = 1, pinned = false; DELETE FROM revisions WHERE revision = 2")
        newest = await one.newest()
        assert (newest.revision, one.published.revision) == (1, 2)
        assert "went back to revision 1" in difference(one.published, newest)


async def test_an_accepted_version_outlives_a_store_that_went_back_to_before_it_CFG_09(
    database: str, keys_dir: Path
) -> None:
    """The edit is broken, the version before it serves, and the store does not know that version any more."""
    async with config_service(database) as service:
        one = publisher(keys_dir, service.target)
        await one.publish(sources())
        await one.publish(sources(route("a", "a.example")))
        before = service.store.data_history.number
        await sql(
            service,
            f"UPDATE head SET revision = 1; DELETE FROM revisions WHERE revision = 2; {ANOTHER_SERVER}",
        )
        await another_history(service, before)
        broken = sources(route("a", "a.example").replace("priority", "").replace("rules:", "rulez:"))
        with pytest.raises(SetBack):
            await one.publish(broken)
        outcome = await one.publish(broken)
        assert [rule.route.name for level in outcome.compiled.revision.global_routes for rule in level.rules] == ["a"]


async def test_a_stop_while_calls_go_on_begins_no_history_and_supersedes_nobody_HIS_01(
    database: str, keys_dir: Path
) -> None:
    """Calls that are under way at the end open connections of their own, and each looks at the history."""
    async with config_service(database) as staying:
        await eventually(lambda: staying.store.data_history.number is not None)
        before = staying.store.data_history.number
        async with config_service(database) as leaving:
            await eventually(lambda: leaving.store.data_history.number is not None)
            await leaving.store.forget()
            await sql(leaving, "SELECT 1")
            async with await psycopg.AsyncConnection.connect(database, autocommit=True) as connection:
                await postgres.enter(connection, "config")
                await leaving.store.data_history.check(connection)
                await leaving.store.standing()
        await sql(staying, "SELECT 1")
        await staying.store.beat()
        assert staying.store.data_history.number == before


async def test_services_get_the_head_of_another_history_though_its_number_is_the_same_or_lower_CFG_08(
    database: str, keys_dir: Path
) -> None:
    async with config_service(database) as service:
        watching = consumer(keys_dir, service.target, Role.QUEUE)
        async with watching.client.running():
            one = publisher(keys_dir, service.target)
            await one.publish(sources())
            first = await asyncio.wait_for(watching.client.wait_first(), 60)
            await one.publish(sources(route("a", "a.example")))
            assert await watching.client.wait_for(2, 60)
            before = service.store.data_history.number
            # The same number, and another content.
            await sql(
                service,
                "UPDATE revisions r SET body = o.body, checksum = o.checksum, secrets = o.secrets FROM revisions o"
                f" WHERE r.revision = 2 AND o.revision = 1; {ANOTHER_SERVER}",
            )
            await another_history(service, before)
            await eventually(lambda: watching.client.current and watching.client.current.checksum == first.checksum)
            assert watching.client.current is not None
            assert watching.client.current.number == 2
            # A lower one: counters that are behind tell by themselves.
            before = service.store.data_history.number
            await sql(
                service, "UPDATE head SET revision = 1, last_revision = 1; DELETE FROM revisions WHERE revision = 2"
            )
            await eventually(lambda: watching.client.current and watching.client.current.number == 1)
            await another_history(service, before)
            outcome = await publisher(keys_dir, service.target).publish(sources(route("b", "b.example")))
            assert outcome.revision > 2000


async def test_what_a_service_runs_and_was_never_given_is_proof_that_the_store_went_back_HIS_01(
    database: str, keys_dir: Path
) -> None:
    async with config_service(database) as service, service.stub() as stub:
        await publisher(keys_dir, service.target).publish(sources())
        await eventually(lambda: service.store.data_history.number is not None)
        before = service.store.data_history.number
        await stub.Report(pb.ReportRequest(process="queue-1", role="queue", revision=1))
        assert service.store.data_history.number == before
        await stub.Report(pb.ReportRequest(process="queue-1", role="queue", revision=50))
        assert service.store.data_history.number != before
        outcome = await publisher(keys_dir, service.target).publish(sources(route("a", "a.example")))
        assert outcome.revision > 1050


async def test_two_replicas_are_in_one_history_and_a_stop_begins_none_HIS_01(database: str, keys_dir: Path) -> None:
    async with config_service(database) as one, config_service(database) as two:

        def numbers() -> set[int | None]:
            return {s.store.data_history.number for s in (one, two)}

        await eventually(lambda: None not in numbers())
        (before,) = numbers()
        await sql(one, f"{ANOTHER_SERVER}; UPDATE data_witness SET last_written = last_written # 1")
        await eventually(lambda: before not in numbers() and len(numbers()) == 1)
        (number,) = numbers()
    async with config_service(database) as again:
        await eventually(lambda: again.store.data_history.number == number)
