"""Child processes of the supervisor: started, watched, started again with growing pauses, and stopped by their leash.

A child's standard input is a pipe that we hold. Closing it asks the child to stop (`MAILRAIL_STOP_WITH_PARENT`), on
every system and without a signal; it closes by itself when we die, however we die, so no child outlives its supervisor.
"""

import contextlib
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Protocol

from mailrail.local.processes import new_group

FIRST_PAUSE = 0.25
"""Seconds before a child that ended is started again; doubles."""
LONGEST_PAUSE = 10.0
STEADY = 20.0
"""Seconds of life after which the pauses begin anew."""
_LOOK = 0.1
"""Seconds between looks whether there is a hurry."""
_LINE_LIMIT = 65536
"""Octets of one line of output that are held."""
BAD_SETTINGS = 2
"""Exit status (kit/run.py): starting again cannot help."""


class RestartBackoff:
    """Pauses between restarts: doubling while it keeps failing at once, short again after a steady life."""

    def __init__(self) -> None:
        self._pause = FIRST_PAUSE

    def after(self, lived: float) -> float:
        """Seconds to wait now, for something that lived `lived` seconds."""
        if lived >= STEADY:
            self._pause = FIRST_PAUSE
        pause, self._pause = self._pause, min(self._pause * 2, LONGEST_PAUSE)
        return pause


class Process(Protocol):
    """A child process; Popen is one. Its standard input is its leash, its standard output is all that it prints."""

    pid: int
    stdin: IO[bytes] | None
    stdout: IO[bytes] | None

    def poll(self) -> int | None:
        """The exit status, None while it runs."""

    def wait(self) -> int:
        """The exit status, once it has ended; negative = the signal."""

    def kill(self) -> None:
        """End it at once."""


Launch = Callable[[Sequence[str], Mapping[str, str]], Process]
"""Starts a command in an environment. Raises OSError."""


def spawn(command: Sequence[str], environment: Mapping[str, str]) -> Process:
    """Start a command as a program of its own. Raises OSError."""
    return subprocess.Popen(
        list(command),
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        **new_group(),
    )


class Child:
    """One service process, kept running by a thread until `stop`."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        *,
        output: Callable[[str, list[bytes]], None],
        say: Callable[[str], None],
        started: Callable[[str, int], None],
        hopeless: Callable[[str], None],
        launch: Launch = spawn,
    ) -> None:
        """`output` gets (name, whole lines); `say` words of the supervisor; `started` (name, pid) at each start;
        `hopeless` the name, when the child refuses its settings. All are called from the child's thread."""
        self.name = name
        self.restarts = 0
        self._command = list(command)
        self._environment = dict(environment)
        self._output = output
        self._say = say
        self._started = started
        self._hopeless = hopeless
        self._launch = launch
        self._stopping = threading.Event()
        self._process: Process | None = None
        self._spawning = threading.Lock()
        self._thread = threading.Thread(target=self._keep_running, name=name, daemon=True)

    def start(self) -> None:
        """Begin to keep it running."""
        self._thread.start()

    @property
    def running(self) -> bool:
        """Whether its process is there now."""
        process = self._process
        return process is not None and process.poll() is None

    def ask_to_stop(self) -> None:
        """Close the leash; answers at once."""
        with self._spawning:  # never between the look at `_stopping` and the spawn
            self._stopping.set()
            process = self._process
        if process is not None and process.stdin is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()

    def stop(self, within: float, hurry: Callable[[], bool] = lambda: False) -> bool:
        """Stop it, by force after `within` seconds or once `hurry` says so. Answers whether it went by itself."""
        self.ask_to_stop()
        deadline = time.monotonic() + within
        while self._thread.is_alive() and (left := deadline - time.monotonic()) > 0 and not hurry():
            self._thread.join(min(left, _LOOK))
        if not self._thread.is_alive():
            return True
        process = self._process
        if process is not None:
            process.kill()
        self._thread.join(10)
        return False

    def _keep_running(self) -> None:
        backoff = RestartBackoff()
        while not self._stopping.is_set():
            began = time.monotonic()
            status = self._run_once()
            if self._stopping.is_set():
                return
            if status == BAD_SETTINGS:
                self._hopeless(self.name)
                return
            pause = backoff.after(time.monotonic() - began)
            self._say(f"{self.name} ended ({describe(status)}); restarting it in {pause:g} s")
            self._stopping.wait(pause)
            self.restarts += 1

    def _run_once(self) -> int | None:
        with self._spawning:
            if self._stopping.is_set():
                return None
            try:
                process = self._launch(self._command, self._environment)
            except OSError as error:
                self._say(f"{self.name} cannot be started: {error}")
                return None
            self._process = process
        try:
            self._started(self.name, process.pid)
        except OSError as error:  # a full disk: all the same somebody must read what it prints, and start it again
            self._say(f"the process id of {self.name} cannot be noted: {error}")
        assert process.stdout is not None
        self._pump(process.stdout)
        status = process.wait()
        process.stdout.close()
        if process.stdin is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()
        return status

    def _pump(self, stream: IO[bytes]) -> None:
        """Hand on what the child prints, in whole lines, until it closes its output."""
        rest = b""
        read = stream.read1  # type: ignore[attr-defined]  # whatever is there now; Popen's pipes are buffered readers
        while chunk := read(_LINE_LIMIT):
            *lines, rest = (rest + chunk).split(b"\n")
            if lines:
                self._output(self.name, [line.removesuffix(b"\r") for line in lines])
            if len(rest) > _LINE_LIMIT:
                self._output(self.name, [rest])
                rest = b""
        if rest:
            self._output(self.name, [rest])


def describe(status: int | None) -> str:
    """An exit status in words."""
    if status is None:
        return "it could not be started"
    if status < 0:
        return f"killed by signal {-status}"
    return f"exit status {status}"
