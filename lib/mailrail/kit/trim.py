"""Gives memory back that many connections left behind.

glibc keeps what is freed between pieces in use, and the next connections mostly touch other pages: 4,000 TLS handshakes
that nobody finished left 200 MiB, and each further 4,000 another 150. `malloc_trim` returns all of it.
"""

from collections.abc import Callable
from typing import Final

from mailrail.kit import malloc
from mailrail.kit.wheel import NEVER, Wheel

MANY: Final = 500
"""Connections after which it is worth looking: they leave up to 25 MiB."""
PAUSE: Final = 5.0
"""Seconds between two looks."""
SETTLING: Final = 1.0
"""Seconds from the connection that makes it many to the look: most end together."""


class Trimmer:
    """Counts connections that leave memory behind; `kit.wheel.Timed`."""

    def __init__(self, wheel: Wheel, clock: Callable[[], float], trim: Callable[[], None] = malloc.trim) -> None:
        """`clock`: that of the wheel's loop."""
        self.deadline = NEVER
        self._wheel = wheel
        self._clock = clock
        self._trim = trim
        self._gone = 0
        self._not_before = 0.0

    def count(self) -> None:
        """One has gone."""
        self._gone += 1
        if self._gone >= MANY and self.deadline == NEVER:
            self.deadline = max(self._clock() + SETTLING, self._not_before)
            self._wheel.add(self)

    def expire(self, now: float) -> None:
        """See Timed."""
        self.deadline = NEVER
        self._gone = 0
        self._not_before = now + PAUSE
        self._trim()

    def give_up(self) -> None:
        """See Timed: the next connections try again."""
        self.deadline = NEVER
