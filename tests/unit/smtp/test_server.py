"""The server's side of SMTP: SIN-02..22, EXT-01..13, AUTH-01..05, TLS-01..03, SUB-01, OPT-01, OPT-07, DSN-01..03,
RTLS-01..05."""

from base64 import b64encode
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mailrail.core.smtp.events import (
    Abandoned,
    AuthCancelled,
    AuthRequested,
    AuthResponse,
    Closing,
    Content,
    ContentEnded,
    ContentStarted,
    Event,
    ListenerOptions,
    RecipientGiven,
    SenderGiven,
    TlsRequested,
)
from mailrail.core.smtp.parameters import Notify, RcptParameters
from mailrail.core.smtp.reply import Reply
from mailrail.core.smtp.server import (
    OVERSHOOT_LIMIT,
    SMALL_CHUNK,
    SMALL_CHUNKS_LIMIT,
    USELESS_LIMIT,
    ServerSession,
)
from mailrail.core.smtp.tls import TlsFacts

NOW = 1795370400.0  # 2026-11-22T18:00:00Z
MX = ListenerOptions("mx.example.net", starttls=True, size_limit=100_000, recipient_limit=100)
SUBMISSION = replace(MX, submission=True, mechanisms=("SCRAM-SHA-256", "CRAM-MD5", "PLAIN", "LOGIN"))
TLS = TlsFacts("TLSv1.3", "TLS_AES_256_GCM_SHA384")
NO_USER = Reply.of(550, "5.1.1", "no such user")


@dataclass
class Peer:
    """A session with an app behind it that says yes to everything but `nobody@`, and remembers what it was told."""

    session: ServerSession
    replies: bytes = b""
    events: list[Event] = field(default_factory=list)
    messages: list[bytes] = field(default_factory=list)
    content: bytes = b""
    closing: Closing | None = None
    hold_commit: bool = False

    def send(self, *pieces: bytes) -> str:
        """Send, and return what was answered to it."""
        before = len(self.replies)
        for piece in pieces:
            self.session.receive(piece, NOW)
            self.pump()
        return self.replies[before:].decode()

    def pump(self) -> None:
        while (event := self.session.next_event()) is not None:
            self.events.append(event)
            self.answer(event)
        self.replies += self.session.data_to_send()

    def answer(self, event: Event) -> None:
        match event:
            case RecipientGiven(recipient) if recipient.local == "nobody":
                self.session.refuse(NO_USER)
            case SenderGiven() | RecipientGiven():
                self.session.accept()
            case ContentStarted():
                self.content = b""
                self.session.accept()
            case Content(data):
                self.content += data
            case ContentEnded() if not self.hold_commit:
                self.messages.append(self.content)
                self.session.finish()
            case AuthRequested("PLAIN", initial) if initial is not None:
                self.finish_plain(initial)
            case AuthRequested():
                self.session.challenge(b"")
            case AuthResponse(data):
                self.finish_plain(data)
            case TlsRequested():
                self.session.complete_tls(TLS)
            case Closing():
                self.closing = event

    def finish_plain(self, data: bytes) -> None:
        if data == b"\0ada\0secret":
            self.session.authenticate("ada")
        else:
            self.session.refuse(Reply.of(535, "5.7.8", "wrong"))


def open_session(
    options: ListenerOptions = MX, *, hello: bytes | None = b"EHLO client.example\r\n", tls: bool = False
) -> Peer:
    peer = Peer(ServerSession(options, tls=TLS if tls else None))
    peer.pump()
    if hello:
        peer.send(hello)
    return peer


def code(reply: str) -> str:
    """The code and, where there is one, the enhanced code of the last line."""
    last = reply.rstrip("\r\n").split("\r\n")[-1]
    words = last.replace("-", " ", 1).split(" ")
    return " ".join(words[:2]) if len(words) > 1 and words[1].count(".") == 2 and words[1][0].isdigit() else words[0]


PLAIN = b64encode(b"\0ada\0secret")
LOG_IN = b"AUTH PLAIN " + PLAIN + b"\r\n"
OPEN = b"MAIL FROM:<a@example.org>\r\nRCPT TO:<b@example.net>\r\n"


# --- greeting, EHLO ---


def test_the_greeting_and_ehlo_carry_no_enhanced_code_and_list_what_is_offered_SIN_21_OPT_07() -> None:
    peer = open_session(hello=None)
    assert peer.replies == b"220 mx.example.net ESMTP Mailrail\r\n"
    lines = peer.send(b"EHLO client.example\r\n").split("\r\n")
    assert lines == [
        "250-mx.example.net",
        "250-PIPELINING",
        "250-SIZE 100000",
        "250-STARTTLS",
        "250-ENHANCEDSTATUSCODES",
        "250-8BITMIME",
        "250-CHUNKING",
        "250-BINARYMIME",
        "250-SMTPUTF8",
        "250-DSN",
        "250 LIMITS RCPTMAX=100",
        "",
    ]


def test_submission_offers_authentication_and_future_release_AUTH_01_OPT_01() -> None:
    clear = open_session(SUBMISSION, hello=None).send(b"EHLO c\r\n")
    assert "250-AUTH SCRAM-SHA-256 CRAM-MD5\r\n" in clear
    assert "250 FUTURERELEASE 5184000 2027-01-21T18:00:00Z\r\n" in clear
    inside = open_session(SUBMISSION, hello=None, tls=True).send(b"EHLO c\r\n")
    assert "250-AUTH SCRAM-SHA-256 CRAM-MD5 PLAIN LOGIN\r\n" in inside
    assert "STARTTLS" not in inside


def test_plus_mechanisms_are_offered_inside_tls_alone() -> None:
    options = replace(SUBMISSION, mechanisms=("SCRAM-SHA-256-PLUS", "SCRAM-SHA-256"))
    assert "250-AUTH SCRAM-SHA-256\r\n" in open_session(options, hello=None).send(b"EHLO c\r\n")
    assert "SCRAM-SHA-256-PLUS" in open_session(options, hello=None, tls=True).send(b"EHLO c\r\n")


def test_helo_gives_no_extensions_SIN_20() -> None:
    peer = open_session(hello=None)
    assert peer.send(b"HELO client.example\r\n") == "250 mx.example.net\r\n"
    assert code(peer.send(b"MAIL FROM:<a@example.org> RET=HDRS\r\n")) == "555 5.5.4"
    assert code(peer.send(b"MAIL FROM:<a@example.org> SIZE=1\r\n")) == "555 5.5.4"
    assert code(peer.send(b"STARTTLS\r\n")) == "503 5.5.1"
    assert code(peer.send(b"MAIL FROM:<a@example.org>\r\n")) == "250 2.1.0"  # SIN-21: codes after HELO too


