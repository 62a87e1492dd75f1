"""The client's end of SMTP and LMTP as a state machine: bytes in, events and bytes out (RFC 5321, RFC 2033).

One `ClientSession` is one connection. The shell around it moves octets, makes the TLS handshake and keeps time; what
may be said when, and what an answer means for which recipient, is decided here. Extensions: PIPELINING (RFC 2920),
CHUNKING and BINARYMIME (RFC 3030), SIZE (RFC 1870), 8BITMIME (RFC 6152), SMTPUTF8 (RFC 6531), DSN (RFC 3461), LIMITS
(RFC 9422), AUTH (RFC 4954), STARTTLS (RFC 3207), REQUIRETLS (RFC 8689). What was learned before TLS is forgotten
before the second EHLO (TLS-02, reference H24), and REQUIRETLS counts inside TLS alone (RTLS-14).

The life of a session, by the command whose reply is awaited:

    GREETING ─► HELLO ─┬─► STARTTLS ─► handshake (shell) ─► HELLO ─┬─► AUTH ─► idle
                       └───────────────────────────────────────────┴────────► idle
    idle ─► MAIL ─► RCPT… ─┬─► DATA ─► content (shell) ─► END ─► idle ─► QUIT
                           └─► BDAT… (shell) ─► END ─► idle

With PIPELINING the group MAIL, RCPT…, DATA is one write, and it may follow the final dot of the message before it in
the same write (RFC 2920 3.1), so a busy connection spends one round trip and a half a message.

A reply is never an exception here, whatever it says: it becomes the `Answer` of the recipients that it decides.
"""

import base64
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from mailrail.core.sasl.client import (
    ChannelBinding,
    Credentials,
    Exchange,
    Hashing,
    Mechanism,
    NoMechanism,
    SaltedPasswords,
    SaslError,
    choose,
    decode_base64,
)
from mailrail.core.sasl.client import start as start_sasl
from mailrail.core.smtp.answer import Answer, Stage, Trouble
from mailrail.core.smtp.capabilities import Capabilities, read_capabilities
from mailrail.core.smtp.reply import BadReply, Reply, ReplyParser
from mailrail.core.tlsrpt.result_type import NOT_OFFERED, ResultType, TlsFault

MAX_COMMAND = 512
"""Octets of a command line with CRLF (RFC 5321 4.5.3.1.4); an AUTH line that would exceed it goes without its initial
response (RFC 4954 4, AUTH-10)."""
CHUNKS_IN_FLIGHT = 4
"""BDAT chunks sent ahead of their replies where the server pipelines."""


class ClientProtocol(StrEnum):
    """What the other end speaks."""

    SMTP = "smtp"
    LMTP = "lmtp"


# What is asked for each reply: reading a member off its enum costs four times as much (CPython 3.11).
_MAIL, _RCPT, _DATA, _CONTENT, _END = Stage.MAIL, Stage.RCPT, Stage.DATA, Stage.CONTENT, Stage.END
_BEFORE_CONTENT = (_MAIL, _RCPT, _DATA)


_NO_ANSWER = (Trouble.CLOSED, Trouble.TIMEOUT, Trouble.PROTOCOL)
_NOT_KNOWN = (500, 502)  # a command that the server does not have (RFC 5321 4.2.2)
_NOT_UNDERSTOOD = range(500, 505)  # of the command itself, not of us (RFC 5321 4.2.2)


# --- what we want of the session -----------------------------------------------------------------------------------


class StartTls(StrEnum):
    """What to do about STARTTLS. The policy that decides is core/tlspolicy."""

    NEVER = "never"  # also where TLS runs already
    IF_OFFERED = "if-offered"
    ALWAYS = "always"  # the session fails where it is not offered: the offer may have been removed on the way (TLS-08)


@dataclass(frozen=True, slots=True)
class LoginPlan:
    """How to authenticate. `nonce` gives fresh randomness for SCRAM, at least 18 octets' worth of printable ASCII."""

    credentials: Credentials
    nonce: Callable[[], str]
    mechanisms: tuple[str, ...] = ()
    salted: SaltedPasswords | None = None


