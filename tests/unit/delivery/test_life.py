"""The life of a recipient as one table (design 4; FIN-01; LSE-03; ADM-02)."""

import itertools

import pytest

from mailrail.core.delivery.life import FINAL, LIVE, STEPS, Event, IllegalStep, State, step


def test_every_live_state_can_be_entered_and_left() -> None:
    for state in LIVE:
        assert state in STEPS.values()
        assert any(source is state and target in FINAL for (source, _), target in STEPS.items())


def test_nothing_leaves_a_final_state_FIN_01() -> None:
    for state, event in itertools.product(FINAL, Event):
        with pytest.raises(IllegalStep):
            step(state, event)


def test_a_late_delivery_counts_wherever_the_recipient_is_not_final_LSE_03() -> None:
    for state in LIVE:
        assert step(state, Event.LATE_DELIVERY) is State.DELIVERED


def test_a_hold_on_a_leased_recipient_waits_for_the_attempt_ADM_02() -> None:
    with pytest.raises(IllegalStep):
        step(State.LEASED, Event.HOLD)
    assert step(State.LEASED, Event.DEFER_HELD) is State.HELD


def test_a_held_recipient_is_never_leased() -> None:
    with pytest.raises(IllegalStep):
        step(State.HELD, Event.LEASE)


def test_every_event_happens_somewhere() -> None:
    assert {event for _, event in STEPS} == set(Event)


def test_an_illegal_step_names_state_and_event() -> None:
    with pytest.raises(IllegalStep, match="queued cannot expire"):
        step(State.QUEUED, Event.EXPIRE)
