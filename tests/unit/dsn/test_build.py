"""Notifications as we write them (RFC 3461, 3464, 6522, 6533; standards 9; reference H9, H18 to H22)."""

import email
import email.policy
import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailrail.core.dsn import text
from mailrail.core.dsn.build import Dsn, DsnRecipient, Original, ReportingMta, build, header_of, returns_full
from mailrail.core.dsn.due import DsnKind
from mailrail.core.message.content_type import is_seven_bit
from mailrail.core.message.reencode import Target, Unconvertible, reencode
from mailrail.core.smtp.reply import EnhancedCode, Reply
from mailrail.core.tlspolicy.facts import Requirement

from testkit.read_dsn import read

REPORTER = ReportingMta("mx.example.org", "postmaster@example.org")
HEADER = (
    b"Received: from a by b; Mon, 01 Jan 2024 00:00:00 +0000\r\nFrom: a@example.org\r\nSubject: hello\r\n"
    b"Message-ID: <one@example.org>\r\n"
)
CONTENT = HEADER + b"\r\nbody text\r\n"
ORIGINAL = Original("Alice@example.org", 1_700_000_000.0, HEADER, message_id="<one@example.org>", subject="hello")
FAILED = DsnRecipient(
    DsnKind.FAILED,
    "Bob@Example.COM",
    EnhancedCode(5, 1, 1),
    remote_host="mx.example.com",
    remote_ip="192.0.2.1",
    reply=Reply(550, ("5.1.1 no such user", "5.1.1 see https://example.com/help"), EnhancedCode(5, 1, 1)),
    last_attempt=1_700_000_100.0,
)


def written(original: Original = ORIGINAL, *reports: DsnRecipient) -> Dsn:
    return build(
        original, reports or (FAILED,), REPORTER, message_id="<dsn@mx.example.org>", boundary="=_b0undary", now=1.7e9
    )


def assert_harmless(content: bytes) -> None:
    """7-bit, CRLF only, no over-long line: fit for any path (DSN-20)."""
    assert content.isascii()
    assert b"\0" not in content
    assert content.count(b"\r") == content.count(b"\n") == content.count(b"\r\n")
    assert max(map(len, content.split(b"\r\n"))) <= 998


def parts_of(dsn: Dsn) -> list[Any]:
    message = email.message_from_bytes(dsn.content, policy=email.policy.SMTP)
    assert not message.defects
    parts = list(message.iter_parts())
    assert all(not part.defects for part in parts)
    return parts


def status_of(dsn: Dsn) -> list[Any]:
    return list(parts_of(dsn)[1].get_payload())


def test_it_is_a_multipart_report_of_three_parts_DSN_13() -> None:
    message = email.message_from_bytes(written().content, policy=email.policy.SMTP)
    assert message.get_content_type() == "multipart/report"
    assert message.get_param("report-type") == "delivery-status"
    kinds = [part.get_content_type() for part in parts_of(written())]
    assert kinds == ["text/plain", "message/delivery-status", "text/rfc822-headers"]
    assert_harmless(written().content)


def test_its_header_is_addressed_dated_and_threaded_DSN_12() -> None:
    message = email.message_from_bytes(written().content, policy=email.policy.SMTP)
    assert message["From"] == "Mail Delivery System <postmaster@example.org>"
    assert message["To"] == "Alice@example.org"
    assert b"\r\nTo: <Alice@example.org>\r\n" in written().content
    assert message["Auto-Submitted"] == "auto-replied"
    assert message["Message-ID"] == "<dsn@mx.example.org>"
    assert message["In-Reply-To"] == message["References"] == "<one@example.org>"
    assert message["Date"] == "Tue, 14 Nov 2023 22:13:20 +0000"


@pytest.mark.parametrize(
    "given_id",
    [None, "", "no at sign", "<a@b> <c@d>", "<a@b", "<a\r\nX: y@b>", "<" + "a" * 900 + "@b>", "<ä@b>"],
)
def test_references_are_left_out_unless_exactly_one_message_id_parses(given_id: str | None) -> None:
    message = email.message_from_bytes(written(replace(ORIGINAL, message_id=given_id)).content)
    assert message["References"] is None
    assert message["In-Reply-To"] is None


