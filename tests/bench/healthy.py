"""A healthy client beside whatever others do: twenty messages a second, a connection each, timed at both ends."""

import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.aims import HEALTHY, percentile
from bench.load import OwnSink
from bench.side import with_bench

RATE = 20.0
"""Messages a second."""
PATIENCE = 30.0
"""Seconds for which the client waits for a reply, and the bench for a delivery, after which it never came."""


@dataclass(frozen=True)
class Seen:
    """What became of the messages of a healthy client. Milliseconds; infinite: it never came."""

    sent: int
    accepted: int
    delivered: int
    accept_ms: tuple[float, ...]
    """From connect to the 250 after the final dot, of each."""
    delivery_ms: tuple[float, ...]
    """From that 250 until the sink had the final dot, of each."""
    refusals: tuple[str, ...] = ()
    """What was said to those that were refused, each once."""

    def verdict(self) -> str:
        """Whether healthy mail was held up, by the worse of both 99th percentiles."""
        return HEALTHY.verdict(max(percentile(self.accept_ms, 0.99), percentile(self.delivery_ms, 0.99)))


def seen(report: Mapping[str, Any], arrived: Mapping[str, float], name: str) -> Seen:
    """Match what the source noted (`bench.source --times`) with when the sink had each message.

    Raises ValueError when nothing was sent.
    """
    if not report["times"]:
        raise ValueError("the healthy client sent nothing")
    accept, delivery, delivered = [], [], 0
    for number, begun, taken in report["times"]:
        came = arrived.get(f"{number}.{name}")
        delivered += came is not None
        accept.append(math.inf if taken is None else taken * 1000)
        # The sink may have it before the source has read the 250.
        delivery.append(math.inf if taken is None or came is None else max(0.0, came - begun - taken) * 1000)
    return Seen(
        len(report["times"]), report["accepted"], delivered, tuple(accept), tuple(delivery), tuple(report["replies"])
    )


def watch(
    address: str,
    port: int,
    sink: OwnSink,
    seconds: float,
    name: str,
    domain: str,
    *,
    from_address: str = "",
    rate: float = RATE,
    domains: int = 0,
) -> Seen:
    """Send for so many seconds and wait for what is still to come. `name` tells these messages from all others.

    `rate`: messages a second. `domains`: they go to so many domains dN below `domain`, in turn.
    """
    count = max(1, round(seconds * rate))
    with tempfile.TemporaryDirectory(prefix="mailrail-bench-healthy-") as folder:
        report = Path(folder) / "report"
        command = [sys.executable, "-m", "bench.source", "--to", f"{address}:{port}", "--report", str(report)]
        command += ["--messages", str(count), "--rate", str(rate), "--times", "--numbered", "--within", str(PATIENCE)]
        command += ["--recipient", f"{name}@{domain}"]
        if domains:
            command += ["--domains", str(domains)]
        if from_address:
            command += ["--from-address", from_address]
        subprocess.run(command, check=True, timeout=seconds + PATIENCE + 60, env=with_bench())
        found = json.loads(report.read_text())
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and seen(found, sink.times(), name).delivered < found["accepted"]:
        time.sleep(0.2)
    return seen(found, sink.times(), name)


def cells(one: Seen) -> list[str]:
    """Delivered of sent; then median, 99th percentile and maximum of both latencies."""
    return [
        f"{one.delivered} of {one.sent}",
        *(milliseconds(percentile(row, share)) for row in (one.accept_ms, one.delivery_ms) for share in (0.5, 0.99, 1)),
    ]


HEAD: Sequence[str] = (
    "delivered",
    "accept p50 ms",
    "p99",
    "max",
    "delivery p50 ms",
    "p99",
    "max",
)
"""Of the columns of `cells`."""


def milliseconds(value: float) -> str:
    """As a table shows it; what never came is `never`."""
    if math.isinf(value):
        return "never"
    return f"{value:.1f}" if value < 100 else f"{value:,.0f}"
