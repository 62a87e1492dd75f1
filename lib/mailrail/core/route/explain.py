"""Why a recipient goes where it goes: every rule tried, in order, with its reason (design 1.3).

`explain` walks the rules as they are written, with a plain scan that knows nothing of the compiled maps. It is slow
and meant for people; that its answer always equals `RouteTable.evaluate` is a property test, which makes it the
judge of the maps. After the rule that decided come those that it hides, since they are what people wonder about.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from mailrail.core.revision.revision import Match, Rule
from mailrail.core.route.decision import (
    DIRECT,
    DecisionLevel,
    LackingTransport,
    RouteDecision,
    RoutingFacts,
    RuleRef,
    after,
    lacking_of,
)
from mailrail.core.route.table import LevelIndex, RouteTable, decision_of

EXPLAIN_LIMIT = 1000
"""Steps kept in one explanation; the rules that did not match beyond it are counted, not listed."""


@dataclass(frozen=True, slots=True)
class Tried:
    """One thing that was asked: a rule, or a whole level that has nothing to say."""

    level: DecisionLevel
    rule: RuleRef | None
    matched: bool
    """It decided. Only the last step before the hidden rules has it."""
    reason: str
    hidden: bool = False
    """It would have matched, but a rule before it did."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """The decision, and all that was tried until it fell."""

    decision: RouteDecision
    attempts: int
    tried: tuple[Tried, ...]
    unlisted: int = 0
    """Rules tried without a match that are not in `tried`, because of EXPLAIN_LIMIT."""


def covers(pattern: str, domain: str) -> bool:
    """Whether a pattern of a match covers a domain: `x.org` exact, `.x.org` it and below, `.` the empty domain."""
    empty = not domain or domain.startswith("[")
    if pattern == ".":
        return empty
    if empty:
        return False
    if pattern.startswith("."):
        return domain == pattern[1:] or domain.endswith(pattern)
    return domain == pattern


def applies(match: Match, envelope: RoutingFacts, attempts: int) -> bool:
    """Whether `match` accepts this recipient at this attempt."""
    return attempts >= match.minimum_attempts and next(_uncovered(match, envelope), None) is None


def _uncovered(match: Match, envelope: RoutingFacts) -> Iterator[tuple[tuple[str, ...], str, str]]:
    """The sides of a match that do not cover a recipient: the patterns, the domain, and whose it is."""
    for patterns, domain, what in (
        (match.to_domains, envelope.recipient_domain, "recipient"),
        (match.from_domains, envelope.sender_domain, "sender"),
    ):
        if patterns and not any(covers(pattern, domain) for pattern in patterns):
            yield patterns, domain, what


def refusal(match: Match, envelope: RoutingFacts, attempts: int) -> str | None:
    """Why `match` does not apply, in words; None if it does."""
    if attempts < match.minimum_attempts:
        return f"from attempt {match.minimum_attempts + 1} on, and this is attempt {attempts + 1}"
    for patterns, domain, what in _uncovered(match, envelope):
        shown = ", ".join(patterns[:5]) + (f" and {len(patterns) - 5} more" if len(patterns) > 5 else "")
        return f"{what} domain {domain or '(none)'} is not among {shown}"
    return None


def _try(rule: Rule, envelope: RoutingFacts, attempts: int) -> tuple[bool, str]:
    if not rule.matches:
        return True, "matches anything"
    refusals = [refusal(match, envelope, attempts) for match in rule.matches]
    if None in refusals:
        at = refusals.index(None)
        return True, "matches" if len(refusals) == 1 else f"match {at + 1} of {len(refusals)} applies"
    words = [r for r in refusals if r is not None]
    return False, words[0] if len(words) == 1 else "; ".join(f"match {i + 1}: {w}" for i, w in enumerate(words[:5]))


class _Steps:
    def __init__(self, limit: int) -> None:
        self.kept: list[Tried] = []
        self.unlisted = 0
        self._limit = limit

    @property
    def full(self) -> bool:
        """Whether rules that do not match are only counted from now on."""
        return len(self.kept) >= self._limit

    def add(self, level: DecisionLevel, rule: RuleRef | None, matched: bool, reason: str, hidden: bool = False) -> None:
        if matched or rule is None or not self.full:
            self.kept.append(Tried(level, rule, matched, reason, hidden))
        else:
            self.unlisted += 1


def explain(table: RouteTable, envelope: RoutingFacts, attempts: int, limit: int = EXPLAIN_LIMIT) -> Explanation:
    """Where this recipient would go at an attempt with `attempts` before it, and what every rule said on the way."""
    steps = _Steps(limit)

    def done(decision: RouteDecision) -> Explanation:
        return Explanation(decision, attempts, tuple(steps.kept), steps.unlisted)

    for level, found in (
        (DecisionLevel.MESSAGE, table.message_decision(envelope)),
        (DecisionLevel.DELIVERY, table.delivery_decision(envelope)),
    ):
        if found is not None:
            steps.add(level, None, True, found.reason)
            return done(found)
    steps.add(DecisionLevel.MESSAGE, None, False, "no transport is set on this message")
    own = table.by_name.get(envelope.recipient_domain)
    steps.add(
        DecisionLevel.DELIVERY,
        None,
        False,
        f"{own.ref} has delivery none, so routes decide" if own else f"{envelope.recipient_domain} is not ours",
    )

    gateway = table.gateway_of(envelope)
    levels: tuple[tuple[DecisionLevel, LevelIndex | None, str], ...] = (
        (DecisionLevel.ACCOUNT, table.account_level(envelope), _no_account(envelope)),
        (DecisionLevel.DOMAIN, table.domain_level(envelope), _no_domain(table, envelope)),
        (
            DecisionLevel.GLOBAL,
            table.globals.get(gateway) if gateway else None,
            f"no routes are attached to {gateway}" if gateway else "no gateway",
        ),
    )
    decision: RouteDecision | None = None
    again: RouteDecision | None = None
    tried: list[LackingTransport] = []
    for level, index, absent in levels:
        if index is None:
            if decision is None:
                steps.add(level, None, False, absent)
            continue
        for rule in index.source.rules:
            # Words for rules that nobody is told of would take most of the time among 100,000 of them.
            untold = steps.full or decision is not None
            if untold and rule.matches and not any(applies(match, envelope, attempts) for match in rule.matches):
                steps.unlisted += decision is None
                continue
            matched, reason = _try(rule, envelope, attempts)
            ref = RuleRef(rule.route, rule.index, rule.name)
            if decision is None:
                found = decision_of(rule, level, table.transports) if matched else None
                lacking = lacking_of(found, envelope) if found is not None else None
                if lacking is not None:
                    steps.add(level, ref, False, f"{reason}, but was tried before: {lacking}")
                    tried.append(lacking)
                    again = again or found
                    continue
                steps.add(level, ref, matched, reason)
                if found is not None:
                    decision = after(tried, found)
            elif matched:
                steps.add(level, ref, False, f"{reason}, but {decision.rule} comes first", hidden=True)
    if decision is not None:
        return done(decision)
    if again is not None:
        steps.add(again.level, again.rule, True, "no other rule matches, so the first decides again")
        return done(again)
    final = table.lost_decision(envelope) or DIRECT
    steps.add(final.level, None, True, final.reason)
    return done(final)


def _no_account(envelope: RoutingFacts) -> str:
    if envelope.account is None:
        return "came without authentication, so no account's routes apply"
    return f"no routes are attached to {envelope.account}"


def _no_domain(table: RouteTable, envelope: RoutingFacts) -> str:
    if not envelope.sender_domain:
        return "null sender: no domain's routes apply"
    if not envelope.ours:
        return "came without authentication, so no domain's routes apply"
    domain = table.by_name.get(envelope.sender_domain)
    if domain is None:
        return f"no MailDomain has the MAIL FROM domain {envelope.sender_domain}"
    return f"no routes are attached to {domain.ref}"