def test_references_always_has_brackets_H19() -> None:
    assert b"\r\nReferences: <one@example.org>\r\n" in written(replace(ORIGINAL, message_id="one@example.org")).content


def test_the_message_fields_name_reporter_envelope_and_arrival_DSN_14() -> None:
    fields = status_of(written(replace(ORIGINAL, envelope_id="QQ+2B314", future_release="for;600")))[0]
    assert fields["Original-Envelope-Id"] == "QQ+314"
    assert fields["Reporting-MTA"] == "dns; mx.example.org"
    assert fields["Arrival-Date"] == "Tue, 14 Nov 2023 22:13:20 +0000"
    assert fields["Future-Release-Request"] == "for;600"
    assert status_of(written())[0]["Original-Envelope-Id"] is None


def test_the_recipient_fields_keep_case_and_quote_the_whole_reply_DSN_15_DSN_16a_H9_H20() -> None:
    fields = status_of(written(ORIGINAL, replace(FAILED, original_recipient="rfc822;Bob+2BList@Example.COM")))[1]
    assert fields["Original-Recipient"] == "rfc822; Bob+List@Example.COM"
    assert fields["Final-Recipient"] == "rfc822; Bob@Example.COM"
    assert fields["Action"] == "failed"
    assert fields["Status"] == "5.1.1"
    assert fields["Remote-MTA"] == "dns; mx.example.com (192.0.2.1)"
    diagnostic = re.sub(r"\s+", " ", fields["Diagnostic-Code"])
    assert diagnostic == "smtp; 550 5.1.1 no such user 5.1.1 see https://example.com/help"
    assert fields["Last-Attempt-Date"] == "Tue, 14 Nov 2023 22:15:00 +0000"
    assert fields["Will-Retry-Until"] is None


def test_without_a_remote_server_there_is_no_remote_mta_and_no_diagnostic_DSN_16a() -> None:
    fields = status_of(written(ORIGINAL, replace(FAILED, reply=None, status=EnhancedCode(4, 4, 7), reason="expired")))[
        1
    ]
    assert fields["Remote-MTA"] is None
    assert fields["Diagnostic-Code"] is None
    assert fields["Status"] == "4.4.7 (expired)"


@pytest.mark.parametrize(
    ("host", "shown"),
    [
        ("127.0.0.1", "dns; [127.0.0.1]"),
        ("2001:db8:0::1", "dns; [IPv6:2001:db8::1]"),
        ("[2001:db8::1]", "dns; [IPv6:2001:db8::1]"),
        ("mx.example.com", "dns; mx.example.com"),
        ("127.0.0.example", "dns; 127.0.0.example"),
    ],
)
def test_a_next_hop_that_is_an_address_is_named_by_its_literal_DSN_16b(host: str, shown: str) -> None:
    fields = status_of(written(ORIGINAL, replace(FAILED, remote_host=host, remote_ip=None)))[1]
    assert fields["Remote-MTA"] == shown


def test_an_unknown_address_is_not_shown_as_an_empty_comment_H9() -> None:
    assert status_of(written(ORIGINAL, replace(FAILED, remote_ip=None)))[1]["Remote-MTA"] == "dns; mx.example.com"


def test_only_a_delayed_notification_says_until_when_DSN_18_H18() -> None:
    later = replace(FAILED, kind=DsnKind.DELAYED, will_retry_until=1_700_050_400.0)
    dsn = written(ORIGINAL, later)
    assert dsn.subject == "Mail delivery delayed"
    assert status_of(dsn)[1]["Will-Retry-Until"] == "Wed, 15 Nov 2023 12:13:20 +0000"
    assert b"Attempts continue until Wed, 15 Nov 2023 12:13:20 +0000." in dsn.content
    assert status_of(written(ORIGINAL, replace(FAILED, will_retry_until=1.0)))[1]["Will-Retry-Until"] is None


def test_recipients_of_one_transaction_share_a_notification_DSN_21() -> None:
    others = [replace(FAILED, recipient=f"r{i}@example.com") for i in range(5)]
    groups = status_of(written(ORIGINAL, *others))
    assert [g["Final-Recipient"] for g in groups[1:]] == [f"rfc822; r{i}@example.com" for i in range(5)]


