"""Small cases of what goes wrong with TLS reports elsewhere (cases.yml): records, reports that we make, and read."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml

from mailrail.core.mtasts.answer import FetchFailed, FetchTrouble
from mailrail.core.mtasts.policy import Mode, Policy
from mailrail.core.policy_record import NoRecord
from mailrail.core.reports.addresses import MailDestination, PostDestination, mailto
from mailrail.core.reports.incoming import ReportKind
from mailrail.core.reports.names import Period, ReportName
from mailrail.core.reports.unpack import ReportError
from mailrail.core.smtp.address import parse_address
from mailrail.core.tlspolicy.facts import Purpose, Tlsa
from mailrail.core.tlsrpt.facts import PolicyType
from mailrail.core.tlsrpt.read import read_tls_report
from mailrail.core.tlsrpt.record import TlsRptRecord, read_records
from mailrail.core.tlsrpt.report import tls_report
from mailrail.core.tlsrpt.result import HostPolicies, SeenSession, sessions_of
from mailrail.core.tlsrpt.result_type import TLSA_MISMATCH, ResultType, TlsFault

CASES: Sequence[Mapping[str, Any]] = yaml.safe_load((Path(__file__).parent / "cases.yml").read_text())
_NAME = ReportName(ReportKind.TLS, "mx.test", "example.com", Period.of_day(date(2026, 1, 1)))
_PLAIN = SeenSession("198.51.100.2", "192.0.2.1", "mx.example.com")
_GOOD = replace(_PLAIN, encrypted=True, valid=True, matched=True)
_STS = HostPolicies("example.com", "mx.example.com", sts=Policy(Mode.ENFORCE, 604800, ("mx.example.com",)))
_DANE = HostPolicies("example.com", "mx.example.com", tlsa=Tlsa.USABLE, records=("3 1 1 ab",))
_NOT_FETCHED = HostPolicies("example.com", "mx.example.com")


def _certificate(type: ResultType) -> SeenSession:
    return replace(_GOOD, valid=False, name_fault=TlsFault(type, "the-reason", "in words"))


FAULTS: Mapping[str, tuple[HostPolicies, SeenSession | None]] = {
    "EHLO has no STARTTLS, policy sts": (_STS, _PLAIN),
    "certificate expired, policy sts": (_STS, _certificate(ResultType.CERTIFICATE_EXPIRED)),
    "unknown issuer, policy sts": (_STS, _certificate(ResultType.CERTIFICATE_NOT_TRUSTED)),
    "TLSA lookup bogus": (replace(_DANE, tlsa=Tlsa.FAILED, records=()), None),
    "DANE configured as mandatory, no TLSA": (replace(_DANE, tlsa=Tlsa.NONE, records=(), dane_required=True), None),
    "policy without mode": (
        replace(_NOT_FETCHED, fetch_failed=FetchFailed(FetchTrouble.INVALID, "it has no mode")),
        _GOOD,
    ),
    "policy host certificate expired": (
        replace(_NOT_FETCHED, fetch_failed=FetchFailed(FetchTrouble.WEBPKI, "certificate expired")),
        _GOOD,
    ),
    "3 1 1 of another key": (
        _DANE,
        replace(_GOOD, matched=False, records_fault=TlsFault(ResultType.VALIDATION_FAILURE, TLSA_MISMATCH, "no")),
    ),
}
"""What outbound knows when the fault comes up."""


def of_kind(when: str, given: str) -> list[Any]:
    chosen = [pytest.param(c, id=c["id"]) for c in CASES if c["when"] == when and given in c["given"]]
    assert chosen
    return chosen


def made(applied: HostPolicies, seen: SeenSession | None, purpose: Purpose = Purpose.MAIL) -> Any:
    sessions = [
        (facts, 1) for facts in sessions_of(applied, seen, purpose=purpose) if facts.reported_to == "example.com"
    ]
    octets = tls_report(_NAME, "Example", parse_address("tls@mx.test"), sessions)
    return json.loads(octets) if octets is not None else None


def test_each_case_is_of_a_kind_that_is_tested() -> None:
    """But tls-27: who sends looks at the key record, and whoever makes the report signs nothing."""
    known = [
        ("read the TXT record", "dns"),
        ("write the report", "fault"),
        ("write the report", "rcpt_domain"),
        ("write the report of the next day", "mail"),
        ("read a report that was sent to us", "json"),
        ("read a report that was sent to us", "nested"),
    ]
    assert sum(len(of_kind(*kind)) for kind in known) == len(CASES) - 1


@pytest.mark.parametrize("case", of_kind("read the TXT record", "dns"))
def test_the_record_says_where_reports_go_TRPT_01(case: Mapping[str, Any]) -> None:
    read = read_records([[text.encode() for text in record["strings"]] for record in case["given"]["dns"]])
    if case["expect"]["rua"] is None:
        assert isinstance(read, NoRecord)
        assert read.faulty
        return
    assert isinstance(read, TlsRptRecord)
    assert [
        mailto(one.address) if isinstance(one, MailDestination) else one.url
        for one in read.destinations.found
        if isinstance(one, MailDestination | PostDestination)
    ] == case["expect"]["rua"]


@pytest.mark.parametrize("case", of_kind("write the report", "fault"))
def test_a_fault_has_its_result_type_in_the_report(case: Mapping[str, Any]) -> None:
    expect = case["expect"]
    report = made(*FAULTS[case["given"]["fault"]])
    failing = [policy for policy in report["policies"] if "failure-details" in policy]
    (details,) = [policy["failure-details"] for policy in failing]
    assert [detail["result-type"] for detail in details] == [expect["result-type"]]
    assert details[0]["failed-session-count"] == case["given"]["sessions"]
    if expect.get("failure-reason-code") == "present":
        assert details[0]["failure-reason-code"]
    if "policy-type" in expect:
        assert failing[0]["policy"]["policy-type"] == expect["policy-type"]


@pytest.mark.parametrize("case", of_kind("write the report", "rcpt_domain"))
def test_a_policy_that_is_none_has_its_domain(case: Mapping[str, Any]) -> None:
    report = made(HostPolicies(case["given"]["rcpt_domain"], "mx.example.com"), _GOOD)
    assert [policy["policy"] for policy in report["policies"]] == [case["expect"]["policy"]]


@pytest.mark.parametrize("case", of_kind("write the report of the next day", "mail"))
def test_the_session_that_carried_a_report_makes_none(case: Mapping[str, Any]) -> None:
    assert made(_STS, _GOOD, Purpose.TLS_REPORT) is case["expect"]["report"]


@pytest.mark.parametrize("case", of_kind("read a report that was sent to us", "json"))
def test_what_others_send_is_read_or_refused(case: Mapping[str, Any]) -> None:
    expect, octets = case["expect"], case["given"]["json"].encode()
    if not expect["accepted"]:
        with pytest.raises(ReportError):
            read_tls_report(octets)
        return
    report = read_tls_report(octets)
    assert report.failed == expect["failed"]
    assert report.successful == expect.get("successful", report.successful)
    for detail, expected in zip(report.policies[0].details, expect.get("details", []), strict=True):
        assert (detail.result, detail.sessions) == (expected["result-type"], expected["count"])


@pytest.mark.parametrize("case", of_kind("read a report that was sent to us", "nested"))
@pytest.mark.parametrize("bracket", ["[]", "{}"])
def test_what_is_nested_too_deep_is_refused(case: Mapping[str, Any], bracket: str) -> None:
    depth = case["given"]["nested"]
    begin = "[" if bracket == "[]" else '{"a":'
    with pytest.raises(ReportError, match="deep"):
        read_tls_report(('{"policies":' + begin * depth + "1" + bracket[1] * depth + "}").encode())


def test_types_of_policies_are_told_as_the_RFC_orders_none_of_them() -> None:
    """TRPT-03: the policy of the domain first, then the records of its hosts."""
    report = made(replace(_DANE, sts=_STS.sts), _GOOD)
    assert [policy["policy"]["policy-type"] for policy in report["policies"]] == [PolicyType.STS, PolicyType.TLSA]
