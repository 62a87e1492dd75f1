"""SASL from the client's side: choice of mechanism, RFC vectors, and servers that cheat (AUTH-08, SCR-01, CRAM-01)."""

import base64

import pytest

from mailrail.core.sasl.client import (
    MAX_ITERATIONS,
    ChannelBinding,
    Credentials,
    Hashing,
    Mechanism,
    NoMechanism,
    SaltedPasswords,
    SaslError,
    choose,
    start,
)

USER = Credentials("user", "pencil")
BINDING = ChannelBinding("tls-server-end-point", b"\x01" * 32)


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        (["PLAIN", "LOGIN", "CRAM-MD5", "SCRAM-SHA-1", "SCRAM-SHA-256", "SCRAM-SHA-256-PLUS"], "SCRAM-SHA-256-PLUS"),
        (["PLAIN", "SCRAM-SHA-1-PLUS", "SCRAM-SHA-256"], "SCRAM-SHA-256"),
        (["PLAIN", "SCRAM-SHA-1"], "SCRAM-SHA-1"),
        (["LOGIN", "PLAIN", "CRAM-MD5"], "CRAM-MD5"),
        (["LOGIN", "PLAIN"], "PLAIN"),
        (["login", "GSSAPI"], "LOGIN"),
    ],
)
def test_the_strongest_offered_mechanism_is_chosen_AUTH_08(offered: list[str], chosen: str) -> None:
    assert choose(offered, binding=BINDING, password_may_be_shown=True) == chosen


def test_a_configured_order_wins_over_strength() -> None:
    offered = ["SCRAM-SHA-256", "PLAIN", "CRAM-MD5"]
    assert choose(offered, preference=["CRAM-MD5", "SCRAM-SHA-256"], password_may_be_shown=True) is Mechanism.CRAM_MD5


def test_plus_is_skipped_without_a_channel_binding() -> None:
    offered = ["SCRAM-SHA-256-PLUS", "SCRAM-SHA-256"]
    assert choose(offered, password_may_be_shown=True) is Mechanism.SCRAM_SHA_256


def test_the_password_is_never_shown_to_an_unproven_server_AUTH_08() -> None:
    with pytest.raises(NoMechanism, match="TLS is not verified"):
        choose(["PLAIN", "LOGIN"], password_may_be_shown=False)


def test_no_common_mechanism_names_what_the_server_offers() -> None:
    with pytest.raises(NoMechanism, match="offers GSSAPI, NTLM"):
        choose(["NTLM", "GSSAPI"], password_may_be_shown=True)


def test_scram_sha_1_runs_as_in_rfc_5802_section_5() -> None:
    run = start(Mechanism.SCRAM_SHA_1, USER, nonce="fyko+d2lbbFgONRv9qkxdawL")
    assert run.initial() == b"n,,n=user,r=fyko+d2lbbFgONRv9qkxdawL"
    final = run.respond(b"r=fyko+d2lbbFgONRv9qkxdawL3rfcNHYJY1ZVvWVs7j,s=QSXCR+Q6sek8bf92,i=4096")
    assert final == b"c=biws,r=fyko+d2lbbFgONRv9qkxdawL3rfcNHYJY1ZVvWVs7j,p=v0X8v3Bz2T0CJGbJQyF0X+HI4Ts="
    assert run.respond(b"v=rmF9pqV8S7suAoZWja4dJRkFsKQ=") == b""
    run.verify_success()


def _sha256() -> tuple[object, bytes]:
    run = start(Mechanism.SCRAM_SHA_256, USER, nonce="rOprNGfwEbeRWgbNEkqO")
    run.initial()
    return run, b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"


