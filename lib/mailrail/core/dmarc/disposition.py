"""What is done with a message by its DMARC verdict, and what a report says of it (RFC 9989 5.4).

The wish of a domain is one input. A list, a forwarder or a chain of seals that is trusted here explains a failure, and
then the message is taken; each departure from the wish is kept with its reason, for the domain's report.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address, ip_network
from typing import Final

from mailrail.core.dmarc.evaluate import DmarcEvaluation, DmarcResult, DmarcVerdict
from mailrail.core.dmarc.facts import NO_ARC, PASS, ArcFact, ascii_domain
from mailrail.core.dmarc.record import DmarcPolicy
from mailrail.core.dmarc.report.facts import ReasonType, ReportedReason
from mailrail.core.dmarc.walk import is_at_or_below
from mailrail.core.smtp.address import plain_ip
from mailrail.core.smtp.reply import Reply

_ARC_SETS_SHOWN: Final = 5


class DmarcAction(StrEnum):
    """What becomes of the message."""

    ACCEPT = "accept"
    QUARANTINE = "quarantine"
    REJECT = "reject"
    DEFER = "defer"


@dataclass(frozen=True, slots=True)
class EnforcementRules:
    """How a gateway or domain handles verdicts."""

    enforce: bool = True
    """False: verdicts are found and reported, and change nothing."""
    defer_on_temperror: bool = False
    """Answer 451 when the DNS did not answer, instead of accepting (DMRC-13a)."""
    trusted_sealers: Collection[str] = frozenset()
    """Domains in lower-case A-labels whose ARC seals are believed."""


@dataclass(frozen=True, slots=True)
class DmarcDisposition:
    """What is done, and what a report says of it."""

    action: DmarcAction = DmarcAction.ACCEPT
    applied: DmarcPolicy = DmarcPolicy.NONE
    """`disposition` of the report."""
    reasons: tuple[ReportedReason, ...] = ()
    """Why it is not the policy of the record."""
    reply: Reply | None = None
    """To the end of the content, for what is not accepted."""


NOTHING: Final = DmarcDisposition()
"""The message is handled as if there were no DMARC."""


def dispose(
    evaluation: DmarcEvaluation,
    rules: EnforcementRules,
    *,
    arc: ArcFact = NO_ARC,
    exceptions: Sequence[ReportedReason] = (),
) -> DmarcDisposition:
    """Decide about a message. `exceptions`: what else is known here that explains a failure, the strongest first; any
    of them lets the message pass (DMRC-16)."""
    decisive = evaluation.decisive
    if decisive is None:
        return NOTHING
    if evaluation.result is DmarcResult.TEMPERROR:
        # DMRC-13a: the policy is not applied, and nothing is refused for good.
        if rules.enforce and rules.defer_on_temperror:
            return DmarcDisposition(DmarcAction.DEFER, reply=_deferral(decisive))
        return NOTHING
    if decisive.result is not DmarcResult.FAIL or decisive.policy is DmarcPolicy.NONE:
        return NOTHING  # DMRC-14: p=none is as no record
    reasons: list[ReportedReason] = []
    if decisive.tested:
        comment = f"{decisive.policy} is lowered to {decisive.asked}, since the record has t=y"
        reasons.append(ReportedReason(ReasonType.POLICY_TEST_MODE, comment))
    if decisive.asked is not DmarcPolicy.NONE:
        override = _override(rules, arc, exceptions)
        if override is None:
            return _applied(decisive, tuple(reasons))
        reasons.append(override)
    return DmarcDisposition(reasons=tuple(reasons))


def _applied(verdict: DmarcVerdict, reasons: tuple[ReportedReason, ...]) -> DmarcDisposition:
    if verdict.asked is DmarcPolicy.QUARANTINE:
        return DmarcDisposition(DmarcAction.QUARANTINE, DmarcPolicy.QUARANTINE, reasons)
    return DmarcDisposition(DmarcAction.REJECT, DmarcPolicy.REJECT, reasons, _refusal(verdict))


def _override(rules: EnforcementRules, arc: ArcFact, exceptions: Sequence[ReportedReason]) -> ReportedReason | None:
    """DMRC-16: what is known here beside the verdict."""
    if exceptions:
        return exceptions[0]
    if _is_vouched_for(arc, rules.trusted_sealers):
        return ReportedReason(ReasonType.LOCAL_POLICY, _arc_comment(arc))
    if not rules.enforce:
        return ReportedReason(ReasonType.LOCAL_POLICY, "policies are observed here and not enforced")
    return None


def _is_vouched_for(arc: ArcFact, trusted: Collection[str]) -> bool:
    """Whether somebody who is believed saw the message pass. From the newest set down every sealer must be trusted, for
    each could have written what stands below (RFC 8617 9.3)."""
    if arc.result != PASS:
        return False
    for one in arc.sets:
        if ascii_domain(one.sealer) not in trusted:
            return False
        if one.dmarc == PASS:
            return True
    return False


def _arc_comment(arc: ArcFact) -> str:
    """What RFC 8617 7.2.2 wants of a report."""
    words = ["arc=pass"]
    for one in arc.sets[:_ARC_SETS_SHOWN]:
        words.append(f"as[{one.instance}].d={one.sealer}")
        if one.selector:
            words.append(f"as[{one.instance}].s={one.selector}")
    return " ".join(words)


def _refusal(verdict: DmarcVerdict) -> Reply:
    """DMRC-15a: says whose wish it is, and that DMARC is the reason."""
    return Reply.of(
        550,
        "5.7.1",
        f"rejected by the DMARC policy of {verdict.policy_domain}:",
        f"neither SPF nor DKIM proves that it comes from {verdict.author}",
    )


def _deferral(verdict: DmarcVerdict) -> Reply:
    return Reply.of(451, "4.7.1", f"DMARC of {verdict.author} cannot be evaluated now: the DNS does not answer")


def trusted_forwarder(
    forwarders: Iterable[str], client: IPv4Address | IPv6Address, proven: Iterable[str]
) -> ReportedReason | None:
    """Whether a message comes from a forwarder that is trusted here (DMRC-16).

    An entry is a network, which the client's address lies in, or a domain: then SPF or a DKIM signature has `proven`
    it, or a name below it. Entries that are neither match nothing; the configuration refuses them.
    """
    address = plain_ip(client)
    domains = [domain for domain in map(ascii_domain, proven) if domain]
    for entry in forwarders:
        try:
            matches = address in ip_network(entry, strict=False)
        except ValueError:
            name = ascii_domain(entry)
            matches = bool(name) and any(is_at_or_below(domain, name) for domain in domains)
        if matches:
            return ReportedReason(ReasonType.TRUSTED_FORWARDER, f"from {entry}, which is trusted here")
    return None
