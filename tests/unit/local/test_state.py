"""The state folder and what it tells the command line."""

import json
import os
import stat
import sys
import threading
from pathlib import Path

import pytest

from mailrail.local.state import Client, NoInstallation, StateFolder, UnusableState, default_state


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    state = StateFolder(tmp_path / "state").make()
    client = Client(targets={"queue": "127.0.0.1:1092"}, tls_dir="/keys", listeners={"mx": "127.0.0.1:1025"}, pid=7)
    state.write_client(client)
    assert state.read_client() == client


@pytest.mark.skipif(sys.platform == "win32", reason="Windows keeps rights in access lists, not in modes")
def test_nothing_in_it_is_readable_for_others(tmp_path: Path) -> None:
    state = StateFolder(tmp_path / "state").make()
    state.write_client(Client(targets={}, tls_dir=""))
    for path in [state.folder, *state.folder.rglob("*")]:
        mode = stat.S_IMODE(path.stat().st_mode)
        passing = 0o011 if path == state.folder and os.geteuid() == 0 else 0
        assert mode & 0o077 & ~passing == 0, path


def test_whoever_reads_a_process_id_while_it_is_written_reads_one(tmp_path: Path) -> None:
    state = StateFolder(tmp_path / "state").make()
    state.write_pid("queue", 1)
    written = threading.Event()

    def write() -> None:
        for pid in range(2, 2000):
            state.write_pid("queue", pid)
        written.set()

    writer = threading.Thread(target=write)
    writer.start()
    while not written.is_set():
        assert int((state.run / "queue.pid").read_text()) > 0
    writer.join()
    state.remove_pid("queue")
    assert not list(state.run.iterdir())


def test_a_missing_installation_says_how_to_start_one(tmp_path: Path) -> None:
    with pytest.raises(NoInstallation, match="start it with `mailrail local`"):
        StateFolder(tmp_path).read_client()


@pytest.mark.parametrize("content", [b"", b"[]", b'{"targets": {}', b'{"other": 1}', b"\xff\xfe"])
def test_a_damaged_file_is_said_to_be_one(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "client.json").write_bytes(content)
    with pytest.raises(NoInstallation, match="restart `mailrail local`"):
        StateFolder(tmp_path).read_client()


def test_what_a_later_release_adds_is_passed_over(tmp_path: Path) -> None:
    """The command and the installation need not be of one release."""
    state = StateFolder(tmp_path / "state").make()
    state.write_client(Client(targets={"queue": "127.0.0.1:1092"}, tls_dir="/keys"))
    told = json.loads(state.client_file.read_bytes())
    state.client_file.write_text(json.dumps({**told, "console": "http://127.0.0.1:1080"}))
    assert state.read_client().targets == {"queue": "127.0.0.1:1092"}


def test_a_file_of_another_version_is_refused(tmp_path: Path) -> None:
    state = StateFolder(tmp_path / "state").make()
    state.write_client(Client(targets={}, tls_dir="", format=99))
    with pytest.raises(NoInstallation, match="another version"):
        state.read_client()


def test_the_environment_may_name_the_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MAILRAIL_STATE", str(tmp_path))
    assert default_state() == tmp_path
    monkeypatch.delenv("MAILRAIL_STATE")
    assert default_state().name == "mailrail"


@pytest.mark.parametrize("part", ["postgres", "pki", "client.json", "cache"])
def test_a_folder_of_before_0_1_0_is_refused_with_a_sentence_and_left_as_it_is(part: str, tmp_path: Path) -> None:
    (tmp_path / part).mkdir()
    with pytest.raises(UnusableState, match=r"from before 0\.1\.0 .* name another one with --state"):
        StateFolder(tmp_path).make()
    assert [path.name for path in tmp_path.iterdir()] == [part]


def test_a_folder_that_this_version_made_is_used_again(tmp_path: Path) -> None:
    made = StateFolder(tmp_path / "state").make()
    made.postgres.mkdir()
    assert StateFolder(tmp_path / "state").make() == made


def test_a_folder_of_another_form_is_refused(tmp_path: Path) -> None:
    StateFolder(tmp_path).make()
    (tmp_path / "format").write_text("2\n")
    with pytest.raises(UnusableState, match="has format 2, and this version of Mailrail uses 1"):
        StateFolder(tmp_path).make()
