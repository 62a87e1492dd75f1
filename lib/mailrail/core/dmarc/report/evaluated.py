"""What an evaluation tells in aggregate reports: a row for each author domain whose policy asks for them."""

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from mailrail.core.dkim.verify import DkimOutcome
from mailrail.core.dmarc.align import IdentifierCheck
from mailrail.core.dmarc.discovery import Discovery
from mailrail.core.dmarc.disposition import DmarcDisposition
from mailrail.core.dmarc.evaluate import DmarcEvaluation, DmarcResult, DmarcVerdict
from mailrail.core.dmarc.record import Alignment, DmarcPolicy, DmarcRecord
from mailrail.core.dmarc.report.facts import (
    ReasonType,
    ReportedDisposition,
    ReportedMessage,
    ReportedPolicy,
    ReportedReason,
    ReportedSignature,
    ReportedSpf,
    SignatureAlignment,
    reported_message,
)
from mailrail.core.spf.result import SpfResult

_OUTCOMES: Final = {outcome.value: outcome for outcome in DkimOutcome}
_SPF_RESULTS: Final = {result.value: result for result in SpfResult}


@dataclass(frozen=True, slots=True)
class ReportedEvaluation:
    """A row for the report of one policy domain."""

    policy: ReportedPolicy
    message: ReportedMessage


def reported_evaluations(
    evaluation: DmarcEvaluation,
    disposition: DmarcDisposition,
    *,
    client: IPv4Address | IPv6Address,
    mail_from: str,
    recipient: str = "",
) -> tuple[ReportedEvaluation, ...]:
    """What is told of a message. `mail_from`, `recipient`: domains; an empty `mail_from` is the null path.

    A record without `rua` has no report, and nothing is kept for it (DMRC-18a). What the DNS did not tell is told as it
    was: neither SPF nor DKIM is known to be aligned, and nothing was done.
    """
    return tuple(
        ReportedEvaluation(
            _policy(verdict, verdict.record),
            reported_message(
                client,
                disposition=_disposition(verdict, disposition),
                asked=ReportedDisposition(verdict.policy),
                dkim_aligned=verdict.dkim_aligned,
                spf_aligned=verdict.spf_aligned,
                header_from=verdict.author,
                envelope_from=mail_from,
                envelope_to=recipient,
                reasons=_reasons(evaluation, verdict, disposition),
                signatures=[
                    ReportedSignature(check.domain, check.selector, outcome, _alignment(check, verdict.author))
                    for check in verdict.identifiers
                    if check.method == "dkim" and (outcome := _OUTCOMES.get(check.result)) is not None
                ],
                spf=_spf(verdict, null_path=not mail_from),
            ),
        )
        for verdict in evaluation.verdicts
        if verdict.record is not None and verdict.record.rua
    )


def _policy(verdict: DmarcVerdict, record: DmarcRecord) -> ReportedPolicy:
    return ReportedPolicy(
        domain=verdict.policy_domain or verdict.author,
        p=ReportedDisposition(record.p),
        sp=ReportedDisposition(record.sp) if record.sp is not None else None,
        np=ReportedDisposition(record.np) if record.np is not None else None,
        strict_dkim=record.adkim is Alignment.STRICT,
        strict_spf=record.aspf is Alignment.STRICT,
        fo=record.fo,
        testing=record.testing,
        public_suffix_list=verdict.discovery is Discovery.PUBLIC_SUFFIXES,
    )


def _disposition(verdict: DmarcVerdict, done: DmarcDisposition) -> ReportedDisposition:
    if (
        done.applied is DmarcPolicy.NONE
        and verdict.result is DmarcResult.PASS
        and verdict.asked is not DmarcPolicy.NONE
    ):
        return ReportedDisposition.PASS
    return ReportedDisposition(done.applied)


def _reasons(evaluation: DmarcEvaluation, verdict: DmarcVerdict, done: DmarcDisposition) -> tuple[ReportedReason, ...]:
    if verdict is not evaluation.decisive:
        if done.applied is DmarcPolicy.NONE:
            return ()
        return (ReportedReason(ReasonType.LOCAL_POLICY, "decided by the policy of another author of the message"),)
    if verdict.result is DmarcResult.TEMPERROR:
        return (ReportedReason(ReasonType.OTHER, "the DNS did not answer, so the policy was not applied"),)
    return done.reasons


def _alignment(check: IdentifierCheck, author: str) -> SignatureAlignment:
    if not check.aligned:
        return SignatureAlignment.NONE
    return SignatureAlignment.STRICT if check.domain == author else SignatureAlignment.RELAXED


def _spf(verdict: DmarcVerdict, *, null_path: bool) -> ReportedSpf | None:
    check = next((each for each in verdict.identifiers if each.method == "spf"), None)
    if check is None or not check.domain:
        return None
    return ReportedSpf(check.domain, _SPF_RESULTS.get(check.result, SpfResult.NONE), null_path=null_path)
