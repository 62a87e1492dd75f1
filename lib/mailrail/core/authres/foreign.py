"""Find the Authentication-Results fields of a message that must not stay in it (RFC 8601 5, AR-01a, AR-01b).

Whoever reads mail that we delivered trusts fields under our name, so none that a stranger wrote may be among them.
"""

import re
from collections.abc import Collection, Iterable
from typing import Final, NamedTuple

from mailrail.core.authres.results import VERSION
from mailrail.core.message.header import Field, HeaderError, tokens, unfolded
from mailrail.core.smtp.address import AddressError, domain_to_ascii

_IDS_WITHIN: Final = 16 * 1024
"""Characters of all Authentication-Results fields that are read for their authserv-ids, comments included. What cannot
be read within them counts as malformed. Real ids have some twenty characters each, and no comments."""
_ID_TOKENS: Final = 600
"""Lexical tokens of an authserv-id: a domain name has at most 255."""
_QUOTED_PAIR = re.compile(r"\\(.)")


def authserv_ids(hostnames: Iterable[str]) -> frozenset[str]:
    """The names under which an installation writes results, as `foreign_results` compares them: one for each gateway,
    since what one of them removes another must not let pass."""
    return frozenset(map(_compared, hostnames))


def foreign_results(fields: Iterable[Field], ids: Collection[str]) -> list[Field]:
    """Authentication-Results fields that go before we add ours: those whose authserv-id is one of `ids`, in any case
    (AR-01a) and in U-labels, too (RFC 8616), and those of a version that RFC 8601 does not define (AR-01b).

    What cannot be read goes as well: a lenient reader might still take it for ours.
    """
    unwanted: list[Field] = []
    left = _IDS_WITHIN
    for field in fields:
        text = unfolded(field.value[:left])
        try:
            read = _authserv_id(text)
        except HeaderError:
            unwanted.append(field)
            left -= len(text)
            continue
        is_cut = len(field.value) > left and read.end == len(text)  # the id may go on, and be ours
        left -= read.end
        if is_cut or read.version != VERSION or _compared(read.name) in ids:
            unwanted.append(field)
    return unwanted


class _AuthservId(NamedTuple):
    name: str
    version: int
    end: int
    """How much of the text was read for it."""


def _authserv_id(text: str) -> _AuthservId:
    """What stands before the first `;`, without blanks and comments. No more is read: what follows may be long."""
    name = ""
    version = ""
    before = 0
    end = len(text)
    for count, (kind, part, after) in enumerate(tokens(text), 1):
        if count > _ID_TOKENS:
            raise HeaderError("the authserv-id is too long")
        apart = after - len(part) > before
        before = after
        if kind == "quoted":
            name += _QUOTED_PAIR.sub(r"\1", part[1:-1])
        elif kind == "atom" and name and apart and not name.endswith(".") and not version and _is_number(part):
            version = part
        elif kind == "atom" or part == ".":
            name += part
            if kind == "atom" and "=" in part:
                end = after
                break
        else:
            end = after
            break
    if not name:
        raise HeaderError("there is no authserv-id")
    return _AuthservId(name, int(version[:9] or VERSION), end)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _compared(name: str) -> str:
    try:
        return domain_to_ascii(name.removesuffix("."), in_address=True)
    except AddressError:
        return name.lower()
