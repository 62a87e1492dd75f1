"""Subjects of commits: which are refused, from which commit on, and what happens without history."""

import subprocess
from pathlib import Path

import pytest
from check_commits import faults, main

CHECK = "scripts/check.py"


def git(folder: Path, *arguments: str) -> None:
    who = ["-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", str(folder), *who, *arguments], check=True, capture_output=True)


def commit(folder: Path, subject: str) -> None:
    git(folder, "commit", "-q", "--allow-empty", "-m", subject, "-m", f"A body. {'x' * 90}.")


@pytest.fixture
def history(tmp_path: Path) -> Path:
    """A repository with a subject of before that is too long, and then the check."""
    folder = tmp_path / "history"
    folder.mkdir()
    git(folder, "init", "-q")
    commit(folder, "x" * 90 + ".")
    (folder / "scripts").mkdir()
    (folder / CHECK).write_text("")
    git(folder, "add", ".")
    commit(folder, "Check subjects of commits")
    return folder


def test_a_subject_of_72_characters_without_a_full_stop_passes() -> None:
    assert faults("x" * 72) == []


@pytest.mark.parametrize(("subject", "fault"), [("x" * 73, "73 characters"), ("Add a check.", "full stop")])
def test_another_subject_is_refused_with_what_to_do(subject: str, fault: str) -> None:
    assert fault in faults(subject)[0]


def test_subjects_of_before_the_check_are_left_alone(history: Path) -> None:
    assert main(history, CHECK) == 0


def test_each_wrong_subject_since_the_check_is_named(history: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for subject in ("Say what", "Say what.", "y" * 73):
        commit(history, subject)
    assert main(history, CHECK) == 1
    lines = capsys.readouterr().err.splitlines()
    assert [line.rpartition(": ")[2] for line in lines] == ["y" * 73, "Say what."]


def test_a_shallow_clone_passes_and_says_why(history: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commit(history, "y" * 73)
    git(history, "clone", "-q", "--depth", "1", history.as_uri(), str(history / "shallow"))
    assert main(history / "shallow", CHECK) == 0
    assert "this clone is shallow" in capsys.readouterr().out


def test_a_folder_without_history_passes_and_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / ".git").write_text("gitdir: nowhere\n")  # so that git does not look above it
    assert main(tmp_path, CHECK) == 0
    assert "not checked" in capsys.readouterr().out
