"""The dialogue with the submission server: a blocking socket around core/smtp/client, which decides what is said.

TLS is verified always, and there is no AUTH before it (SML-04). Each wait has an end: the reply to a command, and the
dialogue as a whole. What comes of it is one `Answer` a recipient; what answers mean is `outcome`.
"""

import contextlib
import os
import re
import socket
import ssl
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import IO, BinaryIO, Final

from mailrail.core.message.content_type import LINE_LIMIT
from mailrail.core.message.reencode import Reencoder, Target, Unconvertible
from mailrail.core.outbound.envelope import ContentFacts, Envelope, EnvelopeRecipient, Form, form_for, plan
from mailrail.core.sasl.client import ChannelBinding, Credentials
from mailrail.core.sasl.end_point import end_point_binding
from mailrail.core.smtp.answer import Answer, Stage, Trouble
from mailrail.core.smtp.capabilities import Capabilities
from mailrail.core.smtp.client import (
    ClientSession,
    ClientTransaction,
    ContentWanted,
    Event,
    Finished,
    Gone,
    LoginPlan,
    NeedHash,
    NeedTls,
    Ready,
    SessionFailed,
    StartTls,
)
from mailrail.core.smtp.stuffing import Stuffer
from mailrail.sendmail.folder import KeptEnvelope, KeptRecipient
from mailrail.sendmail.settings import SubmissionSettings, SubmissionTls, read_password, wrong

_READ: Final = 64 * 1024
_LAST_WORDS_SECONDS: Final = 2.0
"""Seconds in which a server that closed while we wrote may still be heard."""
_TOO_MANY: Final = (452, 552)
"""Replies to RCPT behind an accepted one that say: in another transaction (RFC 5321 4.5.3.1.10, reference H2)."""


_COULD_BIND: Final = ChannelBinding("tls-server-end-point", b"")
"""Stands for the binding while no mechanism that uses its data is offered."""
_OFFER_LIMIT: Final = 128 * 1024


class NoSuchHost(Exception):
    """The server's name does not exist. The text says so."""


