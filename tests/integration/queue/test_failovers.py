"""A failover takes nothing that was answered, and results of what it undid end no other mail (promise 1, ACC-06).

With synchronous replication 250 means that the standby has it. With asynchronous replication, and after a restore, what
the new primary never had is gone, and must leave no trace in what it has.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager

import grpc
import pytest

from mailrail.kit import migrations
from mailrail.pb.queue.v1 import enqueue_pb2, lease_pb2, types_pb2

from testkit.conditions import eventually
from testkit.failover import Count, Ledger, Pair, Server, pair, single
from testkit.queue import (
    RELAY,
    FakeOutbound,
    RunningQueue,
    a_revision,
    commit_of,
    message_id,
    relay,
    rule_to,
    running_queue,
    sql,
)
from testkit.queue_traffic import Ingress, Outbound

pytestmark = pytest.mark.timeout(300)

SCHEMA = migrations.load_all(("queue",))


@pytest.fixture
def synchronous() -> Iterator[Pair]:
    """A primary whose commits wait for its standby."""
    with pair(synchronous=True) as servers:
        migrations.migrate(servers.url, SCHEMA)
        servers.wait_until_followed(synchronous=True)
        yield servers


@pytest.fixture
def asynchronous() -> Iterator[Pair]:
    """A primary whose commits wait for nobody."""
    with pair() as servers:
        migrations.migrate(servers.url, SCHEMA)
        yield servers


@pytest.fixture
def restorable() -> Iterator[Server]:
    """One server with the tables."""
    with single() as server:
        migrations.migrate(server.url, SCHEMA)
        yield server


async def met(condition: Callable[[], Awaitable[bool]], what: str | Callable[[], str]) -> None:
    """`eventually`, for a condition that waits itself."""
    asked: Callable[[], bool | Awaitable[bool | None] | None] = condition
    await eventually(asked, 20, what)


# --- what no standby has is not answered ----------------------------------------------------------------------------

BREAKS: dict[str, Callable[[Server], object]] = {
    "backends-ended": lambda server: server.end_backends("mailrail queue"),
    "one-backend-killed": lambda server: server.kill_backend("accept"),
    "fast-restart": Server.restart,
}
"""What ends a commit's wait for the standby; what it committed is there and can be seen all the same."""


async def waits(servers: Pair, lane: str) -> None:
    """A commit of this lane waits for the standby."""

    async def one_does() -> bool:
        return bool(await servers.aside(servers.primary.waits, lane))

    await met(one_does, f"a commit of {lane} waits")


@pytest.mark.parametrize("ends", BREAKS)
async def test_no_250_is_said_while_no_standby_has_the_message_whatever_ends_the_wait_for_it_ACC_02(
    synchronous: Pair, ends: str
) -> None:
    servers, ledger = synchronous, Ledger()
    before = {f"before{number}@d.example" for number in range(3)}
    during = [f"during{number}@d.example" for number in range(5)]
    async with running_queue(servers.url) as q:
        ingress = await q.ingress()
        for name in before:
            await ingress.accept(name)
        await servers.aside(servers.standby.stop)
        answers = dict(zip(during, ingress.commit(*(commit_of(name) for name in during)), strict=True))
        await waits(servers, "accept")
        await servers.aside(lambda: BREAKS[ends](servers.primary))

        async def answered_or_waits_again() -> bool:
            answered = any(answer.done() for answer in answers.values())
            return answered or bool(await servers.aside(servers.primary.waits, "accept"))

        await met(answered_or_waits_again, "it is answered or waits again")
        too_early = [name for name, answer in answers.items() if answer.done()]
        await servers.aside(servers.fail_over)
        ledger.accepted |= before
        for name, answer in answers.items():
            if (await asyncio.wait_for(answer, 60)).accepted:
                ledger.accepted.add(name)
        count = await servers.aside(ledger.count, servers.primary)
        assert not count.lost
        assert not too_early, "answered, and no standby had it"
        assert count.accepted == {*before, *during}, "what was not answered is stored anew"


