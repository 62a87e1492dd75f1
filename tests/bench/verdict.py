"""Whether two rows of measured values can be told apart: pure functions, on pairs of runs that were made side by side.

A shared machine is now quick and now slow, for minutes at a time. Runs of the two are therefore made in pairs, one
right after the other, first the one first, then the other, and it is the ratios within the pairs that are judged: what
slowed both down falls out of them.

A difference is told when all of this holds:

- so many pairs agree about its direction that chance alone does that in one of 200 comparisons at most (the sign test,
  which asks nothing of how the values are distributed): all of 9 to 12, all but one of 13 and 14, and so on;
- it is greater than the spread, which is the interquartile range of the ratios: half of the pairs lie within it;
- it is greater than 1 %: less is no difference here, even if it always shows (memory differs by where a program lies).
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

CHANCE = 0.005
"""How often chance may tell identical programs apart, of one value: a table has some fifty."""
LEAST = 0.01
"""A difference under it is none."""


@dataclass(frozen=True)
class Summary:
    """One row of values: its median and its quartiles."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """What two rows of values say. Shares are of the base's value: 0.1 is ten percent more than it."""

    base: Summary
    head: Summary
    pairs: int
    difference: float
    """Of the medians."""
    spread: float
    """Interquartile range of the ratios of the pairs."""
    told: bool
    """Whether the difference is more than what the machine does by itself."""

    @property
    def enough(self) -> bool:
        """Whether so many pairs can tell anything at all."""
        return _outliers(self.pairs) is not None


def summary(values: Sequence[float]) -> Summary:
    """Median and quartiles. Raises ValueError when there are no values."""
    if not values:
        raise ValueError("no values")
    low, median, high = _quartiles(values)
    return Summary(median, low, high)


def compare(base: Sequence[float], head: Sequence[float]) -> Comparison:
    """Compare values of runs that were made in pairs: `base[i]` and `head[i]` belong together.

    Raises ValueError when the rows differ in length, are empty, or hold a value that is negative or not finite.
    """
    if len(base) != len(head):
        raise ValueError(f"{len(base)} values against {len(head)}: they are compared in pairs")
    if any(not math.isfinite(value) or value < 0 for value in (*base, *head)):
        raise ValueError("only finite values from 0 up can be compared")
    ours, theirs = summary(base), summary(head)
    difference = theirs.median / ours.median - 1 if ours.median else (math.inf if theirs.median else 0.0)
    if not all((*base, *head)):  # no ratio of what is too small to be measured
        return Comparison(ours, theirs, len(base), difference, math.inf, told=False)
    ratios = sorted(math.log(b / a) for a, b in zip(base, head, strict=True))
    low, middle, high = _quartiles(ratios)
    spread = high - low
    outliers = _outliers(len(ratios))
    told = False
    if outliers is not None and difference > -1:
        agree = ratios[outliers] > 0 or ratios[-1 - outliers] < 0
        # The medians of the rows may say otherwise than the pairs where a slow minute lies across them.
        found = min(abs(middle), abs(math.log1p(difference)))
        same_way = middle * math.log1p(difference) > 0
        told = agree and same_way and found > max(spread, math.log1p(LEAST))
    return Comparison(ours, theirs, len(base), difference, math.expm1(spread), told)


def words(comparison: Comparison, *, higher_is_better: bool) -> str:
    """The verdict as people read it: of speed (`higher_is_better`), or of what something costs."""
    if not comparison.enough:
        return f"not to be told apart: too few runs ({comparison.pairs})"
    if not comparison.told:
        return "not to be told apart"
    more = comparison.difference > 0
    if higher_is_better:
        return f"{'faster' if more else 'slower'} by {percent(abs(comparison.difference))}"
    return f"{percent(abs(comparison.difference))} {'more' if more else 'less'}"


def percent(share: float) -> str:
    """A share in percent, to what is worth reading of it."""
    if not math.isfinite(share):
        return "?"
    return f"{share * 100:.1f} %" if abs(share) < 0.0995 else f"{share * 100:.0f} %"


def _quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, median, high


def _outliers(pairs: int) -> int | None:
    """How many of so many pairs may say otherwise, so that chance makes the others agree rarely; None: too few."""
    found, ways = None, 0
    for outliers in range(pairs // 2):
        ways += math.comb(pairs, outliers)
        if 2 * ways / 2**pairs > CHANCE:
            break
        found = outliers
    return found
