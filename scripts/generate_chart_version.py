"""Write the version of pyproject.toml, where alone it stands, into the chart: its own version and that of the image."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CHART = ROOT / "deploy" / "helm" / "mailrail" / "Chart.yaml"


def main() -> None:
    """Write it."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    text = CHART.read_text(encoding="utf-8")
    text, lines = re.subn(r"(?m)^(version|appVersion): .*$", rf"\1: {version}", text)
    assert lines == 2, "Chart.yaml has a line for version and one for appVersion"
    CHART.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
