"""One recipient, message or text that cannot be written or read costs itself alone (ACC-03, SHD-03)."""

from collections.abc import Sequence
from typing import Any

import grpc
import pytest
from prometheus_client import REGISTRY

from mailrail.core.limits import CHUNK_SIZE
from mailrail.pb.queue.v1 import lease_pb2, types_pb2
from mailrail_queue.delivery.ports import Notice
from mailrail_queue.routing.router import Router
from mailrail_queue.store import sites as site_store
from mailrail_queue.store.connection import Connection
from mailrail_queue.store.faults import HoldAllowance, by_halves

from testkit.conditions import eventually
from testkit.queue import FakeOutbound, RunningQueue, commit_of, message_id, result_of, running_queue

DEFERRED = types_pb2.OUTCOME_DEFERRED
FAILED = types_pb2.OUTCOME_FAILED
DELIVERED = types_pb2.OUTCOME_DELIVERED
MOST = 2**31 - 1
"""The most that a column of counts holds: one more makes the statement fail that counts."""
REFUSES = """CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    IF NEW.address LIKE 'bad%%' THEN RAISE EXCEPTION 'this row is refused' USING ERRCODE = '22000'; END IF; RETURN NEW;
END $$"""
"""A row that Postgres refuses, for whatever reason there may be one day."""


def hold_corrupt() -> float:
    """Recipients that were put on hold by the queue itself so far."""
    return REGISTRY.get_sample_value("mailrail_queue_corrupt_recipients_total") or 0.0


async def due_again(q: RunningQueue) -> None:
    """Make waiting recipients due, as time would."""
    await q.sql("UPDATE recipient SET due = now() WHERE token IS NULL")
    await q.sql("UPDATE site_due SET next_due = now()")


def refuse_connections(delivery: lease_pb2.Delivery) -> lease_pb2.DeliveryResult:
    """As outbound answers when nobody listens there."""
    return result_of(delivery, DEFERRED, code=0, enhanced="4.4.1", text="connection refused", site_failure=True)


async def at_rest(q: RunningQueue, *users: str) -> FakeOutbound:
    """Mail of these users for a dead site that rests by now; all have had one attempt."""
    outbound = await q.outbound()
    outbound.answer = refuse_connections
    ingress = await q.ingress()
    for user in users:
        await ingress.accept(f"{user}@dead.example", mail_from="")
    for n in range(10):
        await ingress.accept(f"other{n}@dead.example")
    await q.until("SELECT count(*) = %s FROM recipient WHERE attempts = 1 AND token IS NULL", 10 + len(users))
    await eventually(lambda: q.queue.dispatcher.sites["domain:dead.example"].in_backoff(q.queue.dispatcher.clock()))
    return outbound


async def test_a_reply_that_no_text_of_postgres_holds_ends_its_recipient_like_any_other_FIN_01(database: str) -> None:
    async with running_queue(database) as q:
        outbound = await q.outbound()
        outbound.answer = lambda delivery: result_of(delivery, FAILED, text="no such\0user")
        await (await q.ingress()).accept("bob@away.example", mail_from="")
        await eventually(lambda: outbound.committed)
        (last,) = (bytes(row[0]) for row in await q.sql("SELECT last_attempt FROM history"))
        assert types_pb2.Attempt.FromString(last).reply.lines == ["no such\0user"]
        assert await q.sql("SELECT note FROM mailbox_message") == [
            (r"could not be delivered to bob@away.example: 550 5.1.1 no such\x00user",)
        ]


async def test_only_the_guilty_of_many_is_left_alone_and_the_rest_is_done_in_few_steps_ACC_03() -> None:
    steps: list[int] = []
    done: list[int] = []
    alone: list[tuple[int, str]] = []

    async def work(rows: Sequence[int]) -> None:
        steps.append(len(rows))
        if 617 in rows:
            raise ValueError("unlucky")
        done.extend(rows)

    async def aside(row: int, error: Exception) -> None:
        alone.append((row, str(error)))

    await by_halves(range(1000), work, aside)
    assert alone == [(617, "unlucky")]
    assert done == [n for n in range(1000) if n != 617]
    assert len(steps) < 25


async def test_trouble_that_is_no_rows_fault_sets_nothing_aside_ACC_03() -> None:
    async def work(rows: Sequence[int]) -> None:
        raise OSError("the network is down")

    async def aside(row: int, error: Exception) -> None:
        raise AssertionError("nobody is guilty")

    with pytest.raises(OSError, match="network"):
        await by_halves([1, 2, 3], work, aside)


async def test_attempts_are_counted_beyond_what_two_octets_hold_LSE_05(database: str) -> None:
    async with running_queue(database) as q:
        ingress = await q.ingress()
        for n in range(5):
            await ingress.accept(f"user{n}@away.example")
        await q.sql("UPDATE recipient SET attempts = 32767, interruptions = 0")
        outbound = await q.outbound()
        outbound.answer = result_of
        await due_again(q)
        await q.until("SELECT count(*) = 5 FROM history WHERE attempts = 32768")


