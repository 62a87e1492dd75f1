"""What sessions show of recipient domains, gathered and written behind the mail: best effort, bounded, counted.

    learned    STARTTLS and REQUIRETLS by domain and transport (RTLS-29), written when it changed or is an hour old
    sessions   facts for TLS reports, counted by day and kind before they are stored

No delivery waits for it or fails by it. While Postgres is away both wait in memory, and what finds no room there is
counted. Old rows, and those beyond the bounds of their tables, are swept here.
"""

import asyncio
import contextlib
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final

from mailrail.core.outbound.learned import LearnedDomains, Offered
from mailrail.core.tlsrpt.counts import SessionCounts
from mailrail.core.tlsrpt.facts import ReportedSession
from mailrail.kit import clock, log
from mailrail_outbound import metrics
from mailrail_outbound.store import learned, mta_sts, tlsrpt
from mailrail_outbound.store.connection import DomainDatabase, Unavailable

MOST_LEARNED: Final = 200_000
"""Rows of `learned`; the oldest go."""
MOST_FACTS: Final = 50_000
"""Rows of `tlsrpt`, of 16 KiB at most; past it facts that are new are dropped."""
MOST_OF_ZONE: Final = 2_000
"""Rows of `tlsrpt` that tell of one zone."""
_KNOWN: Final = 50_000  # domains of which is known when they were written
_WAITING: Final = 10_000  # of each kind, in memory
_BATCH: Final = 500
_EVERY: Final = 2.0
"""Seconds between writes: what many sessions show of a domain meanwhile is one row."""
_SWEEP: Final = 60.0


class DomainRecorder:
    """Of one process."""

    def __init__(self, database: DomainDatabase) -> None:
        self._database = database
        self._learned = LearnedDomains(_KNOWN, _WAITING)
        self._sessions = SessionCounts(_WAITING, MOST_OF_ZONE // 4)
        self.lately: dict[tuple[str, str], Offered] = {}
        """What was learned since the last write, by domain and transport: most mail shows the same once more."""
        self._dropped = [0, 0]  # as counted so far
        self._rows = 0  # of `tlsrpt`, when they were counted last, and what was added since
        self._log = log.get_logger()
        metrics.TLSRPT_ROWS_ALLOWED.set(MOST_FACTS)

    def learn(self, domain: str, transport: str, offered: Offered) -> None:
        """A session for mail to a domain, by a transport (`namespace/name`; empty: direct), has shown this."""
        if self._learned.note(domain, transport, offered, clock.now()):
            if len(self.lately) >= _WAITING:
                self.lately.clear()
            self.lately[domain, transport] = offered

    def report(self, sessions: Iterable[ReportedSession]) -> None:
        """A session is to be told in TLS reports as this."""
        day = datetime.now(UTC).date()
        for facts in sessions:
            self._sessions.add(day, facts)

    async def run(self) -> None:
        """Write and sweep until cancelled."""
        sweep_at = clock.now()
        while True:
            self.lately.clear()
            try:
                if clock.now() >= sweep_at:
                    await self._sweep()
                    sweep_at = clock.now() + _SWEEP
                await self._write()
            except Unavailable:
                pass  # `database` says so
            except Exception:  # a mistake of ours must stop no mail
                self._log.exception("cannot write what is known of domains")
            self._count_dropped()
            await asyncio.sleep(_EVERY)

    async def flush(self, within: float) -> None:
        """Write what waits, for so many seconds at most: the process ends."""
        with contextlib.suppress(TimeoutError, Unavailable):
            async with asyncio.timeout(within):
                await self._write()

    async def _write(self) -> None:
        lane = self._database.writing
        while batch := self._sessions.take(_BATCH):
            try:
                async with lane.use() as connection:
                    room = self._rows < MOST_FACTS
                    left = await tlsrpt.add(connection, batch, room=room, most_of_zone=MOST_OF_ZONE)
            except BaseException:
                # Where nobody knows whether it was stored it is stored again: to count twice is better than never.
                self._sessions.put_back(batch)
                raise
            self._rows += len(batch)
            stored, lost = (sum(one.sessions for one in some) for some in (batch, left))
            metrics.TLSRPT_SESSIONS.inc("stored", by=stored - lost)
            metrics.TLSRPT_SESSIONS.inc("no_room", by=lost)
        while waiting := self._learned.take(_BATCH):
            try:
                async with lane.use() as connection:
                    await learned.write(connection, waiting, clock.now())
            except BaseException:
                self._learned.put_back(waiting)
                raise
            self._learned.wrote(waiting)
            metrics.LEARNED.inc("written", by=len(waiting))

    async def _sweep(self) -> None:
        async with self._database.writing.use() as connection:
            metrics.TLSRPT_SESSIONS.inc("too_old", by=await tlsrpt.forget(connection, _BATCH))
            await learned.forget(connection, _BATCH, MOST_LEARNED)
            await mta_sts.forget(connection, _BATCH)
            self._rows = await tlsrpt.count(connection, MOST_FACTS)
        metrics.TLSRPT_ROWS.set(self._rows)

    def _count_dropped(self) -> None:
        now = [self._sessions.dropped, self._learned.dropped]
        metrics.TLSRPT_SESSIONS.inc("no_room", by=now[0] - self._dropped[0])
        metrics.LEARNED.inc("dropped", by=now[1] - self._dropped[1])
        self._dropped = now
