"""Signing: one DKIM-Signature field for each key of a domain (RFC 6376 5, standards DKIM-08b).

The body streams through a `BodyHasher` for `SIGNED_BODY` before; header and keys do the rest. The form is relaxed for
both, which survives what hosts on the way do to blanks, and no `l=` leaves room for what others append.
"""

import base64
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from mailrail.core.dkim.canonical import BodyForm, BodyHash, BodyHasher, Canonicalization
from mailrail.core.dkim.fields import SignedHeader
from mailrail.core.dkim.key import RSA_BITS
from mailrail.core.dkim.signature import Algorithm, KeyName, read_domain, read_selector
from mailrail.core.dkim.tags import TagError
from mailrail.core.message.header import Header, header_end

RSA_SIGNING_BITS: Final = 2048
"""The shortest RSA key that we sign with (RFC 8301 3.2)."""
PEM_SIZE: Final = 16 * 1024
"""Octets of a file with a key. One with RSA 4096 has 3.3 KiB."""
SIGNED_BODY: Final = BodyForm(Canonicalization.RELAXED)
"""The form in which the body of a message is hashed that we sign."""

SIGNED_FIELDS: Final = (
    b"from", b"sender", b"reply-to", b"subject", b"date", b"message-id", b"to", b"cc", b"in-reply-to", b"references",
    b"mime-version", b"content-type", b"content-transfer-encoding", b"content-disposition", b"content-id",
    b"content-language",
    b"resent-from", b"resent-sender", b"resent-date", b"resent-message-id", b"resent-to", b"resent-cc",
    b"list-id", b"list-help", b"list-unsubscribe", b"list-unsubscribe-post", b"list-subscribe", b"list-post",
    b"list-owner", b"list-archive",
    b"auto-submitted", b"feedback-id", b"tls-required", b"tls-report-domain", b"tls-report-submitter",
)  # fmt: skip
"""What is signed, as often as it is there: RFC 6376 5.4.1, what a reader sees of MIME, and what other RFCs want signed
(List-Unsubscribe-Post by RFC 8058 4; TLS-Report-Domain and TLS-Report-Submitter by RFC 8460 5.3, TRPT-13b). Left out is
what hosts add on the way, and what they take away, as Bcc."""
OVERSIGNED: Final = frozenset(
    {b"from", b"subject", b"date", b"message-id", b"to", b"cc", b"mime-version", b"content-type"}
)
"""What is named once more than it is there, so that one which is added later breaks the signature (RFC 6376 8.15).
Reply-To and List- fields are not: mailing lists add them to mail that they leave as it is."""
_FIELDS_LIMIT: Final = 200  # that are signed: the field that names them stays far below what verifiers read
_LINE: Final = 78  # octets (RFC 5322 2.1.1)
_SIGNATURE_LINE: Final = 72  # characters of base64

PrivateKey = RSAPrivateKey | Ed25519PrivateKey