async def test_no_outcome_is_told_of_a_message_that_no_standby_has_ACC_04(synchronous: Pair) -> None:
    servers = synchronous
    async with running_queue(servers.url) as q:
        ingress = await q.ingress()
        await ingress.accept("before@d.example")  # ids are at hand: it is the message whose commit waits next
        await servers.aside(servers.standby.stop)
        number = message_id()
        ingress.commit(commit_of("during@d.example"), ids=[number])
        await waits(servers, "accept")

        async def ask() -> bool:
            while True:
                try:
                    request = enqueue_pb2.GetOutcomeRequest(message_id=number)
                    return (await ingress.stub.GetOutcome(request, timeout=60)).accepted
                except grpc.aio.AioRpcError:  # nobody can tell now: ingress asks again
                    await asyncio.sleep(0.1)

        asking = asyncio.create_task(ask())
        try:
            await servers.aside(servers.primary.end_backends, "accept")

            async def told_or_waits() -> bool:
                return asking.done() or bool(await servers.aside(servers.primary.waits, "outcome"))

            await met(told_or_waits, "it is told or waits")
            too_early = asking.done()
            await servers.aside(servers.fail_over)
            accepted = await asyncio.wait_for(asking, 60)
            stored = await q.one("SELECT count(*) FROM recipient WHERE address = 'during@d.example'")
            assert accepted == bool(stored), "what was told is so after the failover"
            assert not too_early, "told, and no standby had it"
        finally:
            asking.cancel()


@pytest.mark.parametrize("ends", BREAKS)
async def test_outbound_keeps_results_until_a_standby_has_them_whatever_ends_the_wait_for_it_LSE_08(
    synchronous: Pair, ends: str
) -> None:
    servers, ledger = synchronous, Ledger()
    async with running_queue(servers.url) as q:
        outbound, ingress = await q.outbound(), await q.ingress()
        for number in range(5):
            await ingress.accept(f"user{number}@d{number}.example")
            ledger.accepted.add(f"user{number}@d{number}.example")
        await eventually(outbound.has(5))
        await servers.aside(servers.standby.stop)
        deliver(ledger, outbound, outbound.deliveries)
        await waits(servers, "finish")
        await servers.aside(lambda: BREAKS[ends](servers.primary))

        async def forgotten_or_waits_again() -> bool:
            return bool(outbound.committed) or bool(await servers.aside(servers.primary.waits, "finish"))

        await met(forgotten_or_waits_again, "they are forgotten or wait again")
        too_early = set(outbound.committed)
        await servers.aside(servers.fail_over)
        await eventually(lambda: outbound.committed == {d.token for d in outbound.deliveries}, 60)
        count = await servers.aside(ledger.count, servers.primary)
        assert count.said_delivered == ledger.accepted, "what waits for its lease to end would be sent twice"
        assert not too_early, "outbound forgot what no standby had"


# --- what the new primary never had ends nothing there ---------------------------------------------------------------


def deliver(
    ledger: Ledger,
    outbound: FakeOutbound,
    deliveries: Iterable[lease_pb2.Delivery],
    outcome: types_pb2.Outcome.ValueType = types_pb2.OUTCOME_RELAYED,
) -> None:
    """The other side takes (or refuses) these, and outbound says so."""
    for delivery in list(deliveries):
        if outcome == types_pb2.OUTCOME_RELAYED:
            ledger.sent.update(rcpt.address for rcpt in delivery.recipients)
        outbound.finish(delivery, outcome=outcome)


async def accept_all(q: RunningQueue, names: Iterable[str]) -> set[str]:
    """One message for each; their names."""
    ingress = await q.ingress()
    answers = {name: ingress.commit(commit_of(name))[0] for name in names}
    for name, answer in answers.items():
        result = await asyncio.wait_for(answer, 60)
        assert result.accepted, (name, result.refusal)
    return set(answers)


