"""Check the fragments of changelog.d/: their names, their form, and that towncrier can collect them.

CONTRIBUTING.md says how to write one. No branch is compared, so the check works in any copy of the repository.
"""

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
TEMPLATE: Final = "template.md"
_ENTRY: Final = re.compile(r"- (?P<thing>\S.{0,99}?): \S.*\.")
_HELP: Final = "write '- THING: SENTENCE.', where THING is what a user touches: a command, a field, a metric, a page"


def types() -> set[str]:
    """The types of fragments that pyproject.toml defines."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["towncrier"]
    return {entry["directory"] for entry in settings["type"]}


def faults(name: str, text: str, allowed: set[str]) -> list[str]:
    """What is wrong with a fragment: its name, and each line that is not an entry."""
    found = []
    about, _, rest = name.partition(".")
    if not re.fullmatch("[a-z][a-z0-9-]*", about) or rest not in {f"{kind}.md" for kind in allowed}:
        kinds = "|".join(sorted(allowed))
        found.append(f"{name}: not a valid name; use TOPIC.{kinds}.md with a TOPIC in lower case")
    lines = text.splitlines()
    if not lines:
        found.append(f"{name}: the file is empty; delete it or add an entry")
    for number, line in enumerate(lines, 1):
        if not _ENTRY.fullmatch(line):
            found.append(f"{name}:{number}: not an entry; {_HELP}")
    return found


def draft() -> subprocess.CompletedProcess[str]:
    """The text that a release would write."""
    command = [sys.executable, "-m", "towncrier", "build", "--draft", "--version", "0"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def main() -> int:
    """Print each fault; 1 if there is one."""
    fragments = [path for path in sorted((ROOT / "changelog.d").iterdir()) if path.name != TEMPLATE]
    allowed = types()
    found = [fault for path in fragments for fault in faults(path.name, path.read_text(), allowed)]
    if not found:
        built = draft()
        if built.returncode:
            found.append(f"towncrier cannot collect the fragments: {(built.stderr or built.stdout).strip()}")
    for fault in found:
        print(f"changelog.d/{fault}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
