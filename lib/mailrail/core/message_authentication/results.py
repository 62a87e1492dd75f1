"""The Authentication-Results field of a message (RFC 8601), from what was found about it."""

from collections.abc import Iterable, Sequence
from typing import Final

from mailrail.core.arc.chain import ArcOutcome, ArcResult
from mailrail.core.authres.results import MethodResult, ResultProperty
from mailrail.core.authres.write import dkim_result, dmarc_result, spf_result
from mailrail.core.dkim.verify import SIGNATURES_LIMIT, DkimOutcome, DkimResult
from mailrail.core.dmarc.disposition import DmarcDisposition
from mailrail.core.dmarc.evaluate import DmarcEvaluation
from mailrail.core.message_authentication.iprev import IprevResult, IprevVerdict
from mailrail.core.smtp.address import Address
from mailrail.core.spf.result import SpfResult, SpfVerdict

_PASSING: Final = frozenset({"pass", "none"})


def method_results(
    iprev: IprevVerdict,
    spf_helo: SpfVerdict | None,
    spf: SpfVerdict,
    sender: Address | None,
    dkim: Sequence[DkimResult],
    arc: ArcResult,
    dmarc: DmarcEvaluation,
    disposition: DmarcDisposition,
) -> Iterable[MethodResult]:
    """What the field says, in the order of the checks. A result that is not pass has its reason as a comment."""
    reason = "" if iprev.result is IprevResult.PASS else iprev.reason
    yield MethodResult("iprev", iprev.result, (ResultProperty("policy", "iprev", str(iprev.client)),), comment=reason)
    # SPF-11b: both identities are told, HELO first.
    if spf_helo is not None:
        yield spf_result(spf_helo.result, helo=spf_helo.identity.domain, comment=_reason(spf_helo.result, spf_helo))
    mail_from = str(sender) if sender is not None else ""
    yield spf_result(spf.result, mail_from=mail_from, helo=spf.identity.domain, comment=_reason(spf.result, spf))
    yield from _dkim(dkim)
    if arc.outcome is not ArcOutcome.NONE:
        # ARC-01b. RFC 8617 5.2: since which instance the message is unchanged.
        oldest = () if arc.oldest_pass is None else (ResultProperty("header", "oldest-pass", str(arc.oldest_pass)),)
        yield MethodResult("arc", arc.outcome, oldest, comment=_reason(arc.outcome, arc))
    for verdict in dmarc.verdicts:
        policy = str(verdict.asked) if verdict.record is not None else ""
        yield dmarc_result(verdict.result, author=verdict.author, policy=policy, comment=_handling(disposition))


def _reason(result: SpfResult | DkimOutcome | ArcOutcome, verdict: SpfVerdict | DkimResult | ArcResult) -> str:
    return "" if result in _PASSING else verdict.reason


def _dkim(results: Sequence[DkimResult]) -> Iterable[MethodResult]:
    if not results:
        yield dkim_result("none")
    for each in results[:SIGNATURES_LIMIT]:
        yield dkim_result(
            each.outcome,
            domain=each.domain,
            selector=each.selector,
            algorithm=each.algorithm,
            signature=each.prefix,
            comment=_reason(each.outcome, each),
        )
    if len(results) > SIGNATURES_LIMIT:
        # DKIM-01: counted. A stranger must not be able to make the field as long as a header may be.
        left = len(results) - SIGNATURES_LIMIT
        yield dkim_result(DkimOutcome.POLICY, comment=f"{left} more were not evaluated")


def _handling(disposition: DmarcDisposition) -> str:
    """Why a policy was not applied (reference A3); empty: it was, or there was none to apply."""
    return " ".join(f"override {reason.type}" for reason in disposition.reasons)
