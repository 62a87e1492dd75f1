"""The explanation of a fail (RFC 7208 6.2): a stranger's text, which goes into replies and logs."""

from collections.abc import Callable, Sequence
from typing import Final

from mailrail.core.spf.macro import TEXT_LETTERS, MacroString, SpfSyntaxError, expand, parse_macro_string

EXPLANATION_LIMIT: Final = 400
"""Characters of an explanation; more are cut off. A reply line has 512 octets (RFC 5321 4.5.3.1.5)."""
_TEXT_LIMIT: Final = 4096  # octets of the record that has it


def parse_explanation(texts: Sequence[bytes]) -> MacroString | None:
    """What the TXT records at the name of `exp=` say. None unless there is one, in ASCII and without a fault: then it
    is as if there were no `exp=` (RFC 7208 6.2)."""
    if len(texts) != 1 or len(texts[0]) > _TEXT_LIMIT:
        return None
    try:
        return parse_macro_string(texts[0].decode("ascii"), TEXT_LETTERS, blanks=True)
    except (UnicodeDecodeError, SpfSyntaxError):
        return None


def explain(macro: MacroString, value: Callable[[str], str]) -> str:
    """The text for people: one line of printable ASCII. Empty if it cannot be written so."""
    text = "".join(c if " " <= c <= "~" else "?" for c in expand(macro, value) or "").strip()
    return text if len(text) <= EXPLANATION_LIMIT else text[: EXPLANATION_LIMIT - 3] + "..."


def as_said_by(domain: str, explanation: str) -> str:
    """The explanation, marked as the words of the domain: a receiver never says it as its own (RFC 7208 6.2, 11.5)."""
    return f"{domain} explains: {explanation}"