class SessionBroken(Exception):
    """No transaction can run on this connection; `answer` says why."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.detail or str(answer.reply))
        self.answer = answer


@dataclass(frozen=True, slots=True)
class Submitted:
    """What became of a message."""

    answers: tuple[Answer, ...]
    """One for each recipient, in order."""


class SubmissionClient:
    """A connection to the submission server, logged in; for one message or several. Not for several threads."""

    def __init__(
        self, settings: SubmissionSettings, *, hello: str, deadline: float, trace: Callable[[str], None] | None = None
    ) -> None:
        """`deadline`: by time.monotonic(), for all of it. `trace`: is told the dialogue, without secrets."""
        self._settings = settings
        self._deadline = deadline
        self._trace = trace
        self._socket: socket.socket | None = None
        login = None
        if settings.login:
            credentials = Credentials(settings.login, read_password(settings.password, settings.source))
            mechanisms = (settings.mechanism.value,) if settings.mechanism is not None else ()
            login = LoginPlan(credentials, lambda: b64encode(os.urandom(24)).decode(), mechanisms)
        implicit = settings.tls is SubmissionTls.IMPLICIT
        self._session = ClientSession(
            hello,
            starttls=StartTls.ALWAYS if settings.tls is SubmissionTls.STARTTLS else StartTls.NEVER,
            login=login,
            tls=implicit,
            tls_verified=implicit,
            binding=_COULD_BIND if login is not None else None,
        )
        self._offer = b""  # the end of the answer to EHLO so far
        self._pending: list[Event] = []
        self._replies_seen = -1
        self._reply_deadline = 0.0
        self._in_auth = False
        self._context = None if settings.tls is SubmissionTls.NONE else _context(settings)

    def __enter__(self) -> "SubmissionClient":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def open(self) -> Capabilities:
        """Connect and log in. Raises NoSuchHost, SessionBroken."""
        self._connect()
        for event in self._events():
            if isinstance(event, Ready):
                return event.capabilities
            if isinstance(event, SessionFailed):
                raise SessionBroken(event.answer)
        raise SessionBroken(Answer(Stage.GREETING, None, Trouble.CLOSED, "the server closed the connection"))

    def extend(self, deadline: float) -> None:
        """A later end, for the next message."""
        self._deadline = deadline

    @property
    def usable(self) -> bool:
        """Whether another message can go by this connection."""
        return self._session.ready and self._session.accepts_transaction

    def close(self) -> None:
        """Say goodbye and close; a server that does not answer is not waited for."""
        if self._socket is None:
            return
        with contextlib.suppress(OSError):
            if not self._session.gone and self._session.sending is None:
                self._session.quit()
                self._write(self._session.take())
        with contextlib.suppress(OSError):
            self._socket.close()
        self._socket = None

    # --- a message ---

    def send(self, envelope: KeptEnvelope, message: BinaryIO | IO[bytes]) -> Submitted:
        """Hand a message over for all its recipients: in one transaction, or as few as the server takes. Raises OSError
        where the message cannot be read."""
        capabilities = replace(self._session.capabilities, chunking=False, binary_mime=False)
        answers: list[Answer | None] = [None] * len(envelope.recipients)
        facts = ContentFacts(envelope.size, envelope.eight_bit, envelope.nul, envelope.header_utf8)
        form = form_for(facts, capabilities)
        shorten = envelope.longest > LINE_LIMIT and not envelope.signed
        try:
            with _fit(message, form, shorten, facts) as (content, sent):
                self._transactions(envelope, capabilities, form, content, sent, answers)
        except Unconvertible as error:
            answer = Answer(Stage.PLAN, None, Trouble.UNCONVERTIBLE, f"the message cannot be re-encoded: {error}")
            answers = [each if each is not None else answer for each in answers]
        lost = Answer(Stage.MAIL, None, Trouble.CLOSED, "the connection ended before the message")
        return Submitted(tuple(each if each is not None else lost for each in answers))

    def _transactions(
        self,
        envelope: KeptEnvelope,
        capabilities: Capabilities,
        form: Form,
        content: BinaryIO | IO[bytes],
        facts: ContentFacts,
        answers: list[Answer | None],
    ) -> None:
        said = _said(envelope, capabilities)
        waiting = list(range(len(answers)))
        while waiting and self.usable:
            part = waiting[: capabilities.max_recipients or len(waiting)]
            planned = plan(
                said,
                [(i, _recipient(envelope.recipients[i])) for i in part],
                facts,
                capabilities,
                form=form,
                require_tls=envelope.require_tls,
            )
            for i, answer in planned.refused:
                answers[i] = answer
            again: list[int] = []
            if planned.rcpt_lines:
                transaction = ClientTransaction(planned.mail_line, planned.rcpt_lines, octets=facts.size)
                self._run(transaction, content)
                some_taken = any(answer is not None and answer.accepted for answer in transaction.answers)
                for i, found in zip(planned.indexes, transaction.answers, strict=True):
                    answers[i] = found
                    if some_taken and found is not None and _too_many(found):
                        again.append(i)
            waiting = again + waiting[len(part) :]

    def _run(self, transaction: ClientTransaction, content: BinaryIO | IO[bytes]) -> None:
        self._session.begin(transaction)
        for event in self._events():
            if isinstance(event, ContentWanted):
                self._content(transaction, content)
            elif isinstance(event, Finished):
                return

    def _content(self, transaction: ClientTransaction, content: BinaryIO | IO[bytes]) -> None:
        """The octets for DATA, piece by piece, so that a large message needs no memory."""
        content.seek(0)
        stuffer = Stuffer()
        while True:
            try:
                piece = content.read(_READ)
            except OSError:
                # Half a message must never be ended by a dot: the connection goes, and the server forgets it.
                self._abort(Answer(Stage.CONTENT, None, Trouble.FAULT, "the message cannot be read from its file"))
                raise
            if not piece:
                break
            self._session.content(stuffer.feed(piece), last=False)
            try:
                self._write(self._session.take(), silent=True)
            except OSError as error:
                self._broken(error)
                return
        self._session.content(stuffer.finish(), last=True)
        if self._trace is not None:
            self._trace(f"> ({transaction.octets} octets of the message)")

    def _abort(self, answer: Answer) -> None:
        self._pending += self._session.on_lost(answer.trouble or Trouble.CLOSED, answer.detail)
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    # --- octets ---

    def _connect(self) -> None:
        settings = self._settings
        where = f"{settings.server} port {settings.port}"
        try:
            found = socket.getaddrinfo(settings.server, settings.port, type=socket.SOCK_STREAM)
        except socket.gaierror as error:
            absent = {socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)}
            if error.errno in absent:
                raise NoSuchHost(f"there is no host {settings.server}: mend `server` in {settings.source}") from error
            detail = f"the name {settings.server} cannot be looked up: {error.strerror}"
            raise SessionBroken(Answer(Stage.DNS, None, Trouble.DNS, detail)) from error
        except UnicodeError as error:
            raise NoSuchHost(f"{settings.server} is no host name: mend `server` in {settings.source}") from error
        trouble = "it has no address"
        for family, kind, protocol, _, address in found:
            one = socket.socket(family, kind, protocol)
            try:
                one.settimeout(self._left(settings.connect_seconds))
                one.connect(address)
            except OSError as error:
                one.close()
                trouble = error.strerror or str(error) or type(error).__name__
                continue
            self._socket = one
            break
        if self._socket is None:
            detail = f"{where} cannot be reached: {trouble}"
            raise SessionBroken(Answer(Stage.CONNECT, None, Trouble.UNREACHABLE, detail))
        if self._trace is not None:
            self._trace(f"* connected to {where}")
        if self._context is not None and settings.tls is SubmissionTls.IMPLICIT:
            try:
                self._wrap()
            except (OSError, ValueError) as error:
                raise SessionBroken(_handshake_failed(settings.server, error)) from error

    def _wrap(self) -> None:
        assert self._socket is not None
        assert self._context is not None
        plain = self._socket
        plain.settimeout(self._left(self._settings.connect_seconds))
        self._socket = self._context.wrap_socket(plain, server_hostname=self._settings.server)
        if self._trace is not None:
            assert isinstance(self._socket, ssl.SSLSocket)
            cipher = self._socket.cipher()
            self._trace(f"* {self._socket.version()} with {cipher[0] if cipher else '?'}, certificate verified")

    def _bind(self, data: bytes) -> None:
        """Have the channel binding ready once the server offers a mechanism that wants it: to read the certificate for
        it takes as long as all the rest. Until then the session knows that we could, and says so to a server that seems
        not to, which unmasks who took it from the list (RFC 5802 6)."""
        if self._session.binding is not _COULD_BIND or self._session.awaiting is not Stage.HELLO:
            return
        self._offer = (self._offer + data.upper())[-_OFFER_LIMIT:]
        if b"-PLUS" in self._offer and isinstance(self._socket, ssl.SSLSocket):
            der = self._socket.getpeercert(binary_form=True)
            self._session.binding = end_point_binding(der) if der else None

    def _left(self, seconds: float) -> float:
        """Seconds that a wait may take. Raises TimeoutError where the time for all is over."""
        left = min(seconds, self._deadline - time.monotonic())
        if left <= 0:
            raise TimeoutError(f"the {self._settings.total_seconds:g} s for the whole dialogue are over")
        return left

    def _events(self) -> Iterator[Event]:
        """What happens, for ever, until the session is over."""
        session = self._session
        while True:
            while self._pending:
                event = self._pending.pop(0)
                if isinstance(event, NeedTls):
                    self._start_tls()
                elif isinstance(event, NeedHash):
                    session.on_hashed(event.work.do())
                elif isinstance(event, Gone):
                    return
                else:
                    yield event
            if session.gone:
                return
            try:
                self._write(session.take())
                data = self._read()
            except OSError as error:
                self._broken(error)
                continue
            if data:
                self._bind(data)
                self._pending += session.receive(data)
            else:
                self._pending += session.on_lost(Trouble.CLOSED, "the server closed the connection")

    def _start_tls(self) -> None:
        try:
            self._wrap()
        except (OSError, ValueError) as error:
            answer = _handshake_failed(self._settings.server, error)
            self._pending += self._session.on_lost(Trouble.TLS, answer.detail)
            return
        self._session.on_tls(verified=True, binding=self._session.binding)

    def _write(self, data: bytes, *, silent: bool = False) -> None:
        if not data:
            return
        if self._socket is None:
            raise ConnectionError("the connection is closed")
        if self._trace is not None and not silent:
            self._show(">", data)
        self._socket.settimeout(self._left(self._settings.reply_seconds))
        self._socket.sendall(data)
        self._reply_deadline = time.monotonic() + self._settings.reply_seconds

    def _read(self) -> bytes:
        """What the server says next. The limit is for a whole reply, or one could drip in for ever. What is said to the
        final dot is waited for as long as there is time: a message whose reply is missed goes out again."""
        if self._socket is None:
            raise ConnectionError("the connection is closed")
        now = time.monotonic()
        if self._session.replies != self._replies_seen:
            self._replies_seen = self._session.replies
            self._reply_deadline = now + self._settings.reply_seconds
        seconds = self._settings.total_seconds if self._session.awaiting is Stage.END else self._reply_deadline - now
        left = self._left(seconds)
        self._socket.settimeout(left)
        data = self._socket.recv(_READ)
        if self._trace is not None:
            self._show("<", data)
        return data

    def _broken(self, error: OSError) -> None:
        """The connection broke. What the server said before it closed counts, if there is something."""
        session = self._session
        if self._socket is not None and not isinstance(error, TimeoutError):
            with contextlib.suppress(OSError):
                self._socket.settimeout(_LAST_WORDS_SECONDS)
                data = self._socket.recv(_READ)
                if data:
                    self._pending += session.receive(data)
        if isinstance(error, TimeoutError):
            trouble, detail = Trouble.TIMEOUT, f"the server did not answer {_stage(session)} in time"
        elif isinstance(error, ssl.SSLError):
            trouble, detail = Trouble.CLOSED, f"the TLS session broke: {error.reason or 'unknown'}"
        else:
            trouble, detail = Trouble.CLOSED, f"the connection broke: {error.strerror or type(error).__name__}"
        self._pending += session.on_lost(trouble, detail)

    def _show(self, mark: str, data: bytes) -> None:
        assert self._trace is not None
        for line in data.decode("utf-8", "backslashreplace").splitlines():
            text = "".join(c if c.isprintable() else "?" for c in line[:500])
            if mark == ">":
                text = self._masked(text)
            elif self._in_auth and text.startswith("334"):
                text = "334 (challenge)"
            elif self._in_auth and text[:3].isdigit():
                self._in_auth = False
            self._trace(f"{mark} {text}")

    def _masked(self, line: str) -> str:
        """A line of ours without what a password is made of."""
        found = re.match(r"AUTH ([A-Z0-9-]+)", line)
        if found is not None:
            self._in_auth = True
            return f"AUTH {found[1]} (secret)" if len(line) > found.end() else line
        return "(secret)" if self._in_auth else line


def _recipient(kept: KeptRecipient) -> EnvelopeRecipient:
    return EnvelopeRecipient(kept.address, tuple(kept.notify), kept.orcpt)


def _too_many(answer: Answer) -> bool:
    return answer.stage is Stage.RCPT and answer.reply is not None and answer.reply.code in _TOO_MANY


def _stage(session: ClientSession) -> str:
    awaited = session.awaiting
    return awaited.upper() if awaited is not None else "us"


def _said(envelope: KeptEnvelope, capabilities: Capabilities) -> Envelope:
    from mailrail.core.smtp.parameters import BodyType

    return Envelope(
        envelope.sender,
        body=BodyType(envelope.body) if envelope.body in (BodyType.SEVEN_BIT, BodyType.EIGHT_BIT_MIME) else None,
        # UTF-8 in the header alone goes without SMTPUTF8 where that is not offered, as it does everywhere else.
        smtputf8=envelope.header_utf8 and capabilities.smtputf8,
        ret=envelope.ret,
        envid=envelope.envid,
    )


@contextlib.contextmanager
def _fit(
    message: BinaryIO | IO[bytes], form: Form, shorten: bool, facts: ContentFacts
) -> Iterator[tuple[BinaryIO | IO[bytes], ContentFacts]]:
    """The message as this server takes it, and what is true of it then."""
    if form is Form.AS_IS and not shorten:
        yield message, facts
        return
    target = Target.SEVEN_BIT if form is Form.SEVEN_BIT else Target.EIGHT_BIT
    encoder = Reencoder(target, longest_line=LINE_LIMIT if shorten else None, keep_signed=True)
    message.seek(0)
    size, eight_bit = 0, False
    import tempfile

    with tempfile.TemporaryFile() as fitted:
        while True:
            piece = message.read(_READ)
            out = encoder.feed(piece) if piece else encoder.finish()
            size += len(out)
            eight_bit = eight_bit or not out.isascii()
            fitted.write(out)
            if not piece:
                break
        fitted.flush()
        yield fitted, ContentFacts(size, eight_bit, False, facts.header_eight_bit)


def _context(settings: SubmissionSettings) -> ssl.SSLContext:
    """TLS 1.2 or newer, the certificate and its name verified; there is no setting that skips it (SML-04)."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.hostname_checks_common_name = False
    try:
        if settings.ca_file:
            context.load_verify_locations(cafile=settings.ca_file)
        else:
            context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    except (OSError, ssl.SSLError) as error:
        raise wrong(f"ca_file {settings.ca_file} of {settings.source} cannot be used: {error}") from error
    return context


def _handshake_failed(server: str, error: Exception) -> Answer:
    if isinstance(error, ssl.SSLCertVerificationError):
        detail = (
            f"the certificate of {server} is not valid: {error.verify_message}. If it is your own authority's, name its"
            " certificate as ca_file"
        )
    elif isinstance(error, TimeoutError):
        detail = f"{server} did not finish the TLS handshake in time"
    else:
        detail = f"the TLS handshake with {server} failed: {getattr(error, 'reason', None) or error}"
    return Answer(Stage.HANDSHAKE, None, Trouble.TLS, detail)
