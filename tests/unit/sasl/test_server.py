"""SASL's server side against the RFCs' examples and our own client: AUTH-03, AUTH-05, SCR-01..06, CRAM-01."""

import base64
from collections.abc import Callable, Mapping

import pytest
import scramp.core
from hypothesis import given
from hypothesis import strategies as st
from scramp import ScramMechanism
from scramp.utils import saslprep

from mailrail.core.sasl import server as sasl_server
from mailrail.core.sasl.client import ChannelBinding, Exchange, SaslError, start
from mailrail.core.sasl.client import Credentials as ClientCredentials
from mailrail.core.sasl.client import Mechanism as ClientMechanism
from mailrail.core.sasl.server import (
    LOGIN_LIMIT,
    Challenge,
    CheckPassword,
    ClaimedIdentity,
    CramMd5,
    Failure,
    LoginMechanism,
    Plain,
    Scram,
    ServerExchange,
    Step,
    Success,
    UnexpectedInitialResponse,
    fake_verifier,
    prepared,
)
from mailrail.core.sasl.verifiers import ScramVerifier

KEY = b"k" * 32
BINDING = {"tls-server-end-point": b"\x01" * 32}


def who(login: str) -> ClaimedIdentity:
    return ClaimedIdentity(login, login.casefold())


class Known:
    """One login with one password; anything else gets fakes."""

    def __init__(self, login: str = "user", password: str = "pencil", salt: bytes = b"0123456789abcdef") -> None:
        self._login, self._password, self._salt = login, password, salt

    def verifier(self, name: str, mechanism: str) -> ScramVerifier:
        if name != prepared(self._login):
            return fake_verifier(name, mechanism, KEY)
        salt, stored, server, count = ScramMechanism(mechanism).make_auth_info(
            self._password, iteration_count=4096, salt=self._salt
        )
        return ScramVerifier(mechanism, count, salt, stored, server)

    def password(self, name: str) -> str:
        return self._password if name == self._login else "nobody's"


def scram(
    name: str,
    credentials: Known | None = None,
    *,
    nonce: str = "server-nonce-0123456789",
    bindings: Mapping[str, bytes] | None = None,
    plus_offered: bool = False,
) -> Scram:
    return Scram(name, credentials or Known(), nonce, bindings or {}, plus_offered=plus_offered)


def dialogue(server: ServerExchange, client: Exchange) -> Step:
    """Run both sides to the server's last step."""
    step = server.start(client.initial())
    while isinstance(step, Challenge):
        step = server.respond(client.respond(step.data))
    if isinstance(step, Success):
        client.verify_success()
    return step


def client(
    mechanism: str,
    password: str = "pencil",
    *,
    username: str = "user",
    binding: ChannelBinding | None = None,
    server_offered_plus: bool = False,
) -> Exchange:
    return start(
        ClientMechanism(mechanism),
        ClientCredentials(username, password),
        nonce="clientNONCE0123456789",
        binding=binding,
        server_offered_plus=server_offered_plus,
    )


# --- SCRAM ---


def test_the_example_of_rfc_5802_SCR_01() -> None:
    credentials = Known(salt=base64.b64decode("QSXCR+Q6sek8bf92"))
    server = scram("SCRAM-SHA-1", credentials, nonce="3rfcNHYJY1ZVvWVs7j")
    assert server.start(b"n,,n=user,r=fyko+d2lbbFgONRv9qkxdawL") == Challenge(
        b"r=fyko+d2lbbFgONRv9qkxdawL3rfcNHYJY1ZVvWVs7j,s=QSXCR+Q6sek8bf92,i=4096"
    )
    final = server.respond(b"c=biws,r=fyko+d2lbbFgONRv9qkxdawL3rfcNHYJY1ZVvWVs7j,p=v0X8v3Bz2T0CJGbJQyF0X+HI4Ts=")
    assert final == Challenge(b"v=rmF9pqV8S7suAoZWja4dJRkFsKQ=")
    assert server.respond(b"") == Success(who("user"))