async def all_is_delivered(ledger: Ledger, outbound: FakeOutbound, old: set[int], server: Server) -> Count:
    """Take each delivery that comes, but the `old` ones (their places in the list), until the queue is empty."""
    taken = set(old)

    async def done() -> bool:
        for index, delivery in enumerate(list(outbound.deliveries)):
            if index not in taken:
                taken.add(index)
                if delivery.token not in outbound.cancelled:
                    deliver(ledger, outbound, [delivery])
        return not (await asyncio.to_thread(ledger.count, server)).queued

    await met(done, lambda: f"the queue is empty: {ledger.count(server)}")
    return await asyncio.to_thread(ledger.count, server)


def standby_lags(servers: Pair) -> None:
    """The standby knows of this queue and its shards, and of nothing that it does from now on."""
    servers.wait_until_followed()
    servers.standby.pause()


OLD = [f"old{number}@d{number}.example" for number in range(30)]
NEW = [f"new{number}@d{number}.example" for number in range(30)]
OUTCOMES = {"delivered": types_pb2.OUTCOME_RELAYED, "refused": types_pb2.OUTCOME_FAILED}


@pytest.mark.parametrize("result", OUTCOMES)
async def test_results_from_before_a_failover_end_no_mail_that_was_accepted_after_it_FIN_01(
    asynchronous: Pair, result: str
) -> None:
    servers, ledger, before = asynchronous, Ledger(), Ledger()
    async with running_queue(servers.url) as q:
        outbound = await q.outbound()
        await servers.aside(standby_lags, servers)
        await accept_all(q, OLD)
        await eventually(outbound.has(len(OLD)))
        await servers.aside(servers.fail_over)
        ledger.accepted |= await accept_all(q, NEW)
        deliver(before, outbound, outbound.deliveries[: len(OLD)], OUTCOMES[result])
        await eventually(lambda: {d.token for d in outbound.deliveries[: len(OLD)]} <= outbound.committed)
        count = await servers.aside(ledger.count, servers.primary)
        assert not count.ended_unsent, "nobody delivered these"
        assert not count.failed, "nobody refused these"
        count = await all_is_delivered(ledger, outbound, set(range(len(OLD))), servers.primary)
        assert count.delivered == count.said_delivered == ledger.accepted
        assert not count.doubled


async def test_a_transport_with_a_limit_is_not_shut_by_deliveries_from_before_a_failover_SHD_04(
    asynchronous: Pair,
) -> None:
    servers, ledger = asynchronous, Ledger()
    revision = a_revision(transports=[relay(connections=5)], rules=[rule_to(RELAY)])
    async with running_queue(servers.url, revision) as q:
        outbound = await q.outbound()
        await servers.aside(standby_lags, servers)
        await accept_all(q, OLD[:5])
        await eventually(outbound.has(5))
        await servers.aside(servers.fail_over)
        ledger.accepted |= await accept_all(q, NEW)
        deliver(Ledger(), outbound, outbound.deliveries[:5])
        count = await all_is_delivered(ledger, outbound, set(range(5)), servers.primary)
        assert count.delivered == count.said_delivered == ledger.accepted


# --- a database that went back and does not look it ------------------------------------------------------------------


async def test_after_a_data_folder_is_put_back_no_mail_is_refused_for_good_ACC_05(restorable: Server) -> None:
    server, ledger = restorable, Ledger()
    async with running_queue(server.url) as first:
        copy = await asyncio.to_thread(server.copy)
        await accept_all(first, OLD)
        await asyncio.to_thread(server.put_back, copy)
        async with running_queue(server.url) as second:
            ledger.accepted |= await accept_one_by_one(second, [f"second{n}@d{n}.example" for n in range(60)])
            ledger.accepted |= await accept_one_by_one(first, [f"first{n}@d{n}.example" for n in range(60)])
        count = await asyncio.to_thread(ledger.count, server)
        assert count.queued == ledger.accepted


