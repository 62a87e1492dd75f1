"""Files that somebody else has open are waited for, and streams that take a part are given the rest."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mailrail.kit.files import remove, replace, write_whole

from testkit.windows_files import held, windows_files


@pytest.fixture(autouse=True)
def _there(tmp_path: Path) -> Iterator[None]:
    with windows_files(tmp_path):
        yield


class _Reader:
    """Has a file open until somebody has tried to move it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
        self.tries = 0
        self._tried = threading.Event()
        self._open = threading.Event()
        self._thread = threading.Thread(target=self._hold, args=(path,))
        self._thread.start()
        assert self._open.wait(30)

        def pause(_: float) -> None:
            self.tries += 1
            self._tried.set()
            self._thread.join(30)

        monkeypatch.setattr("mailrail.kit.files.time.sleep", pause)

    def _hold(self, path: Path) -> None:
        with held(path):
            self._open.set()
            self._tried.wait(30)


def test_a_file_that_somebody_reads_is_replaced_once_he_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fresh").write_bytes(b"new")
    (tmp_path / "file").write_bytes(b"old")
    reader = _Reader(monkeypatch, tmp_path / "file")
    replace(tmp_path / "fresh", tmp_path / "file", patience=3600)
    assert reader.tries == 1
    assert (tmp_path / "file").read_bytes() == b"new"


def test_a_file_that_somebody_reads_is_removed_once_he_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"old")
    reader = _Reader(monkeypatch, tmp_path / "file")
    remove(tmp_path / "file", patience=3600)
    assert reader.tries == 1
    assert not (tmp_path / "file").exists()


def test_one_that_is_never_let_go_is_an_error_and_both_files_stay(tmp_path: Path) -> None:
    (tmp_path / "fresh").write_bytes(b"new")
    (tmp_path / "file").write_bytes(b"old")
    with held(tmp_path / "file"):
        with pytest.raises(PermissionError):
            replace(tmp_path / "fresh", tmp_path / "file", patience=0)
        with pytest.raises(PermissionError):
            remove(tmp_path / "file", patience=0)
    assert (tmp_path / "file").read_bytes() == b"old"
    assert (tmp_path / "fresh").read_bytes() == b"new"


def test_other_errors_are_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pause(_: float) -> None:
        raise AssertionError("it waited")

    monkeypatch.setattr("mailrail.kit.files.time.sleep", pause)
    with pytest.raises(FileNotFoundError):
        replace(tmp_path / "nothing", tmp_path / "file")
    remove(tmp_path / "nothing")


def test_a_stream_that_takes_a_part_is_given_the_rest() -> None:
    taken = bytearray()

    class Raw:
        def write(self, octets: memoryview, /) -> int | None:
            if len(taken) % 2:  # just now it takes nothing
                taken.extend(octets[:1])
                return None if not octets else 1
            taken.extend(octets[:3])
            return len(octets[:3])

    write_whole(Raw(), b"0123456789")
    assert bytes(taken) == b"0123456789"
