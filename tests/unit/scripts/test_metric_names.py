"""Names of series and labels as Prometheus's naming rules have them (prometheus.io/docs/practices/naming)."""

import re

import pytest
from generate_metrics import Series, documented

SERIES = list(documented().values())
BASE_UNITS = ("seconds", "bytes")
OTHER_UNITS = r"_(octets|milliseconds|ms|minutes|hours|days|kib|mib|kilobytes|megabytes|percent)(_|$)"
VAGUE = {"what", "way", "type_", "name", "value"}


@pytest.mark.parametrize("series", SERIES, ids=lambda series: series.name)
def test_a_series_has_a_base_unit_last_and_only_counters_end_in_total(series: Series) -> None:
    assert re.fullmatch(r"mailrail(_[a-z0-9]+)+", series.name)
    assert series.name.endswith("_total") == (series.kind == "counter")
    assert series.name.endswith("_info") == (series.kind == "info")
    assert not re.search(OTHER_UNITS, series.name), "seconds and bytes are the units"
    base = series.name.removesuffix("_total")
    for unit in BASE_UNITS:
        assert f"_{unit}_" not in f"{base}_" or base.endswith(unit), "the unit stands last, before _total"
    assert not base.endswith(("_count", "_sum", "_bucket")), "these belong to histograms"


@pytest.mark.parametrize("series", SERIES, ids=lambda series: series.name)
def test_a_label_says_what_its_values_are(series: Series) -> None:
    for label in series.labels:
        assert re.fullmatch(r"[a-z][a-z_]*", label)
        assert label not in VAGUE
        assert label not in {"le", "job", "instance", "namespace", "pod", "service"} or series.name.startswith(
            "mailrail_local_"
        ), "set by the scrape"


def test_label_values_in_texts_are_single_words_with_underscores() -> None:
    for series in SERIES:
        for word in re.findall(r"\b[a-z]+-[a-z0-9]+\b(?=[,)(]| \()", series.meaning):
            assert word in {"re-encoded"}, f"{series.name}: {word}"
