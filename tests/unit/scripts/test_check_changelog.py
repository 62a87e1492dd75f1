"""Fragments of the changelog: which are well-formed, and what towncrier makes of them."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from check_changelog import ROOT, faults, types

TYPES = {"added", "changed", "fixed"}


def test_the_types_are_those_of_keep_a_changelog() -> None:
    assert types() == TYPES


@pytest.mark.parametrize("name", ["queue.added.md", "queue-stats.changed.md", "mailbox2.fixed.md"])
def test_a_fragment_of_whole_entries_is_well_formed(name: str) -> None:
    assert (
        faults(name, "- `mailrail queue stats`: counts mailboxes.\n- Reply 452 4.3.1: the disk is full.\n", TYPES) == []
    )


@pytest.mark.parametrize("name", ["queue.md", "Queue.added.md", "queue.removed.md", "17.added.md", "queue.added.txt"])
def test_a_name_of_another_form_is_a_fault(name: str) -> None:
    (fault,) = faults(name, "- `mailrail`: starts.\n", TYPES)
    assert "TOPIC.added|changed|fixed.md" in fault


@pytest.mark.parametrize(
    "line", ["", "`mailrail`: starts.", "- It starts.", "- `mailrail`: starts", "  continued.", f"- {'x' * 120}: long."]
)
def test_a_line_of_another_form_is_named_by_its_number(line: str) -> None:
    (fault,) = faults("queue.added.md", f"- `mailrail`: starts.\n{line}\n", TYPES)
    assert fault.startswith("queue.added.md:2: ")


def test_an_empty_fragment_is_a_fault() -> None:
    assert faults("queue.added.md", "", TYPES)


def test_releases_stand_newest_first_under_the_headings_of_keep_a_changelog(tmp_path: Path) -> None:
    for name in ("pyproject.toml", "CHANGELOG.md", "changelog.d/template.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n<!-- releases -->\n")

    def release(version: str, date: str, fragments: dict[str, str]) -> None:
        for name, text in fragments.items():
            (tmp_path / "changelog.d" / name).write_text(text)
        command = [sys.executable, "-m", "towncrier", "build", "--yes", "--version", version, "--date", date]
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)

    release("7.0.0", "2030-01-01", {"b.fixed.md": "- B: mended.\n", "a.added.md": "- A: new.\n- B: new, too.\n"})
    release("7.1.0", "2030-02-01", {"b.changed.md": "- B: other.\n"})
    assert " ".join((tmp_path / "CHANGELOG.md").read_text().split()) == (
        "# Changelog <!-- releases --> "
        "## [7.1.0] - 2030-02-01 ### Changed - B: other. "
        "## [7.0.0] - 2030-01-01 ### Added - A: new. - B: new, too. ### Fixed - B: mended."
    )
    assert "\n\n## [7.0.0]" in (tmp_path / "CHANGELOG.md").read_text()
    assert [path.name for path in (tmp_path / "changelog.d").iterdir()] == ["template.md"]
