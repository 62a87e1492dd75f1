"""What Grafana and people need of the dashboards, without either; a real run answers their queries elsewhere."""

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from testkit.observability import alerts, dashboards, records

METRICS = Path(__file__).resolve().parents[3] / "docs/reference/metrics.md"
NAMES = ("overview", "slo", "sites", "configuration", "ingress", "queue", "outbound", "dmarc", "config", "operator")
NOT_SHOWN = {"mailrail_outbound_tlsrpt_rows", "mailrail_outbound_tlsrpt_rows_allowed"}
"""Room of an outbox that nobody reads yet: it fills, and nobody could do anything about it."""
_SERIES = re.compile(r"\b((?:mailrail|process)_[a-z_]+|mailrail:[a-z0-9_:]+|ALERTS)(\{[^}]*\})?")


def panels(dashboard: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Panels that ask something."""
    yield from (panel for panel in dashboard["panels"] if panel["type"] != "row")


def test_there_is_an_overview_queue_and_sites_configuration_and_one_of_each_service() -> None:
    found = dashboards()
    assert set(found) == set(NAMES)
    assert {one["uid"] for one in found.values()} == {f"mailrail-{name}" for name in NAMES}  # people link to these
    assert len({one["title"] for one in found.values()}) == len(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_dashboard_has_its_variables_and_links_to_the_others(name: str) -> None:
    dashboard = dashboards()[name]
    assert [variable["name"] for variable in dashboard["templating"]["list"]] == ["datasource", "namespace", "job"]
    (link,) = dashboard["links"]
    assert link["type"] == "dashboards"
    assert set(link["tags"]) <= set(dashboard["tags"])
    assert link["includeVars"]
    assert link["keepTime"]
    assert dashboard["schemaVersion"] >= 39
    assert dashboard["description"]
    assert "id" not in dashboard, "Grafana gives it, and would refuse one that is taken"


@pytest.mark.parametrize("name", NAMES)
def test_a_panel_says_what_it_means_in_which_unit_and_asks_the_chosen_source(name: str) -> None:
    for panel in panels(dashboards()[name]):
        assert len(panel["description"]) > 10, panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["fieldConfig"]["defaults"]["thresholds"]["steps"][0]["value"] is None, panel["title"]
        assert panel["targets"], panel["title"]
        for target in (panel, *panel["targets"]):
            assert target["datasource"] == {"type": "prometheus", "uid": "${datasource}"}, panel["title"]


@pytest.mark.parametrize("name", NAMES)
def test_every_selector_keeps_to_the_chosen_installation(name: str) -> None:
    for panel in panels(dashboards()[name]):
        for target in panel["targets"]:
            for series, matchers in _SERIES.findall(target["expr"]):
                assert 'namespace=~"$namespace",job=~"$job"' in matchers, f"{panel['title']}: {series}"


@pytest.mark.parametrize("name", NAMES)
def test_panels_neither_overlap_nor_stick_out(name: str) -> None:
    whole = dashboards()[name]["panels"]
    assert len({panel["id"] for panel in whole}) == len(whole), "two titles have one checksum: change one"
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in whole)
    for one, other in itertools.combinations(whole, 2):
        a, b = one["gridPos"], other["gridPos"]
        apart = (
            a["x"] + a["w"] <= b["x"]
            or b["x"] + b["w"] <= a["x"]
            or a["y"] + a["h"] <= b["y"]
            or b["y"] + b["h"] <= a["y"]
        )
        assert apart, f"{one['title']} and {other['title']}"


def test_every_documented_series_is_on_a_dashboard_and_no_other_is_asked_for() -> None:
    kinds = dict(re.findall(r"^\| `(mailrail_\w+)` \| (\w+) \|", METRICS.read_text("utf-8"), re.M))
    documented = {name for name in kinds if not name.startswith("mailrail_local_")}  # local mode has no dashboard
    asked: set[str] = set()
    texts = [target["expr"] for one in dashboards().values() for panel in panels(one) for target in panel["targets"]]
    for text in (*texts, *(alert.expr for alert in alerts()), *records().values()):
        for series, _ in _SERIES.findall(text):
            parent = re.sub(r"_(bucket|sum|count)$", "", series)
            asked.add(parent if kinds.get(parent) == "histogram" else series)
    ours = {name for name in asked if name.startswith("mailrail_")}
    assert ours - documented == set(), "not exported by anybody"
    assert documented - ours == NOT_SHOWN, "exported, and on no dashboard"
