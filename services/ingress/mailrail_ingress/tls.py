"""Server certificates: TLS contexts from the PEM that a revision carries, and the channel binding that they give.

Certificates are kept by the secret's path, which changes with its content: a new one serves new connections and drops
none (TLS-09). Each has a context of its own, whose keys seal the tickets that clients resume their sessions with
(TLS-11a). So a ticket is worth nothing under another certificate, at another replica or after a restart, where the
client makes a full handshake: Python's ssl can neither set these keys nor share them (TLS-11c).
"""

import contextlib
import os
import ssl
import sys
import tempfile
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from mailrail.kit import clock

# RFC 9325 4.2.1: forward secrecy and AEAD alone for TLS 1.2; the suites of TLS 1.3 are all of that kind.
_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
TICKET_KEY_LIFE = 86400.0
"""Seconds until the keys of tickets are replaced (TLS-11b). Whoever steals them can read what was recorded of TLS 1.2
under tickets that they sealed: RFC 9325 3.4 has them changed regularly. Tickets end well before, after two hours."""


class BadCertificate(ValueError):
    """The PEM cannot serve; the text says why and holds none of it."""


class ServerCertificate:
    """A certificate that is ready to serve, whatever server a client names (DANE-23)."""

    __slots__ = ("_context", "_pem", "_until", "end_point")

    def __init__(self, pem: bytes, end_point: bytes | None) -> None:
        """`pem`: chain and key. `end_point`: see below. Raises ssl.SSLError and OSError."""
        self.end_point = end_point
        """The tls-server-end-point channel binding (RFC 5929 4); None where it is not defined."""
        self._pem = pem
        self._context = _context(pem)
        self._until = clock.now() + TICKET_KEY_LIFE

    @property
    def context(self) -> ssl.SSLContext:
        """For the next handshake."""
        now = clock.now()
        if now >= self._until:
            # Where it cannot be made just now, for want of open files, the next handshake tries again.
            with contextlib.suppress(ssl.SSLError, OSError):
                self._context = _context(self._pem)
                self._until = now + TICKET_KEY_LIFE
        return self._context


def _context(pem: bytes) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2  # RFC 8996: nothing older (TLS-05)
    context.set_ciphers(_CIPHERS)
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.num_tickets = 1  # each costs 10 us and 250 octets of a handshake; OpenSSL's 2 are for browsers
    _load_chain(context, pem)
    return context


def load(pem: bytes) -> ServerCertificate:
    """Certificate chain and key in one PEM. Raises BadCertificate."""
    try:
        certificate = x509.load_pem_x509_certificate(pem)
    except ValueError as error:
        raise BadCertificate("the PEM does not begin with a certificate") from error
    try:
        return ServerCertificate(pem, _end_point(certificate))
    except (ssl.SSLError, OSError) as error:
        raise BadCertificate(f"the certificate and its key cannot be used: {type(error).__name__}") from error


def _end_point(certificate: x509.Certificate) -> bytes | None:
    """RFC 5929 4.1: by the hash of its signature, SHA-256 in place of MD5 and SHA-1; undefined where there is none."""
    try:
        algorithm = certificate.signature_hash_algorithm
    except ValueError:
        return None
    if algorithm is None:
        return None
    if isinstance(algorithm, hashes.MD5 | hashes.SHA1):
        algorithm = hashes.SHA256()
    return certificate.fingerprint(algorithm)


def _load_chain(context: ssl.SSLContext, pem: bytes) -> None:
    # The ssl module reads keys from files alone. One that is only in memory is best; a private one serves elsewhere.
    if sys.platform == "linux":
        descriptor = os.memfd_create("mailrail-certificate", os.MFD_CLOEXEC)
        try:
            os.write(descriptor, pem)
            context.load_cert_chain(f"/proc/self/fd/{descriptor}")
        finally:
            os.close(descriptor)
        return
    with tempfile.TemporaryDirectory(prefix="mailrail-") as folder:
        file = Path(folder) / "tls.pem"
        file.touch(mode=0o600)
        file.write_bytes(pem)
        context.load_cert_chain(file)
