"""Whether an aim is reached, and that the aims are those of the design."""

import re

import pytest
from bench.aims import CPU, HEALTHY, IDLE, KIB, MEMORY, MIB, SPEED, Limit, cpu, percentile, speed
from bench.side import ROOT
from hypothesis import given
from hypothesis import strategies as st

DESIGN = (ROOT / "docs/design.md").read_text()


def numbers(pattern: str) -> list[float]:
    found = re.search(pattern, " ".join(DESIGN.split()))
    assert found is not None, pattern
    return [float(one) for one in found.groups()]


def test_the_aims_at_2_kib_are_those_of_the_design() -> None:
    said = numbers(r"\*\*(\d+) × Postfix's throughput at one message a connection, (\d+) × with reuse\*\*")
    assert said == [SPEED[2 * KIB, False].aim, SPEED[2 * KIB, True].aim]
    assert all(SPEED[2 * KIB, reuse].least == SPEED[2 * KIB, reuse].aim for reuse in (False, True))


def test_the_aims_at_100_kib_are_those_of_the_design() -> None:
    said = numbers(
        r"at 100 KiB at least ([\d.]+) × and with reuse ([\d.]+) × Postfix's throughput \(aim ([\d.]+) ×\)"
        r" for at most ([\d.]+) CPU ms \(aim ([\d.]+)\)"
    )
    single, reuse, used = SPEED[100 * KIB, False], SPEED[100 * KIB, True], CPU[100 * KIB]
    assert said == [single.least, reuse.least, single.aim, used.least, used.aim]
    assert reuse.aim == single.aim


def test_the_aims_of_larger_mail_and_of_healthy_mail_are_those_of_the_design() -> None:
    assert numbers(r"at 1 MiB at most ([\d.]+) CPU ms \(aim ([\d.]+)\)") == [CPU[MIB].least, CPU[MIB].aim]
    tens = SPEED[10 * MIB, False]
    assert numbers(r"at 10 MiB at least ([\d.]+) × \(aim ([\d.]+) ×\)") == [tens.least, tens.aim]
    assert SPEED[10 * MIB, True] == tens
    assert numbers(r"Healthy mail's p99 stays under (\d+) ms") == [HEALTHY.aim]


def test_the_budget_of_memory_is_that_of_the_design() -> None:
    idle, load = MEMORY["idle"], MEMORY["after load"]
    said = numbers(
        r"at most (\d+) MiB idle \((\d+), and (\d+) for the policy service; aim (\d+)\)"
        r" and (\d+) MiB after load \(aim (\d+)\)"
    )
    assert said == [idle.least, *IDLE.values(), idle.aim, load.least, load.aim]


def test_a_bound_that_is_met_exactly_is_reached() -> None:
    assert Limit(1.1, 2).verdict(1.1) == "at least: 1.1 ×, reached; aim: 2 ×, not reached"
    assert Limit(16, 10, "ms", lower_is_better=True).verdict(16) == "at most: 16 ms, reached; aim: 10 ms, not reached"


@given(st.floats(0, 100), st.floats(0, 100), st.floats(0, 100))
def test_who_reaches_the_aim_reaches_what_must_be_reached(value: float, one: float, other: float) -> None:
    higher, lower = (
        Limit(min(one, other), max(one, other)),
        Limit(max(one, other), min(one, other), lower_is_better=True),
    )
    for limit in (higher, lower):
        assert limit.reached(value, limit.least) or not limit.reached(value, limit.aim)


def test_without_runs_of_both_there_is_no_ratio() -> None:
    assert speed(2048, False, [1.0], []) is None
    assert speed(2048, False, [], [1.0]) is None
    assert cpu(102_400, []) is None
    assert cpu(2048, [1.0]) is None


def test_the_99th_percentile_of_a_hundred_is_the_second_worst() -> None:
    values = [float(one) for one in range(100, 0, -1)]
    assert percentile(values, 0.99) == 99
    assert percentile(values, 0.5) == 50
    assert percentile(values, 1) == 100


def test_a_percentile_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no values"):
        percentile([], 0.5)


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0.01, 1))
def test_a_percentile_is_one_of_the_values_and_as_many_lie_at_or_below_it(values: list[float], share: float) -> None:
    found = percentile(values, share)
    assert found in values
    assert sum(value <= found for value in values) >= share * len(values) - 1e-9
