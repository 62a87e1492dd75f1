"""TLS reports that others send us, read (RFC 8460 4.4).

A stranger wrote it: size, depth and number of values are bounded before anything is made of them. What real senders get
wrong without any doubt about what they mean is taken: no contact, texts where lists belong (the RFC's own example has
one: erratum 6241), lists that were encoded twice, `mx: ` inside of mx-host. A result type that is not known is kept,
for their list is expected to grow. A policy with an impossible count is dropped and counted (DAGG-21 in kind).
"""

import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import Any, Final

from mailrail.core.reports.clean import clean
from mailrail.core.reports.unpack import ReportError

OCTETS_LIMIT: Final = 16 * 1024 * 1024
"""Of the JSON. A report with ten thousand failures has five million."""
DEPTH_LIMIT: Final = 16
"""Arrays and objects within each other; the form needs five, and more are members that are not known."""
MARKS_LIMIT: Final = 1_000_000
"""Brackets, braces, commas and colons, and so about as many values."""
POLICIES_LIMIT: Final = 1000
DETAILS_LIMIT: Final = 100_000
"""Failures of a report."""
_LIST_LIMIT: Final = 500  # lines of a policy
_MOST: Final = 2**53 - 1  # what a number of I-JSON may be (RFC 7493 2.2)
_WHY_LIMIT: Final = 10
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*+"?|[\[\]{},:]', re.DOTALL)


@dataclass(frozen=True, slots=True)
class FailureDetail:
    """`failure-details`. Texts are cleaned; empty: it is not said."""

    result: str
    sessions: int
    sending_ip: str = ""
    receiving_host: str = ""
    receiving_helo: str = ""
    receiving_ip: str = ""
    information: str = ""
    reason_code: str = ""


@dataclass(frozen=True, slots=True)
class PolicyResult:
    """One of `policies`."""

    type: str
    """As it is written; `sts`, `tlsa` or `no-policy-found` by the RFC."""
    domain: str
    """Empty: it is not said."""
    strings: tuple[str, ...]
    mx: tuple[str, ...]
    successful: int
    failed: int
    details: tuple[FailureDetail, ...]


@dataclass(frozen=True, slots=True)
class ReceivedTlsReport:
    """A report that somebody sent."""

    organization: str
    contact: str
    """Empty: none is named."""
    id: str
    begin: int
    """Unix seconds."""
    end: int
    policies: tuple[PolicyResult, ...]
    rejected: int
    """Policies and failures that could not be read."""
    why: tuple[str, ...]
    """Of the first of them, in words."""

    @property
    def successful(self) -> int:
        """Sessions."""
        return sum(policy.successful for policy in self.policies)

    @property
    def failed(self) -> int:
        """Sessions."""
        return sum(policy.failed for policy in self.policies)


def read_tls_report(octets: bytes) -> ReceivedTlsReport:
    """A report in JSON, unpacked. Raises ReportError, and nothing else."""
    made = _object(_json(octets), "the report")
    organization, contact, report_id = (
        _text(made.get(key)) for key in ("organization-name", "contact-info", "report-id")
    )
    organization = organization or contact.rpartition("@")[2]
    if not organization:
        raise ReportError("it does not say who reports: organization-name and contact-info are missing")
    if not report_id:
        raise ReportError("it has no report-id")
    period = _object(made.get("date-range"), "its date-range")
    begin, end = (_seconds(period, key) for key in ("start-datetime", "end-datetime"))
    if begin > end:
        raise ReportError("its date-range ends before it begins")
    written = made.get("policies")
    if not isinstance(written, list):
        raise ReportError("its policies are no array")
    if len(written) > POLICIES_LIMIT:
        raise ReportError(f"it has {len(written)} policies; more than {POLICIES_LIMIT} are not read")
    reading = _Reading()
    policies = tuple(policy for each in written if (policy := reading.policy(each)) is not None)
    if not policies:
        raise ReportError(f"it has no policy that can be read: {reading.why[0] if reading.why else 'there is none'}")
    return ReceivedTlsReport(
        organization, contact, report_id, begin, end, policies, reading.rejected, tuple(reading.why)
    )


