"""What we sign verifies, by our own verifier here, and carries what DKIM-08b promises."""

import re

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1
from cryptography.hazmat.primitives.asymmetric.ec import generate_private_key as generate_ec_key
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from hypothesis import given
from hypothesis import strategies as st

from mailrail.core.dkim.key import read_key_record, record_strings, write_key_record
from mailrail.core.dkim.sign import (
    OVERSIGNED,
    PEM_SIZE,
    SIGNED_BODY,
    SIGNED_FIELDS,
    SigningError,
    SigningKey,
    check_keys,
    read_private_key,
    sign,
    signed_names,
    signing_key,
)
from mailrail.core.dkim.signature import KeyName
from mailrail.core.dkim.verify import DkimOutcome, DkimResult
from mailrail.core.message.header import Header

from testkit.signed_mail import dkim_results, ed25519_key, from_table, hashed, rsa_key, split

NOW = 1_767_225_600.0
RSA = SigningKey(KeyName("example.com", "r2026"), rsa_key())
ED25519 = SigningKey(KeyName("example.com", "e2026"), ed25519_key())
TABLE = {str(key.name): write_key_record(key.key.public_key()) for key in (RSA, ED25519)}
MESSAGE = (
    b"Received: from a.example\r\n\tby b.example; Thu, 1 Jan 2026 00:00:00 +0000\r\n"
    b"From: Ann <ann@example.com>\r\nTo: bob@example.net\r\nSubject: lunch\r\n at one\r\nDate: today\r\n"
    b"Message-ID: <1@example.com>\r\nX-Mine: 1\r\nList-Unsubscribe: <https://e.example/>\r\n\r\nAt one?\r\n\r\nAnn\r\n"
)


def signed(message: bytes = MESSAGE, *keys: SigningKey) -> bytes:
    header, body = split(message)
    return sign(header, hashed([SIGNED_BODY], body)[SIGNED_BODY], keys or (RSA, ED25519), NOW) + message


def results(message: bytes) -> tuple[DkimResult, ...]:
    return dkim_results(message, from_table(TABLE), NOW)


def pem(key: object, password: bytes | None = None) -> bytes:
    encryption = NoEncryption() if password is None else BestAvailableEncryption(password)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)  # type: ignore[attr-defined, no-any-return]


def unfolded(message: bytes) -> list[str]:
    return [re.sub(r"\s+", " ", each.text) for each in Header(message).named(b"dkim-signature")]


def test_both_signatures_verify_and_name_their_keys_DKIM_08b() -> None:
    judged = results(signed())
    assert [(str(each.outcome), each.selector, each.algorithm) for each in judged] == [
        ("pass", "r2026", "rsa-sha256"),
        ("pass", "e2026", "ed25519-sha256"),
    ]


def test_the_field_says_what_it_promises_and_no_length_DKIM_08b() -> None:
    first, _ = unfolded(signed())
    assert first.startswith("v=1; a=rsa-sha256; c=relaxed/relaxed; d=example.com; s=r2026; t=1767225600; h=from:from:")
    assert "l=" not in first.partition(" bh=")[0]
    assert "x-mine" not in first
    assert "received" not in first


def test_lines_of_the_field_are_short_and_end_in_crlf() -> None:
    made = signed()[: -len(MESSAGE)]
    lines = made.split(b"\r\n")
    assert lines.pop() == b""
    assert max(map(len, lines)) <= 78
    assert b"\n" not in b"".join(lines)


@pytest.mark.parametrize("name", sorted(OVERSIGNED))
def test_a_field_that_is_added_later_breaks_the_signature_DKIM_08b(name: bytes) -> None:
    made = signed()
    for place in (b"Received:", b"X-Mine:"):
        added = made.replace(b"\r\n" + place, b"\r\n" + name.title() + b": added\r\n" + place, 1)
        assert added != made
        assert [each.outcome for each in results(added)] == [DkimOutcome.FAIL] * 2


def test_what_lists_and_hosts_do_on_the_way_breaks_nothing() -> None:
    made = signed()
    for added in (b"Reply-To: list@lists.example\r\n", b"List-Id: <l.lists.example>\r\n", b"Received: by x; y\r\n"):
        assert [each.outcome for each in results(added + made)] == [DkimOutcome.PASS] * 2
    refolded = made.replace(b"lunch\r\n at one", b"lunch at\r\n\tone").replace(b"At one?\r\n", b"At  one? \t\r\n")
    assert [each.outcome for each in results(refolded + b"\r\n")] == [DkimOutcome.PASS] * 2


