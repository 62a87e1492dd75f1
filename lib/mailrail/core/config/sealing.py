"""Sealed secrets: AES-256-GCM under keys that only our services mount (CFG-02).

A sealed value is stored and carried apart from the revision that refers to it, once for each role that may open it.
Reference and role are authenticated with it, so a value moved to another reference, or handed to another role, does
not open. The key ring holds several keys by id: the newest seals, any opens, so that keys rotate without a pause.

Text form of a key ring: a mapping of key id to 32 octets, base64. The newest is the greatest id in the order of the
alphabet, so ids that are dates (`2026-11-01`) or numbered (`key-002`) rotate by adding one.
"""

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_SIZE: Final = 32
NONCE_SIZE: Final = 12
VALUE_LIMIT: Final = 1024 * 1024
"""Octets of one secret value; Kubernetes allows no larger Secret."""

_VERSION: Final = b"\x01"
_key_id = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


class SealingError(ValueError):
    """A value that does not open, or a key ring that cannot be read. The message says which key id, never a value."""


class UnknownKey(SealingError):
    """Sealed under a key that this ring does not hold (any more, or not yet)."""

    def __init__(self, key_id: str) -> None:
        self.key_id = key_id
        super().__init__(f"sealed under key {key_id!r}, which is not in the key ring")


def _associated(path: str, role: str) -> bytes:
    return b"mailrail sealed v1\0" + path.encode() + b"\0" + role.encode()


@dataclass(frozen=True, slots=True, repr=False)
class Keyring:
    """Keys by id. Purposes (sealing, digests, salts) use keys derived from each, never the key itself."""

    keys: Mapping[str, bytes]

    def __post_init__(self) -> None:
        if not self.keys:
            raise SealingError("the key ring is empty: give it at least one key of 32 octets, base64")
        for key_id, key in self.keys.items():
            if not _key_id.fullmatch(key_id):
                raise SealingError(f"key id {key_id!r}: use letters, digits, '.', '_' and '-', up to 63 characters")
            if len(key) != KEY_SIZE:
                raise SealingError(f"key {key_id!r} has {len(key)} octets; a key has {KEY_SIZE}")

    def __repr__(self) -> str:
        return f"Keyring({', '.join(sorted(self.keys))})"

    @classmethod
    def parse(cls, texts: Mapping[str, str | bytes]) -> "Keyring":
        """A ring from base64 texts by key id, as a mounted Secret gives them. Raises SealingError."""
        keys: dict[str, bytes] = {}
        for key_id, text in texts.items():
            try:
                keys[key_id] = base64.b64decode(text.strip(), validate=True)
            except (binascii.Error, ValueError) as error:
                raise SealingError(f"key {key_id!r} is not base64") from error
        return cls(keys)

    @property
    def newest(self) -> str:
        """The id of the key that seals."""
        return max(self.keys)

    def _derived(self, key_id: str, purpose: bytes) -> bytes:
        return hmac.digest(self.keys[key_id], b"mailrail " + purpose, "sha256")

    def digester(self) -> Callable[..., str]:
        """A function from contents (octets, each counted with its length) to their keyed HMAC under the newest key.

        The digest changes when a content does, and tells nothing about it (CFG-02): an unkeyed hash of a weak password
        could be searched for.
        """
        begun = hmac.new(self._derived(self.newest, b"digest v1"), digestmod=hashlib.sha256)

        def digest(*parts: bytes) -> str:
            mac = begun.copy()
            for part in parts:
                mac.update(len(part).to_bytes(8, "big") + part)
            return mac.hexdigest()[:32]

        return digest

    @property
    def salt_key(self) -> bytes:
        """The key of SCRAM salts (CFG-03)."""
        return self._derived(self.newest, b"scram salt v1")

    def seal(self, value: bytes, path: str, role: str, nonce: bytes) -> bytes:
        """Key id, nonce and ciphertext. The caller draws `nonce` afresh: NONCE_SIZE random octets.

        Raises SealingError for values over VALUE_LIMIT.
        """
        if len(value) > VALUE_LIMIT:
            raise SealingError(f"a secret value has at most {VALUE_LIMIT} octets")
        if len(nonce) != NONCE_SIZE:
            raise SealingError(f"the nonce has {NONCE_SIZE} octets")
        key_id = self.newest
        sealed = AESGCM(self._derived(key_id, b"seal v1")).encrypt(nonce, value, _associated(path, role))
        return b"".join((_VERSION, bytes((len(key_id),)), key_id.encode(), nonce, sealed))

    def open(self, sealed: bytes, path: str, role: str) -> bytes:
        """The value sealed for this reference and role. Raises UnknownKey or SealingError."""
        key_id = key_id_of(sealed)
        if key_id not in self.keys:
            raise UnknownKey(key_id)
        start = 2 + len(key_id)
        nonce, ciphertext = sealed[start : start + NONCE_SIZE], sealed[start + NONCE_SIZE :]
        try:
            return AESGCM(self._derived(key_id, b"seal v1")).decrypt(nonce, ciphertext, _associated(path, role))
        except (InvalidTag, ValueError) as error:
            raise SealingError(
                f"the sealed value of {path} for {role} does not open: altered, or not for us"
            ) from error


def key_id_of(sealed: bytes) -> str:
    """The id of the key that sealed it. Raises SealingError when the bytes are not a sealed value."""
    if len(sealed) < 2 or sealed[:1] != _VERSION or len(sealed) < 2 + sealed[1] + NONCE_SIZE:
        raise SealingError("this is not a sealed value of a version that we know")
    try:
        key_id = sealed[2 : 2 + sealed[1]].decode("ascii")
    except UnicodeDecodeError as error:
        raise SealingError("this is not a sealed value of a version that we know") from error
    if not _key_id.fullmatch(key_id):
        raise SealingError("this is not a sealed value of a version that we know")
    return key_id
