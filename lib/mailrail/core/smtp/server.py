"""The server's side of an SMTP session, without I/O: octets in, events and octets out (RFC 5321 and extensions).

    session = ServerSession(options)
    session.receive(octets, now)
    while (event := session.next_event()) is not None: ...   # act; answer those that ask
    transport.write(session.data_to_send())

The session knows the protocol: order of commands, syntax, limits, pipelining, where content ends. It decides nothing
about mail: senders, recipients, credentials and content are put as events, and the session stands still until
`accept`, `refuse` or their like answer, at once or later. While it stands still it may be fed; it only keeps what
comes (bounded by `wants_data`). Everything that one `receive` brought is answered in one write, in order (RFC 2920
3.2, EXT-03).

Extensions: SIZE (1870), PIPELINING (2920), CHUNKING and BINARYMIME (3030), 8BITMIME (6152), SMTPUTF8 (6531), DSN
(3461), ENHANCEDSTATUSCODES (2034), STARTTLS (3207), AUTH (4954), LIMITS (9422), FUTURERELEASE (4865), REQUIRETLS
(8689). Further ones are added in phrases.py (what EHLO says), `ListenerOptions.extensions` (what MAIL takes) and
parameters.py (what it means).

What would let two readers disagree about where something ends (a bare CR or LF, SIN-02/03) ends the session.
"""

import re
import sys
from base64 import b64encode
from binascii import Error as Base64Error
from binascii import a2b_base64
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from functools import lru_cache
from typing import Final

from mailrail.core.smtp.address import AddressError, parse_forward_path, parse_reverse_path
from mailrail.core.smtp.data import DataScanner, LineEndWatch
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
from mailrail.core.smtp.line_facts import PLAIN, WHOLE
from mailrail.core.smtp.parameters import (
    NO_MAIL_PARAMETERS,
    NO_RCPT_PARAMETERS,
    BodyType,
    Extension,
    MailParameters,
    ParameterError,
    parse_mail_parameters,
    parse_rcpt_parameters,
)
from mailrail.core.smtp.phrases import (
    ARGUMENT,
    AUTH_ALREADY,
    AUTH_IN_TRANSACTION,
    AUTH_LINE_TOO_LONG,
    AUTH_NEEDED,
    AUTH_NEEDS_TLS,
    AUTH_UNKNOWN,
    AUTHENTICATED,
    BAD_BASE64,
    BAD_BDAT,
    BAD_HELLO,
    BAD_MAIL,
    BAD_RCPT,
    BARE_CONTENT,
    BARE_LINE_END,
    BINARY_NEEDS_BDAT,
    CANCELLED,
    CHUNK_OK,
    CHUNKS_BEGUN,
    CONTENT_OK,
    DISPLACED,
    GO_AHEAD,
    GOODBYE,
    HELLO_FIRST,
    HELP,
    LINE_TOO_LONG,
    MAIL_FIRST,
    NESTED_MAIL,
    NO_ARGUMENT,
    NO_RECIPIENT,
    NOT_HTTP,
    OFF,
    OK,
    RECIPIENT_OK,
    REQUIRETLS_NEEDS_TLS,
    SENDER_OK,
    SHUTTING_DOWN,
    TIMED_OUT,
    TLS_ALREADY,
    TLS_GO_AHEAD,
    TLS_NEEDED,
    TLS_UNAVAILABLE,
    TOO_MANY_ERRORS,
    TOO_MANY_RECIPIENTS,
    UNKNOWN,
    VERIFY,
    greeting,
    hello_reply,
    offered_mechanisms,
    say,
    too_big,
)
from mailrail.core.smtp.reply import Reply
from mailrail.core.smtp.tls import TlsFacts

COMMAND_LIMIT: Final = 4096
"""Octets of a command line with its end. RFC 5321 4.5.3.1.4 asks for 512 (SIN-05); DSN-03 for 1036 and more; RFC 8689 2
for 11 besides (RTLS-05)."""
AUTH_LINE_LIMIT: Final = 12288
"""Octets of an AUTH command or response line (RFC 4954 4)."""
SKIP_LIMIT: Final = 1024 * 1024
"""Octets of an overlong line that are skipped until its end comes. No mail client sends more."""
WAITING_LIMIT: Final = 65536
"""Octets kept while an answer is awaited; past them the shell stops reading."""
AUTH_FAILURE_LIMIT: Final = 5
"""Failed authentications until 421: RFC 4954 4 asks for a limit against guessing."""
REFUSED_LIMIT: Final = 100
"""Recipients of a stranger that are refused for good until 421. Lists have some dead addresses; a client with more of
them in one session tries which addresses exist. A real list goes on with the rest in its next session."""
USELESS_LIMIT: Final = 100
"""Commands without effect between two messages until 421: NOOP, RSET, VRFY, HELP, EHLO, MAIL that is refused, AUTH that
is answered 4yz. No client needs more; without a limit a session could go on for nothing (Postfix: junk commands)."""
SMALL_CHUNK: Final = 512
"""Octets below which a chunk that is not the last counts as small: handling it costs as much as one of a megabyte."""
SMALL_CHUNKS_LIMIT: Final = 100
"""Small chunks of one message that are free; more of them, and every empty one, count as useless commands. Software
that sends a chunk for each header field or line has dozens."""
OVERSHOOT_LIMIT: Final = 10_000
"""Recipients above the limit of one transaction that are answered 452 until 421. Software that gives its whole list at
once goes on with the rest in the next transaction; a client that sends more does not listen."""