class SigningError(ValueError):
    """A key cannot be used for signing, or a message cannot be signed. The text says why and what to do."""


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A private key, and where its public half is published."""

    name: KeyName
    key: PrivateKey = field(repr=False)

    @property
    def algorithm(self) -> Algorithm:
        """What it signs with."""
        return Algorithm.RSA_SHA256 if isinstance(self.key, RSAPrivateKey) else Algorithm.ED25519_SHA256

    def sign(self, digest: bytes) -> bytes:
        """The signature of a SHA-256 digest."""
        if isinstance(self.key, RSAPrivateKey):
            return self.key.sign(digest, padding.PKCS1v15(), Prehashed(hashes.SHA256()))
        return self.key.sign(digest)  # RFC 8463 3: Ed25519 over the digest


def read_private_key(pem: bytes) -> PrivateKey:
    """The key of a PEM file: RSA with 2048 to 4096 bits, or Ed25519, without a password. Raises SigningError."""
    if len(pem) > PEM_SIZE:
        raise SigningError(f"the key file has {len(pem)} octets, and at most {PEM_SIZE} are read")
    try:
        key = load_pem_private_key(pem, None)
    except TypeError as error:  # what the library raises for a key that has a password
        raise SigningError("the key is encrypted with a password: store it without one") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise SigningError("the file is no private key in PEM: make one with openssl genpkey") from error
    if isinstance(key, Ed25519PrivateKey):
        return key
    if not isinstance(key, RSAPrivateKey):
        raise SigningError("the key is neither RSA nor Ed25519, and DKIM knows no other")
    if not RSA_SIGNING_BITS <= key.key_size <= RSA_BITS[1]:
        raise SigningError(
            f"the RSA key has {key.key_size} bits: make one of {RSA_SIGNING_BITS}, and of {RSA_BITS[1]} at most"
        )
    return key


def signing_key(domain: str, selector: str, pem: bytes) -> SigningKey:
    """A key for a domain and selector as they are configured. Raises SigningError."""
    try:
        name = KeyName(read_domain(domain.encode()), read_selector(selector.encode()))
    except (TagError, UnicodeEncodeError) as error:
        raise SigningError(f"domain or selector is not valid: {error}") from error
    return SigningKey(name, read_private_key(pem))


def check_keys(keys: Sequence[SigningKey]) -> None:
    """Raises SigningError unless a message may be signed with exactly these keys."""
    if len({each.name for each in keys}) < len(keys):
        raise SigningError("two keys have one domain and selector: give one of them another selector")
    for domain in {each.name.domain for each in keys}:
        # DKIM-08b: many verifiers know no Ed25519, and see no signature then (RFC 8463 5, RFC 8301 3.1).
        if all(each.algorithm is not Algorithm.RSA_SHA256 for each in keys if each.name.domain == domain):
            raise SigningError(f"{domain} has an Ed25519 key alone: add an RSA key, which all verifiers know")


class HeaderToSign:
    """What is kept of a header until the body is hashed, too: names, and a hash."""

    __slots__ = ("_fields", "_names")

    def __init__(self, header: Header) -> None:
        """Raises SigningError."""
        self._names = signed_names(header)
        self._fields = SignedHeader(header).hashed(self._names, Canonicalization.RELAXED)

    def sign(self, body: BodyHash, keys: Sequence[SigningKey], now: float) -> bytes:
        """See `sign`. `check_keys` has let the keys pass."""
        body_hash = base64.b64encode(body.digest).decode()
        fields: list[bytes] = []
        for key in keys:
            unsigned = _unsigned(key, self._names, body_hash, int(now))
            fields.append(unsigned + _folded_base64(key.sign(self._fields.digest(unsigned))) + b"\r\n")
        return b"".join(fields)


class MessageSigner:
    """Signs one message while it streams past, and holds no more of it than the header until that is whole."""

    __slots__ = ("_body", "_header", "_held", "_keys")

    def __init__(self, keys: Sequence[SigningKey]) -> None:
        """`check_keys` has let the keys pass."""
        self._keys = keys
        self._held: bytearray | None = bytearray()
        self._header: HeaderToSign | None = None
        self._body = BodyHasher([SIGNED_BODY])

    def feed(self, octets: bytes) -> None:
        """The next octets of the message, as it will leave. Raises SigningError."""
        held = self._held
        if held is None:
            self._body.feed(octets)
            return
        searched = len(held)
        held += octets
        end = header_end(held, searched)
        if end >= 0:
            self._begin(bytes(held), end)

    def finish(self, now: float) -> bytes:
        """The DKIM-Signature fields for the top of the message, which has ended. Raises SigningError."""
        if self._held is not None:
            self._begin(bytes(self._held), len(self._held))
        assert self._header is not None
        return self._header.sign(self._body.finish()[SIGNED_BODY], self._keys, now)

    def _begin(self, content: bytes, end: int) -> None:
        self._held = None
        self._header = HeaderToSign(Header(content[:end]))
        self._body.feed(content[end + 2 :])  # past the empty line


def sign(header: Header, body: BodyHash, keys: Sequence[SigningKey], now: float) -> bytes:
    """The DKIM-Signature fields for the top of a message, one for each key, in their order.

    `body`: of the whole body in `SIGNED_BODY`; `now`: Unix time. Raises SigningError.
    """
    check_keys(keys)
    return HeaderToSign(header).sign(body, keys, now)


def sign_message(content: bytes, keys: Sequence[SigningKey], now: float) -> bytes:
    """The DKIM-Signature fields for the top of a whole message. Raises SigningError."""
    check_keys(keys)
    signer = MessageSigner(keys)
    signer.feed(content)
    return signer.finish(now)


def signed_names(header: Header) -> tuple[bytes, ...]:
    """The names for `h=`: what is there, and once more what must not be added (DKIM-08b). Raises SigningError."""
    there = Counter(each.name for each in header.fields)
    if not there[b"from"]:
        raise SigningError("the message has no From, which every signature must cover (RFC 6376 5.4)")
    names = tuple(name for name in SIGNED_FIELDS for _ in range(there[name] + (name in OVERSIGNED)))
    if len(names) > _FIELDS_LIMIT:
        raise SigningError(f"the message has more than {_FIELDS_LIMIT} fields that would have to be signed")
    return names


def _unsigned(key: SigningKey, names: Sequence[bytes], body_hash: str, now: int) -> bytes:
    """The field with an empty `b=` at its end, folded between its words."""
    *others, last = (name.decode() for name in names)
    words = [
        " v=1;",
        f" a={key.algorithm.value.decode()};",
        " c=relaxed/relaxed;",
        f" d={key.name.domain};",
        f" s={key.name.selector};",
        f" t={now};",
        " h=",
        *(f"{name}:" for name in others),
        f"{last};",
        f" bh={body_hash};",
    ]
    return (_folded("DKIM-Signature:", words) + "\r\n\tb=").encode()


def _folded(line: str, words: Iterable[str]) -> str:
    lines: list[str] = []
    for word in words:
        if len(line) + len(word) > _LINE:
            lines.append(line)
            line = "\t" + word.lstrip()
        else:
            line += word
    return "\r\n".join([*lines, line])


def _folded_base64(octets: bytes) -> bytes:
    text = base64.b64encode(octets)
    return b"\r\n\t ".join(text[at : at + _SIGNATURE_LINE] for at in range(0, len(text), _SIGNATURE_LINE))
