"""Statements of reports: which periods are fixed, what they tell, who gets them, and how far that is.

    counted   rows of dmarc.evaluation, at hours that no period has yet
    fixed     a row of dmarc.report; `domain.covered` is its end, so that its rows change no more
    mailed    rows of dmarc.report_mail, each with the id under which the queue knows it, stored before it is first sent
    done      the report has another state than OPEN, and its rows are deleted

One process works on a report at a time, for as long as it says; if it ends, another one takes over.
"""

# ruff: noqa: E501, S608 -- statements keep their own lines, and are put together of our own words alone

from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum
from typing import Any, Final, LiteralString
from uuid import UUID

from mailrail.core.dmarc.report.facts import ReportedMessage, decode
from mailrail.core.dmarc.report.period import HourPeriod, SeenHour, next_period
from mailrail_dmarc.store.connection import Connection, DmarcDatabase
from mailrail_dmarc.store.evaluations import CONTACT_DAYS, ReportCause

# Domains in their order, some at a time: each with its hours that no period has.
_CANDIDATES: Final[
    LiteralString
] = """SELECT h.domain, d.covered, array_agg(h.hour ORDER BY h.hour), array_agg(h.interval_hours ORDER BY h.hour)
    FROM (SELECT domain, covered FROM domain WHERE domain > %s ORDER BY domain LIMIT %s) d
    JOIN domain_hour h ON h.domain = d.domain AND h.hour >= d.covered AND h.hour < %s
    GROUP BY h.domain, d.covered ORDER BY h.domain"""
_LAST: Final[LiteralString] = (
    "SELECT max(domain) FROM (SELECT domain FROM domain WHERE domain > %s ORDER BY domain LIMIT %s) d"
)
_LOCK: Final[LiteralString] = "SELECT covered FROM domain WHERE domain = %s FOR UPDATE"
_COVERED: Final[LiteralString] = "SELECT covered FROM domain WHERE domain = %s"
_POLICY: Final[LiteralString] = (
    "SELECT policy FROM domain_hour WHERE domain = %s AND hour >= %s AND hour < %s ORDER BY seen DESC LIMIT 1"
)
_HOURS: Final[LiteralString] = (
    "SELECT hour, interval_hours FROM domain_hour WHERE domain = %s AND hour >= %s AND hour < %s ORDER BY hour"
)
_REQUIRED: Final[
    LiteralString
] = """SELECT EXISTS (SELECT FROM evaluation e WHERE e.domain = %(domain)s AND e.hour >= %(begin)s AND e.hour < %(end)s
        AND (e.cause = %(required)s OR (e.cause = %(refused)s AND EXISTS (SELECT FROM contact c
            WHERE c.our_domain = e.our_domain AND c.day > (now() AT TIME ZONE 'UTC')::date - %(days)s
              AND (c.domain = e.organization OR right(c.domain, length(e.organization) + 1) = '.' || e.organization)))))"""
_COVER: Final[LiteralString] = "UPDATE domain SET covered = %s, changed = now() WHERE domain = %s"
_FIX: Final[LiteralString] = """INSERT INTO report (domain, end_hour, begin_hour, policy)
    SELECT domain, %s, %s, policy FROM domain_hour WHERE domain = %s AND hour >= %s AND hour < %s ORDER BY seen DESC LIMIT 1"""
_FORGET_ROWS: Final[
    LiteralString
] = """WITH gone AS (DELETE FROM evaluation WHERE domain = %(domain)s AND hour >= %(begin)s AND hour < %(end)s RETURNING 1),
    hours AS (DELETE FROM domain_hour WHERE domain = %(domain)s AND hour >= %(begin)s AND hour < %(end)s)
    UPDATE domain SET records = greatest(0, records - (SELECT count(*) FROM gone)) WHERE domain = %(domain)s"""

COLUMNS: Final[LiteralString] = (
    "domain, end_hour, begin_hour, submitter, policy, state, detail, messages, tries, created, finished"
)
_TAKE: Final[
    LiteralString
] = f"""UPDATE report SET holder = %s, due = now() + make_interval(secs => %s), tries = tries + 1
    WHERE (domain, end_hour) = (SELECT domain, end_hour FROM report WHERE state = 0 AND due <= now() AND (%s = '' OR domain = %s)
        ORDER BY due, domain, end_hour LIMIT 1 FOR UPDATE SKIP LOCKED)
    RETURNING {COLUMNS}"""
