"""One page of metrics for all processes."""

import socket
import urllib.error
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from mailrail.local.merged_metrics import MergedMetrics, merge

from testkit.ports import free_port

INGRESS = """\
# HELP mailrail_accepted_total Messages accepted
# TYPE mailrail_accepted_total counter
mailrail_accepted_total{listener="mx"} 3.0
# HELP process_cpu_seconds_total CPU
# TYPE process_cpu_seconds_total counter
process_cpu_seconds_total 1.5
# HELP mailrail_size_bytes Sizes
# TYPE mailrail_size_bytes histogram
mailrail_size_bytes_bucket{le="10.0"} 1.0
mailrail_size_bytes_bucket{le="+Inf"} 2.0
mailrail_size_bytes_count 2.0
mailrail_size_bytes_sum 99.0
"""
QUEUE = """\
# HELP process_cpu_seconds_total CPU
# TYPE process_cpu_seconds_total counter
process_cpu_seconds_total 7.5
# HELP mailrail_build_info Version
# TYPE mailrail_build_info gauge
mailrail_build_info{service="queue",version="0.1.0"} 1.0
# HELP mailrail_odd Label values that look like labels
# TYPE mailrail_odd gauge
mailrail_odd{text="a,b{c} \\"service=x\\""} 4.0
"""


def test_series_of_all_processes_stand_below_one_head_each_with_its_service() -> None:
    page = merge([("ingress", INGRESS), ("queue", QUEUE)])
    assert page.count("# TYPE process_cpu_seconds_total") == 1
    families = {f.name: f for f in text_string_to_metric_families(page)}
    found = {s.labels["service"]: s.value for s in families["process_cpu_seconds"].samples}
    assert found == {"ingress": 1.5, "queue": 7.5}
    assert families["mailrail_accepted"].samples[0].labels == {"service": "ingress", "listener": "mx"}


def test_a_histogram_stays_whole() -> None:
    families = {f.name: f for f in text_string_to_metric_families(merge([("ingress", INGRESS)]))}
    histogram = families["mailrail_size_bytes"]
    assert histogram.type == "histogram"
    assert [s.name.removeprefix("mailrail_size_bytes_") for s in histogram.samples] == [
        "bucket",
        "bucket",
        "count",
        "sum",
    ]
    assert {s.labels["service"] for s in histogram.samples} == {"ingress"}


def test_a_sample_that_names_its_service_keeps_it() -> None:
    page = merge([("queue", QUEUE)])
    assert 'mailrail_build_info{service="queue",version="0.1.0"} 1.0' in page
    odd = next(f for f in text_string_to_metric_families(page) if f.name == "mailrail_odd").samples[0]
    assert odd.labels == {"service": "queue", "text": 'a,b{c} "service=x"'}


def test_garbage_between_samples_is_left_out() -> None:
    assert merge([("queue", "!!! not a metric\n\nok 1\n{} 2\n")]) == 'ok{service="queue"} 1\n'


def test_the_page_is_served_over_ipv6_too() -> None:
    with socket.socket(socket.AF_INET6) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError:
            pytest.skip("this system has no ::1")
        port = probe.getsockname()[1]
    merged = MergedMetrics(("::1", port), {}, lambda: "mine 1\n")
    merged.start()
    try:
        with urllib.request.urlopen(f"http://[::1]:{port}/metrics", timeout=10) as answer:
            assert 'mine{service="local"} 1' in answer.read().decode()
    finally:
        merged.stop()


def test_a_child_that_does_not_answer_is_down_and_the_page_still_comes() -> None:
    silent = f"127.0.0.1:{free_port()}"
    port = free_port()
    merged = MergedMetrics(("127.0.0.1", port), {"queue": silent}, lambda: "mine 1\n")
    merged.start()
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            page = answer.read().decode()
        assert 'mailrail_local_up{service="queue"} 0' in page
        assert 'mine{service="local"} 1' in page
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/etc/passwd", timeout=10)
        with refused.value:
            assert refused.value.code == 404
    finally:
        merged.stop()
