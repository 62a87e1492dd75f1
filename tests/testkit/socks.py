"""A scripted SOCKS5 proxy (RFC 1928, RFC 1929): relays, asks for credentials, refuses, dawdles, and logs.

Where it relays to is part of the script: `send("mx.example.org", 25, to=(address, port))` makes it dial a test server
for a name that no resolver knows, as a proxy with its own view of the world does.
"""

import asyncio
import ipaddress
import struct
from dataclasses import dataclass
from enum import Enum, IntEnum

from testkit.background import ServedStreams, background
from testkit.ports import loopback_address


class Refusal(IntEnum):
    """Reply codes of RFC 1928 section 6."""

    GENERAL_FAILURE = 1
    NOT_ALLOWED = 2
    NETWORK_UNREACHABLE = 3
    HOST_UNREACHABLE = 4
    CONNECTION_REFUSED = 5
    TTL_EXPIRED = 6
    COMMAND_NOT_SUPPORTED = 7
    ADDRESS_TYPE_NOT_SUPPORTED = 8
    UNASSIGNED = 0x5B


class Moment(Enum):
    """Steps of the dialogue at which the proxy can misbehave."""

    CONNECT = "connect"  # right after TCP accept
    METHOD = "method"  # after the client's list of methods
    CREDENTIALS = "credentials"  # after user name and password
    REQUEST = "request"  # after the CONNECT request
    RELAYING = "relaying"  # after the success reply and the first bytes from the target


class Trouble(Enum):
    """What it does then."""

    CLOSE = "close"
    SILENCE = "silence"  # keeps the connection and says nothing
    GARBAGE = "garbage"  # bytes that are no SOCKS5


@dataclass(frozen=True)
class Request:
    """One CONNECT request as it came in."""

    host: str
    port: int
    address_type: str  # "ipv4", "ipv6" or "name": who resolved it
    username: str | None


