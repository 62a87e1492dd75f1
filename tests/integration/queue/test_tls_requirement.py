"""What a message demands of TLS, from the commit to its end: kept, changed by administrators, inherited (RFC 8689)."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import grpc
import pytest

from mailrail.kit import postgres
from mailrail.kit.postgres import Login
from mailrail.pb.queue.v1 import admin_pb2, admin_pb2_grpc, types_pb2
from mailrail_queue.admin import changes as admin_changes
from mailrail_queue.admin.administration import Administration
from mailrail_queue.admin.base import CALLER, AdminContext
from mailrail_queue.admin.changes import grouped
from mailrail_queue.rpc.admin import QUEUE_ADMIN, administration_services
from mailrail_queue.settings import QueueSettings
from mailrail_queue.store import results as result_store
from mailrail_queue.store import timeline
from mailrail_queue.store.connection import Database
from mailrail_queue.store.results import Ending
from mailrail_queue.upkeep.sweeping import Upkeep

from testkit.conditions import eventually
from testkit.queue import RunningQueue, running_queue, sql
from testkit.stored_mail import Rig
from testkit.stored_mail import rig as make_rig

DEFAULT, REQUIRED, NO = (
    types_pb2.TLS_REQUIREMENT_UNSPECIFIED,
    types_pb2.TLS_REQUIREMENT_REQUIRED,
    types_pb2.TLS_REQUIREMENT_NO,
)
Entry = tuple[str, int, int, str]


@dataclass
class Tls:
    """An administrator on a rig."""

    rig: Rig
    do: Administration

    async def set(self, requirement: int, reason: str = "", **chosen: Any) -> set[int]:
        """The ids that the call says it changed."""
        result = await self.do.changes.set_tls(self.rig.connection, admin_pb2.Filter(**chosen), requirement, reason)
        assert len(result.listed) == result.count.recipients, "none is counted twice"
        return {change.recipient_id for change in result.listed}

    async def stored(self) -> dict[int, int]:
        """What each live recipient demands now."""
        return dict(await self.rig.rows("SELECT id, tls_requirement FROM recipient ORDER BY id"))

    async def shown(self, message_id: bytes) -> dict[int, list[Entry]]:
        """Each recipient's changes as people are told them: who, from, to, why."""
        found = await self.do.listing.message(self.rig.connection, message_id)
        return {
            each.recipient.id: [
                (e.actor, getattr(e.tls_set, "from"), e.tls_set.to, e.tls_set.reason) for e in each.entries
            ]
            for each in found.recipients
        }

    async def finish(self, *ids: int, token: int = 0) -> None:
        rows = await self.rig.rows("SELECT id, message_id, version FROM recipient WHERE id = ANY(%s)", list(ids))
        endings = [
            Ending(i, m.bytes, token, v, result_store.DELIVERED, types_pb2.OUTCOME_RELAYED, None) for i, m, v in rows
        ]
        assert await result_store.finish(self.rig.connection, endings) == set(ids)


@pytest.fixture
async def tls(database_for: Callable[..., str]) -> AsyncIterator[Tls]:
    async with make_rig(database_for("queue")) as rig:
        CALLER.set("cli")
        context = AdminContext(lambda: rig.router, lambda: rig.addresses, rig.notifier, rig.woken.append)
        yield Tls(rig, Administration(context))


async def test_of_a_message_all_recipients_are_changed_whichever_was_named_and_the_timeline_says_so_ADM_05(
    tls: Tls,
) -> None:
    bob, carl = await tls.rig.accept("bob@there.example", "carl@relayed.example")
    (dora,) = await tls.rig.accept("dora@there.example")
    assert await tls.set(NO, "their certificate expired", recipient_ids=[bob.id]) == {bob.id, carl.id}
    assert await tls.stored() == {bob.id: NO, carl.id: NO, dora.id: DEFAULT}
    told: Entry = ("cli", DEFAULT, NO, "their certificate expired")
    assert await tls.shown(bob.message_id) == {bob.id: [told], carl.id: [told]}
    assert await tls.shown(dora.message_id) == {dora.id: []}
    assert await tls.set(REQUIRED, to="carl@") == {bob.id, carl.id}
    assert (await tls.shown(bob.message_id))[bob.id] == [told, ("cli", NO, REQUIRED, "")]


