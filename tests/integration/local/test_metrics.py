"""What a running installation exports is what the reference page says, names and labels alike (design 12)."""

import importlib.util
import re
import smtplib
import sys
import urllib.request
from pathlib import Path
from types import ModuleType

from prometheus_client.parser import text_string_to_metric_families

from testkit.conditions import wait_until
from testkit.local import Installation, installation

GENERATOR = Path(__file__).resolve().parents[3] / "scripts" / "generate_metrics.py"
ADDED = {"service", "le"}
"""By the merged page, and by histograms."""
NOT_LOCAL = ("mailrail_operator_", "mailrail_postgres_")


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_metrics", GENERATOR)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def exported(local: Installation) -> dict[str, set[str]]:
    """Family → label names of its samples, of everything that is ours."""
    with urllib.request.urlopen(f"http://127.0.0.1:{local.port(1081)}/metrics", timeout=10) as answer:
        page = answer.read().decode()
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(page):
        if not family.name.startswith("mailrail_"):
            continue
        suffix = {"counter": "_total", "info": "_info"}.get(family.type, "")
        labels = found.setdefault(family.name.removesuffix(suffix) + suffix, set())
        for sample in family.samples:
            if not sample.name.endswith("_created"):
                labels |= set(sample.labels)
    return found


def label_values(local: Installation) -> set[str]:
    """Every label value of our series."""
    with urllib.request.urlopen(f"http://127.0.0.1:{local.port(1081)}/metrics", timeout=10) as answer:
        page = answer.read().decode()
    families = [f for f in text_string_to_metric_families(page) if f.name.startswith("mailrail_")]
    return {value for family in families for sample in family.samples for value in sample.labels.values()}


def send(local: Installation) -> None:
    with smtplib.SMTP("127.0.0.1", local.port(1025), timeout=30) as client:
        client.sendmail("a@elsewhere.example", ["alice@example.org"], b"Subject: x\r\n\r\nx\r\n")
        client.sendmail("a@elsewhere.example", ["b@elsewhere.example"], b"Subject: x\r\n\r\nx\r\n")


def test_a_run_exports_the_series_of_the_reference_page_and_no_others() -> None:
    documented = {name: series for name, series in generator().documented().items() if not name.startswith(NOT_LOCAL)}
    with installation() as local:
        send(local)
        wait_until(
            lambda: (
                "mailrail_queue_attempts_total" in exported(local) and exported(local)["mailrail_queue_attempts_total"]
            ),
            60,
            "attempts are counted",
        )
        found = exported(local)
        values = label_values(local)
    assert set(found) == set(documented)
    for name, labels in found.items():
        series = documented[name]
        wanted = {"version", "service"} if series.kind == "info" else set(series.labels)
        assert labels <= wanted | ADDED, name
        assert not labels or wanted <= labels, name
    assert {value for value in values if not re.fullmatch(r"[\w.+/]+", value)} == set(), "one word, no blanks"
