"""What a line may cite, and which files it may name."""

from pathlib import Path

import pytest
from check_citations import Known, faults, known, missing, twice

TEXTS = Known(
    frozenset({"C", "F3", "H18", "H22", "H28"}),
    {"design": frozenset({1, 4, 5}), "promise": frozenset({1, 2}), "decision": frozenset({11})},
)


def test_the_texts_of_the_project_have_sections_promises_and_decisions() -> None:
    texts = known()
    assert {"C", "F3", "H1", "H43"} <= texts.reference
    assert {kind: max(numbers) >= 5 for kind, numbers in texts.numbered.items()} == {
        "design": True,
        "promise": True,
        "decision": True,
    }


@pytest.mark.parametrize(
    "line",
    [
        "# never after the dot (design 4 and 5, reference F3, H28)",
        "# addresses (reference H18 to H22, reference-behaviour C); promise 2; design section 5; [decision 11](x.md)",
        "# CRC-32 of UTF-16, SHA-256; from 00:00, T00:00:00Z",
        'assert text == "caf=E9, bj\\x{F8}, MX1.example, F8"',
        'issue(authority, "localhost")  # one for each of 3 hosts',
    ],
)
def test_what_the_texts_have_may_be_cited(line: str) -> None:
    assert list(faults(line, TEXTS)) == []


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("# (reference F3, H99)", "has no H99"),
        ("# design 40", "there is no design 40"),
        ("# promise 9 holds", "there is no promise 9"),
        ("# (decision 12)", "there is no decision 12"),
        ("# mended for issue 7", "number of an issue"),
        ("x = 1  # F2 again", "F2 is a shorthand"),
        ("Trouble of the second kind (PG1).", "PG1 is a shorthand"),
        ("# only with H28", "H28 is a shorthand"),
    ],
)
def test_what_nobody_can_look_up_is_a_fault(line: str, fault: str) -> None:
    (found,) = faults(line, TEXTS)
    assert fault in found


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("docs/a.md", "see [b](b.md#part), [c](../lib/c.py) and [the RFC](https://example.org/x.md)"),
        ("changelog.d/a.added.md", "- [B](docs/b.md): a page."),
        ("lib/c.py", "# as docs/b.md says; tests/*/test_x.py; services/<name>/x.py; operator/__init__.py"),
        ("services/x/sql/migrations/0001_x.sql", "-- docs/gone.md"),
    ],
)
def test_a_file_that_is_there_may_be_named(tmp_path: Path, path: str, line: str) -> None:
    for name in ("docs/b.md", "lib/c.py"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    assert list(missing(line, Path(path), tmp_path)) == []


@pytest.mark.parametrize(
    ("path", "line"),
    [("docs/a.md", "[b](b.md)"), ("lib/c.py", "# as docs/b.md says"), ("docs/a.md", "`lib/d.py`, then")],
)
def test_a_file_that_is_not_there_is_a_fault(tmp_path: Path, path: str, line: str) -> None:
    assert len(list(missing(line, Path(path), tmp_path))) == 1


def test_two_decisions_with_one_number_are_a_fault(tmp_path: Path) -> None:
    folder = tmp_path / "docs/decisions"
    folder.mkdir(parents=True)
    for name in ("0001-one.md", "0002-two.md", "0002-another.md"):
        (folder / name).touch()
    assert twice(tmp_path) == ["0002"]
