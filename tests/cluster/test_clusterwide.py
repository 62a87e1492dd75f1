"""The operator for all namespaces: references that cross them, and namespaces that are let in by their labels."""

import json
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster.conftest import ROOT, Kubectl
from cluster.stage import Stage, basics, manifest, relay, route, staged

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


def port_of(stage: Stage) -> int:
    """A port that no other namespace's gateway has; nothing opens it."""
    return 10_000 + zlib.crc32(stage.kubectl.namespace.encode()) % 50_000


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
    # A domain and a port of its own: what others have in this cluster counts for this operator, too.
    stage.kubectl.apply(
        basics(f"{stage.kubectl.namespace}.example", port_of(stage)) + relay("relay", "relay.example.org")
    )
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


@pytest.fixture
def editor(elsewhere: Kubectl) -> tuple[str, ...]:
    """Options for a user who may do in the other team's namespace what role `edit` gives there: all but gateways."""
    resources = "maildomains.mailrail.dev,mailaccounts.mailrail.dev,mailtransports.mailrail.dev,mailroutes.mailrail.dev"
    verbs = "get,list,watch,create,update,patch,delete"
    elsewhere("create", "role", "mail-edit", f"--verb={verbs}", f"--resource={resources}")
    elsewhere("create", "rolebinding", "mail-edit", "--role=mail-edit", "--user=thief")
    return ("--as=thief",)


def test_who_may_edit_one_namespace_cannot_touch_the_mail_of_others(
    stage: Stage, rights: None, elsewhere: Kubectl, editor: tuple[str, ...]
) -> None:
    stage.kubectl("delete", "rolebinding", "mailrail-operator")
    stage.start_consumers()
    stage.start_operator(namespaces="")
    ours = f"{stage.kubectl.namespace}.example"
    stage.kubectl.apply(
        basics(ours, port_of(stage))
        + relay("relay", "relay.example.org")
        + route("ours", "relay", parent="MailGateway/mx1")
    )
    kinds = ["MailDomain", "MailRoute"]
    own = {"name": "own", "kinds": kinds, "namespaces": {"from": "Same"}}
    teams = {"name": "teams", "kinds": kinds, "namespaces": {"from": "All"}, "domainNames": [f".team.{ours}"]}
    attach = [own, teams | {"minimumPriority": 5000}]
    stage.kubectl("patch", "mgw", "mx1", "--type=merge", "-p", json.dumps({"spec": {"attach": attach}}))
    stage.wait_ready("mgw/mx1", "mroute/ours")
    before = stage.queue()

    assert elsewhere.try_("auth", "can-i", "create", "mailgateways.mailrail.dev", *editor).returncode != 0
    assert stage.kubectl.try_("auth", "can-i", "get", "mailgateways.mailrail.dev", *editor).returncode != 0
    there = {"namespace": stage.kubectl.namespace}
    mailbox = {"delivery": {"mailbox": {}}, "gatewayRef": {"name": "mx1"} | there}
    rules = [{"transportRef": {"name": "theirs"}}]
    for wrong in (
        relay("theirs", "theirs.example.org"),
        manifest(
            "MailRoute",
            "first",
            {"parentRefs": [{"kind": "MailGateway", "name": "mx1"} | there], "rules": rules, "priority": 0},
        ),
        manifest("MailDomain", "world", {"domainName": "gmail.com"} | mailbox),
        manifest("MailDomain", "ours", {"domainName": ours} | mailbox),
        manifest("MailAccount", "rest", {"domainRef": {"name": "org"} | there, "receive": ["@"], "login": "rest"}),
        manifest("MailDomain", "given", {"domainName": f"a.team.{ours}"} | mailbox),
    ):
        elsewhere("apply", "--server-side", "-f", "-", *editor, stdin=wrong)

    def why(kind: str, name: str) -> str:
        path = "jsonpath={.status.conditions[?(@.type=='ResolvedRefs')].message}"
        return elsewhere("get", kind, name, "-o", path)

    stage.until(lambda: "priority 0 (attach[].minimumPriority 5000)" in why("mroute", "first"), "the route is told")
    stage.until(lambda: "a MailDomain named gmail.com" in why("mdom", "world"), "the domain of the world is told")
    stage.until(lambda: f"a MailDomain named {ours}" in why("mdom", "ours"), "the domain of others is told")
    stage.until(lambda: "a MailAccount (it has no attach[])" in why("macct", "rest"), "the account is told")
    stage.until_queue(lambda r: f"a.team.{ours}" in domains(r))
    after = stage.queue()
    assert domains(after) - domains(before) == {f"a.team.{ours}"}
    assert after.global_routes == before.global_routes
    assert after.accounts == before.accounts


def test_an_operator_of_one_namespace_sees_no_other(stage: Stage, elsewhere: Kubectl) -> None:
    stage.start_consumers()
    stage.start_operator()
    elsewhere.apply(relay("relay", "theirs.example.org"))
    stage.kubectl.apply(basics() + relay("relay", "ours.example.org"))
    stage.wait_ready("mtrans/relay")
    assert {t.host for t in stage.queue().transports} == {"ours.example.org"}
    status = json.loads(elsewhere("get", "mtrans", "relay", "-o", "json"))["status"]
    assert {c["reason"] for c in status["conditions"]} == {"Pending"}  # as the schema has it: nobody looked
