"""A whole database moved to another server: every message counted, whatever ends the move in the middle."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator

import psycopg
import pytest
from psycopg import sql

from mailrail.cluster import move
from mailrail.kit import migrations
from mailrail.pb.queue.v1 import lease_pb2, types_pb2

from testkit.conditions import eventually
from testkit.postgres import Databases, embedded_postgres, oldest_programs
from testkit.queue import (
    RELAY,
    FakeIngress,
    RunningQueue,
    a_revision,
    commit_of,
    relay,
    result_of,
    rule_to,
    running_queue,
)
from testkit.queue import sql as rows

MESSAGES = 20
REVISION = a_revision(transports=[relay()], rules=[rule_to(RELAY)])
LARGE = b"Subject: large\r\n\r\n" + b"x" * 2_500_000
LATE = "another day"


@pytest.fixture(scope="module")
def other() -> Iterator[Databases]:
    """The server to move to: of the oldest version that we promise to work on."""
    with embedded_postgres(oldest_programs()) as server:
        yield Databases(server)


@pytest.fixture
def target(other: Databases) -> str:
    """An empty database there."""
    return other.server.url(other.fresh())


def count(url: str, table: str) -> int:
    with psycopg.connect(url) as connection:
        row = connection.execute(
            sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(*table.split(".")))
        ).fetchone()
    assert row is not None
    return int(row[0])


def defer(delivery: lease_pb2.Delivery) -> lease_pb2.DeliveryResult:
    return result_of(delivery, types_pb2.OUTCOME_DEFERRED)


def put(url: str, *statements: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SET default_transaction_read_only = off")
        for statement in statements:
            connection.execute(statement.encode())


def moved_by_command(source: str, target: str) -> subprocess.Popen[str]:
    """The command, as a Job runs it."""
    environment = {**os.environ, "MAILRAIL_SOURCE_DATABASE_URL": source, "MAILRAIL_DATABASE_URL": target}
    command = [sys.executable, "-u", "-m", "mailrail.cli", "cluster", "move-database", "--json", "--drain", "0"]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


async def answered_250(q: RunningQueue, ingress: FakeIngress, address: str) -> bool:
    """Whether a message is accepted. Behind the fence it waits for Postgres, and ingress answers 451 in the end."""
    (answer,) = ingress.commit(commit_of(address))
    await eventually(lambda: not q.queue.serving, what="the queue says that it cannot take mail")
    return answer.done() and answer.result().accepted


async def fill(q: RunningQueue) -> None:
    """Mail of every kind: queued after an attempt, in a mailbox, large, in the history of a day long past."""
    ingress, outbound = await q.ingress(), await q.outbound()
    outbound.answer = defer
    for number in range(MESSAGES - 1):
        await ingress.accept(f"r{number}@away.example")
    await ingress.accept("large@away.example", body=LARGE)
    await ingress.accept("alice@home.example")
    await q.until("SELECT count(*) = %s FROM attempt", MESSAGES)
    await q.until("SELECT count(*) = 1 FROM mailbox_message")
    await outbound.close()
    await q.sql("CREATE TABLE history_20200101 (LIKE history INCLUDING ALL)")
    await q.sql(
        "ALTER TABLE history ATTACH PARTITION history_20200101 FOR VALUES FROM ('2020-01-01Z') TO ('2020-01-02Z')"
    )
    await q.sql(
        """INSERT INTO history (finished, id, message_id, state, outcome, attempts, tls_requirement, origin, queued,
        size, address, mail_from, site, envelope, envelope_recipient) VALUES ('2020-01-01 12:00Z', 1, gen_random_uuid(),
        1, 1, 1, 0, 0, now(), 1, %s, '', '', '', '')""",
        LATE,
    )


async def test_a_move_under_way_lets_deliveries_end_takes_mail_until_the_fence_and_leaves_none_behind(
    database: str, target: str
) -> None:
    said: list[str] = []
    async with running_queue(database, REVISION) as q:
        await fill(q)
        ingress, outbound = await q.ingress(), await q.outbound()
        await ingress.accept("now@away.example")
        await eventually(lambda: any(d.recipients[0].address == "now@away.example" for d in outbound.deliveries))
        under_way = [d for d in outbound.deliveries if d.recipients[0].address == "now@away.example"]
        moving = asyncio.create_task(asyncio.to_thread(move.move, database, target, drain=30.0, say=said.append))
        await eventually(lambda: any("no delivery begins" in line for line in said), what=lambda: str(said))
        before = len(outbound.deliveries)
        await ingress.accept("late@away.example")  # accepted while deliveries end, and not handed out any more
        outbound.finish(*under_way)
        done = await moving
        assert len(outbound.deliveries) == before
        assert not await answered_250(q, ingress, "never@away.example")
    assert done.copied
    assert done.holdings == move.Holdings(queued=MESSAGES + 1, mailbox_messages=1), said
    assert {t.name: t.rows for t in done.tables}["queue.chunk_default"] > 1
    assert count(target, "queue.history_20200101") == 1
    assert [r[0] for r in await rows(target, "SELECT address FROM history WHERE id = 1")] == [LATE]

    async with running_queue(target, REVISION) as q:
        outbound = await q.outbound()
        outbound.answer = result_of
        await q.sql("UPDATE recipient SET due = now(); UPDATE site_due SET next_due = now()")
        await q.until("SELECT count(*) = 0 FROM recipient")
        delivered = sorted(r.address for d in outbound.deliveries for r in d.recipients)
        expected = [f"r{n}@away.example" for n in range(MESSAGES - 1)] + ["large@away.example", "late@away.example"]
        assert delivered == sorted(expected), "each once, and not again what was delivered during the move"
        highest = await q.one("SELECT max(id) FROM history")
        ingress = await q.ingress()
        outbound.answer = None
        await ingress.accept("new@away.example")
        assert await q.one("SELECT min(id) FROM recipient") > highest + 100_000, "ids do not come again (HIS-01)"


@pytest.mark.parametrize("words", ["both databases are read-only", "queue.message_default:"])
async def test_a_move_that_was_killed_is_done_by_a_second_run_and_nothing_was_accepted_between(
    database: str, target: str, words: str
) -> None:
    async with running_queue(database, REVISION) as q:
        await fill(q)
        first = moved_by_command(database, target)
        assert first.stderr is not None
        said = ""
        for line in first.stderr:
            said += line
            if words in line:
                first.kill()
                break
        first.communicate()
        assert words in said, said
        ingress = await q.ingress()
        assert not await answered_250(q, ingress, "between@away.example")
    second = moved_by_command(database, target)
    answer, said = second.communicate(timeout=120)
    assert second.returncode == 0, said
    done = json.loads(answer)
    assert (done["copied"], done["queued"], done["mailbox_messages"]) == (True, MESSAGES, 1)
    for table in done["tables"]:
        assert table["rows"] == count(database, table["table"]) == count(target, table["table"])
    third = moved_by_command(database, target)
    answer, said = third.communicate(timeout=120)
    assert (third.returncode, json.loads(answer)["copied"]) == (0, False), said


async def test_a_run_that_ended_after_the_commit_is_compared_and_opened_by_the_next_one(
    database: str, target: str
) -> None:
    async with running_queue(database, REVISION) as q:
        await fill(q)
    move.move(database, target)
    with move.connect(target) as connection:
        move.fence(target, connection)  # as it was between commit and opening
    done = move.move(database, target)
    assert not done.copied
    assert done.tables
    put(target, "INSERT INTO queue.hold_rule (comment) VALUES ('it takes writes')")
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction), psycopg.connect(database) as connection:
        connection.execute("INSERT INTO queue.hold_rule (comment) VALUES ('nobody goes on here')")


async def test_a_copy_that_differs_is_never_opened(database: str, target: str) -> None:
    async with running_queue(database, REVISION) as q:
        await fill(q)
    move.move(database, target)
    with move.connect(target) as connection:
        move.fence(target, connection)
    put(target, "UPDATE queue.recipient SET address = 'x' || address WHERE id = (SELECT min(id) FROM queue.recipient)")
    with pytest.raises(move.MoveRefused, match=r"queue\.recipient"):
        move.move(database, target)
    with psycopg.connect(target) as connection:
        assert connection.execute("SHOW default_transaction_read_only").fetchone() == ("on",)


async def test_a_target_that_somebody_uses_is_refused_and_the_source_serves_on(database: str, target: str) -> None:
    with pytest.raises(move.MoveRefused, match="same database"):
        move.move(database, database)
    migrations.migrate(target)  # by hand, beforehand: it is empty, and will do
    put(target, "INSERT INTO config.revisions VALUES (1, '', '', '', '[]', '', '{}', '', 1)")
    async with running_queue(database, REVISION) as q:
        await fill(q)
        with pytest.raises(move.MoveRefused, match=r"config\.revisions has rows"):
            move.move(database, target)
        await (await q.ingress()).accept("goes@away.example")
    put(target, "DELETE FROM config.revisions")
    assert move.move(database, target).holdings.queued == MESSAGES + 1


def test_a_move_may_be_given_up_until_it_is_finished(database: str, target: str) -> None:
    with move.connect(database) as connection:
        move.fence(database, connection)
    move.give_up(database, target)
    put(database, "INSERT INTO queue.hold_rule (comment) VALUES ('it takes writes')")
    move.move(database, target)
    with pytest.raises(move.MoveRefused, match="finished"):
        move.give_up(database, target)


def test_events_go_on_with_the_first_that_a_consumer_has_not_seen(database: str, target: str) -> None:
    far = 900_000_000
    put(
        database,
        "INSERT INTO queue.event (transaction, kind, recipient_id, message_id) SELECT"
        f" ({far} + n)::text::xid8, 1, n, gen_random_uuid() FROM generate_series(1, 5) n",
        f"INSERT INTO queue.event_consumer (name, transaction, position) VALUES ('hook', '{far + 2}', 2)",
    )
    move.move(database, target)
    put(
        target,
        "INSERT INTO queue.event (kind, recipient_id, message_id) VALUES (1, 6, gen_random_uuid())",
    )
    with psycopg.connect(target) as connection:
        seen = connection.execute(
            """SELECT e.recipient_id FROM queue.event_consumer c JOIN queue.event e
            ON (e.transaction, e.id) > (c.transaction, c.position)
            AND e.transaction < pg_snapshot_xmin(pg_current_snapshot()) ORDER BY e.transaction, e.id"""
        ).fetchall()
    assert [row[0] for row in seen] == [3, 4, 5, 6]


def test_what_outbound_knows_of_domains_moves_along_and_no_id_of_a_fact_comes_twice(database: str, target: str) -> None:
    columns = "zone, day, fingerprint, facts, sessions"
    facts = f"INSERT INTO outbound.tlsrpt ({columns}) SELECT 'z', '2031-01-02', n::text::bytea, '', n"
    put(
        database,
        "INSERT INTO outbound.mta_sts (domain, zone, policy, fetched, ends, forget)"
        " VALUES ('example.org', 'example.org', 'version: STSv1', now(), now(), now())",
        "INSERT INTO outbound.learned VALUES ('example.org', '', true, false)",
        f"{facts} FROM generate_series(1, 5) n",
        "DELETE FROM outbound.tlsrpt WHERE id > 3",
    )
    move.move(database, target)
    put(target, f"{facts} FROM generate_series(6, 6) n")
    with psycopg.connect(target) as connection:
        found = connection.execute("SELECT id, sessions FROM outbound.tlsrpt ORDER BY id").fetchall()
        assert found == [(1, 1), (2, 2), (3, 3), (6, 6)]
    assert count(target, "outbound.mta_sts") == count(target, "outbound.learned") == 1
