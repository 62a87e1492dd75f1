"""What routing is asked and what it answers (design 4, Where to and Route).

A `RouteDecision` carries its reason, so that the log, `explain` and a test all read the same words.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from mailrail.core.revision.revision import NO_FLOOR, ObjectRef, Security, Transport
from mailrail.core.route.site import MAILBOX, Site, site_of, site_of_missing


class Via(StrEnum):
    """How a recipient is to be delivered at this attempt."""

    TRANSPORT = "transport"  # by `Decision.transport`
    DIRECT = "direct"  # to the MX of the recipient domain
    MAILBOX = "mailbox"  # into the built-in mailbox
    MISSING = "missing"  # deferred: what should deliver it is not there (4.3.5, never a bounce)


class DecisionLevel(StrEnum):
    """Who decided. The values are in the order in which they are asked."""

    MESSAGE = "message"  # transport set on this message by an administrator
    DELIVERY = "delivery"  # the recipient's domain is ours and says where its mail goes
    ACCOUNT = "account"
    DOMAIN = "domain"
    GLOBAL = "global"
    DEFAULT = "default"  # no rule matched


@dataclass(frozen=True, slots=True)
class RuleRef:
    """One rule of a MailRoute, as people name it."""

    route: ObjectRef
    index: int
    """Within the route, from 0."""
    name: str

    def __str__(self) -> str:
        return f"{self.route} rule {self.name}"


@dataclass(frozen=True, slots=True)
class LackingTransport:
    """A transport whose next hop lacks an SMTP extension that the message cannot do without (SOUT-18c).

    That is known of one message, from an attempt that was made.
    """

    transport: ObjectRef | None
    """None: direct delivery."""
    digest: str
    """`Transport.digest` as it was tried; empty for direct delivery. A transport that changed may be tried again."""
    extension: str
    """Its EHLO keyword."""

    def __str__(self) -> str:
        name = "direct delivery" if self.transport is None else str(self.transport)
        return f"{name}, whose next hop lacks {self.extension}, which this message needs"


@dataclass(frozen=True, slots=True)
class RoutingFacts:
    """The facts of a recipient that routing may look at. Domains are lower-case A-labels.

    The header From is deliberately absent: it never decides.
    """

    recipient_domain: str
    """Domain of the recipient, or an address literal in brackets."""
    sender_domain: str = ""
    """Domain of MAIL FROM; empty for a null sender."""
    account: ObjectRef | None = None
    """Authenticated account; for our own DSNs and reports the postmaster account; None for mail from strangers."""
    ours: bool = False
    """Submitted with authentication, or made by us: only then the MAIL FROM domain's routes are asked."""
    local: bool = False
    """Accepted for delivery to a domain of ours. Should that domain be gone, the mail waits, never to go to the MX."""
    transport: ObjectRef | None = None
    """Set on this message by an administrator; overrides everything."""
    direct: bool = False
    """An administrator set direct delivery on this message."""
    gateway: ObjectRef | None = None
    """The installation that accepted the message; None = the only one of the revision."""
    reports: bool = False
    """Of an address for reports, which the built-in mailbox takes, however its domain delivers."""
    lacking: tuple[LackingTransport, ...] = ()
    """Transports that were tried and cannot take the message: their rules are passed over (SOUT-18c)."""


@dataclass(frozen=True, slots=True)
class RouteDecision:
    """Where a recipient goes at this attempt, who said so and why."""

    via: Via
    level: DecisionLevel
    reason: str
    transport: Transport | None = None
    rule: RuleRef | None = None
    require: Security = NO_FLOOR
    """What the rule demands (decision 18)."""
    missing: ObjectRef | None = None
    """The transport that is not there, with `Via.MISSING`; None when a domain of ours is what is missing."""

    def site(self, recipient_domain: str) -> Site:
        """The site under whose window and backoff the attempt falls (SHD-03)."""
        if self.via is Via.MAILBOX:
            return MAILBOX
        if self.via is Via.MISSING:
            return site_of_missing(self.missing, recipient_domain)
        return site_of(self.transport, recipient_domain)


def lacking_of(decision: RouteDecision, envelope: RoutingFacts) -> LackingTransport | None:
    """What is known against a decision: its transport, as it is now, was tried and lacks an extension (SOUT-18c)."""
    if decision.via not in (Via.TRANSPORT, Via.DIRECT):
        return None
    transport = decision.transport
    ref = transport.ref if transport is not None else None
    for tried in envelope.lacking:
        if tried.transport == ref and (transport is None or transport.digest == tried.digest):
            return tried
    return None


def after(tried: Sequence[LackingTransport], decision: RouteDecision) -> RouteDecision:
    """The decision of a rule that is next because those before it cannot take the message (SOUT-18c)."""
    if not tried:
        return decision
    return replace(decision, reason=f"{decision.reason}; tried before: {'; '.join(map(str, dict.fromkeys(tried)))}")


REPORTS = RouteDecision(
    Via.MAILBOX, DecisionLevel.DELIVERY, "an address for reports: they go into the built-in mailbox and are read there"
)
"""Where mail to a report address of ours goes."""
DIRECT = RouteDecision(Via.DIRECT, DecisionLevel.DEFAULT, "no route matches: direct delivery to the MX")
"""What remains when nothing else applies."""
