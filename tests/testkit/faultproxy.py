"""A TCP proxy that can be made to fail: for Postgres, gRPC and SMTP connections that are cut, stalled or reset.

with FaultProxy(("127.0.0.1", 5432)) as proxy:
    ... connect to proxy.address, proxy.port ...
    proxy.stall()      # bytes stop in both directions, connections stay open
    proxy.resume()
    proxy.cut()        # every connection is reset; new ones are served again
    proxy.refuse()     # nobody listens any more, until `resume`
    proxy.cut_after(1000, Direction.TO_SERVER)   # in the middle of what the next client sends
"""

import asyncio
import socket
import struct
from enum import Enum

from testkit.background import ServedStreams, background
from testkit.ports import loopback_address


class Direction(Enum):
    """Which way bytes flow."""

    TO_SERVER = "to server"
    TO_CLIENT = "to client"


class _Link:
    """One client's connection and ours to the server."""

    def __init__(self, client: asyncio.StreamWriter, server: asyncio.StreamWriter) -> None:
        self.client = client
        self.server = server

    def reset(self) -> None:
        for writer in (self.client, self.server):
            sock: socket.socket | None = writer.get_extra_info("socket")
            if sock is not None and sock.fileno() >= 0:
                # Linger of zero seconds: RST instead of FIN, as when a machine goes away.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()


class FaultProxy(ServedStreams):
    """See the module. Use as a context manager, or call `close()`."""

    def __init__(self, target: tuple[str, int], *, address: str | None = None) -> None:
        """Serve at once on a fresh address and port, relaying to `target`."""
        super().__init__()
        self.target = target
        self.address = address or loopback_address()
        self.relayed = {Direction.TO_SERVER: 0, Direction.TO_CLIENT: 0}
        self._links: set[_Link] = set()
        self._budget: dict[Direction, int | None] = {Direction.TO_SERVER: None, Direction.TO_CLIENT: None}
        self._delay = 0.0
        self._server: asyncio.Server | None = None
        self._flowing = background().call(self._gate())
        self.port = 0
        background().call(self._listen())

    @property
    def open_connections(self) -> int:
        """How many are relayed now."""
        return len(self._links)

    def stall(self) -> None:
        """Let no byte through, in either direction; connections stay open and new ones are accepted."""
        background().call(self._set_flowing(False))

    def delay(self, seconds: float) -> None:
        """Hold each piece of data back this long, in each direction."""
        self._delay = seconds

    def cut(self) -> None:
        """Reset every connection; new ones are served."""
        background().call(self._cut())

    def cut_after(self, count: int, direction: Direction) -> None:
        """Reset all connections once `count` more bytes have passed in that direction; the rest of them is lost."""
        self._budget[direction] = count

    def refuse(self) -> None:
        """Reset every connection and stop listening."""
        background().call(self._refuse())

    def resume(self) -> None:
        """Undo `stall`, `delay`, `cut_after` and `refuse`."""
        self._delay = 0.0
        self._budget = dict.fromkeys(self._budget)
        background().call(self._set_flowing(True))
        background().call(self._listen())

    # --- inside the background loop ---

    async def _gate(self) -> asyncio.Event:
        gate = asyncio.Event()
        gate.set()
        return gate

    async def _set_flowing(self, flowing: bool) -> None:
        if flowing:
            self._flowing.set()
        else:
            self._flowing.clear()

    async def _listen(self) -> None:
        if self._server is None:
            self._server = await asyncio.start_server(self._serve, self.address, self.port)
            self.port = self._server.sockets[0].getsockname()[1]

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_server, to_server = await asyncio.open_connection(*self.target)
        link = _Link(writer, to_server)
        self._links.add(link)
        try:
            await asyncio.gather(
                self._pump(reader, to_server, Direction.TO_SERVER), self._pump(from_server, writer, Direction.TO_CLIENT)
            )
        finally:
            self._links.discard(link)
            to_server.close()

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, direction: Direction) -> None:
        while data := await source.read(65536):
            await self._flowing.wait()
            if self._delay:
                await asyncio.sleep(self._delay)
            budget = self._budget[direction]
            if budget is not None and len(data) >= budget:
                self._budget[direction] = None
                sink.write(data[:budget])
                self.relayed[direction] += budget
                await sink.drain()
                await self._cut()
                return
            if budget is not None:
                self._budget[direction] = budget - len(data)
            self.relayed[direction] += len(data)
            sink.write(data)
            await sink.drain()
        if sink.can_write_eof():
            sink.write_eof()

    async def _cut(self) -> None:
        for link in list(self._links):
            link.reset()

    async def _refuse(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        await self._cut()

    async def _close(self) -> None:
        await self._refuse()
        await self._end_connections()
