"""A release is made of a commit, in two stages, and of the same commit twice alike."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from check_generated import copied

ROOT = Path(__file__).resolve().parents[3]
VERSION = "7.0.0"
GIT = {
    "GIT_AUTHOR_NAME": "Ada", "GIT_AUTHOR_EMAIL": "ada@example.org", "GIT_COMMITTER_NAME": "Ada",
    "GIT_COMMITTER_EMAIL": "ada@example.org", "GIT_AUTHOR_DATE": "2030-01-02T03:04:05Z",
    "GIT_COMMITTER_DATE": "2030-01-02T03:04:05Z", "GIT_CONFIG_GLOBAL": os.devnull,
}  # fmt: skip
WITHOUT = ["--without", "image"] + ([] if shutil.which("helm") else ["--without", "chart"])


class Tree:
    """A repository of its own with what the work tree holds."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def git(self, *arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments], cwd=self.folder, env=os.environ | GIT, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    def commit(self, subject: str) -> None:
        self.git("add", "--all")
        self.git("commit", "-q", "--allow-empty", "-m", subject)

    def python(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        names = ("lib", "operator", "scripts", "tests")
        packages = [*(self.folder / name for name in names), *sorted((self.folder / "services").glob("*"))]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, packages)), "PYTHONDONTWRITEBYTECODE": "1"}
        command = [sys.executable, *arguments]
        return subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True)

    def release(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.python("scripts/release.py", *arguments)

    def copy(self, folder: Path) -> "Tree":
        self.git("clone", "-q", str(self.folder), str(folder))
        return Tree(folder)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    """The work tree as one commit of a repository."""
    folder = tmp_path_factory.mktemp("tree")
    copied(ROOT, folder)
    (folder / "changelog.d/tests.added.md").write_text("- Tests: they make a release.\n")
    made = Tree(folder)
    made.git("init", "-q", "-b", "main")
    made.commit("All that was before")
    return made


@pytest.fixture(scope="module")
def prepared(tree: Tree, tmp_path_factory: pytest.TempPathFactory) -> Tree:
    """The same with a release prepared and committed."""
    made = tree.copy(tmp_path_factory.mktemp("prepared") / "tree")
    done = made.release(VERSION)
    assert done.returncode == 0, done.stderr
    assert f"git commit -m 'Release {VERSION}'" in done.stdout
    made.commit(f"Release {VERSION}")
    return made


@pytest.fixture(scope="module")
def built(prepared: Tree, tmp_path_factory: pytest.TempPathFactory) -> Tree:
    """The same with the release built, but for its image."""
    (prepared.folder / "lib/mailrail/ignored.pyc").write_text("what git ignores is in no release")
    made = prepared.copy(tmp_path_factory.mktemp("built") / "tree")
    done = made.release(VERSION, *WITHOUT)
    assert done.returncode == 0, done.stderr
    assert "It is without image" in done.stdout
    assert f"git tag --sign v{VERSION}" in done.stdout
    return made


def test_a_prepared_release_has_its_version_its_changelog_and_its_contract(prepared: Tree) -> None:
    folder = prepared.folder
    assert f'\nversion = "{VERSION}"\n' in (folder / "pyproject.toml").read_text()
    assert f"\nversion: {VERSION}\nappVersion: {VERSION}\n" in (folder / "deploy/helm/mailrail/Chart.yaml").read_text()
    assert f"## [{VERSION}] - " in (folder / "CHANGELOG.md").read_text()
    assert [path.name for path in (folder / "changelog.d").iterdir()] == ["template.md"]
    assert json.loads((folder / f"tests/contract/{VERSION}/release.json").read_text())["version"] == VERSION
    assert prepared.git("tag") == ""


def test_a_release_is_built_of_its_commit_and_twice_with_the_same_octets(built: Tree, tmp_path: Path) -> None:
    second = built.copy(tmp_path / "elsewhere")
    assert second.release(VERSION, *WITHOUT).returncode == 0
    out = built.folder / "dist" / VERSION
    sums = (out / "SHA256SUMS").read_text()
    assert sums == (second.folder / "dist" / VERSION / "SHA256SUMS").read_text()
    for line in sums.splitlines():
        digest, _, name = line.partition("  ")
        assert hashlib.sha256((out / name).read_bytes()).hexdigest() == digest
    names = [line.partition("  ")[2] for line in sums.splitlines()]
    assert f"mailrail-{VERSION}-py3-none-any.whl" in names
    assert {f"mailrail-{VERSION}{end}" for end in (".tar.gz", ".cdx.json", ".md")} <= set(names)
    with zipfile.ZipFile(out / f"mailrail-{VERSION}-py3-none-any.whl") as wheel:
        assert f"mailrail-{VERSION}.dist-info/METADATA" in wheel.namelist()
        assert "mailrail_queue/sql/migrations/0001_queue.sql" in wheel.namelist()
        assert not [name for name in wheel.namelist() if name.endswith(".pyc")]
    assert (out / f"mailrail-{VERSION}.md").read_text().startswith("### Added\n")
    parts = json.loads((out / f"mailrail-{VERSION}.cdx.json").read_text())["components"]
    assert {"grpcio", "psycopg", "kopf"} <= {part["name"] for part in parts}


def test_a_wheel_made_of_the_source_distribution_is_the_same_wheel(built: Tree, tmp_path: Path) -> None:
    out = built.folder / "dist" / VERSION
    with tarfile.open(out / f"mailrail-{VERSION}.tar.gz") as archive:
        archive.extractall(tmp_path / "source", filter="data")
    source = tmp_path / "source" / f"mailrail-{VERSION}"
    at = built.git("log", "-1", "--format=%ct")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "again")]
    subprocess.run(command, cwd=source, env=os.environ | {"SOURCE_DATE_EPOCH": at}, check=True, capture_output=True)
    (again,) = (tmp_path / "again").iterdir()
    assert again.read_bytes() == (out / again.name).read_bytes()