_NO_EXTENSIONS: Final[frozenset[Extension]] = frozenset()
_CONTENT_STARTED: Final = ContentStarted()
_CONTENT_ENDED: Final = ContentEnded()
_WHOLE_ENDED: Final = ContentEnded(WHOLE)
_PLAIN_ENDED: Final = ContentEnded(PLAIN)


# --- the session ------------------------------------------------------------------------------------------------


class _Stage(Enum):
    COMMAND = "command"
    AUTH = "auth"  # the next line answers a challenge
    DATA = "data"
    CHUNK = "chunk"
    TLS = "tls"  # nothing counts until the handshake is done
    CLOSED = "closed"


class _Awaited(Enum):
    NOTHING = 0
    SENDER = 1
    RECIPIENT = 2
    CONTENT_START = 3
    COMMIT = 4
    AUTH = 5


# Each command asks for several of these: a name of the module is found faster than a member of an enumeration.
_COMMAND: Final = _Stage.COMMAND
_IN_AUTH: Final = _Stage.AUTH
_DATA: Final = _Stage.DATA
_CHUNK: Final = _Stage.CHUNK
_TLS: Final = _Stage.TLS
_CLOSED: Final = _Stage.CLOSED
_NOTHING: Final = _Awaited.NOTHING
_SENDER: Final = _Awaited.SENDER
_RECIPIENT: Final = _Awaited.RECIPIENT
_CONTENT_START: Final = _Awaited.CONTENT_START
_COMMIT: Final = _Awaited.COMMIT
_AUTH: Final = _Awaited.AUTH


@dataclass(slots=True)
class _Transaction:
    parameters: MailParameters
    size_limit: int
    recipients: int = 0
    overshoot: int = 0  # recipients that were one too many
    octets: int = 0
    content: bool = False  # content has begun; the app holds something for it
    chunks: "LineEndWatch | None" = None  # BDAT has begun with text
    chunked: bool = False
    small_chunks: int = 0
    refusal: bytes | None = None  # the content is read to its end and then refused with this (EXT-01)


_TABBED: Final = re.compile(rb"(?:MAIL|RCPT)\t", re.IGNORECASE)
_HELLO_ARGUMENT = re.compile(rb"[^\x00-\x1f\x7f]{1,255}")
_BDAT = re.compile(rb"([0-9]{1,20})(?: +(LAST))?", re.IGNORECASE)
_BASE64 = re.compile(rb"(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?")
_MECHANISM = re.compile(rb"[A-Za-z0-9_-]{1,20}")


_SIMPLE: Final = 256
"""Octets of an argument up to which earlier results are kept for it."""


@lru_cache(maxsize=4096)
def _simple_sender(argument: bytes) -> SenderGiven | None:
    """What MAIL with this argument says, if it has no parameters and nothing is wrong with it; else None.

    The same few hundred senders and recipients make up most mail: they are read once.
    """
    if argument[:5].upper() != b"FROM:" or not argument.isascii():
        return None
    try:
        sender, rest = parse_reverse_path(argument[5:].lstrip(b" \t"), utf8=True)
    except AddressError:
        return None
    return None if rest else SenderGiven(sender, NO_MAIL_PARAMETERS)


@lru_cache(maxsize=4096)
def _simple_recipient(argument: bytes) -> RecipientGiven | None:
    """As `_simple_sender`, for RCPT."""
    if argument[:3].upper() != b"TO:" or not argument.isascii():
        return None
    try:
        recipient, rest = parse_forward_path(argument[3:].lstrip(b" \t"), utf8=True)
    except AddressError:
        return None
    return None if rest else RecipientGiven(recipient, NO_RCPT_PARAMETERS)


