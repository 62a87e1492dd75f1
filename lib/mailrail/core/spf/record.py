"""SPF records: which TXT record is one (RFC 7208 4.5), and what it says (RFC 7208 5, 6, 12).

A record is read as a whole before any term is evaluated: a fault anywhere makes it a permerror (SPF-09).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from mailrail.core.shown import shown_text
from mailrail.core.spf.macro import (
    MacroString,
    SpfSyntaxError,
    parse_domain_spec,
    parse_macro_string,
)
from mailrail.core.spf.result import SpfResult

RECORD_LIMIT: Final = 16_384
"""Octets of a record that is read; RFC 7208 3.4 asks for less than 512."""
IpAddress = IPv4Address | IPv6Address

_VERSION: Final = b"v=spf1"
_MODIFIER = re.compile(r"([A-Za-z][A-Za-z0-9_.-]*)=(.*)")
_DIRECTIVE = re.compile(r"([+?~-]?)([A-Za-z0-9]+)(.*)")
_LENGTHS = re.compile(r"(?:/([0-9]+))?(?://([0-9]+))?\Z")
_LENGTH = re.compile(r"0|[1-9][0-9]{0,2}")  # no leading zero (RFC 7208 12)
_QUALIFIERS: Final = {
    "": SpfResult.PASS,
    "+": SpfResult.PASS,
    "-": SpfResult.FAIL,
    "~": SpfResult.SOFTFAIL,
    "?": SpfResult.NEUTRAL,
}


class SpfKind(StrEnum):
    """The mechanisms (RFC 7208 5)."""

    ALL = "all"
    INCLUDE = "include"
    A = "a"
    MX = "mx"
    PTR = "ptr"
    IP4 = "ip4"
    IP6 = "ip6"
    EXISTS = "exists"


@dataclass(frozen=True, slots=True)
class SpfMechanism:
    """A mechanism with its qualifier."""

    text: str
    """As the record has it."""
    kind: SpfKind
    result: SpfResult
    """What its qualifier says of a client that it matches."""
    target: MacroString = ()
    """Empty: the domain whose record it is."""
    network: IpAddress | None = None
    """Of `ip4` and `ip6`."""
    length4: int = 32
    """Bits of the prefix for an IPv4 client."""
    length6: int = 128
    """Bits of the prefix for an IPv6 client."""

    def covers(self, client: IpAddress, address: IpAddress) -> bool:
        """Whether the client is in the network that `address` and the prefix length make."""
        if client.version != address.version:
            return False
        length = self.length4 if client.version == 4 else self.length6
        return (int(client) ^ int(address)) >> (client.max_prefixlen - length) == 0


@dataclass(frozen=True, slots=True)
class SpfRecord:
    """What a record says. Modifiers that RFC 7208 does not know are left out (SPF-09)."""

    mechanisms: tuple[SpfMechanism, ...]
    redirect: MacroString | None = None
    redirect_text: str = ""
    """The modifier as the record has it."""
    exp: MacroString | None = None


def records_among(texts: Sequence[bytes]) -> tuple[bytes, ...]:
    """The SPF records among the TXT records of a name: those that begin with `v=spf1` in any case and then a blank or
    their end (SPF-01). There has to be one."""
    return tuple(t for t in texts if t[:6].lower() == _VERSION and t[6:7] in (b"", b" "))


def parse_record(text: bytes) -> SpfRecord:
    """A record that `records_among` found. Raises SpfSyntaxError for a fault anywhere in it (SPF-09)."""
    if len(text) > RECORD_LIMIT:
        raise SpfSyntaxError(f"the record has {len(text)} octets; more than {RECORD_LIMIT} are not read")
    try:
        terms = text[len(_VERSION) :].decode("ascii").split(" ")  # by blanks alone, never by another white space
    except UnicodeDecodeError:
        raise SpfSyntaxError("the record has octets that are not ASCII (RFC 7208 3.1)") from None
    mechanisms: list[SpfMechanism] = []
    known: dict[str, tuple[str, MacroString]] = {}
    for term in filter(None, terms):
        modifier = _MODIFIER.fullmatch(term)
        if modifier is None:
            mechanisms.append(_mechanism(term))
            continue
        name = modifier[1].lower()
        if name not in ("redirect", "exp"):
            parse_macro_string(modifier[2])
        elif name in known:
            raise SpfSyntaxError(f"{name}= stands there more than once")  # SPF-15; RFC 7208 6
        else:
            known[name] = (term, parse_domain_spec(modifier[2]))
    redirect_text, redirect = known.get("redirect", ("", None))
    return SpfRecord(tuple(mechanisms), redirect, redirect_text, known.get("exp", ("", None))[1])


def _mechanism(term: str) -> SpfMechanism:
    parts = _DIRECTIVE.fullmatch(term)
    try:
        kind = SpfKind(parts[2].lower() if parts is not None else "")
    except ValueError:
        raise SpfSyntaxError(f"{shown_text(term)} is not a term of SPF") from None
    assert parts is not None
    result, rest = _QUALIFIERS[parts[1]], parts[3]
    match kind:
        case SpfKind.ALL:
            if rest:
                raise SpfSyntaxError(f"{shown_text(term)} is not valid: nothing may follow all")
            return SpfMechanism(term, kind, result)
        case SpfKind.IP4 | SpfKind.IP6:
            return _network(term, kind, result, rest)
        case SpfKind.A | SpfKind.MX:
            lengths = _LENGTHS.search(rest)
            assert lengths is not None  # it matches an empty text
            length4, length6 = _length(lengths[1], 32, term), _length(lengths[2], 128, term)
            return SpfMechanism(
                term, kind, result, _target(term, rest[: lengths.start()]), length4=length4, length6=length6
            )
        case SpfKind.PTR:
            return SpfMechanism(term, kind, result, _target(term, rest))
        case SpfKind.INCLUDE | SpfKind.EXISTS:
            if not rest:
                raise SpfSyntaxError(f"{shown_text(term)} is not valid: it needs a domain")
            return SpfMechanism(term, kind, result, _target(term, rest))


def _target(term: str, rest: str) -> MacroString:
    if not rest:
        return ()
    if not rest.startswith(":"):
        raise SpfSyntaxError(f"{shown_text(term)} is not a term of SPF")
    return parse_domain_spec(rest[1:])


def _length(text: str | None, most: int, term: str) -> int:
    if text is None:
        return most
    if not _LENGTH.fullmatch(text) or int(text) > most:
        raise SpfSyntaxError(f"{shown_text(term)} is not valid: the length of a prefix is 0 to {most}")
    return int(text)


def _network(term: str, kind: SpfKind, result: SpfResult, rest: str) -> SpfMechanism:
    address, slash, length = rest[1:].partition("/")
    make, most = (IPv4Address, 32) if kind is SpfKind.IP4 else (IPv6Address, 128)
    try:
        if not rest.startswith(":") or "%" in address:  # of a zone (RFC 4007 11), which is no part of ip6-network
            raise ValueError
        network = make(address)
    except ValueError:
        raise SpfSyntaxError(f"{shown_text(term)} is not valid: {kind.value}: wants an address") from None
    bits = _length(length if slash else None, most, term)
    return SpfMechanism(term, kind, result, network=network, length4=min(bits, 32), length6=bits)