async def test_a_recipient_that_cannot_be_leased_is_held_as_corrupt_and_its_site_goes_on_SHD_03(database: str) -> None:
    before = hold_corrupt()
    async with running_queue(database) as q:
        ingress = await q.ingress()
        for n in range(40):
            await ingress.accept(f"user{n}@away.example")
        await ingress.accept("bad@away.example", "good@away.example")
        await q.sql("UPDATE recipient SET attempts = %s WHERE address = 'bad@away.example'", MOST)
        outbound = await q.outbound()
        outbound.answer = result_of
        await due_again(q)
        await q.until("SELECT count(*) = 41 FROM history")
        assert await q.sql("SELECT address, hold_reason FROM recipient WHERE held_since IS NOT NULL") == [
            ("bad@away.example", "this recipient cannot be stored: integer out of range")
        ]
        assert hold_corrupt() == before + 1


async def test_a_recipient_that_cannot_be_counted_at_a_site_in_backoff_stalls_no_other_SHD_05(database: str) -> None:
    async with running_queue(database) as q:
        outbound = await at_rest(q, "bad")
        await q.sql("UPDATE recipient SET attempts = %s WHERE address LIKE 'bad%%'", MOST)
        await due_again(q)
        outbound.answer = result_of
        await (await q.ingress()).accept("user@well.example")
        await q.until("SELECT count(*) = 10 FROM recipient WHERE attempts = 2 AND token IS NULL AND held_since IS NULL")
        await q.until("SELECT count(*) = 1 FROM recipient WHERE held_since IS NOT NULL AND address LIKE 'bad%%'")
        await q.until("SELECT count(*) = 1 FROM history")


async def test_an_expired_bounce_that_cannot_be_ended_stalls_no_other_site_SHD_05(database: str) -> None:
    async with running_queue(database) as q:
        outbound = await at_rest(q, "bad")
        notifier = q.queue.notifier
        notify = notifier.notify

        async def refuse(connection: Connection, notices: Sequence[Notice]) -> set[int]:
            if any(notice.recipient.address.startswith("bad") for notice in notices):
                raise ValueError("this copy cannot be made")
            return await notify(connection, notices)

        notifier.notify = refuse  # type: ignore[method-assign]
        await q.sql("UPDATE recipient SET queued = now() - interval '30 days' WHERE address LIKE 'bad%%'")
        outbound.answer = result_of
        ingress = await q.ingress()
        for n in range(20):
            await ingress.accept(f"user@d{n}.example")
        await due_again(q)
        await q.until("SELECT count(*) = 20 FROM history")
        await q.until("SELECT count(*) = 10 FROM recipient WHERE attempts = 2 AND held_since IS NULL")
        await q.until("SELECT count(*) = 1 FROM recipient WHERE held_since IS NOT NULL")
        reason = await q.one("SELECT hold_reason FROM recipient WHERE held_since IS NOT NULL")
        assert reason == "this recipient cannot be stored: ValueError: this copy cannot be made"


