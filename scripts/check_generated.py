"""Say whether every generated file is what its generator writes today; exit 1 and name those that are not.

Every `scripts/generate_*.py` writes below the repository that it lies in. So the work tree (tracked files and new ones,
nothing ignored) is copied aside, the generators run in the copy, and the copy is compared with the original: no file of
yours is touched, and uncommitted work is judged as it is.
"""

import filecmp
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def files_of(tree: Path) -> set[Path]:
    """Every file that git would track in the work tree, relative to it."""
    listed = subprocess.run(
        ["git", "-C", str(tree), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        check=True,
        capture_output=True,
    ).stdout
    return {Path(os.fsdecode(name)) for name in listed.split(b"\0") if name and (tree / os.fsdecode(name)).is_file()}


def copied(tree: Path, folder: Path) -> set[Path]:
    """Copy every such file into a folder. Returns them, relative to it."""
    names = files_of(tree)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(tree / name, folder / name)
    return names


def written(tree: Path) -> set[Path]:
    """Every file below a plain folder, relative to it, without what Python leaves behind."""
    return {path.relative_to(tree) for path in tree.rglob("*") if path.is_file() and "__pycache__" not in path.parts}


def main() -> int:
    """Run the generators in a copy of the work tree and compare. Returns the exit status."""
    with tempfile.TemporaryDirectory(prefix="mailrail-generated-") as folder:
        copy = Path(folder)
        before = copied(ROOT, copy)
        search = [str(copy / "lib"), *(str(path) for path in sorted((copy / "services").glob("*")))]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(search), "PYTHONDONTWRITEBYTECODE": "1"}
        for generator in sorted((copy / "scripts").glob("generate_*.py")):
            done = subprocess.run(
                [sys.executable, str(generator)], cwd=copy, env=environment, capture_output=True, text=True
            )
            if done.returncode != 0:
                print(f"scripts/{generator.name} failed:\n{done.stdout}{done.stderr}", file=sys.stderr)
                return 1
        after = written(copy)
        stale = {name for name in before & after if not filecmp.cmp(ROOT / name, copy / name, shallow=False)}
        missing, left_over = after - before, before - after
    for label, names in (("out of date", stale), ("not committed", missing), ("no longer generated", left_over)):
        for name in sorted(names):
            print(f"{name.as_posix()}: {label}", file=sys.stderr)
    if stale or missing or left_over:
        print("run `make generate`, look at the difference, and commit it", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
