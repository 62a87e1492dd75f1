"""MailTransport: one way to deliver mail (design 5). Exactly one of its seven members is set."""

from ipaddress import ip_address
from typing import Annotated, Final, Literal

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from mailrail.core.resources.attach import TransportAttach
from mailrail.core.resources.base import (
    DomainName,
    HostName,
    HostPort,
    IpAddress,
    Login,
    LoginSecretRef,
    Part,
    Port,
    PrintableAscii,
    Resource,
    SaslMechanism,
    TransportTls,
    compiled_default,
)
from mailrail.core.resources.rules import CelCondition, ExactlyOneOf, UniqueBy
from mailrail.core.resources.security import HOSTS_IN_CLEAR, SecuritySpec
from mailrail.core.revision.revision import TransportLimits

MEMBERS: Final = ("direct", "smtp", "submission", "submissions", "socks", "lmtp", "fail")
"""Of the union, as documents spell them."""

Family = Literal["IPv4", "IPv6"]


def _addresses(values: tuple[str, ...]) -> tuple[str, ...]:
    for value in values:
        try:
            ip_address(value)
        except ValueError as error:
            raise PydanticCustomError("address", "{value} is not an IP address", {"value": value}) from error
    return values


class DirectSpec(Part):
    """Delivery to the MX of the recipient domain."""

    RULES = (UniqueBy("ip_families"), UniqueBy("source_addresses"))
    ip_families: Annotated[tuple[Family, ...], Field(min_length=1, max_length=2)] = Field(
        default=("IPv4", "IPv6"), description="Address families to dial."
    )
    source_addresses: Annotated[tuple[IpAddress, ...], Field(max_length=2)] = Field(
        default=(),
        description="Local addresses to dial from, at most one of each family. Default: the system's choice.",
    )

    @field_validator("source_addresses")
    @classmethod
    def _one_a_family(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        if len({ip_address(v).version for v in _addresses(values)}) != len(values):
            raise PydanticCustomError("families", "give at most one source address of each family")
        return values


class AuthSpec(Part):
    """Credentials for the next hop."""

    RULES = (UniqueBy("mechanisms"),)
    secret_ref: LoginSecretRef = Field(description="Secret of type kubernetes.io/basic-auth, for instance.")
    username: Login | None = Field(default=None, description="User name. Default: that in the Secret.")
    mechanisms: Annotated[tuple[SaslMechanism, ...], Field(min_length=1, max_length=7)] | None = Field(
        default=None,
        description="SASL mechanisms in order of preference. Default: the strongest that the server offers.",
    )


class SmtpSpec(Part):
    """A smarthost without authentication."""

    host: HostName = Field(description="Host to dial; MX records are not looked up.")
    port: Port = Field(default=25, description="Port.")
    tls: TransportTls | None = Field(default=None, description="TLS with the smarthost. Default: mode Opportunistic.")


class SubmissionSpec(Part):
    """A submission server: STARTTLS with a verified certificate."""

    RULES = (
        CelCondition(
            "remove tls.mode or set it to Verified: credentials are never sent to a host whose name is not verified",
            "!has(self.tls) || !has(self.tls.mode) || self.tls.mode == 'Verified'",
            lambda m: m.tls is None or m.tls.mode in (None, "Verified"),
        ),
    )
    host: HostName = Field(description="Host to dial; its certificate must be valid for this name.")
    port: Port = Field(default=587, description="Port.")
    auth: AuthSpec | None = Field(default=None, description="Credentials. Default: AUTH is not used.")
    tls: TransportTls | None = Field(
        default=None,
        description="Further certificates to trust; the mode is always Verified. Default: the system's authorities.",
    )


class SubmissionsSpec(SubmissionSpec):
    """A submission server with TLS from the first byte (RFC 8314)."""

    port: Port = Field(default=465, description="Port.")


class SocksAuth(Part):
    """User name and password for the proxy (RFC 1929)."""

    secret_ref: LoginSecretRef = Field(description="Secret with user name and password, each up to 255 octets.")


class SocksSpec(Part):
    """Delivery to the MX of the recipient domain through a SOCKS5 proxy."""

    RULES = (UniqueBy("ip_families"), UniqueBy("remote_ips", alias="remoteIPs"))
    address: HostPort = Field(description="Address and port of the proxy.")
    remote_ips: Annotated[tuple[IpAddress, ...], Field(min_length=1, max_length=16)] = Field(
        alias="remoteIPs", description="Addresses that the proxy connects from; SPF must list them."
    )
    remote_hostname: DomainName = Field(description="Name for EHLO; it should resolve to remoteIPs.")
    ip_families: Annotated[tuple[Family, ...], Field(min_length=1, max_length=2)] = Field(
        default=("IPv4", "IPv6"), description="Address families to dial through the proxy."
    )
    auth: SocksAuth | None = Field(default=None, description="Credentials for the proxy. Default: none.")

    @field_validator("remote_ips")
    @classmethod
    def _are_addresses(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        return _addresses(values)

    @field_validator("address")
    @classmethod
    def _port_in_range(cls, value: str) -> str:
        if not 1 <= int(value.rpartition(":")[2]) <= 65535:
            raise PydanticCustomError("port", "the port must be between 1 and 65535")
        return value


class LmtpSpec(Part):
    """A mail store that speaks LMTP (RFC 2033)."""

    host: HostName = Field(description="Host to dial.")
    port: Port = Field(default=24, description="Port.")
    tls: TransportTls | None = Field(default=None, description="TLS with the mail store. Default: mode Disabled.")


class FailSpec(Part):
    """Delivery fails on purpose: a code 4yz is retried, a code 5yz is final."""

    code: Annotated[int, Field(ge=400, le=599)] = Field(default=554, description="SMTP code, 400 to 599.")
    text: PrintableAscii = Field(
        default="Delivery is blocked by configuration", description="Text of the reply, as it appears in the DSN."
    )


class RateSpec(Part):
    """So many messages in so many seconds, on average."""

    messages: Annotated[int, Field(ge=1, le=1_000_000)] = Field(description="Messages.")
    per_seconds: Annotated[int, Field(ge=1, le=86_400)] = Field(description="Seconds.")


class TransportLimitsSpec(Part):
    """Limits that hold across all replicas."""

    max_connections: Annotated[int, Field(ge=1, le=100_000)] | None = Field(
        default=None, description="Open connections. Default: no limit."
    )
    max_connections_per_destination: Annotated[int, Field(ge=1, le=100_000)] | None = Field(
        default=None,
        description="Open connections to one recipient domain (direct and socks). Default: no limit.",
    )
    rate: RateSpec | None = Field(default=None, description="Messages in a time, on average. Default: no limit.")
    recipients_per_message: Annotated[int, Field(ge=1, le=10_000)] | None = Field(
        default=None,
        description="Recipients in one transaction.",
        json_schema_extra=compiled_default(TransportLimits().recipients_per_message),
    )


class SignedMailSpec(Part):
    """What becomes of mail that others signed, at a hop that lacks what its content needs (8BITMIME, BINARYMIME)."""

    mode: Literal["Preserve", "Reencode"] = Field(
        description="Preserve: the message stays as it is, and fails where no host takes it so. Reencode: it is "
        "re-encoded as mail without a signature is, which breaks the DKIM-Signature."
    )


class MailTransportSpec(Part):
    """How to deliver: exactly one member."""

    RULES = (
        ExactlyOneOf(MEMBERS),
        HOSTS_IN_CLEAR,
        UniqueBy("attach", "name"),
    )
    direct: DirectSpec | None = Field(default=None, description="Delivery to the MX of the recipient domain.")
    smtp: SmtpSpec | None = Field(default=None, description="A smarthost without authentication.")
    submission: SubmissionSpec | None = Field(default=None, description="A submission server with STARTTLS.")
    submissions: SubmissionsSpec | None = Field(
        default=None, description="A submission server with TLS from the first byte."
    )
    socks: SocksSpec | None = Field(default=None, description="Delivery to the MX through a SOCKS5 proxy.")
    lmtp: LmtpSpec | None = Field(default=None, description="A mail store that speaks LMTP.")
    fail: FailSpec | None = Field(default=None, description="Delivery fails on purpose.")
    limits: TransportLimitsSpec | None = Field(
        default=None, description="Limits that hold across all replicas. Default: as each field says."
    )
    signed_mail: SignedMailSpec | None = Field(
        default=None,
        description="Mail that others signed, at a hop that lacks what its content needs. Default: mode Preserve.",
    )
    security: SecuritySpec | None = Field(
        default=None,
        description="The least security of all mail that goes this way, besides what tls says of a host that it names. "
        "Default: what others demand.",
    )
    attach: Annotated[tuple[TransportAttach, ...], Field(min_length=1, max_length=64)] | None = Field(
        default=None,
        description="Which MailRoutes and MailDomains may name it. Default: those of the transport's namespace. "
        "A list is all there is: the own namespace is written as Same.",
    )


class MailTransport(Resource):
    """How to deliver."""

    PLURAL = "mailtransports"
    SHORT = "mtrans"
    kind: Literal["MailTransport"]
    spec: MailTransportSpec
