"""Write the chart's Grafana dashboards, deploy/helm/mailrail/files/dashboards, from their descriptions in `grafana`.

A panel links to the runbooks of the alerts that name it in files/rules.
tests/integration/observability runs every query against a real Prometheus that scraped a real run.
"""

import json
import shutil
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from grafana import config, configuration, dmarc, ingress, operator, outbound, overview, queue, sites, slo
from grafana.document import document

CHART = Path(__file__).resolve().parent.parent / "deploy/helm/mailrail"
FOLDER = CHART / "files/dashboards"
DASHBOARDS = tuple(
    m.DASHBOARD for m in (overview, slo, sites, configuration, ingress, queue, outbound, dmarc, config, operator)
)


def rules() -> Iterator[dict[str, Any]]:
    """Every rule of the chart as its file has it, alerts and records."""
    for path in sorted((CHART / "files/rules").glob("*.yaml")):
        for group in yaml.safe_load(path.read_text("utf-8"))["groups"]:
            yield from group["rules"]


def runbooks() -> dict[str, dict[str, list[tuple[str, str]]]]:
    """Dashboard → title of a panel → name and runbook of each alert that names it."""
    found: dict[str, dict[str, list[tuple[str, str]]]] = defaultdict(lambda: defaultdict(list))
    for rule in rules():
        if (said := rule.get("annotations")) is not None:
            found[said["dashboard"]][said["panel"]].append((rule["alert"], said["runbook_url"]))
    return found


def generate(target: Path) -> None:
    """Write one file a dashboard into `target` (replaced whole)."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    named = runbooks()
    for dashboard in DASHBOARDS:
        text = json.dumps(document(dashboard, named[dashboard.name]), indent=2, ensure_ascii=False)
        (target / f"{dashboard.name}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
