"""What DANE asks of one host, as it is carried from the decision to the handshake."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from mailrail.core.dane.tlsa import TlsaRecord, Usage


@dataclass(frozen=True, slots=True)
class DaneDemand:
    """One of these records must match the server's certificates (RFC 7672 2.2). Made by `of`."""

    base: str
    """The TLSA base domain, lower-case A-labels: what SNI says (DANE-17)."""
    records: tuple[TlsaRecord, ...]
    """Usable ones alone (tlsa.judge), at least one."""
    names: tuple[str, ...]
    """Of which the certificate must have one where a record names an issuer (names.reference_names)."""
    matching: str
    """Equal for equal demands alone: a connection or TLS session that met one serves no other (RTLS-28, TLS-10a)."""

    @classmethod
    def of(cls, base: str, records: Sequence[TlsaRecord], names: Sequence[str]) -> "DaneDemand":
        """Raises ValueError without a record."""
        if not records:
            raise ValueError("without a usable record nothing can match; DANE then asks for TLS alone (DANE-15)")
        ordered = tuple(sorted(set(records)))
        # DANE-EE asks for no name, so all domains of one host can share its connections.
        named = tuple(names) if any(each.usage == Usage.DANE_TA for each in ordered) else ()
        digest = hashlib.sha256(repr((base, ordered, named)).encode())
        return cls(base, ordered, named, digest.hexdigest())