async def test_results_from_before_a_restore_end_no_mail_that_was_accepted_after_it_FIN_01(restorable: Server) -> None:
    server, ledger = restorable, Ledger()
    async with running_queue(server.url) as first:
        outbound = await first.outbound()
        copy = await asyncio.to_thread(server.copy)
        await accept_all(first, OLD)
        await eventually(outbound.has(len(OLD)))
        await asyncio.to_thread(server.put_back, copy)
        async with running_queue(server.url) as second:
            ledger.accepted |= await accept_all(second, NEW)
            deliver(Ledger(), outbound, outbound.deliveries[: len(OLD)])
            await eventually(lambda: {d.token for d in outbound.deliveries[: len(OLD)]} <= outbound.committed)
            count = await asyncio.to_thread(ledger.count, server)
            assert not count.ended_unsent, "nobody delivered these"
            assert count.queued == ledger.accepted


async def test_a_database_that_was_moved_without_its_sequences_takes_mail_ACC_05(database: str) -> None:
    """Logical replication, and so some hosted upgrades, brings rows and no sequences."""
    async with running_queue(database) as q:
        await accept_all(q, [f"moved{n}@d{n}.example" for n in range(50)])
    await sql(database, "ALTER SEQUENCE recipient_block RESTART")
    await sql(database, "ALTER SEQUENCE token_block RESTART")
    async with running_queue(database) as q:
        await accept_one_by_one(q, [f"new{n}@d{n}.example" for n in range(100)])
        assert await q.one("SELECT count(*) FROM recipient") == 150


async def accept_one_by_one(q: RunningQueue, names: Iterable[str]) -> set[str]:
    """Each in a batch of its own; their names."""
    ingress = await q.ingress()
    made = set()
    for name in names:
        await ingress.accept(name)
        made.add(name)
    return made


# --- failovers under traffic -----------------------------------------------------------------------------------------


@asynccontextmanager
async def traffic(q: RunningQueue, ledger: Ledger, messages: int) -> AsyncIterator[asyncio.Task[None]]:
    """Some 150 messages a second and an outbound that delivers them at once. The task ends with the last message."""
    ingress, outbound = Ingress(q.port, ledger), Outbound(q.port, ledger=ledger)
    tasks = [asyncio.create_task(outbound.run()), asyncio.create_task(ingress.send(range(messages), pace=0.05))]
    try:
        yield tasks[1]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def accepted(ledger: Ledger, count: int) -> None:
    """Wait until so many were accepted."""
    await eventually(lambda: len(ledger.accepted) >= count, 60, lambda: f"{len(ledger.accepted)} accepted")


async def test_a_synchronous_failover_by_one_address_loses_and_doubles_nothing_ACC_06(synchronous: Pair) -> None:
    servers, ledger = synchronous, Ledger()
    async with running_queue(servers.url) as q, traffic(q, ledger, 600) as sending:
        await accepted(ledger, 200)
        await servers.aside(servers.fail_over, Server.kill)
        await asyncio.wait_for(sending, 60)
        count = await servers.aside(ledger.settled, servers.primary)
        assert count.delivered == count.said_delivered == count.accepted
        assert len(count.accepted) == 600, "for the moment of a failover mail waits"
        assert not count.doubled


async def test_a_demoted_server_behind_the_address_takes_nothing_and_keeps_nobody_ACC_06(synchronous: Pair) -> None:
    servers, ledger = synchronous, Ledger()
    old = servers.primary
    async with running_queue(servers.url) as q, traffic(q, ledger, 600) as sending:
        await accepted(ledger, 100)
        await servers.aside(servers.fail_over, Server.stop)
        await accepted(ledger, 200)
        await servers.aside(old.follow, servers.primary)
        assert servers.proxy is not None
        reached = servers.proxy.connections
        servers.lead_to(old)
        proxy = servers.proxy
        await eventually(lambda: proxy.connections >= reached + 6, what="lanes look for another server")
        servers.lead_to(servers.primary, cut=False)
        await asyncio.wait_for(sending, 60)
        count = await servers.aside(ledger.settled, servers.primary)
        assert count.delivered == count.said_delivered == count.accepted
        assert len(count.accepted) == 600
        assert not count.doubled
