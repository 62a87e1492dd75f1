"""Mail comes in: the rules of acceptance (message-life ACC), on a real Postgres and over real gRPC."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import psycopg
import pytest

from mailrail.core.limits import CHUNK_SIZE
from mailrail.core.revision import revision as rev
from mailrail.core.uncommitted import SETTLING
from mailrail.kit.postgres import Login
from mailrail.pb.queue.v1 import enqueue_pb2, types_pb2
from mailrail_queue import metrics
from mailrail_queue.accept import batches as accept
from mailrail_queue.rpc.enqueue import EnqueueStream
from mailrail_queue.store import blocks
from mailrail_queue.store.connection import Connection, Database, NotDurable
from mailrail_queue.store.hold_rules import HoldRules, read_hold_rules

from testkit.conditions import eventually
from testkit.faultproxy import FaultProxy
from testkit.queue import FakeIngress, RunningQueue, a_revision, commit_of, message_id, running_queue, sql


async def test_content_is_the_prefix_of_the_commit_frame_and_the_body_ACC_01a(database: str) -> None:
    async with running_queue(database) as q:
        ingress = await q.ingress()
        number = await ingress.accept("bob@away.example", prefix=b"Received: us\r\n", body=b"A: b\r\n\r\nx\r\n")
        rows = await q.sql("SELECT prefix, body, size FROM message WHERE id::text = %s", str_id(number))
        assert rows == [(b"Received: us\r\n", b"A: b\r\n\r\nx\r\n", 25)]


async def test_a_large_body_is_stored_in_rows_of_256_kib_that_nobody_sees_before_the_commit_ACC_02(
    database: str,
) -> None:
    body = bytes(range(256)) * 2800  # 700 KiB
    async with running_queue(database) as q:
        ingress = await q.ingress()
        number = message_id()
        for start in range(0, len(body), 100_000):
            ingress.chunk(number, body[start : start + 100_000])

        await q.until("SELECT count(*) = 2 FROM chunk")
        assert await q.one("SELECT count(*) FROM message") == 0
        (future,) = ingress.commit(commit_of("bob@away.example", body=None), ids=[number])
        assert (await future).accepted
        sizes = await q.sql("SELECT number, length(data) FROM chunk ORDER BY number")
        assert sizes == [(0, CHUNK_SIZE), (1, CHUNK_SIZE), (2, len(body) - 2 * CHUNK_SIZE)]
        assert await q.one("SELECT chunks FROM message") == 3
        assert await q.one("SELECT count(*) FROM upload") == 0
        await eventually(lambda: ingress.credit >= 32 * 1024 * 1024 - 300_000, what="credit comes back")


async def test_a_recipient_and_its_history_hold_the_number_of_the_header_s_message_id(database: str) -> None:
    # As Postgres works it out, so that a query can be made by hand.
    expected = "('x' || left(encode(sha256(convert_to('ä@away.example', 'UTF8')), 'hex'), 16))::bit(64)::bigint"
    async with running_queue(database) as q:
        ingress = await q.ingress()
        named, unnamed = commit_of("bob@away.example"), commit_of("eve@away.example")
        named.envelope.message_id = "<ä@away.example>"
        await asyncio.gather(*ingress.commit(named, unnamed))
        assert await q.sql(f"SELECT header_key = {expected} FROM recipient ORDER BY address") == [(True,), (None,)]
        outbound = await q.outbound()
        await eventually(outbound.has(2), what="both are handed out")
        outbound.finish(*outbound.deliveries)
        await q.until("SELECT count(*) = 2 FROM history")
        assert await q.sql(f"SELECT header_key = {expected} FROM history ORDER BY address") == [(True,), (None,)]


async def test_bodies_whose_commit_never_comes_are_swept_ACC_02(database: str) -> None:
    async with running_queue(database, keep_upload_seconds=3600.0) as q:
        ingress = await q.ingress()
        old, young = message_id(), message_id()
        ingress.chunk(old, b"x" * CHUNK_SIZE)
        ingress.chunk(young, b"y" * CHUNK_SIZE)

        await q.until("SELECT count(*) = 2 FROM upload")
        await q.sql(
            "UPDATE upload SET started = now() - interval '61 minutes' WHERE message_id::text = %s", str_id(old)
        )
        await q.queue.upkeep.sweep()
        assert await q.sql("SELECT message_id::text FROM chunk") == [(str_id(young),)]
        (late,) = ingress.commit(commit_of("bob@away.example", body=None), ids=[old])
        answer = await late
        assert not answer.accepted
        assert answer.refusal.code == 451


async def test_an_aborted_body_is_forgotten_at_once(database: str) -> None:
    async with running_queue(database) as q:
        ingress = await q.ingress()
        number = message_id()
        ingress.chunk(number, b"x" * (CHUNK_SIZE + 5))

        await q.until("SELECT count(*) = 1 FROM chunk")
        ingress.send(enqueue_pb2.EnqueueFrame(message_id=number, abort=enqueue_pb2.Abort()))
        await q.until("SELECT count(*) = 0 FROM chunk")


async def test_a_broken_stream_leaves_nothing_of_a_body_behind_ACC_05(database: str) -> None:
    async with running_queue(database) as q:
        ingress = await q.ingress()
        ingress.chunk(message_id(), b"x" * (CHUNK_SIZE + 5))

        await q.until("SELECT count(*) = 1 FROM chunk")
        await ingress.close()
        await q.until("SELECT count(*) = 0 FROM chunk")


@pytest.mark.parametrize("how", ["text", "number"])
async def test_of_a_batch_that_fails_for_its_data_only_the_guilty_message_is_refused_ACC_03(
    database: str, how: str
) -> None:
    async with running_queue(database) as q:
        ingress = await q.ingress()
        good = [commit_of(f"user{n}@away.example") for n in range(5)]
        guilty = commit_of("bob@away.example")
        if how == "text":
            guilty.recipients[0].address = "bo\0b@away.example"  # no text of Postgres holds a NUL
        else:
            guilty.envelope.tls_requirement = 70_000  # type: ignore[assignment]  # nor a smallint that number
        answers = await asyncio.gather(*ingress.commit(*good[:3], guilty, *good[3:]))
        assert [a.accepted for a in answers] == [True, True, True, False, True, True]
        assert answers[3].refusal.code == 554
        assert await q.one("SELECT count(*) FROM message") == 5


async def test_a_batch_holds_no_more_than_its_bytes_ACC_03(database: str) -> None:
    async with running_queue(database, batch_bytes=100_000) as q:
        ingress = await q.ingress()
        commits = [commit_of(f"user{n}@away.example", body=b"x" * 60_000) for n in range(6)]
        answers = await asyncio.gather(*ingress.commit(*commits))
        assert all(a.accepted for a in answers)
        assert await q.one("SELECT count(DISTINCT xmin::text) FROM message") == 6


async def test_messages_that_wait_together_share_a_commit(database: str) -> None:
    async with running_queue(database) as q:
        ingress = await q.ingress()
        answers = await asyncio.gather(*ingress.commit(*(commit_of(f"user{n}@away.example") for n in range(50))))
        assert all(a.accepted for a in answers)
        assert await q.one("SELECT count(DISTINCT xmin::text) FROM message") < 10


async def test_a_repeated_commit_answers_as_the_first_and_stores_nothing_ACC_04(database: str) -> None:
    async with running_queue(database) as q:
        ingress = await q.ingress()
        number = await ingress.accept("bob@away.example", "eve@away.example")
        again = await q.ingress()
        assert await again.accept("bob@away.example", "eve@away.example", id=number) == number
        assert await q.one("SELECT count(*) FROM recipient") == 2


async def test_the_same_id_twice_in_one_batch_is_stored_once_ACC_04(database: str) -> None:
    async with running_queue(database) as q:
        ingress = await q.ingress()
        number = message_id()
        frame = enqueue_pb2.EnqueueFrame(message_id=number, commit=commit_of("bob@away.example"))
        (future,) = ingress.commit(commit_of("bob@away.example"), ids=[number])
        ingress.send(frame, frame)
        assert (await future).accepted
        await ingress.accept("last@away.example")
        assert await q.one("SELECT count(*) FROM recipient WHERE address = 'bob@away.example'") == 1


async def test_asking_for_the_outcome_bars_a_later_commit_ACC_04(database: str) -> None:
    async with running_queue(database) as q:
        ingress = await q.ingress()
        number = message_id()
        outcome = await ingress.stub.GetOutcome(enqueue_pb2.GetOutcomeRequest(message_id=number))
        assert not outcome.accepted
        (future,) = ingress.commit(commit_of("bob@away.example"), ids=[number])
        answer = await future
        assert not answer.accepted
        assert answer.refusal.code == 451
        assert await q.one("SELECT count(*) FROM recipient") == 0


async def test_the_outcome_of_what_was_committed_is_told_by_any_replica_ACC_04(database: str) -> None:
    async with running_queue(database) as one, running_queue(database) as other:
        number = await (await one.ingress()).accept("bob@away.example")
        stub = (await other.ingress()).stub
        outcome = await stub.GetOutcome(enqueue_pb2.GetOutcomeRequest(message_id=number))
        assert outcome.accepted
        assert outcome.accepted_at.seconds > 0


async def test_a_message_is_found_in_history_once_nothing_else_is_left_of_it_FIN_03(database: str) -> None:
    async with running_queue(database) as q:
        ingress, outbound = await q.ingress(), await q.outbound()
        number = await ingress.accept("bob@away.example")
        request = enqueue_pb2.FindMessageRequest(message_id=number)
        assert await ingress.stub.FindMessage(request) == enqueue_pb2.FindMessageResponse(accepted=True)
        await eventually(lambda: outbound.deliveries)
        outbound.finish(outbound.deliveries[0])
        await q.until("SELECT count(*) = 1 FROM history")
        await q.sql("DELETE FROM message")
        found = await ingress.stub.FindMessage(request)
        assert found == enqueue_pb2.FindMessageResponse(accepted=True, history=True)


async def test_a_message_that_is_not_found_is_barred_ACC_04(database: str) -> None:
    async with running_queue(database) as q:
        ingress = await q.ingress()
        number = message_id()
        assert not (await ingress.stub.FindMessage(enqueue_pb2.FindMessageRequest(message_id=number))).accepted
        (future,) = ingress.commit(commit_of("bob@away.example"), ids=[number])
        assert not (await future).accepted


async def test_bodies_that_are_being_stored_keep_nobody_from_asking_for_an_outcome_ACC_04(database: str) -> None:
    async with running_queue(database) as q, await psycopg.AsyncConnection.connect(database) as other:
        ingress = await q.ingress()
        await other.execute("LOCK TABLE queue.upload")
        for _ in range(20):
            ingress.chunk(message_id(), b"x" * CHUNK_SIZE)
        await q.until("SELECT count(*) > 0 FROM pg_locks WHERE NOT granted")
        request = enqueue_pb2.GetOutcomeRequest(message_id=message_id())
        assert not (await ingress.stub.GetOutcome(request, timeout=5)).accepted
        await ingress.accept("small@away.example")


async def test_the_outcome_waits_for_a_commit_that_is_under_way_ACC_04(database: str) -> None:
    async with running_queue(database) as q:
        ingress = await q.ingress()
        number = message_id()
        async with await psycopg.AsyncConnection.connect(database) as other:
            await other.execute("INSERT INTO queue.message (id, body) VALUES (%s::uuid, '')", (str_id(number),))
            asking = ingress.stub.GetOutcome(enqueue_pb2.GetOutcomeRequest(message_id=number))
            await q.until(
                "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE 'INSERT%%'"
            )
            assert not asking.done()
            await other.commit()
            assert (await asking).accepted


async def test_a_server_without_fsync_or_full_pages_is_unsafe_ACC_06(database: str) -> None:
    from mailrail.kit.postgres import ServerState

    opened = Database(Login.of(database), "test")
    for state in (ServerState(180000, False, True, 1, "x"), ServerState(180000, True, False, 1, "x")):
        with pytest.raises(NotDurable, match="off"):
            opened._judge(state)
    Database(Login.of(database), "test", unsafe=True)._judge(ServerState(180000, False, True, 1, "x"))


async def test_every_connection_commits_synchronously_by_its_own_word_ACC_06(database: str) -> None:
    name = database.rpartition("/")[2].partition("?")[0]
    await sql(database, f'ALTER DATABASE "{name}" SET synchronous_commit = off')
    opened = Database(Login.of(database), "test")
    assert await opened.lane("x").run("SHOW synchronous_commit") == [("on",)]
    await opened.close()


async def test_credit_counts_bytes_and_comes_back_as_they_are_dealt_with_ACC_07(database: str) -> None:
    async with running_queue(database, stream_credit=1_000_000) as q:
        ingress = await q.ingress()
        assert ingress.credit == 1_000_000
        await ingress.accept("bob@away.example", body=b"x" * 50_000)
        for n in range(10):
            await ingress.accept(f"user{n}@away.example", body=b"x" * 60_000)
        await eventually(lambda: ingress.credit > 700_000)


async def test_parts_of_several_bodies_share_a_transaction_ACC_02(database: str) -> None:
    async with running_queue(database) as q:
        ingress = await q.ingress()
        bodies = {message_id(): bytes([n]) * (CHUNK_SIZE + n) for n in range(1, 7)}
        async with await psycopg.AsyncConnection.connect(database) as other:
            await other.execute("LOCK TABLE queue.upload")  # what comes meanwhile waits, all but the first row together
            for number, body in bodies.items():
                ingress.chunk(number, body[:CHUNK_SIZE])
            (stream,) = q.queue.arrivals
            assert isinstance(stream, EnqueueStream)
            await eventually(lambda: len(stream.uploads) == len(bodies))
        await q.until("SELECT count(*) = 6 FROM chunk")
        assert await q.one("SELECT count(DISTINCT xmin::text) FROM chunk") == 2
        for number, body in bodies.items():
            ingress.chunk(number, body[CHUNK_SIZE:])
            (future,) = ingress.commit(commit_of("bob@away.example", body=None), ids=[number])
            assert (await future).accepted
        for number, body in bodies.items():
            rows = await q.sql("SELECT data FROM chunk WHERE message_id::text = %s ORDER BY number", str_id(number))
            assert b"".join(row[0] for row in rows) == body


async def test_parts_whose_transaction_is_cut_off_are_stored_by_the_next_for_each_of_its_bodies_ACC_02(
    database: str,
) -> None:
    waits = "FROM pg_stat_activity WHERE application_name LIKE '%% upload' AND wait_event_type = 'Lock' AND pid <> %s"
    async with running_queue(database) as q:
        ingress = await q.ingress()
        numbers = [message_id() for _ in range(3)]
        async with await psycopg.AsyncConnection.connect(database) as other:
            await other.execute("LOCK TABLE queue.upload")
            for number in numbers:
                ingress.chunk(number, b"x" * CHUNK_SIZE)
            (stream,) = q.queue.arrivals
            assert isinstance(stream, EnqueueStream)
            await eventually(lambda: len(stream.uploads) == len(numbers))
            cut = 0
            for _ in range(2):  # the first part, which came alone, then the two that waited for it
                await q.until(f"SELECT count(*) = 1 {waits}", cut)
                cut = await q.one(f"SELECT pid {waits}", cut)
                assert await q.one("SELECT pg_terminate_backend(%s)", cut)
        for future in ingress.commit(*[commit_of("bob@away.example", body=None)] * 3, ids=numbers):
            assert (await future).accepted
        assert await q.one("SELECT count(*) FROM chunk") == 3


async def test_one_slow_upload_blocks_no_other_message_of_its_stream_ACC_07(database: str) -> None:
    async with running_queue(database) as q:
        ingress = await q.ingress()
        slow = message_id()
        ingress.chunk(slow, b"x" * 100_000)  # and no more for now
        await ingress.accept("quick@away.example")
        ingress.chunk(slow, b"y" * 100_000)
        (future,) = ingress.commit(commit_of("slow@away.example", body=None), ids=[slow])
        assert (await future).accepted


async def test_a_caller_that_takes_no_notice_of_credit_loses_its_stream_ACC_07(database: str) -> None:
    async with running_queue(database, stream_credit=300_000) as q:
        ingress = await q.ingress()
        async with await psycopg.AsyncConnection.connect(database) as other:
            await other.execute("LOCK TABLE queue.upload")  # nothing is written, so no credit comes back
            number = message_id()
            for _ in range(12):
                ingress.chunk(number, b"x" * 100_000)
            await eventually(lambda: ingress.broken is not None)
        await ingress.close()
        await (await q.ingress()).accept("next@away.example")


async def test_a_replica_that_stops_says_go_away_and_finishes_what_runs_ACC_07(database: str) -> None:
    async with running_queue(database) as q:
        ingress = await q.ingress()
        number = message_id()
        ingress.chunk(number, b"x" * 400_000)
        q.queue.stopping.set()
        await eventually(lambda: ingress.go_away)
        (future,) = ingress.commit(commit_of("bob@away.example", body=None), ids=[number])
        assert (await future).accepted
        late = await q.ingress()
        assert late.broken is not None


async def test_a_commit_that_was_on_its_way_when_the_replica_stopped_is_answered_at_once_ACC_07(database: str) -> None:
    async with running_queue(database) as q:
        ingress = await q.ingress()
        stopping = asyncio.create_task(q.queue.stop(600.0))
        await eventually(lambda: ingress.go_away)
        await ingress.accept("late@away.example")  # sent before its sender had read GoAway, as far as the queue can see
        ingress.finish()
        await asyncio.wait_for(stopping, 60)
        assert ingress.broken is None


async def test_a_commit_after_the_end_is_not_left_waiting_ACC_04(database: str) -> None:
    async with running_queue(database) as q:
        ingress = await q.ingress()
        q.queue.group_commit.close()
        (future,) = ingress.commit(commit_of("bob@away.example"))
        with pytest.raises(grpc.aio.AioRpcError) as caught:  # its sender asks another replica
            await asyncio.wait_for(future, 60)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_commit_that_postgres_keeps_past_the_end_is_not_left_waiting_ACC_04(database: str) -> None:
    async with running_queue(database) as q, await psycopg.AsyncConnection.connect(database) as other:
        ingress = await q.ingress()
        await other.execute("LOCK TABLE queue.message IN ACCESS EXCLUSIVE MODE")
        (future,) = ingress.commit(commit_of("bob@away.example"))
        await q.until("SELECT count(*) > 0 FROM pg_locks WHERE NOT granted")
        await q.queue.stop(0.0)
        with pytest.raises(grpc.aio.AioRpcError) as caught:  # its sender asks another replica
            await asyncio.wait_for(future, 10)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


LIMITED = a_revision(limits=rev.AccountLimits(messages_per_day=3, recipients_per_day=5))


async def test_limits_of_an_account_hold_over_all_replicas_ACC_08(database: str) -> None:
    async with running_queue(database, LIMITED) as one, running_queue(database, LIMITED) as other:
        first, second = await one.ingress(), await other.ingress()
        answers = await asyncio.gather(
            *first.commit(*(commit_of(f"a{n}@away.example", submitted=True) for n in range(4))),
            *second.commit(*(commit_of(f"b{n}@away.example", submitted=True) for n in range(4))),
        )
        assert sum(a.accepted for a in answers) == 3
        assert {a.refusal.code for a in answers if not a.accepted} == {452}
        await first.accept("stranger@away.example")  # another's limit is not theirs


async def test_recipients_count_too_and_the_answer_to_a_repeated_commit_does_not_ACC_08(database: str) -> None:
    async with running_queue(database, LIMITED) as q:
        ingress = await q.ingress()
        number = await ingress.accept("a@away.example", "b@away.example", "c@away.example", submitted=True)
        await ingress.accept("a@away.example", "b@away.example", "c@away.example", submitted=True, id=number)
        (wide,) = ingress.commit(commit_of(*(f"r{n}@away.example" for n in range(3)), submitted=True))
        assert not (await wide).accepted
        await ingress.accept("d@away.example", "e@away.example", submitted=True)
        assert await q.sql("SELECT sum(messages)::int, sum(recipients)::int FROM account_usage") == [(2, 5)]


async def upload(q: RunningQueue, ingress: FakeIngress, number: bytes, size: int = 3 * CHUNK_SIZE - 5) -> None:
    """Send a body in chunks and wait until all that are whole are stored."""
    for start in range(0, size, CHUNK_SIZE):
        ingress.chunk(number, b"x" * min(CHUNK_SIZE, size - start))
    await q.until("SELECT count(*) = %s FROM chunk WHERE message_id::text = %s", size // CHUNK_SIZE, str_id(number))


async def test_the_content_of_a_large_message_over_a_limit_is_deleted_with_its_refusal_ACC_02(database: str) -> None:
    async with running_queue(database, LIMITED) as q:
        ingress = await q.ingress()
        numbers = [message_id() for _ in range(6)]
        for number in numbers:
            await upload(q, ingress, number)
            (answer,) = ingress.commit(commit_of("a@away.example", submitted=True, body=None), ids=[number])
            assert (await answer).accepted == (number in numbers[:3])
        rows = await q.sql("SELECT message_id::text, count(*) FROM chunk GROUP BY 1 ORDER BY 1")
        assert rows == [(str_id(number), 3) for number in sorted(numbers[:3])]
        assert await q.one("SELECT count(*) FROM upload") == 0


async def test_the_content_of_a_large_message_that_is_barred_does_not_stay_ACC_04(database: str) -> None:
    async with running_queue(database) as q:
        ingress = await q.ingress()
        asked_about, barred = message_id(), message_id()
        await upload(q, ingress, asked_about)
        request = enqueue_pb2.GetOutcomeRequest(message_id=asked_about)
        assert not (await ingress.stub.GetOutcome(request, timeout=60)).accepted
        await q.until("SELECT count(*) = 0 FROM chunk")
        assert await q.one("SELECT count(*) FROM upload") == 0

        await q.sql("INSERT INTO message (id, barred) VALUES (%s, true)", str_id(barred))
        await upload(q, ingress, barred)
        (answer,) = ingress.commit(commit_of("a@away.example", body=None), ids=[barred])
        assert (await answer).refusal.code == 451
        assert await q.one("SELECT count(*) FROM chunk") == 0


async def test_a_repeated_commit_of_a_large_message_keeps_the_content_of_the_first_ACC_04(database: str) -> None:
    async with running_queue(database) as q:
        ingress = await q.ingress()
        number = message_id()
        await upload(q, ingress, number)
        for content in (None, b"x" * (3 * CHUNK_SIZE - 5)):  # the second brings its content along
            (answer,) = ingress.commit(commit_of("a@away.example", body=content), ids=[number])
            assert (await answer).accepted
        assert await q.sql("SELECT count(*), sum(length(data))::int FROM chunk") == [(3, 3 * CHUNK_SIZE - 5)]
        assert await q.one("SELECT count(*) FROM upload") == 0


async def test_the_content_of_a_large_message_that_cannot_be_stored_does_not_stay_ACC_02(database: str) -> None:
    async with running_queue(database) as q:
        ingress = await q.ingress()
        guilty, malformed = message_id(), message_id()
        for number in (guilty, malformed):
            await upload(q, ingress, number)
        bad = commit_of("bob@away.example", body=None)
        bad.recipients[0].address = "bo\0b@away.example"  # no text of Postgres holds a NUL
        answers = ingress.commit(bad, commit_of(body=None), ids=[guilty, malformed])
        assert [(await answer).refusal.code for answer in answers] == [554, 554]
        await q.until("SELECT count(*) = 0 FROM chunk")
        assert await q.one("SELECT count(*) FROM upload") == 0


async def test_large_bodies_that_nobody_committed_are_bounded_and_small_mail_passes_ACC_07(database: str) -> None:
    async with running_queue(database, upload_octets=4 * CHUNK_SIZE) as q:
        ingress = await q.ingress()
        first, second, third = message_id(), message_id(), message_id()
        await upload(q, ingress, first, 3 * CHUNK_SIZE)
        for _ in range(3):
            ingress.chunk(second, b"x" * CHUNK_SIZE)
        (answer,) = ingress.commit(commit_of("a@away.example", body=None), ids=[second])
        told = await answer
        assert (told.refusal.code, told.refusal.enhanced) == (452, "4.3.1")
        await q.until("SELECT count(*) = 3 FROM chunk")
        await ingress.accept("small@away.example")

        (answer,) = ingress.commit(commit_of("a@away.example", body=None), ids=[first])
        assert (await answer).accepted
        await upload(q, ingress, third, 3 * CHUNK_SIZE)  # what is committed counts no more
        assert q.queue.uncommitted.octets(time.monotonic()) == 4 * CHUNK_SIZE  # a minute more for what was given up
        assert q.queue.uncommitted.octets(time.monotonic() + SETTLING) == 3 * CHUNK_SIZE
        ingress.send(enqueue_pb2.EnqueueFrame(message_id=third, abort=enqueue_pb2.Abort()))
        await q.until("SELECT count(*) = 3 FROM chunk")
        assert q.queue.uncommitted.octets(time.monotonic() + 2 * SETTLING) == 0


async def test_of_large_bodies_that_grow_evenly_some_are_whole_where_the_room_ends_ACC_07(database: str) -> None:
    async with running_queue(database, upload_octets=65 * CHUNK_SIZE) as q:
        ingress = await q.ingress()
        ids = [message_id() for _ in range(4)]
        for step in range(1, 6):  # to twenty rows each: three have room
            for number in ids:
                for _ in range(4):
                    ingress.chunk(number, b"x" * CHUNK_SIZE, size=20 * CHUNK_SIZE if step == 1 else 0)
            if step <= 2:
                await q.until("SELECT count(*) = %s FROM chunk", 16 * step)
            assert q.queue.uncommitted.octets(time.monotonic()) <= 65 * CHUNK_SIZE
        answers = ingress.commit(*[commit_of("a@away.example", body=None) for _ in ids], ids=ids)
        told = [await answer for answer in answers]
        assert 1 <= [answer.accepted for answer in told].count(True) <= 3
        assert {answer.refusal.code for answer in told if not answer.accepted} == {452}
        assert q.queue.uncommitted.octets(time.monotonic()) <= 65 * CHUNK_SIZE


async def clock(q: RunningQueue) -> float:
    """What the database's clock shows."""
    return float(await q.one("SELECT extract(epoch FROM clock_timestamp())::float8"))


