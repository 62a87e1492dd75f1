"""A DKIM-Signature field: read, and judged as far as that goes before any key is asked for (RFC 6376 3.5, 6.1.1).

The values are read by functions of their own, which ARC uses for its fields, too. Domains and selectors may be written
in UTF-8 (RFC 8616 4, DKIM-12): they are compared and asked for as A-labels, while the hash is over what is written.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, TypeVar

from mailrail.core.dkim import tags
from mailrail.core.dkim.canonical import BodyForm, Canonicalization
from mailrail.core.dkim.tags import TagError
from mailrail.core.lookups import NAME_LIMIT
from mailrail.core.shown import shown_octets
from mailrail.core.smtp.address import AddressError, domain_to_ascii

CLOCK_SLACK: Final = 300
"""Seconds that a signer's clock may be ahead of ours, or behind: so long after `x=` a signature still counts."""
SIGNED_FIELDS_LIMIT: Final = 1000
"""Names in `h=`: as many as a header may have fields."""
_IDENTITY_SIZE: Final = 320  # octets of `i=`: a local part, and a domain
_SHA256: Final = 32  # octets

_NUMBER = re.compile(rb"[0-9]{1,76}")  # RFC 6376 3.5, of l=
_TIME = re.compile(rb"[0-9]{1,12}")  # RFC 6376 3.5: to the year 200,000
_FIELD_NAME = re.compile(rb"[!-9<-~]+")  # without colon and semicolon (RFC 6376 2.10: hdr-name)
# Real selectors have underscores.
_SELECTOR = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]*[A-Za-z0-9_])?(?:\.[A-Za-z0-9_](?:[A-Za-z0-9_-]*[A-Za-z0-9_])?)*")
_QUOTED_OCTET = re.compile(rb"=([0-9A-F]{2})")

_T = TypeVar("_T")


class SignatureError(ValueError):
    """A signature cannot be used, whatever its key says. The text says why, for people."""


class ExpiredError(SignatureError):
    """A signature that was good, until a time that it names."""


class Algorithm(Enum):
    """How a signature was made: the two that RFC 8301 3.1 and RFC 8463 3 leave."""

    RSA_SHA256 = b"rsa-sha256"
    ED25519_SHA256 = b"ed25519-sha256"

    @property
    def key_type(self) -> bytes:
        """The `k=` that the record of its key must have."""
        return b"rsa" if self is Algorithm.RSA_SHA256 else b"ed25519"


@dataclass(frozen=True, slots=True)
class KeyName:
    """Where the record of a key is: domain and selector, both as lower-case A-labels."""

    domain: str
    selector: str

    def __str__(self) -> str:
        """The name in the DNS (RFC 6376 3.6.2.1)."""
        return f"{self.selector}._domainkey.{self.domain}"


@dataclass(frozen=True, slots=True)
class Signature:
    """What any signature of the family says: that of DKIM, and the two of an ARC set."""

    algorithm: Algorithm
    key: KeyName
    octets: bytes = field(repr=False)
    """`b=`, decoded."""


@dataclass(frozen=True, slots=True)
class MessageSignature:
    """A signature over a body and chosen fields: that of a DKIM-Signature or of an ARC-Message-Signature."""

    base: Signature
    body_hash: bytes
    header: Canonicalization
    body: BodyForm
    signed: tuple[bytes, ...]
    """The names in `h=`, in lower case, in their order."""


@dataclass(frozen=True, slots=True)
class DkimSignature:
    """A DKIM-Signature that only its key, its header and its body can prove wrong."""

    message: MessageSignature
    identity: str
    """`i=` decoded, with its domain in A-labels: `user@sub.example.org` or `@example.org`."""
    identity_domain: str


@dataclass(frozen=True, slots=True)
class SignatureFacts:
    """What a signature says of itself, for reports and logs, as far as it can be read."""

    domain: str = ""
    """`d=` in lower-case A-labels."""
    selector: str = ""
    identity: str = ""
    algorithm: str = ""
    """`a=` as it is written."""
    octets: str = field(default="", repr=False)
    """`b=` without its blanks."""


