"""Verifiers in place of passwords: stable, standard, and silent about what they hide (CFG-03)."""

import base64

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scramp import ScramClient, ScramMechanism

from mailrail.core.revision.sealing import Keyring
from mailrail.core.sasl.verifiers import InvalidCredentials, ScramVerifier, derive_verifier, read_password

KEYS = Keyring({"1": bytes(32)})


@pytest.mark.parametrize("mechanism", ["SCRAM-SHA-256", "SCRAM-SHA-1"])
def test_a_client_with_the_password_logs_in_against_the_verifier(mechanism: str) -> None:
    verifier = ScramVerifier.parse(str(derive_verifier(mechanism, "pencil", "uid", KEYS)))
    server = ScramMechanism(mechanism).make_server(
        lambda user: (verifier.salt, verifier.stored_key, verifier.server_key, verifier.iterations)
    )
    client = ScramClient([mechanism], "user", "pencil")
    server.set_client_first(client.get_client_first())
    client.set_server_first(server.get_server_first())
    server.set_client_final(client.get_client_final())
    client.set_server_final(server.get_server_final())  # raises unless the server proved itself


def test_the_vector_of_rfc_7677_is_admitted() -> None:
    # RFC 7677 section 3: user, pencil, this salt, 4096 iterations.
    salt = base64.b64decode("W22ZaJ0SNY7soEsUEjb6gQ==")
    made = ScramMechanism("SCRAM-SHA-256").make_auth_info("pencil", iteration_count=4096, salt=salt)
    verifier = ScramVerifier("SCRAM-SHA-256", 4096, salt, made[1], made[2])
    assert verifier.admits("pencil")
    assert not verifier.admits("pencil ")
    assert base64.b64encode(verifier.stored_key).decode() == "WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY="


def test_the_same_account_password_and_key_give_the_same_verifier_CFG_03() -> None:
    first = derive_verifier("SCRAM-SHA-256", "pencil", "uid-1", KEYS)
    assert first == derive_verifier("SCRAM-SHA-256", "pencil", "uid-1", Keyring({"1": bytes(32)}))
    others = [
        derive_verifier("SCRAM-SHA-256", "pencil", "uid-2", KEYS),
        derive_verifier("SCRAM-SHA-256", "Pencil", "uid-1", KEYS),
        derive_verifier("SCRAM-SHA-1", "pencil", "uid-1", KEYS),
        derive_verifier("SCRAM-SHA-256", "pencil", "uid-1", Keyring({"1": bytes(31) + b"\x01"})),
    ]
    assert len({first.salt, *(o.salt for o in others)}) == 5


@settings(max_examples=25)
@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=40))
def test_the_text_form_reads_back_and_admits_only_its_password(password: str) -> None:
    verifier = derive_verifier("SCRAM-SHA-1", password, "uid", KEYS)
    again = ScramVerifier.parse(str(verifier))
    assert again == verifier
    assert again.admits(password)
    assert not again.admits(password + "x")
    assert repr(verifier) == "ScramVerifier(SCRAM-SHA-1)"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "should look like"),
        ("pencil", "should look like"),
        ("SCRAM-SHA-512$4096:AAAA$AAAA:AAAA", "should look like"),
        ("SCRAM-SHA-256$4096:AAAA$AAAA:AAAA", "have 32 octets each"),
        ("SCRAM-SHA-256$4096:AAA$AAAA:AAAA", "base64 is broken"),
        (f"SCRAM-SHA-1$1000:AAAA${'A' * 26}A=:{'A' * 26}A=", "iterations must be 4096 to 1000000"),
        (f"SCRAM-SHA-1$9999999:AAAA${'A' * 26}A=:{'A' * 26}A=", "iterations must be 4096 to 1000000"),
    ],
)
def test_a_verifier_that_cannot_be_used_is_refused(text: str, message: str) -> None:
    with pytest.raises(InvalidCredentials, match=message):
        ScramVerifier.parse(text)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (b"", "is empty"),
        (b"\n", "is empty"),
        (b"\xff\xfe", "is not UTF-8"),
        (b"x" * 1025, "longer than 1024 octets"),
        (b"a\x07b", "characters that SASLprep"),
        ("a\u0627\u0031".encode(), "characters that SASLprep"),
    ],
)
def test_a_password_that_nobody_could_log_in_with_is_refused_and_not_repeated(value: bytes, message: str) -> None:
    with pytest.raises(InvalidCredentials, match=message) as refused:
        read_password(value)
    assert refused.value.__cause__ is None or b"\xff" in value
    assert "\x07" not in str(refused.value)


def test_a_line_end_after_a_password_is_the_work_of_echo() -> None:
    assert read_password(b"secret\n") == read_password(b"secret\r\n") == read_password(b"secret") == "secret"
    assert read_password(b" secret ") == " secret "
