"""Opens and closes listening sockets as the configuration says, without touching those that stay."""

import asyncio
from dataclasses import dataclass
from functools import partial

from mailrail.core.config.revision import Protocol
from mailrail.kit import log
from mailrail_ingress.app import Door, Reception
from mailrail_ingress.settings import IngressSettings
from mailrail_ingress.smtp import Connection, Sessions
from mailrail_ingress.tls import Identity, switching

RETRY = 2.0
"""Seconds until a port that could not be opened is tried again."""
BACKLOG = 1024
"""Connections that the kernel completes while the loop is busy."""


@dataclass(frozen=True, slots=True)
class Place:
    """One socket: which listener, where."""

    door: Door
    address: str
    port: int  # as configured; 0 = chosen by the system
    tls: bool  # the loop does the handshake before it makes a connection


class Listeners:
    """The listening sockets of the process."""

    def __init__(self, settings: IngressSettings, reception: Reception, sessions: Sessions) -> None:
        self._settings = settings
        self._reception = reception
        self._sessions = sessions
        self._servers: dict[Place, asyncio.Server] = {}
        self._changed = asyncio.Event()
        self._complained: set[Place] = set()
        self._log = log.get_logger()
        self.complete = asyncio.Event()
        """Set while every configured listener is open; without a listener in the configuration, once there is one."""

    def update(self) -> None:
        """The reception has new desks."""
        self._changed.set()

    def ports(self) -> dict[str, int]:
        """The real port of each listener by name; for tests and people."""
        return {
            place.door.listener: int(socket.getsockname()[1])
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
                elif self._reception.configured:
                    self.complete.set()
                try:
                    async with asyncio.timeout(RETRY if missing else None):
                        await self._changed.wait()
                except TimeoutError:
                    continue
        finally:
            self.close()

    def close(self) -> None:
        """Accept nobody any more."""
        for server in self._servers.values():
            server.close()
        self._servers.clear()
        self.complete.clear()

    def _wanted(self) -> set[Place]:
        wanted: set[Place] = set()
        for door, desk in self._reception.desks.items():
            port = desk.listener.port
            # Behind a PROXY header the handshake is the connection's own business.
            tls = desk.listener.protocol is Protocol.SUBMISSIONS and not desk.listener.proxy_protocol
            for address in self._settings.smtp_listen:
                wanted.add(Place(door, address, self._settings.real_port(port), tls))
        return wanted

    def _identity(self, door: Door) -> Identity | None:
        desk = self._reception.desks.get(door)
        return desk.identity if desk is not None else None

    async def _apply(self) -> int:
        """Open what is missing, close what is not wanted; returns how many could not be opened."""
        wanted = self._wanted()
        for place in [place for place in self._servers if place not in wanted]:
            self._servers.pop(place).close()
            self._log.info("listener closed", listener=place.door.listener, address=place.address, port=place.port)
        failed = 0
        loop = asyncio.get_running_loop()
        for place in sorted(wanted - self._servers.keys(), key=lambda p: (p.door, p.address)):
            door = place.door
            try:
                server = await loop.create_server(
                    partial(Connection, self._sessions, door),
                    place.address,
                    place.port,
                    backlog=BACKLOG,
                    ssl=switching(partial(self._identity, door)) if place.tls else None,
                    ssl_handshake_timeout=self._settings.tls_timeout if place.tls else None,
                )
            except OSError as error:
                failed += 1
                if place not in self._complained:
                    self._complained.add(place)
                    self._log.error(
                        "cannot listen; trying again",
                        listener=door.listener,
                        address=place.address,
                        port=place.port,
                        error=str(error),
                    )
                continue
            self._complained.discard(place)
            self._servers[place] = server
            port = server.sockets[0].getsockname()[1]
            self._log.info("listening", listener=door.listener, address=place.address, port=port)
        return failed
