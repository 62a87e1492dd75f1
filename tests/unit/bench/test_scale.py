"""What the bench of scale says: whether speed is flat, what replicas cost, and what is only computed."""

import argparse
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bench import report, scale
from bench.healthy import Seen
from bench.load import Arrival, OwnSink
from bench.scale import (
    LARGE_OCTETS,
    PARTS,
    Case,
    Large,
    Replicas,
    Result,
    became,
    computed,
    flatness,
    keep_on_page,
    measure_large,
    options,
    remarks,
    room_for,
    section,
    steps,
    tables,
)
from bench.source import body_size

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
    text = tables(Result(MACHINE, [case, backlog(0, 1234)], [], [replicas], ["large: it ended\nand more"]))
    assert "| 10,000 idle connections | 2 of 2 | 4.0 | 5.0 | 5.0 | 0.5 | 0.6 | 0.6 | 120 | a note |" in text
    assert "| 0 queued | 1,234 | 0.50 |" in text
    assert "| 1 of each | 2,000 | 0.20 | 0.10 | 0.20 | 4.8 | 0.00 |" in text
    assert "- Failed: large: it ended\n" in text


def large(**changes: Any) -> Large:
    found: dict[str, Any] = {
        "what": "5 messages of 2 MB from 1 client",
        "messages": 5,
        "octets": 2 << 20,
        "accepted": 4,
        "whole": 4,
        "twice": 0,
        "damaged": 0,
        "put_off": {"452": 1234},
        "refusals": (),
        "first_s": 2.0,
        "accepted_s": 3.0,
        "delivered_s": 4.0,
        "pss_mb": {"ingress": 70.0, "postgres": 150.0},
    }
    return Large(**found | changes)


def columns(table: str) -> set[int]:
    """Of how many cells the lines of a table in Markdown are."""
    return {line.count("|") for line in table.splitlines() if line.startswith("|")}


def test_large_messages_have_a_table_with_how_often_452_was_said_and_how_much_memory_there_was() -> None:
    result = Result(MACHINE)
    result.add(large())
    text = section("large", result)
    assert "| 5 messages of 2 MB from 1 client | 4 of 5 | 1,234 | 4 of 4 | 2 | 3 | 4 | 2 | 70 | 150 |" in text
    assert columns(text) == {11}
    assert result.failures == []


def test_what_the_row_of_large_messages_does_not_say_is_said_below_it() -> None:
    assert remarks(large()) == []
    some = large(what="m", put_off={"lost": 2, "452": 7, "421": 1}, twice=3, refusals=("452 4.3.1 full",))
    assert remarks(some) == [
        "m: tried again also after 1 × 421, 2 × lost.",
        "m: 3 came more than once.",
        "m: never accepted: 452 4.3.1 full.",
    ]


def test_an_accepted_message_that_did_not_come_whole_fails_the_bench_and_the_page_says_so() -> None:
    result = Result(MACHINE)
    result.add(large(what="m", whole=3, damaged=1))
    assert result.failures == [
        "large: m: 1 of 4 accepted messages did not come whole",
        "large: m: 1 messages came with another size",
    ]
    assert "- Failed: large: m: 1 of 4 accepted messages did not come whole" in section("large", result)


def test_accepted_large_messages_are_looked_for_one_by_one_with_every_octet() -> None:
    size = 2_000_000
    good, short = body_size(size), body_size(size) - 78
    found = {
        "times": [[0, 10.0, 5.0], [1, 10.0, 6.0], [2, 10.0, None], [3, 10.0, 7.0], [4, 10.0, 8.0]],
        "put_off": {"452": 3},
        "replies": ["452 4.3.1 full"],
        "started": 10.0,
        "ended": 19.0,
    }
    arrived = {
        "0.large1": [Arrival(16.0, good)],
        "1.large1": [Arrival(17.0, good), Arrival(90.0, good)],  # twice: the first one counts
        "3.large1": [Arrival(18.0, short)],
        "0.large9": [Arrival(99.0, good)],  # of another run
    }
    seen = became("what", size, "large1", found, arrived, {"queue": 1.0})
    assert (seen.messages, seen.accepted, seen.whole, seen.twice, seen.damaged) == (5, 4, 2, 1, 1)
    assert (seen.first_s, seen.accepted_s, seen.delivered_s, seen.put_off) == (5.0, 9.0, 7.0, {"452": 3})
    assert seen.refusals == ("452 4.3.1 full",)


def test_large_messages_are_not_begun_where_the_disk_has_no_room_and_what_is_needed_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: argparse.Namespace(free=20 * 10**9))
    wanted = r"100 messages of 100 MB from 1 client need 23 GB free in \S+, which has 20 GB.*--large-messages"
    sink: Any = None  # not asked
    with pytest.raises(OSError, match=wanted):
        measure_large(1, sink, options(["--only", "large"]))


