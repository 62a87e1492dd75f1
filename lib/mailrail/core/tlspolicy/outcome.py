"""What becomes of a message in this attempt once no host is left: failed at once, tried later, or sent redacted.

`outcome` says it of what TLS refused alone. A delivery has replies and faults of other kinds, too, and recipients that
each have answers of their own: core/outbound/host_failover.py weighs them all. For TLS it comes to the same, which a
property test holds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from mailrail.core.smtp.reply import EnhancedCode
from mailrail.core.tlspolicy.decision import NO_REQUIRETLS, NO_TLS, TRY_LATER, Refusal
from mailrail.core.tlspolicy.facts import Requirement


class After(StrEnum):
    """What happens next."""

    AS_OTHER_MAIL = "as-other-mail"  # TLS is not why: replies and faults decide, as for any message
    RETRY = "retry"
    FAIL = "fail"
    REDACT = "redact"  # a notification: all hosts once more, for one without any header of the original (RTLS-21a)


@dataclass(frozen=True, slots=True)
class TlsOutcome:
    """What becomes of the message."""

    after: After
    status: EnhancedCode | None = None
    """Of a retry and a failure."""
    words: str = ""
    recheck_sts: bool = False
    """Before the next attempt, the record of the domain's MTA-STS policy is asked for anew (STS-13a)."""


def outcome(
    refusals: Sequence[Refusal | None], *, requirement: Requirement, null_path: bool, sts_checked: bool
) -> TlsOutcome:
    """What becomes of a message that no host took (RTLS-15a, RTLS-16a).

    `refusals`: of each host why TLS refused it or its connection, in order; None: it failed for another reason (DNS,
    TCP, a reply). `null_path`: the message is a notification. `sts_checked`: the DNS was asked in this attempt for the
    id of the MTA-STS policy, and a new policy was fetched if there is one.
    """
    found = [refusal for refusal in refusals if refusal is not None]
    if not found or len(found) < len(refusals):
        # A host that could not be asked may be the one that conforms.
        return TlsOutcome(After.AS_OTHER_MAIL)
    later = next((refusal for refusal in found if not refusal.final), None)
    if later is not None:
        return TlsOutcome(After.RETRY, later.status, _all(found), any(refusal.sts for refusal in found))
    if any(refusal.sts for refusal in found) and not sts_checked:
        return TlsOutcome(After.RETRY, TRY_LATER, _all(found), recheck_sts=True)  # STS-13a
    if requirement is Requirement.REQUIRED and null_path:
        return TlsOutcome(After.REDACT, words=_all(found))
    return TlsOutcome(After.FAIL, decisive([refusal.status for refusal in found]), _all(found))


def decisive(statuses: Sequence[EnhancedCode]) -> EnhancedCode:
    """The status that the sender hears, of those of all hosts in order; there is one at least.

    RTLS-17a: 5.7.30 where it says why of some host, as TLS with that one was well, or no name is proven; what another
    host lacks says less.
    """
    return next((status for status in (NO_REQUIRETLS, NO_TLS) if status in statuses), statuses[-1])


def _all(found: Sequence[Refusal]) -> str:
    return "; ".join(dict.fromkeys(refusal.words for refusal in found))
