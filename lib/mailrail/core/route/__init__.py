"""Routing: where a recipient goes at this attempt, and why (design 4 Where to/Route and 5; message-life LSE-05).

- `decision`: what goes in (`Envelope`) and what comes out (`Decision`).
- `table`: a revision's rules compiled into maps by domain and label; `RouteTable.evaluate` is the hot path.
- `explain`: the same question answered slowly, rule by rule, with a reason for each.
"""

from mailrail.core.route.decision import DIRECT, Decision, Envelope, Level, RuleRef, Via
from mailrail.core.route.explain import Explanation, Tried, explain
from mailrail.core.route.table import RouteTable

__all__ = [
    "DIRECT",
    "Decision",
    "Envelope",
    "Explanation",
    "Level",
    "RouteTable",
    "RuleRef",
    "Tried",
    "Via",
    "explain",
]
