"""Room in memory for content that streams, shared by all deliveries: who finds none waits, first come first served.

A delivery takes its room once, before anything is dialled, and gives it back at its end, so nobody who has room ever
waits for more of it: there is no way into a deadlock.
"""

import asyncio
from collections import deque


class MemoryBudget:
    """So many octets, to be taken and given back."""

    def __init__(self, octets: int) -> None:
        self._all = self._free = octets
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @property
    def free(self) -> int:
        """Octets that nobody has."""
        return self._free

    def needed(self, octets: int) -> int:
        """What is taken for so many octets: never more than there is in all, or it would wait for ever."""
        return min(octets, self._all)

    async def take(self, octets: int, within: float) -> bool:
        """Take room; False when there was none for so many seconds."""
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
        """Give room back."""
        self._free += self.needed(octets)
        self._hand_out()

    def _given(self, turn: "asyncio.Future[None]") -> bool:
        """Whether its turn came all the same; if not, it is taken out of the row."""
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
