"""MailGateway: one installation or edge, its listeners, its postmaster, and the global level of routing (design 5)."""

from ipaddress import ip_network
from typing import Annotated, Final, Literal

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from mailrail.core.resources.attach import GatewayAttach
from mailrail.core.resources.authentication import AuthenticationSpec
from mailrail.core.resources.base import (
    CertificateSecretRef,
    Cidr,
    DomainName,
    LabelName,
    MailboxPath,
    NamespacedRef,
    Part,
    Port,
    Resource,
    Retry,
    SaslMechanism,
    compiled_default,
)
from mailrail.core.resources.rules import CelCondition, UniqueBy
from mailrail.core.resources.security import SecuritySpec
from mailrail.core.revision.revision import DSN_FULL_LIMIT, GatewayLimits

Octets = Annotated[int, Field(ge=1024, le=2 * 1024**3)]
_LIMITS: Final = GatewayLimits()


class ProxyProtocol(Part):
    """PROXY protocol v1 and v2 (PRX-01): every connection begins with its header and comes from a trusted network."""

    trusted_cidrs: Annotated[tuple[Cidr, ...], Field(min_length=1, max_length=64)] = Field(
        alias="trustedCIDRs", description="Networks of the load balancers that send the header."
    )

    @field_validator("trusted_cidrs")
    @classmethod
    def _are_networks(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        for value in values:
            try:
                ip_network(value, strict=False)
            except ValueError as error:
                raise PydanticCustomError(
                    "network", "{value} is not a network, like 10.0.0.0/8 or 2001:db8::/32", {"value": value}
                ) from error
        return values


class ListenerTls(Part):
    """The certificate of a listener, and whether clients may go without."""

    mode: Literal["Opportunistic", "Required"] = Field(
        default="Opportunistic",
        description="Opportunistic: clients may use TLS. Required: mail is accepted over TLS only, which a public MX "
        "must not ask for.",
    )
    certificate_secret_ref: CertificateSecretRef = Field(description="Secret with the certificate and its key.")


class ListenerSpec(Part):
    """One listening port."""

    RULES = (
        CelCondition(
            "set tls: protocol Submissions uses TLS from the first byte",
            "self.protocol != 'Submissions' || has(self.tls)",
            lambda m: m.protocol != "Submissions" or m.tls is not None,
        ),
        CelCondition(
            "remove mechanisms: an MX listener never offers AUTH",
            "self.protocol != 'MX' || !has(self.mechanisms)",
            lambda m: m.protocol != "MX" or m.mechanisms is None,
        ),
        UniqueBy("mechanisms"),
    )
    name: LabelName = Field(description="Name of the listener, for logs and status.")
    protocol: Literal["MX", "Submission", "Submissions"] = Field(
        description="MX: mail from other servers to our domains. Submission: mail from our users, with STARTTLS. "
        "Submissions: mail from our users, with TLS from the first byte."
    )
    port: Port = Field(description="Port in the pod or on this machine; commonly mapped from 25, 587 and 465.")
    tls: ListenerTls | None = Field(
        default=None, description="Certificate and TLS mode. Default: the listener has no STARTTLS."
    )
    proxy_protocol: ProxyProtocol | None = Field(
        default=None,
        description="Set it if a load balancer in front of the listener sends PROXY headers. Default: none are read.",
    )
    mechanisms: Annotated[tuple[SaslMechanism, ...], Field(min_length=1, max_length=7)] | None = Field(
        default=None,
        description="SASL mechanisms to offer. Default: all but CRAM-MD5, which needs clear-text passwords.",
    )


class Postmaster(Part):
    """The account that receives mail to postmaster@ and owns the DSNs and reports that Mailrail makes."""

    account_ref: NamespacedRef = Field(description="The MailAccount; it must exist.")
    mailbox: MailboxPath = Field(default="Postmaster", description="Mailbox of that account; / separates its levels.")


class GatewayLimitsSpec(Part):
    """Limits on what clients may send."""

    message_bytes: Octets | None = Field(
        default=None,
        description="Largest message in octets.",
        json_schema_extra=compiled_default(_LIMITS.message_size),
    )
    recipients: Annotated[int, Field(ge=100, le=100_000)] | None = Field(
        default=None,
        description="Recipients in one transaction (RFC 5321 4.5.3.1.8: at least 100).",
        json_schema_extra=compiled_default(_LIMITS.recipients),
    )
    connections: Annotated[int, Field(ge=1, le=1_000_000)] | None = Field(
        default=None,
        description="Open connections to one ingress process; of these a tenth is kept for submission listeners and "
        "another for addresses that have delivered mail before. When there is none left, the one that is longest idle "
        "ends for a new one.",
        json_schema_extra=compiled_default(_LIMITS.connections),
    )
    connections_per_ip: Annotated[int, Field(ge=1, le=1_000_000)] | None = Field(
        default=None,
        alias="connectionsPerIP",
        description="Open connections from one IP address to one process; while connections are scarce, from one /24 "
        "(IPv6 /48).",
        json_schema_extra=compiled_default(_LIMITS.connections_per_ip),
    )
    errors: Annotated[int, Field(ge=1, le=10_000)] | None = Field(
        default=None,
        description="Bad commands after which a session is closed.",
        json_schema_extra=compiled_default(_LIMITS.errors),
    )
    idle_seconds: Annotated[int, Field(ge=10, le=3600)] | None = Field(
        default=None,
        description="Seconds of silence after which a session is closed (RFC 5321 4.5.3.2.7: at least 300).",
        json_schema_extra=compiled_default(_LIMITS.idle_timeout),
    )
    transaction_seconds: Annotated[int, Field(ge=10, le=86400)] | None = Field(
        default=None,
        description="Seconds that the content of one message may take.",
        json_schema_extra=compiled_default(_LIMITS.transaction_timeout),
    )
    future_release_seconds: Annotated[int, Field(ge=1, le=366 * 86400)] | None = Field(
        default=None,
        description="Longest delay in seconds that a client may ask for (FUTURERELEASE).",
        json_schema_extra=compiled_default(_LIMITS.future_release),
    )


class NotificationsSpec(Part):
    """What DSNs contain."""

    full_content_bytes: Octets | None = Field(
        default=None,
        description="A DSN about a message larger than this (in octets) returns its header only.",
        json_schema_extra=compiled_default(DSN_FULL_LIMIT),
    )


class RequireTlsSpec(Part):
    """Whether senders may demand TLS for each hop of a message (REQUIRETLS, RFC 8689)."""

    mode: Literal["WhenSecure", "Disabled"] = Field(
        description="WhenSecure: REQUIRETLS is announced to clients that use TLS. Disabled: it is announced to nobody, "
        "and MAIL with it is refused; mail that was accepted with it keeps it."
    )


class ExtensionsSpec(Part):
    """Which SMTP extensions are announced to clients."""

    require_tls: RequireTlsSpec | None = Field(
        default=None,
        alias="requireTLS",
        description="REQUIRETLS (RFC 8689), on all listeners. Default: mode WhenSecure.",
    )


class MailGatewaySpec(Part):
    """One installation or edge."""

    RULES = (
        UniqueBy("listeners", "name"),
        UniqueBy("listeners", "port"),
        UniqueBy("attach", "name"),
    )
    hostname: DomainName = Field(
        description="Name in greetings, Received and Message-ID; it should resolve to an address of ours."
    )
    listeners: Annotated[tuple[ListenerSpec, ...], Field(min_length=1, max_length=16)] = Field(
        description="Ports to listen on."
    )
    postmaster: Postmaster = Field(description="The account that answers for this gateway.")
    retry: Retry | None = Field(
        default=None, description="When to repeat a failed attempt, and when to give up. Default: as each field says."
    )
    limits: GatewayLimitsSpec | None = Field(
        default=None, description="Limits on what clients may send. Default: as each field says."
    )
    notifications: NotificationsSpec | None = Field(
        default=None, description="What DSNs contain. Default: as each field says."
    )
    extensions: ExtensionsSpec | None = Field(
        default=None, description="Which SMTP extensions are announced. Default: as each field says."
    )
    security: SecuritySpec | None = Field(
        default=None, description="The least security of all mail that leaves. Default: none is demanded."
    )
    authentication: AuthenticationSpec | None = Field(
        default=None,
        description="What is done about who sent the mail of strangers (SPF, DKIM, ARC, DMARC). "
        "Default: as each field says.",
    )
    attach: Annotated[tuple[GatewayAttach, ...], Field(min_length=1, max_length=64)] | None = Field(
        default=None,
        description="Which MailDomains and MailRoutes may attach: one entry must permit all that is asked. "
        "Default: those of the gateway's namespace. A list is all there is: the own namespace is written as Same.",
    )


class MailGateway(Resource):
    """One installation or edge, and the global level of routing."""

    PLURAL = "mailgateways"
    SHORT = "mgw"
    kind: Literal["MailGateway"]
    spec: MailGatewaySpec
