"""`python -m bench.strangers KIND`: hostile clients by the hundred, for the bench of what healthy ones feel meanwhile.

It prints `on` once all of them are at it, goes on (whoever is thrown out comes back) and ends with its standard input.
"""

import argparse
import asyncio
import base64
import contextlib
import itertools
import ssl
import sys
from collections.abc import Awaitable, Callable

from mailrail.kit.open_files import raise_limit
from mailrail.kit.run import new_event_loop

RECIPIENT = b"nobody@sink.test"
_BLOCK = (b"x" * 76 + b"\r\n") * 840  # 64 KiB
_COMEBACK = 0.1  # seconds until one that was thrown out comes back
_DEAR_LINES = 60_000

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class _Thrown(Exception):
    """The server refused; the stranger comes back."""


async def _say(streams: Streams, what: bytes, *codes: bytes) -> bytes:
    """Say a command and read the reply. Raises _Thrown for one with none of the codes (any code without codes)."""
    reader, writer = streams
    writer.write(what)
    while True:
        line = await reader.readline()
        if not line:
            raise _Thrown
        if line[3:4] != b"-":
            if codes and line[:3] not in codes:
                raise _Thrown(line)
            return line


async def _hello(streams: Streams) -> None:
    await _say(streams, b"", b"220")
    await _say(streams, b"EHLO stranger.test\r\n", b"250")


async def _begin(streams: Streams) -> None:
    await _hello(streams)
    await _say(streams, b"MAIL FROM:<stranger@stranger.test>\r\n", b"250")
    await _say(streams, b"RCPT TO:<%b>\r\n" % RECIPIENT, b"250")


async def _until_thrown(streams: Streams) -> None:
    while await streams[0].read(65536):
        pass


async def idle(streams: Streams) -> None:
    """Say EHLO and nothing more."""
    await _hello(streams)
    await _until_thrown(streams)


async def silent(streams: Streams) -> None:
    """Say nothing at all: at a port of TLS, an unfinished handshake."""
    await _until_thrown(streams)


async def starttls(streams: Streams) -> None:
    """Ask for TLS, and leave the handshake unfinished."""
    await _hello(streams)
    await _say(streams, b"STARTTLS\r\n", b"220")
    await _until_thrown(streams)


async def bdat(streams: Streams) -> None:
    """Send empty chunks without end, and read replies only so that there is room for more."""
    await _begin(streams)
    reader, writer = streams
    many = b"BDAT 0\r\n" * 8000
    while True:
        writer.write(many)
        await writer.drain()
        if not await reader.read(1 << 20):
            return


async def headers(streams: Streams) -> None:
    """Send a header of very many lines, which is dear to read."""
    await _begin(streams)
    await _say(streams, b"DATA\r\n", b"354")
    await _say(streams, b"a:\r\n" * _DEAR_LINES + b"\r\n\r\n.\r\n")


async def uploads(streams: Streams) -> None:
    """Send 100 MB, and go away before the final dot."""
    await _begin(streams)
    await _say(streams, b"DATA\r\n", b"354")
    writer = streams[1]
    for _ in range(100_000_000 // len(_BLOCK)):
        writer.write(_BLOCK)
        await writer.drain()
        if streams[0].at_eof():
            return


async def slow(streams: Streams) -> None:
    """Send content, one octet a second."""
    await _begin(streams)
    await _say(streams, b"DATA\r\n", b"354")
    while not streams[0].at_eof():
        streams[1].write(b"x")
        await streams[1].drain()
        await asyncio.sleep(1)


async def auth(streams: Streams) -> None:
    """Begin logins under very long names, and break them off."""
    await _hello(streams)
    await _say(streams, b"STARTTLS\r\n", b"220")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    await streams[1].start_tls(context)
    await _say(streams, b"EHLO stranger.test\r\n", b"250")
    login = ("é" * 4000).encode()
    first = base64.b64encode(b"n,,n=" + login + b",r=0123456789abcdef")
    while True:
        said = await _say(streams, b"AUTH SCRAM-SHA-256\r\n")
        if said.startswith(b"334"):
            said = await _say(streams, first + b"\r\n")
        if said.startswith(b"334"):
            said = await _say(streams, b"*\r\n")
        if said.startswith(b"421"):
            return


KINDS: dict[str, Callable[[Streams], Awaitable[None]]] = {
    one.__name__: one for one in (idle, silent, starttls, bdat, headers, uploads, slow, auth)
}


async def _stranger(
    behave: Callable[[Streams], Awaitable[None]], to: tuple[str, int], address: str, at_it: Callable[[], None]
) -> None:
    while True:
        writer = None
        with contextlib.suppress(OSError, _Thrown, asyncio.IncompleteReadError, ValueError):
            reader, writer = await asyncio.open_connection(*to, local_addr=(address, 0), limit=1 << 20)
            at_it()
            await behave((reader, writer))
        at_it()
        if writer is not None:
            writer.transport.abort()
        await asyncio.sleep(_COMEBACK)


async def crowd(kind: str, to: tuple[str, int], count: int, addresses: list[str]) -> None:
    """So many strangers, spread over the addresses, until cancelled. Prints `on` when each has tried once."""
    waiting = set(range(count))
    everybody = asyncio.Event()

    def at_it(number: int) -> None:
        waiting.discard(number)
        if not waiting:
            everybody.set()

    tasks = []
    for number, address in zip(range(count), itertools.cycle(addresses), strict=False):
        tasks.append(asyncio.create_task(_stranger(KINDS[kind], to, address, lambda n=number: at_it(n))))  # type: ignore[misc]
        if number % 200 == 199:
            await asyncio.sleep(0.02)
    await everybody.wait()
    print("on", flush=True)
    await asyncio.gather(*tasks)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=sorted(KINDS))
    parser.add_argument("--to", required=True)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--addresses", required=True, help="where they come from, separated by commas")
    chosen = parser.parse_args()
    host, _, port = chosen.to.rpartition(":")
    raise_limit()

    async def whole() -> None:
        there = asyncio.create_task(crowd(chosen.kind, (host, int(port)), chosen.count, chosen.addresses.split(",")))
        stopped = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stopped), sys.stdin)
        await asyncio.wait({there, asyncio.create_task(stopped.read())}, return_when=asyncio.FIRST_COMPLETED)

    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(whole())


if __name__ == "__main__":
    main()