def valid(until: float, *to: str, **how: Any) -> enqueue_pb2.Commit:
    """A commit that is waited for until then."""
    commit = commit_of(*(to or ("bob@away.example",)), **how)
    commit.valid_until = int(until * 1e6)
    return commit


async def test_what_nobody_waits_for_any_longer_is_not_stored_ACC_04(database: str) -> None:
    async with running_queue(database) as q:
        ingress = await q.ingress()
        now = await clock(q)
        large, kept = message_id(), message_id()
        await upload(q, ingress, large)
        await upload(q, ingress, kept)
        answers = ingress.commit(
            valid(now - 1),
            valid(now + 60),
            commit_of("eve@away.example"),
            valid(now - 0.001, body=None),
            valid(now + 60, body=None),
            ids=[message_id(), message_id(), message_id(), large, kept],
        )
        told = [await answer for answer in answers]
        assert [one.accepted for one in told] == [False, True, True, False, True]
        assert {one.refusal.code for one in told if not one.accepted} == {451}
        assert await q.one("SELECT count(*) FROM message") == 3
        assert await q.sql("SELECT DISTINCT message_id::text FROM chunk") == [(str_id(kept),)]


async def test_a_commit_that_comes_again_after_its_time_is_answered_as_the_first_was_ACC_04(database: str) -> None:
    async with running_queue(database) as q:
        ingress = await q.ingress()
        number = message_id()
        now = await clock(q)
        for until in (now + 60, now - 1):
            (answer,) = ingress.commit(valid(until), ids=[number])
            assert (await answer).accepted
        assert await q.one("SELECT count(*) FROM message") == 1


