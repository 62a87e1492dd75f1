"""The record that asks for TLS reports."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailrail.core.policy_record import NoRecord
from mailrail.core.reports.addresses import MailDestination, PostDestination
from mailrail.core.tlsrpt.record import TlsRptRecord, read_records, record_name


def read(*records: str) -> TlsRptRecord | NoRecord:
    return read_records([[text.encode()] for text in records])


def told(record: TlsRptRecord | NoRecord) -> list[str]:
    assert isinstance(record, TlsRptRecord)
    return [
        str(one.address) if isinstance(one, MailDestination) else one.url
        for one in record.destinations.found
        if isinstance(one, MailDestination | PostDestination)
    ]


def test_its_name_stands_below_the_policy_domain_TRPT_01() -> None:
    assert record_name("example.com") == "_smtp._tls.example.com"
    assert record_name("a" * 63 + "." + "b" * 63 + "." + "c" * 63 + "." + "d" * 61) is None


@pytest.mark.parametrize(
    ("text", "addresses"),
    [
        ("v=TLSRPTv1;rua=mailto:reports@example.com", ["reports@example.com"]),
        ("v=TLSRPTv1 ; rua=mailto:a%2Cb@example.com", ['"a,b"@example.com']),
        ("v=TLSRPTv1; rua=mailto:a@example.com,https://r.example.com/v1/tlsrpt;", None),
        ("v=TLSRPTv1; x=; y; rua=MAILTO:a@EXAMPLE.com; rua=mailto:second@example.com", ["a@example.com"]),
        ("v=TLSRPTv1; rua=ftp://x.example, mailto:a@example.com", ["a@example.com"]),
    ],
)
def test_a_record_is_read_as_its_grammar_says_TRPT_01(text: str, addresses: list[str] | None) -> None:
    assert told(read(text)) == (addresses or ["a@example.com", "https://r.example.com/v1/tlsrpt"])


def test_strings_of_a_record_are_joined_and_records_of_others_ignored_TRPT_01() -> None:
    record = read_records([[b"v=spf1 -all"], [b"v=TLSRPTv1; rua=mai", b"lto:a@example.com"]])
    assert told(record) == ["a@example.com"]


@pytest.mark.parametrize(
    ("records", "reason", "faulty"),
    [
        ([], "there is no TXT record", False),
        (["v=spf1 -all"], "no TXT record starts with v=TLSRPTv1;", False),
        (["v=tlsrptv1; rua=mailto:a@example.com"], "no TXT record starts", True),
        (["v=TLSRPTv1"], "no TXT record starts", True),
        (["v=TLSRPTv12; rua=mailto:a@example.com"], "no TXT record starts", True),
        (["v=TLSRPTv1; rua=mailto:a@example.com"] * 2, "2 TXT records start", True),
        (["v=TLSRPTv1;"], "no rua", True),
        (["v=TLSRPTv1; rua=http://example.com/x"], "by mail or HTTPS alone", True),
        (["v=TLSRPTv1; rua=mailto:ä@example.com"], "not ASCII", True),
        (["v=TLSRPTv1; rua=" + "x" * 5000], "octets", True),
    ],
)
def test_without_one_valid_record_there_are_no_reports_TRPT_01(records: list[str], reason: str, faulty: bool) -> None:
    record = read(*records)
    assert isinstance(record, NoRecord)
    assert reason in record.reason
    assert record.faulty is faulty


@given(
    st.lists(st.lists(st.binary(max_size=40).map(lambda octets: b"v=TLSRPTv1;rua=" + octets), max_size=2), max_size=2)
)
def test_nothing_is_raised_whatever_the_record_says(answer: list[list[bytes]]) -> None:
    read_records(answer)
