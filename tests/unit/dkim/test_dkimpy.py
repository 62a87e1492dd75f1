"""dkimpy and we read each other's signatures: two programs without a line in common."""

import base64

import dkim
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from mailrail.core.dkim.key import write_key_record
from mailrail.core.dkim.sign import SIGNED_BODY, SigningKey, sign
from mailrail.core.dkim.signature import KeyName
from mailrail.core.dkim.verify import DkimOutcome

from testkit.signed_mail import dkim_results, ed25519_key, from_table, hashed, rsa_key, split

NOW = 1_767_225_600.0
KEYS = (SigningKey(KeyName("example.com", "r"), rsa_key()), SigningKey(KeyName("example.com", "e"), ed25519_key()))
TABLE = {str(key.name): write_key_record(key.key.public_key()) for key in KEYS}
MESSAGE = (
    b"From: Ann <ann@example.com>\r\nTo: bob@example.net\r\nSubject: lunch\r\n  at one\r\nDate: today\r\n"
    b"Received: from a\r\n\tby b; c\r\nMime-Version: 1.0\r\n\r\nAt  one? \r\n\t\r\nAnn\r\n\r\n"
)


def lookup(name: bytes, timeout: int = 5) -> bytes | None:
    record = TABLE.get(name.decode().rstrip("."))
    return None if record is None else record.encode()


def theirs(message: bytes, number: int) -> bool:
    verdict: bool = dkim.DKIM(message, minkey=1024).verify(idx=number, dnsfunc=lookup)
    return verdict


@pytest.mark.parametrize("body", [b"", b"\r\n\r\n", b"no line end", b" \t\r\n a  b\t\r\n\r\n", b"x\r\n" * 1000])
def test_dkimpy_verifies_what_we_sign_DKIM_08b(body: bytes) -> None:
    header, _ = split(MESSAGE)
    message = header.block + b"\r\n" + body
    signed = sign(header, hashed([SIGNED_BODY], body)[SIGNED_BODY], KEYS, NOW) + message
    assert theirs(signed, 0)
    assert theirs(signed, 1)
    assert not theirs(signed.replace(b"lunch", b"dinner"), 0)
    assert not theirs(signed.replace(b"\r\nTo:", b"\r\nFrom: eve@example.org\r\nTo:"), 1)


def signed_by_dkimpy(message: bytes, key: SigningKey, form: tuple[bytes, bytes]) -> bytes:
    if key is KEYS[0]:
        secret = rsa_key().private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    else:
        secret = base64.b64encode(ed25519_key().private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption()))
    signer = dkim.DKIM(message, signature_algorithm=key.algorithm.value)
    field: bytes = signer.sign(key.name.selector.encode(), key.name.domain.encode(), secret, canonicalize=form)
    return field + message


LINES = st.lists(st.sampled_from([b"text", b" ", b"\t", b"\r\n", b".", b"\xc3\xa9"]), max_size=25).map(b"".join)


@pytest.mark.parametrize("key", KEYS, ids=lambda key: key.algorithm.name)
@given(
    st.sampled_from([(header, body) for header in (b"simple", b"relaxed") for body in (b"simple", b"relaxed")]), LINES
)
@settings(max_examples=40, deadline=None)
def test_we_verify_what_dkimpy_signs_DKIM_06(key: SigningKey, form: tuple[bytes, bytes], body: bytes) -> None:
    header, _ = split(MESSAGE)
    # As SMTP carries it: in a last line without line end, dkimpy keeps the blanks.
    signed = signed_by_dkimpy(header.block + b"\r\n" + body + b"\r\n", key, form)
    (result,) = dkim_results(signed, from_table(TABLE), NOW)
    assert result.outcome is DkimOutcome.PASS, result.reason
    (result,) = dkim_results(signed + b"appended\r\n", from_table(TABLE), NOW)
    assert result.outcome is DkimOutcome.FAIL
