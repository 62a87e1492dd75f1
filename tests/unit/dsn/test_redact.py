"""Notifications without what they return (RFC 8689 5)."""

import email
import email.policy
import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailrail.core.dsn.build import DsnRecipient, Original, ReportingMta, build
from mailrail.core.dsn.due import DsnKind
from mailrail.core.dsn.redact import CONTENT_LIMIT, redact
from mailrail.core.smtp.reply import EnhancedCode
from mailrail.core.tlspolicy.facts import Requirement

HEADER = b"From: Ada <ada@ours.example>\r\nSubject: the merger\r\nMessage-ID: <m1@ours.example>\r\n"
ORIGINAL = Original(
    "ada@ours.example",
    1_795_370_400.0,
    HEADER,
    message_id="<m1@ours.example>",
    subject="the merger",
    requirement=Requirement.REQUIRED,
)
FAILED = DsnRecipient(DsnKind.FAILED, "bob@there.example", EnhancedCode(5, 1, 1), reason="no such user")


def notification(original: Original = ORIGINAL) -> bytes:
    reporter = ReportingMta("mx.ours.example", "postmaster@ours.example")
    return build(original, (FAILED,), reporter, message_id="<d1@ours.example>", boundary="b=1", now=1.0).content


@pytest.mark.parametrize("smtputf8", [False, True])
def test_what_our_own_notification_returns_goes_and_the_rest_stays(smtputf8: bool) -> None:
    header = HEADER + "X-Name: ж\r\n".encode() if smtputf8 else HEADER
    whole = notification(replace(ORIGINAL, header=header, smtputf8=smtputf8))
    assert b"the merger" in whole or b"=D0=B6" in whole
    redacted = redact(whole)
    assert redacted is not None
    assert b"merger" not in redacted
    assert b"Ada" not in redacted
    before = email.message_from_bytes(whole, policy=email.policy.default)
    after = email.message_from_bytes(redacted, policy=email.policy.default)
    assert after.items() == before.items()
    assert [str(part) for part in after.iter_parts()] == [str(part) for part in before.iter_parts()][:2]
    assert not after.defects
    assert b"bob@there.example" in redacted
    assert redact(redacted) == redacted


def report(boundary: str, *parts: str, kind: str = "multipart/report") -> bytes:
    inside = "".join(f"\r\n--{boundary.strip(chr(34))}\r\n\r\n{part}" for part in parts)
    head = f"Subject: x\r\nContent-Type: {kind};\r\n\tboundary={boundary}\r\n"
    return f"{head}\r\npreamble{inside}\r\n--{boundary.strip(chr(34))}--\r\nepilogue\r\n".encode()


@pytest.mark.parametrize("boundary", ["b", '"b b"', '"(b)+.*"', "'b'"])
def test_reports_of_others_are_read_too(boundary: str) -> None:
    redacted = redact(report(boundary, "words", "fields", "secret", "more secret"))
    assert redacted is not None
    assert b"secret" not in redacted
    assert b"epilogue" not in redacted
    assert redacted == report(boundary, "words", "fields").removesuffix(b"epilogue\r\n")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"Subject: x\r\n\r\nbody\r\n",
        report("b", "words", "fields", "secret", kind="multipart/mixed"),
        report("b", "words"),
        report("b", "words", "fields", "secret").replace(b"--b--", b"--b"),
        report("b", "words", "fields", "secret").replace(b"Subject: x", b"Content-Type: text/plain"),
        report("b", "words", "fields", "secret").replace(b"boundary=b", b"type=b"),
        report("b", "words", "fields", "secret").replace(b"boundary=b", b"boundary=b c"),
        report("b", "words", "fields", "secret").replace(b"\r\n\r\npreamble", b""),
        report("b", "words", "fields", "x" * CONTENT_LIMIT),
    ],
)
def test_what_is_no_report_or_cannot_be_read_for_certain_is_left_alone(content: bytes) -> None:
    assert redact(content) is None


@pytest.mark.parametrize("line", [b"\r\n--b", b"\r\n--b ", b"\r\n--b--x", b"\r\n--b" + b" " * 500])
def test_a_report_of_very_many_delimiters_takes_no_longer(line: bytes) -> None:
    head = b"Content-Type: multipart/report; boundary=b\r\n\r\n"
    content = head + line * (CONTENT_LIMIT // len(line) - 100)
    begun = time.process_time()
    for whole in (content, content + b"\r\n--b--\r\n"):
        redact(whole)
    assert time.process_time() - begun < 5  # by the square of its length it would be far more


@given(st.lists(st.sampled_from([b"\r\n--b", b"--b--\r\n", b"--", b"\r\n", b"x", b"--b "]), max_size=12).map(b"".join))
def test_nothing_is_added_and_at_most_two_parts_are_left(body: bytes) -> None:
    head = b"Content-Type: multipart/report; boundary=b\r\n\r\n"
    redacted = redact(head + body)
    if redacted is not None:
        assert (head + body).startswith(redacted.removesuffix(b"\r\n--b--\r\n"))
        parsed = email.message_from_bytes(redacted)
        assert len(parsed.get_payload()) <= 2
