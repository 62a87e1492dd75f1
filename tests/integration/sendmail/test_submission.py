"""sendmail and the submission server: what is sent, by which TLS and login, and what is not."""

import base64
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from testkit.ca import Authority
from testkit.next_hop import NextHop
from testkit.sendmail import MESSAGE, Sendmail, scripted

LOGIN = {"login": "ada", "password": "s3cret"}
ACCOUNTS = {"ada": "s3cret"}
CERTIFICATES = Authority()
SERVER = CERTIFICATES.issue("127.0.0.1", "localhost").server_context()


@pytest.fixture
def ca(tmp_path: Path) -> str:
    return str(CERTIFICATES.write(tmp_path))


@pytest.fixture
def hop() -> Iterator[NextHop]:
    with NextHop(address="127.0.0.1", tls=SERVER, implicit_tls=True, accounts=ACCOUNTS) as hop:
        yield hop


def for_hop(folder: Path, hop: NextHop, ca: str, **more: object) -> Sendmail:
    return Sendmail(folder, server=hop.address, port=hop.port, ca_file=ca, **LOGIN, **more)


def for_peer(folder: Path, port: int, ca: str, **more: object) -> Sendmail:
    settings = {"server": "localhost", "port": port, "tls": "starttls", "ca_file": ca, **LOGIN, **more}
    return Sendmail(folder, **settings)


def test_a_message_is_handed_over_whole_SML_04_SML_05(tmp_path: Path, hop: NextHop, ca: str) -> None:
    sendmail = for_hop(tmp_path, hop, ca)
    done = sendmail.call("-i", "-f", "ada@home.test", "bob@away.test", "eve@away.test", "Bob@away.test")
    assert (done.status, done.out, done.err) == (0, "", "")
    (message,) = hop.messages
    assert message.sender == "ada@home.test"
    assert message.recipients == ("bob@away.test", "eve@away.test"), "all in one transaction, each once"
    assert message.login == "ada"
    assert message.tls
    assert message.content.startswith(MESSAGE.partition(b"\n\n")[0].replace(b"\n", b"\r\n"))
    assert message.content.endswith(b"\r\n\r\nHello Bob\r\n")
    assert message.header("Date")
    assert re.fullmatch(r"<\S+@home\.test>", message.header("Message-ID") or "")
    assert sendmail.kept("queue") == sendmail.kept("failed") == []
    assert list((sendmail.queue / "tmp").iterdir()) == []


def test_recipients_of_the_header_get_it_and_nobody_sees_bcc_SML_05(tmp_path: Path, hop: NextHop, ca: str) -> None:
    sendmail = for_hop(tmp_path, hop, ca, aliases={"root": "ops@home.test"}, default_domain="home.test")
    text = b"To: bob@away.test, root\nCc: carl\nBcc: secret@away.test\nSubject: x\n\nhi\n"
    assert sendmail.call("-ti", "dan@away.test", message=text).status == 0
    (message,) = hop.messages
    assert set(message.recipients) == {
        "dan@away.test",
        "bob@away.test",
        "ops@home.test",
        "carl@home.test",
        "secret@away.test",
    }
    assert b"secret" not in message.content


def test_the_command_of_mailrail_hands_its_words_on_untouched_SML_01(tmp_path: Path, hop: NextHop, ca: str) -> None:
    sendmail = for_hop(tmp_path, hop, ca)
    command = (sys.executable, "-m", "mailrail.cli", "sendmail")
    assert sendmail.call("-oi", "-r", "ada@home.test", "--", "bob@away.test", command=command).status == 0
    assert hop.messages[0].sender == "ada@home.test"
    assert sendmail.call("--frobnicate", command=command).status == 64
    assert "usage: sendmail" in sendmail.call("--help", command=command).out


def test_notifications_and_body_are_asked_for_SML_01(tmp_path: Path, hop: NextHop, ca: str) -> None:
    sendmail = for_hop(tmp_path, hop, ca)
    words = ("-N", "failure,delay", "-R", "hdrs", "-V", "id 1", "-B8BITMIME", "bob@away.test")
    assert sendmail.call(*words).status == 0
    (message,) = hop.messages
    assert {"RET=HDRS", "ENVID=id+201", "BODY=8BITMIME"} <= set(message.sender_parameters)
    assert message.recipient_parameters == (("NOTIFY=FAILURE,DELAY",),)


