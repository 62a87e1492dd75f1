"""A HorizontalPodAutoscaler of the chart scales by the CPU that metrics-server measures, and no mail suffers by it."""

import time
from typing import Any

import pytest
from cluster.addons import needs
from cluster.ledger import Break
from cluster.rail import VALUES, Rail
from cluster.release import NAME, is_ready, merged

from testkit.conditions import wait_until

pytestmark = [needs("metrics-server"), pytest.mark.timeout(600)]

DOMAIN = "scaled.partner.test"
LEAST, MOST = 2, 3
TARGET = "15m"
"""CPU of a pod: without mail it has a third of it, and with what one partner sends more than half as much again."""


def autoscaler(rail: Rail, component: str) -> dict[str, Any]:
    """The status of a component's HorizontalPodAutoscaler."""
    status: dict[str, Any] = rail.get("horizontalpodautoscaler", f"{NAME}-{component}").get("status", {})
    return status


def cpu(rail: Rail, component: str) -> str:
    """The average of a pod, as the autoscaler sees it. Raises LookupError while it sees nothing."""
    (metric,) = autoscaler(rail, component).get("currentMetrics") or [{}]
    return str(metric["resource"]["current"]["averageValue"])


def told(rail: Rail, component: str) -> str:
    """What the autoscaler sees and wants, for the text of a failure."""
    return f"{autoscaler(rail, component)}\n{rail.tails()}"


def ready(rail: Rail, component: str) -> set[str]:
    """Names of the pods of a component that are Ready."""
    return {one["metadata"]["name"] for one in rail.pods(component) if is_ready(one)}


def accepted(rail: Rail, pod: str) -> float:
    """Messages from strangers that an ingress pod has accepted."""
    path = f"/api/v1/namespaces/{rail.kubectl.namespace}/pods/{pod}:9100/proxy/metrics"
    lines = rail.kubectl("get", "--raw", path).splitlines()
    wanted = 'mailrail_ingress_messages_total{origin="mx",result="accepted"}'
    return sum(float(line.split()[-1]) for line in lines if line.startswith(wanted))


@pytest.mark.parametrize("component", ["ingress", pytest.param("outbound", marks=pytest.mark.long)])
def test_under_load_more_pods_come_and_afterwards_they_go_and_every_message_is_counted(
    rail: Rail, component: str, capsys: pytest.CaptureFixture[str]
) -> None:
    scaling = {
        "enabled": True,
        "minReplicas": LEAST,
        "maxReplicas": MOST,
        "targetCPU": TARGET,
        # Kubernetes waits five minutes by default before it ends any.
        "behavior": {"scaleDown": {"stabilizationWindowSeconds": 0}},
    }
    try:
        rail.upgrade(merged(VALUES, {component: {"autoscaling": scaling}}))
        wait_until(
            lambda: (
                cpu(rail, component)
                and autoscaler(rail, component)["desiredReplicas"] == len(ready(rail, component)) == LEAST
            ),
            120,
            lambda: told(rail, component),
        )
        before, began = ready(rail, component), time.monotonic()
        load = {"sessions": 10, "per_connection": 20, "pace": 0.02}
        with rail.traffic(f"{component}-{{n}}@{DOMAIN}", **load) as run:
            wait_until(lambda: len(ready(rail, component)) > LEAST, 150, lambda: told(rail, component))
            took, seen = time.monotonic() - began, cpu(rail, component)
            if component == "ingress":
                fresh = ready(rail, component) - before
                wait_until(lambda: any(accepted(rail, one) for one in fresh), 60, "one that came takes mail in")
    finally:
        at = time.time()
        rail.upgrade(VALUES)
        rail.wait_until_ready()
        back = Break("back to what the values say", at, time.time())
    verdict = rail.counted(run, DOMAIN, [back], prefix=f"{component}-")
    assert verdict.doubled == 0, "nothing was killed: what runs is finished before a pod ends"
    with capsys.disabled():
        print(f"\n{component} of {LEAST} pods had more after {took:.0f} s, at {seen} a pod: {verdict}")
