"""The chart's dashboards and alert rules as tests read them: every query, with Grafana's variables filled in."""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from generate_dashboards import rules

from testkit.chart import CHART
from testkit.peers.prometheus import Prometheus

RULES = CHART / "files/rules"
OPERATOR = re.compile(r'mailrail_operator_|service="operator"')
"""What only an operator exports, and so only a cluster shows."""
ARRIVAL = re.compile(r"mailrail_operator_(mail_probe_seconds|last_mail_probe)")
"""What it exports once a probe has arrived, which takes ingress and queue beside it."""
SELECTOR = re.compile(r"\b(?:(?:mailrail|process)_[a-z_]+|mailrail:[a-z0-9_:]+)(?:\{[^}]*\})?")
_VARIABLES = {"$__rate_interval": "10s", "$__range": "30s", "$namespace": ".*", "$job": "mailrail.*"}


@dataclass(frozen=True)
class PanelQuery:
    """One query of one panel."""

    dashboard: str
    panel: str
    expr: str

    def __str__(self) -> str:
        return f"{self.dashboard} / {self.panel}: {self.expr}"


@dataclass(frozen=True)
class Alert:
    """One alert as its file has it."""

    name: str
    expr: str
    lasts: str  # its `for`
    labels: dict[str, str]
    annotations: dict[str, str]

    @property
    def selectors(self) -> list[str]:
        """Every selector of ours in it, matchers included."""
        return SELECTOR.findall(self.expr)


def dashboards() -> dict[str, dict[str, Any]]:
    """Every dashboard by the name of its file."""
    found = {path.stem: json.loads(path.read_text("utf-8")) for path in sorted((CHART / "files/dashboards").iterdir())}
    assert found, "the chart has no dashboards"
    return found


def filled(expr: str) -> str:
    """A query of a dashboard as Prometheus gets it."""
    for name, value in _VARIABLES.items():
        expr = expr.replace(name, value)
    assert "$" not in expr, f"a variable that nobody fills in: {expr}"
    return expr


def panel_queries() -> Iterator[PanelQuery]:
    """Every query of every panel."""
    for dashboard in dashboards().values():
        for panel in dashboard["panels"]:
            for target in panel.get("targets", ()):
                yield PanelQuery(dashboard["title"], panel["title"], filled(target["expr"]))


def alerts() -> list[Alert]:
    """Every alert of every group."""
    found = [
        Alert(rule["alert"], rule["expr"], rule["for"], rule["labels"], rule["annotations"])
        for rule in rules()
        if "alert" in rule
    ]
    assert found, "the chart has no alerts"
    return found


def records() -> dict[str, str]:
    """Every record: name → expression. Those of one name have one form."""
    return {rule["record"]: rule["expr"] for rule in rules() if "record" in rule}


def has_data(prometheus: Prometheus, expr: str, start: float, end: float) -> bool:
    """Whether a query gave a number at any time of a run (Unix seconds)."""
    answer = prometheus.query_range(expr, start, end + 1)  # the steps' grid may end before `end`
    return any(math.isfinite(float(value)) for series in answer for _, value in series["values"])
