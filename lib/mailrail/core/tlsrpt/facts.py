"""The facts of a session that a TLS report tells, as they are kept until the report is made (RFC 8460 4.3, 4.4)."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from mailrail.core.tlsrpt.result_type import ResultType

FACTS_LIMIT: Final = 16 * 1024
"""Octets of encoded facts. A policy may be longer, and a stranger wrote it: what is over is left out of the report."""
_TEXT_LIMIT: Final = 512  # characters of one text
_LISTS_LIMIT: Final = 3 * 1024  # characters of each list


class PolicyType(StrEnum):
    """`policy-type`."""

    TLSA = "tlsa"
    STS = "sts"
    NONE = "no-policy-found"


@dataclass(frozen=True, slots=True)
class AppliedPolicy:
    """`policy`: what the session was held against."""

    type: PolicyType
    domain: str
    """A-labels in lower case, without a final dot."""
    strings: tuple[str, ...] = ()
    """Lines of the MTA-STS policy, or TLSA records."""
    mx: tuple[str, ...] = ()
    """`mx-host`: patterns of the policy."""


@dataclass(frozen=True, slots=True)
class FailedSession:
    """`failure-details`, but its count."""

    result: ResultType
    sending_ip: str = ""
    receiving_host: str = ""
    receiving_helo: str = ""
    receiving_ip: str = ""
    information: str = ""
    reason_code: str = ""


@dataclass(frozen=True, slots=True)
class ReportedSession:
    """One session under one policy. Equal facts are counted together."""

    policy: AppliedPolicy
    failure: FailedSession | None = None
    """None: it was as the policy wants it."""
    report: str = ""
    """The domain whose report tells it; empty: the policy domain. TLSA records of a host are told to the recipient's
    domain as well (TRPT-03)."""

    @property
    def reported_to(self) -> str:
        """The domain whose report tells it."""
        return self.report or self.policy.domain


def encode(facts: ReportedSession) -> bytes:
    """Canonical JSON of at most FACTS_LIMIT octets: equal facts give equal octets."""
    policy = facts.policy
    made: dict[str, Any] = {
        "type": policy.type.value,
        "domain": policy.domain[:_TEXT_LIMIT],
        "strings": _fitting(policy.strings),
        "mx": _fitting(policy.mx),
    }
    if facts.report:
        made["report"] = facts.report[:_TEXT_LIMIT]
    if (failure := facts.failure) is not None:
        made["failure"] = {
            name: str(getattr(failure, name))[:_TEXT_LIMIT]
            for name in FailedSession.__slots__
            if getattr(failure, name)
        }
    octets = _octets(made)
    if len(octets) > FACTS_LIMIT:  # nothing but escapes
        least: dict[str, Any] = {
            "type": policy.type.value,
            "domain": policy.domain[:_TEXT_LIMIT],
            "strings": [],
            "mx": [],
        }
        octets = _octets(least | ({"failure": {"result": failure.result.value}} if failure is not None else {}))
    return octets


def decode(octets: bytes) -> ReportedSession:
    """What `encode` made, of this release or of another. Raises ValueError."""
    try:
        made = json.loads(octets)
        failure = made.get("failure")
        known = {name: str(failure[name]) for name in FailedSession.__slots__ if name in failure} if failure else {}
        return ReportedSession(
            AppliedPolicy(
                PolicyType(made["type"]),
                str(made["domain"]),
                tuple(map(str, made["strings"])),
                tuple(map(str, made["mx"])),
            ),
            FailedSession(ResultType(known.pop("result")), **known) if failure else None,
            str(made.get("report", "")),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not the facts of a session: {error!r}") from error


def fingerprint(octets: bytes) -> bytes:
    """What encoded facts are found by: SHA-256."""
    return hashlib.sha256(octets).digest()


def _octets(made: dict[str, Any]) -> bytes:
    text = json.dumps(made, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode("utf-8", "surrogatepass")


def _fitting(texts: Iterable[str]) -> list[str]:
    kept, room = [], _LISTS_LIMIT
    for text in texts:
        room -= min(len(text), _TEXT_LIMIT) + 3
        if room < 0:
            break
        kept.append(text[:_TEXT_LIMIT])
    return kept
