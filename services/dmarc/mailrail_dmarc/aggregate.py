"""Aggregate reports until they are ready to be sent: periods are fixed, and reports made of what was counted."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from mailrail.core.dmarc.report.build import AggregateForm, AggregateHead, aggregate_report
from mailrail.core.dmarc.report.facts import ReportedMessage, decode_policy
from mailrail.core.dmarc.report.period import DAY, HOUR, HourPeriod, SeenHour, next_period
from mailrail.core.reports.incoming import ReportKind
from mailrail.core.reports.names import Period, ReportName
from mailrail.core.reports.pack import gzipped
from mailrail.core.smtp.address import Address
from mailrail.kit import log
from mailrail_dmarc import metrics
from mailrail_dmarc.settings import DmarcSettings
from mailrail_dmarc.store import reports as store
from mailrail_dmarc.store.connection import Connection, DmarcDatabase
from mailrail_dmarc.store.reports import StoredReport

_BLOCK: Final = 500  # records that are fetched at once


class TooLarge(Exception):
    """A packed report exceeds MAILRAIL_DMARC_MOST_OCTETS."""


@dataclass(frozen=True, slots=True)
class ReportSubmitter:
    """Who reports."""

    domain: str
    """A-labels in lower case; of From, MAIL FROM and the file name."""
    organization: str
    contact: Address
    extra_contact: str = ""


def hour_of(moment: datetime) -> int:
    """The hour that a moment is in."""
    return int(moment.timestamp()) // HOUR


class PeriodFixer:
    """Fixes the periods that are over (DAGG-01b, DAGG-02b)."""

    def __init__(self, settings: DmarcSettings, database: DmarcDatabase) -> None:
        self._settings = settings
        self._database = database
        self._log = log.get_logger()

    async def fix_due(self, before: int, *, domain: str = "", cut: bool = False) -> int:
        """Fix each period that ends with that hour or earlier; how many have a report. `cut`: those that have begun
        end with it. Raises what DATABASE_ERRORS has.

        Periods of days on which nobody was here are among them: downtime is caught up (design 8).
        """
        fixed = 0
        end = before if cut else None
        async for candidate in store.candidates(self._database, before):
            if domain and candidate.domain != domain:
                continue
            found = next_period(self._intervals(candidate.hours), candidate.covered, end)
            if found is not None and found.end <= before:
                fixed += await self._fix_domain(candidate.domain, before, end)
        return fixed

    async def _fix_domain(self, domain: str, before: int, cut: int | None) -> int:
        """Each period in a transaction of its own; whoever comes second finds nothing left."""
        fixed = 0
        while True:
            async with self._database.transaction() as connection:
                covered = await store.lock(connection, domain)
                if covered is None:
                    return fixed
                hours = await store.hours(connection, domain, covered, before)
                period = next_period(self._intervals(hours), covered, cut)
                if period is None or period.end > before:
                    return fixed
                if await store.required(connection, domain, period):
                    await store.fix(connection, domain, period)
                    fixed += 1
                else:
                    # DAGG-18: decided over all that was seen in the period (reference H34).
                    await store.pass_over(connection, domain, period)
                    metrics.REPORTS.inc("optional")

    def _intervals(self, hours: "tuple[SeenHour, ...] | list[SeenHour]") -> list[SeenHour]:
        if self._settings.short_intervals:
            return list(hours)
        return [replace(each, interval=DAY) for each in hours]  # DMRC-03b: that is switched off


def name_of(report: StoredReport) -> ReportName:
    """What a report is called; it follows from what is stored, so each process makes the same one."""
    return ReportName(ReportKind.DMARC, report.submitter, report.domain, Period(*report.period.seconds))


class ReportMaker:
    """Makes reports of stored rows."""

    def __init__(self, settings: DmarcSettings, database: DmarcDatabase) -> None:
        self._settings = settings
        self._database = database

    async def packed(
        self, report: StoredReport, submitter: ReportSubmitter, errors: tuple[str, ...], form: AggregateForm
    ) -> bytes | None:
        """The report, packed; None: there is no row. Raises TooLarge, and what DATABASE_ERRORS has."""
        head = head_of(report, submitter, errors)
        async with self._database.transaction() as connection:
            return await _made(connection, report.domain, report.period, head, form, self._settings.most_octets, True)

    async def preview(
        self, report: StoredReport, submitter: ReportSubmitter, form: AggregateForm, most: int
    ) -> bytes | None:
        """The XML of what would be reported, not packed. Raises as above."""
        head = head_of(report, submitter, ())
        async with self._database.transaction() as connection:
            return await _made(connection, report.domain, report.period, head, form, most, False)


def head_of(report: StoredReport, submitter: ReportSubmitter, errors: tuple[str, ...]) -> AggregateHead:
    """What the report says once. DAGG-19: the policy is the one that was seen last in the period."""
    return AggregateHead(
        name_of(report),
        submitter.organization,
        submitter.contact,
        decode_policy(report.domain, report.policy),
        submitter.extra_contact,
        errors,
    )


async def _made(
    connection: Connection,
    domain: str,
    period: HourPeriod,
    head: AggregateHead,
    form: AggregateForm,
    most: int,
    pack: bool,
) -> bytes | None:
    """In a thread: packing a million records takes a minute, and others want to be heard meanwhile."""
    loop = asyncio.get_running_loop()
    async with store.rows(connection, domain, period) as fetch:

        def each() -> Iterator[tuple[ReportedMessage, int]]:
            while block := asyncio.run_coroutine_threadsafe(fetch(_BLOCK), loop).result():
                yield from block

        def made() -> bytes | None:
            pieces = aggregate_report(head, each(), form)
            if pieces is None:
                return None
            octets = bytearray()
            for piece in gzipped(pieces) if pack else pieces:
                octets += piece
                if len(octets) > most:
                    raise TooLarge(f"the report has more than {most} octets")
            return bytes(octets)

        return await asyncio.to_thread(made)