def test_scram_sha_256_runs_as_in_rfc_7677_section_3() -> None:
    run = start(Mechanism.SCRAM_SHA_256, USER, nonce="rOprNGfwEbeRWgbNEkqO")
    assert run.initial() == b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO"
    assert not run.proof_sent
    final = run.respond(_sha256()[1])
    assert run.proof_sent
    assert final == (
        b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
    )
    assert run.respond(b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=") == b""
    run.verify_success()


@pytest.mark.parametrize(
    "server_first",
    [
        b"r=other,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096",
        b"r=NONCE,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096",  # ours, not continued
        b"m=ext,r=NONCEx,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096",
        b"r=NONCEx,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=1",
        b"r=NONCEx,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=%d" % (MAX_ITERATIONS + 1),
        b"r=NONCEx,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=-4096",
        b"r=NONCEx,s=!!!,i=4096",
        b"r=NONCEx,s=,i=4096",
        b"r=NONCEx,i=4096",
        b"e=unsupported-channel-binding-type",
        b"",
        b"\xff\xfe",
    ],
)
def test_a_server_first_message_that_breaks_the_rules_ends_scram_SCR_01(server_first: bytes) -> None:
    run = start(Mechanism.SCRAM_SHA_256, USER, nonce="NONCE")
    with pytest.raises(SaslError):
        run.respond(server_first)
    assert not run.proof_sent


@pytest.mark.parametrize("server_final", [b"v=AAAA", b"v=", b"e=other-error", b"x=1", b""])
def test_a_server_that_cannot_prove_itself_is_not_believed_SCR_01(server_final: bytes) -> None:
    run = start(Mechanism.SCRAM_SHA_256, USER, nonce="rOprNGfwEbeRWgbNEkqO")
    run.respond(_sha256()[1])
    with pytest.raises(SaslError):
        run.respond(server_final)
    with pytest.raises(SaslError):
        run.verify_success()


def test_success_without_a_signature_is_not_believed_SCR_01() -> None:
    run = start(Mechanism.SCRAM_SHA_256, USER, nonce="rOprNGfwEbeRWgbNEkqO")
    run.respond(_sha256()[1])
    with pytest.raises(SaslError, match="without a SCRAM signature"):
        run.verify_success()


def test_plus_binds_the_channel_into_c() -> None:
    run = start(Mechanism.SCRAM_SHA_256_PLUS, USER, nonce="abc", binding=BINDING, server_offered_plus=True)
    assert run.initial() == b"p=tls-server-end-point,,n=user,r=abc"
    final = run.respond(b"r=abcdef,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096").decode()
    channel = base64.b64decode(final.split(",")[0][2:])
    assert channel == b"p=tls-server-end-point,," + BINDING.data


@pytest.mark.parametrize(
    ("binding", "offered_plus", "flag"), [(None, False, b"n,,"), (BINDING, False, b"y,,"), (BINDING, True, b"n,,")]
)
def test_the_flag_tells_the_truth_about_channel_binding(
    binding: ChannelBinding | None, offered_plus: bool, flag: bytes
) -> None:
    run = start(Mechanism.SCRAM_SHA_256, USER, nonce="abc", binding=binding, server_offered_plus=offered_plus)
    first = run.initial()
    assert first is not None
    assert first.startswith(flag)


def test_comma_and_equals_in_a_user_name_are_escaped_SCR_06() -> None:
    run = start(Mechanism.SCRAM_SHA_1, Credentials("a,b=c", "x"), nonce="abc")
    assert run.initial() == b"n,,n=a=2Cb=3Dc,r=abc"


def test_a_user_name_is_prepared_by_saslprep_SCR_06() -> None:
    run = start(Mechanism.SCRAM_SHA_1, Credentials("I\u00adX", "x"), nonce="abc")  # RFC 4013 3: soft hyphen goes
    assert run.initial() == b"n,,n=IX,r=abc"


def test_cram_md5_runs_as_in_rfc_2195() -> None:
    run = start(Mechanism.CRAM_MD5, Credentials("tim", "tanstaaftanstaaf"), nonce="unused")
    assert run.initial() is None
    answer = run.respond(b"<1896.697170952@postoffice.reston.mci.net>")
    assert answer == b"tim b913a602c7eda7a495b4e6e7334d3890"
    run.verify_success()


@pytest.mark.parametrize("challenge", [b"", b"sign this", b"<a@b>\r\n", b"<a b@c>", b"<" + b"1" * 500 + b"@x>"])
def test_cram_md5_digests_no_other_text(challenge: bytes) -> None:
    with pytest.raises(SaslError):
        start(Mechanism.CRAM_MD5, USER, nonce="unused").respond(challenge)


def test_plain_sends_user_and_password_once_rfc_4616() -> None:
    run = start(Mechanism.PLAIN, USER, nonce="unused")
    assert run.initial() == b"\0user\0pencil"
    with pytest.raises(SaslError):
        run.respond(b"more?")
    run.verify_success()


def test_login_answers_user_then_password_and_no_third_time() -> None:
    run = start(Mechanism.LOGIN, USER, nonce="unused")
    assert run.initial() is None
    assert run.respond(b"Username:") == b"user"
    with pytest.raises(SaslError):
        run.verify_success()
    assert run.respond(b"whatever") == b"pencil"
    run.verify_success()
    with pytest.raises(SaslError):
        run.respond(b"again")


def test_credentials_do_not_print_the_password() -> None:
    assert "pencil" not in repr(USER)


def test_salted_passwords_are_kept_and_bounded() -> None:
    salted = SaltedPasswords(limit=2)
    first, second, third = (Hashing("sha256", b"pw", salt, 4096) for salt in (b"1", b"2", b"3"))
    made = salted.get(first)
    salted.get(second)
    assert salted.knows(first)
    salted.get(third)
    assert [salted.knows(each) for each in (first, second, third)] == [False, True, True]
    assert salted.get(first) == made
    assert "pw" not in repr(first)
