"""Files for their owner alone are written whole or not at all, also where somebody has the one before open."""

import stat
import sys
from pathlib import Path

import pytest

from mailrail.local import files
from mailrail.local.files import write_private

from testkit.windows_files import held


def test_a_file_is_written_whole_and_for_its_owner_alone(tmp_path: Path) -> None:
    write_private(tmp_path / "file", b"1")
    write_private(tmp_path / "file", b"2")
    assert (tmp_path / "file").read_bytes() == b"2"
    assert [each.name for each in tmp_path.iterdir()] == ["file"]
    if sys.platform != "win32":
        assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o600


def test_one_that_cannot_get_its_name_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(unfinished: Path, path: Path) -> None:
        raise PermissionError(13, "somebody has it open", str(path))

    write_private(tmp_path / "file", b"1")
    monkeypatch.setattr(files, "replace", refuse)
    with held(tmp_path / "file"), pytest.raises(PermissionError):
        write_private(tmp_path / "file", b"2")
    assert (tmp_path / "file").read_bytes() == b"1"
    assert [each.name for each in tmp_path.iterdir()] == ["file"]
