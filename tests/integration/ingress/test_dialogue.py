"""One real ingress process, real clients: what strangers and users can do, and what reaches the queue."""

import base64
import smtplib
import ssl
import time
import urllib.request
from collections.abc import Iterator
from email.message import EmailMessage
from email.policy import SMTP
from pathlib import Path

import grpc
import psutil
import pytest

from mailrail.core.limits import INLINE_LIMIT
from mailrail.core.probe import probe_address
from mailrail.core.revision.revision import GatewayLimits
from mailrail.core.revision.sealing import Keyring
from mailrail.core.sasl.client import Credentials, start
from mailrail.core.sasl.client import Mechanism as ClientMechanism
from mailrail.pb.ingress.v1 import ingress_pb2, ingress_pb2_grpc
from mailrail.pb.queue.v1 import types_pb2
from mailrail_ingress.tls import load

from testkit.background import background
from testkit.ca import Authority, handshake, speaking_only, trusting_anybody, with_any_suite
from testkit.conditions import wait_until
from testkit.ingress import ALL_MECHANISMS, KEY, PASSWORD, Ingress, Stored, Talk, code, setup
from testkit.peers.swaks import ACCEPTED, AUTH_FAILED, swaks
from testkit.ports import free_port

HOST = "127.0.0.1"
METRICS = f"{HOST}:{free_port(HOST)}"
SMUGGLED = b"MAIL FROM:<evil@far.example>\r\nRCPT TO:<ada@home.example>\r\nDATA\r\nevil\r\n.\r\n"


@pytest.fixture(scope="module")
def ingress(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ingress]:
    made = setup(limits=GatewayLimits(recipients=100))
    with Ingress(tmp_path_factory.mktemp("ingress"), made, metrics_listen=METRICS) as running:
        yield running


@pytest.fixture
def mx(ingress: Ingress) -> Iterator[Talk]:
    with Talk((HOST, ingress.ports["mx"])) as talk:
        yield talk


def submission(ingress: Ingress, *, log_in: bool = True) -> Talk:
    talk = Talk((HOST, ingress.ports["submission"]))
    talk.start_tls()
    if log_in:
        assert talk.log_in() == "235 2.7.0"
    return talk


def send(talk: Talk, content: bytes, *, sender: str = "x@far.example", to: str = "ada@home.example") -> str:
    assert talk.codes(f"MAIL FROM:<{sender}>", f"RCPT TO:<{to}>", "DATA") == ["250 2.1.0", "250 2.1.5", "354"]
    talk.send(content + b".\r\n")
    return talk.reply()


def accepted(ingress: Ingress, reply: str) -> Stored:
    """The stored message that a 250 names."""
    assert reply.startswith("250 2.6.0 accepted as ")
    wanted = bytes.fromhex(reply.split()[-1])
    return next(message for message in ingress.queue.stored if message.id == wanted)


# --- whole programs as clients ---


@pytest.mark.peer("swaks")
def test_swaks_delivers_to_the_mx(ingress: Ingress) -> None:
    before = len(ingress.queue.stored)
    said = swaks(HOST, ingress.ports["mx"], "--from", "x@far.example", "--to", "ada@home.example", "--body", "hello")
    assert said.status == ACCEPTED, said.text
    message = ingress.queue.stored[before]
    assert message.envelope.origin == types_pb2.ORIGIN_MX
    assert message.recipients[0].mailbox_account.name == "ada"
    assert b"hello" in message.body
    assert b"with ESMTP\r\n" in message.prefix


