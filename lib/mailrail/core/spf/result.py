"""What SPF says of a client (RFC 7208 2.6), with all that people want to know of how it came to that."""

from dataclasses import dataclass
from enum import StrEnum


class SpfResult(StrEnum):
    """The results, in the words of RFC 8601 2.7.2 and of reports."""

    NONE = "none"
    """There is no domain that could be asked, or it says nothing."""
    NEUTRAL = "neutral"
    PASS = "pass"  # noqa: S105 - no password
    FAIL = "fail"
    SOFTFAIL = "softfail"
    TEMPERROR = "temperror"
    """The DNS gave no answer; later there may be one."""
    PERMERROR = "permerror"
    """What the domain publishes cannot be evaluated."""


class SpfScope(StrEnum):
    """Which identity was checked, in the words of DMARC reports (RFC 9990)."""

    HELO = "helo"
    MAIL_FROM = "mfrom"


@dataclass(frozen=True, slots=True)
class SpfIdentity:
    """Who a client says that it is: `<sender>` of RFC 7208 4.1."""

    scope: SpfScope
    local: str
    """Local part, unquoted."""
    domain: str
    """As the client gave it: perhaps an address literal, or no name at all."""

    def __str__(self) -> str:
        return f"{self.local}@{self.domain}"


@dataclass(frozen=True, slots=True)
class SpfStep:
    """One thing that was evaluated. Its texts are printable ASCII."""

    depth: int
    """0 in the record of the identity's domain, one more in each that it includes or redirects to."""
    domain: str
    """Whose record it stands in."""
    term: str
    """The term as the record has it, or empty where the record itself is meant."""
    said: str
    """What came of it."""


@dataclass(frozen=True, slots=True)
class SpfVerdict:
    """What came of one identity. All texts but `identity` are printable ASCII and bounded."""

    result: SpfResult
    identity: SpfIdentity
    domain: str
    """That of the identity, in lower-case A-labels; empty if it is no domain name."""
    reason: str
    """Why, in plain words."""
    mechanism: str = ""
    """The term that decided, as its record has it; empty: none did."""
    record_domain: str = ""
    """Whose record that term stands in: `domain`, or where `redirect` led."""
    explanation: str = ""
    """Why the domain does not want this mail, in its own words (RFC 7208 6.2). They are a stranger's: whoever passes
    them on says so (`explanation.as_said_by`)."""
    local_part_counted: bool = False
    """A macro asked for the local part: another sender of the domain may get another result."""
    steps: tuple[SpfStep, ...] = ()
