"""The generator and the sink of the bench: smtp-source, and an smtp-sink that is watched cheaply."""

import contextlib
import os
import re
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

from testkit.peers import program
from testkit.peers.load import source_command
from testkit.ports import accepts, free_port, loopback_address

_COUNTER = re.compile(rb"mesg=(\d+)")


class CountingSink:
    """smtp-sink with `-c`: it prints its counters after each message, and we read them when we look.

    Its pipe holds 64 KiB; who waits for messages must look (`count`) about every 10 ms at 4,000 messages a second.
    """

    def __init__(self) -> None:
        self.address = loopback_address()
        self.port = free_port(self.address)
        command = [program("smtp-sink"), "-c"]
        if os.geteuid() == 0:
            command += ["-u", "nobody"]
        self._process = subprocess.Popen(
            [*command, f"{self.address}:{self.port}", "1024"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert self._process.stdout is not None
        self._output = self._process.stdout.fileno()
        os.set_blocking(self._output, False)
        self._count = 0
        self._rest = b""
        deadline = time.monotonic() + 10
        while not accepts(self.address, self.port):
            if time.monotonic() > deadline:
                raise OSError("smtp-sink does not start")
            time.sleep(0.02)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def count(self) -> int:
        """Messages received so far."""
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self._output, 1 << 16):
                text = self._rest + data
                for found in _COUNTER.finditer(text, max(0, len(text) - 400)):
                    self._count = int(found[1])
                self._rest = text[-60:]
        return self._count

    def stop(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait(10)
        assert self._process.stdout is not None
        self._process.stdout.close()


@contextlib.contextmanager
def counting_sink() -> Iterator[CountingSink]:
    """A sink for the time of the context."""
    sink = CountingSink()
    try:
        yield sink
    finally:
        sink.stop()


@dataclass(frozen=True)
class Load:
    """What is sent."""

    messages: int
    sessions: int
    size: int
    reuse: bool
    sender: str
    recipient: str

    def with_messages(self, messages: int) -> "Load":
        """The same, with so many messages."""
        return replace(self, messages=messages)


@dataclass(frozen=True)
class Timing:
    """How long it took, and what it cost the generator."""

    accepted_s: float
    delivered_s: float
    source_cpu_ms: float


def send(load: Load, address: str, port: int, sink: CountingSink | None, within: float) -> Timing:
    """Send the load and wait until the sink has all of it. Raises TimeoutError with how far it came."""
    already = sink.count() if sink is not None else 0
    command = source_command(
        address,
        port,
        messages=load.messages,
        sessions=load.sessions,
        size=load.size,
        reuse=load.reuse,
        sender=load.sender,
        recipient=load.recipient,
    )
    start = time.monotonic()
    # Popen would reap it without telling what it used.
    pid = os.posix_spawn(command[0], command, os.environ)
    accepted: float | None = None
    cpu = 0.0
    try:
        while True:
            now = time.monotonic()
            if accepted is None:
                done, status, usage = os.wait4(pid, os.WNOHANG)
                if done:
                    accepted, cpu = now - start, (usage.ru_utime + usage.ru_stime) * 1000
                    if status != 0:
                        raise RuntimeError(f"smtp-source failed: {os.waitstatus_to_exitcode(status)}")
            received = (sink.count() - already) if sink is not None else load.messages
            if accepted is not None and received >= load.messages:
                return Timing(accepted, now - start, cpu)
            if now - start > within:
                said = "accepted all" if accepted is not None else "still accepting"
                raise TimeoutError(f"after {within:g} s: {said}, {received} of {load.messages} delivered")
            time.sleep(0.005)
    finally:
        if accepted is None:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(pid, 9)
                os.waitpid(pid, 0)
