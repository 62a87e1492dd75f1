"""`sendmail -bs`: SMTP on standard input and output, each message submitted before its reply (SML-01).

The session is core/smtp/server, so what is no SMTP is refused here as our servers refuse it. Who may say what was
decided by who may run the command: there is no AUTH and no TLS on a pipe.
"""

import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, BinaryIO

from mailrail.core.smtp.address import Address
from mailrail.core.smtp.events import (
    Abandoned,
    Closing,
    Content,
    ContentEnded,
    ContentStarted,
    Event,
    ListenerOptions,
    RecipientGiven,
    SenderGiven,
)
from mailrail.core.smtp.parameters import BodyType, MailParameters, RcptParameters
from mailrail.core.smtp.reply import Reply
from mailrail.core.smtp.server import ServerSession
from mailrail.core.tlspolicy.facts import Requirement
from mailrail.sendmail.message import PIECE
from mailrail.sendmail.senders import hello_name
from mailrail.sendmail.status import ExitStatus, Stop

if TYPE_CHECKING:
    from mailrail.sendmail.command import Submitter


class _Broken(Exception):
    """The content ended before it was whole: the input was closed, or what came was no SMTP."""


def converse(submitter: "Submitter", host: str) -> ExitStatus:
    """Speak SMTP until QUIT or the end of the input. Raises Stop, OSError."""
    if sys.stdin is None or sys.stdout is None:
        raise Stop(ExitStatus.NO_INPUT, "-bs needs standard input and output: give both")
    return Conversation(submitter, hello_name(submitter.settings, host), sys.stdin.buffer, sys.stdout.buffer).run()


class Conversation:
    """One session on a pair of pipes."""

    def __init__(self, submitter: "Submitter", name: str, source: BinaryIO, target: BinaryIO) -> None:
        self._submitter = submitter
        self._session = ServerSession(ListenerOptions(name, size_limit=submitter.settings.input_limit))
        self._source = source
        self._target = target
        self._sender: tuple[Address | None, MailParameters] | None = None
        self._recipients: dict[Address, RcptParameters] = {}

    def run(self) -> ExitStatus:
        """Until it is over. Raises OSError where the pipes break."""
        for event in self._events():
            match event:
                case SenderGiven(sender, parameters):
                    self._sender, self._recipients = (sender, parameters), {}
                    self._session.accept()
                case RecipientGiven(recipient, given):
                    self._recipients[recipient] = given
                    self._session.accept()
                case ContentStarted():
                    self._session.accept()
                    self._take()
                case Abandoned():
                    self._sender, self._recipients = None, {}
                case Closing():
                    break
                case _:
                    pass
        self._write()
        return ExitStatus.OK

    def _events(self) -> Iterator[Event]:
        """What happens, until the input ends."""
        while True:
            while (event := self._session.next_event()) is not None:
                yield event
            self._write()
            read = getattr(self._source, "read1", self._source.read)
            data = read(PIECE)
            if not data:
                return
            self._session.receive(data, time.time())

    def _write(self) -> None:
        data = self._session.data_to_send()
        if data:
            self._target.write(data)
            self._target.flush()

    def _content(self) -> Iterator[bytes]:
        """The octets of the message. Raises _Broken."""
        for event in self._events():
            match event:
                case Content(data):
                    yield data
                case ContentEnded():
                    return
                case _:
                    break
        raise _Broken

    def _take(self) -> None:
        """One message, with the reply to its end."""
        assert self._sender is not None
        sender, parameters = self._sender
        call = self._submitter.call
        own = replace(
            call,
            sender=str(sender) if sender is not None else "",
            body=parameters.body if parameters.body is not BodyType.BINARY_MIME else None,
            ret=parameters.ret.value if parameters.ret is not None else call.ret,
            envid=parameters.envid or call.envid,
            dot_is_text=True,
            from_header=False,
        )
        settings = self._submitter.settings
        if parameters.require_tls:
            settings = replace(settings, tls_requirement=Requirement.REQUIRED)
        submitter = self._submitter.again(own, settings)
        reply = None
        try:
            status = submitter.submit(self._content(), list(self._recipients), parameters=self._recipients)
            if status is not ExitStatus.OK:
                reply = _reply(status, "; ".join(submitter.said[:-1] or submitter.said))
        except _Broken:
            return
        except Stop as stop:
            self._submitter.say(str(stop))
            if not self._session.awaiting:
                # It stopped in the middle of the content: the rest is read and dropped, then comes the reply.
                try:
                    for _ in self._content():
                        pass
                except _Broken:
                    return
            reply = _reply(stop.status, str(stop))
        self._session.finish(reply)


def _reply(status: ExitStatus, text: str) -> Reply:
    text = "".join(c if " " <= c <= "~" else "?" for c in text[:400]) or "not sent"
    if status in (ExitStatus.TRY_AGAIN, ExitStatus.CANNOT_KEEP, ExitStatus.IO, ExitStatus.CONFIG):
        return Reply.of(451, "4.3.0", text)
    return Reply.of(554, "5.0.0", text)
