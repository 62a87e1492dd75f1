"""Shards, sites and windows (message-life SHD): several owners on one Postgres, and what they do and do not touch."""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import psycopg
import pytest
from prometheus_client import REGISTRY

from mailrail.core.revision import revision as rev
from mailrail.core.route.site import shard
from mailrail.pb.queue.v1 import lease_pb2, types_pb2
from mailrail_queue.__main__ import assemble
from mailrail_queue.schedule import due_sites
from mailrail_queue.schedule.worklist import Worklist
from mailrail_queue.store import corrupt as corrupt_store
from mailrail_queue.store import fencing
from mailrail_queue.store import leases as lease_store
from mailrail_queue.store import results as result_store
from mailrail_queue.store import sites as site_store
from mailrail_queue.store import waiting as waiting_store
from mailrail_queue.store.connection import Connection

from testkit.conditions import eventually
from testkit.queue import (
    QUICK,
    RELAY,
    FakeIngress,
    FakeOutbound,
    RunningQueue,
    a_revision,
    configure,
    relay,
    result_of,
    rule_to,
    running_queue,
    sql,
)

DEFERRED = types_pb2.OUTCOME_DEFERRED


def domains(count: int, prefix: str = "d") -> list[str]:
    """Recipient domains, spread over shards."""
    return [f"{prefix}{n}.example" for n in range(count)]


async def accept_all(ingress: FakeIngress, names: list[str]) -> None:
    for name in names:
        await ingress.accept(f"user@{name}")


async def test_one_process_owns_all_256_shards_each_under_an_epoch_SHD_01(database: str) -> None:
    async with running_queue(database) as q:
        rows = await q.sql("SELECT count(*), min(epoch), count(DISTINCT owner) FROM shard WHERE owner IS NOT NULL")
        assert rows == [(256, 1, 1)]


async def test_a_process_that_stops_owns_nothing_however_long_it_takes_to_give_mail_back_SHD_01(database: str) -> None:
    async with running_queue(database, heartbeat_seconds=0.05) as q:
        beat, release, running = q.queue.shards.beat, q.queue.leases.release_all, q.queue._running
        beats = 0
        assert running is not None

        async def counted() -> None:
            nonlocal beats
            await beat()
            beats += 1

        async def slowly() -> None:
            before = beats
            await eventually(lambda: running.done() or beats > before)
            await release()

        q.queue.shards.beat, q.queue.leases.release_all = counted, slowly  # type: ignore[method-assign]
        await q.queue.stop(0.0)
        assert await q.one("SELECT count(*) FROM shard WHERE owner IS NOT NULL") == 0
        assert await q.one("SELECT count(*) FROM process") == 0


async def test_a_process_that_is_stopped_as_it_begins_owns_nothing_SHD_01(database: str) -> None:
    queue, _ = assemble(replace(QUICK, database_url=database, node_id="brief"))
    configure(queue, a_revision())
    await queue.prepare()
    owning = asyncio.Event()

    async def slow() -> None:
        owning.set()
        await asyncio.Event().wait()

    queue.shared_sites.learn = slow  # type: ignore[method-assign]
    starting = asyncio.create_task(queue.start())
    await owning.wait()
    assert await sql(database, "SELECT count(*) FROM shard WHERE owner IS NOT NULL") == [(256,)]
    starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)
    assert await sql(database, "SELECT count(*) FROM shard WHERE owner IS NOT NULL") == [(0,)]
    assert await sql(database, "SELECT count(*) FROM process") == [(0,)]
    await queue.database.close()