# --- reading values; each raises TagError -------------------------------------------------------------------------


def required(found: Mapping[bytes, bytes], name: bytes) -> bytes:
    """The value of a tag that has to be there."""
    try:
        return found[name]
    except KeyError:
        raise TagError(f"the tag {name.decode()}= is missing") from None


def read_algorithm(value: bytes) -> Algorithm:
    """`a=`. DKIM-02: SHA-1 is refused as if it were unknown, for a signer must not use it (RFC 8301 3.1)."""
    try:
        return Algorithm(value)
    except ValueError:
        if value == b"rsa-sha1":
            raise TagError("it is made with SHA-1, which proves nothing any more (RFC 8301 3.1)") from None
        raise TagError(f"its algorithm {shown_octets(value)} is neither rsa-sha256 nor ed25519-sha256") from None


def read_domain(value: bytes, name: str = "d") -> str:
    """A domain as lower-case A-labels (DKIM-12)."""
    try:
        return domain_to_ascii(value.decode("utf-8"), in_address=True)
    except (UnicodeDecodeError, AddressError) as error:
        raise TagError(f"the tag {name}= has {shown_octets(value)}, which is no domain") from error


def read_selector(value: bytes) -> str:
    """A selector as lower-case A-labels."""
    try:
        text = value.decode("utf-8")
        if not text.isascii():
            return domain_to_ascii(text)
    except (UnicodeDecodeError, AddressError) as error:
        raise TagError(f"the tag s= has {shown_octets(value)}, which is no selector") from error
    if not _SELECTOR.fullmatch(text) or any(len(label) > 63 for label in text.split(".")):
        raise TagError(f"the tag s= has {shown_octets(value)}, which is no selector")
    return text.lower()


def read_key_name(found: Mapping[bytes, bytes]) -> KeyName:
    """`d=` and `s=`: where the key is."""
    name = KeyName(read_domain(required(found, b"d")), read_selector(required(found, b"s")))
    if len(str(name)) > NAME_LIMIT:
        raise TagError("the name of its key is longer than a name in the DNS may be")
    return name


def read_signature(found: Mapping[bytes, bytes]) -> Signature:
    """`a=`, `b=`, `d=` and `s=`."""
    algorithm = read_algorithm(required(found, b"a"))
    octets = tags.octets(required(found, b"b"), "b")
    if not octets:
        raise TagError("the tag b= is empty")
    return Signature(algorithm, read_key_name(found), octets)


def read_time(found: Mapping[bytes, bytes], name: bytes) -> int | None:
    """`t=` or `x=`: seconds of Unix time."""
    value = found.get(name)
    if value is None:
        return None
    if not _TIME.fullmatch(value):
        raise TagError(f"the tag {name.decode()}= has {shown_octets(value)}, which is no time in seconds")
    return int(value)


def check_times(found: Mapping[bytes, bytes], now: float) -> None:
    """`t=` and `x=` (DKIM-04). Raises ExpiredError, too."""
    made, until = read_time(found, b"t"), read_time(found, b"x")
    if until is not None:
        if made is not None and until <= made:
            raise TagError("it expires (x=) before it was made (t=)")
        if until + CLOCK_SLACK < now:
            raise ExpiredError("it has expired (x=)")


def _canonicalizations(value: bytes) -> tuple[Canonicalization, Canonicalization]:
    header, slash, body = value.partition(b"/")
    try:
        # RFC 6376 3.5: simple where one is not named.
        return Canonicalization(header), Canonicalization(body) if slash else Canonicalization.SIMPLE
    except ValueError:
        raise TagError(f"the tag c= has {shown_octets(value)}, which is no canonicalization") from None


