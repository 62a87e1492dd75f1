"""Processes by their number: whether one lives, what it was called as, how to end it; on every system alike."""

import contextlib
import subprocess
import sys
from typing import Any

import psutil


def new_group() -> dict[str, Any]:
    """Options of Popen that keep a terminal's Ctrl-C from reaching the child: the supervisor decides when it stops."""
    if sys.platform == "win32":
        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    return {"start_new_session": True}


def is_alive(pid: int) -> bool:
    """Whether there is a process `pid` that has not ended; one that waits to be reaped has."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


def kill(pid: int) -> None:
    """End process `pid` at once, if it is there."""
    with contextlib.suppress(psutil.Error):
        psutil.Process(pid).kill()


def command_line(pid: int) -> str:
    """How process `pid` was called; empty when it is gone or cannot be seen."""
    try:
        return " ".join(psutil.Process(pid).cmdline())
    except psutil.Error:
        return ""
