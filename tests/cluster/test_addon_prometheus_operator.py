"""The Prometheus operator takes up the chart's PodMonitor and PrometheusRule, and what it makes of them finds each pod.

A Prometheus of the distribution has no discovery of Kubernetes. So the operator writes the configuration for one that
has no pods; in it the discovery is replaced by what it would find. Everything else, relabelings above all, stays.
"""

import base64
import gzip
import json
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from cluster.addons import needs
from cluster.rail import Rail
from cluster.release import NAME, SERVICES

from testkit.conditions import wait_until
from testkit.observability import alerts, records
from testkit.peers.prometheus import Prometheus

pytestmark = [needs("prometheus-operator"), pytest.mark.peer("prometheus"), pytest.mark.timeout(300)]

MONITOR = "scraper"


@pytest.fixture(scope="module")
def monitored(rail: Rail) -> Iterator[Rail]:
    """The rail, and a Prometheus resource beside it that selects all of its namespace and has no pods.

    Pods of an earlier test may still be on their way out: they are found, and answer no more.
    """
    wait_until(lambda: len(rail.pods(all_of_them=True)) == len(rail.pods()), 120, "pods that end are gone")
    spec = {"replicas": 0, "version": "v2.42.0", "podMonitorSelector": {}, "ruleSelector": {}}
    body = {"apiVersion": "monitoring.coreos.com/v1", "kind": "Prometheus", "metadata": {"name": MONITOR}, "spec": spec}
    rail.apply(yaml.safe_dump(body))
    yield rail
    rail.kubectl("delete", f"prometheus/{MONITOR}")


def scrape_configs(rail: Rail) -> list[dict[str, Any]]:
    """What the operator wrote for the PodMonitors. Raises LookupError while there is none."""
    data = rail.get("secret", f"prometheus-{MONITOR}")["data"]
    text = gzip.decompress(base64.b64decode(data["prometheus.yaml.gz"])).decode()
    # As the reloader in the pod fills it in.
    found: list[dict[str, Any]] = yaml.safe_load(text.replace("$(SHARD)", "0")).get("scrape_configs")
    if not found:
        raise LookupError("the operator has written no scrape configuration yet")
    return found


def rule_files(rail: Rail) -> dict[str, str]:
    """The rules that the operator found valid, by file. Raises LookupError while there are none."""
    files: dict[str, str] = rail.get("configmap", f"prometheus-{MONITOR}-rulefiles-0").get("data", {})
    if not files:
        raise LookupError("the operator has taken up no rules yet")
    return files


def discovered(rail: Rail, namespace: str) -> list[dict[str, Any]]:
    """The targets that Prometheus' discovery makes of the pods of a namespace: one for each port of a container."""
    assert namespace == rail.kubectl.namespace
    targets = []
    for pod in json.loads(rail.kubectl("get", "pods", "-o", "json"))["items"]:
        about = {
            "namespace": namespace,
            "pod_name": pod["metadata"]["name"],
            "pod_phase": pod["status"]["phase"],
        }
        for key, value in pod["metadata"].get("labels", {}).items():
            name = "".join(c if c.isascii() and c.isalnum() else "_" for c in key)
            about |= {f"pod_label_{name}": value, f"pod_labelpresent_{name}": "true"}
        for container in pod["spec"]["containers"]:
            for port in container.get("ports", ()):
                mine = {"pod_container_name": container["name"], "pod_container_port_name": port.get("name", "")}
                address = f"{pod['status'].get('podIP', '')}:{port['containerPort']}"
                labels = {f"__meta_kubernetes_{key}": value for key, value in (about | mine).items()}
                targets.append({"targets": [address], "labels": labels})
    return targets


def exporters(rail: Rail) -> set[tuple[str, str]]:
    """Component and name of each pod of the release that has metrics."""
    return {
        (pod["metadata"]["labels"]["app.kubernetes.io/component"], pod["metadata"]["name"])
        for pod in rail.pods()
        if any(p.get("name") == "metrics" for one in pod["spec"]["containers"] for p in one.get("ports", ()))
    }


def test_every_pod_is_scraped_under_the_labels_that_dashboards_and_alerts_go_by(monitored: Rail) -> None:
    rail = monitored
    (config,) = wait_until(lambda: scrape_configs(rail), 60, "the PodMonitor is taken up")
    (discovery,) = config.pop("kubernetes_sd_configs")
    (namespace,) = discovery["namespaces"]["names"]
    config |= {"static_configs": discovered(rail, namespace), "scrape_interval": "1s", "scrape_timeout": "1s"}
    (rules,) = wait_until(lambda: rule_files(rail), 60, "the PrometheusRule is taken up").values()
    with Prometheus({}, rules=rules, scrape_configs=[config]) as prometheus:
        prometheus.wait_until_scraped()
        wanted = exporters(rail)
        assert {service for service, _ in wanted} >= set(SERVICES)
        ours = f'namespace="{rail.kubectl.namespace}",job="{NAME}"'
        up = {(one["metric"]["service"], one["metric"]["pod"]) for one in prometheus.query(f"up{{{ours}}} == 1")}
        assert up == wanted, "each pod that has metrics"
        assert len(prometheus.query("up")) == len(wanted), "and nothing else"
        # What each of them says of itself comes under these labels, too: alerts and KEDA's query name them.
        for series in (
            "queue_backlog_recipients",
            "ingress_listeners",
            "outbound_queue_replicas",
            "config_postgres_up",
        ):
            service = series.partition("_")[0]
            wait_until(
                lambda series=series, service=service: prometheus.query(  # type: ignore[misc]
                    f'mailrail_{series}{{{ours},service="{service}"}}'
                ),
                30,
                f"mailrail_{series} of this release",
            )
        loaded = prometheus.rules()
        assert {rule["name"] for rule in loaded} == {alert.name for alert in alerts()} | set(records())
        wait_until(
            lambda: all(rule["health"] == "ok" for rule in prometheus.rules()),
            60,
            lambda: f"every rule is evaluated: {[r for r in prometheus.rules() if r['health'] != 'ok'][:3]}",
        )


def test_the_operator_takes_the_rules_as_the_chart_writes_them(monitored: Rail) -> None:
    """It leaves out an object with a rule that Prometheus would not load, and says so in an event."""
    rail = monitored
    written = rail.get("prometheusrule", NAME)["spec"]["groups"]
    (taken,) = wait_until(lambda: rule_files(rail), 60, "the PrometheusRule is taken up").values()
    assert yaml.safe_load(taken)["groups"] == written