def test_what_the_server_cannot_take_is_re_encoded_SML_05(tmp_path: Path, ca: str) -> None:
    text = (
        b"Subject: x\nMIME-Version: 1.0\nContent-Type: text/plain; charset=utf-8\n\n"
        + "ä".encode()
        + b"x" * 2000
        + b"\n.\n"
    )
    with NextHop(address="127.0.0.1", tls=SERVER, implicit_tls=True, eight_bit=False, smtputf8=False) as hop:
        sendmail = Sendmail(tmp_path, server=hop.address, port=hop.port, ca_file=ca)
        assert sendmail.call("-i", "bob@away.test", message=text).status == 0
        (message,) = hop.messages
    assert message.content.isascii()
    assert max(map(len, message.content.split(b"\r\n"))) <= 998
    assert message.parsed.get_content().replace("\r\n", "\n") == "ä" + "x" * 2000 + "\n.\n"


@pytest.mark.parametrize("offered", [True, False])
def test_utf8_in_a_header_asks_for_smtputf8_where_it_is_offered_SML_05(tmp_path: Path, ca: str, offered: bool) -> None:
    text = "Subject: Grüße\n\nhi\n".encode()
    with NextHop(address="127.0.0.1", tls=SERVER, implicit_tls=True, smtputf8=offered) as hop:
        sendmail = Sendmail(tmp_path, server=hop.address, port=hop.port, ca_file=ca, sender="ada@home.test")
        done = sendmail.call("bob@away.test", message=text)
        assert done.status == 0, done.err
        (message,) = hop.messages
    assert ("SMTPUTF8" in message.sender_parameters) is offered
    assert "Subject: Grüße\r\n".encode() in message.content


def test_a_mechanism_that_somebody_took_from_the_list_is_missed_SML_04(tmp_path: Path, ca: str) -> None:
    """We say `y`: a server that does offer -PLUS learns that somebody cut it off (RFC 5802 6)."""
    with scripted(tls=SERVER, accounts=ACCOUNTS, extensions=("AUTH SCRAM-SHA-256 PLAIN",)) as peer:
        assert for_peer(tmp_path, peer.port, ca).call("bob@away.test").status == 0
        (first,) = [line.split(" ")[2] for line in peer.commands if line.startswith("AUTH ")]
    assert base64.b64decode(first).startswith(b"y,,n=ada,r=")


def test_starttls_comes_before_login_and_mail_SML_04(tmp_path: Path, ca: str) -> None:
    with scripted(
        tls=SERVER, accounts=ACCOUNTS, extensions=("AUTH PLAIN",), extensions_after_tls=("AUTH PLAIN",)
    ) as peer:
        done = for_peer(tmp_path, peer.port, ca).call("-v", "bob@away.test")
        assert done.status == 0, done.err
        verbs = [line.split(" ")[0] for line in peer.commands]
        assert verbs[:6] == ["EHLO", "STARTTLS", "EHLO", "AUTH", "MAIL", "RCPT"]
    assert "certificate verified" in done.err
    assert "> AUTH PLAIN (secret)" in done.err
    assert "s3cret" not in done.err
    assert "AGFkYQBzM2NyZXQ=" not in done.err


def bound() -> tuple[str, bytes]:
    import hashlib
    import ssl

    pem = ISSUED.chain_pem.decode().split("-----END CERTIFICATE-----")[0] + "-----END CERTIFICATE-----\n"
    return "tls-server-end-point", hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).digest()


ISSUED = CERTIFICATES.issue("localhost")
ALL = "AUTH LOGIN PLAIN CRAM-MD5 SCRAM-SHA-1 SCRAM-SHA-1-PLUS SCRAM-SHA-256 SCRAM-SHA-256-PLUS"


@pytest.mark.parametrize(
    ("offered", "configured", "used"),
    [
        (ALL, "", "SCRAM-SHA-256-PLUS"),
        (ALL.replace(" SCRAM-SHA-256-PLUS", ""), "", "SCRAM-SHA-256"),
        ("AUTH LOGIN PLAIN CRAM-MD5 SCRAM-SHA-1", "", "SCRAM-SHA-1"),
        ("AUTH LOGIN PLAIN CRAM-MD5", "", "CRAM-MD5"),
        ("AUTH LOGIN PLAIN", "", "PLAIN"),
        ("AUTH LOGIN", "", "LOGIN"),
        (ALL, "plain", "PLAIN"),
        (ALL, "SCRAM-SHA-1", "SCRAM-SHA-1"),
    ],
)
def test_the_strongest_mechanism_or_the_configured_one_is_used_SML_04(
    tmp_path: Path, ca: str, offered: str, configured: str, used: str
) -> None:
    with scripted(tls=ISSUED.server_context(), accounts=ACCOUNTS, extensions=(offered,), binding=bound) as peer:
        more: dict[str, object] = {"mechanism": configured} if configured else {}
        done = for_peer(tmp_path, peer.port, ca, **more).call("-v", "bob@away.test")
        assert done.status == 0, done.err
        assert peer.sessions[-1].mechanism == used
        assert "s3cret" not in done.err


