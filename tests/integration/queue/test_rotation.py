"""Content can be dropped a stretch of time at once (decision 17): shown on the schema as it is, without the sweeper.

How partitions come and go is not built yet. What must be true is that it can be added to a database that has mail: no
row that is there is written anew, and what somebody still needs outlives its stretch.
"""

import asyncio
import os
import time
import uuid

import psycopg

from mailrail.core import ids
from mailrail.core.limits import CHUNK_SIZE, INLINE_LIMIT
from mailrail.pb.queue.v1 import lease_pb2, types_pb2

from testkit.conditions import eventually
from testkit.postgres import Databases, embedded_postgres, oldest_programs
from testkit.queue import RunningQueue, commit_of, running_queue

DAY = 86_400
KEYS = {"message": "id", "chunk": "message_id"}


def first_id(moment: float) -> uuid.UUID:
    """The bound between the ids that were made before a moment and those made from then on."""
    return uuid.UUID(bytes=int(moment * 1000).to_bytes(6, "big") + bytes(10))


def begin_rotation(connection: psycopg.Connection, start: float, days: int) -> None:
    """What is there becomes the first partition; each day from `start` on gets one of its own."""
    for table, key in KEYS.items():
        # Proves the bound beforehand, beside running mail; then the partition is attached without being read.
        connection.execute(
            f"ALTER TABLE {table}_default ADD CONSTRAINT bound CHECK ({key} < '{first_id(start)}') NOT VALID"
        )
        connection.execute(f"ALTER TABLE {table}_default VALIDATE CONSTRAINT bound")
        with connection.transaction():
            connection.execute(f"ALTER TABLE {table} DETACH PARTITION {table}_default")
            connection.execute(f"ALTER TABLE {table}_default RENAME TO {table}_kept")
            connection.execute(
                f"ALTER TABLE {table} ATTACH PARTITION {table}_kept FOR VALUES FROM (MINVALUE) TO ('{first_id(start)}')"
            )
            for n in range(days):
                low, high = first_id(start + n * DAY), first_id(start + (n + 1) * DAY)
                connection.execute(
                    f"CREATE TABLE {table}_{n} PARTITION OF {table} FOR VALUES FROM ('{low}') TO ('{high}')"
                )
            connection.execute(f"CREATE TABLE {table}_default PARTITION OF {table} DEFAULT")


def drop_day(connection: psycopg.Connection, number: int, end: float) -> None:
    """The oldest day goes; what a recipient or a mailbox needs of it moves to the first partition.

    It waits for all who use the tables, so it may be the one that ends a deadlock with a reader: then it begins anew.
    """
    while True:
        try:
            return _drop_day(connection, number, end)
        except psycopg.errors.DeadlockDetected:
            continue


def _drop_day(connection: psycopg.Connection, number: int, end: float) -> None:
    with connection.transaction():
        for table, key in KEYS.items():
            connection.execute(f"ALTER TABLE {table} DETACH PARTITION {table}_{number}")
            connection.execute(f"ALTER TABLE {table} DETACH PARTITION {table}_kept")
            connection.execute(
                f"ALTER TABLE {table} ATTACH PARTITION {table}_kept FOR VALUES FROM (MINVALUE) TO ('{first_id(end)}')"
            )
            connection.execute(f"ALTER TABLE {table}_kept DROP CONSTRAINT bound")
            connection.execute(
                f"INSERT INTO {table} SELECT * FROM {table}_{number} t"
                f" WHERE EXISTS (SELECT FROM recipient r WHERE r.message_id = t.{key})"
                f" OR EXISTS (SELECT FROM mailbox_message m WHERE m.message_id = t.{key})"
            )
            connection.execute(f"DROP TABLE {table}_{number}")


def files(connection: psycopg.Connection, table: str) -> tuple[object, ...]:
    """Where a table and its large values lie; a table that is written anew gets others."""
    row = connection.execute(
        "SELECT pg_relation_filenode(oid), pg_relation_filenode(reltoastrelid) FROM pg_class WHERE relname = %s",
        (table,),
    ).fetchone()
    assert row is not None
    return row


