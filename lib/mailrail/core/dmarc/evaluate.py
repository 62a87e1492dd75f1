"""The DMARC verdict about a message: for each author domain, and for all of them (RFC 9989 5.3)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from mailrail.core.dmarc.align import IdentifierCheck, check_alignment, passing
from mailrail.core.dmarc.authors import AuthorDomains
from mailrail.core.dmarc.discovery import Discoverer, Discovery
from mailrail.core.dmarc.facts import NO_SPF, PASS, DkimFact, SpfFact
from mailrail.core.dmarc.psl import SuffixList
from mailrail.core.dmarc.record import DmarcPolicy, DmarcRecord, record_name
from mailrail.core.dmarc.walk import RecordAt, ask
from mailrail.core.lookups import Asking, DnsOutcome, DnsQuestion, remembering, together
from mailrail.core.reports.clean import clean

_SHOWN: Final = 3
"""Signatures that a reason names."""
_TEXT: Final = 200
"""Characters of a resolver's words."""


class DmarcResult(StrEnum):
    """The results, in the words of RFC 9989 9.2."""

    PASS = "pass"  # noqa: S105 - no password
    FAIL = "fail"
    NONE = "none"
    """There is no record, so DMARC does not apply."""
    TEMPERROR = "temperror"
    PERMERROR = "permerror"


class PolicyTag(StrEnum):
    """The tag that the policy was taken from."""

    P = "p"
    SP = "sp"
    NP = "np"


@dataclass(frozen=True, slots=True)
class DmarcVerdict:
    """What DMARC says of a message as mail of one author domain."""

    author: str
    """Lower-case A-labels, as all domains here."""
    result: DmarcResult
    reason: str
    """Why, in plain words: printable ASCII, bounded."""
    steps: str
    """What people can do about it; empty: nothing."""
    discovery: Discovery
    policy_domain: str | None = None
    """Where the record is."""
    record: DmarcRecord | None = None
    organizational_domain: str | None = None
    """Of the author, if it came to light."""
    tag: PolicyTag = PolicyTag.P
    """What the policy was taken from. A tag that the record lacks is not named: the one is that took its place."""
    policy: DmarcPolicy = DmarcPolicy.NONE
    """As the record has it."""
    identifiers: tuple[IdentifierCheck, ...] = ()
    """SPF, then each signature, with its alignment."""

    @property
    def tested(self) -> bool:
        """t=y lowers the policy, which a report names policy_test_mode (DMRC-10)."""
        return self.record is not None and self.record.testing and self.policy is not DmarcPolicy.NONE

    @property
    def asked(self) -> DmarcPolicy:
        """What is asked for the message if it fails, after all options of the record (DMRC-10)."""
        return self.policy.lowered if self.tested else self.policy

    @property
    def spf_aligned(self) -> bool:
        """SPF passes and is aligned."""
        return passing(self.identifiers, "spf")

    @property
    def dkim_aligned(self) -> bool:
        """A signature is valid and aligned."""
        return passing(self.identifiers, "dkim")


@dataclass(frozen=True, slots=True)
class DmarcEvaluation:
    """What DMARC says of a message."""

    authors: AuthorDomains
    verdicts: tuple[DmarcVerdict, ...]
    """One for each author domain, in their order."""

    @property
    def decisive(self) -> DmarcVerdict | None:
        """The verdict that decides: of those that fail the one with the strictest policy (DMRC-01), else one with an
        error, else one without a record, since a pass must hold for every author. None: there is no author domain."""
        return min(self.verdicts, key=_weight, default=None)

    @property
    def result(self) -> DmarcResult | None:
        """For the message as a whole. None: nothing was evaluated."""
        decisive = self.decisive
        if decisive is None:
            return None
        if self.authors.more and decisive.result not in (DmarcResult.FAIL, DmarcResult.TEMPERROR):
            return DmarcResult.PERMERROR  # RFC 9989 11.5: the evaluation is incomplete
        return decisive.result

    @property
    def asked(self) -> DmarcPolicy:
        """What is asked for the message: none unless it fails."""
        decisive = self.decisive
        return decisive.asked if decisive is not None and decisive.result is DmarcResult.FAIL else DmarcPolicy.NONE


_ORDER: Final = (
    DmarcResult.FAIL,
    DmarcResult.TEMPERROR,
    DmarcResult.PERMERROR,
    DmarcResult.NONE,
    DmarcResult.PASS,
)


def _weight(verdict: DmarcVerdict) -> tuple[int, int]:
    return _ORDER.index(verdict.result), -verdict.asked.strictness


def evaluate(
    authors: AuthorDomains,
    spf: SpfFact = NO_SPF,
    dkim: Sequence[DkimFact] = (),
    *,
    suffixes: SuffixList | None = None,
) -> Asking[DmarcEvaluation]:
    """Evaluate a message. `suffixes`: go by this list of public suffixes, as RFC 7489 did (DMRC-20a); None: by the
    tree walk. Answers are shared, so no name is asked twice."""
    discoverer = Discoverer(suffixes)
    judging = [_judge(author, spf, dkim, discoverer) for author in authors.domains]
    verdicts = yield from remembering(together(judging))
    return DmarcEvaluation(authors, verdicts)


