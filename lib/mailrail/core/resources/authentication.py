"""What is done about who sent a message: `authentication` of MailGateway and MailDomain (standards 5 to 7)."""

from ipaddress import ip_network
from typing import Annotated, Literal

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from mailrail.core.resources.base import DomainName, Part, compiled_default, text_field
from mailrail.core.resources.rules import UniqueBy

NetworkOrDomain = Annotated[
    str,
    text_field(
        rf"^([0-9a-fA-F:.]{{2,45}}/[0-9]{{1,3}}|{DomainName.__metadata__[0].pattern[1:-1]})$",
        "a network, like 192.0.2.0/24 or 2001:db8::/32, or a domain name in lower-case A-labels, like example.org",
        253,
    ),
]
"""A network or a domain."""
Mode = Literal["Enforce", "Monitor", "Disabled"]
_MODES = (
    "Enforce: mail is refused, or set apart in the mailbox Junk, where the domain of its author asks for it (DMARC), "
    "or that of its sender where the author's says nothing (SPF). Monitor: all is checked and written into "
    "Authentication-Results, and changes nothing. Disabled: nothing is checked."
)


class AuthenticationSpec(Part):
    """What is done about who sent the mail of clients that do not log in."""

    RULES = (UniqueBy("trusted_forwarders"), UniqueBy("trusted_sealers"), UniqueBy("refused_spf", alias="refusedSPF"))
    mode: Mode | None = Field(
        default=None,
        description=f"{_MODES} Clients that log in, and this machine's own programs, are not checked.",
        json_schema_extra=compiled_default("Enforce"),
    )
    trusted_forwarders: Annotated[tuple[NetworkOrDomain, ...], Field(max_length=64)] = Field(
        default=(),
        description="Who passes on mail of others: networks of clients, and domains that SPF or DKIM proves, with all "
        "below them. No policy refuses what they bring. Default: none.",
    )
    trusted_sealers: Annotated[tuple[DomainName, ...], Field(max_length=64)] = Field(
        default=(),
        description="Domains whose ARC seals are believed: where one of them saw DMARC pass, no policy of it refuses "
        "the message. Default: none.",
    )
    refused_spf: Annotated[tuple[Literal["Fail", "TempError", "PermError"], ...], Field(max_length=3)] | None = Field(
        default=None,
        alias="refusedSPF",
        description="Results of SPF for which mail is refused where the author's domain has no DMARC record. TempError "
        "answers 451. An empty list: SPF alone refuses nothing.",
        json_schema_extra=compiled_default(["Fail"]),
    )
    when_unanswered: Literal["Accept", "Defer"] | None = Field(
        default=None,
        description="What becomes of mail while the DNS does not answer what DMARC has to know. Defer: the client is "
        "asked to come again (451).",
        json_schema_extra=compiled_default("Accept"),
    )
    discovery_method: Literal["TreeWalk", "PublicSuffixList"] | None = Field(
        default=None,
        description="How it is found where an organization begins. TreeWalk: the DNS is asked (RFC 9989). "
        "PublicSuffixList: by the list of public suffixes that comes with Mailrail (RFC 7489).",
        json_schema_extra=compiled_default("TreeWalk"),
    )

    @field_validator("trusted_forwarders")
    @classmethod
    def _are_networks(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        for value in values:
            if "/" not in value:
                continue
            try:
                ip_network(value, strict=False)
            except ValueError as error:
                raise PydanticCustomError(
                    "network", "{value} is not a network, like 192.0.2.0/24 or 2001:db8::/32", {"value": value}
                ) from error
        return values


class DomainAuthenticationSpec(Part):
    """What is done about who sent mail to the domain."""

    mode: Mode = Field(
        description=f"{_MODES} A message to several domains has the strictest of their modes.",
    )
