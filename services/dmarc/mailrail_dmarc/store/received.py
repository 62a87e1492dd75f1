"""Statements that keep the reports of others, once each, and list them.

A report is known by who vouches for it, who reports on which domain, and its id: one that comes again, by another mail
or because a process was killed before it could say that it had read the first, is not counted again (DAGG-21). All of
a mail is one transaction.
"""

# ruff: noqa: E501, S608 -- statements keep their own lines, and are put together from constants of this module alone

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import IntEnum
from typing import Any, Final, LiteralString

from mailrail.core.dmarc.report.read import ReceivedAggregate, ReceivedRecord
from mailrail.core.outbound.zone import zone_of
from mailrail.core.reports.receive import ReceivedReport
from mailrail.core.tlsrpt.read import PolicyResult
from mailrail_dmarc.store.connection import Connection

FAILURES_KEPT: Final = 1000
"""Different failures that are kept of a policy in a TLS report; the most frequent ones."""
_ROWS_AT_ONCE: Final = 1000
_MOST: Final = 2**63 - 1
_LATEST: Final = 2**33  # Unix seconds; the year 2242

_IDENTIFY: Final[LiteralString] = """INSERT INTO received
        (identity, kind, submitter, organization, report_id, domain, period_begin, period_end, good, bad, rejected, rows, left_out, head)
    VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
    ON CONFLICT (identity) DO NOTHING RETURNING id"""
_KNOWN: Final[LiteralString] = "SELECT id FROM received WHERE identity = %s"
_RECORDS: Final[
    LiteralString
] = """INSERT INTO received_record (report, number, source, messages, disposition, dkim, spf, header_from, details)
    SELECT %s, x.* FROM unnest(%s::int[], %s::inet[], %s::bigint[], %s::text[], %s::text[], %s::text[], %s::text[], %s::jsonb[]) AS x"""
_POLICIES: Final[
    LiteralString
] = """INSERT INTO received_policy (report, number, type, domain, successful, failed, details)
    SELECT %s, x.* FROM unnest(%s::int[], %s::text[], %s::text[], %s::bigint[], %s::bigint[], %s::jsonb[]) AS x"""
# Who wants a mail read again takes its flag away: what was refused may count now, what counted stays counted once.
_MAIL: Final[
    LiteralString
] = """INSERT INTO received_mail AS m (id, received, outcome, sender, zone, subject, reason, report)
    VALUES (%s, %s, %s, %s, %s, %s, %s, %s)
    ON CONFLICT (id, received) DO UPDATE SET outcome = excluded.outcome, sender = excluded.sender, zone = excluded.zone,
        reason = excluded.reason, report = excluded.report, looked = excluded.looked WHERE m.outcome = 3"""
_LATELY: Final[LiteralString] = """SELECT count(*) FROM (
    SELECT FROM received_mail WHERE zone = %s AND looked > now() - make_interval(secs => %s) LIMIT %s) m"""
_HELD: Final[LiteralString] = "SELECT coalesce(sum(rows), 0)::bigint FROM received"
_FORGET_REPORTS: Final[LiteralString] = """DELETE FROM received WHERE id = ANY (ARRAY(
    SELECT id FROM received WHERE came < now() - make_interval(days => %s) ORDER BY came LIMIT %s)) RETURNING id"""
_FORGET_MAIL: Final[LiteralString] = """DELETE FROM received_mail WHERE (id, received) IN (
    SELECT id, received FROM received_mail WHERE looked < now() - make_interval(days => %s) ORDER BY looked LIMIT %s) RETURNING id"""


class ReceivedKind(IntEnum):
    """What a report is about, as it is stored: never another meaning for a number."""

    DMARC = 1
    TLS = 2


class ReadOutcome(IntEnum):
    """What became of a mail, likewise."""

    COUNTED = 1
    AGAIN = 2
    """Its report was counted before."""
    REFUSED = 3


@dataclass(slots=True)
class LookedAt:
    """A mail in a mailbox for reports."""

    id: int
    received: datetime
    subject: str
    sender: str
    """A domain; empty: none could be told."""

    @property
    def zone(self) -> str:
        """By which mail is limited."""
        return zone_of(self.sender)


