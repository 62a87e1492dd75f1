"""The queue's metrics: their labels are lower_snake, and each that can be counted is there from 0 on."""

import ast
import re
from pathlib import Path

from prometheus_client import Counter, Gauge, Histogram

import mailrail_queue
from mailrail_queue import metrics

CODE = Path(mailrail_queue.__path__[0])


def steps_that_can_fail() -> set[str]:
    """The steps that the code names when it calls `faults.failed`."""
    calls = [
        node
        for path in CODE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("faults.failed", "failed")
    ]
    return {ast.literal_eval(call.args[1]) for call in calls}


def test_every_label_of_the_queue_is_lower_snake() -> None:
    named = {
        (family.name, value)
        for metric in vars(metrics).values()
        if isinstance(metric, Counter | Gauge | Histogram)
        for family in metric.collect()
        for sample in family.samples
        for label, value in sample.labels.items()
        if label != "le"
    }
    assert named
    assert [one for one in sorted(named) if not re.fullmatch("[a-z][a-z0-9_]*", one[1])] == []


def test_a_step_that_fails_for_the_first_time_raises_a_count_that_was_there_before() -> None:
    seeded = {sample.labels["step"] for family in metrics.FAILURES.collect() for sample in family.samples}
    steps = steps_that_can_fail()
    assert len(steps) > 5
    assert steps <= seeded
