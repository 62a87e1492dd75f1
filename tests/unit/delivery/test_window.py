"""The window of a site: slow start, feedback by cohort, backoff and probe (SHD-04, SHD-05)."""

from hypothesis import given
from hypothesis import strategies as st

from mailrail.core.delivery.window import BACKOFF_FIRST, BACKOFF_LIMIT, INITIAL, LIMIT, Learned, SiteWindow


def drive(window: SiteWindow, successes: int) -> None:
    for _ in range(successes):
        window.start()
        window.succeed()


def test_a_new_site_doubles_with_each_round_of_successes_SHD_04() -> None:
    window = SiteWindow()
    assert window.room(0.0) == int(INITIAL)
    drive(window, 5)
    assert window.size == 2 * INITIAL
    drive(window, 100)
    assert window.size == LIMIT


def test_after_a_failure_a_cohort_of_successes_adds_one_SHD_04() -> None:
    window = SiteWindow(size=10.0)
    window.start()
    window.fail(0.0, "450")
    before = window.size
    drive(window, round(before))
    assert 0.9 < window.size - before < 1.1


def test_a_cohort_of_failures_in_a_row_is_a_dead_site_SHD_05() -> None:
    window = SiteWindow()
    began = []
    for _ in range(int(INITIAL)):
        window.start()
        began.append(window.fail(100.0, "no connection"))
    assert began == [False, False, False, False, True]
    assert window.in_backoff(100.0 + BACKOFF_FIRST - 1)
    assert window.room(101.0) == 0
    assert window.last_error == "no connection"


def test_a_success_between_forgets_the_failures() -> None:
    window = SiteWindow()
    for _ in range(20):
        window.start()
        assert not window.fail(0.0, "x")
        drive(window, 1)


def test_after_the_backoff_one_probe_goes_at_a_time_and_failing_it_doubles_the_backoff() -> None:
    window = SiteWindow()
    window.start()
    assert window.fail(0.0, "535 refused", transport=True)
    now, lengths = 0.0, []
    for _ in range(9):
        assert window.backoff_until is not None
        lengths.append(window.backoff_until - now)
        now = window.backoff_until
        assert window.room(now) == 1
        window.start()
        assert window.room(now) == 0
        assert window.fail(now, "535 refused", transport=True)
    assert lengths[:4] == [BACKOFF_FIRST, 2 * BACKOFF_FIRST, 4 * BACKOFF_FIRST, 8 * BACKOFF_FIRST]
    assert lengths[-1] == BACKOFF_LIMIT


def test_a_probe_that_succeeds_opens_the_window_again() -> None:
    window = SiteWindow()
    window.start()
    window.fail(0.0, "x", transport=True)
    window.start()
    window.succeed()
    assert (window.backoff_until, window.room(0.0)) == (None, int(INITIAL))


def test_stragglers_of_the_cohort_that_died_do_not_lengthen_the_backoff() -> None:
    window = SiteWindow(size=10.0)
    for _ in range(10):
        window.start()
    for _ in range(10):
        window.fail(5.0, "x")
    first = window.backoff_until
    assert first is not None
    window.fail(6.0, "x")
    assert window.backoff_until == first


def test_waking_a_site_ends_its_backoff_and_still_probes_first_ADM_03() -> None:
    window = SiteWindow()
    window.start()
    window.fail(50.0, "x", transport=True)
    window.wake()
    assert not window.in_backoff(51.0)
    assert window.room(51.0) == 1


def test_blame_counts_a_failure_of_which_no_transaction_ended() -> None:
    window = SiteWindow(in_flight=2)
    assert window.blame(0.0, "535 refused", transport=True)
    assert (window.in_flight, window.backoffs, window.last_error) == (2, 1, "535 refused")


def test_a_backoff_of_another_owner_is_adopted_with_its_length_and_number_SHD_05() -> None:
    window = SiteWindow(in_flight=3)
    assert window.adopt_backoff(100.0, 240.0, 3) is Learned.BACKOFF
    assert (window.backoff_until, window.backoffs, window.in_flight) == (340.0, 3, 3)
    assert window.adopt_backoff(150.0, 500.0, 3) is Learned.NOTHING  # known already
    assert window.backoff_until == 340.0
    assert window.adopt_backoff(400.0, 100.0, 3) is Learned.NOTHING  # ours ended: it is time to probe
    assert window.room(400.0) == 0  # three that were handed out before
    assert window.adopt_backoff(400.0, 480.0, 4) is Learned.BACKOFF  # another owner's probe failed
    window.start()
    assert window.fail(900.0, "x")
    assert window.backoffs == 5


def test_a_kick_and_a_recovery_at_another_owner_end_a_backoff_here_ADM_03() -> None:
    window = SiteWindow(in_flight=1)
    assert window.adopt_backoff(0.0, None, 0) is Learned.NOTHING  # it was well all along
    window.adopt_backoff(0.0, 60.0, 1)
    assert window.adopt_backoff(10.0, 0.0, 1) is Learned.ENDED
    assert not window.in_backoff(10.0)
    assert window.probing
    assert window.adopt_backoff(11.0, None, 0) is Learned.ENDED
    assert (window.probing, window.backoffs, window.in_flight) == (False, 0, 1)


def test_a_limit_of_one_is_kept() -> None:
    window = SiteWindow(limit=1)
    drive(window, 10)
    assert window.room(0.0) == 1


@given(st.lists(st.sampled_from(["start", "ok", "bad", "own", "undo", "tick"]), max_size=200), st.floats(1, 50))
def test_the_window_stays_within_its_bounds_whatever_happens(events: list[str], limit: float) -> None:
    window, now = SiteWindow(limit=limit), 0.0
    for event in events:
        if event == "start" and window.room(now):
            window.start()
        elif event == "ok":
            window.succeed()
        elif event in ("bad", "own"):
            window.fail(now, event, transport=event == "own", jitter=0.5)
        elif event == "undo":
            window.undo()
        else:
            now += 45.0
        assert 1.0 <= window.size <= max(limit, 1.0)
        assert window.in_flight >= 0
        assert 0 <= window.room(now) <= max(limit, 1.0)
        if window.in_backoff(now):
            assert window.backoff_until is not None
            assert window.backoff_until <= now + BACKOFF_LIMIT * 1.1


def test_a_site_fails_until_something_succeeds_or_an_hour_has_passed_since_its_backoff() -> None:
    window = SiteWindow()
    assert not window.failing(0.0)
    window.blame(0.0, "535 refused", transport=True)
    assert window.failing(59.0)
    assert window.failing(600.0), "its backoff is over, and nothing was tried since"
    assert not window.failing(60.0 + 3600.0)
    window.succeed()
    assert not window.failing(600.0)