def test_a_build_that_was_cut_off_goes_on_and_makes_anew_what_is_damaged(built: Tree) -> None:
    out = built.folder / "dist" / VERSION
    before = (out / "SHA256SUMS").read_text()
    (out / "SHA256SUMS").unlink()
    (out / f"mailrail-{VERSION}.tar.gz").write_bytes(b"half of it")
    mended = built.release(VERSION, *WITHOUT).stdout
    assert f"wheel: mailrail-{VERSION}-py3-none-any.whl" in mended.partition("(as before)")[0]
    assert " sdist ...\n" in mended
    assert (out / "SHA256SUMS").read_text() == before
    again = built.release(VERSION, *WITHOUT).stdout
    assert again.count("(as before)") == len(before.splitlines())


def test_a_release_is_built_of_the_tree_that_was_prepared_and_of_no_later_one(prepared: Tree, tmp_path: Path) -> None:
    tree = prepared.copy(tmp_path / "tree")
    (tree.folder / "README.md").write_text("later")
    tree.commit("Later")
    done = tree.release(VERSION, *WITHOUT)
    assert done.returncode == 1
    assert "HEAD is another tree: git checkout " in done.stderr


def test_a_prepared_release_that_was_moved_onto_other_work_is_not_built_until_it_is_prepared_anew(
    prepared: Tree, tmp_path: Path
) -> None:
    tree = prepared.copy(tmp_path / "tree")
    release = tree.git("rev-parse", "HEAD")
    tree.git("reset", "-q", "--hard", "HEAD~1")
    (tree.folder / "README.md").write_text("what landed in between")
    tree.commit("In between")
    tree.git("cherry-pick", release)
    moved = tree.git("rev-parse", "HEAD")
    done = tree.release(VERSION, *WITHOUT)
    assert done.returncode == 1
    assert f"the contract may lack what came in between: git revert {moved[:12]}, then prepare {VERSION}" in done.stderr
    tree.git("revert", "--no-edit", moved)
    assert tree.release(VERSION).returncode == 0
    tree.commit(f"Release {VERSION}")
    assert tree.python("scripts/contract.py", "commit").stdout.strip() == tree.git("rev-parse", "HEAD")
    assert tree.release(VERSION, "--without", "image", "--without", "chart").returncode == 0


