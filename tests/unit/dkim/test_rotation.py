"""Keys are rotated from times alone: published, waited for, signing, retired, removed."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailrail.core.dkim.rotation import DAY, KeyStage, KeyTimes, Rotation, RotationPlan, plan

ROTATION = Rotation(every=90 * DAY, published_before=2 * DAY, overlap=14 * DAY)


def stages(found: RotationPlan) -> dict[str, KeyStage]:
    return dict(found.stages)


def test_without_a_key_one_is_made() -> None:
    assert plan([], ROTATION, 0) == RotationPlan((), True, None)


def test_a_first_key_is_published_then_waits_then_signs() -> None:
    made = KeyTimes("a", 0, None)
    assert plan([made], ROTATION, 50 * DAY) == RotationPlan((("a", KeyStage.NEW),), False, None)
    seen = KeyTimes("a", 0, 10 * DAY)
    assert stages(plan([seen], ROTATION, 12 * DAY - 1)) == {"a": KeyStage.WAITING}
    assert plan([seen], ROTATION, 12 * DAY - 1).next_look == 12 * DAY
    assert stages(plan([seen], ROTATION, 12 * DAY)) == {"a": KeyStage.SIGNING}


def test_its_successor_is_made_early_enough_to_be_ready_in_time() -> None:
    key = KeyTimes("a", 0, 0)  # it signs from day 2 to day 92
    assert not plan([key], ROTATION, 90 * DAY - 1).make
    assert plan([key], ROTATION, 90 * DAY).make
    assert not plan([key, KeyTimes("b", 90 * DAY, None)], ROTATION, 400 * DAY).make


def test_the_old_key_signs_until_every_resolver_can_know_the_new_one() -> None:
    keys = [KeyTimes("b", 90 * DAY, 90 * DAY), KeyTimes("a", 0, 0)]
    assert stages(plan(keys, ROTATION, 92 * DAY - 1)) == {"a": KeyStage.SIGNING, "b": KeyStage.WAITING}
    found = plan(keys, ROTATION, 92 * DAY)
    assert stages(found) == {"a": KeyStage.RETIRED, "b": KeyStage.SIGNING}
    assert found.of(KeyStage.SIGNING) == ("b",)
    assert found.next_look == 106 * DAY
    assert stages(plan(keys, ROTATION, 106 * DAY)) == {"a": KeyStage.REMOVABLE, "b": KeyStage.SIGNING}


def test_a_new_key_whose_record_vanished_leaves_the_old_one_signing() -> None:
    keys = [KeyTimes("a", 0, 0), KeyTimes("b", 90 * DAY, None)]
    assert stages(plan(keys, ROTATION, 200 * DAY)) == {"a": KeyStage.SIGNING, "b": KeyStage.NEW}


def test_a_key_that_was_skipped_goes_when_those_after_it_sign() -> None:
    keys = [KeyTimes("a", 0, 0), KeyTimes("b", 1 * DAY, None), KeyTimes("c", 2 * DAY, 2 * DAY)]
    assert stages(plan(keys, ROTATION, 4 * DAY)) == {
        "a": KeyStage.RETIRED,
        "b": KeyStage.RETIRED,
        "c": KeyStage.SIGNING,
    }


def test_keys_that_change_faster_than_they_are_published_still_overlap() -> None:
    fast = Rotation(every=1 * DAY, published_before=2 * DAY, overlap=1 * DAY)
    assert not plan([KeyTimes("a", 0, 0)], fast, 2 * DAY - 1).make
    assert plan([KeyTimes("a", 0, 0)], fast, 2 * DAY).make


TIMES = st.integers(0, 300).map(lambda days: float(days * DAY))


@given(st.lists(st.tuples(TIMES, st.none() | TIMES), max_size=5), TIMES, TIMES)
def test_at_most_one_key_signs_and_an_older_one_never_again(
    pairs: list[tuple[float, float | None]], now: float, later: float
) -> None:
    keys = [
        KeyTimes(f"k{number}", made, None if seen is None else made + seen) for number, (made, seen) in enumerate(pairs)
    ]
    before, after = (plan(keys, ROTATION, at) for at in sorted((now, now + later)))
    order = list(KeyStage)
    for found in (before, after):
        assert len(found.of(KeyStage.SIGNING)) <= 1
        # Newer keys are never further in their life than older ones.
        for (_, older), (_, newer) in itertools.pairwise(found.stages):
            if KeyStage.NEW not in (older, newer):
                assert order.index(older) >= order.index(newer)
    for selector, stage in before.stages:
        assert order.index(stages(after)[selector]) >= order.index(stage)


@pytest.mark.parametrize("at", [0.0, 12 * DAY, 200 * DAY])
def test_nothing_changes_before_the_next_look(at: float) -> None:
    keys = [KeyTimes("a", 0, 0), KeyTimes("b", 90 * DAY, 91 * DAY)]
    found = plan(keys, ROTATION, at)
    if found.next_look is None:
        assert plan(keys, ROTATION, at + 10_000 * DAY) == found
    else:
        assert plan(keys, ROTATION, found.next_look - 1).stages == found.stages
        assert plan(keys, ROTATION, found.next_look) != found
