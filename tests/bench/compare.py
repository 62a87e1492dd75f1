"""`make bench ARGS='compare BASE [HEAD]'`: what the commits from BASE to HEAD cost or gain, on this machine.

Each commit is checked out into a folder of its own and measured with the bench of this checkout. Runs alternate, A B B
A A B B A ..., each in fresh processes: neighbours in time are pairs, and `verdict` judges the pairs.
"""

import argparse
import contextlib
import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench import alone, report, verdict
from bench.load import CountingSink, Load, counting_sink, send
from bench.measure import cpu_ms, rss_mb, settle
from bench.side import CannotMeasure, Side, check_out, commit_of, git
from bench.systems import SINK_DOMAIN, mailrail

from testkit.conditions import NeverTrue
from testkit.peers import missing
from testkit.processes import Ended
from testkit.rail import SERVICES

PARTS = ("ingress", "queue", "outbound", "whole")
RUNS = 10
"""Pairs of runs for a verdict; with fewer than nine the statistic tells nothing."""
SIZES = (2048, 102_400)
SPEED = "messages/s"
SMALLEST = 0.005
"""CPU milliseconds a message under which a part is left out of the table: the clock has no more."""

Figures = dict[str, float]
"""One run: what was measured, by the name of the row."""


@dataclass(frozen=True)
class Kind:
    """What is measured in one way: a part, with or without reuse of connections, with messages of one size."""

    part: str
    reuse: bool
    size: int

    @property
    def label(self) -> str:
        """As the table names it."""
        size = f"{self.size / 1024:g} KiB"
        if self.part == "queue":
            return f"queue alone, {size}"
        name = "everything" if self.part == "whole" else f"{self.part} alone"
        return f"{name}, {'reuse' if self.reuse else 'one a connection'}, {size}"


@dataclass
class Measured:
    """Everything that was measured."""

    options: dict[str, object]
    machine: dict[str, str]
    base: str
    head: str
    runs: dict[Kind, tuple[list[Figures], list[Figures]]] = field(default_factory=dict)
    """Of each kind the runs of base and of head, in order."""
    failures: list[str] = field(default_factory=list)

    def add(self, pair: int, head: bool, kind: Kind, figures: Figures) -> None:
        """Note a run."""
        rows = self.runs.setdefault(kind, ([], []))[head]
        assert len(rows) == pair
        rows.append(figures)


def order(runs: int) -> Iterator[tuple[int, bool]]:
    """The order of runs, as (number of the pair, whether it is head's): A B B A A B B A ..."""
    for pair in range(runs):
        first = pair % 2 == 1
        yield pair, first
        yield pair, not first


def kinds(parts: Iterable[str], sizes: Sequence[int]) -> dict[str, list[Kind]]:
    """What is measured of each part."""
    return {
        part: [Kind(part, reuse, size) for size in sizes for reuse in ((True,) if part == "queue" else (False, True))]
        for part in parts
    }


