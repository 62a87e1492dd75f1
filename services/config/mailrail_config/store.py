"""Revisions, head, sealed values and consumers in Postgres. Each method is one transaction; names say which rule."""

import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from psycopg import AsyncConnection
from psycopg.rows import class_row
from psycopg_pool import AsyncConnectionPool

from mailrail.kit import log, migrations
from mailrail.kit.history import History, NewHistory
from mailrail.kit.postgres import settle, storable
from mailrail_config import metrics

CHANNEL = "mailrail_config"
"""NOTIFY channel: a new head, never a message (design 2)."""
LIVE_SECONDS = 10
"""A consumer seen within so many seconds is live (CFG-05)."""

Pool = AsyncConnectionPool[AsyncConnection[tuple[Any, ...]]]
Connection = AsyncConnection[Any]


@dataclass(frozen=True, slots=True)
class RevisionRow:
    """A revision without its body."""

    revision: int
    checksum: str
    created: datetime
    publisher: str
    summary: str
    diagnostics: str


@dataclass(frozen=True, slots=True)
class HeadRow:
    """The one row that says what is in force and who may publish."""

    revision: int | None
    pinned: bool
    pin_reason: str
    epoch: int
    publisher: str
    last_revision: int


@dataclass(frozen=True, slots=True)
class StoreStanding:
    """What the store holds at one moment."""

    head: int
    pinned: bool
    pin_reason: str
    newest: int
    newest_checksum: str
    history: int


@dataclass(frozen=True, slots=True)
class ConsumerRow:
    """Who runs what."""

    process: str
    role: str
    revision: int
    rejected: int
    error: str
    version: str
    problems: bytes
    """A Consumer with only `problems` and `gateway` set."""
    seen: datetime
    live: bool


@dataclass(frozen=True, slots=True)
class NewRevision:
    """What a publisher hands in, checked."""

    checksum: str
    body: bytes
    previous: bytes
    diagnostics: str
    summary: str
    secrets: tuple[str, ...]
    """Paths."""


@dataclass(frozen=True, slots=True)
class Sealed:
    """A sealed value for one role."""

    path: str
    role: str
    key_id: str
    sealed: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Published:
    """What became of a publish."""

    row: RevisionRow
    head: int
    pinned: bool
    activated: bool
    unchanged: bool
    history: int


@dataclass(frozen=True, slots=True)
class KeyUse:
    """How many stored values need a sealing key."""

    key_id: str
    values: int
    head_values: int


class Refused(Exception):
    """The store's state forbids the request; the text says why."""


class StaleEpoch(Refused):
    """Another publisher took over (CFG-04)."""


class SetBack(Refused):
    """The data went back since that epoch was given, and nobody has acquired a new one yet (CFG-08)."""


class OtherHead(Refused):
    """Head is not what the publisher built upon."""


class MissingValues(Refused):
    """Sealed values that the body refers to are neither stored nor sent along."""


class NoSuchRevision(Refused):
    """It was never published, or is older than the kept history."""


_INFO = "SELECT revision, checksum, created, publisher, summary, diagnostics FROM revisions WHERE revision = %s"
_HISTORY = (
    "SELECT revision, checksum, created, publisher, summary, diagnostics FROM revisions ORDER BY revision DESC LIMIT %s"
)
_INSERT = (
    "INSERT INTO revisions"
    " (revision, checksum, body, previous, diagnostics, summary, secrets, publisher, epoch)"
    " VALUES (%s, %s, %b, %b, %s, %s, %s, %s, %s)"
    " RETURNING revision, checksum, created, publisher, summary, diagnostics"
)
_HEAD = "SELECT revision, pinned, pin_reason, epoch, publisher, last_revision FROM head"
_STANDING = (
    "SELECT coalesce(h.revision, 0) AS head, h.pinned, h.pin_reason, coalesce(n.revision, 0) AS newest,"
    " coalesce(n.checksum, '') AS newest_checksum, d.number AS history FROM head h CROSS JOIN data_history d"
    " LEFT JOIN (SELECT revision, checksum FROM revisions ORDER BY revision DESC LIMIT 1) n ON true"
)

