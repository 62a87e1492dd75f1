"""Which hours the next aggregate report of a domain tells of (RFC 9990 3.1.1.4; DMRC-03b, DAGG-02, reference A4).

An hour is a number: Unix seconds / 3600, of UTC. A day begins with an hour that 24 divides, and intervals divide a day,
so no time zone and no leap second moves a period (reference H35).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

HOUR: Final = 3600
"""Seconds."""
DAY: Final = 24
"""Hours; what RFC 9990 has."""
INTERVALS: Final = (24, 12, 8, 6, 4, 3, 2, 1)
"""Hours that a period may have."""


def interval_hours(ri: int | None, *, short: bool = True) -> int:
    """Hours between reports. `ri`: seconds, as a record of RFC 7489 asks; `short`: that is honoured.

    DMRC-03b: RFC 9989 knows the tag no more, and those who still publish it mean it. No domain gets fewer reports than
    one a day for it (DAGG-02b), nor more than one an hour.
    """
    if ri is None or not short:
        return DAY
    asked = max(1, -(-ri // HOUR))
    return next(hours for hours in INTERVALS if hours <= asked)


def known_interval(hours: int) -> int:
    """The nearest interval that there is: what others say is never taken as it comes."""
    return next((each for each in INTERVALS if each <= hours), 1) if hours > 0 else DAY


@dataclass(frozen=True, slots=True)
class SeenHour:
    """An hour in which a domain was seen."""

    hour: int
    interval: int
    """Hours, as its record asked at the end of that hour."""


@dataclass(frozen=True, slots=True)
class HourPeriod:
    """Of a report."""

    begin: int
    end: int
    """Exclusive."""

    @property
    def seconds(self) -> tuple[int, int]:
        """Unix seconds; both ends belong to it."""
        return self.begin * HOUR, self.end * HOUR - 1


def next_period(seen: Iterable[SeenHour], covered: int, cut: int | None = None) -> HourPeriod | None:
    """The first period with anything in it, due or not; None: nothing was seen.

    `seen`: hours from `covered` on, in rising order. `covered`: where the last period ended; periods never overlap
    (DAGG-02a). `cut`: hours from this one on are left for later, and a longer period ends here: somebody wants the
    report now.

    A period begins and ends where the interval says. One that is shortened within it ends the period at the first end
    of the new interval after it was seen; one that is made longer counts from the next period on.
    """
    hours = [each for each in seen if each.hour >= covered and (cut is None or each.hour < cut)]
    if not hours:
        return None
    first = hours[0]
    nominal = _floor(first)
    end = nominal + first.interval
    for each in hours[1:]:
        if each.hour >= end:
            break
        if each.interval < first.interval:
            end = min(end, _floor(each) + each.interval)
            break
    return HourPeriod(max(covered, nominal), end if cut is None else min(end, cut))


def _floor(seen: SeenHour) -> int:
    return seen.hour - seen.hour % seen.interval


def pause(reports: int, *, window: float, longest: float) -> float:
    """Seconds between the beginnings of two reports, so that all of them begin within `window` seconds."""
    return min(longest, window / max(1, reports))
