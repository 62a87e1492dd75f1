"""Opens and closes listening sockets as the configuration says, without touching those that stay."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from mailrail.core.revision.problem import PENDING, PORT_CONFLICT, PORT_UNAVAILABLE, RevisionProblem, listener_part
from mailrail.core.revision.revision import ListenerProtocol, ObjectRef
from mailrail.kit import log
from mailrail.kit.metrics import bounded
from mailrail_ingress import metrics
from mailrail_ingress.active_config import ActiveConfig, ListenerKey
from mailrail_ingress.settings import IngressSettings
from mailrail_ingress.smtp import ServerConnection, Sessions
from mailrail_ingress.tls import ServerCertificate

FIRST_RETRY, LAST_RETRY = 1.0, 16.0
"""Seconds until a port that could not be opened is tried again: at first, and at last, twice as long each time."""
MOST_SHOWN = 500
"""Rows of the metric of listeners, two each."""
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
    PATIENCE = 0.1
    """Seconds without accepting while there are as many handshakes as may be, and all of them young."""

    def __init__(self, sessions: Sessions, listener_key: ListenerKey, sockets: list[socket.socket]) -> None:
        self.sockets = sockets
        self._sessions = sessions
        self._listener_key = listener_key
        self._loop = asyncio.get_running_loop()
        for listening in sockets:
            listening.setblocking(False)
            self._listen(listening)

    @classmethod
    async def open(cls, sessions: Sessions, listener_key: ListenerKey, address: str, port: int) -> "TlsServer":
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
        return cls(sessions, listener_key, sockets)

    def close(self) -> None:
        """Accept no further connection; open ones go on."""
        for listening in self.sockets:
            self._loop.remove_reader(listening.fileno())
            listening.close()

    def _listen(self, listening: socket.socket) -> None:
        if listening.fileno() >= 0:
            self._loop.add_reader(listening.fileno(), self._accept, listening)

    def _pause(self, listening: socket.socket, seconds: float) -> None:
        self._loop.remove_reader(listening.fileno())
        self._loop.call_later(seconds, self._listen, listening)

    def _accept(self, listening: socket.socket) -> None:
        handshakes = self._sessions.handshakes
        for number in range(BACKLOG):
            if number and handshakes.full:
                return  # the loop comes back if there is another one, for whom one of them may have to go
            if not handshakes.make_room(self._loop.time()):
                self._pause(listening, self.PATIENCE)  # who waits here unread costs nothing
                return
            try:
                accepted, peer = listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                log.get_logger().error("cannot accept", listener=self._listener_key.listener, error=str(error))
                self._pause(listening, self.ROOM)
                return
            accepted.setblocking(False)
            connection = ServerConnection(self._sessions, self._listener_key)
            certificate = self._certificate()
            if certificate is None:
                self._sessions.count_failed_handshake()
                accepted.close()
            elif connection.expect_handshake(peer[0], partial(_cut, accepted)):
                task = self._loop.create_task(self._meet(accepted, connection, certificate.context))
                self._sessions.tasks.add(task)
                task.add_done_callback(self._sessions.tasks.discard)
            else:
                accepted.close()  # nothing can be said without TLS

    def _certificate(self) -> ServerCertificate | None:
        """The one in force (TLS-09)."""
        config = self._sessions.active_config.listeners.get(self._listener_key)
        return config.identity if config is not None else None

    async def _meet(self, accepted: socket.socket, connection: ServerConnection, context: ssl.SSLContext) -> None:
        try:
            await self._loop.connect_accepted_socket(
                lambda: connection,
                accepted,
                ssl=context,
                ssl_handshake_timeout=self._sessions.active_config.settings.tls_timeout,
            )
        except (OSError, TimeoutError, ssl.SSLError):  # a fault of this client's TLS ends this client alone
            self._sessions.count_failed_handshake()
        finally:
            connection.end_handshake()


def _cut(accepted: socket.socket) -> None:
    """End the handshake on it, whether the loop has begun it or not."""
    with contextlib.suppress(OSError):  # it is over
        accepted.shutdown(socket.SHUT_RDWR)


@dataclass(frozen=True, slots=True)
class ListenerFailure:
    """Why a listener of the revision in force is not open."""

    reason: str
    """PORT_CONFLICT or PORT_UNAVAILABLE."""
    message: str
    port: int


def port_holders(
    wanted: Iterable[ListenerSocket], listening: Iterable[ListenerSocket]
) -> dict[ListenerKey, ListenerKey]:
    """Listeners that want a port which another one of the revision has → that one.

    A listener keeps the port that it has (`listening`), so that a new object cannot take it away. Else the port is the
    first's in the order of `wanted`, which is that of the revision, and so the same in every process that starts now.
    """
    wanted = list(wanted)
    claims = {(place.listener_key, place.port) for place in wanted}
    holders: dict[int, ListenerKey] = {}
    for place in (*(one for one in listening if (one.listener_key, one.port) in claims), *wanted):
        if place.port:  # 0: the system chooses
            holders.setdefault(place.port, place.listener_key)
    return {
        place.listener_key: holders[place.port]
        for place in wanted
        if place.port and holders[place.port] != place.listener_key
    }


class Listeners:
    """The listening sockets of the process. Each listener is opened by itself: one that fails costs no other."""

    def __init__(self, settings: IngressSettings, active_config: ActiveConfig, sessions: Sessions) -> None:
        self._settings = settings
        self._active_config = active_config
        self._sessions = sessions
        self._servers: dict[ListenerSocket, asyncio.Server | TlsServer] = {}
        self._changed = asyncio.Event()
        self._log = log.get_logger()
        self.failures: dict[ListenerKey, ListenerFailure] = {}
        """Listeners of the revision in force that are not open, or not at every address."""
        self.ready = asyncio.Event()
        """Set once every listener was open at the same time, those apart whose port another one has; without a listener
        in the configuration, once there is one. From then on a listener that fails takes nothing from those that are
        open: it is cleared only when none is left."""

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

    def problems(self) -> list[RevisionProblem]:
        """What config is told of listeners that are not open."""
        known = {place.listener_key for place in self._servers} | self.failures.keys()
        untried = ListenerFailure(PENDING, "it is being opened", 0)
        failures = self.failures | {key: untried for key in self._active_config.listeners if key not in known}
        return [
            RevisionProblem(key.gateway, listener_part(key.listener), failure.reason, failure.message)
            for key, failure in failures.items()
        ]

    async def run(self) -> None:
        """Keep the sockets as the configuration wants them, until cancelled."""
        delay = FIRST_RETRY
        try:
            while True:
                self._changed.clear()
                before = self.failures
                await self._apply()
                self._tell(before)
                failing = any(one.reason == PORT_UNAVAILABLE for one in self.failures.values())
                if not failing and self._active_config.configured:
                    self.ready.set()
                elif not self._servers:
                    self.ready.clear()
                if self.failures != before:
                    delay = FIRST_RETRY
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(delay if failing else None):
                        await self._changed.wait()
                delay = FIRST_RETRY if self._changed.is_set() else min(delay * 2, LAST_RETRY)
        finally:
            self.close()

    def close(self) -> None:
        """Accept no further connection."""
        for server in self._servers.values():
            server.close()
        self._servers.clear()
        self.ready.clear()
        metrics.LISTENERS.set({})

    def _wanted(self) -> list[ListenerSocket]:
        """In the order of the revision."""
        wanted: list[ListenerSocket] = []
        for listener_key, config in self._active_config.listeners.items():
            port = config.listener.port
            # TLS-04: the handshake comes first. Behind a PROXY header (PRX-03) it is the connection's own business.
            tls = config.listener.protocol is ListenerProtocol.SUBMISSIONS and not config.listener.proxy_protocol
            for address in self._settings.smtp_listen:
                wanted.append(ListenerSocket(listener_key, address, self._settings.real_port(port), tls))
        return wanted

    async def _apply(self) -> None:
        """Open what is missing, close what is not wanted."""
        wanted = self._wanted()
        holders = port_holders(wanted, self._servers)
        stays = set(wanted)
        for place in [place for place in self._servers if place not in stays]:
            self._servers.pop(place).close()
            self._log.info("listener closed", **_described(place))
        failures: dict[ListenerKey, ListenerFailure] = {}
        for place in wanted:
            if place in self._servers:
                continue
            holder = holders.get(place.listener_key)
            if holder is not None:
                message = (
                    f"port {place.port} is that of listener {holder.listener} of {holder.gateway}; "
                    "give one of the two another port"
                )
                failures[place.listener_key] = ListenerFailure(PORT_CONFLICT, message, place.port)
                continue
            try:
                server = await self._open(place)
            except OSError as error:
                message = (
                    f"port {place.port} at {place.address or 'every address'} cannot be opened: {error}; "
                    "free it, or give the listener another port"
                )
                failures.setdefault(place.listener_key, ListenerFailure(PORT_UNAVAILABLE, message, place.port))
                continue
            self._servers[place] = server
            self._log.info("listening", **_described(place) | {"port": server.sockets[0].getsockname()[1]})
        self.failures = failures

    async def _open(self, place: ListenerSocket) -> asyncio.Server | TlsServer:
        """Raises OSError."""
        if place.port > LAST_PORT:  # the system would take what is left of it in 16 bits
            raise OSError(f"there is no such port; {self._settings.port_offset} was added to the listener's")
        listener_key = place.listener_key
        if place.tls:
            return await TlsServer.open(self._sessions, listener_key, place.address, place.port)
        return await asyncio.get_running_loop().create_server(
            partial(ServerConnection, self._sessions, listener_key), place.address, place.port, backlog=BACKLOG
        )

    def _tell(self, before: Mapping[ListenerKey, ListenerFailure]) -> None:
        """Say which listeners are open: in the log what is new, in the metrics all."""
        for key, failure in self.failures.items():
            if before.get(key) != failure:
                again = "" if failure.reason == PORT_CONFLICT else "; trying again"
                self._log.error(
                    f"cannot listen{again}",
                    listener=key.listener,
                    gateway=_name(key.gateway),
                    port=failure.port,
                    reason=failure.reason,
                    error=failure.message,
                )
        rows: dict[tuple[str, ...], float] = {}
        for key in self._active_config.listeners:
            failed = key in self.failures
            labels = (_name(key.gateway), key.listener)
            rows[*labels, "open"], rows[*labels, "failed"] = float(not failed), float(failed)
        metrics.LISTENERS.set(bounded(rows, MOST_SHOWN))


def _name(gateway: ObjectRef) -> str:
    return f"{gateway.namespace}/{gateway.name}"


def _described(place: ListenerSocket) -> dict[str, Any]:
    """A socket in the log."""
    return {"listener": place.listener_key.listener, "address": place.address, "port": place.port}
