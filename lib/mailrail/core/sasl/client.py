"""The client's side of SASL: which mechanism, and each one's exchange as bytes in and bytes out.

SCRAM-SHA-256 and SCRAM-SHA-1 with and without channel binding (RFC 5802, RFC 7677), CRAM-MD5 (RFC 2195), PLAIN
(RFC 4616) and LOGIN. The mechanism is the strongest that the server offers, or the first of a configured list
(AUTH-08); -PLUS only where we hold the channel binding of a type that is right for the connection (SCR-05a, and
docs/decisions/0006-channel-binding-of-outbound.md); mechanisms that show the password only where the caller says that
the server is proven. Base64 and the SMTP lines around it belong to core/smtp/client.py. Nonces are passed in.
"""

import base64
import binascii
import hashlib
import hmac
import re
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

MIN_ITERATIONS = 4096
"""RFC 7677 4: servers announce at least this many; fewer is a server, or someone between, that wants a weak proof."""
MAX_ITERATIONS = 1_000_000
"""Half a second of CPU here. A server may not name its price freely: the work is ours."""
QUICK_ITERATIONS = 20_000
"""Above these, 10 ms, the caller does the work beside what else it has to do (`Exchange.work`)."""
MAX_CHALLENGE = 9216
"""Octets of one decoded challenge: RFC 4954 4 allows lines of 12288 octets in base64."""


class Mechanism(StrEnum):
    """The mechanisms that we speak, strongest first (AUTH-08)."""

    SCRAM_SHA_256_PLUS = "SCRAM-SHA-256-PLUS"
    SCRAM_SHA_256 = "SCRAM-SHA-256"
    SCRAM_SHA_1_PLUS = "SCRAM-SHA-1-PLUS"
    SCRAM_SHA_1 = "SCRAM-SHA-1"
    CRAM_MD5 = "CRAM-MD5"
    PLAIN = "PLAIN"
    LOGIN = "LOGIN"

    @property
    def binds_channel(self) -> bool:
        """Whether it proves that both ends see the same TLS channel."""
        return self.value.endswith("-PLUS")

    @property
    def shows_password(self) -> bool:
        """Whether the server, or whoever poses as it, learns the password."""
        return self in (Mechanism.PLAIN, Mechanism.LOGIN)


@dataclass(frozen=True, slots=True)
class ChannelBinding:
    """Type and data of a TLS channel binding (RFC 5929, RFC 9266)."""

    name: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Credentials:
    """Who we are to a submission server."""

    username: str
    password: str = field(repr=False)


class SaslError(Exception):
    """The exchange cannot go on: the server broke the mechanism's rules, or could not prove itself."""


class NoMechanism(SaslError):
    """Nothing that the server offers may be used. The text names both sides' lists."""


def choose(
    offered: Collection[str],
    *,
    preference: Sequence[str] = (),
    binding: ChannelBinding | None = None,
    password_may_be_shown: bool,
    without: Collection[Mechanism] = (),
) -> Mechanism:
    """The mechanism to use: the first of `preference` (default: strongest first) that is offered and usable.

    `binding` None makes -PLUS unusable, as does a connection without TLS (reference H29). `without` are mechanisms
    that failed on this connection already. Raises NoMechanism.
    """
    names = {name.upper() for name in offered}
    ours = [Mechanism(name.upper()) for name in preference] if preference else list(Mechanism)
    why: list[str] = []
    for mechanism in ours:
        if mechanism.value not in names:
            continue
        if mechanism in without:
            why.append(f"{mechanism} failed before")
        elif mechanism.binds_channel and binding is None:
            why.append(f"{mechanism} needs a channel binding that this connection does not give")
        elif mechanism.shows_password and not password_may_be_shown:
            why.append(f"{mechanism} shows the password and TLS is not verified")
        else:
            return mechanism
    listed = ", ".join(sorted(names)) or "nothing"
    wanted = ", ".join(ours)
    raise NoMechanism(
        f"no usable SASL mechanism: the server offers {listed}; we may use {wanted}" + "".join(f"; {w}" for w in why)
    )


