"""How many octets of large bodies are stored that may never become a message, and who may add to them (ACC-07).

A body is written as it comes, before anybody knows whether it will be whole. What clients begin and give up would fill
any disk, so it is bounded for each client and in all. What was given up counts for a while longer: its rows are
deleted soon, but their room is used again only once Postgres has swept it.

Bodies that grow evenly would all come to a bound together, and none would be whole. So a client's own bodies have the
octets that they declared from their beginning on, and those that would not fit do not begin. Of all clients together
nobody may hold room by mere words: there a body stops before it takes what those still lack that will be whole sooner,
by the pace at which they come, up to a part of the bound. To stand in front of others takes more octets a second than
they send.
"""

import math
from collections import deque
from enum import Enum
from typing import Final

NEW_PART: Final = 0.75
"""Part of a bound up to which new bodies begin; the rest is for those under way, which would have come for nothing."""
SOONER_PART: Final = 0.5
"""Most of the bound of all that is kept for bodies which will be whole sooner, and so the most that strangers keep from
others with bodies that they never finish."""
LEAST_AGE: Final = 1.0
"""Seconds that a body is taken to be under way at least: of its first octets nobody knows how fast they came."""
SLACK: Final = 64
"""Of what is declared, a so-manieth part more is kept: who counts line ends as one octet declares that much too little
(RFC 1870 6.1: it is an estimate)."""
SETTLING: Final = 60.0
"""Seconds that what was given up counts on: autovacuum looks once a minute."""


class Full(Enum):
    """Which bound is reached."""

    CLIENT = "client"
    ALL = "all"


class Uncommitted:
    """Octets by client and in all. Times are monotonic seconds; for one thread."""

    def __init__(self, limit: int, client_limit: int | None = None) -> None:
        """`limit`: octets in all; `client_limit`: of one client, None: as many as of all."""
        self.limit = limit
        self._client_limit = client_limit
        self._octets = 0
        self._clients: dict[str, int] = {}  # octets that are stored, or declared and still to come
        self._settling: deque[tuple[float, str, int]] = deque()
        self._under_way: dict[UncommittedBody, None] = {}  # those that come and have a size

    def octets(self, now: float) -> int:
        """How many there are."""
        self._settle(now)
        return self._octets

    def body(self, client: str, size: int = 0) -> "UncommittedBody":
        """A body of the client, of so many octets if it declared them. Nothing is counted yet."""
        most = self.limit if self._client_limit is None else self._client_limit
        return UncommittedBody(self, client, max(size, min(size + size // SLACK, most)))

    def _admits(self, body: "UncommittedBody", now: float) -> Full | None:
        """Whether it may begin, or begin to be stored."""
        self._settle(now)
        if not body.reserved and self._client_limit is not None:
            part = 1.0 if body.size else NEW_PART  # what is declared is kept for it; of another nobody knows the end
            if self._clients.get(body.client, 0) + body.size > self._client_limit * part:
                return Full.CLIENT
        if self._octets + body.size > self.limit * NEW_PART or not self._fits(body.size, None, now):
            return Full.ALL
        return None

    def _grows(self, body: "UncommittedBody", octets: int, now: float) -> Full | None:
        """Whether there is room for so much more of it."""
        self._settle(now)
        more = max(0, body.octets + octets - body.reserved)
        if self._client_limit is not None and more and self._clients.get(body.client, 0) + more > self._client_limit:
            return Full.CLIENT
        return None if self._fits(octets, body, now) else Full.ALL

    def _fits(self, octets: int, of: "UncommittedBody | None", now: float) -> bool:
        """Whether the bound of all has room for more of a body (None: a new one) besides what the sooner ones lack."""
        free = self.limit - self._octets - octets
        if free < 0 or free >= self.limit * SOONER_PART:
            return free >= 0
        own = of.due(now) if of is not None and of.octets + octets <= of.size else math.inf
        elder = True
        kept = 0
        for body in self._under_way:
            if body is of:
                elder = False
            elif (due := body.due(now)) < own or (elder and due == own):
                kept += body.lacking
                if kept > free:
                    return False
        return True

    def _count(self, client: str, octets: int, reserved: int) -> None:
        """Count so much more: stored in all, and of the client stored or to come. Both may be negative."""
        self._octets += octets
        of_client = self._clients.get(client, 0) + reserved
        if of_client > 0:
            self._clients[client] = of_client
        else:
            self._clients.pop(client, None)

    def _settle(self, now: float) -> None:
        while self._settling and self._settling[0][0] <= now:
            _, client, octets = self._settling.popleft()
            self._count(client, -octets, -octets)


class UncommittedBody:
    """One of them, from MAIL (where SIZE tells of it) or its first octet until it is committed or given up."""

    __slots__ = ("_held", "_since", "client", "octets", "reserved", "size")

    def __init__(self, held: Uncommitted, client: str, size: int) -> None:
        """See `Uncommitted.body`."""
        self._held = held
        self._since = 0.0
        self.client = client
        self.size = size
        """Octets that are kept for it, as it declared; 0: it did not."""
        self.octets = 0
        """Octets that are stored."""
        self.reserved = 0
        """Octets that count for the client."""

    def begin(self, now: float) -> Full | None:
        """Begin; anything but None: it may not. Asked at MAIL if the size is known, and before the first octet."""
        full = self._held._admits(self, now)
        if full is None and self.size > self.reserved:
            self._held._count(self.client, 0, self.size - self.reserved)
            self.reserved = self.size
        return full

    def add(self, octets: int, now: float) -> Full | None:
        """Count more of it; anything but None: there is no room, and nothing was counted."""
        full = self._held._grows(self, octets, now)
        if full is None:
            self.count(octets, now)
        return full

    def count(self, octets: int, now: float) -> None:
        """Count more of it, whether there is room or not."""
        if octets and not self.octets and self.size:
            self._since = now
            self._held._under_way[self] = None
        self.octets += octets
        reserved = max(self.reserved, self.octets)
        self._held._count(self.client, octets, reserved - self.reserved)
        self.reserved = reserved

    def commit(self) -> None:
        """It belongs to a message now. Idempotent, as `give_up` is."""
        self._held._count(self.client, -self.octets, -self.reserved)
        self._end()

    def give_up(self, now: float) -> None:
        """It never will, and what is stored of it is deleted; what was merely declared counts no more."""
        self._held._count(self.client, 0, self.octets - self.reserved)
        if self.octets:
            self._held._settling.append((now + SETTLING, self.client, self.octets))
        self._end()

    @property
    def lacking(self) -> int:
        """Octets that are still to come, as it declared."""
        return max(0, self.size - self.octets)

    def due(self, now: float) -> float:
        """Seconds until it is whole if it goes on as it came; infinite if nothing came."""
        return self.lacking * max(LEAST_AGE, now - self._since) / self.octets if self.octets else math.inf

    def _end(self) -> None:
        self._held._under_way.pop(self, None)
        self.octets = self.reserved = self.size = 0
