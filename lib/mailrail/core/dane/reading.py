"""Certificates of strangers, read for DANE: each as far as it can be read, in bounded time, without an exception.

What a record of DANE-EE compares needs no more of a certificate than where its public key stands. So that much is read
here, octet by octet: a certificate that the TLS library took and `cryptography` refuses still matches. A public key is
compared as it is written: to write it anew from its parsed form would change some.
"""

import contextlib
import datetime
import hashlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Final, TypeVar, cast

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.serialization import load_der_public_key
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID

UNREADABLE: Final = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)
"""What `cryptography` raises for certificates and keys that it cannot read, or not compute with."""
SMALLEST_RSA: Final = 2048
"""Bits of an RSA key that may vouch for anything (RFC 9325 4.5)."""
LARGEST_RSA: Final = 8192
"""Bits of an RSA key with which a signature is verified: those of 16,384 bits take milliseconds each."""
_Kind = TypeVar("_Kind", bound=x509.ExtensionType)
_MOST_KEY: Final = 4096  # octets of a public key; RSA with 8192 bits has 1,100
_MOST_EXPONENT: Final = 33  # bits; all real ones have 17
_SEQUENCE, _INTEGER, _VERSION = 0x30, 0x02, 0xA0
_WEAK_HASHES: Final = (hashes.MD5, hashes.SHA1)
_UNDERSTOOD: Final = frozenset(
    {
        ExtensionOID.BASIC_CONSTRAINTS,
        ExtensionOID.CERTIFICATE_POLICIES,  # no policy is asked for, so these cannot forbid one
        ExtensionOID.CRL_DISTRIBUTION_POINTS,
        ExtensionOID.EXTENDED_KEY_USAGE,
        ExtensionOID.INHIBIT_ANY_POLICY,
        ExtensionOID.KEY_USAGE,
        ExtensionOID.NAME_CONSTRAINTS,
        ExtensionOID.POLICY_CONSTRAINTS,
        ExtensionOID.POLICY_MAPPINGS,
        ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
    }
)
_FOR_SERVERS: Final = frozenset({ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE})


@contextlib.contextmanager
def without_warnings() -> Iterator[None]:
    """What a stranger's certificate has that is merely deprecated is no news."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@dataclass(frozen=True, slots=True)
class Outline:
    """The parts of a certificate that are compared octet by octet."""

    issuer: bytes
    subject: bytes
    key: bytes
    """SubjectPublicKeyInfo (RFC 5280 4.1.2.7), as it is written in the certificate."""

    @classmethod
    def of(cls, der: bytes) -> "Outline":
        """Raises ValueError. Only DER's definite lengths are taken, so that there is but one way to read it."""
        start, end = _within(der, 0, len(der), _SEQUENCE)
        at, end = _within(der, start, end, _SEQUENCE)
        if at < end and der[at] == _VERSION:
            _, at = _within(der, at, end, _VERSION)
        parts = []
        for tag in (_INTEGER, _SEQUENCE, _SEQUENCE, _SEQUENCE, _SEQUENCE, _SEQUENCE):
            _, after = _within(der, at, end, tag)
            parts.append(der[at:after])
            at = after
        _, _, issuer, _, subject, key = parts
        return cls(issuer, subject, key)


def _within(der: bytes, at: int, end: int, tag: int) -> tuple[int, int]:
    """Where the content of the element at `at` begins and ends."""
    if at + 2 > end or der[at] != tag:
        raise ValueError("not a certificate in DER")
    length, start = der[at + 1], at + 2
    if length >= 0x80:
        start += length & 0x7F
        if length == 0x80 or length > 0x84 or start > end:
            raise ValueError("not a certificate in DER")
        length = int.from_bytes(der[at + 2 : start], "big")
    if start + length > end:
        raise ValueError("not a certificate in DER")
    return start, start + length


