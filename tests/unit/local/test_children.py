"""Child processes: output, restarts, and the leash."""

import errno
import os
import sys
import threading
from collections.abc import Callable

import psutil

from mailrail.local.children import FIRST_PAUSE, LONGEST_PAUSE, STEADY, Child, RestartBackoff, describe

from testkit.conditions import wait_until

_POLITE = "import sys; print('up', flush=True); sys.stdin.read(); print('bye', flush=True)"
_STUBBORN = "import sys, time; print('up', flush=True)\nwhile True: time.sleep(60)"


class Recorder:
    """Keeps what a child and its keeper say."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self.said: list[str] = []
        self.pids: list[int] = []
        self.hopeless: list[str] = []

    def child(self, script: str) -> Child:
        return Child(
            "child",
            [sys.executable, "-c", script],
            os.environ,
            output=lambda _, lines: self.lines.extend(lines),
            say=self.said.append,
            started=lambda _, pid: self.pids.append(pid),
            hopeless=self.hopeless.append,
        )


def _started(script: str) -> tuple[Child, Recorder]:
    record = Recorder()
    child = record.child(script)
    child.start()
    wait_until(lambda: b"up" in record.lines, 20)
    return child, record


def test_a_closed_leash_asks_a_child_to_stop_and_its_last_words_arrive() -> None:
    child, record = _started(_POLITE)
    assert child.stop(within=20) is True
    assert record.lines == [b"up", b"bye"]
    assert not child.running
    assert record.said == []


def test_a_child_that_does_not_listen_is_killed_in_time() -> None:
    child, record = _started(_STUBBORN)
    assert child.stop(within=0.1) is False
    assert not psutil.pid_exists(record.pids[0])


def test_a_hurry_that_comes_while_a_child_is_waited_for_ends_the_wait() -> None:
    child, record = _started(_STUBBORN)
    looks: list[bool] = []

    def hurry() -> bool:
        looks.append(len(looks) >= 3)
        return looks[-1]

    assert child.stop(within=3600, hurry=hurry) is False
    assert looks == [False, False, False, True]
    assert not psutil.pid_exists(record.pids[0])


def test_a_killed_child_is_started_again() -> None:
    child, record = _started(_POLITE)
    os.kill(record.pids[0], 9)
    wait_until(lambda: len(record.pids) == 2 and record.lines.count(b"up") == 2, 20)
    assert child.restarts == 1
    assert record.said == [f"child ended (killed by signal 9); restarting it in {FIRST_PAUSE:g} s"]
    assert child.stop(within=20) is True


def test_a_child_whose_number_cannot_be_noted_is_kept_running_all_the_same() -> None:
    record = Recorder()

    def full(name: str, pid: int) -> None:
        record.pids.append(pid)
        raise OSError(errno.ENOSPC, "No space left on device")

    child = Child(
        "child",
        [sys.executable, "-c", _POLITE],
        os.environ,
        output=lambda _, lines: record.lines.extend(lines),
        say=record.said.append,
        started=full,
        hopeless=record.hopeless.append,
    )
    child.start()
    wait_until(lambda: b"up" in record.lines, 20)
    os.kill(record.pids[0], 9)
    wait_until(lambda: record.lines.count(b"up") == 2, 20)
    assert record.said[0] == "the process id of child cannot be noted: [Errno 28] No space left on device"
    assert child.stop(within=20) is True


def test_a_child_that_refuses_its_settings_is_not_started_again() -> None:
    record = Recorder()
    child = record.child("import sys; print('MAILRAIL_X: no'); sys.exit(2)")
    child.start()
    wait_until(lambda: record.hopeless == ["child"], 20)
    assert len(record.pids) == 1
    assert record.lines == [b"MAILRAIL_X: no"]
    child.stop(within=5)


def test_a_program_that_is_not_there_is_tried_again_and_said() -> None:
    record = Recorder()
    child = Child(
        "child",
        ["/nonexistent/program"],
        {},
        output=lambda *_: None,
        say=record.said.append,
        started=lambda _, pid: record.pids.append(pid),
        hopeless=record.hopeless.append,
    )
    child.start()
    wait_until(lambda: len(record.said) >= 2, 20)
    assert "cannot be started" in record.said[0]
    assert child.stop(within=20) is True


def test_output_without_an_end_is_handed_on_in_bounded_pieces() -> None:
    record = Recorder()
    child = record.child("import sys; sys.stdout.write('x' * 300_000); sys.stdout.flush(); sys.stdin.read()")
    child.start()
    wait_until(lambda: sum(map(len, record.lines)) >= 200_000, 20)
    child.stop(within=20)
    assert sum(map(len, record.lines)) == 300_000
    assert max(map(len, record.lines)) <= 2 * 65536 + 1


def test_stopping_while_it_waits_for_a_restart_ends_at_once() -> None:
    record = Recorder()
    child = record.child("import sys; sys.exit(1)")
    child.start()
    wait_until(lambda: child.restarts >= 3, 30)  # by now the pauses are seconds long
    stopped = threading.Event()

    def stop() -> None:
        child.stop(within=20)
        stopped.set()

    threading.Thread(target=stop).start()
    assert stopped.wait(5)


def test_pauses_double_up_to_a_bound_and_begin_anew_after_a_steady_life() -> None:
    backoff = RestartBackoff()
    pauses = [backoff.after(0.1) for _ in range(10)]
    assert pauses[:3] == [FIRST_PAUSE, FIRST_PAUSE * 2, FIRST_PAUSE * 4]
    assert pauses[-1] == LONGEST_PAUSE
    assert backoff.after(STEADY) == FIRST_PAUSE


def test_an_end_is_described_in_words() -> None:
    words: Callable[[int | None], str] = describe
    assert [words(-9), words(1), words(None)] == ["killed by signal 9", "exit status 1", "it could not be started"]