async def keep(connection: Connection, mail: LookedAt, found: ReceivedReport, room: int) -> ReadOutcome:
    """Keep the report of a mail, within a transaction of the caller's. `room`: rows that there is room for."""
    rows = _rows_of(found)
    kept = rows[: max(0, room)]
    identity = identity_of(found)
    cursor = await connection.execute(_IDENTIFY, _head(found, identity, len(kept), len(rows) - len(kept)))
    row = await cursor.fetchone()
    if row is None:
        known = await (await connection.execute(_KNOWN, (identity,))).fetchone()
        await _look(connection, mail, ReadOutcome.AGAIN, "", known[0] if known is not None else None)
        return ReadOutcome.AGAIN
    for at in range(0, len(kept), _ROWS_AT_ONCE):
        await _store_rows(connection, row[0], at, kept[at : at + _ROWS_AT_ONCE])
    await _look(connection, mail, ReadOutcome.COUNTED, "", row[0])
    return ReadOutcome.COUNTED


async def refuse(connection: Connection, mail: LookedAt, reason: str) -> None:
    """Keep that a mail does not count, and why."""
    await _look(connection, mail, ReadOutcome.REFUSED, reason, None)


async def _look(connection: Connection, mail: LookedAt, outcome: ReadOutcome, reason: str, report: int | None) -> None:
    what = (mail.id, mail.received, int(outcome), mail.sender, mail.zone, mail.subject, reason, report)
    await connection.execute(_MAIL, what)


async def lately(connection: Connection, zone: str, seconds: float, most: int) -> int:
    """Mails of a zone that were looked at in the last seconds; `most`, where there were as many or more."""
    row = await (await connection.execute(_LATELY, (zone, seconds, most))).fetchone()
    assert row is not None
    return int(row[0])


async def held(connection: Connection) -> int:
    """Rows of all reports. It looks at each report, so it is asked now and then."""
    row = await (await connection.execute(_HELD)).fetchone()
    assert row is not None
    return int(row[0])


async def forget(connection: Connection, days: int, count: int) -> int:
    """Delete some reports, and traces of mails, that are older than so many days; how many there were."""
    reports = await (await connection.execute(_FORGET_REPORTS, (days, count))).fetchall()
    mails = await (await connection.execute(_FORGET_MAIL, (days, count))).fetchall()
    return len(reports) + len(mails)


def identity_of(found: ReceivedReport) -> bytes:
    """By which a report is known."""
    told = (found.kind.value, found.submitter, found.report.organization.lower(), found.domain, found.report.id)
    return hashlib.sha256("\0".join(told).encode()).digest()


_Row = ReceivedRecord | PolicyResult


def rows_in(found: ReceivedReport) -> int:
    """How many rows a report takes."""
    return len(_rows_of(found))


def _rows_of(found: ReceivedReport) -> Sequence[_Row]:
    return found.report.records if isinstance(found.report, ReceivedAggregate) else found.report.policies


def _head(found: ReceivedReport, identity: bytes, rows: int, left_out: int) -> tuple[object, ...]:
    report = found.report
    if isinstance(report, ReceivedAggregate):
        kind = ReceivedKind.DMARC
        good = sum(record.count for record in report.records if "pass" in (record.dkim, record.spf))
        bad = report.messages - good
        head: dict[str, Any] = {
            "email": report.email,
            "extra_contact": report.extra_contact,
            "errors": report.errors,
            "form": report.form.value,
        }
        head |= {"generator": report.generator, "policy": {k: v for k, v in asdict(report.policy).items() if v}}
    else:
        kind, good, bad = ReceivedKind.TLS, report.successful, report.failed
        head = {"email": report.contact}
    return (
        *(identity, int(kind), found.submitter, report.organization, report.id, found.domain),
        *(_time(report.begin), _time(report.end), min(good, _MOST), min(bad, _MOST), report.rejected, rows, left_out),
        _json(head | {"why": report.why}),
    )


async def _store_rows(connection: Connection, report: int, first: int, rows: Sequence[_Row]) -> None:
    numbers = list(range(first, first + len(rows)))
    records = [row for row in rows if isinstance(row, ReceivedRecord)]
    if records:
        await connection.execute(
            _RECORDS,
            (
                *(report, numbers, [r.source_ip for r in records], [r.count for r in records]),
                *([r.disposition for r in records], [r.dkim for r in records], [r.spf for r in records]),
                *([r.header_from for r in records], [_json(_record_details(r)) for r in records]),
            ),
        )
        return
    policies = [row for row in rows if isinstance(row, PolicyResult)]
    await connection.execute(
        _POLICIES,
        (
            *(report, numbers, [p.type for p in policies], [p.domain for p in policies]),
            *([p.successful for p in policies], [p.failed for p in policies]),
            [_json(_policy_details(p)) for p in policies],
        ),
    )


