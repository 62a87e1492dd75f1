"""What SPF, DKIM and ARC found about a message, as DMARC needs it. Results are the words of RFC 8601 2.7."""

from dataclasses import dataclass
from typing import Final

from mailrail.core.authres.results import ResultsField
from mailrail.core.smtp.address import AddressError, domain_to_ascii

PASS: Final = "pass"  # noqa: S105 - no password
FAIL: Final = "fail"
TEMPERROR: Final = "temperror"


@dataclass(frozen=True, slots=True)
class SpfFact:
    """SPF of the MAIL FROM identity. The HELO identity is no input of DMARC (DMRC-12)."""

    result: str
    domain: str
    """That was checked: of MAIL FROM, or for a null reverse-path the HELO name (SPF-10); empty: there was none."""
    reason: str = ""
    """Why, in words for people; for reports."""


@dataclass(frozen=True, slots=True)
class DkimFact:
    """One DKIM signature."""

    result: str
    domain: str
    """d=, as it is written."""
    selector: str = ""
    """s=."""
    reason: str = ""
    """As above."""


@dataclass(frozen=True, slots=True)
class SealFact:
    """One set of a chain."""

    instance: int
    sealer: str
    """d= of its seal."""
    selector: str = ""
    dmarc: str = ""
    """What its ARC-Authentication-Results say of DMARC for the author; empty: nothing."""


@dataclass(frozen=True, slots=True)
class ArcFact:
    """The chain of a message (RFC 8617)."""

    result: str
    """none, pass or fail."""
    sets: tuple[SealFact, ...] = ()
    """Newest first."""


def sealed_dmarc(findings: ResultsField | None, author: str) -> str:
    """What the Authentication-Results of an ARC set say of DMARC for an author domain in lower-case A-labels, as a
    `SealFact` has it. Of several results one that is no pass counts, since anybody below may have written the others.
    """
    results = [
        result.result
        for result in (findings.results if findings is not None else ())
        if result.method == "dmarc" and ascii_domain(result.value("header", "from") or "") == author
    ]
    return next((result for result in results if result != PASS), results[0] if results else "")


def ascii_domain(text: str) -> str:
    """A domain as it is compared: lower-case A-labels (DMRC-11); empty for what is no domain name."""
    try:
        return domain_to_ascii(text.removesuffix("."), in_address=True)
    except AddressError:
        return ""


NO_SPF: Final = SpfFact("none", "")
NO_ARC: Final = ArcFact("none")