# --- commands: syntax and order ---


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("FOO", "500 5.5.1"),
        ("", "500 5.5.1"),
        ("EXPN staff", "502 5.5.1"),
        ("TURN", "502 5.5.1"),
        ("AUTH PLAIN", "502 5.5.1"),  # never on an MX listener
        ("NOOP", "250 2.0.0"),
        ("noop whatever", "250 2.0.0"),
        ("RSET", "250 2.0.0"),
        ("RSET x", "501 5.5.4"),
        ("VRFY ada", "252 2.0.0"),
        ("VRFY", "501 5.5.4"),
        ("HELP", "214 2.0.0"),
        ("EHLO", "501 5.5.4"),
        ("EHLO a\tb", "501 5.5.4"),
        ("EHLO " + "a" * 256, "501 5.5.4"),
        ("HELO", "501 5.5.4"),
        ("QUIT now", "501 5.5.4"),
        ("QUIT", "221 2.0.0"),
        ("RCPT TO:<b@example.net>", "503 5.5.1"),
        ("DATA", "503 5.5.1"),
        ("MAIL", "501 5.5.4"),
        ("MAIL TO:<a@example.org>", "501 5.5.4"),
        ("MAIL FROM:a@", "501 5.1.7"),
        ("MAIL FROM: ", "501 5.1.7"),
        ("MAIL FROM:<a@>", "501 5.1.7"),
        ("MAIL FROM:<Postmaster>", "501 5.1.7"),
        ("MAIL FROM:<a@example.org> FOO=1", "555 5.5.4"),
        ("MAIL FROM:<a@example.org> SIZE=x", "501 5.5.4"),
        ("MAIL FROM:<a@example.org>SIZE=1", "501 5.5.4"),
        ("MAIL FROM:<a@example.org> HOLDFOR=60", "555 5.5.4"),  # OPT-01: only on submission
        ("MAIL FROM:<a@example.org> AUTH=<>", "555 5.5.4"),
        ("MAIL FROM:<a@example.org> REQUIRETLS", "530 5.7.10"),  # RTLS-04
        ("MAIL FROM:<a@example.org> SIZE=100000", "250 2.1.0"),
        ("MAIL FROM:<a@example.org> SIZE=100001", "552 5.3.4"),
        ("mail from: <a@example.org>  ", "250 2.1.0"),
        ("MAIL FROM:<>", "250 2.1.0"),
        ("MAIL FROM:<жора@example.org>", "550 5.6.7"),
        ("MAIL FROM:<жора@example.org> SMTPUTF8", "250 2.1.0"),
        ("STARTTLS x", "501 5.5.4"),
        ("BDAT", "501 5.5.4"),
        ("BDAT x", "501 5.5.4"),
        ("BDAT 0 FIRST", "501 5.5.4"),
        ("BDAT 0 LAST", "503 5.5.1"),
        ("BDAT 123456789012345678901", "501 5.5.4"),
    ],
)
def test_each_command_gets_its_reply_SIN_08(line: str, expected: str) -> None:
    assert code(open_session().send(line.encode() + b"\r\n")) == expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("MAIL FROM:<c@example.org>", "503 5.5.1"),
        ("DATA", "554 5.5.1"),
        ("DATA now", "501 5.5.4"),
        ("BDAT 0 LAST", "554 5.5.1"),
        ("RCPT", "501 5.5.4"),
        ("RCPT FROM:<b@example.net>", "501 5.5.4"),
        ("RCPT TO:b", "501 5.1.3"),
        ("RCPT TO:<>", "501 5.1.3"),
        ("RCPT TO:<b@[1.2.3]>", "501 5.1.3"),
        ("RCPT TO:<Postmaster>", "250 2.1.5"),
        ("RCPT TO:<b@example.net> FOO", "555 5.5.4"),
        ("RCPT TO:<b@example.net> NOTIFY=NEVER,DELAY", "501 5.5.4"),
        ("RCPT TO:<b@example.net> NOTIFY=NEVER ORCPT=rfc822;B@example.net", "250 2.1.5"),
        ("RCPT TO:<жора@example.net>", "553 5.6.7"),
        ("RCPT TO:<nobody@example.net>", "550 5.1.1"),
    ],
)
def test_each_command_in_a_transaction_gets_its_reply_SIN_08(line: str, expected: str) -> None:
    peer = open_session()
    peer.send(b"MAIL FROM:<a@example.org>\r\n")
    assert code(peer.send(line.encode() + b"\r\n")) == expected


@pytest.mark.parametrize("line", ["VRFY ada", "VRFY <ada@example.net>", "VRFY nobody"])
def test_vrfy_tells_nobody_who_is_here_and_expn_is_off_EXT_13(line: str) -> None:
    peer = open_session()
    assert code(peer.send(f"{line}\r\n".encode())) == "252 2.0.0"
    assert code(peer.send(b"EXPN staff\r\n")) == "502 5.5.1"


_NOT_ASCII = "жора"


@pytest.mark.parametrize(
    "line",
    [
        "{}",
        "EHLO {}",
        "HELO {}",
        "VRFY {}",
        "EXPN {}",
        "NOOP {}",
        "HELP {}",
        "RSET {}",
        "STARTTLS {}",
        "AUTH {}",
        "BDAT {}",
        "MAIL {}",
        "MAIL FROM:{}",
        "MAIL FROM:<{}>",
        "MAIL FROM:<{}@example.org>",
        "MAIL FROM:<a@{}.example>",
        "MAIL FROM:<a@example.org> {}",
        "MAIL FROM:<a@example.org> {}=1",
        "MAIL FROM:<a@example.org> SIZE={}",
        "MAIL FROM:<a@example.org> ENVID={}",
        "MAIL FROM:<a@example.org> BODY={}",
        "RCPT TO:<{}@example.net>",
        "RCPT TO:<b@{}.example>",
        "RCPT TO:<b@example.net> {}",
        "RCPT TO:<b@example.net> ORCPT={}",
        "RCPT TO:<b@example.net> NOTIFY={}",
    ],
)
@pytest.mark.parametrize("begin", [b"", b"MAIL FROM:<a@example.org>\r\n"])
@pytest.mark.parametrize("options", [MX, SUBMISSION])
def test_what_is_not_ascii_in_a_command_is_in_no_reply_EXT_12a(
    line: str, begin: bytes, options: ListenerOptions
) -> None:
    peer = open_session(options, tls=True)
    if options is SUBMISSION:
        peer.send(LOG_IN)
    peer.send(begin)
    assert peer.send(line.format(_NOT_ASCII).encode() + b"\r\n").isascii()


def test_a_session_goes_on_until_quit_whatever_is_refused_SIN_19() -> None:
    peer = open_session()
    peer.send(b"MAIL FROM:<>\r\n", b"RCPT TO:<nobody@example.net>\r\n", b"DATA\r\n", b"FOO\r\n", b"EXPN a\r\n")
    peer.send(OPEN, b"RSET\r\n", OPEN + b"DATA\r\nx\r\n.\r\n")
    assert peer.closing is None
    assert code(peer.send(b"NOOP\r\n")) == "250 2.0.0"
    assert code(peer.send(b"QUIT\r\n")) == "221 2.0.0"
    assert peer.closing is not None