def test_a_configured_mechanism_that_is_not_offered_shows_no_password_SML_04(tmp_path: Path, ca: str) -> None:
    """Somebody on the way, or the server, took it from the list."""
    with scripted(tls=SERVER, accounts=ACCOUNTS, extensions=("AUTH PLAIN",)) as peer:
        sendmail = for_peer(tmp_path, peer.port, ca, mechanism="SCRAM-SHA-256")
        done = sendmail.call("bob@away.test")
        assert done.status == 77
        assert "the server offers PLAIN" in done.err
        assert not any(line.startswith(("AUTH", "MAIL")) for line in peer.commands)
    assert len(sendmail.kept("failed")) == 1


def test_without_starttls_nothing_is_sent_and_the_message_kept_SML_04(tmp_path: Path, ca: str) -> None:
    """Somebody on the way took STARTTLS from the list."""
    with scripted(accounts=ACCOUNTS, extensions=("AUTH PLAIN",)) as peer:
        sendmail = for_peer(tmp_path, peer.port, ca)
        done = sendmail.call("bob@away.test")
        assert done.status == 75
        assert "does not offer STARTTLS" in done.err
        assert [line.split(" ")[0] for line in peer.commands if line] == ["EHLO", "QUIT"]
    (kept,) = sendmail.kept("failed")
    assert str(sendmail.queue / "failed" / kept["id"]) in done.err
    assert sendmail.text(kept, "failed").endswith(b"\r\n\r\nHello Bob\r\n")


@pytest.mark.parametrize("problem", ["foreign", "name", "expired"])
def test_a_certificate_that_is_not_valid_ends_it_SML_04(tmp_path: Path, ca: str, problem: str) -> None:
    issued = {
        "foreign": Authority().issue("localhost"),
        "name": CERTIFICATES.issue("other.test"),
        "expired": CERTIFICATES.issue_expired("localhost"),
    }[problem]
    with scripted(tls=issued.server_context(), accounts=ACCOUNTS, extensions=("AUTH PLAIN",)) as peer:
        done = for_peer(tmp_path, peer.port, ca).call("bob@away.test")
        assert done.status == 75
        assert "the certificate of localhost is not valid" in done.err
        assert not any(line.startswith(("AUTH", "MAIL")) for line in peer.commands)


@pytest.mark.parametrize(
    ("before", "after", "status"), [((), ("REQUIRETLS",), 0), (("REQUIRETLS",), (), 69), ((), (), 69)]
)
def test_required_tls_wants_requiretls_inside_tls_SML_04(
    tmp_path: Path, ca: str, before: tuple[str, ...], after: tuple[str, ...], status: int
) -> None:
    with scripted(
        tls=SERVER, accounts=ACCOUNTS, extensions=before, extensions_after_tls=("AUTH PLAIN", *after)
    ) as peer:
        sendmail = for_peer(tmp_path, peer.port, ca, tls_requirement="no")
        done = sendmail.call("--tls-requirement", "required", "bob@away.test")
        assert done.status == status, done.err
        mail = [line for line in peer.commands if line.startswith("MAIL")]
    if status:
        assert mail == []
        assert "REQUIRETLS" in done.err
        assert sendmail.kept("failed")[0]["require_tls"] is True
    else:
        assert mail[0].endswith(" REQUIRETLS")


def test_waived_tls_is_a_field_of_the_header_SML_04(tmp_path: Path, hop: NextHop, ca: str) -> None:
    sendmail = for_hop(tmp_path, hop, ca)
    assert sendmail.call("--tls-requirement=no", "bob@away.test").status == 0
    assert hop.messages[0].header("TLS-Required") == "No"


