"""Which hours the next aggregate report tells of."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailrail.core.dmarc.report.period import (
    INTERVALS,
    HourPeriod,
    SeenHour,
    interval_hours,
    known_interval,
    next_period,
    pause,
)

DAY = 24 * 20_000
"""The first hour of some day."""


def seen(*hours: int, interval: int = 24) -> list[SeenHour]:
    return [SeenHour(DAY + hour, interval) for hour in hours]


def period(hours: Sequence[SeenHour], covered: int = 0, cut: int | None = None) -> tuple[int, int] | None:
    """Of some day."""
    found = next_period(hours, DAY + covered if covered else 0, None if cut is None else DAY + cut)
    return (found.begin - DAY, found.end - DAY) if found is not None else None


@pytest.mark.parametrize(
    ("ri", "hours"),
    [
        (None, 24),
        (86400, 24),
        (10**30, 24),
        (18000, 4),  # five hours: no divisor of a day, and never fewer reports than asked for
        (7200, 2),
        (3601, 2),
        (3600, 1),
        (1, 1),
        (0, 1),
    ],
)
def test_a_shorter_interval_in_an_older_record_is_honoured_DMRC_03b(ri: int | None, hours: int) -> None:
    assert interval_hours(ri) == hours
    assert interval_hours(ri, short=False) == 24


def test_an_interval_that_somebody_tells_is_never_taken_as_it_comes_DMRC_03b() -> None:
    assert [known_interval(hours) for hours in (0, 1, 5, 23, 24, 4_000_000_000)] == [24, 1, 4, 12, 24, 24]


def test_the_period_is_a_UTC_day_whenever_mail_came_DAGG_02a() -> None:
    assert period(seen(13, 17, 23)) == (0, 24)
    assert period(seen(0)) == (0, 24)
    assert HourPeriod(DAY, DAY + 24).seconds == (DAY * 3600, (DAY + 24) * 3600 - 1)


def test_two_days_are_two_reports_DAGG_02a() -> None:
    hours = seen(3, 30)
    assert period(hours) == (0, 24)
    assert period(hours, covered=24) == (24, 48)


def test_days_that_nobody_was_here_for_are_caught_up_one_by_one() -> None:
    hours = seen(3, 100, 101)
    assert period(hours) == (0, 24)
    assert period(hours, covered=24) == (96, 120)


def test_without_mail_there_is_no_period() -> None:
    assert period([]) is None
    assert period(seen(3), covered=24) is None


def test_a_record_that_asks_for_more_reports_within_the_day_ends_the_period_early_DAGG_02a() -> None:
    hours = [*seen(2), *seen(10, 11, interval=1)]
    assert period(hours) == (0, 11)
    assert period(hours, covered=11) == (11, 12)


def test_a_record_that_asks_for_fewer_reports_makes_no_periods_that_overlap_DAGG_02a() -> None:
    hours = [*seen(9, interval=1), *seen(12)]
    assert period(hours) == (9, 10)
    assert period(hours, covered=10) == (10, 24)


def test_one_who_wants_the_report_now_gets_what_has_been_seen_so_far() -> None:
    hours = seen(3, 13, 14)
    assert period(hours, cut=14) == (0, 14)
    assert period(hours, covered=14) == (14, 24)
    assert period(hours, covered=14, cut=15) == (14, 15)
    assert period(hours, cut=48) == (0, 24)


@given(
    st.lists(st.tuples(st.integers(0, 100), st.sampled_from(INTERVALS)), max_size=40, unique_by=lambda each: each[0]),
    st.lists(st.integers(0, 110), max_size=5),
)
def test_each_hour_is_in_exactly_one_period_and_none_overlap_DAGG_02a(
    told: list[tuple[int, int]], cuts: list[int]
) -> None:
    hours = [SeenHour(DAY + hour, interval) for hour, interval in sorted(told)]
    covered, found = 0, []
    for cut in [*(DAY + each for each in sorted(cuts)), None]:
        while (one := next_period(hours, covered, cut)) is not None:
            assert covered <= one.begin < one.end <= one.begin + 24
            found.append(one)
            covered = one.end
    for each in hours:
        assert sum(one.begin <= each.hour < one.end for one in found) == 1
    assert all(any(one.begin <= each.hour < one.end for each in hours) for one in found)


def test_reports_are_spread_over_the_hour() -> None:
    assert pause(0, window=2700, longest=300) == 300
    assert pause(9, window=2700, longest=300) == 300
    assert pause(2700, window=2700, longest=300) == 1
