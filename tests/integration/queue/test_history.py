"""The database went back, and what is left of before ends nothing that came after (HIS-01 to HIS-04)."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable

import pytest

from mailrail.core.ids import history_of, pack_token, unpack_token
from mailrail.kit import migrations
from mailrail.pb.queue.v1 import types_pb2

from testkit.conditions import eventually
from testkit.failover import single
from testkit.queue import RELAY, RunningQueue, a_revision, relay, rule_to, running_queue

ANOTHER_SERVER = "UPDATE data_history SET timeline = timeline + 1000"
OTHER_DATA = "UPDATE data_witness SET last_written = last_written # 1"
OLDER_DATA = "DELETE FROM data_witness"
MADE_ANEW = """ALTER TABLE data_history RENAME TO before;
    CREATE TABLE data_history (LIKE before INCLUDING ALL);
    INSERT INTO data_history SELECT * FROM before;
    DROP TABLE before"""
BEHIND = "SELECT setval('token_block', 1000)"


async def another_history(q: RunningQueue, before: int) -> int:
    """Wait until the process is in another one; its number."""
    await eventually(lambda: q.queue.history.number != before, what="another history")
    return q.queue.history.number


@pytest.mark.parametrize("how", [ANOTHER_SERVER, OTHER_DATA, OLDER_DATA, MADE_ANEW, BEHIND])
async def test_a_database_that_went_back_is_noticed_by_the_next_heartbeat_HIS_01(database: str, how: str) -> None:
    async with running_queue(database) as q:
        await (await q.ingress()).accept("bob@away.example")
        q.queue.group_commit.ids.forget()
        await (await q.ingress()).accept("bob@away.example")  # a second block: the first is the least there is
        before = q.queue.history.number
        assert await q.one("SELECT number FROM data_history") == before
        await q.sql(how)
        number = await another_history(q, before)
        await q.until("SELECT number = %s AND predecessor = %s FROM data_history", number, before)
        assert await q.one("SELECT last_value > 1000000 FROM recipient_block")


async def test_a_connection_that_opens_looks_before_its_first_statement_HIS_01(database: str) -> None:
    async with running_queue(database, heartbeat_seconds=3600.0) as q:
        before = q.queue.history.number
        await q.sql(OTHER_DATA)
        lane = q.queue.database.lane("test")
        await lane.run("SELECT 1")
        assert q.queue.history.number != before


async def test_while_the_data_go_on_the_history_does_whatever_connections_do_HIS_01(database: str) -> None:
    async with running_queue(database, heartbeat_seconds=0.02) as q:
        before = q.queue.history.number
        for _ in range(20):
            await q.sql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE %s"
                " AND datname = current_database()",
                f"mailrail queue {q.queue.settings.node_id}%",
            )
            await asyncio.sleep(0.02)
            await asyncio.gather(*(q.queue.database.lane(f"test {n}").run("SELECT 1") for n in range(3)))
        await eventually(lambda: q.queue.shards.healthy)
        assert q.queue.history.number == before == await q.one("SELECT number FROM data_history")


async def test_processes_that_notice_at_once_agree_on_one_number_HIS_01(database: str) -> None:
    async with running_queue(database) as one, running_queue(database) as two:
        await eventually(lambda: two.queue.shards.healthy)
        before = one.queue.history.number
        assert two.queue.history.number == before
        await one.sql(f"{ANOTHER_SERVER}; {OTHER_DATA}")
        number = await another_history(one, before)
        assert await another_history(two, before) == number == await one.one("SELECT number FROM data_history")
        await one.sql("SELECT pg_sleep(1)")  # several heartbeats
        assert number == one.queue.history.number == two.queue.history.number


async def test_a_process_that_stops_takes_its_word_along_and_others_go_on_HIS_01(database: str) -> None:
    async with running_queue(database) as one:
        async with running_queue(database):
            pass
        assert await one.one("SELECT count(*) FROM data_witness") == 1
        before = one.queue.history.number
    async with running_queue(database) as one:
        assert one.queue.history.number == before


async def test_tokens_hold_the_number_of_their_history_HIS_02(database: str) -> None:
    async with running_queue(database) as q:
        ingress, outbound = await q.ingress(), await q.outbound()
        await ingress.accept("bob@away.example")
        await eventually(outbound.has(1))
        before = q.queue.history.number
        assert outbound.history == before == history_of(outbound.deliveries[0].token)
        await q.sql(ANOTHER_SERVER)
        number = await another_history(q, before)
        await eventually(lambda: outbound.history == number)
        await ingress.accept("carol@away.example")
        await eventually(outbound.has(2))
        assert history_of(outbound.deliveries[1].token) == number
        assert await q.one("SELECT max(id) - min(id) >= 1000000 FROM recipient")


async def test_a_new_history_closes_every_delivery_and_frees_its_place_in_all_limits_HIS_03(database: str) -> None:
    revision = a_revision(transports=[relay(connections=4)], rules=[rule_to(RELAY)])
    async with running_queue(database, revision) as q:
        outbound, ingress = await q.outbound(), await q.ingress()
        for number in range(10):
            await ingress.accept(f"user{number}@d.example")
        await eventually(outbound.has(4))
        dispatcher = q.queue.dispatcher
        assert dispatcher.pending_deliveries == 6
        old = {d.token for d in outbound.deliveries}
        before = q.queue.history.number
        await q.sql(ANOTHER_SERVER)
        number = await another_history(q, before)
        await eventually(lambda: old <= outbound.cancelled, what="what outbound works on is broken off")
        # What was not handed on is due again at once, and has all places to itself.
        await eventually(outbound.has(8))
        assert {history_of(d.token) for d in outbound.deliveries[4:]} == {number}
        (transport,) = dispatcher.transports.values()
        (site,) = [s for s in dispatcher.sites.values() if s.transport is transport]
        assert transport.in_flight == site.window.in_flight == 4
        outbound.finish(*outbound.deliveries[:4], outcome=types_pb2.OUTCOME_CANCELLED)
        outbound.answer = lambda delivery: None
        outbound.finish(*outbound.deliveries[4:])
        await eventually(outbound.has(10))
        outbound.finish(*outbound.deliveries[8:])
        await eventually(lambda: len(outbound.committed) == 10)
        await eventually(lambda: not dispatcher.deliveries)
        assert (
            transport.in_flight
            == site.window.in_flight
            == dispatcher.pending_bytes
            == dispatcher.pending_deliveries
            == 0
        )
        assert await q.one("SELECT count(*) FROM history") == 6


async def test_of_another_history_only_what_was_delivered_counts_and_for_the_very_recipient_alone_HIS_03(
    database: str,
) -> None:
    async with running_queue(database) as q:
        outbound, ingress = await q.outbound(), await q.ingress()
        for name in ("delivered", "failed", "deferred", "another"):
            await ingress.accept(f"{name}@{name}.example")
        await eventually(outbound.has(4))
        by_name = {d.recipients[0].address.partition("@")[0]: d for d in outbound.deliveries}
        before = q.queue.history.number
        await q.sql(ANOTHER_SERVER)
        await another_history(q, before)
        outbound.finish(by_name["delivered"])
        outbound.finish(by_name["failed"], outcome=types_pb2.OUTCOME_FAILED)
        outbound.finish(by_name["deferred"], outcome=types_pb2.OUTCOME_DEFERRED)
        by_name["another"].message_id = bytes(16)
        outbound.finish(by_name["another"])
        await eventually(lambda: len(outbound.committed) == 4, what="outbound may forget them all")
        assert await q.sql("SELECT address FROM history") == [("delivered@delivered.example",)]
        assert await q.one("SELECT count(*) FROM recipient WHERE token IS NOT NULL") == 3  # until their leases run out
        assert await q.one("SELECT count(*) FROM dsn") == 0
        assert await q.one("SELECT count(*) FROM attempt") == 0


async def test_outbound_that_works_on_what_was_never_given_is_proof_that_the_database_went_back_HIS_01(
    database: str,
) -> None:
    async with running_queue(database) as q:
        before = q.queue.history.number
        token = pack_token(before, 40_000_000)
        outbound = await q.outbound(in_progress=[(token, [40_000_000])])
        await another_history(q, before)
        await eventually(lambda: token in outbound.cancelled)
        counters = await q.sql("SELECT (SELECT last_value FROM recipient_block), (SELECT last_value FROM token_block)")
        assert all(stands > 41_000_000 for stands in counters[0])


async def test_results_of_what_was_never_given_are_proof_that_the_database_went_back_HIS_01(database: str) -> None:
    async with running_queue(database) as q:
        outbound, ingress = await q.outbound(), await q.ingress()
        await ingress.accept("bob@away.example")
        await eventually(outbound.has(1))
        before = q.queue.history.number
        (delivery,) = outbound.deliveries
        delivery.token = pack_token(before, 40_000_000)
        delivery.message_id = bytes(16)
        outbound.finish(delivery)
        await another_history(q, before)
        assert await q.one("SELECT count(*) FROM history") == 0


async def test_what_outbound_works_on_rightly_is_adopted_as_ever_LSE_02(database: str) -> None:
    async with running_queue(database) as q:
        outbound, ingress = await q.outbound(), await q.ingress()
        await ingress.accept("bob@away.example")
        await eventually(outbound.has(1))
        (delivery,) = outbound.deliveries
    async with running_queue(database) as q:
        again = await q.outbound(in_progress=[(delivery.token, [delivery.recipients[0].id])])
        assert delivery.token in q.queue.dispatcher.deliveries
        assert not again.cancelled
        again.finish(delivery)
        await q.until("SELECT count(*) = 1 FROM history")


async def test_a_delivery_whose_token_another_has_is_given_back_and_overwrites_nothing_HIS_03(database: str) -> None:
    async with running_queue(database) as q:
        ingress = await q.ingress()
        outbound = await q.outbound(credit=1)
        await ingress.accept("bob@away.example")
        await eventually(outbound.has(1))
        ids = q.queue.group_commit.ids
        counter = unpack_token(outbound.deliveries[0].token).counter
        ids._token = itertools.chain([counter], ids._token)
        ids._left_tokens += 1
        await ingress.accept("carol@away.example")
        first = q.queue.dispatcher.deliveries[outbound.deliveries[0].token]
        assert first.recipients[0].address == "bob@away.example"
        await q.until(
            "SELECT token IS DISTINCT FROM %s FROM recipient WHERE address = 'carol@away.example'", first.token
        )
        outbound.send(credit=3)  # one delivery is out, to a site that never answered: half of it is for such
        await eventually(outbound.has(2))
        assert outbound.deliveries[1].recipients[0].address == "carol@away.example"


async def test_it_is_told_how_much_of_what_memory_knew_is_gone_HIS_04(
    database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async with running_queue(database) as q:
        ingress, outbound = await q.ingress(), await q.outbound()
        for number in range(3):
            await ingress.accept(f"user{number}@d{number}.example")
        await eventually(outbound.has(3))
        await q.sql("DELETE FROM recipient WHERE address = 'user1@d1.example'")
        await q.sql(ANOTHER_SERVER)
        await eventually(lambda: not q.queue.lease_writer._known and q.queue.leases._history.number)
        said: list[str] = []

        def told() -> bool:
            said.append(capsys.readouterr().out)
            return "mail lost: recipients" in "".join(said)

        await eventually(told)
        text = "".join(said)
        assert "recipients=1" in text
        assert "deliveries=3" in text
        assert "database was set back" in text


async def test_a_data_folder_that_is_put_back_is_noticed_by_the_process_that_lives_through_it_HIS_01() -> None:
    """The server has the same timeline and the same identity as before."""
    with single() as server:
        migrations.migrate(server.url, migrations.load_all(("queue",)))
        async with running_queue(server.url) as q:
            outbound, ingress = await q.outbound(), await q.ingress()
            await ingress.accept("before@d.example")
            await eventually(outbound.has(1))
            copy = await asyncio.to_thread(server.copy)
            await eventually(lambda: q.queue.shards.healthy)
            word = await q.one("SELECT last_written FROM data_witness")
            await q.until("SELECT last_written <> %s FROM data_witness", word)
            before = q.queue.history.number
            await ingress.accept("lost@d.example")
            await asyncio.to_thread(server.put_back, copy)
            await another_history(q, before)
            await eventually(lambda: outbound.deliveries[0].token in outbound.cancelled)
            condition: Callable[[], bool | Awaitable[bool | None] | None] = lambda: q.queue.shards.healthy  # noqa: E731
            await eventually(condition)
            await ingress.accept("after@d.example")
            assert await q.one("SELECT max(id) > 1000000 FROM recipient")