# Who published under an epoch of before is superseded, and no number means two revisions (CFG-08).
_RAISE = (
    "UPDATE head SET epoch = greatest(epoch, %(epoch)s) + 1000000, publisher = '', last_revision ="
    " greatest(last_revision, %(revision)s, (SELECT max(revision) FROM revisions)) + 1000"
)
_FURTHEST = 1 << 40
"""How far somebody's word of a number is believed: numbers must not run out."""


class RevisionStore:
    """Postgres behind the config service."""

    def __init__(self, pool: Pool, process: str = "config") -> None:
        self._pool = pool
        self._given = [0, 0]
        """The highest epoch, and the highest revision number, that anybody was seen to have."""
        self._log = log.get_logger()
        keys = migrations.keys("config")  # read once: each connection that opens asks
        self.data_history = History(
            f"{process}/{secrets.token_hex(6)}",
            counters="ARRAY[(SELECT epoch FROM head), (SELECT last_revision FROM head)]",
            given=lambda: self._given,
            behind="((SELECT max(revision) FROM revisions) > (SELECT last_revision FROM head)) IS TRUE",
            complete=lambda connection: migrations.refuse_incomplete(connection, "config", keys),
            raise_counters=self._raise,
            begun=self._report_history,
        )

    # --- the history of these data (HIS-01) ---

    async def beat(self) -> None:
        """Whether what was written last is still there. Raises psycopg errors."""
        async with self._pool.connection() as connection:
            if self.data_history.number is None:
                await self.data_history.begin(connection)
            else:
                await self.data_history.beat(connection)

    async def forget(self) -> None:
        """A clean stop: the last word of this process. Raises psycopg errors."""
        if self.data_history.number is not None:
            async with self._pool.connection() as connection:
                await self.data_history.leave(connection)

    def _report_history(self, new: NewHistory) -> None:
        metrics.NEW_HISTORIES.inc()
        self._log.error(
            "database was set back: publishers must acquire a new epoch",
            why=new.why or "another process noticed first",
            history=new.number,
            before=new.before,
        )

    async def _raise(self, connection: Connection) -> None:
        await connection.execute(_RAISE, {"epoch": self._given[0], "revision": self._given[1]})

    def _remember_given(self, epoch: int, revision: int) -> None:
        self._given = [max(self._given[0], epoch), max(self._given[1], revision)]

    async def _compare(self, connection: Connection, epoch: int, revision: int) -> None:
        """Somebody has these. If they are beyond what the database has given, it went back. Outside a transaction."""
        number = self.data_history.number
        if number is None or (epoch <= self._given[0] and revision <= self._given[1]):
            return
        async with connection.cursor(row_factory=class_row(HeadRow)) as cursor:
            head = await (await cursor.execute(_HEAD)).fetchone()
        assert head is not None, "the migration made it"
        if head.epoch < epoch < _FURTHEST or head.last_revision < revision < _FURTHEST:
            self._remember_given(min(epoch, _FURTHEST), min(revision, _FURTHEST))
            reason = "somebody has a revision or an epoch that it has not given yet"
            await self.data_history.doubt(connection, number, reason)
        else:
            self._remember_given(head.epoch, head.last_revision)

    # --- reading ---

    async def head(self) -> HeadRow:
        """What is in force."""
        async with self._pool.connection() as connection, connection.cursor(row_factory=class_row(HeadRow)) as cursor:
            row = await (await cursor.execute(_HEAD)).fetchone()
        assert row is not None, "the migration made it"
        self._remember_given(row.epoch, row.last_revision)
        return row

    async def standing(self) -> StoreStanding:
        """Head, the newest revision and the history of the data, all of one moment."""
        async with (
            self._pool.connection() as connection,
            connection.cursor(row_factory=class_row(StoreStanding)) as cursor,
        ):
            row = await (await cursor.execute(_STANDING)).fetchone()
        assert row is not None, "the migration made both rows"
        return row

    async def info(self, revision: int) -> RevisionRow | None:
        """A revision without its body."""
        async with (
            self._pool.connection() as connection,
            connection.cursor(row_factory=class_row(RevisionRow)) as cursor,
        ):
            await cursor.execute(_INFO, (revision,))
            return await cursor.fetchone()

    async def body(self, revision: int) -> bytes | None:
        """The canonical bytes of a revision."""
        async with self._pool.connection() as connection:
            cursor = await connection.execute("SELECT body FROM revisions WHERE revision = %s", (revision,))
            row = await cursor.fetchone()
        return bytes(row[0]) if row is not None else None

    async def history(self, limit: int) -> list[RevisionRow]:
        """The newest revisions first."""
        async with (
            self._pool.connection() as connection,
            connection.cursor(row_factory=class_row(RevisionRow)) as cursor,
        ):
            await cursor.execute(_HISTORY, (limit,))
            return await cursor.fetchall()

    async def sealed(self, role: str, paths: Sequence[str]) -> list[Sealed]:
        """The sealed values of a role. Values that are not there are simply absent."""
        async with self._pool.connection() as connection, connection.cursor(row_factory=class_row(Sealed)) as cursor:
            await cursor.execute(
                "SELECT path, role, key_id, sealed FROM sealed_values"
                " WHERE role = %s AND path = ANY (%s) ORDER BY path",
                (role, list(paths)),
            )
            return await cursor.fetchall()

    async def keys(self) -> list[KeyUse]:
        """Which sealing keys stored values need (CFG-02)."""
        async with self._pool.connection() as connection, connection.cursor(row_factory=class_row(KeyUse)) as cursor:
            await cursor.execute(
                "SELECT s.key_id, count(*) AS values, count(h.path) AS head_values FROM sealed_values s"
                " LEFT JOIN (SELECT DISTINCT unnest(secrets) AS path FROM revisions"
                " WHERE revision = (SELECT revision FROM head)) h ON h.path = s.path"
                " GROUP BY s.key_id ORDER BY s.key_id"
            )
            return await cursor.fetchall()

    # --- publishing ---

    @asynccontextmanager
    async def _change(self) -> AsyncIterator[Connection]:
        """A transaction; what it wrote, and what it found written, is durable when this ends (DUR-01)."""
        async with self._pool.connection() as connection:
            async with connection.transaction():
                yield connection
            await settle(connection)

    async def acquire(self, identity: str) -> tuple[HeadRow, RevisionRow | None, bytes]:
        """A new epoch (CFG-04); with it head, its revision, and what the newest stored one hands to compile()."""
        async with self._change() as connection, connection.cursor(row_factory=class_row(HeadRow)) as cursor:
            await cursor.execute(
                "UPDATE head SET epoch = epoch + 1, publisher = %s"
                " RETURNING revision, pinned, pin_reason, epoch, publisher, last_revision",
                (storable(identity),),
            )
            head = await cursor.fetchone()
            assert head is not None, "the migration made it"
            self._remember_given(head.epoch, 0)
            latest = await connection.execute("SELECT previous FROM revisions ORDER BY revision DESC LIMIT 1")
            newest = await latest.fetchone()
            info = await self._info(connection, head.revision) if head.revision is not None else None
        return head, info, bytes(newest[0]) if newest is not None else b""

    async def previous(self) -> bytes:
        """What the newest stored revision hands to compile(); empty when nothing was published yet."""
        async with self._pool.connection() as connection:
            latest = await connection.execute("SELECT previous FROM revisions ORDER BY revision DESC LIMIT 1")
            newest = await latest.fetchone()
        return bytes(newest[0]) if newest is not None else b""

    async def _info(self, connection: Connection, revision: int) -> RevisionRow | None:
        async with connection.cursor(row_factory=class_row(RevisionRow)) as cursor:
            await cursor.execute(_INFO, (revision,))
            return await cursor.fetchone()

    async def publish(
        self,
        epoch: int,
        expected_head: int,
        new: NewRevision,
        sealed: Sequence[Sealed],
        needed: Mapping[str, frozenset[str]],
    ) -> Published:
        """Store a revision and make it head unless head is pinned. Raises Refused and changes nothing.

        `needed`: the paths that each role's values must be there for.
        """
        async with self._pool.connection() as connection:
            await self._compare(connection, epoch, expected_head if epoch > self._given[0] else 0)
        async with self._change() as connection:
            head = await self._lock_head(connection)
            history = await self._history_number(connection)
            if epoch != head.epoch and not head.publisher:
                raise SetBack(f"the database went back since epoch {epoch} was given; acquire a new one")
            if epoch != head.epoch:
                raise StaleEpoch(
                    f"epoch {epoch} was superseded: {head.publisher or 'another publisher'} has epoch {head.epoch}"
                )
            if expected_head != (head.revision or 0):
                raise OtherHead(f"head is {head.revision or 0}, not {expected_head}")
            newest = await self._newest(connection)
            await self._add_values(connection, sealed)
            await self._require_values(connection, needed)
            if newest is not None and newest.checksum == new.checksum:
                await connection.execute(
                    "UPDATE revisions SET previous = %b, diagnostics = %s, summary = %s WHERE revision = %s"
                    " AND (previous, diagnostics, summary) IS DISTINCT FROM (%b, %s, %s)",
                    (
                        *(new.previous, new.diagnostics, new.summary, newest.revision),
                        *(new.previous, new.diagnostics, new.summary),
                    ),
                )
                return Published(
                    newest, head.revision or 0, head.pinned, not head.pinned, unchanged=True, history=history
                )
            number = head.last_revision + 1
            async with connection.cursor(row_factory=class_row(RevisionRow)) as cursor:
                await cursor.execute(
                    _INSERT,
                    (
                        *(number, new.checksum, new.body, new.previous, new.diagnostics, new.summary),
                        *(list(new.secrets), head.publisher, epoch),
                    ),
                )
                row = await cursor.fetchone()
            assert row is not None
            current = head.revision if head.pinned else number
            await connection.execute("UPDATE head SET revision = %s, last_revision = %s", (current, number))
            if not head.pinned:
                await self._announce(connection, number)
        return Published(row, current or 0, head.pinned, not head.pinned, unchanged=False, history=history)

    async def _lock_head(self, connection: Connection) -> HeadRow:
        async with connection.cursor(row_factory=class_row(HeadRow)) as cursor:
            row = await (await cursor.execute(_HEAD + " FOR UPDATE")).fetchone()
        assert row is not None, "the migration made it"
        return row

    async def _history_number(self, connection: Connection) -> int:
        row = await (await connection.execute("SELECT number FROM data_history")).fetchone()
        assert row is not None, "the migration made it"
        return int(row[0])

    async def _newest(self, connection: Connection) -> RevisionRow | None:
        async with connection.cursor(row_factory=class_row(RevisionRow)) as cursor:
            await cursor.execute(_HISTORY, (1,))
            return await cursor.fetchone()

    async def _add_values(self, connection: Connection, sealed: Sequence[Sealed]) -> None:
        if not sealed:
            return
        await connection.execute(
            "INSERT INTO sealed_values (path, role, key_id, sealed)"
            " SELECT * FROM unnest(%s::text[], %s::text[], %s::text[], %b::bytea[])"
            " ON CONFLICT (role, path) DO NOTHING",
            (
                [s.path for s in sealed],
                [s.role for s in sealed],
                [s.key_id for s in sealed],
                [s.sealed for s in sealed],
            ),
        )

    async def _require_values(self, connection: Connection, needed: Mapping[str, frozenset[str]]) -> None:
        for role, paths in sorted(needed.items()):
            if not paths:
                continue
            cursor = await connection.execute(
                "SELECT p.path FROM unnest(%s::text[]) AS p (path) WHERE NOT EXISTS"
                " (SELECT FROM sealed_values s WHERE s.role = %s AND s.path = p.path) ORDER BY p.path",
                (sorted(paths), role),
            )
            missing = [row[0] for row in await cursor.fetchall()]
            if missing:
                more = f", and {len(missing) - 1} more" if len(missing) > 1 else ""
                raise MissingValues(
                    f"the sealed value of {missing[0]} for {role} is missing{more}; send it with the revision"
                )

    async def _announce(self, connection: Connection, revision: int) -> None:
        await connection.execute("SELECT pg_notify(%s, %s)", (CHANNEL, str(revision)))

    # --- rollback ---

    async def roll_back(self, revision: int, reason: str) -> RevisionRow:
        """Pin head to a stored revision (CFG-04). Raises NoSuchRevision."""
        async with self._change() as connection:
            await self._lock_head(connection)
            row = await self._info(connection, revision)
            if row is None:
                raise NoSuchRevision(f"there is no revision {revision}; see the history for those that are kept")
            await connection.execute(
                "UPDATE head SET revision = %s, pinned = true, pin_reason = %s", (revision, storable(reason))
            )
            await self._announce(connection, revision)
        return row

    async def unpin(self) -> RevisionRow | None:
        """Make the newest stored revision head again. None when nothing was ever published."""
        async with self._change() as connection:
            await self._lock_head(connection)
            newest = await self._newest(connection)
            await connection.execute(
                "UPDATE head SET revision = %s, pinned = false, pin_reason = ''",
                (newest.revision if newest is not None else None,),
            )
            if newest is not None:
                await self._announce(connection, newest.revision)
        return newest

    # --- consumers (CFG-05) ---

    async def report(
        self, process: str, role: str, revision: int, rejected: int, error: str, version: str, problems: bytes
    ) -> None:
        """A heartbeat. `problems`: a Consumer with only `problems` and `gateway` set."""
        async with self._pool.connection() as connection:
            await self._compare(connection, 0, revision)
            await connection.execute(
                "INSERT INTO consumers (process, role, revision, rejected, error, version, problems, seen)"
                " VALUES (%s, %s, %s, %s, %s, %s, %s, now()) ON CONFLICT (process, role) DO UPDATE SET"
                " revision = excluded.revision, rejected = excluded.rejected, error = excluded.error,"
                " version = excluded.version, problems = excluded.problems, seen = excluded.seen",
                (process, role, revision, rejected, storable(error), storable(version), problems),
            )

    async def leave(self, process: str, role: str) -> None:
        """A clean stop."""
        async with self._pool.connection() as connection:
            await connection.execute("DELETE FROM consumers WHERE process = %s AND role = %s", (process, role))

    async def consumers(self) -> list[ConsumerRow]:
        """Everyone heard of within a day."""
        async with (
            self._pool.connection() as connection,
            connection.cursor(row_factory=class_row(ConsumerRow)) as cursor,
        ):
            await cursor.execute(
                "SELECT process, role, revision, rejected, error, version, problems, seen,"
                " seen > now() - make_interval(secs => %s) AS live"
                " FROM consumers WHERE seen > now() - interval '1 day' ORDER BY role, process",
                (LIVE_SECONDS,),
            )
            return await cursor.fetchall()

    # --- upkeep ---

    async def prune(self, keep: int) -> tuple[int, int]:
        """Drop revisions past the history, values that none refers to, and consumers of yesterday.

        Values younger than an hour stay: a publisher may be about to refer to them. Returns how many revisions and
        values went.
        """
        async with self._pool.connection() as connection, connection.transaction():
            await self._lock_head(connection)
            revisions = await connection.execute(
                "DELETE FROM revisions WHERE revision NOT IN (SELECT revision FROM revisions ORDER BY revision DESC"
                " LIMIT %s) AND revision IS DISTINCT FROM (SELECT revision FROM head)",
                (keep,),
            )
            values = await connection.execute(
                "DELETE FROM sealed_values s WHERE created < now() - interval '1 hour' AND NOT EXISTS"
                " (SELECT FROM (SELECT DISTINCT unnest(secrets) AS path FROM revisions) u WHERE u.path = s.path)"
            )
            await connection.execute("DELETE FROM consumers WHERE seen < now() - interval '1 day'")
        return revisions.rowcount, values.rowcount
