"""When reports go out: periods are fixed each UTC hour, and their reports begin spread over the hour (reference A5)."""

import asyncio
import contextlib
import random
import time
from typing import Final

from mailrail.core.dmarc.report.period import HOUR, pause
from mailrail.kit import log
from mailrail_dmarc import metrics
from mailrail_dmarc.aggregate import PeriodFixer
from mailrail_dmarc.reporting_gateway import ReportingGateway
from mailrail_dmarc.send import ReportSender
from mailrail_dmarc.settings import DmarcSettings
from mailrail_dmarc.store import reports as store
from mailrail_dmarc.store.connection import DATABASE_ERRORS, DmarcDatabase
from mailrail_dmarc.store.reports import StoredReport

_WINDOW: Final = 45 * 60.0
"""Seconds in which all reports of an hour begin."""
_LONGEST_PAUSE: Final = 300.0
_JITTER: Final = (30.0, 89.0)
"""Seconds after the full hour: what was seen before it has come by then, and not everybody sends at once."""
_LOOK: Final = 15.0
"""Seconds between looks whether a report is due."""
_SWEEP: Final = 600.0
SEND_LIMIT: Final = 10_000
"""Reports that are sent at once when somebody asks."""


class ReportScheduler:
    """Sends what is due, by itself or because somebody asks."""

    def __init__(
        self, settings: DmarcSettings, database: DmarcDatabase, fixer: PeriodFixer, sender: ReportSender
    ) -> None:
        self._settings = settings
        self._database = database
        self._fixer = fixer
        self._sender = sender
        self.gateway: ReportingGateway | None = None
        """Who sends reports."""
        self._log = log.get_logger()

    def configure(self, gateway: ReportingGateway | None) -> None:
        """Who sends reports from now on."""
        self.gateway = gateway

    @property
    def missing(self) -> str:
        """What keeps all reports from leaving, in words; empty: nothing (DAGG-10)."""
        gateway = self.gateway
        if gateway is None:
            return "no configuration with a MailGateway has come yet"
        if gateway.signer is None:
            return (
                f"no domain at or above {gateway.domain}, the host name of {gateway.gateway.ref}, has a DKIM key:"
                " reports from it would be taken for forged. Give the MailDomain a key; what was counted is kept"
                f" {self._settings.keep_days} days"
            )
        if not self._settings.resolver:
            return "no resolver is set: MAILRAIL_DMARC_RESOLVER"
        return ""

    async def run(self) -> None:
        """Work until cancelled. Nothing that goes wrong with one report, or in one turn, ends it."""
        fixed, offset = 0, random.uniform(*_JITTER)
        swept = 0.0
        while True:
            wait = _LOOK
            try:
                if self._database.ready:
                    now = time.time()
                    if (hour := int(now - offset) // HOUR) > fixed and self._settings.reports:
                        await self._fixer.fix_due(hour)
                        fixed, offset = hour, random.uniform(*_JITTER)
                    if now - swept > _SWEEP:
                        await self._sweep()
                        swept = now
                    if self.gateway is not None and self._settings.resolver and await self._send_one() is not None:
                        wait = pause(await self._open(), window=_WINDOW, longest=_LONGEST_PAUSE)
            except DATABASE_ERRORS as error:
                metrics.REPORT_TROUBLE.inc("postgres")
                self._log.warning("reports wait for Postgres", error=str(error).strip()[:300])
            except Exception:
                self._log.exception("unexpected error while reports are sent")
            await asyncio.sleep(wait)

    async def send_now(self, before: int, domain: str) -> list[tuple[str, int]]:
        """Fix and send all that was seen before that hour, of all domains or of one; the keys of the reports that were
        worked on. Raises what DATABASE_ERRORS has."""
        await self._fixer.fix_due(before, domain=domain, cut=True)
        async with self._database.connection() as connection:
            await store.wake(connection, domain)
        done: list[tuple[str, int]] = []
        while len(done) < SEND_LIMIT and (report := await self._send_one(domain)) is not None:
            if report.key in done:  # it was put off, and came round again
                break
            done.append(report.key)
        return done

    async def _send_one(self, domain: str = "") -> StoredReport | None:
        gateway = self.gateway
        if gateway is None:
            return None
        ready = not self.missing
        submitter = gateway.submitter(self._settings) if ready else None
        return await self._sender.send_next(submitter, gateway.envelope, domain)

    async def _open(self) -> int:
        async with self._database.connection() as connection:
            found = await store.count_open(connection)
        metrics.REPORTS_OPEN.of().number = found
        return found

    async def _sweep(self) -> None:
        with contextlib.suppress(asyncio.TimeoutError):
            async with self._database.connection() as connection:
                await store.sweep(connection, self._settings.list_days)
        await self._open()
