"""Check that what comments, tests and pages cite is there to be read.

`design 4` and `promise 2` stand in docs/design.md, `decision 11` in docs/decisions, `reference H28` in
docs/spec/reference-behaviour.md; CONTRIBUTING.md explains them. (Rules like `LSE-08` are the subject of check_rules.)
The number of an issue, a shorthand that these texts do not have, and a file that is not there are faults: the reader
cannot look them up.
"""

import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
READ: Final = {"", ".md", ".proto", ".py", ".sh", ".sql", ".toml", ".yaml"}
"""Suffixes of files that people write; the reference and what is generated are left out."""
_SKIPPED: Final = re.compile(r"lib/mailrail/pb/|docs/spec/reference-behaviour\.md|tests/unit/scripts/|LICENSE")

_REFERENCE: Final = re.compile(r"\breference(?:-behaviour)? ((?:[A-HT][0-9]{0,2}(?:, | and | to )?)+)")
_NUMBERED: Final = re.compile(r"\b(design|promise|decision) (?:section )?([0-9]+)\b")
_ISSUE: Final = re.compile(r"\bissues? #?[0-9]+", re.IGNORECASE)
_PATH: Final = re.compile(
    r"(?<![\w/.*{}$-])(?:deploy|docs|lib|operator|proto|scripts|services|tests|tilt)/[\w./-]*"
    r"\.(?:md|proto|py|sql|toml|yaml)\b"
)
_LINK: Final = re.compile(r"\]\((?!\w+:)([^)#\s]+)")
_ABSENT: Final = {"operator/__init__.py", "tests/unit/gone.py"}
"""Files of which a text says that they must not be there."""
_PROSE: Final = re.compile(r"(?:#|//|--) |\"\"\"|^[^\"'`]*$")  # a comment, or without the quotes of a value in code
_BARE: Final = re.compile(r"(?<![\w.,:;%\\={}+/<$^-])[A-Z]{1,2}[0-9]{1,2}(?![\w-]|[:.]\w)")
WORDS: Final = {"C0", "C1", "L4", "L7", "MD5", "RE2"}
"""Words of the field that have the form of a shorthand."""


@dataclass(frozen=True)
class Known:
    """What can be cited."""

    reference: frozenset[str]
    numbered: dict[str, frozenset[int]]


def known(root: Path = ROOT) -> Known:
    """Read the texts that may be cited."""
    reference = (root / "docs" / "spec" / "reference-behaviour.md").read_text(encoding="utf-8")
    sections = re.findall(r"^#{2,3} ([A-Z][0-9]{0,2})\b", reference, re.M)
    mistakes = reference.partition("\n## H.")[2].partition("\n## ")[0]
    sections += [f"H{number}" for number in re.findall(r"^([0-9]+)\. ", mistakes, re.M)]
    design = (root / "docs" / "design.md").read_text(encoding="utf-8")
    promises = design.partition("\n## 1.")[2].partition("\n## ")[0]
    decisions = (path.name[:4] for path in (root / "docs" / "decisions").glob("[0-9]*.md"))
    return Known(
        frozenset(sections),
        {
            "design": frozenset(int(number) for number in re.findall(r"^## ([0-9]+)\. ", design, re.M)),
            "promise": frozenset(int(number) for number in re.findall(r"^([0-9]+)\. ", promises, re.M)),
            "decision": frozenset(int(number) for number in decisions),
        },
    )


def faults(line: str, texts: Known) -> Iterator[str]:
    """What a line cites and no text has."""
    for found in _REFERENCE.findall(line):
        for name in re.findall(r"[A-Z][0-9]*", found):
            if name not in texts.reference:
                yield f"docs/spec/reference-behaviour.md has no {name}"
    for kind, number in _NUMBERED.findall(line):
        if int(number) not in texts.numbered[kind]:
            yield f"there is no {kind} {number}"
    for found in _ISSUE.findall(line):
        yield f"{found!r} is the number of an issue; say what is meant"
    if _PROSE.search(line):
        for name in _BARE.findall(_REFERENCE.sub("", line)):
            if name not in WORDS:
                yield f"{name} is a shorthand that no text explains; say what is meant"


def missing(line: str, path: Path, root: Path = ROOT) -> Iterator[str]:
    """The files that a line of the file `path` names or links to, and that are not there."""
    if "migrations" in path.parts:  # a migration that was released is never edited
        return
    for name in _PATH.findall(line):
        if name not in _ABSENT and not (root / name).exists():
            yield f"{name} is not there"
    if path.suffix == ".md":
        # A fragment of the changelog is read as a part of CHANGELOG.md.
        folder = root if path.parts[0] == "changelog.d" else (root / path).parent
        for target in _LINK.findall(line):
            if not (folder / target).exists():
                yield f"the link to {target} leads nowhere"


def files(root: Path = ROOT) -> list[Path]:
    """Every file that people write, tracked or new, relative to `root`."""
    command = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\0")
    paths = (Path(name) for name in names if not _SKIPPED.match(name))
    return [path for path in paths if path.suffix in READ and (root / path).is_file()]


def twice(root: Path = ROOT) -> list[str]:
    """Numbers that two decisions have."""
    numbers = Counter(path.name[:4] for path in (root / "docs" / "decisions").glob("[0-9]*.md"))
    return sorted(number for number, count in numbers.items() if count > 1)


def main() -> int:
    """Print each fault; 1 if there is one."""
    texts, status = known(), 0
    for decision in twice():
        print(f"docs/decisions: two have the number {decision}; give one the next free number", file=sys.stderr)
        status = 1
    for path in files():
        for number, line in enumerate((ROOT / path).read_text(encoding="utf-8").splitlines(), 1):
            for fault in (*faults(line, texts), *missing(line, path)):
                print(f"{path}:{number}: {fault}", file=sys.stderr)
                status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
