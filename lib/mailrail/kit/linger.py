"""How long what is ready to be sent to a neighbour waits for company (design 6, rule 2).

A gRPC message and a commit cost about the same whether they carry one mail or fifty. Where many transactions are under
way others will be ready within moments, and waiting for them costs less time than it saves; where nobody else is under
way, nobody is waited for. docs/benchmarks.md has the figures.
"""

EACH = 0.000_075
"""Seconds for each transaction that is under way."""
MOST = 0.003
"""Seconds at most: reached with 40, of which each then waits longer for the processor than for this."""


def linger(under_way: int) -> float:
    """Seconds to wait for company when so many transactions are under way, that which is ready among them; 0 = none."""
    return min(MOST, EACH * under_way) if under_way > 1 else 0.0
