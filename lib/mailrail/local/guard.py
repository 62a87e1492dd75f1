"""Runs one program and stops it when whoever started us goes away: no orphan outlives a killed supervisor.

Started as a script of its own (standard library only, so it costs little): `python -I guard.py SPECIFICATION`, the
specification being JSON: `command`, `cwd`, `user` and `group` (numbers, or null), `stop` (a command that asks the
program to stop where signals do not exist, or null), `grace` (seconds from asking to killing). A pipe on standard input
is the leash: when it ends, by a close or by the death of its holder, the program is asked to stop, then killed. The
guard's exit code is the program's; a program killed by signal N gives 128 + N.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time


def _leash() -> None:
    """Return when standard input ends."""
    while True:
        try:
            if not os.read(0, 4096):
                return
        except OSError:
            return


def main() -> int:
    """Run the program to its end and give its exit code."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # the leash alone decides; a Ctrl-C reaches the supervisor
        if hasattr(signal, name):
            # A handler that does nothing rather than SIG_IGN, which the program would inherit.
            signal.signal(getattr(signal, name), lambda *_: None)
    specification = json.loads(sys.argv[1])
    options: dict[str, object] = {}
    if specification["user"] is not None:
        options = {"user": specification["user"], "group": specification["group"], "extra_groups": []}

    process = subprocess.Popen(  # the command comes from our own supervisor
        specification["command"],
        cwd=specification["cwd"],
        stdin=subprocess.DEVNULL,
        restore_signals=True,
        **options,  # type: ignore[call-overload]
    )

    def stop_with_the_leash() -> None:
        _leash()
        if process.poll() is not None:
            return
        deadline = time.monotonic() + specification["grace"]
        if specification["stop"] is not None:
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                subprocess.run(
                    specification["stop"],
                    check=False,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    timeout=specification["grace"],
                )
        else:
            process.send_signal(signal.SIGINT)
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        if process.poll() is None:
            process.kill()

    threading.Thread(target=stop_with_the_leash, daemon=True).start()
    code: int = process.wait()
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)  # the leash thread may still sit in read(0); waiting for it would wait for ever
