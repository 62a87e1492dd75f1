"""The generators and sinks of the bench: Postfix's smtp-source and smtp-sink, and our own for what those cannot do."""

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from bench.side import with_bench
from bench.sink import Counters

from testkit.ca import Authority, Certificate
from testkit.conditions import wait_until
from testkit.peers import program
from testkit.peers.load import source_command
from testkit.ports import accepts, free_port, loopback_address

_COUNTER = re.compile(rb"mesg=(\d+)")


class Sink(Protocol):
    """Where everything ends, counted."""

    address: str
    port: int

    @property
    def pid(self) -> int:
        """Its process id."""

    def count(self) -> int:
        """Received so far: messages, and where it can tell them recipients."""


class CountingSink:
    """smtp-sink with `-c`: it prints its counters after each message, and we read them when we look.

    Its pipe holds 64 KiB; who waits for messages must look (`count`) about every 10 ms at 4,000 messages a second.
    """

    def __init__(self, at: tuple[str, int] | None = None) -> None:
        self.address, self.port = at or somewhere()
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
        wait_until(lambda: accepts(self.address, self.port), 10, "smtp-sink listens")

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


class Arrival(NamedTuple):
    """A message that came to the sink."""

    when: float
    """Seconds of CLOCK_MONOTONIC."""
    octets: int
    """After the header, and before the final dot."""