def _names(value: bytes) -> tuple[bytes, ...]:
    names = tags.words(value)
    if len(names) > SIGNED_FIELDS_LIMIT:
        raise TagError(f"the tag h= has more than {SIGNED_FIELDS_LIMIT} names")
    for name in names:
        if not _FIELD_NAME.fullmatch(name):
            raise TagError(f"the tag h= has {shown_octets(name)}, which is no name of a field")
    return tuple(name.lower() for name in names)


def read_message_signature(found: Mapping[bytes, bytes]) -> MessageSignature:
    """The tags that a DKIM-Signature and an ARC-Message-Signature share."""
    base = read_signature(found)
    body_hash = tags.octets(required(found, b"bh"), "bh")
    if len(body_hash) != _SHA256:
        raise TagError(f"the tag bh= has {len(body_hash)} octets where SHA-256 has {_SHA256}")
    header, body = _canonicalizations(found.get(b"c", b"simple/simple"))
    length = None
    if b"l" in found:
        if not _NUMBER.fullmatch(found[b"l"]):
            raise TagError(f"the tag l= has {shown_octets(found[b'l'])}, which is no number")
        length = int(found[b"l"])
    return MessageSignature(base, body_hash, header, BodyForm(body, length), _names(required(found, b"h")))


def _unquoted(value: bytes) -> bytes:
    """dkim-quoted-printable (RFC 6376 2.11) decoded: blanks mean nothing, and `=` and two digits are an octet."""
    return _QUOTED_OCTET.sub(lambda match: bytes.fromhex(match[1].decode()), tags.without_blanks(value))


def _identity(found: Mapping[bytes, bytes], domain: str) -> tuple[str, str]:
    written = found.get(b"i")
    if written is None:
        return f"@{domain}", domain
    if len(written) > _IDENTITY_SIZE:
        raise TagError(f"the tag i= has more than {_IDENTITY_SIZE} octets")
    local, at, host = _unquoted(written).rpartition(b"@")
    if not at:
        raise TagError(f"the tag i= has {shown_octets(written)}, which has no @")
    of = read_domain(host, "i")
    # DKIM-04: i= is d= or below it.
    if of != domain and not of.endswith(f".{domain}"):
        raise TagError(f"the domain of i= ({of}) is not within d= ({domain})")
    return f"{local.decode('utf-8', 'backslashreplace')}@{of}", of


# --- DKIM-Signature -----------------------------------------------------------------------------------------------


def read_dkim_signature(found: Mapping[bytes, bytes], now: float) -> DkimSignature:
    """The field that has these tags, received at `now` (Unix time). Raises SignatureError."""
    try:
        return _read(found, now)
    except TagError as error:
        raise SignatureError(str(error)) from error


def _read(found: Mapping[bytes, bytes], now: float) -> DkimSignature:
    # DKIM-04: the version, the required tags, and From among the fields that are signed.
    version = required(found, b"v")
    if version != b"1":
        raise TagError(f"its version is {shown_octets(version)}, and only 1 is known")
    message = read_message_signature(found)
    if b"from" not in message.signed:
        raise TagError("it does not cover From (RFC 6376 5.4)")
    if b"dns/txt" not in tags.words(found.get(b"q", b"dns/txt")):
        raise TagError("its key is not in TXT records of the DNS, and nothing else is known")
    identity, identity_domain = _identity(found, message.base.key.domain)
    check_times(found, now)
    return DkimSignature(message, identity, identity_domain)


def read_facts(found: Mapping[bytes, bytes]) -> SignatureFacts:
    """What these tags say, even if they are not valid."""

    def known(read: Callable[[], _T], otherwise: _T) -> _T:
        try:
            return read()
        except TagError:
            return otherwise

    domain = known(lambda: read_domain(required(found, b"d")), "")
    return SignatureFacts(
        domain=domain,
        selector=known(lambda: read_selector(required(found, b"s")), ""),
        identity=known(lambda: _identity(found, domain)[0], ""),
        algorithm=found.get(b"a", b"").decode("ascii", "backslashreplace"),
        octets=tags.without_blanks(found.get(b"b", b"")).decode("ascii", "backslashreplace"),
    )
