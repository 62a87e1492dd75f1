"""Mailrail as it was before: a wheel of the newest release in a virtual environment of its own.

Before the first release the work tree itself stands in: the way from one installed Mailrail to another is then tested,
though nothing in between has changed.
"""

import contextlib
import io
import os
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from check_generated import copied
from contract import HistoryCutOff, commit_of, releases
from release import set_version, tree_version

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Older:
    """An installed Mailrail."""

    version: str
    """What it says of itself: `0.1.0+older`. Until the next release the tree has the version of the newest."""
    python: str
    """The interpreter that imports it."""


def source_of_base(folder: Path) -> str:
    """Lay the source of the newest release, chart included, into `folder`. Answers its version."""
    released = releases()
    if released:
        try:
            commit = commit_of(released[-1])
        except HistoryCutOff as error:
            pytest.skip(str(error))
        archive = subprocess.run(["git", "archive", commit], cwd=ROOT, capture_output=True, check=True).stdout
        with tarfile.open(fileobj=io.BytesIO(archive)) as packed:
            packed.extractall(folder, filter="data")
    else:
        copied(ROOT, folder)
    return tree_version(folder)


@contextlib.contextmanager
def older() -> Iterator[Older]:
    """The newest release, installed beside what this interpreter has; removed at the end."""
    # Not below pytest's own folder: as root, Postgres runs as a user that must be able to pass through.
    with tempfile.TemporaryDirectory(prefix="mailrail-older-") as made:
        folder = Path(made)
        folder.chmod(0o755)
        (folder / "source").mkdir()
        version = f"{source_of_base(folder / 'source')}+older"
        set_version(version, folder / "source")
        build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
        subprocess.run(build, cwd=folder / "source", capture_output=True, check=True)
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True)
        python = folder / "venv" / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
        where = sysconfig.get_path("purelib", vars={"base": str(folder / "venv"), "platbase": str(folder / "venv")})
        with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
            wheel.extractall(where)
        # The libraries are this environment's, after the older Mailrail. What it says of itself in .pth files (the
        # work tree) does not count: those of a folder that a .pth file names are not read.
        (Path(where) / "libraries.pth").write_text(sysconfig.get_path("purelib") + os.linesep)
        yield Older(version, str(python))
