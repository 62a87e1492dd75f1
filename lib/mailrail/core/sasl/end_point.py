"""The channel binding that a server's certificate gives a client: tls-server-end-point (RFC 5929 4, SCR-05a)."""

import hashlib
from functools import lru_cache

from mailrail.core.sasl.client import ChannelBinding


@lru_cache(maxsize=256)
def end_point_binding(der: bytes) -> ChannelBinding | None:
    """RFC 5929 4.1: the hash of the certificate's signature, SHA-256 in place of MD5 and SHA-1. None: there is none."""
    # Loaded only here: a command that does not log in has no use for it, and it takes long (SML-11).
    from cryptography import x509

    from mailrail.core.dane.reading import UNREADABLE

    try:
        algorithm = x509.load_der_x509_certificate(der).signature_hash_algorithm
    except UNREADABLE:
        return None
    if algorithm is None:  # Ed25519 and the like use no single hash: RFC 5929 leaves the binding undefined
        return None
    name = "sha256" if algorithm.name in ("md5", "sha1") else algorithm.name
    try:
        return ChannelBinding("tls-server-end-point", hashlib.new(name, der).digest())
    except ValueError:
        return None
