"""Our server session beside aiosmtpd's: the same commands go to both, and the classes of the replies agree.

Each command is said in each state that a session can be in, and sequences of them are generated. Where the two differ,
`DIFFERENCES` says why, with the section of the RFC. aiosmtpd is asked by way of the sink (`mailrail.sink`).
"""

import asyncio
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import idna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mailrail.core.smtp.events import (
    AuthRequested,
    AuthResponse,
    Closing,
    Content,
    ContentEnded,
    ContentStarted,
    ListenerOptions,
    RecipientGiven,
    SenderGiven,
)
from mailrail.core.smtp.reply import Reply
from mailrail.core.smtp.server import ServerSession
from mailrail.core.smtp.tls import TlsFacts
from mailrail.sink import Options, Sink

SIZE = 100_000
MX = ListenerOptions("mx.test", size_limit=SIZE, error_limit=1000)
SUBMISSION = replace(MX, submission=True, mechanisms=("PLAIN", "LOGIN"))
EHLO, HELO = b"EHLO client.test", b"HELO client.test"
MAIL, RCPT = b"MAIL FROM:<a@b.test>", b"RCPT TO:<c@d.test>"


# --- the two sessions --------------------------------------------------------------------------------------------


@dataclass
class Message:
    """What a session took."""

    null_sender: bool
    recipients: list[str]
    """As the session understood them."""
    content: bytes


def codes(replies: bytes) -> list[int]:
    """The codes of whole replies."""
    *lines, rest = replies.split(b"\r\n")
    assert not rest, f"a reply without an end: {replies!r}"
    return [int(line[:3]) for line in lines if line[3:4] != b"-"]


class Ours:
    """Our session, with an app behind it that says yes to everything and knows the user `u` with the password `p`."""

    def __init__(self, options: ListenerOptions) -> None:
        self._session = ServerSession(options, tls=TlsFacts("TLSv1.3", "none") if options.submission else None)
        self._message = Message(True, [], b"")
        self._answers: list[bytes] = []  # of the AUTH exchange
        self._mechanism = ""
        self.messages: list[Message] = []
        self.closed = False
        assert self.say(b"") == [220]

    def say(self, octets: bytes) -> list[int]:
        """Send, and answer the codes of the replies."""
        self._session.receive(octets, 0.0)
        while (event := self._session.next_event()) is not None:
            match event:
                case SenderGiven(sender):
                    self._message = Message(sender is None, [], b"")
                    self._session.accept()
                case RecipientGiven(recipient):
                    self._message.recipients.append(str(recipient))
                    self._session.accept()
                case ContentStarted():
                    self._session.accept()
                case Content(data):
                    self._message.content += data
                case ContentEnded():
                    self.messages.append(self._message)
                    self._session.finish()
                case AuthRequested(mechanism, initial):
                    self._mechanism, self._answers = mechanism, []
                    self._authenticate(initial)
                case AuthResponse(data):
                    self._authenticate(data)
                case Closing():
                    self.closed = True
        return codes(self._session.data_to_send())

    def _authenticate(self, answer: bytes | None) -> None:
        if answer is not None:
            self._answers.append(answer)
        if len(self._answers) < (2 if self._mechanism == "LOGIN" else 1):
            self._session.challenge(b"")
        elif self._answers in ([b"\0u\0p"], [b"u", b"p"]):
            self._session.authenticate("u")
        else:
            self._session.refuse(Reply.of(535, "5.7.8", "wrong"))


class _Wire(asyncio.Transport):
    """A transport without a socket."""

    def __init__(self, protocol: asyncio.Protocol) -> None:
        super().__init__({"peername": ("192.0.2.1", 1025)})
        self._protocol = protocol
        self.written = b""
        self.closed = False

    def write(self, data: Any) -> None:
        self.written += bytes(data)

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self._protocol.connection_lost(None)


