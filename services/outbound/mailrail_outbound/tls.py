"""TLS of the client as a filter over octets, on `ssl`'s memory BIOs: no transport of its own, no task per handshake.

The connection's callback feeds what came and writes what comes out, so STARTTLS happens between two reads, and what
was buffered in plaintext before the handshake cannot reach what follows it (TLS-02). Nothing below TLS 1.2 is
negotiated (TLS-05).

What the peer presented is had from here too, whether or not OpenSSL verified it: DANE is compared with it afterwards.
"""

import _ssl
import re
import ssl
import sys
import time
from functools import lru_cache
from typing import Any, Final

from cryptography import x509

from mailrail.core.dane.reading import UNREADABLE
from mailrail.core.sasl.client import ChannelBinding
from mailrail.core.sasl.end_point import end_point_binding
from mailrail.core.smtp.tls import TlsFacts
from mailrail.core.tlsrpt.result_type import NOT_YET_VALID, ResultType, TlsFault

_READ = 262144
SESSION_READS = 1000 if sys.version_info < (3, 12, 8) or sys.version_info[:3] == (3, 13, 0) else None
"""Sessions that a process takes in its life. Up to these versions of Python each loses 7 KiB (CPython 116810)."""


_REASON: Final = 60  # characters of a reason code
_HAS_EXPIRED, _NOT_YET_VALID, _HOST_MISMATCH, _IP_MISMATCH = 10, 9, 62, 64  # OpenSSL's X509_V_ERR_...


@lru_cache(maxsize=64)
def client_context(*, verify: bool, ca: bytes = b"", by_name: bool = True) -> ssl.SSLContext:
    """A context; `verify`: PKIX against the system's trust and `ca` (PEM), and for the server's name unless not
    `by_name`. Raises ssl.SSLError for an unusable `ca`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2  # TLS-05, STS-22
    # RFC 9325 4: no renegotiation games, no compression (Python never enables it).
    context.options |= ssl.OP_NO_RENEGOTIATION
    if verify:
        context.check_hostname = by_name
        # RTLS-13, STS-11: a DNS-ID alone names a host; RFC 9525 leaves no place for the common name.
        context.hostname_checks_common_name = False
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
        if ca:
            context.load_verify_locations(cadata=ca.decode("ascii"))
    else:
        # Opportunistic: it protects from eavesdroppers. Plaintext would not stop an active attacker either.
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def presented_chain(tls: ssl.SSLObject) -> tuple[bytes, ...]:
    """The certificates that the peer sent, in DER and in its order, its own first; none where a session was resumed.
    OpenSSL need not have verified them. Python gives them from 3.13 on; before, its inner object does (CPython 109109).
    """
    if sys.version_info >= (3, 13):
        return tuple(tls.get_unverified_chain())
    inner: Any = tls._sslobj  # type: ignore[attr-defined]
    return tuple(each.public_bytes(_ssl.ENCODING_DER) for each in inner.get_unverified_chain() or ())


def fault_of(error: ssl.SSLError) -> TlsFault:
    """What a failed handshake is in a report on TLS (TRPT-07a)."""
    detail = in_words(error)
    if not isinstance(error, ssl.SSLCertVerificationError):
        return TlsFault(ResultType.VALIDATION_FAILURE, _reason(error.reason or "handshake-failed"), detail)
    match error.verify_code:
        case code if code == _HAS_EXPIRED:
            return TlsFault(ResultType.CERTIFICATE_EXPIRED, "certificate-expired", detail)
        case code if code == _NOT_YET_VALID:
            return TlsFault(ResultType.VALIDATION_FAILURE, NOT_YET_VALID, detail)
        case code if code in (_HOST_MISMATCH, _IP_MISMATCH):
            return TlsFault(ResultType.CERTIFICATE_HOST_MISMATCH, "host-mismatch", detail)
        case _:
            # RFC 8460 4.3.1: issuers, constraints, purposes and signatures are all of this type.
            return TlsFault(ResultType.CERTIFICATE_NOT_TRUSTED, _reason(error.verify_message), detail)


def in_words(error: ssl.SSLError) -> str:
    """What went wrong, for people."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the certificate is not valid: {error.verify_message}"
    return error.reason or str(error)


def _reason(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower())[:_REASON].strip("-")


