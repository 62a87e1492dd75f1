"""Sealing of secrets: AES-256-GCM under a key that the services mount (CFG-02).

A sealed value is 1 octet length of the key id, the key id, 12 octets nonce, ciphertext and tag; the reference and the
role are authenticated with it, so that a value cannot be passed off under another name or to another role. Several
keys may be held: the newest (greatest id) seals, any opens. The nonce is derived from the key, the reference and the
content: the same value sealed twice gives the same bytes (equal input, equal revision), and no nonce serves two values.
"""

import hmac
from collections.abc import Mapping

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_LENGTH = 32
KEY_SIZE = KEY_LENGTH
"""Octets of a key."""
VALUE_LIMIT = 1024 * 1024
"""Octets of one secret value; Kubernetes allows no larger Secret."""
_NONCE = 12


class CannotOpen(ValueError):
    """A sealed value that no held key opens: unknown key id, another reference or role, or damaged bytes."""


class Keyring:
    """The sealing keys of a process: key id → 32 octets. Raises ValueError for an empty ring or a bad length."""

    def __init__(self, keys: Mapping[str, bytes]) -> None:
        if not keys:
            raise ValueError("no sealing key: mount at least one (32 octets, base64, file name = key id)")
        for key_id, key in keys.items():
            if len(key) != KEY_LENGTH:
                raise ValueError(f"sealing key {key_id!r} has {len(key)} octets; it needs {KEY_LENGTH}")
            if not 0 < len(key_id.encode()) < 256:
                raise ValueError(f"sealing key id {key_id!r} needs 1 to 255 octets")
        self._keys = dict(keys)
        self.newest = max(self._keys)

    @property
    def ids(self) -> frozenset[str]:
        """Ids of the keys held."""
        return frozenset(self._keys)

    def digest(self, content: bytes) -> str:
        """Keyed HMAC-SHA-256 of a secret's content, hex, for SecretRef.digest: says whether it changed, no more."""
        return hmac.digest(self._subkey(self.newest, b"digest"), content, "sha256").hex()[:32]

    def derive(self, purpose: bytes, data: bytes) -> bytes:
        """32 octets that are stable under the newest key; for salts of verifiers (CFG-03)."""
        return hmac.digest(self._subkey(self.newest, purpose), data, "sha256")

    def derive_each(self, purpose: bytes, data: bytes) -> tuple[bytes, ...]:
        """The same under each key that is held: while keys are rotated, another process may have a newer one."""
        return tuple(hmac.digest(self._subkey(key_id, purpose), data, "sha256") for key_id in self._keys)

    def seal(self, content: bytes, path: str, role: str) -> bytes:
        """Seal `content` for `role` under the reference `path`."""
        key = self._keys[self.newest]
        aad = _aad(path, role)
        nonce = hmac.digest(self._subkey(self.newest, b"nonce"), aad + content, "sha256")[:_NONCE]
        key_id = self.newest.encode()
        return bytes([len(key_id)]) + key_id + nonce + AESGCM(key).encrypt(nonce, content, aad)

    def open(self, sealed: bytes, path: str, role: str) -> bytes:
        """The content again. Raises CannotOpen."""
        length = sealed[0] if sealed else 0
        key = self._keys.get(sealed[1 : 1 + length].decode(errors="replace"))
        if key is None:
            raise CannotOpen(f"{path} is sealed with a key that is not held here ({key_of(sealed)})")
        nonce, ciphertext = sealed[1 + length : 1 + length + _NONCE], sealed[1 + length + _NONCE :]
        try:
            return AESGCM(key).decrypt(nonce, ciphertext, _aad(path, role))
        except (InvalidTag, ValueError) as error:
            raise CannotOpen(f"{path} does not open for {role}: damaged, or sealed for another name or role") from error

    def _subkey(self, key_id: str, purpose: bytes) -> bytes:
        return hmac.digest(self._keys[key_id], b"mailrail " + purpose, "sha256")


def key_of(sealed: bytes) -> str:
    """Id of the key that sealed a value."""
    return sealed[1 : 1 + sealed[0]].decode(errors="replace") if sealed else ""


def _aad(path: str, role: str) -> bytes:
    return f"{role}\0{path}".encode()
