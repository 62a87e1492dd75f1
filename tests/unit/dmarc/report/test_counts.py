"""Messages, counted for reports: equal ones together, within bounds."""

from dataclasses import replace
from datetime import date
from ipaddress import ip_address

import pytest

from mailrail.core.dmarc.report.counts import MessageCounts
from mailrail.core.dmarc.report.facts import ReportedDisposition, ReportedMessage, ReportedPolicy, reported_message

DAY, NEXT = date(2026, 1, 1), date(2026, 1, 2)
NONE, REJECT = ReportedDisposition.NONE, ReportedDisposition.REJECT
POLICY = ReportedPolicy("example.com", NONE)


def message(address: str = "192.0.2.1", header_from: str = "example.com") -> ReportedMessage:
    return reported_message(
        ip_address(address),
        disposition=NONE,
        asked=NONE,
        dkim_aligned=True,
        spf_aligned=False,
        header_from=header_from,
        envelope_from="example.com",
    )


def test_equal_messages_are_one_record_with_their_count_DAGG_03() -> None:
    counts = MessageCounts()
    for address in ("192.0.2.2", "192.0.2.1", "192.0.2.2", "2001:db8::1"):
        counts.add(DAY, POLICY, message(address), seen=1)
    counts.add(DAY, POLICY, message("192.0.2.1"), seen=1, count=5)
    assert [(told.source_ip, count) for told, count in counts.rows(DAY, "example.com")] == [
        ("192.0.2.1", 6),
        ("192.0.2.2", 2),
        ("2001:db8::1", 1),
    ]
    assert counts.messages(DAY, "example.com") == (9, 0)


def test_subdomains_without_a_record_are_rows_in_the_report_of_their_parent_DAGG_01a() -> None:
    counts = MessageCounts()
    for name in ("example.com", "a.example.com", "b.example.com"):
        counts.add(DAY, POLICY, message(header_from=name), seen=1)
    counts.add(DAY, replace(POLICY, domain="own.example.com"), message(header_from="own.example.com"), seen=1)
    assert counts.domains(DAY) == ["example.com", "own.example.com"]
    assert [told.header_from for told, _ in counts.rows(DAY, "example.com")] == [
        "a.example.com",
        "b.example.com",
        "example.com",
    ]


def test_the_policy_that_was_seen_last_is_told_DAGG_01a() -> None:
    counts = MessageCounts()
    for seen, p in ((5, NONE), (9, REJECT), (7, NONE)):
        counts.add(DAY, replace(POLICY, p=p), message(), seen=seen)
    assert counts.policy(DAY, "example.com").p is REJECT


def test_days_are_apart() -> None:
    counts = MessageCounts()
    counts.add(DAY, POLICY, message(), seen=1)
    assert counts.domains(NEXT) == []
    with pytest.raises(KeyError):
        counts.policy(NEXT, "example.com")


def test_messages_that_bring_reports_are_told_and_make_no_report_DAGG_18() -> None:
    counts = MessageCounts()
    counts.add(DAY, POLICY, message(), seen=1, optional=True)
    assert counts.domains(DAY) == []
    counts.add(DAY, POLICY, message(), seen=1)
    assert counts.domains(DAY) == ["example.com"]
    assert [count for _, count in counts.rows(DAY, "example.com")] == [2]


def test_the_order_of_records_follows_from_them_alone() -> None:
    told = [message(f"192.0.2.{n % 5}", f"{n % 7}.example.com") for n in range(35)]
    first, second = MessageCounts(), MessageCounts()
    for each in told:
        first.add(DAY, POLICY, each, seen=1)
    for each in reversed(told):
        second.add(DAY, POLICY, each, seen=1)
    assert list(first.rows(DAY, "example.com")) == list(second.rows(DAY, "example.com"))
    assert len(list(first.rows(DAY, "example.com"))) == 35


def test_what_finds_no_room_is_counted_and_one_zone_has_not_all_of_it() -> None:
    counts = MessageCounts(octets=100_000)
    for n in range(1000):
        policy = replace(POLICY, domain=f"{n % 3}.flood.example")
        counts.add(DAY, policy, message(f"10.0.{n // 250}.{n % 250}", f"{n}.flood.example"), seen=1)
    counts.add(DAY, POLICY, message(), seen=1)
    assert counts.octets <= 100_000
    assert counts.messages(DAY, "example.com") == (1, 0)
    stored = [counts.messages(DAY, domain) for domain in counts.domains(DAY)]
    assert sum(told + dropped for told, dropped in stored) == 1001
    assert counts.dropped == sum(dropped for _, dropped in stored) > 600


def test_what_is_counted_already_is_counted_on_without_room() -> None:
    counts = MessageCounts(octets=5000)
    for n in range(100):
        counts.add(DAY, POLICY, message(f"10.0.0.{n}"), seen=1)
    counts.add(DAY, POLICY, message("10.0.0.0"), seen=1)
    assert dict(counts.rows(DAY, "example.com"))[message("10.0.0.0")] == 2
    assert counts.dropped
