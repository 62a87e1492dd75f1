"""An SMTP server that takes in any amount of mail and remembers what came, how often and when.

Independent of Mailrail's own SMTP code, and simple: EHLO with PIPELINING, 8BITMIME, SIZE, DSN and SMTPUTF8, no TLS.
Refusals are scripted per recipient. It counts thousands of messages; misbehaviour on the wire is `testkit.smtp_peer`.
"""

import asyncio
import contextlib
import email
import email.message
import email.policy
import re
import threading
import time
from dataclasses import dataclass, field

from testkit.background import Served, background
from testkit.conditions import wait_until
from testkit.ports import loopback_address

EXTENSIONS = ("PIPELINING", "8BITMIME", "SIZE 100000000", "SMTPUTF8", "DSN", "ENHANCEDSTATUSCODES")
_ADDRESS = re.compile(rb"<([^>]*)>(.*)", re.S)


@dataclass(frozen=True)
class Receipt:
    """One message that was answered with 250."""

    sender: str
    recipients: tuple[str, ...]
    parameters: str  # of MAIL FROM
    helo: str
    peer: str  # the address it came from
    content: bytes = field(repr=False)
    at: float  # time.monotonic() when the final dot was read

    @property
    def message(self) -> email.message.EmailMessage:
        """The content, parsed."""
        return email.message_from_bytes(self.content, policy=email.policy.default)

    def header(self, name: str) -> str | None:
        """The first header field of that name, without parsing the rest."""
        found = re.search(rb"^" + re.escape(name.encode()) + rb":[ \t]*(.*)$", self.content, re.M | re.I)
        return found[1].decode("utf-8", "replace").strip() if found else None


class Collector(Served):
    """See the module. Use as a context manager, or call `close()`."""

    def __init__(
        self,
        *,
        hostname: str = "collector.test",
        address: str | None = None,
        port: int = 0,
        extensions: tuple[str, ...] = EXTENSIONS,
    ) -> None:
        """Serve at once on a fresh 127.x.y.z, by default at a port that the system gives, and offer `extensions`."""
        self.hostname = hostname
        self.extensions = extensions
        self.address = address or loopback_address()
        self.connections = 0
        self.delay = 0.0
        """Seconds from the final dot to its reply: who is killed meanwhile has sent it and knows nothing (LSE-08)."""
        self.recipient_delay = 0.0
        """Seconds from RCPT to its reply, and to those that are pipelined behind it."""
        self._receipts: list[Receipt] = []
        self._attempts: dict[str, int] = {}
        self._refusals: dict[str, list[str]] = {}
        self._guard = threading.Lock()
        self._open: set[_Session] = set()
        self._server = background().call(self._listen(port))
        self.port: int = self._server.sockets[0].getsockname()[1]

    @property
    def receipts(self) -> list[Receipt]:
        """What came so far, in order."""
        with self._guard:
            return list(self._receipts)

    def __len__(self) -> int:
        return len(self._receipts)

    def attempts(self, recipient: str) -> int:
        """How often RCPT was tried for this recipient, refusals included."""
        return self._attempts.get(recipient.lower(), 0)

    def refuse(self, recipient: str, reply: str, times: int = 1_000_000) -> None:
        """Answer RCPT for `recipient` (or for `@domain`) with `reply`, the next so many times."""
        with self._guard:
            self._refusals[recipient.lower()] = [reply] * min(times, 10_000)

    def accept(self, recipient: str) -> None:
        """Undo `refuse`."""
        with self._guard:
            self._refusals.pop(recipient.lower(), None)

    def received(self, recipient: str) -> list[Receipt]:
        """What came for one recipient."""
        return [receipt for receipt in self.receipts if recipient in receipt.recipients]

    def wait_for(self, count: int, within: float = 60.0) -> list[Receipt]:
        """Wait until at least so many messages came; answers all of them."""
        wait_until(lambda: len(self) >= count, within, lambda: f"{count} messages at {self.hostname}, {len(self)} came")
        return self.receipts

    def wait_for_recipient(self, recipient: str, within: float = 60.0) -> Receipt:
        """Wait until a message for this recipient came; answers the first."""
        return wait_until(
            lambda: next(iter(self.received(recipient)), None),
            within,
            lambda: f"a message for {recipient} at {self.hostname}; RCPT was tried {self.attempts(recipient)} times",
        )

    def _judge(self, recipient: str) -> str | None:
        """The refusal that is due for a recipient, if any."""
        key = recipient.lower()
        with self._guard:
            self._attempts[key] = self._attempts.get(key, 0) + 1
            for name in (key, "@" + key.rpartition("@")[2]):
                if self._refusals.get(name):
                    return self._refusals[name].pop()
        return None

    def _keep(self, receipt: Receipt) -> None:
        with self._guard:
            self._receipts.append(receipt)

    async def _listen(self, port: int) -> asyncio.Server:
        loop = asyncio.get_running_loop()
        return await loop.create_server(lambda: _Session(self), self.address, port, backlog=1024)

    async def _close(self) -> None:
        self._server.close()
        for session in list(self._open):
            session.cut()
        await asyncio.sleep(0)


