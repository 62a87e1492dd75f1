"""One holder at a time for a folder."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from mailrail.local.lock import FileLock, LockHeld

from testkit.conditions import wait_until


def test_the_second_holder_is_refused_and_told_who_holds_it(tmp_path: Path) -> None:
    with FileLock(tmp_path / "lock").acquire(), pytest.raises(LockHeld, match=f"process {os.getpid()}"):
        FileLock(tmp_path / "lock").acquire()


def test_a_released_lock_can_be_taken_again(tmp_path: Path) -> None:
    lock = FileLock(tmp_path / "lock")
    lock.acquire()
    lock.release()
    lock.release()
    with FileLock(tmp_path / "lock").acquire(timeout=0) as again:
        assert again.path.exists()


def test_waiting_ends_when_the_holder_lets_go(tmp_path: Path) -> None:
    first = FileLock(tmp_path / "lock").acquire()
    got = threading.Event()

    def wait_for_it() -> None:
        with FileLock(tmp_path / "lock").acquire(timeout=30):
            got.set()

    waiter = threading.Thread(target=wait_for_it)
    waiter.start()
    assert not got.is_set()
    first.release()
    waiter.join(30)
    assert got.is_set()


def test_a_killed_holder_leaves_nothing_stale(tmp_path: Path) -> None:
    script = (
        "import sys, pathlib; from mailrail.local.lock import FileLock\n"
        "lock = FileLock(pathlib.Path(sys.argv[1])).acquire(); print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdin is not None
    assert holder.stdout is not None
    with holder.stdin, holder.stdout:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(LockHeld, match=f"process {holder.pid}"):
            FileLock(tmp_path / "lock").acquire()
        holder.kill()
        holder.wait()

    def free() -> bool:
        try:
            FileLock(tmp_path / "lock").acquire().release()
        except LockHeld:
            return False
        return True

    wait_until(free)
