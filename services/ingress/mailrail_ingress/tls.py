"""Server certificates: TLS contexts from the PEM that a revision carries, and the channel binding that they give.

Contexts are kept by the secret's path, which changes with its content: a new certificate serves new connections and
drops none (TLS-09).
"""

import os
import ssl
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes

# RFC 9325 4.2.1: forward secrecy and AEAD alone for TLS 1.2; the suites of TLS 1.3 are all of that kind.
_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"


class BadCertificate(ValueError):
    """The PEM cannot serve; the text says why and holds none of it."""


@dataclass(frozen=True, slots=True)
class ServerCertificate:
    """A certificate that is ready to serve."""

    context: ssl.SSLContext
    end_point: bytes | None
    """The tls-server-end-point channel binding (RFC 5929 4); None where it is not defined."""


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2  # RFC 8996: nothing older (TLS-05)
    context.set_ciphers(_CIPHERS)
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    return context


def switching(current: Callable[[], ServerCertificate | None]) -> ssl.SSLContext:
    """A context for a socket that stays open: each handshake gets the certificate in force at its time (TLS-09)."""

    def choose(secured: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> int | None:
        identity = current()
        if identity is None:
            return ssl.ALERT_DESCRIPTION_INTERNAL_ERROR
        secured.context = identity.context
        return None

    context = _context()
    context.sni_callback = choose  # called whether or not the client names a server (DANE-23)
    return context


def load(pem: bytes) -> ServerCertificate:
    """Certificate chain and key in one PEM. Raises BadCertificate."""
    try:
        certificate = x509.load_pem_x509_certificate(pem)
    except ValueError as error:
        raise BadCertificate("the PEM does not begin with a certificate") from error
    context = _context()
    try:
        _load_chain(context, pem)
    except (ssl.SSLError, OSError) as error:
        raise BadCertificate(f"the certificate and its key cannot be used: {type(error).__name__}") from error
    return ServerCertificate(context, _end_point(certificate))


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
