"""The history of a service's data in Postgres: is what was committed still there (HIS-01)?

Each process writes a random word into a row of its own with each heartbeat, and reads the one before. It is told that
the data went back when it finds neither the word that it knows to be committed nor one that it was writing, when the
server or the table is another than the one on which the history began, or when counters are behind what they gave. Then
a new history begins, under a number that is drawn at random: one that is counted up would go back with the data. It is
drawn in place of the number that was found, so that of several processes that notice at once the first draws and the
others adopt.

A schema that takes part has the tables `data_history` (one row) and `data_witness`:

    CREATE TABLE data_history (
        one boolean PRIMARY KEY DEFAULT true CHECK (one), number integer NOT NULL, predecessor integer,
        system text NOT NULL DEFAULT '', timeline integer NOT NULL DEFAULT 0,
        began timestamptz NOT NULL DEFAULT now(), reason text NOT NULL DEFAULT '');
    CREATE TABLE data_witness (process text PRIMARY KEY, last_written bigint NOT NULL,
        seen timestamptz NOT NULL DEFAULT now());

Connections look into the schema by their search_path.
"""

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, LiteralString

import psycopg
from psycopg import AsyncConnection

from mailrail.core.history import DatabaseState, HistoryVerdict, ServerIdentity, Words, judge, why
from mailrail.core.ids import HISTORIES
from mailrail.kit.postgres import SERVER

Connection = AsyncConnection[Any]

_TRIES = 5
_FORGET: Final[LiteralString] = "DELETE FROM data_witness WHERE seen < now() - interval '30 days'"
# A table that was made anew has another number, and is as good as another server: a dump was put back.
_SEEN: Final[LiteralString] = f"""h.number, h.predecessor, h.system, h.timeline, {SERVER} || '/' || h.tableoid,
    pg_is_in_recovery()"""
_WITNESS: Final[LiteralString] = """INSERT INTO data_witness (process, last_written) VALUES (%(process)s, %(word)s)
    ON CONFLICT (process) DO UPDATE SET last_written = excluded.last_written, seen = now()"""
_DRAW: Final[LiteralString] = """UPDATE data_history SET number = %(number)s, predecessor = %(followed)s,
    system = %(system)s, timeline = %(timeline)s, began = now(), reason = %(why)s
    WHERE number = %(found)s RETURNING number"""
_NAME: Final[LiteralString] = "UPDATE data_history SET system = %(system)s, timeline = %(timeline)s WHERE system = ''"
_LEAVE: Final[LiteralString] = "DELETE FROM data_witness WHERE process = %(process)s"


@dataclass(frozen=True, slots=True)
class NewHistory:
    """What a process is told when it is in another history than it was."""

    number: int
    before: int
    why: str
    """Empty: another process noticed first."""


