"""The server's side of SASL: each mechanism's exchange as octets in and steps out (RFC 4954 frames it, not here).

SCRAM-SHA-256, SCRAM-SHA-1 and their -PLUS forms (RFC 5802, RFC 7677) by the scramp library; PLAIN (RFC 4616), LOGIN,
CRAM-MD5 (RFC 2195). A mechanism never sees accounts: it asks a `VerifierLookup` port for a verifier or a password, and
gets a fake one for a login that does not exist, so that neither words nor time tell the two apart (AUTH-05a, SCR-03).

What a stranger sends is bounded before anything looks at it: a login by LOGIN_LIMIT, a password by PASSWORD_LIMIT. A
login is prepared (SASLprep is slow) once in an exchange, and handed on as a `ClaimedIdentity`.

-PLUS needs a channel binding that is right for the connection. Which types are offered, and why no more, is told in
docs/decisions/0005-channel-binding-of-submission.md.
"""

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from scramp import ScramException, ScramMechanism
from scramp.utils import saslprep

from mailrail.core.sasl.verifiers import ITERATIONS, PASSWORD_LIMIT, ScramVerifier

MESSAGE_LIMIT: Final = 9216
"""Octets of one decoded message: what a line of 12288 octets carries (RFC 4954 4)."""
LOGIN_LIMIT: Final = 320
"""Octets of a login. An address has 254 at most; SASLprep takes two microseconds an octet of what is longer."""


@dataclass(frozen=True, slots=True)
class ClaimedIdentity:
    """Whom a client claims to be."""

    text: str
    """As it wrote it; for the log."""
    name: str
    """As logins are compared (`prepared`)."""


@dataclass(frozen=True, slots=True)
class Challenge:
    """Ask the client on."""

    data: bytes


@dataclass(frozen=True, slots=True)
class CheckPassword:
    """PLAIN and LOGIN: whether this password is the login's is for the app to find out; it costs a millisecond."""

    login: ClaimedIdentity
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Success:
    """The client is this login."""

    login: ClaimedIdentity


@dataclass(frozen=True, slots=True)
class Failure:
    """The exchange is over. The reason is for the log; the client learns no more than 535."""

    reason: str
    login: ClaimedIdentity | None = None


@dataclass(frozen=True, slots=True)
class UnexpectedInitialResponse:
    """The mechanism begins with a challenge and the client did not wait for it (RFC 4954 4: 501 5.7.0)."""


Step = Challenge | CheckPassword | Success | Failure | UnexpectedInitialResponse


class VerifierLookup(Protocol):
    """What the mechanisms ask for, by the name of a ClaimedIdentity. It answers for every name, and for an unknown one
    with a value that no password fits."""

    def verifier(self, name: str, mechanism: str) -> ScramVerifier:
        """The verifier of SCRAM-SHA-256 or SCRAM-SHA-1."""
        ...

    def password(self, name: str) -> str:
        """The clear password, for CRAM-MD5 alone."""
        ...


class ServerExchange(Protocol):
    """One exchange."""

    @property
    def guess(self) -> ClaimedIdentity | None:
        """Whose login fails if the exchange ends here, since the client has learned something about it; else None."""
        ...

    def start(self, initial: bytes | None) -> Step:
        """The client chose the mechanism; `initial` is its initial response, None when it sent none."""
        ...

    def respond(self, response: bytes) -> Step:
        """The client answered a challenge."""
        ...


def prepared(login: str) -> str:
    """A login as it is compared: SASLprep (RFC 4013), then without case. Empty when it cannot be one, or is longer than
    LOGIN_LIMIT."""
    if len(login) > LOGIN_LIMIT or (not login.isascii() and len(login.encode("utf-8", "surrogatepass")) > LOGIN_LIMIT):
        return ""
    if login.isascii() and login.isprintable():
        return login.casefold()  # SASLprep changes nothing about these, and most logins are such
    try:
        return str(saslprep(login)).casefold()
    except ScramException:
        return ""


