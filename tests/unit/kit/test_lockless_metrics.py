"""Series that are counted without locks show what prometheus_client's own would."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.registry import REGISTRY, Collector
from prometheus_client.samples import Sample

from mailrail.kit.metrics import Level, Spread, Tally

BOUNDS = (0.1, 0.5, 1.0, 10.0)


def samples(collector: Collector) -> list[Sample]:
    return [sample for family in collector.collect() for sample in family.samples]


@given(st.lists(st.sampled_from(BOUNDS) | st.floats(0, 20), max_size=30))
def test_a_spread_shows_what_a_histogram_does(values: Sequence[float]) -> None:
    registry = CollectorRegistry()
    histogram = Histogram("mailrail_for_a_test", "Only here", buckets=BOUNDS, registry=registry)
    spread = Spread("mailrail_for_a_test", "Only here", buckets=BOUNDS)
    REGISTRY.unregister(spread)
    for value in values:
        histogram.observe(value)
        spread.observe(value)
    assert samples(spread) == [s for s in samples(histogram) if not s.name.endswith("_created")]


def test_a_tally_counts_by_label_and_shows_those_that_are_known_from_the_start() -> None:
    tally = Tally("mailrail_for_another", "Only here", ["kind"], known=[("a",)])
    level = Level("mailrail_for_a_third", "Only here", ["kind"])
    REGISTRY.unregister(tally)
    REGISTRY.unregister(level)
    tally.of("b").number += 2
    tally.inc("b")
    level.inc("a", by=-1)
    assert [(sample.labels["kind"], sample.value) for sample in samples(tally)] == [("a", 0), ("b", 3)]
    assert [(sample.labels["kind"], sample.value) for sample in samples(level)] == [("a", -1)]
