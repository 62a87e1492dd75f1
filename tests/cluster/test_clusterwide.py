"""The operator for all namespaces: references that cross them, and namespaces that are let in by their labels."""

import json
import re
import urllib.request
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster.conftest import ROOT, Kubectl
from cluster.stage import Stage, basics, manifest, relay, route, staged, status_writers

from mailrail.core.resources import KINDS
from mailrail.core.revision.revision import Revision, RouteLevel
from mailrail.kit import migrations

from testkit.conditions import wait_until
from testkit.ports import free_port
from testkit.processes import Program


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


def names(objects: Iterable[Any], *of: Kubectl) -> set[tuple[str, str]]:
    """Namespace and name of those in the test's own namespaces: other tests' namespaces come and go meanwhile."""
    own = {one.namespace for one in of}
    return {(one.ref.namespace, one.ref.name) for one in objects if one.ref.namespace in own}


def routes(revision: Revision, *of: Kubectl) -> tuple[RouteLevel, ...]:
    """Of the gateways in the test's own namespaces."""
    own = {one.namespace for one in of}
    return tuple(level for level in revision.global_routes if level.parent.namespace in own)


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
    both = (stage.kubectl, elsewhere)
    assert names(after.domains, *both) - names(before.domains, *both) == {(elsewhere.namespace, "given")}
    assert routes(before, *both) == routes(after, *both) != ()
    assert names(before.accounts, *both) == names(after.accounts, *both) == {(stage.kubectl.namespace, "postmaster")}


WIDE, TEAM = "mailrail.dev/operator", "team.example/operator"
JUDGED = ("mdom/team", "macct/alice", "mroute/rules", "mtrans/relay", "mgw/mx1", "mdom/org", "macct/postmaster")
"""In the team's namespace: what attaches to the gateway of the other one, and an installation of its own."""