@dataclass(frozen=True, slots=True)
class Hashing:
    """Work that takes long: Hi(password, salt, iterations) of RFC 5802 2.2. May be done in another thread."""

    algorithm: str
    password: bytes = field(repr=False)
    salt: bytes
    iterations: int

    def do(self) -> bytes:
        """The salted password."""
        return hashlib.pbkdf2_hmac(self.algorithm, self.password, self.salt, self.iterations)


class SaltedPasswords:
    """Salted passwords by salt and count, so that PBKDF2 runs once per account and not once per connection.

    RFC 5802 3 allows a client to keep them. Bounded; the oldest goes first. Holds secrets: never print it.
    """

    __slots__ = ("_entries", "_limit")

    def __init__(self, limit: int = 256) -> None:
        self._limit = limit
        self._entries: OrderedDict[tuple[str, bytes, bytes, int], bytes] = OrderedDict()

    def get(self, work: Hashing) -> bytes:
        """The salted password, made now where it is not known."""
        salted = self._entries.get(self._key(work))
        if salted is None:
            salted = work.do()
            self.keep(work, salted)
        return salted

    def knows(self, work: Hashing) -> bool:
        """Whether `get` costs nothing."""
        return self._key(work) in self._entries

    def keep(self, work: Hashing, salted: bytes) -> None:
        """What `work` gave."""
        self._entries[self._key(work)] = salted
        if len(self._entries) > self._limit:
            self._entries.popitem(last=False)

    @staticmethod
    def _key(work: Hashing) -> tuple[str, bytes, bytes, int]:
        return (work.algorithm, hashlib.sha256(work.password).digest(), work.salt, work.iterations)


class Exchange(Protocol):
    """One authentication attempt, without base64 and without SMTP."""

    mechanism: Mechanism

    def initial(self) -> bytes | None:
        """The initial response; None for a mechanism where the server speaks first."""

    def work(self, challenge: bytes) -> Hashing | None:
        """What takes long about the answer to a challenge, if anything does: `keep` its result in the salted passwords
        before `respond`. Raises SaslError."""

    def respond(self, challenge: bytes) -> bytes:
        """The answer to a challenge. Raises SaslError: cancel with `*`."""

    def verify_success(self) -> None:
        """To be called at 235, before anything else is sent. Raises SaslError if the server has not proven itself."""

    @property
    def proof_sent(self) -> bool:
        """Whether the server has seen anything made from the password."""


def start(
    mechanism: Mechanism,
    credentials: Credentials,
    *,
    nonce: str,
    binding: ChannelBinding | None = None,
    server_offered_plus: bool = False,
    salted: SaltedPasswords | None = None,
) -> Exchange:
    """Begin an exchange. `nonce` is fresh printable randomness of at least 18 octets' worth, used by SCRAM alone."""
    match mechanism:
        case Mechanism.PLAIN:
            return _Plain(credentials)
        case Mechanism.LOGIN:
            return _Login(credentials)
        case Mechanism.CRAM_MD5:
            return _CramMd5(credentials)
        case _:
            if mechanism.binds_channel and binding is None:
                raise SaslError(f"{mechanism} needs a channel binding")
            # RFC 5802 6: `y` tells the server that we could have bound, which unmasks someone who removed -PLUS
            # from its offer. Where it did offer -PLUS and we did not take it, only `n` is true.
            flag = (
                f"p={binding.name}"
                if binding is not None and mechanism.binds_channel
                else ("y" if binding is not None and not server_offered_plus else "n")
            )
            return _Scram(mechanism, credentials, nonce, flag, binding, salted or SaltedPasswords())


class _Quick:
    def work(self, challenge: bytes) -> Hashing | None:
        return None