def test_the_example_of_rfc_7677_SCR_01() -> None:
    credentials = Known(salt=base64.b64decode("W22ZaJ0SNY7soEsUEjb6gQ=="))
    server = scram("SCRAM-SHA-256", credentials, nonce="%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0")
    assert server.start(b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO") == Challenge(
        b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
    )
    final = server.respond(
        b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
    )
    assert final == Challenge(b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=")
    assert server.respond(b"") == Success(who("user"))


@pytest.mark.parametrize("name", ["SCRAM-SHA-256", "SCRAM-SHA-1"])
def test_our_client_and_server_understand_each_other(name: str) -> None:
    assert dialogue(scram(name), client(name)) == Success(who("user"))
    assert isinstance(dialogue(scram(name), client(name, "wrong")), Failure)


@pytest.mark.parametrize("name", ["SCRAM-SHA-256-PLUS", "SCRAM-SHA-1-PLUS"])
def test_plus_binds_the_channel_SCR_05a(name: str) -> None:
    right = ChannelBinding("tls-server-end-point", BINDING["tls-server-end-point"])
    server = scram(name, bindings=BINDING, plus_offered=True)
    assert dialogue(server, client(name, binding=right, server_offered_plus=True)) == Success(who("user"))
    for wrong in (
        ChannelBinding("tls-server-end-point", b"\x02" * 32),
        ChannelBinding("tls-exporter", b"\x01" * 32),
        ChannelBinding("tls-unique", b"\x01" * 32),
    ):
        server = scram(name, bindings=BINDING, plus_offered=True)
        assert isinstance(dialogue(server, client(name, binding=wrong, server_offered_plus=True)), Failure)


def test_the_binding_flag_is_judged_by_what_was_offered_SCR_04() -> None:
    first = b",,n=user,r=abcdefgh"
    cases = [
        ("SCRAM-SHA-256", b"n", True, True),
        ("SCRAM-SHA-256", b"n", False, True),
        ("SCRAM-SHA-256", b"y", False, True),
        ("SCRAM-SHA-256", b"y", True, False),  # somebody took -PLUS out of the offer
        ("SCRAM-SHA-256", b"p=tls-server-end-point", True, False),
        ("SCRAM-SHA-256-PLUS", b"p=tls-server-end-point", True, True),
        ("SCRAM-SHA-256-PLUS", b"n", True, False),
        ("SCRAM-SHA-256-PLUS", b"y", True, False),
        ("SCRAM-SHA-256-PLUS", b"p=tls-telepathy", True, False),
        ("SCRAM-SHA-256-PLUS", b"p=", True, False),
    ]
    for name, flag, plus, accepted in cases:
        step = scram(name, bindings=BINDING, plus_offered=plus).start(flag + first)
        assert isinstance(step, Challenge if accepted else Failure), (name, flag, plus)


@pytest.mark.parametrize(
    "first",
    [
        b"",
        b"n",
        b"n,,",
        b"n,,n=user",
        b"n,,r=abc,n=user",
        b"n,,n=,r=abc",
        b"n,,n=us=er,r=abc",
        b"n,,m=ext,n=user,r=abc",
        b"n,,n=user,r=",
        b"n,,n=user,r=a\xffb",
        b"x,,n=user,r=abc",
        b"n,a=other,n=user,r=abc",
        b"n,,n=user,n=user,r=abc",
        b"n,,n=" + b"u" * 10_000 + b",r=abc",
    ],
)
def test_a_malformed_first_message_fails_SCR_01(first: bytes) -> None:
    assert isinstance(scram("SCRAM-SHA-256").start(first), Failure)


@pytest.mark.parametrize(
    "change",
    [
        lambda final: final.replace(b"server-nonce", b"server-nonca"),
        lambda final: final.replace(b"c=biws", b"c=eSws"),
        lambda final: final.replace(b"c=biws", b"c=!!!!"),
        lambda final: final[:-8] + b"AAAAAAA=",
        lambda final: final.rpartition(b",p=")[0],
        lambda final: b"",
        lambda final: b"m=x," + final,
        lambda final: final + b",q=r,p=again",
    ],
)
def test_a_tampered_proof_fails_SCR_01(change: object) -> None:
    assert callable(change)
    server, exchange = scram("SCRAM-SHA-256"), client("SCRAM-SHA-256")
    step = server.start(exchange.initial())
    assert isinstance(step, Challenge)
    assert isinstance(server.respond(change(exchange.respond(step.data))), Failure)


def test_the_answer_to_our_proof_is_empty_SCR_02() -> None:
    server, exchange = scram("SCRAM-SHA-256"), client("SCRAM-SHA-256")
    step = server.start(exchange.initial())
    assert isinstance(step, Challenge)
    assert isinstance(server.respond(exchange.respond(step.data)), Challenge)
    assert isinstance(server.respond(b"more"), Failure)


def test_an_unknown_login_gets_a_stable_salt_and_no_entry_SCR_03() -> None:
    salts = set()
    for _ in range(2):
        step = scram("SCRAM-SHA-256").start(b"n,,n=nobody,r=abcdefgh")
        assert isinstance(step, Challenge)
        salts.add(step.data.split(b",")[1])
    assert len(salts) == 1
    other = scram("SCRAM-SHA-256").start(b"n,,n=somebody,r=abcdefgh")
    assert isinstance(other, Challenge)
    assert other.data.split(b",")[1] not in salts
    result = dialogue(scram("SCRAM-SHA-256"), client("SCRAM-SHA-256", username="nobody"))
    assert isinstance(result, Failure)
    assert fake_verifier("a", "SCRAM-SHA-256", KEY) != fake_verifier("a", "SCRAM-SHA-256", b"other")
    assert len(fake_verifier("a", "SCRAM-SHA-1", KEY).stored_key) == 20


def test_logins_are_escaped_and_prepared_SCR_06() -> None:
    credentials = Known(login="a,b=c")
    assert dialogue(scram("SCRAM-SHA-256", credentials), client("SCRAM-SHA-256", username="a,b=c")) == Success(
        who("a,b=c")
    )
    assert prepared("ADA@Example.org") == "ada@example.org"
    assert prepared("\u2168") == "ix"
    assert prepared("a\u0007") == ""


def test_without_an_initial_response_the_client_is_asked_for_it() -> None:
    server, exchange = scram("SCRAM-SHA-256"), client("SCRAM-SHA-256")
    assert server.start(None) == Challenge(b"")
    first = exchange.initial()
    assert first is not None
    assert isinstance(server.respond(first), Challenge)


@given(st.binary(max_size=80), st.binary(max_size=80))
def test_no_octets_break_scram(first: bytes, second: bytes) -> None:
    server = scram("SCRAM-SHA-256")
    for message in (b"n,,n=user,r=" + first, b"n,," + first):
        step = server.start(message)
        if isinstance(step, Challenge):
            assert isinstance(server.respond(second), Failure)
            break


# --- CRAM-MD5, PLAIN, LOGIN ---


@given(
    st.sampled_from([Plain, LoginMechanism, lambda: CramMd5(Known(), "<1.2@mx>")]),
    st.lists(st.binary(max_size=60), max_size=4),
)
def test_no_octets_are_taken_for_a_proof_AUTH_03(make: Callable[[], ServerExchange], said: list[bytes]) -> None:
    mechanism = make()
    step = mechanism.start(None)
    for response in said:
        if not isinstance(step, Challenge):
            break
        step = mechanism.respond(response)
    assert isinstance(step, Challenge | CheckPassword | Failure)


@given(st.text(max_size=40), st.text(max_size=40))
def test_any_login_and_password_can_be_looked_up_AUTH_05a(login: str, password: str) -> None:
    assert isinstance(prepared(login), str)
    assert not fake_verifier(login, "SCRAM-SHA-256", KEY).admits(password)


def test_the_example_of_rfc_2195_CRAM_01() -> None:
    server = CramMd5(Known("tim", "tanstaaftanstaaf"), "<1896.697170952@postoffice.reston.mci.net>")
    assert server.start(None) == Challenge(b"<1896.697170952@postoffice.reston.mci.net>")
    assert server.respond(b"tim b913a602c7eda7a495b4e6e7334d3890") == Success(who("tim"))


@pytest.mark.parametrize(
    "response",
    [
        b"tim b913a602c7eda7a495b4e6e7334d3891",
        b"tim B913A602C7EDA7A495B4E6E7334D3890",
        b"tom b913a602c7eda7a495b4e6e7334d3890",
        b"tim",
        b"",
        b" b913a602c7eda7a495b4e6e7334d3890",
        b"\xff b913a602c7eda7a495b4e6e7334d3890",
    ],
)
def test_another_digest_fails_CRAM_01(response: bytes) -> None:
    server = CramMd5(Known("tim", "tanstaaftanstaaf"), "<1896.697170952@postoffice.reston.mci.net>")
    assert isinstance(server.respond(response), Failure)


def test_cram_md5_takes_no_initial_response_AUTH_03() -> None:
    assert CramMd5(Known(), "<1.2@h>").start(b"") == UnexpectedInitialResponse()


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (b"\0user\0pencil", CheckPassword(who("user"), "pencil")),
        (b"USER\0user\0pencil", CheckPassword(who("user"), "pencil")),
        ("\0жора\0пароль".encode(), CheckPassword(who("жора"), "пароль")),
        (b"other\0user\0pencil", None),
        (b"\0\0pencil", None),
        (b"\0user\0", None),
        (b"user\0pencil", None),
        (b"\0user\0pencil\0", None),
        (b"\0user\0\xff", None),
        (b"", None),
        (b"\0user\0" + b"p" * 10_000, None),
    ],
)
def test_plain_hands_over_login_and_password(message: bytes, expected: CheckPassword | None) -> None:
    step = Plain().start(message)
    assert step == expected if expected is not None else isinstance(step, Failure)


