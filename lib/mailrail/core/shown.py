"""What a stranger wrote, for a sentence that says what is wrong with it: one line of printable ASCII, bounded."""

from typing import Final

OCTETS_SHOWN: Final = 64
TEXT_SHOWN: Final = 100
"""Characters."""


def shown_octets(octets: bytes) -> str:
    """A stranger's octets, in quotes and with escapes, not longer than a glance."""
    return repr(octets[:OCTETS_SHOWN])[1:] + ("..." if len(octets) > OCTETS_SHOWN else "")


def shown_text(text: str, most: int = TEXT_SHOWN) -> str:
    """A stranger's text, of `most` characters, without quotes; what is not printable ASCII is a question mark."""
    printable = "".join(c if " " <= c <= "~" else "?" for c in text[:most])
    return printable + ("..." if len(text) > most else "")
