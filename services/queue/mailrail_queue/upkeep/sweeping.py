"""The sweepers: they delete what is no longer needed, in small steps (ACC-02, FIN-02, FIN-03).

Several replicas may run this at once: each step takes its rows under locks that the others skip. Content goes by the
order in which recipients became final, which history knows; so no row of a message is ever updated for it. Mail
probes that nobody took leave history together with their content (decision 20).
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final, LiteralString
from uuid import UUID

import psycopg

from mailrail.kit import log
from mailrail_queue import metrics
from mailrail_queue.settings import QueueSettings
from mailrail_queue.store import content as content_store
from mailrail_queue.store import faults, probes, timeline
from mailrail_queue.store import results as result_store
from mailrail_queue.store.connection import DATABASE_FAILURE, TROUBLE, Connection, Database, run

# ruff: noqa: E501 -- statements keep their own lines

_KEEP_BAR = 86_400.0
"""Seconds for which a bar stays; callers give up within a minute (ACC-04)."""
_KEEP_EVENT = 7 * 86_400.0
_KEEP_OPERATION = 7 * 86_400.0
_KEEP_SITE = 7 * 86_400.0
"""A backoff lasts an hour at most, and each probe writes the row anew."""
_STEP: Final = 500
_CHUNKS_STEP: Final = 1000
_ATTEMPTS_STEP: Final = 2000
_TIMELINE_STEPS: Final = 10
"""Rows of large bodies looked at in a round: 250 MiB of mail, so that a terabyte is gone through in two days."""

# How far the content sweeper has come: the row is locked, so that one replica sweeps at a time. A clock that was ahead and was put right
# must not leave what ends from then on behind it.
_POSITION: Final[
    LiteralString
] = """SELECT least(greatest(position, to_timestamp(0)), now() - %(keep)s * interval '1 second'),
    position > now() - %(keep)s * interval '1 second'
    FROM sweep_progress WHERE name = 'content' FOR UPDATE SKIP LOCKED"""
# Messages whose recipients became final in a stretch of time, oldest first; all those with the same time together, so that none is left out.
_STRETCH: Final[LiteralString] = """SELECT max(finished), count(*) FROM (
    SELECT finished FROM history WHERE finished > %(position)s AND finished < now() - %(keep)s * interval '1 second'
    ORDER BY finished, id LIMIT %(count)s) h"""
# Those of them without a recipient or a mailbox; the row is locked meanwhile (FIN-02). A row that another transaction has locked becomes
# a sweep candidate, and is looked at again later.
_UNNAMED: Final[LiteralString] = """WITH found AS (
    SELECT m.id FROM message m
    WHERE m.id IN (SELECT message_id FROM history WHERE finished > %(position)s AND finished <= %(until)s)
      AND NOT EXISTS (SELECT FROM recipient r WHERE r.message_id = m.id)
      AND NOT EXISTS (SELECT FROM mailbox_message b WHERE b.message_id = m.id)
), ours AS (
    SELECT id FROM message WHERE id IN (SELECT id FROM found) FOR UPDATE SKIP LOCKED
), named AS (
    INSERT INTO sweep_candidate (message_id) SELECT id FROM found WHERE id NOT IN (SELECT id FROM ours) ORDER BY id ON CONFLICT DO NOTHING
)
SELECT id FROM ours"""
_DELETE: Final[LiteralString] = """WITH m AS (
        DELETE FROM message m WHERE m.id = ANY(%(id)s) AND NOT EXISTS (SELECT FROM recipient r WHERE r.message_id = m.id)
          AND NOT EXISTS (SELECT FROM mailbox_message b WHERE b.message_id = m.id) RETURNING m.id, m.chunks
    ), c AS (DELETE FROM chunk c USING m WHERE m.chunks > 0 AND c.message_id = m.id)
    SELECT count(*) FROM m"""
_ADVANCE: Final[LiteralString] = "UPDATE sweep_progress SET position = %(until)s WHERE name = 'content'"
# Messages that lost a mailbox (and others that were named to us).
_NAMED: Final[LiteralString] = """DELETE FROM sweep_candidate WHERE message_id IN (
    SELECT message_id FROM sweep_candidate WHERE due < now() LIMIT 500 FOR UPDATE SKIP LOCKED) RETURNING message_id"""
_UPLOADS: Final[LiteralString] = """WITH u AS (
        DELETE FROM upload WHERE message_id IN (
            SELECT message_id FROM upload WHERE started < now() - %(keep)s * interval '1 second' ORDER BY started LIMIT 20 FOR UPDATE SKIP LOCKED
        ) RETURNING message_id
    ), c AS (DELETE FROM chunk c USING u WHERE c.message_id = u.message_id)
    SELECT count(*) FROM u"""
_BARS: Final[LiteralString] = """WITH d AS (DELETE FROM message WHERE id IN (
        SELECT id FROM message WHERE barred AND accepted < now() - %(keep)s * interval '1 second' LIMIT 500 FOR UPDATE SKIP LOCKED) RETURNING id)
    SELECT count(*) FROM d"""
# Attempts of recipients that are no more: a late result may be recorded while its recipient becomes final. A page of the table at a time.
_ATTEMPTS: Final[LiteralString] = """WITH page AS (
        SELECT recipient_id FROM attempt WHERE recipient_id > %(past)s ORDER BY recipient_id LIMIT %(count)s
    ), d AS (
        DELETE FROM attempt a WHERE a.recipient_id IN (SELECT recipient_id FROM page)
          AND NOT EXISTS (SELECT FROM recipient r WHERE r.id = a.recipient_id) RETURNING 1
    ) SELECT (SELECT max(recipient_id) FROM page), (SELECT count(*) FROM page), (SELECT count(*) FROM d)"""
_USAGE: Final[LiteralString] = """WITH d AS (DELETE FROM account_usage WHERE (account, hour) IN (
        SELECT account, hour FROM account_usage WHERE hour < now() - interval '3 days' LIMIT 500) RETURNING account)
    SELECT count(*) FROM d"""
_DSNS: Final[LiteralString] = """WITH d AS (DELETE FROM dsn WHERE (recipient_id, kind, about_message_id) IN (
        SELECT recipient_id, kind, about_message_id FROM dsn WHERE made < now() - %(keep)s * interval '1 second' ORDER BY made LIMIT 500) RETURNING kind)
    SELECT count(*) FROM d"""
# Changes by administrators that are too old to be continued.
_OPERATIONS: Final[
    LiteralString
] = """WITH d AS (DELETE FROM admin_operation WHERE began < now() - %(keep)s * interval '1 second' RETURNING id)
    SELECT count(*) FROM d"""
# Sites without a failure, or without mail, for so long: a missing row means the same.
_SITES: Final[LiteralString] = """WITH d AS (DELETE FROM site WHERE name IN (
        SELECT name FROM site WHERE changed < now() - %(keep)s * interval '1 second' ORDER BY changed LIMIT 500)
        AND changed < now() - %(keep)s * interval '1 second' RETURNING name)
    SELECT count(*) FROM d"""
_EVENTS: Final[LiteralString] = """WITH d AS (DELETE FROM event WHERE id IN (
        SELECT id FROM event ORDER BY id LIMIT 500) AND at < now() - %(keep)s * interval '1 second' RETURNING id)
    SELECT count(*) FROM d"""
# Days of history that are over, still attached, half detached or detached: the process that began to drop one may have been killed.
_OLD: Final[
    LiteralString
] = """SELECT c.relname, i.inhdetachpending FROM pg_class c LEFT JOIN pg_inherits i ON i.inhrelid = c.oid
    WHERE c.relnamespace = 'queue'::regnamespace AND c.relkind = 'r' AND c.relname ~ '^history_[0-9]{8}$'
      AND c.relname < 'history_' || to_char((now() AT TIME ZONE 'UTC')::date - %(days)s::int, 'YYYYMMDD')
    ORDER BY c.relname"""
_DROP_OWNED: Final[LiteralString] = "SELECT queue.drop_history_partition(%(name)s::text)"
_LOCK: Final[LiteralString] = "SELECT pg_try_advisory_lock(hashtextextended('mailrail.queue.history', 0))"
_UNLOCK: Final[LiteralString] = "SELECT pg_advisory_unlock(hashtextextended('mailrail.queue.history', 0))"


class Upkeep:
    """Runs the sweepers of a process."""

    def __init__(self, settings: QueueSettings, database: Database) -> None:
        self._settings = settings
        self._lane = database.lane("upkeep")
        self._chunks_seen: tuple[UUID, int] | None = None
        self._attempts_seen = 0
        self._timeline_seen = 0
        self._dice = random.Random()
        self._log = log.get_logger()

    async def start(self) -> None:
        """What must be there before the first recipient becomes final: today's partition of history."""
        try:
            await self._lane.run(result_store.MAKE_PARTITIONS, {"ahead": result_store.PARTITIONS_AHEAD})
        except DATABASE_FAILURE as error:
            self._log.warning("cannot create partitions of history", error=str(error).strip())

    async def run(self) -> None:
        """Sweep until cancelled."""
        turns = 0
        while True:
            try:
                await self.sweep(everything=turns % 20 == 0)
            except TROUBLE as error:
                self._lane.warn(self._log, "cannot sweep; trying again", error)
            except Exception as error:
                faults.failed(self._log, "upkeep", error)
            turns += 1
            await asyncio.sleep(self._settings.upkeep_seconds * self._dice.uniform(0.8, 1.2))

    async def sweep(self, *, everything: bool = True) -> None:
        """One round; `everything`: also what need not be looked at often."""
        days = max(1, self._settings.history_days)
        keep = self._settings.keep_upload_seconds
        work: list[Callable[[], Awaitable[None]]] = [
            self._sweep_contents,
            self._sweep_named,
            partial(self._all, "upload", _UPLOADS, keep, 20),
            self._sweep_chunks,
            self._sweep_attempts,
            self._sweep_timeline,
        ]
        if everything:
            work += [
                partial(self._all, "bar", _BARS, _KEEP_BAR),
                partial(self._all, "usage", _USAGE, 0.0),
                partial(self._all, "dsn", _DSNS, (days + 30) * 86_400.0),
                partial(self._all, "event", _EVENTS, _KEEP_EVENT),
                partial(self._all, "site", _SITES, _KEEP_SITE),
                partial(self._all, "operation", _OPERATIONS, _KEEP_OPERATION),
                partial(self._partitions, days),
            ]
        for step in work:
            try:
                await step()
            except TROUBLE:
                raise
            except Exception as error:  # it costs itself: history has its partition of tomorrow all the same
                faults.failed(self._log, "upkeep", error)

    async def _sweep_contents(self) -> None:
        while await self.sweep_content():  # noqa: ASYNC110 -- steps of work, not waiting
            await asyncio.sleep(0.01)  # others come between

    async def _all(self, what: str, statement: LiteralString, keep: float, step: int = _STEP) -> None:
        """A step is bounded, the work is not: more may have come since the last round than one step takes."""
        while await self._count(what, statement, keep) >= step:  # noqa: ASYNC110 -- steps of work, not waiting
            await asyncio.sleep(0.01)

    async def _count(self, what: str, statement: LiteralString, keep: float) -> int:
        rows = await self._lane.run(statement, {"keep": keep} if "%(keep)s" in statement else None)
        count = int(rows[0][0])
        if count:
            metrics.SWEPT.labels(kind=what).inc(count)
        return count

    async def sweep_content(self) -> int:
        """One step of the content sweeper (FIN-02). Returns how many final recipients it passed."""
        async with self._lane.use() as connection, connection.transaction():
            keep = self._settings.keep_content_seconds
            rows = await run(connection, _POSITION, {"keep": keep})
            if not rows:
                return 0  # another replica is at it
            position, ahead = rows[0]
            if ahead:
                await run(connection, _ADVANCE, {"until": position})
            parameters = {"position": position, "keep": keep, "count": _STEP}
            (until, count), *_ = await run(connection, _STRETCH, parameters)
            if not count:
                return 0
            unnamed = [row[0] for row in await run(connection, _UNNAMED, {"position": position, "until": until})]
            deleted = 0
            if unnamed:
                (deleted,), *_ = await run(connection, _DELETE, {"id": unnamed})
            untaken = await probes.sweep(connection, position, until)
            await run(connection, _ADVANCE, {"until": until})
        metrics.SWEPT.labels(kind="message").inc(deleted)
        metrics.SWEPT.labels(kind="probe").inc(untaken)
        return int(count)

    async def _sweep_named(self) -> None:
        while True:
            async with self._lane.use() as connection, connection.transaction():
                ids = [row[0] for row in await run(connection, _NAMED)]
                if not ids:
                    return
                (deleted,), *_ = await run(connection, _DELETE, {"id": ids})
            metrics.SWEPT.labels(kind="message").inc(deleted)

    async def _sweep_chunks(self) -> None:
        """A step of the way through all chunks, round and round: none is without a message or an upload (ACC-02)."""
        async with self._lane.use() as connection:
            deleted, self._chunks_seen = await content_store.sweep_stray_chunks(
                connection, self._chunks_seen, _CHUNKS_STEP
            )
        if deleted:
            metrics.SWEPT.labels(kind="chunk").inc(deleted)
            self._log.warning("chunks without a message were deleted", chunks=deleted)

    async def _sweep_attempts(self) -> None:
        """A step of the way through all attempts, round and round: they are of live recipients (FIN-03)."""
        parameters = {"past": self._attempts_seen, "count": _ATTEMPTS_STEP}
        ((past, seen, deleted),) = await self._lane.run(_ATTEMPTS, parameters)
        self._attempts_seen = past if seen == _ATTEMPTS_STEP else 0
        if deleted:
            metrics.SWEPT.labels(kind="attempt").inc(deleted)

    async def _sweep_timeline(self) -> None:
        """Some steps of the way through the timeline: history takes over what is of a final recipient (ADM-05)."""
        for _ in range(_TIMELINE_STEPS):
            async with self._lane.use() as connection:
                self._timeline_seen, taken = await timeline.take_over(connection, self._timeline_seen, _ATTEMPTS_STEP)
            metrics.SWEPT.labels(kind="timeline").inc(taken)
            if not self._timeline_seen:
                return

    async def _partitions(self, days: int) -> None:
        """Tomorrow's partitions of history come, old ones go whole (FIN-03)."""
        await self._lane.run(result_store.MAKE_PARTITIONS, {"ahead": result_store.PARTITIONS_AHEAD})
        async with self._lane.use() as connection:
            if not (await run(connection, _LOCK))[0][0]:
                return  # another replica is at it
            try:
                for name, half in await run(connection, _OLD, {"days": days}):
                    await self._drop(connection, name, half)
            finally:
                if not connection.broken:
                    await run(connection, _UNLOCK)

    async def _drop(self, connection: Connection, name: str, half: bool | None) -> None:
        """Drop a day. `half`: its detaching was begun; None: it is detached."""
        table = psycopg.sql.Identifier("queue", name)
        try:
            if half is not None:
                # Detached first: that takes no lock that writers of today's partition would wait for. It waits for
                # older transactions instead, and may be cut off doing so.
                how = psycopg.sql.SQL("FINALIZE" if half else "CONCURRENTLY")
                await connection.execute(
                    psycopg.sql.SQL("ALTER TABLE queue.history DETACH PARTITION {} {}").format(table, how)
                )
            await connection.execute(psycopg.sql.SQL("DROP TABLE IF EXISTS {}").format(table))
        except psycopg.errors.InsufficientPrivilege:  # a role of the service's own, which owns no table (DBS-01)
            await run(connection, _DROP_OWNED, {"name": name})
        metrics.SWEPT.labels(kind="history_partition").inc()
        self._log.info("history partition dropped", partition=name)