def test_room_grows_with_what_is_sent_and_what_postgres_keeps_of_it_is_bounded() -> None:
    gigabyte = 1 << 30
    assert room_for(100, gigabyte) == 125 * gigabyte + 4 * gigabyte + 4 * gigabyte + 2 * gigabyte
    assert room_for(1, 1 << 20) == 5 * (1 << 18) + 4 * (1 << 20) + 2 * gigabyte


def page_with(tmp_path: Path) -> Path:
    page = tmp_path / "page.md"
    page.write_text("".join(f"<!-- scale {part}: begin -->\nof old\n<!-- scale {part}: end -->\n" for part in PARTS))
    return page


def test_each_part_has_a_section_of_the_page_and_what_was_not_measured_keeps_its_own(tmp_path: Path) -> None:
    page = page_with(tmp_path)
    result = Result(
        MACHINE, [backlog(0, 1000), backlog(10, 900)], failures=["routes: it ended", "backlog: so did this"]
    )
    for part in ("backlog", "routes"):
        keep_on_page(part, result, page)
    text = page.read_text()
    of_backlog = text.partition("<!-- scale backlog: end -->")[0]
    assert "| what else there is | messages/s | CPU ms |" in of_backlog
    assert "0.90 × the speed with 0 queued" in of_backlog
    assert "- Failed: backlog: so did this" in of_backlog
    assert "routes: it ended" not in text
    assert text.count("of old") == len(PARTS) - 1


def test_the_page_has_a_section_for_each_part() -> None:
    text = report.PAGE.read_text()
    assert [text.count(f"<!-- scale {part}: {end} -->") for part in PARTS for end in ("begin", "end")] == [1] * 10


def test_what_ends_badly_loses_nothing_of_what_was_measured_before_or_comes_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    written = tmp_path / "scale.json"
    kept: list[list[str]] = []

    def broken(sink: OwnSink) -> Case:
        kept.append([one["what"] for one in json.loads(written.read_text())["cases"]])
        raise ConnectionResetError("it went away")

    def fine(part: str) -> Callable[[OwnSink], Case]:
        return lambda sink: Case(part, f"{part} {sink.count()}", per_s=5.0)

    def of(part: str, chosen: argparse.Namespace) -> list[tuple[str, scale.Step]]:
        return [("first", fine(part)), ("second", broken)]

    monkeypatch.setattr(scale, "steps", of)
    page = page_with(tmp_path)
    monkeypatch.setattr(scale, "keep_on_page", lambda part, result: keep_on_page(part, result, page))
    chosen = options(["--only", "backlog", "--only", "routes", "--page", "--json", str(written)])
    result = Result(MACHINE)
    scale.measure(chosen, result)
    assert kept == [["backlog 0"], ["backlog 0", "routes 0"]]
    assert [one.what for one in result.cases] == ["backlog 0", "routes 0"]
    assert result.failures == [f"{part}: second: ConnectionResetError: it went away" for part in ("backlog", "routes")]
    assert page.read_text().count("| 5 | 0.00 |") == 2
    told = capsys.readouterr().err
    assert "backlog, 2 of 2: second\n" in told
    assert "routes, 1 of 2: first\n" in told


def test_every_part_has_its_steps_and_share_makes_them_smaller() -> None:
    chosen = options(["--share", "0.1"])
    assert {part: [what for what, _ in steps(part, chosen)] for part in PARTS} == {
        "backlog": ["0 queued", "1,000 queued", "100,000 queued", "500,000 queued"],
        "routes": ["0 routes", "10,000 routes"],
        "connections": ["1,000 idle connections", "100 senders of an octet a second"],
        "large": ["10 messages of 100 MB from 1 client", "10 messages of 100 MB from 10 clients"],
        "replicas": ["1 of each service", "2 of each service", "4 of each service"],
    }
    assert chosen.large_octets == LARGE_OCTETS


def test_everything_is_measured_unless_something_is_chosen() -> None:
    assert options([]).only == list(PARTS)
    assert options(["--only", "routes"]).only == ["routes"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--share", "0"],
        ["--messages", "0"],
        ["--seconds", "0"],
        ["--only", "zz"],
        ["--large-messages", "0"],
        ["--large-octets", "1000"],
        ["--client-upload-octets", "100000000"],
        ["--upload-octets", "0"],
        *(["--page", *small] for small in (["--share", "0.5"], ["--large-messages", "6"], ["--messages", "9"])),
    ],
)
def test_what_makes_no_sense_is_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit):
        options(arguments)