class SocksProxy(ServedStreams):
    """See the module. Use as a context manager, or call `close()`."""

    def __init__(
        self,
        *,
        username: str | None = None,
        password: str | None = None,
        split_writes: bool = False,
        bound: str = "0.0.0.0",
        address: str | None = None,
    ) -> None:
        """Serve at once. With `username` and `password` it demands them and offers nothing else.

        `split_writes` sends each of its own replies one byte a segment. `bound` is the bound address it reports: IPv4,
        IPv6 or a name.
        """
        super().__init__()
        self.address = address or loopback_address()
        self.requests: list[Request] = []
        self.failed_logins = 0
        self.source = self.address
        """The address that targets see: relayed connections leave from the proxy's own."""
        self._username = username
        self._password = password
        self._split = split_writes
        self._bound = bound
        self._targets: dict[tuple[str, int | None], tuple[str, int]] = {}
        self._refusals: dict[tuple[str, int | None], Refusal] = {}
        self._troubles: dict[Moment, Trouble] = {}
        self._server = background().call(self._open())
        self.port: int = self._server.sockets[0].getsockname()[1]

    def send(self, host: str, port: int | None = None, *, to: tuple[str, int]) -> None:
        """Relay requests for `host` (and `port`, None = any) to another address. By default it dials what was asked."""
        self._targets[host.lower(), port] = to

    def refuse(self, host: str, port: int | None = None, *, code: Refusal) -> None:
        """Answer requests for `host` with this reply code."""
        self._refusals[host.lower(), port] = code

    def misbehave(self, at: Moment, trouble: Trouble) -> None:
        """From now on do this at that step of every connection."""
        self._troubles[at] = trouble

    def behave(self) -> None:
        """Forget `misbehave` and `refuse`."""
        self._troubles.clear()
        self._refusals.clear()

    async def _open(self) -> asyncio.Server:
        return await asyncio.start_server(self._serve, self.address, 0)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if await self._trouble(Moment.CONNECT, writer):
            return
        version, count = await reader.readexactly(2)
        methods = await reader.readexactly(count)
        if version != 5 or await self._trouble(Moment.METHOD, writer):
            return
        wanted = 2 if self._username is not None else 0
        if wanted not in methods:
            await self._write(writer, b"\x05\xff")
            return
        await self._write(writer, bytes((5, wanted)))
        username = None
        if wanted == 2:
            username = await self._log_in(reader, writer)
            if username is None:
                return
        version, command, _, kind = await reader.readexactly(4)
        host = await self._host(reader, kind)
        (port,) = struct.unpack("!H", await reader.readexactly(2))
        if host is None or version != 5:
            await self._reply(writer, Refusal.ADDRESS_TYPE_NOT_SUPPORTED)
            return
        self.requests.append(Request(host, port, {1: "ipv4", 3: "name", 4: "ipv6"}[kind], username))
        if await self._trouble(Moment.REQUEST, writer):
            return
        if command != 1:
            await self._reply(writer, Refusal.COMMAND_NOT_SUPPORTED)
            return
        refusal = self._refusals.get((host.lower(), port)) or self._refusals.get((host.lower(), None))
        if refusal is not None:
            await self._reply(writer, refusal)
            return
        target = self._targets.get((host.lower(), port)) or self._targets.get((host.lower(), None)) or (host, port)
        try:
            onward = await asyncio.open_connection(*target, local_addr=(self.source, 0))
        except ConnectionRefusedError:
            await self._reply(writer, Refusal.CONNECTION_REFUSED)
            return
        except OSError:
            await self._reply(writer, Refusal.HOST_UNREACHABLE)
            return
        await self._reply(writer, None)
        await self._relay(reader, writer, *onward)

    async def _log_in(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str | None:
        version, length = await reader.readexactly(2)
        username = (await reader.readexactly(length)).decode("utf-8", "replace")
        (length,) = await reader.readexactly(1)
        password = (await reader.readexactly(length)).decode("utf-8", "replace")
        if await self._trouble(Moment.CREDENTIALS, writer):
            return None
        good = version == 1 and (username, password) == (self._username, self._password)
        await self._write(writer, bytes((1, 0 if good else 1)))
        if not good:
            self.failed_logins += 1
            return None
        return username

    async def _host(self, reader: asyncio.StreamReader, kind: int) -> str | None:
        if kind == 1:
            return str(ipaddress.IPv4Address(await reader.readexactly(4)))
        if kind == 4:
            return str(ipaddress.IPv6Address(await reader.readexactly(16)))
        if kind == 3:
            (length,) = await reader.readexactly(1)
            return (await reader.readexactly(length)).decode("ascii", "replace")
        return None

    async def _reply(self, writer: asyncio.StreamWriter, refusal: Refusal | None) -> None:
        try:
            bound = ipaddress.ip_address(self._bound)
            where = bytes((1 if bound.version == 4 else 4,)) + bound.packed
        except ValueError:
            where = bytes((3, len(self._bound))) + self._bound.encode("ascii")
        await self._write(writer, bytes((5, refusal or 0, 0)) + where + struct.pack("!H", 0))

    async def _write(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        if not self._split:
            writer.write(data)
        else:
            for byte in data:
                writer.write(bytes((byte,)))
                await writer.drain()
                await asyncio.sleep(0.002)  # so that it leaves as a segment of its own
        await writer.drain()

    async def _trouble(self, at: Moment, writer: asyncio.StreamWriter) -> bool:
        trouble = self._troubles.get(at)
        if trouble is Trouble.SILENCE:
            await asyncio.get_running_loop().create_future()
        if trouble is Trouble.GARBAGE:
            await self._write(writer, b"HTTP/1.0 400 Bad Request\r\n\r\n")
        return trouble is not None

    async def _relay(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        from_target: asyncio.StreamReader,
        to_target: asyncio.StreamWriter,
    ) -> None:
        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter, trouble: bool) -> None:
            while data := await source.read(65536):
                if trouble and await self._trouble(Moment.RELAYING, writer):
                    writer.close()
                    to_target.close()
                    return
                sink.write(data)
                await sink.drain()
            if sink.can_write_eof():
                sink.write_eof()

        try:
            await asyncio.gather(pump(reader, to_target, False), pump(from_target, writer, True))
        finally:
            to_target.close()

    async def _close(self) -> None:
        self._server.close()
        await self._end_connections()
