"""Floors for the security of mail that leaves: `security` of three kinds, and `require` of a route's rules."""

from typing import Annotated, Final, Literal

from pydantic import Field

from mailrail.core.resources.base import Part
from mailrail.core.resources.rules import CelCondition, UniqueBy

HOSTS_IN_CLEAR: Final = CelCondition(
    "remove security.minimum, or set tls.mode to Opportunistic or more: with Disabled there is no TLS",
    "!has(self.security) || !has(self.security.minimum) || self.security.minimum == 'Opportunistic' || "
    "!(has(self.smtp) && has(self.smtp.tls) && has(self.smtp.tls.mode) && self.smtp.tls.mode == 'Disabled' || "
    "has(self.lmtp) && (!has(self.lmtp.tls) || !has(self.lmtp.tls.mode) || self.lmtp.tls.mode == 'Disabled'))",
    lambda m: (
        m.security is None
        or m.security.minimum in (None, "Opportunistic")
        or not (
            (m.smtp is not None and m.smtp.tls is not None and m.smtp.tls.mode == "Disabled")
            or (m.lmtp is not None and (m.lmtp.tls is None or m.lmtp.tls.mode in (None, "Disabled")))
        )
    ),
)
"""Of MailTransport: a host that is dialled without TLS cannot keep a floor."""


class SecuritySpec(Part):
    """A floor. Those of the gateway, the sender's domain, the rule and the transport add up: the strictest minimum, the
    proofs that all of them allow, and the strictest of the others."""

    RULES = (
        UniqueBy("proofs"),
        CelCondition(
            "set minimum to Authenticated, or remove proofs: nothing else asks for one",
            "!has(self.proofs) || has(self.minimum) && self.minimum == 'Authenticated'",
            lambda m: m.proofs is None or m.minimum == "Authenticated",
        ),
    )
    minimum: Literal["Opportunistic", "Encrypted", "Authenticated"] | None = Field(
        default=None,
        description="Opportunistic: what the destination offers, or demands by MTA-STS or DANE. Encrypted: TLS, with "
        "any certificate. Authenticated: TLS with a server that one of the proofs shows to be the right one. "
        "Default: Opportunistic.",
    )
    proofs: Annotated[tuple[Literal["DANE", "MTASTS", "PKIX"], ...], Field(min_length=1, max_length=3)] | None = Field(
        default=None,
        description="Proofs of which one is enough. DANE: TLSA records and DNSSEC from the MX record on. MTASTS: a "
        "policy in mode enforce lists the host. PKIX: the certificate is valid for the host, whoever named it. "
        "Default: all three.",
    )
    otherwise: Literal["Defer", "Fail"] | None = Field(
        default=None, description="What becomes of mail that no host takes so. Fail: it fails at once. Default: Defer."
    )
    when_unanswered: Literal["Defer", "Proceed"] | None = Field(
        default=None,
        description="What becomes of mail while the DNS does not answer whether the destination has an MTA-STS policy "
        "or TLSA records. Proceed: it goes as if there were none. Default: Defer.",
    )


class RequireSpec(Part):
    """What a rule demands of the way that it names. It only adds to what others demand."""

    tls: SecuritySpec | None = Field(default=None, description="The floor for its mail. Default: none of its own.")