NO_LOGIN: Final = f"not a possible login: over {LOGIN_LIMIT} octets, or with characters that RFC 4013 forbids"


def claimed(login: str) -> ClaimedIdentity | None:
    """Whom a client claims to be; None when no account can have such a login."""
    name = prepared(login)
    return ClaimedIdentity(login, name) if name else None


def fake_verifier(login: str, mechanism: str, key: bytes) -> ScramVerifier:
    """A verifier for a login that does not exist: the same salt each time, and keys that fit no password."""
    seed = hmac.digest(key, f"{mechanism}\0{login}".encode("utf-8", "surrogatepass"), "sha512")
    size = hashlib.new("sha256" if mechanism == "SCRAM-SHA-256" else "sha1").digest_size
    return ScramVerifier(
        mechanism,
        ITERATIONS,
        seed[:16],
        hmac.digest(seed, b"stored", "sha512")[:size],
        hmac.digest(seed, b"server", "sha512")[:size],
    )


def _check(claim: ClaimedIdentity, password: str) -> Step:
    if len(password) > PASSWORD_LIMIT or len(password.encode("utf-8", "surrogatepass")) > PASSWORD_LIMIT:
        return Failure(f"a password of more than {PASSWORD_LIMIT} octets", claim)
    return CheckPassword(claim, password)


class Plain:
    """RFC 4616: authorization identity, login and password in one message."""

    guess: ClaimedIdentity | None = None

    def start(self, initial: bytes | None) -> Step:
        """The message may come as initial response."""
        return Challenge(b"") if initial is None else self.respond(initial)

    def respond(self, response: bytes) -> Step:
        """`[authzid] NUL authcid NUL passwd`."""
        parts = response.split(b"\0")
        if len(parts) != 3 or len(response) > MESSAGE_LIMIT:
            return Failure("malformed PLAIN message")
        try:
            identity, login, password = (part.decode() for part in parts)
        except UnicodeDecodeError:
            return Failure("PLAIN message is not UTF-8")
        if not login or not password:
            return Failure("empty login or password")
        claim = claimed(login)
        if claim is None:
            return Failure(NO_LOGIN)
        if identity not in ("", login) and prepared(identity) != claim.name:
            return Failure("acting for another identity is not supported", claim)
        return _check(claim, password)


class LoginMechanism:
    """LOGIN: never standardised, asked for by old clients. Two prompts."""

    guess: ClaimedIdentity | None = None

    def __init__(self) -> None:
        self._login: ClaimedIdentity | None = None

    def start(self, initial: bytes | None) -> Step:
        """Some clients send the login as initial response."""
        return Challenge(b"Username:") if initial is None else self.respond(initial)

    def respond(self, response: bytes) -> Step:
        """First the login, then the password."""
        try:
            text = response.decode()
        except UnicodeDecodeError:
            return Failure("LOGIN response is not UTF-8")
        if not text or "\0" in text or len(response) > MESSAGE_LIMIT:
            return Failure("empty login or password", self._login)
        if self._login is None:
            self._login = claimed(text)
            return Challenge(b"Password:") if self._login is not None else Failure(NO_LOGIN)
        return _check(self._login, text)


class CramMd5:
    """RFC 2195: a keyed digest of our challenge. Needs the clear password, proves nothing about us; off by default
    (CRAM-01). The caller makes each challenge anew."""

    guess: ClaimedIdentity | None = None

    def __init__(self, credentials: VerifierLookup, challenge: str) -> None:
        self._credentials = credentials
        self._challenge = challenge.encode("ascii")

    def start(self, initial: bytes | None) -> Step:
        """The server speaks first."""
        return Challenge(self._challenge) if initial is None else UnexpectedInitialResponse()

    def respond(self, response: bytes) -> Step:
        """`login SP 32 lower-case hex digits`."""
        name, _, digest = response.rpartition(b" ")
        try:
            login = name.decode()
        except UnicodeDecodeError:
            return Failure("CRAM-MD5 response is not UTF-8")
        claim = claimed(login)
        if claim is None:
            return Failure(NO_LOGIN)
        expected = hmac.new(self._credentials.password(claim.name).encode(), self._challenge, "md5").hexdigest()
        if not hmac.compare_digest(expected.encode(), digest):
            return Failure("wrong digest", claim)
        return Success(claim)


