"""What GitOps tools see: the same text applied again changes nothing, and an edit is not done before it is seen.

Argo CD and Flux themselves do not run here. kstatus, which Flux and Helm wait with, and the Lua of Argo CD's health
checks run as the Go modules that they are (tests/gitops). What both tools compare by is `kubectl apply` and
`kubectl diff`, client-side and server-side.
"""

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster.conftest import ROOT, Kubectl
from cluster.stage import Stage, basics, relay, route, staged

from testkit.conditions import wait_until

EXAMPLES = sorted((ROOT / "docs/examples").rglob("*.yaml"))
WAYS = {"client-side": ("--server-side=false",), "server-side": ("--server-side",)}
KINDS = "mgw,mdom,macct,mtrans,mroute"

Verdicts = Callable[[dict[str, Any]], dict[str, dict[str, str]]]


@pytest.fixture(scope="session")
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> Verdicts:
    """What kstatus and the health check of the how-to say of an object."""
    if shutil.which("go") is None:
        pytest.skip("Go builds kstatus, and is not installed")
    folder = tmp_path_factory.mktemp("gitops")
    program, script = folder / "gitops", folder / "health.lua"
    subprocess.run(["go", "build", "-o", str(program), "."], cwd=ROOT / "tests/gitops", check=True, timeout=600)
    page = (ROOT / "docs/how-to/monitoring.md").read_text(encoding="utf-8")
    found = [
        yaml.safe_load(settings["data"]["resource.customizations"])["mailrail.dev/*"]["health.lua"]
        for block in re.findall(r"^```yaml\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
        if "resource.customizations" in (settings := yaml.safe_load(block)).get("data", {})
    ]
    assert len(found) == 1, "docs/how-to/monitoring.md has one health check for Argo CD"
    script.write_text(found[0], encoding="utf-8")

    def ask(item: dict[str, Any]) -> dict[str, dict[str, str]]:
        done = subprocess.run([program, script], input=json.dumps(item), capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        answer: dict[str, dict[str, str]] = json.loads(done.stdout)
        return answer

    return ask


@pytest.fixture
def stage(kubectl: Kubectl, database: str, tmp_path: Path) -> Iterator[Stage]:
    with staged(kubectl, database, tmp_path) as made:
        yield made


def states(verdicts: Verdicts, item: dict[str, Any]) -> tuple[str, str]:
    said = verdicts(item)
    return said["kstatus"]["status"], said["argo"]["status"]


def test_what_nobody_has_looked_at_yet_is_in_progress(kubectl: Kubectl, verdicts: Verdicts) -> None:
    kubectl.apply(basics() + relay("relay", "relay.example.org") + route("all", "relay"))
    items = json.loads(kubectl("get", KINDS, "-o", "json"))["items"]
    assert {(i["kind"], *states(verdicts, i)) for i in items} == {
        (kind, "InProgress", "Progressing")
        for kind in ("MailGateway", "MailDomain", "MailAccount", "MailTransport", "MailRoute")
    }


def test_what_is_ready_is_current_and_an_edit_is_in_progress_until_it_is_seen(stage: Stage, verdicts: Verdicts) -> None:
    stage.start_consumers()
    operator = stage.start_operator()
    stage.kubectl.apply(basics() + relay("relay", "first.example.org") + route("all", "relay"))
    stage.wait_ready("mgw/mx1", "mdom/org", "macct/postmaster", "mtrans/relay", "mroute/all")
    for item in json.loads(stage.kubectl("get", KINDS, "-o", "json"))["items"]:
        assert states(verdicts, item) == ("Current", "Healthy"), item

    operator.stop()
    stage.kubectl.apply(relay("relay", "second.example.org"))
    assert states(verdicts, stage.get("mtrans", "relay")) == ("InProgress", "Progressing")

    stage.start_operator()
    wait_until(
        lambda: states(verdicts, stage.get("mtrans", "relay")) == ("Current", "Healthy"),
        60,
        lambda: f"the edit is seen: {stage.get('mtrans', 'relay')}",
    )


def test_what_is_refused_is_neither_current_nor_healthy_and_says_why(stage: Stage, verdicts: Verdicts) -> None:
    stage.start_consumers()
    stage.start_operator().wait_for_line("leading")
    stage.kubectl.apply(basics() + route("all", "relay"))  # no such transport
    stage.wait_condition("mroute", "all", "ResolvedRefs", status="False", reason="TransportNotFound")
    wait_until(
        lambda: states(verdicts, stage.get("mroute", "all")) == ("InProgress", "Degraded"),
        30,
        lambda: f"both tell that it does not work: {verdicts(stage.get('mroute', 'all'))}",
    )
    assert "relay" in verdicts(stage.get("mroute", "all"))["argo"]["message"]


def objects(example: Path, *, secrets: bool = True) -> str:
    """The objects of an example; a Secret's stringData is never stored, so managers cannot share it."""
    documents = [d for d in yaml.safe_load_all(example.read_text(encoding="utf-8")) if d is not None]
    return yaml.safe_dump_all(d for d in documents if secrets or d["kind"] != "Secret")


def stored(kubectl: Kubectl, text: str) -> dict[tuple[str, str], dict[str, Any]]:
    """Each object of a text as it is stored, by kind and name.

    Not its resourceVersion: the second write stores the first conditions, which readers were given before.
    """
    found = {}
    for document in yaml.safe_load_all(text):
        kind, name = document["kind"], document["metadata"]["name"]
        item = json.loads(kubectl("get", kind, name, "-o", "json", "--show-managed-fields"))
        del item["metadata"]["resourceVersion"]
        found[kind, name] = item
    return found


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: str(path.relative_to(ROOT / "docs/examples")))
def test_the_same_text_applied_again_changes_nothing(kubectl: Kubectl, example: Path, way: str) -> None:
    text = objects(example)
    kubectl("apply", *WAYS[way], "-f", "-", stdin=text)
    before = stored(kubectl, text)
    kubectl("apply", *WAYS[way], "-f", "-", stdin=text)
    assert stored(kubectl, text) == before
    ours = objects(example, secrets=False)
    diff = kubectl.try_("diff", *WAYS[way], "-f", "-", stdin=ours)
    assert (diff.returncode, diff.stdout) == (0, ""), f"kubectl diff: {diff.stdout}{diff.stderr}"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: str(path.relative_to(ROOT / "docs/examples")))
def test_another_tool_may_apply_the_same_text(kubectl: Kubectl, example: Path, way: str) -> None:
    text = objects(example, secrets=False)
    kubectl("apply", *WAYS[way], "-f", "-", stdin=text)
    before = {key: item["metadata"]["generation"] for key, item in stored(kubectl, text).items()}
    kubectl("apply", "--server-side", "--field-manager=other", "-f", "-", stdin=text)
    assert {key: item["metadata"]["generation"] for key, item in stored(kubectl, text).items()} == before