def test_mail_needs_a_hello() -> None:
    assert code(open_session(hello=None).send(b"MAIL FROM:<a@example.org>\r\n")) == "503 5.5.1"


@pytest.mark.parametrize("command", [b"EHLO again.example\r\n", b"HELO again.example\r\n", b"RSET\r\n"])
def test_ehlo_and_rset_reset_the_transaction_SIN_11(command: bytes) -> None:
    peer = open_session()
    peer.send(OPEN, command)
    assert isinstance(peer.events[-1], Abandoned)
    assert code(peer.send(b"DATA\r\n")) == "503 5.5.1"
    assert code(peer.send(b"MAIL FROM:<a@example.org>\r\n")) == "250 2.1.0"


def test_parameters_reach_the_app_DSN_01() -> None:
    peer = open_session()
    peer.send(b"MAIL FROM:<a@example.org> SIZE=12 BODY=8BITMIME RET=HDRS ENVID=x+2By\r\n")
    peer.send(b"RCPT TO:<b@example.net> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;B@Example.net\r\n")
    sender, recipient = peer.events[-2:]
    assert isinstance(sender, SenderGiven)
    assert (sender.parameters.size, sender.parameters.envid) == (12, "x+2By")
    assert isinstance(recipient, RecipientGiven)
    assert recipient.parameters == RcptParameters((Notify.SUCCESS, Notify.DELAY), "rfc822;B@Example.net")


def test_recipients_above_the_limit_get_452_and_the_earlier_ones_stay_SIN_06() -> None:
    peer = open_session()
    peer.send(b"MAIL FROM:<a@example.org>\r\n")
    for number in range(100):
        assert code(peer.send(b"RCPT TO:<b%d@example.net>\r\n" % number)) == "250 2.1.5"
    assert code(peer.send(b"RCPT TO:<b100@example.net>\r\n")) == "452 4.5.3"
    assert code(peer.send(b"DATA\r\n")) == "354"


