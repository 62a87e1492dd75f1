"""Opens and closes listening sockets as the configuration says, without touching those that stay."""

import asyncio
import socket
import ssl
from dataclasses import dataclass
from functools import partial

from mailrail.core.revision.revision import ListenerProtocol
from mailrail.kit import log
from mailrail_ingress import metrics
from mailrail_ingress.active_config import ActiveConfig, ListenerKey
from mailrail_ingress.settings import IngressSettings
from mailrail_ingress.smtp import ServerConnection, Sessions
from mailrail_ingress.tls import ServerCertificate, switching

RETRY = 2.0
"""Seconds until a port that could not be opened is tried again."""
LAST_PORT = 65535
BACKLOG = 1024
"""Connections that the kernel completes while the loop is busy."""


@dataclass(frozen=True, slots=True)
class ListenerSocket:
    """One socket: which listener, where."""

    listener_key: ListenerKey
    address: str
    port: int  # as configured; 0 = chosen by the system
    tls: bool  # the handshake comes before anything else


class TlsServer:
    """Accepts where TLS comes first, and counts each client before the handshake.

    The loop's own server knows a client only after its handshake. Clients that never finish one would not be counted,
    and could use up all open files.
    """

    ROOM = 1.0
    """Seconds without accepting when there are no files left."""

    def __init__(
        self, sessions: Sessions, listener_key: ListenerKey, sockets: list[socket.socket], context: ssl.SSLContext
    ) -> None:
        self.sockets = sockets
        self._sessions = sessions
        self._listener_key = listener_key
        self._context = context
        self._loop = asyncio.get_running_loop()
        for listening in sockets:
            listening.setblocking(False)
            self._listen(listening)

    @classmethod
    async def open(
        cls, sessions: Sessions, listener_key: ListenerKey, address: str, port: int, context: ssl.SSLContext
    ) -> "TlsServer":
        """Listen at every address that the name has, as the loop's server does. Raises OSError."""
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(address, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        sockets: list[socket.socket] = []
        try:
            for family, place in dict.fromkeys((family, place) for family, _, _, _, place in found):
                sockets.append(socket.create_server(place, family=family, backlog=BACKLOG))
        except OSError:
            for one in sockets:
                one.close()
            raise
        return cls(sessions, listener_key, sockets, context)

    def close(self) -> None:
        """Accept no further connection; open ones go on."""
        for listening in self.sockets:
            self._loop.remove_reader(listening.fileno())
            listening.close()

    def _listen(self, listening: socket.socket) -> None:
        if listening.fileno() >= 0:
            self._loop.add_reader(listening.fileno(), self._accept, listening)

    def _accept(self, listening: socket.socket) -> None:
        for _ in range(BACKLOG):
            try:
                accepted, peer = listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                log.get_logger().error("cannot accept", listener=self._listener_key.listener, error=str(error))
                self._loop.remove_reader(listening.fileno())
                self._loop.call_later(self.ROOM, self._listen, listening)
                return
            accepted.setblocking(False)
            connection = ServerConnection(self._sessions, self._listener_key)
            if connection.expect_handshake(peer[0]):
                task = self._loop.create_task(self._meet(accepted, connection))
                self._sessions.tasks.add(task)
                task.add_done_callback(self._sessions.tasks.discard)
            else:
                accepted.close()  # nothing can be said without TLS

    async def _meet(self, accepted: socket.socket, connection: ServerConnection) -> None:
        try:
            await self._loop.connect_accepted_socket(
                lambda: connection,
                accepted,
                ssl=self._context,
                ssl_handshake_timeout=self._sessions.active_config.settings.tls_timeout,
            )
        except (OSError, TimeoutError, ssl.SSLError):  # a fault of this client's TLS ends this client alone
            metrics.TLS.inc("none")
        finally:
            connection.end_handshake()


class Listeners:
    """The listening sockets of the process."""

    def __init__(self, settings: IngressSettings, active_config: ActiveConfig, sessions: Sessions) -> None:
        self._settings = settings
        self._active_config = active_config
        self._sessions = sessions
        self._servers: dict[ListenerSocket, asyncio.Server | TlsServer] = {}
        self._changed = asyncio.Event()
        self._complained: set[ListenerSocket] = set()
        self._log = log.get_logger()
        self.complete = asyncio.Event()
        """Set while every configured listener is open; without a listener in the configuration, once there is one."""

    def update(self) -> None:
        """The configuration in force has changed."""
        self._changed.set()

    def ports(self) -> dict[str, int]:
        """The real port of each listener by name; for tests and people."""
        return {
            place.listener_key.listener: int(socket.getsockname()[1])
            for place, server in self._servers.items()
            for socket in server.sockets
        }

    async def run(self) -> None:
        """Keep the sockets as the configuration wants them, until cancelled."""
        try:
            while True:
                self._changed.clear()
                missing = await self._apply()
                if missing:
                    self.complete.clear()
                elif self._active_config.configured:
                    self.complete.set()
                try:
                    async with asyncio.timeout(RETRY if missing else None):
                        await self._changed.wait()
                except TimeoutError:
                    continue
        finally:
            self.close()

    def close(self) -> None:
        """Accept no further connection."""
        for server in self._servers.values():
            server.close()
        self._servers.clear()
        self.complete.clear()

    def _wanted(self) -> set[ListenerSocket]:
        wanted: set[ListenerSocket] = set()
        for listener_key, config in self._active_config.listeners.items():
            port = config.listener.port
            # TLS-04: the handshake comes first. Behind a PROXY header (PRX-03) it is the connection's own business.
            tls = config.listener.protocol is ListenerProtocol.SUBMISSIONS and not config.listener.proxy_protocol
            for address in self._settings.smtp_listen:
                wanted.add(ListenerSocket(listener_key, address, self._settings.real_port(port), tls))
        return wanted

    def _identity(self, listener_key: ListenerKey) -> ServerCertificate | None:
        config = self._active_config.listeners.get(listener_key)
        return config.identity if config is not None else None

    async def _apply(self) -> int:
        """Open what is missing, close what is not wanted; returns how many could not be opened."""
        wanted = self._wanted()
        for place in [place for place in self._servers if place not in wanted]:
            self._servers.pop(place).close()
            self._log.info(
                "listener closed", listener=place.listener_key.listener, address=place.address, port=place.port
            )
        failed = 0
        loop = asyncio.get_running_loop()
        for place in sorted(wanted - self._servers.keys(), key=lambda p: (p.listener_key, p.address)):
            listener_key = place.listener_key
            try:
                if place.port > LAST_PORT:  # the system would take what is left of it in 16 bits
                    raise OSError(f"there is no such port; {self._settings.port_offset} was added to the listener's")
                server: asyncio.Server | TlsServer
                if place.tls:
                    context = switching(partial(self._identity, listener_key))
                    server = await TlsServer.open(self._sessions, listener_key, place.address, place.port, context)
                else:
                    server = await loop.create_server(
                        partial(ServerConnection, self._sessions, listener_key),
                        place.address,
                        place.port,
                        backlog=BACKLOG,
                    )
            except OSError as error:
                failed += 1
                if place not in self._complained:
                    self._complained.add(place)
                    self._log.error(
                        "cannot listen; trying again",
                        listener=listener_key.listener,
                        address=place.address,
                        port=place.port,
                        error=str(error),
                    )
                continue
            self._complained.discard(place)
            self._servers[place] = server
            port = server.sockets[0].getsockname()[1]
            self._log.info("listening", listener=listener_key.listener, address=place.address, port=port)
        return failed
