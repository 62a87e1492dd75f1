"""What nobody needs any more goes away, and nothing else does (ACC-02, FIN-02, FIN-03)."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from mailrail.kit import roles
from mailrail.kit.postgres import Login
from mailrail.local.postgres.server import EmbeddedPostgres
from mailrail.pb.queue.v1 import types_pb2
from mailrail_queue.mailbox import store as mailbox
from mailrail_queue.settings import QueueSettings
from mailrail_queue.store import content as content_store
from mailrail_queue.store import results as result_store
from mailrail_queue.store.connection import Database
from mailrail_queue.store.content import ChunkRows
from mailrail_queue.store.results import PARTITIONS_AHEAD, Ending
from mailrail_queue.upkeep.sweeping import Upkeep

from testkit.stored_mail import BODY, Rig
from testkit.stored_mail import rig as make_rig


@dataclass
class Sweepers:
    rig: Rig
    upkeep: Upkeep
    database: Database
    days: int = 14

    async def messages(self) -> int:
        return int((await self.rig.rows("SELECT count(*) FROM message"))[0][0])

    async def finish(self, *ids: int) -> None:
        owner = {i: m.bytes for i, m in await self.rig.rows("SELECT id, message_id FROM recipient")}
        endings = [Ending(i, owner[i], 0, 1, result_store.DELIVERED, types_pb2.OUTCOME_RELAYED, None) for i in ids]
        assert await result_store.finish(self.rig.connection, endings) == set(ids)

    async def age(self, what: str) -> None:
        """Make what became final, or is waiting to be swept, eleven minutes older."""
        await self.rig.connection.execute(f"UPDATE {what} - interval '11 minutes'")


@pytest.fixture
async def sweepers(database_for: Callable[..., str]) -> AsyncIterator[Sweepers]:
    url = database_for("queue")
    async with make_rig(url) as rig:
        database = Database(Login.of(url), "upkeep test")
        yield Sweepers(rig, Upkeep(QueueSettings(database_url=url), database), database)
        await database.close()


async def test_content_stays_ten_minutes_after_its_last_recipient_and_then_goes_FIN_02(sweepers: Sweepers) -> None:
    bob, carl = await sweepers.rig.accept("bob@there.example", "carl@there.example", body=BODY + b"x" * 300_000)
    await sweepers.finish(bob.id)
    await sweepers.age("history SET finished = finished")
    await sweepers.upkeep.sweep()
    assert await sweepers.messages() == 1  # carl still names it
    await sweepers.finish(carl.id)
    await sweepers.upkeep.sweep()
    assert await sweepers.messages() == 1  # not for ten minutes yet
    await sweepers.age("history SET finished = finished")
    await sweepers.upkeep.sweep()
    assert await sweepers.messages() == 0
    assert await sweepers.rig.rows("SELECT count(*) FROM chunk") == [(0,)]
    assert await sweepers.rig.rows("SELECT count(*) FROM history") == [(2,)]  # which refers to nothing (FIN-03)


async def test_content_in_a_mailbox_stays_until_it_is_deleted_there_FIN_02(sweepers: Sweepers) -> None:
    (alice,) = await sweepers.rig.accept("alice@here.example")
    connection = sweepers.rig.connection
    entry = mailbox.Entry("mail/alice", "Inbox", alice.message_id, alice.id, "alice@here.example", "bob@there.example")
    await mailbox.put(connection, [entry])
    await sweepers.finish(alice.id)
    await sweepers.age("history SET finished = finished")
    await sweepers.upkeep.sweep()
    assert await sweepers.messages() == 1
    (found,) = await mailbox.list_messages(connection, "mail/alice", "", 2**62, 10)
    await mailbox.delete(connection, [found.id])
    await sweepers.upkeep.sweep()
    assert await sweepers.messages() == 1  # ten minutes more
    await sweepers.age("sweep_candidate SET due = due")
    await sweepers.upkeep.sweep()
    assert await sweepers.messages() == 0


async def test_several_replicas_sweep_at_once_and_leave_nothing_behind_FIN_02(sweepers: Sweepers) -> None:
    done = [p.id for _ in range(30) for p in await sweepers.rig.accept("bob@there.example")]
    kept = [p.id for _ in range(5) for p in await sweepers.rig.accept("carl@there.example")]
    for identity in done:
        await sweepers.finish(identity)
    await sweepers.age("history SET finished = finished")
    others = [Upkeep(QueueSettings(), sweepers.database) for _ in range(3)]
    await asyncio.gather(*(upkeep.sweep() for upkeep in (sweepers.upkeep, *others)))
    assert await sweepers.messages() == len(kept)


async def test_content_that_another_has_locked_is_looked_at_again_FIN_02(sweepers: Sweepers) -> None:
    (bob,) = await sweepers.rig.accept("bob@there.example")
    await sweepers.finish(bob.id)
    await sweepers.age("history SET finished = finished")
    async with await psycopg.AsyncConnection.connect(sweepers.rig.url) as other:
        await other.execute("SELECT FROM queue.message FOR UPDATE")
        await sweepers.upkeep.sweep()
        assert await sweepers.messages() == 1
    await sweepers.age("sweep_candidate SET due = due")
    await sweepers.upkeep.sweep()
    assert await sweepers.messages() == 0


async def test_attempts_of_recipients_that_are_no_more_are_found_step_by_step_FIN_03(
    sweepers: Sweepers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mailrail_queue.upkeep.sweeping._ATTEMPTS_STEP", 3)
    (bob,) = await sweepers.rig.accept("bob@there.example")
    await sweepers.rig.connection.execute(
        "INSERT INTO attempt (recipient_id, data)"
        " SELECT CASE WHEN n %% 3 = 0 THEN %s ELSE 1000000 + n END, '' FROM generate_series(1, 12) n",
        (bob.id,),
    )
    for _ in range(6):
        await sweepers.upkeep.sweep(everything=False)
    assert await sweepers.rig.rows("SELECT DISTINCT recipient_id FROM attempt") == [(bob.id,)]
    assert await sweepers.rig.rows("SELECT count(*) FROM attempt") == [(4,)]


async def test_bodies_whose_commit_never_came_go_after_an_hour_ACC_02(sweepers: Sweepers) -> None:
    old, new = uuid.uuid4().bytes, uuid.uuid4().bytes
    for message_id in (old, new):
        await content_store.store_chunks(sweepers.rig.connection, [ChunkRows(message_id, 0, [b"x" * 1000])])
        await content_store.store_chunks(sweepers.rig.connection, [ChunkRows(message_id, 1, [b"y" * 1000])])
    await sweepers.rig.connection.execute(
        "UPDATE upload SET started = started - interval '61 minutes' WHERE message_id = %s", (uuid.UUID(bytes=old),)
    )
    await sweepers.upkeep.sweep()
    assert {row[0].bytes for row in await sweepers.rig.rows("SELECT message_id FROM chunk")} == {new}


async def test_parts_of_a_body_that_was_swept_are_not_stored_beside_others_that_are_ACC_02(sweepers: Sweepers) -> None:
    connection = sweepers.rig.connection
    swept, kept, new = (uuid.uuid4().bytes for _ in range(3))
    assert await content_store.store_chunks(
        connection, [ChunkRows(swept, 0, [b"1"]), ChunkRows(kept, 0, [b"1", b"2"])]
    ) == {swept, kept}
    await content_store.abort_uploads(connection, [swept])
    assert await content_store.store_chunks(
        connection, [ChunkRows(swept, 1, [b"x", b"y"]), ChunkRows(kept, 2, [b"3"]), ChunkRows(new, 0, [b"4"])]
    ) == {kept, new}
    rows = await sweepers.rig.rows("SELECT message_id, number, data FROM chunk")
    assert sorted((row[0].bytes, *row[1:]) for row in rows) == sorted(
        [(kept, 0, b"1"), (kept, 1, b"2"), (kept, 2, b"3"), (new, 0, b"4")]
    )


async def test_chunks_that_nothing_names_are_found_step_by_step_and_no_others_are_touched_ACC_02(
    sweepers: Sweepers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mailrail_queue.upkeep.sweeping._CHUNKS_STEP", 3)
    rig = sweepers.rig
    kept = {p.message_id for _ in range(3) for p in await rig.accept("bob@there.example", body=BODY + b"x" * 1_100_000)}
    uploading = uuid.uuid4().bytes
    await content_store.store_chunks(rig.connection, [ChunkRows(uploading, 0, [b"x"])])
    await content_store.store_chunks(rig.connection, [ChunkRows(uploading, 1, [b"x"])])
    for _ in range(5):
        stray = uuid.uuid4()
        for number in (0, 1, 7):
            await rig.connection.execute("INSERT INTO chunk VALUES (%s, %s, 'x')", (stray, number))
    for _ in range(14):
        await sweepers.upkeep.sweep(everything=False)
    left = {row[0].bytes for row in await rig.rows("SELECT message_id FROM chunk")}
    assert left == {uploading, *kept}
    assert await rig.rows(
        "SELECT sum(length(data))::int FROM chunk WHERE message_id <> %s", uuid.UUID(bytes=uploading)
    ) == [(3 * (1_100_000 + len(BODY)),)]


async def partitions(rig: Rig) -> list[str]:
    rows = await rig.rows(
        "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid"
        " WHERE i.inhparent = 'queue.history'::regclass ORDER BY 1"
    )
    return [row[0] for row in rows]


async def add_day(rig: Rig, days_ago: int) -> str:
    day = (datetime.now(UTC) - timedelta(days=days_ago)).date()
    name = f"history_{day:%Y%m%d}"
    await rig.connection.execute(
        f"CREATE TABLE queue.{name} PARTITION OF queue.history"
        f" FOR VALUES FROM ('{day} 00:00:00+00') TO ('{day + timedelta(days=1)} 00:00:00+00')"
    )
    return name


async def tables(rig: Rig, *names: str) -> list[str]:
    return [r[0] for r in await rig.rows("SELECT relname FROM pg_class WHERE relname = ANY(%s) ORDER BY 1", [*names])]


async def test_history_has_partitions_ahead_and_drops_old_ones_whole_FIN_03(sweepers: Sweepers) -> None:
    rig = sweepers.rig
    for days in (3, 14, 15, 40):
        await add_day(rig, days)
    await sweepers.upkeep.sweep()
    found = await partitions(rig)
    days_ago = {(datetime.now(UTC).date() - datetime.strptime(n[8:], "%Y%m%d").date()).days for n in found}
    assert {3, 14} <= days_ago
    assert not {15, 40} & days_ago
    assert set(range(-PARTITIONS_AHEAD, 2)) <= days_ago
    assert await rig.rows(
        "SELECT to_regclass('queue.history_' || to_char(now() - interval '40 days', 'YYYYMMDD'))"
    ) == [(None,)]
    await Upkeep(QueueSettings(history_days=2), sweepers.database).sweep()
    assert len(await partitions(rig)) == len(found) - 2


async def test_a_day_of_history_that_was_half_dropped_goes_with_the_next_round_FIN_03(sweepers: Sweepers) -> None:
    rig = sweepers.rig
    half, detached = await add_day(rig, 40), await add_day(rig, 41)
    await rig.connection.execute(f"ALTER TABLE queue.history DETACH PARTITION queue.{detached}")  # then killed
    reader = await psycopg.AsyncConnection.connect(rig.url)  # a long look at history
    await reader.execute("SELECT count(*) FROM queue.history")
    await rig.connection.execute("SET statement_timeout = '200ms'")
    with pytest.raises(psycopg.errors.QueryCanceled):
        await rig.connection.execute(f"ALTER TABLE queue.history DETACH PARTITION queue.{half} CONCURRENTLY")
    await reader.close()
    await sweepers.upkeep.sweep()
    assert await tables(rig, half, detached) == []


async def test_a_role_of_the_queue_s_own_makes_and_drops_the_days_of_history_DBS_01_FIN_03(
    sweepers: Sweepers, postgres: EmbeddedPostgres
) -> None:
    rig = sweepers.rig
    old = await add_day(rig, 40)
    ((name, tomorrow),) = await rig.rows(
        "SELECT current_database(), 'history_' || to_char(now() AT TIME ZONE 'UTC' + interval '1 day', 'YYYYMMDD')"
    )
    await rig.connection.execute(f"DROP TABLE queue.{tomorrow}")
    url = postgres.superuser_url(name)
    roles.grant_roles(url, ["queue"])
    database = Database(
        Login.of(psycopg.conninfo.make_conninfo(url, options="-c role=mailrail_queue")), "a role of its own"
    )
    try:
        await Upkeep(QueueSettings(), database).sweep()
    finally:
        await database.close()
    assert await tables(rig, old, tomorrow) == [tomorrow]


async def test_content_goes_also_after_the_clock_of_postgres_was_ahead_for_a_while_FIN_02(sweepers: Sweepers) -> None:
    await sweepers.rig.connection.execute("UPDATE sweep_progress SET position = now() + interval '2 days'")
    await sweepers.upkeep.sweep()
    (bob,) = await sweepers.rig.accept("bob@there.example")
    await sweepers.finish(bob.id)
    await sweepers.rig.connection.execute("UPDATE sweep_progress SET position = position - interval '11 minutes'")
    await sweepers.age("history SET finished = finished")
    await sweepers.upkeep.sweep()
    assert await sweepers.messages() == 0


async def test_one_round_forgets_all_that_has_grown_old_however_much_it_is(sweepers: Sweepers) -> None:
    for columns, old in (
        ("message (id, barred, accepted)", "gen_random_uuid(), true, now() - interval '2 days'"),
        ("dsn", "n, 1, gen_random_uuid(), gen_random_uuid(), now() - interval '60 days'"),
        ("account_usage", "'account' || n, now() - interval '9 days'"),
        ("event (at, kind, recipient_id, message_id)", "now() - interval '8 days', 1, n, gen_random_uuid()"),
        ("admin_operation (id, request, began)", "gen_random_uuid(), '', now() - interval '8 days'"),
        ("site (name, failures, changed)", "'site' || n, 1, now() - make_interval(days => 8 * least(1, n / 1000))"),
    ):
        await sweepers.rig.connection.execute(f"INSERT INTO {columns} SELECT {old} FROM generate_series(1, 2200) AS n")
    await sweepers.upkeep.sweep()
    for table, left in (
        ("message", 0),
        ("dsn", 0),
        ("account_usage", 0),
        ("event", 0),
        ("site", 999),
        ("admin_operation", 0),
    ):
        assert await sweepers.rig.rows(f"SELECT count(*) FROM {table}") == [(left,)], table


async def test_a_recipient_is_shown_in_history_after_its_content_is_gone_FIN_03(sweepers: Sweepers) -> None:
    (bob,) = await sweepers.rig.accept("bob@there.example")
    attempt = sweepers.rig.attempt(types_pb2.OUTCOME_RELAYED, "ok", code=250).SerializeToString()
    await result_store.finish(
        sweepers.rig.connection,
        [Ending(bob.id, bob.message_id, 0, 1, result_store.DELIVERED, types_pb2.OUTCOME_RELAYED, attempt)],
    )
    await sweepers.age("history SET finished = finished")
    await sweepers.upkeep.sweep()
    assert await sweepers.messages() == 0
    ((address, mail_from, envelope, size),) = await sweepers.rig.rows(
        "SELECT address, mail_from, envelope, size FROM history"
    )
    assert (address, mail_from, size) == ("bob@there.example", "alice@here.example", len(BODY))
    assert types_pb2.Envelope.FromString(envelope).subject == "hello"
