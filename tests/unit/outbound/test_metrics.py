"""Outbound's counters as a scrape sees them."""

from prometheus_client import generate_latest
from prometheus_client.registry import REGISTRY

from mailrail.kit.metrics import Tally
from mailrail_outbound import metrics


def test_a_counter_is_exported_with_its_labels_and_an_unlabelled_one_from_zero_on() -> None:
    labelled = Tally("mailrail_outbound_for_a_test", "Only here", ["kind"])
    plain = Tally("mailrail_outbound_for_another", "Only here")
    try:
        labelled.inc("smtp")
        labelled.inc("smtp", by=2)
        page = generate_latest().decode()
    finally:
        REGISTRY.unregister(labelled)
        REGISTRY.unregister(plain)
    assert 'mailrail_outbound_for_a_test_total{kind="smtp"} 3.0' in page
    assert "mailrail_outbound_for_another_total 0.0" in page
    assert "# TYPE mailrail_outbound_connections_total counter" in page


def test_every_series_bears_the_services_name_and_is_explained() -> None:
    for name, series in vars(metrics).items():
        if isinstance(series, Tally):
            (family,) = series.collect()
            assert family.name.startswith("mailrail_outbound_"), name
            assert len(family.documentation) > 20
