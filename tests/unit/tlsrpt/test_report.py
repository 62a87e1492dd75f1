"""The TLS report that we make."""

import json
import zlib
from dataclasses import replace
from datetime import date
from email import message_from_bytes
from email.policy import SMTP
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailrail.core.reports.incoming import ReportKind, carried_report
from mailrail.core.reports.mail import report_mail
from mailrail.core.reports.names import Period, ReportName
from mailrail.core.reports.pack import gzipped
from mailrail.core.smtp.address import parse_address
from mailrail.core.tlsrpt.facts import AppliedPolicy, FailedSession, PolicyType, ReportedSession
from mailrail.core.tlsrpt.read import read_tls_report
from mailrail.core.tlsrpt.report import DETAILS_LIMIT, tls_report
from mailrail.core.tlsrpt.result_type import ResultType

NAME = ReportName(ReportKind.TLS, "mx.test", "example.com", Period.of_day(date(2026, 1, 1)))
CONTACT = parse_address("tls@mx.test")
LINES = ("version: STSv1", "mode: enforce", "mx: mx.example.com", "max_age: 604800")
STS = AppliedPolicy(PolicyType.STS, "example.com", LINES, ("mx.example.com",))
TLSA = AppliedPolicy(PolicyType.TLSA, "mx.example.com", ("3 1 1 ab",))
EXPIRED = FailedSession(
    ResultType.CERTIFICATE_EXPIRED, "192.0.2.1", "mx.example.com", "mx.example.com", "198.51.100.2", reason_code="old"
)
SESSIONS = [
    (ReportedSession(TLSA, report="example.com"), 4),
    (ReportedSession(STS), 9),
    (ReportedSession(STS, EXPIRED), 1),
]


def made(sessions: list[tuple[ReportedSession, int]]) -> Any:
    octets = tls_report(NAME, "Example", CONTACT, sessions)
    return json.loads(octets) if octets is not None else None


def test_a_report_has_exactly_the_keys_of_the_RFC_TRPT_10() -> None:
    assert made(SESSIONS) == {
        "organization-name": "Example",
        "date-range": {"start-datetime": "2026-01-01T00:00:00Z", "end-datetime": "2026-01-01T23:59:59Z"},
        "contact-info": "tls@mx.test",
        "report-id": NAME.id,
        "policies": [
            {
                "policy": {
                    "policy-type": "sts",
                    "policy-string": list(LINES),
                    "policy-domain": "example.com",
                    "mx-host": ["mx.example.com"],
                },
                "summary": {"total-successful-session-count": 9, "total-failure-session-count": 1},
                "failure-details": [
                    {
                        "result-type": "certificate-expired",
                        "sending-mta-ip": "192.0.2.1",
                        "receiving-mx-hostname": "mx.example.com",
                        "receiving-mx-helo": "mx.example.com",
                        "receiving-ip": "198.51.100.2",
                        "failed-session-count": 1,
                        "failure-reason-code": "old",
                    }
                ],
            },
            {
                "policy": {
                    "policy-type": "tlsa",
                    "policy-string": ["3 1 1 ab"],
                    "policy-domain": "mx.example.com",
                },
                "summary": {"total-successful-session-count": 4, "total-failure-session-count": 0},
            },
        ],
    }


def test_the_policy_of_the_domain_and_the_records_of_its_hosts_are_in_one_report_TRPT_03() -> None:
    assert [entry["policy"]["policy-type"] for entry in made(SESSIONS)["policies"]] == ["sts", "tlsa"]
    assert isinstance(made(SESSIONS[:1])["policies"], list)


def test_what_is_not_known_is_left_out_TRPT_10() -> None:
    plain = AppliedPolicy(PolicyType.NONE, "example.com")
    failed = FailedSession(ResultType.STS_POLICY_FETCH_ERROR, information="no answer")
    (entry,) = made([(ReportedSession(plain, failed), 2)])["policies"]
    assert entry["policy"] == {"policy-type": "no-policy-found", "policy-domain": "example.com"}
    assert entry["failure-details"] == [
        {"result-type": "sts-policy-fetch-error", "failed-session-count": 2, "additional-information": "no answer"}
    ]


def test_no_session_makes_no_report() -> None:
    assert made([]) is None


def test_equal_facts_make_equal_octets_in_whatever_order_they_come() -> None:
    assert tls_report(NAME, "Example", CONTACT, SESSIONS) == tls_report(NAME, "Example", CONTACT, SESSIONS[::-1])


def test_the_contact_is_of_the_submitter_TRPT_13a() -> None:
    with pytest.raises(ValueError, match="they must be the same"):
        tls_report(NAME, "Example", parse_address("tls@other.test"), SESSIONS)


def test_the_rarest_failures_beyond_the_limit_are_in_the_sums_alone() -> None:
    many = [(ReportedSession(STS, replace(EXPIRED, receiving_helo=str(n))), 2) for n in range(DETAILS_LIMIT)]
    (entry,) = made([*many, (ReportedSession(STS, EXPIRED), 1)])["policies"]
    assert entry["summary"]["total-failure-session-count"] == 2 * DETAILS_LIMIT + 1
    assert {detail["failed-session-count"] for detail in entry["failure-details"]} == {2}


def test_the_mail_carries_the_report_as_the_RFC_says_TRPT_12() -> None:
    """TRPT-11a, TRPT-13a, TRPT-16, RTLS-26."""
    octets = tls_report(NAME, "Example", CONTACT, SESSIONS)
    assert octets is not None
    packed = b"".join(gzipped([octets]))
    mail = report_mail(NAME, packed, CONTACT, parse_address("r@example.com"), message_id="<1@mx.test>", now=1767312000)
    read = message_from_bytes(mail.content, policy=SMTP)
    assert read.get_content_type() == "multipart/report"
    assert read.get_param("report-type") == "tlsrpt"
    assert (read["TLS-Report-Domain"], read["TLS-Report-Submitter"]) == ("example.com", "mx.test")
    assert read["TLS-Required"] == "No"
    assert read["Subject"] == f"Report Domain: example.com Submitter: mx.test Report-ID: <{NAME.unique}@mx.test>"
    people, report = read.iter_parts()
    assert people.get_content_type() == "text/plain"
    assert report.get_content_type() == "application/tlsrpt+gzip"
    assert report["Content-Transfer-Encoding"] == "base64"
    assert report.get_content_disposition() == "attachment"
    assert report.get_filename() == f"mx.test!example.com!1767225600!1767311999!{NAME.unique}.json.gz"
    assert zlib.decompress(report.get_content(), 31) == octets
    assert carried_report(mail.content).octets == octets


_text = st.text(max_size=30)


@given(
    st.lists(
        st.builds(
            ReportedSession,
            st.builds(
                AppliedPolicy,
                st.sampled_from(PolicyType),
                _text,
                st.lists(_text).map(tuple),
                st.lists(_text).map(tuple),
            ),
            st.one_of(st.none(), st.builds(FailedSession, st.sampled_from(ResultType), *[_text] * 6)),
        ),
        min_size=1,
        max_size=5,
    )
)
def test_whatever_strangers_said_the_report_is_ASCII_and_can_be_read_TRPT_10(sessions: list[ReportedSession]) -> None:
    octets = tls_report(NAME, "Example", CONTACT, [(session, 1) for session in sessions])
    assert octets is not None
    assert octets.isascii()
    report = read_tls_report(octets)
    assert report.rejected == 0
    assert report.successful + report.failed == len(sessions)
