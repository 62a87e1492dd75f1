"""Which report mails count: who sent them, and what they are about (DAGG-21, TRPT-20; reference A12)."""

import base64
import contextlib
import gzip
import json
from dataclasses import replace
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailrail.core.message.header import HEADER_LIMIT
from mailrail.core.reports.incoming import ReportKind
from mailrail.core.reports.receive import AHEAD, ReceivedReport, ReportReader, report_header
from mailrail.core.reports.unpack import ReportError

NOW: Final = 1_767_400_000.0
READER: Final = ReportReader(hostnames=("mx.our.example",), domains=("our.example", "sub.other.example"))
PASSES: Final = "mx.our.example; dkim=pass header.d=rep.example; dmarc=pass header.from=rep.example"


def aggregate(domain: str = "our.example", end: int = 1_767_225_599) -> bytes:
    return (
        "<feedback><report_metadata><org_name>Rep</org_name><report_id>1</report_id>"
        f"<date_range><begin>{end - 86399}</begin><end>{end}</end></date_range></report_metadata>"
        f"<policy_published><domain>{domain}</domain><p>none</p></policy_published>"
        "<record><row><source_ip>192.0.2.1</source_ip><count>7</count></row></record></feedback>"
    ).encode()


def tls(domain: str = "our.example", end: str = "2025-12-31T23:59:59Z") -> bytes:
    return json.dumps(
        {
            "organization-name": "Rep",
            "date-range": {"start-datetime": "2025-12-31T00:00:00Z", "end-datetime": end},
            "report-id": "1",
            "policies": [
                {
                    "policy": {"policy-type": "sts", "policy-domain": domain},
                    "summary": {"total-successful-session-count": 3, "total-failure-session-count": 1},
                }
            ],
        }
    ).encode()


def mail(report: bytes, results: str | None = PASSES, *more: str, sender: str = "noreply@rep.example") -> bytes:
    fields = [f"Authentication-Results: {results}"] if results is not None else []
    fields += [*more, f"From: {sender}", "Content-Type: application/gzip", "Content-Transfer-Encoding: base64"]
    return "\r\n".join(fields).encode() + b"\r\n\r\n" + base64.encodebytes(gzip.compress(report))


def received(octets: bytes, reader: ReportReader = READER, *, by_us: bool = False) -> ReceivedReport:
    header = report_header(octets)
    return reader.read(octets, reader.sender(header, by_us=by_us), header, NOW)


def refusal(octets: bytes, reader: ReportReader = READER) -> str:
    with pytest.raises(ReportError) as raised:
        received(octets, reader)
    return str(raised.value)


def test_a_report_counts_if_its_sender_is_proven_DAGG_21() -> None:
    found = received(mail(aggregate()))
    assert (found.kind, found.submitter, found.domain) == (ReportKind.DMARC, "rep.example", "our.example")
    assert found.report.successful if found.kind is ReportKind.TLS else found.report.messages == 7  # type: ignore[union-attr]


def test_a_tls_report_counts_by_the_signature_of_its_submitter_alone_TRPT_20() -> None:
    signed = "mx.our.example; dkim=pass header.d=rep.example; dmarc=fail header.from=mail.rep.example"
    found = received(mail(tls(), signed, "TLS-Report-Submitter: mail.rep.example", sender="a@mail.rep.example"))
    assert (found.kind, found.submitter) == (ReportKind.TLS, "mail.rep.example")
    assert "no valid DKIM signature of rep.example" in refusal(
        mail(tls(), "mx.our.example; dkim=pass header.d=else.example; dmarc=pass header.from=rep.example")
    )
    assert "DMARC does not pass for mail.rep.example" in refusal(mail(aggregate(), signed, sender="a@mail.rep.example"))


