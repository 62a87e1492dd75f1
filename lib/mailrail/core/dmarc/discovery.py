"""Which record is for mail of a domain, and where its organization begins: by the tree walk of RFC 9989, or by a list
of public suffixes as RFC 7489 had it (DMRC-20a)."""

from dataclasses import dataclass
from enum import StrEnum

from mailrail.core.dmarc.psl import SuffixList
from mailrail.core.dmarc.record import Psd
from mailrail.core.dmarc.walk import RecordAt, record_at, walk
from mailrail.core.lookups import Asking


class Discovery(StrEnum):
    """How it was found, in the words of reports (`discovery_method`, RFC 9990 3.1.1.3)."""

    TREE_WALK = "treewalk"
    PUBLIC_SUFFIXES = "psl"


@dataclass(frozen=True, slots=True)
class Organization:
    """Where the organization of a domain begins."""

    domain: str | None
    """None: the DNS did not answer."""
    trouble: RecordAt | None = None


@dataclass(frozen=True, slots=True)
class PolicyFound:
    """The record for mail of a domain."""

    at: RecordAt | None
    """None: there is none, or it is not known."""
    organization: str | None
    """If it came to light by the way."""
    trouble: RecordAt | None = None


@dataclass(frozen=True, slots=True)
class Discoverer:
    """Finds both. `suffixes`: the list to go by; None: the tree walk."""

    suffixes: SuffixList | None = None

    @property
    def method(self) -> Discovery:
        """How it finds them."""
        return Discovery.TREE_WALK if self.suffixes is None else Discovery.PUBLIC_SUFFIXES

    def organization(self, domain: str) -> Asking[Organization]:
        """The organizational domain of a domain in lower-case A-labels."""
        if self.suffixes is not None:
            return Organization(self.suffixes.organizational_domain(domain))
        walked = yield from walk(domain)
        if walked.trouble is not None:
            return Organization(None, walked.trouble)
        return Organization(walked.organizational_domain)

    def policy(self, author: str) -> Asking[PolicyFound]:
        """The record for mail of this author domain (DMRC-08). If it has one of its own, nothing else is asked."""
        own = yield from record_at(author)
        if own.trouble is not None:
            return PolicyFound(None, None, own)
        if self.suffixes is not None:
            return (yield from self._by_suffix(self.suffixes, own))
        if own.record is not None:
            return PolicyFound(own, author if own.record.psd is not Psd.UNKNOWN else None)
        walked = yield from walk(author)
        if walked.trouble is not None:
            return PolicyFound(None, None, walked.trouble)
        return PolicyFound(walked.policy, walked.organizational_domain)

    def _by_suffix(self, suffixes: SuffixList, own: RecordAt) -> Asking[PolicyFound]:
        """RFC 7489 6.6.3: of the domain itself, else of its organizational domain."""
        organization = suffixes.organizational_domain(own.domain)
        if own.record is not None or organization == own.domain:
            return PolicyFound(own if own.record is not None else None, organization)
        found = yield from record_at(organization)
        if found.trouble is not None:
            return PolicyFound(None, organization, found)
        return PolicyFound(found if found.record is not None else None, organization)
