"""When two rows of measured values can be told apart, and when they cannot."""

import math
import random

import pytest
from bench.verdict import compare, percent, summary, words
from hypothesis import given
from hypothesis import strategies as st

values = st.floats(0.01, 1e6)
rows = st.integers(1, 30).flatmap(
    lambda count: st.tuples(
        st.lists(values, min_size=count, max_size=count), st.lists(values, min_size=count, max_size=count)
    )
)


def noisy(middle: float, share: float, seed: int, count: int = 10) -> list[float]:
    """Values about a middle."""
    dice = random.Random(seed)
    return [middle * (1 + dice.uniform(-share, share)) for _ in range(count)]


def test_the_same_values_are_not_told_apart() -> None:
    row = noisy(1000, 0.2, 1)
    found = compare(row, row)
    assert (found.difference, found.spread, found.told) == (0, 0, False)
    assert words(found, higher_is_better=True) == "not to be told apart"


def test_a_tenth_more_is_told_where_pairs_differ_by_two_percent() -> None:
    found = compare(noisy(1000, 0.01, 1), noisy(1100, 0.01, 2))
    assert found.told
    assert words(found, higher_is_better=True).startswith("faster by ")
    assert words(compare(noisy(1100, 0.01, 2), noisy(1000, 0.01, 1)), higher_is_better=True).startswith("slower by ")


def test_what_costs_more_is_called_so() -> None:
    more, less = noisy(0.44, 0.005, 1), noisy(0.40, 0.005, 2)
    assert words(compare(less, more), higher_is_better=False).endswith(" more")
    assert words(compare(more, less), higher_is_better=False).endswith(" less")


def test_a_difference_smaller_than_the_spread_is_not_told() -> None:
    assert not compare(noisy(1000, 0.2, 1), noisy(1030, 0.2, 2)).told


def test_a_machine_that_slows_both_runs_of_a_pair_down_hides_no_difference() -> None:
    weather = [1.0, 0.5, 0.9, 0.4, 1.0, 0.6, 0.5, 1.1, 0.8, 0.7]
    base = [1000 * one for one in weather]
    head = [930 * one * jitter for one, jitter in zip(weather, noisy(1, 0.01, 3), strict=True)]
    assert words(compare(base, head), higher_is_better=True).startswith("slower by ")


def test_one_pair_that_says_otherwise_among_ten_leaves_it_open_and_among_fifteen_it_does_not() -> None:
    assert not compare([100.0] * 10, [120.0] * 9 + [90.0]).told
    assert compare([100.0] * 15, [120.0] * 14 + [90.0]).told


def test_less_than_one_percent_is_no_difference_even_if_it_always_shows() -> None:
    assert not compare([100.0] * 10, [100.9] * 10).told
    assert compare([100.0] * 10, [101.1] * 10).told


def test_few_runs_tell_nothing_and_the_words_say_so() -> None:
    found = compare([100.0] * 3, [300.0] * 3)
    assert not found.told
    assert words(found, higher_is_better=True) == "not to be told apart: too few runs (3)"


def test_what_is_too_small_to_be_measured_is_not_told_apart() -> None:
    found = compare([0.0] * 10, [0.01] * 10)
    assert not found.told
    assert percent(found.difference) == "?"
    assert not compare([0.0] * 10, [0.0] * 10).told


@pytest.mark.parametrize(
    ("base", "head"), [([], []), ([1.0], []), ([1.0], [math.nan]), ([-1.0], [1.0]), ([math.inf], [1.0])]
)
def test_rows_that_do_not_pair_or_hold_no_measured_values_are_refused(base: list[float], head: list[float]) -> None:
    with pytest.raises(ValueError):
        compare(base, head)


def test_a_summary_is_the_median_and_the_quartiles() -> None:
    found = summary([5, 1, 3, 2, 4])
    assert (found.low, found.median, found.high) == (2, 3, 4)


@given(rows)
def test_whoever_is_called_base_the_verdict_is_the_same(pair: tuple[list[float], list[float]]) -> None:
    there, back = compare(*pair), compare(pair[1], pair[0])
    assert there.told == back.told
    if there.told:
        assert (there.difference > 0) != (back.difference > 0)


@given(rows, st.randoms(use_true_random=False))
def test_the_order_of_the_pairs_does_not_matter(pair: tuple[list[float], list[float]], dice: random.Random) -> None:
    mixed = list(zip(*pair, strict=True))
    dice.shuffle(mixed)
    again = compare([a for a, _ in mixed], [b for _, b in mixed])
    assert again == compare(*pair)


@given(st.floats(0.5, 2), st.lists(st.tuples(values, st.floats(0.97, 1.03)), min_size=1, max_size=30))
def test_what_is_told_is_greater_than_one_percent_and_most_pairs_agree(
    factor: float, runs: list[tuple[float, float]]
) -> None:
    base, head = [one for one, _ in runs], [one * factor * jitter for one, jitter in runs]
    found = compare(base, head)
    if found.told:
        assert abs(math.log1p(found.difference)) > math.log(1.01)
        larger = sum(b > a for a, b in zip(base, head, strict=True))
        agreeing = larger if found.difference > 0 else found.pairs - larger
        assert agreeing >= found.pairs * 0.75


@given(st.integers(0, 2**32), st.floats(0.02, 0.3), st.integers(10, 25))
def test_a_difference_of_twice_what_the_noise_can_do_is_always_told(seed: int, share: float, count: int) -> None:
    # A pair differs by (1 + share) / (1 - share) at most, so its interquartile range by the square of that.
    factor = ((1 + share) / (1 - share)) ** 3 * 1.02
    assert compare(noisy(100, share, seed, count), noisy(100 * factor, share, seed + 1, count)).told


def test_identical_programs_are_told_apart_in_one_of_a_hundred_comparisons_at_most() -> None:
    told = sum(compare(noisy(100, 0.1, seed), noisy(100, 0.1, seed + 10_000)).told for seed in range(2000))
    assert told <= 20