class Scram:
    """RFC 5802 (SCR-01). `bindings`: the channel bindings that we hold for this connection, by type. `plus_offered`:
    EHLO named a -PLUS mechanism, so a client that says `y` is being deceived by somebody (SCR-04)."""

    def __init__(
        self, name: str, credentials: VerifierLookup, nonce: str, bindings: Mapping[str, bytes], *, plus_offered: bool
    ) -> None:
        self._name = name
        self._hash = name.removesuffix("-PLUS")
        self._credentials = credentials
        self._nonce = nonce
        self._bindings = bindings
        self._plus_offered = plus_offered
        self.login: ClaimedIdentity | None = None
        """Whom the client claims to be; None until it said so."""
        self._server: Any = None  # scramp's, untyped
        self._proven = False

    @property
    def guess(self) -> ClaimedIdentity | None:
        """A client that heard salt and nonce, and left without a proof, has cost us what a wrong proof costs."""
        return None if self._proven else self.login

    def start(self, initial: bytes | None) -> Step:
        """The client speaks first: without an initial response it is asked for it (RFC 4954 4)."""
        return Challenge(b"") if initial is None else self.respond(initial)

    def respond(self, response: bytes) -> Step:
        """client-first, client-final, then the empty answer to our proof (SCR-02)."""
        if self._proven:
            assert self.login is not None
            return Success(self.login) if not response else Failure("an answer to the server's proof", self.login)
        if len(response) > MESSAGE_LIMIT:
            return Failure("message too long", self.login)
        try:
            text = response.decode()
            return self._first(text) if self._server is None else self._final(text)
        except UnicodeDecodeError:
            return Failure("message is not UTF-8", self.login)
        except ScramException as error:
            return Failure(str(error), self.login)

    def _first(self, message: str) -> Step:
        flag = message.partition(",")[0]
        binding: tuple[str, bytes] | None = None
        if flag.startswith("p="):
            data = self._bindings.get(flag[2:])
            if data is None:
                return Failure("a channel binding type that is not offered")
            binding = (flag[2:], data)
        elif flag == "y" and self._plus_offered:
            return Failure(
                "the client saw no -PLUS mechanism although one was offered: the offer was changed on the way"
            )
        if self._name.endswith("-PLUS") != flag.startswith("p="):
            return Failure("the channel binding flag does not fit the mechanism")
        # The library prepares the login as well, whatever its length, so it gets only what is one.
        self.login = claimed(_scram_login(message))
        if self.login is None:
            return Failure(NO_LOGIN)
        server = ScramMechanism(self._name).make_server(self._look_up, channel_binding=binding, s_nonce=self._nonce)
        server.set_client_first(message)
        self._server = server
        return Challenge(server.get_server_first().encode())

    def _look_up(self, _: str) -> tuple[bytes, bytes, bytes, int]:
        assert self.login is not None
        verifier = self._credentials.verifier(self.login.name, self._hash)
        return verifier.salt, verifier.stored_key, verifier.server_key, verifier.iterations

    def _final(self, message: str) -> Step:
        self._server.set_client_final(message)
        self._proven = True
        return Challenge(self._server.get_server_final().encode())


def _scram_login(message: str) -> str:
    """The login of a client-first message, which comes third, unescaped (RFC 5802 5.1, 7). Too long to be one: as far
    as that is sure."""
    attribute = message.split(",", 3)[2:3]
    escaped = attribute[0][2 : 2 + 3 * LOGIN_LIMIT + 1] if attribute and attribute[0].startswith("n=") else ""
    return escaped.replace("=2C", ",").replace("=3D", "=")
