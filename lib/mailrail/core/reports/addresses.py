"""Where reports are sent: the URIs of `rua`, read and written (RFC 9989 4.7 and 4.8, RFC 8460 3; DAGG-12, DAGG-13).

Strangers write them. What is no address is passed over with its reason, and the others count (DAGG-11a).
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote, unquote_to_bytes, urlsplit

from mailrail.core.shown import shown_octets
from mailrail.core.smtp.address import Address, AddressError, domain_to_ascii, is_ip_address, parse_address

DESTINATIONS_LIMIT: Final = 10
"""Addresses of one record that get a report."""
URIS_LIMIT: Final = 100
"""URIs of one record that are looked at."""
_URL_LIMIT: Final = 1000  # characters
_SIZES: Final = {"": 1, "k": 1024, "m": 1024**2, "g": 1024**3, "t": 1024**4}
_MOST: Final = 2**63 - 1
_SIZE = re.compile(r"([0-9]{1,40})([kmgt]?)", re.IGNORECASE)
# A local part that lacks the quotes which its commas and semicolons need: it can be meant in one way only.
_UNQUOTED = re.compile(r"([!#-?A-\[\]-~]+)@([^@]*)")
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_URL = re.compile(r"[!#-;=?-Z_a-z~%\[\]]+")  # the characters of RFC 3986 2


@dataclass(frozen=True, slots=True)
class MailDestination:
    """A `mailto:` URI."""

    address: Address
    limit: int | None = None
    """Octets of a report that it takes, packed and in base64, as RFC 7489 6.2 had it; None: any."""


@dataclass(frozen=True, slots=True)
class PostDestination:
    """An `https:` URI (RFC 8460 5.4). Its host is a name and its port 443."""

    url: str
    host: str
    """A-labels in lower case."""


@dataclass(frozen=True, slots=True)
class SkippedUri:
    """No report goes there."""

    uri: str
    """As it was written, cut, in one line of ASCII."""
    reason: str


@dataclass(frozen=True, slots=True)
class Destinations:
    """What a `rua` says, in its order."""

    found: tuple[MailDestination | PostDestination, ...]
    """At most DESTINATIONS_LIMIT, each once."""
    skipped: tuple[SkippedUri, ...]


def destinations(uris: Iterable[str], *, post: bool) -> Destinations:
    """The destinations among the URIs of a record. `post`: HTTPS is one, too, as with TLS reports.

    DAGG-11a: in their order, what is malformed is passed over, and all others count up to the limit.
    """
    found: dict[MailDestination | PostDestination, None] = {}
    skipped: list[SkippedUri] = []
    for number, written in enumerate(uris):
        uri = written.strip(" \t")
        if number >= URIS_LIMIT:
            break
        try:
            one = _read(uri, post)
        except ValueError as error:
            skipped.append(SkippedUri(shown_octets(uri.encode("utf-8", "replace")), str(error)))
            continue
        if len(found) < DESTINATIONS_LIMIT or one in found:
            found[one] = None
        else:
            reason = f"no more than {DESTINATIONS_LIMIT} addresses get a report"
            skipped.append(SkippedUri(shown_octets(uri.encode("utf-8", "replace")), reason))
    return Destinations(tuple(found), tuple(skipped))


def mailto(address: Address) -> str:
    """The URI of an address, as records of ours have it (RFC 6068 2).

    DAGG-13, TRPT-21: a comma, an exclamation mark and a semicolon mean something in records, so they are escaped; and
    so is all else that means something in a URI.
    """
    return "mailto:" + quote(str(address), safe="@$'*+")


def _read(uri: str, post: bool) -> MailDestination | PostDestination:
    """One URI. Raises ValueError."""
    scheme, colon, rest = uri.partition(":")
    scheme = scheme.lower()
    if not colon:
        raise ValueError("it is no URI")
    if scheme == "https" and post:
        return _post(uri)
    if scheme != "mailto":
        raise ValueError("reports are sent by mail or HTTPS alone" if post else "reports are sent by mail alone")
    # DAGG-12: a size that follows the address is no part of it. In the address the mark would be escaped.
    rest, mark, size = rest.partition("!")
    limit = None
    if mark:
        found = _SIZE.fullmatch(size.strip(" \t"))
        if found is None:
            raise ValueError("what follows the exclamation mark is no size")
        limit = min(_MOST, int(found[1]) * _SIZES[found[2].lower()])
    local = rest.partition("?")[0].strip(" \t")  # RFC 6068 2: fields follow, which are not for reports
    if local.startswith("//"):
        raise ValueError("no slashes follow mailto:")
    if _BAD_ESCAPE.search(local):
        raise ValueError("a percent sign is not followed by two hexadecimal digits")
    try:
        written = unquote_to_bytes(local).decode("utf-8")
        address = parse_address(_quoted(written))
    except (AddressError, UnicodeDecodeError) as error:
        raise ValueError("it has no valid address" if isinstance(error, UnicodeDecodeError) else str(error)) from None
    if "." not in address.domain or address.is_literal:
        raise ValueError("its domain is no full domain name")
    return MailDestination(address, limit)


def _quoted(written: str) -> str:
    """An address whose local part gets the quotes that it lacks. Linear in its length: strangers write it."""
    found = _UNQUOTED.fullmatch(written)
    if found is None or ("," not in found[1] and ";" not in found[1]):
        return written
    return f'"{found[1]}"@{found[2]}'


def _post(uri: str) -> PostDestination:
    if len(uri) > _URL_LIMIT or not _URL.fullmatch(uri) or _BAD_ESCAPE.search(uri):
        raise ValueError("it is no valid URL")
    parts = urlsplit(uri)  # raises ValueError
    if parts.username is not None or parts.fragment:
        raise ValueError("it has a user or a fragment, which a report's URL has not")
    host = (parts.hostname or "").removesuffix(".")
    if is_ip_address(host) or "." not in host:
        raise ValueError("its host is no full domain name")
    if parts.port not in (None, 443):
        raise ValueError("its port is not 443")
    return PostDestination(uri, domain_to_ascii(host))
