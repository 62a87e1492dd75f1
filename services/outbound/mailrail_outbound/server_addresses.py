"""Which addresses the connections of a process go to, and who may have more of them.

A connection is held for as long as the other end likes, and all next hops share their number. So they are counted by
address, whatever names lead there, from the moment in which one is to be dialled; an address has a *standing*, which is
how it answered last, and those of a standing have a share (SOUT-20; core/delivery/shares.py). An address that never
gave a session gets few connections until it does.
"""

from collections import OrderedDict
from typing import NamedTuple

from mailrail.core.delivery.shares import UNPROVEN, SiteStanding, may_add, whose_turn
from mailrail.core.line import DatedLine
from mailrail.core.outbound.targets import ConnectionKey
from mailrail_outbound.smtp import ClientConnection, Dial

_KNOWN = 20_000  # addresses without a connection whose standing is remembered


class ServerAddressKey(NamedTuple):
    """What is dialled: a fault of a proxy, or of an address of ours, says nothing about the server."""

    address: str
    port: int
    source: str
    """As of ConnectionKey."""


class ServerAddress:
    """One address, with all connections to it."""

    __slots__ = ("idle", "key", "line", "open", "sessions", "standing")

    def __init__(self, key: ServerAddressKey) -> None:
        self.key = key
        self.standing = UNPROVEN
        self.open = 0
        """Connections, from the decision to dial to their end."""
        self.sessions = 0
        """Those of them that have given a session."""
        self.line = DatedLine[ConnectionKey]()
        """Keys that wait for a connection to this address to end, by the time of the newest mail of each."""
        self.idle: OrderedDict[ClientConnection, None] = OrderedDict()

    @property
    def unknown(self) -> bool:
        """Nothing shows that it gives sessions at all."""
        return self.standing is UNPROVEN and not self.sessions


class ServerAddresses:
    """All connections of a process by address, and the lines for more."""

    def __init__(self, connections: int) -> None:
        """`connections`: at most, in all."""
        self._whole = connections
        self._held = [0, 0, 0]  # connections by the standing of their address
        self._servers: dict[ServerAddressKey, ServerAddress] = {}
        self._known: OrderedDict[ServerAddressKey, None] = (
            OrderedDict()
        )  # those without a connection, the one used last at the end
        self._lines = [DatedLine[ConnectionKey](), DatedLine[ConnectionKey](), DatedLine[ConnectionKey]()]
        self.idle: OrderedDict[ClientConnection, None] = OrderedDict()
        """Connections without work, the longest unused first."""

    @property
    def open(self) -> int:
        """Connections in all."""
        return sum(self._held)

    @property
    def waiting(self) -> int:
        """Keys that wait for the number of connections, or for their share of it."""
        return sum(map(len, self._lines))

    @property
    def unproven_waiting(self) -> int:
        """Keys that wait for the share of addresses of which nothing is known."""
        return len(self._lines[UNPROVEN])

    def server(self, dial: Dial, address: str) -> ServerAddress:
        """An address of a host."""
        key = ServerAddressKey(address, dial.port, dial.key.source)
        server = self._servers.get(key)
        if server is None:
            server = self._servers[key] = ServerAddress(key)
        return server

    def standing(self, dial: Dial, address: str) -> SiteStanding:
        """How an address of a host answered last."""
        server = self._servers.get(ServerAddressKey(address, dial.port, dial.key.source))
        return server.standing if server is not None else UNPROVEN

    def enter(self, server: ServerAddress) -> None:
        """A connection to it is to be dialled."""
        server.open += 1
        self._held[server.standing] += 1
        self._known.pop(server.key, None)

    def leave(self, server: ServerAddress) -> None:
        """A connection to it ended, or was not made."""
        server.open -= 1
        self._held[server.standing] -= 1
        self.forget_if_unused(server)

    def forget_if_unused(self, server: ServerAddress) -> None:
        """Keep no more than its standing, where it has one, once nothing is under way."""
        if server.open or server.line:
            return
        if server.standing is UNPROVEN:
            self._servers.pop(server.key, None)
            return
        self._known[server.key] = None
        if len(self._known) > _KNOWN:
            del self._servers[self._known.popitem(last=False)[0]]

    def rate(self, server: ServerAddress, standing: SiteStanding) -> None:
        """Change what it is known for."""
        self._held[server.standing] -= server.open
        server.standing = standing
        self._held[standing] += server.open

    def room(self, server: ServerAddress, more: int = 0) -> bool:
        """Whether one of its standing may have a connection more, if there were `more` of them in all."""
        return may_add(server.standing, self._held, self._whole + more) > 0

    def stand(self, server: ServerAddress, key: ConnectionKey, mail_began: float) -> DatedLine[ConnectionKey]:
        """Wait for the number of connections, or for the share of its standing. `mail_began`: Unix seconds at which the
        newest message began that waits for it."""
        line = self._lines[server.standing]
        line.add(key, mail_began)
        return line

    def next(self, more: int = 0) -> DatedLine[ConnectionKey] | None:
        """The line whose turn it is now; None: none can move, if there were `more` connections in all."""
        standing = whose_turn(self._lines, self._held, self._whole + more)
        return self._lines[standing] if standing is not None else None