async def test_a_hint_that_comes_while_its_owner_looks_is_not_lost_SHD_02(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = site_store.due_sites
    async with running_queue(database) as q:
        worklist = Worklist(q.queue.dispatcher, q.queue.peers, q.queue.router, run_id="another")
        worklist.cursors = {7: 0.0, 8: 0.0}

        async def hinted(
            connection: Connection, cursors: Mapping[int, tuple[float, str]], count: int
        ) -> list[tuple[int, str, float]]:
            rows = await look(connection, cursors, count)
            worklist.wake_shards([7])  # of what was stored after the rows were read
            return rows

        monkeypatch.setattr(site_store, "due_sites", hinted)
        await due_sites.DueSites(q.queue.database.lane("another"), q.queue.dispatcher, worklist).look()
        assert worklist.cursors == {7: 0.0, 8: 1.0}


async def test_of_sites_that_fell_due_in_one_moment_none_waits_behind_the_others_SHD_03(database: str) -> None:
    async with running_queue(database, look_seconds=600.0) as q:
        await q.sql(
            "INSERT INTO site_due (shard, site, next_due)"
            " SELECT 5, 'domain:d' || n || '.example', now() - interval '1 hour' FROM generate_series(1, 250) n"
        )
        worklist = Worklist(q.queue.dispatcher, q.queue.peers, q.queue.router, run_id="another")
        worklist.cursors = {5: 0.0}
        found = due_sites.DueSites(q.queue.database.lane("another"), q.queue.dispatcher, worklist)
        for _ in range(3):  # nothing of what a look finds is dealt with before the next
            await found.look()
        assert len(worklist.turn) == 250


async def test_sites_whose_backoff_began_in_one_moment_are_all_learned_SHD_03(database: str) -> None:
    async with running_queue(database) as q:
        await q.sql(
            "INSERT INTO site (name, failures, backoff_until, changed)"
            " SELECT 'domain:d' || n || '.example', 1, now() + interval '1 hour', now() FROM generate_series(1, 1300) n"
        )
        await eventually(lambda: len(q.queue.dispatcher.sites) == 1300)


async def test_owners_share_the_shards_and_take_over_those_of_one_that_leaves_or_dies_SHD_01(database: str) -> None:
    async with running_queue(database, dead_seconds=1.0) as one, running_queue(database, dead_seconds=1.0) as two:
        halves = "SELECT count(*) = 2 FROM (SELECT owner FROM shard GROUP BY owner HAVING count(*) = 128) x"
        await one.until(halves)
        async with running_queue(database, dead_seconds=1.0):
            await one.until("SELECT min(n) >= 84 FROM (SELECT count(*) n FROM shard GROUP BY owner) x")
        await one.until(halves)
        assert two.queue._running is not None
        two.queue._running.cancel()  # as a process that is gone without a word
        await one.until("SELECT count(DISTINCT owner) = 1 AND min(epoch) >= 1 FROM shard")
        await eventually(lambda: len(one.queue.worklist.ownership.epochs) == 256)


async def test_a_restarted_process_of_the_same_name_takes_its_shards_back_at_once_SHD_01(database: str) -> None:
    # Overlapping as they do when the first hangs and is replaced.
    async with running_queue(database, node="queue-a", dead_seconds=600.0, heartbeat_seconds=600.0) as old:  # noqa: SIM117
        async with running_queue(database, node="queue-a", dead_seconds=600.0) as new:
            assert len(new.queue.worklist.ownership.epochs) == 256
            assert await new.one("SELECT min(epoch) FROM shard") == 2
            # The one before writes under an epoch that is over: its mail is stored due for the new owner.
            outbound = await old.outbound()
            await (await old.ingress()).accept("bob@away.example")
            assert await old.one("SELECT token FROM recipient") is None
            assert outbound.deliveries == []


async def test_a_stale_epoch_leases_schedules_and_moves_nothing_SHD_01(database: str) -> None:
    async with running_queue(database, look_seconds=60.0) as q:
        await (await q.ingress()).accept("bob@away.example")
        (number,) = [row[0] for row in await q.sql("SELECT id FROM recipient")]
        async with q.queue.database.lane("test").use() as connection:
            rows = await waiting_store.live(connection, [number])
            stale = fencing.Ownership(q.queue.run_id, dict.fromkeys(range(256), 77))
            other = fencing.Ownership("somebody", q.queue.worklist.ownership.epochs)
            for ownership in (stale, other):
                assert (await lease_store.lease(connection, ownership, 120.0, [(rows[0], 1, "x")]))[0] == set()
                deferral = result_store.Deferral(number, rows[0].message_id, 0, 1, 60.0, b"x", shard=rows[0].shard)
                assert await result_store.back_off(connection, ownership, [deferral]) == set()
                assert await site_store.re_key(connection, ownership, [(rows[0], "domain:y")]) == []
                await site_store.settle(connection, ownership, [(rows[0].shard, rows[0].site, False)])
        assert await q.one("SELECT count(*) FROM site_due WHERE next_due <= now()") == 1
        assert await q.sql("SELECT token, attempts, site FROM recipient") == [(None, 0, "domain:away.example")]


async def test_any_replica_accepts_and_wakes_the_owner_SHD_02(database: str) -> None:
    async with (
        running_queue(database, look_seconds=120.0) as one,
        running_queue(database, look_seconds=120.0) as two,
    ):
        await one.until("SELECT count(*) = 2 FROM (SELECT owner FROM shard GROUP BY owner HAVING count(*) = 128) x")
        await eventually(
            lambda: len(one.queue.worklist.ownership.epochs) == 128 == len(two.queue.worklist.ownership.epochs)
        )
        await eventually(lambda: one.queue.peers._owners and two.queue.peers._owners)
        first, second = await one.outbound("o"), await two.outbound("o")
        began = time.monotonic()
        names = domains(20)
        await accept_all(await one.ingress(), names)
        await eventually(lambda: len(first.deliveries) + len(second.deliveries) == 20)
        assert time.monotonic() - began < 60, "woken, not found by the next look"
        for outbound, queue in ((first, one.queue), (second, two.queue)):
            assert {shard(d.domain) for d in outbound.deliveries} <= set(queue.worklist.ownership.epochs)
        assert first.deliveries
        assert second.deliveries
        assert one.queue.peers._channels
        one.queue.peers.learn({}, frozenset())  # as after the other one's end
        await eventually(lambda: not one.queue.peers._channels)


async def test_without_any_word_an_owner_finds_due_work_by_itself_SHD_02(database: str) -> None:
    async with running_queue(database) as one, running_queue(database) as two:
        await one.until("SELECT count(*) = 2 FROM (SELECT owner FROM shard GROUP BY owner HAVING count(*) = 128) x")
        one.queue.peers.learn({}, frozenset())
        one.queue.peers.learn = lambda owners, addresses: None  # type: ignore[method-assign]
        first, second = await one.outbound("o"), await two.outbound("o")
        await accept_all(await one.ingress(), domains(20))
        await eventually(lambda: len(first.deliveries) + len(second.deliveries) == 20)
        assert second.deliveries


async def test_a_smarthost_is_one_site_and_each_domain_of_direct_delivery_is_one_SHD_03(database: str) -> None:
    revision = a_revision(transports=[relay()], rules=[rule_to(RELAY, "a.example", "b.example")])
    async with running_queue(database, revision) as q:
        outbound = await q.outbound()
        await accept_all(await q.ingress(), ["a.example", "b.example", "c.example", "d.example"])
        await eventually(lambda: len(outbound.deliveries) == 4)
        assert sorted(d.site for d in outbound.deliveries) == [
            "domain:c.example",
            "domain:d.example",
            "transport:default/relay",
            "transport:default/relay",
        ]


async def test_no_more_than_a_window_is_in_flight_and_it_opens_with_success_SHD_04(database: str) -> None:
    async with running_queue(database) as q:
        outbound = await q.outbound()
        ingress = await q.ingress()
        for n in range(60):
            await ingress.accept(f"user{n}@away.example")
        await eventually(lambda: len(outbound.deliveries) >= 5)
        assert len(outbound.deliveries) == 5
        outbound.finish(*outbound.deliveries[:5])
        await eventually(lambda: len(outbound.deliveries) >= 15)
        assert len(outbound.deliveries) == 15
        outbound.answer = result_of
        outbound.finish(*outbound.deliveries[5:])
        await q.until("SELECT count(*) = 60 FROM history")


async def test_a_transport_limit_of_connections_holds_SHD_04(database: str) -> None:
    revision = a_revision(transports=[relay(connections=2)], rules=[rule_to(RELAY)])
    async with running_queue(database, revision) as q:
        outbound = await q.outbound()
        ingress = await q.ingress()
        most = 0

        for n in range(20):
            await ingress.accept(f"user{n}@away.example")
        done: set[int] = set()
        while len(done) < 20:
            await eventually(lambda: any(d.token not in done for d in outbound.deliveries))
            open_ones = [d for d in outbound.deliveries if d.token not in done]
            most = max(most, len(open_ones))
            outbound.finish(open_ones[0])
            done.add(open_ones[0].token)
        assert most == 2


async def test_a_limit_that_owners_share_is_divided_among_them_SHD_04(database: str) -> None:
    revision = a_revision(transports=[relay(connections=6, rate=rev.MessageRate(200, 2))], rules=[rule_to(RELAY)])
    async with running_queue(database, revision) as one, running_queue(database, revision) as two:
        await eventually(lambda: one.queue.dispatcher.owners == 2 == two.queue.dispatcher.owners)
        first, second = await one.outbound("o"), await two.outbound("o")
        names = domains(60)
        await asyncio.gather(accept_all(await one.ingress(), names[:30]), accept_all(await two.ingress(), names[30:]))
        await eventually(lambda: len(first.deliveries) >= 3 and len(second.deliveries) >= 3)
        assert (len(first.deliveries), len(second.deliveries)) == (3, 3)
        state = one.queue.dispatcher.transports["default/relay"]
        assert state.bucket is not None
        assert state.bucket.rate == 50.0


async def test_messages_a_second_of_a_transport_are_kept_SHD_04(database: str) -> None:
    revision = a_revision(transports=[relay(rate=rev.MessageRate(20, 1))], rules=[rule_to(RELAY)])
    async with running_queue(database, revision) as q:
        outbound = await q.outbound()
        outbound.answer = result_of
        ingress = await q.ingress()
        began = time.monotonic()
        for n in range(50):
            await ingress.accept(f"user{n}@away.example")
        await q.until("SELECT count(*) = 50 FROM history", within=60)
        assert time.monotonic() - began > 1.3  # 20 at once, then 20 a second
        assert await q.one("SELECT count(*) FROM attempt") == 0, "waiting for a rate is no attempt"


async def test_sites_of_one_mx_group_share_a_limit_SHD_03(database: str) -> None:
    async with running_queue(database) as q:
        outbound = await q.outbound()
        ingress = await q.ingress()
        hosts = ["mx1.big.example", "MX2.big.example"]
        for name in ("one.example", "two.example"):
            await ingress.accept(f"first@{name}")
        await eventually(lambda: len(outbound.deliveries) == 2)
        outbound.finish(*outbound.deliveries, mx_hosts=hosts)
        await q.until("SELECT count(*) = 2 FROM history")
        for site in q.queue.dispatcher.sites.values():
            site.window.size = 20.0
        for n in range(30):
            await ingress.accept(f"user{n}@one.example")
            await ingress.accept(f"user{n}@two.example")
        await eventually(lambda: len(outbound.deliveries) >= 22)
        assert len(outbound.deliveries) == 22  # 20 in flight at both together


async def test_a_site_goes_to_the_same_outbound_process_while_that_takes_it_SHD_04(database: str) -> None:
    async with running_queue(database) as q:
        many = [await q.outbound(f"outbound-{n}", credit=1000) for n in range(3)]
        await eventually(lambda: len(q.queue.dispatcher.streams) == 3)
        ingress = await q.ingress()
        names = domains(30)
        for _ in range(2):
            await accept_all(ingress, names)
        await eventually(lambda: sum(len(o.deliveries) for o in many) == 60)
        homes = [{d.domain for d in o.deliveries} for o in many]
        assert sum(map(len, homes)) == 30, "each domain went to one process"
        assert all(homes), "and every process has some"


async def test_recipients_re_key_when_routing_changes_their_site_SHD_04(database: str) -> None:
    async with running_queue(database) as q:
        ingress = await q.ingress()
        for n in range(30):
            await ingress.accept(f"user{n}@away.example")  # nobody takes it: stored due
        assert await q.one("SELECT count(*) FROM recipient WHERE site = 'domain:away.example'") == 30
        q.configure(a_revision(transports=[relay()], rules=[rule_to(RELAY)]))
        outbound = await q.outbound()
        outbound.answer = result_of
        await q.until("SELECT count(*) = 30 FROM history")
        assert {d.site for d in outbound.deliveries} == {"transport:default/relay"}
        await q.until("SELECT count(*) = 0 FROM site_due", within=60)


def refuse_connections(delivery: lease_pb2.Delivery) -> lease_pb2.DeliveryResult:
    """As outbound answers when nobody listens there."""
    return result_of(delivery, DEFERRED, code=0, enhanced="4.4.1", text="connection refused", site_failure=True)


async def refused(q: RunningQueue, count: int, domain: str) -> FakeOutbound:
    """So much mail for a domain where nobody listens, and the outbound that tries."""
    outbound = await q.outbound()
    outbound.answer = refuse_connections
    ingress = await q.ingress()
    for n in range(count):
        await ingress.accept(f"user{n}@{domain}")
    return outbound


async def test_a_dead_site_is_in_backoff_and_its_due_mail_is_counted_without_a_dial_SHD_05_SOUT_08(
    database: str,
) -> None:
    async with running_queue(database) as q:
        outbound = await refused(q, 40, "dead.example")
        await q.until("SELECT count(*) = 40 FROM recipient WHERE attempts = 1 AND token IS NULL")
        dialled = len(outbound.deliveries)
        assert dialled < 30, "after a cohort of failures nobody is dialled"
        attempts = [types_pb2.Attempt.FromString(d) for (d,) in await q.sql("SELECT data FROM attempt")]
        backoff = [a for a in attempts if not a.dialled]
        assert len(backoff) == 40 - dialled
        quoted = "not dialled while the site is in backoff: the server said 451 4.4.1 connection refused"
        assert all(list(a.reply.lines) == [quoted] for a in backoff)
        ((failures, paused),) = await q.sql("SELECT failures, backoff_until > now() + interval '40 s' FROM site")
        assert (failures, paused) == (1, True)
        await (await q.ingress()).accept("user@well.example")
        await eventually(lambda: outbound.deliveries[-1].domain == "well.example")


async def test_a_later_route_takes_over_from_a_dead_site_SHD_05(database: str) -> None:
    rules = [rule_to(RELAY, minimum_attempts=1)]
    async with running_queue(database, a_revision(transports=[relay()], rules=rules)) as q:
        outbound = await q.outbound()
        outbound.answer = lambda d: result_of(d) if d.HasField("transport") else refuse_connections(d)
        ingress = await q.ingress()
        for n in range(20):
            await ingress.accept(f"user{n}@dead.example")
        await q.until("SELECT count(*) = 20 FROM recipient WHERE attempts = 1 AND token IS NULL")
        await q.sql("UPDATE recipient SET due = now()")
        await q.sql("UPDATE site_due SET next_due = now()")
        await q.until("SELECT count(*) = 20 FROM history WHERE attempts = 2")


async def test_after_its_backoff_a_site_is_probed_once_and_opens_again_SHD_05(database: str) -> None:
    async with running_queue(database) as q:
        outbound = await refused(q, 10, "dead.example")
        await q.until("SELECT count(*) = 10 FROM recipient WHERE attempts = 1 AND token IS NULL")
        before = len(outbound.deliveries)
        outbound.answer = None
        q.queue.dispatcher.sites["domain:dead.example"].window.wake()
        await q.sql("UPDATE recipient SET due = now()")
        await q.sql("UPDATE site_due SET next_due = now()")
        await eventually(lambda: len(outbound.deliveries) == before + 1)
        await asyncio.wait_for(q.queue.owner.due_sites.look(), 30)
        assert len(outbound.deliveries) == before + 1
        outbound.answer = result_of
        outbound.finish(outbound.deliveries[-1])
        await q.until("SELECT count(*) = 10 FROM history")
        await q.until("SELECT failures = 0 AND backoff_until IS NULL FROM site")


async def test_a_backoff_survives_a_restart_of_the_owner_SHD_03(database: str) -> None:
    async with running_queue(database) as q:
        await refused(q, 10, "dead.example")
        await q.until("SELECT backoff_until > now() FROM site")
    async with running_queue(database) as q:
        outbound = await q.outbound()
        await (await q.ingress()).accept("late@dead.example")
        await q.until("SELECT attempts = 1 FROM recipient WHERE address LIKE 'late%%'")
        assert outbound.deliveries == []


async def test_trouble_of_our_own_transport_puts_it_whole_into_backoff_and_bounces_nothing(database: str) -> None:
    revision = a_revision(transports=[relay()], rules=[rule_to(RELAY)])
    async with running_queue(database, revision) as q:
        outbound = await q.outbound()
        outbound.answer = lambda d: result_of(
            d, DEFERRED, code=535, enhanced="4.3.5", text="bad credentials", transport_failure=True
        )
        ingress = await q.ingress()
        await accept_all(ingress, domains(30))
        await q.until("SELECT count(*) = 30 FROM recipient WHERE attempts = 1 AND token IS NULL")
        assert len(outbound.deliveries) <= 6, "one failure says it all"
        assert await q.one("SELECT count(*) FROM history") == 0


async def test_a_failing_proxy_puts_all_sites_of_its_transport_into_backoff(database: str) -> None:
    ref = rev.ObjectRef("MailTransport", "default", "proxy")
    proxy = rev.Transport(ref, rev.TransportKind.SOCKS, proxy_host="127.0.0.1", proxy_port=1)
    async with running_queue(database, a_revision(transports=[proxy], rules=[rule_to(ref)])) as q:
        outbound = await q.outbound()
        outbound.answer = lambda d: result_of(d, DEFERRED, text="proxy refuses", transport_failure=True)
        ingress = await q.ingress()
        await ingress.accept("user@first.example")
        await q.until("SELECT attempts = 1 AND token IS NULL FROM recipient")
        await accept_all(ingress, domains(10))
        await q.until("SELECT count(*) = 11 FROM recipient WHERE attempts = 1 AND token IS NULL")
        assert len(outbound.deliveries) == 1
        assert await q.sql("SELECT name FROM site") == [("transport:default/proxy",)]


async def test_a_dead_site_with_a_long_backlog_fills_no_window_SHD_03(database: str) -> None:
    count = 20_000
    async with running_queue(database) as q:
        await q.sql(
            "INSERT INTO recipient (id, message_id, shard, site, due, address, envelope_recipient, from_domain)"
            " SELECT 1000000 + n, gen_random_uuid(), %s, 'domain:dead.example', now() + n * interval '1 millisecond',"
            " 'user' || n || '@dead.example', '', 'away.example' FROM generate_series(1, %s) n",
            shard("dead.example"),
            count,
        )
        await q.sql(
            "INSERT INTO site (name, failures, backoff_until)"
            " VALUES ('domain:dead.example', 3, now() + interval '1 hour')"
        )
        await q.sql(
            "INSERT INTO site_due VALUES (%s, 'domain:dead.example', now() - interval '1 second')",
            shard("dead.example"),
        )
        outbound = await q.outbound()
        outbound.answer = result_of
        ingress = await q.ingress()
        began = time.monotonic()
        for n in range(50):
            await ingress.accept(f"user{n}@well.example")
        await q.until("SELECT count(*) >= 50 FROM history", within=15)
        assert time.monotonic() - began < 15
        assert {d.domain for d in outbound.deliveries} == {"well.example"}
        await q.until("SELECT count(*) > 1000 FROM recipient WHERE attempts = 1", within=60)
        assert q.queue.dispatcher.pending_deliveries == 0


async def test_no_statement_of_the_owner_scans_the_backlog_SHD_03(database: str) -> None:
    async with running_queue(database, look_seconds=60.0) as q:
        await q.sql(
            "INSERT INTO recipient (id, message_id, shard, site, due, address, envelope_recipient)"
            " SELECT 1000000 + n, gen_random_uuid(), n %% 256, 'domain:d' || n %% 100,"
            " now() + interval '1 day', 'u@d', '' FROM generate_series(1, %s) n",
            20_000,
        )
        await q.sql("ANALYZE recipient")
        async with q.queue.database.lane("plans").use() as connection:
            before = await q.one(
                "SELECT coalesce(sum(seq_scan), 0) FROM pg_stat_user_tables WHERE relname = 'recipient'"
            )
            for number in range(5):
                await waiting_store.fetch_due(connection, [(number, f"domain:d{number}", 200)])
                await waiting_store.live(connection, [1, 2, 3])
                await lease_store.expire(connection, q.queue.worklist.ownership, list(range(256)), 0.0, 500)
                await site_store.settle(connection, q.queue.worklist.ownership, [(number, "domain:d1", True)])
                await waiting_store.requested(connection, list(range(256)), 0)
                await waiting_store.requested_leased(connection, 0)
                await site_store.verify(connection, number)
                await site_store.look_back(connection, [(number, f"domain:d{number}")])
                await site_store.sample(connection, list(range(256)), "missing:default/relay")
                await result_store.newest_attempts(connection, [1, 2, 3])
                await result_store.record(connection, [(1, bytes(16), 7, b"late")])
                await lease_store.put_off(connection, [(1, 60.0)])
                ownership = q.queue.worklist.ownership
                await corrupt_store.hold_corrupt(connection, ownership, [], "cannot be read", undo=True, withdraw=False)
                await lease_store.first_expired(connection, list(range(256)), 0.0)
            await connection.execute("SELECT pg_stat_force_next_flush()")
        after = await q.one("SELECT coalesce(sum(seq_scan), 0) FROM pg_stat_user_tables WHERE relname = 'recipient'")
        assert after == before


async def test_the_slow_round_finds_sites_that_a_race_left_out_SHD_02(database: str) -> None:
    async with running_queue(database) as q:
        await (await q.ingress()).accept("bob@away.example")
        await q.sql("DELETE FROM site_due")
        number = shard("away.example")
        await q.queue.owner.due_sites.verify(number)
        assert await q.sql("SELECT shard, site FROM site_due") == [(number, "domain:away.example")]


async def test_recipients_that_a_settled_site_did_not_show_yet_are_found_soon_SHD_02(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(due_sites, "_LOOK_BACK", 2.0)
    async with running_queue(database) as q:

        async def no_slow_round(number: int) -> None:
            pass

        monkeypatch.setattr(q.queue.owner.due_sites, "verify", no_slow_round)
        ingress = await q.ingress()
        await ingress.accept("seen@away.example")
        await ingress.accept("unseen@away.example")
        await q.sql("UPDATE recipient SET held_since = now() WHERE address LIKE 'unseen%%'")
        (await q.outbound()).answer = result_of
        await q.until("SELECT count(*) = 0 FROM site_due")
        # As a transaction does that was under way all the while: it found the site's row early enough, and left it.
        await q.sql("UPDATE recipient SET held_since = NULL")
        await q.until("SELECT count(*) = 2 FROM history")


async def test_a_revision_that_brings_a_missing_transport_makes_what_waited_due_at_once_ADM_03(database: str) -> None:
    missing = a_revision(rules=[rule_to(RELAY, missing=True)])
    async with running_queue(database, missing) as q:
        outbound = await q.outbound()
        outbound.answer = result_of
        ingress = await q.ingress()
        for n in range(20):
            await ingress.accept(f"user{n}@away.example")
        await q.until("SELECT count(*) = 20 FROM recipient WHERE attempts = 1 AND due > now() + interval '5 min'")
        ((data, site),) = await q.sql("SELECT last_attempt, site FROM recipient LIMIT 1")
        attempt = types_pb2.Attempt.FromString(data)
        assert (attempt.reply.enhanced, site) == ("4.3.5", "missing:default/relay")
        q.configure(a_revision(transports=[relay()], rules=[rule_to(RELAY)]))
        await q.until("SELECT count(*) = 20 FROM history WHERE attempts = 2")


async def test_a_route_that_names_what_is_missing_no_longer_frees_its_mail_ADM_03(
    database: str,
) -> None:
    both = [rule_to(RELAY, "away.example", missing=True), rule_to(RELAY, "other.example", missing=True)]
    async with running_queue(database, a_revision(rules=both)) as q:
        (await q.outbound()).answer = result_of
        await accept_all(await q.ingress(), ["away.example"])
        await q.until("SELECT attempts = 1 AND due > now() + interval '5 min' FROM recipient")
        q.configure(a_revision(rules=both[:1]))
        await asyncio.wait_for(q.queue.owner.revisions.reconsider(()), 30)
        assert await q.one("SELECT attempts FROM recipient") == 1  # it waits for what is missing still: no attempt
        q.configure(a_revision(rules=both[1:]))  # away.example goes directly now
        await q.until("SELECT count(*) = 1 FROM history WHERE attempts = 2")


async def test_a_transport_that_came_while_no_owner_ran_frees_what_waited_for_it_ADM_03(database: str) -> None:
    async with running_queue(database, a_revision(rules=[rule_to(RELAY, missing=True)])) as q:
        await (await q.ingress()).accept("bob@away.example")
        await q.until("SELECT attempts = 1 AND due > now() + interval '5 min' FROM recipient")
    async with running_queue(database, a_revision(transports=[relay()], rules=[rule_to(RELAY)])) as q:
        (await q.outbound()).answer = result_of
        await q.until("SELECT count(*) = 1 FROM history WHERE attempts = 2")


async def test_a_revision_that_came_while_postgres_was_away_is_looked_at_later_ADM_03(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_queue(database, a_revision(rules=[rule_to(RELAY, missing=True)])) as q:
        (await q.outbound()).answer = result_of
        await (await q.ingress()).accept("bob@away.example")
        await q.until("SELECT attempts = 1 AND due > now() + interval '5 min' FROM recipient")
        look, tries = site_store.missing_sites, []

        async def away_at_first(*arguments: Any) -> list[str]:
            tries.append(1)
            if len(tries) == 1:
                raise psycopg.OperationalError("the server closed the connection")
            return await look(*arguments)

        monkeypatch.setattr(site_store, "missing_sites", away_at_first)
        q.configure(a_revision(transports=[relay()], rules=[rule_to(RELAY)]))
        await q.until("SELECT count(*) = 1 FROM history WHERE attempts = 2")
        assert len(tries) == 2


async def test_a_revision_that_corrects_a_transport_ends_its_backoff_and_its_mail_goes_at_once(database: str) -> None:
    revision = a_revision(transports=[relay()], rules=[rule_to(RELAY)])
    async with running_queue(database, revision, heartbeat_seconds=60.0) as q:
        outbound = await refused(q, 10, "away.example")
        await q.until("SELECT count(*) = 10 FROM recipient WHERE attempts >= 1 AND token IS NULL")
        await q.until("SELECT backoff_until > now() FROM site WHERE name = 'transport:default/relay'")
        outbound.answer = result_of
        q.configure(revision)  # the same again changes nothing
        q.configure(replace(revision, transports=(replace(relay(), host="another.example"),)))
        await q.until("SELECT count(*) = 10 FROM history WHERE outcome = %s", types_pb2.OUTCOME_RELAYED)


async def test_a_changed_limit_is_live_without_a_restart(database: str) -> None:
    revision = a_revision(transports=[relay(connections=1)], rules=[rule_to(RELAY)])
    async with running_queue(database, revision) as q:
        outbound = await q.outbound()
        await accept_all(await q.ingress(), domains(10))
        await eventually(lambda: len(outbound.deliveries) == 1)
        q.configure(replace(revision, transports=(relay(connections=8),)))
        outbound.answer = result_of
        outbound.finish(*outbound.deliveries)
        await q.until("SELECT count(*) = 10 FROM history")


async def test_a_kick_ends_the_backoff_of_a_site_and_its_mail_is_dialled_not_counted(database: str) -> None:
    async with running_queue(database, heartbeat_seconds=60.0) as q:
        outbound = await refused(q, 10, "dead.example")
        await q.until("SELECT count(*) = 10 FROM recipient WHERE attempts = 1 AND token IS NULL")
        await q.until("SELECT backoff_until > now() FROM site")
        outbound.answer = result_of
        # As Kick does it, in one transaction.
        await q.sql(
            "WITH s AS (UPDATE site SET backoff_until = now(), changed = clock_timestamp()),"
            " r AS (UPDATE recipient SET due = now(), version = version + 1)"
            " UPDATE site_due SET next_due = now()"
        )
        q.queue.worklist.wake_everybody(range(256))
        await q.until(
            "SELECT count(*) = 10 FROM history WHERE attempts = 2 AND outcome = %s", types_pb2.OUTCOME_RELAYED
        )


async def test_a_recipient_that_cannot_be_read_is_held_as_corrupt_and_stalls_no_other_SHD_03(database: str) -> None:
    before = REGISTRY.get_sample_value("mailrail_queue_corrupt_recipients_total") or 0.0
    async with running_queue(database) as q:
        ingress = await q.ingress()
        for name in ("bad", "good", "forgotten"):
            await ingress.accept(f"{name}@away.example")
        await q.sql(r"UPDATE recipient SET envelope_recipient = '\xff' WHERE address LIKE 'bad%%'")
        await q.sql(
            r"UPDATE recipient SET dialled_hosts = '\xff', last_attempt = '\xff' WHERE address LIKE 'forgotten%%'"
        )
        await ingress.accept("torn@away.example")
        await q.sql(
            r"UPDATE message SET envelope = '\xff' WHERE id = "
            "(SELECT message_id FROM recipient WHERE address LIKE 'torn%%')"
        )
        outbound = await q.outbound()
        outbound.answer = result_of
        await q.sql("UPDATE recipient SET due = now() WHERE token IS NULL")
        await q.sql("UPDATE site_due SET next_due = now()")
        await q.until("SELECT count(*) = 2 FROM history")
        await q.until(
            "SELECT count(*) = 2 FROM recipient WHERE held_since IS NOT NULL AND token IS NULL AND attempts = 0"
        )
        assert await q.sql("SELECT address, hold_reason FROM recipient ORDER BY address") == [
            ("bad@away.example", "the stored recipient is corrupt"),
            ("torn@away.example", "the stored envelope is corrupt"),
        ]
        assert REGISTRY.get_sample_value("mailrail_queue_corrupt_recipients_total") == before + 2
        assert await q.one("SELECT count(*) FROM attempt") == 0


async def test_a_recipient_that_cannot_be_read_is_held_at_a_site_in_backoff_too_SHD_05(
    database: str,
) -> None:
    async with running_queue(database) as q:
        await refused(q, 10, "dead.example")
        await q.until("SELECT count(*) = 10 FROM recipient WHERE attempts = 1 AND token IS NULL")
        await q.sql(r"UPDATE recipient SET envelope_recipient = '\xff' WHERE id = (SELECT min(id) FROM recipient)")
        await q.sql("UPDATE recipient SET due = now()")
        await q.sql("UPDATE site_due SET next_due = now()")
        await q.until("SELECT count(*) = 9 FROM recipient WHERE attempts = 2 AND token IS NULL AND held_since IS NULL")
        await q.until("SELECT count(*) = 1 FROM recipient WHERE attempts = 1 AND held_since IS NOT NULL")
