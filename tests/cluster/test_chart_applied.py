"""What the chart renders is what the API server stores: applied again it changes nothing, as GitOps tools expect."""

import json
import subprocess
from pathlib import Path

import pytest
from cluster.conftest import Kubectl
from cluster.release import CHART, NAME, SERVICES

pytestmark = pytest.mark.timeout(300)

NO_PODS = [option for one in SERVICES for option in ("--set", f"{one}.replicaCount=0")]
"""What pods do is not asked here."""
VALUES = ["default", "no-volume", "external-postgres"]


@pytest.mark.parametrize("options", [(), ("--server-side",)], ids=["client-side", "server-side"])
@pytest.mark.parametrize("values", VALUES)
def test_applying_the_rendered_chart_twice_changes_nothing_and_kubectl_diff_is_empty(
    kubectl: Kubectl, values: str, options: tuple[str, ...]
) -> None:
    text = rendered(kubectl.namespace, CHART / f"ci/{values}-values.yaml")
    kubectl("apply", *options, "-f", "-", stdin=text)
    before = generations(kubectl)
    assert before
    kubectl("apply", *options, "-f", "-", stdin=text)
    assert generations(kubectl) == before
    diff = kubectl.try_("diff", *options, "-f", "-", stdin=text)
    assert (diff.returncode, diff.stdout) == (0, ""), diff.stderr


def rendered(namespace: str, values: Path) -> str:
    """The chart as text, without what belongs to the whole cluster and with no service that runs."""
    command = ["helm", "template", NAME, str(CHART), "--namespace", namespace, "--skip-tests", "--values", str(values)]
    command += ["--set", "crds.enabled=false", "--set", "rbac.aggregate=false", *NO_PODS]
    done = subprocess.run([*command, "--kube-version", "1.32.0"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def generations(kubectl: Kubectl) -> dict[tuple[str, str], int]:
    """The generation of each object whose spec the API server counts."""
    kinds = "deployments,statefulsets,jobs,cronjobs,networkpolicies,poddisruptionbudgets"
    listed = json.loads(kubectl("get", kinds, "-o", "json"))["items"]
    found = {(o["kind"], o["metadata"]["name"]): o["metadata"].get("generation", 0) for o in listed}
    return {what: number for what, number in found.items() if number}
