"""What was found about who sent a message, step by step, in plain words."""

from collections.abc import Iterable
from dataclasses import dataclass

from mailrail.core.arc.chain import ArcOutcome
from mailrail.core.dkim.verify import SIGNATURES_LIMIT
from mailrail.core.dmarc.disposition import DmarcAction
from mailrail.core.dsn.due import SenderAuthentication
from mailrail.core.message_authentication.verdict import MessageVerdict
from mailrail.core.spf.result import SpfVerdict


@dataclass(frozen=True, slots=True)
class AuthenticationStep:
    """One check."""

    check: str
    """What was checked, such as `SPF of MAIL FROM`."""
    result: str
    """In the words of RFC 8601 2.7."""
    reason: str
    """Why, in plain words. A stranger's names are in it."""
    details: tuple[str, ...] = ()
    """How it came to that, a line each."""


def steps_of(verdict: MessageVerdict) -> tuple[AuthenticationStep, ...]:
    """The checks in their order, and what follows from them at last."""
    return tuple(_steps(verdict))


def _steps(verdict: MessageVerdict) -> Iterable[AuthenticationStep]:
    yield AuthenticationStep("client's name", verdict.iprev.result, verdict.iprev.reason)
    if verdict.spf_helo is not None:
        yield _spf_step("SPF of HELO", verdict.spf_helo)
    yield _spf_step("SPF of MAIL FROM", verdict.spf)
    if not verdict.dkim:
        yield AuthenticationStep("DKIM", "none", "there is no signature")
    for number, each in enumerate(verdict.evaluated_dkim, 1):
        whose = f"{each.domain or 'unknown domain'}, selector {each.selector or 'unknown'}"
        bits = f" (RSA, {each.bits} bits)" if each.bits is not None and each.algorithm.startswith("rsa") else ""
        yield AuthenticationStep(f"DKIM signature {number}", each.outcome, f"{whose}{bits}: {each.reason}")
    if len(verdict.dkim) > SIGNATURES_LIMIT:
        yield AuthenticationStep(
            "DKIM", "policy", f"{len(verdict.dkim) - SIGNATURES_LIMIT} more signatures are not evaluated"
        )
    if verdict.arc.outcome is not ArcOutcome.NONE:
        sealers = tuple(f"instance {each.instance} is sealed by {each.sealer}" for each in verdict.arc.sealed)
        yield AuthenticationStep("ARC", verdict.arc.outcome, verdict.arc.reason, sealers)
    yield from _dmarc_steps(verdict)
    yield AuthenticationStep("sender", _SENDER[verdict.sender][0], _SENDER[verdict.sender][1])
    yield _conclusion(verdict)


def _spf_step(check: str, spf: SpfVerdict) -> AuthenticationStep:
    details = tuple(
        f"{'  ' * step.depth}{step.domain}: {f'{step.term} ' if step.term else ''}{step.said}" for step in spf.steps
    )
    return AuthenticationStep(check, spf.result, spf.reason, details)


def _dmarc_steps(verdict: MessageVerdict) -> Iterable[AuthenticationStep]:
    fault = verdict.dmarc.authors.fault
    if fault is not None:
        yield AuthenticationStep("DMARC", "none", fault)
    for each in verdict.dmarc.verdicts:
        details = [
            f"{check.method} {check.result} for {check.domain or 'no domain'}: {_ALIGNED[check.aligned]}"
            for check in each.identifiers
        ]
        if each.record is not None:
            lowered = f", lowered to {each.asked} by t=y" if each.tested else ""
            details.insert(0, f"the record of {each.policy_domain} asks for {each.tag}={each.policy}{lowered}")
            details += [f"in that record: {fault}" for fault in each.record.faults]
        if each.steps:
            details.append(each.steps)
        yield AuthenticationStep(f"DMARC of {each.author}", each.result, each.reason, tuple(details))
    if verdict.dmarc.authors.more:
        yield AuthenticationStep("DMARC", "permerror", "the message has more author domains than are evaluated")


_ALIGNED = {True: "aligned", False: "not aligned", None: "alignment unknown"}
_SENDER = {
    SenderAuthentication.YES: ("yes", "MAIL FROM is proven to belong to whoever sent the message"),
    SenderAuthentication.UNKNOWN: ("unknown", "nothing proves or disproves MAIL FROM"),
    SenderAuthentication.FORGED: ("forged", "MAIL FROM does not belong to whoever sent the message"),
}
_ACTIONS = {
    DmarcAction.ACCEPT: "the message is accepted",
    DmarcAction.QUARANTINE: "the message is accepted, and set apart as its author's domain asks",
    DmarcAction.REJECT: "the message is refused",
    DmarcAction.DEFER: "the client is asked to come again later",
}


def _conclusion(verdict: MessageVerdict) -> AuthenticationStep:
    said = _ACTIONS[verdict.action]
    if verdict.reply is not None:
        said += f": {verdict.reply}"
    reasons = tuple(f"override {each.type}: {each.comment}" for each in verdict.disposition.reasons)
    return AuthenticationStep("verdict", verdict.action, said, reasons)
