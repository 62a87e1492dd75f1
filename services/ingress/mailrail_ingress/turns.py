"""Whose turn it is, among clients that have sent more commands than one turn allows.

They wait in one line and share one part of each round of the event loop. With a part for each of them, two hundred such
clients made a round take a third of a second, and all others, who say a few words and wait, had one word a round.
"""

import asyncio
from collections import deque
from typing import Final, Protocol

TURN: Final = 64
"""Command lines of one client that are handled in one turn, in some 2 ms. A message needs fewer unless it has a hundred
recipients, and one read may bring thousands."""
ROUND: Final = 2 * TURN
"""Command lines of all who wait that are handled in one round of the loop, and the rest of the last turn."""


class Talkative(Protocol):
    """A client that waits for its turn."""

    def take_turn(self) -> int:
        """Go on; how many lines were handled. It may ask for another turn meanwhile."""
        ...


class Turns:
    """All who wait, the longest first."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: deque[Talkative] = deque()
        self._going_on = False

    def ask(self, client: Talkative) -> None:
        """Give it a turn, after those who asked before. It asks once until it has had it."""
        self._waiting.append(client)
        if not self._going_on:
            self._going_on = True
            self._loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        handled = 0
        try:
            for _ in range(len(self._waiting)):
                handled += self._waiting.popleft().take_turn()
                if handled >= ROUND:
                    break
        finally:
            self._going_on = bool(self._waiting)
            if self._going_on:
                self._loop.call_soon(self._go_on)
