"""Which addresses the connections of a process go to, and who may have more of them.

A connection is held for as long as the other end likes, and all next hops share their number. So they are counted by
address, whatever names lead there, from the moment in which one is to be dialled; an address has a *standing*, which is
how it answered last, and those of a standing have a share (SOUT-20; core/delivery/shares.py). An address that never
gave a session gets few connections until it does.
"""

from collections import OrderedDict
from typing import NamedTuple

from mailrail.core.delivery.shares import FIRST_PART, QUICK, UNPROVEN, SiteStanding, may_add
from mailrail.core.line import Line
from mailrail.core.outbound.targets import ConnectionKey
from mailrail_outbound.smtp import ClientConnection, Dial

_KNOWN = 20_000  # addresses without a connection whose standing is remembered


class PeerKey(NamedTuple):
    """What is dialled: a fault of a proxy, or of an address of ours, says nothing about the server."""

    address: str
    port: int
    source: str
    """As of ConnectionKey."""


class Peer:
    """One address, with all connections to it."""

    __slots__ = ("idle", "key", "line", "open", "sessions", "standing")

    def __init__(self, key: PeerKey) -> None:
        self.key = key
        self.standing = UNPROVEN
        self.open = 0
        """Connections, from the decision to dial to their end."""
        self.sessions = 0
        """Those of them that have given a session."""
        self.line = Line[ConnectionKey]()
        """Keys that wait for a connection to this address to end."""
        self.idle: OrderedDict[ClientConnection, None] = OrderedDict()

    @property
    def unknown(self) -> bool:
        """Nothing shows that it gives sessions at all."""
        return self.standing is UNPROVEN and not self.sessions


class Peers:
    """All connections of a process by address, and the lines for more."""

    def __init__(self, connections: int) -> None:
        """`connections`: at most, in all."""
        self._whole = connections
        self._held = [0, 0, 0]  # connections by the standing of their address
        self._peers: dict[PeerKey, Peer] = {}
        self._known: OrderedDict[PeerKey, None] = (
            OrderedDict()
        )  # those without a connection, the one used last at the end
        self._lines = [Line[ConnectionKey](), Line[ConnectionKey](), Line[ConnectionKey]()]
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

    def peer(self, dial: Dial, address: str) -> Peer:
        """An address of a host."""
        key = PeerKey(address, dial.port, dial.key.source)
        peer = self._peers.get(key)
        if peer is None:
            peer = self._peers[key] = Peer(key)
        return peer

    def enter(self, peer: Peer) -> None:
        """A connection to it is to be dialled."""
        peer.open += 1
        self._held[peer.standing] += 1
        self._known.pop(peer.key, None)

    def leave(self, peer: Peer) -> None:
        """A connection to it ended, or was not made."""
        peer.open -= 1
        self._held[peer.standing] -= 1
        self.forget_if_unused(peer)

    def forget_if_unused(self, peer: Peer) -> None:
        """Keep no more than its standing, where it has one, once nothing is under way."""
        if peer.open or peer.line:
            return
        if peer.standing is UNPROVEN:
            self._peers.pop(peer.key, None)
            return
        self._known[peer.key] = None
        if len(self._known) > _KNOWN:
            del self._peers[self._known.popitem(last=False)[0]]

    def rate(self, peer: Peer, standing: SiteStanding) -> None:
        """Change what it is known for."""
        self._held[peer.standing] -= peer.open
        peer.standing = standing
        self._held[standing] += peer.open

    def room(self, peer: Peer, more: int = 0) -> bool:
        """Whether one of its standing may have a connection more, if there were `more` of them in all."""
        return self._room(peer.standing, more)

    def stand(self, peer: Peer, key: ConnectionKey) -> Line[ConnectionKey]:
        """Wait for the number of connections, or for the share of its standing."""
        line = self._lines[peer.standing]
        line.add(key)
        return line

    def next(self, more: int = 0) -> Line[ConnectionKey] | None:
        """The line whose turn it is now; None: none can move, if there were `more` connections in all."""
        standings = [s for s in reversed(SiteStanding) if self._lines[s] and self._room(s, more)]
        if not standings:
            return None
        quick = self._held[QUICK]
        # A flood of mail to quick servers stops no first contact.
        others_first = sum(self._held) - quick < self._whole * FIRST_PART
        return self._lines[standings[-1 if others_first else 0]]

    def _room(self, standing: SiteStanding, more: int) -> bool:
        return may_add(standing, self._held, self._whole + more) > 0
