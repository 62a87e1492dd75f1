"""What objects take from Secrets while they are compiled: references into the revision, values aside (CFG-02, CFG-03).

A Secret's content never becomes part of a revision, a diagnostic or the stored state. Each use gives a SecretRef whose
digest changes with the content, and a way to make the value when the publisher seals it.

A Secret that cannot be read for a while (its file does not parse, or its document is broken) counts as unchanged: the
references of the last revision stay. A Secret that is gone revokes what it gave, with one exception: a listener
keeps its last certificate, because closing port 25 is worse than a certificate that grows old.
"""

import base64
import binascii
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from mailrail.core.config.diagnostics import Reason
from mailrail.core.config.state import SecretUse
from mailrail.core.dkim.key import write_key_record
from mailrail.core.dkim.rotation import SigningUse
from mailrail.core.dkim.sign import SigningError, read_private_key
from mailrail.core.revision.revision import ObjectRef, SecretRef
from mailrail.core.revision.sealing import VALUE_LIMIT, Keyring
from mailrail.core.sasl.verifiers import (
    MECHANISMS,
    InvalidCredentials,
    ScramVerifier,
    derive_verifier,
    read_password,
)

_KEY = re.compile(r"[-._a-zA-Z0-9]{1,253}")
_USERNAME = re.compile(r"[^\x00-\x1f\x7f]{1,255}")


class SecretProblem(ValueError):
    """A use of a Secret that fails, with the reason for the condition. The message never holds a value."""

    def __init__(self, reason: Reason, message: str) -> None:
        self.reason = reason
        super().__init__(message)


class Unread:
    """Origins of which it is not known what they hold now: files by name, whole folders by a name that ends in `/`.

    One that none of the `missing` documents came from may be the new name of a file that is `gone`, whose documents are
    not known to be deleted then. One that held something is what it was, and tells nothing of other files.
    """

    def __init__(self, origins: Iterable[str], missing: Iterable[str] = (), gone: Iterable[str] = ()) -> None:
        self._files = frozenset(origins) - {""}
        self._folders = tuple(o for o in self._files if o.endswith("/"))
        missing = frozenset(missing)
        new = (f for f in self._files if f not in missing)
        strange = sorted(f for f in new if not (f.endswith("/") and any(m.startswith(f) for m in missing)))
        self.renamed = frozenset(o for o in gone if not self._is_unread(o)) if strange else frozenset()
        self.successors = tuple(strange) if self.renamed else ()

    def _is_unread(self, origin: str) -> bool:
        return origin in self._files or origin.startswith(self._folders)

    def __contains__(self, origin: str) -> bool:
        return origin in self.renamed or self._is_unread(origin)


@dataclass(frozen=True, slots=True)
class PasswordSource:
    """A password in a Secret of the object's namespace."""

    name: str
    password_key: str


@dataclass(frozen=True, slots=True)
class LoginSource(PasswordSource):
    """A user name and a password in one."""

    username_key: str


@dataclass(frozen=True, slots=True)
class CertificateSource:
    """A certificate with its private key in one."""

    name: str
    certificate_key: str
    private_key_key: str


@dataclass(frozen=True, slots=True)
class AuthoritiesSource:
    """Certificates of authorities in one."""

    name: str
    key: str


@dataclass(frozen=True, slots=True)
class KeySource:
    """A DKIM key in one."""

    selector: str
    name: str
    key: str
    sign: SigningUse


@dataclass(frozen=True, slots=True)
class SecretDocument:
    """A Secret as read: its values, decoded."""

    namespace: str
    name: str
    values: Mapping[str, bytes] = field(repr=False)
    origin: str = ""