async def test_a_commit_that_postgres_kept_waiting_is_stored_once_while_it_is_waited_for_and_never_later_ACC_04(
    database: str,
) -> None:
    async with running_queue(database) as q, await psycopg.AsyncConnection.connect(database) as other:
        ingress = await q.ingress()
        await other.execute("LOCK TABLE queue.message")
        now = await clock(q)
        patient, hasty = ingress.commit(valid(now + 60), valid(now + 1))
        await q.until("SELECT count(*) > 0 FROM pg_locks WHERE NOT granted")
        await q.until("SELECT extract(epoch FROM clock_timestamp()) > %s", now + 1)
        await other.commit()
        assert (await patient).accepted
        assert not (await hasty).accepted
        assert await q.one("SELECT count(*) FROM message") == 1


async def test_a_stream_tells_the_databases_time_and_never_a_later_one_ACC_04(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mailrail_queue.rpc.enqueue._TELL_TIME", 0.2)
    async with running_queue(database) as q:
        real = time.time
        monkeypatch.setattr(time, "time", lambda: real() + 86_400)  # our own clock is a day ahead
        told: list[float] = []
        stub = (await q.ingress()).stub

        async def nothing() -> AsyncIterator[enqueue_pb2.EnqueueRequest]:
            await asyncio.Event().wait()
            yield enqueue_pb2.EnqueueRequest()

        async for response in stub.Enqueue(nothing()):
            told.append(response.database_time / 1e6)
            now = await clock(q)
            assert now - 5 < told[-1] <= now
            if len(told) == 3:
                break
        assert told == sorted(told)


async def test_frames_of_a_stream_that_has_ended_count_no_more_ACC_04(database: str) -> None:
    async with running_queue(database) as q:
        stream = EnqueueStream(q.queue)
        stream.end()
        number = message_id()
        frames = [
            enqueue_pb2.EnqueueFrame(message_id=number, chunk=enqueue_pb2.BodyChunk(data=b"x" * CHUNK_SIZE)),
            enqueue_pb2.EnqueueFrame(message_id=message_id(), commit=commit_of("bob@away.example")),
        ]

        async def requests() -> AsyncIterator[enqueue_pb2.EnqueueRequest]:
            yield enqueue_pb2.EnqueueRequest(frames=frames)

        await stream.read(requests())
        assert not stream.uploads
        assert q.queue.group_commit.idle


async def test_a_message_without_recipients_or_with_a_strange_id_is_refused(database: str) -> None:
    async with running_queue(database) as q:
        ingress = await q.ingress()
        nobody, short = ingress.commit(commit_of(), commit_of("bob@away.example"), ids=[message_id(), b"short"])
        assert (await nobody).refusal.code == 554
        assert (await short).refusal.code == 554


async def test_a_body_too_long_for_a_row_is_stored_in_chunks_however_it_came(database: str) -> None:
    async with running_queue(database) as q:
        ingress = await q.ingress()
        await ingress.accept("bob@away.example", body=b"x" * 1_100_000)
        assert await q.sql("SELECT chunks, body FROM message") == [(5, None)]


async def test_a_hold_rule_holds_what_it_matches_before_anything_is_handed_on(database: str) -> None:
    async with running_queue(database, heartbeat_seconds=60.0) as q:
        outbound = await q.outbound()
        ingress = await q.ingress()
        # The process read the rules before this one came: the commit itself tells it to look again.
        await q.sql("INSERT INTO hold_rule (to_domain, comment) VALUES ('held.example', 'under investigation')")
        await q.sql("UPDATE hold_version SET version = version + 1")
        await ingress.accept("bob@held.example", "eve@away.example")
        await eventually(lambda: outbound.deliveries)
        rows = await q.sql(
            "SELECT held_since IS NOT NULL, hold_reason, token, attempts FROM recipient WHERE address LIKE 'bob%%'"
        )
        assert rows == [(True, "hold rule 1: under investigation", None, 0)]
        await ingress.accept("again@held.example")
        assert await q.one("SELECT count(*) FROM recipient WHERE held_since IS NOT NULL") == 2
        assert [d.domain for d in outbound.deliveries] == ["away.example"]


async def test_nothing_is_tried_before_its_release_time_which_counts_for_no_lifetime_OPT_02(database: str) -> None:
    async with running_queue(database) as q:
        outbound = await q.outbound()
        ingress = await q.ingress()
        now = float(await q.one("SELECT extract(epoch FROM now())::float8"))
        commit = commit_of("later@away.example", submitted=True)
        commit.envelope.release.FromSeconds(int(now) + 3600)
        (future,) = ingress.commit(commit)
        assert (await future).accepted
        await ingress.accept("now@away.example")
        await eventually(lambda: outbound.deliveries)
        assert [r.address for d in outbound.deliveries for r in d.recipients] == ["now@away.example"]
        ((due, paused),) = await q.sql(
            "SELECT extract(epoch FROM due - now())::int, uncounted_seconds::int FROM recipient"
            " WHERE address LIKE 'later%%'"
        )
        assert 3500 < due <= 3600
        assert 3500 < paused <= 3600


async def test_a_time_to_wait_is_counted_by_the_clock_of_postgres_and_not_of_ingress_OPT_02(database: str) -> None:
    async with running_queue(database) as q:
        commit = commit_of("later@away.example", submitted=True, future_release_request="for;3600")
        ahead = int(time.time()) + 6 * 86_400  # the clock of this ingress
        commit.envelope.received.FromSeconds(ahead)
        commit.envelope.release.FromSeconds(ahead + 3600)
        (future,) = (await q.ingress()).commit(commit)
        assert (await future).accepted
        due = await q.one("SELECT extract(epoch FROM due - now())::float8 FROM recipient")
        assert 3500 < due <= 3601


async def test_mail_waits_out_a_short_outage_of_postgres_and_is_stored_once(database: str) -> None:
    parts = psycopg.conninfo.conninfo_to_dict(database)
    with FaultProxy((str(parts["host"]), int(str(parts["port"])))) as proxy:
        url = psycopg.conninfo.make_conninfo(database, host=proxy.address, port=proxy.port)
        async with running_queue(url) as q:
            ingress = await q.ingress()
            await ingress.accept("before@away.example")
            proxy.cut()
            futures = ingress.commit(*(commit_of(f"user{n}@away.example") for n in range(20)))
            answers = await asyncio.wait_for(asyncio.gather(*futures), 60)
            assert all(a.accepted for a in answers)
            assert (await sql(database, "SELECT count(*) FROM message"))[0][0] == 21
            assert (await sql(database, "SELECT count(*) FROM recipient"))[0][0] == 21


@pytest.mark.parametrize(("table", "size"), [("message", 10), ("chunk", 1_100_000)])
async def test_a_full_disk_of_postgres_is_452_4_3_1_at_once_and_mail_is_taken_when_there_is_room_EXT_01(
    database: str, table: str, size: int
) -> None:
    full = "RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = 'disk_full'"
    await sql(
        database, f"CREATE FUNCTION queue.full_disk() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {full}; END $$"
    )
    await sql(
        database,
        f"CREATE TRIGGER full_disk BEFORE INSERT ON queue.{table} FOR EACH ROW EXECUTE FUNCTION queue.full_disk()",
    )
    async with running_queue(database) as q:
        ingress = await q.ingress()
        futures = ingress.commit(*(commit_of("bob@away.example", body=b"x" * size) for _ in range(2)))
        answers = await asyncio.wait_for(asyncio.gather(*futures), 5)
        for answer in answers:
            assert (answer.accepted, answer.refusal.code, answer.refusal.enhanced) == (False, 452, "4.3.1")
            assert answer.refusal.lines == ["insufficient system storage, try again later"]
        await sql(database, f"DROP TRIGGER full_disk ON queue.{table}")
        await ingress.accept("bob@away.example", body=b"x" * size)


def str_id(number: bytes) -> str:
    from uuid import UUID

    return str(UUID(bytes=number))


assert types_pb2


async def test_a_list_that_was_expanded_for_a_stranger_is_not_told_of_DSN_26a(database: str) -> None:
    def member() -> types_pb2.EnvelopeRecipient:
        return types_pb2.EnvelopeRecipient(
            address="member@away.example", rcpt_to="team@home.example", notify=["FAILURE"], expanded=True
        )

    async with running_queue(database) as q:
        ingress = await q.ingress()
        for result in ingress.commit(
            commit_of(member(), mail_from="forged@victim.example"),
            commit_of(member(), mail_from="", submitted=True),
            commit_of(member(), mail_from="alice@home.example", submitted=True),
        ):
            assert (await result).accepted
        assert await q.sql("SELECT recipient_id > 0, kind FROM dsn") == [(True, 5)]  # only of the account's own
        assert await q.one("SELECT count(*) FROM message") == 4


async def test_a_full_disk_is_said_to_the_client_and_shown_by_the_metrics(database: str) -> None:
    def shown() -> tuple[float, float]:
        return metrics.POSTGRES_UP._value.get(), metrics.REFUSED.labels(reason="full")._value.get()

    async with running_queue(database, heartbeat_seconds=0.1) as q:
        ingress = await q.ingress()
        await ingress.accept("bob@away.example")
        await eventually(lambda: shown()[0] == 1.0)
        refused = shown()[1]
        await q.sql(
            "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN RAISE EXCEPTION 'could not extend file' USING ERRCODE = '53100'; END $$"
        )
        await q.sql("CREATE TRIGGER full_disk BEFORE INSERT ON message FOR EACH ROW EXECUTE FUNCTION full_disk()")
        (result,) = ingress.commit(commit_of("bob@away.example"))
        answer = await result
        assert (answer.accepted, answer.refusal.code, answer.refusal.enhanced) == (False, 452, "4.3.1")
        await eventually(lambda: shown() == (0.0, refused + 1))
        await q.sql("DROP TRIGGER full_disk ON message")
        await ingress.accept("bob@away.example")
        await eventually(lambda: shown()[0] == 1.0)


async def test_a_hold_rule_holds_also_when_the_connection_is_lost_just_then(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = [psycopg.OperationalError("the connection is lost")]

    async def read(connection: Connection) -> HoldRules:
        if failures:
            raise failures.pop()
        return await read_hold_rules(connection)

    async with running_queue(database, heartbeat_seconds=60.0) as q:
        outbound = await q.outbound()
        ingress = await q.ingress()
        await q.sql("INSERT INTO hold_rule (to_domain, comment) VALUES ('held.example', 'look')")
        await q.sql("UPDATE hold_version SET version = version + 1")
        monkeypatch.setattr(accept, "read_hold_rules", read)
        await ingress.accept("bob@held.example", "eve@away.example")
        assert failures == []
        await eventually(lambda: outbound.deliveries)
        assert [d.domain for d in outbound.deliveries] == ["away.example"]
        rows = await q.sql("SELECT address, held_since IS NOT NULL, attempts FROM recipient ORDER BY address")
        assert rows == [("bob@held.example", True, 0), ("eve@away.example", False, 1)]


async def test_commits_take_credit_as_chunks_do_ACC_07(database: str) -> None:
    async with running_queue(database, stream_credit=100_000) as q:
        ingress = await q.ingress()
        async with await psycopg.AsyncConnection.connect(database) as other:
            await other.execute("LOCK TABLE queue.message")  # nothing is stored, so no credit comes back
            futures = ingress.commit(*(commit_of(f"u{n}@away.example", body=b"x" * 50_000) for n in range(12)))
            await eventually(lambda: ingress.broken is not None)
            assert q.queue.group_commit.idle or len(q.queue.group_commit._waiting) <= 4
        await asyncio.gather(*futures, return_exceptions=True)
        await (await q.ingress()).accept("next@away.example")


# --- ids that come again ---


async def test_sequences_that_were_not_copied_with_their_rows_refuse_no_mail_ACC_05(database: str) -> None:
    """A move by logical replication brings rows and no sequences."""
    async with running_queue(database) as q:
        ingress = await q.ingress()
        for _ in range(50):
            await ingress.accept("bob@away.example")
    await sql(
        database,
        "ALTER SEQUENCE recipient_block RESTART; ALTER SEQUENCE token_block RESTART",
    )
    async with running_queue(database) as q:
        ingress = await q.ingress()
        for _ in range(60):
            await ingress.accept("bob@away.example")  # one by one: each batch has but this one
        assert await q.one("SELECT count(*) FROM recipient") == 110
        assert await q.one("SELECT last_value > 1000000 FROM recipient_block")


async def test_ids_that_a_process_had_before_the_database_went_back_refuse_no_mail_ACC_05(database: str) -> None:
    """Two processes hold the same block: the database was put back between them."""
    async with running_queue(database) as first:
        one = await first.ingress()
        await one.accept("bob@away.example")
        await first.sql("ALTER SEQUENCE recipient_block RESTART; ALTER SEQUENCE token_block RESTART")
        await first.sql("DELETE FROM recipient")  # so that the second is given the block of the first
        async with running_queue(database) as second:
            two = await second.ingress()
            for _ in range(20):
                await two.accept("bob@away.example")
                await one.accept("carol@away.example")
            assert await second.one("SELECT count(*) FROM recipient") == 40


async def test_mail_whose_ids_are_there_whatever_is_done_is_told_to_come_again_ACC_05(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        blocks, "RAISE_IDS", "SELECT setval('recipient_block', 1000) WHERE %(recipients)s + %(tokens)s > 0"
    )
    monkeypatch.setattr(blocks, "BLOCKS", "SELECT 1000::bigint, nextval('token_block')")
    async with running_queue(database) as q:
        ingress = await q.ingress()
        await ingress.accept("bob@away.example")
        q.queue.group_commit.ids.forget()
        (future,) = ingress.commit(commit_of("bob@away.example"))
        assert (await future).refusal.code == 451


async def test_a_notification_and_a_mailbox_copy_are_of_one_message_though_an_id_came_again_FIN_01(
    database: str,
) -> None:
    async with running_queue(database) as q:
        ingress = await q.ingress()
        await ingress.accept("alice@home.example")
        await q.until("SELECT count(*) = 1 FROM mailbox_message")
        # As after a restore: the recipient of then has the id that is given next.
        await q.sql("UPDATE mailbox_message SET recipient_id = recipient_id + 1")
        await q.sql(
            "INSERT INTO dsn (recipient_id, kind, about_message_id, dsn_message_id)"
            " SELECT recipient_id + 1, 1, gen_random_uuid(), gen_random_uuid() FROM mailbox_message"
        )
        await ingress.accept("alice@home.example")
        await q.until("SELECT count(*) = 2 FROM mailbox_message")
        outbound = await q.outbound()
        await ingress.accept("bob@away.example")
        await eventually(outbound.has(1))
        outbound.finish(*outbound.deliveries, outcome=types_pb2.OUTCOME_FAILED)
        await q.until("SELECT count(*) = 2 FROM dsn WHERE kind = 1")


async def test_results_are_written_though_the_numbers_of_events_come_again_FIN_01(database: str) -> None:
    async with running_queue(database) as q:
        await q.sql("INSERT INTO event_consumer (name, seen) VALUES ('test', now())")
        ingress, outbound = await q.ingress(), await q.outbound()
        await ingress.accept("bob@away.example")
        await eventually(outbound.has(1))
        outbound.finish(*outbound.deliveries)
        await q.until("SELECT count(*) = 1 FROM event")
        await q.sql("ALTER TABLE event ALTER COLUMN id RESTART")
        await ingress.accept("bob@away.example")
        await eventually(outbound.has(2))
        outbound.finish(outbound.deliveries[1])
        await q.until("SELECT count(*) = 2 FROM history")
        await q.until("SELECT count(*) = 2 FROM event")