class ClientTransaction:
    """One mail transaction: the lines to send, and per recipient the answer once there is one.

    `answers[i]` belongs to `rcpt_lines[i]`. Made from an `outbound.envelope.Plan`, filled by the session.
    """

    __slots__ = (
        "_chunks",
        "_waiting",
        "answers",
        "bdat",
        "bdat_unknown",
        "chunked",
        "content_sent",
        "earlier",
        "mail_line",
        "octets",
        "probe",
        "rcpt_lines",
        "reused",
        "tag",
        "touched",
    )

    def __init__(
        self,
        mail_line: bytes,
        rcpt_lines: Sequence[bytes],
        *,
        bdat: bool = False,
        probe: bool = False,
        octets: int = 0,
        tag: object = None,
    ) -> None:
        """`probe`: only asks whether the recipients would be taken; it ends after the last RCPT, without content.
        `octets`: of the content, for the time limit of the transaction."""
        if not rcpt_lines:
            raise ValueError("a transaction has at least one recipient")
        self.probe = probe
        self.mail_line = mail_line
        self.rcpt_lines = tuple(rcpt_lines)
        self.bdat = bdat
        self.octets = octets
        self.tag = tag
        self.answers: list[Answer | None] = [None] * len(self.rcpt_lines)
        self.content_sent = False
        self.touched = False
        """Whether any reply belonged to it: if not, a reused connection was merely stale."""
        self.chunked = 0
        """Octets of content sent in chunks that were not the last."""
        self.bdat_unknown = False
        """The server offered CHUNKING and does not know BDAT: DATA may do, on a fresh connection."""
        self.reused = False
        """Whether another transaction began on its connection before it."""
        self.earlier = 0
        """How many of those the connection had carried: their MAIL was taken."""
        self._waiting: list[int] = []  # indexes of accepted RCPTs, in order
        self._chunks = 0  # BDAT chunks whose reply is awaited

    @property
    def accepted(self) -> int:
        """How many RCPTs the server has taken so far and not yet decided."""
        return len(self._waiting)

    def wants_fresh(self, answer: Answer) -> bool:
        """Whether an answer says no more than that a reused connection is of no more use, and a fresh one may do.

        Either no reply belonged to the transaction: the server had gone before it saw the message. Or it refused before
        the content, by 421 or a 4yz to MAIL, on a connection that had carried mail (RFC 5321 3.8, 4.2.1): servers limit
        the messages of a connection so."""
        if not self.reused or self.content_sent:
            return False
        reply, trouble = answer.reply, answer.trouble
        if not self.touched:
            return trouble is None or trouble is Trouble.CLOSED
        if not self.earlier or reply is None or trouble is not None:
            return False
        if reply.code == 421:
            return answer.stage in _BEFORE_CONTENT
        return answer.stage is _MAIL and reply.transient

    def _decide_rest(self, answer: Answer) -> None:
        for i, known in enumerate(self.answers):
            if known is None:
                self.answers[i] = answer
        self._waiting = []


# --- events ----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class NeedTls:
    """Make the handshake now, then call `on_tls`. Plaintext that came after the 220 was dropped."""


@dataclass(slots=True)
class NeedHash:
    """Do this work in a thread, then call `on_hashed` with its result."""

    work: Hashing


@dataclass(slots=True)
class Ready:
    """The session is set up: transactions may begin."""

    capabilities: Capabilities


@dataclass(slots=True)
class SessionFailed:
    """No transaction can run on this connection. QUIT is already among the bytes to send where it is fitting."""

    answer: Answer


@dataclass(slots=True)
class ContentWanted:
    """Send content now: all of it for DATA (354 came), the next chunk for BDAT."""

    transaction: ClientTransaction


@dataclass(slots=True)
class Finished:
    """Each recipient of the transaction has its answer."""

    transaction: ClientTransaction


@dataclass(slots=True)
class Gone:
    """The session is over: close the socket. Transactions that were open were finished before this event."""

    answer: Answer


Event = NeedTls | NeedHash | Ready | SessionFailed | ContentWanted | Finished | Gone

_CRLF = b"\r\n"


