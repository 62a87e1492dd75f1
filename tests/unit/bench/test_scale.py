"""What the bench of scale says: whether speed is flat, what replicas cost, and what is only computed."""

import pytest
from bench.healthy import Seen
from bench.scale import PARTS, Case, Replicas, Result, computed, flatness, options, tables

MACHINE = {"date": "d", "commit": "c", "cpu": "p", "system": "s", "python": "3", "postfix": "3"}


def backlog(queued: int, per_s: float) -> Case:
    return Case("backlog", f"{queued:,} queued", per_s=per_s, cpu_ms=0.5)


def test_speed_with_a_backlog_is_flat_within_a_fifth() -> None:
    lines = flatness([backlog(0, 1000), backlog(10_000, 800), backlog(5_000_000, 790)])
    assert lines == [
        "- 10,000 queued: 0.80 × the speed with 0 queued (aim: 0.8 ×, reached).",
        "- 5,000,000 queued: 0.79 × the speed with 0 queued (aim: 0.8 ×, not reached).",
    ]


def test_one_backlog_alone_is_compared_with_nothing() -> None:
    assert flatness([backlog(0, 1000), Case("routes", "0 routes", per_s=5.0)]) == []


def test_where_one_postgres_ends_is_computed_from_its_cpu_and_its_wal_and_said_to_be() -> None:
    said = computed(Replicas(2, 1000.0, {"queue": 0.3, "postgres": 0.25}, 0.5, 4.0, 0.1))
    assert said.startswith("Computed, not measured, with 2 of each")
    assert "32,000 messages a second" in said
    assert "125 MiB of WAL a second" in said


def test_a_postgres_that_used_nothing_is_not_computed_with() -> None:
    assert "too little to compute" in computed(Replicas(1, 1.0, {"postgres": 0.0}, 0.5, 4.0, 0.0))


def test_a_case_has_its_latencies_memory_and_notes_and_replicas_a_table_of_their_own() -> None:
    seen = Seen(2, 2, 2, (4.0, 5.0), (0.5, 0.6))
    case = Case("connections", "10,000 idle connections", seen, pss_mb={"ingress": 120.0}, notes=("a note",))
    replicas = Replicas(1, 2000.0, {"ingress": 0.2, "postgres": 0.1}, 0.2, 4.8, 0.0)
    text = tables(Result(MACHINE, [case, backlog(0, 1234)], [replicas], ["large: it ended\nand more"]))
    assert "| 10,000 idle connections |  |  | 2 of 2 | 4.0 | 5.0 | 5.0 | 0.5 | 0.6 | 0.6 | 120 | a note |" in text
    assert "| 0 queued | 1,234 | 0.50 |" in text
    assert "| 1 of each | 2,000 | 0.20 | 0.10 | 0.20 | 4.8 | 0.00 |" in text
    assert "Not measured: large: it ended\n" in text


def test_everything_is_measured_unless_something_is_chosen() -> None:
    assert options([]).only == list(PARTS)
    assert options(["--only", "routes"]).only == ["routes"]


@pytest.mark.parametrize("arguments", [["--share", "0"], ["--messages", "0"], ["--seconds", "0"], ["--only", "zz"]])
def test_what_makes_no_sense_is_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit):
        options(arguments)
