"""What is known of a TLS session once its handshake is done."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TlsFacts:
    """What the handshake gave."""

    version: str
    """As `TLSv1.3`."""
    cipher: str
    """OpenSSL's name."""
    verified_name: str | None = None
    """The name that the peer's certificate was verified for; None where it was not."""
    resumed: bool = False
    """The session of an earlier connection went on (TLS-10e): nothing was verified anew."""
    matched: str = ""
    """`DaneDemand.matching` of the TLSA records that the peer's certificates match (core/dane); empty: none was looked
    at, or none match."""

    @property
    def proof(self) -> str:
        """What proved the peer, as a label of metrics: `none`, `pkix`, `dane` or `pkix+dane`."""
        proofs = ("pkix" if self.verified_name is not None else "", "dane" if self.matched else "")
        return "+".join(filter(None, proofs)) or "none"
