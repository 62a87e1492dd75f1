"""Mail addresses and the paths that carry them: RFC 5321 4.1.2 and 4.1.3, with UTF-8 as RFC 6531 3.3 adds it.

One value, `Address`, serves the whole of Mailrail: its local part is unquoted and keeps its spelling, its domain is
always lower-case A-labels (or an address literal in one canonical spelling), so that two addresses that are the same
to DNS are equal here. `str(address)` is the form for the wire, with the least quoting (RFC 5321 4.1.2).

The parsers take what a stranger sent. They are linear in its length, bounded, and raise `AddressError` with a text
that may be shown to that stranger; they never return part of a broken address. Some forms that RFC 5321 forbids are
taken, since they are in real use and can be read in one way only: dots at the ends of a local part and in rows (such a
local part leaves quoted), underscores in a domain, a dot at its end, and a path without angle brackets. What is refused
and why is in docs/reference/refusals.md.
"""

import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final

LOCAL_PART_LIMIT: Final = 255
"""Octets. RFC 5321 4.5.3.1.1 asks for 64 (SIN-05); return paths that carry another address (VERP, SRS) are longer."""
DOMAIN_LIMIT: Final = 255
"""Octets of the A-label form (RFC 5321 4.5.3.1.2)."""
LABEL_LIMIT: Final = 63
"""Octets of one label (RFC 1035 2.3.4)."""

_ATEXT = r"A-Za-z0-9!#$%&'*+/=?^_`{|}~-"
# UTF8-non-ascii of RFC 6531 3.3 without the C1 controls; and without surrogates, which stand for octets that are no
# UTF-8 where a header is read.
_UTF8 = "\u00a0-\ud7ff\ue000-\U0010ffff"
# A label never starts or ends with a hyphen; written so that each character can match in one way only.
_LABEL = r"[A-Za-z0-9]+(?:-+[A-Za-z0-9]+)*"
_MAIL_LABEL = r"[A-Za-z0-9_]+(?:-+[A-Za-z0-9_]+)*"  # of a domain in an address; host names have no underscore
_DOT_STRING_UTF8 = re.compile(rf"[{_UTF8}{_ATEXT}]+(?:\.[{_UTF8}{_ATEXT}]+)*")
_LOOSE_LOCAL_UTF8 = re.compile(rf"[.{_UTF8}{_ATEXT}]+")
# qtextSMTP or a quoted pair; control characters are in neither, so a path cannot carry a line end.
_QUOTED_STRING_UTF8 = re.compile(rf'"((?:[ !#-\[\]-~{_UTF8}]|\\[ -~])*)"')
_QUOTED_PAIR = re.compile(r"\\(.)", re.DOTALL)
_DOMAIN = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_MAIL_DOMAIN = re.compile(rf"{_MAIL_LABEL}(?:\.{_MAIL_LABEL})*")
_DOMAIN_UTF8 = re.compile(rf"[A-Za-z0-9._{_UTF8}-]+")
_LITERAL = re.compile(r"\[([!-Z^-~]*)\]")
_SOURCE_ROUTE = re.compile(rf"@(?:{_LABEL})(?:\.{_LABEL})*(?:,@(?:{_LABEL})(?:\.{_LABEL})*)*:")
_PLAIN_PATH = re.compile(rf"<([{_ATEXT}]+(?:\.[{_ATEXT}]+)*)@({_LABEL}(?:\.{_LABEL})*)>")


class AddressError(ValueError):
    """The text is not an address. The message is fit for an SMTP reply: ASCII, one line, no echo of the input."""


class NonAsciiAddress(AddressError):
    """The address needs SMTPUTF8 and it was not asked for (RFC 6531 3.4: 550 or 553 5.6.7)."""


