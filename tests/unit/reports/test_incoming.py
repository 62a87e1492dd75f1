"""The report in a mail, whatever its sender calls it."""

import base64
import codecs
import gzip
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailrail.core.reports.incoming import MAIL_LIMIT, ReportKind, carried_report, plain_report
from mailrail.core.reports.unpack import ReportError

XML = b"<?xml version='1.0'?><feedback/>"
JSON = b'{"policies": []}'
SAMPLES = Path(__file__).parents[4] / "shared" / "data" / "dmarc" / "failure"


def part(kind: str, octets: bytes, name: str = "") -> bytes:
    named = f'Content-Disposition: attachment; filename="{name}"\r\n' if name else ""
    head = f"Content-Type: {kind}\r\n{named}Content-Transfer-Encoding: base64\r\n\r\n"
    return head.encode() + base64.encodebytes(octets)


def mail(*parts: bytes) -> bytes:
    body = b"".join(b"--x\r\n" + each + b"\r\n" for each in parts)
    return b"From: r@rep.example\r\nContent-Type: multipart/mixed; boundary=x\r\n\r\n" + body + b"--x--\r\n"


TEXT = part("text/plain", b"A report is attached.")


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("application/gzip", "a!b!1!2.xml.gz"),
        ("application/zip", "wrong.zip"),
        ("application/octet-stream", "a.xml.gz"),
        ("application/octet-stream", ""),
        ("text/plain", ""),
        ("nonsense", ""),
    ],
)
def test_a_report_is_found_by_what_it_is_and_not_by_what_it_is_called(kind: str, name: str) -> None:
    found = carried_report(mail(TEXT, part(kind, gzip.compress(XML), name)))
    assert (found.kind, found.octets, found.name) == (ReportKind.DMARC, XML, name)


@pytest.mark.parametrize("kind", ["text/xml", "application/xml", "application/octet-stream", "text/plain"])
def test_a_report_that_is_not_packed_is_found(kind: str) -> None:
    assert carried_report(mail(TEXT, part(kind, XML))).octets == XML


def test_the_mail_itself_may_be_the_report() -> None:
    assert carried_report(part("application/gzip", gzip.compress(XML))).kind is ReportKind.DMARC
    assert carried_report(part("application/tlsrpt+json", JSON)).kind is ReportKind.TLS


def test_the_likeliest_part_comes_first() -> None:
    found = carried_report(
        mail(part("text/plain", b"<feedback/>"), part("application/tlsrpt+gzip", gzip.compress(JSON)))
    )
    assert found.kind is ReportKind.TLS


def test_a_part_that_is_no_report_does_not_hide_the_one_that_is() -> None:
    junk = part("application/zip", b"junk", "logo.zip")
    assert carried_report(mail(junk, part("application/gzip", gzip.compress(XML)))).octets == XML


@pytest.mark.parametrize(
    ("carrying", "reason"),
    [
        (mail(TEXT), "no part of the mail holds a report"),
        (mail(TEXT, part("application/zip", b"unused", "r.zip")), "neither XML nor JSON"),
        (mail(TEXT, part("application/gzip", b"", "r.xml.gz")), "it is empty"),
        (mail(TEXT, part("message/feedback-report", b"Feedback-Type: auth-failure")), "failure report"),
        (b"a:b\n" * 5000, "too many fields"),
        (b"x" * (MAIL_LIMIT + 1), "octets"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",  # octets make long names
)
def test_a_mail_without_a_report_is_refused_with_the_reason(carrying: bytes, reason: str) -> None:
    with pytest.raises(ReportError, match=reason):
        carried_report(carrying)


@pytest.mark.skipif(not SAMPLES.exists(), reason="reports of others are not here (../shared/data)")
@pytest.mark.parametrize("name", ["dmarc_ruf_report_linkedin", "dmarc_ruf_report_linkedin.crlf", "netease"])
def test_a_failure_report_is_told_from_an_aggregate_one(name: str) -> None:
    with pytest.raises(ReportError, match="failure report on a single message"):
        carried_report((SAMPLES / f"{name}.eml").read_bytes())


@pytest.mark.skipif(not SAMPLES.exists(), reason="reports of others are not here (../shared/data)")
def test_a_failure_report_that_has_no_such_part_is_none() -> None:
    with pytest.raises(ReportError, match="no part of the mail holds a report"):
        carried_report((SAMPLES / "exim_plain_text_only_no_arf_part.eml").read_bytes())


@pytest.mark.parametrize("mark", [codecs.BOM_UTF8 + b"\r\n", b"\n \n", b""])
def test_what_stands_before_the_report_does_not_matter(mark: bytes) -> None:
    assert plain_report(mark + XML).kind is ReportKind.DMARC
    assert plain_report(mark + JSON).kind is ReportKind.TLS


def test_a_report_in_UTF_16_is_found() -> None:
    assert plain_report(XML.decode().encode("utf-16")).kind is ReportKind.DMARC


@given(st.lists(st.sampled_from([TEXT, part("application/gzip", gzip.compress(XML)), b"--x--", b"\r\n"]), max_size=5))
def test_nothing_but_the_named_error_is_raised(parts: list[bytes]) -> None:
    try:
        carried_report(mail(*parts))
    except ReportError:
        pass
