"""Children that are forked from one process which has imported everything: they share what none of them writes to.

Nearly all memory of an idle service is the modules that it imported, the same in each. So the supervisor imports all of
them once, has the collector put them aside (`gc.freeze`: it never writes to them again), and forks its children while
it has one thread and has not used gRPC. Each waits for its environment, which comes on its leash, and then is what
`python -m MODULE` would be. One that is started again is a program of its own (`children.spawn`), since the supervisor
has threads by then: a process kept for such forks alone would take 22 MiB for good.

On Linux alone: Windows has no fork, and on macOS libraries of the system break in a forked process. There all children
are programs of their own.
"""

import atexit
import contextlib
import ctypes
import gc
import importlib
import json
import os
import signal
import ssl
import struct
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, NoReturn

from cryptography.hazmat.primitives.asymmetric import ec
from psycopg import pq

from mailrail.kit import metrics
from mailrail.local.children import Process, spawn

_LENGTH: Final = struct.Struct("!Q")


class Forks:
    """The children that were forked and have not begun yet."""

    def __init__(self, waiting: "dict[str, _Fork] | None" = None) -> None:
        """`waiting`: module of `python -m` → its child."""
        self._waiting = waiting or {}

    @classmethod
    def made(cls, modules: Mapping[str, Sequence[str]]) -> "Forks":
        """Import the modules and fork a child for each; none where children have to be programs of their own.

        Each module, or its `__main__`, has a `main` that answers the exit status. Its value: packages that run within
        it besides.
        """
        if sys.platform != "linux" or None in (sys.stdin, sys.stdout, sys.stderr):  # 0 to 2 may be any file then
            return cls()
        for module, within in modules.items():
            for each in (module, *within):
                importlib.import_module(_entry(each))
        try:
            threads = len(list(Path("/proc/self/task").iterdir()))
        except OSError:  # /proc is not mounted
            return cls()
        if threads > 1:  # a lock that one of them holds would stay locked in the children
            return cls()
        _use_libraries()
        gc.collect()
        gc.freeze()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()  # what is left in there, each child would write, too
        waiting: dict[str, _Fork] = {}
        with contextlib.suppress(OSError):  # no more processes now: there may be later
            for module in modules:
                waiting[module] = _Fork.made(module, modules)
        return cls(waiting)

    def launch(self, command: Sequence[str], environment: Mapping[str, str]) -> Process:
        """Start `python -m MODULE`: the child that waits for that, or a program of its own. Raises OSError."""
        child = self._waiting.pop(command[-1], None)
        if child is not None and child.begin(command, environment):
            return child
        return spawn(command, environment)

    def stop(self) -> None:
        """End those that never began."""
        for child in self._waiting.values():
            child.stdin.close()
            child.wait()
            child.stdout.close()
        self._waiting.clear()


class _Fork(Process):
    """A forked child as its keeper sees it: what Popen has."""

    def __init__(self, pid: int, leash: int, output: int) -> None:
        self.pid = pid
        self.stdin, self.stdout = os.fdopen(leash, "wb", buffering=0), os.fdopen(output, "rb")
        self._status: int | None = None
        self._lock = threading.Lock()

    @classmethod
    def made(cls, module: str, modules: Mapping[str, Sequence[str]]) -> "_Fork":
        """Fork it. Raises OSError."""
        if sys.platform == "win32":
            raise OSError("Windows has no fork")
        stdin, leash = os.pipe()
        output, stdout = os.pipe()
        try:
            pid = os.fork()
            if pid == 0:
                try:
                    _be(module, modules, stdin, stdout)
                finally:  # whatever interrupts it: the child must never go on as a second supervisor
                    os._exit(1)
        except OSError:
            os.close(leash)
            os.close(output)
            raise
        finally:
            os.close(stdin)
            os.close(stdout)
        return cls(pid, leash, output)

    def begin(self, command: Sequence[str], environment: Mapping[str, str]) -> bool:
        """Give it what it waits for. False when it is gone."""
        order = json.dumps({"command": list(command), "environment": dict(environment)}).encode()
        view = memoryview(_LENGTH.pack(len(order)) + order)
        try:
            while view:
                view = view[self.stdin.write(view) :]
        except BrokenPipeError:
            self.stdin.close()
            self.stdout.close()
            self.wait()
            return False
        return True

    def poll(self) -> int | None:
        """The exit status, None while it runs."""
        if self._lock.acquire(blocking=False):  # else somebody waits for its end, which has not come
            try:
                self._look(wait=False)
            finally:
                self._lock.release()
        return self._status

    def wait(self) -> int:
        """The exit status, once it has ended; negative = the signal."""
        with self._lock:
            self._look(wait=True)
            assert self._status is not None
            return self._status

    def _look(self, *, wait: bool) -> None:
        if sys.platform != "win32" and self._status is None:
            try:
                pid, status = os.waitpid(self.pid, 0 if wait else os.WNOHANG)
            except ChildProcessError:  # SIGCHLD is ignored, so the kernel kept no status; Popen says 0, too
                pid, status = self.pid, 0
            if pid:
                self._status = os.waitstatus_to_exitcode(status)

    def kill(self) -> None:
        """End it at once."""
        if sys.platform != "win32" and self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)


