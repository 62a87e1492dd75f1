"""What each statement of the message path reads follows from its batch, and not from how much mail waits (SHD-03).

100,000 recipients wait at one dead site and as many at 50,000 others, half of them due, with statistics of all that: a
statement whose plan is right only while a table is small reads ten times as much here. Both plans that Postgres may
choose for a prepared statement are looked at: the one for these parameters and the one for any.
"""

# ruff: noqa: E501 -- reasons keep their own lines

import ast
import asyncio
import importlib
import os
import re
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import psycopg
import pytest

import mailrail_queue
from mailrail.core.ids import message_id
from mailrail.core.route.site import SHARDS, shard
from mailrail.kit import migrations
from mailrail_queue.mailbox import store as mailbox
from mailrail_queue.notify import dsn, outbox
from mailrail_queue.store import (
    accept,
    blocks,
    census,
    content,
    corrupt,
    hold_rules,
    leases,
    probes,
    results,
    shards,
    sites,
    timeline,
    waiting,
)
from mailrail_queue.store import columns as c
from mailrail_queue.store.connection import Connection, Statement, run
from mailrail_queue.store.fencing import Ownership
from mailrail_queue.upkeep import sweeping

from testkit.backlog import DEAD, Backlog, seed
from testkit.plans import PlanMode, explained
from testkit.postgres import embedded_postgres

RECIPIENTS: Final = 200_000
LEASED: Final = 3_000
"""Of them; a third of the leases ran out."""
OWN: Final = Ownership("plans", dict.fromkeys(range(SHARDS), 1))
PER_ROW: Final = 80
"""Blocks that a statement may look at for each row of its batch: one that moves into seven indexes looks at 40."""
ONCE: Final = 700
"""Blocks that it may look at besides: all of `shard` and its indexes, the edges of ranges, what is dead and not yet swept."""


@dataclass(frozen=True, slots=True)
class Full:
    """A full queue, and some of what is in it."""

    url: str
    seconds: float
    due: list[waiting.Waiting]
    """At as many sites, and some at the dead one."""
    at_work: list[waiting.Waiting]
    """Leased."""


@pytest.fixture(scope="module")
def full() -> Iterator[Full]:
    with embedded_postgres(autovacuum="off") as server:
        url = server.url("mailrail")
        migrations.migrate(url, migrations.load("queue"))
        with psycopg.connect(url, autocommit=True) as connection:
            seeded = seed(connection, Backlog(RECIPIENTS, leased=LEASED))
            connection.execute("UPDATE shard SET owner = 'plans', epoch = 1")
            connection.execute(
                "INSERT INTO site (name, failures, backoff_until) SELECT site, 1, now() FROM site_due WHERE shard < 8"
            )
            connection.execute(
                "INSERT INTO timeline (recipient_id, message_id, data) SELECT id, message_id, 'x' FROM recipient WHERE id % 2 = 0"
            )
            connection.execute("VACUUM ANALYZE")
            due = connection.execute(
                "(SELECT id FROM recipient WHERE site <> %(dead)s AND token IS NULL AND held_since IS NULL AND due < now() LIMIT 900)"
                " UNION ALL (SELECT id FROM recipient WHERE site = %(dead)s AND token IS NULL AND held_since IS NULL AND due < now() LIMIT 300)",
                {"dead": f"domain:{DEAD}"},
            ).fetchall()
        last = seeded.first + seeded.count

        async def read() -> tuple[list[waiting.Waiting], list[waiting.Waiting]]:
            async with explained(url, "force_custom_plan") as found:
                free = await waiting.live(found.connection, [row[0] for row in due])
                return free, await waiting.live(found.connection, range(last - LEASED, last))

        free, at_work = asyncio.run(read())
        yield Full(url, seeded.seconds, sorted(free, key=lambda one: hash((one.id, 1))), at_work)


# --- the statements -----------------------------------------------------------------------------------------------------

Ask = Callable[[Connection, Full, int], Awaitable[Any]]
DEFERRED: Final = b"an attempt"


async def _lease(connection: Connection, full: Full, count: int) -> None:
    ids, _ = await leases.lease(connection, OWN, 120.0, [(one, 10**9 + one.id, one.site) for one in full.due[:count]])
    assert len(ids) == count


async def _back_off(connection: Connection, full: Full, count: int) -> None:
    found = [
        results.Deferral(one.id, one.message_id, 0, one.version, 60.0, DEFERRED, shard=one.shard)
        for one in full.due[:count]
    ]
    assert len(await results.back_off(connection, OWN, found)) == count