def test_recipients_that_are_not_listed_are_counted_for_people_DSN_26c() -> None:
    dsn = build(ORIGINAL, (FAILED,), REPORTER, message_id="<dsn@mx.example.org>", boundary="=_b", now=1.7e9, unlisted=9)
    assert b"\r\n9 more recipients are not listed here.\r\n" in dsn.content
    assert len(status_of(dsn)) == 2
    assert b"not listed" not in written().content


@pytest.mark.parametrize("kind", list(DsnKind))
def test_every_kind_says_its_action_and_reads_back_DSN_17(kind: DsnKind) -> None:
    dsn = written(ORIGINAL, replace(FAILED, kind=kind))
    assert read(dsn.content).recipients[0].action is kind
    assert status_of(dsn)[1]["Action"] == kind.value


def test_a_null_return_path_is_never_answered_DSN_10() -> None:
    with pytest.raises(ValueError, match="someone to tell"):
        written(replace(ORIGINAL, reverse_path=""))


@pytest.mark.parametrize(
    ("facts", "full"),
    [
        ({}, True),
        ({"ret_full": False}, False),
        ({"size": 2000}, False),
        ({"tls_required": True}, False),
        ({"kind": DsnKind.DELAYED}, False),
        ({"kind": DsnKind.RELAYED}, False),
        ({"authenticated": False}, True),
        ({"authenticated": False, "size": 65_536, "limit": 100_000}, True),
        ({"authenticated": False, "size": 65_537, "limit": 100_000}, False),  # DSN-26c
    ],
)
def test_the_whole_message_returns_only_when_asked_failed_small_and_unprotected_DSN_19(
    facts: dict[str, object], full: bool
) -> None:
    asked: dict[str, Any] = {"ret_full": True, "size": 1000, "tls_required": False, "kind": DsnKind.FAILED}
    assert returns_full(**{**asked, "authenticated": True, "limit": 1500, **facts}) is full


def test_ret_full_returns_the_message_and_re_encodes_nothing_DSN_19() -> None:
    part = parts_of(written(replace(ORIGINAL, content=CONTENT)))[2]
    assert part.get_content_type() == "message/rfc822"
    assert b"body text" in written(replace(ORIGINAL, content=CONTENT)).content


def test_an_original_with_an_eight_bit_header_comes_back_as_headers_only_DSN_20() -> None:
    header = HEADER + "X-Note: grüß\r\n".encode()
    dsn = written(replace(ORIGINAL, header=header, content=header + b"\r\n\xfc\r\n"))
    assert_harmless(dsn.content)
    part = parts_of(dsn)[2]
    assert part.get_content_type() == "text/rfc822-headers"
    assert part.get_payload(decode=True) == header


def test_an_original_with_a_lone_line_end_in_its_header_comes_back_as_headers_only_DSN_20() -> None:
    header = HEADER + b"X-Note: a\nb\r\n"
    dsn = written(replace(ORIGINAL, header=header, content=header + b"\r\n\xfc\r\n"))
    assert_harmless(dsn.content)
    assert parts_of(dsn)[2].get_content_type() == "text/rfc822-headers"


def test_an_eight_bit_body_comes_back_re_encoded_without_loss_DSN_20() -> None:
    header = (
        HEADER + b"MIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n"
    )
    content = header + "\r\ngrüße\r\n".encode()
    dsn = written(replace(ORIGINAL, header=header, content=content))
    assert_harmless(dsn.content)
    part = parts_of(dsn)[2]
    assert part.get_content_type() == "message/rfc822"
    assert part.get_payload(0).get_content().rstrip() == "grüße"


def test_a_protected_message_s_notification_has_no_body_octet_and_the_same_requirement_RTLS_19a_RTLS_20() -> None:
    dsn = written(replace(ORIGINAL, content=CONTENT, requirement=Requirement.REQUIRED))
    assert dsn.requirement is Requirement.REQUIRED
    assert b"TLS-Required" not in dsn.content
    assert b"body text" not in dsn.content
    assert [p.get_content_type() for p in parts_of(dsn)][2] == "text/rfc822-headers"


def test_the_notification_of_mail_that_goes_without_tls_if_need_be_says_the_same_RTLS_19c() -> None:
    dsn = written(replace(ORIGINAL, content=CONTENT, requirement=Requirement.NO))
    assert dsn.requirement is Requirement.NO
    message = email.message_from_bytes(dsn.content, policy=email.policy.SMTP)
    assert message.get_all("TLS-Required") == ["No"]
    assert written(replace(ORIGINAL, content=CONTENT)).content.count(b"TLS-Required") == 0