def test_recipients_above_the_limit_have_an_end_too_SIN_17() -> None:
    peer = open_session(replace(MX, recipient_limit=2))
    peer.send(b"MAIL FROM:<a@example.org>\r\n")
    said = "".join(peer.send(b"RCPT TO:<b@example.net>\r\n" * 2) for _ in range(OVERSHOOT_LIMIT // 2))
    assert said.count("452 4.5.3") == OVERSHOOT_LIMIT - 2
    assert not peer.session.closed
    said = peer.send(b"RCPT TO:<b@example.net>\r\n" * 3)
    assert said.endswith("421 4.7.0 too many errors\r\n")
    assert peer.session.closed


def test_a_refused_sender_leaves_no_transaction() -> None:
    session = ServerSession(MX)
    session.receive(b"EHLO c\r\nMAIL FROM:<a@example.org>\r\nRCPT TO:<b@example.net>\r\n", NOW)
    assert isinstance(session.next_event(), SenderGiven)
    assert session.next_event() is None
    assert session.awaiting
    session.refuse(Reply.of(550, "5.1.8", "unknown domain"))
    assert session.next_event() is None
    assert session.data_to_send().decode().endswith("550 5.1.8 unknown domain\r\n503 5.5.1 send MAIL first\r\n")


# --- content ---


def test_a_message_goes_from_data_to_the_commit_with_dots_unstuffed_SIN_04() -> None:
    peer = open_session()
    peer.hold_commit = True
    assert [code(r) for r in peer.send(OPEN + b"DATA\r\n").splitlines()] == ["250 2.1.0", "250 2.1.5", "354"]
    assert peer.send(b"Subject: x\r\n\r\n..dot\r\n.\r\n") == ""
    assert peer.content == b"Subject: x\r\n\r\n.dot\r\n"
    assert peer.session.awaiting  # no 250 before the commit (SIN-01)
    peer.session.finish(Reply.of(250, "2.6.0", "accepted"))
    peer.pump()
    assert peer.replies.endswith(b"250 2.6.0 accepted\r\n")
    assert peer.session.messages == 1


def test_a_failed_commit_is_told_and_the_session_goes_on() -> None:
    peer = open_session()
    peer.hold_commit = True
    peer.send(OPEN + b"DATA\r\nx\r\n.\r\n")
    peer.session.finish(Reply.of(451, "4.3.0", "try again"))
    peer.pump()
    peer.hold_commit = False
    assert peer.session.messages == 0
    assert code(peer.send(OPEN + b"DATA\r\nx\r\n.\r\n")) == "250 2.6.0"


def test_the_real_size_counts_and_the_message_is_read_to_its_dot_EXT_01() -> None:
    peer = open_session()
    peer.send(b"MAIL FROM:<a@example.org> SIZE=10\r\nRCPT TO:<b@example.net>\r\nDATA\r\n")
    line = b"x" * 998 + b"\r\n"
    for _ in range(100):
        assert peer.send(line) == ""
    assert peer.send(line) == ""
    assert isinstance(peer.events[-1], Abandoned)
    assert code(peer.send(line, b".\r\n")) == "552 5.3.4"
    assert peer.messages == []
    assert code(peer.send(OPEN)) == "250 2.1.5"


def test_a_message_of_exactly_the_limit_is_taken_EXT_02() -> None:
    peer = open_session()
    body = b"x" * 99_998 + b"\r\n"
    assert code(peer.send(OPEN, b"DATA\r\n", body + b".\r\n")) == "250 2.6.0"
    assert peer.messages == [body]


def test_the_app_may_lower_the_limit_of_a_transaction() -> None:
    session = ServerSession(MX)
    session.receive(b"EHLO c\r\n" + OPEN + b"DATA\r\n0123456789\r\n.\r\n", NOW)
    assert isinstance(session.next_event(), SenderGiven)
    session.accept(size_limit=5)
    assert isinstance(session.next_event(), RecipientGiven)
    session.accept()
    assert isinstance(session.next_event(), ContentStarted)
    session.accept()
    assert isinstance(session.next_event(), Abandoned)
    assert session.next_event() is None
    assert b"552 5.3.4" in session.data_to_send()


@pytest.mark.parametrize(
    "ending", [b"\n.\n", b"\n.\r\n", b"\r\n.\n", b"\r.\r", b"\r\n.\r", b"\r.\r\n", b"\r\r\n.\r\r\n", b"\r\n.\r\r\n"]
)
def test_smuggled_ends_are_refused_and_the_session_ends_SIN_02_SIN_03(ending: bytes) -> None:
    for options, tls in ((MX, False), (SUBMISSION, True)):
        peer = open_session(options, tls=tls)
        if options.submission:
            peer.send(LOG_IN)
        peer.send(OPEN, b"DATA\r\n")
        answer = peer.send(b"Subject: x\r\n\r\nhello" + ending + OPEN + b"DATA\r\nevil\r\n.\r\n")
        assert code(answer) == "550 5.6.0"
        assert answer.count("\r\n") == 1
        assert peer.messages == []
        assert peer.closing is not None
        assert peer.closing.linger
        assert peer.send(b"NOOP\r\n") == ""


@pytest.mark.parametrize("line", [b"NOOP\nNOOP\r\n", b"NOOP\n", b"\nNOOP\r\n", b"NOOP\rNOOP\r\n"])
def test_a_bare_line_end_is_none_in_commands_either_SIN_03(line: bytes) -> None:
    peer = open_session()
    assert code(peer.send(line)) == "500 5.5.2"
    assert peer.closing is not None


def test_an_overlong_line_is_thrown_away_whole_SIN_07() -> None:
    peer = open_session()
    for length in (4094, 4095, 20_000, 300_000):
        answer = peer.send(b"NOOP " + b"x" * (length - 5) + b"\r\n")
        assert code(answer) == ("250 2.0.0" if length <= 4094 else "500 5.5.2")
        assert answer.count("\r\n") == 1
    injected = b"NOOP " + b"x" * 50_000 + b"RSET\r" + b"\r\n"
    assert code(peer.send(injected)) == "500 5.5.2"
    assert peer.send(b"NOOP\r\n") == "250 2.0.0 ok\r\n"


def test_a_line_without_end_ends_the_session_in_bounded_memory() -> None:
    peer = open_session()
    for _ in range(40):
        peer.send(b"x" * 65536)
    assert peer.closing is not None
    assert code(peer.replies.decode()) == "500 5.5.2"


def test_command_lines_of_1036_octets_are_taken_DSN_03() -> None:
    peer = open_session()
    line = b"MAIL FROM:<" + b"a" * 64 + b"@example.org> RET=HDRS ENVID=" + b"e" * 950 + b"\r\n"
    assert len(line) > 1036
    assert code(peer.send(line)) == "250 2.1.0"
    orcpt = b"RCPT TO:<b@example.net> NOTIFY=SUCCESS,FAILURE,DELAY ORCPT=rfc822;" + b"o" * 500 + b"\r\n"
    assert code(peer.send(orcpt)) == "250 2.1.5"


# --- pipelining ---


def test_a_batch_is_answered_in_order_in_one_write_EXT_03() -> None:
    peer = open_session()
    batch = (
        b"NOOP\r\n" + OPEN + b"RCPT TO:<nobody@example.net>\r\nRCPT TO:<c@example.net>\r\nDATA\r\n"
        b"Subject: x\r\n\r\nbody\r\n.\r\n" + OPEN + b"DATA\r\nsecond\r\n.\r\nQUIT\r\n"
    )
    peer.session.receive(batch, NOW)
    while (event := peer.session.next_event()) is not None:
        peer.events.append(event)
        peer.answer(event)
    answer = peer.session.data_to_send().decode()
    assert [line[:9].strip() for line in answer.splitlines()] == [
        "250 2.0.0",
        "250 2.1.0",
        "250 2.1.5",
        "550 5.1.1",
        "250 2.1.5",
        "354 end d",
        "250 2.6.0",
        "250 2.1.0",
        "250 2.1.5",
        "354 end d",
        "250 2.6.0",
        "221 2.0.0",
    ]
    assert peer.messages == [b"Subject: x\r\n\r\nbody\r\n", b"second\r\n"]
    assert isinstance(peer.events[-1], Closing)


def test_data_without_a_valid_recipient_is_no_354_EXT_03() -> None:
    peer = open_session()
    batch = b"MAIL FROM:<a@example.org>\r\nRCPT TO:<nobody@example.net>\r\nDATA\r\n"
    assert [code(line) for line in peer.send(batch).splitlines()] == ["250 2.1.0", "550 5.1.1", "554 5.5.1"]


def test_while_an_answer_is_awaited_input_is_kept_and_bounded() -> None:
    peer = open_session()
    peer.hold_commit = True
    assert peer.send(OPEN + b"DATA\r\nx\r\n.\r\nNOOP\r\n").endswith("<CRLF>.<CRLF>\r\n")
    assert peer.session.wants_data
    peer.session.receive((b"RCPT TO:<%b@d.example>\r\n" % (b"x" * 60)) * 1000, NOW)
    assert not peer.session.wants_data
    peer.session.finish()
    peer.pump()
    assert peer.replies.count(b"250 2.0.0 ok\r\n") == 1
    assert 0 < peer.replies.count(b"503 5.5.1 send MAIL first\r\n") == MX.error_limit


# --- BDAT ---


def test_chunks_without_end_that_carry_nothing_end_the_session_SIN_17() -> None:
    """An empty chunk costs as much as a command, and was counted nowhere: a hundred thousand of them went by."""
    peer = open_session()
    answer = peer.send(OPEN + b"BDAT 0\r\n" * 1000)
    # EHLO was the first command that did nothing for a message.
    assert [code(line) for line in answer.splitlines()[2:]] == ["250 2.0.0"] * (USELESS_LIMIT - 1) + ["421 4.7.0"]


@pytest.mark.parametrize("octets", [1, SMALL_CHUNK - 1, SMALL_CHUNK])
def test_tiny_chunks_are_counted_once_there_are_many_in_a_message_SIN_17(octets: int) -> None:
    peer = open_session(replace(MX, size_limit=1_000_000))
    chunk = b"BDAT %d\r\n" % octets + b"x" * octets
    answer = peer.send(OPEN, *[chunk] * 120, b"BDAT 0 LAST\r\n", OPEN, *[chunk] * 220)
    refused = [code(line) for line in answer.splitlines()].count("421 4.7.0")
    assert refused == (octets < SMALL_CHUNK)
    assert answer.count("250 2.6.0") == 1
    if refused:
        # Those of one message are forgotten with it; a hundred are free, and the next hundred end the session.
        assert answer.count("250 2.0.0") == 120 + SMALL_CHUNKS_LIMIT + USELESS_LIMIT


def test_a_turn_is_so_many_lines_and_what_is_left_waits_for_the_next() -> None:
    session = ServerSession(MX)
    session.data_to_send()
    session.receive(b"NOOP\r\n" * 25 + b"NO", 0.0)
    for answered, left in ((10, True), (10, True), (5, False)):
        session.turn = 10
        assert session.next_event() is None
        assert session.data_to_send().count(b"250 ") == answered
        assert session.interrupted is left


def test_chunks_are_counted_and_dots_mean_nothing_EXT_05() -> None:
    peer = open_session()
    assert code(peer.send(OPEN + b"BDAT 7\r\na\r\n.\r\nb")) == "250 2.0.0"
    assert code(peer.send(b"BDAT 0\r\n")) == "250 2.0.0"
    assert code(peer.send(b"BDAT 5 LAST\r\n.\r\n\r\nNOOP\r\n")) == "250 2.0.0"
    assert peer.messages == [b"a\r\n.\r\nb.\r\n\r\n"]
    assert code(peer.send(OPEN + b"bdat 3\r\nabc")) == "250 2.0.0"
    assert code(peer.send(b"BDAT 0 last\r\n")) == "250 2.6.0"
    assert peer.messages[1:] == [b"abc"]


@pytest.mark.parametrize("size", [b"", b" x", b" -1", b" 5 LAST LAST", b" 123456789012345678901", b"\t5 LAST"])
def test_a_chunk_of_unknown_size_ends_the_session_rather_than_be_read_as_commands_EXT_05(size: bytes) -> None:
    for before in (b"", OPEN):
        peer = open_session()
        answer = peer.send(before + b"BDAT" + size + b"\r\nRSET\r\nMAIL FROM:<evil@example.org>\r\n")
        assert code(answer) in ("501 5.5.4", "500 5.5.1")
        assert peer.closing is not None


@pytest.mark.parametrize("verb", [b"GET", b"POST", b"options", b"CONNECT"])
def test_a_web_page_cannot_speak_smtp_through_a_browser(verb: bytes) -> None:
    peer = open_session(hello=None)
    request = verb + b" / HTTP/1.1\r\nHost: mx.example.net:25\r\n\r\nEHLO c\r\n" + OPEN
    assert [code(line) for line in peer.send(request).splitlines()] == ["500 5.5.1"]
    assert peer.closing is not None
    assert peer.events == [peer.closing]


@pytest.mark.parametrize(
    ("batch", "codes"),
    [
        (OPEN + b"BDAT 1 LAST\r\nxBDAT 1\r\ny", ["250 2.1.0", "250 2.1.5", "250 2.6.0", "503 5.5.1"]),
        (OPEN + b"BDAT 1\r\nxDATA\r\n", ["250 2.1.0", "250 2.1.5", "250 2.0.0", "503 5.5.1"]),
        (OPEN + b"BDAT 1\r\nxMAIL FROM:<>\r\n", ["250 2.1.0", "250 2.1.5", "250 2.0.0", "503 5.5.1"]),
        (OPEN + b"BDAT 1\r\nxRCPT TO:<c@example.net>\r\n", ["250 2.1.0", "250 2.1.5", "250 2.0.0", "503 5.5.1"]),
        (
            OPEN + b"BDAT 1\r\nxRSET\r\nBDAT 4 LAST\r\nQUIT",
            ["250 2.1.0", "250 2.1.5", "250 2.0.0", "250 2.0.0", "503 5.5.1"],
        ),
        (b"BDAT 6\r\nNOOP\r\nNOOP\r\n", ["503 5.5.1", "250 2.0.0"]),
        (
            b"MAIL FROM:<>\r\nRCPT TO:<nobody@example.net>\r\nBDAT 6 LAST\r\nRSET\r\nNOOP\r\n",
            ["250 2.1.0", "550 5.1.1", "554 5.5.1", "250 2.0.0"],
        ),
        (
            OPEN + b"BDAT 3\r\na\nbBDAT 6\r\nQUIT\r\nBDAT 6 LAST\r\nQUIT\r\nNOOP\r\n",
            ["250 2.1.0", "250 2.1.5", "550 5.6.0", "503 5.5.1", "503 5.5.1", "250 2.0.0"],
        ),
        (
            b"MAIL FROM:<> BODY=BINARYMIME\r\nRCPT TO:<b@example.net>\r\nDATA\r\nBDAT 4 LAST\r\na\nb\rNOOP\r\n",
            ["250 2.1.0", "250 2.1.5", "503 5.5.1", "250 2.6.0", "250 2.0.0"],
        ),
    ],
)
def test_chunks_out_of_order_are_swallowed_and_refused_EXT_06_EXT_07(batch: bytes, codes: list[str]) -> None:
    peer = open_session()
    assert [code(line) for line in peer.send(batch).splitlines()] == codes


def test_a_chunk_above_the_limit_is_read_and_refused_EXT_05() -> None:
    peer = open_session()
    answer = peer.send(OPEN + b"BDAT 100001 LAST\r\n", b"NOOP\r\n" * 16666 + b"NOOP\r", b"NOOP\r\n")
    assert [code(line) for line in answer.splitlines()] == ["250 2.1.0", "250 2.1.5", "552 5.3.4", "250 2.0.0"]
    assert peer.messages == []


def test_binary_content_is_kept_bit_by_bit_EXT_07() -> None:
    peer = open_session()
    content = bytes(range(256)) * 3
    peer.send(b"MAIL FROM:<> BODY=BINARYMIME\r\nRCPT TO:<b@example.net>\r\n")
    peer.send(b"BDAT 700\r\n" + content[:700], b"BDAT 68 LAST\r\n" + content[700:])
    assert peer.messages == [content]


def test_text_chunks_with_bare_line_ends_are_repaired_where_configured_SIN_03() -> None:
    peer = open_session(replace(MX, repair_chunks=True))
    assert code(peer.send(OPEN + b"BDAT 4\r\na\nb\rBDAT 3 LAST\r\n\nc\r")) == "250 2.6.0"
    assert peer.messages == [b"a\r\nb\r\nc\r\n"]


def test_bdat_is_unknown_to_a_client_that_said_helo() -> None:
    peer = open_session(hello=b"HELO c\r\n")
    assert [code(line) for line in peer.send(OPEN + b"BDAT 6 LAST\r\nNOOP\r\nQUIT\r\n").splitlines()] == [
        "250 2.1.0",
        "250 2.1.5",
        "503 5.5.1",
        "221 2.0.0",
    ]


# --- TLS ---


def test_what_was_pipelined_behind_starttls_is_dropped_TLS_02() -> None:
    peer = open_session()
    answer = peer.send(b"STARTTLS\r\n" + OPEN + b"DATA\r\n")
    assert answer == "220 2.0.0 ready to start TLS\r\n"
    assert code(peer.send(b"MAIL FROM:<a@example.org>\r\n")) == "503 5.5.1"  # a new EHLO is due
    assert "STARTTLS" not in peer.send(b"EHLO c\r\n")
    assert code(peer.send(b"STARTTLS\r\n")) == "503 5.5.1"


def test_plaintext_during_the_handshake_is_dropped_TLS_02() -> None:
    session = ServerSession(MX)
    session.receive(b"EHLO c\r\nSTARTTLS\r\n", NOW)
    assert isinstance(session.next_event(), TlsRequested)
    session.receive(b"EHLO evil\r\n", NOW)
    session.complete_tls(TLS)
    assert session.next_event() is None
    assert session.hello is None


def test_a_handshake_that_is_declined_ends_the_session_without_a_go_ahead_TLS_01() -> None:
    session = ServerSession(MX)
    session.data_to_send()
    session.receive(b"EHLO c\r\nNOOP\r\nSTARTTLS\r\n", NOW)
    assert isinstance(session.next_event(), TlsRequested)
    session.decline_tls(b"421 4.7.0 later\r\n")
    assert isinstance(session.next_event(), Closing)
    assert [code(line) for line in session.data_to_send().decode().splitlines()[-2:]] == ["250 2.0.0", "421 4.7.0"]
    with pytest.raises(RuntimeError):
        session.decline_tls(b"421 4.7.0 later\r\n")


def test_starttls_is_refused_where_it_cannot_be_had_TLS_01() -> None:
    assert code(open_session(replace(MX, starttls=False)).send(b"STARTTLS\r\n")) == "502 5.5.1"
    peer = open_session(replace(MX, starttls_ready=False), hello=None)
    assert "STARTTLS" not in peer.send(b"EHLO c\r\n")
    assert code(peer.send(b"STARTTLS\r\n")) == "454 4.7.0"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"NOOP", "250 2.0.0"),
        (b"EHLO c", "250"),
        (b"HELO c", "530 5.7.0"),
        (b"MAIL FROM:<>", "530 5.7.0"),
        (b"VRFY x", "530 5.7.0"),
        (b"RSET", "530 5.7.0"),
        (b"BDAT 0 LAST", "530 5.7.0"),
        (b"STARTTLS", "220 2.0.0"),
        (b"QUIT", "221 2.0.0"),
    ],
)
def test_a_listener_that_demands_tls_says_so_to_all_but_four_commands_TLS_03(line: bytes, expected: str) -> None:
    peer = open_session(replace(MX, require_tls=True))
    assert code(peer.send(line + b"\r\n")) == expected