class Theirs:
    """aiosmtpd's session: it needs a loop, which runs while it answers."""

    def __init__(self, runner: asyncio.Runner, options: ListenerOptions) -> None:
        self._runner = runner
        accounts = {"u": "p"} if options.submission else {}
        self._sink = Sink(Options(size_limit=SIZE, accounts=accounts, plaintext_auth=True))
        self._recipients: list[list[str]] = []
        runner.run(self._connect())

    async def _connect(self) -> None:
        self._session = self._sink.session()
        self._wire = _Wire(self._session)
        self._session.connection_made(self._wire)
        assert await self._replies() == [220]

    @property
    def closed(self) -> bool:
        """Whether the session has closed the connection."""
        return self._wire.closed

    @property
    def messages(self) -> list[Message]:
        """What it took."""
        return [
            Message(not one.sender, to, one.content)
            for one, to in zip(self._sink.messages, self._recipients, strict=True)
        ]

    def say(self, octets: bytes) -> list[int]:
        """Send, and answer the codes of the replies."""
        return self._runner.run(self._say(octets))

    async def _say(self, octets: bytes) -> list[int]:
        assert self._session.envelope is not None
        before, to = len(self._sink.messages), [_spelled(one) for one in self._session.envelope.rcpt_tos]
        self._session.data_received(octets)
        replies = await self._replies()
        self._recipients += [to] * (len(self._sink.messages) - before)
        return replies

    async def _replies(self) -> list[int]:
        for _ in range(6):  # turns of the loop; nothing in a session waits for anything but octets
            await asyncio.sleep(0)
        said, self._wire.written = self._wire.written, b""
        return codes(said)

    def end(self) -> None:
        """Hang up."""
        self._runner.run(self._end())

    async def _end(self) -> None:
        self._wire.close()
        await asyncio.sleep(0)


def _spelled(address: str) -> str:
    """An address as ours spells it: A-labels in lower case, and quotes where RFC 5321 4.1.2 wants them."""
    local, at, domain = address.rpartition("@")
    if at and not local.startswith('"') and "" in local.split("."):
        local = f'"{local}"'
    if domain.isascii():
        return local + at + (domain if not at or domain.startswith("[") else domain.lower())
    return local + at + idna.encode(domain, uts46=True).decode()


# --- where they differ -------------------------------------------------------------------------------------------

_ATOM = rb"[A-Za-z0-9!#$%&'*+/=?^_`{|}~\x80-\xff-]+"
_QUOTED = rb'"(?:[ !#-\[\]-~\x80-\xff]|\\[ -~])*"'
_LABEL = rb"[A-Za-z0-9\x80-\xff](?:[A-Za-z0-9\x80-\xff-]{0,61}[A-Za-z0-9\x80-\xff])?"
_DOMAIN = rb"%b(?:\.%b)*" % (_LABEL, _LABEL)
_NUMBER = rb"(?:25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])"
_LITERAL = rb"\[(?:%b(?:\.%b){3}|IPv6:[0-9A-Fa-f:.]+)\]" % (_NUMBER, _NUMBER)
_LOCAL = rb"(?=.{1,64}@)(?:%b(?:\.%b)*|%b)" % (_ATOM, _ATOM, _QUOTED)
_PATH = rb"<(?:@%b(?:,@%b)*:)?%b@(?=.{1,255}>)(?:%b|%b)>" % (_DOMAIN, _DOMAIN, _LOCAL, _DOMAIN, _LITERAL)
"""Path of RFC 5321 4.1.2 with the lengths of 4.5.3.1, and the letters of RFC 6531 3.3."""


