"""TLS reports of others: those of real senders, what real senders get wrong, and what strangers write to hurt."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mailrail.core.reports.incoming import ReportKind, carried_report, plain_report
from mailrail.core.reports.unpack import ReportError
from mailrail.core.tlsrpt.read import DEPTH_LIMIT, MARKS_LIMIT, ReceivedTlsReport, read_tls_report

SAMPLES = Path(__file__).parents[4] / "shared" / "data" / "tlsrpt"
with_samples = pytest.mark.skipif(not SAMPLES.exists(), reason="reports of others are not here (../shared/data)")


def sample(path: Path) -> ReceivedTlsReport:
    carried = (carried_report if path.suffix == ".eml" else plain_report)(path.read_bytes())
    assert carried.kind is ReportKind.TLS
    return read_tls_report(carried.octets)


@with_samples
@pytest.mark.parametrize("folder", ["isseis", "viewer"])
def test_reports_of_real_senders_have_the_figures_that_are_known(folder: str) -> None:
    expected = yaml.safe_load((SAMPLES / folder / "expected.yml").read_text())
    assert len(expected) in (4, 6)
    for name, facts in expected.items():
        report = sample(SAMPLES / folder / name)
        assert (report.organization, report.successful, report.failed) == (
            facts["org"],
            facts["successful"],
            facts["failed"],
        ), name
        assert report.rejected == 0, name


@with_samples
def test_the_example_of_the_RFC_is_read_though_its_mx_host_is_no_array() -> None:
    """Erratum 6241 of RFC 8460."""
    report = sample(SAMPLES / "rfc8460.json")
    (policy,) = report.policies
    assert (report.organization, policy.mx, report.successful, report.failed) == (
        "Company-X",
        ("*.mail.company-y.example",),
        5326,
        303,
    )
    assert [(detail.result, detail.sessions) for detail in policy.details] == [
        ("certificate-expired", 100),
        ("starttls-not-supported", 200),
        ("validation-failure", 3),
    ]
    assert policy.details[0].sending_ip == "2001:db8:abcd:12::1"


@with_samples
def test_what_microsoft_and_postfix_write_otherwise_is_read_as_it_is_meant() -> None:
    report = sample(SAMPLES / "google.com_smtp_tls_report.eml")
    assert (report.organization, [policy.domain for policy in report.policies]) == (
        "Google Inc.",
        ["cardinalhealth.ca"],
    )
    twice = sample(SAMPLES / "viewer" / "microsoft.json").policies[1]
    assert len(twice.strings) == 2
    assert all(text.startswith("3 1 1 ") for text in twice.strings)
    assert sample(SAMPLES / "viewer" / "no-contact.json").policies[0].mx == ("mx.server.com",)


def whole(**changes: object) -> dict[str, Any]:
    made: dict[str, Any] = {
        "organization-name": "Rep",
        "date-range": {"start-datetime": "2026-01-01T00:00:00Z", "end-datetime": "2026-01-01T23:59:59Z"},
        "contact-info": "t@rep.example",
        "report-id": "r1",
        "policies": [policy()],
    }
    return made | changes


def policy(successful: object = 3, failed: object = 0, **changes: object) -> dict[str, Any]:
    made: dict[str, Any] = {
        "policy": {"policy-type": "sts", "policy-domain": "Example.COM."},
        "summary": {"total-successful-session-count": successful, "total-failure-session-count": failed},
    }
    return made | changes


def read(made: object) -> ReceivedTlsReport:
    return read_tls_report(json.dumps(made).encode())


def test_a_report_is_read() -> None:
    report = read(whole())
    assert (report.begin, report.end, report.id) == (1767225600, 1767311999, "r1")
    assert (report.policies[0].domain, report.successful) == ("example.com", 3)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"organization-name": None, "contact-info": None}, "who reports"),
        ({"report-id": ""}, "no report-id"),
        ({"date-range": []}, "date-range is no object"),
        ({"date-range": {"start-datetime": "yesterday", "end-datetime": "x"}}, "no time of RFC 3339"),
        ({"date-range": {"start-datetime": "2026-01-02", "end-datetime": "2026-01-01"}}, "ends before it begins"),
        ({"policies": {}}, "no array"),
        ({"policies": []}, "there is none"),
        ({"policies": [1, 2]}, "a policy is no object"),
        ({"policies": [policy()] * 1001}, "1001 policies"),
        ({"policies": [policy(-1)]}, "total-successful-session-count is -1"),
        ({"policies": [policy(True)]}, "is True"),
        ({"policies": [policy("3")]}, "is '3'"),
        ({"policies": [policy(2**53)]}, "no number of sessions"),
    ],
)
def test_a_report_that_says_too_little_is_refused_with_the_reason(changes: dict[str, object], reason: str) -> None:
    with pytest.raises(ReportError, match=reason):
        read(whole(**changes))


def test_one_policy_that_cannot_be_read_is_dropped_and_counted() -> None:
    report = read(whole(policies=[policy(1), policy(-1), policy(2.0)]))
    assert (report.successful, report.rejected) == (3, 1)
    assert report.why == ("total-successful-session-count is -1, and no number of sessions",)


def test_an_organization_without_a_name_has_that_of_its_contact() -> None:
    assert read(whole(**{"organization-name": ""})).organization == "rep.example"


@pytest.mark.parametrize(
    ("octets", "reason"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"[]", "the report is no object"),
        (b'{"a": NaN}', "NaN is no number"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b"\xff{}", "not UTF-8"),
        (b"[" * (DEPTH_LIMIT + 1), "deep"),
        (b"[" + b"1," * MARKS_LIMIT + b"1]", "too many values"),
        (b'"' + b'\\"' * 1_000_000, "not valid JSON"),
        (b" " * (16 * 1024 * 1024 + 1), "octets"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",  # octets make long names
)
def test_what_would_cost_too_much_is_refused_DAGG_21(octets: bytes, reason: str) -> None:
    """DAGG-21 in kind."""
    with pytest.raises(ReportError, match=reason):
        read_tls_report(octets)


def test_texts_of_strangers_are_one_line_without_halves_of_characters() -> None:
    report = read_tls_report(json.dumps(whole(**{"organization-name": "a\nb\ud800c" + "x" * 9000})).encode())
    assert report.organization.startswith("a b c")
    assert len(report.organization) == 512
    report.organization.encode()


_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20)),
    lambda within: st.one_of(
        st.lists(within, max_size=3),
        st.dictionaries(st.sampled_from(["policy", "summary", "policy-string", "mx-host", "start-datetime"]), within),
    ),
    max_leaves=10,
)


@given(st.sampled_from(list(whole())), _values, st.sampled_from(["policy", "summary", "failure-details"]), _values)
def test_nothing_but_the_named_error_is_raised(key: str, value: object, inner: str, other: object) -> None:
    for made in (whole(**{key: value}), whole(policies=[policy(**{inner: other}), policy(**{inner: [other]})])):
        try:
            read(made)
        except ReportError:
            pass


@given(st.binary(max_size=200))
def test_octets_of_any_kind_raise_nothing_but_the_named_error(octets: bytes) -> None:
    for made in (octets, b'{"policies":[' + octets + b"]}"):
        try:
            read_tls_report(made)
        except ReportError:
            pass
