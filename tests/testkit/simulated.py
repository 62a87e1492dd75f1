"""Simulated time: what is to happen, and when, without a wait."""

import heapq
import itertools
from collections.abc import Callable


class SimulatedTime:
    """A clock that stands still but for `run`."""

    def __init__(self) -> None:
        self.now = 0.0
        """Seconds since the beginning."""
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = itertools.count()

    def at(self, seconds: float, what: Callable[[], None]) -> None:
        """Do something at this time; of the same time, what was said first."""
        heapq.heappush(self._events, (seconds, next(self._count), what))

    def run(self, until: float) -> None:
        """Let the time pass."""
        while self._events and self._events[0][0] <= until:
            self.now, _, what = heapq.heappop(self._events)
            what()