class Installation:
    """One of two installations: an operator with its own name and store, which looks at everything anew each second."""

    def __init__(self, stage: Stage, name: str, **settings: str) -> None:
        self.stage, self._port = stage, free_port()
        self._settings = {"controller_name": name, "resync_seconds": "1"} | settings
        self._program: Program | None = None

    def start(self) -> None:
        """A process; another one if there was one."""
        if self._program is not None:
            self._program.stop()
        listen = f"127.0.0.1:{self._port}"
        self._program = self.stage.start_operator(metrics_listen=listen, lease_seconds="3", **self._settings)

    def looks(self) -> float:
        """How often it compared all that there is with what it would write; 0 while it does not answer."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/metrics", timeout=60) as page:
                text = page.read().decode()
        except OSError:
            return 0.0
        return sum(
            float(n) for n in re.findall(r'^mailrail_operator_resyncs_total\{cause="period"\} (\S+)$', text, re.M)
        )


def versions(kubectl: Kubectl) -> dict[str, str]:
    """The resource version of each object of ours."""
    items = json.loads(kubectl("get", "mailrail", "-o", "json"))["items"]
    return {f"{item['kind']}/{item['metadata']['name']}": item["metadata"]["resourceVersion"] for item in items}


def at_rest(kubectl: Kubectl, *installations: Installation) -> None:
    """Wait until all have looked at all objects several times and nothing was written meanwhile."""

    def rested() -> bool:
        before, starts = versions(kubectl), [one.looks() for one in installations]
        enough = [start + 4 * len(KINDS) for start in starts]  # a list of each kind is one
        wait_until(
            lambda: all(one.looks() >= n for one, n in zip(installations, enough, strict=True)), 60, "they look again"
        )
        return all(starts) and versions(kubectl) == before

    wait_until(rested, 60, "nobody writes any more")


def entries(status: dict[str, Any]) -> dict[str, tuple[str, str, str]]:
    """Controller → the parent that its entry is about."""
    return {p["controllerName"]: (p["kind"], p["namespace"], p["name"]) for p in status.get("parents", ())}


@pytest.mark.parametrize("first", [WIDE, TEAM])
def test_two_installations_on_one_namespace_write_no_word_over_each_others_CFG_11(
    stage: Stage,
    rights: None,
    elsewhere: Kubectl,
    first: str,
    database_for: Callable[..., str],
    tmp_path: Path,
) -> None:
    stage.kubectl("delete", "rolebinding", "mailrail-operator")
    ours, port = f"{stage.kubectl.namespace}.example", port_of(stage)
    own = {"name": "own", "kinds": ["MailDomain"], "namespaces": {"from": "Same"}}
    teams = {"name": "teams", "kinds": ["MailDomain"], "namespaces": {"from": "All"}, "domainNames": [f".team.{ours}"]}
    stage.kubectl.apply(basics(ours, port))
    stage.kubectl("patch", "mgw", "mx1", "--type=merge", "-p", json.dumps({"spec": {"attach": [own, teams]}}))
    there = {"name": "mx1", "namespace": stage.kubectl.namespace}
    elsewhere.apply(
        basics(f"own.{ours}", port + 1)
        + relay("relay", "relay.example.org")
        + manifest(
            "MailDomain", "team", {"domainName": f"a.team.{ours}", "gatewayRef": there, "delivery": {"mailbox": {}}}
        )
        + manifest("MailAccount", "alice", {"domainRef": {"name": "team"}, "addresses": ["alice"]})
        + route("rules", "relay", parent="MailDomain/team")
    )
    (tmp_path / "team").mkdir()
    with staged(elsewhere, database_for(*migrations.SERVICES), tmp_path / "team") as other:
        both = {WIDE: Installation(stage, WIDE, namespaces=""), TEAM: Installation(other, TEAM)}
        for one in both.values():
            one.stage.start_consumers()
        both[first].start()
        other.wait_condition("mgw", "mx1", "Ready", status="True")
        if first == TEAM:  # it cannot see the gateway of the other namespace, and has the word while nobody else has
            why = other.wait_condition("mdom", "team", "ResolvedRefs", status="False", reason="ParentNotFound")
            assert stage.kubectl.namespace in why["message"]
        for one in both.values():
            if one is not both[first]:
                one.start()
        other.wait_ready(*JUDGED)
        at_rest(elsewhere, *both.values())

        def said() -> dict[str, tuple[str, dict[str, tuple[str, str, str]]]]:
            found = {target: other.get(*target.split("/"))["status"] for target in JUDGED}
            return {target: (status["controllerName"], entries(status)) for target, status in found.items()}

        gateway, team_domain = ("MailGateway", *reversed(there.values())), ("MailDomain", elsewhere.namespace, "team")
        attached = {"mdom/team": gateway, "macct/alice": team_domain, "mroute/rules": team_domain}
        now = said()
        for target, parent in attached.items():
            assert now[target] == (WIDE, {WIDE: parent}), "who serves it alone speaks of it"
        for target, parent in (
            ("mdom/org", ("MailGateway", elsewhere.namespace, "mx1")),
            ("macct/postmaster", ("MailDomain", elsewhere.namespace, "org")),
        ):
            assert now[target] == (first, {WIDE: parent, TEAM: parent}), "both run it, and the first judges it"
        assert now["mgw/mx1"] == (first, {})
        assert status_writers(elsewhere, "mdom/team") == {WIDE}
        assert status_writers(elsewhere, "mdom/org") == {WIDE, TEAM}

        before = versions(elsewhere)
        both[TEAM].start()
        wait_until(lambda: both[TEAM].looks() > 0, 60, lambda: f"it looks again\n{other.tails()}")
        at_rest(elsewhere, *both.values())
        assert versions(elsewhere) == before, "a restart writes nothing"

        elsewhere("patch", "mroute", "rules", "--type=merge", "-p", json.dumps({"spec": {"priority": 7}}))
        other.wait_condition("mroute", "rules", "Ready", status="True")
        at_rest(elsewhere, *both.values())
        assert said() == now


def test_an_operator_of_one_namespace_sees_no_other(stage: Stage, elsewhere: Kubectl) -> None:
    stage.start_consumers()
    stage.start_operator()
    elsewhere.apply(relay("relay", "theirs.example.org"))
    stage.kubectl.apply(basics() + relay("relay", "ours.example.org"))
    stage.wait_ready("mtrans/relay")
    assert {t.host for t in stage.queue().transports} == {"ours.example.org"}
    status = json.loads(elsewhere("get", "mtrans", "relay", "-o", "json"))["status"]
    assert {c["reason"] for c in status["conditions"]} == {"Pending"}  # as the schema has it: nobody looked