_HOLD: Final[LiteralString] = (
    "UPDATE report SET due = now() + make_interval(secs => %s) WHERE domain = %s AND end_hour = %s AND state = 0 AND holder = %s RETURNING true"
)
_PUT_OFF: Final[LiteralString] = """UPDATE report SET holder = '', due = now() + make_interval(secs => %s), detail = %s
    WHERE domain = %s AND end_hour = %s AND state = 0 AND holder = %s"""
_FINISH: Final[
    LiteralString
] = """UPDATE report SET state = %s, detail = %s, messages = %s, holder = '', finished = now()
    WHERE domain = %s AND end_hour = %s AND state = 0 AND holder = %s RETURNING true"""
_ROWS: Final[LiteralString] = """SELECT host(source), facts, sum(messages)::bigint FROM evaluation
    WHERE domain = %s AND hour >= %s AND hour < %s GROUP BY source, facts ORDER BY source, facts"""
_COUNT_ROWS: Final[LiteralString] = (
    "SELECT coalesce(sum(messages), 0)::bigint FROM evaluation WHERE domain = %s AND hour >= %s AND hour < %s"
)
_OPEN: Final[LiteralString] = "SELECT count(*) FROM report WHERE state = 0"
_DUE_AGAIN: Final[LiteralString] = (
    "UPDATE report SET due = now() WHERE state = 0 AND holder = '' AND (%s = '' OR domain = %s)"
)

_NAME: Final[LiteralString] = "UPDATE report SET submitter = %s WHERE domain = %s AND end_hour = %s AND submitter = ''"
_MAILS: Final[LiteralString] = (
    "SELECT address, message_id, notice, tried, state, detail FROM report_mail WHERE domain = %s AND end_hour = %s ORDER BY address"
)
_ADD_MAIL: Final[
    LiteralString
] = """INSERT INTO report_mail (domain, end_hour, address, message_id, notice, state, detail, finished)
    VALUES (%s, %s, %s, %s, %s, %s, %s, CASE WHEN %s = 0 THEN NULL ELSE now() END) ON CONFLICT (domain, end_hour, address) DO NOTHING"""
# Only by who holds the report, and only what nobody else has touched: the id is the one that was read.
_TRY: Final[LiteralString] = """UPDATE report_mail m SET tried = true, message_id = %(new)s FROM report r
    WHERE m.domain = %(domain)s AND m.end_hour = %(end)s AND m.address = %(address)s AND m.state = 0 AND m.message_id = %(id)s
      AND r.domain = m.domain AND r.end_hour = m.end_hour AND r.holder = %(holder)s RETURNING true"""
_END_MAIL: Final[LiteralString] = """UPDATE report_mail SET state = %s, detail = %s, finished = now()
    WHERE domain = %s AND end_hour = %s AND address = %s AND state = 0"""

_SUPPRESSED: Final[LiteralString] = "SELECT address FROM suppression WHERE address = ANY (%s) AND until > now()"

_SWEEPS: Final[tuple[LiteralString, ...]] = (
    "DELETE FROM batch WHERE id = ANY (ARRAY(SELECT id FROM batch WHERE received < now() - interval '1 day' LIMIT 20000))",
    "DELETE FROM contact WHERE (our_domain, domain) IN (SELECT our_domain, domain FROM contact WHERE day < (now() AT TIME ZONE 'UTC')::date - 32 LIMIT 20000)",
    """DELETE FROM domain WHERE domain IN (SELECT domain FROM domain d WHERE changed < now() - interval '2 days'
        AND NOT EXISTS (SELECT FROM domain_hour h WHERE h.domain = d.domain) AND NOT EXISTS (SELECT FROM report r WHERE r.domain = d.domain AND r.state = 0)
        ORDER BY domain LIMIT 5000 FOR UPDATE SKIP LOCKED)""",
)
_SWEEP_REPORTS: Final[
    LiteralString
] = """DELETE FROM report WHERE (domain, end_hour) IN (SELECT domain, end_hour FROM report
    WHERE state <> 0 AND created < now() - make_interval(days => %s) LIMIT 5000)"""


class ReportState(IntEnum):
    """How far a report is, as it is stored: never another meaning for a number."""

    OPEN = 0
    SENT = 1
    """The queue has it, for each address that is to get it."""
    NOBODY = 2
    """No address is to get it."""
    FAILED = 3
    """It cannot be sent."""
    EXPIRED = 4
    """What it lacked did not come in time."""


class MailState(IntEnum):
    """The same of one address."""

    OPEN = 0
    QUEUED = 1
    SUPPRESSED = 2
    TOO_LARGE = 3
    REFUSED = 4


