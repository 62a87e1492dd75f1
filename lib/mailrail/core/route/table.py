"""A revision's routes compiled into maps, so that evaluating among 10,000 rules costs no more than among 10.

Inside a level the first matching rule wins. A rule's place in the level is its *position*; evaluating is finding the
lowest position whose match accepts the recipient domain, the sender domain and the number of attempts. So each match
is filed under every pair (recipient pattern, sender pattern), and a question looks up the few patterns that its two
domains can satisfy: the name itself, one `.suffix` per label, and "anything". Under each pair only the matches that
can ever win are kept: sorted by `minimumAttempts`, a later one stays only if its position is lower (the others are
always beaten), so one bisection answers. The cost depends on the number of labels, not on the number of rules.

A match that lists many domains on both sides would be filed under their product. Such *wide* matches (more than
`WIDE` pairs) are kept aside and tried one by one, but only those that stand before the best rule found.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from mailrail.core.revision.revision import (
    NO_FLOOR,
    Domain,
    DomainDelivery,
    Gateway,
    Match,
    ObjectRef,
    Revision,
    RouteLevel,
    Rule,
    Transport,
    TransportKind,
)
from mailrail.core.route.decision import (
    DIRECT,
    REPORTS,
    DecisionLevel,
    LackingTransport,
    RouteDecision,
    RoutingFacts,
    RuleRef,
    Via,
    after,
    lacking_of,
)
from mailrail.core.tlspolicy.demands import NOTHING, Demand, Demanded, add_up, of_domain, of_gateway, of_transport

WIDE = 4096
"""Pairs of one match above which it is tried by itself: bounds the memory of a compiled level."""

_ANY = ""
_EMPTY = "."


def patterns_of(domain: str) -> tuple[str, ...]:
    """Every pattern that `domain` satisfies (design 4, Route), "anything" included as the empty string.

    An address literal and a missing domain count as the empty domain: only `.` and "anything" match (reference E2).
    """
    if not domain or domain[0] == "[":
        return (_ANY, _EMPTY)
    found = [_ANY, domain, "." + domain]
    dot = domain.find(".")
    while dot != -1:
        found.append(domain[dot:])
        dot = domain.find(".", dot + 1)
    return tuple(found)


@dataclass(frozen=True, slots=True)
class _Wide:
    position: int
    minimum_attempts: int
    to_domains: frozenset[str]
    from_domains: frozenset[str]


class LevelIndex:
    """The rules of one level, and the decision that each of them stands for."""

    __slots__ = ("_decisions", "_pairs", "_wide", "source")

    def __init__(self, source: RouteLevel, level: DecisionLevel, transports: Mapping[ObjectRef, Transport]) -> None:
        self.source = source
        self._decisions = [decision_of(rule, level, transports) for rule in source.rules]
        gathered: dict[tuple[str, str], list[tuple[int, int]]] = {}
        wide: list[_Wide] = []
        for position, rule in enumerate(source.rules):
            for match in rule.matches or (Match(),):
                to, frm = match.to_domains or (_ANY,), match.from_domains or (_ANY,)
                if len(to) * len(frm) > WIDE:
                    wide.append(_Wide(position, match.minimum_attempts, frozenset(to), frozenset(frm)))
                    continue
                for to_domain in to:
                    for from_domain in frm:
                        entry = (match.minimum_attempts, position)
                        gathered.setdefault((to_domain, from_domain), []).append(entry)
        self._pairs = {pair: _winners(entries) for pair, entries in gathered.items()}
        self._wide = tuple(wide)

    def find(self, to: tuple[str, ...], frm: tuple[str, ...], attempts: int) -> RouteDecision | None:
        """The decision of the first rule that matches; None if none does."""
        best = len(self._decisions)
        pairs = self._pairs
        for to_pattern in to:
            for from_pattern in frm:
                winners = pairs.get((to_pattern, from_pattern))
                if winners is None:
                    continue
                minimums, positions = winners
                at = bisect_right(minimums, attempts) - 1
                if at >= 0 and positions[at] < best:
                    best = positions[at]
        for match in self._wide:
            if match.position >= best:
                break
            if (
                attempts >= match.minimum_attempts
                and not match.to_domains.isdisjoint(to)
                and not match.from_domains.isdisjoint(frm)
            ):
                best = match.position
                break
        return self._decisions[best] if best < len(self._decisions) else None

    def scan(self, to: tuple[str, ...], frm: tuple[str, ...], attempts: int) -> Iterator[RouteDecision]:
        """The decisions of all rules that match, in their order. Slow: the maps know only the first."""
        for rule, decision in zip(self.source.rules, self._decisions, strict=True):
            if not rule.matches or any(_applies(match, to, frm, attempts) for match in rule.matches):
                yield decision


def _applies(match: Match, to: tuple[str, ...], frm: tuple[str, ...], attempts: int) -> bool:
    return (
        attempts >= match.minimum_attempts
        and (not match.to_domains or any(pattern in match.to_domains for pattern in to))
        and (not match.from_domains or any(pattern in match.from_domains for pattern in frm))
    )


def _winners(entries: Iterable[tuple[int, int]]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Of (minimum attempts, position), those that win for some number of attempts, as two parallel columns."""
    minimums: list[int] = []
    positions: list[int] = []
    for minimum, position in sorted(entries):
        if not positions or position < positions[-1]:
            minimums.append(minimum)
            positions.append(position)
    return tuple(minimums), tuple(positions)


