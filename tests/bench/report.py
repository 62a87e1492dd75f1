"""What was measured, as a table for the terminal, as JSON, and as sections and a plot of docs/benchmarks.md."""

import argparse
import contextlib
import dataclasses
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from bench import aims, plot
from bench.load import Load

from testkit.peers import find_program

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = ROOT / "docs" / "benchmarks.md"
PLOT = ROOT / "docs" / "benchmarks.svg"
YARDSTICK = "Postfix"
OURS = "Mailrail"


@dataclass(frozen=True)
class Throughput:
    """One run of one system."""

    system: str
    load: Load
    delivered_per_s: float
    accepted_per_s: float
    cpu_ms: dict[str, float]  # a message, by part
    generator_ms: float
    sink_ms: float
    steady: bool = False
    """Whether it is the long run in which content is deleted and checkpoints are made."""

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
class Proven:
    """One run of mail that goes proven, with all that is asked of others known before."""

    system: str
    proof: str
    way: str
    """How connections and TLS sessions are used on the way out."""
    messages: int
    per_s: float
    cpu_ms: dict[str, float]  # a message, by part
    full: int
    """TLS handshakes in full, on the way out."""
    resumed: int
    questions: int
    """To the DNS."""
    fetches: int
    """Of a policy."""
    proven: int = 0
    """Messages that ours says went with the proof."""


@dataclass(frozen=True)
class Memory:
    """PSS of each part of a system in a state."""

    system: str
    state: str
    pss_mb: dict[str, float]

    @property
    def total(self) -> float:
        """MiB of all parts."""
        return sum(self.pss_mb.values())


@dataclass(frozen=True)
class Database:
    """What Postgres did in a steady run."""

    seconds: float
    keep_content_seconds: int
    checkpoints: int
    wal_kib: float
    """A message."""


@dataclass
class Result:
    """Everything of one `make bench`."""

    options: dict[str, Any]
    machine: dict[str, str]
    throughput: list[Throughput] = field(default_factory=list)
    alone: list[Alone] = field(default_factory=list)
    proven: list[Proven] = field(default_factory=list)
    memory: list[Memory] = field(default_factory=list)
    database: Database | None = None
    failures: list[str] = field(default_factory=list)
    """What could not be measured, and why."""


def kind_of(load: Load) -> str:
    """A load as the tables name it."""
    words = ["mix" if load.mix else plot.size_label(load.size)]
    if load.recipients > 1:
        words.append(f"{load.recipients} recipients")
    if load.tls:
        words.append("STARTTLS")
    return ", ".join([*words, "reuse" if load.reuse else "one a connection"])


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
    digits = 2 if high < 10 else 1 if high < 100 else 0
    return f"{low:.{digits}f}" if f"{low:.{digits}f}" == f"{high:.{digits}f}" else f"{low:.{digits}f}–{high:.{digits}f}"


def tables(result: Result) -> str:
    """The whole report in Markdown (which reads well in a terminal too)."""
    paragraphs = [
        f"{heading(result.machine)}; {result.options['sessions']} sessions, runs in turn (ranges; verdicts by medians)."
        " CPU is user and system, in ms a message.",
        _throughput([run for run in result.throughput if not run.steady]),
        _verdicts(result.throughput),
        _steady(result),
        _proven(result.proven),
        _alone(result.alone),
        _memory(result.memory),
        "\n".join(f"Not measured: {failure.splitlines()[0]}" for failure in result.failures),
    ]
    return "\n\n".join(one for one in paragraphs if one) + "\n"


