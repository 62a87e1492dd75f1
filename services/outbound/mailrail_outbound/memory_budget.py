"""The memory that streamed content may take, shared by all deliveries: a delivery that finds too little waits its turn.

A delivery takes its share once, before it first dials, and gives it back at its end. A delivery with a share never
waits for more, so there can be no deadlock. Servers decide how long a share is held. So those of a standing have a part
of all memory, as they have of all connections (core/delivery/shares.py), and each standing has a line of its own. The
last of them may go past its part, as any part may be less than one share.
"""

import asyncio
from collections.abc import Callable

from mailrail.core.delivery.shares import SiteStanding, whose_turn
from mailrail.core.line import Line

_LOOK_AGAIN = 0.5
"""Seconds between looks at how addresses answer by now, while a delivery waits: nobody says when that changes."""


class MemoryShare:
    """Octets that a delivery has, or waits for."""

    __slots__ = ("octets", "standing", "turn")

    def __init__(self, octets: int, standing: Callable[[], SiteStanding]) -> None:
        self.octets = octets
        self.standing = standing
        """How the address answers that the delivery goes to. It may change while the share is held."""
        self.turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class MemoryBudget:
    """A number of octets, to be taken and given back."""

    def __init__(self, octets: int) -> None:
        self._all = octets
        self._held: dict[MemoryShare, None] = {}
        self._lines = [Line[MemoryShare](), Line[MemoryShare](), Line[MemoryShare]()]
        self._looks: asyncio.TimerHandle | None = None

    @property
    def free(self) -> int:
        """Octets that are not taken."""
        return self._all - sum(share.octets for share in self._held)

    async def take(self, octets: int, within: float, standing: Callable[[], SiteStanding]) -> MemoryShare | None:
        """Take octets, at most the whole budget; None when too few were free for `within` seconds."""
        share = MemoryShare(min(octets, self._all), standing)
        self._lines[standing()].add(share)
        self._hand_out()
        self._look_later()
        try:
            async with asyncio.timeout(within):
                await share.turn
        except TimeoutError:
            if share in self._held:  # its turn came all the same
                return share
            self._leave(share)
            return None
        except asyncio.CancelledError:
            self._leave(share)
            raise
        return share

    def give(self, share: MemoryShare) -> None:
        """Give it back."""
        self._leave(share)

    def _leave(self, share: MemoryShare) -> None:
        self._held.pop(share, None)
        for line in self._lines:
            line.discard(share)
        self._hand_out()  # those behind it may want less

    def _look_later(self) -> None:
        if self._looks is None and any(self._lines):
            self._looks = asyncio.get_running_loop().call_later(_LOOK_AGAIN, self._look)

    def _look(self) -> None:
        self._looks = None
        self._hand_out()
        self._look_later()

    def _hand_out(self) -> None:
        held = [0, 0, 0]
        for share in self._held:
            held[share.standing()] += share.octets
        while (turn := whose_turn(self._lines, held, self._all)) is not None:
            share = self._lines[turn].peek()
            standing = share.standing()
            if standing is not turn:  # it changed since the share stood in line
                self._lines[turn].discard(share)
                self._lines[standing].add(share)
                continue
            if share.octets > self._all - sum(held):
                return
            self._lines[turn].take()
            held[standing] += share.octets
            self._held[share] = None
            if not share.turn.done():
                share.turn.set_result(None)
