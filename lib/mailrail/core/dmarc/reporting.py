"""What an aggregate report tells of a message that was evaluated and handled: verdict and disposition in the form of
`report.facts` (RFC 9990 3.1, DMRC-10)."""

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from mailrail.core.dkim.verify import DkimOutcome
from mailrail.core.dmarc.align import IdentifierCheck
from mailrail.core.dmarc.discovery import Discovery
from mailrail.core.dmarc.disposition import DmarcAction, DmarcDisposition
from mailrail.core.dmarc.evaluate import DmarcEvaluation, DmarcResult, DmarcVerdict
from mailrail.core.dmarc.record import Alignment, DmarcPolicy
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


@dataclass(frozen=True, slots=True)
class ReportableVerdict:
    """One author domain of a message, as its report tells of it."""

    verdict: DmarcVerdict
    """Its record says where the report goes."""
    policy: ReportedPolicy
    message: ReportedMessage


def reportable(
    evaluation: DmarcEvaluation,
    disposition: DmarcDisposition,
    *,
    source: IPv4Address | IPv6Address,
    envelope_from: str,
    envelope_to: str = "",
) -> Iterator[ReportableVerdict]:
    """One for each author domain that passed or failed. `envelope_from`, `envelope_to`: domains; an empty sender is the
    null path.

    A message that is deferred comes again, and then it counts. Without an answer of the DNS there is nothing to tell:
    the message neither passed nor failed (DMRC-13a).
    """
    if disposition.action is DmarcAction.DEFER:
        return
    for verdict in evaluation.verdicts:
        if verdict.record is None or verdict.result not in (DmarcResult.PASS, DmarcResult.FAIL):
            continue
        message = reported_message(
            source,
            disposition=_reported(verdict, disposition),
            asked=ReportedDisposition(verdict.policy),
            dkim_aligned=verdict.dkim_aligned,
            spf_aligned=verdict.spf_aligned,
            header_from=verdict.author,
            envelope_from=envelope_from,
            envelope_to=envelope_to,
            reasons=_reasons(verdict, disposition),
            signatures=[_signature(verdict, check) for check in verdict.identifiers if check.method == "dkim"],
            spf=next((_spf(check, envelope_from) for check in verdict.identifiers if check.method == "spf"), None),
        )
        yield ReportableVerdict(verdict, reported_policy(verdict), message)


def reported_policy(verdict: DmarcVerdict) -> ReportedPolicy:
    """The policy that a verdict was found by. The verdict has a record."""
    record, domain = verdict.record, verdict.policy_domain
    assert record is not None
    assert domain is not None
    return ReportedPolicy(
        domain,
        ReportedDisposition(record.p),
        None if record.sp is None else ReportedDisposition(record.sp),
        None if record.np is None else ReportedDisposition(record.np),
        strict_dkim=record.adkim is Alignment.STRICT,
        strict_spf=record.aspf is Alignment.STRICT,
        fo=record.fo,
        testing=record.testing,
        public_suffix_list=verdict.discovery is Discovery.PUBLIC_SUFFIXES,
    )


def _reported(verdict: DmarcVerdict, disposition: DmarcDisposition) -> ReportedDisposition:
    if disposition.applied is DmarcPolicy.NONE and verdict.result is DmarcResult.PASS:
        return ReportedDisposition.NONE if verdict.policy is DmarcPolicy.NONE else ReportedDisposition.PASS
    return ReportedDisposition(disposition.applied)


def _reasons(verdict: DmarcVerdict, disposition: DmarcDisposition) -> tuple[ReportedReason, ...]:
    """Those of the disposition belong to what failed, and were found for the verdict that decided."""
    if verdict.result is DmarcResult.PASS:
        if disposition.applied is DmarcPolicy.NONE:
            return ()
        return (ReportedReason(ReasonType.LOCAL_POLICY, "the message has another author, for whom it fails"),)
    tested = [reason for reason in disposition.reasons if reason.type is ReasonType.POLICY_TEST_MODE]
    return disposition.reasons if verdict.tested == bool(tested) else _without(disposition.reasons, verdict.tested)


def _without(reasons: tuple[ReportedReason, ...], tested: bool) -> tuple[ReportedReason, ...]:
    """The reasons for another author of the message, of whom one tests its policy and the other does not."""
    others = tuple(reason for reason in reasons if reason.type is not ReasonType.POLICY_TEST_MODE)
    return (ReportedReason(ReasonType.POLICY_TEST_MODE), *others) if tested else others


def _signature(verdict: DmarcVerdict, check: IdentifierCheck) -> ReportedSignature:
    if not check.aligned:
        alignment = SignatureAlignment.NONE
    else:
        alignment = SignatureAlignment.STRICT if check.domain == verdict.author else SignatureAlignment.RELAXED
    return ReportedSignature(check.domain, check.selector, DkimOutcome(check.result), alignment, check.reason)


def _spf(check: IdentifierCheck, envelope_from: str) -> ReportedSpf | None:
    if not check.domain:
        return None
    return ReportedSpf(check.domain, SpfResult(check.result), check.reason, null_path=not envelope_from)
