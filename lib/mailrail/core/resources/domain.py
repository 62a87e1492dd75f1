"""MailDomain: a domain that is ours, what becomes of its mail and which recipients it has (design 4 and 5)."""

from typing import Annotated, Final, Literal

from pydantic import Field

from mailrail.core.mtasts.policy import MAX_AGE_LIMIT
from mailrail.core.resources.attach import DomainAttach
from mailrail.core.resources.authentication import DomainAuthenticationSpec
from mailrail.core.resources.base import (
    AddressOrLocalPart,
    DomainName,
    LocalPart,
    MxPattern,
    NamespacedRef,
    Part,
    PrivateKeySecretRef,
    Resource,
    Retry,
    Selector,
    Separators,
)
from mailrail.core.resources.rules import CelCondition, ExactlyOneOf, Immutable, UniqueBy
from mailrail.core.resources.security import SecuritySpec
from mailrail.core.smtp.address import folded

ALIAS_TARGETS_LIMIT: Final = 20_000
"""Addresses that all aliases of a domain stand for: etcd stores no object with much more."""


class MailboxDeliverySpec(Part):
    """Delivery into the built-in mailbox. It has no fields yet."""


class TransportDeliverySpec(Part):
    """Delivery by one transport; routes are not asked."""

    RULES = (
        CelCondition(
            "remove listed: with recipients Any every address exists",
            "self.recipients != 'Any' || !has(self.listed) || self.listed.size() == 0",
            lambda m: m.recipients != "Any" or not m.listed,
        ),
        UniqueBy("listed"),
    )
    ref: NamespacedRef = Field(description="The MailTransport; while it is missing, mail is deferred.")
    recipients: Literal["Listed", "Any", "Verify"] = Field(
        default="Listed",
        description="Which recipients exist. Listed: accounts, aliases and `listed`. Any: every address. "
        "Verify: the next hop is asked about those that are not listed.",
    )
    listed: Annotated[tuple[LocalPart, ...], Field(max_length=4_000)] = Field(
        default=(), description="Further local parts that exist. Default: none."
    )


class NoDeliverySpec(Part):
    """We only send for the domain. It has no fields yet."""


class DeliverySpec(Part):
    """What becomes of mail to the domain: exactly one member."""

    RULES = (ExactlyOneOf(("mailbox", "transport", "none")),)
    mailbox: MailboxDeliverySpec | None = Field(default=None, description="{} delivers into the built-in mailbox.")
    transport: TransportDeliverySpec | None = Field(
        default=None, description="Mail to the domain goes through a transport."
    )
    none: NoDeliverySpec | None = Field(
        default=None,
        description="{}: we only send for the domain; mail to it is routed like mail to a foreign domain.",
    )


class AliasSpec(Part):
    """A local part that stands for other addresses."""

    local_part: LocalPart = Field(description="The part before the @.")
    to: Annotated[tuple[AddressOrLocalPart, ...], Field(min_length=1, max_length=100)] = Field(
        description="Addresses, ours or foreign; without @, an address of this domain. "
        "Expanded once, when mail is accepted."
    )


class MtaStsSpec(Part):
    """The MTA-STS policy of the domain (RFC 8461): what those who send to it demand of the servers that take it."""

    RULES = (UniqueBy("mx"),)
    mode: Literal["Enforce", "Testing", "Disabled"] = Field(
        description="Enforce: nobody who knows the policy delivers without verified TLS. Testing: they deliver, and "
        "report what would have failed. Disabled: the policy says that there is none, for those who still know an "
        "older one; leave it so until that one has ended."
    )
    max_age_seconds: Annotated[int, Field(ge=3600, le=MAX_AGE_LIMIT)] | None = Field(
        default=None,
        description="How long others keep the policy. Default: one week (604800); with Disabled one day (86400).",
    )
    mx: Annotated[tuple[MxPattern, ...], Field(max_length=64)] = Field(
        default=(),
        description="Hosts that take mail for the domain, as its MX records name them; *.example.org stands for each "
        "host with one label more. Default: the host name of the gateway.",
    )


class DkimSelectorSpec(Part):
    """A DKIM key of the domain."""

    name: Selector = Field(description="The selector: the record of the key is at NAME._domainkey.DOMAIN.")
    private_key_secret_ref: PrivateKeySecretRef = Field(
        description="Secret with the private key: RSA with 2048 to 4096 bits, or Ed25519."
    )
    sign: Literal["Auto", "Always", "Never"] = Field(
        default="Auto",
        description="Auto: of several keys of one type the last in the list signs whose record has been in the DNS for "
        "two days; until one has, the first that is published, or else the first. Always: it signs at once. Never: it "
        "does not sign, and its record stays published. Default: Auto.",
    )


