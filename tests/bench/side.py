"""What is measured: the code of this checkout, or that of a commit in a folder and with an environment of its own."""

import hashlib
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
ENVIRONMENTS = ROOT / ".bench" / "environments"
"""Environments of commits that need other packages than this checkout, by the hash of their lock; they are kept."""

Say = Callable[[str], None]


class CannotMeasure(RuntimeError):
    """Something cannot be measured; the text says what, and what to do."""


@dataclass(frozen=True)
class Side:
    """Code that can be started: an interpreter with the packages, and the variables that make it import the code."""

    name: str
    """As people call it: a short commit, or `this checkout`."""
    python: str = sys.executable
    environment: Mapping[str, str] = field(default_factory=dict)
    """For a service, and for the bench's own stand-ins beside that service's libraries."""
    own_bench: Mapping[str, str] | None = None
    """For the stand-ins that the commit itself has, where those of this checkout do not fit its libraries."""

    under: tuple[str, ...] = ()
    """What its services are run by, such as valgrind with its options: they are far slower then."""

    def variables(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        """The environment of a process of it."""
        return dict(os.environ) | dict(self.environment) | dict(more or {})


HERE = Side("this checkout")


def with_bench() -> dict[str, str]:
    """The environment in which `python -m bench...` finds the bench of this checkout."""
    paths = [str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    return dict(os.environ) | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


def git(*arguments: str, root: Path = ROOT) -> str:
    """What git answers. Raises CannotMeasure with what it said."""
    done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise CannotMeasure(f"git {' '.join(arguments)} failed: {done.stderr.strip() or done.returncode}")
    return done.stdout.strip()


def commit_of(revision: str, root: Path = ROOT) -> str:
    """The full id of the commit that a revision names. Raises CannotMeasure when there is none."""
    try:
        return git("rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}", root=root)
    except CannotMeasure:
        raise CannotMeasure(
            f"there is no commit {revision!r} in this repository: `git fetch` it, or name another (branch, tag or id)"
        ) from None


def check_out(commit: str, folder: Path, say: Say, root: Path = ROOT) -> Side:
    """Make `folder` the tree of a commit and see to its environment. Raises CannotMeasure."""
    short = git("rev-parse", "--short", commit, root=root)
    subprocess.run(
        ["git", "clone", "--quiet", "--shared", "--no-checkout", str(root), str(folder)],
        check=True,
        capture_output=True,
    )
    git("checkout", "--quiet", "--detach", commit, root=folder)
    code = code_folders(folder, short)
    python = _environment(folder, short, say, root)
    paths = [str(path) for path in code]
    # Compiled beforehand, so that the first start is like all others.
    subprocess.run([python, "-m", "compileall", "-q", *paths], check=False, capture_output=True)
    own_tests = folder / "tests"
    return Side(
        short,
        python,
        {"PYTHONPATH": os.pathsep.join([*paths, str(root / "tests")])},
        {"PYTHONPATH": os.pathsep.join([*paths, str(own_tests)])} if (own_tests / "bench").is_dir() else None,
    )


def code_folders(tree: Path, name: str) -> list[Path]:
    """Where a tree has its packages, as its own pyproject.toml says. Raises CannotMeasure."""
    try:
        project = tomllib.loads((tree / "pyproject.toml").read_text())
        folders = [tree / one for one in project["tool"]["hatch"]["build"]["dev-mode-dirs"]]
    except (OSError, KeyError, TypeError, tomllib.TOMLDecodeError) as error:
        raise CannotMeasure(
            f"{name}: its pyproject.toml does not say where its code is ([tool.hatch.build] dev-mode-dirs: {error!r});"
            " it is too old to be compared, choose a later commit"
        ) from None
    return [one for one in folders if one.is_dir()]


def _environment(tree: Path, name: str, say: Say, root: Path) -> str:
    """The interpreter of an environment that holds what the tree's requirements.lock names."""
    lock = (tree / "requirements.lock").read_bytes()
    here = root / "requirements.lock"
    if here.exists() and here.read_bytes() == lock:
        say(f"{name}: needs the same packages as this checkout and shares its environment ({sys.prefix})")
        return sys.executable
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    folder = ENVIRONMENTS / f"{hashlib.sha256(lock).hexdigest()[:16]}-{version}"
    python = folder / "bin" / "python"
    if (folder / "complete").exists():
        say(f"{name}: needs other packages than this checkout, and has them in {folder} from an earlier comparison")
        return str(python)
    say(f"{name}: needs other packages than this checkout; installing what its requirements.lock names into {folder}")
    shutil.rmtree(folder, ignore_errors=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    for command in (
        [sys.executable, "-m", "venv", str(folder)],
        [*pip, "--require-hashes", "-r", str(tree / "requirements.lock")],
        # For its metadata alone: what is imported comes from PYTHONPATH.
        [*pip, "--no-deps", "--no-build-isolation", "-e", str(tree)],
    ):
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        if done.returncode != 0:
            raise CannotMeasure(
                f"{name}: no environment could be made: `{' '.join(command)}` said\n{done.stdout.strip()[-2000:]}\n"
                "The network or a package may be out of reach: mend that and start again; what was done so far is kept."
            )
    (folder / "complete").touch()
    return str(python)
