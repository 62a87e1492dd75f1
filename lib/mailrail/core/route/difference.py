"""Which mail would go another way under another configuration: decisions side by side, in groups (DIF-03, DIF-05).

Pure and bounded: whoever walks the queue gives recipients in bunches that routing cannot tell apart.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from mailrail.core.revision.revision import ObjectRef, TransportKind
from mailrail.core.route.decision import RouteDecision, Via

MOST_GROUPS: Final = 500
"""Groups that are told apart; recipients of others are counted together."""
MOST_DOMAINS: Final = 10_000
"""Domains that are counted of a group; of more the number is at least that."""
TOP_DOMAINS: Final = 5
"""Domains of a group that are named."""
SAMPLES: Final = 3
"""Recipients of a group that are named."""

Way = tuple[object, ...]


def way_of(decision: RouteDecision) -> Way:
    """What makes a way: where it goes, and by whom. Neither which rule said so, nor passwords, limits or TLS."""
    transport = decision.transport
    if transport is None:
        return (decision.via, decision.missing)
    return (
        decision.via, transport.ref, transport.kind, transport.host, transport.port, transport.source_addresses,
        transport.proxy_host, transport.proxy_port, transport.code,
    )  # fmt: skip


def is_deferred(decision: RouteDecision) -> bool:
    """Whether it would wait: what it should go by is not there."""
    return decision.via is Via.MISSING


def is_undeliverable(decision: RouteDecision) -> bool:
    """Whether it would fail at once."""
    return decision.transport is not None and decision.transport.kind is TransportKind.FAIL


def _key(decision: RouteDecision) -> tuple[Way, ObjectRef | None, int]:
    rule = decision.rule
    return way_of(decision), rule.route if rule is not None else None, rule.index if rule is not None else 0


@dataclass(slots=True)
class DifferenceGroup:
    """Recipients that one rule sends one way now, and another would send another way."""

    before: RouteDecision
    after: RouteDecision
    recipients: int = 0
    domains: Counter[str] = field(default_factory=Counter)
    samples: list[int] = field(default_factory=list)

    def add(self, domain: str, count: int, samples: Sequence[int]) -> None:
        """More of them."""
        self.recipients += count
        if domain in self.domains or len(self.domains) < MOST_DOMAINS:
            self.domains[domain] += count
        self.samples += samples[: SAMPLES - len(self.samples)]

    @property
    def rank(self) -> tuple[int, int]:
        """What people want to see first: what would wait, what would fail, then the most."""
        new = 0 if is_deferred(self.after) else 1 if is_undeliverable(self.after) else 2
        return new, -self.recipients


@dataclass(slots=True)
class Difference:
    """What was found so far."""

    looked_at: int = 0
    unchanged: int = 0
    deferred_new: int = 0
    undeliverable_new: int = 0
    ungrouped: int = 0
    """Of those that go another way: recipients beyond MOST_GROUPS."""
    _groups: dict[tuple[object, object], DifferenceGroup] = field(default_factory=dict)

    def add(self, before: RouteDecision, after: RouteDecision, domain: str, count: int, samples: Sequence[int]) -> None:
        """`count` recipients that are decided so."""
        self.looked_at += count
        if way_of(before) == way_of(after):
            self.unchanged += count
            return
        if is_deferred(after) and not is_deferred(before):
            self.deferred_new += count
        if is_undeliverable(after) and not is_undeliverable(before):
            self.undeliverable_new += count
        key = (_key(before), _key(after))
        group = self._groups.get(key)
        if group is None:
            if len(self._groups) >= MOST_GROUPS:
                self.ungrouped += count
                return
            group = self._groups[key] = DifferenceGroup(before, after)
        group.add(domain, count, samples)

    @property
    def groups(self) -> list[DifferenceGroup]:
        """Those that would wait first, then those that would fail, then the largest."""
        return sorted(self._groups.values(), key=lambda group: group.rank)