@dataclass(frozen=True, slots=True)
class StoredReport:
    """A report."""

    domain: str
    period: HourPeriod
    submitter: str
    policy: bytes
    state: ReportState
    detail: str
    messages: int
    tries: int
    created: datetime
    finished: datetime | None

    @property
    def key(self) -> tuple[str, int]:
        """Its primary key."""
        return self.domain, self.period.end


@dataclass(frozen=True, slots=True)
class StoredMail:
    """The mail with a report for one address."""

    address: str
    message_id: UUID
    notice: bool = False
    tried: bool = False
    state: MailState = MailState.OPEN
    detail: str = ""


@dataclass(frozen=True, slots=True)
class UncoveredDomain:
    """A domain with hours that no period has."""

    domain: str
    covered: int
    hours: tuple[SeenHour, ...]


def read_report(row: Sequence[object]) -> StoredReport:
    """A row of `COLUMNS`."""
    domain, end, begin, submitter, policy, state, detail, messages, tries, created, finished = row
    assert isinstance(end, int)
    assert isinstance(begin, int)
    assert isinstance(policy, bytes | memoryview)
    assert isinstance(created, datetime)
    return StoredReport(
        str(domain),
        HourPeriod(begin, end),
        str(submitter),
        bytes(policy),
        ReportState(int(str(state))),
        str(detail),
        int(str(messages)),
        int(str(tries)),
        created,
        finished if isinstance(finished, datetime) else None,
    )


# --- periods ---------------------------------------------------------------------------------------------------------


async def candidates(database: DmarcDatabase, before: int, page: int = 500) -> AsyncIterator[UncoveredDomain]:
    """All domains with hours before that one, which no period has."""
    last: str | None = ""
    while last is not None:
        async with database.connection() as connection:
            found = await (await connection.execute(_CANDIDATES, (last, page, before))).fetchall()
            row = await (await connection.execute(_LAST, (last, page))).fetchone()
        for domain, covered, hours, intervals in found:
            yield UncoveredDomain(domain, covered, tuple(map(SeenHour, hours, intervals)))
        last = row[0] if row is not None else None


async def lock(connection: Connection, domain: str) -> int | None:
    """Keep others from counting for a domain while the transaction lasts; where its last period ended. None: the domain
    is not there."""
    row = await (await connection.execute(_LOCK, (domain,))).fetchone()
    return int(row[0]) if row is not None else None


async def hours(connection: Connection, domain: str, first: int, before: int) -> list[SeenHour]:
    """In rising order."""
    cursor = await connection.execute(_HOURS, (domain, first, before))
    return [SeenHour(hour, interval) for hour, interval in await cursor.fetchall()]


async def uncovered(connection: Connection, domain: str, before: int) -> tuple[HourPeriod, bytes] | None:
    """The period that would be fixed next if all before that hour were reported now, with its policy; None: nothing is
    counted."""
    row = await (await connection.execute(_COVERED, (domain,))).fetchone()
    if row is None:
        return None
    period = next_period(await hours(connection, domain, row[0], before), row[0], before)
    if period is None:
        return None
    policy = await (await connection.execute(_POLICY, (domain, period.begin, period.end))).fetchone()
    return (period, bytes(policy[0])) if policy is not None else None


async def required(connection: Connection, domain: str, period: HourPeriod) -> bool:
    """Whether anything in the period makes a report necessary (DAGG-18)."""
    cursor = await connection.execute(
        _REQUIRED,
        {
            "domain": domain,
            "begin": period.begin,
            "end": period.end,
            "required": int(ReportCause.REQUIRED),
            "refused": int(ReportCause.REFUSED),
            "days": CONTACT_DAYS,
        },
    )
    row = await cursor.fetchone()
    return bool(row and row[0])


async def fix(connection: Connection, domain: str, period: HourPeriod) -> None:
    """The period is that of a report from now on, and its rows change no more. The domain is locked."""
    begin, end = period.begin, period.end
    await connection.execute(_FIX, (end, begin, domain, begin, end))
    await connection.execute(_COVER, (end, domain))


async def pass_over(connection: Connection, domain: str, period: HourPeriod) -> None:
    """No report tells of the period. The domain is locked."""
    await forget_rows(connection, domain, period)
    await connection.execute(_COVER, (period.end, domain))


async def forget_rows(connection: Connection, domain: str, period: HourPeriod) -> None:
    """Delete what was counted."""
    await connection.execute(_FORGET_ROWS, {"domain": domain, "begin": period.begin, "end": period.end})


# --- work ------------------------------------------------------------------------------------------------------------


