"""Runbooks: what they name is there, and nothing that they advise can destroy the last copy of mail."""

import re
from pathlib import Path

import pytest
import yaml
from generate_metrics import documented

from mailrail.core.resources import API_VERSION

from testkit.observability import alerts, dashboards

RUNBOOKS = Path(__file__).resolve().parents[3] / "docs/runbooks"
PAGES = sorted(RUNBOOKS.glob("*.md"))
TITLES = {panel["title"] for one in dashboards().values() for panel in one["panels"]}
WORDS = {"history", "ready", "limited", "messages", "senders"}
"""Words in italics that are not titles: a term, states and legends."""


def page(path: Path) -> str:
    return path.name


@pytest.mark.parametrize("path", PAGES, ids=page)
def test_a_runbook_never_advises_to_delete_or_to_kill(path: Path) -> None:
    text = path.read_text("utf-8")
    commands = re.findall(r"(?:^|`)((?:kubectl|mailrail|helm) [^`\n]*)", text, re.M)
    for command in commands:
        assert not re.search(r"\b(delete|drain|evict|uninstall|--force|kill)\b", command), command


@pytest.mark.parametrize("path", PAGES, ids=page)
def test_a_panel_that_a_runbook_names_is_there(path: Path) -> None:
    named = set(re.findall(r"(?<!\*)\*([^*\n]+)\*(?!\*)", path.read_text("utf-8").replace("\n", " ")))
    assert named - TITLES - WORDS == set()


@pytest.mark.parametrize("path", PAGES, ids=page)
def test_a_series_that_a_runbook_names_is_exported_with_these_labels(path: Path) -> None:
    known = documented()
    for name, labels in re.findall(r"`(mailrail_\w+)(?:\{([^}]*)\})?`", path.read_text("utf-8")):
        assert name in known, name
        assert set(re.findall(r"(\w+)=", labels)) <= set(known[name].labels), name


def test_the_list_of_runbooks_says_what_the_pages_say() -> None:
    listed = re.findall(
        r"^\| \[(\w+)\]\((\w+)\.md\) \| (\w+) \| (.+) \|$", (RUNBOOKS / "README.md").read_text("utf-8"), re.M
    )
    assert [name for name, *_ in listed] == [alert.name for alert in alerts()]
    for name, file, severity, text in listed:
        assert name == file
        lead = (RUNBOOKS / f"{name}.md").read_text("utf-8").splitlines()[2]
        assert lead == f"{text} Severity: {severity}."


def test_a_link_of_a_runbook_leads_to_a_page() -> None:
    for path in PAGES:
        for target in re.findall(r"\]\(([^)#:]+\.md)\)", path.read_text("utf-8")):
            assert (path.parent / target).is_file(), f"{path.name}: {target}"
        for other in re.findall(r"\bMailrail[A-Z]\w+", path.read_text("utf-8")):
            assert (RUNBOOKS / f"{other}.md").is_file(), f"{path.name}: {other}"


def blocks(language: str) -> list[str]:
    """The code blocks of the how-to in one language."""
    text = (RUNBOOKS.parent / "how-to/monitoring.md").read_text("utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.M | re.S)


def test_inhibition_names_alerts_that_are_there_and_never_reaches_another_installation() -> None:
    (advice,) = [yaml.safe_load(block) for block in blocks("yaml") if "inhibit_rules" in block]
    known = {alert.name: alert for alert in alerts()}
    for rule in advice["inhibit_rules"]:
        assert {"namespace", "job"} <= set(rule["equal"])
        ((source,), (target,)) = (
            [re.fullmatch(r'alertname=(~?)"([^"]+)"', text) for text in rule[key]]
            for key in ("source_matchers", "target_matchers")
        )
        assert source is not None
        assert target is not None
        assert source[2] in known
        inhibited = {name for name in known if re.fullmatch(target[2], name)}
        assert source[2] not in inhibited
        for alternative in re.split(r"\|(?![^(]*\))", target[2]):
            assert any(re.fullmatch(alternative, name) for name in known), alternative


def test_the_health_check_for_Argo_CD_is_short_lua_of_a_table_that_is_returned() -> None:
    (text,) = [yaml.safe_load(block) for block in blocks("yaml") if "resource.customizations" in block]
    (group,) = yaml.safe_load(text["data"]["resource.customizations"]).items()
    assert group[0] == f"{API_VERSION.partition('/')[0]}/*"
    script = group[1]["health.lua"]
    assert script.strip().splitlines()[-1] == "return hs"
    assert {"Healthy", "Degraded", "Progressing"} == set(re.findall(r'status = "(\w+)"', script))
