"""The pages for people are true where a machine can tell: links lead somewhere, commands exist with their options."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from mailrail.cli.app import app

ROOT = Path(__file__).resolve().parents[3]
PAGES = sorted(
    page
    for page in (
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("services/*/*.md"),
        *ROOT.glob("operator/*.md"),
    )
    if "spec" not in page.parts
)
COMMAND = typer.main.get_command(app)


def _anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_within_the_repository_leads_somewhere(page: Path) -> None:
    prose = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path) if path else page
        assert there.exists(), target
        assert not anchor or anchor in _anchors(there), target


def _typed(page: Path) -> Iterator[list[str]]:
    """The words of each `mailrail ...` in code, up to what a shell or a sentence does with it."""
    text = page.read_text("utf-8")
    blocks = re.findall(r"```[a-z]*\n(.*?)```", text, flags=re.DOTALL)
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    for line in (*(line for b in blocks for line in b.replace("\\\n", " ").splitlines()), *spans):
        for found in re.finditer(r"(?:^\$? *|-- )mailrail ([a-z-].*)", line.strip()):
            if "─" in line:  # a drawing
                continue
            yield re.split(r"\s#|[|;&]|\s\.\.\.|\.\.\.$", found[1])[0].split()


def _unknown(words: list[str]) -> str:
    """What of a command line does not exist; empty when all of it does."""
    command: Any = COMMAND
    takes: set[str] = set()
    for word in words:
        if word.startswith("-"):
            takes |= {o for p in command.params for o in (*p.opts, *p.secondary_opts)} | {"--help", "-h"}
            if re.match(r"--?[a-z]", word) and word.partition("=")[0] not in takes:
                return word
        elif word in getattr(command, "commands", {}):
            command = command.commands[word]
        elif command.name == "tls" and (word == "DOMAIN" or "." in word):
            command = command.commands["show"]  # which may be left out there
        elif getattr(command, "commands", {}) and not takes:
            return word
    return ""


@pytest.mark.parametrize(
    "page",
    [
        page
        for page in (*PAGES, *sorted(ROOT.glob("changelog.d/*.md")))
        # Decisions also name commands that were refused, and what was released commands that may be gone.
        if "decisions" not in page.parts and page.name != "CHANGELOG.md"
    ],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_every_command_in_the_pages_exists_with_its_options(page: Path) -> None:
    assert [(" ".join(words), what) for words in _typed(page) if (what := _unknown(words))] == []


def test_a_command_that_is_not_there_would_be_found() -> None:
    assert ["mailbox", "list"] in list(_typed(ROOT / "README.md"))
    assert len(list(_typed(ROOT / "docs" / "how-to" / "from-postfix.md"))) > 20
    assert _unknown(["queue", "kick", "--to-domain", "example.org"]) == ""
    assert _unknown(["--state", "folder", "queue", "list"]) == ""
    assert _unknown(["queue", "kik", "1"]) == "kik"
    assert _unknown(["queue", "kick", "--domain", "example.org"]) == "--domain"
