"""A configuration revision as the queue uses it: where a recipient goes, under which site, on which schedule.

Decisions are `mailrail.core.route`'s; this module brings a recipient's stored facts into their form and keeps the
answers of one revision, since most mail goes where mail just went.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final, NamedTuple

from mailrail.core.probe import in_probe_domain
from mailrail.core.revision.revision import (
    AccountLimits,
    Gateway,
    ObjectRef,
    Otherwise,
    RetrySchedule,
    Revision,
    TlsMinimum,
    TlsProof,
    Transport,
    Unanswered,
)
from mailrail.core.route import RouteDecision, RouteTable, RoutingFacts, Via
from mailrail.core.route.decision import DecisionLevel
from mailrail.core.route.site import Site, SiteKind, shard
from mailrail.core.tlspolicy.demands import NOTHING, Demanded
from mailrail.pb.queue.v1 import lease_pb2, types_pb2
from mailrail_queue.routing.lacking import lacking_of

_KEPT = 20_000
"""Answers kept of a revision before they are forgotten and found anew."""

ACCOUNT = "MailAccount"
GATEWAY = "MailGateway"
TRANSPORT = "MailTransport"


@lru_cache(maxsize=4096)
def reference(kind: str, text: str) -> ObjectRef:
    """The reference behind `namespace/name`."""
    namespace, _, name = text.partition("/")
    return ObjectRef(kind, namespace, name)


def reference_text(ref: types_pb2.ObjectRef | ObjectRef) -> str:
    """`namespace/name`, as columns hold it."""
    return f"{ref.namespace}/{ref.name}"


def domain_of(address: str) -> str:
    """The domain of a recipient, in lower case; an address literal with its brackets; empty for a bare local part."""
    local, at, domain = address.rpartition("@")
    return domain.lower() if at and local else ""


class RecipientFacts(NamedTuple):
    """What routing may look at, as the columns of a recipient hold it. Equal facts have equal answers."""

    domain: str
    from_domain: str
    account: str | None
    ours: bool  # submitted with authentication, or made by us
    is_local: bool
    gateway: str | None
    override_transport: str | None = None
    lacking: bytes | None = None  # LackingTransports
    reports: bool = False  # an address for reports

    @property
    def is_probe(self) -> bool:
        """Made by us, without a sender, for an address that only ingress gives to probes (decision 20)."""
        return self.ours and self.account is None and not self.from_domain and in_probe_domain(self.domain)


PROBE_SITE: Final = Site(SiteKind.LOCAL, None, "probe")
"""The site of all probes: nothing is dialled, as for `fail` transports."""
PROBE: Final = RouteDecision(Via.MAILBOX, DecisionLevel.DELIVERY, "a mail probe: it ends in the queue")


@dataclass(frozen=True, slots=True, eq=False)
class RoutePlan:
    """Where recipients with some facts go at an attempt, ready to be put into a delivery."""

    decision: RouteDecision
    site: Site
    key: str
    """Of the site."""
    domain: str
    shard: int
    transport: Transport | None
    revision: int
    template: lease_pb2.Delivery
    """The fields of a delivery that follow from the decision."""
    fields: bytes
    """The same, written: a delivery takes these in at a third of the price."""
    account: bytes
    """The fields of an attempt (Attempt) that follow from it."""
    grouping: tuple[str, str, bytes | None]
    """Recipients of a message whose plans agree in this may share a transaction (design 4, Deliver)."""

    @property
    def missing(self) -> bool:
        """Nothing can be tried: what should deliver it does not exist."""
        return self.decision.via is Via.MISSING

    @property
    def probe(self) -> bool:
        """A mail probe: it has arrived once it is here, and is no attempt that counts (decision 20)."""
        return self.site is PROBE_SITE

    @property
    def here(self) -> bool:
        """The queue delivers (or refuses) by itself; nobody is dialled."""
        return self.site.kind in (SiteKind.MAILBOX, SiteKind.LOCAL)

    def describe(self, attempt: types_pb2.Attempt) -> None:
        """Say in an attempt what decided about it."""
        attempt.MergeFromString(self.account)


def object_pb(ref: ObjectRef) -> types_pb2.ObjectRef:
    """A reference as the agreements write it."""
    return types_pb2.ObjectRef(kind=ref.kind, namespace=ref.namespace, name=ref.name)


def named_pb(kind: str, name: str) -> types_pb2.ObjectRef:
    """An object by its stored name (NAMESPACE/NAME), as the agreements write it."""
    namespace, _, rest = name.partition("/")
    return types_pb2.ObjectRef(kind=kind, namespace=namespace, name=rest)


def account_pb(name: str) -> types_pb2.ObjectRef:
    """An account by its stored name."""
    return named_pb("MailAccount", name)


_MINIMA: Final = {
    TlsMinimum.OPPORTUNISTIC: lease_pb2.Security.MINIMUM_UNSPECIFIED,
    TlsMinimum.ENCRYPTED: lease_pb2.Security.MINIMUM_ENCRYPTED,
    TlsMinimum.AUTHENTICATED: lease_pb2.Security.MINIMUM_AUTHENTICATED,
}
_PROOFS: Final = {
    TlsProof.DANE: lease_pb2.Security.PROOF_DANE,
    TlsProof.MTA_STS: lease_pb2.Security.PROOF_MTASTS,
    TlsProof.PKIX: lease_pb2.Security.PROOF_PKIX,
}


def security_pb(demanded: Demanded) -> lease_pb2.Security:
    """What is demanded, as the agreements write it."""
    floor = demanded.security
    return lease_pb2.Security(
        minimum=_MINIMA[floor.minimum],
        proofs=[_PROOFS[proof] for proof in floor.proofs],
        fail=floor.otherwise is Otherwise.FAIL,
        proceed=floor.when_unanswered is Unanswered.PROCEED,
        owners=demanded.owners,
    )


def account_of(template: lease_pb2.Delivery, revision: int) -> types_pb2.Attempt:
    """What an attempt says of the decision behind a delivery like this."""
    account = types_pb2.Attempt(rule=template.rule, reason=template.reason, config_revision=revision)
    if template.HasField("transport"):
        account.transport.CopyFrom(template.transport)
    if template.HasField("route"):
        account.route.CopyFrom(template.route)
        account.rule_index = template.rule_index
    return account


@dataclass(slots=True)
class Router:
    """One revision."""

    number: int
    revision: Revision
    table: RouteTable = field(init=False)
    limits: dict[str, AccountLimits] = field(init=False)
    """Of the accounts that have limits (ACC-08)."""
    _answers: dict[tuple[RecipientFacts, int], RoutePlan] = field(init=False, default_factory=dict)
    _varying: bool = field(init=False)

    def __post_init__(self) -> None:
        self.table = RouteTable(self.revision)
        self.limits = {
            reference_text(a.ref): a.limits
            for a in self.revision.accounts
            if a.limits.messages_per_day is not None or a.limits.recipients_per_day is not None
        }
        levels = (self.revision.account_routes, self.revision.domain_routes, self.revision.global_routes)
        # Without a rule that looks at the number of attempts, all attempts have the same answer.
        self._varying = any(
            m.minimum_attempts for found in levels for level in found for rule in level.rules for m in rule.matches
        )

    def plan(self, facts: RecipientFacts, attempts: int) -> RoutePlan:
        """Where a recipient goes; `attempts` is the number before this one (LSE-05). Never raises."""
        key = (facts, attempts if self._varying else 0)
        plan = self._answers.get(key)
        if plan is None:
            if len(self._answers) >= _KEPT:
                self._answers.clear()
            plan = self._answers[key] = self._make(facts, attempts)
        return plan

    def envelope(self, facts: RecipientFacts) -> RoutingFacts:
        """The facts as `mailrail.core.route` takes them."""
        return RoutingFacts(
            recipient_domain=facts.domain,
            sender_domain=facts.from_domain,
            account=reference(ACCOUNT, facts.account) if facts.account else None,
            ours=facts.ours,
            local=facts.is_local,
            transport=reference(TRANSPORT, facts.override_transport) if facts.override_transport else None,
            gateway=reference(GATEWAY, facts.gateway) if facts.gateway else None,
            reports=facts.reports,
            lacking=lacking_of(facts.lacking),
        )

    def next_plan(self, facts: RecipientFacts, attempts: int) -> RoutePlan | None:
        """Where a recipient goes when `facts.lacking` has a new transport (SOUT-18c); None: no further rule matches.

        So it goes only because none of those that were tried can take it: `plan` says the same from now on.
        """
        return self.plan(facts, attempts) if self.table.next(self.envelope(facts), attempts) is not None else None

    def _make(self, facts: RecipientFacts, attempts: int) -> RoutePlan:
        if facts.is_probe:
            decision, site = PROBE, PROBE_SITE
        else:
            decision = self.table.evaluate(self.envelope(facts), attempts)
            site = decision.site(facts.domain)
        key = site.key
        template = lease_pb2.Delivery(
            config_revision=self.number,
            site=key,
            domain="" if site.kind is SiteKind.TRANSPORT else facts.domain,
            reason=decision.reason,
        )
        if decision.transport is not None:
            template.transport.CopyFrom(object_pb(decision.transport.ref))
            template.transport_digest = decision.transport.digest
        elif decision.missing is not None:
            template.transport.CopyFrom(object_pb(decision.missing))
        demanded = self.table.demanded(self.envelope(facts), decision)
        if demanded is not NOTHING:
            template.security.CopyFrom(security_pb(demanded))
        if decision.rule is not None:
            template.route.CopyFrom(object_pb(decision.rule.route))
            template.rule_index = decision.rule.index
            template.rule = decision.rule.name
        return RoutePlan(
            decision,
            site,
            key,
            facts.domain,
            shard(facts.domain),
            decision.transport,
            self.number,
            template,
            template.SerializeToString(),
            account_of(template, self.number).SerializeToString(),
            (key, "" if decision.rule is None else str(decision.rule), facts.lacking),
        )

    def gateway(self, name: str | None) -> Gateway | None:
        """The gateway that accepted a message, or the only one."""
        ref = reference(GATEWAY, name) if name else None
        found = self.table.gateways.get(ref) if ref else None
        if found is None and self.table.only_gateway is not None:
            found = self.table.gateways.get(self.table.only_gateway)
        return found

    def schedule(self, facts: RecipientFacts) -> RetrySchedule:
        """The retry schedule: of our domain that receives, else of our domain that sends, else of the gateway."""
        names = ((facts.domain,) if facts.is_local else ()) + ((facts.from_domain,) if facts.ours else ())
        for name in names:
            domain = self.table.by_name.get(name)
            if domain is not None and domain.retry is not None:
                return domain.retry
        gateway = self.gateway(facts.gateway)
        return gateway.retry if gateway is not None else _DEFAULT

    def has(self, transport: str) -> bool:
        """Whether a transport `namespace/name` exists."""
        return reference(TRANSPORT, transport) in self.table.transports

    def transports(self) -> Iterable[Transport]:
        """All transports of the revision."""
        return self.revision.transports


_DEFAULT = RetrySchedule()
