"""Reading a folder of documents: what cannot be read counts as unchanged, and is said (CFG-01)."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mailrail.core.config.compiler import Compiled, compile
from mailrail.core.config.diagnostics import Finding, Reason, Severity, SourceLocation
from mailrail.core.config.state import CompilerState
from mailrail.core.revision.sealing import KEY_SIZE, Keyring
from mailrail.local import documents, example
from mailrail.local.documents import Folder
from mailrail.local.folder import FindingReporter

KEYS = Keyring({"k": b"k" * KEY_SIZE})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The example, with its routes and the login of the provider in a folder of their own."""
    made = tmp_path / "mail.d"
    example.write(made)
    (made / "team").mkdir()
    for name in ("40-transports.yaml", "50-routes.yaml"):
        (made / name).rename(made / "team" / name)
    return made


def compiled(folder: Path, before: Compiled | None = None) -> Compiled:
    return compile(Folder(folder).read(), before.state if before is not None else CompilerState(), KEYS)


def close(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """As if the folder had lost its modes; root would read it all the same."""
    scandir = os.scandir

    def closed(path: Any = ".") -> Iterator[os.DirEntry[str]]:
        if Path(path) == folder:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)


@pytest.mark.parametrize(("which", "origin"), [("team", "mail.d/team/"), ("", "mail.d/")])
def test_a_folder_that_cannot_be_listed_counts_as_all_its_documents_unchanged_CFG_01(
    path: Path, which: str, origin: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = compiled(path)
    close(monkeypatch, path / which)
    second = compiled(path, first)
    assert second.revision.transports == first.revision.transports
    assert second.revision.global_routes == first.revision.global_routes
    [finding] = [f for f in second.diagnostics.findings if "cannot be read" in f.message]
    assert str(finding) == (f"{origin}: the folder cannot be read: Permission denied; its documents stay as they were")


def test_a_folder_that_vanishes_while_it_is_read_takes_nothing_with_it_CFG_01(path: Path) -> None:
    first = compiled(path)
    path.rename(path.with_name("elsewhere"))
    assert compiled(path, first).revision == first.revision


def test_a_folder_that_lies_too_deep_is_named(path: Path) -> None:
    first = compiled(path)
    deep = path.joinpath(*"abcdefgh")
    deep.mkdir(parents=True)
    (path / "team").rename(deep / "team")
    [finding] = [f for f in compiled(path, first).diagnostics.findings if "deeper" in f.message]
    assert finding.place.origin == "mail.d/a/b/c/d/e/f/g/h/team/"


def test_files_past_the_limit_are_named_and_nothing_disappears(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = compiled(path)
    monkeypatch.setattr(documents, "FILES_LIMIT", 4)
    second = compiled(path, first)
    assert second.revision == first.revision
    [finding] = second.diagnostics.errors
    assert "there are more than 4 files, and those from 50-routes.yaml on are not read" in str(finding)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no named pipes among files")
def test_a_pipe_is_refused_and_never_waited_for(path: Path) -> None:
    os.mkfifo(path / "60-pipe.yaml")
    [finding] = compiled(path).diagnostics.errors
    assert str(finding) == (
        "mail.d/60-pipe.yaml:1: the file cannot be read: it is not a regular file; its documents stay as they were"
    )


def test_each_mistake_is_said_once_and_so_is_that_it_was_mended() -> None:
    def finding(line: int) -> Finding:
        return Finding(SourceLocation("mail.d/a.yaml", line), Severity.ERROR, Reason.INVALID, "is wrong")

    said: list[str] = []
    reporter = FindingReporter("console", said.append)
    reporter.findings([finding(1), finding(2)])
    reporter.findings([finding(1), finding(2)])
    reporter.findings([finding(2)])
    reporter.findings([finding(3)])  # the same mistake, a line further down: nothing was mended
    reporter.findings([])
    reporter.findings([])
    assert said == [
        "refused: mail.d/a.yaml:1: is wrong",
        "refused: mail.d/a.yaml:2: is wrong",
        "mended: 1 fixed, 1 still wrong, see `mailrail config status`",
        "refused: mail.d/a.yaml:3: is wrong",
        "mended: all resources are valid again",
    ]


def test_a_file_that_could_not_be_read_is_read_once_it_can_be_though_nobody_saves_it_again_CFG_06(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = path / "team" / "50-routes.yaml"
    read = documents._content

    def refuse(file: Path, limit: int) -> bytes:
        if file == closed:
            raise PermissionError(13, "Permission denied", str(file))
        return read(file, limit)

    folder = Folder(path)
    before = folder.snapshot()
    with monkeypatch.context() as context:
        context.setattr(documents, "_content", refuse)  # an editor holds it, or its mode is wrong
        assert len(folder.read().unreadable) == 1
        while_closed = folder.snapshot()
        assert while_closed != before
        folder.read()
        assert folder.snapshot() == while_closed, "it is not read for ever"
    assert folder.snapshot() != while_closed
    assert folder.read().unreadable == ()
    assert folder.snapshot() == before
