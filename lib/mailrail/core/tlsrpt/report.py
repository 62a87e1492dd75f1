"""The JSON of a TLS report, made of counted sessions (RFC 8460 4.4; TRPT-03, TRPT-10)."""

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, Final

from mailrail.core.reports.clean import clean
from mailrail.core.reports.names import ReportName
from mailrail.core.smtp.address import Address
from mailrail.core.tlsrpt.facts import AppliedPolicy, FailedSession, PolicyType, ReportedSession

DETAILS_LIMIT: Final = 10_000
"""Different failures of one policy that a report tells; the rarest beyond them are in the sums alone. Strangers choose
what their servers say, and so how many there are."""
_ORDER: Final = tuple(PolicyType(value) for value in ("sts", "no-policy-found", "tlsa"))
_KEYS: Final = (
    ("sending-mta-ip", "sending_ip"),
    ("receiving-mx-hostname", "receiving_host"),
    ("receiving-mx-helo", "receiving_helo"),
    ("receiving-ip", "receiving_ip"),
)


def tls_report(
    name: ReportName, organization: str, contact: Address, sessions: Iterable[tuple[ReportedSession, int]]
) -> bytes | None:
    """The report of one domain and period; None: nothing is to be told. Equal facts make equal octets.

    `sessions`: what is told to `name.domain`, with how many of each. TRPT-13a: `contact` is of the submitter's domain,
    or ValueError is raised.
    """
    if contact.domain != name.submitter:
        raise ValueError(f"the contact of a report of {name.submitter} is of {contact.domain}: they must be the same")
    counted: dict[AppliedPolicy, dict[FailedSession | None, int]] = {}
    for facts, count in sessions:
        of_policy = counted.setdefault(facts.policy, {})
        of_policy[facts.failure] = of_policy.get(facts.failure, 0) + count
    if not counted:
        return None
    made: dict[str, Any] = {
        "organization-name": clean(organization),
        "date-range": {"start-datetime": _rfc3339(name.period.begin), "end-datetime": _rfc3339(name.period.end)},
        "contact-info": str(contact),
        "report-id": name.id,
        # TRPT-03: always an array, with each policy that applied in the period.
        "policies": [_policy(policy, counted[policy]) for policy in sorted(counted, key=_rank)],
    }
    # TRPT-10: I-JSON is UTF-8; without letters beyond ASCII it is that for every reader.
    return json.dumps(made, separators=(",", ":"), ensure_ascii=True).encode()


def _rank(policy: AppliedPolicy) -> tuple[object, ...]:
    return _ORDER.index(policy.type), policy.domain, policy.strings, policy.mx


def _policy(policy: AppliedPolicy, counts: dict[FailedSession | None, int]) -> dict[str, Any]:
    told: dict[str, Any] = {"policy-type": policy.type.value}
    if policy.strings:
        told["policy-string"] = [clean(line) for line in policy.strings]
    told["policy-domain"] = clean(policy.domain)
    if policy.mx:
        told["mx-host"] = [clean(pattern) for pattern in policy.mx]
    failures = {failure: count for failure, count in counts.items() if failure is not None}
    made: dict[str, Any] = {
        "policy": told,
        "summary": {
            "total-successful-session-count": counts.get(None, 0),
            "total-failure-session-count": sum(failures.values()),
        },
    }
    if failures:
        ranked = sorted(failures.items(), key=lambda each: (-each[1], *_told(each[0])))
        made["failure-details"] = [_detail(failure, count) for failure, count in ranked[:DETAILS_LIMIT]]
    return made


def _told(failure: FailedSession) -> tuple[str, ...]:
    return tuple(str(getattr(failure, name)) for name in FailedSession.__slots__)


def _detail(failure: FailedSession, count: int) -> dict[str, Any]:
    """What is not known is left out."""
    detail: dict[str, Any] = {"result-type": failure.result.value}
    detail |= {key: text for key, name in _KEYS if (text := clean(getattr(failure, name)))}
    detail["failed-session-count"] = count
    if information := clean(failure.information):
        detail["additional-information"] = information
    if reason := clean(failure.reason_code):
        detail["failure-reason-code"] = reason
    return detail


def _rfc3339(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