@pytest.mark.parametrize(
    "results",
    [
        None,
        "mx.else.example; dmarc=pass header.from=rep.example",
        "mx.our.example; dmarc=fail header.from=rep.example; spf=pass smtp.mailfrom=rep.example",
        "mx.our.example; dmarc=pass header.from=victim.example",
        "mx.our.example; none",
        "mx.our.example 2; dmarc=pass header.from=rep.example",
        "mx.our.example (dmarc=pass; dmarc=pass header.from=rep.example",
    ],
)
def test_what_does_not_prove_the_author_proves_nothing(results: str | None) -> None:
    assert "nothing proves" in refusal(mail(aggregate(), results))


def test_the_first_results_of_ours_count_and_no_later_ones() -> None:
    fails = "mx.our.example; dmarc=fail header.from=rep.example"
    assert "dmarc=fail" in refusal(mail(aggregate(), fails, f"Authentication-Results: {PASSES}"))
    assert received(mail(aggregate(), PASSES, f"Authentication-Results: {fails}")).submitter == "rep.example"
    assert received(mail(aggregate(), "x.example; none", f"Authentication-Results: {PASSES}")).domain == "our.example"


def test_of_several_authors_none_is_proven_DMRC_01() -> None:
    both = "mx.our.example; dmarc=pass header.from=rep.example; dmarc=pass header.from=b.example"
    assert "nothing proves" in refusal(mail(aggregate(), both, sender="a@rep.example, b@b.example"))


def test_a_mail_that_our_own_queue_made_needs_no_proof() -> None:
    for report in (aggregate(), tls()):
        assert received(mail(report, None, sender="dmarc@our.example"), by_us=True).submitter == "our.example"


def test_an_installation_may_read_reports_of_senders_that_are_not_proven() -> None:
    reader = replace(READER, any_sender=True)
    for report in (aggregate(), tls()):
        assert received(mail(report, None), reader).submitter == "rep.example"


@pytest.mark.parametrize(
    "domain", ["our.example", "www.our.example", "other.example", "sub.other.example", "OUR.example."]
)
def test_a_report_is_about_a_domain_of_ours_or_one_above_or_below_it(domain: str) -> None:
    assert received(mail(aggregate(domain))).kind is ReportKind.DMARC
    assert received(mail(tls(domain))).kind is ReportKind.TLS


@pytest.mark.parametrize("domain", ["example", "your.example", "xour.example", "bad domain"])
def test_a_report_about_others_is_refused(domain: str) -> None:
    for report in (aggregate(domain), tls(domain)):
        assert "not about a domain of ours" in refusal(mail(report))


def test_a_tls_report_may_be_about_a_host_of_ours() -> None:
    reader = replace(READER, hostnames=("mx.host.example",))
    assert received(mail(tls("mx.host.example"), None), reader, by_us=True).domain == "mx.host.example"


def test_a_period_that_ends_in_the_future_is_refused() -> None:
    latest = int(NOW) + AHEAD
    assert received(mail(aggregate(end=latest))).kind is ReportKind.DMARC
    assert "ends in the future" in refusal(mail(aggregate(end=latest + 1)))
    assert "ends in the future" in refusal(mail(tls(end="2026-02-01T00:00:00Z")))


def test_who_is_not_proven_has_nothing_unpacked() -> None:
    assert "nothing proves" in refusal(mail(b"\x1f\x8b broken", None))
    assert "neither XML nor JSON" in refusal(mail(b"junk"))


def test_a_header_that_does_not_end_is_refused() -> None:
    with pytest.raises(ReportError, match="header of the mail"):
        report_header(b"X: " + b"x" * HEADER_LIMIT)
    with pytest.raises(ReportError, match="too many fields"):
        report_header(b"a: b\r\n" * 5000)


@given(st.binary(max_size=300), st.text(max_size=60).filter(lambda text: not set(text) & set("\r\n")))
def test_nothing_but_a_refusal_comes_of_any_mail(octets: bytes, results: str) -> None:
    written = f"Authentication-Results: mx.our.example; {results}\r\n".encode("utf-8", "replace") + octets
    with contextlib.suppress(ReportError):
        received(written, replace(READER, any_sender=True))