def test_an_identity_from_before_tls_is_forgotten_AUTH_07() -> None:
    peer = open_session(SUBMISSION)
    peer.session.receive(b"AUTH CRAM-MD5\r\n", NOW)
    assert isinstance(peer.session.next_event(), AuthRequested)
    peer.session.authenticate("ada")
    peer.send(b"STARTTLS\r\n", b"EHLO c\r\n")
    assert peer.session.login is None
    assert code(peer.send(b"MAIL FROM:<a@example.org>\r\n")) == "530 5.7.0"


# --- REQUIRETLS ---


@pytest.mark.parametrize("options", [MX, SUBMISSION], ids=["mx", "submission"])
def test_requiretls_is_offered_inside_tls_alone_RTLS_01(options: ListenerOptions) -> None:
    peer = open_session(options, hello=None)
    assert "REQUIRETLS" not in peer.send(b"EHLO c\r\n")
    peer.send(b"STARTTLS\r\n")
    assert "250-REQUIRETLS\r\n" in peer.send(b"EHLO c\r\n")
    assert "250-REQUIRETLS\r\n" in open_session(options, hello=None, tls=True).send(b"EHLO c\r\n")


@pytest.mark.parametrize("tls", [False, True])
def test_a_listener_that_does_not_offer_requiretls_does_not_know_its_parameter(tls: bool) -> None:
    peer = open_session(replace(MX, offer_requiretls=False), hello=None, tls=tls)
    assert "REQUIRETLS" not in peer.send(b"EHLO c\r\n")
    assert code(peer.send(b"MAIL FROM:<a@example.org> REQUIRETLS\r\n")) == "555 5.5.4"
    assert peer.events == []


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        # cases rtls-16
        ("REQUIRETLS=1", "501 5.5.4"),
        ("REQUIRETLS REQUIRETLS", "501 5.5.4"),
        ("REQUIRETLS", "250 2.1.0"),
        ("requiretls", "250 2.1.0"),
        ("SIZE=1 RequireTLS BODY=7BIT", "250 2.1.0"),
    ],
)
def test_requiretls_takes_no_value_stands_once_and_is_read_in_any_case_RTLS_03(parameters: str, expected: str) -> None:
    peer = open_session(tls=True)
    assert code(peer.send(f"MAIL FROM:<a@example.org> {parameters}\r\n".encode())) == expected
    senders = [event for event in peer.events if isinstance(event, SenderGiven)]
    assert [event.parameters.require_tls for event in senders] == ([True] if expected.startswith("250") else [])


