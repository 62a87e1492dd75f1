"""What tests/integration/observability cannot show without a Kubernetes API: the operator's panels and alerts against a
real Prometheus that scraped a real operator, and the chart's ConfigMaps and PrometheusRule as the API server gets them.
"""

import json
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster.conftest import ROOT, Kubectl
from cluster.stage import basics, manifest, relay, route, staged

from testkit.conditions import wait_until
from testkit.observability import ARRIVAL, OPERATOR, alerts, dashboards, has_data, panel_queries
from testkit.peers import program
from testkit.peers.prometheus import Prometheus
from testkit.ports import free_port

CHART = ROOT / "deploy/helm/mailrail"


@pytest.mark.peer("prometheus")
def test_every_query_about_the_operator_returns_data(kubectl: Kubectl, database: str, tmp_path: Path) -> None:
    listen = f"127.0.0.1:{free_port()}"
    with staged(kubectl, database, tmp_path) as stage:
        stage.start_consumers()
        stage.start_operator(metrics_listen=listen).wait_for_line("leading")
        with Prometheus({"mailrail": listen}, labels={"mailrail": {"service": "operator"}}) as prometheus:
            prometheus.wait_until_scraped()
            began = time.time()
            kubectl.apply(basics() + relay("relay", "relay.example.org") + route("all", "relay"))
            stage.wait_ready("mroute/all")
            login = {"host": "relay.example.org", "auth": {"secretRef": {"name": "not-there"}}}
            kubectl.apply(manifest("MailTransport", "locked", {"submission": login}))
            for what in (
                'mailrail_operator_publishes_total{result="stored"} > 0',
                'mailrail_operator_status_writes_total{result="written"} > 0',
                'mailrail_operator_objects{kind="MailTransport",ready="False"} == 1',
                'mailrail_operator_consumers{state="current"} == 3',
            ):
                wait_until(lambda what=what: prometheus.query(what), 60, lambda what=what: f"{what}\n{stage.tails()}")  # type: ignore[misc]
            asked = [one for one in panel_queries() if OPERATOR.search(one.expr) and not ARRIVAL.search(one.expr)]
            assert asked

            def without_data() -> list[str]:
                ended = time.time()
                empty = [str(query) for query in asked if not has_data(prometheus, query.expr, began, ended)]
                return empty + [
                    f"{alert.name}: {selector}"
                    for alert in alerts()
                    for selector in alert.selectors
                    if OPERATOR.search(selector) and not has_data(prometheus, selector, began, ended)
                ]

            # A rate is there once its series was scraped twice.
            wait_until(lambda: not without_data(), 60, lambda: "\n".join(["no data came of:", *without_data()]))
            by_name = {alert.name: alert for alert in alerts()}
            assert prometheus.query(by_name["MailrailObjectsNotReady"].expr)
            assert not prometheus.query(by_name["MailrailOperatorNoLeader"].expr)


def rendered(*values: str, status: int = 0) -> list[dict[str, Any]]:
    """The chart's objects for dashboards and alerts in a release `rel` in the namespace `ns`."""
    helm = shutil.which("helm")
    if helm is None:
        pytest.skip("helm is not installed")
    command = [helm, "template", "rel", str(CHART), "--namespace", "ns", "--kube-version", "1.34.0"]
    for file in ("dashboards", "prometheusrule"):
        command += ["--show-only", f"templates/{file}.yaml"]
    done = subprocess.run(
        [*command, *(word for value in values for word in ("--set", value))], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == status, done.stderr
    if status:
        return [{"stderr": done.stderr}]
    return [document for document in yaml.safe_load_all(done.stdout) if document]


BOTH = ("dashboards.enabled=true", "prometheusRule.enabled=true")


def test_dashboards_are_config_maps_that_grafanas_sidecar_finds(cluster: Kubectl) -> None:
    found = [one for one in rendered(*BOTH, "dashboards.shared=true") if one["kind"] == "ConfigMap"]
    assert {name for one in found for name in one["data"]} == {f"mailrail-{name}.json" for name in dashboards()}
    for one in found:
        assert one["metadata"]["labels"]["grafana_dashboard"] == "1"
        assert one["metadata"]["annotations"]["grafana_folder"] == "Mailrail"
        ((name, text),) = one["data"].items()
        assert json.loads(text) == dashboards()[name.removeprefix("mailrail-").removesuffix(".json")]
        cluster("create", "--dry-run=server", "--namespace=default", "-f", "-", stdin=_in_default(one))


def _in_default(document: dict[str, Any]) -> str:
    return yaml.safe_dump(document | {"metadata": document["metadata"] | {"namespace": "default"}})


def test_label_annotations_folder_and_namespace_of_dashboards_can_be_chosen() -> None:
    chosen = ("label=dash", "labelValue=yes", "folder=Mail", "folderAnnotation=k8s-sidecar-target-directory")
    more = ("namespace=monitoring", "labels.team=mail", "annotations.note=x")
    found = rendered(
        "dashboards.enabled=true", "prometheusRule.enabled=true", *(f"dashboards.{one}" for one in (*chosen, *more))
    )
    for one in (one for one in found if one["kind"] == "ConfigMap"):
        metadata = one["metadata"]
        assert metadata["namespace"] == "monitoring"
        assert metadata["labels"] | {"dash": "yes", "team": "mail"} == metadata["labels"]
        assert metadata["annotations"] == {"k8s-sidecar-target-directory": "Mail", "note": "x"}


def rules_of(*values: str) -> dict[str, dict[str, Any]]:
    (found,) = (one for one in rendered(*BOTH, *values) if one["kind"] == "PrometheusRule")
    return {rule["alert"]: rule for group in found["spec"]["groups"] for rule in group["rules"] if "alert" in rule}


@pytest.mark.peer("prometheus")
def test_alerts_are_about_this_release_alone_and_stay_valid(tmp_path: Path) -> None:
    (found,) = (one for one in rendered(*BOTH) if one["kind"] == "PrometheusRule")
    rules = rules_of()
    assert set(rules) == {alert.name for alert in alerts()}
    for rule in rules.values():
        assert 'job="mailrail"' not in rule["expr"]
        assert 'namespace="ns",job="rel"' in rule["expr"]
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump(found["spec"]))
    done = subprocess.run(
        [program("promtool"), "check", "rules", str(file)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    whole = sum(len(group["rules"]) for group in found["spec"]["groups"])
    assert f"{whole} rules found" in done.stdout


def test_each_alert_can_be_switched_off_or_changed_and_a_name_that_none_has_is_refused() -> None:
    changed = rules_of(
        "prometheusRule.alerts.MailrailBacklogOld.enabled=false",
        "prometheusRule.alerts.MailrailCommitSlow.for=1h",
        "prometheusRule.alerts.MailrailCommitSlow.severity=info",
        "prometheusRule.additionalLabels.team=mail",
        "prometheusRule.runbookBaseUrl=https://wiki.example/runbooks/",
        "prometheusRule.selector=job=\"other\"",
    )  # fmt: skip
    assert "MailrailBacklogOld" not in changed
    assert len(changed) == len(alerts()) - 1
    slow = changed["MailrailCommitSlow"]
    assert (slow["for"], slow["labels"]) == ("1h", {"severity": "info", "team": "mail"})
    assert slow["annotations"]["runbook_url"] == "https://wiki.example/runbooks/MailrailCommitSlow.md"
    assert '{job="other"}' in slow["expr"]
    (refused,) = rendered(*BOTH, "prometheusRule.alerts.MailrailBacklogOdl.enabled=false", status=1)
    assert "there is no alert MailrailBacklogOdl" in refused["stderr"]
