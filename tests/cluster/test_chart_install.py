"""`helm install` with defaults: a working mail system, no right too many, and an uninstall that never hangs."""

import json
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from cluster.conftest import ROOT, Kubectl
from cluster.release import CHART, NAME, SERVICES, Release, image, is_ready, namespace
from cluster.stage import manifest, relay, route

from testkit.conditions import wait_until

pytestmark = pytest.mark.timeout(600)

WITH_A_TOKEN = {"operator", "keys", "migrations", "test"}  # components that talk to the API server
VOLUMES = {"secret", "configMap", "emptyDir", "projected"}


@pytest.fixture(scope="module")
def fresh(cluster: Kubectl, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Release]:
    """The chart with defaults; only the image is named."""
    image()
    with namespace(cluster, f"mailrail-test-{uuid.uuid4().hex[:8]}") as kubectl:
        release = Release(kubectl, tmp_path_factory.mktemp("fresh"))
        release.install()
        yield release


def test_helm_install_with_defaults_comes_to_ready(fresh: Release, capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print(f"\nhelm install --wait with defaults: {fresh.took:.0f} s")
    for component in SERVICES:
        pods = fresh.pods(component)
        assert pods
        assert all(is_ready(one) for one in pods), fresh.tails()
    assert fresh.all_ready()


def test_the_notes_say_what_to_do_next_and_that_the_bundled_postgres_is_for_trying_out(fresh: Release) -> None:
    assert "kubectl" in fresh.notes
    assert "helm test" in fresh.notes
    assert "trying out" in fresh.notes


def test_helm_test_sends_a_real_message_through(fresh: Release) -> None:
    done = fresh.helm("test", NAME, "--logs", "--timeout=3m")
    assert done.returncode == 0, f"{done.stdout}{done.stderr}\n{fresh.tails()}"
    assert "Succeeded" in done.stdout
    assert done.stdout.count("TEST SUITE:") == 1, done.stdout


def test_the_first_steps_of_the_readme_come_to_ready_on_a_fresh_installation(fresh: Release) -> None:
    steps = str(ROOT / "docs/examples/first-steps")
    fresh.kubectl("apply", "-f", steps)
    try:
        fresh.ready("mgw,mdom,macct,mtrans,mroute", "--all")
    finally:
        fresh.kubectl("delete", "-f", steps)


def test_every_pod_has_one_network_policy_for_both_ways(fresh: Release) -> None:
    policies = json.loads(fresh.kubectl("get", "networkpolicies", "-o", "json"))["items"]
    for pod in fresh.pods(all_of_them=True):
        labels = pod["metadata"]["labels"]
        its = [one for one in policies if one["spec"]["podSelector"]["matchLabels"].items() <= labels.items()]
        assert len(its) == 1, (pod["metadata"]["name"], [one["metadata"]["name"] for one in its])
        assert set(its[0]["spec"]["policyTypes"]) == {"Ingress", "Egress"}
    by_name = {one["metadata"]["name"]: one["spec"] for one in policies}
    for component in ("config", "queue", "outbound", "operator", "postgres"):
        for rule in by_name[f"{NAME}-{component}"].get("ingress", ()):
            ports = {one["port"] for one in rule["ports"]}
            assert ports == {"metrics"} or rule.get("from"), f"{component} lets anybody come to {ports}"
    for component in ("config", "queue", "ingress"):
        for rule in by_name[f"{NAME}-{component}"]["egress"]:
            ports = {one["port"] for one in rule["ports"]}
            assert ports == {53} or rule.get("to"), f"{component} may go anywhere at {ports}"


def test_no_pod_has_a_right_that_the_restricted_standard_refuses_and_Postgres_alone_a_volume_that_holds_mail(
    fresh: Release,
) -> None:
    # The namespace enforces the restricted standard, so what runs satisfies it; this looks at what goes beyond.
    for pod in fresh.pods(all_of_them=True):
        name, spec = pod["metadata"]["name"], pod["spec"]
        component = pod["metadata"]["labels"]["app.kubernetes.io/component"]
        assert spec.get("automountServiceAccountToken") is (component in WITH_A_TOKEN), name
        assert spec["serviceAccountName"] != "default", name
        assert not any(spec.get(one) for one in ("hostNetwork", "hostPID", "hostIPC")), name
        kinds = {kind for volume in spec["volumes"] for kind in volume if kind != "name"}
        assert kinds - VOLUMES == ({"persistentVolumeClaim"} if component == "postgres" else set()), (name, kinds)
        for container in (*spec["containers"], *spec.get("initContainers", ())):
            security = container["securityContext"]
            assert security["readOnlyRootFilesystem"] is True, name
            assert security["allowPrivilegeEscalation"] is False, name
            assert security["capabilities"] == {"drop": ["ALL"]}, name
            assert container["resources"]["requests"], name
            if component in SERVICES:
                secrets = [one for one in container.get("env", ()) if "secretKeyRef" in one.get("valueFrom", {})]
                assert not secrets, f"{name} could not start again while the API server is away (CFG-07): {secrets}"


def test_only_the_operator_the_jobs_and_the_test_have_rights_in_the_api(fresh: Release) -> None:
    k = fresh.kubectl
    bound = subjects(json.loads(k("get", "rolebindings", "-o", "json")))
    assert {one.removeprefix(f"{NAME}-") for one in bound} <= WITH_A_TOKEN
    everywhere = subjects(json.loads(k("get", "clusterrolebindings", "-o", "json")), k.namespace)
    assert not everywhere, "by default nothing has rights outside of its namespace"
    account = f"system:serviceaccount:{k.namespace}:{NAME}"
    for component in ("config", "queue", "ingress", "outbound"):
        assert k.try_("auth", "can-i", "get", "secrets", f"--as={account}-{component}").stdout.strip() == "no"
    assert k.try_("auth", "can-i", "update", "mailroutes.mailrail.dev", f"--as={account}-operator").stdout == "no\n"
    rules = [r for role in json.loads(k("get", "roles", "-o", "json"))["items"] for r in role["rules"]]
    assert not [r for r in rules if "*" in (*r["verbs"], *r["resources"], *r["apiGroups"])]


def subjects(listed: dict[str, Any], in_namespace: str = "") -> set[str]:
    """Names of the service accounts in bindings."""
    return {
        subject["name"]
        for one in listed["items"]
        for subject in one.get("subjects") or ()
        if subject["kind"] == "ServiceAccount" and in_namespace in ("", subject.get("namespace"))
    }


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (("queue.replicaCount=many",), ("/queue/replicaCount", "got string, want integer")),
        (("queue.replicaCont=3",), ("replicaCont",)),
        (("postgres.mode=sqlite",), ("postgres", "mode", "bundled", "external")),
        (("postgres.mode=external",), ("/postgres/external/existingSecret",)),
    ],
    ids=lambda v: v[0] if isinstance(v, tuple) else None,
)
def test_a_bad_value_stops_helm_install_with_a_message_that_names_it(
    fresh: Release, values: tuple[str, ...], words: tuple[str, ...]
) -> None:
    options = [option for one in values for option in ("--set", one)]
    done = fresh.helm("install", "bad", str(CHART), *options)
    assert done.returncode != 0
    assert [word for word in words if word not in done.stderr] == [], done.stderr
    assert fresh.helm("status", "bad").returncode != 0, "nothing was installed"


