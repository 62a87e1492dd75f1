"""What a report says of what was measured, and where it writes it."""

import argparse
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from bench.aims import SPEED
from bench.load import Load
from bench.proven import check
from bench.report import (
    PAGE,
    Database,
    Memory,
    Proven,
    Result,
    Throughput,
    carry_out,
    kind_of,
    mean_size,
    noting,
    panels,
    table,
    tables,
    write_page,
)

MACHINE = {
    "date": "2026-11-29",
    "commit": "aaaa",
    "cpu": "2 × test",
    "system": "Linux",
    "python": "3.11",
    "postfix": "3",
}
OPTIONS = {"sessions": 2}
LOAD = Load(10, 2, 2048, False, "a@a.test", "b@b.test")


def run(system: str, speed: float, load: Load = LOAD, cpu: float = 1.0, *, steady: bool = False) -> Throughput:
    return Throughput(system, load, speed, speed, {system.lower(): cpu}, 0.1, 0.1, steady)


def said(*runs: Throughput) -> str:
    return tables(Result(OPTIONS, MACHINE, list(runs)))


def test_the_page_of_benchmarks_repeats_the_aims_at_2_kib() -> None:
    found = re.findall(r"2 KiB.*aim: (\d+) ×, (?:not )?reached|\(aim: (\d+) ×, (?:not )?reached\)", PAGE.read_text())
    aims = [float(next(filter(None, one))) for one in found]
    assert aims[:2] == [SPEED[2048, False].aim, SPEED[2048, True].aim]


@pytest.mark.parametrize(("speed", "verdict"), [(299.0, "not reached"), (300.0, "reached")])
def test_a_report_says_whether_an_aim_is_reached(speed: float, verdict: str) -> None:
    assert f"(aim: 3 ×, {verdict})" in said(run("Mailrail", speed), run("Postfix", 100.0))


WARM = Proven("Mailrail", "DANE", "connections kept", 10, 100.0, {"outbound": 1.0}, 1, 4, 0, 0, 10)


def test_proven_mail_is_told_by_message_with_what_was_asked_of_others() -> None:
    theirs = replace(WARM, system="Postfix", cpu_ms={"postfix": 2.0, "more": 1.0}, full=10, resumed=0, questions=25)
    text = tables(Result(OPTIONS, MACHINE, proven=[WARM, replace(WARM, per_s=110.0), theirs]))
    assert "| DANE, connections kept: Mailrail | 100–110 | **1.00** | 0.10 | 0.40 | 0.00 | 0.00 |" in text
    assert "| DANE, connections kept: Postfix | 100 | **3.00** | 1.00 | 0.00 | 2.50 | 0.00 |" in text
    assert "proven" not in tables(Result(OPTIONS, MACHINE))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"questions": 1}, "1 questions went to the DNS"),
        ({"fetches": 2}, "2 to a policy host"),
        ({"proven": 9}, "9 of 10 messages went proven by DANE"),
    ],
)
def test_a_run_of_ours_that_was_not_warm_or_not_proven_is_no_figure(changes: dict[str, int], words: str) -> None:
    check(WARM)
    with pytest.raises(RuntimeError, match=words):
        check(replace(WARM, **changes))  # type: ignore[arg-type]
    check(replace(WARM, system="Postfix", **changes))  # type: ignore[arg-type]


def test_verdicts_are_of_medians_and_the_table_shows_all_runs() -> None:
    text = said(run("Mailrail", 100), run("Mailrail", 200), run("Mailrail", 900), run("Postfix", 100))
    assert "**2.0 × Postfix's messages a second**" in text
    assert "| 2 KiB, one a connection: Mailrail | 100–900 |" in text


def test_each_size_has_its_own_line_with_its_own_aims() -> None:
    large = replace(LOAD, size=102_400, reuse=True)
    text = said(run("Mailrail", 130, large, 2.0), run("Postfix", 100, large, 4.0))
    (line,) = [line for line in text.splitlines() if line.startswith("- 100 KiB, reuse")]
    assert "at least: 1.25 ×, reached; aim: 2 ×, not reached" in line
    assert "for 0.50 × its CPU a message" in line
    assert "2.00 CPU ms (at most: 2.5 ms, reached; aim: 1.5 ms, not reached)" in line


def test_what_the_design_does_not_speak_of_has_a_ratio_and_no_verdict() -> None:
    many = replace(LOAD, recipients=20)
    (line,) = [
        line for line in said(run("Mailrail", 50, many), run("Postfix", 100, many)).splitlines() if line[0:1] == "-"
    ]
    assert "0.50 × Postfix's" in line
    assert "reached" not in line