class _Plain(_Quick):
    mechanism = Mechanism.PLAIN

    def __init__(self, credentials: Credentials) -> None:
        self._message = b"\0" + credentials.username.encode() + b"\0" + credentials.password.encode()
        self.proof_sent = False

    def initial(self) -> bytes | None:
        self.proof_sent = True
        return self._message

    def respond(self, challenge: bytes) -> bytes:
        raise SaslError("the server sent a second challenge to PLAIN")

    def verify_success(self) -> None:
        return


class _Login(_Quick):
    """No RFC; as draft-murchison-sasl-login says: user name, then password, whatever the prompts say."""

    mechanism = Mechanism.LOGIN

    def __init__(self, credentials: Credentials) -> None:
        self._answers = [credentials.password.encode(), credentials.username.encode()]
        self.proof_sent = False

    def initial(self) -> bytes | None:
        return None

    def respond(self, challenge: bytes) -> bytes:
        if not self._answers:
            raise SaslError("the server sent a third challenge to LOGIN")
        answer = self._answers.pop()
        self.proof_sent = not self._answers
        return answer

    def verify_success(self) -> None:
        if self._answers:
            raise SaslError("the server said success before it knew the password")


# RFC 2195 2: the challenge has the form of a msg-id. A server that lets us digest other text might get a digest of
# something that means more elsewhere (reference E5).
_CRAM_CHALLENGE = re.compile(rb"<[0-9A-Za-z_+/=.-]{1,128}@[0-9A-Za-z_.:\[\]-]{1,255}>")


class _CramMd5(_Quick):
    mechanism = Mechanism.CRAM_MD5

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials
        self.proof_sent = False

    def initial(self) -> bytes | None:
        return None

    def respond(self, challenge: bytes) -> bytes:
        if self.proof_sent:
            raise SaslError("the server sent a second challenge to CRAM-MD5")
        if not _CRAM_CHALLENGE.fullmatch(challenge):
            raise SaslError("the CRAM-MD5 challenge does not have the form <digits.time@host>")
        self.proof_sent = True
        # MD5 is what the mechanism is made of; it is chosen only when nothing better is offered.
        digest = hmac.new(_prepared(self._credentials.password).encode(), challenge, hashlib.md5).hexdigest()
        return f"{_prepared(self._credentials.username)} {digest}".encode()

    def verify_success(self) -> None:
        if not self.proof_sent:
            raise SaslError("the server said success before it asked anything")


def _prepared(text: str) -> str:
    # SCR-06. What SASLprep forbids is taken as it is: some servers stored it so (reference E5).
    if text.isascii() and text.isprintable():
        return text
    # Loaded only here: it takes longer than all else of a short command such as sendmail (SML-11).
    from scramp import ScramException
    from scramp.utils import saslprep

    try:
        return str(saslprep(text))
    except ScramException:
        return text


_BASE64 = re.compile(r"[A-Za-z0-9+/]*={0,2}")
_NONCE = re.compile(r"[!-+\--~]+")  # printable ASCII without the comma


def decode_base64(text: str, what: str) -> bytes:
    """Decode what the server sent in base64. Raises SaslError, which says `what` is not base64."""
    if not _BASE64.fullmatch(text):
        raise SaslError(f"the server's {what} is not base64")
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise SaslError(f"the server's {what} is not base64") from error