async def take(connection: Connection, holder: str, seconds: float, domain: str = "") -> StoredReport | None:
    """The report that is due for longest, for this process alone for so many seconds; None: none is due. `domain`: of
    it alone."""
    row = await (await connection.execute(_TAKE, (holder, seconds, domain, domain))).fetchone()
    return read_report(row) if row is not None else None


async def hold(connection: Connection, report: StoredReport, holder: str, seconds: float) -> bool:
    """Work on it for so many seconds more; False: another process has it."""
    return await (await connection.execute(_HOLD, (seconds, *report.key, holder))).fetchone() is not None


async def put_off(connection: Connection, report: StoredReport, holder: str, seconds: float, why: str) -> None:
    """Try again later, whoever then does."""
    await connection.execute(_PUT_OFF, (seconds, why, *report.key, holder))


async def wake(connection: Connection, domain: str = "") -> None:
    """What was put off is due now."""
    await connection.execute(_DUE_AGAIN, (domain, domain))


async def finish(connection: Connection, report: StoredReport, holder: str, state: ReportState, detail: str) -> bool:
    """It is done, and what was counted for it is deleted. Within a transaction of the caller's. False: another process
    has it."""
    await lock(connection, report.domain)
    row = await (
        await connection.execute(_COUNT_ROWS, (report.domain, report.period.begin, report.period.end))
    ).fetchone()
    messages = int(row[0]) if row is not None else 0
    done = await (await connection.execute(_FINISH, (int(state), detail, messages, *report.key, holder))).fetchone()
    if done is None:
        return False
    await forget_rows(connection, report.domain, report.period)
    return True


async def count_open(connection: Connection) -> int:
    """Reports that are not done."""
    row = await (await connection.execute(_OPEN)).fetchone()
    return int(row[0]) if row is not None else 0


Fetch = Callable[[int], Coroutine[Any, Any, list[tuple[ReportedMessage, int]]]]
"""The next records, so many at most; none: that was all."""


@asynccontextmanager
async def rows(connection: Connection, domain: str, period: HourPeriod) -> AsyncIterator[Fetch]:
    """The records of a report with their counts, in an order that follows from them alone; not all of them at once.
    Within a transaction of the caller's."""
    async with connection.cursor(name="report_rows") as cursor:
        await cursor.execute(_ROWS, (domain, period.begin, period.end))

        async def fetch(most: int) -> list[tuple[ReportedMessage, int]]:
            found = await cursor.fetchmany(most)
            return [(decode(source, bytes(facts)), messages) for source, facts, messages in found]

        yield fetch


# --- mail ------------------------------------------------------------------------------------------------------------


async def mails(connection: Connection, report: StoredReport) -> list[StoredMail]:
    """In the order of their addresses."""
    cursor = await connection.execute(_MAILS, report.key)
    return [
        StoredMail(address, message_id, notice, tried, MailState(state), detail)
        for address, message_id, notice, tried, state, detail in await cursor.fetchall()
    ]


async def add_mails(connection: Connection, report: StoredReport, new: Iterable[StoredMail]) -> None:
    """Those that are there stay as they are. Within a transaction of the caller's."""
    for each in new:
        state = int(each.state)
        values = (*report.key, each.address, each.message_id, each.notice, state, each.detail, state)
        await connection.execute(_ADD_MAIL, values)


async def set_submitter(connection: Connection, report: StoredReport) -> None:
    """Its name is fixed from now on."""
    await connection.execute(_NAME, (report.submitter, *report.key))


async def try_mail(connection: Connection, report: StoredReport, holder: str, mail: StoredMail, new_id: UUID) -> bool:
    """From now on the queue may have it, under the new id. False: another process is at it."""
    cursor = await connection.execute(
        _TRY,
        {
            "domain": report.domain,
            "end": report.period.end,
            "address": mail.address,
            "id": mail.message_id,
            "new": new_id,
            "holder": holder,
        },
    )
    return await cursor.fetchone() is not None


async def end_mail(connection: Connection, report: StoredReport, address: str, state: MailState, detail: str) -> None:
    """It is done for this address."""
    await connection.execute(_END_MAIL, (int(state), detail, *report.key, address))


async def suppressed(connection: Connection, addresses: Sequence[str]) -> set[str]:
    """Those that get nothing now."""
    cursor = await connection.execute(_SUPPRESSED, (list(addresses),))
    return {str(row[0]) for row in await cursor.fetchall()}


async def sweep(connection: Connection, list_days: int) -> None:
    """Delete what nobody asks for any more, some of it at a time."""
    for statement in _SWEEPS:
        await connection.execute(statement)
    await connection.execute(_SWEEP_REPORTS, (list_days,))