def test_plain_and_login_ask_when_nothing_came_at_once() -> None:
    assert Plain().start(None) == Challenge(b"")
    login = LoginMechanism()
    assert login.start(None) == Challenge(b"Username:")
    assert login.respond(b"user") == Challenge(b"Password:")
    assert login.respond(b"pencil") == CheckPassword(who("user"), "pencil")
    eager = LoginMechanism()
    assert eager.start(b"user") == Challenge(b"Password:")
    for bad in (b"", b"\xff", b"a\0b"):
        assert isinstance(LoginMechanism().respond(bad), Failure)


def test_a_password_is_in_no_representation() -> None:
    assert "pencil" not in repr(CheckPassword(who("user"), "pencil"))


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is given to SASLprep, here or in the library that speaks SCRAM."""
    texts: list[str] = []

    def counted(text: str) -> str:
        texts.append(text)
        return str(saslprep(text))

    monkeypatch.setattr(sasl_server, "saslprep", counted)
    monkeypatch.setattr(scramp.core, "saslprep", counted)
    return texts


def messages(login: str) -> dict[str, tuple[ServerExchange, list[bytes]]]:
    """Each mechanism, and what a client with that login says until its first proof."""
    text = login.encode()
    return {
        "PLAIN": (Plain(), [b"\0" + text + b"\0pencil"]),
        "PLAIN for oneself": (Plain(), [text + b"\0" + text + b"\0pencil"]),
        "LOGIN": (LoginMechanism(), [text, b"pencil"]),
        "CRAM-MD5": (CramMd5(Known(), "<1.2@mx>"), [text + b" " + b"0" * 32]),
        "SCRAM-SHA-256": (scram("SCRAM-SHA-256"), [b"n,,n=" + text + b",r=nonce", b"c=biws,r=x,p=AAAA"]),
    }


@pytest.mark.parametrize("mechanism", messages("x"))
def test_a_login_is_prepared_once_in_an_exchange_AUTH_05c(mechanism: str, looked_at: list[str]) -> None:
    """SASLprep in Python takes longer than all else that a login costs, on the event loop of everybody."""
    server, said = messages("жора")[mechanism]
    for message in said:
        server.respond(message)
    # The library does it once more, for itself.
    assert looked_at == ["жора"] * (2 if mechanism.startswith("SCRAM") else 1)


@pytest.mark.parametrize("mechanism", messages("x"))
@pytest.mark.parametrize("letter", ["é", "e\u0301", "a\t"])
def test_a_login_longer_than_any_fails_before_it_is_prepared_AUTH_05c(
    mechanism: str, letter: str, looked_at: list[str]
) -> None:
    for length in (LOGIN_LIMIT // len(letter.encode()) + 1, 2_900):
        server, said = messages(letter * length)[mechanism]
        assert isinstance(server.start(None), Challenge | UnexpectedInitialResponse)
        assert isinstance(server.respond(said[0]), Failure)
        assert server.guess is None
    assert looked_at == []


def test_another_identity_that_is_longer_than_any_is_not_prepared_either(looked_at: list[str]) -> None:
    assert isinstance(Plain().start("é".encode() * 4000 + b"\0user\0pencil"), Failure)
    assert looked_at == []


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN"])
def test_a_password_longer_than_any_is_not_looked_at(mechanism: str) -> None:
    server: ServerExchange = Plain() if mechanism == "PLAIN" else LoginMechanism()
    password = "é".encode() * 513
    if mechanism == "LOGIN":
        server.respond(b"user")
    assert isinstance(server.respond(password if mechanism == "LOGIN" else b"\0user\0" + password), Failure)


def test_only_a_scram_client_without_its_proof_has_guessed() -> None:
    server, exchange = scram("SCRAM-SHA-256"), client("SCRAM-SHA-256")
    step = server.start(None)
    assert server.guess is None
    step = server.respond(exchange.initial() or b"")
    assert server.guess == who("user")
    assert isinstance(step, Challenge)
    server.respond(exchange.respond(step.data))
    assert server.guess is None


def test_a_client_that_is_lied_to_by_the_server_notices() -> None:
    exchange = client("SCRAM-SHA-256")
    step = scram("SCRAM-SHA-256", Known(password="other")).start(exchange.initial())
    assert isinstance(step, Challenge)
    exchange.respond(step.data)
    with pytest.raises(SaslError):
        exchange.respond(b"v=" + base64.b64encode(b"x" * 32))
