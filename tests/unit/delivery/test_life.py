"""The life of a recipient as one table (design 4; FIN-01; LSE-03; ADM-02)."""

from mailrail.core.delivery.life import FINAL, LIVE, MEANINGS, STEPS, Event, State


def test_every_live_state_can_be_entered_and_left() -> None:
    for state in LIVE:
        assert state in STEPS.values()
        assert any(source is state and target in FINAL for (source, _), target in STEPS.items())


def test_nothing_leaves_a_final_state_FIN_01() -> None:
    assert not any(source in FINAL for source, _ in STEPS)


def test_a_late_delivery_counts_wherever_the_recipient_is_not_final_LSE_03() -> None:
    for state in LIVE:
        assert STEPS[state, Event.DELIVER_LATE] is State.DELIVERED


def test_every_event_happens_somewhere_and_every_word_is_explained() -> None:
    assert {event for _, event in STEPS} == set(Event)
    assert set(MEANINGS) == {*State, *Event}