def heading(machine: dict[str, str]) -> str:
    """When and on what it was measured."""
    return (
        f"Measured {machine['date']} at commit {machine['commit']}: {machine['cpu']}, {machine['system']}, "
        f"Python {machine['python']}, Postfix {machine['postfix']}"
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |".replace("| --- |", "|---|").replace(" --- |", "---|") for line in lines)


def _throughput(runs: Sequence[Throughput]) -> str:
    if not runs:
        return ""
    parts = list(dict.fromkeys(part for run in runs for part in run.cpu_ms))
    rows = []
    for load, system in dict.fromkeys((run.load, run.system) for run in runs):
        found = [run for run in runs if (run.load, run.system) == (load, system)]
        rows.append(
            [
                f"{kind_of(load)}: {system}",
                _spread([run.delivered_per_s for run in found]),
                f"**{_spread([run.total_ms for run in found])}**",
                *(_spread([run.cpu_ms[part] for run in found]) if part in found[0].cpu_ms else "" for part in parts),
                _spread([run.generator_ms + run.sink_ms for run in found]),
            ]
        )
    return table(["from source to sink", "messages/s", "CPU, whole", *parts, "source + sink"], rows)


def _verdicts(runs: Sequence[Throughput]) -> str:
    lines = []
    for load, steady in dict.fromkeys((run.load, run.steady) for run in runs):
        of = {
            system: [run for run in runs if (run.load, run.steady, run.system) == (load, steady, system)]
            for system in (OURS, YARDSTICK)
        }
        words = []
        plain = not load.own and not steady
        size = load.size if plain else 0
        speed = aims.speed(size, load.reuse, *([run.delivered_per_s for run in of[one]] for one in (OURS, YARDSTICK)))
        if speed is not None:
            ratio, verdict = speed
            words.append(
                f"**{ratio:.{1 if ratio >= 2 else 2}f} × Postfix's messages a second**"
                + f" ({verdict})" * bool(verdict)
            )
            used = [statistics.median(run.total_ms for run in of[one]) for one in (OURS, YARDSTICK)]
            if all(used):
                words.append(f"for {used[0] / used[1]:.2f} × its CPU a message")
        if (cpu := aims.cpu(size, [run.total_ms for run in of[OURS]])) is not None:
            words.append(f"{cpu[0]:.2f} CPU ms ({cpu[1]})")
        if words:
            lines.append(f"- {'Steady flow, ' * steady}{kind_of(load)}: {', '.join(words)}.")
    return "\n".join(lines)


def _steady(result: Result) -> str:
    runs, database = [run for run in result.throughput if run.steady], result.database
    if not runs or database is None:
        return ""
    return (
        f"Steady flow for {database.seconds:.0f} s, content kept for {database.keep_content_seconds} s, "
        f"{database.checkpoints} checkpoints within: {database.wal_kib:.0f} KiB of WAL a message of "
        f"{plot.size_label(mean_size(runs[0].load))} on average.\n\n" + _throughput(runs)
    )


def mean_size(load: Load) -> float:
    """Octets of a message, on average."""
    if not load.mix:
        return load.size
    return sum(size * weight for size, weight in load.mix) / sum(weight for _, weight in load.mix)


def _proven(measured: Sequence[Proven]) -> str:
    if not measured:
        return ""
    rows = []
    for proof, way, system in dict.fromkeys((one.proof, one.way, one.system) for one in measured):
        found = [one for one in measured if (one.proof, one.way, one.system) == (proof, way, system)]
        counts = (
            [one.full / one.messages for one in found],
            [one.resumed / one.messages for one in found],
            [one.questions / one.messages for one in found],
            [one.fetches / one.messages for one in found],
        )
        rows.append(
            [
                f"{proof}, {way}: {system}",
                _spread([one.per_s for one in found]),
                f"**{_spread([sum(one.cpu_ms.values()) for one in found])}**",
                *map(_spread, counts),
            ]
        )
    head = ["proven, caches warm", "messages/s", "CPU, whole", "full handshakes", "resumed", "DNS questions", "fetches"]
    return f"{table(head, rows)}\n\nHandshakes, questions and fetches a message; CPU without that of the resolver."


def _alone(measured: Sequence[Alone]) -> str:
    rows = []
    for service, reuse in dict.fromkeys((one.service, one.reuse) for one in measured):
        found = [one for one in measured if (one.service, one.reuse) == (service, reuse)]
        kind = "connection reuse" if reuse else "one message a connection"
        rows.append(
            [f"{service}, {kind}", _spread([r.per_s for r in found]), f"**{_spread([r.cpu_ms for r in found])}**"]
        )
    return table(["one service alone, 2 KiB", "messages/s", "CPU"], rows) if rows else ""


def _memory(measured: Sequence[Memory]) -> str:
    if not measured:
        return ""
    parts = list(dict.fromkeys(part for one in measured for part in one.pss_mb))
    rows = [
        [f"{one.system}, {one.state}", f"**{one.total:.0f}**"]
        + [f"{one.pss_mb[part]:.0f}" if part in one.pss_mb else "" for part in parts]
        for one in measured
    ]
    verdicts = [
        f"- Memory of {one.system}, {one.state}: {one.total:.0f} MiB ({aims.MEMORY[one.state].verdict(one.total)})."
        for one in measured
        if one.system == OURS and one.state in aims.MEMORY
    ]
    return "\n\n".join(one for one in (table(["memory (PSS, MiB)", "whole", *parts], rows), "\n".join(verdicts)) if one)


def panels(result: Result) -> list[plot.Panel]:
    """Messages a second and CPU by size: of each system its medians."""
    made = []
    for reuse in (False, True):
        for title, of in (("messages/s", "delivered_per_s"), ("CPU ms a message", "total_ms")):
            lines: dict[str, list[tuple[int, float]]] = {}
            runs = [run for run in result.throughput if run.load.reuse is reuse and not run.load.own and not run.steady]
            for system, size in dict.fromkeys((run.system, run.load.size) for run in runs):
                value = statistics.median(
                    getattr(run, of) for run in runs if (run.system, run.load.size) == (system, size)
                )
                if value > 0:
                    lines.setdefault(system, []).append((size, value))
            made.append(plot.Panel(f"{title}, {'reuse' if reuse else 'one message a connection'}", lines))
    return made


def write_json(result: object, path: Path) -> None:
    """All figures, for comparison with later runs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(dataclasses.asdict(result), indent=1) + "\n")  # type: ignore[call-overload]


def write_plot(result: Result) -> str:
    """Write the plot; the line that shows it on the page."""
    PLOT.write_text(plot.svg(panels(result)))
    return f"![Messages a second and CPU milliseconds by size of a message]({PLOT.name})\n"


def write_page(section: str, text: str, page: Path = PAGE) -> None:
    """Replace a measured section of docs/benchmarks.md; the words around it stay.

    Raises LookupError when the page lacks the section's markers.
    """
    begin, end = f"<!-- {section}: begin -->", f"<!-- {section}: end -->"
    written = page.read_text()
    before, found, rest = written.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise LookupError(f"{page} lacks the lines {begin} and {end}")
    page.write_text(f"{before}{begin}\n{text}{end}{after}")


class Measured(Protocol):
    """What several measurements have in common: those that could not be made."""

    failures: list[str]


R = TypeVar("R", bound=Measured)


@contextlib.contextmanager
def noting(result: Measured, name: str) -> Iterator[None]:
    """One measurement of several: whatever becomes of it is noted, and the others are made."""
    try:
        yield
    except Exception as error:
        result.failures.append(f"{name}: {type(error).__name__}: {error}")
        print(f"{name}: {error!r}", file=sys.stderr, flush=True)


def carry_out(
    measure: Callable[[argparse.Namespace, R], None],
    chosen: argparse.Namespace,
    result: R,
    tables: Callable[[R], str],
    section: str | None,
) -> int:
    """Measure, print, write JSON and, where it is chosen, the page. Exit status 1 when something was not measured.

    What is stopped (Ctrl-C) tells what it has, but not on the page. `section`: of the page; None: `measure` writes it.
    """
    try:
        measure(chosen, result)
    except KeyboardInterrupt:
        print("stopped; this is what was measured until then", file=sys.stderr)
        chosen.page = False
    text = tables(result)
    print(text)
    write_json(result, chosen.json)
    if chosen.page and section is not None:
        write_page(section, text)
    return 1 if result.failures else 0