class ServerSession:
    """One session from the greeting to its end. Not for several threads."""

    __slots__ = (
        "_at",
        "_awaited",
        "_chunk_last",
        "_chunk_left",
        "_chunk_reply",
        "_chunk_size",
        "_errors",
        "_events",
        "_failed_logins",
        "_now",
        "_octets",
        "_out",
        "_refused",
        "_scanner",
        "_skipped",
        "_skipped_auth",
        "_stage",
        "_transaction",
        "_useless",
        "extended",
        "hello",
        "login",
        "messages",
        "options",
        "tls",
        "turn",
        "verb",
    )

    def __init__(self, options: ListenerOptions, *, tls: TlsFacts | None = None) -> None:
        self.options = options
        self.tls = tls
        self.hello: str | None = None
        """The argument of EHLO or HELO, printable ASCII; None before it."""
        self.extended = False
        """The client said EHLO rather than HELO."""
        self.login: str | None = None
        self.messages = 0
        """Messages accepted in this session."""
        self.verb = ""
        """The command being handled, for logs."""
        self._stage: _Stage = _COMMAND
        self._awaited: _Awaited = _NOTHING
        self._octets = b""  # what has come
        self._at = 0  # and how much of it is read
        self._skipped = 0
        self._skipped_auth = False
        self._events: deque[Event] = deque()
        self._out: list[bytes] = [greeting(options.hostname)]
        self._transaction: _Transaction | None = None
        self._scanner: DataScanner | None = None
        self._chunk_left = 0
        self._chunk_size = 0
        self._chunk_last = False
        self._chunk_reply: bytes | None = None
        self._errors = 0
        self._failed_logins = 0
        self._refused = 0
        self._useless = 0  # commands since the last message
        self._now = 0.0
        self.turn = sys.maxsize
        """Lines to handle before it stops: see `interrupted`. Without a limit a session handles all that has come, and
        one that receives 64 KiB of commands at a time delays all others."""

    # --- octets ---

    @property
    def interrupted(self) -> bool:
        """The turn is over, and there is more to do that needs no answer first."""
        return not self.turn and self._awaited is _NOTHING and self._at < len(self._octets)

    def receive(self, data: bytes, now: float) -> bool:
        """Octets from the client; `now` is Unix time. They are dropped after the end, and before TLS is up.

        Returns whether they continue a line of which a part had come.
        """
        stage = self._stage
        if stage is _TLS or stage is _CLOSED:
            return False
        self._now = now
        continued = self._at < len(self._octets)
        if continued:
            data = self._octets[self._at :] + data
        self._octets = data
        self._at = 0
        return continued

    def _take(self, most: int) -> bytes:
        """Octets that have come and are not read, `most` of them at most."""
        data, at = self._octets, self._at
        end = min(len(data), at + most)
        self._at = end
        return data[at:end]

    def _drop(self) -> None:
        """Forget the octets that have come and are not read."""
        self._octets = b""
        self._at = 0

    def data_to_send(self) -> bytes:
        """What to write now; empty when nothing is."""
        out = self._out
        if not out:
            return b""
        data = out[0] if len(out) == 1 else b"".join(out)
        out.clear()
        return data

    @property
    def wants_data(self) -> bool:
        """False while an answer is awaited and enough has come meanwhile: stop reading the socket."""
        return self._awaited is _NOTHING or len(self._octets) - self._at < WAITING_LIMIT

    @property
    def awaiting(self) -> bool:
        """An answer is due from the app."""
        return self._awaited is not _NOTHING

    @property
    def idle(self) -> bool:
        """No answer is awaited, no content is being received and nothing is left to do: it is the client's turn."""
        transaction = self._transaction  # as in `in_content`, without a call: each read asks for it
        return (
            self._awaited is _NOTHING
            and (transaction is None or not transaction.content)
            and self._stage is not _CHUNK
            and (self.turn > 0 or self._at >= len(self._octets))
        )

    @property
    def in_content(self) -> bool:
        """Content is being received: of a message, or of a chunk that is refused and read to its end (EXT-05)."""
        transaction = self._transaction
        return (transaction is not None and transaction.content) or self._stage is _CHUNK

    @property
    def in_transaction(self) -> bool:
        """From MAIL to the answer to its message, and while a chunk is read that is refused."""
        return self._transaction is not None or self._stage is _CHUNK

    @property
    def content_octets(self) -> int:
        """Octets so far of the message whose content is being received, or of the chunk that is refused."""
        if self._stage is _CHUNK and self._chunk_reply is not None:
            return self._chunk_size - self._chunk_left
        return self._transaction.octets if self._transaction is not None else 0

    @property
    def closed(self) -> bool:
        """The session is over; what still comes is dropped."""
        return self._stage is _CLOSED

    @property
    def state(self) -> str:
        """What the session is doing, in a word for people."""
        if self._awaited is not _NOTHING:
            return f"awaiting {self._awaited.name.lower().replace('_', ' ')}"
        return self._stage.value

    def next_event(self) -> Event | None:
        """The next thing that happened; None when more octets, or an answer, are needed first."""
        events = self._events
        while not events:
            if self._awaited is not _NOTHING:
                return None
            stage = self._stage
            if self._at == len(self._octets) and (stage is not _CHUNK or self._chunk_left):
                return None  # all is read, unless it is a chunk of no octets
            if stage is _COMMAND or stage is _IN_AUTH:
                if not self.turn or not self._line():
                    return None
                self.turn -= 1
            elif stage is _DATA:
                self._read_data()
            elif stage is _CHUNK:
                self._read_chunk()
            else:
                return None
        return events.popleft()

    # --- answers ---

    def accept(self, reply: Reply | None = None, *, size_limit: int | None = None) -> None:
        """Yes to SenderGiven, RecipientGiven or ContentStarted. `size_limit` lowers the limit of this transaction."""
        awaited, self._awaited = self._awaited, _NOTHING
        if self._stage is _CLOSED:
            return  # the session ended while the answer was on its way
        transaction = self._transaction
        assert transaction is not None
        if awaited is _RECIPIENT:
            transaction.recipients += 1
            self._out.append(RECIPIENT_OK if reply is None else reply.encode())
        elif awaited is _SENDER:
            if size_limit is not None:
                transaction.size_limit = min(size_limit, transaction.size_limit)
            self._out.append(SENDER_OK if reply is None else reply.encode())
        elif awaited is _CONTENT_START:
            transaction.content = True
            if transaction.chunked:
                self._stage = _CHUNK
            else:
                self._out.append(GO_AHEAD)
                if self._scanner is None:
                    self._scanner = DataScanner()
                else:
                    self._scanner.restart()
                self._stage = _DATA
        else:
            raise RuntimeError(f"nothing to accept while awaiting {awaited.name}")

    def refuse(self, reply: Reply) -> None:
        """No to SenderGiven, RecipientGiven, ContentStarted or an authentication."""
        awaited, self._awaited = self._awaited, _NOTHING
        if self._stage is _CLOSED:
            return
        if awaited is _CONTENT_START:
            transaction = self._transaction
            assert transaction is not None
            if transaction.chunked:  # its octets come nevertheless (EXT-05)
                self._chunk_reply = reply.encode()
                self._stage = _CHUNK
            else:
                self._out.append(reply.encode())
            self._transaction = None
            return
        if awaited is _NOTHING or awaited is _COMMIT:
            raise RuntimeError("nothing to refuse")
        self._out.append(reply.encode())
        if awaited is _SENDER:
            self._transaction = None
            self._count_useless()
        elif awaited is _RECIPIENT:
            if reply.permanent and self.login is None:
                self._refused += 1
                if self._refused >= REFUSED_LIMIT:
                    self._fatal(TOO_MANY_ERRORS, "too many errors")
        elif awaited is _AUTH:
            self._stage = _COMMAND
            if reply.permanent:
                self._count_failed_login()
            else:
                self._count_useless()

    def finish(self, reply: Reply | None = None, *, identifier: str = "") -> None:
        """The answer to ContentEnded, after the commit: accepted, with the id of the message if given, or `reply`."""
        if self._stage is _CLOSED:
            return
        if self._awaited is not _COMMIT:
            raise RuntimeError("no message awaits its answer")
        self._awaited = _NOTHING
        self._transaction = None
        if reply is not None:
            if reply.completed:
                self.messages += 1
                self._useless = 0
            self._out.append(reply.encode())
            return
        self.messages += 1
        self._useless = 0
        self._out.append(b"250 2.6.0 accepted as %b\r\n" % identifier.encode() if identifier else CONTENT_OK)

    def challenge(self, data: bytes) -> None:
        """Send a challenge; an empty one is `334 ` (AUTH-04)."""
        if self._stage is _CLOSED:
            return
        if self._awaited is not _AUTH:
            raise RuntimeError("no authentication is going on")
        self._awaited = _NOTHING
        self._stage = _IN_AUTH
        self._out.append(b"334 " + b64encode(data) + b"\r\n")

    def authenticate(self, login: str) -> None:
        """The client proved to be `login`."""
        if self._stage is _CLOSED:
            return
        if self._awaited is not _AUTH:
            raise RuntimeError("no authentication is going on")
        self._awaited = _NOTHING
        self._stage = _COMMAND
        self.login = login
        self._out.append(AUTHENTICATED)

    def complete_tls(self, facts: TlsFacts) -> None:
        """The handshake after TlsRequested is done: what the client said before it is void (RFC 3207 4.2, AUTH-07)."""
        if self._stage is not _TLS:
            raise RuntimeError("no TLS was asked for")
        self.tls = facts
        self.hello = None
        self.extended = False
        self.login = None
        self._drop()
        self._stage = _COMMAND

    def decline_tls(self, reply: bytes) -> None:
        """In place of the handshake after TlsRequested: the client hears `reply`, and the session ends."""
        if self._stage is not _TLS or self._out.pop() is not TLS_GO_AHEAD:
            raise RuntimeError("no TLS was asked for")
        self._fatal(reply, "too many handshakes")

    def time_out(self, *, stress: bool = False) -> None:
        """The client was silent, or slow, for too long (SIN-17). `stress`: for longer than strangers may be while
        connections are scarce."""
        if stress:
            self._end(TIMED_OUT, "stress", linger=False)
        else:
            self._end(TIMED_OUT, "timeout")

    def displace(self) -> None:
        """The client is idle, and another one needs its place (SIN-17)."""
        self._end(DISPLACED, "displaced", linger=False)

    def shut_down(self) -> None:
        """The server stops (SIN-17)."""
        self._end(SHUTTING_DOWN, "shutdown")

    def hang_up(self) -> None:
        """The connection is gone. Answers that still come are ignored."""
        self._awaited = _NOTHING
        self._stage = _CLOSED
        self._transaction = None
        self._drop()
        self._events.clear()
        self._out.clear()

    def _end(self, reply: bytes, reason: str, *, linger: bool = True) -> None:
        if self._stage is _CLOSED:
            return
        if self._stage is not _TLS:
            self._out.append(reply)
        self._awaited = _NOTHING
        self._close(reason, linger=linger)

    # --- lines ---

    def _line(self) -> bool:
        """Handle the next whole line, if there is one. A line that is too long is one error, and no part of it is a
        command (SIN-07)."""
        data, at = self._octets, self._at
        end = data.find(b"\n", at)
        if end < 0:
            waiting = len(data) - at
            if waiting + self._skipped > SKIP_LIMIT:
                self._fatal(LINE_TOO_LONG, "endless line")
            elif waiting > AUTH_LINE_LIMIT:
                # Too long for any command. The last octet stays, to tell CRLF from a bare LF.
                if not self._skipped:
                    self._skipped_auth = data[at : at + 5].upper() == b"AUTH "
                self._skipped += waiting - 1
                self._at = len(data) - 1
            return False
        self._at = end + 1
        if end == at or data[end - 1] != 13:
            self._fatal(BARE_LINE_END, "bare line feed")
            return True
        length = end + 1 - at + self._skipped
        in_auth = self._stage is _IN_AUTH
        if length > COMMAND_LIMIT:
            auth = in_auth or (self._skipped_auth if self._skipped else data[at : at + 5].upper() == b"AUTH ")
            self._skipped = 0
            if length > SKIP_LIMIT:
                self._fatal(LINE_TOO_LONG, "endless line")
                return True
            if length > AUTH_LINE_LIMIT or not auth:
                if in_auth:
                    self._give_up_auth(AUTH_LINE_TOO_LONG)
                else:
                    self._error(AUTH_LINE_TOO_LONG if auth else LINE_TOO_LONG)
                return True
        line = data[at : end - 1]
        if b"\r" in line:
            if in_auth:
                self._stop_auth()
            self._fatal(BARE_LINE_END, "bare carriage return")
        elif in_auth:
            self._auth_line(line)
        else:
            self._command(line)
        return True

    def _command(self, line: bytes) -> None:
        """Handle one command line. A command that is unknown, not offered or out of order gets its reply (SIN-08)."""
        verb, _, argument = line.partition(b" ")
        handler = _COMMANDS.get(verb)
        if handler is None:
            if _TABBED.match(verb):  # some software has a tab for the blank
                verb, _, argument = line.partition(b"\t")
            verb = verb.rstrip().upper()
            handler = _COMMANDS.get(verb)
            if handler is None:
                self.verb = "unknown"
                if verb in _HTTP:
                    self._fatal(NOT_HTTP, "an HTTP request")
                elif verb.startswith(b"BDAT"):
                    self._fatal(BAD_BDAT, "a chunk of unknown size")
                else:
                    self._error(OFF if verb in _KNOWN_BUT_OFF else UNKNOWN)
                return
        self.verb = handler.verb
        if self.options.require_tls and self.tls is None and not handler.without_tls:
            self._error(TLS_NEEDED)
            return
        handler.act(self, argument.strip(b" \t"))

    def _error(self, reply: bytes) -> None:
        """Answer a command that was wrong, and count it (SIN-17)."""
        self._out.append(reply)
        self._errors += 1
        if self._errors >= self.options.error_limit:
            self._fatal(TOO_MANY_ERRORS, "too many errors")

    def _count_useless(self) -> None:
        """Count a command that did nothing for a message."""
        self._useless += 1
        if self._useless >= USELESS_LIMIT:
            self._fatal(TOO_MANY_ERRORS, "too many errors")

    def _fatal(self, reply: bytes, reason: str) -> None:
        self._out.append(reply)
        self._close(reason, linger=True)

    def _close(self, reason: str, *, linger: bool = False) -> None:
        self._abandon(reason)
        self._stage = _CLOSED
        self._drop()
        self._events.append(Closing(reason, linger))

    def _abandon(self, reason: str) -> None:
        if self._transaction is not None:
            if self._transaction.refusal is None:  # else the app was told when the refusal was found
                self._events.append(Abandoned(reason))
            self._transaction = None

    # --- commands ---

    def _ehlo(self, argument: bytes) -> None:
        """A new start: the open transaction goes, as at RSET. Any name is taken, whatever the address (SIN-11)."""
        if not _HELLO_ARGUMENT.fullmatch(argument):
            self._error(BAD_HELLO)
            return
        self._abandon("EHLO")
        self.hello = _printable(argument)
        self.extended = True
        # The time in it is rounded to the minute, so that the reply is made once a minute and not once a client.
        now = int(self._now) // 60 * 60 if self.options.submission else 0
        self._out.append(hello_reply(self.options, self.tls is not None, self.login is not None, now))
        self._count_useless()

    def _helo(self, argument: bytes) -> None:
        if not _HELLO_ARGUMENT.fullmatch(argument):
            self._error(BAD_HELLO)
            return
        self._abandon("HELO")
        self.hello = _printable(argument)
        self.extended = False
        self._out.append(f"250 {self.options.hostname}\r\n".encode())
        self._count_useless()

    def _mail(self, argument: bytes) -> None:
        options = self.options
        if self.hello is None:
            self._error(HELLO_FIRST)
            return
        if options.submission and self.login is None:
            self._error(AUTH_NEEDED)  # SUB-01
            return
        if self._transaction is not None:
            self._error(NESTED_MAIL)
            return
        # Other lines have parameters, which hardly ever repeat.
        event = _simple_sender(argument) if argument.endswith(b">") and len(argument) <= _SIMPLE else None
        if event is not None:
            self._transaction = _Transaction(NO_MAIL_PARAMETERS, options.size_limit)
            self._awaited = _SENDER
            self._events.append(event)
            return
        if argument[:5].upper() != b"FROM:":
            self._error(BAD_MAIL)
            return
        try:
            sender, rest = parse_reverse_path(argument[5:].lstrip(b" \t"), utf8=True)
        except AddressError as error:
            self._error(say(501, "5.1.7", str(error)))
            return
        parameters = NO_MAIL_PARAMETERS
        if rest:
            try:
                parameters = parse_mail_parameters(
                    rest,
                    options.extensions if self.extended else _NO_EXTENSIONS,
                    now=datetime.fromtimestamp(self._now, UTC),
                    longest_hold=options.longest_hold,
                )
            except ParameterError as error:
                self._error(say(error.code, "5.5.4", str(error)))
                return
        if not parameters.smtputf8 and not argument.isascii():
            self._error(say(550, "5.6.7", "the address needs SMTPUTF8"))  # EXT-10
            return
        if parameters.require_tls and self.tls is None:
            self._error(REQUIRETLS_NEEDS_TLS)  # RTLS-04
            return
        if parameters.size is not None and parameters.size > options.size_limit:
            self._out.append(too_big(options.size_limit).encode())
            self._count_useless()
            return
        self._transaction = _Transaction(parameters, options.size_limit)
        self._awaited = _SENDER
        self._events.append(SenderGiven(sender, parameters))

    def _rcpt(self, argument: bytes) -> None:
        transaction = self._transaction
        if transaction is None:
            self._error(MAIL_FIRST)
            return
        if transaction.chunked:
            self._error(CHUNKS_BEGUN)
            return
        event = _simple_recipient(argument) if argument.endswith(b">") and len(argument) <= _SIMPLE else None
        if event is None:
            event = self._given_recipient(argument, transaction)
            if event is None:
                return
        if transaction.recipients >= self.options.recipient_limit:
            self._out.append(TOO_MANY_RECIPIENTS)  # those that were accepted stay (SIN-06)
            transaction.overshoot += 1
            if transaction.overshoot >= OVERSHOOT_LIMIT:
                self._fatal(TOO_MANY_ERRORS, "too many errors")
            return
        self._awaited = _RECIPIENT
        self._events.append(event)

    def _given_recipient(self, argument: bytes, transaction: _Transaction) -> RecipientGiven | None:
        """Read RCPT. None: it is wrong, and the reply is given."""
        if argument[:3].upper() != b"TO:":
            self._error(BAD_RCPT)
            return None
        try:
            recipient, rest = parse_forward_path(argument[3:].lstrip(b" \t"), utf8=True)
        except AddressError as error:
            self._error(say(501, "5.1.3", str(error)))
            return None
        smtputf8 = transaction.parameters.smtputf8
        parameters = NO_RCPT_PARAMETERS
        if rest:
            try:
                parameters = parse_rcpt_parameters(
                    rest, self.options.extensions if self.extended else _NO_EXTENSIONS, utf8=smtputf8
                )
            except ParameterError as error:
                self._error(say(error.code, "5.5.4", str(error)))
                return None
        if not smtputf8 and not argument.isascii():
            self._error(say(553, "5.6.7", "the address needs SMTPUTF8"))
            return None
        return RecipientGiven(recipient, parameters)

    def _data(self, argument: bytes) -> None:
        transaction = self._transaction
        if argument:
            self._error(NO_ARGUMENT)
        elif transaction is None:
            self._error(MAIL_FIRST)
        elif transaction.chunked:
            self._error(CHUNKS_BEGUN)
        elif transaction.parameters.body is BodyType.BINARY_MIME:
            self._error(BINARY_NEEDS_BDAT)  # EXT-07
        elif not transaction.recipients:
            self._error(NO_RECIPIENT)
        else:
            self._awaited = _CONTENT_START
            self._events.append(_CONTENT_STARTED)

    def _bdat(self, argument: bytes) -> None:
        found = _BDAT.fullmatch(argument)
        if found is None:
            # An unknown number of octets may follow, which must not be taken for commands.
            self._fatal(BAD_BDAT, "a chunk of unknown size")
            return
        octets = int(found[1])
        transaction = self._transaction
        if self.options.require_tls and self.tls is None:
            self._swallow(octets, TLS_NEEDED)
            return
        if not self.extended:
            self._swallow(octets, HELLO_FIRST)
            return
        if transaction is None:
            self._swallow(octets, MAIL_FIRST)
            return
        if not transaction.recipients:
            self._swallow(octets, NO_RECIPIENT)
            return
        self._chunk_left = self._chunk_size = octets
        self._chunk_last = found[2] is not None
        self._chunk_reply = None
        if transaction.octets + octets > transaction.size_limit:
            self._chunk_reply = too_big(transaction.size_limit).encode()
            self._stage = _CHUNK
            self._abandon("too big")
        elif not transaction.chunked:
            transaction.chunked = True
            if transaction.parameters.body is not BodyType.BINARY_MIME:
                transaction.chunks = LineEndWatch(repair=self.options.repair_chunks)
            self._awaited = _CONTENT_START
            self._events.append(_CONTENT_STARTED)
        else:
            self._stage = _CHUNK

    def _swallow(self, octets: int, reply: bytes) -> None:
        """A BDAT out of order: its octets are on their way in any case, and are not commands (EXT-05, EXT-06)."""
        self._chunk_left = self._chunk_size = octets
        self._chunk_last = False
        self._chunk_reply = reply
        self._errors += 1
        self._stage = _CHUNK

    def _rset(self, argument: bytes) -> None:
        if argument:
            self._error(NO_ARGUMENT)
            return
        self._abandon("RSET")
        self._out.append(OK)
        self._count_useless()

    def _noop(self, _: bytes) -> None:
        self._out.append(OK)
        self._count_useless()

    def _quit(self, argument: bytes) -> None:
        """The one command that ends a session; all other ends are faults and timeouts (SIN-19)."""
        if argument:
            self._error(NO_ARGUMENT)
            return
        self._out.append(GOODBYE)
        self._close("QUIT")

    def _vrfy(self, argument: bytes) -> None:
        """Always the same answer, since another would tell which users exist; EXPN is off (EXT-13)."""
        if not argument:
            self._error(ARGUMENT)
            return
        self._out.append(VERIFY)
        self._count_useless()

    def _help(self, _: bytes) -> None:
        self._out.append(HELP)
        self._count_useless()

    def _starttls(self, argument: bytes) -> None:
        options = self.options
        if argument:
            self._error(NO_ARGUMENT)
        elif self.tls is not None:
            self._error(TLS_ALREADY)
        elif not options.starttls:
            self._error(OFF)
        elif not self.extended:
            self._error(HELLO_FIRST)
        elif not options.starttls_ready:
            self._out.append(TLS_UNAVAILABLE)
            self._count_useless()
        else:
            self._abandon("STARTTLS")
            self._out.append(TLS_GO_AHEAD)
            # TLS-02: plaintext behind the command may come from an attacker, not from the peer of the handshake.
            self._drop()
            self._stage = _TLS
            self._events.append(TlsRequested())

    # --- authentication ---

    def _auth(self, argument: bytes) -> None:
        if not self.options.mechanisms:
            self._error(OFF)
            return
        if not self.extended:
            self._error(HELLO_FIRST)
            return
        if self.login is not None:
            self._error(AUTH_ALREADY)
            return
        if self._transaction is not None:
            self._error(AUTH_IN_TRANSACTION)  # AUTH-02
            return
        name, _, initial = argument.partition(b" ")
        if not name:
            self._error(ARGUMENT)
            return
        mechanism = name.decode("ascii", "replace").upper()
        if not _MECHANISM.fullmatch(name) or mechanism not in self.options.mechanisms:
            self._error(AUTH_UNKNOWN)
            return
        if self.tls is None and mechanism not in offered_mechanisms(self.options, tls=False):
            self._error(AUTH_NEEDS_TLS)
            return
        response: bytes | None = None
        if initial:
            response = b"" if initial == b"=" else _from_base64(initial)
            if response is None:
                self._error(BAD_BASE64)
                return
        self._awaited = _AUTH
        self._events.append(AuthRequested(mechanism, response))

    def _auth_line(self, line: bytes) -> None:
        if line == b"*":
            self._give_up_auth(CANCELLED)
            return
        response = _from_base64(line)
        if response is None:
            self._give_up_auth(BAD_BASE64)
            return
        self._awaited = _AUTH
        self._events.append(AuthResponse(response))

    def _stop_auth(self) -> None:
        self._stage = _COMMAND
        self._events.append(AuthCancelled())

    def _give_up_auth(self, reply: bytes) -> None:
        """The client gives up an exchange. That counts like a wrong answer, since it costs and tells as much."""
        self._stop_auth()
        self._error(reply)
        if self._stage is not _CLOSED:
            self._count_failed_login()

    def _count_failed_login(self) -> None:
        self._failed_logins += 1
        if self._failed_logins >= AUTH_FAILURE_LIMIT:
            self._fatal(TOO_MANY_ERRORS, "too many failed logins")

    # --- content ---

    def _read_data(self) -> None:
        scanner, transaction = self._scanner, self._transaction
        assert scanner is not None
        assert transaction is not None
        content = scanner.feed(self._octets[self._at :] if self._at else self._octets)
        self._take_content(content, transaction)
        if scanner.bare_line_end:
            self._fatal(BARE_CONTENT, "bare line end in content")
        elif scanner.finished:
            self._octets = scanner.rest
            self._at = 0
            self._stage = _COMMAND
            self._content_complete(transaction, _WHOLE_ENDED if scanner.stuffed else _PLAIN_ENDED)
        else:
            self._drop()

    def _take_content(self, content: bytes, transaction: _Transaction) -> None:
        transaction.octets += len(content)
        if transaction.refusal is not None:
            return
        if transaction.octets > transaction.size_limit:  # the same limit as at MAIL (EXT-02)
            self._refuse_content(transaction, too_big(transaction.size_limit).encode(), "too big")
        elif content:
            self._events.append(Content(content))

    def _refuse_content(self, transaction: _Transaction, refusal: bytes, reason: str) -> None:
        """The app may drop what it has; the client hears the refusal when it has sent everything."""
        transaction.refusal = refusal
        self._events.append(Abandoned(reason))

    def _content_complete(self, transaction: _Transaction, ended: ContentEnded) -> None:
        if transaction.refusal is not None:
            self._out.append(transaction.refusal)
            self._transaction = None
        else:
            self._awaited = _COMMIT
            self._events.append(ended)

    def _read_chunk(self) -> None:
        transaction = self._transaction
        octets = self._take(self._chunk_left)
        self._chunk_left -= len(octets)
        if self._chunk_reply is None and transaction is not None:
            watch = transaction.chunks
            content = octets if watch is None else watch.feed(octets)
            if watch is not None and self._chunk_last and not self._chunk_left:
                content += watch.finish()
            if watch is not None and watch.bare_line_end and not watch.repair and transaction.refusal is None:
                self._refuse_content(transaction, BARE_CONTENT, "bare line end in content")
            self._take_content(content, transaction)
        if self._chunk_left:
            return
        self._stage = _COMMAND
        if self._chunk_reply is not None:
            self._out.append(self._chunk_reply)
            if self._errors >= self.options.error_limit:
                self._fatal(TOO_MANY_ERRORS, "too many errors")
        elif transaction is not None:
            if self._chunk_last or transaction.refusal is not None:
                watch = transaction.chunks
                known = watch is not None and not watch.bare_line_end  # dots were not looked for
                self._content_complete(transaction, _WHOLE_ENDED if known else _CONTENT_ENDED)
            else:
                self._out.append(CHUNK_OK)
                if self._chunk_size < SMALL_CHUNK:
                    transaction.small_chunks += 1
                    if not self._chunk_size or transaction.small_chunks > SMALL_CHUNKS_LIMIT:
                        self._count_useless()