def test_each_field_is_named_as_often_as_it_is_there_and_oversigned_ones_once_more_DKIM_08b() -> None:
    header = Header(b"TO: a@b\r\nFrom: a@b\r\nto: c@d\r\nResent-To: x@y\r\nBcc: e@f\r\n")
    names = signed_names(header)
    assert names.count(b"to") == 3
    assert names.count(b"from") == 2
    assert names.count(b"subject") == 1
    assert names.count(b"resent-to") == 1
    assert b"bcc" not in names
    assert set(names) <= set(SIGNED_FIELDS)


def test_a_message_without_from_or_with_hundreds_of_fields_is_not_signed() -> None:
    with pytest.raises(SigningError, match="no From"):
        signed(b"To: a@b\r\n\r\n")
    with pytest.raises(SigningError, match="more than 200"):
        signed(b"From: a@b\r\n" + b"To: a@b\r\n" * 250 + b"\r\n")


def test_ed25519_never_signs_alone_DKIM_08b() -> None:
    with pytest.raises(SigningError, match=r"example\.com has an Ed25519 key alone"):
        signed(MESSAGE, ED25519)
    other = SigningKey(KeyName("example.org", "e"), ed25519_key())
    with pytest.raises(SigningError, match=r"example\.org has"):
        check_keys([RSA, other])
    check_keys([RSA, ED25519])
    check_keys([RSA])


def test_two_keys_have_two_selectors_DKIM_08b() -> None:
    with pytest.raises(SigningError, match="another selector"):
        check_keys([RSA, SigningKey(RSA.name, ed25519_key())])


def test_rsa_and_ed25519_keys_are_read_from_pem() -> None:
    assert signing_key("Bücher.Example", "Sel_1", pem(rsa_key())).name == KeyName("xn--bcher-kva.example", "sel_1")
    assert read_private_key(pem(ed25519_key())).public_key() == ed25519_key().public_key()


@pytest.mark.parametrize(
    ("octets", "wrong"),
    [
        (b"", "no private key in PEM"),
        (b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "no private key in PEM"),
        (b"x" * (PEM_SIZE + 1), "are read"),
        (pem(generate_ec_key(SECP256R1())), "neither RSA nor Ed25519"),
        (pem(rsa_key(1024)), "has 1024 bits: make one of 2048"),
        (pem(ed25519_key(), b"secret"), "encrypted with a password"),
    ],
)
def test_a_key_that_cannot_sign_is_refused_with_what_to_do_DKIM_08b(octets: bytes, wrong: str) -> None:
    with pytest.raises(SigningError, match=wrong):
        read_private_key(octets)


@pytest.mark.parametrize(
    ("domain", "selector"), [("", "s"), ("a..b", "s"), ("example.com", ""), ("example.com", "a b")]
)
def test_a_domain_or_selector_that_is_none_is_refused(domain: str, selector: str) -> None:
    with pytest.raises(SigningError, match="domain or selector"):
        signing_key(domain, selector, pem(rsa_key()))


def test_a_key_is_never_shown() -> None:
    assert "key=" not in repr(RSA).replace("RSAPrivateKey", "")


def test_the_record_of_a_key_is_read_back_and_fits_into_strings() -> None:
    for key in (RSA, ED25519):
        text = write_key_record(key.key.public_key())
        assert read_key_record(text.encode()).key == key.key.public_key()
        assert "s=" not in text.partition("p=")[0]
        strings = record_strings(text)
        assert "".join(strings) == text
        assert all(0 < len(each) <= 255 for each in strings)
    assert len(record_strings(TABLE[str(RSA.name)])) == 2


HEADERS = st.lists(
    st.tuples(
        st.sampled_from([b"Subject", b"TO", b"Cc", b"X-A", b"Received", b"From", b"content-type"]),
        st.lists(st.sampled_from([b"x", b" ", b"\t", b"\r\n ", b"\xc3\xa9", b"\xff", b":"]), max_size=8).map(b"".join),
    ),
    max_size=8,
)
BODIES = st.lists(st.sampled_from([b"a", b" ", b"\t", b"\r\n", b"\r", b"\n", b"\x00", b".", b"\xff"]), max_size=30)


@given(HEADERS, BODIES.map(b"".join), st.integers(1, 5))
def test_whatever_we_sign_verifies_DKIM_08b(fields: list[tuple[bytes, bytes]], body: bytes, size: int) -> None:
    message = b"From: a@example.com\r\n" + b"".join(n + b":" + v + b"\r\n" for n, v in fields) + b"\r\n" + body
    judged = dkim_results(signed(message), from_table(TABLE), NOW, size)
    assert [each.outcome for each in judged] == [DkimOutcome.PASS] * 2
