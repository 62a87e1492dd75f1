"""`make bench ARGS='instructions BASE [HEAD]'`: how many machine instructions a message costs before and after.

Time on a busy machine says little about some percent; the number of instructions is nearly the same each time. valgrind
counts them (callgrind), and makes a service some fifty times slower meanwhile. What a service executes while nobody
sends is measured as well and taken off, since a slow run has more of it. A count is not a time: it knows neither the
kernel nor caches. So it finds a cost, and `compare` on a quiet machine confirms it.
"""

import argparse
import dataclasses
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench import alone
from bench.compare import kinds, load_of
from bench.load import CountingSink, Load, counting_sink
from bench.report import Alone
from bench.side import CannotMeasure, Side, check_out, commit_of

from testkit.peers import missing

PARTS = ("ingress", "queue", "outbound")
IDLE_SECONDS = 10.0
_TOTAL = re.compile(rb"^(?:totals|summary): (\d+)", re.MULTILINE)


class Counter:
    """Counts what one service executes under callgrind."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._since = 0.0

    def under(self, side: Side) -> Side:
        """The side with its services under callgrind, which does not count yet."""
        out, log = f"--callgrind-out-file={self._folder}/out", f"--log-file={self._folder}/log.%p"
        command = ("valgrind", "--tool=callgrind", "--instr-atstart=no", out, log)
        return dataclasses.replace(side, under=command, environment=dict(side.environment) | {"PYTHONHASHSEED": "0"})

    def _control(self, *what: str) -> None:
        pid = next(self._folder.glob("log.*")).suffix[1:]
        subprocess.run(["callgrind_control", *what, pid], check=True, capture_output=True)
        self._since = time.monotonic()

    def start(self) -> None:
        """Count from now on."""
        self._control("-i", "on")

    def take(self) -> tuple[int, float]:
        """Instructions since it was called last, and seconds."""
        before, since = set(self._folder.glob("out*")), self._since
        self._control("-d")
        dumps = set(self._folder.glob("out*")) - before
        found = [_TOTAL.search(dump.read_bytes()) for dump in dumps]
        return sum(int(one[1]) for one in found if one is not None), self._since - since


def counted(runs: Iterator[Alone], counter: Counter, messages: int) -> list[float]:
    """Instructions a message of each run but the first, which only warms up."""
    next(runs)
    counter.start()
    counter.take()
    measured = []
    for _ in runs:
        measured.append(counter.take())
        if len(measured) == 1:
            time.sleep(IDLE_SECONDS)
            idle = counter.take()
    rate = idle[0] / idle[1]
    return [(instructions - rate * seconds) / messages for instructions, seconds in measured]


def options(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="make bench ARGS='instructions ...'", description="Count what a message executes in two commits."
    )
    parser.add_argument("base", help="the commit to compare with")
    parser.add_argument("head", nargs="?", default="HEAD", help="the commit that is compared (default HEAD)")
    parser.add_argument("--only", action="append", choices=PARTS, help="count only this part; may be repeated")
    parser.add_argument("--size", type=int, default=2048, help="octets a message (default 2048)")
    parser.add_argument("--messages", type=int, default=2000, help="messages a run (default 2000)")
    parser.add_argument("--runs", type=int, default=3, help="runs that are counted (default 3)")
    chosen = parser.parse_args(arguments)
    if chosen.runs < 1:
        parser.error("--runs must be at least 1")
    return chosen


def main(arguments: Sequence[str]) -> int:
    """Check out, count, print."""
    chosen = options(arguments)
    for peer in ("smtp-source", "smtp-sink"):
        if reason := missing(peer):
            print(f"the bench {reason}", file=sys.stderr)
            return 1
    if shutil.which("callgrind_control") is None:
        print("the count needs callgrind: apt-get install valgrind", file=sys.stderr)
        return 1
    try:
        commits = [commit_of(chosen.base), commit_of(chosen.head)]
        with tempfile.TemporaryDirectory(prefix="mailrail-instructions-") as name, counting_sink() as sink:
            folder = Path(name)
            folder.chmod(0o755)
            sides = [check_out(commit, folder / commit, print) for commit in dict.fromkeys(commits)]
            print(f"\n| what | {sides[0].name} | {sides[-1].name} | difference |\n|---|---|---|---|")
            for of in kinds(chosen.only or PARTS, [chosen.size]).values():
                for kind in of:
                    rows = []
                    for side in sides:
                        with tempfile.TemporaryDirectory(dir=folder) as own:
                            counter = Counter(Path(own))
                            load = load_of(kind, chosen.messages, 20).with_messages(chosen.messages)
                            runs = _runs(kind.part, load, sink, chosen.runs + 1, counter.under(side))
                            rows.append(counted(runs, counter, load.messages))
                    print(_row(kind.label, rows[0], rows[-1]), flush=True)
    except CannotMeasure as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _runs(part: str, load: Load, sink: CountingSink, runs: int, side: Side) -> Iterator[Alone]:
    if part == "queue":
        return alone.queue(load, runs, side, in_step=True)
    return (alone.ingress if part == "ingress" else alone.outbound)(load, sink, runs, side)


def _row(label: str, base: Sequence[float], head: Sequence[float]) -> str:
    cells = [f"{statistics.median(row):,.0f} ({min(row):,.0f}–{max(row):,.0f})" for row in (base, head)]
    difference = statistics.median(head) / statistics.median(base) - 1
    return f"| {label} | {' | '.join(cells)} | {difference:+.1%} |"
