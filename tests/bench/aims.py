"""What is aimed at, and whether it is reached: pure functions on what was measured.

The figures are those of section 6 of docs/design.md, which a test compares.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

KIB, MIB = 1024, 1024 * 1024


@dataclass(frozen=True)
class Limit:
    """What a figure must reach, and what it should."""

    least: float
    aim: float
    unit: str = "×"
    lower_is_better: bool = False

    def verdict(self, value: float) -> str:
        """In words: `at least: 1.1 ×, reached; aim: 2 ×, not reached`, or only the aim where both are one."""
        must = [] if self.least == self.aim else [("at most" if self.lower_is_better else "at least", self.least)]
        return "; ".join(
            f"{name}: {bound:g} {self.unit}, {'' if self.reached(value, bound) else 'not '}reached"
            for name, bound in [*must, ("aim", self.aim)]
        )

    def reached(self, value: float, bound: float) -> bool:
        """Whether a figure is as good as a bound."""
        return value <= bound if self.lower_is_better else value >= bound


SPEED: dict[tuple[int, bool], Limit] = {
    (2 * KIB, False): Limit(3, 3),
    (2 * KIB, True): Limit(6, 6),
    (100 * KIB, False): Limit(1.1, 2),
    (100 * KIB, True): Limit(1.25, 2),
    (10 * MIB, False): Limit(0.5, 1),
    (10 * MIB, True): Limit(0.5, 1),
}
"""Times Postfix's messages a second, by octets of a message and reuse of connections."""
CPU: dict[int, Limit] = {
    100 * KIB: Limit(2.5, 1.5, "ms", lower_is_better=True),
    1 * MIB: Limit(16, 10, "ms", lower_is_better=True),
}
"""CPU milliseconds a message, by octets of a message; with and without reuse."""
IDLE: dict[str, int] = {
    "mail and its configuration": 255,
    "policy service": 25,
}
"""MiB (PSS) that local mode may take when idle, by what takes them."""
MEMORY: dict[str, Limit] = {
    "idle": Limit(sum(IDLE.values()), 220, "MiB", lower_is_better=True),
    "after load": Limit(400, 350, "MiB", lower_is_better=True),
}
"""MiB (PSS) of all processes of local mode."""
HEALTHY = Limit(1000, 1000, "ms", lower_is_better=True)
"""Milliseconds of the 99th percentile of healthy mail, whatever others do."""
FLAT = Limit(0.8, 0.8)
"""Throughput at any backlog, by that without one."""


def speed(size: int, reuse: bool, ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, str] | None:
    """How many times Postfix's messages a second (medians), and the verdict; None without runs of both."""
    if not ours or not theirs:
        return None
    ratio = statistics.median(ours) / statistics.median(theirs)
    limit = SPEED.get((size, reuse))
    return ratio, limit.verdict(round(ratio, 2)) if limit is not None else ""


def cpu(size: int, ours: Sequence[float]) -> tuple[float, str] | None:
    """CPU milliseconds a message (median), and the verdict; None where nothing is aimed at or measured."""
    limit = CPU.get(size)
    if limit is None or not ours:
        return None
    used = statistics.median(ours)
    return used, limit.verdict(used)


def percentile(values: Sequence[float], share: float) -> float:
    """The least of the values that so large a share of all is not above (nearest rank). Raises ValueError for none."""
    if not values:
        raise ValueError("no values")
    ordered = sorted(values)
    return ordered[max(0, min(len(ordered), -int(-share * len(ordered) // 1)) - 1)]