def test_requiretls_in_clear_text_begins_no_transaction_RTLS_04() -> None:
    peer = open_session()
    assert code(peer.send(b"MAIL FROM:<a@example.org> REQUIRETLS\r\n")) == "530 5.7.10"
    assert code(peer.send(b"RCPT TO:<b@example.net>\r\n")) == "503 5.5.1"
    assert peer.events == []


def test_requiretls_said_behind_starttls_in_one_write_is_not_heard_TLS_02_RTLS_04() -> None:
    peer = open_session()
    answer = peer.send(b"STARTTLS\r\nEHLO c\r\nMAIL FROM:<a@example.org> REQUIRETLS\r\n")
    assert answer == "220 2.0.0 ready to start TLS\r\n"
    assert peer.session.tls is not None
    assert not any(isinstance(event, SenderGiven) for event in peer.events)


@pytest.mark.parametrize("reset", [b"RSET\r\n", b"EHLO c\r\n"])
def test_the_requirement_is_that_of_one_transaction(reset: bytes) -> None:
    peer = open_session(tls=True)
    peer.send(b"MAIL FROM:<a@example.org> REQUIRETLS\r\n", reset, b"MAIL FROM:<a@example.org> SIZE=1\r\n")
    senders = [event for event in peer.events if isinstance(event, SenderGiven)]
    assert [event.parameters.require_tls for event in senders] == [True, False]


def test_the_longest_line_of_mail_with_every_extension_is_taken_RTLS_05() -> None:
    # 512 octets, and what each extension adds: SIZE 26, BODY 17, SMTPUTF8 10, DSN 108, AUTH 500, HOLDUNTIL 34.
    peer = open_session(SUBMISSION, tls=True)
    peer.send(LOG_IN)
    domain = b".".join([b"d" * 59] * 4) + b".example"
    line = b"MAIL FROM:<" + b"a" * 64 + b"@" + domain + b"> SIZE=" + b"1".zfill(20)
    line += b" BODY=8BITMIME SMTPUTF8 RET=HDRS ENVID=" + b"e" * 100 + b" AUTH=" + b"+2B" * 64 + b"@" + domain
    line += b" HOLDUNTIL=2026-11-23T12:00:00Z REQUIRETLS"
    line += b" " * (512 + 26 + 17 + 10 + 108 + 500 + 34 + 11 - 2 - len(line)) + b"\r\n"
    assert len(line) == 1218
    assert code(peer.send(line)) == "250 2.1.0"
    assert [e.parameters.require_tls for e in peer.events if isinstance(e, SenderGiven)] == [True]


# --- AUTH ---


