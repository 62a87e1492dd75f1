"""The retry schedule (design 4, Retry; SOUT-07; reference F2 and H18)."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailrail.core.delivery.schedule import expires_at, is_last, retry_delay, will_retry_until
from mailrail.core.revision.revision import RetrySchedule

DEFAULT = RetrySchedule()
HOUR = 3600.0


def attempts_of(schedule: RetrySchedule, **facts: object) -> list[float]:
    """Times of all attempts of a message accepted at 0, each of which fails temporarily."""
    now, number, times = 0.0, 1, [0.0]
    while not is_last(schedule, attempts=number, now=now, accepted=0.0, **facts):  # type: ignore[arg-type]
        now += retry_delay(schedule, number, 0.0)
        number += 1
        times.append(now)
    return times


def test_attempts_fall_as_the_design_lists_them_SOUT_07() -> None:
    times = attempts_of(DEFAULT)
    minutes = [t / 60 for t in times[:8]]
    assert minutes == [0, 7.5, 22.5, 52.5, 112.5, 232.5, 472.5, 952.5]
    assert {later - earlier for earlier, later in itertools.pairwise(times[7:])} == {12 * HOUR}


def test_the_first_failure_after_five_days_is_final_SOUT_07() -> None:
    times = attempts_of(DEFAULT)
    assert times[-2] < 5 * 86400 <= times[-1]


def test_a_null_sender_is_given_up_after_one_day_SOUT_07() -> None:
    times = attempts_of(DEFAULT, null_sender=True)
    assert times[-2] < 86400 <= times[-1] == 952.5 * 60 + 12 * HOUR


def test_eight_attempts_give_the_short_schedule() -> None:
    times = attempts_of(RetrySchedule(max_attempts=8))
    assert len(times) == 8
    assert times[-1] == 952.5 * 60


def test_a_report_has_five_attempts() -> None:
    assert len(attempts_of(DEFAULT, max_attempts=5)) == 5


def test_time_on_hold_and_before_release_does_not_count_OPT_02() -> None:
    assert expires_at(DEFAULT, accepted=100.0, uncounted_seconds=50.0, null_sender=False) == 150.0 + 5 * 86400
    late = 5 * 86400 + 10.0
    assert is_last(DEFAULT, attempts=3, now=late, accepted=0.0)
    assert not is_last(DEFAULT, attempts=3, now=late, accepted=0.0, uncounted_seconds=11.0)


def test_will_retry_until_is_fourteen_hours_after_the_fifth_of_eight_attempts_H18() -> None:
    until = will_retry_until(RetrySchedule(max_attempts=8), attempts=5, last_attempt=6750.0, accepted=0.0)
    assert until == 6750.0 + 14 * HOUR


schedules = st.builds(
    RetrySchedule,
    delays=st.lists(st.integers(1, 50_000), min_size=1, max_size=8).map(tuple),
    lifetime=st.integers(1, 500_000),
    null_sender_lifetime=st.integers(1, 500_000),
    max_attempts=st.none() | st.integers(1, 30),
)


@given(schedules.filter(lambda s: s.lifetime / min(s.delays) < 5000), st.data())
def test_will_retry_until_is_the_last_attempt_that_the_schedule_really_makes_H18(
    schedule: RetrySchedule, data: st.DataObject
) -> None:
    times = attempts_of(schedule)
    number = data.draw(st.integers(1, len(times)))
    until = will_retry_until(schedule, attempts=number, last_attempt=times[number - 1], accepted=0.0)
    assert until == times[-1]


@given(schedules, st.integers(1, 100), st.floats(-1, 1))
def test_jitter_moves_a_delay_by_a_twentieth_at_most(schedule: RetrySchedule, attempts: int, jitter: float) -> None:
    plain = retry_delay(schedule, attempts, 0.0)
    assert abs(retry_delay(schedule, attempts, jitter) - plain) <= min(plain * 0.05, 300.0) + 1e-6


@pytest.mark.parametrize("jitter", [-99.0, 99.0, float("inf")])
def test_jitter_beyond_its_bounds_is_cut(jitter: float) -> None:
    assert 0 < retry_delay(DEFAULT, 1, jitter) <= 450 * 1.05
