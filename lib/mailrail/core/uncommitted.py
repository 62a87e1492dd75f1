"""How many octets of large bodies are stored that may never become a message, and who may add to them (ACC-07).

A body is written as it comes, before anybody knows whether it will be whole. What clients begin and give up would fill
any disk, so it is bounded for each client and in all. What was given up counts for a while longer: its rows are
deleted soon, but their room is used again only once Postgres has swept it.

Bodies that grow evenly would all come to a bound together, and none would be whole. So a client's own bodies have the
octets that they declared from their beginning on, and those that would not fit do not begin. Of all clients together
nobody may hold room by mere words: there a body stops before it takes what those still lack that will be whole sooner,
by the pace at which they come, up to a part of the bound. To stand in front of others takes more octets a second than
they send.

A body that stops in the middle has come for nothing, and its rest has to be read all the same. So one whose size is
declared asks before its content comes (`may_start`, `start`), and hears no while what the others lack would take its
room. What counts there is what comes: a word is believed for seconds, then the pace decides (decision 37). One that
has to stop all the same waits instead where room is near (`room_near`).
"""

import math
from collections import OrderedDict, deque
from collections.abc import Callable
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
TRUST: Final = 3.0
"""Seconds from its start in which a body has its room because it said so: then its pace tells."""
ANNOUNCED_PART: Final = 0.25
"""Most of the bound of all that strangers may have announced within TRUST: words cost nothing."""
QUICK: Final = 180.0
"""Seconds in which a body will be whole, at the pace at which it comes, to count as quick. Those that take longer keep
SOONER_PART from a new one at most, however many they are."""
NEAR: Final = 30.0
"""Seconds until another body is whole for its room to be worth waiting for."""
REMEMBERED: Final = 10_000
"""Clients that are remembered because a large message of theirs became whole, or because one did not."""


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
        self._under_way: dict[UncommittedBody, None] = {}  # those that come, or may, and have a size
        self._whole: OrderedDict[str, None] = OrderedDict()  # clients of which a body became whole
        self._doubted: OrderedDict[str, float] = OrderedDict()  # clients that broke their word, and until when
        self._waiting: dict[Callable[[], None], None] = {}

    def octets(self, now: float) -> int:
        """How many there are."""
        self._settle(now)
        return self._octets

    def body(self, client: str, size: int = 0, *, known: bool = False) -> "UncommittedBody":
        """A body of the client, of so many octets if it declared them. Nothing is counted yet. `known`: the client has
        logged in, or delivered mail before; one that delivered a large message is known anyway."""
        most = self.limit if self._client_limit is None else self._client_limit
        size = max(size, min(size + size // SLACK, most))
        return UncommittedBody(self, client, size, known=known or client in self._whole)

    def wait(self, wake: Callable[[], None]) -> None:
        """Call `wake` once when a body has ended, committed or not."""
        self._waiting[wake] = None

    def forget(self, wake: Callable[[], None]) -> None:
        """It does not wait any more, if it did."""
        self._waiting.pop(wake, None)

    def _doubts(self, client: str, now: float) -> bool:
        """Whether a body of the client, for which room was kept, did not come."""
        return self._doubted.get(client, -math.inf) > now

    def _doubt(self, client: str, now: float) -> None:
        self._doubted.pop(client, None)
        self._doubted[client] = now + SETTLING
        if len(self._doubted) > REMEMBERED:
            self._doubted.popitem(last=False)

    def _has_room(self, body: "UncommittedBody", now: float) -> bool:
        """Whether a body may start: besides what is stored, and what those under way lack, there is room for all of it.

        What strangers announced, and what comes slowly, counts up to a part of the bound; to a client that is known,
        all that strangers lack does. So nobody can keep all of the room by words, nor strangers from those known.
        """
        self._settle(now)
        announced = slow = of_strangers = of_known = 0
        for other in list(self._under_way):
            if other is body:
                continue
            fresh = other._started and now - other._since < TRUST
            if not fresh and not other.octets:  # room is kept for it no longer, and it may come all the same
                del self._under_way[other]
                other._started = False
                self._doubt(other.client, now)
            elif fresh and not other.known:
                announced += other.lacking
            elif not fresh and other.due(now) > QUICK:
                slow += other.lacking
            elif other.known:
                of_known += other.lacking
            else:
                of_strangers += other.lacking
        known = body.known and not self._doubts(body.client, now)
        if not known and announced and announced + body.size > self.limit * ANNOUNCED_PART:
            return False
        part = int(self.limit * SOONER_PART)
        if known:
            kept = of_known + min(announced + slow + of_strangers, part)
        else:
            kept = of_known + of_strangers + min(announced + slow, part)
        return self._octets + kept + body.size <= self.limit * NEW_PART

    def _admits(self, body: "UncommittedBody", now: float) -> Full | None:
        """Whether it may begin, or begin to be stored."""
        self._settle(now)
        if body in self._under_way:  # it was asked before it started
            return None
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
            elif not body.octets:  # by mere words
                continue
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

    def _ended(self) -> None:
        if self._waiting:
            awake, self._waiting = self._waiting, {}
            for wake in awake:
                wake()


class UncommittedBody:
    """One of them, from MAIL (where SIZE tells of it) or its first octet until it is committed or given up."""

    __slots__ = ("_held", "_since", "_started", "client", "known", "octets", "reserved", "size", "waits")

    def __init__(self, held: Uncommitted, client: str, size: int, *, known: bool) -> None:
        """See `Uncommitted.body`."""
        self._held = held
        self._since = 0.0
        self._started = False  # room was kept for it
        self.client = client
        self.known = known
        self.waits = False
        """It is not read from until there is room."""
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

    def may_start(self, now: float) -> Full | None:
        """Whether its content might come now; anything but None: it might not. For a body whose size is declared."""
        return None if self._held._has_room(self, now) else Full.ALL

    def start(self, now: float) -> Full | None:
        """Its content may come from now on, and there is room for it; anything but None: it may not, and nothing has
        come of it for nothing. For a body whose size is declared."""
        full = self.may_start(now)
        if full is None and not self._held._doubts(self.client, now):
            self._started = True
            self._since = now
            self._held._under_way[self] = None
        return full

    def room_near(self, now: float) -> bool:
        """Whether it is worth waiting where there is no room: another will be whole soon, and does not wait itself."""
        return any(
            other is not self and other.octets and not other.waits and other.due(now) <= NEAR
            for other in self._held._under_way
        )

    def add(self, octets: int, now: float) -> Full | None:
        """Count more of it; anything but None: there is no room, and nothing was counted."""
        full = self._held._grows(self, octets, now)
        if full is None:
            self.count(octets, now)
        return full

    def count(self, octets: int, now: float) -> None:
        """Count more of it, whether there is room or not."""
        if octets and not self.octets and self.size and self not in self._held._under_way:
            self._since = now
            self._held._under_way[self] = None
        self.octets += octets
        reserved = max(self.reserved, self.octets)
        self._held._count(self.client, octets, reserved - self.reserved)
        self.reserved = reserved

    def commit(self) -> None:
        """It belongs to a message now. Idempotent, as `give_up` is."""
        held = self._held
        held._count(self.client, -self.octets, -self.reserved)
        if self.octets:
            held._whole.pop(self.client, None)
            held._whole[self.client] = None
            if len(held._whole) > REMEMBERED:
                held._whole.popitem(last=False)
        self._end()

    def give_up(self, now: float) -> None:
        """It never will, and what is stored of it is deleted; what was merely declared counts no more."""
        self._held._count(self.client, 0, self.octets - self.reserved)
        if self.octets:
            self._held._settling.append((now + SETTLING, self.client, self.octets))
        if self._started and self.lacking:
            self._held._doubt(self.client, now)
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
        some = self.octets or self.reserved
        self.octets = self.reserved = self.size = 0
        self._started = self.waits = False
        if some:
            self._held._ended()