async def test_the_entry_has_its_time(tls: Tls) -> None:
    (bob,) = await tls.rig.accept("bob@there.example")
    (before,), *_ = await tls.rig.rows("SELECT now()")
    await tls.set(NO, recipient_ids=[bob.id])
    found = await tls.do.listing.message(tls.rig.connection, bob.message_id)
    (entry,) = found.recipients[0].entries
    assert abs(entry.at.ToDatetime().timestamp() - before.replace(tzinfo=None).timestamp()) < 60


async def test_a_call_that_is_repeated_answers_alike_and_tells_it_once(tls: Tls) -> None:
    (bob,) = await tls.rig.accept("bob@there.example")
    for _ in range(3):
        assert await tls.set(NO, message_ids=[bob.message_id]) == {bob.id}
    assert len((await tls.shown(bob.message_id))[bob.id]) == 1


async def test_a_change_that_fails_leaves_neither_the_change_nor_its_entry(tls: Tls) -> None:
    (bob,) = await tls.rig.accept("bob@there.example")
    await tls.rig.connection.execute("ALTER TABLE timeline ADD CONSTRAINT refused CHECK (false) NOT VALID")
    with pytest.raises(Exception, match="refused"):
        await tls.set(NO, recipient_ids=[bob.id])
    assert await tls.stored() == {bob.id: DEFAULT}


async def test_a_large_message_and_many_small_ones_are_changed_once_each_by_small_transactions(
    tls: Tls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admin_changes, "BATCH", 4)
    monkeypatch.setattr(admin_changes, "_SET_TLS", admin_changes._SET_TLS.replace("LIMIT 500", "LIMIT 4"))
    sizes = (1, 1, 13, 4, 2, 1, 3)
    made = [await tls.rig.accept(*(f"r{m}.{n}@there.example" for n in range(k))) for m, k in enumerate(sizes)]
    ids = {recipient.id for message in made for recipient in message}
    assert await tls.set(NO, all=True) == ids
    assert set((await tls.stored()).values()) == {NO}
    assert await tls.rig.rows("SELECT count(*), count(DISTINCT recipient_id) FROM timeline") == [(len(ids), len(ids))]
    assert await tls.rig.rows("SELECT DISTINCT version FROM recipient") == [(2,)]
    # One recipient of each message is found, and all of them are changed.
    assert await tls.set(DEFAULT, to=".0@") == ids
    assert set((await tls.stored()).values()) == {DEFAULT}


def test_messages_are_changed_together_up_to_so_many_recipients_and_a_larger_one_alone() -> None:
    a, b, c, d, e = (UUID(int=number) for number in range(5))
    assert grouped([(a, 1), (b, 2), (c, 9), (d, 4), (e, 1)], 4) == [[a, b], [c], [d], [e]]
    assert grouped([], 4) == []


async def test_history_keeps_the_timeline_of_each_recipient_that_is_final_ADM_05(tls: Tls) -> None:
    bob, carl = await tls.rig.accept("bob@there.example", "carl@there.example")
    (plain,) = await tls.rig.accept("plain@there.example")
    await tls.set(NO, "why", recipient_ids=[bob.id])
    await tls.finish(bob.id)
    await tls.finish(plain.id)
    told: Entry = ("cli", DEFAULT, NO, "why")
    assert await tls.shown(bob.message_id) == {bob.id: [told], carl.id: [told]}
    assert await tls.rig.rows("SELECT recipient_id FROM timeline") == [(carl.id,)]
    assert await tls.rig.rows("SELECT id, tls_requirement, timeline IS NULL FROM history ORDER BY id") == [
        (bob.id, NO, False),
        (plain.id, DEFAULT, True),
    ]


async def sweep(tls: Tls) -> None:
    database = Database(Login.of(tls.rig.url), "upkeep test")
    await Upkeep(QueueSettings(database_url=tls.rig.url), database).sweep()
    await database.close()


async def test_what_is_told_while_a_recipient_becomes_final_is_shown_at_once_and_comes_into_its_history_ADM_05(
    tls: Tls,
) -> None:
    url = tls.rig.url
    bob, carl = await tls.rig.accept("bob@there.example", "carl@there.example", token=7)
    database = Database(Login.of(url), "another")
    async with database.lane("administration").use() as connection, connection.transaction():
        await tls.do.changes.set_tls(connection, admin_pb2.Filter(recipient_ids=[bob.id]), NO, "late")
        ending = asyncio.create_task(tls.finish(bob.id, token=7))

        async def it_waits() -> bool:
            return bool((await sql(url, "SELECT count(*) FROM pg_locks WHERE NOT granted"))[0][0])

        condition: Callable[[], bool | Awaitable[bool | None] | None] = it_waits
        await eventually(condition)
    await ending
    await database.close()
    told: Entry = ("cli", DEFAULT, NO, "late")
    assert await tls.rig.rows("SELECT timeline IS NULL FROM history") == [(True,)], "its statement began before"
    assert await tls.shown(bob.message_id) == {bob.id: [told], carl.id: [told]}
    await sweep(tls)
    assert await tls.rig.rows("SELECT recipient_id FROM timeline") == [(carl.id,)]
    assert await tls.shown(bob.message_id) == {bob.id: [told], carl.id: [told]}


