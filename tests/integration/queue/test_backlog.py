"""The figures of due mail: what it waits for is told apart, and a count takes little at a time (QRY-07)."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import grpc
import pytest
from prometheus_client.registry import REGISTRY

from mailrail.core.revision import revision as rev
from mailrail.kit import postgres
from mailrail.pb.queue.v1 import transports_pb2, transports_pb2_grpc, types_pb2
from mailrail_operator.settings import OperatorSettings
from mailrail_operator.transport_watch import TransportWatch
from mailrail_queue.rpc.answering import Rows
from mailrail_queue.rpc.transports import TransportServicer
from mailrail_queue.store import census
from mailrail_queue.store.census import SiteCount
from mailrail_queue.store.connection import Connection
from mailrail_queue.upkeep.backlog import Waits

from testkit.conditions import eventually
from testkit.queue import RELAY, RunningQueue, a_revision, relay, result_of, rule_to, running_queue


def exported(name: str, **labels: str) -> float | None:
    """A sample as a scrape sees it; None: there is none."""
    return REGISTRY.get_sample_value(name, labels)


async def failing_transports(url: str) -> list[transports_pb2.FailingTransport]:
    """What the operator is told."""
    server = grpc.aio.server()
    async with postgres.pool(postgres.Login.of(url), "queue", size=1) as pool:
        transports_pb2_grpc.add_TransportServiceServicer_to_server(TransportServicer(Rows(pool)), server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub: transports_pb2_grpc.TransportServiceAsyncStub = transports_pb2_grpc.TransportServiceStub(channel)
            answer = await stub.ListFailingTransports(transports_pb2.ListFailingTransportsRequest())
        changed: list[bool] = []
        settings = OperatorSettings(plaintext=True, queue_target=f"127.0.0.1:{port}", transports_seconds=0.01)
        watch = TransportWatch(settings, lambda: changed.append(True))
        asking = asyncio.create_task(watch.run())
        await eventually(lambda: changed)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await server.stop(0)
    assert watch.failing is not None
    assert {one.transport.name for one in answer.transports} == {found.name for found in watch.failing}
    return list(answer.transports)


async def counted(q: RunningQueue, **wanted: int) -> bool:
    found = await q.queue.counting.count()
    return {wait.value: n for wait, n in found.recipients.items() if n} == wanted


async def until_counted(q: RunningQueue, **wanted: int) -> None:
    async def true() -> bool | None:
        return await counted(q, **wanted)

    condition: Callable[[], bool | Awaitable[bool | None] | None] = true
    await eventually(condition)


async def test_mail_that_nobody_takes_is_ready_and_grows_old(database: str) -> None:
    async with running_queue(database) as q:
        ingress = await q.ingress()
        for n in range(7):
            await ingress.accept(f"user@d{n}.example", "other@d1.example")
        await until_counted(q, ready=14)
        await q.sql("UPDATE recipient SET due = now() - interval '1 hour' WHERE address = 'user@d3.example'")
        measured = await q.queue.counting.measure()
        assert 3600 <= measured.oldest[Waits.READY] < 3700
        assert measured.oldest[Waits.BACKOFF] == measured.oldest[Waits.LIMITED] == 0
        await q.sql("UPDATE recipient SET held_since = now() WHERE address = 'other@d1.example'")
        assert await counted(q, ready=7), "what is on hold waits for nobody"


async def test_mail_behind_a_full_window_is_limited_and_calls_for_no_further_process(database: str) -> None:
    revision = a_revision(transports=[relay(connections=1)], rules=[rule_to(RELAY)])
    async with running_queue(database, revision, born_leased_rounds=0) as q:
        outbound = await q.outbound()
        ingress = await q.ingress()
        for n in range(9):
            await ingress.accept(f"user@d{n}.example")
        await eventually(outbound.has(1))
        await eventually(lambda: bool(q.queue.dispatcher.sites))
        found = await q.queue.counting.count()
        assert found.recipients[Waits.LIMITED] > 0
        assert found.recipients[Waits.READY] == 0


async def test_due_mail_of_a_dead_site_is_in_backoff(database: str) -> None:
    async with running_queue(database) as q:
        outbound = await q.outbound()
        outbound.answer = lambda d: result_of(d, types_pb2.OUTCOME_DEFERRED, site_failure=True)
        ingress = await q.ingress()
        dispatcher = q.queue.dispatcher
        for n in range(10):
            await ingress.accept(f"user{n}@dead.example")
        await eventually(lambda: any(site.in_backoff(dispatcher.clock()) for site in dispatcher.sites.values()))
        await q.until("SELECT count(*) = 10 FROM recipient WHERE attempts = 1 AND token IS NULL")
        async with q.queue.owner.lane.use():  # else the owner would count it as tried, and move it on, at once
            await q.sql("UPDATE recipient SET due = now() - interval '1 minute'")
            await q.sql("UPDATE site_due SET next_due = now() - interval '1 minute'")
            found = await q.queue.counting.count()
        assert found.recipients == {Waits.READY: 0, Waits.LIMITED: 0, Waits.BACKOFF: 10}
        assert 60 <= found.oldest[Waits.BACKOFF] < 70


async def test_mail_for_a_missing_transport_is_in_backoff(database: str) -> None:
    gone = rev.ObjectRef("MailTransport", "default", "gone")
    async with running_queue(database, a_revision(rules=[rule_to(gone, missing=True)])) as q:
        ingress = await q.ingress()
        async with q.queue.owner.lane.use():
            await ingress.accept("user@d.example")
            await until_counted(q, backoff=1)


async def test_a_long_backlog_is_counted_whole_in_steps_and_by_index_QRY_07(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_queue(database, look_seconds=60.0, count_seconds=600.0) as q:
        await q.sql(
            "INSERT INTO recipient (id, message_id, shard, site, due, address, envelope_recipient)"
            " SELECT 1000000 + n, gen_random_uuid(), n %% 40, 'domain:d' || n %% 40,"
            " now() - interval '1 hour', 'u@d', '' FROM generate_series(1, %s) n",
            60_000,
        )
        await q.sql("INSERT INTO site_due SELECT DISTINCT shard, site, now() - interval '1 hour' FROM recipient")
        await q.sql("ANALYZE recipient")
        asked: list[int] = []
        count = census.count

        async def noted(connection: Connection, shards: Sequence[int]) -> list[SiteCount]:
            found = await count(connection, shards)
            asked.append(sum(one.waiting for one in found))
            return found

        monkeypatch.setattr(census, "count", noted)
        found = await q.queue.counting.count()
        assert found.recipients[Waits.READY] == 60_000
        assert max(asked) <= 25_000
        async with q.queue.counting.lane.use() as connection:
            await connection.execute("SELECT pg_stat_force_next_flush()")
        scans, reads = "sum(seq_scan)", "sum(idx_tup_read)"
        before = await q.one(f"SELECT {scans} FROM pg_stat_user_tables WHERE relname = 'recipient'")
        read = await q.one(f"SELECT {reads} FROM pg_stat_user_indexes WHERE indexrelname = 'recipient_due'")
        async with q.queue.counting.lane.use() as connection:
            await connection.execute("SELECT pg_stat_force_next_flush()")
        assert (await q.queue.counting.count()).recipients[Waits.READY] == 60_000
        async with q.queue.counting.lane.use() as connection:
            await connection.execute("SELECT pg_stat_force_next_flush()")
        assert await q.one(f"SELECT {scans} FROM pg_stat_user_tables WHERE relname = 'recipient'") == before
        after = await q.one(f"SELECT {reads} FROM pg_stat_user_indexes WHERE indexrelname = 'recipient_due'")
        assert after - read == 60_000
        # As administrators ask for it: 256 shards, none of them missing, none of them twice.
        assert await q.one("SELECT count(*) FROM census") == 256
        assert await q.one("SELECT sum(waiting)::int FROM census") == 60_000
        assert await q.one("SELECT sum(due)::int FROM census") == 60_000


async def test_the_sites_in_backoff_where_most_waits_are_named_and_no_more_than_the_setting_says(database: str) -> None:
    async with running_queue(database, named_sites=2) as q:
        outbound = await q.outbound()
        outbound.answer = lambda d: result_of(d, types_pb2.OUTCOME_DEFERRED, site_failure=True)
        ingress = await q.ingress()
        for site, count in (("a.example", 6), ("b.example", 9), ("c.example", 7)):
            for n in range(count):
                await ingress.accept(f"user{n}@{site}")
        dispatcher = q.queue.dispatcher
        await eventually(lambda: sum(s.in_backoff(dispatcher.clock()) for s in dispatcher.sites.values()) == 3)
        await q.until("SELECT count(*) = 22 FROM recipient WHERE token IS NULL")
        found = await q.queue.counting.count()
        assert list(q.queue.counting.worst_sites(found).items()) == [
            ("domain:b.example", 9),
            ("domain:c.example", 7),
        ]
        await q.queue.counting.measure()
        assert exported("mailrail_queue_site_waiting_recipients", site="domain:b.example") == 9
        assert exported("mailrail_queue_site_waiting_recipients", site="domain:a.example") is None
    async with running_queue(database, named_sites=0) as q:
        assert q.queue.counting.worst_sites(await q.queue.counting.count()) == {}


async def test_a_transport_whose_login_is_refused_is_named_with_the_reason(database: str) -> None:
    async with running_queue(database, a_revision(transports=[relay()], rules=[rule_to(RELAY)])) as q:
        outbound = await q.outbound()
        outbound.answer = lambda d: result_of(
            d, types_pb2.OUTCOME_DEFERRED, code=535, enhanced="5.7.8", text="wrong password", transport_failure=True
        )
        ingress = await q.ingress()
        await ingress.accept("user@d.example")
        name = "mailrail_queue_transports_in_backoff"
        labels = {"transport": f"{RELAY.namespace}/{RELAY.name}", "reason": "login_refused"}
        await eventually(lambda: exported(name, **labels) == 1)
        await q.until("SELECT count(*) = 1 FROM site WHERE name LIKE 'transport:%' AND failures > 0")
        (found,) = await failing_transports(database)
        assert (found.transport.kind, found.transport.namespace, found.transport.name) == (
            "MailTransport",
            RELAY.namespace,
            RELAY.name,
        )
        assert (found.reason, found.last_error) == ("login_refused", "535 5.7.8 wrong password")
        await q.sql("UPDATE site SET failures = 0, backoff_until = NULL")  # as an owner writes it after a success
        assert await failing_transports(database) == []


async def test_how_long_a_recipient_waited_for_its_first_attempt_is_measured_once(database: str) -> None:
    async with running_queue(database) as q:
        before = exported("mailrail_queue_first_attempt_seconds_count") or 0
        late = exported("mailrail_queue_first_attempt_seconds_bucket", le="300.0") or 0
        outbound = await q.outbound()
        outbound.answer = lambda d: result_of(d, types_pb2.OUTCOME_DEFERRED)
        ingress = await q.ingress()
        await ingress.accept("user@d.example")
        await q.until("SELECT count(*) = 1 FROM recipient WHERE attempts = 1 AND token IS NULL")
        await eventually(lambda: exported("mailrail_queue_first_attempt_seconds_count") == before + 1)
        assert exported("mailrail_queue_first_attempt_seconds_bucket", le="300.0") == late + 1
        outbound.answer = lambda d: result_of(d)
        await q.sql("UPDATE recipient SET due = now()")
        await q.sql("UPDATE site_due SET next_due = now()")
        await q.until("SELECT count(*) = 0 FROM recipient")
        assert exported("mailrail_queue_first_attempt_seconds_count") == before + 1, (
            "the second attempt is not the first"
        )