def _use_libraries() -> None:
    """Do once what each child would do for itself: at its first use a build of OpenSSL (there are Python's, that of
    cryptography and that of psycopg) looks for its algorithms, and writes into up to 4 MiB meanwhile. A fork draws
    random numbers of its own."""
    ssl.create_default_context()
    ec.generate_private_key(ec.SECP256R1())
    nowhere = pq.PGconn.connect(b"port=0")  # which is no port, so nothing is dialled
    nowhere.encrypt_password(b"", b"", b"scram-sha-256")
    nowhere.finish()


def _entry(module: str) -> str:
    """The module whose `main` runs when Python is told `-m MODULE`."""
    found = find_spec(module)
    return f"{module}.__main__" if found is not None and found.submodule_search_locations is not None else module


# --- in the child ---------------------------------------------------------------------------------------------------


def _be(module: str, modules: Mapping[str, Sequence[str]], stdin: int, stdout: int) -> NoReturn:
    """Wait for the environment, and be that module; the process ends here, not by the way of its parent."""
    status = 1
    try:
        _let_go(stdin, stdout)
        order = _order()
        if order is None:  # the parent has no use for it, or is gone
            os._exit(0)
        os.environ.clear()
        os.environ.update(order["environment"])
        sys.argv = [module]
        _set_title(order["command"])
        own = {module, *modules[module]}
        for each in {other for key, within in modules.items() for other in (key, *within)} - own:
            declared = sys.modules.get(f"{each}.metrics")
            if declared is not None:
                metrics.forget(declared)
        status = importlib.import_module(_entry(module)).main()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _let_go(stdin: int, stdout: int) -> None:
    """Let go of what is the parent's: its files, its terminal, its signals, and what it does at its end."""
    for one in signal.valid_signals():
        if callable(signal.getsignal(one)):
            signal.signal(one, signal.default_int_handler if one == signal.SIGINT else signal.SIG_DFL)
    if sys.platform != "win32":
        os.setsid()  # a Ctrl-C at the terminal reaches the supervisor alone, which decides
    atexit._clear()
    for number, target in ((stdin, 0), (stdout, 1), (stdout, 2)):
        os.dup2(number, target)
    for file in list(Path("/proc/self/fd").iterdir()):
        if int(file.name) > 2:
            with contextlib.suppress(OSError):  # that by which the folder was read
                os.close(int(file.name))
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", buffering=1)
    sys.stderr = os.fdopen(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1)


def _order() -> dict[str, Any] | None:
    """What comes on the leash before it is only that: command and environment. None when it is closed before."""
    header = _read(_LENGTH.size)
    octets = _read(_LENGTH.unpack(header)[0]) if header is not None else None
    return json.loads(octets) if octets is not None else None


def _read(count: int) -> bytes | None:
    """So many octets of standard input and not one more; None when it ends before."""
    octets = b""
    while len(octets) < count:
        more = os.read(0, count - len(octets))
        if not more:
            return None
        octets += more
    return octets


def _set_title(command: Sequence[str]) -> None:
    """Have `ps` show this command. Linux shows the octets where the arguments of the process were at its start; where
    the last of them is no NUL, it shows those up to the first NUL."""
    with contextlib.suppress(OSError, ValueError, IndexError):  # only a name
        numbers = Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()
        start, end = int(numbers[45]), int(numbers[46])  # arg_start and arg_end of proc(5)
        room = end - start - 2
        if start > 0 and room > 0:
            shown = os.fsencode(" ".join(command))[:room]
            ctypes.memmove(start, shown.ljust(room + 1, b"\0") + b"\1", room + 2)
