"""The file system that behaves as that of Windows does. On Windows itself the same tests judge the real one."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from testkit.windows_files import (
    ACCESS_DENIED,
    ALREADY_EXISTS,
    INVALID_NAME,
    SHARING_VIOLATION,
    held,
    windows_files,
)


@pytest.fixture(autouse=True)
def _there(tmp_path: Path) -> Iterator[None]:
    with windows_files(tmp_path):
        yield


def _refused(act: Callable[[], object]) -> int:
    with pytest.raises(OSError) as caught:
        act()
    number: int = getattr(caught.value, "winerror", 0)
    return number


def test_an_open_file_is_neither_removed_nor_renamed_nor_replaced(tmp_path: Path) -> None:
    file, other = tmp_path / "file", tmp_path / "other"
    file.write_bytes(b"1")
    other.write_bytes(b"2")
    with held(file):
        assert _refused(file.unlink) == SHARING_VIOLATION
        assert _refused(lambda: file.rename(tmp_path / "third")) == SHARING_VIOLATION
        assert _refused(lambda: other.replace(file)) == ACCESS_DENIED
    other.replace(file)
    assert file.read_bytes() == b"2"
    file.unlink()
    assert not file.exists()


def test_a_folder_with_an_open_file_keeps_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "file").write_bytes(b"")
    with held(folder / "file"):
        assert _refused(lambda: folder.rename(tmp_path / "other")) in (SHARING_VIOLATION, ACCESS_DENIED)
    folder.rename(tmp_path / "other")
    shutil.rmtree(tmp_path / "other")
    assert list(tmp_path.iterdir()) == []


def test_a_rename_replaces_nothing(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a")
    (tmp_path / "b").write_bytes(b"b")
    assert _refused(lambda: (tmp_path / "a").rename(tmp_path / "b")) == ALREADY_EXISTS
    (tmp_path / "a").rename(tmp_path / "A")
    assert [each.name for each in sorted(tmp_path.iterdir())] == ["A", "b"]


def test_a_folder_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(PermissionError):
        os.open(tmp_path, os.O_RDONLY)
    with pytest.raises(PermissionError):
        tmp_path.open("rb")


def test_names_are_the_same_whatever_their_case(tmp_path: Path) -> None:
    (tmp_path / "Mail.d").mkdir()
    (tmp_path / "mail.D" / "Routes.yaml").write_bytes(b"1")
    (tmp_path / "MAIL.D" / "routes.YAML").write_bytes(b"2")
    assert [each.name for each in (tmp_path / "mail.d").iterdir()] == ["Routes.yaml"]
    assert (tmp_path / "Mail.d" / "Routes.yaml").read_bytes() == b"2"


def test_a_backslash_separates(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder\\file").write_bytes(b"here")
    assert (tmp_path / "folder" / "file").read_bytes() == b"here"


@pytest.mark.parametrize("name", ["a:b", "what?", "a|b", "<a>"])
def test_names_that_windows_does_not_allow_are_refused(tmp_path: Path, name: str) -> None:
    if os.name == "nt" and ":" in name:
        pytest.skip("there it is a stream of the file before the colon")
    assert _refused(lambda: (tmp_path / name).write_bytes(b"")) == INVALID_NAME
