"""Ingress, queue and outbound, each alone: its neighbours stood in for by the cheapest process that answers."""

import base64
import contextlib
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from bench.load import CountingSink, Load, send
from bench.measure import cpu_ms, rss_mb, settle
from bench.report import Alone
from bench.side import HERE, CannotMeasure, Side

from testkit.conditions import wait_until
from testkit.ports import accepts, free_port, loopback_address

WARM_UP = 1000  # messages before the first run: pools, caches and code that are made at first use


@dataclass(frozen=True)
class _Stage:
    """A service with its stand-in."""

    service: subprocess.Popen[bytes]
    stand_in: subprocess.Popen[bytes]
    address: str
    port: int

    def order(self, count: int) -> None:
        """Have the stand-in hand out so many deliveries."""
        assert self.stand_in.stdin is not None
        self.stand_in.stdin.write(b"%d\n" % count)
        self.stand_in.stdin.flush()


@contextlib.contextmanager
def _child(command: list[str], environment: Mapping[str, str], log: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        command,
        env=dict(environment),
        stdin=subprocess.PIPE,
        stdout=log if any(part.startswith("mailrail_") for part in command) else subprocess.PIPE,
        stderr=log,
    )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(5)
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()


def _tail(log: IO[bytes]) -> str:
    """The last that a process printed."""
    log.flush()
    return Path(str(log.name)).read_text(errors="replace")[-2000:].strip() or "(it printed nothing)"


def start_stand_in(
    stack: contextlib.ExitStack, side: Side, module: str, arguments: list[str], log: IO[bytes], says: bytes
) -> tuple[subprocess.Popen[bytes], re.Match[bytes]]:
    """Start a stand-in: that of this checkout, and where it does not fit the side's libraries, the side's own."""
    for own in (side.environment, *([side.own_bench] if side.own_bench is not None else [])):
        command = [side.python, "-m", module, *arguments]
        with contextlib.ExitStack() as started:
            process = started.enter_context(_child(command, dict(os.environ) | dict(own), log))
            assert process.stdout is not None
            found = re.search(says, process.stdout.readline())
            if found is not None:
                stack.enter_context(started.pop_all())
                return process, found
    raise CannotMeasure(
        f"{side.name}: {module} does not start beside its libraries.\nIt printed\n{_tail(log)}\n"
        "The bench of this checkout and that commit are too far apart. Run the comparison from a checkout between the"
        " two commits, or leave this part out with --only."
    )


def _up(process: subprocess.Popen[bytes], address: str, port: int) -> bool:
    """Whether it listens. Raises ChildProcessError when it has ended instead."""
    if process.poll() is not None:
        raise ChildProcessError(f"it ended with {process.returncode}")
    return accepts(address, port)


def wait_until_up(
    process: subprocess.Popen[bytes], address: str, port: int, what: str, log: IO[bytes], side: Side
) -> None:
    try:
        wait_until(lambda: _up(process, address, port), 600 if side.under else 60, what, ignoring=())
    except (AssertionError, ChildProcessError) as error:
        raise CannotMeasure(
            f"{what} does not come up: {error}.\nIt printed\n{_tail(log)}\n"
            "If a setting is unknown to it, the bench of this checkout is too new for that commit: run the comparison"
            " from a checkout between the two commits, or leave this part out with --only."
        ) from None


@contextlib.contextmanager
def _stage(service: str, sink: CountingSink, size: int, settings: Mapping[str, str], side: Side) -> Iterator[_Stage]:
    address = loopback_address()
    port = free_port(address)
    with contextlib.ExitStack() as stack:
        keys, log = make_folder(stack)
        arguments = ["--listen-port", str(port), "--sink", f"{sink.address}:{sink.port}", "--size", str(size)]
        stand_in, found = start_stand_in(stack, side, "bench.stand_in", arguments, log, rb"serving on (\S+)")
        where = found[1].decode()
        own = {"CONFIG_TARGET": where, "QUEUE_TARGET": where, **settings}
        if service == "ingress":
            own["SMTP_LISTEN"] = address
        process = stack.enter_context(start_service(service, own, keys, side, log))
        stage = _Stage(process, stand_in, address, port)
        if service == "ingress":
            wait_until_up(process, address, port, f"{side.name}: {service}", log, side)
        yield stage