class OwnSink:
    """`bench.sink`, which offers STARTTLS, counts recipients, and can note the time of each (`times`)."""

    def __init__(
        self,
        at: tuple[str, int] | None = None,
        *,
        tls: bool | Certificate = False,
        timed: bool = False,
        delay: float = 0.0,
        also: Sequence[str] = (),
    ) -> None:
        """`tls`: offer STARTTLS, with this certificate or one of its own. `also`: further addresses, at its port."""
        self.address, self.port = at or somewhere()
        self.also = also
        self._folder = Path(tempfile.mkdtemp(prefix="mailrail-bench-sink-"))
        self._counters = Counters(self._folder / "counters", make=True)
        command = [sys.executable, "-m", "bench.sink", "--listen", f"{self.address}:{self.port}"]
        command += ["--counters", str(self._folder / "counters"), "--also", ",".join(also)]
        if tls:
            certificate = Authority().issue("sink.test") if tls is True else tls
            command += ["--certificate", str(certificate.write(self._folder))]
        if delay:
            command += ["--delay", str(delay)]
        if timed:
            command += ["--log", str(self._log)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, env=with_bench())
        try:
            wait_until(lambda: accepts(self.address, self.port), 10, "bench.sink listens")
        except AssertionError:
            self.stop()
            raise

    @property
    def _log(self) -> Path:
        return self._folder / "log"

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def count(self) -> int:
        """Recipients of messages received so far."""
        return self._counters.read()[1]

    def handshakes(self) -> tuple[int, int]:
        """TLS handshakes so far, in full and resumed."""
        return self._counters.handshakes()

    def arrived(self) -> dict[str, list[Arrival]]:
        """What came to each local part, in this order."""
        found: dict[str, list[Arrival]] = {}
        for line in self._log.read_text().splitlines() if self._log.exists() else ():
            local, when, octets = line.rsplit(" ", 2)
            found.setdefault(local, []).append(Arrival(float(when), int(octets)))
        return found

    def times(self) -> dict[str, float]:
        """When the message to each local part had come, in seconds of CLOCK_MONOTONIC; the first of several."""
        return {local: came[0].when for local, came in self.arrived().items()}

    def stop(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(5)
        for path in self._folder.iterdir():
            path.unlink()
        self._folder.rmdir()


def somewhere() -> tuple[str, int]:
    """An address and a port where nobody listens."""
    address = loopback_address()
    return address, free_port(address)


@contextlib.contextmanager
def counting_sink(at: tuple[str, int] | None = None) -> Iterator[CountingSink]:
    """smtp-sink for the time of the context."""
    sink = CountingSink(at)
    try:
        yield sink
    finally:
        sink.stop()


@contextlib.contextmanager
def own_sink(
    at: tuple[str, int] | None = None,
    *,
    tls: bool | Certificate = False,
    timed: bool = False,
    delay: float = 0.0,
    also: Sequence[str] = (),
) -> Iterator[OwnSink]:
    """Our own sink for the time of the context. `delay`: seconds that each reply of it takes, as a tarpit's. `also`:
    see OwnSink."""
    sink = OwnSink(at, tls=tls, timed=timed, delay=delay, also=also)
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
    recipients: int = 1
    """Of each message."""
    tls: bool = False
    """STARTTLS on the way in."""
    mix: tuple[tuple[int, int], ...] = ()
    """Octets of a message and how many of a hundred have them, in place of `size`."""

    @property
    def own(self) -> bool:
        """Whether only our own generator can send it."""
        return self.recipients > 1 or self.tls or bool(self.mix)

    def with_messages(self, messages: int) -> "Load":
        """The same, with so many messages."""
        return replace(self, messages=messages)


@dataclass(frozen=True)
class Timing:
    """How long it took, and what it cost the generator."""

    accepted_s: float
    delivered_s: float
    source_cpu_ms: float


def send(
    load: Load,
    address: str,
    port: int,
    sink: Sink | None,
    within: float,
    half: Callable[[], object] | None = None,
) -> Timing:
    """Send the load and wait until the sink has all of it; `half` is called when it has half of it.

    Raises TimeoutError with how far it came, RuntimeError when the generator failed.
    """
    with tempfile.TemporaryDirectory(prefix="mailrail-bench-source-") as folder:
        report = Path(folder) / "report"
        command = _command(load, address, port, report)
        return _watch(load, command, report if load.own else None, sink, within, half)


def _command(load: Load, address: str, port: int, report: Path) -> list[str]:
    if not load.own:
        return source_command(
            address,
            port,
            messages=load.messages,
            sessions=load.sessions,
            size=load.size,
            reuse=load.reuse,
            sender=load.sender,
            recipient=load.recipient,
        )
    sizes = ",".join(f"{size}:{weight}" for size, weight in load.mix) or str(load.size)
    command = [sys.executable, "-m", "bench.source", "--to", f"{address}:{port}", "--report", str(report)]
    command += ["--messages", str(load.messages), "--sessions", str(load.sessions), "--sizes", sizes]
    command += ["--recipients", str(load.recipients), "--sender", load.sender, "--recipient", load.recipient]
    return command + ["--reuse"] * load.reuse + ["--starttls"] * load.tls


def _watch(
    load: Load,
    command: list[str],
    report: Path | None,
    sink: Sink | None,
    within: float,
    half: Callable[[], object] | None,
) -> Timing:
    already = sink.count() if sink is not None else 0
    wanted = load.messages * load.recipients
    start = time.monotonic()
    # Popen would reap it without telling what it used.
    pid = os.posix_spawn(command[0], command, with_bench())
    accepted: float | None = None
    cpu = 0.0
    try:
        while True:
            now = time.monotonic()
            if accepted is None:
                done, status, usage = os.wait4(pid, os.WNOHANG)
                if done:
                    accepted, cpu = now - start, (usage.ru_utime + usage.ru_stime) * 1000
                    if report is not None:  # without what Python takes to start
                        found = json.loads(report.read_text()) if report.exists() else {}
                        _complain(status, found.get("replies"))
                        start, accepted = found["started"], found["ended"] - found["started"]
                        cpu = found["cpu_ms"]
                    _complain(status, None)
            received = (sink.count() - already) if sink is not None else wanted
            if half is not None and received * 2 >= wanted:
                half()
                half = None
            if accepted is not None and received >= wanted:
                return Timing(accepted, now - start, cpu)
            if now - start > within:
                said = "accepted all" if accepted is not None else "still accepting"
                raise TimeoutError(f"after {within:g} s: {said}, {received} of {wanted} delivered")
            time.sleep(0.005)
    finally:
        if accepted is None:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(pid, 9)
                os.waitpid(pid, 0)


def _complain(status: int, replies: Any) -> None:
    if status != 0:
        raise RuntimeError(f"the generator failed: {os.waitstatus_to_exitcode(status)} {replies or ''}".rstrip())
