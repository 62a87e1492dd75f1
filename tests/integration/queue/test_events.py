"""The outbox of events: written with what it tells of, read in order, none lost (FIN-01)."""

from collections.abc import AsyncIterator, Callable

import psycopg
import pytest

from mailrail.pb.queue.v1 import types_pb2
from mailrail_queue.notify import outbox as events
from mailrail_queue.store import results as result_store
from mailrail_queue.store.results import Ending

from testkit.stored_mail import Rig
from testkit.stored_mail import rig as make_rig


@pytest.fixture
async def rig(database_for: Callable[..., str]) -> AsyncIterator[Rig]:
    async with make_rig(database_for("queue")) as made:
        yield made


async def finish(rig: Rig, *, one: Rig | None = None) -> int:
    (bob,) = await rig.accept("bob@there.example")
    attempt = rig.attempt(types_pb2.OUTCOME_RELAYED, "ok", code=250).SerializeToString()
    await result_store.finish(
        (one or rig).connection,
        [Ending(bob.id, bob.message_id, 0, 1, result_store.DELIVERED, types_pb2.OUTCOME_RELAYED, attempt)],
    )
    return bob.id


async def test_while_nobody_listens_nothing_is_written(rig: Rig) -> None:
    await finish(rig)
    assert await rig.rows("SELECT count(*) FROM event") == [(0,)]
    await events.subscribe(rig.connection, "old")
    await rig.connection.execute("UPDATE event_consumer SET seen = now() - interval '8 days'")
    await finish(rig)
    assert await rig.rows("SELECT count(*) FROM event") == [(0,)]


async def test_each_end_and_each_temporary_failure_is_told_once_acknowledged_never_again(rig: Rig) -> None:
    await events.subscribe(rig.connection, "webhooks")
    first = await finish(rig)
    (carl,) = await rig.accept("carl@there.example", token=7)
    busy = rig.attempt(types_pb2.OUTCOME_DEFERRED, "busy", code=450).SerializeToString()
    await result_store.defer(rig.connection, [result_store.Deferral(carl.id, carl.message_id, 7, 1, 450.0, busy)])
    found = await events.read(rig.connection, "webhooks", 10)
    assert [(e.recipient_id, e.kind) for e in found] == [
        (first, types_pb2.EVENT_KIND_RELAYED),
        (carl.id, types_pb2.EVENT_KIND_DEFERRED),
    ]
    assert list(found[1].attempt.reply.lines) == ["busy"]
    assert await events.read(rig.connection, "webhooks", 10) == found
    await events.acknowledge(rig.connection, "webhooks", found[0].place)
    assert await events.read(rig.connection, "webhooks", 10) == found[1:]
    await events.acknowledge(rig.connection, "webhooks", found[1].place)
    assert await rig.rows("SELECT count(*) FROM event") == [(0,)]


async def test_an_event_stays_until_the_slowest_consumer_has_it(rig: Rig) -> None:
    for name in ("quick", "slow"):
        await events.subscribe(rig.connection, name)
    await finish(rig)
    (event,) = await events.read(rig.connection, "quick", 10)
    await events.acknowledge(rig.connection, "quick", event.place)
    assert await events.read(rig.connection, "slow", 10) == [event]
    await events.unsubscribe(rig.connection, "slow")
    await events.acknowledge(rig.connection, "quick", event.place)
    assert await rig.rows("SELECT count(*) FROM event") == [(0,)]


async def test_a_rolled_back_end_tells_nothing_FIN_01(rig: Rig) -> None:
    await events.subscribe(rig.connection, "webhooks")

    async def broken() -> None:
        async with rig.connection.transaction():
            await finish(rig)
            await rig.connection.execute("SELECT 1/0")

    with pytest.raises(psycopg.errors.DivisionByZero):
        await broken()
    assert await events.read(rig.connection, "webhooks", 10) == []


async def test_a_transaction_that_commits_late_is_not_passed_over(rig: Rig) -> None:
    await events.subscribe(rig.connection, "webhooks")
    info = rig.connection.info
    async with make_rig(f"{info.dsn} password={info.password}") as other:
        (slow,) = await rig.accept("slow@there.example")
        async with other.connection.transaction():
            await result_store.finish(
                other.connection,
                [Ending(slow.id, slow.message_id, 0, 1, result_store.DELIVERED, types_pb2.OUTCOME_RELAYED, None)],
            )
            quick = await finish(rig)  # a higher number, committed first
            assert await events.read(rig.connection, "webhooks", 10) == []
        found = await events.read(rig.connection, "webhooks", 10)
    assert [e.recipient_id for e in found] == [slow.id, quick]


def test_the_kind_of_an_event_about_an_attempt_has_the_number_of_its_outcome() -> None:
    kinds = {name.removeprefix("EVENT_KIND_"): int(number) for name, number in types_pb2.EventKind.items()}
    outcomes = {name.removeprefix("OUTCOME_"): int(number) for name, number in types_pb2.Outcome.items()}
    assert kinds == {name: outcomes[name] for name in kinds}
