"""What the config service does: follow head, serve it to watchers by role, take in revisions, keep order.

    HeadFollower    one task per process: LISTEN, and a look at head each second in case a notification got lost
                    (CFG-06). It holds head's body and sealed values in memory, so that watchers cost no query, and so
                    that Postgres may be away while services go on watching.
    Publishing      checks a revision before the store decides about epoch and head (CFG-04).
    upkeep          prunes history and values that nothing refers to; counts consumers.

Replicas share nothing but Postgres: any of them may take a publish, all of them see head move.
"""

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

import psycopg
from psycopg import AsyncConnection
from psycopg_pool import PoolTimeout

from mailrail.core.revision.revision import Revision, Role, UnreadableRevision, checksum, decode, secrets_for
from mailrail.core.revision.sealing import key_of
from mailrail.kit import log, migrations, postgres
from mailrail.kit.postgres import storable
from mailrail.kit.run import end
from mailrail.kit.server_watch import ServerWatch
from mailrail_config import metrics
from mailrail_config.settings import ConfigSettings
from mailrail_config.store import CHANNEL, NewRevision, Published, Refused, RevisionStore, Sealed

DATABASE_ERRORS = (psycopg.Error, PoolTimeout, OSError)
"""Postgres is unreachable or refuses; the caller may try again."""
_BEAT = 2.0
"""Seconds between looks whether the database went back (HIS-01)."""
_TICK = 1.0
_GIVE_UP = 30.0
"""Seconds for which the server is silent after which head is followed on another connection."""
DIAGNOSTICS_LIMIT = 4 * 1024 * 1024
"""Octets of diagnostics that are stored with a revision."""

ROLES = tuple(Role)


class BadRevision(ValueError):
    """A publisher handed in something that no service could use; the text says what."""


@dataclass(frozen=True, slots=True)
class RoleRevision:
    """Head as one role gets it."""

    revision: int
    checksum: str
    body: bytes = field(repr=False)
    sealed: tuple[Sealed, ...] = field(repr=False, default=())


@dataclass(frozen=True, slots=True)
class Head:
    """What is in force, in memory."""

    revision: int = 0
    pinned: bool = False
    pin_reason: str = ""
    history: int = 0
    """Of the database (HIS-01): the same number in another one may be another revision."""
    deliveries: Mapping[Role, RoleRevision] = field(default_factory=dict)


