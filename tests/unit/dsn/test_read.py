"""Notifications as others write them (reference D4; RFC 3464, 6522)."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailrail.core.dsn.due import DsnKind

from testkit.read_dsn import UnreadableDsn, read

STATUS = """Reporting-MTA: dns; mx.example.com (Postfix)
Original-Envelope-Id: QQ314
Arrival-Date: Mon, 1 Jan 2024 00:00:00 +0000

Final-Recipient: rfc822; bob@example.com
Original-Recipient: rfc822;Bob@example.com
Action: failed (gave up)
Status: 5.1.1 (no such (really) user)
Remote-MTA: dns; mail.example.net
Diagnostic-Code: smtp; 550 5.1.1 <bob@example.com>: Recipient
    address rejected (see help)
"""


def message(
    status: str = STATUS,
    *,
    top: str = "multipart/report; report-type=delivery-status; boundary=abc",
    second: str = "message/delivery-status",
    third: str | None = "Content-Type: text/rfc822-headers\n\nMessage-ID: <one@a.org>\nSubject: x\n",
    end: str = "--abc--\n",
) -> bytes:
    parts = ["Content-Type: text/plain\n\nSorry.\n", f"Content-Type: {second}\n\n{status}"]
    if third is not None:
        parts.append(third)
    body = "".join(f"--abc\n{part}\n" for part in parts) + end
    return f"Subject: Undelivered\nContent-Type: {top}\n\npreamble\n{body}".replace("\n", "\r\n").encode()


def test_a_usual_notification_is_read_whole_D4() -> None:
    found = read(message())
    assert (found.reporting_mta, found.envelope_id) == ("mx.example.com", "QQ314")
    assert found.original_message_id == "<one@a.org>"
    (recipient,) = found.recipients
    assert (recipient.recipient, recipient.original_recipient) == ("bob@example.com", "Bob@example.com")
    assert (recipient.action, str(recipient.status), recipient.code) == (DsnKind.FAILED, "5.1.1", 550)
    assert recipient.remote_mta == "mail.example.net"
    assert recipient.diagnostic == "550 5.1.1 <bob@example.com>: Recipient address rejected (see help)"


def test_bare_lf_line_ends_are_read_too() -> None:
    assert read(message().replace(b"\r\n", b"\n")).recipients == read(message()).recipients


@pytest.mark.parametrize(
    "top",
    [
        'multipart/report; report-type=delivery-status; boundary*0="a"; boundary*1="bc"',
        "multipart/report (a report; boundary=zz); report-type=delivery-status (of ours); boundary=abc",
        'multipart/report; start="<x;boundary=zz>"; report-type="delivery-status"; boundary=abc',
        "multipart/report; report-type=delivery-status; x=" + "y" * 3000 + "; boundary=abc",
    ],
)
def test_a_notification_is_read_however_its_type_is_written_RFC_2045_5_1(top: str) -> None:
    assert read(message(top=top)).recipients == read(message()).recipients


def test_an_encoding_with_a_comment_is_undone_RFC_2045_6_1() -> None:
    encoded = base64.encodebytes(STATUS.encode()).decode()
    second = "message/delivery-status\nContent-Transfer-Encoding: (so) base64 (as it must not be)"
    assert read(message(encoded, second=second)).recipients == read(message()).recipients


def test_two_parts_are_enough_and_a_cut_end_is_no_matter() -> None:
    assert read(message(third=None)).original_header is None
    assert read(message(end="")).recipients == read(message()).recipients


def test_the_code_comes_from_the_status_where_there_is_no_diagnostic_D4() -> None:
    plain = STATUS[: STATUS.index("Diagnostic-Code")].replace("5.1.1", "4.4.7")
    assert read(message(plain)).recipients[0].code == 400


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (message(top="multipart/mixed; boundary=abc"), "not multipart/report"),
        (message(top="multipart/report; report-type=disposition-notification; boundary=abc"), "report type"),
        (message(top="multipart/report; report-type=delivery-status"), "boundary"),
        (message(second="text/plain"), "no delivery status"),
        (message(third="Content-Type: image/png\n\nx"), "no returned message"),
        (message(third="Content-Type: text/rfc822-headers\n\nx\n--abc\n\nfourth"), "parts"),
        (message(STATUS.replace("Reporting-MTA", "X-MTA")), "Reporting-MTA is missing"),
        (message(STATUS.replace("Final-Recipient", "X-Recipient")), "final-recipient is missing"),
        (message(STATUS.replace("Action: failed (gave up)\n", "")), "action is missing"),
        (message(STATUS.replace("Status: 5.1.1 (no such (really) user)\n", "")), "status is missing"),
        (message(STATUS.replace("Action: failed", "Action: exploded")), "unknown Action"),
        (message(STATUS.replace("Status: 5.1.1", "Status: fine")), "no status code"),
        (message(STATUS + "Action: failed\n"), "action is given twice"),
        (message(STATUS.replace("Diagnostic-Code: smtp", "Diagnostic-Code: x400")), "not SMTP's"),
        (message(STATUS.replace("rfc822; bob", "bob")), "without its type"),
        (message(STATUS.split("\n\n")[0]), "no recipient"),
        (message("Reporting-MTA: dns; a\n\n" + "Final-Recipient: rfc822; a\n\n" * 1001), "more than 1000 recipients"),
        (message("\n".join(f"X-{i}: y" for i in range(100)) + "\n\nA: b"), "more than 64 fields"),
        (b"", "not multipart/report"),
    ],
)
def test_what_cannot_be_relied_on_is_refused_with_its_reason_D4(broken: bytes, reason: str) -> None:
    with pytest.raises(UnreadableDsn, match=reason):
        read(broken)


def test_a_quoted_printable_status_is_decoded() -> None:
    encoded = STATUS.replace("=", "=3D").replace("bob", "b=6Fb")
    part = "message/global-delivery-status\nContent-Transfer-Encoding: quoted-printable"
    assert read(message(encoded, second=part)).recipients[0].recipient == "bob@example.com"


@given(st.binary(max_size=2000))
def test_any_octets_give_a_notification_or_a_refusal(data: bytes) -> None:
    try:
        read(data)
    except UnreadableDsn:
        pass


@given(st.data())
def test_a_mangled_notification_never_fails_otherwise(data: st.DataObject) -> None:
    whole = bytearray(message())
    for _ in range(data.draw(st.integers(1, 8))):
        at = data.draw(st.integers(0, len(whole) - 1))
        whole[at : at + data.draw(st.integers(0, 5))] = data.draw(st.binary(max_size=5))
    try:
        read(bytes(whole))
    except UnreadableDsn:
        pass


@pytest.mark.parametrize("flood", [b"(" * 1_000_000, b"\n" * 1_000_000, b"--abc\n" * 200_000, b"a;b=" * 250_000])
def test_floods_are_refused_in_linear_time(flood: bytes) -> None:
    for whole in (
        b"Content-Type: multipart/report; report-type=delivery-status; boundary=abc\n\n" + flood,
        b"Content-Type: " + flood + b"\n\n",
        message(STATUS).replace(b"failed (gave up)", flood[:200_000]),
    ):
        with pytest.raises(UnreadableDsn):
            read(whole)