@pytest.mark.peer("swaks")
@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN", "CRAM-MD5"])
@pytest.mark.parametrize(("listener", "tls"), [("submission", "--tls"), ("submissions", "--tlsc")])
def test_swaks_submits_with_each_mechanism(ingress: Ingress, mechanism: str, listener: str, tls: str) -> None:
    options = [tls, "--auth", mechanism, "--auth-user", "ada@home.example", "--from", "ada@home.example"]
    said = swaks(HOST, ingress.ports[listener], *options, "--auth-password", PASSWORD, "--to", "x@far.example")
    assert said.status == ACCEPTED, said.text
    message = ingress.queue.stored[-1]
    assert message.envelope.account.name == "ada"
    assert b"with ESMTPSA\r\n" in message.prefix
    wrong = swaks(HOST, ingress.ports[listener], *options, "--auth-password", "wrong", "--to", "x@far.example")
    assert wrong.status == AUTH_FAILED


def test_smtplib_logs_in_and_sends_a_message_of_the_library(ingress: Ingress) -> None:
    message = EmailMessage()
    message["From"] = "Ada <ada@home.example>"
    message["To"] = "x@far.example"
    message["Bcc"] = "secret@far.example"
    message["Subject"] = "Grüße"
    message.set_content("hello\n.dot\n..two\n")
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with smtplib.SMTP(HOST, ingress.ports["submission"]) as client:
        client.starttls(context=context)
        client.login("ada@home.example", PASSWORD)
        client.sendmail("ada@home.example", ["x@far.example", "secret@far.example"], message.as_bytes(policy=SMTP))
    stored = ingress.queue.stored[-1]
    assert [recipient.address for recipient in stored.recipients] == ["x@far.example", "secret@far.example"]
    assert b"secret" not in stored.content  # neither Bcc nor a `for` clause tells (SUB-05a, SIN-13)
    assert b"\r\n.dot\r\n..two\r\n" in stored.body
    assert stored.envelope.subject == "Grüße"
    assert stored.size == len(stored.content)


# --- what is stored ---


def test_the_mx_adds_received_and_nothing_else_SUB_04(ingress: Ingress, mx: Talk) -> None:
    mx.say("EHLO client.example")
    content = b"Subject: x\r\nAuthentication-Results: other.example; none\r\n\r\nbody\r\n"
    message = accepted(ingress, send(mx, content))
    assert message.body == content
    assert message.prefix.startswith(b"Received: from client.example ([127.0.0.1])\r\n\tby mx.home.example ")
    assert f"\tid {message.id.hex()}\r\n\tfor <ada@home.example>;".encode() in message.prefix
    assert not message.envelope.HasField("message_id")


def test_submission_adds_date_and_message_id_and_takes_out_bcc_SUB_04_SUB_05a(ingress: Ingress) -> None:
    with submission(ingress) as talk:
        reply = send(talk, b"From: ada@home.example\r\nBcc: y@z.example\r\n\r\nbody\r\n", sender="ada@home.example")
        message = accepted(ingress, reply)
        assert b"Bcc" not in message.body
        assert b"\r\nDate: " in message.body
        assert f"\r\nMessage-ID: {message.envelope.message_id}\r\n\r\nbody".encode() in message.body
        kept = b"From: ada@home.example\r\nDate: then\r\nMessage-Id: <a@b>\r\n\r\nbody\r\n"
        message = accepted(ingress, send(talk, kept, sender="ada@home.example"))
        assert message.body == kept
        assert message.envelope.message_id == "<a@b>"


def test_results_that_pretend_to_be_ours_are_taken_out_AR_01a(ingress: Ingress, mx: Talk) -> None:
    mx.say("EHLO c")
    content = b"Authentication-Results: mx.home.example;\r\n dmarc=pass\r\nSubject: x\r\n\r\nbody\r\n"
    assert accepted(ingress, send(mx, content)).body == b"Subject: x\r\n\r\nbody\r\n"


def test_a_body_without_header_gets_an_empty_line_under_received(ingress: Ingress, mx: Talk) -> None:
    mx.say("EHLO c")
    message = accepted(ingress, send(mx, b"just text\r\n"))
    assert message.prefix.endswith(b"+0000\r\n\r\n")
    assert message.body == b"just text\r\n"