class DkimSpec(Part):
    """How mail from the domain is signed with DKIM (RFC 6376)."""

    RULES = (UniqueBy("selectors", "name"), UniqueBy("also_sign_as"))
    selectors: Annotated[tuple[DkimSelectorSpec, ...], Field(max_length=8)] = Field(
        default=(),
        description="Keys, the oldest first: mail gets a signature by RSA, and one by Ed25519 beside it where there is "
        "such a key. Default: none, and mail is not signed.",
    )
    also_sign_as: Annotated[tuple[NamespacedRef, ...], Field(max_length=2)] = Field(
        default=(),
        description="MailDomains whose keys sign, too: that of a provider, for instance, with feedback loops of its "
        "own. One of another namespace must let this one attach (attach[].kinds: MailDomain). Default: none.",
    )


class ReportsSpec(Part):
    """Addresses of the domain that take the reports of others: on DMARC (RFC 9990) and on TLS (RFC 8460)."""

    dmarc: LocalPart = Field(
        default="dmarc-reports",
        description="The part before the @ of the address for DMARC reports, for the `rua` of the record at _dmarc.",
    )
    tls: LocalPart = Field(
        default="tls-reports",
        description="The part before the @ of the address for TLS reports, for the `rua` of the record at _smtp._tls.",
    )


class MailDomainSpec(Part):
    """A domain that is ours."""

    RULES = (
        CelCondition(
            "remove catchAll and aliases: a domain with delivery none takes no mail",
            "!has(self.delivery.none) || !has(self.catchAll) && (!has(self.aliases) || self.aliases.size() == 0)",
            lambda m: m.delivery.none is None or (m.catch_all is None and not m.aliases),
        ),
        UniqueBy("aliases", "local_part"),
        CelCondition(
            f"aliases: all together stand for at most {ALIAS_TARGETS_LIMIT} addresses",
            f"!has(self.aliases) || self.aliases.map(a, a.to.size()).sum() <= {ALIAS_TARGETS_LIMIT}",
            lambda m: sum(len(a.to) for a in m.aliases) <= ALIAS_TARGETS_LIMIT,
        ),
        CelCondition(
            "aliases: each entry needs a localPart that differs in more than case and Unicode form",
            None,  # CEL cannot compare so
            lambda m: len({folded(a.local_part) for a in m.aliases}) == len({a.local_part for a in m.aliases}),
        ),
        UniqueBy("attach", "name"),
        Immutable("domain_name", "make a MailDomain with the other name, then delete this one"),
    )
    domain_name: DomainName = Field(description="The domain, in lower-case A-labels. It cannot be changed.")
    gateway_ref: NamespacedRef = Field(description="The MailGateway that receives and sends for it.")
    delivery: DeliverySpec = Field(description="What becomes of mail to the domain.")
    aliases: Annotated[tuple[AliasSpec, ...], Field(max_length=1_000)] = Field(
        default=(), description="Local parts that stand for other addresses. Default: none."
    )
    separators: Separators = Field(
        default="+",
        description="Characters at which a local part is cut for the lookup: with +, alice+x goes to alice. "
        "Empty: none.",
    )
    catch_all: AddressOrLocalPart | None = Field(
        default=None,
        description="Address that receives the mail for local parts that do not exist. Default: it is refused.",
    )
    retry: Retry | None = Field(
        default=None, description="Retry schedule for mail from this domain. Default: the gateway's."
    )
    mta_sts: MtaStsSpec | None = Field(
        default=None,
        description="The MTA-STS policy that the policy service serves for the domain. Default: none is served.",
    )
    dkim: DkimSpec | None = Field(
        default=None, description="How mail from the domain is signed. Default: it is not signed."
    )
    reports: ReportsSpec | None = Field(
        default=None,
        description="Addresses of the domain that take the reports of others. Whatever becomes of other mail to the "
        "domain, theirs goes into the mailbox reports below the postmaster's, and is read there. They come before "
        "accounts and aliases. {}: dmarc-reports and tls-reports. Default: none.",
    )
    security: SecuritySpec | None = Field(
        default=None,
        description="The least security of mail that is submitted with a sender of this domain. "
        "Default: what the gateway demands.",
    )
    authentication: DomainAuthenticationSpec | None = Field(
        default=None,
        description="What is done about who sent the mail of strangers to the domain. Default: as the gateway says.",
    )
    attach: Annotated[tuple[DomainAttach, ...], Field(min_length=1, max_length=64)] | None = Field(
        default=None,
        description="Which MailAccounts and MailRoutes may attach, and which MailDomains may sign as this one, too: "
        "one entry must permit all that is asked. "
        "Default: those of the domain's namespace. A list is all there is: the own namespace is written as Same.",
    )


class MailDomain(Resource):
    """A domain that is ours."""

    PLURAL = "maildomains"
    SHORT = "mdom"
    kind: Literal["MailDomain"]
    spec: MailDomainSpec