@dataclass(frozen=True, slots=True, order=True)
class Address:
    """A mailbox name. Build it with `parse_address` unless the parts are known to be valid."""

    local: str
    """Unquoted, spelling kept; may hold UTF-8."""
    domain: str
    """Lower-case A-labels, `[192.0.2.1]`, `[IPv6:2001:db8::1]`, or empty for the bare `Postmaster`."""

    def __str__(self) -> str:
        return f"{quote_local(self.local)}@{self.domain}" if self.domain else quote_local(self.local)

    @property
    def key(self) -> str:
        """What equals for equal mailboxes: local parts compare case-insensitively (design 5), by their characters."""
        return f"{folded(self.local)}@{self.domain}"

    @property
    def is_literal(self) -> bool:
        """Whether the domain is an address literal."""
        return self.domain.startswith("[")

    @property
    def ip(self) -> IPv4Address | IPv6Address | None:
        """The address of a literal, else None."""
        if not self.is_literal:
            return None
        inner = self.domain[1:-1]
        return IPv6Address(inner[5:]) if inner.startswith("IPv6:") else IPv4Address(inner)


def folded(local: str) -> str:
    """A local part as it is compared: without case, and with each character in one spelling, since `é` may come as one
    code point or as two (RFC 6532 3.1: NFC)."""
    if local.isascii():
        return local.lower()
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", local).casefold())


def quote_local(local: str) -> str:
    """A local part as the wire wants it: bare where RFC 5321 4.1.2 allows, else a quoted string."""
    if _DOT_STRING_UTF8.fullmatch(local):
        return local
    return '"' + local.replace("\\", "\\\\").replace('"', '\\"') + '"'


def domain_to_ascii(text: str, *, utf8: bool = True, in_address: bool = False) -> str:
    """A domain name as lower-case A-labels (RFC 5890; mapped by UTS 46 first, as people type it).

    Raises AddressError for what is no host name (RFC 5321 4.1.2), NonAsciiAddress for U-labels while `utf8` is off.
    `in_address`: labels may have underscores.
    """
    if text.isascii():
        if not (_MAIL_DOMAIN if in_address else _DOMAIN).fullmatch(text):
            raise AddressError("domain name is not valid")
        lowered = text.lower()
    else:
        if not utf8:
            raise NonAsciiAddress("domain name has non-ASCII characters and SMTPUTF8 was not asked for")
        # idna takes time quadratic in the length of a label, so a stranger's text is cut off first.
        if len(text) > DOMAIN_LIMIT:
            raise AddressError("domain name is too long")
        import idna  # its tables are large, and commands that live briefly seldom see such a name

        try:
            lowered = idna.encode(text, uts46=True).decode("ascii").lower()
        except (idna.IDNAError, UnicodeError) as error:
            raise AddressError("internationalized domain name is not valid") from error
        if not _DOMAIN.fullmatch(lowered):
            raise AddressError("internationalized domain name is not valid")
    if len(lowered) > DOMAIN_LIMIT:
        raise AddressError("domain name is too long")
    if len(lowered) > LABEL_LIMIT and any(len(label) > LABEL_LIMIT for label in lowered.split(".")):
        raise AddressError("a label of the domain name is too long")
    return lowered


