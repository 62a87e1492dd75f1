"""`python -m bench.sink`: the sink of what smtp-sink cannot do: STARTTLS, recipients counted, times of single messages.

It accepts everything and throws it away; with `--delay` as a tarpit does, where each reply takes so long. Four numbers
lie in a file that others map into their memory: messages and recipients received so far, and TLS handshakes, in full
and resumed. With `--log` it writes a line for each recipient: local part, the clock's seconds (CLOCK_MONOTONIC, which
all processes share) when the final dot had been read, and how many octets the message had after its header.
"""

import argparse
import asyncio
import mmap
import os
import ssl
import struct
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from mailrail.kit.open_files import raise_limit
from mailrail.kit.run import new_event_loop

COUNTERS = struct.Struct("=QQQQ")
"""Messages, recipients, full and resumed handshakes, as they lie in the file of counters."""
_END = b"\r\n.\r\n"
_HEADER_END = b"\r\n\r\n"
_LONGEST_HEADER = 1 << 20


class Counters:
    """What was received, for whoever maps the file."""

    def __init__(self, path: Path, *, make: bool = False) -> None:
        if make:
            path.write_bytes(bytes(COUNTERS.size))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), COUNTERS.size)

    def add(self, recipients: int) -> None:
        """One message for so many."""
        self._add(1, recipients, 0, 0)

    def shake(self, *, resumed: bool) -> None:
        """A TLS handshake was done."""
        self._add(0, 0, not resumed, resumed)

    def _add(self, *more: int) -> None:
        before = COUNTERS.unpack_from(self._map)
        COUNTERS.pack_into(self._map, 0, *map(sum, zip(before, more, strict=True)))

    def read(self) -> tuple[int, int]:
        """Messages and recipients."""
        messages, recipients, _, _ = COUNTERS.unpack_from(self._map)
        return messages, recipients

    def handshakes(self) -> tuple[int, int]:
        """TLS handshakes in full, and resumed."""
        _, _, full, resumed = COUNTERS.unpack_from(self._map)
        return full, resumed