def test_a_clone_without_history_tells_no_commit_of_a_release(prepared: Tree, tmp_path: Path) -> None:
    prepared.git("clone", "-q", "--depth", "1", prepared.folder.as_uri(), str(tmp_path / "tree"))
    shallow = Tree(tmp_path / "tree")
    for done in (shallow.release(VERSION, *WITHOUT), shallow.python("scripts/contract.py", "commit")):
        assert done.returncode == 1
        assert "git fetch --unshallow" in done.stderr


def test_what_upgrades_begin_with_is_the_tree_of_the_newest_release(prepared: Tree, tmp_path: Path) -> None:
    tree = prepared.copy(tmp_path / "tree")
    (tree.folder / "README.md").write_text("later")
    tree.commit("Later")
    (tmp_path / "base").mkdir()
    script = (
        "import sys; from pathlib import Path; from testkit.older import *;"
        "print(commit_of(releases()[-1]), source_of_base(Path(sys.argv[1])))"
    )
    done = tree.python("-c", script, str(tmp_path / "base"))
    assert done.stdout.split() == [tree.git("rev-parse", "HEAD~1"), VERSION], done.stderr
    assert (tmp_path / "base/README.md").read_bytes() == (ROOT / "README.md").read_bytes()
    assert f"appVersion: {VERSION}" in (tmp_path / "base/deploy/helm/mailrail/Chart.yaml").read_text()


def dirty(tree: Tree) -> str:
    (tree.folder / "new.txt").write_text("not committed")
    return "7.1.0"


def no_version(tree: Tree) -> str:
    return "7.1.0rc1"


def not_greater(tree: Tree) -> str:
    return "6.9.9"


def no_fragment(tree: Tree) -> str:
    return "7.1.0"


def not_additive(tree: Tree) -> str:
    (tree.folder / "changelog.d/x.added.md").write_text("- X: is new.\n")
    values = tree.folder / "deploy/helm/mailrail/values.yaml"
    values.write_text(values.read_text().replace("clusterDomain: cluster.local", "clusterDomain: other.local"))
    tree.commit("Another default")
    return "7.1.0"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (dirty, "release: the work tree is not clean, and a release is made of a commit: 1 files, such as new.txt."),
        (no_version, "release: '7.1.0rc1' is not a version: write MAJOR.MINOR.PATCH"),
        (not_greater, "release: 6.9.9 is not greater than 7.0.0, which is released"),
        (no_fragment, "release: changelog.d has no fragment"),
        (not_additive, "values.clusterDomain: default 'cluster.local', now 'other.local'"),
    ],
)
def test_what_can_be_no_release_is_refused_with_a_sentence_and_changes_nothing(
    prepared: Tree, tmp_path: Path, change: Callable[[Tree], str], sentence: str
) -> None:
    tree = prepared.copy(tmp_path / "tree")
    version = change(tree)
    before = tree.git("status", "--porcelain")
    done = tree.release(version, *WITHOUT)
    assert done.returncode == 1
    assert sentence in done.stderr
    assert tree.git("status", "--porcelain") == before


def test_a_builder_that_does_not_answer_is_refused(prepared: Tree, tmp_path: Path) -> None:
    tree = prepared.copy(tmp_path / "tree")
    done = tree.release(VERSION, "--builder", "no-such-builder")
    assert done.returncode == 1
    assert "no-such-builder is not installed or does not answer" in done.stderr
