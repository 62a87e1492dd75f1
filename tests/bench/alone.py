"""Ingress alone and outbound alone: one service, its neighbours stood in for by the cheapest process that answers."""

import base64
import contextlib
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.load import CountingSink, Load, send
from bench.measure import cpu_ms, settle
from bench.report import Alone

from testkit.conditions import wait_until
from testkit.ports import accepts, free_port, loopback_address


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
def _child(command: list[str], environment: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        command,
        env=dict(os.environ) | dict(environment),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE if "bench.stand_in" in command else subprocess.DEVNULL,
        stderr=None,
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


@contextlib.contextmanager
def _stage(service: str, sink: CountingSink, size: int, settings: Mapping[str, str]) -> Iterator[_Stage]:
    address = loopback_address()
    port = free_port(address)
    with contextlib.ExitStack() as stack:
        keys = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mailrail-bench-")))
        (keys / "1").write_text(base64.b64encode(bytes(32)).decode())
        stand_in = stack.enter_context(
            _child(
                [
                    *(sys.executable, "-m", "bench.stand_in", "--listen-port", str(port)),
                    *("--sink", f"{sink.address}:{sink.port}", "--size", str(size)),
                ],
                {},
            )
        )
        assert stand_in.stdout is not None
        found = re.search(rb"serving on (\S+)", stand_in.stdout.readline())
        if found is None:
            raise RuntimeError("the stand-in does not start")
        where = found[1].decode()
        own = {
            "PLAINTEXT": "true",
            "CONFIG_TARGET": where,
            "QUEUE_TARGET": where,
            "SEALING_KEYS_DIR": str(keys),
            "LOG_LEVEL": "warning",
            "LOG_FORMAT": "console",
            **settings,
        }
        environment = {f"MAILRAIL_{service.upper()}_{key}": value for key, value in own.items()}
        if service == "ingress":
            environment["MAILRAIL_INGRESS_SMTP_LISTEN"] = address
        process = stack.enter_context(_child([sys.executable, "-m", f"mailrail_{service}"], environment))
        stage = _Stage(process, stand_in, address, port)
        if service == "ingress":
            wait_until(lambda: accepts(address, port), 30, "ingress listens")
        yield stage


def ingress(load: Load, sink: CountingSink, runs: int) -> Iterator[Alone]:
    """What ingress alone uses for a load, several times."""
    with _stage("ingress", sink, load.size, {}) as stage:
        parts = {"ingress": [stage.service.pid]}
        for number in range(runs + 1):
            before = cpu_ms(parts)["ingress"]
            timing = send(load, stage.address, stage.port, None, within=60 + load.messages / 20)
            settle(parts)
            used = (cpu_ms(parts)["ingress"] - before) / load.messages
            if number:  # the first one warms up
                yield Alone("ingress", load.reuse, load.messages, load.messages / timing.accepted_s, used)


def outbound(load: Load, sink: CountingSink, runs: int) -> Iterator[Alone]:
    """What outbound alone uses for as many deliveries; without reuse it opens a connection for each."""
    settings = {"CAPTIVE": "true", "CONNECTIONS_PER_DESTINATION": str(load.sessions)}
    if not load.reuse:
        settings["MESSAGES_PER_CONNECTION"] = "1"
    with _stage("outbound", sink, load.size, settings) as stage:
        parts = {"outbound": [stage.service.pid]}
        for number in range(runs + 1):
            already = sink.count()
            before, start = cpu_ms(parts)["outbound"], time.monotonic()
            stage.order(load.messages)
            deadline = start + 60 + load.messages / 20
            while sink.count() - already < load.messages:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"outbound delivered {sink.count() - already} of {load.messages}")
                time.sleep(0.005)
            taken = time.monotonic() - start
            settle(parts)
            used = (cpu_ms(parts)["outbound"] - before) / load.messages
            if number:
                yield Alone("outbound", load.reuse, load.messages, load.messages / taken, used)