class TlsStream:
    """One TLS session. `handshake`, then `decrypt` and `encrypt`; `outgoing` is what must be written to the socket."""

    __slots__ = ("_incoming", "_object", "_outgoing", "_verified_name", "closed", "fault", "until")

    def __init__(
        self,
        context: ssl.SSLContext,
        server_name: str,
        *,
        verified_name: str | None,
        session: ssl.SSLSession | None = None,
    ) -> None:
        """`server_name`: for SNI. `verified_name`: what the certificate is verified for, here or by who asks; None: it
        is not. `session`: to be resumed if the server will; of the same context and server name, and as well verified:
        it is verified no second time."""
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._object = context.wrap_bio(self._incoming, self._outgoing, server_hostname=server_name, session=session)
        self._verified_name = verified_name
        self.until: float | None = None
        """Seconds since 1970, UTC, until which what was verified besides is good; None: no end is known."""
        self.closed = False
        """The peer said close_notify."""
        self.fault: ssl.SSLError | None = None
        """What broke the session behind plaintext that was good."""

    def handshake(self, data: bytes = b"") -> bool:
        """Go on with the handshake. True once it is done. Raises ssl.SSLError (ssl.CertificateError included)."""
        if data:
            self._incoming.write(data)
        try:
            self._object.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    def decrypt(self, data: bytes) -> bytes:
        """Plaintext from the peer's octets. Raises ssl.SSLError; where plaintext came before the fault, it is returned
        and the fault kept: a 250 with a broken record behind it is still the server's 250."""
        if data:
            self._incoming.write(data)
        parts: list[bytes] = []
        try:
            while True:
                part = self._object.read(_READ)
                if not part:
                    self.closed = True
                    break
                parts.append(part)
                if not self._incoming.pending and not self._object.pending():
                    break
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self.closed = True
        except ssl.SSLError as error:
            if not parts:
                raise
            self.fault = error
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def encrypt(self, data: bytes) -> None:
        """Take plaintext; its ciphertext is in `outgoing`. Raises ssl.SSLError."""
        view = memoryview(data)
        while view:  # OpenSSL takes a record at a time
            view = view[self._object.write(view) :]

    def outgoing(self) -> bytes:
        """What must be written to the socket now."""
        return self._outgoing.read() if self._outgoing.pending else b""

    def facts(self) -> TlsFacts:
        """Version, cipher, the name that was verified, here or when a session that is resumed began, and which."""
        cipher = self._object.cipher()
        version = self._object.version() or ""
        return TlsFacts(version, cipher[0] if cipher else "", self._verified_name, bool(self._object.session_reused))

    def chain(self) -> tuple[bytes, ...]:
        """See `presented_chain`."""
        return presented_chain(self._object)

    def session(self) -> tuple[ssl.SSLSession | None, float]:
        """The session of a full handshake, None where the server gives none, and for how many seconds it may be
        resumed. Only after the first plaintext: the tickets of TLS 1.3 come before that. It costs a fourth of a
        handshake."""
        session = self._object.session
        if session is None:
            return None, 0.0
        seconds = float(session.timeout)
        if session.has_ticket and (session.ticket_lifetime_hint or self._object.version() == "TLSv1.3"):
            # Of TLS 1.2 a hint of 0 says nothing (RFC 5077 3.3), of TLS 1.3 it ends the ticket (RFC 8446 4.6.1).
            seconds = min(seconds, session.ticket_lifetime_hint)
        elif not session.id or self._object.version() == "TLSv1.3":
            return None, 0.0
        if self._verified_name is not None:
            der = self._object.getpeercert(binary_form=True)
            if der is None:
                return None, 0.0
            seconds = min(seconds, _not_after(der) - time.time())
        if self.until is not None:
            seconds = min(seconds, self.until - time.time())
        return session, seconds

    def binding(self) -> ChannelBinding | None:
        """The tls-server-end-point binding (RFC 5929 4): a hash of the server's certificate. None: not computable."""
        der = self._object.getpeercert(binary_form=True)
        return None if der is None else end_point_binding(der)


@lru_cache(maxsize=256)
def _not_after(der: bytes) -> float:
    """When a certificate expires, in seconds since 1970, UTC; 0 where that cannot be read, although OpenSSL could."""
    try:
        return x509.load_der_x509_certificate(der).not_valid_after_utc.timestamp()
    except UNREADABLE:
        return 0.0