class _Session(asyncio.Protocol):
    def __init__(self, counters: Counters, context: ssl.SSLContext | None, log: int | None, delay: float) -> None:
        self._counters = counters
        self._context = context
        self._log = log
        self._delay = delay
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._in_content = False
        self._upgrading: asyncio.Task[None] | None = None
        self._encrypted = False
        self._recipients: list[bytes] = []
        self._octets = 0
        """Of the content so far, with the line end that is put before it."""
        self._head: bytes | None = b""
        """The beginning of the content until the header has ended; then None."""
        self._head_octets = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(b"220 sink.test ESMTP\r\n")

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None

    def data_received(self, data: bytes) -> None:
        self._buffer = self._buffer + data if self._buffer else data
        if self._upgrading is None:
            self._work()

    def _work(self) -> None:
        replies = []
        while self._upgrading is None:
            if self._in_content:
                if self._buffer.endswith(_END):  # the usual case, without a search
                    self._count(self._buffer, -len(_END))
                    rest = b""
                else:
                    before, end, rest = self._buffer.partition(_END)
                    if not end:
                        self._buffer = before[-4:]
                        self._count(before, -len(self._buffer))
                        break
                    self._count(before, 0)
                self._buffer, self._in_content = rest, False
                self._received()
                replies.append(b"250 2.0.0 taken\r\n")
                continue
            line, end, rest = self._buffer.partition(b"\r\n")
            if not end:
                break
            self._buffer = rest
            replies.append(self._command(line))
        if not replies:
            return
        if self._delay:
            asyncio.get_running_loop().call_later(self._delay, self._say, replies)
        else:
            self._say(replies)

    def _count(self, data: bytes, more: int) -> None:
        """Octets of the content, and where its header ends, if that is noted; `more`: those that are not counted now.

        What is counted begins with the line end that is put before it, and ends before the one of the last line.
        """
        if self._log is None:
            return
        self._octets += len(data) + more
        if self._head is not None:
            self._head += data[: len(data) + more]
            at = self._head.find(_HEADER_END)
            if at >= 0 or len(self._head) > _LONGEST_HEADER:
                self._head_octets, self._head = max(0, at + len(_HEADER_END)), None

    def _say(self, replies: list[bytes]) -> None:
        if self._transport is None:
            return
        self._transport.write(b"".join(replies))
        if replies[-1].startswith(b"221"):
            self._transport.close()

    def _command(self, line: bytes) -> bytes:
        verb = line[:4].upper()
        if verb in (b"EHLO", b"HELO"):
            offers = [b"sink.test", b"PIPELINING", b"8BITMIME", b"SIZE 0", b"ENHANCEDSTATUSCODES"]
            if self._context is not None and not self._encrypted:
                offers.append(b"STARTTLS")
            return b"".join(b"250-%b\r\n" % one for one in offers[:-1]) + b"250 %b\r\n" % offers[-1]
        if verb == b"RCPT":
            self._recipients.append(line.partition(b"<")[2].partition(b"@")[0])
        elif verb == b"DATA":
            # What precedes the first line of content belongs to the end that is looked for: it may be empty.
            self._in_content, self._buffer = True, b"\r\n" + self._buffer
            return b"354 go on\r\n"
        elif verb == b"RSET":
            self._recipients.clear()
        elif verb == b"QUIT":
            return b"221 2.0.0 bye\r\n"
        elif verb == b"STAR" and self._context is not None:
            self._buffer = b""
            self._upgrading = asyncio.ensure_future(self._upgrade(self._context))
            return b"220 2.0.0 go on\r\n"
        return b"250 2.0.0 ok\r\n"

    async def _upgrade(self, context: ssl.SSLContext) -> None:
        assert self._transport is not None
        loop = asyncio.get_running_loop()
        try:
            self._transport = await loop.start_tls(self._transport, self, context, server_side=True)
        except OSError:  # it went away in the middle of the handshake
            self._transport = None
            return
        tls = self._transport.get_extra_info("ssl_object") if self._transport is not None else None
        if tls is not None:
            self._counters.shake(resumed=bool(tls.session_reused))
        self._encrypted, self._upgrading = True, None
        self._work()

    def _received(self) -> None:
        self._counters.add(len(self._recipients))
        if self._log is not None:
            now = time.monotonic()
            body = self._octets - self._head_octets + len(b"\r\n") if self._head is None else 0
            os.write(self._log, b"".join(b"%b %.6f %d\n" % (one, now, body) for one in self._recipients))
            self._octets, self._head, self._head_octets = 0, b"", 0
        self._recipients.clear()


async def serve(
    addresses: str | Sequence[str],
    port: int,
    counters: Counters,
    certificate: Path | None,
    log: Path | None,
    delay: float = 0.0,
) -> asyncio.Server:
    """Listen. With a certificate (key and chain in one file) it offers STARTTLS."""
    context = None
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND) if log is not None else None
    loop = asyncio.get_running_loop()
    return await loop.create_server(lambda: _Session(counters, context, out, delay), addresses, port, backlog=1024)


def main() -> None:
    """The command line: where to listen, where to count."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--listen", required=True)
    parser.add_argument("--also", default="", help="further addresses, at the same port")
    parser.add_argument("--counters", type=Path, required=True)
    parser.add_argument("--certificate", type=Path)
    parser.add_argument("--log", type=Path)
    parser.add_argument("--delay", type=float, default=0.0, help="seconds that each reply takes")
    chosen = parser.parse_args()
    raise_limit()
    host, _, port = chosen.listen.rpartition(":")
    hosts = [host, *filter(None, chosen.also.split(","))]

    async def whole() -> None:
        server = await serve(hosts, int(port), Counters(chosen.counters), chosen.certificate, chosen.log, chosen.delay)
        # Standard input is held by whoever started this: it ends with that one.
        stopped = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stopped), sys.stdin)
        await stopped.read()
        server.close()

    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(whole())


if __name__ == "__main__":
    main()