async def accept(
    q: RunningQueue, *to: str, moment: float, body: bytes = b"Subject: x\r\n\r\nx\r\n", **how: object
) -> bytes:
    """Commit a message whose id is of that moment; content above the inline limit goes in chunks."""
    ingress = await q.ingress()
    number = ids.message_id(moment, os.urandom(10))
    large = len(body) > INLINE_LIMIT
    for start in range(0, len(body) if large else 0, CHUNK_SIZE):
        ingress.chunk(number, body[start : start + CHUNK_SIZE])
    (answer,) = ingress.commit(commit_of(*to, body=None if large else body, **how), ids=[number])  # type: ignore[arg-type]
    assert (await answer).accepted
    return number


async def rotation(url: str) -> None:
    """Begin to rotate a database that has mail, fill two days, drop the first."""
    now = time.time()
    start = (now // DAY + 1) * DAY
    old, young = b"old" * CHUNK_SIZE, b"young" * CHUNK_SIZE
    connection = psycopg.connect(url, autocommit=True, options="-c search_path=queue")
    async with running_queue(url) as q:
        outbound = await q.outbound()
        await accept(q, "before@away.example", moment=now, body=old)
        await accept(q, "small@away.example", moment=now)
        await eventually(outbound.has(2), what="both are handed out")
        before = {table: files(connection, f"{table}_default") for table in KEYS}
        await asyncio.to_thread(begin_rotation, connection, start, 2)
        assert {table: files(connection, f"{table}_kept") for table in KEYS} == before, "a row was written anew"

        outbound.finish(*outbound.deliveries)  # its result finds the message where it is now
        await q.until("SELECT count(*) = 2 FROM history WHERE size > 0")

        # Mail of the days to come, as clocks that are ahead make it: the same statements find their partition.
        for n, address in enumerate(("done@away.example", "held@away.example", "alice@home.example")):
            await accept(q, address, moment=start + 60 + n, body=young)
        await accept(q, "next@away.example", moment=start + DAY + 60)
        await accept(q, "far@away.example", moment=start + 100 * DAY)
        await eventually(outbound.has(6), what="all that is not for a mailbox is handed out")
        new = outbound.deliveries[2:]
        held = next(d for d in new if d.recipients[0].address.startswith("held"))
        outbound.finish(*(d for d in new if d is not held))
        outbound.finish(held, outcome=types_pb2.OUTCOME_DEFERRED)
        await q.until("SELECT count(*) = 6 FROM history")
        await q.until("SELECT count(*) = 1 FROM recipient WHERE token IS NULL")
        places = "SELECT tableoid::regclass::text, count(*) FROM message GROUP BY 1 ORDER BY 1"
        assert await q.sql(places) == [("message_0", 3), ("message_1", 1), ("message_default", 1), ("message_kept", 2)]

        dropped = {table: files(connection, f"{table}_kept") for table in KEYS}
        await asyncio.to_thread(drop_day, connection, 0, start + DAY)
        assert {table: files(connection, f"{table}_kept") for table in KEYS} == dropped, "a row was written anew"
        assert await q.sql(places) == [("message_1", 1), ("message_default", 1), ("message_kept", 4)]

        # The one that waits is delivered with its whole content, the one in the mailbox can be read.
        await q.sql("UPDATE recipient SET due = now()")
        await q.sql("UPDATE site_due SET next_due = now()")
        await eventually(outbound.has(7), what="what waited is handed out")
        (again,) = outbound.deliveries[6:]
        request = lease_pb2.FetchContentRequest(token=again.token, message_id=again.message_id)
        parts = [part.data async for part in outbound.stub.FetchContent(request)]
        assert b"".join(parts) == young
        (mail,) = await q.sql("SELECT message_id FROM mailbox_message")
        assert await q.one("SELECT sum(length(data)) FROM chunk WHERE message_id = %s", mail[0]) == len(young)
        await accept(q, "late@away.example", moment=start + 120)  # of the day that is gone: kept with the others
        await q.queue.upkeep.sweep()
    connection.close()


async def test_a_day_of_content_is_dropped_whole_and_what_somebody_needs_is_kept_FIN_02(database: str) -> None:
    await rotation(database)


async def test_a_day_of_content_is_dropped_whole_on_the_oldest_postgres_too() -> None:
    with embedded_postgres(oldest_programs()) as server:
        await rotation(server.url(Databases(server).fresh(("queue",))))