class _Reading:
    """What was not read, and how much there may be."""

    def __init__(self) -> None:
        self.rejected = 0
        self.why: list[str] = []
        self._details = 0

    def _reject(self, error: ReportError) -> None:
        self.rejected += 1
        if len(self.why) < _WHY_LIMIT:
            self.why.append(str(error))

    def policy(self, written: object) -> PolicyResult | None:
        try:
            entry = _object(written, "a policy")
            policy, summary = _object(entry.get("policy"), "a policy"), _object(entry.get("summary"), "a summary")
            details = entry.get("failure-details")
            return PolicyResult(
                type=_text(policy.get("policy-type")),
                domain=_text(policy.get("policy-domain")).lower().removesuffix("."),
                strings=_texts(policy.get("policy-string")),
                mx=tuple(each.removeprefix("mx:").strip() for each in _texts(policy.get("mx-host"))),
                successful=_count(summary, "total-successful-session-count"),
                failed=_count(summary, "total-failure-session-count"),
                details=tuple(
                    detail
                    for each in (details if isinstance(details, list) else ())
                    if (detail := self._detail(each)) is not None
                ),
            )
        except ReportError as error:
            self._reject(error)
            return None

    def _detail(self, written: object) -> FailureDetail | None:
        try:
            detail = _object(written, "a failure")
            self._details += 1
            if self._details > DETAILS_LIMIT:
                raise ReportError(f"it has more than {DETAILS_LIMIT} failures; the others are not read")
            return FailureDetail(
                result=_text(detail.get("result-type")),
                sessions=_count(detail, "failed-session-count"),
                sending_ip=_ip(detail.get("sending-mta-ip")),
                receiving_host=_text(detail.get("receiving-mx-hostname")),
                receiving_helo=_text(detail.get("receiving-mx-helo")),
                receiving_ip=_ip(detail.get("receiving-ip")),
                information=_text(detail.get("additional-information")),
                reason_code=_text(detail.get("failure-reason-code")),
            )
        except ReportError as error:
            self._reject(error)
            return None


def _json(octets: bytes) -> object:
    if len(octets) > OCTETS_LIMIT:
        raise ReportError(f"it has {len(octets)} octets; TLS reports of more than {OCTETS_LIMIT} are not read")
    try:
        text = octets.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ReportError(f"it is not UTF-8: octet {error.start}") from None
    _bounded(text)
    try:
        return json.loads(text, parse_constant=_constant)
    except (ValueError, RecursionError) as error:
        raise ReportError(f"it is not valid JSON: {clean(str(error), 100)}") from None


def _bounded(text: str) -> None:
    """Raise ReportError for text of which the library would make more than a report needs."""
    depth = marks = 0
    for token in _TOKEN.finditer(text):
        mark = token[0][0]
        if mark == '"':
            continue
        marks += 1
        if mark in "[{":
            depth += 1
            if depth > DEPTH_LIMIT:
                raise ReportError(f"its arrays and objects are nested more than {DEPTH_LIMIT} deep")
        elif mark in "]}":
            depth -= 1
        if marks > MARKS_LIMIT:
            raise ReportError("it has too many values")


def _constant(name: str) -> object:
    raise ValueError(f"{name} is no number of JSON")


def _object(value: object, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ReportError(f"{what} is no object")
    return value


def _text(value: object) -> str:
    return clean(value) if isinstance(value, str) else ""


def _texts(value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list):
        return ()
    if len(value) == 1 and isinstance(value[0], str) and value[0].lstrip().startswith("["):
        value = _twice_encoded(value[0])
    return tuple(text for each in value[:_LIST_LIMIT] if (text := _text(each)))


def _twice_encoded(text: str) -> list[object]:
    try:
        _bounded(text)
        made = json.loads(text)
    except (ValueError, RecursionError):  # a ReportError is a ValueError
        return [text]
    return made if isinstance(made, list) else [text]


def _count(holder: dict[str, Any], key: str) -> int:
    value = holder.get(key)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _MOST:
        raise ReportError(f"{key} is {clean(repr(value), 40)}, and no number of sessions")
    return value


def _ip(value: object) -> str:
    """An address in its one spelling; what is none stays as it is written."""
    text = _text(value)
    try:
        return str(ip_address(text))
    except ValueError:
        return text


def _seconds(period: dict[str, Any], key: str) -> int:
    text = _text(period.get(key))
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise ReportError(f"{key} of its date-range is no time of RFC 3339: {text[:40]!r}") from None
    return int((time if time.tzinfo is not None else time.replace(tzinfo=UTC)).timestamp())
