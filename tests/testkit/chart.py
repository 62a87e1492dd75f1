"""The chart as `helm template` renders it for values."""

import json
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

CHART = Path(__file__).resolve().parents[2] / "deploy/helm/mailrail"

needs_helm = pytest.mark.skipif(shutil.which("helm") is None, reason="no helm here")

Object = Mapping[str, Any]


def helm_template(
    values: Mapping[str, Any], folder: Path, chart: Path = CHART, *, release: str = "mailrail", namespace: str = "mail"
) -> subprocess.CompletedProcess[str]:
    """What helm answers; the values are put into `folder`."""
    file = folder / "values.yaml"
    file.write_text(json.dumps(values), encoding="utf-8")
    command = ["helm", "template", release, str(chart), "-n", namespace, "--kube-version", "1.34.0", "-f", str(file)]
    return subprocess.run(command, capture_output=True, text=True)


def rendered(
    values: Mapping[str, Any], folder: Path, chart: Path = CHART, *, release: str = "mailrail", namespace: str = "mail"
) -> dict[tuple[str, str], Object]:
    """The objects of a release by kind and name."""
    done = helm_template(values, folder, chart, release=release, namespace=namespace)
    assert done.returncode == 0, done.stderr
    return {(d["kind"], d["metadata"]["name"]): d for d in yaml.safe_load_all(done.stdout) if d}
