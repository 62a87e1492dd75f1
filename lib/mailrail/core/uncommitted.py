"""How many octets of large bodies are stored that may never become a message, and who may add to them (ACC-07).

A body is written as it comes, before anybody knows whether it will be whole. What clients begin and give up would fill
any disk, so it is bounded for each client and in all. What was given up counts for a while longer: its rows are
deleted soon, but their room is used again only once Postgres has swept it.
"""

from collections import deque
from enum import Enum
from typing import Final

NEW_PART: Final = 0.75
"""Part of a bound up to which new bodies begin; the rest is for those under way, which would have come for nothing."""
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
        self._clients: dict[str, int] = {}
        self._settling: deque[tuple[float, str, int]] = deque()

    def octets(self, now: float) -> int:
        """How many there are."""
        self._settle(now)
        return self._octets

    def admits(self, client: str, now: float, octets: int = 0) -> Full | None:
        """Whether a new body may begin, of so many octets if that is known; None: it may."""
        self._settle(now)
        return self._full(client, octets, NEW_PART)

    def add(self, client: str, octets: int, now: float) -> Full | None:
        """Count more of a body; anything but None: there is no room, and nothing was counted."""
        self._settle(now)
        full = self._full(client, octets, 1.0)
        if full is None:
            self.count(client, octets)
        return full

    def count(self, client: str, octets: int) -> None:
        """Count more of a body, whether there is room or not."""
        self._octets += octets
        self._clients[client] = self._clients.get(client, 0) + octets

    def commit(self, client: str, octets: int) -> None:
        """They belong to a message now."""
        self._octets -= octets
        left = self._clients.get(client, 0) - octets
        if left > 0:
            self._clients[client] = left
        else:
            self._clients.pop(client, None)

    def give_up(self, client: str, octets: int, now: float) -> None:
        """They never will, and are deleted."""
        if octets:
            self._settling.append((now + SETTLING, client, octets))

    def _full(self, client: str, octets: int, part: float) -> Full | None:
        of_client = self._clients.get(client, 0)
        new = part < 1.0 and not of_client  # a body that is within the bound may begin where nothing else is
        if self._client_limit is not None and of_client + octets > self._client_limit * (1.0 if new else part):
            return Full.CLIENT
        if self._octets + octets > self.limit * part:
            return Full.ALL
        return None

    def _settle(self, now: float) -> None:
        while self._settling and self._settling[0][0] <= now:
            _, client, octets = self._settling.popleft()
            self.commit(client, octets)
