"""OpenDKIM and we read each other's signatures."""

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from mailrail.core.dkim.key import write_key_record
from mailrail.core.dkim.sign import SIGNED_BODY, SigningKey, sign
from mailrail.core.dkim.signature import KeyName
from mailrail.core.dkim.verify import DkimOutcome

from testkit.peers import opendkim
from testkit.signed_mail import dkim_results, ed25519_key, from_table, hashed, rsa_key, split

NOW = 1_767_225_600.0
KEYS = (SigningKey(KeyName("example.com", "r"), rsa_key()), SigningKey(KeyName("example.com", "e"), ed25519_key()))
TABLE = {str(key.name): write_key_record(key.key.public_key()) for key in KEYS}
MESSAGE = (
    b"From: Ann <ann@example.com>\r\nTo: bob@example.net\r\nSubject: lunch\r\n  at one\r\n"
    b"Date: Thu, 01 Jan 2026 12:00:00 +0000\r\nMessage-ID: <1@example.com>\r\n\r\nAt  one? \r\n\t\r\nAnn\r\n\r\n"
)


@pytest.mark.peer("opendkim")
def test_opendkim_verifies_what_we_sign_DKIM_08b() -> None:
    header, body = split(MESSAGE)
    signed = sign(header, hashed([SIGNED_BODY], body)[SIGNED_BODY], KEYS, NOW) + MESSAGE
    assert opendkim.verify(signed, TABLE) == [("pass", "rsa-sha256"), ("pass", "ed25519-sha256")]
    changed = signed.replace(b"Ann\r\n\r\n", b"Eve\r\n\r\n")
    assert opendkim.verify(changed, TABLE) == [("fail", "rsa-sha256"), ("fail", "ed25519-sha256")]


@pytest.mark.peer("opendkim")
@pytest.mark.parametrize("form", ["simple/simple", "simple/relaxed", "relaxed/simple", "relaxed/relaxed"])
def test_we_verify_what_opendkim_signs_DKIM_06(form: str) -> None:
    pem = rsa_key().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    signed = opendkim.sign(MESSAGE, "example.com", "r", pem, form)
    (result,) = dkim_results(signed, from_table(TABLE), NOW)
    assert (result.outcome, result.domain) == (DkimOutcome.PASS, "example.com"), result.reason
    (result,) = dkim_results(signed.replace(b"lunch", b"dinner"), from_table(TABLE), NOW)
    assert result.outcome is DkimOutcome.FAIL
