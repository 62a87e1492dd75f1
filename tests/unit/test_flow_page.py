"""docs/flow.md and docs/glossary.md name only files, functions and classes that exist."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FLOW = (ROOT / "docs/flow.md").read_text("utf-8")
GLOSSARY = (ROOT / "docs/glossary.md").read_text("utf-8")


@cache
def defined(path: Path) -> frozenset[str]:
    """Functions, classes and methods of a file: `build`, `GroupCommit`, `GroupCommit.submit`."""
    names: set[str] = set()
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {
                f"{node.name}.{m.name}" for m in node.body if isinstance(m, ast.FunctionDef | ast.AsyncFunctionDef)
            }
    return frozenset(names)


def missing(step: str, root: Path = ROOT) -> list[str]:
    """What a step names and nobody has: a file, or a function that is not in the file named last before it."""
    found: list[str] = []
    file: Path | None = None
    for span in re.findall(r"`([^`]+)`", step):
        if span.endswith(".py"):
            file = root / span
            if not file.is_file():
                found.append(span)
        elif span.endswith("()") and (file is None or not file.is_file() or span[:-2] not in defined(file)):
            found.append(span)
    return found


STEPS = re.findall(r"^\d+\. .*$", FLOW, re.MULTILINE)


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.split("**")[1])
def test_every_file_and_function_of_a_step_exists(step: str) -> None:
    assert missing(step) == []


def test_the_page_has_steps_from_the_first_octet_to_the_last_row() -> None:
    assert len(STEPS) == 20
    assert all("()" in step for step in STEPS)


def test_a_name_that_does_not_exist_would_be_found() -> None:
    here = "tests/unit/test_flow_page.py"
    assert missing(f"`{here}`: `missing()`, `gone()`") == ["gone()"]
    assert missing("`tests/unit/gone.py`") == ["tests/unit/gone.py"]
    assert missing("`missing()`") == ["missing()"], "a function without a file before it"


def test_every_class_of_the_glossary_exists() -> None:
    table = GLOSSARY.partition("## Names in the code")[2]
    named = {name for row in re.findall(r"^\| (`.*?`) \|", table, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)}
    assert len(named) > 15
    files = (p for top in ("lib/mailrail", "services", "operator") for p in (ROOT / top).rglob("*.py"))
    known = {name for path in files if "pb" not in path.parts for name in defined(path)}
    assert sorted(named - known) == []


def test_the_words_of_the_glossary_stand_once_in_alphabetical_order() -> None:
    words = [word.lower() for word in re.findall(r"^\| \*\*(.*?)\*\* \|", GLOSSARY, re.MULTILINE)]
    assert len(words) > 60
    assert words == sorted(set(words))