def test_a_list_that_the_server_takes_in_parts_goes_in_parts_SML_05(tmp_path: Path, ca: str) -> None:
    with scripted(tls=SERVER, accounts=ACCOUNTS, extensions=("PIPELINING", "AUTH PLAIN", "LIMITS RCPTMAX=2")) as peer:
        done = for_peer(tmp_path, peer.port, ca).call(*(f"user{i}@away.test" for i in range(5)))
        assert done.status == 0, done.err
        assert [len(message.rcpts) for message in peer.messages] == [2, 2, 1]
        assert len(peer.sessions) == 1
    replies = {"RCPT": ["250 ok", "250 ok", "452 4.5.3 too many", "452 4.5.3 too many", "250 ok"]}
    with scripted(tls=SERVER, accounts=ACCOUNTS, extensions=("AUTH PLAIN",), replies=replies) as peer:
        done = for_peer(tmp_path, peer.port, ca).call(*(f"user{i}@away.test" for i in range(4)))
        assert done.status == 0, done.err
        assert [len(message.rcpts) for message in peer.messages] == [2, 2]


def test_smtp_on_standard_input_is_answered_when_the_message_is_sent_SML_01(
    tmp_path: Path, hop: NextHop, ca: str
) -> None:
    sendmail = for_hop(tmp_path, hop, ca)
    hop.refuse("nobody@away.test", "550 5.1.1 no such user")
    dialogue = (
        "EHLO me\r\nMAIL FROM:<ada@home.test> BODY=8BITMIME\r\nRCPT TO:<bob@away.test> NOTIFY=NEVER\r\nDATA\r\n"
        "Subject: one\r\nBcc: hidden@away.test\r\n\r\n..dot\r\n.\r\n"
        "MAIL FROM:<>\r\nRCPT TO:<nobody@away.test>\r\nDATA\r\nSubject: two\r\n\r\nx\r\n.\r\nQUIT\r\n"
    )
    done = sendmail.call("-bs", message=dialogue.encode())
    assert done.status == 0
    replies = [line[:3] for line in done.out.splitlines() if line[3:4] == " "]
    assert replies == ["220", "250", "250", "250", "354", "250", "250", "250", "354", "554", "221"]
    assert "550 5.1.1 no such user" in done.out
    (message,) = hop.messages
    assert (message.sender, message.recipients) == ("ada@home.test", ("bob@away.test",))
    assert message.recipient_parameters == (("NOTIFY=NEVER",),)
    assert message.content.endswith(b"\r\n\r\n.dot\r\n")
    assert b"hidden" not in message.content


def test_smtp_that_ends_in_the_middle_sends_nothing_SML_01(tmp_path: Path, hop: NextHop, ca: str) -> None:
    sendmail = for_hop(tmp_path, hop, ca)
    dialogue = b"EHLO me\r\nMAIL FROM:<ada@home.test>\r\nRCPT TO:<bob@away.test>\r\nDATA\r\nSubject: half\r\n"
    assert sendmail.call("-bs", message=dialogue).status == 0
    assert hop.messages == []
    assert list(sendmail.queue.rglob("*.eml")) == []


def test_mail_to_this_machine_may_go_without_tls_SML_02(tmp_path: Path) -> None:
    with NextHop(address="127.0.0.1") as hop:
        sendmail = Sendmail(tmp_path, server="127.0.0.1", port=hop.port, tls="none", sender="web@home.test")
        assert sendmail.call("bob@away.test", message=b"hi\n").status == 0
        (message,) = hop.messages
        assert (message.sender, message.header("From")) == ("web@home.test", "web@home.test")


def test_each_setting_comes_from_the_environment_alone_SML_02(tmp_path: Path, hop: NextHop, ca: str) -> None:
    sendmail = Sendmail(tmp_path)
    sendmail.config.unlink()
    secret = tmp_path / "secret"
    secret.write_text("s3cret\n")
    secret.chmod(0o600)
    environ = {
        "SERVER": hop.address,
        "PORT": str(hop.port),
        "CA_FILE": ca,
        "LOGIN": "ada",
        "PASSWORD_FILE": str(secret),
        "QUEUE": str(sendmail.queue),
        "CONFIG": "",
    }
    done = sendmail.call("bob@away.test", environ={f"MAILRAIL_SENDMAIL_{key}": text for key, text in environ.items()})
    assert done.status == 0, done.err
    assert len(hop) == 1


def test_a_large_message_takes_no_memory_by_its_size_SML_12(tmp_path: Path, hop: NextHop, ca: str) -> None:
    resource: Any = pytest.importorskip("resource")
    sendmail = for_hop(tmp_path, hop, ca)
    text = b"Subject: large\n\n" + (b"x" * 75 + b"\n") * (64 << 20 >> 6)
    limit = 260 << 20

    def bounded() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    done = sendmail.call("bob@away.test", message=text, preexec_fn=bounded)
    assert done.status == 0, done.err
    assert len(hop.messages[0].content) > 64 << 20