async def _defer(connection: Connection, full: Full, count: int) -> None:
    found = [
        results.Deferral(one.id, one.message_id, one.token or 0, one.version, 60.0, DEFERRED)
        for one in full.at_work[:count]
    ]
    assert len(await results.defer(connection, found)) == count


async def _finish(connection: Connection, full: Full, count: int) -> None:
    found = [
        results.Ending(one.id, one.message_id, one.token or 0, one.version, results.DELIVERED, 1, DEFERRED)
        for one in full.at_work[:count]
    ]
    assert len(await results.finish(connection, found)) == count


async def _finish_unleased(connection: Connection, full: Full, count: int) -> None:
    found = [
        results.Ending(one.id, one.message_id, 0, one.version, results.FAILED, 2, DEFERRED, 1)
        for one in full.due[:count]
    ]
    assert len(await results.finish(connection, found)) == count


async def _re_key(connection: Connection, full: Full, count: int) -> None:
    assert await sites.re_key(
        connection, OWN, [(one, f"transport:default/{one.shard % 7}") for one in full.due[:count]]
    )


async def _renew(connection: Connection, full: Full, count: int) -> None:
    stand = [(one.id, one.token or 0) for one in full.at_work if one.remaining > 0]
    assert len(await leases.renew(connection, 120.0, stand[:count])) == min(count, len(stand))


async def _expire(connection: Connection, full: Full, count: int) -> None:
    answered = [one.id for one in full.at_work[:100]]
    assert len(await leases.expire(connection, OWN, range(SHARDS), 0.0, count, answered)) == min(
        count, len(full.at_work) // 3 - 33
    )


async def _lose(connection: Connection, full: Full, count: int) -> None:
    lost = [(one.id, one.message_id, one.token or 0) for one in full.at_work[:count]]
    assert len(await leases.lose(connection, lost)) == count
    await leases.put_off(connection, [(one.id, 30.0) for one in full.at_work[:count]])


async def _hold_corrupt(connection: Connection, full: Full, count: int) -> None:
    half = count // 2
    rows = [corrupt.CorruptRecipient(one.id, one.message_id, one.shard, one.version, 0) for one in full.due[:half]]
    rows += [
        corrupt.CorruptRecipient(o.id, o.message_id, o.shard, o.version, o.token or 0) for o in full.at_work[:half]
    ]
    assert len(await corrupt.hold_corrupt(connection, OWN, rows, "seeded", undo=True, withdraw=False)) == count


async def _store(connection: Connection, full: Full, count: int) -> None:
    messages, recipients = [], []
    for number, one in enumerate(full.due[:count]):
        new = message_id(1.8e9 + number, os.urandom(10))
        messages.append(accept.NewMessage(new, "s@from.example", None, 9, 0, b"", b"", b"body"))
        token = 10**9 + number if number % 2 else 0
        recipients.append(
            accept.NewRecipient(
                10**9 + number, new, one.shard, one.site, token, 0.0, None, 0, 1, 0, one.address, None, None, "from.example", False, 7, b""
            )
        )  # fmt: skip
    stored = await accept.store(connection, OWN, 120.0, messages, recipients, holds=0)
    assert stored.messages == count


