"""Statements of administration: what is counted, what was sent, and to whom nothing goes. Lists go by pages."""

# ruff: noqa: E501, S608 -- statements keep their own lines, and are put together of our own words alone

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, LiteralString

from mailrail.core.dmarc.report.facts import ReportedMessage, decode
from mailrail.core.dmarc.report.period import HOUR, HourPeriod
from mailrail_dmarc.store import reports
from mailrail_dmarc.store.connection import Connection
from mailrail_dmarc.store.evaluations import ReportCause
from mailrail_dmarc.store.reports import StoredReport

_FAR: Final = 2**62
"""An hour after all others."""

# Hours that no period has. Dispositions are in the facts, of which a domain has few.
_DOMAINS: Final[LiteralString] = """SELECT d.domain, min(e.hour), max(e.hour), sum(e.messages)::bigint,
        (SELECT interval_hours FROM domain_hour h WHERE h.domain = d.domain ORDER BY h.hour DESC LIMIT 1)
    FROM (SELECT domain, covered FROM domain WHERE domain > %s ORDER BY domain LIMIT %s) d
    JOIN evaluation e ON e.domain = d.domain AND e.hour >= d.covered GROUP BY d.domain ORDER BY d.domain"""
_LAST: Final[LiteralString] = (
    "SELECT max(domain), count(*) FROM (SELECT domain FROM domain WHERE domain > %s ORDER BY domain LIMIT %s) d"
)
_FACTS: Final[
    LiteralString
] = """SELECT DISTINCT facts FROM (SELECT facts FROM evaluation e JOIN domain d USING (domain)
    WHERE e.domain = %s AND e.hour >= d.covered LIMIT 2000) f"""
_EVALUATIONS: Final[
    LiteralString
] = """SELECT e.hour, host(e.source), encode(e.fingerprint, 'hex'), e.cause, e.messages, e.facts
    FROM evaluation e JOIN domain d USING (domain) WHERE e.domain = %(domain)s AND e.hour >= d.covered
      AND (e.hour, e.source, e.fingerprint, e.cause) > (%(hour)s, %(source)s::inet, decode(%(fingerprint)s, 'hex'), %(cause)s)
    ORDER BY e.hour, e.source, e.fingerprint, e.cause LIMIT %(count)s"""
_REMOVE: Final[LiteralString] = (
    "SELECT coalesce(sum(messages), 0)::bigint FROM evaluation WHERE domain = %s AND hour >= %s"
)
_REPORTS: Final[LiteralString] = f"""SELECT {reports.COLUMNS} FROM report WHERE (%(domain)s = '' OR domain = %(domain)s)
      AND (created, domain, end_hour) < (%(created)s, %(last)s, %(end)s) ORDER BY created DESC, domain DESC, end_hour DESC LIMIT %(count)s"""
_ONE: Final[LiteralString] = f"SELECT {reports.COLUMNS} FROM report WHERE domain = %s AND end_hour = %s"
_SUPPRESSIONS: Final[LiteralString] = (
    "SELECT id, address, inserted, until, comment FROM suppression WHERE id < %s ORDER BY id DESC LIMIT %s"
)
_SUPPRESS: Final[LiteralString] = """INSERT INTO suppression (address, until, comment) VALUES (%s, %s, %s)
    ON CONFLICT (address) DO UPDATE SET until = excluded.until, comment = excluded.comment RETURNING id, address, inserted, until, comment"""
_UNSUPPRESS: Final[LiteralString] = "DELETE FROM suppression WHERE address = %s RETURNING id"


@dataclass(frozen=True, slots=True)
class DomainCount:
    """What is counted for a domain and belongs to no report yet."""

    domain: str
    first: int
    """An hour."""
    last: int
    messages: int
    interval: int
    dispositions: tuple[str, ...]
    required: bool


@dataclass(frozen=True, slots=True)
class CountedRow:
    """Messages of an hour with equal facts."""

    hour: int
    fingerprint: str
    cause: ReportCause
    messages: int
    message: ReportedMessage

    @property
    def token(self) -> str:
        """Where a page that ends with it goes on."""
        return f"{self.hour} {self.message.source_ip} {self.fingerprint} {int(self.cause)}"


