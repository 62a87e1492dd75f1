"""How much mail the process keeps that the queue has not taken, over all connections (ACC-07).

Headers that are not whole, bodies that travel with their commit and frames that wait for credit are each bounded, and
ten thousand clients at these bounds would be gigabytes. Together they have a budget. While it is exceeded, ingress does
not read from a client that keeps more than its share, so that a small message does not wait for many large ones, and
reads the others in small pieces. What is kept stays below twice the budget plus a small piece for each client.

Outbound's `MemoryBudget` is another thing: there a delivery reserves its room once, before it begins.
"""

from collections.abc import Callable
from typing import Final

LEAST: Final = 4096
"""Octets that every client may keep, and of one read while too much is kept."""
CALM: Final = 0.75
"""Part of the budget down to which it has to fall until clients are read again: else each read would stop the next."""


class HeldOctets:
    """Octets kept, and by how many. For one thread."""

    __slots__ = ("_waiting", "held", "holders", "limit", "tight")

    def __init__(self, limit: int) -> None:
        """`limit`: octets."""
        self.limit = limit
        self.held = 0
        self.holders = 0
        self.tight = False
        """More is kept than the budget allows."""
        self._waiting: dict[Callable[[], None], None] = {}

    @property
    def share(self) -> int:
        """Octets that one holder may keep while it is tight."""
        return max(LEAST, self.limit // max(1, self.holders))

    @property
    def waiting(self) -> int:
        """How many wait for room."""
        return len(self._waiting)

    def change(self, before: int, after: int) -> None:
        """A holder keeps `after` octets in place of `before`; none is no holder. Wakes those who wait, if it may."""
        self.held += after - before
        if not before:
            self.holders += 1
        elif not after:
            self.holders -= 1
        self.tight = self.held > self.limit
        if self._waiting and self.held <= self.limit * CALM:
            awake, self._waiting = self._waiting, {}
            for wake in awake:
                wake()

    def wait(self, wake: Callable[[], None]) -> None:
        """Call `wake` once when there is room again."""
        self._waiting[wake] = None

    def forget(self, wake: Callable[[], None]) -> None:
        """It does not wait any more, if it did."""
        self._waiting.pop(wake, None)
