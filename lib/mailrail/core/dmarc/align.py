"""Which identifiers that SPF and DKIM have proven belong to the author domain (RFC 9989 4.4, 4.10.2; DMRC-11, DMRC-12).

An organizational domain is the name itself or one above it. So an identifier that lies outside of the author's
organization cannot be aligned, and nothing is asked about it: what strangers sign with costs no questions.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from mailrail.core.dmarc.discovery import Discoverer, Organization
from mailrail.core.dmarc.facts import PASS, TEMPERROR, DkimFact, SpfFact, ascii_domain
from mailrail.core.dmarc.record import Alignment, DmarcRecord
from mailrail.core.dmarc.walk import is_at_or_below
from mailrail.core.lookups import Asking, together

WALKS_LIMIT: Final = 20
"""Domains below an author's organization that are looked up for one author; what others sign with is not aligned."""


@dataclass(frozen=True, slots=True)
class IdentifierCheck:
    """One identifier beside the author domain."""

    method: str
    """spf or dkim."""
    result: str
    """Of the method."""
    domain: str
    """Lower-case A-labels; empty if it is no domain name."""
    selector: str = ""
    reason: str = ""
    """Of the result, in words for people."""
    aligned: bool | None = False
    """Whether it belongs to the author domain. None: unknown, since the DNS did not answer, or since it did not matter
    for what did not pass."""

    @property
    def passes(self) -> bool:
        """It is proven and aligned: enough for the message to pass (DMRC-12)."""
        return self.result == PASS and self.aligned is True

    @property
    def may_pass(self) -> bool:
        """It would pass if the DNS gave the answers that lack (DMRC-13a)."""
        return self.aligned is not False and (
            self.result == TEMPERROR or (self.result == PASS and self.aligned is None)
        )


@dataclass(frozen=True, slots=True)
class Aligned:
    """All identifiers of a message beside one author domain."""

    checks: tuple[IdentifierCheck, ...]
    """SPF first, then DKIM in the order of the signatures."""
    organization: str | None
    """The author's organizational domain, if it was needed and found."""


def check_alignment(
    author: str,
    record: DmarcRecord,
    organization: str | None,
    spf: SpfFact,
    dkim: Sequence[DkimFact],
    discoverer: Discoverer,
) -> Asking[Aligned]:
    """Compare each identifier with the author domain. `organization`: that of the author, if it is known."""
    checks = [
        IdentifierCheck("spf", spf.result, ascii_domain(spf.domain), reason=spf.reason),
        *(IdentifierCheck("dkim", one.result, ascii_domain(one.domain), one.selector, one.reason) for one in dkim),
    ]
    related = {check.domain for check in checks if _is_relaxed(check, record) and _are_related(check.domain, author)}
    wanted = list(dict.fromkeys(check.domain for check in checks if check.domain in related and _matters(check)))
    if wanted and organization is None:
        organization = (yield from discoverer.organization(author)).domain
    organizations: dict[str, str | None] = {}
    if wanted and organization is not None:
        # DMRC-11: each by its own walk, and all at once.
        inside = [domain for domain in wanted if is_at_or_below(domain, organization)][:WALKS_LIMIT]
        found: tuple[Organization, ...] = yield from together([discoverer.organization(domain) for domain in inside])
        organizations = {domain: one.domain for domain, one in zip(inside, found, strict=True)}

    def aligned(check: IdentifierCheck) -> bool | None:
        if check.domain == author:
            return True
        if check.domain not in related or not _is_relaxed(check, record):
            return False
        if organization is None:
            return None
        if not is_at_or_below(check.domain, organization):
            return False
        if check.domain not in organizations:
            return None if not _matters(check) else False
        theirs = organizations[check.domain]
        return None if theirs is None else theirs == organization

    return Aligned(tuple(replace(check, aligned=aligned(check)) for check in checks), organization)


def passing(checks: Iterable[IdentifierCheck], method: str) -> bool:
    """Whether the method gives an aligned pass: `dkim` and `spf` in `policy_evaluated` of a report."""
    return any(check.passes for check in checks if check.method == method)


def _is_relaxed(check: IdentifierCheck, record: DmarcRecord) -> bool:
    mode = record.aspf if check.method == "spf" else record.adkim
    return mode is Alignment.RELAXED


def _are_related(domain: str, author: str) -> bool:
    """Whether two different names could be of one organization: they have at least the last label in common."""
    return bool(domain) and domain != author and domain.rpartition(".")[2] == author.rpartition(".")[2]


def _matters(check: IdentifierCheck) -> bool:
    return check.result in (PASS, TEMPERROR)
