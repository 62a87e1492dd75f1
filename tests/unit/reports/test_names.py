"""What a report is called, and the mail that carries it."""

import gzip
import re
from dataclasses import replace
from datetime import date
from email import message_from_bytes
from email.policy import SMTP

import pytest

from mailrail.core.message.content_type import is_seven_bit
from mailrail.core.reports.incoming import ReportKind, carried_report
from mailrail.core.reports.mail import report_mail
from mailrail.core.reports.names import Period, ReportName
from mailrail.core.reports.pack import gzipped
from mailrail.core.smtp.address import parse_address

NAME = ReportName(ReportKind.DMARC, "mx.test", "example.com", Period.of_day(date(2026, 1, 1)))
SENDER = parse_address("dmarc@mx.test")


def test_the_period_is_one_day_of_UTC_TRPT_04a() -> None:
    """TRPT-04a, DAGG-02a."""
    assert Period.of_day(date(2026, 1, 1)) == Period(1767225600, 1767311999)
    assert Period.of_day(date(2026, 3, 29)).end + 1 == Period.of_day(date(2026, 3, 30)).begin


def test_each_report_has_an_id_of_letters_and_digits_of_its_own_DAGG_06() -> None:
    others = [
        NAME,
        replace(NAME, kind=ReportKind.TLS),
        replace(NAME, domain="example.net"),
        replace(NAME, submitter="mx2.test"),
        replace(NAME, period=Period.of_day(date(2026, 1, 2))),
    ]
    assert len({name.unique for name in others}) == len(others)
    assert all(re.fullmatch("[a-z0-9]{24}", name.unique) for name in others)
    assert NAME.id == f"{NAME.unique}@mx.test"


def test_the_file_name_has_the_same_id_and_is_the_same_when_it_is_sent_again_DAGG_07() -> None:
    assert NAME.file == f"mx.test!example.com!1767225600!1767311999!{NAME.unique}.xml.gz"
    assert replace(NAME).file == NAME.file


def test_the_subject_has_the_same_id_DAGG_09() -> None:
    assert NAME.subject == f"Report Domain: example.com Submitter: mx.test Report-ID: <{NAME.unique}@mx.test>"


def test_the_mail_carries_the_report_in_base64_DAGG_08() -> None:
    """DAGG-06, DAGG-07, DAGG-08, DAGG-09."""
    packed = b"".join(gzipped([b"<feedback/>"]))
    mail = report_mail(NAME, packed, SENDER, parse_address("r@example.com"), message_id="<1@mx.test>", now=1767312000)
    read = message_from_bytes(mail.content, policy=SMTP)
    assert (read["From"], read["To"], read["Message-ID"]) == ("dmarc@mx.test", "r@example.com", "<1@mx.test>")
    assert read["Subject"] == NAME.subject
    assert read["Auto-Submitted"] == "auto-generated"
    assert read["TLS-Required"] is None
    people, report = read.iter_parts()
    assert "Period: 2026-01-01 00:00:00 to 2026-01-01 23:59:59 UTC" in people.get_content()
    assert report.get_content_type() == "application/gzip"
    assert (report["Content-Transfer-Encoding"], report.get_content_disposition()) == ("base64", "attachment")
    assert report.get_filename() == NAME.file
    assert gzip.decompress(report.get_content()) == b"<feedback/>"
    assert carried_report(mail.content).name == NAME.file
    assert is_seven_bit(mail.content)
    assert not mail.smtputf8


def test_the_longest_names_break_no_line() -> None:
    long = ".".join(["x" * 63] * 3 + ["x" * 61])
    name = replace(NAME, submitter=long, domain=long)
    sender = replace(SENDER, domain=long)
    mail = report_mail(name, b"x", sender, parse_address(f"{'r' * 64}@{long}"), message_id="<1@mx.test>", now=0)
    assert is_seven_bit(mail.content)
    read = message_from_bytes(mail.content, policy=SMTP)
    assert " ".join(read["Subject"].split()) == name.subject


def test_an_address_beyond_ASCII_needs_SMTPUTF8() -> None:
    mail = report_mail(NAME, b"x", SENDER, parse_address("ä@example.com"), message_id="<1@mx.test>", now=0)
    assert mail.smtputf8


def test_a_sender_of_another_domain_is_refused_TRPT_13a() -> None:
    with pytest.raises(ValueError, match="they must be the same"):
        report_mail(NAME, b"x", parse_address("a@b.test"), SENDER, message_id="<1@mx.test>", now=0)


def test_what_is_packed_again_is_the_same() -> None:
    assert b"".join(gzipped([b"a" * 100, b"b"])) == b"".join(gzipped([b"a" * 100 + b"b"]))
    assert gzip.decompress(b"".join(gzipped([]))) == b""
