"""The memory that streamed content may take, shared by all deliveries: a delivery that finds too little waits its turn.

A delivery takes its share once, before it dials, and gives it back at its end. A delivery with a share never waits for
more, so there can be no deadlock.
"""

import asyncio
from collections import deque


class MemoryBudget:
    """A number of octets, to be taken and given back."""

    def __init__(self, octets: int) -> None:
        self._all = self._free = octets
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @property
    def free(self) -> int:
        """Octets that are not taken."""
        return self._free

    def needed(self, octets: int) -> int:
        """What `take` takes for `octets`: at most the whole budget, or it would wait for ever."""
        return min(octets, self._all)

    async def take(self, octets: int, within: float) -> bool:
        """Take octets; False when too few were free for `within` seconds."""
        octets = self.needed(octets)
        if not self._waiting and octets <= self._free:
            self._free -= octets
            return True
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((octets, turn))
        try:
            async with asyncio.timeout(within):
                await turn
        except TimeoutError:
            return self._given(turn)
        except asyncio.CancelledError:
            if self._given(turn):
                self.give(octets)
            raise
        return True

    def give(self, octets: int) -> None:
        """Give octets back."""
        self._free += self.needed(octets)
        self._hand_out()

    def _given(self, turn: "asyncio.Future[None]") -> bool:
        """Whether its turn came all the same; if not, it leaves the line."""
        if turn.done() and not turn.cancelled():
            return True
        self._waiting = deque(each for each in self._waiting if each[1] is not turn)
        self._hand_out()  # those behind it may want less
        return False

    def _hand_out(self) -> None:
        while self._waiting and self._waiting[0][0] <= self._free:
            octets, turn = self._waiting.popleft()
            if not turn.done():
                self._free -= octets
                turn.set_result(None)