def _printable(argument: bytes) -> str:
    """What EHLO said, in printable ASCII: names of desktop computers have blanks and accents."""
    return re.sub(r"[^ -~]", "?", argument.decode("utf-8", "replace"))


def _from_base64(text: bytes) -> bytes | None:
    # The alphabet and the padding are checked first: the decoder itself skips what it does not know (AUTH-03).
    if not _BASE64.fullmatch(text):
        return None
    try:
        return a2b_base64(text)
    except Base64Error:
        return None


@dataclass(frozen=True, slots=True)
class _Command:
    verb: str
    act: Callable[[ServerSession, bytes], None]
    without_tls: bool = False  # allowed before STARTTLS where TLS is demanded (RFC 3207 4)


# The session's own methods, so that the table is the list of what is understood.
_COMMANDS: Final = {
    command.verb.encode(): command
    for command in (
        _Command("EHLO", ServerSession._ehlo, without_tls=True),
        _Command("HELO", ServerSession._helo),
        _Command("MAIL", ServerSession._mail),
        _Command("RCPT", ServerSession._rcpt),
        _Command("DATA", ServerSession._data),
        _Command("BDAT", ServerSession._bdat, without_tls=True),  # it looks itself, since its octets come in any case
        _Command("RSET", ServerSession._rset),
        _Command("NOOP", ServerSession._noop, without_tls=True),
        _Command("QUIT", ServerSession._quit, without_tls=True),
        _Command("VRFY", ServerSession._vrfy),
        _Command("HELP", ServerSession._help),
        _Command("STARTTLS", ServerSession._starttls, without_tls=True),
        _Command("AUTH", ServerSession._auth),
    )
}

_KNOWN_BUT_OFF: Final = frozenset({b"EXPN", b"TURN", b"ETRN", b"ATRN", b"SEND", b"SOML", b"SAML"})

_HTTP: Final = frozenset({b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS", b"CONNECT"})
"""First words of a browser that a web page directs here. Commands in the body of its request must not be obeyed."""
