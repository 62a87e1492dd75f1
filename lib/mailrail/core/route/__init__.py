"""Routing: where a recipient goes at this attempt, and why (design 4 Where to/Route and 5; message-life LSE-05).

- `decision`: what goes in (`RoutingFacts`) and what comes out (`RouteDecision`).
- `table`: a revision's rules compiled into maps by domain and label; `RouteTable.evaluate` is the hot path.
- `explain`: the same question answered slowly, rule by rule, with a reason for each.
"""

from mailrail.core.route.decision import (
    DIRECT,
    DecisionLevel,
    LackingTransport,
    RouteDecision,
    RoutingFacts,
    RuleRef,
    Via,
)
from mailrail.core.route.explain import Explanation, Tried, explain
from mailrail.core.route.table import RouteTable

__all__ = [
    "DIRECT",
    "DecisionLevel",
    "Explanation",
    "LackingTransport",
    "RouteDecision",
    "RouteTable",
    "RoutingFacts",
    "RuleRef",
    "Tried",
    "Via",
    "explain",
]