@dataclass(frozen=True)
class Answer:
    """What a session did when something was said to it."""

    classes: tuple[int, ...]
    closed: bool

    @classmethod
    def of(cls, replies: Sequence[int], closed: bool) -> "Answer":
        """Of these codes the first digits."""
        return cls(tuple(code // 100 for code in replies), closed)


@dataclass(frozen=True)
class Difference:
    """Something that the two answer differently."""

    reason: str
    ours: int
    theirs: int
    pattern: bytes
    """Of the command, or of the content behind 354."""
    example: list[bytes]
    unless_said: bytes = b""
    """It is not a reason if this is said in the command or in the MAIL of the transaction."""
    submission: bool = False
    """It is seen where a login is asked for."""
    we_close: bool = False
    """And we close the connection, while aiosmtpd does not."""

    def explains(self, said: bytes, mail: bytes, ours: Answer, theirs: Answer) -> bool:
        """Whether it is the reason for these answers to `said`; `mail` is the last MAIL that both accepted."""
        return (
            ours == Answer((self.ours,), self.we_close)
            and theirs == Answer((self.theirs,), False)
            and re.fullmatch(self.pattern, said, re.I | re.S) is not None
            and not (self.unless_said and self.unless_said in mail + said)
        )


DIFFERENCES = [
    Difference(
        "RFC 5321 4.1.1.1: EHLO and HELO have no control character; aiosmtpd takes any text",
        5,
        2,
        rb"(EHLO|HELO) +(.*[\x00-\x1f\x7f].*)",
        [b"EHLO a\x01b"],
    ),
    Difference(
        "RFC 5321 4.1.2: not a path, or (4.5.3.1) too long; aiosmtpd reads it as an address of a header, with "
        "comments, blanks, obsolete forms and without angle brackets",
        5,
        2,
        rb"(MAIL FROM: *(?!(%b|<>)( .*)?$)|RCPT TO: *(?!(%b|<postmaster>|<>)( .*)?$)).*" % (_PATH, _PATH),
        [EHLO, MAIL, b"RCPT TO:<(comment)c@d.test>"],
    ),
    Difference(
        "docs/reference/refusals.md: a tab after MAIL or RCPT, and a dot at the end of a domain; others take them",
        2,
        5,
        rb"(MAIL|RCPT)\t.*|(MAIL FROM|RCPT TO): *(<[^>]*\.>|[^ ]*\.)( .*)?",
        [EHLO, MAIL, b"RCPT TO:<c@d.test.>"],
    ),
    Difference(
        "RFC 5321 4.1.1.3: RCPT takes no null path; aiosmtpd does",
        5,
        2,
        rb"RCPT TO: *<>",
        [EHLO, MAIL, b"RCPT TO:<>"],
    ),
    Difference(
        "RFC 6531 3.4: a non-ASCII address needs SMTPUTF8, which aiosmtpd does not ask for",
        5,
        2,
        rb"(MAIL FROM|RCPT TO):.*[\x80-\xff].*",
        [EHLO, MAIL, "RCPT TO:<ü@d.test>".encode()],
        unless_said=b"SMTPUTF8",
    ),
    Difference(
        "RFC 6531 3.3: what is not ASCII is UTF-8; aiosmtpd takes any octets",
        5,
        2,
        rb"(MAIL FROM|RCPT TO):.*[\xf8-\xff].*",
        [EHLO, b"MAIL FROM:<\xff@b.test> SMTPUTF8"],
    ),
    Difference(
        "DSN-02: a parameter that is given twice is refused; of two aiosmtpd takes the last",
        5,
        2,
        rb"(MAIL|RCPT).* ([A-Z0-9]+)=.* \2=.*",
        [EHLO, b"MAIL FROM:<a@b.test> SIZE=1 SIZE=2"],
    ),
    Difference(
        "RFC 3461 4: the sink keeps the DSN parameters and does not judge their values",
        5,
        2,
        rb"(MAIL FROM|RCPT TO):.* (RET|NOTIFY)=X",
        [EHLO, b"MAIL FROM:<a@b.test> RET=X"],
    ),
    Difference(
        "RFC 3030 3: aiosmtpd does not offer BINARYMIME",
        2,
        5,
        rb"MAIL FROM:.* BODY=BINARYMIME",
        [EHLO, b"MAIL FROM:<a@b.test> BODY=BINARYMIME"],
    ),
    Difference(
        "RFC 5321 4.1.1: white space before CRLF should be tolerated; aiosmtpd knows no verb with a tab behind it",
        2,
        5,
        rb"[A-Z]+\t+",
        [b"NOOP\t"],
    ),
    Difference(
        "RFC 5321 4.1.1.8: HELP may be asked about anything; aiosmtpd answers 501 where it has nothing to say",
        2,
        5,
        rb"HELP .+",
        [b"HELP x"],
    ),
    Difference(
        "RFC 5321 4.2.4: 502 for a command that is not offered; aiosmtpd says 454 as if STARTTLS were for later",
        5,
        4,
        rb"STARTTLS",
        [EHLO, b"STARTTLS"],
    ),
    Difference(
        "RFC 5321 2.4: verbs and argument values are said in any case; aiosmtpd knows mechanisms in capitals alone",
        3,
        5,
        rb"AUTH (plain|login)",
        [EHLO, b"AUTH plain"],
        submission=True,
    ),
    Difference(
        "RFC 4954 6: whether VRFY and HELP ask for a login is the server's choice; ours tell nothing",
        2,
        5,
        rb"(VRFY|HELP).*",
        [EHLO, b"VRFY x"],
        submission=True,
    ),
    Difference(
        "RFC 5321 2.3.8: a CR or LF stands nowhere alone, or two servers see two ends of a message (SIN-03); aiosmtpd "
        "takes it for content",
        5,
        2,
        rb"(.*[^\r])?\n.*|.*\r[^\n].*",
        [EHLO, MAIL, RCPT, b"DATA", b"a\nb\r\n.\r\n"],
        we_close=True,
    ),
    Difference(
        "RFC 3030 2: how many octets follow a wrong BDAT is not known, so nothing more may be heard (EXT-05)",
        5,
        5,
        rb"BDAT.*",
        [EHLO, b"BDAT x"],
        we_close=True,
    ),
    Difference(
        "Not SMTP: commands in the body of an HTTP request must not be heard",
        5,
        5,
        rb"GET.*",
        [b"GET / HTTP/1.1"],
        we_close=True,
    ),
]


CONTENT = b"Subject: x\r\n\r\n..two dots\r\nRCPT TO:<x@y.test>\r\n.\r\n"


def converse(
    runner: asyncio.Runner, options: ListenerOptions, commands: Sequence[bytes], content: bytes = CONTENT
) -> Difference | None:
    """Say it all to both, and `content` when they say 354. The end is where they differ; answers the reason of it."""
    ours, theirs = Ours(options), Theirs(runner, options)
    waiting, said, mail = list(reversed(commands)), list[bytes](), b""
    try:
        while waiting and not ours.closed:
            last = waiting.pop()
            said.append(last)
            octets = last if last is content else last + b"\r\n"
            replies = ours.say(octets), theirs.say(octets)
            we, they = Answer.of(replies[0], ours.closed), Answer.of(replies[1], theirs.closed)
            if we != they:
                reason = next((one for one in DIFFERENCES if one.explains(last, mail, we, they)), None)
                assert reason is not None, f"{said}: {replies}, {we}, {they}"
                return reason
            assert ours.messages == theirs.messages, said
            if replies[0] == [354]:
                waiting.append(content)
            elif last[:4].upper() == b"MAIL" and we.classes == (2,):
                mail = last
    finally:
        theirs.end()
    return None


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as running:
        yield running


@pytest.mark.parametrize("difference", DIFFERENCES, ids=lambda difference: difference.reason.partition(":")[0])
def test_each_listed_difference_is_still_there(runner: asyncio.Runner, difference: Difference) -> None:
    *commands, last = difference.example
    if commands[-1:] == [b"DATA"]:
        assert converse(runner, MX, commands, content=last) is difference
    else:
        assert converse(runner, SUBMISSION if difference.submission else MX, difference.example) is difference


# --- what is said ------------------------------------------------------------------------------------------------

STATES = [
    [],
    [EHLO],
    [EHLO, MAIL],
    [EHLO, b"MAIL FROM:<> SMTPUTF8", RCPT],
    [HELO, MAIL, RCPT],
    [EHLO, MAIL, RCPT, b"DATA"],
    [EHLO, MAIL, b"RSET"],
]

PATHS = [
    *("a@b.test", "a@B.Test", "a@b", "a@[192.0.2.1]", "a@[IPv6:2001:db8::1]", "a+b@c.test", "a%b@c.test", "a@b-c.test"),
    *('"q s"@b.test', r'"q\"s"@b.test', '"q"@b.test', '""@b.test', "1@2.test", "postmaster", "PostMaster", "b.test"),
    *("@r.test:a@b.test", "@r.test,@s.test:a@b.test", "r.test:a@b.test", "@r.test", "a@", "@b.test", "a@@b.test", ""),
    *("a@b@c.test", "a@b..test", "a@.b.test", "a@b.test.", "a@-b.test", "a@b_c.test", ".a@b.test", "a.@b.test"),
    *("a..b@c.test", "a@[999.1.1.1]", "a@[x]", "a@[192.0.2.1", '"q@b.test', "<a@b.test>", "(x)a@b.test", "a@b.test(x)"),
    *("a,b@c.test", "a;b@c.test", "a:b@c.test", r"a\b@c.test", "a@b.test,", "ü@b.test", "a@bü.test", "\udcff@b.test"),
    *("a b@c.test", "a@b c.test", " a@b.test", "a@b.test ", "a\tb@c.test", "a\0@b.test", "a@" + "l." * 140),
    *(f"{'l' * 64}@b.test", f"{'l' * 65}@b.test", f"a@{'l' * 63}.test", f"a@{'l' * 64}.test"),
]
MAIL_WORDS = [
    *("SIZE=10", "SIZE=999999", "SIZE=", "SIZE", "SIZE=x", "SIZE=-1", "BODY=8BITMIME", "body=7bit", "BODY=X", "BODY"),
    *("BODY=BINARYMIME", "SMTPUTF8", "SMTPUTF8=1", "RET=HDRS", "RET=X", "ENVID=x", "ENVID=", "SIZE=1 SIZE=2"),
    *("FOO", "FOO=1", "F=O=O", "=1", "AUTH=<>", "NOTIFY=NEVER"),
]
RCPT_WORDS = [
    *("NOTIFY=NEVER", "NOTIFY=SUCCESS,DELAY", "NOTIFY=X", "NOTIFY=", "ORCPT=rfc822;x@y.test", "FOO=1", "RET=FULL"),
]
COMMANDS = [
    *(f"{verb}:<{path}>" for verb in ("MAIL FROM", "RCPT TO") for path in PATHS),
    *(f"MAIL FROM:<a@b.test> {word}" for word in MAIL_WORDS),
    *(f"RCPT TO:<c@d.test> {word}" for word in RCPT_WORDS),
    *(
        "MAIL FROM:<a@b.test>SIZE=1",
        "MAIL FROM: <a@b.test>",
        "mail from:<a@b.test>",
    ),
    *("MAIL", "MAIL FROM", "MAIL FROM:", "MAIL TO:<a@b.test>", "MAIL FROM:a@b.test", "MAIL FROM:<a@b.test"),
    *("RCPT", "RCPT TO:", "RCPT FROM:<c@d.test>", "RCPT TO:c@d.test", "RCPT TO: <c@d.test>", "rcpt to:<c@d.test>"),
    *("EHLO c", "ehlo c", "EHLO", "EHLO ", "EHLO a b", "EHLO [192.0.2.1]", "EHLO ü", "HELO c", "HELO", "HELO a b"),
    *(
        "DATA",
        "data",
        "DATA x",
        "RSET",
        "RSET x",
        "NOOP",
        "NOOP x",
        "NOOP ",
        "NOOP\t",
        "QUIT",
        "QUIT x",
        "VRFY",
        "VRFY a",
    ),
    *("HELP", "HELP x", "HELP MAIL", "EXPN", "EXPN x", "TURN", "BOGUS", "", " ", " NOOP", "MAIL\tFROM:<a@b.test>", "ü"),
    *(
        "STARTTLS",
        "STARTTLS x",
        "AUTH",
        "AUTH PLAIN",
        "GET / HTTP/1.1",
        "NO\0OP",
        "NOOP \0",
        "BDAT x",
        "BDAT",
        "ETRN x",
    ),
    *("x" * 600, "NOOP " + "x" * 600, "NOOP " + "x" * 5000),
]
WIRE = [command.encode("utf-8", "surrogateescape") for command in COMMANDS]


@pytest.mark.parametrize("state", STATES, ids=lambda state: b", ".join(state).decode())
def test_every_command_in_every_state_has_the_class_of_reply_that_aiosmtpd_gives(
    runner: asyncio.Runner, state: list[bytes]
) -> None:
    for command in WIRE:
        converse(runner, MX, [*state, command])


def test_a_recipient_that_both_take_has_the_same_address(runner: asyncio.Runner) -> None:
    for path in PATHS:
        to = f"RCPT TO:<{path}>".encode("utf-8", "surrogateescape")
        converse(runner, MX, [EHLO, MAIL + b" SMTPUTF8", to, b"DATA"])


_UNKNOWN = {
    b"BOGUS",
    b"TURN",
    b"ETRN",
    b"GET",
    b"BDAT",
    b"NO\0OP",
    b"\xc3\xbc",
    b"x" * 600,
}  # at the fifth aiosmtpd hangs up


@settings(max_examples=150)
@given(
    st.lists(
        st.one_of(st.sampled_from([EHLO, HELO, MAIL, MAIL, RCPT, RCPT, b"DATA", b"RSET"]), st.sampled_from(WIRE)),
        max_size=8,
    ).filter(lambda commands: sum(command.split(b" ")[0] in _UNKNOWN for command in commands) < 5)
)
def test_sequences_of_commands_have_the_classes_of_replies_that_aiosmtpd_gives(
    runner: asyncio.Runner, commands: list[bytes]
) -> None:
    converse(runner, MX, [EHLO, *commands])


@settings(max_examples=150)
@given(
    st.lists(
        st.one_of(
            st.sampled_from(
                [b".", b"..", b"", b".x", b"..x", b"\n.", b"\r.", b"x\n", b"DATA", b"QUIT", b"\0", b"\xff"]
            ),
            st.binary(max_size=6),
        ),
        max_size=6,
    )
)
def test_content_ends_where_aiosmtpd_sees_its_end_SIN_02(runner: asyncio.Runner, lines: list[bytes]) -> None:
    whole = b"".join(line + b"\r\n" for line in lines) + b".\r\n"
    end = re.match(rb"(.*?\r\n)??\.\r\n", whole, re.S)
    assert end is not None
    converse(runner, MX, [EHLO, MAIL, RCPT, b"DATA", RCPT], end[0])


AUTH = [
    *(
        "AUTH PLAIN AHUAcA==",
        "AUTH PLAIN AHUAeA==",
        "AUTH PLAIN",
        "AUTH PLAIN =",
        "AUTH PLAIN !",
        "AUTH PLAIN AHUAcA== x",
    ),
    *(
        "AUTH LOGIN",
        "AUTH LOGIN dQ==",
        "AUTH plain",
        "AUTH",
        "AUTH X",
        "AUTH SCRAM-SHA-256",
        "AHUAcA==",
        "dQ==",
        "cA==",
    ),
    *(
        "*",
        "!",
        "",
        "=",
        "MAIL FROM:<a@b.test>",
        "RCPT TO:<c@d.test>",
        "DATA",
        "RSET",
        "NOOP",
        "EHLO c",
        "HELO c",
        "VRFY x",
    ),
]


def test_two_commands_around_authentication_have_the_classes_of_replies_that_aiosmtpd_gives(
    runner: asyncio.Runner,
) -> None:
    for one, other in itertools.product(AUTH, AUTH):
        converse(runner, SUBMISSION, [EHLO, one.encode(), other.encode()])


@settings(max_examples=100)
@given(st.lists(st.sampled_from(AUTH), max_size=4))
def test_authentication_in_any_order_has_the_classes_of_replies_that_aiosmtpd_gives(
    runner: asyncio.Runner, commands: list[str]
) -> None:
    converse(runner, SUBMISSION, [command.encode() for command in commands])
