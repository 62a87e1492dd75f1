"""Network policies, where the cluster enforces them: mail goes its way, and nobody reaches what no policy names."""

from collections.abc import Iterator

import pytest
import yaml
from cluster.addons import ADDONS
from cluster.conftest import Kubectl
from cluster.partner import Partner
from cluster.rail import LOGIN, Rail
from cluster.release import NAME, image, is_ready, namespace

from testkit.conditions import NeverTrue, wait_until

pytestmark = pytest.mark.timeout(600)

_DIAL = """
import socket, sys
for one in sys.argv[1:]:
    address, _, port = one.rpartition(":")
    try:
        socket.create_connection((address, int(port)), 5).close()
        print(one, "open")
    except OSError:  # what enforces policies may drop or refuse
        print(one, "shut")
"""


def opens(kubectl: Kubectl, pod: str, *targets: str) -> dict[str, bool]:
    """Which `ADDRESS:PORT` a pod reaches."""
    told = kubectl("exec", pod, "--", "python", "-c", _DIAL, *targets)
    return {line.split()[0]: line.split()[1] == "open" for line in told.splitlines()}


@pytest.fixture(scope="module")
def enforcing(rail: Rail) -> Iterator[Rail]:
    """The rail in a cluster whose network enforces policies; skips in any other."""
    policy = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "third-is-alone"},
        "spec": {"podSelector": {"matchLabels": {"app": "third"}}, "policyTypes": ["Egress"]},
    }
    target = f"{pod_ip(rail.kubectl, 'first')}:25"
    assert opens(rail.kubectl, "third", target)[target]
    rail.kubectl.apply(yaml.safe_dump(policy))
    try:
        wait_until(lambda: not opens(rail.kubectl, "third", target)[target], 30, "a pod that may go nowhere is held")
        yield rail
    except NeverTrue:
        if "network-policies" in ADDONS:
            raise
        pytest.skip("this cluster accepts network policies and does not enforce them")
    finally:
        rail.kubectl("delete", "networkpolicy/third-is-alone")


def pod_ip(kubectl: Kubectl, name: str) -> str:
    """The address of a pod."""
    return kubectl("get", "pod", name, "-o", "jsonpath={.status.podIP}")


def test_a_stranger_in_the_same_namespace_reaches_mail_and_metrics_alone(enforcing: Rail) -> None:
    rail = enforcing
    components = ("config", "queue", "outbound", "ingress", "policy")
    shut = [door(rail, one, "grpc") for one in components] + [door(rail, "postgres", "postgres")]
    wide = [door(rail, "ingress", one) for one in ("smtp", "submission")]
    wide += [door(rail, "queue", "metrics"), door(rail, "policy", "http")]
    assert opens(rail.kubectl, "second", *shut, *wide) == dict.fromkeys(shut, False) | dict.fromkeys(wide, True)


def test_pods_of_ours_reach_their_neighbours_and_nobody_else(enforcing: Rail) -> None:
    rail = enforcing
    partner, postgres = f"{pod_ip(rail.kubectl, 'first')}:25", door(rail, "postgres", "postgres")
    for component, reaches in {
        "ingress": {partner: False, postgres: False},  # faces strangers: no way out, no way to the database
        "queue": {partner: False, postgres: True},
        "config": {partner: False, postgres: True},
        "outbound": {partner: True, postgres: True},
        "policy": {partner: False, postgres: False},  # faces strangers, too
        "operator": {partner: False, postgres: False},
    }.items():
        assert opens(rail.kubectl, rail.pod(component), *reaches) == reaches, component


def test_pods_of_ours_reach_the_services_that_they_work_with(enforcing: Rail) -> None:
    rail = enforcing
    doors = {one: door(rail, one, "grpc") for one in ("config", "queue", "outbound", "ingress")}
    for component, neighbours in {
        "ingress": {"config", "queue", "outbound"},
        "queue": {"config", "queue"},
        "outbound": {"config", "queue"},
        "policy": {"config"},
        "operator": {"config", "queue"},
    }.items():
        reaches = {target: one in neighbours for one, target in doors.items() if one != component or one == "queue"}
        assert opens(rail.kubectl, rail.pod(component), *reaches) == reaches, component


def test_mail_of_strangers_and_of_our_users_goes_its_way_under_all_policies(enforcing: Rail) -> None:
    rail = enforcing
    assert rail.first.talk(*rail.mx, [LOGIN], subject="under policies").accepted
    wait_until(lambda: "under policies" in rail.mailbox(), 60, rail.tails)
    assert rail.submit("policies@alone.partner.test").accepted
    rail.first.wait_for("policies@alone.partner.test", 60, rail.tails)


@pytest.mark.long
def test_a_pod_of_another_namespace_that_wears_our_labels_is_a_stranger(enforcing: Rail, cluster: Kubectl) -> None:
    rail = enforcing
    shut = [door(rail, one, "grpc") for one in ("config", "queue", "outbound")] + [door(rail, "postgres", "postgres")]
    with namespace(cluster, f"{rail.kubectl.namespace}-impostor", volumes=False) as elsewhere:
        impostor = Partner(elsewhere, "impostor", image()).wait_until_open()
        worn = {
            f"app.kubernetes.io/{key}": value
            for key, value in (("name", NAME), ("instance", NAME), ("component", "queue"))
        }
        elsewhere("label", "pod", impostor.name, *(f"{key}={value}" for key, value in worn.items()))
        mail = door(rail, "ingress", "smtp")
        wanted = dict.fromkeys(shut, False) | {mail: True}
        wait_until(lambda: opens(elsewhere, impostor.name, *wanted) == wanted, 30, "it reaches mail alone")


def door(rail: Rail, component: str, name: str) -> str:
    """`ADDRESS:PORT` of a named port of a component's pod."""
    pod = next(one for one in rail.pods(component) if is_ready(one))
    ports = [port for one in pod["spec"]["containers"] for port in one["ports"] if port["name"] == name]
    return f"{pod['status']['podIP']}:{ports[0]['containerPort']}"