def make_folder(stack: contextlib.ExitStack) -> tuple[Path, IO[bytes]]:
    """A folder with a sealing key, and a file for what is printed."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mailrail-bench-")))
    keys = folder / "keys"
    keys.mkdir()
    (keys / "1").write_text(base64.b64encode(bytes(32)).decode())
    return keys, stack.enter_context((folder / "log").open("wb"))


def start_service(
    service: str, settings: Mapping[str, str], keys: Path, side: Side, log: IO[bytes]
) -> contextlib.AbstractContextManager[subprocess.Popen[bytes]]:
    everybody = {
        "PLAINTEXT": "true",
        "SEALING_KEYS_DIR": str(keys),
        "LOG_LEVEL": "warning",
        "LOG_FORMAT": "console",
    }
    own = {f"MAILRAIL_{service.upper()}_{key}": value for key, value in (everybody | dict(settings)).items()}
    return _child([*side.under, side.python, "-m", f"mailrail_{service}"], side.variables(own), log)


def ingress(load: Load, sink: CountingSink, runs: int, side: Side = HERE) -> Iterator[Alone]:
    """What ingress alone uses for a load, several times."""
    with _stage("ingress", sink, load.size, {}, side) as stage:
        parts = {"ingress": [stage.service.pid]}
        send(load.with_messages(min(WARM_UP, load.messages)), stage.address, stage.port, None, within=120)
        for _ in range(runs):
            settle(parts)
            before = cpu_ms(parts)["ingress"]
            timing = send(load, stage.address, stage.port, None, within=60 + load.messages / 20)
            settle(parts)
            used = (cpu_ms(parts)["ingress"] - before) / load.messages
            memory = rss_mb(stage.service.pid)
            yield Alone("ingress", load.reuse, load.messages, load.messages / timing.accepted_s, used, memory)


def outbound(load: Load, sink: CountingSink, runs: int, side: Side = HERE) -> Iterator[Alone]:
    """What outbound alone uses for as many deliveries; without reuse it opens a connection for each."""
    settings = {"CAPTIVE": "true", "CONNECTIONS_PER_DESTINATION": str(load.sessions)}
    if not load.reuse:
        settings["MESSAGES_PER_CONNECTION"] = "1"
    with _stage("outbound", sink, load.size, settings, side) as stage:
        parts = {"outbound": [stage.service.pid]}
        _deliver(stage, sink, min(WARM_UP, load.messages), side)
        for _ in range(runs):
            settle(parts)
            before = cpu_ms(parts)["outbound"]
            taken = _deliver(stage, sink, load.messages, side)
            settle(parts)
            used = (cpu_ms(parts)["outbound"] - before) / load.messages
            yield Alone("outbound", load.reuse, load.messages, load.messages / taken, used, rss_mb(stage.service.pid))


def _deliver(stage: _Stage, sink: CountingSink, count: int, side: Side) -> float:
    """Seconds until the sink has so many more."""
    already, start = sink.count(), time.monotonic()
    stage.order(count)
    deadline = start + 60 + count / 20
    while sink.count() - already < count:
        if stage.service.poll() is not None:
            raise CannotMeasure(f"{side.name}: outbound ended with {stage.service.returncode} instead of delivering")
        if time.monotonic() > deadline:
            raise CannotMeasure(f"{side.name}: outbound delivered {sink.count() - already} of {count} in time")
        time.sleep(0.005)
    return time.monotonic() - start


def queue(load: Load, runs: int, side: Side = HERE, *, in_step: bool = False) -> Iterator[Alone]:
    """What the queue and its Postgres use for a load: each message is committed, handed out, its result committed.

    `in_step`: all sessions commit at once, so that batches are alike however fast the queue is.
    """
    port = free_port()
    target = f"127.0.0.1:{port}"
    with contextlib.ExitStack() as stack:
        keys, log = make_folder(stack)
        arguments = ["--queue", target, "--sessions", str(load.sessions), "--size", str(load.size)]
        if in_step:
            arguments.append("--in-step")
        says = rb"serving on (\S+) postgres (\d+) (\S+)"
        stand_in, found = start_stand_in(stack, side, "bench.around_queue", arguments, log, says)
        settings = {"CONFIG_TARGET": found[1].decode(), "DATABASE_URL": found[3].decode(), "GRPC_LISTEN": target}
        process = stack.enter_context(start_service("queue", settings, keys, side, log))
        wait_until_up(process, "127.0.0.1", port, f"{side.name}: queue", log, side)
        parts = {"queue": [process.pid], "postgres": [int(found[2])]}
        stage = _Stage(process, stand_in, "127.0.0.1", port)
        _pass(stage, min(WARM_UP, load.messages), side, log)
        for _ in range(runs):
            settle(parts)
            before = cpu_ms(parts)
            taken = _pass(stage, load.messages, side, log)
            settle(parts)
            used = {part: (ms - before[part]) / load.messages for part, ms in cpu_ms(parts).items()}
            yield Alone(
                "queue",
                load.reuse,
                load.messages,
                load.messages / taken,
                used["queue"],
                rss_mb(process.pid),
                {"postgres": used["postgres"]},
            )


def _pass(stage: _Stage, count: int, side: Side, log: IO[bytes]) -> float:
    """Seconds until so many messages have gone through the queue, as the stand-in has it."""
    stage.order(count)
    assert stage.stand_in.stdout is not None
    found = re.search(rb"done (\S+)", stage.stand_in.stdout.readline())
    if found is None:
        raise CannotMeasure(
            f"{side.name}: what stands around the queue could not send {count} messages through it.\n"
            f"It printed\n{_tail(log)}"
        )
    return float(found[1])
