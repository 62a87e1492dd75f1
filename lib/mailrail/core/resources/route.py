"""MailRoute: ordered rules that name the transport of matching mail, attached to an account, a domain or a gateway."""

from typing import Annotated, Final, Literal

from pydantic import Field

from mailrail.core.resources.base import DomainPattern, LabelName, NamespacedRef, Part, Priority, Resource
from mailrail.core.resources.rules import CelCondition, ExactlyOneOf, UniqueBy
from mailrail.core.resources.security import RequireSpec

DOMAINS_LIMIT: Final = 4_000
"""Domain patterns of all rules of one route: etcd stores no object with much more."""


class ParentRef(NamespacedRef):
    """What the route attaches to; the kind decides the level."""

    kind: Literal["MailAccount", "MailDomain", "MailGateway"] = Field(
        description="MailAccount: mail that this account submits. MailDomain: mail submitted with a sender of this "
        "domain. MailGateway: all mail."
    )


class DirectRoute(Part):
    """Delivery to the MX of the recipient domain. It has no fields yet."""


class MatchSpec(Part):
    """All set fields must match; an empty list matches anything."""

    to_domains: Annotated[tuple[DomainPattern, ...], Field(max_length=200)] = Field(
        default=(), description="Recipient domains. Default: any."
    )
    from_domains: Annotated[tuple[DomainPattern, ...], Field(max_length=200)] = Field(
        default=(), description="Sender domains, as in MAIL FROM; header From does not count. Default: any."
    )
    # Rules are an atomic list: a default stored inside makes what a client applied differ from what is stored.
    minimum_attempts: Annotated[int, Field(ge=0, le=1000)] | None = Field(
        default=None, description="Attempts already made: 3 matches from the 4th attempt on. Default: 0."
    )


class RuleSpec(Part):
    """Where matching mail goes."""

    RULES = (ExactlyOneOf(("transport_ref", "direct")),)
    name: LabelName | None = Field(default=None, description="Name in explain, logs and status. Default: its position.")
    matches: Annotated[tuple[MatchSpec, ...], Field(max_length=64)] = Field(
        default=(), description="One of these must match. Default: any mail."
    )
    transport_ref: NamespacedRef | None = Field(
        default=None,
        description="The MailTransport. While it is missing, matching mail is deferred; "
        "it never goes to the next rule.",
    )
    direct: DirectRoute | None = Field(default=None, description="{} delivers to the MX, without a transport.")
    require: RequireSpec | None = Field(
        default=None, description="What is demanded of the way of matching mail. Default: what others demand."
    )


class MailRouteSpec(Part):
    """Ordered rules."""

    RULES = (
        UniqueBy("rules", "name"),
        UniqueBy("parent_refs"),
        CelCondition(
            f"rules: all together name at most {DOMAINS_LIMIT} domains",
            "self.rules.map(r, has(r.matches) ? r.matches.map(m, (has(m.toDomains) ? m.toDomains.size() : 0) "
            f"+ (has(m.fromDomains) ? m.fromDomains.size() : 0)).sum() : 0).sum() <= {DOMAINS_LIMIT}",
            lambda m: sum(len(x.to_domains) + len(x.from_domains) for r in m.rules for x in r.matches) <= DOMAINS_LIMIT,
        ),
    )
    parent_refs: Annotated[tuple[ParentRef, ...], Field(min_length=1, max_length=16)] = Field(
        description="The accounts, domains or gateways whose mail the rules apply to."
    )
    priority: Priority = Field(
        default=1000,
        description="Among the routes of one parent the lowest is asked first; equal ones in order of namespace/name.",
    )
    rules: Annotated[tuple[RuleSpec, ...], Field(min_length=1, max_length=64)] = Field(
        description="Rules in the order in which they are asked; the first that matches decides."
    )


class MailRoute(Resource):
    """Ordered rules that name the transport of matching mail."""

    PLURAL = "mailroutes"
    SHORT = "mroute"
    kind: Literal["MailRoute"]
    spec: MailRouteSpec