def _record_details(record: ReceivedRecord) -> dict[str, Any]:
    return {
        "envelope_from": record.envelope_from,
        "envelope_to": record.envelope_to,
        "reasons": _each(record.reasons),
        "dkim": _each(record.signatures),
        "spf": _each(record.spf_results),
    }


def _policy_details(policy: PolicyResult) -> dict[str, Any]:
    failures = sorted(policy.details, key=lambda each: -each.sessions)
    return {
        "strings": policy.strings,
        "mx": policy.mx,
        "failures": _each(failures[:FAILURES_KEPT]),
        "more": max(0, len(failures) - FAILURES_KEPT),
    }


def _each(parts: Iterable[Any]) -> list[dict[str, Any]]:
    return [{name: value for name, value in asdict(part).items() if value not in ("", None)} for part in parts]


def _json(made: object) -> str:
    return json.dumps(made, separators=(",", ":"))


def _time(seconds: int) -> datetime:
    return datetime.fromtimestamp(min(max(0, seconds), _LATEST), UTC)


# --- looking at it ---

_SHOWN: Final = "r.id, r.kind, r.submitter, r.organization, r.report_id, r.domain, r.period_begin, r.period_end, r.came, r.good, r.bad, r.rejected, r.rows, r.left_out, r.head"
LISTED: Final[LiteralString] = f"""SELECT {_SHOWN} FROM received r
    WHERE r.id < %(before)s AND (%(domain)s = '' OR r.domain = %(domain)s) AND (%(kind)s = 0 OR r.kind = %(kind)s)
      AND (%(submitter)s = '' OR r.submitter = %(submitter)s)
      AND (%(source)s::inet IS NULL OR EXISTS (SELECT FROM received_record x WHERE x.report = r.id AND x.source = %(source)s::inet))
    ORDER BY r.id DESC LIMIT %(count)s"""
ONE: Final[LiteralString] = f"SELECT {_SHOWN} FROM received r WHERE r.id = %s"
_RECORDS_OF: Final[
    LiteralString
] = """SELECT host(source), messages, disposition, dkim, spf, header_from, details FROM received_record
    WHERE report = %s ORDER BY number LIMIT %s"""
_POLICIES_OF: Final[LiteralString] = """SELECT type, domain, successful, failed, details FROM received_policy
    WHERE report = %s ORDER BY number LIMIT %s"""
_REFUSED: Final[LiteralString] = """SELECT id, looked, sender, subject, reason FROM received_mail
    WHERE outcome = 3 AND looked < %s ORDER BY looked DESC LIMIT %s"""


@dataclass(frozen=True, slots=True)
class WantedReports:
    """Which reports; what is empty does not matter."""

    domain: str = ""
    kind: int = 0
    submitter: str = ""
    source: str | None = None


async def listed(connection: Connection, wanted: WantedReports, before: int, count: int) -> list[tuple[Any, ...]]:
    """Reports with ids below `before`, newest first, in the order of `Received` in received.proto."""
    asked = {"domain": wanted.domain, "kind": wanted.kind, "submitter": wanted.submitter, "source": wanted.source}
    return await (await connection.execute(LISTED, {**asked, "before": before, "count": count})).fetchall()


async def one(connection: Connection, number: int) -> tuple[Any, ...] | None:
    """One report, likewise."""
    return await (await connection.execute(ONE, (number,))).fetchone()


async def records_of(connection: Connection, number: int, most: int) -> list[tuple[Any, ...]]:
    """The records of a DMARC report, in the order of `ReceivedRecord`."""
    return await (await connection.execute(_RECORDS_OF, (number, most))).fetchall()


async def policies_of(connection: Connection, number: int, most: int) -> list[tuple[Any, ...]]:
    """The policies of a TLS report, in the order of `ReceivedPolicy`."""
    return await (await connection.execute(_POLICIES_OF, (number, most))).fetchall()


async def refused(connection: Connection, before: datetime, count: int) -> list[tuple[Any, ...]]:
    """Mail that does not count and was looked at before, newest first, in the order of `Refused`."""
    return await (await connection.execute(_REFUSED, (before, count))).fetchall()
