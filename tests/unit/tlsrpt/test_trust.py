"""A report mail counts only if its submitter signed it."""

from datetime import date

import pytest

from mailrail.core.dkim.key import write_key_record
from mailrail.core.dkim.sign import SIGNED_BODY, SigningKey, sign, signed_names
from mailrail.core.dkim.signature import KeyName
from mailrail.core.dkim.verify import DkimOutcome, DkimResult, body_forms, find_signatures, verify
from mailrail.core.lookups import answered
from mailrail.core.message.header import Header
from mailrail.core.reports.incoming import ReportKind
from mailrail.core.reports.mail import report_mail
from mailrail.core.reports.names import Period, ReportName
from mailrail.core.reports.unpack import ReportError
from mailrail.core.smtp.address import parse_address
from mailrail.core.tlsrpt.trust import SERVICES, trusted_submitter

from testkit.signed_mail import from_table, hashed, rsa_key, split

NOW = 1_767_312_000.0
NAME = ReportName(ReportKind.TLS, "mx.rep.example", "example.com", Period.of_day(date(2026, 1, 1)))
MAIL = report_mail(
    NAME,
    b"packed",
    parse_address("tls@mx.rep.example"),
    parse_address("r@example.com"),
    message_id="<1@mx.rep.example>",
    now=NOW,
).content


def results(mail: bytes, *, signer: str, services: str = "") -> tuple[Header, tuple[DkimResult, ...]]:
    """What a reader of report mail finds in one that `signer` signed."""
    key = SigningKey(KeyName(signer, "s"), rsa_key())
    header, body = split(mail)
    signed = sign(header, hashed([SIGNED_BODY], body)[SIGNED_BODY], (key,), NOW) + mail
    header, body = split(signed)
    found = find_signatures(header, NOW)
    record = write_key_record(key.key.public_key()) + services
    dns = from_table({str(key.name): record})
    return header, answered(verify(header, found, hashed(body_forms(found), body), SERVICES), dns)


@pytest.mark.parametrize("signer", ["mx.rep.example", "rep.example"])
@pytest.mark.parametrize("services", ["", "; s=tlsrpt", "; s=email", "; s=*"])
def test_a_signature_of_the_submitter_or_above_it_counts_whatever_the_key_is_for_TRPT_20(
    signer: str, services: str
) -> None:
    assert trusted_submitter(*results(MAIL, signer=signer, services=services)) == "mx.rep.example"


@pytest.mark.parametrize(("signer", "services"), [("other.example", ""), ("mx.rep.example", "; s=other")])
def test_without_a_valid_signature_of_the_submitter_the_mail_is_ignored_TRPT_20(signer: str, services: str) -> None:
    with pytest.raises(ReportError, match=r"no valid DKIM signature of mx\.rep\.example"):
        trusted_submitter(*results(MAIL, signer=signer, services=services))


def test_a_mail_without_any_signature_is_ignored_TRPT_20() -> None:
    with pytest.raises(ReportError, match="no valid DKIM signature"):
        trusted_submitter(Header(MAIL), ())


def test_the_author_submits_where_the_mail_does_not_say_who_does_TRPT_20() -> None:
    mail = MAIL.replace(b"TLS-Report-Submitter", b"X-Other")
    assert trusted_submitter(*results(mail, signer="mx.rep.example")) == "mx.rep.example"


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (b"TLS-Report-Submitter: a.example\r\nTLS-Report-Submitter: b.example\r\n", "several"),
        (b"TLS-Report-Submitter: not a domain\r\n", "no domain name"),
        (b"Subject: x\r\n", "neither"),
        (b"From: a@a.example, b@b.example\r\n", "neither"),
    ],
)
def test_a_mail_that_does_not_say_who_reports_is_ignored_TRPT_20(header: bytes, reason: str) -> None:
    passing = DkimResult(DkimOutcome.PASS, "", domain="a.example")
    with pytest.raises(ReportError, match=reason):
        trusted_submitter(Header(header + b"\r\n"), [passing])


def test_a_signature_of_a_whole_top_level_domain_is_no_proof_TRPT_20() -> None:
    header = Header(b"TLS-Report-Submitter: a.example\r\n\r\n")
    with pytest.raises(ReportError, match="there are some of example"):
        trusted_submitter(header, [DkimResult(DkimOutcome.PASS, "", domain="example")])


def test_our_signature_covers_who_reports_to_whom_TRPT_13b() -> None:
    assert {b"tls-report-domain", b"tls-report-submitter", b"tls-required"} <= set(signed_names(Header(MAIL)))
