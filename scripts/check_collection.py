"""Check that pytest finds the same tests, by the same names, in each process.

`make test` shares the tests out among processes, and runs none where their lists differ. A name differs where it is
made of what a process draws anew: a key, the time, the order of a set.
"""

import os
import subprocess
import sys
from itertools import zip_longest
from pathlib import Path
from typing import Final

COMMAND: Final = (sys.executable, "-m", "pytest", "--collect-only", "-q", "-o", "addopts=--import-mode=importlib")
_MOST: Final = 5  # differences that are shown


def differences(one: list[str], other: list[str]) -> list[str]:
    """A line for each place where two lists of names are not the same."""
    pairs = zip_longest(one, other, fillvalue="nothing")
    return [f"one process finds {left}, another {right}" for left, right in pairs if left != right]


def _collect(root: Path, seed: int) -> "subprocess.Popen[str]":
    environment = {**os.environ, "PYTHONHASHSEED": str(seed)}
    return subprocess.Popen(
        [*COMMAND, "tests"], cwd=root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def main() -> int:
    """Collect twice, compare, say what differs."""
    root = Path(__file__).resolve().parents[1]
    processes = [_collect(root, seed) for seed in (1, 2)]
    printed = [process.communicate()[0] for process in processes]
    for process, text in zip(processes, printed, strict=True):
        if process.returncode != 0:
            print(text[-4000:])
            print("pytest could not collect the tests: mend what it says above", file=sys.stderr)
            return 1
    found = differences(*([line for line in text.splitlines() if "::" in line] for text in printed))
    for line in found[:_MOST]:
        print(line)
    if found:
        print("give such tests names of their own: pytest.mark.parametrize(..., ids=[...])", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
