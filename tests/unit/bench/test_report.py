"""What a report says of its aims: those of the design, and whether they are reached."""

import re

import pytest
from bench.report import AIMS, PAGE, ROOT, Result, Throughput, tables

MACHINE = {
    "date": "2026-11-29",
    "commit": "aaaa",
    "cpu": "2 × test",
    "system": "Linux",
    "python": "3.11",
    "postfix": "3",
}
OPTIONS = {"messages": 10, "size": 2048, "sessions": 2, "runs": 1}


def run(system: str, reuse: bool, speed: float) -> Throughput:
    return Throughput(system, reuse, 10, speed, speed, {system: 1.0}, 0.1, 0.1)


def test_the_aims_are_those_that_the_design_states() -> None:
    said = re.findall(
        r"\*\*(\d+) × Postfix's throughput at one message a connection, (\d+) × with reuse\*\*",
        (ROOT / "docs/design.md").read_text(),
    )
    assert [tuple(map(int, aims)) for aims in said] == [(AIMS[False], AIMS[True])]


def test_the_page_of_benchmarks_repeats_the_aims_of_the_design() -> None:
    said = re.findall(r"\(aim: (\d+) ×, (?:not )?reached\)", PAGE.read_text())
    assert [int(aim) for aim in said] == [AIMS[False], AIMS[True]]


@pytest.mark.parametrize(("speed", "verdict"), [(299.0, "not reached"), (300.0, "reached")])
def test_a_report_says_whether_an_aim_is_reached(speed: float, verdict: str) -> None:
    result = Result(OPTIONS, MACHINE, [run("Mailrail", False, speed), run("Postfix", False, 100.0)])
    assert f"(aim: 3 ×, {verdict})" in tables(result)
