"""Ends the programs of a test process that was killed: nothing survives its tests, however they end.

Started once a test process, as a script: `python reaper.py`. Standard input is a pipe that only the test process holds;
it says `watch PID` and `forget PID`, a line each. When the pipe ends, what is still watched is asked to stop, then
killed, with everything that it started: its descendants, and (where sessions exist) what shares its session although
its parent is gone. What made a session of its own and then lost its parent is out of reach.
"""

import contextlib
import os
import signal
import sys
from collections.abc import Iterable

import psutil

GRACE = 5.0  # seconds from asking to killing: enough for a service to close its database


def _session(leader: int) -> list[psutil.Process]:
    """The processes whose session `leader` made; empty where there are no sessions."""
    if sys.platform == "win32":
        return []
    members = []
    for process in psutil.process_iter():
        with contextlib.suppress(OSError):
            if os.getsid(process.pid) == leader:
                members.append(process)
    return members


def family(leader: int) -> set[psutil.Process]:
    """A program, what it started and what those started, as far as they still run."""
    found = set(_session(leader))
    with contextlib.suppress(psutil.NoSuchProcess):
        found.add(psutil.Process(leader))
    for member in list(found):
        with contextlib.suppress(psutil.NoSuchProcess):
            found.update(member.children(recursive=True))
    return found


def end(leaders: Iterable[int], grace: float = GRACE) -> None:
    """Ask the programs to stop; once they have, or after `grace` seconds, kill what is left of their families."""
    numbers = set(leaders)
    members = set().union(*map(family, numbers))
    heads = [member for member in members if member.pid in numbers]
    for head in heads:
        with contextlib.suppress(psutil.NoSuchProcess):
            head.terminate()
    psutil.wait_procs(heads, timeout=grace)
    for member in members.union(*map(family, numbers)):
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()


def main() -> None:
    """Listen until the pipe ends, then end what is left."""
    if hasattr(signal, "SIGINT"):
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for the tests; they end what they started
    watched: dict[int, psutil.Process | None] = {}
    for line in sys.stdin:
        order, pid = line.split()
        if order == "forget":
            watched.pop(int(pid), None)
            continue
        watched[int(pid)] = None  # it may have ended before we came to look; what it left in its session has not
        with contextlib.suppress(psutil.NoSuchProcess):
            watched[int(pid)] = psutil.Process(int(pid))
    # A number that meanwhile names another program is left alone; is_running() compares the times of birth.
    end(
        pid
        for pid, process in watched.items()
        if not psutil.pid_exists(pid) or (process is not None and process.is_running())
    )


if __name__ == "__main__":
    main()
