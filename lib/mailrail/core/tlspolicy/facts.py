"""What a decision about TLS knows: of the message, of the recipient's domain, of the DNS, and of a connection."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Requirement(StrEnum):
    """What the message itself asks of TLS (RFC 8689)."""

    DEFAULT = "default"
    REQUIRED = "required"  # REQUIRETLS
    NO = "no"  # header TLS-Required: No


class Purpose(StrEnum):
    """What a message is for: some of our own have rules of their own."""

    MAIL = "mail"
    DMARC_REPORT = "dmarc-report"  # it never goes in clear after TLS failed (DAGG-17a)
    TLS_REPORT = "tls-report"  # it tells of broken TLS, and so goes in spite of it (TRPT-15)


class StsPolicy(StrEnum):
    """What is known of the MTA-STS policy of the recipient's domain (STS-09)."""

    ABSENT = "absent"  # looked for and not there, or it cannot be fetched and none is cached (STS-15a)
    NONE = "none"
    TESTING = "testing"
    ENFORCE = "enforce"
    UNKNOWN = "unknown"  # the DNS did not say whether there is one, and none is cached (STS-24c)


@dataclass(frozen=True, slots=True)
class StsFacts:
    """MTA-STS, for one host. The default: nothing is known, and nothing follows from it."""

    policy: StsPolicy = StsPolicy.ABSENT
    listed: bool = False
    """The policy's `mx` match the host by the name that its MX record has (STS-08b); of testing and enforce."""
    domain: str = ""
    """The policy domain, for words."""
    trouble: str = ""
    """What is wrong with its record, its policy or the way to them, in words: for the timeline alone."""

    @property
    def enforced(self) -> bool:
        """The policy vouches for the host, and demands a valid certificate of it."""
        return self.policy is StsPolicy.ENFORCE and self.listed


NO_STS: Final = StsFacts()


class Tlsa(StrEnum):
    """What the DNS says of the TLSA records of a host."""

    NONE = "none"  # a secure denial, or an insecure answer: none that count (DANE-24)
    UNUSABLE = "unusable"  # there are some, and none that can be used (DANE-15a)
    USABLE = "usable"
    FAILED = "failed"  # bogus, SERVFAIL, no answer: not known (DANE-02)


@dataclass(frozen=True, slots=True)
class DnsFacts:
    """DNSSEC, for one host, all of it from a resolver that is declared trusted. The default: there is no such
    resolver, so nothing is secure (DANE-01)."""

    trusted: bool = False
    mx_secure: bool = False
    """The MX record, the aliases that lead to it, or the denial that there is one. Of a host that the configuration
    names: True, there is nothing to look up."""
    address_secure: bool = False
    """The addresses of the host, by the first answer; where they are not, TLSA is not asked for (DANE-04)."""
    tlsa: Tlsa = Tlsa.NONE
    matching: str = ""
    """What stands for the usable records with the names that a certificate may carry: equal texts, equal conditions.
    What a connection has matched is compared with it (RTLS-28)."""
    ignored: tuple[str, ...] = ()
    """Why TLSA records do not count, in words, of a few of them (core/dane/tlsa.py)."""

    @property
    def mx_proven(self) -> bool:
        """The name of the host is that which the domain's owner published."""
        return self.trusted and self.mx_secure

    @property
    def dane(self) -> Tlsa:
        """What counts of the TLSA records: nothing where the chain to them is not secure (DANE-05a). Where they are not
        known, whether the chain is may not be known either (DANE-02)."""
        secure = self.trusted if self.tlsa is Tlsa.FAILED else self.mx_proven
        return self.tlsa if secure and self.address_secure else Tlsa.NONE


NO_DNSSEC: Final = DnsFacts()


@dataclass(frozen=True, slots=True)
class Proven:
    """What a live connection has shown."""

    encrypted: bool
    verified_name: str | None
    """The certificate is valid for this name."""
    matched: str = ""
    """`DnsFacts.matching` of the TLSA records that its certificates match; empty: none was looked at, or none match."""