class _Scram:
    """RFC 5802 5: client-first, server-first, client-final, server-final; the latter must be right (SCR-01)."""

    def __init__(
        self,
        mechanism: Mechanism,
        credentials: Credentials,
        nonce: str,
        flag: str,
        binding: ChannelBinding | None,
        salted: SaltedPasswords,
    ) -> None:
        if not _NONCE.fullmatch(nonce):
            raise SaslError("our nonce has a character that SCRAM does not allow")
        self.mechanism = mechanism
        self._algorithm = "sha256" if "SHA-256" in mechanism else "sha1"
        self._digest: Callable[..., hashlib._Hash] = getattr(hashlib, self._algorithm)
        username = _prepared(credentials.username).replace("=", "=3D").replace(",", "=2C")
        self._password = _prepared(credentials.password).encode()
        self._nonce = nonce
        self._gs2 = f"{flag},,"
        self._bound = binding.data if binding is not None and mechanism.binds_channel else b""
        self._first_bare = f"n={username},r={nonce}"
        self._salted = salted
        self._expected = b""
        self._verified = False
        self.proof_sent = False

    def initial(self) -> bytes | None:
        return (self._gs2 + self._first_bare).encode()

    def work(self, challenge: bytes) -> Hashing | None:
        if self.proof_sent:
            return None
        _, work = self._read_first(self._text(challenge))
        return None if work.iterations <= QUICK_ITERATIONS or self._salted.knows(work) else work

    def respond(self, challenge: bytes) -> bytes:
        text = self._text(challenge)
        if not self.proof_sent:
            return self._final(text)
        if not self._verified:
            self._check(text)
            return b""
        raise SaslError("the server went on after the end of SCRAM")

    def _text(self, challenge: bytes) -> str:
        if len(challenge) > MAX_CHALLENGE:
            raise SaslError(f"the server's SCRAM message is longer than {MAX_CHALLENGE} octets")
        try:
            return challenge.decode("utf-8")
        except UnicodeDecodeError as error:
            raise SaslError("the server's SCRAM message is not UTF-8") from error

    def _read_first(self, server_first: str) -> tuple[str, Hashing]:
        """The whole nonce, and what the salted password is made of."""
        parts = server_first.split(",")
        if parts[0].startswith("e="):
            raise SaslError(f"the server refused SCRAM: {parts[0][2:][:80]}")
        if parts[0].startswith("m="):
            raise SaslError("the server demands a SCRAM extension that we do not know")
        if len(parts) < 3 or [p[:2] for p in parts[:3]] != ["r=", "s=", "i="]:
            raise SaslError("the server's first SCRAM message is malformed")
        nonce, salt, count = parts[0][2:], decode_base64(parts[1][2:], "salt"), parts[2][2:]
        if not nonce.startswith(self._nonce) or len(nonce) == len(self._nonce) or not _NONCE.fullmatch(nonce):
            raise SaslError("the server's nonce does not continue ours")
        if not salt or not count.isascii() or not count.isdigit() or len(count) > 9:
            raise SaslError("the server's first SCRAM message is malformed")
        iterations = int(count)
        if not MIN_ITERATIONS <= iterations <= MAX_ITERATIONS:
            raise SaslError(f"the server asks for {count} iterations; we do {MIN_ITERATIONS} to {MAX_ITERATIONS}")
        return nonce, Hashing(self._algorithm, self._password, salt, iterations)

    def _final(self, server_first: str) -> bytes:
        nonce, work = self._read_first(server_first)
        channel = base64.b64encode(self._gs2.encode() + self._bound).decode()
        without_proof = f"c={channel},r={nonce}"
        message = f"{self._first_bare},{server_first},{without_proof}".encode()
        salted = self._salted.get(work)
        client_key = hmac.digest(salted, b"Client Key", self._algorithm)
        signature = hmac.digest(self._digest(client_key).digest(), message, self._algorithm)
        proof = bytes(a ^ b for a, b in zip(client_key, signature, strict=True))
        self._expected = hmac.digest(hmac.digest(salted, b"Server Key", self._algorithm), message, self._algorithm)
        self.proof_sent = True
        return f"{without_proof},p={base64.b64encode(proof).decode()}".encode()

    def _check(self, server_final: str) -> None:
        first = server_final.split(",", 1)[0]
        if first.startswith("e="):
            raise SaslError(f"the server refused SCRAM: {first[2:][:80]}")
        if not first.startswith("v=") or not hmac.compare_digest(decode_base64(first[2:], "signature"), self._expected):
            raise SaslError("the server does not know the password: its SCRAM signature is wrong")
        self._verified = True

    def verify_success(self) -> None:
        if not self._verified:
            raise SaslError("the server said success without a SCRAM signature that proves it knows the password")
