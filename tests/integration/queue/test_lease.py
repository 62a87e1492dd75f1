"""Leases and what comes back under them (message-life LSE and FIN), on a real Postgres and over real gRPC."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any

import grpc
import psycopg
import pytest
from prometheus_client import REGISTRY

from mailrail.core.limits import CHUNK_SIZE
from mailrail.core.revision import revision as rev
from mailrail.core.route.site import SHARDS
from mailrail.kit import clock
from mailrail.pb.queue.v1 import lease_pb2, types_pb2
from mailrail_queue.delivery.ports import Notice
from mailrail_queue.delivery.stream import OutboundStream
from mailrail_queue.store import content as content_store
from mailrail_queue.store import leases as lease_store
from mailrail_queue.store import waiting as waiting_store
from mailrail_queue.store.connection import Connection, Lane

from testkit.conditions import eventually
from testkit.faultproxy import FaultProxy
from testkit.queue import (
    RELAY,
    FakeOutbound,
    RunningQueue,
    a_revision,
    commit_of,
    message_id,
    relay,
    result_of,
    rule_to,
    running_queue,
)

DEFERRED = types_pb2.OUTCOME_DEFERRED
FAILED = types_pb2.OUTCOME_FAILED
DELIVERED = types_pb2.OUTCOME_DELIVERED
RELAYED = types_pb2.OUTCOME_RELAYED
NOT_ATTEMPTED = types_pb2.OUTCOME_NOT_ATTEMPTED
CANCELLED = types_pb2.OUTCOME_CANCELLED
LONG_AGO = "UPDATE recipient SET lease_until = now() - interval '1 second' WHERE token IS NOT NULL"
DUE = "UPDATE recipient SET due = now() WHERE token IS NULL"


async def one_delivery(q: RunningQueue, outbound: FakeOutbound, *to: str) -> lease_pb2.Delivery:
    """Accept a message and wait for its delivery."""
    before = len(outbound.deliveries)
    await (await q.ingress()).accept(*(to or ("bob@away.example",)))
    await eventually(lambda: len(outbound.deliveries) > before)
    return outbound.deliveries[-1]


async def due_again(q: RunningQueue) -> None:
    """Make waiting recipients due, as time would."""
    await q.sql(DUE)
    await q.sql("UPDATE site_due SET next_due = now()")


async def test_what_is_handed_on_is_what_its_row_says_LSE_01(database: str) -> None:
    async with running_queue(database) as q:
        outbound = await q.outbound()
        delivery = await one_delivery(q, outbound)
        ((token, attempts, left, started),) = await q.sql(
            "SELECT token, attempts, extract(epoch FROM lease_until - now())::float8, last_attempt_started IS NOT NULL"
            " FROM recipient"
        )
        assert (token, attempts, started) == (delivery.token, 1, True)
        assert 100 < left <= 120
        assert 100 < delivery.remaining_seconds <= 120
        assert delivery.attempt == 1


_HELD_COMMIT = """
    CREATE FUNCTION public.wait() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN PERFORM pg_advisory_xact_lock_shared(42); RETURN NULL; END $$;
    CREATE CONSTRAINT TRIGGER wait AFTER INSERT OR UPDATE ON queue.recipient
        DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION public.wait();
