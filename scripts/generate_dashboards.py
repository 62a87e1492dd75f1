"""Write the chart's Grafana dashboards, deploy/helm/mailrail/files/dashboards, from their descriptions in `grafana`.

tests/integration/observability runs every query against a real Prometheus that scraped a real run.
"""

import json
import shutil
import sys
from pathlib import Path

from grafana import config, configuration, ingress, operator, outbound, overview, queue, sites
from grafana.document import document

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "deploy/helm/mailrail/files/dashboards"
DASHBOARDS = tuple(m.DASHBOARD for m in (overview, sites, configuration, ingress, queue, outbound, config, operator))


def generate(target: Path) -> None:
    """Write one file a dashboard into `target` (replaced whole)."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for dashboard in DASHBOARDS:
        text = json.dumps(document(dashboard), indent=2, ensure_ascii=False)
        (target / f"{dashboard.uid.removeprefix('mailrail-')}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