class Link:
    """A certificate that may be a link of a chain. Whatever it is asked, it answers."""

    def __init__(self, der: bytes) -> None:
        self.der = der
        self._written: dict[tuple[bool, str], bytes | None] = {}
        try:
            self.outline: Outline | None = Outline.of(der)
        except ValueError:
            self.outline = None

    def written(self, *, of_key: bool, digest: str) -> bytes | None:
        """It, or its public key, or the digest of one by a name that hashlib knows, made once; None: it has no key."""
        form = (of_key, digest)
        if form not in self._written:
            key = self.outline.key if self.outline is not None else None
            content = key if of_key else self.der
            self._written[form] = hashlib.new(digest, content).digest() if digest and content is not None else content
        return self._written[form]

    @cached_property
    def parsed(self) -> x509.Certificate | None:
        """None: it cannot be read."""
        try:
            with without_warnings():
                return x509.load_der_x509_certificate(self.der)
        except UNREADABLE:
            return None

    @cached_property
    def life(self) -> tuple[datetime.datetime, datetime.datetime] | None:
        """From when until when it is valid. None: it does not say it readably."""
        if self.parsed is None:
            return None
        try:
            return self.parsed.not_valid_before_utc, self.parsed.not_valid_after_utc
        except UNREADABLE:
            return None

    @cached_property
    def extensions(self) -> x509.Extensions | None:
        """None: one of them cannot be read, or is there twice."""
        if self.parsed is None:
            return None
        try:
            with without_warnings():
                return self.parsed.extensions
        except UNREADABLE:
            return None

    @cached_property
    def key(self) -> CertificatePublicKeyTypes | None:
        """None: of a kind that we cannot compute with."""
        return None if self.outline is None else public_key(self.outline.key)

    @cached_property
    def unreadable(self) -> bool:
        """Whether too little of it can be read to judge it."""
        return self.outline is None or self.life is None or self.extensions is None or self.key is None

    @property
    def issued_by_itself(self) -> bool:
        """Issuer and subject are one (RFC 5280 3.2)."""
        return self.outline is not None and self.outline.issuer == self.outline.subject

    @cached_property
    def dns_names(self) -> tuple[str, ...]:
        """Its DNS-IDs in lower case (RFC 9525 2.2)."""
        names = self._extension(x509.SubjectAlternativeName)
        return () if names is None else tuple(name.lower() for name in names.get_values_for_type(x509.DNSName))

    @property
    def other_names(self) -> tuple[x509.GeneralName, ...]:
        """What it names besides hosts."""
        names = self._extension(x509.SubjectAlternativeName)
        return () if names is None else tuple(name for name in names if not isinstance(name, x509.DNSName))

    @property
    def constraints(self) -> x509.NameConstraints | None:
        """What names those may have that it vouches for (RFC 5280 4.2.1.10)."""
        return self._extension(x509.NameConstraints)

    @property
    def path_length(self) -> int | None:
        """How many issuers may follow it; None: any number (RFC 5280 4.2.1.9)."""
        basic = self._extension(x509.BasicConstraints)
        return None if basic is None else basic.path_length

    @cached_property
    def why_no_issuer(self) -> str | None:
        """Why it may vouch for no other certificate, whatever the time; None: it may."""
        basic, usage = self._extension(x509.BasicConstraints), self._extension(x509.KeyUsage)
        if basic is None or not basic.ca:
            return "it is no CA certificate"
        if usage is not None and not usage.key_cert_sign:
            return "its key must not sign certificates"
        return self._why_unfit

    @cached_property
    def why_no_server(self) -> str | None:
        """Why it is not for a TLS server, whatever the time and the name; None: it is."""
        usage = self._extension(x509.KeyUsage)
        if usage is not None and not (usage.digital_signature or usage.key_encipherment or usage.key_agreement):
            return "its key is not for TLS"
        return self._why_unfit

    @cached_property
    def _why_unfit(self) -> str | None:
        purposes = self._extension(x509.ExtendedKeyUsage)
        if purposes is not None and not _FOR_SERVERS.intersection(purposes):
            return "it is not for TLS servers"
        if any(each.critical and each.oid not in _UNDERSTOOD for each in self.extensions or ()):
            return "it has a critical extension that is not known"
        if isinstance(self.key, rsa.RSAPublicKey) and self.key.key_size < SMALLEST_RSA:
            return f"its RSA key has {self.key.key_size} bits, fewer than {SMALLEST_RSA}"
        return None

    def signed_with(self, key: CertificatePublicKeyTypes) -> bool:
        """Whether this key signed it, by an algorithm that still proves something."""
        if self.parsed is None:
            return False
        try:
            algorithm = self.parsed.signature_hash_algorithm
            how = self.parsed.signature_algorithm_parameters
            signature, content = self.parsed.signature, self.parsed.tbs_certificate_bytes
            if isinstance(algorithm, _WEAK_HASHES):
                return False
            if isinstance(key, rsa.RSAPublicKey):
                if not isinstance(how, padding.PKCS1v15 | padding.PSS) or algorithm is None:
                    return False
                key.verify(signature, content, how, algorithm)
            elif isinstance(key, ec.EllipticCurvePublicKey):
                if not isinstance(how, ec.ECDSA):
                    return False
                key.verify(signature, content, how)
            elif isinstance(key, ed25519.Ed25519PublicKey | ed448.Ed448PublicKey):
                key.verify(signature, content)
            else:
                return False
        except (InvalidSignature, *UNREADABLE):
            return False
        return True

    def _extension(self, kind: type[_Kind]) -> _Kind | None:
        if self.extensions is None:
            return None
        try:
            return self.extensions.get_extension_for_class(kind).value
        except x509.ExtensionNotFound:
            return None


def public_key(key_info: bytes) -> CertificatePublicKeyTypes | None:
    """From SubjectPublicKeyInfo; None: not of a kind that signs certificates, or made to be slow."""
    if len(key_info) > _MOST_KEY:
        return None
    try:
        with without_warnings():
            key = load_der_public_key(key_info)
    except UNREADABLE:
        return None
    if isinstance(key, rsa.RSAPublicKey) and (
        key.key_size > LARGEST_RSA or key.public_numbers().e.bit_length() > _MOST_EXPONENT
    ):
        return None
    return cast(CertificatePublicKeyTypes, key)