async def _fetch_due(connection: Connection, full: Full, count: int) -> None:
    one_each = [(one.shard, one.site, 1) for one in full.due if not one.site.endswith(DEAD)]
    assert len(await waiting.fetch_due(connection, one_each[: count // 2])) == min(count // 2, len(one_each))
    assert len(await waiting.fetch_due(connection, [(shard(DEAD), f"domain:{DEAD}", count)])) == count


async def _due_sites(connection: Connection, full: Full, count: int) -> None:
    cursors = dict.fromkeys(range(max(1, count // 20)), (1.0, ""))
    assert len(await sites.due_sites(connection, cursors, 20)) == 20 * len(cursors)


async def _settle(connection: Connection, full: Full, count: int) -> None:
    await sites.settle(connection, OWN, [(one.shard, one.site, n % 2 == 0) for n, one in enumerate(full.due[:count])])


async def _look_back(connection: Connection, full: Full, count: int) -> None:
    await sites.look_back(connection, [(one.shard, one.site) for one in full.due[:count]])


async def _verify(connection: Connection, full: Full, count: int) -> None:
    await sites.verify(connection, shard(DEAD))


async def _wake_site(connection: Connection, full: Full, count: int) -> None:
    assert await sites.wake_site(connection, OWN, f"domain:{DEAD}")


async def _sample(connection: Connection, full: Full, count: int) -> None:
    assert len(await sites.sample(connection, range(SHARDS), f"domain:{DEAD}")) == 2


async def _record(connection: Connection, full: Full, count: int) -> None:
    await results.record(connection, [(o.id, o.message_id, o.token or 0, DEFERRED) for o in full.at_work[:count]])
    assert len(await results.newest_attempts(connection, [o.id for o in full.at_work[:count]])) == count


async def _look_up(connection: Connection, full: Full, count: int) -> None:
    assert len(await waiting.live(connection, [one.id for one in full.due[:count]])) == count
    assert len(await waiting.there(connection, [(one.id, one.message_id) for one in full.due[:count]])) == count


async def _requests(connection: Connection, full: Full, count: int) -> None:
    await connection.execute(
        "UPDATE recipient SET request = 1 WHERE id = ANY(%s)", (c.bigints([o.id for o in full.due[:count]]),)
    )
    assert len(await waiting.requested(connection, range(SHARDS), 0)) == min(count, waiting.PAGE)
    assert await waiting.requested_leased(connection, 0) == []


async def _first_expired(connection: Connection, full: Full, count: int) -> None:
    assert await leases.first_expired(connection, range(SHARDS), 0.0) is not None


async def _missing_sites(connection: Connection, full: Full, count: int) -> None:
    assert await sites.missing_sites(connection, range(SHARDS)) == []


async def _known_sites(connection: Connection, full: Full, count: int) -> None:
    names = [one.site for one in full.due[:count]]
    await sites.sites(connection, names)
    await sites.end_backoff(connection, names)
    await sites.sites_changed(connection, 0.0, "")
    await sites.failing_transports(connection)


async def _one_site(connection: Connection, full: Full, count: int) -> None:
    name = full.due[0].site
    await run(connection, sites.BACK_OFF_SITE, {"name": name, "failures": 1, "seconds": 60.0, "error": b""})
    await run(connection, sites.CLAIM_PROBE, {"name": name, "token": 1, "seconds": 60.0})
    await run(connection, sites.RECOVER, {"name": name})


async def _shards(connection: Connection, full: Full, count: int) -> None:
    me = {"id": "plans", "name": "plans", "address": "", "started": "2026-01-01T00:00:00Z", "dead": 10.0}
    await run(connection, shards.HEARTBEAT, me)
    assert len(await run(connection, shards.MINE, {"id": "plans"})) == SHARDS
    assert len(await run(connection, shards.OWNERS)) == SHARDS
    await run(connection, shards.RELEASE, {"id": "plans", "number": c.smallints(range(SHARDS))})
    assert len(await run(connection, shards.ACQUIRE, {"id": "plans", "live": ["plans"], "count": SHARDS})) == SHARDS
    await hold_rules.read_hold_rules(connection)


async def _ids(connection: Connection, full: Full, count: int) -> None:
    await run(connection, blocks.BLOCKS)
    await run(connection, dsn.IDS)


async def _accepted(connection: Connection, full: Full, count: int) -> None:
    known = [one.message_id for one in full.due[:count]]
    assert await accept.existing(connection, known)
    await accept.lock_usage(connection, "default/account1")
    await accept.count_usage(connection, "default/account1", 1, 1)
    assert await content.contents(connection, known[:20])
    assert await content.piece(connection, known[0], 0, 1000)
    assert await content.is_leased(connection, full.at_work[0].message_id, full.at_work[-1].token or 0) is False
    await mailbox.heads(connection, known[:20])
    one = UUID(bytes=known[0])
    assert await run(connection, accept.BAR, {"id": one}) == []
    await run(connection, accept.OUTCOME, {"id": c.uuids(known[:1])})


async def _uploads(connection: Connection, full: Full, count: int) -> None:
    new = message_id(1.8e9, os.urandom(10))
    await content.store_chunks(connection, [content.ChunkRows(new, 0, [b"a"])])
    await content.store_chunks(connection, [content.ChunkRows(new, 1, [b"b"])])
    await content.claim_uploads(connection, [new])
    await content.add_chunks(connection, message_id(1.9e9, os.urandom(10)), b"c")
    await content.chunks(connection, new, 0, 8)
    await content.drop_chunks(connection, [new])
    await content.abort_uploads(connection, [new])
    await content.sweep_stray_chunks(connection, None, 1000)


async def _notices(connection: Connection, full: Full, count: int) -> None:
    some = full.due[:count]
    known = {
        "recipient_id": c.bigints([one.id for one in some]),
        "kind": c.smallints([1] * len(some)),
        "about": c.uuids([one.message_id for one in some]),
        "message_id": c.uuids([one.message_id for one in some]),
    }
    assert len(await run(connection, dsn.CLAIM, known)) == count


async def _sweep(connection: Connection, full: Full, count: int) -> None:
    old = {"position": datetime(2020, 1, 1, tzinfo=UTC), "keep": 600.0, "count": 500}
    await run(connection, sweeping._POSITION, {"keep": 600.0})
    await run(connection, sweeping._STRETCH, old)
    await run(connection, sweeping._UNNAMED, {"position": old["position"], "until": old["position"]})
    await probes.sweep(connection, datetime(2020, 1, 1, tzinfo=UTC), datetime(2020, 1, 1, tzinfo=UTC))
    await run(connection, sweeping._ADVANCE, {"until": old["position"]})
    await run(connection, sweeping._DELETE, {"id": [UUID(bytes=one.message_id) for one in full.due[:20]]})
    await run(connection, sweeping._NAMED)
    await run(connection, sweeping._ATTEMPTS, {"past": 0, "count": 2000})
    for kept in (
        sweeping._UPLOADS,
        sweeping._BARS,
        sweeping._DSNS,
        sweeping._OPERATIONS,
        sweeping._SITES,
        sweeping._EVENTS,
    ):
        await run(connection, kept, {"keep": 3600.0})
    await run(connection, sweeping._USAGE)


async def _deliver_locally(connection: Connection, full: Full, count: int) -> None:
    some = full.due[:count]
    entries = [mailbox.Entry("default/alice", "Inbox", o.message_id, o.id, o.address, "s@from.example") for o in some]
    assert await mailbox.put(connection, entries) == count


async def _events(connection: Connection, full: Full, count: int) -> None:
    await outbox.subscribe(connection, "console")
    events = "INSERT INTO event (kind, recipient_id, message_id) SELECT 1, n, gen_random_uuid() FROM generate_series(1, %s) n"
    await connection.execute(events, (count,))
    await outbox.read(connection, "console", count)
    await outbox.acknowledge(connection, "console", outbox.ConsumerPosition(1, 1))
    await outbox.unsubscribe(connection, "console")


async def _probe(connection: Connection, full: Full, count: int) -> None:
    assert await probes.take(connection, UUID(bytes=full.due[0].message_id)) is False


async def _timeline(connection: Connection, full: Full, count: int) -> None:
    ids = [one.id for one in full.due[:count]]
    await timeline.read(connection, ids, full.due[0].message_id)
    await timeline.trim(connection, ids)
    await timeline.take_over(connection, 0, count)


async def _census(connection: Connection, full: Full, count: int) -> None:
    await census.count(connection, range(count * SHARDS // RECIPIENTS))
    found = await census.held(connection)
    await census.write(connection, {number: census.ShardCount(1, 1, held) for number, held in found.items()})
    await census.read(connection)


BATCHES: Final = (20, 200, 1000)
HOT: Final[tuple[tuple[Ask, tuple[int, ...]], ...]] = (
    (_lease, BATCHES),
    (_back_off, BATCHES),
    (_defer, BATCHES),
    (_finish, BATCHES),
    (_finish_unleased, BATCHES),
    (_re_key, BATCHES),
    (_renew, BATCHES),
    (_expire, (20, 200, 500)),
    (_lose, BATCHES),
    (_hold_corrupt, BATCHES),
    (_store, (1, 20, 200)),
    (_fetch_due, BATCHES),
    (_due_sites, BATCHES),
    (_settle, BATCHES),
    (_look_back, BATCHES),
    (_verify, (200,)),  # steps through the sites of one shard
    (_wake_site, (500,)),
    (_sample, (512,)),  # two of each shard
    (_record, BATCHES),
    (_look_up, BATCHES),
    (_requests, BATCHES),
    (_first_expired, (1,)),
    (_missing_sites, (SHARDS,)),
    (_known_sites, BATCHES),
    (_one_site, (1,)),
    (_shards, (SHARDS,)),
    (_ids, (1,)),
    (_accepted, BATCHES),
    (_uploads, (1,)),
    (_notices, BATCHES),
    (_sweep, (500,)),
    (_deliver_locally, (1, 20, 200)),
    (_events, (20, 200)),
    (_probe, (1,)),
    (_timeline, (200, 2000)),
    (_census, (20_000,)),
)
"""What the message path asks, with the sizes of batches that the service uses."""


@pytest.mark.parametrize("mode", ["force_custom_plan", "force_generic_plan"])
async def test_each_hot_statement_reads_by_its_batch_whatever_waits_SHD_03(full: Full, mode: PlanMode) -> None:
    too_much: list[str] = []
    for ask, batches in HOT:
        for count in batches:
            async with explained(full.url, mode) as found:
                await ask(found.connection, full, count)
            for plan in found.plans:
                if plan.buffers > ONCE + PER_ROW * count:
                    too_much.append(
                        f"{ask.__name__} of {count}: {plan.buffers} blocks, {plan.milliseconds:.0f} ms: {plan.statement[:60]}"
                    )
    assert not too_much, "\n".join(too_much)


# --- the list is complete -----------------------------------------------------------------------------------------------

_ADMIN: Final = "administrators' connections; what lists read is bounded in test_bounded_lists"
_READER: Final = "asked by whoever reads a mailbox, one page or one message at a time"
NOT_HOT: Final[dict[str, str]] = {
    "admin": _ADMIN,
    "mailbox.store.DELETE": _READER,
    "mailbox.store.LISTED": _READER,
    "mailbox.store.MAILBOXES": _READER,
    "mailbox.store.ONE": _READER,
    "mailbox.store.PLACES": _READER,
    "mailbox.store.SET_FLAGS": _READER,
    "rpc.answering._SETTINGS": "settings of a session",
    "store.fencing.NOTE": "a part of others",
    "store.accept.IN_HISTORY": "once a report that was being sent when its service ended",
    "store.blocks.RAISE_IDS": "once after the database went back",
    "store.corrupt.HOLD_CORRUPT_MESSAGE": "once for a message that cannot be read; by the message's id",
    "store.data_history._STAND": "two sequences",
    "store.leases.MOVE_LEASES": "once after Postgres's clock jumped; reads what is leased",
    "store.leases.NOW": "reads no table",
    "store.results.MAKE_PARTITIONS": "the catalog, now and then",
    "store.shards.LEAVE": "once at a stop; 256 rows",
    "store.shards.STARTED": "reads no table",
    "upkeep.backlog._STORED": "statistics",
    "upkeep.server_room._ROOM": "the catalog",
    "upkeep.sweeping._OLD": "the catalog",
    "upkeep.sweeping._DROP_OWNED": "the catalog",
    "upkeep.sweeping._LOCK": "reads no table",
    "upkeep.sweeping._UNLOCK": "reads no table",
}
"""What is not looked at above, by name or by the folder that it is in, with the reason."""

_SQL: Final = re.compile(r"\s*(SELECT|WITH|INSERT INTO|UPDATE|DELETE FROM)\s")
_PACKAGE: Final = Path(mailrail_queue.__path__[0])


def _begins_a_statement(node: ast.AST) -> bool:
    if isinstance(node, ast.JoinedStr):
        return bool(node.values) and _begins_a_statement(node.values[0])
    return isinstance(node, ast.Constant) and isinstance(node.value, str) and _SQL.match(node.value) is not None


def statements() -> Iterator[str]:
    """Each statement of the queue, as folder.module.NAME; within a function that function's name stands for it."""
    for path in sorted(_PACKAGE.rglob("*.py")):
        module = ".".join(path.relative_to(_PACKAGE).with_suffix("").parts)
        for part in ast.parse(path.read_text()).body:
            if not any(map(_begins_a_statement, ast.walk(part))):
                continue
            if isinstance(part, ast.AnnAssign | ast.Assign):
                target = part.target if isinstance(part, ast.AnnAssign) else part.targets[0]
                yield f"{module}.{ast.unparse(target)}"
            else:
                yield from (
                    f"{module}.{node.name}"
                    for node in ast.walk(part)
                    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
                    and any(map(_begins_a_statement, ast.walk(node)))
                )


def _text(name: str) -> str | None:
    """The text of a statement that has a name of its own."""
    module, _, constant = name.rpartition(".")
    found = getattr(importlib.import_module(f"mailrail_queue.{module}"), constant, None)
    if isinstance(found, Statement):
        return found.psycopg_text
    return found if isinstance(found, str) else None


async def test_no_statement_of_the_queue_is_left_out(full: Full) -> None:
    looked_at: set[str] = set()
    for ask, batches in HOT:
        async with explained(full.url, "force_custom_plan") as found:
            await ask(found.connection, full, batches[0])
        looked_at |= {plan.statement for plan in found.plans}
    found_names = set(statements())
    assert found_names >= {"store.leases.LEASE", "store.results.FINISH", "upkeep.sweeping._BARS"}, (
        "the search is broken"
    )
    excused = {name for name in found_names if {name, name.partition(".")[0]} & NOT_HOT.keys()}
    assert not {name for name in NOT_HOT if not any(f"{one}.".startswith(f"{name}.") for one in found_names)}, (
        "no such statement"
    )
    left_out = {name for name in found_names - excused if _text(name) not in looked_at}
    assert not left_out, f"neither looked at nor said to be not hot: {sorted(left_out)}"
