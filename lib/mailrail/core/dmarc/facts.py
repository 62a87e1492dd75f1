"""What SPF, DKIM and ARC found about a message, as DMARC needs it. Results are the words of RFC 8601 2.7."""

from dataclasses import dataclass
from typing import Final

PASS: Final = "pass"  # noqa: S105 - no password
FAIL: Final = "fail"
TEMPERROR: Final = "temperror"


@dataclass(frozen=True, slots=True)
class SpfFact:
    """SPF of the MAIL FROM identity. The HELO identity is no input of DMARC (DMRC-12)."""

    result: str
    domain: str
    """That was checked: of MAIL FROM, or for a null reverse-path the HELO name (SPF-10); empty: there was none."""


@dataclass(frozen=True, slots=True)
class DkimFact:
    """One DKIM signature."""

    result: str
    domain: str
    """d=, as it is written."""
    selector: str = ""
    """s=."""


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


NO_SPF: Final = SpfFact("none", "")
NO_ARC: Final = ArcFact("none")
