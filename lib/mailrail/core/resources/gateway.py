"""MailGateway: one installation or edge, its listeners, its postmaster, and the global level of routing (design 5)."""

from ipaddress import ip_network
from typing import Annotated, Literal

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from mailrail.core.resources.base import (
    AllowedNamespaces,
    Cidr,
    DomainName,
    LabelName,
    LocalRef,
    MailboxPath,
    NamespacedRef,
    Part,
    Port,
    Resource,
    Retry,
)
from mailrail.core.resources.rules import CelCondition, UniqueBy
from mailrail.core.revision.revision import ListenerProtocol

ServerMechanism = Literal[
    "SCRAM-SHA-256-PLUS", "SCRAM-SHA-256", "SCRAM-SHA-1-PLUS", "SCRAM-SHA-1", "CRAM-MD5", "PLAIN", "LOGIN"
]
"""SASL mechanisms that a listener may offer, strongest first."""

Octets = Annotated[int, Field(ge=1024, le=2 * 1024**3)]


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

    mode: Literal["opportunistic", "required"] = Field(
        default="opportunistic",
        description="required: nothing but STARTTLS is answered before TLS. The public MX must not ask for it.",
    )
    certificate_secret_ref: LocalRef = Field(description="Secret of type kubernetes.io/tls: tls.crt and tls.key, PEM.")


class ListenerSpec(Part):
    """One listening port."""

    RULES = (
        CelCondition(
            "protocol submissions needs tls: it speaks TLS from the first byte",
            "self.protocol != 'submissions' || has(self.tls)",
            lambda m: m.protocol is not ListenerProtocol.SUBMISSIONS or m.tls is not None,
        ),
        CelCondition(
            "mechanisms belong to submission and submissions: AUTH is never offered to strangers on an mx listener",
            "self.protocol != 'mx' || !has(self.mechanisms)",
            lambda m: m.protocol is not ListenerProtocol.MX or m.mechanisms is None,
        ),
        UniqueBy("mechanisms"),
    )
    name: LabelName = Field(description="Name of the listener, for logs and status.")
    protocol: ListenerProtocol = Field(
        description="mx: mail from strangers for our domains. submission: from our users, STARTTLS. "
        "submissions: the same with TLS from the first byte."
    )
    port: Port = Field(description="Port in the pod or on this machine; commonly mapped from 25, 587 and 465.")
    tls: ListenerTls | None = Field(default=None, description="Without it STARTTLS is not offered.")
    proxy_protocol: ProxyProtocol | None = Field(
        default=None, description="The listener is behind a load balancer that sends PROXY headers."
    )
    mechanisms: Annotated[tuple[ServerMechanism, ...], Field(min_length=1, max_length=7)] | None = Field(
        default=None,
        description="SASL mechanisms to offer. Default: all but CRAM-MD5, which needs clear-text passwords.",
    )


class Postmaster(Part):
    """Who answers for this gateway: gets mail to postmaster@ and owns our own DSNs and reports."""

    account_ref: NamespacedRef = Field(description="The MailAccount; it must exist.")
    mailbox: MailboxPath = Field(default="Postmaster", description="Mailbox of that account, a path with /.")


class GatewayLimitsSpec(Part):
    """Bounds on what strangers may ask for."""

    message_bytes: Octets | None = Field(default=None, description="Largest message.")
    recipients: Annotated[int, Field(ge=100, le=100_000)] | None = Field(
        default=None, description="Recipients a transaction (RFC 5321 4.5.3.1.8: at least 100)."
    )
    connections: Annotated[int, Field(ge=1, le=1_000_000)] | None = Field(
        default=None, description="Connections a process."
    )
    connections_per_ip: Annotated[int, Field(ge=1, le=1_000_000)] | None = Field(
        default=None, alias="connectionsPerIP", description="Connections from one address."
    )
    errors: Annotated[int, Field(ge=1, le=10_000)] | None = Field(
        default=None, description="Bad commands of one session before it is closed."
    )
    idle_seconds: Annotated[int, Field(ge=10, le=3600)] | None = Field(
        default=None, description="Silence before a session is closed (RFC 5321 4.5.3.2.7: at least 300)."
    )
    transaction_seconds: Annotated[int, Field(ge=10, le=86400)] | None = Field(
        default=None, description="Time for the content of one message."
    )
    future_release_seconds: Annotated[int, Field(ge=1, le=366 * 86400)] | None = Field(
        default=None, description="How far ahead a release may be asked for (FUTURERELEASE)."
    )


class MailGatewaySpec(Part):
    """One installation or edge."""

    RULES = (
        UniqueBy("listeners", "name"),
        UniqueBy("listeners", "port"),
    )
    hostname: DomainName = Field(description="Name in greetings, Received and Message-ID; it should resolve to us.")
    listeners: Annotated[tuple[ListenerSpec, ...], Field(min_length=1, max_length=16)] = Field(
        description="Ports to listen on."
    )
    postmaster: Postmaster = Field(description="Who answers for this gateway.")
    require_tls_extension: bool = Field(
        default=True,
        alias="requireTLSExtension",
        description="Announce REQUIRETLS (RFC 8689) over TLS. For a later version: none announces it yet.",
    )
    dmarc_reports: bool = Field(
        default=True, description="Send DMARC aggregate reports. For a later version: none sends them yet."
    )
    tls_reports: bool = Field(default=True, description="Send TLS reports. For a later version: none sends them yet.")
    retry: Retry | None = Field(default=None, description="When to repeat and when to give up.")
    limits: GatewayLimitsSpec | None = Field(default=None, description="Bounds on what strangers may ask for.")
    history_days: Annotated[int, Field(ge=1, le=3650)] | None = Field(
        default=None, description="Days that finished mail stays in the history."
    )
    dsn_full_bytes: Octets | None = Field(
        default=None, description="Larger messages come back in a DSN as headers only."
    )
    allowed_namespaces: AllowedNamespaces = Field(
        default=AllowedNamespaces.model_validate({}),
        description="From which namespaces MailDomains and global MailRoutes may attach.",
    )


class MailGateway(Resource):
    """One installation or edge, and the global level of routing."""

    PLURAL = "mailgateways"
    SHORT = "mgw"
    kind: Literal["MailGateway"]
    spec: MailGatewaySpec
