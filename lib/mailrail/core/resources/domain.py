"""MailDomain: a domain that is ours, what becomes of its mail and which recipients it has (design 4 and 5)."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from mailrail.core.resources.base import (
    AddressOrLocalPart,
    AllowedNamespaces,
    DomainName,
    LabelName,
    LocalPart,
    NamespacedRef,
    Part,
    Resource,
    Retry,
    SecretKeyRef,
    Separators,
)
from mailrail.core.resources.rules import CelCondition, UniqueBy
from mailrail.core.revision.revision import Recipients
from mailrail.core.smtp.address import folded


class TransportDelivery(Part):
    """Mail to the domain goes through this transport; routes are not asked."""

    transport_ref: NamespacedRef = Field(description="The MailTransport; while it is missing, mail is deferred.")


def _form(value: Any) -> str | None:
    if isinstance(value, str):
        return "word"
    return "object" if isinstance(value, dict | TransportDelivery) else None


DeliveryChoice = Annotated[
    Annotated[Literal["mailbox", "none"], Tag("word")] | Annotated[TransportDelivery, Tag("object")],
    Discriminator(
        _form,
        custom_error_type="delivery",
        custom_error_message="write mailbox, none, or {transportRef: {name: ...}}",
    ),
]
"""A word or an object, as design 5 writes it."""


class AliasSpec(Part):
    """A local part that stands for other addresses."""

    local_part: LocalPart = Field(description="The part before the @.")
    to: Annotated[tuple[AddressOrLocalPart, ...], Field(min_length=1, max_length=1000)] = Field(
        description="Addresses, ours or foreign; without @, an address of this domain. "
        "Expanded once, when mail is accepted."
    )


class DkimKeySpec(Part):
    """A key that signs the domain's mail."""

    selector: LabelName = Field(description="Selector in DNS.")
    algorithm: Literal["rsa-sha256", "ed25519-sha256"] = Field(description="Signature algorithm.")
    private_key_secret_ref: SecretKeyRef = Field(description="Secret with the private key, PEM; key private.pem.")


class MailDomainSpec(Part):
    """A domain that is ours."""

    RULES = (
        CelCondition(
            "recipients needs delivery: {transportRef: ...}: a mailbox domain knows its recipients, "
            "and a domain with delivery: none has none",
            None,  # `delivery` is a word or an object, which CEL cannot look into
            lambda m: m.recipients is None or isinstance(m.delivery, TransportDelivery),
        ),
        CelCondition(
            "listed needs delivery: {transportRef: ...} and recipients: listed or verify",
            None,
            lambda m: (
                not m.listed or (isinstance(m.delivery, TransportDelivery) and m.recipients is not Recipients.ANY)
            ),
        ),
        CelCondition(
            "remove catchAll and aliases: a domain with delivery: none takes no mail",
            None,
            lambda m: m.delivery != "none" or (m.catch_all is None and not m.aliases),
        ),
        UniqueBy("aliases", "local_part"),
        CelCondition(
            "aliases: each entry needs a localPart that differs in more than case and Unicode form",
            None,  # CEL cannot compare so
            lambda m: len({folded(a.local_part) for a in m.aliases}) == len({a.local_part for a in m.aliases}),
        ),
        UniqueBy("listed"),
        UniqueBy("dkim", "selector"),
    )
    domain_name: DomainName = Field(description="The domain, in lower-case A-labels.")
    gateway_ref: NamespacedRef = Field(description="The MailGateway that receives and sends for it.")
    delivery: DeliveryChoice = Field(
        description="mailbox: into the built-in mailbox. {transportRef: {name: ...}}: through that transport. "
        "none: we only send for the domain; mail to it is routed like mail to a foreign domain.",
        # A word or an object: a structural schema has no such type, so the compiler alone judges it.
        json_schema_extra={"x-mailrail-open": True},
    )
    recipients: Recipients | None = Field(
        default=None,
        description="Which recipients exist, for a domain with a delivery transport. "
        "listed (default): accounts, aliases and `listed`. any: every address. verify: the next hop is asked.",
    )
    listed: Annotated[tuple[LocalPart, ...], Field(max_length=10_000)] = Field(
        default=(), description="Further local parts that exist behind the delivery transport."
    )
    aliases: Annotated[tuple[AliasSpec, ...], Field(max_length=5_000)] = Field(
        default=(), description="Local parts that stand for other addresses."
    )
    separators: Separators = Field(
        default="+",
        description="Characters at which a local part is cut for the lookup: with +, alice+x goes to alice. "
        "Empty: none.",
    )
    catch_all: AddressOrLocalPart | None = Field(
        default=None, description="Address that receives the mail for local parts that do not exist."
    )
    retry: Retry | None = Field(
        default=None, description="Retry schedule for mail from this domain, instead of the gateway's."
    )
    dkim: Annotated[tuple[DkimKeySpec, ...], Field(max_length=8)] = Field(
        default=(),
        description="Keys that sign the domain's mail. Reserved for a later version: mail is not signed yet.",
    )
    allowed_namespaces: AllowedNamespaces = Field(
        default=AllowedNamespaces.model_validate({}),
        description="From which namespaces MailAccounts and MailRoutes may attach.",
    )


class MailDomain(Resource):
    """A domain that is ours."""

    PLURAL = "maildomains"
    SHORT = "mdom"
    kind: Literal["MailDomain"]
    spec: MailDomainSpec
