"""How a comparison of two commits is planned and told, without measuring anything."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from bench.compare import SPEED, Clock, Kind, Measured, kinds, load_of, options, order, table, to_json
from bench.side import CannotMeasure, check_out, code_folders, commit_of

MACHINE = {"date": "2026-11-29", "cpu": "2 × test", "system": "Linux", "python": "3.11"}
QUEUE = Kind("queue", True, 2048)


def measured(base: list[float], head: list[float], name: str = SPEED) -> Measured:
    found = Measured({}, MACHINE, "aaaa", "bbbb")
    for pair, is_head in order(len(base)):
        found.add(pair, is_head, QUEUE, {name: (head if is_head else base)[pair]})
    return found


def test_runs_alternate_so_that_each_has_the_other_beside_it_and_goes_first_as_often() -> None:
    assert "".join("B" if head else "A" for _, head in order(4)) == "ABBAABBA"
    assert [pair for pair, _ in order(3)] == [0, 0, 1, 1, 2, 2]


def test_every_part_is_measured_in_every_way_it_knows_and_with_every_size() -> None:
    plan = kinds(("ingress", "queue"), (2048, 102_400))
    assert [kind.label for kind in plan["ingress"]] == [
        "ingress alone, one a connection, 2 KiB",
        "ingress alone, reuse, 2 KiB",
        "ingress alone, one a connection, 100 KiB",
        "ingress alone, reuse, 100 KiB",
    ]
    assert [kind.label for kind in plan["queue"]] == ["queue alone, 2 KiB", "queue alone, 100 KiB"]


def test_large_messages_are_fewer_and_small_orders_are_kept() -> None:
    assert load_of(QUEUE, 5000, 40).messages == 5000
    assert load_of(Kind("queue", True, 102_400), 5000, 40).messages == 400
    assert load_of(Kind("queue", True, 50_000_000), 100, 40).messages == 100


def test_the_table_says_slower_faster_more_and_less() -> None:
    assert "**slower by 20 %**" in table(measured([100.0] * 10, [80.0] * 10))
    assert "**faster by 25 %**" in table(measured([80.0] * 10, [100.0] * 10))
    assert "**25 % more**" in table(measured([0.8] * 10, [1.0] * 10, "CPU ms, queue"))
    assert "**20 % less**" in table(measured([1.0] * 10, [0.8] * 10, "CPU ms, queue"))


def test_the_table_says_when_nothing_can_be_told_apart() -> None:
    said = table(measured([100.0 + n for n in range(10)], [109.0 - n for n in range(10)]))
    assert "| not to be told apart |" in said
    assert "Nothing can be told apart" in said


def test_the_table_says_that_few_runs_say_nothing() -> None:
    said = table(measured([100.0] * 3, [50.0] * 3))
    assert "too few runs (3)" in said
    assert "**Only 3 runs of each" in said


def test_parts_whose_cpu_is_too_little_to_be_read_are_left_out() -> None:
    assert "CPU" not in table(measured([0.001] * 10, [0.002] * 10, "CPU ms, config")).split("CPU is user")[0]


def test_what_could_not_be_measured_is_told_in_a_line() -> None:
    found = measured([1.0] * 10, [1.0] * 10)
    found.failures.append("bbbb: ingress does not come up\nand more")
    assert "Not measured: bbbb: ingress does not come up\n" in table(found)


def test_the_raw_figures_are_written_run_by_run() -> None:
    (written,) = json.loads(to_json(measured([1.0, 2.0], [3.0, 4.0])))["runs"]
    assert written["base"] == [{SPEED: 1.0}, {SPEED: 2.0}]
    assert written["head"] == [{SPEED: 3.0}, {SPEED: 4.0}]
    assert (written["part"], written["size"]) == ("queue", 2048)


def test_the_time_left_is_told_from_the_runs_so_far() -> None:
    clock = Clock({"queue": 4, "whole": 4}, {"queue": 2, "whole": 4})
    before = clock.left
    clock.took("queue", 1000)
    assert clock.left > before
    for _ in range(3):
        clock.took("queue", 1000)
    clock.skip("whole")
    assert clock.left == 0


def test_only_and_sizes_choose_what_is_measured() -> None:
    chosen = options(["main", "--only", "whole", "--only", "queue", "--sizes", "2048"])
    assert (chosen.base, chosen.head, chosen.only, chosen.sizes) == ("main", "HEAD", ["queue", "whole"], [2048])


def git(folder: Path, *arguments: str) -> None:
    who = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
    subprocess.run(["git", "-C", str(folder), *who, *arguments], check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    (root / "lib" / "thing").mkdir(parents=True)
    (root / "lib" / "thing" / "__init__.py").write_text("NUMBER = 1\n")
    (root / "pyproject.toml").write_text('[tool.hatch.build]\ndev-mode-dirs = ["lib", "gone"]\n')
    (root / "requirements.lock").write_text("")
    git(root.parent, "init", "-q", str(root))
    git(root, "add", ".")
    git(root, "commit", "-qm", "first")
    (root / "lib" / "thing" / "__init__.py").write_text("NUMBER = 2\n")
    git(root, "commit", "-qam", "second")
    return root


def test_a_commit_is_checked_out_and_its_code_is_what_is_imported(repository: Path, tmp_path: Path) -> None:
    said: list[str] = []
    for revision, number in (("HEAD~1", "1"), ("HEAD", "2")):
        side = check_out(commit_of(revision, repository), tmp_path / number, said.append, repository)
        printed = subprocess.run(
            [side.python, "-c", "import thing; print(thing.NUMBER)"],
            env=side.variables(),
            capture_output=True,
            text=True,
            check=True,
        )
        assert printed.stdout.strip() == number
        assert side.python == sys.executable
    assert all("shares its environment" in line for line in said)


def test_a_commit_that_is_not_there_is_told_with_what_to_do(repository: Path) -> None:
    with pytest.raises(CannotMeasure, match=r"there is no commit 'nowhere'.*git fetch"):
        commit_of("nowhere", repository)


def test_a_tree_that_does_not_say_where_its_code_is_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CannotMeasure, match="choose a later commit"):
        code_folders(tmp_path, "abcd")