"""
"""Statements about recipients return at once, and their commits wait while somebody has lock 42."""


@pytest.mark.parametrize("born_leased", [True, False])
async def test_nothing_is_handed_on_before_the_commit_of_its_attempt_LSE_01(database: str, born_leased: bool) -> None:
    async with running_queue(database) as q:
        await q.sql(_HELD_COMMIT)
        ingress = await q.ingress()
        if born_leased:
            outbound = await q.outbound()
        else:
            await ingress.accept("bob@away.example")
        async with await psycopg.AsyncConnection.connect(database, autocommit=True) as holder:
            await holder.execute("SELECT pg_advisory_lock(42)")
            if born_leased:
                (answer,) = ingress.commit(commit_of("bob@away.example"))
            else:
                outbound = await q.outbound()
            waiting = "SELECT count(*) = 1 FROM pg_locks WHERE locktype = 'advisory' AND objid = 42 AND NOT granted"
            for _ in range(20):  # it still waits each time, and what was handed on too early would be here by then
                await q.until(waiting)
                assert outbound.deliveries == []
            if born_leased:
                assert not answer.done()
            await holder.execute("SELECT pg_advisory_unlock(42)")
            await eventually(lambda: len(outbound.deliveries) == 1)


@pytest.mark.parametrize("born_leased", [True, False])
async def test_what_ingress_saw_of_a_body_s_lines_goes_with_its_delivery_SOUT_12a(
    database: str, born_leased: bool
) -> None:
    async with running_queue(database) as q:
        ingress = await q.ingress()
        if born_leased:
            outbound = await q.outbound()
        for whole, undotted in ((True, True), (True, False), (False, False)):
            await ingress.accept("bob@away.example", whole_lines=whole, undotted=undotted)
        if not born_leased:
            outbound = await q.outbound()
        await eventually(lambda: len(outbound.deliveries) == 3)
        found = {(one.envelope.whole_lines, one.envelope.undotted) for one in outbound.deliveries}
        assert found == {(True, True), (True, False), (False, False)}


@pytest.mark.parametrize("born_leased", [True, False])
async def test_what_was_found_about_the_sender_stays_with_the_queue_and_makes_no_delivery_larger(
    born_leased: bool, database: str
) -> None:
    found = types_pb2.MessageAuthentication(author_domains=["example.com"])
    async with running_queue(database) as q:
        ingress = await q.ingress()
        outbound = await q.outbound() if born_leased else None
        await ingress.accept("bob@there.example", authentication=found)
        outbound = outbound or await q.outbound()
        await eventually(outbound.has(1), 20, "the delivery")
        (delivery,) = outbound.deliveries
        assert delivery.envelope.mail_from == "sender@away.example"
        assert not delivery.envelope.HasField("authentication")
        stored = types_pb2.Envelope.FromString(await q.one("SELECT envelope FROM message"))
        assert stored.authentication == found


async def test_what_outbound_is_told_carries_a_clock_of_its_own_from_before_it_was_said_LSE_02(database: str) -> None:
    async with running_queue(database) as q:
        outbound = await q.outbound()
        outbound.send(clock=100.0)
        await eventually(lambda: outbound.clocks[-1:] == [0.0])  # the first word, before any clock was read
        first = await one_delivery(q, outbound)
        outbound.send(clock=200.0, alive=[first.token])
        outbound.finish(first)
        await one_delivery(q, outbound)
        await eventually(lambda: outbound.clocks[-1] in (100.0, 200.0))
        assert outbound.clocks == sorted(outbound.clocks)


async def test_what_gathered_for_outbound_is_no_older_than_the_clock_that_goes_with_it() -> None:
    stream = OutboundStream("outbound-1", 5.0)
    stream.tell_renewal(1, 120.0)
    stream.clock = 9.0  # read after the lease was counted
    (response,) = stream.take()
    assert response.clock == 5.0
    stream.tell_renewal(2, 120.0)
    stream.clock = 12.0
    (response,) = stream.take()
    assert response.clock == 9.0


async def test_a_queue_that_gave_everything_back_ends_the_streams_of_outbound(database: str) -> None:
    async with running_queue(database) as q:
        outbound = await q.outbound()
        delivery = await one_delivery(q, outbound)
        stopping = asyncio.create_task(q.queue.stop(10))
        await eventually(q.queue.stopping.is_set)
        assert not outbound.ended
        outbound.finish(delivery)
        await stopping
        # An outbound that says nothing keeps a pod that was told to stop no longer than its work does.
        await eventually(lambda: outbound.ended)
        assert await q.sql("SELECT count(*) FROM recipient") == [(0,)]


async def test_a_clean_stop_gives_back_all_that_was_not_handed_on_LSE_04(database: str) -> None:
    count = 1300  # three batches: who writes the last one is not cut off
    async with running_queue(database) as q:
        await q.outbound(credit=10_000)
        q.fill_windows(*(f"d{n}.example" for n in range(count)))
        ingress = await q.ingress()
        results = await asyncio.gather(*ingress.commit(*(commit_of(f"user@d{n}.example") for n in range(count))))
        assert all(result.accepted for result in results)
        assert q.queue.dispatcher.pending_deliveries == count
        await q.queue.stop(0.0)
        assert await q.one("SELECT count(*) FROM recipient WHERE token IS NULL AND attempts = 0") == count


@pytest.mark.parametrize("how", ["postgres fails", "the process stops"])
async def test_what_is_leased_and_cannot_be_read_just_then_is_given_back_LSE_04(
    database: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, reading = content_store.contents, asyncio.Event()

    async def cut_off(
        connection: Connection, ids: Iterable[bytes], room: int
    ) -> dict[bytes, content_store.StoredMessage]:
        monkeypatch.setattr(content_store, "contents", read)
        reading.set()
        if how == "the process stops":
            await asyncio.Event().wait()
        raise psycopg.OperationalError("the connection was lost")

    async with running_queue(database) as q:
        await (await q.ingress()).accept("bob@away.example")  # due, since there is no outbound
        monkeypatch.setattr(content_store, "contents", cut_off)
        outbound = await q.outbound()
        await reading.wait()
        if how == "the process stops":
            await q.queue.stop(0.0)
            assert await q.one("SELECT token IS NULL AND attempts = 0 FROM recipient")
        else:
            await eventually(outbound.has(1))
            assert outbound.deliveries[0].attempt == 1


async def test_a_lease_with_less_than_a_minute_left_is_not_handed_on_but_undone_LSE_01(database: str) -> None:
    async with running_queue(database, lease_seconds=61.0) as q:
        outbound = await q.outbound()
        q.fill_windows("away.example")
        await (await q.ingress()).accept("bob@away.example")
        assert q.queue.dispatcher.pending_deliveries == 1
        await q.until("SELECT token IS NULL AND attempts = 0 FROM recipient")
        q.empty_windows()
        await eventually(lambda: outbound.deliveries)
        assert outbound.deliveries[0].attempt == 1
        assert outbound.deliveries[0].remaining_seconds > 60


async def test_leases_that_are_reported_alive_are_renewed_in_a_batch_LSE_01(database: str) -> None:
    async with running_queue(database, lease_seconds=90.0) as q:
        outbound = await q.outbound()
        first = await one_delivery(q, outbound, "bob@away.example")
        second = await one_delivery(q, outbound, "eve@other.example")
        await q.sql("UPDATE recipient SET lease_until = now() + interval '20 seconds'")
        outbound.send(alive=[first.token, second.token])
        await eventually(lambda: set(outbound.renewals) == {first.token, second.token})
        assert all(80 < seconds <= 90 for seconds in outbound.renewals.values())
        assert await q.one("SELECT min(lease_until) > now() + interval '80 seconds' FROM recipient")


async def test_a_lease_that_ran_out_is_not_renewed_but_cancelled_LSE_01(database: str) -> None:
    async with running_queue(database, lease_seconds=90.0, sweep_seconds=60.0) as q:
        outbound = await q.outbound()
        delivery = await one_delivery(q, outbound)
        await q.sql(LONG_AGO)
        outbound.send(alive=[delivery.token, 424242])
        await eventually(lambda: {delivery.token, 424242} <= outbound.cancelled)


async def test_after_a_reconnect_the_tokens_that_outbound_lists_are_adopted_LSE_02(database: str) -> None:
    async with running_queue(database) as q:
        outbound = await q.outbound()
        delivery = await one_delivery(q, outbound)
        await outbound.close()
        ids = [r.id for r in delivery.recipients]
        again = await q.outbound(in_progress=[(delivery.token, ids)])
        again.finish(delivery)
        await eventually(lambda: delivery.token in again.committed)
        assert await q.sql("SELECT outcome, attempts FROM history") == [(RELAYED, 1)]


async def test_a_new_owner_adopts_leases_of_the_one_before_if_they_are_valid_LSE_02(database: str) -> None:
    async with running_queue(database) as q:
        outbound = await q.outbound()
        valid = await one_delivery(q, outbound, "bob@away.example")
        lost = await one_delivery(q, outbound, "eve@other.example")
    async with running_queue(database) as q:
        await q.sql("UPDATE recipient SET token = 7 WHERE address = 'eve@other.example'")
        in_progress = [(d.token, [r.id for r in d.recipients]) for d in (valid, lost)]
        again = await q.outbound(in_progress=in_progress)
        await eventually(lambda: again.cancelled == {lost.token})
        assert set(q.queue.dispatcher.deliveries) == {valid.token}
        again.send(alive=[valid.token])
        again.finish(valid)
        await eventually(lambda: valid.token in again.committed)


async def test_a_process_whose_leases_cannot_be_looked_up_comes_again_and_goes_on_meanwhile_LSE_02(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_queue(database) as one:
        outbound = await one.outbound()
        delivery = await one_delivery(one, outbound)
    real, away = waiting_store.live, [True]

    async def live(connection: Connection, ids: Sequence[int]) -> list[waiting_store.Waiting]:
        if away:
            raise psycopg.OperationalError("away")
        return await real(connection, ids)

    monkeypatch.setattr(waiting_store, "live", live)
    in_progress = [(delivery.token, [r.id for r in delivery.recipients])]
    async with running_queue(database) as q:
        refused = await q.outbound(in_progress=in_progress)
        assert refused.ended
        assert delivery.token not in refused.cancelled
        away.clear()
        again = await q.outbound(in_progress=in_progress)
        assert not again.ended
        again.finish(delivery)
        await q.until("SELECT count(*) = 1 FROM history")


async def test_what_two_streams_of_a_process_list_at_once_is_adopted_once_LSE_02(database: str) -> None:
    async with running_queue(database) as q:
        handed = await one_delivery(q, await q.outbound())
    async with running_queue(database) as q:
        hello = lease_pb2.Hello(process="outbound-1")
        hello.in_progress.add(token=handed.token, recipient_ids=[r.id for r in handed.recipients])
        cut, again = OutboundStream("outbound-1"), OutboundStream("outbound-1")  # the first is not known to be gone yet
        await asyncio.gather(q.queue.leases.welcome(cut, hello), q.queue.leases.welcome(again, hello))
        delivery = q.queue.dispatcher.deliveries[handed.token]
        assert delivery.stream is again
        assert delivery.site.window.in_flight == 1


async def test_what_a_returning_process_lists_last_is_adopted_however_much_it_lists_LSE_02(database: str) -> None:
    """The list was cut at 100,000, and what stood behind was sent a second time."""
    async with running_queue(database) as q:
        delivery = await one_delivery(q, await q.outbound())
    async with running_queue(database) as q:
        hello = lease_pb2.Hello(process="outbound-1")
        for number in range(100_000):
            hello.in_progress.add(token=(1 << 60) + number)
        hello.in_progress.add(token=delivery.token, recipient_ids=[r.id for r in delivery.recipients])
        stream = OutboundStream("outbound-1")
        await q.queue.leases.welcome(stream, hello)
        assert q.queue.dispatcher.deliveries[delivery.token].stream is stream


async def test_what_a_returning_process_does_not_list_is_due_again_soon_LSE_02(database: str) -> None:
    async with running_queue(database) as q:
        outbound = await q.outbound()
        delivery = await one_delivery(q, outbound)
        await outbound.close()
        again = await q.outbound()
        await eventually(lambda: again.deliveries)
        assert again.deliveries[0].message_id == delivery.message_id
        assert again.deliveries[0].token != delivery.token
        assert await q.sql("SELECT interruptions, attempts FROM recipient") == [(1, 1)]


async def test_delivered_under_an_old_token_is_accepted_and_revokes_the_newer_lease_LSE_03(database: str) -> None:
    async with running_queue(database) as q:
        outbound = await q.outbound()
        old = await one_delivery(q, outbound)
        await q.sql(LONG_AGO)
        await eventually(lambda: len(outbound.deliveries) == 2)
        new = outbound.deliveries[1]
        outbound.finish(old)
        await eventually(lambda: old.token in outbound.committed)
        assert await q.sql("SELECT outcome FROM history") == [(RELAYED,)]
        await eventually(lambda: new.token in outbound.cancelled)
        outbound.finish(new, outcome=FAILED)  # too late to count
        await eventually(lambda: new.token in outbound.committed)
        assert await q.sql("SELECT outcome FROM history") == [(RELAYED,)]
        assert await q.one("SELECT count(*) FROM dsn") == 0


async def test_any_other_late_result_is_only_recorded_LSE_03(database: str) -> None:
    async with running_queue(database) as q:
        outbound = await q.outbound()
        old = await one_delivery(q, outbound)
        await q.sql(LONG_AGO)
        await eventually(lambda: len(outbound.deliveries) == 2)
        outbound.finish(old, outcome=FAILED, text="late refusal")
        await eventually(lambda: old.token in outbound.committed)
        new = outbound.deliveries[1]
        assert await q.sql("SELECT token FROM recipient") == [(new.token,)]
        attempts = [types_pb2.Attempt.FromString(d) for (d,) in await q.sql("SELECT data FROM attempt ORDER BY id")]
        assert [a.outcome for a in attempts] == [types_pb2.OUTCOME_INTERRUPTED, FAILED]
        outbound.finish(new)
        await q.until("SELECT count(*) = 1 FROM history")
        assert await q.sql("SELECT outcome, cardinality(earlier_attempts) FROM history") == [(RELAYED, 2)]


@pytest.mark.parametrize("fails_first", [False, True])
@pytest.mark.parametrize("outcome", [DEFERRED, FAILED])
async def test_a_late_result_is_recorded_also_when_another_owner_took_the_lease_back_LSE_03(
    database: str, monkeypatch: pytest.MonkeyPatch, outcome: types_pb2.Outcome.ValueType, fails_first: bool
) -> None:
    async with running_queue(database) as q:
        outbound = await q.outbound()
        delivery = await one_delivery(q, outbound)
        # Another owner did this, so this process does not know of it.
        await q.sql("UPDATE recipient SET token = NULL, lease_until = NULL, held_since = now()")
        if fails_first:
            commit, failures = q.queue.finisher._commit, [psycopg.OperationalError("out of reach for a moment")]

            async def fails_once(*batch: Any) -> None:
                if failures:
                    raise failures.pop()
                await commit(*batch)

            monkeypatch.setattr(q.queue.finisher, "_commit", fails_once)
        outbound.finish(delivery, outcome=outcome)
        await eventually(lambda: delivery.token in outbound.committed)
        ((data,),) = await q.sql("SELECT data FROM attempt")
        assert types_pb2.Attempt.FromString(data).outcome == outcome
        assert await q.sql("SELECT (SELECT count(*) FROM history), count(*) FROM dsn") == [(0, 0)]


async def test_a_lease_that_ran_out_is_due_again_and_the_first_ten_raise_no_count_LSE_04(database: str) -> None:
    async with running_queue(database) as q:
        outbound = await q.outbound()
        await one_delivery(q, outbound)
        for count in range(1, 13):
            await q.sql(LONG_AGO)
            if count > 10:  # from the eleventh on it waits as after any failed attempt
                await q.until("SELECT token IS NULL FROM recipient")
                wait = "extract(epoch FROM due - now())"
                first, last = (400, 480) if count == 11 else (800, 960)
                assert await q.one(f"SELECT {wait} BETWEEN {first} AND {last} FROM recipient")
                await due_again(q)
            await eventually(outbound.has(count + 1))
        assert [d.attempt for d in outbound.deliveries] == [1] * 11 + [2, 3]
        assert await q.sql("SELECT interruptions, attempts FROM recipient") == [(12, 3)]


async def test_no_lease_is_taken_back_whose_result_waits_in_memory_for_postgres_LSE_04(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_queue(database) as q:
        outbound = await q.outbound()
        ingress = await q.ingress()
        for n in range(5):
            await ingress.accept(f"user{n}@away.example")
        await eventually(lambda: len(outbound.deliveries) == 5)
        back = asyncio.Event()
        use = Lane.use

        @contextlib.asynccontextmanager
        async def away(lane: Lane) -> AsyncIterator[Connection]:
            if "finish" in lane._name and not back.is_set():
                raise psycopg.OperationalError("the server closed the connection")
            async with use(lane) as connection:
                yield connection

        monkeypatch.setattr(Lane, "use", away)
        outbound.finish(*outbound.deliveries[:4])
        await eventually(lambda: len(q.queue.finisher.unwritten) == 4)
        await q.sql(LONG_AGO)
        await eventually(lambda: len(outbound.deliveries) == 6)  # the one without a result goes out again
        assert await q.one("SELECT count(*) FROM recipient WHERE interruptions > 0") == 1
        back.set()
        await q.until("SELECT count(*) = 4 FROM history")
        assert len(outbound.deliveries) == 6


async def test_the_clock_of_a_process_bounces_no_mail_however_it_is_set_LSE_05(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_queue(database) as q:
        outbound = await q.outbound()
        delivery = await one_delivery(q, outbound)
        real = time.time
        monkeypatch.setattr(time, "time", lambda: real() + 6 * 86_400)
        before = await q.one("SELECT seen FROM process")
        await q.until("SELECT seen > %s FROM process", before)
        outbound.finish(delivery, outcome=DEFERRED)
        await q.until("SELECT count(*) = 1 FROM recipient WHERE token IS NULL AND attempts = 1")
        assert abs(q.queue.database.now() - real()) < 60


@pytest.mark.parametrize("seconds", [300.0, -300.0])
async def test_leases_last_as_long_when_postgres_gets_another_clock_LSE_01(
    database: str, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    async with running_queue(database, heartbeat_seconds=600.0, sweep_seconds=600.0, look_seconds=600.0) as q:
        outbound = await q.outbound()
        await one_delivery(q, outbound)
        await eventually(lambda: q.queue.owner._expiry._swept_until)  # the sweep of the start is over
        # A server whose clock is so much ahead: leases of before end so much earlier, and our clock seems to be behind.
        await q.sql("UPDATE recipient SET lease_until = lease_until - %s * interval '1 second'", seconds)
        real = clock.now
        monkeypatch.setattr(clock, "now", lambda: real() - seconds)
        assert await q.queue.owner._expiry.sweep() == 0
        ((leased, remaining),) = await q.sql(
            "SELECT token IS NOT NULL, extract(epoch FROM lease_until - now())::float8 FROM recipient"
        )
        assert leased
        assert 60 < remaining <= 120
        assert await q.queue.owner._expiry.sweep() == 0
        assert q.queue.database.jump is None


async def test_a_kick_is_granted_also_when_the_eleventh_attempt_is_cut_off_ADM_02(database: str) -> None:
    async with running_queue(database) as q:
        outbound = await q.outbound()
        await one_delivery(q, outbound)
        await q.sql("UPDATE recipient SET interruptions = 11, due_after_attempt = now(), version = version + 1")
        await q.sql(LONG_AGO)
        await eventually(outbound.has(2))


async def test_mail_whose_leases_run_out_again_and_again_expires_as_all_mail_does_LSE_04(database: str) -> None:
    async with running_queue(database) as q:
        outbound = await q.outbound()
        await (await q.ingress()).accept("bob@away.example", submitted=True, mail_from="alice@home.example")
        await eventually(lambda: outbound.deliveries)
        await q.sql("UPDATE recipient SET interruptions = 10, attempts = 5")
        await q.sql(LONG_AGO)  # the first that counts, and a delayed notification is due
        await q.until("SELECT count(*) = 1 FROM dsn WHERE kind = 2")
        await due_again(q)
        await eventually(outbound.has(2))
        await q.sql(
            "UPDATE recipient SET queued = queued - interval '5 days' WHERE account IS NOT NULL AND token IS NOT NULL"
        )
        await q.sql(LONG_AGO)
        await q.until("SELECT count(*) = 1 FROM history WHERE address = 'bob@away.example' AND outcome = %s", FAILED)
        assert await q.one("SELECT count(*) FROM dsn WHERE kind = 1") == 1
        assert len([d for d in outbound.deliveries if d.recipients[0].address == "bob@away.example"]) == 2


async def test_an_attempt_that_was_not_dialled_is_undone_LSE_04_LSE_07(database: str) -> None:
    async with running_queue(database) as q:
        outbound = await q.outbound()
        delivery = await one_delivery(q, outbound)
        outbound.finish(delivery, outcome=NOT_ATTEMPTED)
        await eventually(lambda: delivery.token in outbound.committed)
        assert await q.sql("SELECT attempts, interruptions, token FROM recipient") == [(0, 0, None)]
        assert await q.one("SELECT count(*) FROM attempt") == 0
        await eventually(lambda: len(outbound.deliveries) == 2)
        assert outbound.deliveries[1].attempt == 1


async def test_a_rule_with_minimum_attempts_three_matches_from_the_fourth_attempt_LSE_05(database: str) -> None:
    revision = a_revision(transports=[relay()], rules=[rule_to(RELAY, minimum_attempts=3)])
    async with running_queue(database, revision) as q:
        outbound = await q.outbound()
        outbound.answer = lambda d: result_of(d, DEFERRED)
        await one_delivery(q, outbound)
        for count in range(2, 6):
            await q.until("SELECT token IS NULL FROM recipient")
            await due_again(q)
            await eventually(outbound.has(count))
        assert [(d.attempt, d.HasField("transport")) for d in outbound.deliveries] == [
            (1, False),
            (2, False),
            (3, False),
            (4, True),
            (5, True),
        ]
        assert outbound.deliveries[3].site == "transport:default/relay"


def stored_due() -> float:
    """Recipients that were stored due, and not leased, since this process began."""
    return REGISTRY.get_sample_value("mailrail_queue_recipients_total", {"state": "due"}) or 0.0


async def test_past_the_memory_budget_mail_is_stored_due_LSE_06(database: str) -> None:
    async with running_queue(database, born_leased_bytes=100_000) as q:
        outbound = await q.outbound()
        q.fill_windows("away.example")
        ingress = await q.ingress()
        before = stored_due()
        for n in range(4):
            await ingress.accept(f"user{n}@away.example", body=b"x" * 40_000)
        assert stored_due() - before == 2  # they are leased from the database when there is room again
        q.empty_windows()
        await eventually(lambda: len(outbound.deliveries) == 4)


async def test_of_bodies_in_rows_no_more_are_read_than_have_room_together_LSE_06(database: str) -> None:
    """A step may lease 1,000 recipients; their bodies at once would be a gigabyte."""
    async with running_queue(database) as q:
        ingress = await q.ingress()
        sizes = (60_000, 30_000, 50_000, 0)
        ids = [await ingress.accept(f"user{n}@away.example", body=b"x" * size) for n, size in enumerate(sizes)]
        async with q.queue.database.lane("content 1").use() as connection:
            found = await content_store.contents(connection, ids, 80_000)
            everything = await content_store.contents(connection, ids)
        bodies = [found[i].body for i in ids]
        assert [body if body is None else len(body) for body in bodies] == [None, 30_000, 50_000, 0]
        assert [len(everything[i].body or b"") for i in ids] == list(sizes)
        assert {i: (one.size, one.chunks) for i, one in found.items()} == {
            i: (one.size, one.chunks) for i, one in everything.items()
        }


async def test_a_body_that_had_no_room_is_fetched_piece_by_piece_LSE_06(database: str) -> None:
    body = bytes(range(251)) * 250
    async with running_queue(database, born_leased_bytes=50_000) as q:
        ingress = await q.ingress()
        number = await ingress.accept("bob@away.example", body=body)
        outbound = await q.outbound()
        await eventually(lambda: outbound.deliveries)
        (delivery,) = outbound.deliveries
        assert not delivery.HasField("body")
        assert delivery.size == len(delivery.prefix) + len(body)
        for offset in (0, 5, len(body) - 1, len(body)):
            request = lease_pb2.FetchContentRequest(token=delivery.token, message_id=number, offset=offset)
            assert b"".join([r.data async for r in outbound.stub.FetchContent(request)]) == body[offset:]


async def test_content_that_is_too_large_for_a_lease_is_fetched_from_any_offset_LSE_06(database: str) -> None:
    body = bytes(range(251)) * 2500
    async with running_queue(database) as q:
        outbound = await q.outbound()
        ingress = await q.ingress()
        number = message_id()
        ingress.chunk(number, body[:400_000])
        ingress.chunk(number, body[400_000:])
        (future,) = ingress.commit(commit_of("bob@away.example", body=None), ids=[number])
        assert (await future).accepted
        await eventually(lambda: outbound.deliveries)
        (delivery,) = outbound.deliveries
        assert not delivery.HasField("body")
        assert delivery.prefix == b"Received: by test\r\n"
        for offset in (0, 5, CHUNK_SIZE, CHUNK_SIZE + 17, len(body) - 1, len(body)):
            request = lease_pb2.FetchContentRequest(token=delivery.token, message_id=number, offset=offset)
            parts = [r.data async for r in outbound.stub.FetchContent(request)]
            assert b"".join(parts) == body[offset:]
            assert all(0 < len(p) <= CHUNK_SIZE for p in parts)
        request = lease_pb2.FetchContentRequest(token=delivery.token + 1, message_id=number)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            [r async for r in outbound.stub.FetchContent(request)]
        assert refused.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_body_of_more_rows_than_are_read_at_once_is_fetched_whole_LSE_06(database: str) -> None:
    body = b"".join(number.to_bytes(4, "big") for number in range(20 * CHUNK_SIZE // 4)) + b"the end"
    async with running_queue(database) as q:
        outbound = await q.outbound()
        ingress = await q.ingress()
        number = message_id()
        for at in range(0, len(body), CHUNK_SIZE):
            ingress.chunk(number, body[at : at + CHUNK_SIZE])
        (future,) = ingress.commit(commit_of("bob@away.example", body=None), ids=[number])
        assert (await future).accepted
        await eventually(lambda: outbound.deliveries)
        (delivery,) = outbound.deliveries
        for offset in (0, 9 * CHUNK_SIZE, 11 * CHUNK_SIZE + 17):
            request = lease_pb2.FetchContentRequest(token=delivery.token, message_id=number, offset=offset)
            assert b"".join([r.data async for r in outbound.stub.FetchContent(request)]) == body[offset:]


async def test_a_lease_names_its_revision_and_the_digest_of_its_transport_LSE_07(database: str) -> None:
    transport = relay()
    async with running_queue(database, a_revision(transports=[transport], rules=[rule_to(RELAY)])) as q:
        outbound = await q.outbound()
        delivery = await one_delivery(q, outbound)
        assert delivery.config_revision == q.queue.router().number
        assert delivery.transport_digest == transport.digest
        assert (delivery.transport.name, delivery.rule, delivery.route.name) == ("relay", "0", "global")


async def test_recipients_of_one_message_for_one_next_hop_share_a_delivery_of_at_most_a_hundred(database: str) -> None:
    async with running_queue(database) as q:
        outbound = await q.outbound()
        ingress = await q.ingress()
        await ingress.accept(*(f"user{n}@away.example" for n in range(150)), "else@other.example")
        await eventually(lambda: len(outbound.deliveries) == 3)
        counts = sorted((d.domain, len(d.recipients)) for d in outbound.deliveries)
        assert counts == [("away.example", 50), ("away.example", 100), ("other.example", 1)]


async def test_by_a_smarthost_recipients_of_all_domains_share_a_delivery(database: str) -> None:
    revision = a_revision(transports=[relay(recipients_per_message=3)], rules=[rule_to(RELAY)])
    async with running_queue(database, revision) as q:
        outbound = await q.outbound()
        await (await q.ingress()).accept(*(f"user@d{n}.example" for n in range(5)))
        await eventually(lambda: len(outbound.deliveries) == 2)
        assert sorted(len(d.recipients) for d in outbound.deliveries) == [2, 3]


async def test_each_recipient_of_a_delivery_has_its_own_result(database: str) -> None:
    async with running_queue(database) as q:
        outbound = await q.outbound()
        delivery = await one_delivery(q, outbound, "ok@away.example", "later@away.example", "no@away.example")
        result = result_of(delivery)
        for found, outcome in zip(result.recipients, (RELAYED, DEFERRED, FAILED), strict=True):
            found.attempt.outcome = outcome
            found.attempt.reply.enhanced = ""
        outbound.send(results=[result])
        await eventually(lambda: delivery.token in outbound.committed)
        assert dict(await q.sql("SELECT address, outcome FROM history WHERE address NOT LIKE 'sender%%'")) == {
            "ok@away.example": RELAYED,
            "no@away.example": FAILED,
        }
        left = await q.sql("SELECT address, due > now() + interval '5 minutes' FROM recipient WHERE attempts > 0")
        assert ("later@away.example", True) in left


async def test_a_recipient_that_a_finished_delivery_says_nothing_of_is_due_again(database: str) -> None:
    async with running_queue(database) as q:
        outbound = await q.outbound()
        delivery = await one_delivery(q, outbound, "said@away.example", "unsaid@away.example")
        result = result_of(delivery)
        del result.recipients[1]
        outbound.send(results=[result], credit=1)
        await eventually(lambda: len(outbound.deliveries) == 2)
        assert [r.address for r in outbound.deliveries[1].recipients] == ["unsaid@away.example"]


async def test_results_may_come_in_parts(database: str) -> None:
    async with running_queue(database) as q:
        outbound = await q.outbound()
        delivery = await one_delivery(q, outbound, "first@away.example", "second@away.example")
        first, second = result_of(delivery), result_of(delivery)
        del first.recipients[1]
        del second.recipients[0]
        first.done = False
        outbound.send(results=[first])
        await q.until("SELECT count(*) = 1 FROM history")
        assert delivery.token not in outbound.committed
        outbound.send(results=[second])
        await eventually(lambda: delivery.token in outbound.committed)
        assert await q.one("SELECT count(*) FROM recipient") == 0


async def test_retries_carry_what_was_dialled_before_and_say_when_they_are_the_last(database: str) -> None:
    retry = rev.RetrySchedule(delays=(60,), max_attempts=3)
    async with running_queue(database, a_revision(retry=retry)) as q:
        outbound = await q.outbound()
        delivery = await one_delivery(q, outbound)
        result = result_of(delivery, DEFERRED)
        result.dialled_hosts.add(host="mx.away.example", ips=["192.0.2.1"])
        outbound.send(results=[result], credit=1)
        await eventually(lambda: delivery.token in outbound.committed)
        await due_again(q)
        await eventually(lambda: len(outbound.deliveries) == 2)
        again = outbound.deliveries[1]
        assert [(h.host, list(h.ips)) for h in again.dialled_hosts] == [("mx.away.example", ["192.0.2.1"])]
        assert not again.last_attempt
        result = result_of(again, DEFERRED)
        result.dialled_hosts.add(host="mx.away.example", ips=["192.0.2.1", "192.0.2.2"])
        outbound.send(results=[result], credit=1)
        await eventually(lambda: again.token in outbound.committed)
        await due_again(q)
        await eventually(lambda: len(outbound.deliveries) == 3)
        again = outbound.deliveries[2]
        assert list(again.dialled_hosts[0].ips) == ["192.0.2.1", "192.0.2.1", "192.0.2.2"]
        assert again.last_attempt
        outbound.finish(again, outcome=DEFERRED)
        await eventually(lambda: again.token in outbound.committed)
        ((state, attempts, last, timeline),) = await q.sql(
            "SELECT state, attempts, last_attempt, earlier_attempts FROM history WHERE address = 'bob@away.example'"
        )
        assert (state, attempts, len(timeline)) == (types_pb2.RECIPIENT_STATE_FAILED, 3, 2)
        assert types_pb2.Attempt.FromString(last).number == 3


async def test_final_state_and_dsn_are_one_transaction_and_happen_once_FIN_01(database: str) -> None:
    async with running_queue(database) as q:
        outbound = await q.outbound()
        await (await q.ingress()).accept("bob@away.example", submitted=True, mail_from="alice@home.example")
        await eventually(lambda: outbound.deliveries)
        (delivery,) = outbound.deliveries
        outbound.finish(delivery, outcome=FAILED)
        outbound.finish(delivery, outcome=FAILED)
        await eventually(lambda: delivery.token in outbound.committed)
        assert await q.sql("SELECT h.xmin::text = d.xmin::text FROM history h JOIN dsn d ON d.recipient_id = h.id") == [
            (True,)
        ]
        await q.until("SELECT count(*) = 1 FROM mailbox_message WHERE dsn")


async def test_a_result_that_postgres_did_not_take_at_first_is_judged_as_before_DSN_17(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_queue(database) as q:
        outbound = await q.outbound()
        await (await q.ingress()).accept("bob@away.example", submitted=True, mail_from="alice@home.example")
        await eventually(lambda: outbound.deliveries)
        notify, tries = q.queue.notifier.notify, []

        async def cut_off_once(connection: Connection, notices: Sequence[Notice]) -> set[int]:
            tries.append(len(notices))
            if len(tries) == 1:
                raise psycopg.OperationalError("the server closed the connection")
            return await notify(connection, notices)

        monkeypatch.setattr(q.queue.notifier, "notify", cut_off_once)
        q.queue.dispatcher.deliveries[outbound.deliveries[0].token].recipients[0].accepted -= (
            6 * 86_400
        )  # expired by now
        outbound.finish(outbound.deliveries[0], outcome=DEFERRED)
        await q.until("SELECT count(*) = 1 FROM message WHERE mail_from = ''")
        content = bytes(await q.one("SELECT body FROM message WHERE mail_from = ''"))
        assert [number for number in tries if number] == [1, 1]  # the notification itself makes none
        assert b"\r\nStatus: 4.4.7 (delivery time expired)\r\n" in content


async def test_a_recipient_is_final_only_under_its_token_FIN_01(database: str) -> None:
    async with running_queue(database, sweep_seconds=60.0) as q:
        outbound = await q.outbound()
        delivery = await one_delivery(q, outbound)
        await q.sql("UPDATE recipient SET token = token + 500")
        outbound.finish(delivery, outcome=FAILED)
        await eventually(lambda: delivery.token in outbound.committed)
        assert await q.one("SELECT count(*) FROM history") == 0
        assert await q.one("SELECT count(*) FROM recipient") == 1


async def test_content_goes_only_when_nobody_names_it_and_time_has_passed_FIN_02(database: str) -> None:
    async with running_queue(database, keep_content_seconds=600.0, upkeep_seconds=60.0) as q:
        outbound = await q.outbound()
        outbound.answer = lambda d: result_of(d) if d.domain == "away.example" else None
        ingress = await q.ingress()
        gone = await ingress.accept("a@away.example")
        half = await ingress.accept("b@away.example", "c@other.example")
        local = await ingress.accept("alice@home.example")
        large = message_id()
        ingress.chunk(large, b"x" * 300_000)
        (future,) = ingress.commit(commit_of("d@away.example", body=None), ids=[large])
        assert (await future).accepted
        await q.until("SELECT count(*) = 4 FROM history")
        await q.queue.upkeep.sweep()
        assert await q.one("SELECT count(*) FROM message") == 4
        await q.sql("UPDATE history SET finished = finished - interval '9 minutes'")
        await q.queue.upkeep.sweep()
        assert await q.one("SELECT count(*) FROM message") == 4
        await q.sql("UPDATE history SET finished = finished - interval '2 minutes'")
        await q.queue.upkeep.sweep()
        left = {row[0].bytes for row in await q.sql("SELECT id FROM message")}
        assert left == {half, local}
        assert gone not in left
        assert await q.one("SELECT count(*) FROM chunk") == 0


async def test_history_refers_to_nothing_and_goes_by_the_day_FIN_03(database: str) -> None:
    async with running_queue(database, upkeep_seconds=60.0) as q:
        outbound = await q.outbound()
        outbound.answer = result_of
        await (await q.ingress()).accept("bob@away.example", subject="news")
        await q.until("SELECT count(*) = 1 FROM history")
        await q.sql("TRUNCATE message, recipient, attempt")
        ((envelope, sender),) = await q.sql("SELECT envelope, mail_from FROM history")
        assert (types_pb2.Envelope.FromString(envelope).subject, sender) == ("news", "sender@away.example")
        day = "(now() AT TIME ZONE 'UTC')::date - 20"
        name = await q.one(f"SELECT 'history_' || to_char({day}, 'YYYYMMDD')")
        await q.sql(f"CREATE TABLE {name} (LIKE history INCLUDING ALL)")
        await q.sql(
            f"DO $$ BEGIN EXECUTE format('ALTER TABLE history ATTACH PARTITION {name} FOR VALUES FROM (%L) TO (%L)',"
            f" ({day})::timestamptz, ({day} + 1)::timestamptz); END $$"
        )
        await q.queue.upkeep.sweep()
        assert await q.one("SELECT to_regclass(%s)", f"queue.{name}") is None
        assert await q.one("SELECT count(*) FROM history") == 1
        assert await q.one("SELECT count(*) >= 8 FROM pg_inherits WHERE inhparent = 'history'::regclass")


async def test_mail_for_a_deleted_account_waits_and_never_fails_FIN_04(database: str) -> None:
    async with running_queue(database) as q:
        ingress = await q.ingress()
        nobody = a_revision()
        q.configure(rev.Revision(gateways=nobody.gateways, domains=(), accounts=()))
        await ingress.accept("alice@home.example")
        await q.until("SELECT attempts = 1 AND due > now() FROM recipient")
        assert await q.one("SELECT count(*) FROM history") == 0
        q.configure(a_revision())
        await q.until("SELECT count(*) = 1 FROM mailbox_message")


async def test_fail_of_a_leased_recipient_is_asked_of_outbound_and_delivered_wins_ADM_02(database: str) -> None:
    async with running_queue(database) as q:
        outbound = await q.outbound()
        aborted = await one_delivery(q, outbound, "bob@away.example")
        sent = await one_delivery(q, outbound, "eve@other.example")
        await q.sql("UPDATE recipient SET request = 1, request_reason = 'enough', version = version + 1")
        q.queue.worklist.wake_everybody(range(SHARDS))
        await eventually(lambda: {aborted.token, sent.token} <= outbound.cancelled)
        outbound.finish(aborted, outcome=CANCELLED)
        outbound.finish(sent, outcome=RELAYED)
        await q.until("SELECT count(*) = 2 FROM history WHERE address NOT LIKE 'sender%%'")
        rows = dict(await q.sql("SELECT address, outcome FROM history"))
        assert rows["eve@other.example"] == RELAYED
        assert rows["bob@away.example"] == FAILED


async def test_however_many_are_under_way_each_request_is_asked_of_outbound_and_granted_ADM_02(database: str) -> None:
    async with running_queue(database) as q:
        outbound = await q.outbound(credit=2000)
        ingress = await q.ingress()
        for start in range(0, 700, 100):
            await ingress.accept(*(f"user@d{n}.example" for n in range(start, start + 100)))
        await eventually(lambda: len(outbound.deliveries) == 700)
        await q.sql("UPDATE recipient SET request = 1")
        await eventually(lambda: len(outbound.cancelled) == 700)
        outbound.finish(*outbound.deliveries[::7], outcome=DEFERRED)  # all others are still under way
        await q.until("SELECT count(*) = 100 FROM history")


async def test_a_request_is_granted_when_its_lease_was_never_handed_on_ADM_02(database: str) -> None:
    async with running_queue(database) as q:
        await q.outbound()
        q.fill_windows("away.example")
        await (await q.ingress()).accept("bob@away.example")
        await q.until("SELECT token IS NOT NULL FROM recipient")
        await q.sql("UPDATE recipient SET held_since = now(), request = 2, version = version + 1")
        q.queue.worklist.wake_everybody(range(SHARDS))
        await q.until("SELECT count(*) = 1 FROM history WHERE outcome = %s", CANCELLED)


async def test_a_request_is_granted_when_the_attempt_ends_at_an_owner_of_before_ADM_02(database: str) -> None:
    async with running_queue(database) as q:
        outbound = await q.outbound()
        delivery = await one_delivery(q, outbound)
        async with running_queue(database) as other:
            worklists = [q.queue.worklist, other.queue.worklist]
            await eventually(lambda: [len(worklist.ownership.epochs) for worklist in worklists] == [128, 128])
            moved = min(other.queue.worklist.ownership.epochs)
            await q.sql(
                "UPDATE recipient SET held_since = now(), request = 2, version = version + 1, shard = %s", moved
            )
            q.queue.worklist.wake_everybody(range(SHARDS))
            await eventually(lambda: delivery.token in outbound.cancelled)
            outbound.finish(delivery, outcome=CANCELLED)
            await q.until("SELECT count(*) = 1 FROM history WHERE outcome = %s", CANCELLED)


@pytest.mark.parametrize("outcome", [DEFERRED, FAILED])
async def test_a_drop_makes_no_dsn_ADM_02(database: str, outcome: types_pb2.Outcome.ValueType) -> None:
    async with running_queue(database) as q:
        outbound = await q.outbound()
        delivery = await one_delivery(q, outbound)
        await q.sql("UPDATE recipient SET request = 2, version = version + 1")
        q.queue.worklist.wake_everybody(range(SHARDS))
        await eventually(lambda: delivery.token in outbound.cancelled)
        outbound.finish(delivery, outcome=outcome)
        await q.until("SELECT count(*) = 1 FROM history")
        assert await q.sql("SELECT state, outcome FROM history") == [(types_pb2.RECIPIENT_STATE_CANCELLED, CANCELLED)]
        assert await q.one("SELECT count(*) FROM dsn") == 0


async def test_what_an_administrator_said_of_a_running_attempt_applies_after_it_ADM_02(database: str) -> None:
    async with running_queue(database) as q:
        outbound = await q.outbound()
        kicked = await one_delivery(q, outbound, "kick@away.example")
        held = await one_delivery(q, outbound, "hold@other.example")
        await q.sql("UPDATE recipient SET due_after_attempt = now(), version = version + 1 WHERE address LIKE 'kick%%'")
        await q.sql("UPDATE recipient SET held_since = now(), version = version + 1 WHERE address LIKE 'hold%%'")
        outbound.finish(kicked, held, outcome=DEFERRED)
        await eventually(lambda: len(outbound.deliveries) == 3)
        assert outbound.deliveries[2].recipients[0].address == "kick@away.example"
        await due_again(q)
        await asyncio.wait_for(q.queue.owner.due_sites.look(), 30)
        assert await q.one("SELECT token IS NULL AND held_since IS NOT NULL FROM recipient WHERE address LIKE 'hold%%'")


async def test_a_lease_looks_again_at_version_hold_and_due_time_ADM_01(database: str) -> None:

    async with running_queue(database, look_seconds=60.0) as q:
        ingress = await q.ingress()
        for n in range(4):
            await ingress.accept(f"user{n}@away.example")
        async with q.queue.database.lane("test").use() as connection:
            numbers = [row[0] for row in await q.sql("SELECT id FROM recipient ORDER BY id")]
            rows = await waiting_store.live(connection, numbers)
            await q.sql("UPDATE recipient SET version = version + 1 WHERE id = %s", numbers[0])
            await q.sql("UPDATE recipient SET held_since = now() WHERE id = %s", numbers[1])
            await q.sql("UPDATE recipient SET due = now() + interval '1 hour' WHERE id = %s", numbers[2])
            wanted = [(row, 9000 + n, row.site) for n, row in enumerate(rows)]
            leased, _ = await lease_store.lease(connection, q.queue.worklist.ownership, 120.0, wanted)
            assert leased == {numbers[3]}


async def test_local_mail_is_delivered_by_the_queue_itself_once(database: str) -> None:
    async with running_queue(database) as q:
        ingress = await q.ingress()
        await ingress.accept("alice@home.example", "bob@away.example")
        await q.until("SELECT count(*) = 1 FROM mailbox_message")
        assert await q.sql("SELECT outcome FROM history") == [(DELIVERED,)]


async def test_a_fail_transport_refuses_without_a_dial(database: str) -> None:
    ref = rev.ObjectRef("MailTransport", "default", "no")
    fail = rev.Transport(ref, rev.TransportKind.FAIL, code=550, text="we do not write to them")
    async with running_queue(database, a_revision(transports=[fail], rules=[rule_to(ref)])) as q:
        await (await q.ingress()).accept("bob@away.example", submitted=True, mail_from="alice@home.example")
        await q.until("SELECT count(*) = 1 FROM history WHERE address = 'bob@away.example'")
        ((outcome, last),) = await q.sql("SELECT outcome, last_attempt FROM history WHERE address = 'bob@away.example'")
        attempt = types_pb2.Attempt.FromString(last)
        assert (outcome, attempt.reply.code, attempt.dialled) == (FAILED, 550, False)
        assert list(attempt.reply.lines) == ["we do not write to them"]
        await q.until("SELECT count(*) = 1 FROM mailbox_message WHERE dsn")


async def test_delivered_mail_to_a_recipient_that_asked_makes_a_dsn(database: str) -> None:
    async with running_queue(database) as q:
        outbound = await q.outbound()
        outbound.answer = result_of
        rcpt = types_pb2.EnvelopeRecipient(address="bob@away.example", rcpt_to="bob@away.example", notify=["SUCCESS"])
        ingress = await q.ingress()
        (future,) = ingress.commit(commit_of(rcpt, submitted=True, mail_from="alice@home.example"))
        assert (await future).accepted
        await q.until("SELECT count(*) = 1 FROM mailbox_message WHERE dsn")


async def test_every_attempt_goes_into_history_however_a_recipient_ends_FIN_03(database: str) -> None:
    async with running_queue(database) as q:
        outbound = await q.outbound()
        first = await one_delivery(q, outbound, "dropped@away.example")
        outbound.finish(first, outcome=DEFERRED)
        await q.until("SELECT count(*) = 1 FROM attempt")
        # An administrator ends it between two attempts.
        await q.sql("UPDATE recipient SET request = 2")
        q.queue.worklist.wake_everybody(range(SHARDS))
        await q.until("SELECT count(*) = 1 FROM history")
        # A late `delivered` ends another that waits after its first lease ran out.
        second = await one_delivery(q, outbound, "late@away.example")
        await q.sql("UPDATE recipient SET held_since = now()")
        await q.sql(LONG_AGO)
        await q.until("SELECT token IS NULL FROM recipient")
        outbound.finish(second)
        await q.until("SELECT count(*) = 2 FROM history")
        assert await q.sql("SELECT address, cardinality(earlier_attempts) FROM history ORDER BY id") == [
            ("dropped@away.example", 1),
            ("late@away.example", 1),
        ]
        assert await q.one("SELECT count(*) FROM attempt") == 0


async def test_an_attempt_that_was_broken_off_for_another_recipient_goes_into_history_too_FIN_03(database: str) -> None:
    async with running_queue(database) as q:
        outbound = await q.outbound()
        delivery = await one_delivery(q, outbound, "bob@away.example", "eve@away.example")
        await q.sql("UPDATE recipient SET request = 2 WHERE address LIKE 'bob%%'")
        outbound.finish(delivery, outcome=CANCELLED)
        await eventually(lambda: len(outbound.deliveries) == 2)
        outbound.finish(outbound.deliveries[1])
        await q.until("SELECT count(*) = 2 FROM history")
        ((attempts, timeline),) = await q.sql(
            "SELECT attempts, earlier_attempts FROM history WHERE address LIKE 'eve%%'"
        )
        assert (attempts, len(timeline)) == (1, 1)
        assert types_pb2.Attempt.FromString(timeline[0]).outcome == CANCELLED
        assert await q.one("SELECT count(*) FROM attempt") == 0


async def test_a_result_that_is_said_again_is_recorded_once_LSE_03(database: str) -> None:
    async with running_queue(database) as q:
        outbound = await q.outbound()
        delivery = await one_delivery(q, outbound)
        outbound.finish(delivery, outcome=DEFERRED)
        await q.until("SELECT count(*) = 1 FROM attempt")
        outbound.committed.clear()
        outbound.finish(delivery, delivery, outcome=DEFERRED)  # the acknowledgement was lost
        await eventually(lambda: delivery.token in outbound.committed)
        assert await q.one("SELECT count(*) FROM attempt") == 1


async def test_without_a_partition_for_today_one_is_made_and_nothing_is_sent_twice_FIN_03(database: str) -> None:
    async with running_queue(database, upkeep_seconds=60.0) as q:
        outbound = await q.outbound()
        delivery = await one_delivery(q, outbound)
        for (name,) in await q.sql(
            "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'history'::regclass"
        ):
            await q.sql(f"DROP TABLE {name}")
        outbound.finish(delivery)
        await eventually(lambda: delivery.token in outbound.committed)
        assert await q.sql("SELECT outcome, attempts FROM history") == [(RELAYED, 1)]


async def test_a_lease_of_a_recipient_that_cannot_be_read_keeps_no_outbound_process_away_LSE_02(database: str) -> None:
    async with running_queue(database) as q:
        outbound = await q.outbound("o")
        delivery = await one_delivery(q, outbound)
        await outbound.close()
    async with running_queue(database) as q:
        await q.sql(r"UPDATE recipient SET envelope_recipient = '\xff'")
        outbound = await q.outbound("o", in_progress=[(delivery.token, [r.id for r in delivery.recipients])])
        outbound.finish(delivery, outcome=DELIVERED)
        await q.until("SELECT count(*) = 1 FROM history WHERE outcome = %s", DELIVERED)


async def test_a_request_to_fail_what_cannot_be_read_is_granted_ADM_02(database: str) -> None:
    async with running_queue(database) as q:
        ingress = await q.ingress()
        await ingress.accept("bob@away.example", submitted=True, mail_from="alice@home.example")
        await ingress.accept("eve@away.example", submitted=True, mail_from="alice@home.example")
        await q.sql(
            r"UPDATE recipient SET envelope_recipient = '\xff', held_since = now(), request = 1"
            " WHERE address LIKE 'bob%%'"
        )
        await q.sql(
            r"UPDATE message SET envelope = '\xff' FROM recipient r WHERE r.request = 1 AND message.id = r.message_id"
        )
        await q.sql("UPDATE recipient SET held_since = now(), request = 1 WHERE address LIKE 'eve%%'")
        q.queue.worklist.wake_everybody(range(SHARDS))
        await q.until("SELECT count(*) = 2 FROM history WHERE outcome = %s AND address LIKE '%%away.example'", FAILED)
        assert await q.one("SELECT count(*) FROM dsn WHERE kind = 1") == 2


async def test_cancelling_one_recipient_of_a_delivery_costs_the_others_no_attempt_ADM_02_LSE_04(database: str) -> None:
    revision = a_revision(transports=[relay()], rules=[rule_to(RELAY)])
    async with running_queue(database, revision) as q:
        outbound = await q.outbound()
        delivery = await one_delivery(q, outbound, "bob@away.example", "eve@away.example")
        assert len(delivery.recipients) == 2
        await q.sql("UPDATE recipient SET request = 2, version = version + 1 WHERE address LIKE 'bob%%'")
        q.queue.worklist.wake_everybody(range(SHARDS))
        await eventually(lambda: delivery.token in outbound.cancelled)
        outbound.finish(delivery, outcome=CANCELLED)
        await eventually(outbound.has(2))
        again = outbound.deliveries[1]
        assert ([r.address for r in again.recipients], again.attempt) == (["eve@away.example"], 1)
        await q.until("SELECT count(*) = 1 FROM history WHERE outcome = %s", CANCELLED)
        assert await q.sql("SELECT address, attempts, last_attempt FROM recipient") == [("eve@away.example", 1, None)]
        (kept,) = await q.sql("SELECT data FROM attempt")
        assert types_pb2.Attempt.FromString(kept[0]).outcome == CANCELLED


async def test_mail_that_was_accepted_and_fails_for_one_of_two_is_told_of_once_for_that_one_DSN_25(
    database: str,
) -> None:
    async with running_queue(database) as q:
        outbound = await q.outbound()
        ingress = await q.ingress()
        await ingress.accept(  # this answer is the 250 of ingress: for both
            "ok@away.example", "no@away.example", submitted=True, mail_from="alice@home.example"
        )
        await eventually(outbound.has(1))
        result = result_of(outbound.deliveries[0])
        for found in result.recipients:
            if found.id == outbound.deliveries[0].recipients[1].id:
                found.attempt.outcome = FAILED
                found.attempt.reply.code, found.attempt.reply.enhanced = 550, "5.1.1"
        outbound.send(results=[result])
        await q.until("SELECT count(*) = 2 FROM history WHERE address LIKE '%%@away.example'")
        ((told, kind),) = await q.sql("SELECT h.address, d.kind FROM dsn d JOIN history h ON h.id = d.recipient_id")
        assert (told, kind) == (outbound.deliveries[0].recipients[1].address, 1)


async def test_mail_goes_another_way_soon_after_an_outbound_died_with_its_node_LSE_04(database: str) -> None:
    async with running_queue(database) as q:
        stays = await q.outbound("stays")
        stays.answer = result_of
        with FaultProxy(("127.0.0.1", q.port)) as network:
            async with grpc.aio.insecure_channel(f"{network.address}:{network.port}") as channel:
                dies = await FakeOutbound(channel, "dies").open()
                try:
                    await eventually(lambda: len(q.queue.dispatcher.streams) == 2)
                    network.stall()  # no farewell: connections stay open, and nothing comes any more
                    await eventually(lambda: list(q.queue.dispatcher.streams) == ["stays"], 30)
                    ingress = await q.ingress()
                    for n in range(20):  # as many sites, of which half would be those of the dead one
                        await ingress.accept(f"somebody@domain{n}.example")
                    await eventually(stays.has(20))
                finally:
                    network.resume()
                    await dies.close()
