"""Batches lock recipients in the order of their ids, whatever the order in which they were made."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import psycopg
import pytest

from mailrail.core.route.site import SHARDS
from mailrail_queue.store import leases, results, waiting
from mailrail_queue.store.connection import Connection
from mailrail_queue.store.fencing import Ownership
from mailrail_queue.store.results import Deferral, Ending

from testkit.stored_mail import Rig
from testkit.stored_mail import rig as make_rig

Batch = Callable[[Connection, list[waiting.Waiting]], Coroutine[Any, Any, object]]
OURS = Ownership("me", dict.fromkeys(range(SHARDS), 1))
LEASED: dict[str, Batch] = {
    "defer": lambda c, rows: results.defer(c, [Deferral(r.id, r.message_id, 7, 1, 60.0, b"") for r in rows]),
    "finish": lambda c, rows: results.finish(
        c, [Ending(r.id, r.message_id, 7, 1, results.FAILED, 4, b"") for r in rows]
    ),
    "renew": lambda c, rows: leases.renew(c, 60.0, [(r.id, 7) for r in rows]),
    "lose": lambda c, rows: leases.lose(c, [(r.id, r.message_id, 7) for r in rows]),
    "record": lambda c, rows: results.record(c, [(r.id, r.message_id, 7, b"") for r in rows]),
}
FREE: dict[str, Batch] = {
    "lease": lambda c, rows: leases.lease(c, OURS, 60.0, [(r, 9, r.site) for r in rows]),
    "back_off": lambda c, rows: results.back_off(
        c, OURS, [Deferral(r.id, r.message_id, 0, 1, 60.0, b"", shard=r.shard) for r in rows]
    ),
}


@pytest.fixture
async def rig(database_for: Callable[..., str]) -> AsyncIterator[Rig]:
    async with make_rig(database_for("queue")) as made:
        yield made


@pytest.mark.parametrize("name", [*LEASED, *FREE])
async def test_a_batch_that_waits_for_one_recipient_holds_none_with_a_higher_id(rig: Rig, name: str) -> None:
    token = 7 if name in LEASED else 0
    ids = [p.id for n in range(5) for p in await rig.accept(f"user{n}@there.example", token=token)]
    await rig.connection.execute("UPDATE shard SET owner = 'me', epoch = 1")
    rows = sorted(await waiting.live(rig.connection, ids), key=lambda row: -row.id)
    work = {**LEASED, **FREE}[name]
    async with await psycopg.AsyncConnection.connect(rig.url) as other:  # as an administrator's change locks them
        await other.execute("SELECT FROM queue.recipient WHERE id = %s FOR UPDATE", (ids[0],))
        batch = asyncio.create_task(work(rig.connection, rows))

        async with asyncio.timeout(60):
            while await (await other.execute("SELECT 1 FROM pg_locks WHERE NOT granted")).fetchone() is None:
                await asyncio.sleep(0.01)
        await other.execute("SELECT FROM queue.recipient WHERE id = ANY(%s) FOR UPDATE NOWAIT", (ids[1:],))
        await other.rollback()
    await batch