@pytest.mark.parametrize(("count", "expected"), [(100, "250"), (101, "554 5.4.6")])
def test_a_hundred_received_fields_pass_and_one_more_is_a_loop_SIN_15(
    ingress: Ingress, mx: Talk, count: int, expected: str
) -> None:
    mx.say("EHLO c")
    reply = send(mx, b"Received: from a by b; now\r\n" * count + b"Subject: x\r\n\r\nbody\r\n")
    assert reply.startswith(expected)
    assert send(mx, b"Subject: next\r\n\r\n").startswith("250")


def test_the_envelope_carries_every_parameter_DSN_01_OPT_01_AUTH_06(ingress: Ingress) -> None:
    with submission(ingress) as talk:
        codes = talk.codes(
            "MAIL FROM:<ada@home.example> SIZE=100 BODY=8BITMIME SMTPUTF8 RET=HDRS ENVID=a+2Bb HOLDFOR=3600 "
            "AUTH=ada@home.example",
            "RCPT TO:<жора@far.example> NOTIFY=SUCCESS,DELAY ORCPT=utf-8;жора@far.example",
            "DATA",
        )
        assert codes == ["250 2.1.0", "250 2.1.5", "354"]
        talk.send("Subject: ä\r\n\r\n.\r\n".encode())
        message = accepted(ingress, talk.reply())
    envelope = message.envelope
    assert envelope.mail_from == "ada@home.example"
    assert envelope.body_type == types_pb2.BODY_TYPE_EIGHT_BIT_MIME
    assert envelope.smtputf8
    assert envelope.eight_bit
    assert envelope.dsn_return == types_pb2.DSN_RETURN_HEADERS
    assert envelope.envelope_id == "a+2Bb"
    assert envelope.auth == "ada@home.example"
    assert envelope.future_release_request == "for;3600"
    assert envelope.release.seconds - envelope.received.seconds in (3599, 3600)
    recipient = message.recipients[0]
    assert recipient.address == "жора@far.example"
    assert list(recipient.notify) == ["SUCCESS", "DELAY"]
    assert recipient.original_recipient == "utf-8;жора@far.example"
    assert b"with UTF8SMTPSA\r\n" in message.prefix


def test_an_identity_that_the_account_does_not_own_is_passed_on_as_nobody_AUTH_06(ingress: Ingress) -> None:
    with submission(ingress) as talk:
        talk.say("MAIL FROM:<ada@home.example> AUTH=eve@far.example", "RCPT TO:<x@far.example>", "DATA")
        talk.send(b".\r\n")
        assert accepted(ingress, talk.reply()).envelope.auth == "<>"


@pytest.mark.parametrize("listener", ["mx", "submission"])
def test_requiretls_reaches_the_queue_and_received_RTLS_01(ingress: Ingress, listener: str) -> None:
    submit = listener == "submission"
    with submission(ingress) if submit else Talk((HOST, ingress.ports["mx"])) as talk:
        if not submit:
            assert "REQUIRETLS" not in talk.say("EHLO client.example")[0]
            assert talk.codes("MAIL FROM:<x@far.example> REQUIRETLS") == ["530 5.7.10"]
            talk.start_tls()
        assert "250-REQUIRETLS\n" in talk.say("EHLO client.example")[0]
        sender = "ada@home.example" if submit else "x@far.example"
        talk.say(f"MAIL FROM:<{sender}> REQUIRETLS", "RCPT TO:<team@home.example>", "DATA")
        talk.send(b"From: ada@home.example\r\nTLS-Required: No\r\n\r\n.\r\n")
        message = accepted(ingress, talk.reply())
        assert message.envelope.tls_requirement == types_pb2.TLS_REQUIREMENT_REQUIRED
        assert len(message.recipients) == 2  # one envelope, so each copy of the alias has it
        keyword = b"ESMTPSA" if submit else b"ESMTPS"
        assert b"(Mailrail) with " + keyword + b" (requiretls)\r\n\tid " in message.prefix