def load_of(kind: Kind, messages: int, sessions: int) -> Load:
    """The load of a kind: fewer messages of those that are large."""
    count = max(min(messages, 200), min(messages, messages * 4 * 2048 // kind.size))
    return Load(count, sessions, kind.size, kind.reuse, "source@source.test", f"sink@{SINK_DOMAIN}")


def measure(
    part: str, of: Sequence[Kind], side: Side, sink: CountingSink, options: argparse.Namespace
) -> list[Figures]:
    """One run of each kind of a part, in fresh processes. Raises CannotMeasure."""
    loads = [load_of(kind, options.messages, options.sessions) for kind in of]
    try:
        if part == "whole":
            return _whole(loads, sink, side)
        if part == "queue":
            return [_alone(*alone.queue(load, 1, side)) for load in loads]
        one = alone.ingress if part == "ingress" else alone.outbound
        return [_alone(*one(load, sink, 1, side)) for load in loads]
    except (Ended, NeverTrue, TimeoutError, RuntimeError) as error:
        if isinstance(error, CannotMeasure):
            raise
        raise CannotMeasure(
            f"{side.name}: {part} could not be measured: {error}\nIf it cannot read what the bench of this checkout"
            " tells it, run the comparison from a checkout between the two commits, or leave this part out with --only."
        ) from error


def _alone(run: report.Alone) -> Figures:
    figures = {SPEED: run.per_s}
    if run.beside:
        figures["CPU ms, in all"] = run.cpu_ms + sum(run.beside.values())
    figures[f"CPU ms, {run.service}"] = run.cpu_ms
    figures |= {f"CPU ms, {name}": used for name, used in run.beside.items()}
    return figures | {f"RSS MiB, {run.service}": run.rss_mb}


def _whole(loads: Sequence[Load], sink: CountingSink, side: Side) -> list[Figures]:
    result = []
    with mailrail(sink, side) as system:
        for load in loads:
            few = load.with_messages(min(alone.WARM_UP, load.messages))
            send(few, system.address, system.port, sink, within=120)
            parts = dict(system.parts())
            settle(parts)
            before = cpu_ms(parts)
            timing = send(load, system.address, system.port, sink, within=60 + load.messages / 20)
            settle(parts)
            used = {part: (ms - before[part]) / load.messages for part, ms in cpu_ms(parts).items()}
            figures = {SPEED: load.messages / timing.delivered_s, "CPU ms, in all": sum(used.values())}
            figures |= {f"CPU ms, {part}": value for part, value in used.items()}
            result.append(figures | {f"RSS MiB, {part}": rss_mb(parts[part][0]) for part in SERVICES})
    return result


# --- what people read ---


def table(measured: Measured) -> str:
    """The comparison in Markdown, which reads well in a terminal too."""
    base, head = measured.base, measured.head
    lines = [
        f"{base} (base) against {head} (head), {measured.machine['date']}: {measured.machine['cpu']},"
        f" {measured.machine['system']}, Python {measured.machine['python']}.",
        "",
    ]
    rows = [(kind, *runs) for kind, runs in measured.runs.items() if runs[0] and runs[1]]
    if rows:
        lines += [
            f"| what | figure | base {base} | head {head} | difference | spread | verdict |",
            "|---|---|---|---|---|---|---|",
        ]
    told = 0
    for kind, ours, theirs in rows:
        pairs = min(len(ours), len(theirs))
        for name in (name for name in ours[0] if all(name in run for run in (*ours, *theirs))):
            values = [run[name] for run in ours[:pairs]], [run[name] for run in theirs[:pairs]]
            if name.startswith("CPU") and max(map(max, values)) < SMALLEST:
                continue
            found = verdict.compare(*values)
            told += found.told
            said = verdict.words(found, higher_is_better=name == SPEED)
            lines.append(
                f"| {kind.label} | {name} | {_cell(found.base)} | {_cell(found.head)} | {_signed(found.difference)} "
                f"| {verdict.percent(found.spread)} | {f'**{said}**' if found.told else said} |"
            )
    if rows:
        lines += ["", *_explained(min(len(ours) for _, ours, _ in rows), told)]
    lines += [f"\nNot measured: {failure.splitlines()[0]}" for failure in measured.failures]
    return "\n".join(lines) + "\n"


def _explained(runs: int, told: int) -> list[str]:
    lines = [
        "CPU is user and system, in ms a message. Cells hold the median and the quartiles of all runs; the difference",
        "is that of the medians. Runs were made in pairs, base and head in turn first; the spread is the interquartile",
        "range of the ratios of the pairs. A difference is told when it is greater than the spread and than 1 %, and",
        "so many pairs agree that chance does it once in 200 figures at most. A change that aims at less than the",
        "spread cannot be shown here: take a quieter machine.",
    ]
    if runs < RUNS:
        lines += [
            "",
            f"**Only {runs} run{'s' if runs != 1 else ''} of each: enough to try it out, not to say anything."
            f" Make at least {RUNS} for a verdict.**",
        ]
    elif told == 0:
        lines += ["", "Nothing can be told apart: if these commits differ, then by less than the spread."]
    return lines


def _cell(one: verdict.Summary) -> str:
    digits = 0 if one.median >= 100 else 1 if one.median >= 10 else 3
    return f"{one.median:.{digits}f} ({one.low:.{digits}f}–{one.high:.{digits}f})"


def _signed(share: float) -> str:
    return ("+" if share > 0 else "−" if share < 0 else "") + verdict.percent(abs(share))


def to_json(measured: Measured) -> str:
    """All raw figures: every run in its order."""
    plain = {key: value for key, value in vars(measured).items() if key != "runs"}
    plain["runs"] = [
        {**dataclasses.asdict(kind), "label": kind.label, "base": ours, "head": theirs}
        for kind, (ours, theirs) in measured.runs.items()
    ]
    return json.dumps(plain, indent=1) + "\n"


_SECONDS = {"ingress": 3.0, "outbound": 4.0, "queue": 6.0, "whole": 5.0}
"""Of one run of one kind, roughly, on the machine that this was written on."""


class Clock:
    """How long it will still take: as each part took so far, and by rough weights before it was measured once."""

    def __init__(self, counts: dict[str, int], kinds_of: dict[str, int]) -> None:
        """`counts`: runs of each part; `kinds_of`: what one run of it measures."""
        self._left = dict(counts)
        self._expected = {part: _SECONDS[part] * kinds_of[part] + 4 for part in counts}
        self._taken: dict[str, list[float]] = {part: [] for part in counts}

    def took(self, part: str, seconds: float) -> None:
        """A run is done."""
        self._left[part] -= 1
        self._taken[part].append(seconds)

    def skip(self, part: str) -> None:
        """No further run of it is made."""
        self._left[part] = 0

    @property
    def left(self) -> float:
        """Seconds until the last run is done, roughly."""
        done = sum(map(sum, self._taken.values()))
        planned = sum(self._expected[part] * len(runs) for part, runs in self._taken.items())
        slowness = done / planned if planned else 1.0
        return sum(
            count
            * (
                sum(self._taken[part]) / len(self._taken[part])
                if self._taken[part]
                else self._expected[part] * slowness
            )
            for part, count in self._left.items()
        )

    def __str__(self) -> str:
        seconds = self.left
        return f"about {seconds:.0f} s left" if seconds < 100 else f"about {seconds / 60:.0f} min left"


# --- the command ---


def options(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="make bench ARGS='compare ...'",
        description="Compare two commits on this machine: all its cores for half an hour, less with --only, --sizes.",
    )
    parser.add_argument("base", help="the commit to compare with: an id, a branch, a tag, HEAD~3")
    parser.add_argument("head", nargs="?", default="HEAD", help="the commit that is compared (default HEAD)")
    parser.add_argument("--runs", type=int, default=RUNS, help=f"runs of each (default {RUNS}; fewer give no verdict)")
    parser.add_argument(
        "--only", action="append", choices=PARTS, help=f"measure only this part; may be repeated ({', '.join(PARTS)})"
    )
    parser.add_argument(
        "--sizes",
        default=",".join(map(str, SIZES)),
        help="octets a message, several separated by commas (default %(default)s)",
    )
    parser.add_argument("--messages", type=int, default=5000, help="messages a run (default 5000; of large ones fewer)")
    parser.add_argument("--sessions", type=int, default=40, help="parallel sessions of the generator (default 40)")
    parser.add_argument(
        "--json", type=Path, default=report.ROOT / ".bench" / "compare.json", help="where to write all raw figures"
    )
    chosen = parser.parse_args(arguments)
    try:
        chosen.sizes = [int(size) for size in chosen.sizes.split(",")]
    except ValueError:
        parser.error(f"--sizes {chosen.sizes}: numbers separated by commas are wanted, such as 2048,102400")
    if not all(200 <= size <= 50_000_000 for size in chosen.sizes):
        parser.error("--sizes go from 200 to 50000000 octets")
    if not 0 < chosen.messages <= 1_000_000 or not 0 < chosen.sessions <= 1000 or not 0 < chosen.runs <= 100:
        parser.error("--messages goes up to 1,000,000, --sessions up to 1000, --runs up to 100")
    chosen.only = [part for part in PARTS if part in (chosen.only or PARTS)]
    return chosen


def say(text: str) -> None:
    """Progress, apart from the report."""
    print(text, file=sys.stderr, flush=True)


def main(arguments: Sequence[str]) -> int:
    """Check out, measure in turn, print, write. The exit status says whether everything could be measured."""
    chosen = options(arguments)
    for peer in ("smtp-source", "smtp-sink"):
        if reason := missing(peer):
            say(f"the bench {reason}")
            return 1
    try:
        commits = [commit_of(chosen.base), commit_of(chosen.head)]
        if chosen.head == "HEAD" and git("status", "--porcelain", "--untracked-files=no"):
            say("note: this checkout has changes that are not committed; they are not part of what is compared")
        with contextlib.ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mailrail-compare-")))
            folder.chmod(0o755)
            sides = [check_out(one, folder / name, say) for one, name in zip(commits, ("base", "head"), strict=True)]
            sink = stack.enter_context(counting_sink())
            measured = measure_all(sides, sink, chosen)
    except CannotMeasure as error:
        say(str(error))
        return 1
    print(table(measured))
    chosen.json.parent.mkdir(parents=True, exist_ok=True)
    chosen.json.write_text(to_json(measured))
    say(f"all figures are in {chosen.json}")
    return 1 if measured.failures else 0


def measure_all(sides: Sequence[Side], sink: CountingSink, chosen: argparse.Namespace) -> Measured:
    """Every part in turn. What cannot be measured is noted, and the rest goes on; so does what was done at Ctrl-C."""
    noted = {key: value for key, value in vars(chosen).items() if key != "json"}
    measured = Measured(noted, report.machine(), sides[0].name, sides[1].name)
    plan = kinds(chosen.only, chosen.sizes)
    clock = Clock(dict.fromkeys(plan, 2 * chosen.runs), {part: len(of) for part, of in plan.items()})
    try:
        for part, of in plan.items():
            _measure_part(part, of, sides, sink, chosen, measured, clock)
    except KeyboardInterrupt:
        say("stopped; this is what was measured until then")
        measured.failures.append("stopped before the end")
    return measured


def _measure_part(
    part: str,
    of: Sequence[Kind],
    sides: Sequence[Side],
    sink: CountingSink,
    chosen: argparse.Namespace,
    measured: Measured,
    clock: Clock,
) -> None:
    say(f"{part}: {', '.join(kind.label for kind in of)}; {2 * chosen.runs} runs, {clock}")
    for pair, head in order(chosen.runs):
        side = sides[head]
        start = time.monotonic()
        try:
            figures = measure(part, of, side, sink, chosen)
        except CannotMeasure as error:
            say(str(error))
            measured.failures.append(str(error))
            clock.skip(part)
            return
        for kind, one in zip(of, figures, strict=True):
            measured.add(pair, head, kind, one)
        clock.took(part, time.monotonic() - start)
        speeds = ", ".join(f"{one[SPEED]:.0f}" for one in figures)
        say(f"{part} {pair + 1}/{chosen.runs} {'head' if head else 'base'} {side.name}: {speeds} messages/s; {clock}")
