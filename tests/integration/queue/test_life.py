"""The queue's statements do what the table of a recipient's life says, from every state (design 4; LSE, FIN, ADM).

Each event is driven from each state. Where the table has no next state for it, nothing may change.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import pytest

from mailrail.core.delivery.life import FINAL, STEPS, Event, State
from mailrail.core.route.site import shard
from mailrail.pb.queue.v1 import admin_pb2, types_pb2
from mailrail_queue.admin.base import AdminContext
from mailrail_queue.admin.changes import RecipientChanges
from mailrail_queue.delivery.endings import end_unleased
from mailrail_queue.delivery.ports import AttemptRecipient
from mailrail_queue.store import corrupt as corrupt_store
from mailrail_queue.store import leases as lease_store
from mailrail_queue.store import results as result_store
from mailrail_queue.store import waiting as waiting_store
from mailrail_queue.store.connection import Connection
from mailrail_queue.store.corrupt import CorruptRecipient
from mailrail_queue.store.fencing import Ownership
from mailrail_queue.store.results import Deferral, Ending
from mailrail_queue.store.waiting import Waiting

from testkit.stored_mail import Rig
from testkit.stored_mail import rig as make_rig

DOMAIN = "there.example"
SHARD, SITE = shard(DOMAIN), f"domain:{DOMAIN}"
OWN = Ownership("me", {SHARD: 1})
TOKEN, OTHER_TOKEN, NEXT_TOKEN = 7, 6, 8
"""Of the lease that stands, of one before it, and of the next."""
OTHER_SITE = "transport:mail/other"
LACKING = types_pb2.LackingTransports(transports=[types_pb2.LackingTransport(extension="8BITMIME")]).SerializeToString()
LAST = types_pb2.Attempt(number=1, outcome=types_pb2.OUTCOME_DEFERRED).SerializeToString()
FINALS = {
    types_pb2.RECIPIENT_STATE_DELIVERED: State.DELIVERED,
    types_pb2.RECIPIENT_STATE_FAILED: State.FAILED,
    types_pb2.RECIPIENT_STATE_CANCELLED: State.CANCELLED,
}


@pytest.fixture
async def rig(database_for: Callable[..., str]) -> AsyncIterator[Rig]:
    async with make_rig(database_for("queue")) as made:
        await made.connection.execute("UPDATE shard SET owner = 'me', epoch = 1")
        yield made


@dataclass
class Life:
    """One recipient, and what can happen to it."""

    rig: Rig
    it: AttemptRecipient

    @property
    def connection(self) -> Connection:
        return self.rig.connection

    async def state(self) -> State:
        """What the database says."""
        query = "SELECT token IS NOT NULL, held_since IS NOT NULL FROM recipient WHERE id = %s"
        for leased, held in await self.rig.rows(query, self.it.id):
            return State.LEASED if leased else State.HELD if held else State.QUEUED
        ((state,),) = await self.rig.rows("SELECT state FROM history WHERE id = %s", self.it.id)
        return FINALS[state]

    async def version(self) -> int:
        """Of its row; 0 when it is final."""
        rows = await self.rig.rows("SELECT version FROM recipient WHERE id = %s", self.it.id)
        return int(rows[0][0]) if rows else 0

    async def due(self) -> list[Waiting]:
        """As its owner would find it."""
        return await waiting_store.fetch_due(self.connection, [(SHARD, SITE, 10)])

    async def finish(self, token: int, state: int, outcome: types_pb2.Outcome.ValueType) -> None:
        ending = Ending(self.it.id, self.it.message_id, token, 0, state, outcome, LAST)
        await result_store.finish(self.connection, [ending])

    async def defer(self, last: bytes | None) -> None:
        deferral = Deferral(self.it.id, self.it.message_id, TOKEN, 0, 0.0, last)
        await result_store.defer(self.connection, [deferral])

    async def next_route(self) -> None:
        other = Deferral(self.it.id, self.it.message_id, TOKEN, 0, 0.0, LAST, site=OTHER_SITE, lacking=LACKING)
        await result_store.defer(self.connection, [other])

    async def administer(self, what: str) -> None:
        context = AdminContext(lambda: self.rig.router, lambda: self.rig.addresses, self.rig.notifier, lambda _: None)
        changes = RecipientChanges(context)
        wanted = admin_pb2.Filter(recipient_ids=[self.it.id])
        if what == "hold":
            await changes.hold(self.connection, wanted, "why")
        elif what == "unhold":
            await changes.unhold(self.connection, wanted)
        elif what == "fail":
            await changes.fail(self.connection, wanted, "why")
        else:
            await changes.drop(self.connection, wanted)

    # --- events ---

    async def lease(self) -> None:
        await lease_store.lease(self.connection, OWN, 120.0, [(row, NEXT_TOKEN, SITE) for row in await self.due()])

    async def back_off(self) -> None:
        counted = [Deferral(r.id, r.message_id, 0, r.version, 0.0, LAST, shard=SHARD) for r in await self.due()]
        await result_store.back_off(self.connection, OWN, counted)

    async def give_up(self) -> None:
        attempt = types_pb2.Attempt(number=1)
        judgement = self.rig.judged(self.it, 550)
        async with self.rig.notifier.transaction(self.connection) as notify:
            await end_unleased(self.connection, notify, [(row, attempt, judgement, True) for row in await self.due()])

    async def expire(self) -> None:
        await self.connection.execute("UPDATE recipient SET lease_until = now() - interval '1 s' WHERE token = 7")
        await lease_store.expire(self.connection, OWN, [SHARD], 0.0, 10)

    async def hold_corrupt(self) -> None:
        token = TOKEN if await self.state() is State.LEASED else 0
        row = CorruptRecipient(self.it.id, self.it.message_id, SHARD, await self.version(), token)
        await corrupt_store.hold_corrupt(self.connection, OWN, [row], "why", undo=False, withdraw=False)

    async def after_hold(self, then: Callable[[], Awaitable[None]]) -> None:
        """With a hold noted during the attempt."""
        if await self.state() is State.LEASED:
            await self.administer("hold")
        await then()

    async def happen(self, event: Event) -> None:
        """Carry an event out by the statements that the queue has for it."""
        delivered, failed = types_pb2.OUTCOME_DELIVERED, types_pb2.OUTCOME_FAILED
        match event:
            case Event.LEASE:
                await self.lease()
            case Event.BACK_OFF:
                await self.back_off()
            case Event.DELIVER_LATE:
                await self.finish(OTHER_TOKEN, result_store.DELIVERED, delivered)
            case Event.DELIVER:
                if await self.state() is State.LEASED:  # else it is late
                    await self.finish(TOKEN, result_store.DELIVERED, delivered)
            case Event.FAIL:
                await self.finish(TOKEN, result_store.FAILED, failed)
            case Event.GIVE_UP:
                await self.give_up()
            case Event.DEFER:
                await self.defer(LAST)
            case Event.DEFER_HELD:
                await self.after_hold(lambda: self.defer(LAST))
            case Event.NEXT_ROUTE:
                await self.next_route()
            case Event.UNDO:
                await self.defer(None)
            case Event.EXPIRE:
                await self.expire()
            case Event.EXPIRE_HELD:
                await self.after_hold(self.expire)
            case Event.LOSE:
                await lease_store.lose(self.connection, [(self.it.id, self.it.message_id, TOKEN)])
            case Event.HOLD_CORRUPT:
                await self.hold_corrupt()
            case Event.HOLD | Event.UNHOLD:
                await self.administer(event.value)
            case Event.ADMIN_FAIL | Event.ADMIN_DROP:
                await self.administer(event.value.removeprefix("admin-"))
            case _:
                raise AssertionError(f"{event} begins a life")


async def born(rig: Rig, event: Event) -> Life:
    """A recipient that was stored so."""
    token = TOKEN if event is Event.ACCEPT_LEASED else 0
    hold = "a rule" if event is Event.ACCEPT_HELD else None
    (it,) = await rig.accept(f"bob@{DOMAIN}", token=token, hold=hold)
    return Life(rig, it)


async def in_state(rig: Rig, state: State) -> Life:
    """A recipient in this state."""
    match state:
        case State.QUEUED:
            return await born(rig, Event.ACCEPT)
        case State.HELD:
            return await born(rig, Event.ACCEPT_HELD)
        case State.LEASED | State.DELIVERED | State.FAILED:
            life = await born(rig, Event.ACCEPT_LEASED)
            if state is not State.LEASED:
                await life.happen(Event.DELIVER if state is State.DELIVERED else Event.FAIL)
            return life
        case State.CANCELLED:
            life = await born(rig, Event.ACCEPT)
            await life.happen(Event.ADMIN_DROP)
            return life


BIRTHS = [event for source, event in STEPS if source is None]


@pytest.mark.parametrize("event", BIRTHS)
async def test_a_recipient_begins_as_the_table_says_SHD_02(rig: Rig, event: Event) -> None:
    assert await (await born(rig, event)).state() is STEPS[None, event]


@pytest.mark.parametrize("state", list(State))
async def test_each_statement_does_what_the_table_says_and_else_nothing_FIN_01_LSE_03_ADM_02(
    rig: Rig, state: State
) -> None:
    for event in Event:
        if event in BIRTHS:
            continue
        life = await in_state(rig, state)
        assert await life.state() is state
        await life.happen(event)
        assert (event, await life.state()) == (event, STEPS.get((state, event), state))
        await rig.connection.execute("DELETE FROM recipient")  # the next one is alone at its site


async def test_nothing_changes_in_history_once_a_recipient_is_final_FIN_01(rig: Rig) -> None:
    everything = "SELECT * FROM history ORDER BY id"
    for state in FINAL:
        life = await in_state(rig, state)
        before = await rig.rows(everything)
        for event in Event:
            if event not in BIRTHS:
                await life.happen(event)
        assert await rig.rows(everything) == before
