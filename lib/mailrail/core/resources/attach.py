"""`attach[]`: who may refer to an object, and with which powers.

One list on MailGateway, MailDomain and MailTransport. Each entry names kinds and namespaces, and where it gives power
over the mail of others, it says how much: which names may be claimed, and which routes are asked first all the same.
"""

from typing import Annotated, Final, Literal

from pydantic import Field, StringConstraints
from pydantic.alias_generators import to_camel

from mailrail.core.resources.base import DomainName, LabelName, Part, Priority, text_field
from mailrail.core.resources.rules import CelCondition, UniqueBy

LabelKey = Annotated[
    str,
    text_field(
        r"^([a-z0-9]([-.a-z0-9]*[a-z0-9])?/)?[A-Za-z0-9]([-._A-Za-z0-9]*[A-Za-z0-9])?$",
        "the name of a label, like team or example.org/team",
        317,
    ),
]
"""A label's name, with or without a prefix."""
LabelValue = Annotated[str, StringConstraints(max_length=63)]
ClaimableName = Annotated[
    str,
    text_field(
        rf"^(\.|\.?({DomainName.__metadata__[0].pattern[1:-1]}))$",
        "example.org for that name, .example.org for it and every name below it, or . for every name",
        254,
    ),
]
"""Which domain names may be claimed."""


class LabelRequirement(Part):
    """A condition on one label, as Kubernetes has it."""

    RULES = (
        CelCondition(
            "set values if operator is In or NotIn, and only then",
            "(self.operator in ['In', 'NotIn']) == (has(self.values) && self.values.size() > 0)",
            lambda m: (m.operator in ("In", "NotIn")) == bool(m.values),
        ),
    )
    key: LabelKey = Field(description="Name of the label.")
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"] = Field(
        description="In: the label has one of the values. NotIn: it has none of them, or is not there. Exists: it is "
        "there. DoesNotExist: it is not."
    )
    values: Annotated[tuple[LabelValue, ...], Field(max_length=64)] = Field(
        default=(), description="Values for In and NotIn. Default: none."
    )


class LabelSelector(Part):
    """Which namespaces, by their labels: all conditions must hold. An empty selector selects every namespace."""

    match_labels: Annotated[
        dict[Annotated[str, StringConstraints(min_length=1, max_length=317)], LabelValue], Field(max_length=16)
    ] = Field(default={}, description="Labels that a namespace must have. Default: none.")
    match_expressions: Annotated[tuple[LabelRequirement, ...], Field(max_length=16)] = Field(
        default=(), description="Conditions on labels. Default: none."
    )


class Namespaces(Part):
    """Whose objects an entry is about."""

    RULES = (
        CelCondition(
            "set selector if from is Selector, and only then",
            "has(self.selector) == (self.from == 'Selector')",
            lambda m: (m.selector is not None) == (m.from_ == "Selector"),
        ),
    )
    from_: Literal["Same", "All", "Selector"] = Field(
        alias="from", description="Same: the object's own namespace. All: every namespace. Selector: those selected."
    )
    selector: LabelSelector | None = Field(
        default=None, description="The namespaces, if from is Selector. Default: none."
    )


def _powers(field: str, kind: str, what: str) -> tuple[CelCondition, CelCondition]:
    """`field` says how much power objects of that kind have: it is needed where they are others', and nowhere else."""
    name = to_camel(field)
    return (
        CelCondition(
            f"set {name}: an entry that lets other namespaces attach a {kind} says {what}",
            f"!('{kind}' in self.kinds) || self.namespaces.from == 'Same' || has(self.{name})",
            lambda m: kind not in m.kinds or m.namespaces.from_ == "Same" or getattr(m, field) is not None,
        ),
        CelCondition(
            f"remove {name}: it is about {kind}, which kinds does not name",
            f"'{kind}' in self.kinds || !has(self.{name})",
            lambda m: kind in m.kinds or getattr(m, field) is None,
        ),
    )


_PRIORITY_RULES: Final = _powers("minimum_priority", "MailRoute", "before which priority none of theirs is asked")
_NAME_RULES: Final = _powers("domain_names", "MailDomain", "which names they may claim")


class GatewayAttach(Part):
    """Which MailDomains and MailRoutes may attach to a gateway."""

    RULES = (UniqueBy("kinds"), UniqueBy("domain_names"), *_NAME_RULES, *_PRIORITY_RULES)
    name: LabelName = Field(description="Name of the entry.")
    kinds: Annotated[tuple[Literal["MailDomain", "MailRoute"], ...], Field(min_length=1, max_length=2)] = Field(
        description="Kinds that the entry lets attach."
    )
    namespaces: Namespaces = Field(description="Whose objects.")
    domain_names: Annotated[tuple[ClaimableName, ...], Field(min_length=1, max_length=256)] | None = Field(
        default=None,
        description="Names that these MailDomains may have. Required with MailDomain and other namespaces. "
        "Default: every name.",
    )
    minimum_priority: Priority | None = Field(
        default=None,
        description="Lowest priority that these MailRoutes may have. Required with MailRoute and other namespaces. "
        "Default: 0.",
    )


class DomainAttach(Part):
    """Which MailAccounts and MailRoutes may attach to a domain, and which MailDomains may sign as it, too."""

    RULES = (UniqueBy("kinds"), *_PRIORITY_RULES)
    name: LabelName = Field(description="Name of the entry.")
    kinds: Annotated[
        tuple[Literal["MailAccount", "MailRoute", "MailDomain"], ...], Field(min_length=1, max_length=3)
    ] = Field(description="Kinds that the entry lets attach. MailDomain: those that name this one in dkim.alsoSignAs.")
    namespaces: Namespaces = Field(description="Whose objects.")
    minimum_priority: Priority | None = Field(
        default=None,
        description="Lowest priority that these MailRoutes may have. Required with MailRoute and other namespaces. "
        "Default: 0.",
    )


class TransportAttach(Part):
    """Which MailDomains and MailRoutes may name a transport."""

    RULES = (UniqueBy("kinds"),)
    name: LabelName = Field(description="Name of the entry.")
    kinds: Annotated[tuple[Literal["MailDomain", "MailRoute"], ...], Field(min_length=1, max_length=2)] = Field(
        description="Kinds that the entry lets name the transport."
    )
    namespaces: Namespaces = Field(description="Whose objects.")


AnyAttach = GatewayAttach | DomainAttach | TransportAttach
"""An entry of any kind's list."""