def test_an_uninstall_does_not_hang_on_resources_and_leaves_them_deletable(fresh: Release) -> None:
    spec = {
        "hostname": "mx1.example.org",
        "listeners": [{"name": "mx", "protocol": "MX", "port": 25}],
        "postmaster": {"accountRef": {"name": "postmaster"}},
    }
    fresh.kubectl.apply(
        manifest("MailGateway", "mx1", spec)
        + manifest(
            "MailDomain",
            "org",
            {"domainName": "example.org", "gatewayRef": {"name": "mx1"}, "delivery": {"mailbox": {}}},
        )
        + manifest("MailAccount", "postmaster", {"domainRef": {"name": "org"}, "addresses": ["postmaster"]})
        + relay("relay", "relay.example.org")
        + route("all", "relay")
    )
    fresh.ready("mgw,mdom,macct,mtrans,mroute", "--all")
    done = fresh.helm("uninstall", NAME, "--wait", "--timeout=3m")
    assert done.returncode == 0, f"{done.stderr}\n{fresh.tails()}"
    wait_until(lambda: not fresh.pods("test", all_of_them=True), 60, "the pod of `helm test` goes with the release")
    left = fresh.kubectl("get", "mailrail", "-o", "name").split()
    assert len(left) == 5, "the CRDs stay (crds.keep), and what people wrote stays with them"
    fresh.kubectl("delete", "mailroutes,mailtransports", "--all", "--timeout=60s")
    # The others go with their namespace, although nobody is there any more to look after them.
    fresh.kubectl("delete", "namespace", fresh.kubectl.namespace, "--timeout=240s")