async def test_the_sweeper_goes_through_all_of_the_timeline_and_adds_to_what_history_has_ADM_05(
    tls: Tls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mailrail_queue.upkeep.sweeping._ATTEMPTS_STEP", 2)
    made = [recipient for _ in range(5) for recipient in await tls.rig.accept("bob@there.example")]
    await tls.set(NO, "first", all=True)
    for each in made[1:]:
        await tls.finish(each.id)
        late = types_pb2.TimelineEntry(actor="cli", tls_set=types_pb2.TlsSet(reason="late")).SerializeToString()
        await tls.rig.connection.execute(
            "INSERT INTO timeline (recipient_id, message_id, data) VALUES (%s, %s, %s)",
            (each.id, UUID(bytes=each.message_id), late),
        )
    database = Database(Login.of(tls.rig.url), "upkeep test")
    upkeep = Upkeep(QueueSettings(database_url=tls.rig.url), database)
    for _ in range(4):
        await upkeep.sweep(everything=False)
    await database.close()
    assert await tls.rig.rows("SELECT recipient_id FROM timeline") == [(made[0].id,)]
    assert await tls.rig.rows("SELECT DISTINCT array_length(timeline, 1) FROM history") == [(2,)]
    (shown,) = (await tls.shown(made[1].message_id)).values()
    assert [why for *_, why in shown] == ["first", "late"]


async def test_of_a_recipient_that_is_changed_without_end_the_first_and_the_newest_entries_stay_ADM_05(
    tls: Tls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timeline, "MOST_ENTRIES", 4)
    (bob,) = await tls.rig.accept("bob@there.example")
    for number in range(7):
        await tls.set(REQUIRED if number % 2 else NO, str(number), recipient_ids=[bob.id])
    assert [why for *_, why in (await tls.shown(bob.message_id))[bob.id]] == ["0", "1", "5", "6"]


async def test_a_reason_and_a_name_are_bounded(tls: Tls) -> None:
    CALLER.set("x" * 5000)
    (bob,) = await tls.rig.accept("bob@there.example")
    await tls.set(NO, "because \0 " + "y" * 5000, recipient_ids=[bob.id])
    ((data,),) = await tls.rig.rows("SELECT data FROM timeline")
    assert len(data) < 1500


async def test_an_attempt_under_way_goes_on_as_it_began_and_the_next_one_is_under_the_new_word_ADM_02_ADM_05(
    database: str,
) -> None:
    async with running_queue(database) as q:
        ingress, outbound = await q.ingress(), await q.outbound()
        await ingress.accept("user@d.example")
        await eventually(outbound.has(1))
        async with administrator(q) as admin:
            request = admin_pb2.SetTlsRequirementRequest(
                filter=admin_pb2.Filter(to="user@"), tls_requirement=REQUIRED, reason="asked by the sender"
            )
            answer = await admin.SetTlsRequirement(request)
        assert [change.state for change in answer.changes] == [admin_pb2.CHANGE_STATE_PENDING]
        assert outbound.cancelled == set()
        first = outbound.deliveries[0]
        assert first.envelope.tls_requirement == DEFAULT
        outbound.finish(first, outcome=types_pb2.OUTCOME_DEFERRED)
        await q.until("SELECT token IS NULL FROM recipient")
        await q.sql("UPDATE recipient SET due = now()")
        await eventually(outbound.has(2))
        assert outbound.deliveries[1].envelope.tls_requirement == REQUIRED


@asynccontextmanager
async def administrator(q: RunningQueue) -> AsyncIterator["admin_pb2_grpc.QueueAdminServiceAsyncStub"]:
    """What the command line asks, in front of a queue."""
    server = grpc.aio.server()
    async with postgres.pool(Login.of(q.url), "queue", size=2) as pool:
        servicer, add = administration_services(q.queue, pool)[QUEUE_ADMIN]
        add(servicer, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield admin_pb2_grpc.QueueAdminServiceStub(channel)
        await server.stop(0)