def plain_ip(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """An IPv4 address that is written as IPv6 (`::ffff:192.0.2.1`, as a dual-stack socket shows it) as IPv4 address."""
    return (isinstance(address, IPv6Address) and address.ipv4_mapped) or address


def address_literal(address: IPv4Address | IPv6Address) -> str:
    """An IP address as the domain part of a mail address, and as the name of an MTA (RFC 5321 4.1.3)."""
    return f"[IPv6:{address.compressed}]" if isinstance(address, IPv6Address) else f"[{address}]"


@lru_cache(maxsize=4096)
def is_ip_address(host: str) -> bool:
    """Whether a host is an IP address, as an address literal too, and not a name."""
    text = host.strip("[]")
    try:
        ip_address(text[5:] if text[:5].lower() == "ipv6:" else text)
    except ValueError:
        return host.startswith("[")
    return True


def parse_literal(text: str) -> str:
    """The canonical spelling of an address literal, brackets included (RFC 5321 4.1.3). Raises AddressError."""
    match = _LITERAL.fullmatch(text)
    if match is None:
        raise AddressError("address literal is not valid")
    inner = match[1]
    try:
        if inner[:5].lower() == "ipv6:":
            if "%" in inner:
                raise AddressError("address literal is not valid")
            return address_literal(IPv6Address(inner[5:]))
        return address_literal(IPv4Address(inner))
    except ValueError as error:
        # General-address-literal needs a tag registered with IANA; there is none besides IPv6.
        raise AddressError("address literal is not valid") from error


def _local_part(text: str, start: int, utf8: bool) -> tuple[str, int]:
    if text.startswith('"', start):
        match = _QUOTED_STRING_UTF8.match(text, start)
        if match is None:
            raise AddressError("quoted local part is not valid")
        local = _QUOTED_PAIR.sub(r"\1", match[1])
    else:
        match = _LOOSE_LOCAL_UTF8.match(text, start)
        if match is None:
            raise AddressError("local part is not valid")
        local = match[0]
    if not local.isascii() and not utf8:
        raise NonAsciiAddress("local part has non-ASCII characters and SMTPUTF8 was not asked for")
    if len(local.encode()) > LOCAL_PART_LIMIT:
        raise AddressError("local part is too long")
    return local, match.end()


def _mailbox(text: str, start: int, utf8: bool) -> tuple[Address, int]:
    local, at = _local_part(text, start, utf8)
    if not text.startswith("@", at):
        raise AddressError("address has no domain" if at == len(text) or text[at] == ">" else "local part is not valid")
    at += 1
    if text.startswith("[", at):
        match = _LITERAL.match(text, at)
        if match is None:
            raise AddressError("address literal is not valid")
        return Address(local, parse_literal(match[0])), match.end()
    match = _DOMAIN_UTF8.match(text, at)
    if match is None:
        raise AddressError("domain name is not valid")
    return Address(local, domain_to_ascii(match[0].removesuffix("."), utf8=utf8, in_address=True)), match.end()


def parse_address(text: str, *, utf8: bool = True) -> Address:
    """`local@domain` with nothing before, after or between. Raises AddressError or NonAsciiAddress."""
    address, end = _mailbox(text, 0, utf8)
    if end != len(text):
        raise AddressError("domain name is not valid")
    return address


def _decode(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise AddressError("address is not valid UTF-8") from error


def _path(text: str, utf8: bool) -> tuple[Address, str]:
    match = _PLAIN_PATH.match(text)
    if match is not None:
        local, domain = match[1], match[2].lower()
        if len(local) <= LOCAL_PART_LIMIT and len(domain) <= LABEL_LIMIT:
            return Address(local, domain), text[match.end() :]
    if not text.startswith("<"):
        bare, blank, rest = text.partition(" ")
        if not bare or ">" in bare:
            raise AddressError("address must be in angle brackets")
        return parse_address(bare, utf8=utf8), blank + rest
    # RFC 5321 4.1.1.3 and appendix C: a source route is understood and ignored (SIN-12).
    route = _SOURCE_ROUTE.match(text, 1)
    address, end = _mailbox(text, route.end() if route else 1, utf8)
    if not text.startswith(">", end):
        raise AddressError("domain name is not valid" if ">" in text[end:] else "address has no closing angle bracket")
    return address, text[end + 1 :]


def parse_reverse_path(raw: bytes, *, utf8: bool = False) -> tuple[Address | None, str]:
    """`<path>` at the start of what follows `MAIL FROM:`; None is the null path `<>` (SIN-10). Returns what follows it.

    Raises AddressError (501 5.1.7) or NonAsciiAddress (550 5.6.7).
    """
    text = _decode(raw)
    if text.startswith("<>"):
        return None, text[2:]
    return _path(text, utf8)


def parse_forward_path(raw: bytes, *, utf8: bool = False) -> tuple[Address, str]:
    """`<path>` at the start of what follows `RCPT TO:`, or `<Postmaster>` (RFC 5321 4.1.1.3), whose domain is empty
    (SIN-09). Returns what follows it. Raises AddressError (501 5.1.3) or NonAsciiAddress (553 5.6.7).
    """
    text = _decode(raw)
    if text[:12].lower() == "<postmaster>":
        return Address(text[1:11], ""), text[12:]
    if text.partition(" ")[0].lower() == "postmaster":
        return Address(text[:10], ""), text[10:]
    return _path(text, utf8)
