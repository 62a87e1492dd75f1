"""Programs that a test starts: their output is kept, waited for, and shown when something fails; they always end.

A program runs in a session of its own and is stopped by its process id together with what it started, never by name.
Whatever a test forgets is stopped when the interpreter exits; when that is killed, by a reaper that outlives it.
"""

import atexit
import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self

import psutil

from testkit import reaper
from testkit.conditions import wait_until

_KEPT_LINES = 20_000


@contextlib.contextmanager
def frozen(pid: int, *, descendants: bool) -> Iterator[None]:
    """SIGSTOP to a process, perhaps with all that it started, and SIGCONT at the end."""
    victims = [psutil.Process(pid)]
    if descendants:
        victims += victims[0].children(recursive=True)
    stopped = []
    try:
        for victim in victims:
            with contextlib.suppress(psutil.NoSuchProcess):
                victim.suspend()
                stopped.append(victim)
        yield
    finally:
        for victim in reversed(stopped):
            with contextlib.suppress(psutil.NoSuchProcess):
                victim.resume()


class _Reaper:
    """The process that ends our programs should we be killed (see `reaper`); started with the first of them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None

    def watch(self, pid: int) -> None:
        self._say(f"watch {pid}")

    def forget(self, pid: int) -> None:
        self._say(f"forget {pid}")

    def _say(self, line: str) -> None:
        with self._lock:
            if self._process is None:
                self._process = subprocess.Popen(
                    [sys.executable, reaper.__file__], stdin=subprocess.PIPE, text=True, start_new_session=True
                )
            assert self._process.stdin is not None
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()

    def close(self) -> None:
        """Let it go; what it still watches it ends."""
        with self._lock:
            process, self._process = self._process, None
        if process is not None:
            process.communicate(timeout=2 * reaper.GRACE)


_reaper = _Reaper()


class Ended(AssertionError):
    """A program ended although the test still needed it; the text holds its status and the tail of its output."""


class Program:
    """A running program. Use as a context manager, or call `stop()`.

    `lines` holds what it printed (stdout and stderr together), the last 20,000 lines of it.
    """

    def __init__(
        self,
        command: Sequence[str | os.PathLike[str]],
        *,
        name: str = "",
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        """Start `command`. `env` is added to this process's environment."""
        self.command = [os.fspath(part) for part in command]
        self.name = name or Path(self.command[0]).name
        self.lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self._printed = threading.Condition()
        self._process = subprocess.Popen(
            self.command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=dict(os.environ) | dict(env or {}),
            cwd=cwd,
            text=True,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
        _reaper.watch(self.pid)
        self._reader = threading.Thread(target=self._read, name=f"output of {self.name}", daemon=True)
        self._reader.start()
        _running.add(self)

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with self._printed:
                self.lines.append(line.rstrip("\n"))
                self._printed.notify_all()

    @property
    def pid(self) -> int:
        """The process id of what was started (and of its session)."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.poll() is None

    @property
    def status(self) -> int | None:
        """Exit status; negative = the signal that ended it; None while it runs."""
        return self._process.poll()

    def tail(self, count: int = 30) -> str:
        """The last lines of its output, for the text of a failure."""
        with self._printed:
            kept = list(self.lines)[-count:]
        return "\n".join(f"    {self.name}| {line}" for line in kept) or f"    {self.name} printed nothing"

    def wait_for_line(self, pattern: str, within: float = 60.0) -> re.Match[str]:
        """Wait until it has printed a line that `pattern` is found in. Raises Ended when it ends first."""
        compiled = re.compile(pattern)

        def printed() -> re.Match[str] | None:
            ended = not self.running
            if ended:
                self._reader.join(timeout=2)
            with self._printed:
                for line in self.lines:
                    if found := compiled.search(line):
                        return found
            if ended:
                raise Ended(f"{self.name} ended with {self.status} before it printed /{pattern}/\n{self.tail()}")
            return None

        return wait_until(printed, within, lambda: f"{self.name} prints /{pattern}/\n{self.tail()}", ignoring=())

    def wait_until(self, condition: Callable[[], object], within: float = 60.0, what: str = "") -> None:
        """Wait for a condition that this program brings about. Raises Ended when it ends first."""

        def met() -> object:
            if answer := condition():
                return answer
            if not self.running:
                raise Ended(f"{self.name} ended with {self.status} before: {what}\n{self.tail()}")
            return None

        wait_until(met, within, lambda: f"{self.name}: {what}\n{self.tail()}", ignoring=(OSError,))

    def wait(self, within: float = 60.0) -> int:
        """Wait until it ends by itself; answers its exit status."""
        try:
            status = self._process.wait(within)
        except subprocess.TimeoutExpired as late:
            raise AssertionError(f"{self.name} still runs after {within:g} s\n{self.tail()}") from late
        self._reader.join(timeout=5)
        return status

    def descendants(self) -> list[psutil.Process]:
        """What it started and what those started, as far as they still run."""
        with contextlib.suppress(psutil.NoSuchProcess):
            return psutil.Process(self.pid).children(recursive=True)
        return []

    def kill(self) -> None:
        """SIGKILL (on Windows: terminate) to the program alone, as a crash would; what it started lives on."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        self._process.wait(60)

    def interrupt(self) -> None:
        """What Ctrl-C sends."""
        self._process.send_signal(signal.SIGINT)

    def stop(self, within: float = 10.0) -> int | None:
        """End it politely, then by force, with everything that it started; answers its exit status."""
        family = self.descendants()
        if self.running:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(within)
        if self.running:
            self._process.kill()
            self._process.wait(60)
        for left in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                left.kill()
        wait_until(
            lambda: not any(alive(left) for left in family), 60, f"everything that {self.name} started has ended"
        )
        self._reader.join(timeout=5)
        if self._process.stdout is not None and not self._reader.is_alive():
            self._process.stdout.close()
        _reaper.forget(self.pid)
        _running.discard(self)
        return self.status

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def alive(process: psutil.Process) -> bool:
    """Whether a process still runs; one that has ended and that nobody has asked after does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


_running: weakref.WeakSet[Program] = weakref.WeakSet()


@atexit.register
def _stop_what_is_left() -> None:
    for program in list(_running):
        program.stop(within=1)
    _reaper.close()


@contextlib.contextmanager
def started(
    command: Sequence[str | os.PathLike[str]], *, ready: str, within: float = 60.0, name: str = ""
) -> Iterator[Program]:
    """Start a program, wait until it prints a line that `ready` is found in, stop it at the end."""
    with Program(command, name=name) as program:
        program.wait_for_line(ready, within)
        yield program


def run(
    command: Sequence[str | os.PathLike[str]],
    *,
    within: float = 60.0,
    env: Mapping[str, str] | None = None,
    stdin: str = "",
    status: int | None = 0,
) -> str:
    """Run a program to its end and answer what it printed (stdout and stderr together).

    Raises AssertionError with that output when its exit status is not `status` (None: any will do).
    """
    parts = [os.fspath(part) for part in command]
    with subprocess.Popen(
        parts,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
        env=dict(os.environ) | dict(env or {}),
    ) as process:
        _reaper.watch(process.pid)
        try:
            printed, _ = process.communicate(stdin, timeout=within)
        except subprocess.TimeoutExpired as late:
            process.kill()
            printed, _ = process.communicate()
            raise AssertionError(f"{' '.join(parts)} still runs after {within:g} s; it printed\n{printed}") from late
        finally:
            _reaper.forget(process.pid)
    if status is not None and process.returncode != status:
        raise AssertionError(f"{' '.join(parts)} ended with {process.returncode}, not {status}; it printed\n{printed}")
    return printed