class HeadFollower:
    """Keeps `head` at what Postgres says, and wakes watchers when it moves."""

    def __init__(
        self,
        settings: ConfigSettings,
        login: postgres.Login,
        store: RevisionStore,
        ready: Callable[[bool], Awaitable[None]],
    ) -> None:
        self.head = Head()
        self._settings, self._login, self._store, self._ready = settings, login, store, ready
        self.watch = ServerWatch(login, "mailrail config", "config", changed=lambda: None)
        self._moved = asyncio.Condition()
        self._beat_at = 0.0
        self._log = log.get_logger()

    async def wait(self, than: Head, within: float) -> Head:
        """Head as soon as it is another than `than`, in revision or history; or as it is after so many seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within), self._moved:
                await self._moved.wait_for(
                    lambda: (self.head.revision, self.head.history) != (than.revision, than.history)
                )
        return self.head

    async def run(self) -> None:
        """Follow head until cancelled. Without Postgres the last head is served on, and readiness is withdrawn."""
        trouble = ""
        while True:
            try:
                async with await self._login.connect("mailrail config follower") as connection:
                    await postgres.refuse_shared_sessions(connection)
                    await postgres.enter(connection, "config")
                    await migrations.check(connection, "config")
                    try:
                        await self._follow(connection)
                    except psycopg.errors.ReadOnlySqlTransaction as error:  # LISTEN is nothing for a standby
                        raise psycopg.OperationalError(postgres.why_read_only(connection, error)) from error
            except migrations.Unfit as error:
                problem = str(error)
                if self._settings.migrate and isinstance(error, migrations.SchemaOutdated):
                    problem = await self._migrate() or problem
            except DATABASE_ERRORS as error:
                problem = f"Postgres is unreachable: {str(error).strip()}"
            except Exception as error:  # whatever it is: the last head is served on
                problem = f"a mistake of ours: {type(error).__name__}: {error}"[:500]
            metrics.POSTGRES_UP.set(0)
            await self._ready(False)
            if problem != trouble:
                self._log.warning("cannot follow head", reason=problem)
                trouble = problem
            await asyncio.sleep(0.5)

    async def _migrate(self) -> str:
        """Bring all schemas up to date; why that cannot be had, or nothing."""
        try:
            done = await asyncio.to_thread(migrations.migrate, self._login.conninfo())
        except (migrations.MigrationError, psycopg.Error) as error:
            return f"the schemas cannot be brought up to date: {str(error).strip()}"
        if done:
            self._log.warning("the schemas were older and are up to date now", steps=[d.migration.label for d in done])
        return ""

    async def _follow(self, connection: AsyncConnection[tuple[object, ...]]) -> None:
        await connection.execute(psycopg.sql.SQL("LISTEN {}").format(psycopg.sql.Identifier(CHANNEL)))
        while True:
            await self._look_in_time()
            metrics.POSTGRES_UP.set(1)
            await self._ready(True)
            async for _ in connection.notifies(timeout=self._settings.poll_seconds, stop_after=1):
                pass

    async def _look_in_time(self) -> None:
        """`look`, not ready while the server is silent. Raises psycopg.OperationalError once that lasts: connections of
        now may lead to another server."""
        look = asyncio.create_task(self.look())
        silent = 0.0
        try:
            while not (await asyncio.wait((look,), timeout=_TICK))[0]:
                if not self.watch.silent:
                    continue
                silent += _TICK
                metrics.POSTGRES_UP.set(0)
                await self._ready(False)
                if silent >= _GIVE_UP:
                    raise psycopg.OperationalError("it does not answer; connecting anew")
            look.result()
        finally:
            await end(look)

    async def look(self) -> None:
        """Read head, and its content if it moved. Raises psycopg errors."""
        loop = asyncio.get_running_loop()
        if loop.time() >= self._beat_at or self._store.data_history.number is None:
            await self._store.beat()
            self._beat_at = loop.time() + _BEAT
        history = self._store.data_history.number or 0
        row = await self._store.head()
        number = row.revision or 0
        moved = (number, history) != (self.head.revision, self.head.history)
        if moved:
            deliveries = await self._load(number) if number else {}
            if deliveries is None:
                return  # it moved on while it was read
        else:
            deliveries = self.head.deliveries
        self.head = Head(number, row.pinned, row.pin_reason, history, deliveries)
        metrics.HEAD.set(number)
        metrics.PINNED.set(row.pinned)
        if moved:
            self._log.info("head moved", revision=number, pinned=row.pinned, history=history)
            async with self._moved:
                self._moved.notify_all()

    async def _load(self, number: int) -> Mapping[Role, RoleRevision] | None:
        info, body = await self._store.info(number), await self._store.body(number)
        if info is None or body is None:
            return None
        try:
            revision = await asyncio.to_thread(decode, body)
        except UnreadableRevision as error:
            # After a downgrade, or beside newer replicas. Watchers hear that there is a head and keep what they have:
            # an older one would take back what a newer replica gave them.
            self._log.warning("revision not served: this version cannot read it", revision=number, reason=str(error))
            return {}
        deliveries: dict[Role, RoleRevision] = {}
        for role in ROLES:
            paths = secrets_for(revision, role)
            sealed = await self._store.sealed(role.value, sorted(paths)) if paths else []
            if len(sealed) < len(paths):
                # Half a configuration would be worse than the one before; the publisher's next publish heals it.
                self._log.error(
                    "revision not served: sealed values are missing", revision=number, role=role, of=len(paths)
                )
                return None
            deliveries[role] = RoleRevision(number, info.checksum, body, tuple(sealed))
        return deliveries


@dataclass(frozen=True, slots=True)
class Submission:
    """A publish request as it came."""

    epoch: int
    expected_head: int
    body: bytes
    previous: bytes
    diagnostics: str
    summary: str
    sealed: Sequence[tuple[str, str, bytes]]
    """Path, role, octets."""


def needed_values(revision: Revision) -> dict[str, frozenset[str]]:
    """The paths of sealed values that each role must get with a revision."""
    return {role.value: secrets_for(revision, role) for role in ROLES}


def _sealed(path: str, role: str, octets: bytes) -> Sealed:
    if role not in [r.value for r in ROLES]:
        raise BadRevision(f"{role!r} is not a role; the roles are {', '.join(ROLES)}")
    key_id = key_of(octets)
    if not path or not key_id or len(octets) <= len(key_id) + 1:
        raise BadRevision(f"the sealed value of {path or 'an empty path'} is not valid")
    return Sealed(path, role, key_id, octets)


async def publish(store: RevisionStore, submission: Submission) -> Published:
    """Check and store a revision (CFG-04). Raises BadRevision, Refused, or psycopg errors."""
    try:
        revision = await asyncio.to_thread(decode, submission.body)
        if submission.diagnostics:
            json.loads(submission.diagnostics)
        if len(submission.diagnostics) > DIAGNOSTICS_LIMIT:
            raise BadRevision(f"diagnostics are larger than {DIAGNOSTICS_LIMIT} octets")
        needed = needed_values(revision)
        new = NewRevision(
            checksum(submission.body),
            submission.body,
            submission.previous,
            submission.diagnostics,
            storable(submission.summary[:1000]),
            tuple(sorted(frozenset().union(*needed.values()))),
        )
        sealed = [_sealed(*value) for value in submission.sealed]
        published = await store.publish(submission.epoch, submission.expected_head, new, sealed, needed)
    except (UnreadableRevision, json.JSONDecodeError) as error:
        metrics.PUBLISHES.labels("refused").inc()
        raise BadRevision(f"the revision cannot be read: {error}") from error
    except (BadRevision, Refused):
        metrics.PUBLISHES.labels("refused").inc()
        raise
    result = "unchanged" if published.unchanged else "activated" if published.activated else "stored"
    metrics.PUBLISHES.labels(result).inc()
    return published


async def keep_up(settings: ConfigSettings, store: RevisionStore, follower: HeadFollower) -> None:
    """Count consumers, and prune now and then, until cancelled. Trouble with Postgres only postpones it."""
    logger = log.get_logger()
    loop = asyncio.get_running_loop()
    prune_at = loop.time() + min(60.0, settings.upkeep_seconds)
    while True:
        await asyncio.sleep(min(5.0, settings.upkeep_seconds))
        try:
            await _count(store, follower.head.revision)
            if loop.time() >= prune_at:
                prune_at = loop.time() + settings.upkeep_seconds
                revisions, values = await store.prune(settings.history)
                if revisions or values:
                    logger.info("history pruned", revisions=revisions, sealed_values=values)
        except DATABASE_ERRORS:
            continue  # the follower says so
        except Exception as error:
            logger.error("upkeep failed", error=f"{type(error).__name__}: {error}"[:500])


async def _count(store: RevisionStore, head: int) -> None:
    states = dict.fromkeys(((role.value, state) for role in ROLES for state in ("current", "behind", "rejecting")), 0)
    for consumer in await store.consumers():
        if not consumer.live:
            continue
        if consumer.revision == head:
            state = "current"
        else:
            state = "rejecting" if consumer.rejected == head and head else "behind"
        key = (consumer.role, state)
        if key in states:
            states[key] += 1
    for (role, state), count in states.items():
        metrics.CONSUMERS.labels(role, state).set(count)
