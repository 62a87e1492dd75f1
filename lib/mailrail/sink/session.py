"""One connection to a sink: aiosmtpd's session and what is added to it."""

import asyncio
import collections
import contextlib
import re
import time
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

from aiosmtpd.lmtp import LMTP
from aiosmtpd.smtp import MISSING, SMTP, AuthResult, Envelope, LoginPassword, Session, syntax

from mailrail.sink.answers import CLOSE, Answers, Step
from mailrail.sink.message import CannotKeep, SinkMessage
from mailrail.sink.options import MECHANISMS, Options

_COMMAND_LIMIT = 4096  # octets of a command: RFC 3461 4 makes MAIL and RCPT longer than the 512 of RFC 5321
_IDLE = 300.0  # seconds that a client may say nothing (RFC 5321 4.5.3.2.7)
_ENDLESS = 2**20  # octets above the longest line after which the rest of a line is not waited for
_PATH = re.compile(r'(?:FROM|TO): *<(?P<address>(?:"(?:\\.|[^"\\])*"|[^">])*)>(?P<words>(?:[ \t].*)?)', re.I | re.S)


class Owner(Protocol):
    """The sink that a session belongs to."""

    options: Options
    answers: Answers

    @property
    def open_connections(self) -> int:
        """How many clients are connected now."""

    def keep(self, message: SinkMessage) -> None:
        """Remember a message. Raises CannotKeep."""

    def add(self, session: "SinkSession") -> None:
        """Count a connection. The same again after STARTTLS is no new one."""

    def remove(self, session: "SinkSession") -> None:
        """Forget a connection that is gone."""


@dataclass(frozen=True, slots=True)
class _Path:
    """What MAIL or RCPT says, as the client sent it: aiosmtpd changes quotes and writes parameters in capitals."""

    address: str
    parameters: tuple[str, ...] = ()


class _Envelope(Envelope):
    def __init__(self) -> None:
        super().__init__()
        self.sender = _Path("")
        self.recipients: list[_Path] = []


class _Session(Session):
    login_data: Any = None  # aiosmtpd sets it, and then warns in the log that it did