def test_submission_needs_authentication_SUB_01() -> None:
    peer = open_session(SUBMISSION, tls=True)
    assert code(peer.send(b"MAIL FROM:<a@example.org>\r\n")) == "530 5.7.0"
    assert code(peer.send(LOG_IN)) == "235 2.7.0"
    assert code(peer.send(b"MAIL FROM:<a@example.org> AUTH=<> HOLDFOR=60\r\n")) == "250 2.1.0"


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([b"AUTH"], ["501 5.5.4"]),
        ([b"AUTH GSSAPI"], ["504 5.5.4"]),
        ([b"AUTH \xff"], ["504 5.5.4"]),
        ([b"AUTH plain " + PLAIN], ["235 2.7.0"]),
        ([b"AUTH PLAIN", PLAIN], ["334", "235 2.7.0"]),
        ([b"AUTH PLAIN", b"*"], ["334", "501 5.7.0"]),
        ([b"AUTH PLAIN", b"!!!!"], ["334", "501 5.5.2"]),
        ([b"AUTH PLAIN !!!!"], ["501 5.5.2"]),
        ([b"AUTH PLAIN QUJD="], ["501 5.5.2"]),
        ([b"AUTH PLAIN Q=JD"], ["501 5.5.2"]),
        ([b"AUTH PLAIN ="], ["535 5.7.8"]),
        ([b"AUTH PLAIN", b""], ["334", "535 5.7.8"]),
        ([b"AUTH PLAIN " + b64encode(b"\0ada\0wrong"), b"AUTH PLAIN " + PLAIN], ["535 5.7.8", "235 2.7.0"]),
        ([b"AUTH PLAIN " + PLAIN, b"AUTH PLAIN " + PLAIN], ["235 2.7.0", "503 5.5.1"]),
        ([b"AUTH PLAIN", b"A" * 12284 + b"=="], ["334", "501 5.5.2"]),
        ([b"AUTH PLAIN", b"A" * 12289], ["334", "500 5.5.6"]),
        ([b"AUTH PLAIN", b"A" * 50_000, b"NOOP"], ["334", "500 5.5.6", "250 2.0.0"]),
        ([b"AUTH PLAIN " + b"A" * 8000], ["535 5.7.8"]),
        ([b"AUTH PLAIN " + b"A" * 50_000], ["500 5.5.6"]),
        ([b"AUTH PLAIN " + b"A" * 12300], ["500 5.5.6"]),
    ],
)
def test_the_authentication_dialogue_AUTH_02_AUTH_03_AUTH_04(lines: list[bytes], expected: list[str]) -> None:
    peer = open_session(SUBMISSION, tls=True)
    assert [code(peer.send(line + b"\r\n")) for line in lines] == expected


def test_an_empty_challenge_has_its_trailing_blank_AUTH_04() -> None:
    assert open_session(SUBMISSION, tls=True).send(b"AUTH PLAIN\r\n") == "334 \r\n"


def test_plaintext_mechanisms_are_refused_outside_tls_AUTH_01() -> None:
    peer = open_session(SUBMISSION)
    for mechanism in (b"PLAIN", b"LOGIN"):
        assert code(peer.send(b"AUTH " + mechanism + b" " + PLAIN + b"\r\n")) == "538 5.7.11"
    assert not any(isinstance(event, AuthRequested) for event in peer.events)


def test_no_authentication_inside_a_transaction_AUTH_02() -> None:
    options = replace(SUBMISSION, submission=False)
    peer = open_session(options, tls=True)
    peer.send(b"MAIL FROM:<a@example.org>\r\n")
    assert code(peer.send(LOG_IN)) == "503 5.5.1"


def test_a_cancelled_exchange_is_told_to_the_app_AUTH_03() -> None:
    peer = open_session(SUBMISSION, tls=True)
    peer.send(b"AUTH LOGIN\r\n", b"*\r\n")
    assert isinstance(peer.events[-1], AuthCancelled)


def test_guessing_ends_the_session_AUTH_05c() -> None:
    peer = open_session(SUBMISSION, tls=True)
    wrong = b"AUTH PLAIN " + b64encode(b"\0ada\0guess") + b"\r\n"
    for _ in range(4):
        assert code(peer.send(wrong)) == "535 5.7.8"
    assert [code(line) for line in peer.send(wrong).splitlines()] == ["535 5.7.8", "421 4.7.0"]
    assert peer.closing is not None


# --- ends ---


def test_too_many_errors_end_the_session_SIN_17() -> None:
    peer = open_session()
    for _ in range(19):
        peer.send(b"FOO\r\n")
    assert [code(line) for line in peer.send(b"FOO\r\nNOOP\r\n").splitlines()] == ["500 5.5.1", "421 4.7.0"]
    assert peer.closing is not None


def test_refused_recipients_are_no_errors_of_the_client_until_there_are_very_many_SIN_17() -> None:
    for log_in, closed in ((b"", True), (LOG_IN, False)):
        peer = open_session(SUBMISSION if log_in else MX, tls=bool(log_in))
        peer.send(log_in + b"MAIL FROM:<>\r\n")
        for _ in range(99):
            assert code(peer.send(b"RCPT TO:<nobody@example.net>\r\n")) == "550 5.1.1"
        last = peer.send(b"RCPT TO:<nobody@example.net>\r\n").splitlines()
        assert [code(line) for line in last] == ["550 5.1.1", "421 4.7.0"][: 1 + closed]
        assert (peer.closing is not None) is closed


def test_timeout_and_shutdown_are_said_before_closing_SIN_17() -> None:
    for end, expected in ((ServerSession.time_out, "421 4.4.2"), (ServerSession.shut_down, "421 4.3.2")):
        peer = open_session()
        peer.send(OPEN + b"DATA\r\nhalf")
        end(peer.session)
        peer.pump()
        assert code(peer.replies.decode()) == expected
        assert isinstance(peer.events[-2], Abandoned)
        assert peer.closing is not None
        assert peer.messages == []


def test_an_answer_after_the_end_of_the_session_is_ignored() -> None:
    peer = open_session()
    peer.hold_commit = True
    peer.send(OPEN + b"DATA\r\nx\r\n.\r\n")
    peer.session.time_out()
    peer.session.finish()
    peer.pump()
    assert b"250 2.6.0" not in peer.replies


def test_answers_that_nobody_asked_for_are_our_own_mistake() -> None:
    session = ServerSession(MX)
    answers: list[Callable[[], None]] = [
        session.finish,
        lambda: session.refuse(NO_USER),
        lambda: session.challenge(b""),
    ]
    for answer in answers:
        with pytest.raises(RuntimeError):
            answer()


# --- any split ---

SCRIPT_LINES = [
    b"EHLO client.example\r\n",
    b"HELO c\r\n",
    b"MAIL FROM:<a@example.org>\r\n",
    b"MAIL FROM:<a@example.org> SIZE=99999999\r\n",
    b"MAIL FROM:<> BODY=BINARYMIME\r\n",
    b"RCPT TO:<b@example.net>\r\n",
    b"RCPT TO:<nobody@example.net>\r\n",
    OPEN,
    b"DATA\r\n",
    b"DATA\r\nSubject: x\r\n\r\n..x\r\n.\r\n",
    b"DATA\r\nx\r\n.\n\r\n.\r\n",
    b"x\r\n.\r\n",
    b"BDAT 5\r\nabcde",
    b"BDAT 4 LAST\r\n\r\n\n\r",
    b"BDAT 2\r\na\r",
    b"BDAT 6 LAST\r\nRSET\r\n",
    b"BDAT 100001 LAST\r\n" + b"y" * 100001,
    b"RSET\r\n",
    b"NOOP\r\n",
    b"NOOP\n",
    b"FOO\rBAR\r\n",
    b"N" * 5000 + b"\r\n",
    b"N" * 13000 + b"\r\n",
    b"AUTH PLAIN " + PLAIN + b"\r\n",
    b"AUTH PLAIN\r\n",
    PLAIN + b"\r\n",
    b"AUTH PLAIN " + b"A" * 13000 + b"\r\n",
    b"*\r\n",
    b"\xff\x00\r\n",
    b"VRFY x\r\n",
    b"QUIT\r\n",
]