def test_a_system_that_is_taken_along_has_rows_of_its_own_and_changes_no_verdict() -> None:
    text = said(run("Mailrail", 300), run("Postfix", 100), run("exim", 5000))
    assert "| 2 KiB, one a connection: exim | 5000 |" in text
    assert "**3.0 × Postfix's messages a second**" in text


def test_a_load_is_named_by_what_is_unusual_about_it() -> None:
    assert kind_of(LOAD) == "2 KiB, one a connection"
    assert kind_of(replace(LOAD, mix=((10, 1),), reuse=True)) == "mix, reuse"
    assert kind_of(replace(LOAD, recipients=20, tls=True)) == "2 KiB, 20 recipients, STARTTLS, one a connection"


def test_the_mean_size_of_a_mix_is_by_weight() -> None:
    assert mean_size(replace(LOAD, mix=((100, 3), (500, 1)))) == 200
    assert mean_size(LOAD) == 2048


def test_memory_is_summed_and_judged_idle_and_after_load() -> None:
    states = [
        Memory("Mailrail", "idle", {"queue": 200.0, "ingress": 50.0}),
        Memory("Mailrail", "after load", {"queue": 401.0}),
    ]
    text = tables(Result(OPTIONS, MACHINE, memory=[*states, Memory("Postfix", "idle", {"postfix": 900.0})]))
    assert "- Memory of Mailrail, idle: 250 MiB (at most: 280 MiB, reached; aim: 220 MiB, not reached)." in text
    assert "after load: 401 MiB (at most: 400 MiB, not reached" in text
    assert "| Postfix, idle | **900** |" in text


def test_a_steady_run_is_told_apart_and_says_what_postgres_did() -> None:
    steady = run("Mailrail", 50, replace(LOAD, mix=((102_400, 1),)), steady=True)
    text = tables(Result(OPTIONS, MACHINE, [steady], database=Database(150.0, 30, 5, 210.0)))
    assert (
        "Steady flow for 150 s, content kept for 30 s, 5 checkpoints within: 210 KiB of WAL a message of 100 KiB"
        in text
    )


def test_what_could_not_be_measured_is_said_in_a_line() -> None:
    assert "Not measured: it ended\n" in tables(Result(OPTIONS, MACHINE, failures=["it ended\nand more"]))


def test_the_plot_shows_the_median_of_each_system_at_each_size() -> None:
    large = replace(LOAD, size=102_400)
    runs = [run("Mailrail", 1), run("Mailrail", 3), run("Mailrail", 9), run("Mailrail", 2, large), run("Postfix", 5)]
    speeds = panels(Result(OPTIONS, MACHINE, [*runs, run("Mailrail", 7, replace(LOAD, tls=True))]))[0]
    assert speeds.lines == {"Mailrail": [(2048, 3), (102_400, 2)], "Postfix": [(2048, 5)]}


def test_a_table_is_markdown() -> None:
    assert table(["a", "b"], [["1", "2"]]) == "| a | b |\n|---|---|\n| 1 | 2 |"


def test_a_section_of_the_page_is_replaced_and_the_rest_stays(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- one: begin -->\nold\n<!-- one: end -->\nafter\n")
    write_page("one", "new\n", page)
    assert page.read_text() == "before\n<!-- one: begin -->\nnew\n<!-- one: end -->\nafter\n"
    with pytest.raises(LookupError, match="<!-- two: begin -->"):
        write_page("two", "new\n", page)


def test_what_could_not_be_measured_is_noted_and_a_stopped_bench_tells_what_it_has_but_not_on_the_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure(chosen: argparse.Namespace, result: Result) -> None:
        with noting(result, "first"):
            raise ConnectionResetError("it went away")
        with noting(result, "second"):
            result.memory.append(Memory("Mailrail", "idle", {"queue": 1.0}))
        raise KeyboardInterrupt

    chosen = argparse.Namespace(json=tmp_path / "all" / "figures.json", page=True)
    assert carry_out(measure, chosen, Result(OPTIONS, MACHINE), tables, "no section of the page") == 1
    written = json.loads(chosen.json.read_text())
    assert written["failures"] == ["first: ConnectionResetError: it went away"]
    assert [one["state"] for one in written["memory"]] == ["idle"]
    shown = capsys.readouterr()
    assert "Not measured: first: ConnectionResetError: it went away" in shown.out
    assert "stopped" in shown.err