def test_the_field_tls_required_reaches_the_queue_and_stays_RTLS_07(ingress: Ingress, mx: Talk) -> None:
    mx.say("EHLO c")
    content = b"Subject: x\r\nTLS-Required: no\r\n\r\nbody\r\n"
    message = accepted(ingress, send(mx, content))
    assert message.envelope.tls_requirement == types_pb2.TLS_REQUIREMENT_NO
    assert message.body == content
    assert b"requiretls" not in message.prefix.lower()
    assert accepted(ingress, send(mx, b"Subject: x\r\n\r\n")).envelope.tls_requirement == 0


def test_aliases_are_expanded_once_and_each_address_gets_one_copy_DSN_23(ingress: Ingress, mx: Talk) -> None:
    mx.say("EHLO c", "MAIL FROM:<x@far.example>")
    mx.say("RCPT TO:<ada@home.example>", "RCPT TO:<team@home.example> NOTIFY=SUCCESS,FAILURE", "DATA")
    mx.send(b"Subject: x\r\n\r\n.\r\n")
    message = accepted(ingress, mx.reply())
    found = [(r.address, r.rcpt_to, list(r.notify), r.expanded) for r in message.recipients]
    assert found == [
        ("ada@home.example", "ada@home.example", [], False),
        ("bob@far.example", "team@home.example", ["FAILURE"], True),
    ]
    assert b"\tfor <" not in message.prefix


def test_chunks_arrive_bit_by_bit_EXT_05_EXT_07(ingress: Ingress, mx: Talk) -> None:
    content = b"Subject: x\r\n\r\n" + bytes(range(256)) * 400
    mx.say("EHLO c", "MAIL FROM:<> BODY=BINARYMIME", "RCPT TO:<Postmaster>")
    mx.send(b"BDAT 5\r\n" + content[:5] + b"BDAT %d LAST\r\n" % (len(content) - 5) + content[5:])
    assert mx.reply().startswith("250 2.0.0")
    message = accepted(ingress, mx.reply())
    assert message.body == content
    assert message.envelope.body_type == types_pb2.BODY_TYPE_BINARY_MIME
    assert (message.recipients[0].address, message.recipients[0].mailbox) == ("root@home.example", "Postmaster")


