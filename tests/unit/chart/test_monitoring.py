"""Dashboards and alerts as the chart renders them, by `helm template`: two releases live in one Grafana."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from testkit.chart import CHART, Object, needs_helm, rendered
from testkit.observability import alerts, dashboards

pytestmark = needs_helm

ON = {"prometheusRule": {"enabled": True}, "dashboards": {"enabled": True}}

Objects = Mapping[tuple[str, str], Object]


def shown(objects: Objects) -> dict[str, dict[str, Any]]:
    """Dashboards by name, as Grafana's sidecar reads them."""
    maps = [one for (kind, name), one in objects.items() if kind == "ConfigMap" and "-dashboard-" in name]
    texts = {name: text for one in maps for name, text in one["data"].items()}
    return {name.removeprefix("mailrail-").removesuffix(".json"): json.loads(text) for name, text in texts.items()}


def rules(objects: Objects) -> list[dict[str, Any]]:
    """Every rule, alerts and records."""
    (made,) = [one for (kind, _), one in objects.items() if kind == "PrometheusRule"]
    return [rule for group in made["spec"]["groups"] for rule in group["rules"]]


def alerts_of(objects: Objects) -> dict[str, dict[str, Any]]:
    """Alerts by name."""
    return {rule["alert"]: rule for rule in rules(objects) if "alert" in rule}


def test_two_releases_have_no_uid_and_no_title_in_common_and_each_links_to_its_own(tmp_path: Path) -> None:
    releases = (("mailrail", "mail"), ("mailrail", "other"), ("second", "mail"))
    sets = [shown(rendered(ON, tmp_path, release=name, namespace=where)) for name, where in releases]
    for key in ("uid", "title"):
        found = [one[key] for each in sets for one in each.values()]
        assert len(set(found)) == len(found) == 3 * len(dashboards())
        assert all(len(value) <= 40 for value in found if key == "uid"), "Grafana's limit"
    for each, (release, namespace) in zip(sets, releases, strict=True):
        for one in each.values():
            assert one["tags"] == one["links"][0]["tags"] == [f"mailrail {namespace}/{release}"]
            variables = {variable["name"]: variable for variable in one["templating"]["list"]}
            assert variables["job"]["regex"] == f"/^{release}$/"
            assert variables["namespace"]["regex"] == f"/^{namespace}$/"
            assert variables["namespace"]["allValue"] == namespace


def test_a_shared_set_is_the_files_of_the_chart(tmp_path: Path) -> None:
    values = {"dashboards": {"enabled": True, "shared": True}}
    assert shown(rendered(values, tmp_path)) == dashboards()


@pytest.mark.parametrize("shared", [False, True])
def test_dashboard_url_leads_to_a_panel_that_is_there_and_runbooks_are_where_the_values_say(
    shared: bool, tmp_path: Path
) -> None:
    values = {
        "prometheusRule": {
            "enabled": True,
            "grafanaUrl": "https://grafana.example.org/",
            "runbookBaseUrl": "https://wiki.example.org/mail/",
        },
        "dashboards": {"enabled": True, "shared": shared},
    }
    objects = rendered(values, tmp_path)
    panels = {one["uid"]: {panel["id"]: panel for panel in one["panels"]} for one in shown(objects).values()}
    for name, rule in alerts_of(objects).items():
        said = rule["annotations"]
        link = re.fullmatch(r"https://grafana\.example\.org/d/([\w-]+)\?viewPanel=(\d+)&var-.*", said["dashboard_url"])
        assert link is not None
        panel = panels[link[1]][int(link[2])]
        assert panel["title"] == said["panel"]
        assert said["runbook_url"] == f"https://wiki.example.org/mail/{name}.md"
        assert said["runbook_url"] in [one["url"] for one in panel["links"]]


def test_without_a_grafana_an_alert_names_its_panel_in_words(tmp_path: Path) -> None:
    for name, rule in alerts_of(rendered(ON, tmp_path)).items():
        assert "dashboard_url" not in rule["annotations"], name
        assert {"dashboard", "panel"} <= set(rule["annotations"]), name


def test_objectives_of_the_values_stand_in_the_alerts(tmp_path: Path) -> None:
    values = {"prometheusRule": {"enabled": True, "slo": {"accepted": 99.95, "firstAttempt": 97}}}
    found = alerts_of(rendered(values, tmp_path))
    for name, objective in (("MailrailAcceptBudgetBurns", "99.95"), ("MailrailFirstAttemptBudgetBurns", "97")):
        assert set(re.findall(r"\(1 - ([\d.]+) / 100\)", found[name]["expr"])) == {objective}


def test_every_rule_of_a_release_asks_for_that_release_alone(tmp_path: Path) -> None:
    listed = rules(rendered(ON, tmp_path, release="second", namespace="other"))
    assert len(listed) > len(alerts())
    for rule in listed:
        assert 'job="mailrail"' not in rule["expr"]
        assert 'namespace="other",job="second"' in rule["expr"]


def test_what_kubectl_is_told_in_runbooks_is_what_the_chart_makes(tmp_path: Path) -> None:
    objects = rendered({"toolbox": {"enabled": True}}, tmp_path)
    made = {(kind.lower(), name) for kind, name in objects}
    components = {one["metadata"].get("labels", {}).get("app.kubernetes.io/component") for one in objects.values()}
    kinds = {"deploy": "deployment", "cronjob": "cronjob"}
    named = 0
    for path in sorted((CHART.parents[2] / "docs/runbooks").glob("*.md")):
        for command in re.findall(r"(?:^|`)(kubectl [^`\n]*)", path.read_text("utf-8"), re.M):
            for kind, name in re.findall(r"\b(deploy|cronjob)/([\w-]+)", command):
                named += 1
                assert (kinds[kind], name) in made, f"{path.name}: {command}"
            for component in re.findall(r"app\.kubernetes\.io/component=([\w-]+)", command):
                assert component in components, f"{path.name}: {command}"
    assert named > 30


def test_the_probe_has_a_way_to_the_listener_and_to_the_queue_and_none_without_a_service(tmp_path: Path) -> None:
    def made(values: dict[str, Any]) -> tuple[dict[str, str], set[Any], str]:
        objects = rendered(values, tmp_path)
        (container,) = objects["Deployment", "mailrail-operator"]["spec"]["template"]["spec"]["containers"]
        environment = {one["name"]: one.get("value", "") for one in container["env"]}
        out = objects["NetworkPolicy", "mailrail-operator"]["spec"]["egress"]
        return (
            environment,
            {port["port"] for rule in out for port in rule.get("ports", ())},
            json.dumps(objects["NetworkPolicy", "mailrail-queue"]["spec"]["ingress"]),
        )

    environment, ports, queue = made({})
    assert environment["MAILRAIL_OPERATOR_MAIL_PROBE_TARGET"] == "mailrail-mx.mail.svc.cluster.local:25"
    assert environment["MAILRAIL_OPERATOR_QUEUE_TARGET"]
    assert {2525, 7002} <= ports
    assert '"operator"' in queue
    for off in ({"operator": {"mailProbe": False}}, {"smtp": {"mx": {"enabled": False}}}):
        environment, ports, queue = made(off)
        assert "MAILRAIL_OPERATOR_MAIL_PROBE_TARGET" not in environment
        assert 2525 not in ports
        assert environment["MAILRAIL_OPERATOR_QUEUE_TARGET"], "it is asked about transports, too"
        assert '"operator"' in queue
