"""The operator for all namespaces: references that cross them, and namespaces that are let in by their labels."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster.conftest import ROOT, Kubectl
from cluster.stage import Stage, basics, manifest, relay, staged

from mailrail.core.revision.revision import Revision


@pytest.fixture
def stage(kubectl: Kubectl, database: str, tmp_path: Path) -> Iterator[Stage]:
    with staged(kubectl, database, tmp_path) as made:
        yield made


@pytest.fixture
def elsewhere(kubectl: Kubectl) -> Iterator[Kubectl]:
    """Another team's namespace."""
    name = f"{kubectl.namespace}-team"
    kubectl("create", "namespace", name)
    yield Kubectl(name)
    kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture
def rights(kubectl: Kubectl) -> Iterator[None]:
    """What operator/rbac/clusterwide.yaml gives, and nothing of the namespaced rights on resources."""
    kubectl("apply", "-f", str(ROOT / "operator/rbac/clusterwide.yaml"))
    account = f"--serviceaccount={kubectl.namespace}:mailrail-operator"
    kubectl("create", "clusterrolebinding", kubectl.namespace, "--clusterrole=mailrail-operator", account)
    yield
    kubectl("delete", "clusterrolebinding", kubectl.namespace)


def domains(revision: Revision) -> set[str]:
    return {d.name for d in revision.domains}


def test_a_namespace_may_attach_once_it_carries_the_labels_that_the_gateway_asks_for(
    stage: Stage, rights: None, elsewhere: Kubectl
) -> None:
    stage.kubectl("delete", "rolebinding", "mailrail-operator")
    stage.start_consumers()
    stage.start_operator(namespaces="")
    label = f"mail-{stage.kubectl.namespace}"
    own = {"name": "own", "kinds": ["MailDomain"], "namespaces": {"from": "Same"}}
    selected = {"from": "Selector", "selector": {"matchLabels": {label: "yes"}}}
    teams = {"name": "teams", "kinds": ["MailDomain"], "namespaces": selected, "domainNames": ["team.example"]}
    patch = {"spec": {"attach": [own, teams]}}
    # A domain of its own: what others have in this cluster counts for this operator, too.
    stage.kubectl.apply(basics(f"{stage.kubectl.namespace}.example") + relay("relay", "relay.example.org"))
    stage.kubectl("patch", "mgw", "mx1", "--type=merge", "-p", json.dumps(patch))
    stage.wait_ready("mgw/mx1")
    gateway = {"name": "mx1", "namespace": stage.kubectl.namespace}
    domain = {"domainName": "team.example", "gatewayRef": gateway, "delivery": {"mailbox": {}}}
    elsewhere.apply(manifest("MailDomain", "team", domain))

    def resolved() -> str:
        path = "jsonpath={.status.conditions[?(@.type=='ResolvedRefs')].reason}"
        return elsewhere("get", "mdom", "team", "-o", path)

    stage.until(lambda: resolved() == "RefNotPermitted", "a namespace without the label may not attach")
    assert "team.example" not in domains(stage.queue())
    elsewhere("label", "namespace", elsewhere.namespace, f"{label}=yes")
    stage.until(lambda: resolved() == "ResolvedRefs", "the label lets it in")
    stage.until_queue(lambda r: "team.example" in domains(r))
    elsewhere("label", "namespace", elsewhere.namespace, f"{label}-")
    stage.until_queue(lambda r: "team.example" not in domains(r), what="taking the label away revokes it")


def test_an_operator_of_one_namespace_sees_no_other(stage: Stage, elsewhere: Kubectl) -> None:
    stage.start_consumers()
    stage.start_operator()
    elsewhere.apply(relay("relay", "theirs.example.org"))
    stage.kubectl.apply(basics() + relay("relay", "ours.example.org"))
    stage.wait_ready("mtrans/relay")
    assert {t.host for t in stage.queue().transports} == {"ours.example.org"}
    assert "status" not in json.loads(elsewhere("get", "mtrans", "relay", "-o", "json"))