def test_internationalized_mail_gets_the_global_types_in_seven_bits_DSN_28() -> None:
    original = replace(ORIGINAL, smtputf8=True, header="Subject: grüß\r\n".encode(), subject="grüß")
    dsn = written(original, replace(FAILED, recipient="bjørn@example.com", original_recipient="utf-8;bj\\x{F8}rn@x"))
    assert_harmless(dsn.content)
    kinds = [part.get_content_type() for part in parts_of(dsn)]
    assert kinds == ["text/plain", "message/global-delivery-status", "message/global-headers"]
    assert parts_of(dsn)[2].get_param("charset") is None
    found = read(dsn.content)
    assert (found.recipients[0].recipient_type, found.recipients[0].recipient) == ("utf-8", "bjørn@example.com")
    assert not dsn.smtputf8


def test_ascii_mail_that_came_with_smtputf8_gets_the_types_that_every_reader_knows_DSN_28() -> None:
    header = (
        HEADER + b"MIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n"
    )
    whole = replace(ORIGINAL, smtputf8=True, header=header, content=header + "\r\ngrüße\r\n".encode())
    for original, third in ((replace(whole, content=None), "text/rfc822-headers"), (whole, "message/rfc822")):
        dsn = written(original)
        kinds = [part.get_content_type() for part in parts_of(dsn)]
        assert kinds == ["text/plain", "message/delivery-status", third]
        assert b"report-type=delivery-status;" in dsn.content


@pytest.mark.parametrize(
    "named", [{"recipient": "bjørn@example.com"}, {"original_recipient": "utf-8;bjørn@example.com"}]
)
def test_the_report_type_is_the_subtype_of_the_second_part_RFC_6522_3(named: dict[str, str]) -> None:
    dsn = written(replace(ORIGINAL, smtputf8=True), replace(FAILED, **named))  # type: ignore[arg-type]
    assert parts_of(dsn)[1].get_content_type() == "message/global-delivery-status"
    assert b"report-type=global-delivery-status;" in dsn.content


def test_a_long_line_comes_back_whole_in_short_ones_DSN_19() -> None:
    header = HEADER + b"MIME-Version: 1.0\r\nContent-Type: text/plain\r\n"
    content = header + b"\r\n" + b"long " * 600 + b"\r\n"
    dsn = written(replace(ORIGINAL, header=header, content=content))
    assert_harmless(dsn.content)
    part = parts_of(dsn)[2]
    assert part.get_content_type() == "message/rfc822"
    assert part.get_payload(0).get_content().rstrip("\r\n") == "long " * 600


def test_a_full_internationalized_original_travels_as_encoded_message_global_DSN_28() -> None:
    header = "Subject: grüß\r\n".encode()
    original = replace(ORIGINAL, smtputf8=True, header=header, content=header + b"\r\nb\xc3\xb8\r\n")
    part = parts_of(written(original))[2]
    assert part.get_content_type() == "message/global"
    assert_harmless(written(original).content)


def test_a_return_path_that_needs_smtputf8_says_so_and_only_its_header_has_utf8() -> None:
    dsn = written(replace(ORIGINAL, reverse_path="jürgen@example.org", smtputf8=True))
    assert dsn.smtputf8
    head, _, body = dsn.content.partition(b"\r\n\r\n")
    assert "To: <jürgen@example.org>".encode() in head
    assert_harmless(body)


def test_a_utf8_address_in_an_ascii_report_is_escaped_DSN_27() -> None:
    assert text.typed_address("bjø+x@a.org", utf8=False) == "utf-8; bj\\x{F8}\\x{2B}x@a.org"
    assert text.original_recipient("utf-8;bjø@a.org", utf8=False) == "utf-8; bj\\x{F8}@a.org"
    assert text.original_recipient("rfc822;not xtext", utf8=False) is None
    assert text.original_recipient("nosemicolon", utf8=False) is None
    assert text.original_recipient("(;comment", utf8=False) is None


