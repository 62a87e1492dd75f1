"""Write docs/reference/metrics.md from every metrics.py: names as exported, types, labels and what they may say.

The modules are read, not imported: a series is an assignment of Counter, Gauge, Histogram or Info (or of what exports
as one of them: Tally, Level, SnapshotGauge, Spread) at the top level, and the string below it, where there is one,
tells the values of its labels. That a run exports just these series is shown by
tests/integration/local/test_metrics.py.
"""

import ast
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "reference" / "metrics.md"
KINDS = {
    "Counter": "counter",
    "Tally": "counter",
    "Gauge": "gauge",
    "Level": "gauge",
    "SnapshotGauge": "gauge",
    "Histogram": "histogram",
    "Spread": "histogram",
    "Info": "info",
}
MODULES = {
    "Every process": "lib/mailrail/kit/metrics.py",
    "Ingress": "services/ingress/mailrail_ingress/metrics.py",
    "Queue": "services/queue/mailrail_queue/metrics.py",
    "Outbound": "services/outbound/mailrail_outbound/metrics.py",
    "Config": "services/config/mailrail_config/metrics.py",
    "Policy": "services/policy/mailrail_policy/metrics.py",
    "DMARC": "services/dmarc/mailrail_dmarc/metrics.py",
    "Operator": "operator/mailrail_operator/metrics.py",
    "Bundled Postgres": "lib/mailrail/cluster/metrics.py",
}


@dataclass(frozen=True)
class Series:
    """One family of series. `name` is that of its samples: counters end in `_total`, infos in `_info`."""

    name: str
    kind: str
    meaning: str
    labels: tuple[str, ...]


def series_of(path: Path) -> list[Series]:
    """The series that a module declares, in its order."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    found = []
    for statement, following in zip(body, [*body[1:], None], strict=True):
        call = statement.value if isinstance(statement, ast.Assign | ast.AnnAssign) else None
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.func.id not in KINDS:
            continue
        kind = KINDS[call.func.id]
        name, meaning, *rest = [ast.literal_eval(a) for a in call.args]
        named = {k.arg: k.value for k in call.keywords if k.arg in ("labels", "labelnames")}
        labels = rest[0] if rest else next((ast.literal_eval(v) for v in named.values()), ())
        if kind in ("counter", "info"):
            suffix = "_total" if kind == "counter" else "_info"
            name = name.removesuffix(suffix) + suffix
        if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            meaning = f"{meaning}. {' '.join(str(following.value.value).split())}"
        found.append(Series(name, kind, " ".join(meaning.split()), tuple(labels)))
    return found


def sections() -> dict[str, list[Series]]:
    """Title → series, in the order of the page."""
    found = {title: series_of(ROOT / path) for title, path in MODULES.items()}
    # Written by the supervisor as text, beside the pages of its children: there is no module to read.
    found["Local mode"] = [
        Series(
            "mailrail_local_restarts_total",
            "counter",
            "Times that a process of local mode, or Postgres, was restarted",
            ("service",),
        ),
        Series("mailrail_local_up", "gauge", "1 while a process of local mode answers, else 0", ("service",)),
    ]
    return found


def documented() -> dict[str, Series]:
    """Every series by the name of its family's samples."""
    return {s.name: s for section in sections().values() for s in section}


def page() -> str:
    """The reference page."""
    lines = [
        "<!-- Written by scripts/generate_metrics.py; `make generate` writes it anew. -->",
        "",
        "# Metrics",
        "",
        "Every process serves Prometheus metrics on `MAILRAIL_METRICS_LISTEN`. Local mode serves the metrics of all",
        "its processes on port 1081, with the label `service`. Label values come from closed lists; they are never an",
        "address or a reply text. Names of transports and of sites (recipient domains) are bounded in number, and",
        "`MAILRAIL_QUEUE_NAMED_SITES=0` leaves those of sites out. A histogram has `_bucket`, `_sum` and `_count`. The",
        "Prometheus library adds `process_*` and `python_*`.",
    ]
    for title, section in sections().items():
        lines += ["", f"## {title}", "", "| series | type | labels | meaning |", "|---|---|---|---|"]
        for s in section:
            labels = ", ".join(f"`{label}`" for label in s.labels) or "–"
            lines.append(f"| `{s.name}` | {s.kind} | {labels} | {s.meaning.replace('|', chr(92) + '|')} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(page(), encoding="utf-8")
