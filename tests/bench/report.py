"""What was measured, as a table for the terminal, as JSON, and as a section of docs/benchmarks.md."""

import dataclasses
import datetime
import json
import os
import platform
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from testkit.peers import find_program

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = ROOT / "docs" / "benchmarks.md"
AIMS = {False: 3, True: 6}
"""Times Postfix's messages a second, without and with connection reuse: the aims of design 6, which a test compares."""
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"


@dataclass(frozen=True)
class Throughput:
    """One run of one system."""

    system: str
    reuse: bool
    messages: int
    delivered_per_s: float
    accepted_per_s: float
    cpu_ms: dict[str, float]  # a message, by part
    generator_ms: float
    sink_ms: float

    @property
    def total_ms(self) -> float:
        """CPU a message, all parts of the system."""
        return sum(self.cpu_ms.values())


@dataclass(frozen=True)
class Alone:
    """One service by itself, its neighbours replaced by the cheapest that answer."""

    service: str
    reuse: bool
    messages: int
    per_s: float
    cpu_ms: float
    rss_mb: float = 0.0
    beside: dict[str, float] = field(default_factory=dict)  # CPU a message of what it cannot do without: Postgres


@dataclass(frozen=True)
class Memory:
    """RSS of each process with connections open and messages queued."""

    connections: int
    queued: int
    rss_mb: dict[str, float]


@dataclass
class Result:
    """Everything of one `make bench`."""

    options: dict[str, Any]
    machine: dict[str, str]
    throughput: list[Throughput] = field(default_factory=list)
    alone: list[Alone] = field(default_factory=list)
    memory: list[Memory] = field(default_factory=list)

    def best(self, system: str, reuse: bool) -> Throughput | None:
        """The run with the least CPU of a system."""
        runs = [run for run in self.throughput if run.system == system and run.reuse is reuse]
        return min(runs, key=lambda run: run.total_ms, default=None)

    def fastest(self, system: str, reuse: bool) -> float:
        """Messages a second of a system's fastest run; 0 if there is none."""
        return max((r.delivered_per_s for r in self.throughput if r.system == system and r.reuse is reuse), default=0.0)


def machine() -> dict[str, str]:
    """What the figures were taken on."""
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "cpu": f"{os.cpu_count()} × {model}",
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "postfix": _said(find_program("postconf"), "-dh", "mail_version"),
        "commit": _said("git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"),
    }


def _said(*command: str | None) -> str:
    """What a program prints on one line; nothing when it is not there."""
    parts = [part for part in command if part is not None]
    if len(parts) != len(command):
        return "none"
    return subprocess.run(parts, capture_output=True, text=True, check=False).stdout.strip()


def _spread(values: list[float]) -> str:
    low, high = min(values), max(values)
    digits = 2 if high < 10 else 0
    return f"{low:.{digits}f}" if f"{low:.{digits}f}" == f"{high:.{digits}f}" else f"{low:.{digits}f}–{high:.{digits}f}"


def tables(result: Result) -> str:
    """The whole report in Markdown (which reads well in a terminal too)."""
    lines = [
        f"Measured {result.machine['date']} at commit {result.machine['commit']}: {result.machine['cpu']}, "
        f"{result.machine['system']}, Python {result.machine['python']}, Postfix {result.machine['postfix']}; "
        f"{result.options['messages']} messages of {result.options['size']} octets a run, "
        f"{result.options['sessions']} sessions, {result.options['runs']} runs each in turn (ranges). "
        "CPU is user and system, in ms a message.",
        "",
    ]
    parts = list(dict.fromkeys(part for run in result.throughput for part in run.cpu_ms))
    if result.throughput:
        lines += [
            "| from smtp-source to smtp-sink | messages/s | CPU, whole | " + " | ".join(parts) + " | source + sink |",
            "|---|---|---|" + "---|" * (len(parts) + 1),
        ]
        for reuse in (False, True):
            for system in dict.fromkeys(run.system for run in result.throughput):
                runs = [run for run in result.throughput if run.system == system and run.reuse is reuse]
                if not runs:
                    continue
                cells = [_spread([r.cpu_ms[part] for r in runs]) if part in runs[0].cpu_ms else "" for part in parts]
                lines.append(
                    f"| {system}, {'connection reuse' if reuse else 'one message a connection'} "
                    f"| {_spread([r.delivered_per_s for r in runs])} | **{_spread([r.total_ms for r in runs])}** | "
                    + " | ".join(cells)
                    + f" | {_spread([r.generator_ms + r.sink_ms for r in runs])} |"
                )
        lines.append("")
        for reuse, aim in AIMS.items():
            ours, theirs = result.best("Mailrail", reuse), result.best("Postfix", reuse)
            if ours is not None and theirs is not None:
                speed = result.fastest("Mailrail", reuse) / result.fastest("Postfix", reuse)
                kind = "Connection reuse" if reuse else "One message a connection"
                reached = "reached" if speed >= aim else "not reached"
                lines.append(
                    f"- {kind}: **{speed:.1f} × Postfix's messages a second** (aim: {aim} ×, {reached}), "
                    f"for {theirs.total_ms / ours.total_ms:.1f} × less CPU a message."
                )
        lines.append("")
    if result.alone:
        lines += ["| one service alone | messages/s | CPU |", "|---|---|---|"]
        for service in dict.fromkeys(one.service for one in result.alone):
            for reuse in (False, True):
                rows = [one for one in result.alone if one.service == service and one.reuse is reuse]
                if rows:
                    lines.append(
                        f"| {service}, {'connection reuse' if reuse else 'one message a connection'} "
                        f"| {_spread([r.per_s for r in rows])} | **{_spread([r.cpu_ms for r in rows])}** |"
                    )
        lines.append("")
    for memory in result.memory:
        figures = ", ".join(f"{name} {size:.0f} MB" for name, size in memory.rss_mb.items())
        lines.append(
            f"Memory (RSS) with {memory.connections} connections open and {memory.queued} messages queued: {figures}."
        )
    return "\n".join(lines).rstrip() + "\n"


def write_json(result: Result, path: Path) -> None:
    """All figures, for comparison with later runs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(dataclasses.asdict(result), indent=1) + "\n")


def write_page(result: Result) -> None:
    """Replace the measured section of docs/benchmarks.md; the words around it stay.

    Raises LookupError when the page lacks the markers.
    """
    text = PAGE.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise LookupError(f"{PAGE} lacks the lines {BEGIN} and {END}")
    PAGE.write_text(f"{before}{BEGIN}\n{tables(result)}{END}{after}")
