"""The README names every reason of DNSConfigured and every series, so that none is added without a word."""

from pathlib import Path

from prometheus_client import REGISTRY

from mailrail.core.dnscheck.answers import DnsReason
from mailrail_operator import metrics
from mailrail_operator.transport_health import HealthReason

README = (Path(__file__).resolve().parents[3] / "operator/README.md").read_text(encoding="utf-8")


def test_the_readme_explains_every_reason_of_dns_configured_and_of_healthy() -> None:
    for reason in (*DnsReason, *HealthReason):
        assert f"| `{reason.value}` | " in README


def test_every_series_of_the_operator_is_told() -> None:
    assert metrics.LEADER is not None
    families = {family.name for family in REGISTRY.collect() if family.name.startswith("mailrail_operator_")}
    assert len(families) >= 14
    for name in families:
        assert name in README or f"`_{name.removeprefix('mailrail_operator_')}" in README, name
