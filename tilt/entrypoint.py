"""The first process of a development pod: runs `mailrail ARGUMENTS`, and starts it anew when code was synced.

A live update touches `/src/.reload`; a service is then told to stop, as a pod would be, and started with what is there
now. Any other end of the child ends the pod, so that a crash looks as it does in production. What is no service (the
Postgres for trying out, a migration) is not disturbed by new code.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

RELOAD = Path(os.environ.get("MAILRAIL_RELOAD_FILE", "/src/.reload"))
INTERVAL = 0.5  # seconds between looks at the file
STOP = 20.0  # seconds that a child has to end by itself


def stamp() -> float:
    """When the file was touched last; 0 before it was."""
    with contextlib.suppress(OSError):
        return RELOAD.stat().st_mtime
    return 0.0


def main(command: list[str]) -> int:
    """Run the command until it ends, or until this process is told to stop."""
    stopping = False
    reloads = "serve" in command

    def stop(_number: int, _frame: FrameType | None) -> None:
        nonlocal stopping
        stopping = True

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    while True:
        seen = stamp()
        child = subprocess.Popen(command)  # noqa: S603 - the pod's own arguments
        while child.poll() is None and not stopping and not (reloads and stamp() != seen):
            time.sleep(INTERVAL)
        if child.poll() is not None and not stopping:
            return child.returncode if child.returncode >= 0 else 128 - child.returncode
        child.terminate()
        try:
            child.wait(STOP)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        if stopping:
            return 0
        print("entrypoint: code has changed, starting anew", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main([sys.executable, "-m", "mailrail.cli", *sys.argv[1:]]))
