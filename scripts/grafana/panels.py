"""What a dashboard is made of: a panel is said in a few lines, title, what it means, queries, unit.

The matchers of the variables `namespace` and `job` are put into every selector of ours here, so no query can forget
them. `job` is one installation (the chart's PodMonitor makes it the release's name), `service` the component; both
stand on the merged page of local mode in the same way.
"""

import re
import zlib
from dataclasses import dataclass, field
from enum import StrEnum

_SERIES = re.compile(r"\b((?:mailrail|process)_[a-z_]+|mailrail:[a-z0-9_:]+|ALERTS)(?:\{([^}]*)\})?")
"""Series of ours, what the rules record, and our alerts, each with its matchers."""
_MATCHERS = 'namespace=~"$namespace",job=~"$job"'


class Unit(StrEnum):
    """Grafana's names of units."""

    NUMBER = "short"
    RATE = "suffix:/s"
    SECONDS = "s"
    BYTES = "bytes"
    BYTE_RATE = "Bps"
    SHARE = "percentunit"
    BOOLEAN = "bool_yes_no"


class PanelKind(StrEnum):
    """Grafana's panel types, those that are used."""

    SERIES = "timeseries"
    STAT = "stat"
    TABLE = "table"


class Color(StrEnum):
    """What a threshold says."""

    GOOD = "green"
    WARN = "orange"
    BAD = "red"
    PLAIN = "blue"


@dataclass(frozen=True)
class Query:
    """PromQL with bare selectors of ours, and what its series are called (`{{label}}` as Grafana writes it)."""

    expr: str
    legend: str = ""

    def scoped(self) -> str:
        """The query with the variables' matchers in each selector."""

        def matched(found: re.Match[str]) -> str:
            return f"{found[1]}{{{_MATCHERS}{',' + found[2] if found[2] else ''}}}"

        return _SERIES.sub(matched, self.expr)


@dataclass(frozen=True)
class Steps:
    """Colours by value: `first` below every step."""

    first: Color
    steps: tuple[tuple[float, Color], ...]


MORE_IS_BAD = Steps(Color.GOOD, ((1, Color.BAD),))
LESS_IS_BAD = Steps(Color.BAD, ((1, Color.GOOD),))


@dataclass(frozen=True)
class Panel:
    """One panel; widths are of Grafana's 24 columns."""

    title: str
    meaning: str
    queries: tuple[Query, ...]
    unit: Unit = Unit.NUMBER
    kind: PanelKind = PanelKind.SERIES
    width: int = 12
    height: int = 8
    steps: Steps | None = None
    stacked: bool = False
    decimals: int | None = None
    top: float | None = None  # of the axis

    @property
    def id(self) -> int:
        """What links name. It goes by the title, so that a panel more or less changes no link; the chart computes it,
        too (templates/_monitoring.tpl)."""
        return zlib.adler32(self.title.encode()) % 1_000_000


@dataclass(frozen=True)
class Row:
    """Panels under a heading."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Dashboard:
    """One file. `uid` is stable, since people link to it; the chart adds a mark of namespace and release."""

    uid: str
    title: str
    meaning: str
    rows: tuple[Row, ...] = field(default=())

    @property
    def name(self) -> str:
        """What the rules call it, and its file."""
        return self.uid.removeprefix("mailrail-")


def rate(series: str) -> str:
    """What a counter rises by in a second."""
    return f"rate({series}[$__rate_interval])"


def quantile(q: float, histogram: str) -> str:
    """A quantile of a histogram, of all processes."""
    return f"histogram_quantile({q}, sum by (le) ({rate(histogram + '_bucket')}))"


def latency(title: str, meaning: str, histogram: str) -> Panel:
    """Quantiles over time."""
    queries = tuple(Query(quantile(q, histogram), f"{q * 100:g} %") for q in (0.5, 0.9, 0.99))
    return Panel(title, meaning, queries, Unit.SECONDS)


def stat(
    title: str,
    meaning: str,
    expr: str,
    unit: Unit = Unit.NUMBER,
    steps: Steps | None = None,
    decimals: int | None = None,
) -> Panel:
    """One number."""
    return Panel(
        title, meaning, (Query(expr),), unit, PanelKind.STAT, width=4, height=4, steps=steps, decimals=decimals
    )


def each(title: str, meaning: str, gauge: str, unit: Unit = Unit.NUMBER, steps: Steps | None = None) -> Panel:
    """A gauge of each process."""
    query = Query(f"sum by (pod, instance) ({gauge})", "{{pod}} {{instance}}")
    return Panel(title, meaning, (query,), unit, steps=steps)


def split(title: str, meaning: str, counter: str, *labels: str, stacked: bool = True) -> Panel:
    """A counter's rate by labels."""
    legend = " ".join(f"{{{{{label}}}}}" for label in labels)
    query = Query(f"sum by ({', '.join(labels)}) ({rate(counter)})", legend)
    return Panel(title, meaning, (query,), Unit.RATE, stacked=stacked)


def processes(service: str) -> Row:
    """What the processes of a service use."""
    mine = f'service="{service}"'
    by = "sum by (pod, instance)"
    name = "{{pod}} {{instance}}"
    return Row(
        "Processes",
        (
            Panel(
                "CPU",
                "Cores in use. One process uses one core at most: near 1, add a replica.",
                (Query(f"{by} ({rate(f'process_cpu_seconds_total{{{mine}}}')})", name),),
                steps=Steps(Color.GOOD, ((0.9, Color.WARN),)),
                width=8,
            ),
            Panel(
                "Memory",
                "Resident memory. It does not grow with the backlog; if it keeps rising, it is a leak.",
                (Query(f"{by} (process_resident_memory_bytes{{{mine}}})", name),),
                Unit.BYTES,
                width=8,
            ),
            Panel(
                "Open files",
                "Sockets and files, as a share of the limit of the process.",
                (Query(f"{by} (process_open_fds{{{mine}}}) / {by} (process_max_fds{{{mine}}})", name),),
                Unit.SHARE,
                steps=Steps(Color.GOOD, ((0.7, Color.WARN), (0.9, Color.BAD))),
                width=8,
            ),
        ),
    )