async def test_a_site_at_which_all_work_fails_costs_itself_alone_SHD_03(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_queue(database) as q:
        ingress = await q.ingress()
        for n in range(20):
            await ingress.accept(f"user@d{n}.example")
        settle = q.queue.owner.due_sites.settle

        async def fails(drained: Sequence[tuple[int, str]]) -> None:
            if any(key == "domain:d7.example" for _, key in drained):
                raise ValueError("a page of this index is corrupt")
            await settle(drained)

        monkeypatch.setattr(q.queue.owner.due_sites, "settle", fails)
        outbound = await q.outbound()
        outbound.answer = result_of
        await due_again(q)
        await q.until("SELECT count(*) >= 19 FROM history")
        assert await q.one("SELECT count(*) FROM recipient WHERE held_since IS NOT NULL") == 0


async def test_a_fault_of_ours_that_strikes_all_mail_does_not_put_it_all_on_hold_SHD_03(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_queue(database) as q:
        ingress = await q.ingress()
        for n in range(30):
            await ingress.accept(f"user{n}@away.example")
        monkeypatch.setattr(q.queue.owner.corrupt, "allowance", HoldAllowance(5))

        def fails(*args: object) -> None:
            raise ValueError("this release has a fault")

        with monkeypatch.context() as release:
            release.setattr(Router, "plan", fails)
            outbound = await q.outbound()
            outbound.answer = result_of
            await due_again(q)
            await q.until("SELECT count(*) = 5 FROM recipient WHERE held_since IS NOT NULL")
            await eventually(lambda: "domain:away.example" in q.queue.owner.paused)
            assert await q.one("SELECT count(*) FROM recipient WHERE held_since IS NULL AND token IS NULL") == 25
        q.queue.owner.paused.clear()  # as time would
        await due_again(q)
        await q.until("SELECT count(*) = 25 FROM history")


def test_an_allowance_comes_back_with_time() -> None:
    allowance = HoldAllowance(2, 10.0)
    assert [allowance.take(now) for now in (0.0, 1.0, 2.0, 9.9)] == [True, True, False, False]
    assert [allowance.take(now) for now in (10.0, 10.5, 11.0)] == [True, False, True]


async def test_a_delivery_of_which_the_end_cannot_be_written_is_held_and_not_sent_again_FIN_01(database: str) -> None:
    before = hold_corrupt()
    async with running_queue(database) as q:
        await q.sql(REFUSES)
        await q.sql("CREATE TRIGGER refuse BEFORE INSERT ON history FOR EACH ROW EXECUTE FUNCTION refuse()")
        outbound = await q.outbound()
        await (await q.ingress()).accept("good@away.example", "bad@away.example", "fine@away.example")
        await (await q.ingress()).accept("user@other.example")
        await eventually(lambda: len(outbound.deliveries) == 2)
        outbound.finish(*outbound.deliveries, outcome=DELIVERED)
        await eventually(lambda: len(outbound.committed) == 2)
        assert await q.one("SELECT count(*) FROM history") == 3
        assert await q.sql("SELECT address, token, attempts, hold_reason FROM recipient") == [
            (
                "bad@away.example",
                None,
                1,
                "the attempt ended (delivered), but its result cannot be stored: this row is refused",
            )
        ]
        assert hold_corrupt() == before + 1


async def test_a_lease_that_cannot_be_taken_back_is_held_as_corrupt_and_all_others_are_due_again_LSE_04(
    database: str,
) -> None:
    async with running_queue(database) as q:
        outbound = await q.outbound()
        ingress = await q.ingress()
        for n in range(20):
            await ingress.accept(f"user@d{n}.example")
        await eventually(lambda: len(outbound.deliveries) == 20)
        await outbound.close()
        await q.sql("UPDATE recipient SET interruptions = %s WHERE address = 'user@d3.example'", MOST)
        await q.sql("UPDATE recipient SET lease_until = now() - interval '1 second'")
        await q.until("SELECT count(*) = 19 FROM recipient WHERE interruptions = 1 AND token IS NULL")
        await q.until("SELECT count(*) = 1 FROM recipient WHERE held_since IS NOT NULL AND token IS NULL")
        assert q.queue.failed() is None


@pytest.mark.parametrize(
    ("step", "part", "method"),
    [
        ("lease_sweep", "owner._expiry", "sweep"),
        ("heartbeat", "shards", "beat"),
        ("revisions", "owner.revisions", "reconsider"),
        ("upkeep", "upkeep", "sweep_content"),
        ("backlog", "counting", "measure"),
        ("leases", "lease_writer", "_write"),
    ],
)
async def test_no_step_that_fails_ends_the_process_SHD_01(
    database: str, monkeypatch: pytest.MonkeyPatch, step: str, part: str, method: str
) -> None:
    def count() -> float:
        return REGISTRY.get_sample_value("mailrail_queue_step_failures_total", {"step": step}) or 0.0

    before = count()
    async with running_queue(database, count_seconds=0.1) as q:
        found: object = q.queue
        for name in part.split("."):
            found = getattr(found, name)

        async def fails(*args: object) -> None:
            raise KeyError("nobody foresaw this")

        with monkeypatch.context() as patched:
            patched.setattr(found, method, fails)
            q.queue.worklist.revise([])
            q.queue.lease_writer._wake.set()
            await eventually(lambda: count() > before)
        assert q.queue.failed() is None
        await q.until("SELECT count(*) = 256 FROM shard WHERE owner IS NOT NULL")


async def test_mail_of_which_the_content_is_gone_is_held_as_corrupt_and_stalls_no_other_FIN_02(database: str) -> None:
    before = hold_corrupt()
    async with running_queue(database) as q:
        ingress = await q.ingress()
        lost = await ingress.accept("bad@away.example")
        await ingress.accept("good@away.example")
        await q.sql("DELETE FROM message WHERE id = %s", lost.hex())
        outbound = await q.outbound()
        outbound.answer = result_of
        await due_again(q)
        await q.until("SELECT count(*) = 1 FROM history")
        await q.until(
            "SELECT count(*) = 1 FROM recipient WHERE held_since IS NOT NULL AND token IS NULL AND attempts = 0"
        )
        assert await q.one("SELECT hold_reason FROM recipient") == (
            "the stored message is missing: there is nothing to send"
        )
        assert hold_corrupt() == before + 1


async def test_a_request_that_cannot_be_granted_is_withdrawn_and_said_so_ADM_02(database: str) -> None:
    async with running_queue(database) as q:
        await q.sql(REFUSES)
        await q.sql("CREATE TRIGGER refuse BEFORE INSERT ON history FOR EACH ROW EXECUTE FUNCTION refuse()")
        ingress = await q.ingress()
        for name in ("bad", "good", "fine"):
            await ingress.accept(f"{name}@away.example")
        await q.sql("UPDATE recipient SET request = 1")
        await q.until("SELECT count(*) = 2 FROM history")
        await q.until("SELECT count(*) = 1 FROM recipient WHERE held_since IS NOT NULL AND request = 0")
        reason = await q.one("SELECT hold_reason FROM recipient")
        assert reason.startswith("the requested change is withdrawn; ")


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ({"submitted": True, "mail_from": "alice@home.example"}, "Inbox"),
        ({"mail_from": "stranger@there.example"}, "Postmaster"),
        ({"mail_from": ""}, "Postmaster"),
    ],
)
async def test_mail_of_which_the_content_is_gone_is_told_of_when_it_ends_DSN_07(
    database: str, how: dict[str, Any], told: str
) -> None:
    async with running_queue(database) as q:
        number = await (await q.ingress()).accept("bob@away.example", **how)
        await q.sql("DELETE FROM message WHERE id = %s", number.hex())
        await q.sql("UPDATE recipient SET request = 1")
        await q.until("SELECT count(*) = 1 FROM history WHERE message_id = %s", number.hex())
        await q.until("SELECT count(*) = 1 FROM mailbox_message")
        ((path, content),) = await q.sql(
            "SELECT b.path, m.body FROM mailbox_message e JOIN mailbox b ON b.id = e.mailbox_id"
            " JOIN message m ON m.id = e.message_id"
        )
        assert path == told
        assert b"bob@away.example" in bytes(content)
        assert b"the stored message is missing" in b" ".join(bytes(content).split())


