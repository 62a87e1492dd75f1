"""TLS handshakes under way: how many there may be, and which of them ends for a new one.

A handshake that is not finished holds up to 50 KiB, whoever began it and whether anything comes or not. So there is a
bound. A client that means it needs far less than a second, so the handshake that is longest under way makes room.
"""

from collections.abc import Callable, Hashable
from typing import Final

from mailrail.kit.metrics import Count
from mailrail_ingress import metrics

GRACE: Final = 0.5
"""Seconds within which no handshake is ended for another; new ones wait or are refused meanwhile."""


class Handshakes:
    """Those of a process, in the order in which they began. Times are the loop's, in seconds."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._under_way: dict[Hashable, tuple[float, Callable[[], None], Count]] = {}

    def __len__(self) -> int:
        return len(self._under_way)

    @property
    def full(self) -> bool:
        """There are as many as may be."""
        return len(self._under_way) >= self._limit

    def make_room(self, now: float) -> bool:
        """Whether another one may begin. Where there are as many as may be, the oldest is ended for it."""
        return not self.full or self.end_oldest(now)

    def end_oldest(self, now: float) -> bool:
        """End the handshake that is longest under way, unless it is within its GRACE. False: none was ended."""
        whose, (began, end, _) = next(iter(self._under_way.items()), (None, (now, lambda: None, Count())))
        if now - began < GRACE:
            return False
        self.done(whose)
        metrics.HANDSHAKES_DISPLACED.inc()
        end()
        return True

    def begin(self, whose: Hashable, now: float, end: Callable[[], None], level: Count) -> None:
        """One begins. `end` closes its connection at once; `level` counts it while it is under way."""
        self._under_way[whose] = now, end, level
        level.number += 1

    def done(self, whose: Hashable) -> None:
        """It is over, well or not; again is no mistake."""
        found = self._under_way.pop(whose, None)
        if found is not None:
            found[2].number -= 1