def test_a_remote_text_cannot_end_a_comment_a_line_or_the_report_H20() -> None:
    evil = "no) (x\r\nAction: delivered\r\n\r\n--=_b0undary--\r\nBcc: x\0\x1b[2Jü"
    report = replace(FAILED, reason=evil, remote_host=evil, remote_ip=evil, reply=Reply(550, (evil,)))
    dsn = written(ORIGINAL, report)
    assert_harmless(dsn.content)
    groups = status_of(dsn)
    assert len(groups) == 2
    assert groups[1].get_all("Action") == ["failed"]
    assert read(dsn.content).recipients[0].action is DsnKind.FAILED


def test_a_boundary_found_in_the_original_is_changed() -> None:
    original = replace(ORIGINAL, content=HEADER + b"\r\n--=_b0undary\r\n--=_b0undary--\r\n")
    dsn = written(original)
    assert len(parts_of(dsn)) == 3
    assert len(read(dsn.content).recipients) == 1


def test_a_header_is_cut_at_the_first_empty_line_and_at_its_limit() -> None:
    assert header_of(CONTENT) == HEADER
    assert header_of(b"\r\nonly a body") == b""
    assert header_of(HEADER) == HEADER
    endless = b"X: y\r\n" * 100_000
    assert len(header_of(endless)) <= 128 * 1024
    assert header_of(endless).endswith(b"\r\n")


hostile = st.text(max_size=300) | st.text(alphabet='()\\\r\n"<>;:@ a=-', max_size=300)
replies = st.builds(Reply, st.integers(400, 599), st.lists(hostile, min_size=1, max_size=40).map(tuple), st.none())
reports = st.builds(
    DsnRecipient,
    st.sampled_from(list(DsnKind)),
    st.sampled_from(["bob@example.com", '"odd \\" one"@example.com', "x" * 64 + "@example.com", "a@[192.0.2.1]"]),
    st.builds(EnhancedCode, st.sampled_from([4, 5]), st.integers(0, 7), st.integers(0, 999)),
    reason=hostile,
    original_recipient=st.none() | hostile.map(lambda t: "rfc822;" + t) | hostile,
    remote_host=st.none() | hostile,
    remote_ip=st.none() | hostile,
    reply=st.none() | replies,
    last_attempt=st.none() | st.floats(0, 4e9),
    will_retry_until=st.none() | st.floats(0, 4e9),
)
originals = st.builds(
    Original,
    st.sampled_from(["alice@example.org", '"a b"@example.org']),
    st.floats(0, 4e9),
    st.binary(max_size=400) | st.just(HEADER) | hostile.map(lambda t: t.encode("utf-8", "replace")),
    content=st.none() | st.binary(max_size=400) | st.just(CONTENT),
    message_id=st.none() | hostile,
    subject=st.none() | hostile,
    envelope_id=st.none() | hostile,
    smtputf8=st.booleans(),
    requirement=st.sampled_from(Requirement),
    future_release=st.none() | hostile,
)


@given(originals, st.lists(reports, min_size=1, max_size=4).map(tuple))
def test_whatever_goes_in_the_result_is_seven_bit_and_both_parsers_read_it(
    original: Original, given_reports: tuple[DsnRecipient, ...]
) -> None:
    dsn = build(original, given_reports, REPORTER, message_id="<d@mx.example.org>", boundary="=_b", now=1.7e9)
    assert_harmless(dsn.content)
    found = read(dsn.content)
    assert [r.action for r in found.recipients] == [r.kind for r in given_reports]
    assert [r.status for r in found.recipients] == [r.status for r in given_reports]
    assert [r.recipient for r in found.recipients] == [r.recipient for r in given_reports]
    content = None if original.requirement is Requirement.REQUIRED else original.content
    try:
        whole = content is not None and (
            original.smtputf8
            or is_seven_bit(content)
            or is_seven_bit(reencode(content, Target.SEVEN_BIT, longest_line=998))
        )
    except Unconvertible:
        whole = False
    parts = parts_of(dsn)
    assert len(parts) == 2 + (whole or bool(original.header))
    outer = email.message_from_bytes(dsn.content)
    assert f"message/{outer.get_param('report-type')}" == parts[1].get_content_type()
    if parts[1].get_content_type() == "message/delivery-status":
        groups = status_of(dsn)
        assert len(groups) == 1 + len(given_reports)
        assert [g["Action"] for g in groups[1:]] == [r.kind.value for r in given_reports]
