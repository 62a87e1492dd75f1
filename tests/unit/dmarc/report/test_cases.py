"""Small cases of what goes wrong with aggregate reports elsewhere (cases.yml)."""

from collections.abc import Mapping, Sequence
from datetime import date, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
import yaml

from mailrail.core.dmarc.report.counts import MessageCounts
from mailrail.core.dmarc.report.facts import ReportedDisposition, ReportedPolicy, reported_message
from mailrail.core.dmarc.report.read import read_aggregate
from mailrail.core.reports.incoming import plain_report
from mailrail.core.reports.unpack import ReportError

CASES: Sequence[Mapping[str, Any]] = yaml.safe_load((Path(__file__).parent / "cases.yml").read_text("utf-8"))
SENDING = "send a report"
"""What outbound and the queue decide (DAGG-17)."""


def of_kind(when: str, given: str) -> list[Any]:
    chosen = [pytest.param(c, id=c["id"]) for c in CASES if c["when"] == when and given in c["given"]]
    assert chosen
    return chosen


def test_each_case_is_of_a_kind_that_is_tested() -> None:
    """But dmarc-rep-22, which is about sending, and dmarc-rep-44, a gigabyte of gzip: tests of `reports` have it. Where
    reports go is in test_recipients.py."""
    known = [
        ("find the addresses for an aggregate report", "dns"),
        ("run both for ten days", "ours"),
        ("read a report that was sent to us", "xml"),
    ]
    others = [case["id"] for case in CASES if case["when"] == SENDING or "make" in case["given"]]
    assert others == ["dmarc-rep-22", "dmarc-rep-44"]
    assert sum(len(of_kind(*kind)) for kind in known) == len(CASES) - 2


@pytest.mark.parametrize("case", of_kind("read a report that was sent to us", "xml"))
def test_what_others_send_is_read_or_refused_DAGG_21(case: Mapping[str, Any]) -> None:
    expect, octets = case["expect"], case["given"]["xml"].encode()
    if "stored" in expect:
        other = octets.replace(b"<org_name>Rep<", f"<org_name>{case['given']['second_org']}<".encode())
        assert len({read_aggregate(each).identity for each in (octets, other, octets)}) == expect["stored"]
        return
    if not expect["accepted"]:
        with pytest.raises(ReportError):
            read_aggregate(plain_report(octets).octets)
        return
    report = read_aggregate(plain_report(octets).octets)
    seen: dict[str, object] = {
        "accepted": True,
        "records": len(report.records),
        "rejected_rows": report.rejected,
        "begin": report.begin,
        "end": report.end,
        "discovery_method": report.policy.discovery_method,
    }
    if report.records:
        seen |= {"disposition": report.records[0].disposition, "spf": report.records[0].spf_results[0].result}
    assert {key: seen[key] for key in expect if key != "also"} == {key: expect[key] for key in expect if key != "also"}


@pytest.mark.parametrize("case", of_kind("run both for ten days", "ours"))
def test_two_systems_that_report_to_each_other_fall_silent_DAGG_18(case: Mapping[str, Any]) -> None:
    """Each day the one reports what it got on the day before, and its report is mail, too."""
    ours, theirs, expect = case["given"]["ours"]["domain"], case["given"]["theirs"]["domain"], case["expect"]
    counts = {ours: MessageCounts(), theirs: MessageCounts()}
    sent: list[tuple[int, str]] = []
    first = date(2026, 1, 1)

    def arrives(day: int, author: str, at: str, *, report: bool) -> None:
        message = reported_message(
            ip_address("192.0.2.1"),
            disposition=ReportedDisposition.NONE,
            asked=ReportedDisposition.NONE,
            dkim_aligned=True,
            spf_aligned=True,
            header_from=author,
            envelope_from=author,
        )
        policy = ReportedPolicy(author, ReportedDisposition.NONE)
        counts[at].add(first + timedelta(day), policy, message, seen=day, optional=report)

    for mail in case["given"]["mail"]:
        arrives(mail["day"], mail["from"].partition("@")[2], mail["to"].partition("@")[2], report=False)
    for day in range(1, 11):
        for system, other in ((ours, theirs), (theirs, ours)):
            for domain in counts[system].domains(first + timedelta(day)):
                assert domain == other
                sent.append((day, system))
                arrives(day + 1, system, other, report=True)
    assert [system for _, system in sent].count(theirs) == expect["reports_from_b_to_a"]
    assert [system for _, system in sent].count(ours) <= expect["reports_from_a_to_b_at_most"]
    assert all(day <= expect["none_after_day"] for day, _ in sent)