class History:
    """One process's knowledge of the history of its data."""

    def __init__(
        self,
        process: str,
        *,
        counters: LiteralString,
        given: Callable[[], Sequence[int]],
        behind: LiteralString,
        complete: Callable[[Connection], Awaitable[None]],
        raise_counters: Callable[[Connection], Awaitable[None]],
        begun: Callable[[NewHistory], None],
    ) -> None:
        """`process`: names this run of the process, and no other, ever.

        `counters`: an SQL expression, bigint[], where the counters of the schema stand; `given`: what this process
        knows to be given from each. `behind`: an SQL expression, whether rows are there that are beyond the counters;
        asked once, at the start. `complete` raises psycopg.OperationalError while the data are being restored: what is
        half there tells nothing. `raise_counters` lifts them beyond all that is known, within a transaction.
        `begun` is told of a new history at once, before any other statement runs.
        """
        self.number: int | None = None
        """Of the history that this process is in; None: it has not looked yet."""
        self._process = process
        self._given, self._complete, self._raise, self._begun = given, complete, raise_counters, begun
        self._words = Words()
        self._lock = asyncio.Lock()
        """Held by whoever takes this process into another history."""
        self._resolved = 0
        self._left = False
        # ruff: noqa: S608 -- put together from constants alone
        seen: LiteralString = f"{_SEEN}, {counters}"
        self._read: LiteralString = (
            f"SELECT {seen}, (SELECT last_written FROM data_witness WHERE process = %(process)s), false"
            " FROM data_history h"
        )
        # A word takes the place of one that is known, and of no other: on data that went back this writes nothing,
        # however its answer gets lost, and the next look finds what this one found.
        self._beat: LiteralString = f"""WITH before AS (
                SELECT last_written FROM data_witness WHERE process = %(process)s
            ), written AS (
                UPDATE data_witness SET last_written = %(word)s, seen = now()
                WHERE process = %(process)s AND last_written = ANY(%(known)s::bigint[]) RETURNING last_written
            ) SELECT {seen}, (SELECT last_written FROM before), EXISTS (SELECT FROM written) FROM data_history h"""
        self._ahead: LiteralString = f"SELECT {behind}"

    # --- for those who use the database ---

    async def begin(self, connection: Connection) -> int:
        """Take part, at the start of the process. The number of the history. Raises psycopg.Error."""
        await connection.execute(_FORGET)
        await self._resolve(connection)
        assert self.number is not None
        return self.number

    async def beat(self, connection: Connection) -> None:
        """Write a word, read the one before. Raises psycopg.Error; `begun` is called where the history is another."""
        if self._left:
            return
        known = self._words.known(self._words.since)
        word = self._words.next(secrets.randbits(62))
        resolved = self._resolved
        look = await self._look(connection, self._beat, {"word": word, "known": known})
        if look.judge(self.number) is not HistoryVerdict.SAME:
            await self._resolve(connection)
        elif look.written and resolved == self._resolved and not self._lock.locked():
            self._words.commit(word)

    async def check(self, connection: Connection) -> None:
        """Look, and write nothing: by a new connection, before its first statement. Raises as `beat`."""
        if self.number is not None and not self._left:
            await self._complete(connection)
            look = await self._look(connection, self._read, {})
            if look.judge(self.number) is not HistoryVerdict.SAME:
                await self._resolve(connection)

    async def doubt(self, connection: Connection, number: int, reason: str) -> None:
        """Somebody has what the data of history `number` have not given yet: a new history begins, unless this process
        is in another by now. Raises as `beat`."""
        if not self._left:
            await self._resolve(connection, number, reason)

    async def leave(self, connection: Connection) -> None:
        """A clean stop: from now on nothing is compared, for the word to compare with is gone, and calls that are still
        under way would find a new history. Raises psycopg.Error."""
        self._left = True
        await connection.execute(_LEAVE, {"process": self._process})

    # --- how ---

    async def _look(self, connection: Connection, statement: LiteralString, parameters: dict[str, Any]) -> "_Look":
        since, given = self._words.since, tuple(self._given())
        row = await _one(connection, statement, {"process": self._process, **parameters})
        number, followed, system, timeline, server_timeline, server_system, standby, counters, word, written = row
        if standby:
            raise psycopg.OperationalError("postgres is a read-only standby: another server has taken its place")
        return _Look(
            DatabaseState(
                number, followed, ServerIdentity(system, timeline), ServerIdentity(server_system, server_timeline)
            ),
            word in self._words.known(since),
            any(at < known for at, known in zip(counters, given, strict=True)),
            written,
        )

    async def _resolve(self, connection: Connection, number: int | None = None, reason: str = "") -> None:
        """Be in the history that the data are of. A new one begins where they went back, or, for `reason`, if this
        process is in history `number`."""
        async with self._lock:
            own = self.number
            if reason and own != number:
                return
            await self._complete(connection)
            for _ in range(_TRIES):
                look = await self._look(connection, self._read, {})
                if own is None:
                    look = replace(look, behind=bool((await _one(connection, self._ahead, {}))[0]))
                verdict = look.judge(own)
                if verdict is HistoryVerdict.SAME:
                    if not reason:
                        return
                    verdict = HistoryVerdict.DRAW
                told = reason or why(own, look.seen, word_known=look.word_known, behind=look.behind)
                if await self._enter(connection, own, look, verdict, told):
                    return
        raise psycopg.OperationalError("the history of the database keeps changing")

    async def _enter(
        self, connection: Connection, own: int | None, look: "_Look", verdict: HistoryVerdict, told: str
    ) -> bool:
        """Draw a number, or take the one that is there; with it our word, and counters beyond what was given. False:
        somebody else drew at this moment."""
        seen, number = look.seen, look.seen.number
        server = {"system": seen.server.system, "timeline": seen.server.timeline}
        word = self._words.next(secrets.randbits(62))
        try:
            async with connection.transaction():
                if verdict is HistoryVerdict.DRAW:
                    while number in (seen.number, own):
                        number = secrets.randbelow(HISTORIES)
                    followed = seen.number if own is None else own
                    draw = {"number": number, "found": seen.number, "followed": followed, "why": told, **server}
                    if not await (await connection.execute(_DRAW, draw)).fetchall():
                        return False
                else:
                    await connection.execute(_NAME, server)
                await connection.execute(_WITNESS, {"process": self._process, "word": word})
                if verdict is HistoryVerdict.DRAW or look.behind:
                    await self._raise(connection)
        except psycopg.errors.ReadOnlySqlTransaction as error:
            raise psycopg.OperationalError(f"postgres takes no writes: {error}") from error
        self._resolved += 1
        self._words.commit(word)
        self.number = number
        if own is not None and number != own:
            self._begun(NewHistory(number, own, told if verdict is HistoryVerdict.DRAW else ""))
        return True


@dataclass(frozen=True, slots=True)
class _Look:
    """What a look found."""

    seen: DatabaseState
    word_known: bool
    behind: bool
    written: bool

    def judge(self, own: int | None) -> HistoryVerdict:
        """What it means for a process that is in history `own`."""
        return judge(own, self.seen, word_known=self.word_known, behind=self.behind)


async def _one(connection: Connection, statement: LiteralString, parameters: dict[str, Any]) -> tuple[Any, ...]:
    try:
        row = await (await connection.execute(statement, parameters or None)).fetchone()
    except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName) as error:
        raise psycopg.OperationalError(f"a table is not there, is the database being restored? {error}") from error
    if row is None:
        raise psycopg.OperationalError("data_history is empty: is the database being restored?")
    return tuple(row)
