"""Check the subjects of commits: at most 72 characters, without a full stop at the end.

History before this file came into the repository is left as it is. A copy without that history (a shallow clone, an
archive) cannot be checked; then the check says so and passes.
"""

import subprocess
import sys
from pathlib import Path
from typing import Final

LIMIT: Final = 72
_HERE: Final = Path(__file__).resolve()


def faults(subject: str) -> list[str]:
    """What is wrong with a subject."""
    found = []
    if len(subject) > LIMIT:
        found.append(f"has {len(subject)} characters; shorten it to {LIMIT} and say the rest in the body")
    if subject.endswith("."):
        found.append("ends with a full stop; remove it")
    return found


def _git(root: Path, *arguments: str) -> str:
    """What git prints. Raises OSError without git, CalledProcessError where it fails."""
    return subprocess.run(["git", "-C", str(root), *arguments], check=True, capture_output=True, text=True).stdout


def subjects(root: Path, since: str) -> list[tuple[str, str]]:
    """Short id and subject of each commit from the one that added the file `since` on.

    Raises LookupError where the repository does not know that commit.
    """
    try:
        if _git(root, "rev-parse", "--is-shallow-repository").strip() == "true":
            raise LookupError("this clone is shallow")
        added = _git(root, "log", "--diff-filter=A", "--format=%H", "--", since).split()
        if not added:
            raise LookupError(f"no commit adds {since}")
        log = _git(root, "log", "--no-merges", "--format=%h %s", f"{added[-1]}..HEAD")
        log += _git(root, "show", "--no-patch", "--format=%h %s", added[-1])
    except (OSError, subprocess.CalledProcessError) as trouble:
        raise LookupError("git has no history of this folder") from trouble
    return [(commit, subject) for commit, _, subject in (line.partition(" ") for line in log.splitlines())]


def main(root: Path = _HERE.parent.parent, since: str = f"scripts/{_HERE.name}") -> int:
    """Print each fault; 1 if there is one."""
    try:
        commits = subjects(root, since)
    except LookupError as reason:
        print(f"subjects of commits are not checked: {reason}")
        return 0
    found = [(commit, subject, fault) for commit, subject in commits for fault in faults(subject)]
    for commit, subject, fault in found:
        print(f"commit {commit}: the subject {fault}: {subject}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