def read_secret(content: Mapping[str, Any], namespace: str, name: str, origin: str) -> SecretDocument:
    """A Secret in Kubernetes' shape: `data` in base64, `stringData` as text. Raises SecretProblem."""

    def wrong(message: str) -> SecretProblem:
        return SecretProblem(Reason.INVALID, message)

    values: dict[str, bytes] = {}
    for field_name in ("data", "stringData"):
        entries = content.get(field_name)
        if entries is None:
            continue
        if not isinstance(entries, Mapping):
            raise wrong(f"{field_name}: must be a mapping of keys to values")
        for key, value in entries.items():
            if not _KEY.fullmatch(key):
                raise wrong(f"{field_name}: a key has letters, digits, -, _ and . only")
            if not isinstance(value, str):
                raise wrong(f"{field_name}.{key}: must be text; put numbers in quotes")
            if field_name == "stringData":
                values[key] = value.encode()
                continue
            try:
                values[key] = base64.b64decode("".join(value.split()), validate=True)
            except binascii.Error:
                raise wrong(f"data.{key}: is not base64; put plain values under stringData") from None
    if sum(len(v) for v in values.values()) > VALUE_LIMIT:
        raise wrong(f"a Secret has at most {VALUE_LIMIT} octets")
    unknown = sorted(set(content) - {"apiVersion", "kind", "metadata", "type", "data", "stringData", "immutable"})
    if unknown:
        raise wrong(f"{unknown[0]}: there is no such field; values go under data or stringData")
    return SecretDocument(namespace, name, values, origin)


@lru_cache(maxsize=64)
def _check_certificate(certificate: bytes, key: bytes, names: tuple[str, str]) -> str:
    """What is wrong with a certificate and its key, which the Secret has under these names; empty if nothing."""
    try:
        chain = x509.load_pem_x509_certificates(certificate)
    except ValueError:
        return f"{names[0]} is not a PEM certificate"
    try:
        private = serialization.load_pem_private_key(key, None)
    except (ValueError, TypeError):
        return f"{names[1]} is not an unencrypted PEM private key"
    form = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    if chain[0].public_key().public_bytes(*form) != private.public_key().public_bytes(*form):
        return f"{names[1]} is not the key of the first certificate in {names[0]}"
    return ""


@lru_cache(maxsize=256)
def _check_authorities(pem: bytes) -> str:
    try:
        x509.load_pem_x509_certificates(pem)
    except ValueError:
        return "it has no PEM certificate"
    return ""


@lru_cache(maxsize=1024)
def _record_of(pem: bytes) -> str:
    """The text that publishes a DKIM key. Raises SigningError. Cached, for each compilation asks for it again."""
    return write_key_record(read_private_key(pem).public_key())


@dataclass(frozen=True, slots=True)
class NextHopLogin:
    """User name and sealed password of a next hop."""

    username: str
    password: SecretRef


@dataclass(frozen=True, slots=True)
class AccountCredentials:
    """What an account logs in with."""

    scram: tuple[tuple[str, SecretRef], ...] = ()
    password: SecretRef | None = None


Value = Callable[[], bytes]
"""Makes the octets to seal. A verifier costs a millisecond, so it is made only when it is not stored yet."""