def test_a_large_body_comes_in_frames_of_256_kib_and_is_whole_ACC_02_ACC_07(ingress: Ingress, mx: Talk) -> None:
    mx.say("EHLO c")
    content = b"Subject: x\r\n\r\n" + b"".join(b"%07d" % n + b"." * 71 + b"\r\n" for n in range(20_000))
    message = accepted(ingress, send(mx, content))
    assert message.body == content
    assert message.chunks[:-1] == [256 * 1024] * (len(content) // (256 * 1024))
    assert message.size == len(message.content)


def test_a_body_of_1_mib_travels_inside_the_commit_ACC_02(ingress: Ingress, mx: Talk) -> None:
    mx.say("EHLO c")
    lines = b"A: b\r\n\r\n" + (b"x" * 998 + b"\r\n") * 1100
    for size, uploaded in ((65_536, False), (65_537, False), (INLINE_LIMIT, False), (INLINE_LIMIT + 1, True)):
        content = lines[: size - 2].rstrip(b"\r\n").ljust(size - 2, b"y") + b"\r\n"
        assert len(content) == size
        message = accepted(ingress, send(mx, content))
        assert message.body == content
        assert bool(message.chunks) is uploaded


# --- what strangers may not ---


@pytest.mark.parametrize(
    ("sender", "recipient", "expected"),
    [
        ("x@far.example", "ada@home.example", "250 2.1.5"),
        ("x@far.example", "nobody@home.example", "550 5.1.1"),
        ("x@far.example", "y@far.example", "550 5.7.1"),
        ("ada@home.example", "y@far.example", "550 5.7.1"),
        ("x@far.example", "ada@sending.example", "550 5.7.1"),
        ("x@far.example", "y%far.example@home.example", "550 5.1.1"),
        ("x@far.example", '"y@far.example"@home.example', "550 5.1.1"),
        ("x@far.example", "@home.example:y@far.example", "550 5.7.1"),
        ("x@far.example", "postmaster@home.example", "250 2.1.5"),
        ("", "ada+tag@home.example", "250 2.1.5"),
    ],
)
def test_the_mx_receives_for_our_recipients_alone_SIN_16(mx: Talk, sender: str, recipient: str, expected: str) -> None:
    mx.say("EHLO c")
    assert mx.codes(f"MAIL FROM:<{sender}>", f"RCPT TO:<{recipient}>") == ["250 2.1.0", expected]


def test_authentication_is_never_offered_at_the_mx(mx: Talk) -> None:
    mx.start_tls()
    assert "AUTH" not in mx.say("EHLO c")[0]
    assert mx.log_in() == "502 5.5.1"


def test_users_send_as_themselves_alone_SUB_03(ingress: Ingress) -> None:
    with submission(ingress) as talk:
        assert talk.codes("MAIL FROM:<bob@home.example>") == ["550 5.7.1"]
        assert talk.codes("MAIL FROM:<ada+tag@home.example>", "RSET") == ["250 2.1.0", "250 2.0.0"]
        for author, expected in (
            ("ada@home.example", "250 2.6.0"),
            ("Ada <ada@sending.example>, ada@home.example", "250 2.6.0"),
            ("bob@home.example", "550 5.7.1"),
            ("ada@home.example, bob@home.example", "550 5.7.1"),
            ("ada@home.example <bob@home.example>", "550 5.7.1"),
            ("[home] Ada <ada@home.example>", "250 2.6.0"),
            ("[home], Ada <ada@home.example>", "550 5.6.0"),
        ):
            reply = send(talk, f"From: {author}\r\n\r\n".encode(), sender="ada@home.example", to="x@far.example")
            assert reply.startswith(expected), (author, reply)
        assert send(talk, b"From: bob@home.example\r\n\r\n", sender="", to="x@far.example").startswith("550 5.7.1")
        assert send(talk, b"Subject: x\r\n\r\n", sender="", to="x@far.example").startswith("250")
        assert talk.codes("MAIL FROM:<ada@home.example>", "RCPT TO:<x@far>") == ["250 2.1.0", "554 5.1.2"]


@pytest.mark.parametrize("ending", [b"\n.\n", b"\n.\r\n", b"\r\n.\n", b"\r.\r", b"\r.\r\n", b"\r\n.\r"])
def test_a_smuggled_end_is_one_refusal_and_the_end_of_the_session_SIN_02(ingress: Ingress, ending: bytes) -> None:
    before = len(ingress.queue.stored)
    with Talk((HOST, ingress.ports["mx"])) as talk:
        talk.say("EHLO c", "MAIL FROM:<x@far.example>", "RCPT TO:<ada@home.example>", "DATA")
        talk.send(b"Subject: x\r\n\r\nhello" + ending + SMUGGLED)
        assert talk.reply().startswith("550 5.6.0")
        assert talk.ended()
    assert len(ingress.queue.stored) == before


def test_a_refusal_is_heard_inside_tls_too_though_the_client_goes_on_sending_SIN_03(ingress: Ingress) -> None:
    with submission(ingress) as talk:
        assert talk.codes("MAIL FROM:<ada@home.example>", "RCPT TO:<ada@home.example>", "DATA")[2] == "354"
        talk.send(b"Subject: x\n\n" + (b"x" * 998 + b"\n") * 20_000 + b"\r\n.\r\n")
        assert code(talk.reply()) == "550 5.6.0"
        assert talk.ended()


def test_commands_before_the_handshake_are_not_heard_after_it_TLS_02(ingress: Ingress, mx: Talk) -> None:
    mx.say("EHLO c")
    mx.send(b"STARTTLS\r\nEHLO evil\r\n" + SMUGGLED)
    assert mx.reply().startswith("220 2.0.0")
    mx.encrypt()
    assert mx.codes("MAIL FROM:<x@far.example>") == ["503 5.5.1"]
    assert not any(message.envelope.mail_from == "evil@far.example" for message in ingress.queue.stored)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
def test_a_client_that_speaks_old_tls_alone_gets_no_session_TLS_05(ingress: Ingress, version: ssl.TLSVersion) -> None:
    made = Authority().issue("mx.home.example")
    old = speaking_only(trusting_anybody(), version)
    assert handshake(old, speaking_only(made.server_context(), version)) in ("TLSv1", "TLSv1.1")  # it does speak it
    with pytest.raises(ssl.SSLError):
        handshake(old, with_any_suite(load(made.pem).context))
    with Talk((HOST, ingress.ports["submissions"]), greeting=False) as talk, pytest.raises((ssl.SSLError, OSError)):
        old.wrap_socket(talk.socket)


def test_suites_without_forward_secrecy_are_not_spoken_TLS_05(ingress: Ingress) -> None:
    context = speaking_only(trusting_anybody(), ssl.TLSVersion.TLSv1_2)
    with (
        Talk((HOST, ingress.ports["submissions"]), greeting=False) as talk,
        context.wrap_socket(talk.socket) as secured,
    ):
        assert secured.version() == "TLSv1.2"
        assert secured.cipher()[0].startswith("ECDHE-")  # type: ignore[index]
    context.set_ciphers("AES128-SHA:@SECLEVEL=0")
    with Talk((HOST, ingress.ports["submissions"]), greeting=False) as talk, pytest.raises((ssl.SSLError, OSError)):
        context.wrap_socket(talk.socket)


def test_a_lost_client_leaves_nothing_SIN_18(ingress: Ingress) -> None:
    before, aborted = len(ingress.queue.stored), len(ingress.queue.aborted)
    with Talk((HOST, ingress.ports["mx"])) as talk:
        talk.say("EHLO c", "MAIL FROM:<x@far.example>", "RCPT TO:<ada@home.example>", "DATA")
        talk.send(b"Subject: x\r\n\r\n" + b"half a line\r\n" * 100_000)
    wait_until(lambda: len(ingress.queue.aborted) > aborted, 10, "the queue was told to forget the chunks")
    assert len(ingress.queue.stored) == before


def test_a_client_that_stops_sending_after_the_dot_still_hears_the_answer(ingress: Ingress, mx: Talk) -> None:
    ingress.queue.answers.clear()
    try:
        mx.say("EHLO c", "MAIL FROM:<x@far.example>", "RCPT TO:<ada@home.example>", "DATA")
        mx.send(b"Subject: x\r\n\r\n.\r\n")
        mx.socket.shutdown(1)
        time_of_day = time.monotonic()
        wait_until(lambda: time.monotonic() > time_of_day, 1)
    finally:
        background().loop.call_soon_threadsafe(ingress.queue.answers.set)
    assert mx.reply().startswith("250 2.6.0")
    assert mx.ended()


def test_a_pipelined_batch_is_answered_in_order_EXT_03(mx: Talk) -> None:
    codes = mx.codes(
        "EHLO c", "MAIL FROM:<x@far.example>", "RCPT TO:<nobody@home.example>", "RCPT TO:<ada@home.example>", "DATA"
    )
    assert codes == ["250", "250 2.1.0", "550 5.1.1", "250 2.1.5", "354"]
    mx.send(b"Subject: x\r\n\r\n.\r\nMAIL FROM:<>\r\nQUIT\r\n")
    assert [mx.reply()[:9] for _ in range(3)] == ["250 2.6.0", "250 2.1.0", "221 2.0.0"]
    assert mx.ended()


# --- logins ---


@pytest.mark.parametrize("mechanism", ["SCRAM-SHA-256", "SCRAM-SHA-1", "CRAM-MD5"])
@pytest.mark.parametrize("tls", [True, False])
def test_challenge_mechanisms_work_with_and_without_tls(ingress: Ingress, mechanism: str, tls: bool) -> None:
    with Talk((HOST, ingress.ports["submission"])) as talk:
        if tls:
            talk.start_tls()
        else:
            talk.say("EHLO c")
        assert exchange(talk, mechanism, PASSWORD) == "235 2.7.0"
        assert talk.codes("MAIL FROM:<ada@home.example>") == ["250 2.1.0"]
    with Talk((HOST, ingress.ports["submission"])) as talk:
        talk.start_tls()
        assert exchange(talk, mechanism, "wrong") == "535 5.7.8"
        assert exchange(talk, mechanism, PASSWORD, login="nobody@home.example") == "535 5.7.8"


def exchange(talk: Talk, mechanism: str, password: str, login: str = "ada@home.example") -> str:
    client = start(ClientMechanism(mechanism), Credentials(login, password), nonce="0123456789abcdef0123")
    first = client.initial()
    reply = talk.say(f"AUTH {mechanism}" + (f" {base64.b64encode(first).decode()}" if first is not None else ""))[0]
    while reply.startswith("334"):
        answer = client.respond(base64.b64decode(reply[4:]))
        reply = talk.say(base64.b64encode(answer).decode())[0]
    if reply.startswith("235"):
        client.verify_success()
    return " ".join(reply.split()[:2])


def test_passwords_are_shown_to_nobody_outside_tls_AUTH_01(ingress: Ingress) -> None:
    with Talk((HOST, ingress.ports["submission"])) as talk:
        assert "250-AUTH SCRAM-SHA-256 SCRAM-SHA-1 CRAM-MD5\n" in talk.say("EHLO c")[0] + "\n"
        assert talk.log_in() == "538 5.7.11"


def test_a_wrong_login_and_a_wrong_password_read_the_same_AUTH_05a(ingress: Ingress) -> None:
    with submission(ingress, log_in=False) as talk:
        replies = set()
        for login, password in (("ada@home.example", "wrong"), ("nobody@home.example", PASSWORD)):
            message = base64.b64encode(f"\0{login}\0{password}".encode()).decode()
            replies.add(talk.say(f"AUTH PLAIN {message}")[0])
        assert len(replies) == 1
        assert talk.log_in("ADA@Home.Example") == "235 2.7.0"


def test_no_secret_is_in_the_log(ingress: Ingress) -> None:
    with submission(ingress, log_in=False) as talk:
        talk.log_in("ada@home.example", "hunter2hunter2")
        talk.log_in()
    text = "\n".join(ingress.program_lines())
    assert PASSWORD not in text
    assert "hunter2" not in text
    assert "SCRAM-SHA-256$" not in text


# --- administration ---


def test_sessions_and_recipients_can_be_asked_for(ingress: Ingress, mx: Talk) -> None:
    mx.say("EHLO asked.example")
    target = f"{HOST}:{ingress.events('serving gRPC')[0]['port']}"

    async def ask() -> tuple[ingress_pb2.ListSessionsResponse, list[ingress_pb2.ResolveRecipientResponse]]:
        async with grpc.aio.insecure_channel(target) as channel:
            stub = ingress_pb2_grpc.IngressServiceStub(channel)
            sessions = await stub.ListSessions(ingress_pb2.ListSessionsRequest())
            wanted = ["team@home.example", "x@far.example", "not an address", "Postmaster"]
            found = [
                await stub.ResolveRecipient(ingress_pb2.ResolveRecipientRequest(address=address)) for address in wanted
            ]
            login = ingress_pb2.ResolveRecipientRequest(address="x@far.example", login="ada@home.example")
            return sessions, [*found, await stub.ResolveRecipient(login)]

    sessions, found = background().call(ask())
    assert any(s.client_name == "asked.example" and s.listener == "mx" for s in sessions.sessions)
    assert [answer.code for answer in found] == [250, 550, 501, 250, 250]
    assert [r.address for r in found[0].recipients] == ["ada@home.example", "bob@far.example"]
    assert found[0].recipients[0].how == "alias"


def test_every_mechanism_that_can_be_used_is_offered_inside_tls(ingress: Ingress) -> None:
    with submission(ingress, log_in=False) as talk:
        line = next(line for line in talk.say("EHLO c")[0].split("\n") if line[4:].startswith("AUTH "))
    offered = [name for name in ALL_MECHANISMS if not name.endswith("-PLUS")]
    assert line == "250-AUTH " + " ".join(offered)


# --- bounds ---


def test_a_message_of_100_mb_streams_through(tmp_path: Path) -> None:
    with Ingress(tmp_path, keep=False) as ingress, Talk((HOST, ingress.ports["mx"])) as talk:
        assert ingress.program is not None
        process = psutil.Process(ingress.program.pid)
        talk.socket.settimeout(120)
        talk.say("EHLO c")
        assert send(talk, b"Subject: warm\r\n\r\n" + b"x" * 998 + b"\r\n" * 200_000).startswith("250")
        before = process.memory_info().rss
        block = (b"x" * 998 + b"\r\n") * 1000
        assert talk.codes("MAIL FROM:<>", "RCPT TO:<ada@home.example>", "DATA")[2] == "354"
        most = before
        for _ in range(100):
            talk.send(block)
            most = max(most, process.memory_info().rss)
        talk.send(b".\r\n")
        assert talk.reply().startswith("250 2.6.0")
        assert most - before < 30_000_000


# --- the mail probe (decision 20) ---


def probe(*, key: bytes = KEY, age: float = 0.0) -> str:
    return probe_address(Keyring({"k1": key}), time.time() - age)


def counted() -> dict[str, float]:
    """Every counter of mail that is not 0."""
    with urllib.request.urlopen(f"http://{METRICS}/metrics", timeout=10) as answer:
        page = answer.read().decode()
    kinds = ("messages_total", "senders_total", "recipients_total", "accepted_bytes_total", "commit_seconds_count")
    found = dict(line.rsplit(" ", 1) for line in page.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, value in found.items() if any(kind in name for kind in kinds) and float(value)}


def test_a_probe_is_stored_as_one_with_a_null_sender_and_counts_nowhere(ingress: Ingress, mx: Talk) -> None:
    before = counted()
    mx.start_tls()
    address = probe()
    message = accepted(ingress, send(mx, b"Subject: probe\r\n\r\nprobe\r\n", sender=address, to=address))
    assert message.envelope.purpose == types_pb2.PURPOSE_PROBE
    assert message.envelope.origin == types_pb2.ORIGIN_SYSTEM
    assert message.envelope.mail_from == ""
    assert [recipient.address for recipient in message.recipients] == [address]
    assert counted() == before


def test_a_probe_goes_to_its_own_address_alone(ingress: Ingress, mx: Talk) -> None:
    mx.start_tls()
    address = probe()
    assert mx.codes(f"MAIL FROM:<{address}>", "RCPT TO:<ada@home.example>") == ["250 2.1.0", "550 5.1.1"]
    assert mx.codes(f"RCPT TO:<{probe(age=60)}>") == ["550 5.1.1"]
    assert mx.codes(f"RCPT TO:<{address}>", f"RCPT TO:<{address}>") == ["250 2.1.5", "550 5.1.1"]


@pytest.mark.parametrize("age", [0.0, 3600.0])
def test_a_stranger_who_writes_to_the_domain_of_probes_is_refused_like_anybody(
    age: float, ingress: Ingress, mx: Talk
) -> None:
    mx.start_tls()
    address = probe(key=bytes([9]) * 32) if not age else probe(age=age)
    stored = len(ingress.queue.stored)
    assert mx.codes(f"MAIL FROM:<{address}>", f"RCPT TO:<{address}>") == ["250 2.1.0", "550 5.7.1"]
    assert mx.codes("RSET", "MAIL FROM:<x@far.example>", f"RCPT TO:<{probe()}>") == [
        "250 2.0.0",
        "250 2.1.0",
        "550 5.7.1",
    ]
    assert len(ingress.queue.stored) == stored
