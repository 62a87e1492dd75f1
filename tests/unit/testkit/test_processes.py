"""Programs started by tests are watched, waited for and always ended, and waiting says what it waited for."""

import asyncio
import os
import secrets
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from testkit.conditions import NeverTrue, eventually, wait_until
from testkit.ports import accepts, free_offset, free_port, loopback_address, release_offset
from testkit.processes import Ended, Program, alive, run

PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("child", child.pid, flush=True)
time.sleep(600)
"""

STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)" + PARENT
TESTS = Path(__file__).parents[2]


def test_a_stopped_program_takes_what_it_started_with_it() -> None:
    with Program([sys.executable, "-c", PARENT], name="parent") as program:
        child = int(program.wait_for_line(r"child (\d+)")[1])
        assert psutil.pid_exists(child)
    assert not program.running
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE


KILLED = f"""
import sys, time
from testkit.processes import Program
program = Program([sys.executable, "-c", {STUBBORN!r}])
child = program.wait_for_line(r"child (\\d+)")[1]
print("program", program.pid, "child", child, flush=True)
"""
SLEEPING = KILLED + "time.sleep(600)"
WITHOUT_THE_PROGRAM = KILLED + "program.kill(); print('killed', flush=True); time.sleep(600)"


def test_a_killed_test_process_leaves_no_program_behind() -> None:
    """Neither the program, which does not heed SIGTERM, nor what that started."""
    with Program([sys.executable, "-c", SLEEPING], name="tests", env={"PYTHONPATH": str(TESTS)}) as tests:
        found = tests.wait_for_line(r"program (\d+) child (\d+)")
        left = [psutil.Process(int(pid)) for pid in found.groups()]
        tests.kill()
        wait_until(lambda: not any(alive(process) for process in left), 20, "all that it started has ended")


def test_a_killed_test_process_takes_along_what_a_dead_program_left_in_its_session() -> None:
    with Program([sys.executable, "-c", WITHOUT_THE_PROGRAM], name="tests", env={"PYTHONPATH": str(TESTS)}) as tests:
        child = psutil.Process(int(tests.wait_for_line(r"child (\d+)")[1]))
        tests.wait_for_line("killed")
        assert alive(child)
        tests.kill()
        wait_until(lambda: not alive(child), 20, "the orphan has ended")


def test_a_program_that_ends_too_early_fails_the_wait_at_once_with_its_output() -> None:
    with (
        Program([sys.executable, "-c", "print('no configuration'); raise SystemExit(3)"], name="early") as program,
        pytest.raises(Ended, match=r"ended with 3 before it printed /ready/(.|\n)*no configuration"),
    ):
        program.wait_for_line("ready", within=20)


def test_a_program_that_fails_says_what_it_printed() -> None:
    with pytest.raises(AssertionError, match="ended with 2, not 0; it printed\nbad option"):
        run([sys.executable, "-c", "print('bad option'); raise SystemExit(2)"])


def test_a_condition_that_stays_false_is_named_with_what_was_seen() -> None:
    with pytest.raises(NeverTrue, match=r"not true within 0.05 s: the queue is empty \(last seen: 0\)"):
        wait_until(lambda: 0, within=0.05, what="the queue is empty")
    with pytest.raises(NeverTrue, match="it raised KeyError: 'x'"):
        wait_until(lambda: dict[str, int]()["x"], within=0.05, what="x is there")


async def test_waiting_in_an_event_loop_lets_it_run() -> None:
    seen: list[int] = []
    asyncio.get_running_loop().call_later(0.02, seen.append, 7)
    assert await eventually(lambda: seen, within=5) == [7]


def test_addresses_and_ports_are_free() -> None:
    address = loopback_address()
    assert address != loopback_address()
    assert not accepts(address, free_port(address, udp=True))
    offset = free_offset((1025, 1587))
    assert 1587 + offset < 32_768


CHOSEN = """
import sys
from testkit.ports import free_offset, free_port
print(free_offset((1025, 1587)), free_port(), flush=True)
sys.stdin.readline()
"""


def test_what_another_test_process_has_chosen_and_does_not_use_yet_is_not_free(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    command = [sys.executable, "-c", CHOSEN]
    draw, next_draws = secrets.randbelow, list[int]()
    monkeypatch.setattr(secrets, "randbelow", lambda below: next_draws.pop() if next_draws else draw(below))
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as other:
        assert other.stdout is not None
        offset, port = map(int, other.stdout.readline().split())
        next_draws = [(offset - 8_000) // 10]
        ours = free_offset((1025, 1587))
        assert ours != offset
        next_draws = [port - 8_000]
        assert free_port() != port
        assert not next_draws
        release_offset(ours)
        next_draws = [(ours - 8_000) // 10]
        assert free_offset((1025, 1587)) == ours
        release_offset(ours)
        other.communicate("\n")
