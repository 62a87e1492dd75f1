"""What TLS one hop needs, whether plaintext may follow, and why: one pure function (design 7, standards 14).

Inputs are what is demanded: by the message, by the transport, later by the domain's MTA-STS policy and TLSA records
(each will be one more field of `Hop`, None = not known). Outputs are what the shell must do and what it must prove.
Nothing here degrades: a requirement that cannot be met is a refusal in words, never a weaker mode (promise 2).
"""

from dataclasses import dataclass
from enum import StrEnum

from mailrail.core.revision.revision import TlsMode


class Requirement(StrEnum):
    """What the message itself asks of TLS (RFC 8689)."""

    DEFAULT = "default"
    REQUIRED = "required"  # REQUIRETLS
    NO = "no"  # header TLS-Required: No


@dataclass(frozen=True, slots=True)
class Hop:
    """Everything that bears on the decision for one host."""

    host: str
    """The name that we were configured or told by MX to connect to; the one that a certificate must carry."""
    configured: TlsMode | None
    """The mode of the transport; None for direct delivery, which is opportunistic."""
    implicit: bool = False
    """TLS from the first octet (RFC 8314 3.3)."""
    carries_credentials: bool = False
    requirement: Requirement = Requirement.DEFAULT


@dataclass(frozen=True, slots=True)
class TlsDecision:
    """What to do about TLS with this host."""

    mode: TlsMode
    implicit: bool
    verify_name: str | None
    """PKIX verification against this name must succeed before anything is sent; None = the certificate is ignored."""
    plaintext_may_follow: bool
    """After a failed handshake a new connection may go without TLS (TLS-07)."""
    reason: str
    """In words, for the log, explain and the delivery history."""
    refusal: str | None = None
    """Set when this host must not get the message at all."""


@dataclass(frozen=True, slots=True)
class Proven:
    """What a live connection has shown."""

    encrypted: bool
    verified_name: str | None


def decide(hop: Hop) -> TlsDecision:
    """The decision for one host. The whole table is a test."""
    configured = hop.configured
    if hop.carries_credentials and configured is not TlsMode.VERIFIED:
        # TLS-08: whatever was configured, a password goes to a proven server only.
        configured = TlsMode.VERIFIED
    if hop.requirement is Requirement.REQUIRED:
        return _required(hop, configured)
    if configured is None:
        return TlsDecision(TlsMode.OPPORTUNISTIC, False, None, True, "direct delivery: TLS where the MX host offers it")
    match configured:
        case TlsMode.NONE:
            return TlsDecision(TlsMode.NONE, False, None, True, "the transport says tls.mode Disabled")
        case TlsMode.OPPORTUNISTIC:
            reason = "the transport says tls.mode Opportunistic: TLS where the server offers it"
            return TlsDecision(TlsMode.OPPORTUNISTIC, hop.implicit, None, not hop.implicit, reason)
        case TlsMode.REQUIRED:
            reason = "the transport says tls.mode Required: encrypted, not authenticated"
            return TlsDecision(TlsMode.REQUIRED, hop.implicit, None, False, reason)
        case TlsMode.VERIFIED:
            reason = f"verified TLS with {hop.host} is required"
            return TlsDecision(TlsMode.VERIFIED, hop.implicit, hop.host, False, reason)


def _required(hop: Hop, configured: TlsMode | None) -> TlsDecision:
    reason = f"the message requires TLS (RFC 8689), verified for {hop.host}"
    if configured is None:
        # RFC 8689 4.2.1: the MX host must be proven by MTA-STS or DANE, neither of which is known for this hop.
        refusal = f"the message requires TLS and neither MTA-STS nor DANE proves {hop.host} to be the destination's MX"
        return TlsDecision(TlsMode.VERIFIED, hop.implicit, hop.host, False, reason, refusal)
    if configured is not TlsMode.VERIFIED:
        refusal = (
            f"the message requires TLS and the transport says tls.mode {configured.capitalize()}, which proves nothing"
        )
        return TlsDecision(TlsMode.VERIFIED, hop.implicit, hop.host, False, reason, refusal)
    return TlsDecision(TlsMode.VERIFIED, hop.implicit, hop.host, False, reason)


def accepts(decision: TlsDecision, proven: Proven) -> bool:
    """Whether a connection that has shown this much may carry a message under this decision (design 4, Deliver)."""
    if decision.refusal is not None:
        return False
    match decision.mode:
        case TlsMode.NONE | TlsMode.OPPORTUNISTIC:
            return True
        case TlsMode.REQUIRED:
            return proven.encrypted
        case TlsMode.VERIFIED:
            return proven.encrypted and proven.verified_name == decision.verify_name
