"""What becomes of passwords: SCRAM verifiers with a salt that stays (CFG-03), in a text form of their own.

A verifier says nothing about the password that a client could use elsewhere, so it is all that ingress gets. The
salt is HMAC(key, account UID + hash of the secret): the same account and password always give the same verifier, and a
revision that changes nothing changes no bytes.

The text form is `SCRAM-SHA-256$4096:<salt>$<StoredKey>:<ServerKey>`, base64, the form that RFC 5803 and PostgreSQL use;
a Secret may hold such verifiers in place of a password.
"""

import base64
import binascii
import hashlib
import hmac
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from scramp import ScramException, ScramMechanism
from scramp.utils import saslprep

from mailrail.core.revision.sealing import Keyring

ITERATIONS: Final = 4096
"""RFC 7677 section 4: at least 4096. Each PLAIN login costs ingress as many hashes."""
ITERATIONS_LIMIT: Final = 1_000_000
"""A foreign verifier with more would let one login hold a process for a second."""
PASSWORD_LIMIT: Final = 1024
"""Octets."""
MECHANISMS: Final = ("SCRAM-SHA-256", "SCRAM-SHA-1")
"""Verifiers that we make, strongest first."""

_HASHES: Final = {"SCRAM-SHA-256": "sha256", "SCRAM-SHA-1": "sha1"}
_B64 = r"[A-Za-z0-9+/]+={0,2}"
_FORM = re.compile(rf"(SCRAM-SHA-(?:1|256))\$([0-9]{{1,7}}):({_B64})\$({_B64}):({_B64})")


class InvalidCredentials(ValueError):
    """A password or verifier that cannot be used. The message never holds any of it."""


@dataclass(frozen=True, slots=True, repr=False)
class ScramVerifier:
    """What a server keeps of a password (RFC 5802 section 3). Not shown in logs: repr gives the mechanism alone."""

    mechanism: str
    iterations: int
    salt: bytes
    stored_key: bytes
    server_key: bytes

    def __repr__(self) -> str:
        return f"ScramVerifier({self.mechanism})"

    def __str__(self) -> str:
        """The text form, as it is sealed."""
        salt, stored, server = (base64.b64encode(v).decode() for v in (self.salt, self.stored_key, self.server_key))
        return f"{self.mechanism}${self.iterations}:{salt}${stored}:{server}"

    def admits(self, password: str) -> bool:
        """Whether it was made from this password; for PLAIN and LOGIN. Takes the same time either way."""
        try:
            made = _derive(self.mechanism, password, self.salt, self.iterations)
        except InvalidCredentials:
            return False
        return hmac.compare_digest(made.stored_key, self.stored_key)

    @classmethod
    def parse(cls, text: str) -> "ScramVerifier":
        """Read the text form. Raises InvalidCredentials."""
        match = _FORM.fullmatch(text.strip())
        if match is None:
            raise InvalidCredentials(
                "the verifier should look like SCRAM-SHA-256$4096:<salt>$<StoredKey>:<ServerKey>, base64"
            )
        mechanism, iterations = match[1], int(match[2])
        try:
            salt, stored, server = (base64.b64decode(match[n], validate=True) for n in (3, 4, 5))
        except binascii.Error as error:
            raise InvalidCredentials("the verifier's base64 is broken") from error
        size = hashlib.new(_HASHES[mechanism]).digest_size
        if len(stored) != size or len(server) != size:
            raise InvalidCredentials(f"the keys of a {mechanism} verifier have {size} octets each")
        if not 4096 <= iterations <= ITERATIONS_LIMIT:
            raise InvalidCredentials(f"the verifier's iterations must be 4096 to {ITERATIONS_LIMIT}")
        return cls(mechanism, iterations, salt, stored, server)


def _derive(mechanism: str, password: str, salt: bytes, iterations: int) -> ScramVerifier:
    try:
        made = ScramMechanism(mechanism).make_auth_info(password, iteration_count=iterations, salt=salt)
    except ScramException:
        # RFC 4013 forbids some characters. The library's text may quote the password, so it goes no further.
        raise InvalidCredentials("the password has characters that SASLprep (RFC 4013) forbids") from None
    made_salt, stored_key, server_key, count = made
    return ScramVerifier(mechanism, count, made_salt, stored_key, server_key)


@lru_cache(maxsize=16_384)  # each compilation asks for all of them again
def read_password(value: bytes) -> str:
    """A password from a Secret. One line end after it is dropped: it comes from `echo`, never from a user.

    Raises InvalidCredentials for what is empty, not UTF-8, over PASSWORD_LIMIT, or refused by SASLprep (RFC 4013).
    """
    value = value.removesuffix(b"\n").removesuffix(b"\r")
    if not value:
        raise InvalidCredentials("the password is empty")
    if len(value) > PASSWORD_LIMIT:
        raise InvalidCredentials(f"the password is longer than {PASSWORD_LIMIT} octets")
    try:
        text = value.decode()
    except UnicodeDecodeError as error:
        raise InvalidCredentials("the password is not UTF-8") from error
    try:
        prepared = saslprep(text)
    except ScramException:
        raise InvalidCredentials("the password has characters that SASLprep (RFC 4013) forbids") from None
    if not prepared:
        raise InvalidCredentials("the password is empty")
    return text


def derive_verifier(mechanism: str, password: str, account_uid: str, keys: Keyring) -> ScramVerifier:
    """The verifier of a password, always the same for the same account, password and key (CFG-03).

    Raises InvalidCredentials when SASLprep refuses the password. Costs about a millisecond.
    """
    secret_hash = hashlib.sha256(password.encode()).digest()
    salt = keys.derive(b"scram salt", b"\0".join((mechanism.encode(), account_uid.encode(), secret_hash)))[:16]
    return _derive(mechanism, password, salt, ITERATIONS)