class ClientSession:
    """One session. Feed it with `receive`; take what to write from `take`; act on the events in order.

    Methods return the events they cause. After `Gone` everything is over. Calls that the state does not allow raise
    RuntimeError: they are our own mistakes.
    """

    __slots__ = (
        "_cancelled",
        "_challenged",
        "_content",
        "_exchange",
        "_expected",
        "_failed_mechanisms",
        "_hashing",
        "_hello_name",
        "_initial_owed",
        "_login",
        "_mechanism_refused",
        "_out",
        "_parser",
        "_protocol",
        "_queue",
        "_quitting",
        "_reset_needed",
        "_starttls",
        "authenticated",
        "binding",
        "capabilities",
        "carried",
        "chunks_taken",
        "gone",
        "ready",
        "replies",
        "starttls_offered",
        "tls",
        "tls_verified",
        "transactions",
    )

    def __init__(
        self,
        hello_name: str,
        *,
        protocol: ClientProtocol = ClientProtocol.SMTP,
        starttls: StartTls = StartTls.NEVER,
        login: LoginPlan | None = None,
        tls: bool = False,
        tls_verified: bool = False,
        binding: ChannelBinding | None = None,
    ) -> None:
        """`tls` and what follows it describe a connection that began with TLS (RFC 8314 3.3)."""
        self._hello_name = hello_name.encode("ascii")
        self._protocol = protocol
        self._starttls = starttls
        self._login = login
        self.tls = tls
        self.tls_verified = tls_verified
        self.binding = binding
        self.capabilities = Capabilities()
        self.starttls_offered = False
        self.authenticated: Mechanism | None = None
        self.ready = False
        self.gone = False
        self.replies = 0
        """Replies seen so far: the shell's clock restarts when it grows, not when octets drip in."""
        self.transactions = 0
        """Transactions begun on this connection."""
        self.carried = 0
        """Those of them whose MAIL the server has taken."""
        self.chunks_taken = False
        """Whether the server has taken a chunk: until then nothing shows that it knows BDAT at all."""
        self._parser = ReplyParser()
        self._out: list[bytes] = []
        # What each coming reply answers, in order; commands that wait for an empty pipeline stand in _queue.
        self._expected: deque[tuple[Stage, ClientTransaction | None, int]] = deque([(Stage.GREETING, None, 0)])
        self._queue: deque[tuple[bytes, Stage, ClientTransaction | None, int]] = deque()
        self._content: ClientTransaction | None = None  # whose content is being sent
        self._exchange: Exchange | None = None
        self._failed_mechanisms: set[Mechanism] = set()
        self._mechanism_refused: Answer | None = None  # the latest refusal of one of them
        self._challenged = False  # the present exchange had a challenge
        self._initial_owed: bytes | None = None  # an initial response too long for the AUTH line (AUTH-10)
        self._hashing: tuple[Hashing, bytes] | None = None  # work under way, and the challenge that it is for
        self._cancelled: Answer | None = None  # we said `*`, and why
        self._reset_needed = False
        self._quitting = False

    # --- what the shell asks -----------------------------------------------------------------------------------

    @property
    def awaiting(self) -> Stage | None:
        """The command whose reply comes next; None when idle or while content is being sent without one awaited."""
        if self._expected:
            return self._expected[0][0]
        if self._hashing is not None:
            return Stage.AUTH
        return _CONTENT if self._content is not None else None

    @property
    def idle(self) -> bool:
        """Ready and with nothing under way."""
        return self.ready and not self._expected and not self._queue and self._content is None and not self._quitting

    def alone(self, transaction: ClientTransaction) -> bool:
        """Whether only this transaction is under way, and its content not sent: ending the session harms no other."""
        if transaction.content_sent or self.gone:
            return False
        others = [tx for _, tx, _ in self._expected if tx is not transaction]
        return not others and (self._content is transaction or bool(self._expected))

    @property
    def quitting(self) -> bool:
        """QUIT was said or is due: nothing more begins."""
        return self._quitting or self.gone

    @property
    def sending(self) -> ClientTransaction | None:
        """The transaction whose content is wanted or under way."""
        return self._content

    @property
    def accepts_transaction(self) -> bool:
        """Whether `begin` may be called: idle, or one transaction whose content is sent and a server that pipelines."""
        if not self.ready or self._quitting or self.gone or self._content is not None or self._queue:
            return False
        limit = self.capabilities.max_transactions
        if limit is not None and self.transactions >= limit:
            return False
        expected = self._expected
        if not expected:
            return True
        # Content is sent when nothing but ends is awaited before it: if the first and the last are ends, all are.
        # A RSET that is owed would wait behind them, and then go out in the middle of what was begun.
        ends = expected[-1][0] is _END and expected[0][0] is _END
        return ends and self.capabilities.pipelining and not self._reset_needed

    def take(self) -> bytes:
        """The bytes to write now."""
        return b"".join(self.take_parts())

    def take_parts(self) -> list[bytes]:
        """The bytes to write now, content as it was handed in."""
        out, self._out = self._out, []
        return out

    # --- what the shell does -----------------------------------------------------------------------------------

    def begin(self, transaction: ClientTransaction) -> None:
        """Begin a transaction. Raises RuntimeError unless `accepts_transaction`."""
        if not self.accepts_transaction:
            raise RuntimeError(f"no transaction can begin while {self.awaiting} is awaited")
        self.transactions += 1
        transaction.reused = self.transactions > 1
        transaction.earlier = self.carried
        if self._reset_needed:
            self._reset_needed = False
            self._command(b"RSET\r\n", Stage.RSET, None, 0)
        if self.capabilities.pipelining:
            # The hot path: one write for the whole group.
            out, expected = self._out, self._expected
            out.append(transaction.mail_line)
            out.extend(transaction.rcpt_lines)
            expected.append((_MAIL, transaction, 0))
            for i in range(len(transaction.rcpt_lines)):
                expected.append((_RCPT, transaction, i))
            if not transaction.bdat and not transaction.probe:
                out.append(b"DATA\r\n")
                expected.append((_DATA, transaction, 0))
        else:
            self._command(transaction.mail_line, Stage.MAIL, transaction, 0)

    def content(self, *parts: bytes, last: bool) -> None:
        """Send content of the transaction that asked for it.

        For DATA: dot-stuffed octets, with the final dot in them when `last` (see `stuffing.py`). For BDAT: one chunk as
        it is, all parts together. With `last` the recipients become uncertain until the reply comes.
        """
        transaction = self._content
        if transaction is None:
            raise RuntimeError("no content was asked for")
        if transaction.bdat:
            octets = sum(map(len, parts))
            self._out.append(b"BDAT %d%s\r\n" % (octets, b" LAST" if last else b""))
            if not last:
                self._expected.append((_CONTENT, transaction, 0))
                transaction._chunks += 1
                transaction.chunked += octets
        self._out.extend(filter(None, parts))
        if last:
            transaction.content_sent = True
            self._content = None
            if self._protocol is ClientProtocol.LMTP:
                # RFC 2033 4.2: one reply for each recipient that RCPT accepted, in order (LMTP-02).
                for i in transaction._waiting:
                    self._expected.append((_END, transaction, i))
            else:
                self._expected.append((_END, transaction, -1))

    def wants_chunk(self) -> bool:
        """Whether the next BDAT chunk may be sent now (RFC 3030 4.2: ahead of replies only with PIPELINING). The first
        one of a connection goes alone: a server that does not know BDAT reads content as commands."""
        transaction = self._content
        if transaction is None or not transaction.bdat:
            return False
        return transaction._chunks < (CHUNKS_IN_FLIGHT if self.capabilities.pipelining and self.chunks_taken else 1)

    def quit(self) -> None:
        """Say QUIT once what runs is answered; at once where the server pipelines (SOUT-17)."""
        if self._quitting or self.gone:
            return
        if self._content is not None:
            raise RuntimeError("QUIT would become part of the content")
        self._quitting = True
        if not self._expected or (self.ready and self.capabilities.pipelining and not self._queue):
            self._out.append(b"QUIT\r\n")
            self._expected.append((Stage.QUIT, None, 0))
        else:
            self._queue.append((b"QUIT\r\n", Stage.QUIT, None, 0))

    def on_tls(self, *, verified: bool, binding: ChannelBinding | None = None) -> None:
        """The handshake succeeded: forget everything and say hello again (RFC 3207 4.2, TLS-02)."""
        self.tls = True
        self.tls_verified = verified
        self.binding = binding
        self.capabilities = Capabilities()
        self._parser.clear()
        self._starttls = StartTls.NEVER
        self._hello()

    def on_lost(self, trouble: Trouble, detail: str) -> list[Event]:
        """The connection ended, or the shell ends it: by the peer, a timeout, a broken TLS stream, our own decision."""
        if self.gone:
            return []
        events: list[Event] = []
        self._code_seen(events)
        if not self.gone:
            awaiting = self.awaiting or Stage.QUIT
            if awaiting is Stage.STARTTLS and trouble in _NO_ANSWER:
                # As good as a refusal of what it offered (TLS-07): opportunistic mail may go without, by a new one.
                trouble, detail = Trouble.TLS, f"{detail}, at STARTTLS, which the server offered"
            # TRPT-07a: whoever ends connections at this point keeps TLS from coming about, and the domain hears of it.
            fault = _broken("session-lost", "no session came about with TLS") if trouble is Trouble.TLS else None
            events += self._end(Answer(awaiting, None, trouble, detail, fault=fault))
        return events

    def receive(self, data: bytes) -> list[Event]:
        """Octets from the server."""
        if self.gone:
            return []
        fault: BadReply | None = None
        try:
            replies = self._parser.feed(data)
        except BadReply as error:
            replies, fault = list(error.complete), error
        events: list[Event] = []
        expected = self._expected
        for reply in replies:
            self.replies += 1
            if expected and expected[0][1] is not None:
                stage, transaction, index = expected.popleft()
                assert transaction is not None
                self._transaction_reply(stage, transaction, index, reply, events)
            else:
                self._session_reply(reply, events)
                if events and isinstance(events[-1], NeedTls):
                    # Whatever else came in plaintext was said before TLS: it must not count after it (TLS-02).
                    return events
            if self.gone:
                return events
        if fault is not None:
            events += self.on_lost(Trouble.PROTOCOL, f"the server sent {fault.reason}")
        elif self._queue and not self._expected:
            self._next_command()
        return events

    # --- commands and replies ----------------------------------------------------------------------------------

    def _code_seen(self, events: list[Event]) -> None:
        """The session ends in the middle of the reply to a final dot: the code that was read decides. Without it a
        message that the server has taken would be sent again at each retry."""
        expected = self._expected
        if not expected or expected[0][0] is not _END:
            return
        reply = self._parser.partial
        if reply is not None:
            stage, transaction, index = expected.popleft()
            assert transaction is not None
            self._transaction_reply(stage, transaction, index, reply, events)

    def _command(self, line: bytes, stage: Stage, transaction: ClientTransaction | None, index: int) -> None:
        if self._expected or self._queue:
            self._queue.append((line, stage, transaction, index))
        else:
            self._out.append(line)
            self._expected.append((stage, transaction, index))

    def _next_command(self) -> None:
        line, stage, transaction, index = self._queue.popleft()
        self._out.append(line)
        self._expected.append((stage, transaction, index))

    def _hello(self) -> None:
        """LHLO in LMTP and never anything else (LMTP-01); EHLO in SMTP."""
        verb = b"LHLO " if self._protocol is ClientProtocol.LMTP else b"EHLO "
        self._out.append(verb + self._hello_name + _CRLF)
        self._expected.append((Stage.HELLO, None, 0))

    def _session_reply(self, reply: Reply, events: list[Event]) -> None:
        if not self._expected:
            self._unasked(reply, events)
            return
        stage, _, index = self._expected.popleft()
        if stage is Stage.GREETING:
            self._greeting(reply, events)
        elif stage is Stage.HELLO:
            self._hello_reply(index, reply, events)
        elif stage is Stage.STARTTLS:
            self._starttls_reply(reply, events)
        elif stage is Stage.AUTH:
            self._auth_reply(reply, events)
        elif stage is Stage.QUIT:
            events += self._end(Answer(Stage.QUIT, reply))
        elif reply.code == 421 or not reply.completed:  # RSET refused: this server's state is unknown
            events += self._end(_refusal(stage, reply))

    def _unasked(self, reply: Reply, events: list[Event]) -> None:
        # A reply that nothing asked for: 421 of a server that shuts down, or a verdict before the content is sent.
        transaction = self._content
        if transaction is not None and reply.code >= 400:
            events += self._end(Answer(Stage.CONTENT, reply))
        elif reply.code >= 400:
            events += self._end(Answer(Stage.QUIT, reply))
        else:
            detail = f"the server sent a reply that nothing asked for: {reply.code}"
            events += self._end(Answer(self.awaiting or Stage.QUIT, None, Trouble.PROTOCOL, detail))

    def _greeting(self, reply: Reply, events: list[Event]) -> None:
        if reply.code == 220:
            self._hello()
        else:
            self._fail_session(_refusal(Stage.GREETING, reply), events)

    def _hello_reply(self, helo: int, reply: Reply, events: list[Event]) -> None:
        if reply.completed and reply.cut and not helo:
            # What was cut off may be STARTTLS: going on would be a downgrade.
            detail = "the server's answer to EHLO is too long"
            self._fail_session(Answer(Stage.HELLO, None, Trouble.PROTOCOL, detail), events)
        elif reply.completed:
            self.capabilities = (
                Capabilities(name=reply.lines[0].split(" ", 1)[0]) if helo else read_capabilities(reply, tls=self.tls)
            )
            self._set_up(events)
        elif reply.permanent and not helo and not self.tls and self._protocol is ClientProtocol.SMTP:
            # SOUT-11: a server from before 1995. Not after TLS: no such server speaks it.
            self._out.append(b"HELO " + self._hello_name + _CRLF)
            self._expected.append((Stage.HELLO, None, 1))
        elif reply.code in _NOT_UNDERSTOOD and self.tls and self.starttls_offered:
            # Servers older than RFC 3207 4.2 know no second EHLO: no session with TLS comes about (TLS-07).
            detail = f"the server refused EHLO after STARTTLS: {reply}"
            fault = _broken("hello-refused", "the server refused EHLO after STARTTLS")
            self._fail_session(Answer(Stage.HELLO, reply, Trouble.TLS, detail, fault=fault), events)
        else:
            self._fail_session(_refusal(Stage.HELLO, reply), events)

    def _set_up(self, events: list[Event]) -> None:
        if not self.tls:
            self.starttls_offered = self.capabilities.starttls
            if self._starttls is not StartTls.NEVER and self.capabilities.starttls:
                self._out.append(b"STARTTLS\r\n")
                self._expected.append((Stage.STARTTLS, None, 0))
                return
            if self._starttls is StartTls.ALWAYS:
                detail = "TLS is required and the server does not offer STARTTLS"
                fault = TlsFault(ResultType.STARTTLS_NOT_SUPPORTED, NOT_OFFERED, detail)
                self._fail_session(Answer(Stage.STARTTLS, None, Trouble.TLS, detail, fault=fault), events)
                return
        if self._login is not None:
            self._authenticate(events)
        else:
            self._become_ready(events)

    def _become_ready(self, events: list[Event]) -> None:
        self.ready = True
        events.append(Ready(self.capabilities))

    def _starttls_reply(self, reply: Reply, events: list[Event]) -> None:
        if reply.code == 220:
            self._parser.clear()
            events.append(NeedTls())
        else:
            detail = f"the server refused STARTTLS that it offered: {reply}"
            said = None if reply.positive else reply  # a 250 here permits no handshake and says nothing of the message
            fault = TlsFault(
                ResultType.STARTTLS_NOT_SUPPORTED, "refused", "the server refused STARTTLS that it offered"
            )
            self._fail_session(Answer(Stage.STARTTLS, said, Trouble.TLS, detail, fault=fault), events)

    def _fail_session(self, answer: Answer, events: list[Event]) -> None:
        events.append(SessionFailed(answer))
        if answer.reply is not None and answer.reply.code == 421:
            self._quitting = True
            events += self._end(answer)
        else:
            self._queue.clear()
            self._expected.clear()
            self.quit()

    # --- AUTH ----------------------------------------------------------------------------------------------------

    def _authenticate(self, events: list[Event]) -> None:
        login = self._login
        assert login is not None
        offered = self.capabilities.auth
        try:
            mechanism = choose(
                offered,
                preference=login.mechanisms,
                binding=self.binding,
                password_may_be_shown=self.tls_verified,
                without=self._failed_mechanisms,
            )
        except NoMechanism as error:
            answer = self._mechanism_refused or Answer(Stage.AUTH, None, Trouble.AUTH, str(error))
            self._fail_session(answer, events)
            return
        self._challenged = False
        plus = Mechanism.SCRAM_SHA_256_PLUS if "256" in mechanism else Mechanism.SCRAM_SHA_1_PLUS
        self._exchange = start_sasl(
            mechanism,
            login.credentials,
            nonce=login.nonce(),
            binding=self.binding,
            server_offered_plus=plus.value in offered,
            salted=login.salted,
        )
        line = b"AUTH " + mechanism.encode("ascii")
        first = self._exchange.initial()
        if first is not None:
            response = base64.b64encode(first) or b"="
            if len(line) + 1 + len(response) + 2 <= MAX_COMMAND:
                line += b" " + response
            else:
                self._initial_owed = first
        self._auth_line(line)

    def _auth_line(self, line: bytes) -> None:
        self._out.append(line + _CRLF)
        self._expected.append((Stage.AUTH, None, 0))

    def _auth_reply(self, reply: Reply, events: list[Event]) -> None:
        exchange = self._exchange
        assert exchange is not None
        if self._cancelled is not None:
            answer, self._cancelled = self._cancelled, None
            self._auth_refused(exchange, answer, events)
        elif reply.code == 334:
            self._challenge(exchange, reply, events)
        elif reply.code == 235:
            try:
                exchange.verify_success()
            except SaslError as error:
                self._fail_session(Answer(Stage.AUTH, None, Trouble.AUTH, str(error)), events)
                return
            self.authenticated = exchange.mechanism
            self._exchange = None
            self._become_ready(events)
        elif reply.positive:
            detail = f"the server answered AUTH with {reply.code}"
            self._fail_session(Answer(Stage.AUTH, None, Trouble.AUTH, detail), events)
        else:
            self._auth_refused(exchange, Answer(Stage.AUTH, reply), events)

    def _auth_refused(self, exchange: Exchange, answer: Answer, events: list[Event]) -> None:
        # Another mechanism is tried where the server does not do this one: 504 although it offered it, 501 to the AUTH
        # line itself (RFC 4954 4); or where it binds only by a type that we cannot compute, and refuses -PLUS before
        # any proof is sent. A wrong password is tried once, lest the account be locked.
        self._initial_owed = None
        code = answer.reply.code if answer.reply is not None else 0
        final = answer.reply is None or answer.reply.permanent
        not_done = code == 504 or (code == 501 and not self._challenged)
        if not_done or (exchange.mechanism.binds_channel and not exchange.proof_sent and final):
            self._failed_mechanisms.add(exchange.mechanism)
            if answer.reply is not None:
                self._mechanism_refused = answer
            self._authenticate(events)
        else:
            self._fail_session(answer, events)

    def on_hashed(self, salted: bytes) -> None:
        """The result of what `NeedHash` asked for."""
        if self._hashing is None or self.gone:
            return
        (work, challenge), self._hashing = self._hashing, None
        assert self._exchange is not None
        assert self._login is not None
        assert self._login.salted is not None
        self._login.salted.keep(work, salted)
        try:
            response = self._exchange.respond(challenge)
        except SaslError as error:
            self._cancel_auth(error)
            return
        self._auth_line(base64.b64encode(response))

    def _cancel_auth(self, error: SaslError) -> None:
        # RFC 4954 4: `*` cancels; the server answers 501.
        self._cancelled = Answer(Stage.AUTH, None, Trouble.AUTH, str(error))
        self._auth_line(b"*")

    def _challenge(self, exchange: Exchange, reply: Reply, events: list[Event]) -> None:
        try:
            self._challenged = True
            # The prompts of LOGIN mean nothing, in base64 or not.
            challenge = b"" if exchange.mechanism is Mechanism.LOGIN else _decode_challenge(reply)
            if self._initial_owed is not None:
                if challenge:
                    raise SaslError("the server sent a challenge where it should wait for our first message")
                response, self._initial_owed = self._initial_owed, None
            else:
                login = self._login
                work = exchange.work(challenge) if login is not None and login.salted is not None else None
                if work is not None:
                    self._hashing = (work, challenge)
                    events.append(NeedHash(work))
                    return
                response = exchange.respond(challenge)
        except SaslError as error:
            self._cancel_auth(error)
            return
        self._auth_line(base64.b64encode(response))

    # --- transactions ----------------------------------------------------------------------------------------------

    def _transaction_reply(
        self, stage: Stage, tx: ClientTransaction, index: int, reply: Reply, events: list[Event]
    ) -> None:
        tx.touched = True
        code = reply.code
        completed = 200 <= code < 300
        if code == 421:
            # RFC 5321 3.8: the server closes. For this transaction it is the answer, for those behind it too.
            self._expected.appendleft((stage, tx, index))
            tx._decide_rest(Answer(stage, reply))
            events += self._end(Answer(stage, reply))
        elif code < 400 and not completed and stage is not _DATA:
            detail = f"the server answered {stage.upper()} with {code}"
            self._expected.appendleft((stage, tx, index))
            events += self._end(Answer(stage, None, Trouble.PROTOCOL, detail))
        elif stage is _RCPT:
            self._rcpt_reply(tx, index, reply, events)
        elif stage is _MAIL:
            if not completed:
                tx._decide_rest(Answer(stage, reply))
                self._settle(tx, events)
                return
            self.carried += 1
            if not self.capabilities.pipelining:
                self._command(tx.rcpt_lines[0], _RCPT, tx, 0)
        elif stage is _DATA:
            self._data_reply(tx, reply, events)
        elif stage is _CONTENT:
            tx._chunks -= 1
            if completed:
                self.chunks_taken = True
            elif not self.chunks_taken and code in _NOT_KNOWN:
                # Such as a proxy that hands EHLO on. It may read the chunk as commands, and answer each of its lines.
                tx.bdat_unknown = True
                tx._decide_rest(Answer(stage, reply))
                self._expected.appendleft((stage, tx, 0))
                events += self._end(Answer(stage, reply))
                return
            if not completed:
                tx._decide_rest(Answer(stage, reply))
                if self._content is tx:
                    self._content = None
                self._reset_needed = True
                self._settle(tx, events)
            elif self._content is tx:
                events.append(ContentWanted(tx))
        else:
            self._end_reply(tx, index, reply, events)

    def _rcpt_reply(self, tx: ClientTransaction, index: int, reply: Reply, events: list[Event]) -> None:
        if tx.answers[index] is None:  # else MAIL was refused, and this is only its echo
            if reply.completed and not tx.probe:  # 250, and 251: it forwards (SOUT-13, reference H30)
                tx._waiting.append(index)
            else:
                tx.answers[index] = Answer(_RCPT, reply)
        following = index + 1
        if following < len(tx.rcpt_lines):
            if not self.capabilities.pipelining:
                self._command(tx.rcpt_lines[following], _RCPT, tx, following)
        elif not tx._waiting:
            self._settle(tx, events)  # with DATA pipelined: once its reply has come
        elif tx.bdat:
            self._content = tx
            events.append(ContentWanted(tx))
        elif not self.capabilities.pipelining:
            self._command(b"DATA\r\n", _DATA, tx, 0)

    def _data_reply(self, tx: ClientTransaction, reply: Reply, events: list[Event]) -> None:
        if reply.code // 100 == 3:
            if tx._waiting:
                self._content = tx
                events.append(ContentWanted(tx))
            elif self._protocol is ClientProtocol.LMTP:
                # RFC 2033 4.2: DATA must fail here, and the end of content has a reply for each recipient taken, which
                # is none: after a lone dot there would be nothing to wait for.
                detail = "the server answered DATA with 354 although it had accepted no recipient"
                self._expected.appendleft((_DATA, tx, 0))
                events += self._end(Answer(_DATA, None, Trouble.PROTOCOL, detail))
            else:
                # RFC 2920 3.1: a server that says 354 without a valid recipient wants a lone dot (EXT-04).
                self._out.append(b".\r\n")
                self._expected.append((_END, tx, -1))
        elif reply.completed:
            answer = Answer(_DATA, None, Trouble.PROTOCOL, f"the server answered DATA with {reply.code}")
            self._expected.appendleft((_DATA, tx, 0))
            events += self._end(answer)
        else:
            tx._decide_rest(Answer(_DATA, reply))
            self._settle(tx, events)

    def _end_reply(self, tx: ClientTransaction, index: int, reply: Reply, events: list[Event]) -> None:
        if index < 0:
            answer = Answer(_END, reply)
            for i in tx._waiting:
                tx.answers[i] = answer
            tx._waiting = []
        elif tx.answers[index] is None:
            tx.answers[index] = Answer(_END, reply)
        if not self._expected or self._expected[0][1] is not tx:
            tx._waiting = []
            events.append(Finished(tx))

    def _settle(self, tx: ClientTransaction, events: list[Event]) -> None:
        # Every recipient is decided without content; the transaction is over once its last reply has come.
        if any(other is tx for _, other, _ in self._expected):
            return
        self._reset_needed = True
        events.append(Finished(tx))

    def _end(self, answer: Answer) -> list[Event]:
        events: list[Event] = []
        self.gone = True
        open_ones: list[ClientTransaction] = []
        steps = [tx for _, tx, _ in self._expected] + [tx for _, _, tx, _ in self._queue] + [self._content]
        for tx in steps:
            if tx is not None and tx not in open_ones:
                open_ones.append(tx)
        self._expected.clear()
        self._queue.clear()
        self._content = None
        for tx in open_ones:
            if tx.content_sent:
                trouble = answer.trouble or Trouble.CLOSED
                detail = answer.detail or f"the server closed: {answer.reply}"
                # SOUT-14; in LMTP for those alone that have no reply yet (LMTP-03).
                tx._decide_rest(Answer(Stage.END, None, trouble, detail, uncertain=True))
            elif tx.touched:
                tx._decide_rest(answer)
            else:
                # A reply to something else, RSET or nothing, is none to this transaction; 421 is meant for all.
                whole = answer.trouble is not None or (answer.reply is not None and answer.reply.code == 421)
                detail = answer.detail or f"the server ended the session: {answer.reply}"
                tx._decide_rest(
                    Answer(Stage.MAIL, answer.reply, answer.trouble, answer.detail)
                    if whole
                    else Answer(Stage.MAIL, None, Trouble.CLOSED, detail)
                )
            events.append(Finished(tx))
        if not self.ready and not self._quitting:
            events.append(SessionFailed(answer))
        self.ready = False
        events.append(Gone(answer))
        return events


def _broken(reason: str, detail: str) -> TlsFault:
    """Of a session that TLS was negotiated for, and that broke before it could be used: RFC 8460 4.3.1 has no type for
    that but the one for all others."""
    return TlsFault(ResultType.VALIDATION_FAILURE, reason, detail)


def _refusal(stage: Stage, reply: Reply) -> Answer:
    """The answer for a reply that does not let the session continue. A positive one that means nothing at this stage
    breaks the protocol, such as a greeting of 250: as a reply it would read as if the message had been accepted."""
    if reply.positive:
        return Answer(stage, None, Trouble.PROTOCOL, f"the server answered {stage.upper()} with {reply.code}")
    return Answer(stage, reply)


def _decode_challenge(reply: Reply) -> bytes:
    text = reply.lines[0].strip()
    if reply.cut:
        raise SaslError("the server's challenge is too long")
    if len(reply.lines) != 1:
        raise SaslError("the server's challenge is not base64")
    return decode_base64(text, "challenge")