async def large_body_without_its_second_part(q: RunningQueue) -> tuple[bytes, FakeOutbound]:
    """A message of three chunks, handed to outbound, of which the second is gone from the database."""
    outbound = await q.outbound()
    ingress = await q.ingress()
    number = message_id()
    ingress.chunk(number, b"x" * (2 * CHUNK_SIZE + 5))
    (future,) = ingress.commit(commit_of("bob@away.example", body=None), ids=[number])
    assert (await future).accepted
    await eventually(lambda: outbound.deliveries)
    await q.sql("DELETE FROM chunk WHERE number = 1")
    return number, outbound


async def test_content_of_which_a_part_is_gone_is_an_error_and_its_mail_is_held_LSE_06(database: str) -> None:
    before = hold_corrupt()
    async with running_queue(database) as q:
        number, outbound = await large_body_without_its_second_part(q)
        (delivery,) = outbound.deliveries
        parts: list[int] = []

        async def fetch() -> None:
            request = lease_pb2.FetchContentRequest(token=delivery.token, message_id=number)
            async for part in outbound.stub.FetchContent(request):
                parts.append(len(part.data))

        with pytest.raises(grpc.aio.AioRpcError) as lost:
            await fetch()
        assert (lost.value.code(), parts) == (grpc.StatusCode.DATA_LOSS, [CHUNK_SIZE])
        outbound.finish(delivery, outcome=DEFERRED)
        await q.until("SELECT count(*) = 1 FROM recipient WHERE held_since IS NOT NULL AND token IS NULL")
        assert await q.one("SELECT hold_reason FROM recipient") == (
            "a part of the stored message is missing: it cannot be sent"
        )
        assert hold_corrupt() == before + 1


async def test_a_queue_is_ready_once_it_has_looked_for_due_work_and_stays_so_when_that_fails_later(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = site_store.due_sites

    async def fails(*_: object) -> None:
        raise TypeError("a bytes-like object is required, not 'str'")

    def failures() -> float:
        return REGISTRY.get_sample_value("mailrail_queue_step_failures_total", {"step": "due_work"}) or 0.0

    before = failures()
    monkeypatch.setattr(site_store, "due_sites", fails)
    async with running_queue(database) as q:
        await eventually(lambda: failures() >= before + 3)
        assert q.queue.ready
        assert not q.queue.serving, "nothing shows that it can work on this database"
        monkeypatch.setattr(site_store, "due_sites", look)
        await eventually(lambda: q.queue.serving)
        before = failures()
        monkeypatch.setattr(site_store, "due_sites", fails)
        await eventually(lambda: failures() >= before + 3)
        assert q.queue.serving, "fresh mail leaves all the same"
        outbound, ingress = await q.outbound(), await q.ingress()
        await ingress.accept("bob@away.example")
        await eventually(outbound.has(1))