class SinkSession(SMTP):
    """A session of SMTP. It is an asyncio protocol: `connection_made` gives it a transport and starts it."""

    command_size_limit = _COMMAND_LIMIT

    def __init__(self, owner: Owner) -> None:
        options = owner.options
        self.owner = owner
        self.path: _Path | None = None
        """What the MAIL or RCPT says that is being answered, where it has angle brackets."""
        self._unended = 0
        self._mail_parameters = (
            *(("RET=", "ENVID=") if options.dsn else ()),
            *(("AUTH=",) if options.accounts else ()),
        )
        self._rcpt_parameters = ("NOTIFY=", "ORCPT=") if options.dsn else ()
        # aiosmtpd has one table for all sessions, and clears it at each connection.
        self.command_size_limits = collections.defaultdict(lambda: _COMMAND_LIMIT)
        self.line_length_limit = max(options.line_limit, _COMMAND_LIMIT)
        super().__init__(
            _Hooks(owner),
            data_size_limit=options.size_limit or None,
            enable_SMTPUTF8=options.smtputf8,
            hostname=options.hostname,
            ident="LMTP" if options.lmtp else "ESMTP",
            tls_context=None if options.implicit_tls else options.tls,
            auth_require_tls=not (options.plaintext_auth or options.implicit_tls),  # aiosmtpd means STARTTLS
            auth_exclude_mechanism=[
                name for name in MECHANISMS if not options.accounts or name not in options.mechanisms
            ],
            authenticator=_check_password,
            timeout=_IDLE + max(owner.answers.delays.values(), default=0.0),
        )
        # As an argument it would warn about AUTH without TLS, which is what was asked for.
        self._auth_required = bool(options.accounts)

    # --- what aiosmtpd asks a subclass for ---

    def _create_session(self) -> _Session:
        return _Session(self.loop)

    def _create_envelope(self) -> _Envelope:
        return _Envelope()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Also called after STARTTLS, with the transport inside TLS."""
        super().connection_made(transport)
        self.owner.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        """The client is gone, or was cut off."""
        super().connection_lost(error)
        self.owner.remove(self)

    def data_received(self, data: bytes) -> None:
        """What came. aiosmtpd remembers all of a line that never ends; here the connection is cut then."""
        end = data.rfind(b"\r\n")
        self._unended = len(data) - end if end >= 0 else self._unended + len(data)
        if self._unended > self.line_length_limit + _ENDLESS:
            self.cut()
        else:
            super().data_received(data)

    async def _handle_client(self) -> None:
        with contextlib.suppress(ConnectionError):  # aiosmtpd leaves it to the loop, which logs it
            limit = self.owner.options.connection_limit
            if limit and self.owner.open_connections > limit:
                await self.push("421 4.3.2 too many connections; come again later")
            elif greeting := await self.answer("GREETING"):
                await self.push(greeting)
                self._hang_up()
            else:
                await super()._handle_client()

    async def push(self, status: Any) -> None:
        """Send a reply. 421 ends the connection (RFC 5321 3.8)."""
        await super().push(status)
        if isinstance(status, str) and status.startswith("421"):
            self._hang_up()

    # --- commands ---

    @syntax("STARTTLS", when="tls_context")
    async def smtp_STARTTLS(self, arg: str) -> None:
        """STARTTLS, as aiosmtpd does it, unless an answer was ordered."""
        if self.tls_context and (reply := await self.answer("STARTTLS")):
            await self.push(reply)
        else:
            await super().smtp_STARTTLS(arg)

    @syntax("MAIL FROM: <address>", extended=" [SP <mail-parameters>]")
    async def smtp_MAIL(self, arg: str | None) -> None:
        """MAIL, with the parameters that aiosmtpd does not know."""
        arg = self._take_path(arg, self._mail_parameters)
        words = self.path.parameters if self.path else ()
        options = self.owner.options
        if not options.eight_bit and any(word.upper().startswith("BODY=") for word in words):
            await self.push("555 5.5.4 8BITMIME is not offered")
        elif not options.size and any(word.upper().startswith("SIZE=") for word in words):
            await self.push("555 5.5.4 SIZE is not offered")
        else:
            await super().smtp_MAIL(arg)

    @syntax("RCPT TO: <address>", extended=" [SP <mail-parameters>]")
    async def smtp_RCPT(self, arg: str | None) -> None:
        """RCPT, with the parameters that aiosmtpd does not know."""
        await super().smtp_RCPT(self._take_path(arg, self._rcpt_parameters))

    @syntax("DATA")
    async def smtp_DATA(self, arg: str) -> None:
        """DATA, as aiosmtpd does it, unless an answer was ordered."""
        assert self.envelope is not None
        if self.envelope.rcpt_tos and (reply := await self.answer("DATA")):
            await self.push(reply)
        else:
            await super().smtp_DATA(arg)

    # --- what the hooks ask ---

    async def answer(self, step: Step, address: str = "") -> str | None:
        """The reply that was ordered for this step, if any, after the delay that was. Does not return from `CLOSE`."""
        reply = self.owner.answers.take(step, address)
        await self.delay(step)
        if reply == CLOSE:
            self.leave()
        return reply

    def leave(self) -> NoReturn:
        """Close the connection without a reply. What serves the client ends by the error."""
        self._hang_up()
        raise ConnectionResetError

    async def delay(self, step: Step) -> None:
        """Wait as long as was ordered for this step."""
        if seconds := self.owner.answers.delays.get(step):
            await asyncio.sleep(seconds)

    def message(self, recipients: list[_Path]) -> SinkMessage:
        """The message that has come whole, for these of its recipients."""
        assert self.session is not None
        assert self.transport is not None
        assert isinstance(self.envelope, _Envelope)
        assert isinstance(self.envelope.content, bytes)
        secured = self.transport.get_extra_info("ssl_object")
        return SinkMessage(
            sender=self.envelope.sender.address,
            sender_parameters=self.envelope.sender.parameters,
            recipients=tuple(one.address for one in recipients),
            recipient_parameters=tuple(one.parameters for one in recipients),
            content=self.envelope.content,
            hello=self.session.host_name or "",
            client=self.transport.get_extra_info("peername")[0],
            tls=secured.version() if secured is not None else "",
            login=self.session.auth_data or "",
            at=time.monotonic(),
        )

    def _take_path(self, arg: str | None, known: tuple[str, ...]) -> str | None:
        """Note what MAIL or RCPT says. Returns it without the `known` parameters, for aiosmtpd to judge the rest."""
        assert self.session is not None
        self.path = None
        found = _PATH.fullmatch(arg) if arg is not None and self.session.extended_smtp else None
        if found is None:
            return arg
        words = found["words"].split()
        self.path = _Path(found["address"], tuple(words))
        rest = [word for word in words if not word.upper().startswith(known) or word.endswith("=")]
        return " ".join((found[0][: found.start("words")], *rest))

    def _hang_up(self) -> None:
        if self.transport is not None:
            self.transport.close()

    def cut(self) -> None:
        """End the connection without a word."""
        if isinstance(self.transport, asyncio.WriteTransport):
            self.transport.abort()
        if self._tls_protocol is not None and self.session is not None and self.session.ssl is None:
            self.connection_lost(None)  # asyncio does not say so in the middle of a handshake


class LmtpSession(SinkSession, LMTP):
    """A session of LMTP."""

    async def push(self, status: Any) -> None:
        """Send a reply. Where aiosmtpd refuses a content, each recipient gets the reply (RFC 2033 4.2)."""
        if isinstance(status, str) and status.startswith(("500 Line too long", "552 Error: Too much mail data")):
            assert self.envelope is not None
            status = "\r\n".join([status] * len(self.envelope.rcpt_tos))
        await super().push(status)


class _Hooks:
    """aiosmtpd calls `handle_X` for a command X that is well-formed and in order, and sends what it returns."""

    def __init__(self, owner: Owner) -> None:
        self._owner = owner

    async def handle_EHLO(
        self, server: SinkSession, session: Session, envelope: Envelope, hostname: str, responses: list[str]
    ) -> list[str]:
        """EHLO and LHLO; `responses` is aiosmtpd's reply."""
        if reply := await server.answer("EHLO"):
            return [reply]
        options = self._owner.options
        session.host_name = hostname
        absent = {
            "250-AUTH",
            *(() if options.eight_bit else ("250-8BITMIME",)),
            *(() if options.size else (f"250-SIZE {options.size_limit}",)),
        }
        offered = [line for line in responses if line.strip() not in absent]
        if options.pipelining:
            offered.insert(1, "250-PIPELINING")
        if options.dsn:
            offered.insert(1, "250-DSN")
        return offered

    async def handle_AUTH(self, server: SinkSession, session: Session, envelope: Envelope, args: list[str]) -> Any:
        """AUTH with a mechanism that is offered."""
        return await server.answer("AUTH") or MISSING

    async def handle_MAIL(
        self, server: SinkSession, session: Session, envelope: _Envelope, address: str, options: list[str]
    ) -> str:
        """MAIL. aiosmtpd writes the null reverse path as `<>`."""
        path = server.path or _Path("" if address == "<>" else address, tuple(options))
        reply = await server.answer("MAIL", path.address) or "250 2.1.0 sender ok"
        if reply.startswith("2"):
            envelope.mail_from, envelope.sender = address, path
        return reply

    async def handle_RCPT(
        self, server: SinkSession, session: Session, envelope: _Envelope, address: str, options: list[str]
    ) -> str:
        """RCPT."""
        path = server.path or _Path(address, tuple(options))
        limit = self._owner.options.recipient_limit
        if limit and len(envelope.recipients) >= limit:
            return f"452 4.5.3 no more than {limit} recipients of one message"
        reply = await server.answer("RCPT", path.address) or "250 2.1.5 recipient ok"
        if reply.startswith("2"):
            envelope.rcpt_tos.append(address)
            envelope.recipients.append(path)
        return reply

    async def handle_DATA(self, server: SinkSession, session: Session, envelope: _Envelope) -> str:
        """The content is whole."""
        ordered = [self._owner.answers.take("END", one.address) for one in envelope.recipients]
        if not self._owner.options.lmtp:  # one reply for all: the first that was ordered for any of them
            ordered = [next(filter(None, ordered), None)] * len(ordered)
        if CLOSE in ordered:
            await server.delay("END")
            server.leave()
        replies = [reply or "250 2.0.0 taken" for reply in ordered]
        taken = [one for one, reply in zip(envelope.recipients, replies, strict=True) if reply.startswith("2")]
        if taken:
            try:
                self._owner.keep(server.message(taken))
            except CannotKeep as error:
                replies = [error.reply if reply.startswith("2") else reply for reply in replies]
        await server.delay("END")
        return "\r\n".join(replies if self._owner.options.lmtp else replies[:1])


def _check_password(
    server: SMTP, session: Session, envelope: Envelope, mechanism: str, credentials: LoginPassword
) -> AuthResult:
    assert isinstance(server, SinkSession)
    login, password = credentials.login.decode("utf-8", "replace"), credentials.password.decode("utf-8", "replace")
    known = server.owner.options.accounts.get(login) == password
    return AuthResult(success=known, handled=False, auth_data=login if known else None)
