"""Hold the marks of docs/spec against code and tests; exit 1 and name every rule where they differ.

A rule of these pages is one line, `- SIN-02 MUST · ingress · built: ...`; a rule with clauses has one indented line for
each of them, `  - SUB-02a MUST · ingress · built: ...`, and then only the clauses have marks:

- built: code and a test cite it
- built (test alone): it holds for the whole, so no one place in the code carries it out; a test cites it
- not built, n/a: no test cites it

A test cites a rule in its name (`test_..._SIN_02`) or its docstring (`SIN-02`), code anywhere in its text. Ranges such
as "SIN-02..21" or "SIN-02 to SIN-21" cite nothing: a search for a rule in their middle would not find them.
"""

import ast
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
PAGES: Final = ("docs/spec/standards.md", "docs/spec/message-life.md", "docs/spec/sendmail.md")
CODE: Final = ("lib", "services", "operator", "proto", "deploy")
NOT_READ: Final = ("lib/mailrail/pb/", "tests/unit/scripts/")
"""What is generated, and tests of this check."""

BUILT: Final = "built"
TEST_ALONE: Final = "built (test alone)"
MARKS: Final = (BUILT, TEST_ALONE, "not built", "n/a")

_RULE: Final = re.compile(r"\s*- ([A-Z]{2,4}-[0-9]{2}[a-z]?)\b([^:]*)")
_MARK: Final = re.compile(rf"· ({'|'.join(re.escape(mark) for mark in sorted(MARKS, key=len, reverse=True))})$")
_RANGE: Final = re.compile(r"[A-Z]{2,4}-[0-9]{2}(?:\.\.|–| to | through )(?:[A-Z]{2,4}-)?[0-9]{2}")


@dataclass(frozen=True, slots=True)
class SpecRule:
    """A rule or a clause, as its page has it."""

    id: str
    mark: str
    """One of MARKS; empty for a rule whose clauses have them."""
    place: str
    """File and line."""


@dataclass(slots=True)
class Citations:
    """Where each id is cited: file, or file and name of the test."""

    code: Mapping[str, list[str]]
    tests: Mapping[str, list[str]]
    others: Mapping[str, list[str]]
    """In the text of tests outside of names and docstrings, where it shows nothing and may be wrong all the same."""


def read_rules(pages: Mapping[str, str]) -> tuple[dict[str, SpecRule], list[str]]:
    """The rules of these pages (name to text) by id, and what is wrong with the pages."""
    rules: dict[str, SpecRule] = {}
    wrong = []
    for page, text in pages.items():
        for number, line in enumerate(text.splitlines(), 1):
            found = _RULE.match(line)
            if found is None:
                continue
            id, place = found[1], f"{page}:{number}"
            mark = _MARK.search(found[2])
            if id in rules:
                wrong.append(f"{place}: {id} is there twice, first at {rules[id].place}")
                continue
            rules[id] = SpecRule(id, mark[1] if mark else "", place)
    split = {rule_of(id) for id in rules if id != rule_of(id)}
    for rule in rules.values():
        if rule.id in split and rule.mark:
            wrong.append(f"{rule.place}: {rule.id} has clauses, so its mark belongs to them")
        elif rule.id not in split and not rule.mark:
            wrong.append(f"{rule.place}: {rule.id} has no mark; write one of {', '.join(MARKS)} before the colon")
        if rule_of(rule.id) not in rules:
            wrong.append(f"{rule.place}: {rule.id} is a clause of a rule that is not there")
    return rules, wrong


def rule_of(id: str) -> str:
    """The rule that a clause belongs to; a rule itself."""
    return id.rstrip("abcdefghijklmnopqrstuvwxyz")


def cited_in_text(text: str, families: Iterable[str]) -> set[str]:
    """The ids of these families in a text, ranges left out."""
    some = "|".join(families)
    return set(re.findall(rf"(?<![A-Za-z0-9-])(?:{some})-[0-9]{{2}}[a-z]?(?![A-Za-z0-9])", _RANGE.sub("", text)))


def cited_in_name(name: str, families: Iterable[str]) -> set[str]:
    """The ids of these families in the name of a test."""
    some = "|".join(families)
    return {f"{family}-{rest}" for family, rest in re.findall(rf"_({some})_([0-9]{{2}}[a-z]?)(?![A-Za-z0-9])", name)}


def named_tests(source: str) -> Iterator[tuple[str, str]]:
    """Name and docstring of each test of a module."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            yield node.name, ast.get_docstring(node) or ""


def differences(rules: Mapping[str, SpecRule], citations: Citations) -> list[str]:
    """Where marks, code and tests differ, in the order of the pages."""
    wrong = []
    for rule in rules.values():
        tests = citations.tests.get(rule.id, [])
        if not rule.mark:
            wrong += [f"{test} cites {rule.id}, which has clauses; cite the clause" for test in tests]
        elif rule.mark in (BUILT, TEST_ALONE):
            if not tests:
                wrong.append(f"{rule.place}: {rule.id} is built, and no test cites it in its name or docstring")
            if rule.mark == BUILT and not citations.code.get(rule.id):
                wrong.append(f"{rule.place}: {rule.id} is built, and no code cites it")
        else:
            wrong += [f"{rule.place}: {rule.id} is marked '{rule.mark}', and {test} cites it" for test in tests]
    for cited in (citations.code, citations.tests, citations.others):
        for id, places in cited.items():
            if id not in rules:
                wrong += [f"{place}: {id} is in none of {', '.join(PAGES)}" for place in places]
    return wrong


def collect(families: Iterable[str]) -> Citations:
    """What the files of this repository cite."""
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard", "tests", *CODE],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    families = sorted(families)
    citations = Citations(defaultdict(list), defaultdict(list), defaultdict(list))
    for name in sorted(filter(None, listed.split("\0"))):
        path = ROOT / name
        if not path.is_file() or name.startswith(NOT_READ) or path.suffix == ".md":
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # no text
        if not name.startswith("tests/"):
            for id in cited_in_text(text, families):
                citations.code[id].append(name)
            continue
        for id in cited_in_text(text, families):
            citations.others[id].append(name)
        if path.name.startswith("test_") and path.suffix == ".py":
            for test, docstring in named_tests(text):
                for id in cited_in_name(test, families) | cited_in_text(docstring, families):
                    citations.tests[id].append(f"{name}::{test}")
    return citations


def main() -> int:
    """Compare the pages with the repository. Returns the exit status."""
    rules, wrong = read_rules({page: (ROOT / page).read_text(encoding="utf-8") for page in PAGES})
    wrong += differences(rules, collect({id.partition("-")[0] for id in rules}))
    for line in wrong:
        print(line, file=sys.stderr)
    if wrong:
        print(f"{len(wrong)} differences between docs/spec, code and tests", file=sys.stderr)
        return 1
    counts = {mark: sum(rule.mark == mark for rule in rules.values()) for mark in MARKS}
    print("rules and clauses: " + ", ".join(f"{count} {mark}" for mark, count in counts.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
