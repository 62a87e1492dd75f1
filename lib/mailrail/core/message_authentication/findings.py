"""What is kept with a message of the verdict about who sent it: plain facts, bounded, fit to be shown.

A verdict holds what the checks work with; this holds what people and their tools ask for later. All of its texts are
one line of printable characters, and all of it together has some 8 KiB at most, for history keeps it with each
recipient.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from mailrail.core.arc.chain import ArcOutcome
from mailrail.core.dkim.verify import DkimOutcome, DkimResult
from mailrail.core.dmarc.disposition import DmarcAction
from mailrail.core.message_authentication.verdict import MessageVerdict
from mailrail.core.reports.clean import clean

SIGNATURES_KEPT: Final = 8
"""DKIM signatures whose results are kept; more are counted."""
REASON_LIMIT: Final = 200
"""Characters of a reason."""
OVERRIDES_KEPT: Final = 4
_NAME_LIMIT: Final = 255  # characters of a domain
_SELECTOR_LIMIT: Final = 128


@dataclass(frozen=True, slots=True)
class MethodFinding:
    """What one check said."""

    method: str
    """`iprev`, `spf`, `dkim`, `arc` or `dmarc` (RFC 8601 2.7)."""
    result: str
    """In the words of RFC 8601 2.7."""
    reason: str
    """Why, in words."""
    domain: str = ""
    """Of iprev the client's name that leads back to it, of SPF the identity's, of DKIM d=, of ARC the newest sealer's,
    of DMARC an author's; empty: there is none."""
    selector: str = ""
    """Of DKIM."""
    identity: str = ""
    """Of SPF: `helo` or `mfrom`."""


@dataclass(frozen=True, slots=True)
class PolicyOverride:
    """Why a policy was not applied."""

    type: str
    """In the words of reports (RFC 9990 3.1.6)."""
    comment: str


@dataclass(frozen=True, slots=True)
class AuthenticationFindings:
    """What was found about one message, and what followed."""

    results: tuple[MethodFinding, ...]
    """In the order of the checks; of DKIM those that pass before others."""
    signatures_left_out: int
    """DKIM signatures that have no result here."""
    action: DmarcAction
    author_domains: tuple[str, ...]
    policy_domain: str
    """Where the DMARC record that decided is; empty: there is none."""
    policy: str
    """What that record asks for if the message fails; empty: there is none."""
    applied: str
    """What of it was done; empty where there is no record."""
    overrides: tuple[PolicyOverride, ...]


def findings_of(verdict: MessageVerdict) -> AuthenticationFindings:
    """What is kept of a verdict."""
    decisive = verdict.dmarc.decisive
    record = decisive is not None and decisive.record is not None
    signatures = _signatures(verdict)
    return AuthenticationFindings(
        results=tuple(_results(verdict, signatures)),
        signatures_left_out=len(verdict.dkim) - len(signatures),
        action=verdict.action,
        author_domains=tuple(clean(each, _NAME_LIMIT) for each in verdict.dmarc.authors.domains),
        policy_domain=clean(decisive.policy_domain or "", _NAME_LIMIT) if decisive is not None and record else "",
        policy=decisive.asked.value if decisive is not None and record else "",
        applied=verdict.disposition.applied.value if record else "",
        overrides=tuple(
            PolicyOverride(each.type.value, clean(each.comment, REASON_LIMIT))
            for each in verdict.disposition.reasons[:OVERRIDES_KEPT]
        ),
    )


def _signatures(verdict: MessageVerdict) -> list[DkimResult]:
    """Those that are kept. A stranger may put any number of bad ones above the one that proves who he is."""
    passing_first = sorted(verdict.evaluated_dkim, key=lambda each: each.outcome is not DkimOutcome.PASS)
    return passing_first[:SIGNATURES_KEPT]


def _results(verdict: MessageVerdict, signatures: Iterable[DkimResult]) -> Iterable[MethodFinding]:
    yield _finding("iprev", verdict.iprev.result.value, verdict.iprev.reason, verdict.iprev.name)
    for spf in (verdict.spf_helo, verdict.spf):
        if spf is not None:
            yield _finding("spf", spf.result.value, spf.reason, spf.domain, identity=spf.identity.scope.value)
    for each in signatures:
        yield _finding("dkim", each.outcome.value, each.reason, each.domain, each.selector)
    if verdict.arc.outcome is not ArcOutcome.NONE:
        newest = verdict.arc.sealed[-1].sealer if verdict.arc.sealed else ""
        yield _finding("arc", verdict.arc.outcome.value, verdict.arc.reason, newest)
    for author in verdict.dmarc.verdicts:
        yield _finding("dmarc", author.result.value, author.reason, author.author)


def _finding(
    method: str, result: str, reason: str, domain: str, selector: str = "", *, identity: str = ""
) -> MethodFinding:
    return MethodFinding(
        method,
        result,
        clean(reason, REASON_LIMIT),
        clean(domain, _NAME_LIMIT),
        clean(selector, _SELECTOR_LIMIT),
        identity,
    )