class SecretUses:
    """The Secrets of one compilation, those of the last one, and what was taken from them."""

    def __init__(
        self,
        documents: Mapping[tuple[str, str], SecretDocument],
        broken: Mapping[tuple[str, str], str],
        files: Mapping[str, bytes] | None,
        previous: Iterable[SecretUse],
        unreadable: Unread,
        keys: Keyring,
    ) -> None:
        self._documents, self._broken, self._files, self._keys = documents, broken, files, keys
        self._previous = {(u.owner, u.purpose): u for u in previous}
        self._unreadable = unreadable
        self._key_id = keys.newest
        self.uses: dict[tuple[ObjectRef, str], SecretUse] = {}
        self.values: dict[str, Value] = {}

    def _digest(self, *parts: bytes) -> str:
        """Keyed HMAC of parts, each with its length, so that no two lists of parts are the same octets."""
        return self._keys.digest(b"".join(len(part).to_bytes(8, "big") + part for part in parts))

    def _last(self, owner: ObjectRef, purpose: str, name: str) -> SecretUse | None:
        use = self._previous.get((owner, purpose))
        return use if use is not None and use.secret == name else None

    def _unchanged(self, owner: ObjectRef, purpose: str, name: str) -> SecretUse | None:
        """The last use, if the Secret is there and cannot be read for now."""
        use = self._last(owner, purpose, name)
        if use is None or (owner.namespace, name) in self._documents:
            return None
        if (owner.namespace, name) in self._broken or use.origin in self._unreadable:
            return use
        return None

    def _document(self, namespace: str, name: str) -> SecretDocument:
        document = self._documents.get((namespace, name))
        if document is not None:
            return document
        if (namespace, name) in self._broken:
            raise SecretProblem(Reason.SECRET_INVALID, f"Secret {namespace}/{name} is invalid; its own error says why")
        raise SecretProblem(Reason.SECRET_NOT_FOUND, f"Secret {namespace}/{name} does not exist")

    def _value(self, document: SecretDocument, key: str) -> bytes:
        value = document.values.get(key)
        if value is None:
            raise SecretProblem(
                Reason.SECRET_NOT_FOUND, f"Secret {document.namespace}/{document.name} has no key {key}"
            )
        return value

    def _keep(self, use: SecretUse) -> SecretRef:
        self.uses[(use.owner, use.purpose)] = use
        return use.ref

    def _use(
        self,
        owner: ObjectRef,
        purpose: str,
        document: SecretDocument,
        key: str,
        digest: str,
        value: Value,
        username: str | None = None,
        record: str | None = None,
    ) -> SecretRef:
        ref = SecretRef(owner.namespace, document.name, key, digest, self._key_id)
        self.values[ref.path] = value
        return self._keep(SecretUse(owner, purpose, document.name, document.origin, ref, username, record))

    def certificate(
        self, owner: ObjectRef, listener: str, where: CertificateSource
    ) -> tuple[SecretRef | None, SecretProblem | None]:
        """A listener's certificate and key as one PEM; on a problem the last one, if there was one."""
        purpose = f"certificate {listener}"
        unchanged = self._unchanged(owner, purpose, where.name)
        if unchanged is not None:
            return self._keep(unchanged), None
        try:
            document = self._document(owner.namespace, where.name)
            names = (where.certificate_key, where.private_key_key)
            certificate, key = (self._value(document, k) for k in names)
            wrong = _check_certificate(certificate, key, names)
            if wrong:
                raise SecretProblem(Reason.SECRET_INVALID, f"Secret {owner.namespace}/{where.name}: {wrong}")
        except SecretProblem as problem:
            last = self._previous.get((owner, purpose))  # whatever Secret it came from: a typo in a name closes no port
            return (self._keep(last) if last is not None else None), problem
        pem = certificate.rstrip() + b"\n" + key.rstrip() + b"\n"
        return self._use(owner, purpose, document, "tls.pem", self._digest(b"pem", pem), lambda: pem), None

    def authorities(self, owner: ObjectRef, where: AuthoritiesSource) -> SecretRef:
        """Certificates to trust. Raises SecretProblem."""
        name, key = where.name, where.key
        unchanged = self._unchanged(owner, "ca", name)
        if unchanged is not None:
            return self._keep(unchanged)
        document = self._document(owner.namespace, name)
        pem = self._value(document, key)
        wrong = _check_authorities(pem)
        if wrong:
            raise SecretProblem(Reason.SECRET_INVALID, f"Secret {owner.namespace}/{name}, key {key}: {wrong}")
        return self._use(owner, "ca", document, key, self._digest(b"pem", pem), lambda: pem)

    def authorities_file(self, owner: ObjectRef, path: str) -> SecretRef:
        """The same from a file of local mode. Raises SecretProblem."""
        if self._files is None:
            raise SecretProblem(Reason.FILE_NOT_FOUND, "caFile works in local mode only; use caSecretRef")
        pem = self._files.get(path)
        if pem is None:
            raise SecretProblem(Reason.FILE_NOT_FOUND, f"the file {path} does not exist or cannot be read")
        wrong = _check_authorities(pem)
        if wrong:
            raise SecretProblem(Reason.SECRET_INVALID, f"the file {path}: {wrong}")
        document = SecretDocument(owner.namespace, f"file:{path}", {})
        return self._use(owner, "ca", document, "ca.crt", self._digest(b"pem", pem), lambda: pem)

    def dkim_key(self, owner: ObjectRef, where: KeySource) -> tuple[SecretRef, str]:
        """A DKIM key, and the text of its record. Raises SecretProblem."""
        purpose = f"dkim {where.selector}"
        unchanged = self._unchanged(owner, purpose, where.name)
        if unchanged is not None and unchanged.record is not None:
            return self._keep(unchanged), unchanged.record
        document = self._document(owner.namespace, where.name)
        pem = self._value(document, where.key)
        try:
            record = _record_of(pem)
        except SigningError as error:
            said = f"Secret {owner.namespace}/{where.name}, key {where.key}: {error}"
            raise SecretProblem(Reason.SECRET_INVALID, said) from None
        digest = self._digest(b"dkim", pem)
        return self._use(owner, purpose, document, where.key, digest, lambda: pem, record=record), record

    def login(self, owner: ObjectRef, where: LoginSource, username: str | None) -> NextHopLogin:
        """User name, if the object itself says none, and password for a next hop or a proxy. Raises SecretProblem."""
        name = where.name
        unchanged = self._unchanged(owner, "login", name)
        if unchanged is not None and (username or unchanged.username):
            return NextHopLogin(username or unchanged.username or "", self._keep(unchanged))
        document = self._document(owner.namespace, name)
        if username is None:
            try:
                username = self._value(document, where.username_key).decode().removesuffix("\n").removesuffix("\r")
            except UnicodeDecodeError:
                username = ""
            if not _USERNAME.fullmatch(username):
                raise SecretProblem(
                    Reason.SECRET_INVALID,
                    f"Secret {owner.namespace}/{name}: {where.username_key} must be up to 255 characters of one line "
                    "of UTF-8",
                )
        key = where.password_key
        octets = self._password(document, key).encode()
        digest = self._digest(b"login", document.name.encode(), octets)
        return NextHopLogin(username, self._use(owner, "login", document, key, digest, lambda: octets, username))

    def _password(self, document: SecretDocument, key: str) -> str:
        try:
            return read_password(self._value(document, key))
        except InvalidCredentials as error:
            raise SecretProblem(
                Reason.SECRET_INVALID, f"Secret {document.namespace}/{document.name}: {error}"
            ) from None

    def account(self, owner: ObjectRef, where: PasswordSource, uid: str, *, clear_text: bool) -> AccountCredentials:
        """Verifiers of an account, and its sealed password where a listener offers CRAM-MD5. Raises SecretProblem."""
        name = where.name
        scram: list[tuple[str, SecretRef]] = []
        unchanged = [(m, self._unchanged(owner, m, name)) for m in MECHANISMS]
        if any(use is not None for _, use in unchanged):
            scram = [(m, self._keep(use)) for m, use in unchanged if use is not None]
            clear = self._unchanged(owner, "password", name) if clear_text else None
            return AccountCredentials(tuple(scram), self._keep(clear) if clear is not None else None)
        document = self._document(owner.namespace, name)
        if where.password_key not in document.values:
            for mechanism in MECHANISMS:
                text = document.values.get(mechanism.lower())
                if text is not None:
                    scram.append((mechanism, self._given_verifier(owner, document, mechanism, text)))
            if not scram:
                raise SecretProblem(
                    Reason.SECRET_NOT_FOUND,
                    f"Secret {owner.namespace}/{name} has no {where.password_key} and no scram-sha-256 or scram-sha-1",
                )
            return AccountCredentials(tuple(scram))
        password = self._password(document, where.password_key)
        octets, keys = password.encode(), self._keys
        for mechanism in MECHANISMS:

            def verifier(mechanism: str = mechanism) -> bytes:
                return str(derive_verifier(mechanism, password, uid, keys)).encode()

            digest = self._digest(b"verifier", mechanism.encode(), uid.encode(), octets)
            scram.append((mechanism, self._use(owner, mechanism, document, mechanism.lower(), digest, verifier)))
        clear_ref = None
        if clear_text:
            digest = self._digest(b"login", document.name.encode(), octets)
            clear_ref = self._use(owner, "password", document, where.password_key, digest, lambda: octets)
        return AccountCredentials(tuple(scram), clear_ref)

    def _given_verifier(self, owner: ObjectRef, document: SecretDocument, mechanism: str, text: bytes) -> SecretRef:
        try:
            verifier = ScramVerifier.parse(text.decode("ascii", "replace"))
        except InvalidCredentials as error:
            raise SecretProblem(
                Reason.SECRET_INVALID,
                f"Secret {document.namespace}/{document.name}, key {mechanism.lower()}: {error}",
            ) from None
        if verifier.mechanism != mechanism:
            raise SecretProblem(
                Reason.SECRET_INVALID,
                f"Secret {document.namespace}/{document.name}: {mechanism.lower()} is a {verifier.mechanism} verifier",
            )
        octets = str(verifier).encode()
        digest = self._digest(b"given", octets)
        return self._use(owner, mechanism, document, mechanism.lower(), digest, lambda: octets)
