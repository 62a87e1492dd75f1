"""Prepare and build a release: `make release VERSION=1.2.3` (docs/contributing/releasing.md).

Two stages, told apart by what the tree says. On a tree that is not of that version yet the release is *prepared*: the
contract is frozen, the version set, the changelog written; people look at the difference and commit it. On the commit
of the release it is *built*: everything comes from a copy of that commit, goes into dist/VERSION, and is named in
SHA256SUMS. What an earlier run has built of the same commit is kept, so a run that was cut off goes on.

Nothing is committed, tagged or pushed: the commands for that are printed.
"""

import argparse
import contextlib
import datetime
import gzip
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

import bill_of_materials
import contract

ROOT: Final = Path(__file__).resolve().parent.parent
VERSION: Final = re.compile(r"(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)")
"""What is a version by PEP 440 and by SemVer alike, as wheel, chart and image tag need it."""
BUILDERS: Final = ("buildah", "podman", "docker")


class CannotRelease(Exception):
    """The release cannot be made; the text says why and what to do."""


def run(*command: str | Path, cwd: Path = ROOT, **environment: str) -> str:
    """Run a program; its output. Raises CannotRelease with what it said."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(command, cwd=cwd, env=inherited | environment, capture_output=True, text=True)
    except FileNotFoundError:
        raise CannotRelease(f"{command[0]} is not installed") from None
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip())[-2000:]
        raise CannotRelease(f"`{' '.join(map(str, command[:3]))} ...` failed:\n{said}")
    return done.stdout


# --- what the tree says -----------------------------------------------------------------------------------------------


def tree_version(root: Path = ROOT) -> str:
    """The version in the one place where it stands."""
    return str(tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"])


def set_version(version: str, root: Path = ROOT) -> None:
    """Write the version into that place."""
    settings = root / "pyproject.toml"
    text = settings.read_text(encoding="utf-8")
    settings.write_text(re.sub(r'(?m)^version = "[^"]+"$', f'version = "{version}"', text, count=1), encoding="utf-8")


def section_of(changelog: str, version: str) -> str:
    """What a changelog says of a version, without its heading; empty when it has no such section."""
    found = re.search(rf"^## \[{re.escape(version)}\].*?$\n(.*?)(?=^## \[|\Z)", changelog, re.MULTILINE | re.DOTALL)
    return found[1].strip() if found else ""


def refuse_version(version: str, released: Sequence[str]) -> None:
    """Raises CannotRelease for what is no version, or not greater than every released one."""
    if not VERSION.fullmatch(version):
        raise CannotRelease(
            f"{version!r} is not a version: write MAJOR.MINOR.PATCH, such as 1.2.3 (PEP 440 and SemVer)"
        )
    later = [one for one in released if contract.number_of(one) >= contract.number_of(version) and one != version]
    if later:
        raise CannotRelease(f"{version} is not greater than {later[-1]}, which is released: choose a greater one")


def refuse_dirty_tree() -> None:
    """Raises CannotRelease unless everything is committed."""
    changed = run("git", "status", "--porcelain").splitlines()
    if changed:
        raise CannotRelease(
            f"the work tree is not clean, and a release is made of a commit: {len(changed)} files, such as"
            f" {changed[0][3:]}. Commit or restore them. If a release was being prepared and cut off:"
            " git reset --hard && git clean -d -f tests/contract"
        )


# --- prepare ----------------------------------------------------------------------------------------------------------


def prepare(version: str) -> None:
    """Write into the work tree what the commit of the release holds. Raises CannotRelease before it writes."""
    fragments = [path for path in (ROOT / "changelog.d").iterdir() if path.name != "template.md"]
    if not any(path.read_text(encoding="utf-8").strip() for path in fragments):
        raise CannotRelease(
            "changelog.d has no fragment: a release in which users see no change is none (CONTRIBUTING.md)"
        )
    check = ROOT / "scripts" / "check_contract.py"
    done = subprocess.run([sys.executable, check], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise CannotRelease(f"the contract is not additive:\n{done.stderr.strip()}")
    say("the changelog has entries, and the contract is additive")
    folder = contract.freeze(version)
    say(f"{folder.relative_to(ROOT)}: the contract of {version}")
    set_version(version)
    run(sys.executable, ROOT / "scripts" / "generate_chart_version.py")
    say("pyproject.toml, Chart.yaml: the version")
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    run(sys.executable, "-m", "towncrier", "build", "--yes", "--version", version, "--date", today)
    say("CHANGELOG.md: the fragments of changelog.d, which are gone")
    print(
        f"\n{version} is prepared. Look at `git diff HEAD`, then:\n\n"
        f"    git add --all && git commit -m 'Release {version}'\n"
        f"    make release VERSION={version}\n"
    )


# --- build ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ReleaseBuild:
    """What the steps of a build need to know."""

    version: str
    commit: str
    epoch: int
    """Unix time of the commit, in the place of now."""
    source: Path
    """A copy of the commit, and nothing else."""
    out: Path
    builder: str
    builder_arguments: tuple[str, ...]

    @property
    def name(self) -> str:
        """How the files begin."""
        return f"mailrail-{self.version}"

    @property
    def archive(self) -> Path:
        """The image."""
        return self.out / f"{self.name}.image.tar"


def wheel(build: ReleaseBuild) -> list[Path]:
    """The wheel."""
    return _hatchling(build, "wheel", "-py3-none-any.whl")


def sdist(build: ReleaseBuild) -> list[Path]:
    """The source distribution."""
    return _hatchling(build, "sdist", ".tar.gz")


def _hatchling(build: ReleaseBuild, target: str, end: str) -> list[Path]:
    command = (sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(build.out))
    run(*command, cwd=build.source, SOURCE_DATE_EPOCH=str(build.epoch))
    return [build.out / f"{build.name}{end}"]


def chart(build: ReleaseBuild) -> list[Path]:
    """The chart. Helm writes the time of packing into it, so it is packed again with that of the commit."""
    with tempfile.TemporaryDirectory() as folder:
        named = ("--version", build.version, "--app-version", build.version)
        run("helm", "package", build.source / "deploy/helm/mailrail", *named, "-d", folder)
        packed = next(Path(folder).iterdir()).read_bytes()
    plain = io.BytesIO()
    repack(io.BytesIO(packed), plain, build.epoch)
    target = build.out / f"{build.name}.tgz"
    target.write_bytes(gzip.compress(plain.getvalue(), mtime=build.epoch))
    return [target]


def repack(packed: IO[bytes], target: IO[bytes], epoch: int) -> None:
    """Write the files of a tar in order and with the time `epoch` as a plain tar: equal content, equal octets."""
    with (
        tarfile.open(fileobj=packed) as old,
        tarfile.open(fileobj=target, mode="w", format=tarfile.USTAR_FORMAT) as new,
    ):
        for member in sorted((one for one in old if one.isfile()), key=lambda one: one.name):
            told = tarfile.TarInfo(member.name)
            told.size, told.mtime, told.mode = member.size, epoch, 0o644
            new.addfile(told, old.extractfile(member))


def image(build: ReleaseBuild) -> list[Path]:
    """The image, as an OCI archive."""
    tag = f"mailrail:{build.version}"
    at = datetime.datetime.fromtimestamp(build.epoch, datetime.UTC).isoformat()
    labels = {"version": build.version, "revision": build.commit, "created": at}
    told = [part for name, value in labels.items() for part in ("--label", f"org.opencontainers.image.{name}={value}")]
    build_word = "bud" if build.builder == "buildah" else "build"
    told += ["--build-arg", f"SOURCE_DATE_EPOCH={build.epoch}"]
    told += [] if build.builder == "docker" else ["--timestamp", str(build.epoch)]
    run(build.builder, build_word, "-t", tag, *told, *build.builder_arguments, build.source)
    with tempfile.TemporaryDirectory(dir=build.out) as folder:
        saved = Path(folder) / "image.tar"
        if build.builder == "buildah":
            run("buildah", "push", tag, f"oci-archive:{saved}:{tag}")
        elif build.builder == "podman":
            run("podman", "save", "--format", "oci-archive", "-o", saved, tag)
        else:
            run("docker", "save", "-o", saved, tag)
        with saved.open("rb") as packed, build.archive.open("wb") as target:
            repack(packed, target, build.epoch)
    return [build.archive]


def bill(build: ReleaseBuild) -> list[Path]:
    """The bill of materials, in CycloneDX."""
    try:
        packages = (
            bill_of_materials.of_image(build.archive)
            if build.archive.exists()
            else bill_of_materials.locked((build.source / "deploy/image/runtime.lock").read_text(encoding="utf-8"))
        )
    except ValueError as error:
        raise CannotRelease(f"{error}; save it with Docker 25 or newer, Podman or Buildah") from error
    target = build.out / f"{build.name}.cdx.json"
    text = bill_of_materials.bill(build.version, build.commit, build.epoch, packages)
    target.write_text(text, encoding="utf-8")
    return [target]


def notes(build: ReleaseBuild) -> list[Path]:
    """What the changelog says of the version."""
    changelog = (build.source / "CHANGELOG.md").read_text(encoding="utf-8")
    target = build.out / f"{build.name}.md"
    target.write_text(section_of(changelog, build.version) + "\n", encoding="utf-8")
    return [target]


STEPS: Final[tuple[Callable[[ReleaseBuild], list[Path]], ...]] = (wheel, sdist, chart, image, bill, notes)
"""In order: what a step needs of another one is there."""


class Ledger:
    """What was built of which commit, in the folder of the release."""

    def __init__(self, out: Path, commit: str) -> None:
        self._file = out / ".built.json"
        self._out = out
        try:
            told = json.loads(self._file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            told = {}
        if told.get("commit") != commit:
            told = {"commit": commit, "steps": {}}
            shutil.rmtree(out, ignore_errors=True)
        self._told = told
        out.mkdir(parents=True, exist_ok=True)

    def intact(self, step: str) -> list[Path] | None:
        """The files of a step that was done, if they are still what it made."""
        files: dict[str, str] | None = self._told["steps"].get(step)
        if files is None or any(_sha256(self._out / name) != digest for name, digest in files.items()):
            return None
        return [self._out / name for name in files]

    def note(self, step: str, files: Sequence[Path]) -> None:
        """A step is done, and what comes after it is not."""
        names = [one.__name__ for one in STEPS]
        before = names[: names.index(step)]
        kept = {name: made for name, made in self._told["steps"].items() if name in before}
        self._told["steps"] = {**kept, step: {file.name: _sha256(file) for file in files}}
        self._file.write_text(json.dumps(self._told, indent=1), encoding="utf-8")


def _sha256(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except FileNotFoundError:
        return ""


@contextlib.contextmanager
def exported(commit: str) -> Iterator[Path]:
    """A copy of a commit, without anything that git does not know."""
    with tempfile.TemporaryDirectory(prefix="mailrail-release-") as folder:
        packed = Path(folder) / "source.tar"
        run("git", "archive", "--format=tar", "-o", packed, commit)
        source = Path(folder) / "source"
        with tarfile.open(packed) as archive:
            archive.extractall(source, filter="data")
        yield source


def choose_builder(named: str) -> str:
    """The builder that was named, or the first that answers. Raises CannotRelease."""
    for one in [named] if named else BUILDERS:
        if shutil.which(one) and subprocess.run([one, "info"], capture_output=True).returncode == 0:
            return one
    tried = named or ", ".join(BUILDERS)
    raise CannotRelease(
        f"nothing here can build an image: {tried} is not installed or does not answer. Name one: BUILDER=..."
    )


def build(version: str, builder: str, arguments: Sequence[str], *, without: Sequence[str] = ()) -> Path:
    """Build everything of the commit of a release. Returns its folder. Raises CannotRelease."""
    steps = [step for step in STEPS if step.__name__ not in without]
    if image in steps:
        builder = choose_builder(builder)
    if chart in steps and shutil.which("helm") is None:
        raise CannotRelease("helm is not installed: https://helm.sh/docs/intro/install")
    try:
        commit = contract.commit_of(contract.FROZEN / version)
    except contract.HistoryCutOff as error:
        raise CannotRelease(str(error)) from error
    epoch = run("git", "log", "-1", "--format=%ct", commit)
    if run("git", "diff", "--name-only", commit, "HEAD"):
        raise CannotRelease(
            f"{version} was prepared in commit {commit[:12]}, and HEAD is another tree: git checkout {commit[:12]}"
        )
    told = json.loads((contract.FROZEN / version / "release.json").read_text(encoding="utf-8"))
    if contract.tree_of(f"{commit}~1") != told["tree"]:
        raise CannotRelease(
            f"commit {commit[:12]} does not stand on the tree that {version} was prepared on, so the contract may lack"
            f" what came in between: git revert {commit[:12]}, then prepare {version} anew"
        )
    out = ROOT / "dist" / version
    ledger = Ledger(out, commit)
    files: list[Path] = []
    with exported(commit) as source:
        task = ReleaseBuild(version, commit, int(epoch), source, out, builder, tuple(arguments))
        for number, step in enumerate(steps, 1):
            name = step.__name__
            made, began = ledger.intact(name), time.monotonic()
            how = "as before" if made is not None else ""
            if made is None:
                print(f"[{number}/{len(steps)}] {name} ...", flush=True)
                made = step(task)
                ledger.note(name, made)
                how = f"{time.monotonic() - began:.0f} s"
            for file in made:
                print(
                    f"[{number}/{len(steps)}] {name}: {file.name}, {file.stat().st_size:,} octets ({how})", flush=True
                )
            files += made
    sums = "".join(f"{_sha256(file)}  {file.name}\n" for file in sorted(files))
    (out / "SHA256SUMS").write_text(sums, encoding="utf-8")
    return out


# --- the command ------------------------------------------------------------------------------------------------------


def say(text: str) -> None:
    """One line of progress."""
    print(f"- {text}", flush=True)


def is_prepared(version: str) -> bool:
    """Whether the tree is that of a release."""
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    return tree_version() == version and (contract.FROZEN / version).exists() and bool(section_of(changelog, version))


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="Prepare or build a release.")
    parser.add_argument("version")
    parser.add_argument("--builder", default="", help=f"one of {', '.join(BUILDERS)}; default: the first that answers")
    parser.add_argument("--without", action="append", default=[], help="leave a step out, such as image")
    parser.epilog = "What stands after -- is handed to the builder."
    split = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    given, for_builder = parser.parse_args(sys.argv[1:split]), sys.argv[split + 1 :]
    try:
        refuse_version(given.version, [folder.name for folder in contract.releases()])
        refuse_dirty_tree()
        if not is_prepared(given.version):
            prepare(given.version)
            return 0
        out = build(given.version, given.builder, for_builder, without=given.without)
    except CannotRelease as refused:
        print(f"release: {refused}", file=sys.stderr)
        return 1
    commit = str(json.loads((out / ".built.json").read_text(encoding="utf-8"))["commit"])[:12]
    missing = f" It is without {', '.join(given.without)}!" if given.without else ""
    print(
        f"\n{given.version} is in {out.relative_to(ROOT)}, built of {commit}.{missing} Tag and publish it with:\n\n"
        f"    git tag --sign v{given.version} -m 'Mailrail {given.version}' {commit}\n"
        f"    git push origin v{given.version}\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
