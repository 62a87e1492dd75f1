"""The record of a public key (RFC 6376 3.6.1, RFC 8463 4): read, judged for one signature (RFC 6376 6.1.2), written."""

import base64
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key

from mailrail.core.dkim import tags
from mailrail.core.dkim.signature import Algorithm
from mailrail.core.dkim.tags import TagError
from mailrail.core.shown import shown_octets

RSA_BITS: Final = (1024, 4096)
"""The shortest and the longest RSA key that is believed (DKIM-03; RFC 8301 3.2)."""
RECORD_SIZE: Final = 8 * 1024
"""Octets of a record. One with RSA 4096 has some 750."""
RECORDS_LIMIT: Final = 8
"""Records at one name that are tried. One is what RFC 6376 3.6.2.2 allows; in a change of keys there are two."""
EXPONENT_BITS: Final = 64
"""Of an RSA key: real ones have 17, and the time of checking a signature grows with them."""
RSA: Final = "rsa"
ED25519: Final = "ed25519"
"""Types of keys (`k=`)."""
MAIL: Final = b"email"
"""The service type of mail (`s=`)."""
_ED25519_SIZE: Final = 32  # octets (RFC 8032 5.1.5)
_VERSION: Final = b"DKIM1"
_STRING_SIZE: Final = 255  # octets


class KeyRecordError(ValueError):
    """A record holds no key that may be used. The text says why, for people."""


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """A record with a key."""

    key: RSAPublicKey | Ed25519PublicKey = field(repr=False)
    bits: int
    testing: bool
    """`t=y`: the domain tries DKIM out, and its mail counts as unsigned."""
    strict: bool
    """`t=s`: `i=` must have the very domain of `d=`."""
    hashes: tuple[bytes, ...] | None
    """`h=`: the hashes that may be used; None: any."""
    services: tuple[bytes, ...]

    @property
    def key_type(self) -> bytes:
        """`k=`."""
        return b"rsa" if isinstance(self.key, RSAPublicKey) else b"ed25519"

    def refusal(self, algorithm: Algorithm, services: Collection[bytes]) -> str:
        """Why a signature of this algorithm, for one of these services, must not be made with the key; empty: it may.

        DKIM-05: `k=`, `h=` and `s=` are honoured; DKIM-11: `h=` without sha256 allows no signature that is left.
        """
        if self.key_type != algorithm.key_type:
            return f"its key is for {self.key_type.decode()}, and the signature is {algorithm.value.decode()}"
        if self.hashes is not None and b"sha256" not in self.hashes:
            return "its key does not allow SHA-256 (h=)"
        if b"*" not in self.services and not set(self.services) & set(services):
            return f"its key is not for {b', '.join(sorted(services)).decode()} (s=)"
        return ""

    def verifies(self, signature: bytes, digest: bytes) -> bool:
        """Whether the signature is that of this SHA-256 digest by this key. Never raises."""
        try:
            if isinstance(self.key, RSAPublicKey):
                self.key.verify(signature, digest, padding.PKCS1v15(), Prehashed(hashes.SHA256()))
            else:
                self.key.verify(signature, digest)  # RFC 8463 3: Ed25519 over the digest
        except InvalidSignature:
            return False
        return True


def read_key_record(record: bytes) -> KeyRecord:
    """The record whose strings, joined, are these octets. Raises KeyRecordError."""
    if len(record) > RECORD_SIZE:
        raise KeyRecordError(f"the record of its key has {len(record)} octets, and at most {RECORD_SIZE} are read")
    return _read_key_record(record)


@lru_cache(maxsize=256)  # most mail comes from few domains, and reading a key takes as long as using it
def _read_key_record(record: bytes) -> KeyRecord:
    try:
        found = tags.read_tags(record)
    except TagError as error:
        raise KeyRecordError(f"the record of its key is not valid: {error}") from error
    # DKIM-11: a record of another version is that of something else (RFC 6376 3.6.1).
    if b"v" in found and (found[b"v"] != _VERSION or next(iter(found)) != b"v"):
        raise KeyRecordError("the TXT record where its key should be does not begin with v=DKIM1")
    written = found.get(b"p")
    if written is None:
        raise KeyRecordError("the record of its key has no p=")
    if not written:
        raise KeyRecordError("its key is revoked (p= is empty)")  # DKIM-05
    try:
        octets = tags.octets(written, "p")
    except TagError as error:
        raise KeyRecordError(f"the record of its key is not valid: {error}") from error
    kind = found.get(b"k", b"rsa")
    if kind == b"rsa":
        key, bits = _rsa(octets)
    elif kind == b"ed25519":
        key, bits = _ed25519(octets)
    else:
        raise KeyRecordError(f"its key is of the type {shown_octets(kind)}, which is neither rsa nor ed25519")
    flags = tags.words(found.get(b"t", b""))
    return KeyRecord(
        key=key,
        bits=bits,
        testing=b"y" in flags,
        strict=b"s" in flags,
        hashes=tags.words(found[b"h"]) if b"h" in found else None,
        services=tags.words(found.get(b"s", b"*")),
    )


def _rsa(octets: bytes) -> tuple[RSAPublicKey | Ed25519PublicKey, int]:
    try:
        # SubjectPublicKeyInfo, or the bare RSAPublicKey that RFC 6376 3.6.1 names and few publish.
        key = load_der_public_key(octets)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise KeyRecordError("p= in the record of its key is no RSA key that can be used") from error
    if not isinstance(key, RSAPublicKey):
        raise KeyRecordError("p= in the record of its key is no RSA key that can be used")
    shortest, longest = RSA_BITS
    if key.key_size < shortest:  # DKIM-03
        raise KeyRecordError(f"its RSA key has {key.key_size} bits, and fewer than {shortest} prove nothing")
    if key.key_size > longest:
        raise KeyRecordError(f"its RSA key has {key.key_size} bits, and more than {longest} are not tried")
    if key.public_numbers().e.bit_length() > EXPONENT_BITS:
        raise KeyRecordError("the exponent of its RSA key is too long to be tried")
    return key, key.key_size


def _ed25519(octets: bytes) -> tuple[RSAPublicKey | Ed25519PublicKey, int]:
    if len(octets) != _ED25519_SIZE:
        raise KeyRecordError(f"p= in the record of its key has {len(octets)} octets, and Ed25519 has {_ED25519_SIZE}")
    try:
        return Ed25519PublicKey.from_public_bytes(octets), 8 * _ED25519_SIZE
    except (ValueError, UnsupportedAlgorithm) as error:
        raise KeyRecordError("p= in the record of its key is no Ed25519 key") from error


def write_key_record(key: RSAPublicKey | Ed25519PublicKey) -> str:
    """The text of the record that publishes a key of ours (RFC 6376 3.6.1, RFC 8463 4).

    Without `s=`: it would keep verifiers of mail from the key, or those of TLS reports (RFC 8460 3).
    """
    if isinstance(key, RSAPublicKey):
        octets = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return f"v=DKIM1; k=rsa; p={base64.b64encode(octets).decode()}"
    octets = key.public_bytes(Encoding.Raw, PublicFormat.Raw)
    return f"v=DKIM1; k=ed25519; p={base64.b64encode(octets).decode()}"


def key_type_of(record: str) -> str:
    """`k=` of a text that `write_key_record` made."""
    return ED25519 if f"k={ED25519};" in record else RSA


def record_strings(record: str) -> tuple[str, ...]:
    """The strings of one TXT record with this text (RFC 1035 3.3: each has 255 octets at most)."""
    return tuple(record[at : at + _STRING_SIZE] for at in range(0, len(record), _STRING_SIZE))
