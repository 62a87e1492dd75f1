"""Macro strings of SPF: their syntax (RFC 7208 7.1), their expansion (7.3), and names made of them.

Syntax is judged when a record is read, so a record with a fault in a term that nobody evaluates is faulty all the same
(SPF-09). What an expansion yields may be any text: whether it is a name in the DNS is asked last (`name_of`).
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

from mailrail.core.lookups import NAME_LIMIT
from mailrail.core.shown import shown_text

LABEL_LIMIT: Final = 63
"""Octets of one label (RFC 1035 2.3.4)."""
NAME_LETTERS: Final = frozenset("slodiphv")
"""Macro letters that names may be made of."""
TEXT_LETTERS: Final = NAME_LETTERS | frozenset("crt")
"""Macro letters of an explanation (RFC 7208 7.2: `c`, `r` and `t` are for it alone)."""

_PIECE = re.compile(r"%\{([A-Za-z])([0-9]*)([rR]?)([.\-+,/_=]*)\}|%([%_-])|([!-$&-~]+)")
_PIECE_OF_TEXT = re.compile(_PIECE.pattern.replace("[!-$&-~]", "[ -$&-~]"))  # 6.2: an explain-string has blanks, too
_CODES = {"%": "%", "_": " ", "-": "%20"}
# Letters, digits and hyphens, no hyphen at an end, and not digits alone (RFC 7208 7.1, toplabel).
_TOP_LABEL = re.compile(r"(?=[A-Za-z0-9-]*[A-Za-z-])[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?")


class SpfSyntaxError(ValueError):
    """A record, or a part of one, is against the grammar of RFC 7208 12. The message is one line for people."""


@dataclass(frozen=True, slots=True)
class MacroExpand:
    """One `%{...}` (RFC 7208 7.1)."""

    letter: str
    """In lower case."""
    escaped: bool
    """It was in upper case: the value is URL-escaped."""
    kept: int
    """Parts at the right that are kept; 0: all."""
    reversed: bool
    delimiters: str
    """What the value is split at."""


MacroString = tuple[str | MacroExpand, ...]
"""Literal text, its `%%`, `%_` and `%-` replaced, and macros."""


def parse_macro_string(text: str, letters: frozenset[str] = NAME_LETTERS, *, blanks: bool = False) -> MacroString:
    """A macro-string; with `blanks` an explain-string. Linear in its length. Raises SpfSyntaxError."""
    return tuple(_piece(found, letters) for found in _pieces(text, _PIECE_OF_TEXT if blanks else _PIECE))


def _pieces(text: str, pattern: re.Pattern[str]) -> Iterator[re.Match[str]]:
    at = 0
    while at < len(text):
        found = pattern.match(text, at)
        if found is None:
            raise SpfSyntaxError(f"{shown_text(text[at:])} is no macro and no text")
        at = found.end()
        yield found


def _piece(found: re.Match[str], letters: frozenset[str]) -> str | MacroExpand:
    letter, digits, reverse, delimiters, code, literal = found.groups()
    if letter is None:
        return literal or _CODES[code]
    if letter.lower() not in letters:
        raise SpfSyntaxError(f"{shown_text(found[0])} is not a macro that may stand here")
    kept = digits.lstrip("0")
    if digits and not kept:
        raise SpfSyntaxError(f"{shown_text(found[0])} keeps no part of its value")
    return MacroExpand(letter.lower(), letter.isupper(), int(kept[:4] or 0), bool(reverse), delimiters or ".")


def parse_domain_spec(text: str) -> MacroString:
    """A domain-spec: a macro-string that ends in a macro, or in a dot and a top label. Raises SpfSyntaxError."""
    if not text:
        raise SpfSyntaxError("a domain is missing")
    pieces = tuple(_pieces(text, _PIECE))
    literal = pieces[-1][6]  # as long as can be: the dot and the label are in it, or not there
    if literal is not None:
        _, dot, top = literal.removesuffix(".").rpartition(".")
        if not dot or not _TOP_LABEL.fullmatch(top):
            raise SpfSyntaxError(f"{shown_text(text)} is not a domain name with a dot in it")
    return tuple(_piece(found, NAME_LETTERS) for found in pieces)


def letters_of(macro: MacroString) -> frozenset[str]:
    """Which letters it expands."""
    return frozenset(piece.letter for piece in macro if isinstance(piece, MacroExpand))


def expand(macro: MacroString, value: Callable[[str], str]) -> str | None:
    """The text that it stands for; `value` tells that of a letter.

    None if something in it is not ASCII: neither a name nor an explanation can be made of it. So a term with the local
    part of an internationalized address matches nothing (SPF-16; RFC 8616 4).
    """
    expanded = "".join(piece if isinstance(piece, str) else _expanded(piece, value(piece.letter)) for piece in macro)
    return expanded if expanded.isascii() else None


def _expanded(piece: MacroExpand, text: str) -> str:
    # SPF-12: split, reverse, keep the parts at the right, join with dots, escape; in this order (7.3).
    parts = re.split(f"[{re.escape(piece.delimiters)}]", text)
    if piece.reversed:
        parts.reverse()
    joined = ".".join(parts[-piece.kept :])
    return quote(joined, safe="") if piece.escaped and joined.isascii() else joined


def name_of(expanded: str) -> str | None:
    """The name in the DNS that an expansion is, in lower case; None if it is none.

    A final dot is dropped, and a name of more than 253 octets loses labels at its left until it fits (SPF-12; RFC 7208
    7.3). Labels may hold any octets, but none may be empty or too long.
    """
    if not expanded.isascii():
        return None
    name = expanded.removesuffix(".").lower()
    if len(name) > NAME_LIMIT:
        cut = name.find(".", len(name) - NAME_LIMIT - 1)
        name = name[cut + 1 :] if cut >= 0 else ""
    return name if all(0 < len(label) <= LABEL_LIMIT for label in name.split(".")) else None