def _judge(author: str, spf: SpfFact, dkim: Sequence[DkimFact], discoverer: Discoverer) -> Asking[DmarcVerdict]:
    found = yield from discoverer.policy(author)
    if found.trouble is not None:
        return _in_trouble(author, discoverer.method, found.trouble)
    if found.at is None or found.at.record is None:
        reason = f"neither {author} nor an organization above it publishes a DMARC record"
        return DmarcVerdict(author, DmarcResult.NONE, reason, "", discoverer.method)
    record = found.at.record
    if record.unusable:
        # RFC 9989 4.10.1: DMARC does not apply to the message (DMRC-04).
        reason = f"the DMARC record of {found.at.domain} does not count: {record.unusable}"
        steps = f"Whoever runs the DNS of {found.at.domain}: correct the record at {record_name(found.at.domain)}."
        return DmarcVerdict(author, DmarcResult.NONE, reason, steps, discoverer.method)
    alignment = yield from check_alignment(author, record, found.organization, spf, dkim, discoverer)
    verdict = DmarcVerdict(
        author,
        DmarcResult.PASS,
        "",
        "",
        discoverer.method,
        policy_domain=found.at.domain,
        record=record,
        organizational_domain=alignment.organization,
        identifiers=alignment.checks,
    )
    exists: bool | None = True
    if found.at.domain != author and record.np is not None:
        exists = yield from _exists(author)
        if exists is None and record.np is (record.sp or record.p):
            exists = True  # it makes no difference
    tag, policy = _policy(record, inherited=found.at.domain != author, exists=exists is not False)
    return _concluded(replace(verdict, tag=tag, policy=policy), exists)


def _policy(record: DmarcRecord, *, inherited: bool, exists: bool) -> tuple[PolicyTag, DmarcPolicy]:
    """DMRC-09: p for the domain of the record; below it np for what does not exist, else sp, else p."""
    if inherited and not exists and record.np is not None:
        return PolicyTag.NP, record.np
    if inherited and record.sp is not None:
        return PolicyTag.SP, record.sp
    return PolicyTag.P, record.p


def _exists(author: str) -> Asking[bool | None]:
    """Whether the name is in the DNS; None: it did not answer. NODATA is an answer of a name that exists (RFC 9989
    3.2.13), and so is any answer but NXDOMAIN about a name below it (RFC 8020)."""
    below = yield from ask(DnsQuestion(record_name(author), "TXT"))
    if below.outcome in (DnsOutcome.FOUND, DnsOutcome.NO_DATA):
        return True
    answer = yield from ask(DnsQuestion(author, "A"))
    return None if answer.outcome is DnsOutcome.TROUBLE else answer.outcome is not DnsOutcome.NO_NAME


def _concluded(verdict: DmarcVerdict, exists: bool | None) -> DmarcVerdict:
    """The verdict with its result, in words."""
    author = verdict.author
    proof = next((check for check in verdict.identifiers if check.passes), None)
    if proof is not None:
        what = "SPF" if proof.method == "spf" else "a DKIM signature"
        belongs = "the author's domain" if proof.domain == author else f"which is aligned with {author}"
        return replace(verdict, reason=f"{what} passes for {proof.domain}, {belongs}")
    # DMRC-13a: without an answer that is needed it neither passes nor fails.
    open_question = next((check for check in verdict.identifiers if check.may_pass), None)
    if open_question is not None or exists is None:
        about = author if open_question is None else open_question.domain
        reason = f"the DNS did not answer about {about}, so nothing can be said about mail of {author}"
        steps = f"Whoever runs the DNS of {about}: see that its servers answer."
        return replace(verdict, result=DmarcResult.TEMPERROR, reason=reason, steps=steps)
    steps = (
        f"Whoever sends for {author}: sign with DKIM as {author}, "
        f"or use a MAIL FROM of {author} whose SPF record names the host that sends."
    )
    return replace(verdict, result=DmarcResult.FAIL, reason=f"nothing proves {author}: {_listed(verdict)}", steps=steps)


def _listed(verdict: DmarcVerdict) -> str:
    """What each identifier lacks."""
    signatures = [check for check in verdict.identifiers if check.method == "dkim"]
    said = [_lack(check) for check in verdict.identifiers if check.method == "spf"]
    said += [_lack(check) for check in signatures[:_SHOWN]]
    if not signatures:
        said.append("there is no DKIM signature")
    elif len(signatures) > _SHOWN:
        said.append(f"and {len(signatures) - _SHOWN} more signatures do not, either")
    return "; ".join(said)


def _lack(check: IdentifierCheck) -> str:
    name = "SPF" if check.method == "spf" else "a DKIM signature"
    of = f" for {check.domain}" if check.domain else ""
    if check.result == PASS:
        return f"{name} passes{of}, which is not aligned"
    return f"{name}{of} has the result {check.result}"


def _in_trouble(author: str, method: Discovery, trouble: RecordAt) -> DmarcVerdict:
    """DMRC-13a; DMRC-13b: an error that lasts has a result of its own, and its policy is applied no more."""
    name = record_name(trouble.domain)
    return DmarcVerdict(
        author,
        DmarcResult.PERMERROR if trouble.permanent else DmarcResult.TEMPERROR,
        f"the DNS did not answer about {name}: {clean(trouble.trouble or '', _TEXT)}",
        f"Whoever runs the DNS of {trouble.domain}: see that its servers answer for {name}.",
        method,
    )