class _Session(asyncio.Protocol):
    def __init__(self, collector: Collector) -> None:
        self._collector = collector
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._in_data = False
        self._slow = False  # a reply is yet to be sent
        self._helo = ""
        self._peer = ""
        self._reset()

    def _reset(self) -> None:
        self._sender: str | None = None
        self._parameters = ""
        self._recipients: list[str] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._peer = transport.get_extra_info("peername")[0]
        self._collector.connections += 1
        self._collector._open.add(self)
        transport.write(f"220 {self._collector.hostname} ESMTP\r\n".encode())

    def connection_lost(self, exc: Exception | None) -> None:
        self._collector._open.discard(self)

    def cut(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        self._work()

    def _answer_late(self, reply: str, delay: float) -> None:
        self._slow = True
        asyncio.get_running_loop().call_later(delay, self._answer, reply)

    def _answer(self, reply: str) -> None:
        self._slow = False
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(f"{reply}\r\n".encode())
            self._work()

    def _work(self) -> None:
        replies: list[str] = []
        while not self._slow:
            if self._in_data:
                if self._buffer.startswith(b".\r\n"):
                    content, self._buffer = b"", self._buffer[3:]
                else:
                    end = self._buffer.find(b"\r\n.\r\n")
                    if end < 0:
                        break
                    content, self._buffer = self._buffer[: end + 2], self._buffer[end + 5 :]
                self._in_data = False
                self._finish(content)
                if self._collector.delay:
                    self._answer_late("250 2.0.0 taken", self._collector.delay)
                else:
                    replies.append("250 2.0.0 taken")
            else:
                line, newline, rest = self._buffer.partition(b"\r\n")
                if not newline:
                    break
                self._buffer = rest
                reply = self._command(line)
                if self._collector.recipient_delay and line[:4].upper() == b"RCPT":
                    self._answer_late(reply, self._collector.recipient_delay)
                else:
                    replies.append(reply)
        if replies and self._transport is not None:
            self._transport.write("".join(f"{reply}\r\n" for reply in replies).encode())
            if replies[-1].startswith("221"):
                self._transport.close()

    def _finish(self, content: bytes) -> None:
        self._collector._keep(
            Receipt(
                self._sender or "",
                tuple(self._recipients),
                self._parameters,
                self._helo,
                self._peer,
                content.replace(b"\r\n..", b"\r\n.").removeprefix(b"." if content.startswith(b"..") else b""),
                time.monotonic(),
            )
        )
        self._reset()

    def _command(self, line: bytes) -> str:
        verb = line[:4].upper()
        if verb in (b"EHLO", b"HELO"):
            self._helo = line[5:].decode("utf-8", "replace").strip()
            self._reset()
            extensions = self._collector.extensions
            return f"250-{self._collector.hostname}\r\n" + "\r\n".join(
                f"250{' ' if name == extensions[-1] else '-'}{name}" for name in extensions
            )
        if verb in (b"MAIL", b"RCPT"):
            found = _ADDRESS.search(line)
            if found is None:
                return "501 5.5.4 no address"
            address = found[1].decode("utf-8", "replace")
            if verb == b"MAIL":
                self._sender, self._parameters = address, found[2].decode("utf-8", "replace").strip()
                return "250 2.1.0 sender"
            if self._sender is None:
                return "503 5.5.1 MAIL first"
            refusal = self._collector._judge(address)
            if refusal is None:
                self._recipients.append(address)
            return refusal or "250 2.1.5 recipient"
        if verb == b"DATA":
            if not self._recipients:
                return "554 5.5.1 no valid recipients"
            self._in_data = True
            return "354 go on"
        if verb == b"RSET":
            self._reset()
            return "250 2.0.0 forgotten"
        if verb == b"QUIT":
            return "221 2.0.0 bye"
        if verb == b"NOOP":
            return "250 2.0.0 here"
        with contextlib.suppress(UnicodeDecodeError):
            return f"502 5.5.1 {line[:20].decode('ascii')} is not for me"
        return "500 5.5.2 what?"
