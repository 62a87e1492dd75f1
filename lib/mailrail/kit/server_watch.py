"""Whether Postgres answers at all, and whether commits wait for a standby (ACC-09, DUR-02).

A server can hang: its volume stalls, its node is suspended. Connections stand and TCP is alive, so neither the server's
limits nor TCP's notice, and each statement waits for as long as that lasts. So a connection of its own asks every two
seconds for something that writes nothing, and what gets no answer is said.

A commit that waits for a synchronous standby is no hang: what writes nothing is answered meanwhile. It is seen in
pg_stat_activity, and told apart.

A connection may also lead to a server that hangs while its address leads to another by now. The sessions that a server
has tell that: a connection of ours whose session is not among them is broken off.
"""

import asyncio
import contextlib
import socket
from collections.abc import Callable
from typing import Any, Final, LiteralString
from weakref import WeakSet

import psycopg
from psycopg import AsyncConnection

from mailrail.kit import log
from mailrail.kit.postgres import Login, enter
from mailrail.kit.run import end

EVERY: Final = 2.0
"""Seconds between two questions."""
SILENT_AFTER: Final = 8.0
"""Seconds without an answer after which the server counts as silent. With `EVERY` that is well within 15."""
_GIVE_UP: Final = 20.0
"""Seconds without an answer after which the question is asked on another connection: the address may lead elsewhere."""
_TICK: Final = 1.0

# A commit that waits for a standby for longer than a moment is worth a word.
_SESSIONS: Final[LiteralString] = """SELECT pg_backend_pid(), array_agg(pid), array_agg(application_name),
    count(*) FILTER (WHERE wait_event = 'SyncRep' AND clock_timestamp() - query_start > interval '3 seconds')
    FROM pg_stat_activity WHERE starts_with(application_name, %s)"""


def break_off(connection: AsyncConnection[Any]) -> None:
    """End what a connection waits for, as if its server had gone: whoever waits gets psycopg.OperationalError."""
    if not connection.closed:
        with (
            contextlib.suppress(OSError),
            socket.fromfd(connection.fileno(), socket.AF_INET, socket.SOCK_STREAM) as its,
        ):
            its.shutdown(socket.SHUT_RDWR)


def _session(connection: AsyncConnection[Any]) -> tuple[int, str]:
    """Number and name of its session, as the server said them when it was opened."""
    return connection.info.backend_pid, connection.info.parameter_status("application_name") or ""


class ServerWatch:
    """Asks the server of one process, for as long as `run` runs."""

    def __init__(
        self,
        login: Login,
        application: str,
        schema: str,
        *,
        changed: Callable[[], None],
        answers: Callable[[], int] = lambda: 0,
    ) -> None:
        """`application`: what the names of all sessions of the process begin with. `changed`: `silent` or `waiting` has
        changed. `answers`: a number that grows with each answer that others got: the server is not silent then.
        """
        self.silent = False
        """The server answers nothing."""
        self.waiting = 0
        """Commits of this process that wait for a synchronous standby for longer than a moment."""
        self._login, self._application, self._schema = login, application, schema
        self._changed, self._answers = changed, answers
        self._broken_off: WeakSet[AsyncConnection[Any]] = WeakSet()
        """Their owners notice when they use them next."""
        self._connection: AsyncConnection[Any] | None = None
        self._entering = False
        """It was let in and waits for its first answer, as behind a pooler that is full: that is no silence."""
        self._unanswered = 0.0  # seconds in which we ran: a process that stood still itself blames nobody
        self._log = log.get_logger()

    async def run(self) -> None:
        """Ask until cancelled."""
        try:
            while True:
                look = asyncio.create_task(self._look())
                try:
                    await self._await_answer(look)
                finally:
                    await end(look)
                await asyncio.sleep(EVERY)
        finally:
            if self._connection is not None:
                await self._connection.close()

    async def _await_answer(self, look: "asyncio.Task[int]") -> None:
        answers, asked, given_up = self._answers(), 0.0, False
        while not (await asyncio.wait((look,), timeout=_TICK))[0]:
            asked += _TICK
            if (others := self._answers()) != answers:
                answers, self._unanswered = others, 0.0
            elif not self._entering:
                self._count(_TICK)
            if asked >= _GIVE_UP and not given_up and self._connection is not None:
                given_up = True
                break_off(self._connection)
        try:
            waiting = look.result()
        except psycopg.errors.ConnectionTimeout:
            return  # a listener without a server behind it: the seconds are counted
        except (psycopg.Error, OSError):
            if given_up:
                return
            waiting = 0  # it refuses us, which is an answer: whoever works with it meets that, too
        self._unanswered = 0.0
        self._tell(silent=False, waiting=waiting)

    def _count(self, seconds: float) -> None:
        self._unanswered += seconds
        if self._unanswered >= SILENT_AFTER:
            self._tell(silent=True, waiting=self.waiting)

    async def _look(self) -> int:
        """How many commits wait for a standby. Breaks off connections that lead elsewhere. Raises psycopg.Error."""
        connection = self._connection
        try:
            if connection is None:
                connection = await self._login.connect(f"{self._application} watch")
                self._connection = connection
                self._entering = True
                await enter(connection, self._schema)
                self._entering = False
            held = [one for one in self._login.connections if not one.closed]
            row = await (await connection.execute(_SESSIONS, (self._application,), prepare=False)).fetchone()
        except BaseException:
            self._entering = False
            if connection is not None:
                self._connection = None
                await connection.close()
            raise
        assert row is not None
        mine, pids, names, waiting = row
        sessions = set(zip(pids, names, strict=True))
        # With a pooler in between, numbers are its own: ours are not among the server's.
        if mine == connection.info.backend_pid and _session(connection) in sessions:
            ours = [one for one in held if not one.closed and _session(one)[1].startswith(self._application)]
            gone = [one for one in ours if _session(one) not in sessions and one not in self._broken_off]
            for one in gone:
                break_off(one)
                self._broken_off.add(one)
            if gone:
                self._log.info("connections given up: the server has no such sessions", connections=len(gone))
        return int(waiting)

    def _tell(self, *, silent: bool, waiting: int) -> None:
        before = self.silent, bool(self.waiting)
        changed = (self.silent, self.waiting) != (silent, waiting)
        self.silent, self.waiting = silent, waiting
        if silent and not before[0]:
            self._log.error("Postgres does not answer: it hangs, or its disk does", seconds=round(self._unanswered))
        elif before[0] and not silent:
            self._log.info("Postgres answers again")
        if waiting and not before[1]:
            self._log.warning("commits wait for a synchronous standby", commits=waiting)
        elif before[1] and not waiting:
            self._log.info("no commit waits for a standby any more")
        if changed:
            self._changed()