@settings(max_examples=300)
@given(
    st.lists(st.sampled_from(SCRIPT_LINES), max_size=14),
    st.lists(st.integers(0, 3000), max_size=12),
    st.booleans(),
)
def test_any_split_of_a_transcript_gets_the_same_replies(script: list[bytes], sizes: list[int], submit: bool) -> None:
    wire = b"EHLO c\r\n" + b"".join(script)
    options = SUBMISSION if submit else MX
    whole = open_session(options, hello=None, tls=submit)
    whole.send(wire)
    split = open_session(options, hello=None, tls=submit)
    at = 0
    for size in sizes:
        split.send(wire[at : at + size])
        at += size
    split.send(wire[at:])
    assert split.replies == whole.replies
    assert split.messages == whole.messages
    assert (split.closing is None) == (whole.closing is None)


@pytest.mark.parametrize("submit", [False, True])
def test_a_transcript_octet_by_octet_gets_the_same_replies(submit: bool) -> None:
    wire = (
        b"EHLO c\r\n" + LOG_IN + OPEN + b"DATA\r\nx\r\n..\r\n.\r\n" + OPEN + b"BDAT 3\r\na\r\nBDAT 0 LAST\r\nQUIT\r\n"
    )
    options = SUBMISSION if submit else MX
    whole = open_session(options, hello=None, tls=submit)
    whole.send(wire)
    single = open_session(options, hello=None, tls=submit)
    single.send(*(bytes([octet]) for octet in wire))
    assert single.replies == whole.replies
    assert single.messages == whole.messages == [b"x\r\n.\r\n", b"a\r\n"]


@settings(max_examples=200)
@given(st.lists(st.binary(max_size=200), max_size=8))
def test_no_octets_break_the_session(pieces: list[bytes]) -> None:
    peer = open_session()
    for piece in pieces:
        peer.send(piece)
    for line in peer.replies.decode().splitlines():
        if line[:3] not in ("220", "354", "334") and not line.startswith("250-") and line != "250 LIMITS RCPTMAX=100":
            assert line[4] == line[0]  # the class of the enhanced code (SIN-21)


_path_pieces = st.sampled_from(
    [
        "<",
        ">",
        "@",
        "a",
        "Ada",
        ".",
        "b.example",
        '"',
        "\\",
        ",",
        ":",
        "[192.0.2.1]",
        "[IPv6:::1]",
        "postmaster",
        "ж",
        "-",
        " ",
        "\t",
        "@r:",
        " SIZE=5",
        " NOTIFY=NEVER",
    ]
)


@given(st.lists(_path_pieces, max_size=12), st.sampled_from(["MAIL FROM:", "mail from: ", "MAIL FRO:"]))
def test_a_path_that_came_before_is_read_as_the_first_time(pieces: list[str], verb: str) -> None:
    argument = "".join(pieces)
    lines = [f"{verb}{argument}\r\n", "MAIL FROM:<>\r\n", f"{verb.replace('MAIL FROM', 'RCPT TO')}{argument}\r\n"]
    heard: list[tuple[bytes, list[Event]]] = []
    # Longer than what is remembered, for a blank before a path means nothing.
    for padding in (0, 0, 300):
        peer = open_session()
        for line in lines:
            peer.send(line.replace(":", ":" + " " * padding, 1).encode())
        heard.append((peer.replies, peer.events))
    assert heard[0] == heard[1] == heard[2]


def test_an_accepted_message_is_named_in_the_answer() -> None:
    peer = open_session()
    peer.hold_commit = True
    peer.send(OPEN + b"DATA\r\nx\r\n.\r\n")
    before = len(peer.replies)
    peer.session.finish(identifier="0abc")
    peer.pump()
    assert peer.replies[before:] == b"250 2.6.0 accepted as 0abc\r\n"
    assert peer.session.messages == 1


@pytest.mark.parametrize(
    "command",
    ["NOOP", "RSET", "VRFY ada", "HELP", "EHLO c", "HELO c", "AUTH PLAIN AGEAYg==", "MAIL FROM:<a@b.example>"],
)
def test_commands_that_do_nothing_have_an_end_between_two_messages_SIN_17(command: str) -> None:
    options = replace(SUBMISSION, mechanisms=("PLAIN",)) if command.startswith("AUTH") else MX
    session = ServerSession(options, tls=TLS)
    session.receive(b"EHLO c\r\n", NOW)
    said = b""
    given = 0
    while not session.closed:
        session.receive(command.encode() + b"\r\n", NOW)
        given += 1
        while (event := session.next_event()) is not None:
            if isinstance(event, AuthRequested | SenderGiven):
                session.refuse(Reply.of(454, "4.7.0", "later"))
        said += session.data_to_send()
    assert given in (USELESS_LIMIT - 1, USELESS_LIMIT)
    assert said.endswith(b"421 4.7.0 too many errors\r\n")


def test_a_message_makes_up_for_commands_that_did_nothing_SIN_17() -> None:
    peer = open_session()
    for _ in range(5):
        peer.send(b"NOOP\r\nRSET\r\n" * 40)
        peer.send(b"MAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\nDATA\r\n", b"x\r\n.\r\n")
    assert len(peer.messages) == 5


@pytest.mark.parametrize(
    ("hello", "known_as"),
    [(b"PhpStorm 9.0.3", "PhpStorm 9.0.3"), ("büro-pc".encode(), "b?ro-pc"), (b"b\xfcro", "b?ro")],
)
@pytest.mark.parametrize("verb", [b"EHLO ", b"HELO "])
def test_names_of_desktop_computers_are_taken_SIN_11(verb: bytes, hello: bytes, known_as: str) -> None:
    peer = open_session(hello=None)
    assert code(peer.send(verb + hello + b"\r\n")).startswith("250")
    assert peer.session.hello == known_as


@pytest.mark.parametrize(
    "mail", [b"MAIL\tFROM:<a@example.org>", b"mail\tfrom:\t<a@example.org>", b"MAIL FROM:\ta@b.example"]
)
def test_a_tab_stands_for_the_blank_of_mail_and_rcpt(mail: bytes) -> None:
    peer = open_session()
    assert code(peer.send(mail + b"\r\n")) == "250 2.1.0"
    assert code(peer.send(b"RCPT\tTO:<b@example.net>\r\n")) == "250 2.1.5"