_UNUSABLE: Final = "which is missing or cannot be used: deferred until it can be"
"""Of a transport: one that is there and lacks its Secret is left out of the table, too; its status says why."""


def decision_of(rule: Rule, level: DecisionLevel, transports: Mapping[ObjectRef, Transport]) -> RouteDecision:
    """What it means that `rule` matches, with its transport resolved.

    A rule whose transport is missing keeps its place: what it matches is deferred, never handed to the next (design 5).
    """
    ref = RuleRef(rule.route, rule.index, rule.name)
    if rule.transport is None:
        reason = f"{ref} at {level} level: direct delivery to the MX"
        return RouteDecision(Via.DIRECT, level, reason, rule=ref, require=rule.require)
    transport = transports.get(rule.transport)
    if transport is None:
        reason = f"{ref} at {level} level names {rule.transport}, {_UNUSABLE}"
        return RouteDecision(Via.MISSING, level, reason, rule=ref, missing=rule.transport)
    reason = f"{ref} at {level} level: {transport.ref}"
    return RouteDecision(Via.TRANSPORT, level, reason, transport, ref, rule.require)


class RouteTable:
    """One revision, ready to answer where a recipient goes. Immutable; built once per revision."""

    __slots__ = (
        "_delivery",
        "_domain_of",
        "accounts",
        "by_name",
        "domains",
        "gateways",
        "globals",
        "only_gateway",
        "transports",
    )

    def __init__(self, revision: Revision) -> None:
        self.transports: dict[ObjectRef, Transport] = {t.ref: t for t in revision.transports}
        self.gateways: dict[ObjectRef, Gateway] = {g.ref: g for g in revision.gateways}
        self.only_gateway: ObjectRef | None = revision.gateways[0].ref if len(revision.gateways) == 1 else None
        self.by_name: dict[str, Domain] = {d.name: d for d in revision.domains}
        self.accounts = self._levels(revision.account_routes, DecisionLevel.ACCOUNT)
        self.domains = self._levels(revision.domain_routes, DecisionLevel.DOMAIN)
        self.globals = self._levels(revision.global_routes, DecisionLevel.GLOBAL)
        floors = {d.ref: d for d in revision.domains if d.security != NO_FLOOR}
        self._domain_of = {a.ref: floors[a.domain] for a in revision.accounts if a.domain in floors} if floors else {}
        self._delivery = {d.name: found for d in revision.domains if (found := self._delivery_of(d)) is not None}

    def _levels(self, levels: Iterable[RouteLevel], level: DecisionLevel) -> dict[ObjectRef, LevelIndex]:
        return {source.parent: LevelIndex(source, level, self.transports) for source in levels if source.rules}

    def _delivery_of(self, domain: Domain) -> RouteDecision | None:
        if domain.delivery is DomainDelivery.MAILBOX:
            return RouteDecision(
                Via.MAILBOX, DecisionLevel.DELIVERY, f"{domain.ref} delivers {domain.name} to the built-in mailbox"
            )
        if domain.delivery is DomainDelivery.TRANSPORT:
            transport = self.transports.get(domain.transport) if domain.transport else None
            if transport is None:
                reason = f"{domain.ref} delivers {domain.name} by {domain.transport}, {_UNUSABLE}"
                return RouteDecision(Via.MISSING, DecisionLevel.DELIVERY, reason, missing=domain.transport)
            reason = f"{domain.ref} delivers {domain.name} by {transport.ref}"
            return RouteDecision(Via.TRANSPORT, DecisionLevel.DELIVERY, reason, transport)
        return None  # Delivery.NONE: routed like any foreign domain

    def message_decision(self, envelope: RoutingFacts) -> RouteDecision | None:
        """What an administrator set on this very message; overrides all else. A name that is gone defers."""
        if envelope.direct:
            return RouteDecision(Via.DIRECT, DecisionLevel.MESSAGE, "set on this message: direct delivery to the MX")
        if envelope.transport is None:
            return None
        transport = self.transports.get(envelope.transport)
        if transport is None:
            reason = f"set on this message: {envelope.transport}, {_UNUSABLE}"
            return RouteDecision(Via.MISSING, DecisionLevel.MESSAGE, reason, missing=envelope.transport)
        return RouteDecision(Via.TRANSPORT, DecisionLevel.MESSAGE, f"set on this message: {transport.ref}", transport)

    def delivery_decision(self, envelope: RoutingFacts) -> RouteDecision | None:
        """Where a domain of ours wants its own recipients (design 4, Where to); None = the routes decide."""
        if envelope.reports:
            return REPORTS
        decision = self._delivery.get(envelope.recipient_domain)
        if decision is None and envelope.local and envelope.recipient_domain not in self.by_name:
            reason = (
                f"accepted for local delivery, but no MailDomain has the name {envelope.recipient_domain} now: "
                "deferred, never sent to the MX"
            )
            return RouteDecision(Via.MISSING, DecisionLevel.DELIVERY, reason)
        return decision

    def account_level(self, envelope: RoutingFacts) -> LevelIndex | None:
        """The account's rules, if the mail has an account and that has rules."""
        return self.accounts.get(envelope.account) if envelope.account else None

    def domain_level(self, envelope: RoutingFacts) -> LevelIndex | None:
        """The rules of the MailDomain that equals the MAIL FROM domain; asked only for mail that is ours."""
        if not (self.domains and envelope.ours and envelope.sender_domain):
            return None
        domain = self.by_name.get(envelope.sender_domain)
        return self.domains.get(domain.ref) if domain else None

    def gateway_of(self, envelope: RoutingFacts) -> ObjectRef | None:
        """The gateway whose global rules apply: the accepting one, or the only one there is."""
        if envelope.gateway is not None and envelope.gateway in self.gateways:
            return envelope.gateway
        return self.only_gateway

    def lost_decision(self, envelope: RoutingFacts) -> RouteDecision | None:
        """Deferral of mail whose gateway is gone while several others remain: none of them may speak for it."""
        if self.gateway_of(envelope) is None and self.gateways:
            reason = f"accepted by {envelope.gateway}, which does not exist: deferred until it does"
            return RouteDecision(Via.MISSING, DecisionLevel.GLOBAL, reason)
        return None

    def _senders(self, envelope: RoutingFacts) -> Iterator[Domain]:
        """The domains of ours that the mail is submitted for: of MAIL FROM, and of the account, which may leave it
        empty."""
        if envelope.ours and (domain := self.by_name.get(envelope.sender_domain)) is not None:
            yield domain
        if envelope.account is not None and (domain := self._domain_of.get(envelope.account)) is not None:
            yield domain

    def demanded(self, envelope: RoutingFacts, decision: RouteDecision) -> Demanded:
        """What is demanded of the security of the way that was decided on, by all who have a say (decision 18)."""
        transport = decision.transport
        if decision.via not in (Via.TRANSPORT, Via.DIRECT) or (transport and transport.kind is TransportKind.FAIL):
            return NOTHING
        demands = []
        # Final delivery is no mail that leaves: what the transport says of itself is all.
        if transport is None or transport.kind is not TransportKind.LMTP:
            gateway = self.gateways.get(accepting) if (accepting := self.gateway_of(envelope)) else None
            demands += [of_gateway(gateway)] if gateway is not None else []
            demands += [of_domain(domain) for domain in self._senders(envelope)]
            demands += [Demand(str(decision.rule), decision.require)] if decision.rule is not None else []
        demands += [of_transport(transport)] if transport is not None else []
        return add_up(each for each in demands if each.security != NO_FLOOR)

    def evaluate(self, envelope: RoutingFacts, attempts: int) -> RouteDecision:
        """Where this recipient goes now. `attempts` is the number before this one (LSE-05). Never raises."""
        decision = self.message_decision(envelope) or self.delivery_decision(envelope)
        if decision is not None:
            return decision
        levels = self._levels_of(envelope)
        if any(levels):
            if envelope.lacking and (decision := self.next(envelope, attempts)) is not None:
                return decision
            to, frm = patterns_of(envelope.recipient_domain), patterns_of(envelope.sender_domain)
            for level in levels:
                decision = level.find(to, frm, attempts) if level else None
                if decision is not None:
                    return decision
        return self.lost_decision(envelope) or DIRECT

    def next(self, envelope: RoutingFacts, attempts: int) -> RouteDecision | None:
        """The first rule that matches and whose transport is not known to lack what the message needs (SOUT-18c).

        None: no such rule is left, or no rule decides about this recipient. Direct delivery for want of a rule is no
        rule: an administrator who sends all mail through a smarthost has not allowed it.
        """
        if self.message_decision(envelope) is not None or self.delivery_decision(envelope) is not None:
            return None
        to, frm = patterns_of(envelope.recipient_domain), patterns_of(envelope.sender_domain)
        tried: list[LackingTransport] = []
        for level in self._levels_of(envelope):
            for decision in level.scan(to, frm, attempts) if level is not None else ():
                lacking = lacking_of(decision, envelope)
                if lacking is None:
                    return after(tried, decision)
                tried.append(lacking)
        return None

    def _levels_of(self, envelope: RoutingFacts) -> tuple[LevelIndex | None, LevelIndex | None, LevelIndex | None]:
        gateway = self.gateway_of(envelope)
        return (
            self.account_level(envelope),
            self.domain_level(envelope),
            self.globals.get(gateway) if gateway else None,
        )