@dataclass(frozen=True, slots=True)
class SuppressedAddress:
    """An address that gets no report until then."""

    id: int
    address: str
    inserted: datetime
    until: datetime
    comment: str


async def domains(connection: Connection, after: str, count: int) -> tuple[list[DomainCount], str]:
    """A page, in the order of names, and the name that it ends with; empty: that was all."""
    rows = await (await connection.execute(_DOMAINS, (after, count))).fetchall()
    found = []
    for domain, first, last, messages, interval in rows:
        facts = await (await connection.execute(_FACTS, (domain,))).fetchall()
        dispositions = {decode("0.0.0.0", bytes(each)).disposition.value for (each,) in facts}  # noqa: S104 - no address
        required = await reports.required(connection, domain, HourPeriod(first, last + 1))
        found.append(DomainCount(domain, first, last, messages, interval or 24, tuple(sorted(dispositions)), required))
    row = await (await connection.execute(_LAST, (after, count))).fetchone()
    return found, str(row[0]) if row is not None and row[1] == count else ""


async def evaluations(connection: Connection, domain: str, after: str, count: int) -> list[CountedRow]:
    """A page, oldest first. `after`: `CountedRow.token` of the last one before; empty: from the first on. Raises
    ValueError."""
    hour, source, fingerprint, cause = after.split(" ") if after else ("-1", "0.0.0.0", "", "0")  # noqa: S104 - no address
    cursor = await connection.execute(
        _EVALUATIONS,
        {
            "domain": domain,
            "hour": int(hour),
            "source": source,
            "fingerprint": fingerprint,
            "cause": int(cause),
            "count": count,
        },
    )
    return [
        CountedRow(hour, fingerprint, ReportCause(cause), messages, decode(source, bytes(facts)))
        for hour, source, fingerprint, cause, messages, facts in await cursor.fetchall()
    ]


async def remove(connection: Connection, domain: str) -> int:
    """Forget what is counted for a domain and belongs to no report; how many messages. Within a transaction."""
    covered = await reports.lock(connection, domain)
    if covered is None:
        return 0
    row = await (await connection.execute(_REMOVE, (domain, covered))).fetchone()
    await reports.forget_rows(connection, domain, HourPeriod(covered, _FAR))
    return int(row[0]) if row is not None else 0


async def listed(connection: Connection, domain: str, after: StoredReport | None, count: int) -> list[StoredReport]:
    """A page of reports, newest first."""
    values = {
        "domain": domain,
        "created": after.created if after is not None else datetime.max.replace(tzinfo=UTC),
        "last": after.domain if after is not None else "",
        "end": after.period.end if after is not None else 0,
        "count": count,
    }
    return [reports.read_report(row) for row in await (await connection.execute(_REPORTS, values)).fetchall()]


async def one(connection: Connection, domain: str, end: int) -> StoredReport | None:
    """A report by its key."""
    row = await (await connection.execute(_ONE, (domain, end))).fetchone()
    return reports.read_report(row) if row is not None else None


async def suppressions(connection: Connection, before: int, count: int) -> list[SuppressedAddress]:
    """A page, newest first. `before`: the id of the last one; 0: from the newest on."""
    cursor = await connection.execute(_SUPPRESSIONS, (before or _FAR, count))
    return [SuppressedAddress(*row) for row in await cursor.fetchall()]


async def suppress(connection: Connection, address: str, until: datetime, comment: str) -> SuppressedAddress:
    """Put an address on the list, or change it there."""
    row = await (await connection.execute(_SUPPRESS, (address, until, comment))).fetchone()
    assert row is not None
    return SuppressedAddress(*row)


async def unsuppress(connection: Connection, address: str) -> bool:
    """Take it off; False: it was not there."""
    return await (await connection.execute(_UNSUPPRESS, (address,))).fetchone() is not None


def moment(hour: int) -> datetime:
    """When an hour begins."""
    return datetime.fromtimestamp(hour * HOUR, UTC)
