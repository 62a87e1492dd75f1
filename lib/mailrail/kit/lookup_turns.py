"""Turns at a bounded number of look-ups, each of which takes a socket or two.

A name server that is silent holds a look-up for all its time, and a stranger can have any number of names there. So
names that never answered have half of the look-ups, and those that wait do so in lines (core/line.py). A name that was
never looked up has a short turn, so that it does not wait for long however many silent ones come with it. A name that
failed last, as it does after such a turn, has a longer one among its kind, which have half of that half. A turn is only
broken off while others wait. A name that has answered before waits for none of these.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from enum import IntEnum
from typing import Final

from mailrail.core.line import Line

FIRST_PATIENCE: Final = 1.0
"""Seconds without an answer after which the first look-up of a name gives way to others. A name whose servers take
longer fails then, and the name server that we ask mostly knows its answer when it is looked up again."""
PATIENCE: Final = 5.0
"""Seconds without an answer after which a look-up of a name that failed before gives way to others."""
ROUND: Final = 4
"""Look-ups of names that never answered, or failed last, which begin in one round of the event loop. Each costs a
millisecond of it: where thousands of names are answered at once, known ones would wait for hundreds in each step."""
_LOOK: Final = 0.5
"""Seconds between looks whether others wait."""


class NameHistory(IntEnum):
    """What is known of a name before it is looked up."""

    NEW = 0
    FAILED = 1  # nothing answered for it
    ANSWERED = 2  # if only that there is none


NEW, FAILED, ANSWERED = NameHistory.NEW, NameHistory.FAILED, NameHistory.ANSWERED


class NoTurn(Exception):
    """There were too many others for too long: nothing was asked, and nothing is known."""


class GaveWay(Exception):
    """There was no answer for so long, and others waited."""


class _Turn:
    """A turn, or the wait for one."""

    __slots__ = ("begun", "fresh", "history")

    def __init__(self, history: NameHistory, begun: "asyncio.Future[None]") -> None:
        self.history = history
        self.begun = begun
        self.fresh = False
        """It is NEW, and had its turn for having come last."""


class LookupTurns:
    """So many look-ups at a time."""

    def __init__(self, most: int, wait: float) -> None:
        """`wait`: seconds that a look-up stands in line at most."""
        self._most = most
        self._most_unknown = max(1, most // 2)
        self._part_of_failed = self._most_unknown // 2
        self._wait = wait
        self._loop = asyncio.get_running_loop()
        self._held = [0, 0, 0]  # by history
        self._fresh = 0
        self._begun = 0  # of this round, counted to ROUND
        self._lines = [Line[_Turn](), Line[_Turn](), Line[_Turn]()]

    @contextlib.asynccontextmanager
    async def turn(self, history: NameHistory) -> AsyncIterator[None]:
        """Wait for a turn, and have it. Raises NoTurn or GaveWay."""
        async with self._turn(history):
            if history is ANSWERED:
                yield
                return
            async with self._patience(history):
                yield

    @contextlib.asynccontextmanager
    async def _turn(self, history: NameHistory) -> AsyncIterator[None]:
        turn = _Turn(history, self._loop.create_future())
        self._lines[history].add(turn)
        self._hand_on()
        try:
            async with asyncio.timeout(self._wait):
                await turn.begun
        except (TimeoutError, asyncio.CancelledError) as error:
            if turn.begun.done() and not turn.begun.cancelled():
                self._end(turn)
            else:
                self._lines[history].discard(turn)
            if isinstance(error, TimeoutError):
                raise NoTurn("too many names that nobody answers for are being looked up") from error
            raise
        try:
            yield
        finally:
            self._end(turn)

    @contextlib.asynccontextmanager
    async def _patience(self, history: NameHistory) -> AsyncIterator[None]:
        """Break off after some time, or as soon as somebody waits then who could have the turn."""
        seconds = FIRST_PATIENCE if history is NEW else PATIENCE
        limit = asyncio.timeout(None)
        looks: asyncio.TimerHandle

        def look() -> None:
            nonlocal looks
            if self._wanted(history):
                limit.reschedule(self._loop.time())
            else:
                looks = self._loop.call_later(_LOOK, look)

        looks = self._loop.call_later(seconds, look)
        try:
            async with limit:
                yield
        except TimeoutError as error:
            if limit.expired():
                raise GaveWay(f"no answer in {seconds:.0f} s while others waited") from error
            raise
        finally:
            looks.cancel()

    def _wanted(self, history: NameHistory) -> bool:
        """Whether somebody waits for a turn of a name with this history."""
        if self._lines[NEW]:
            return True
        return bool(self._lines[FAILED]) and (history is FAILED or self._held[FAILED] < max(1, self._part_of_failed))

    def _next(self) -> NameHistory | None:
        """Whose turn it is, of those that wait."""
        lines, held = self._lines, self._held
        if sum(held) >= self._most:
            return None
        if lines[ANSWERED]:
            return ANSWERED
        if held[NEW] + held[FAILED] >= self._most_unknown or self._begun >= ROUND:
            return None
        if lines[FAILED] and held[FAILED] < self._part_of_failed:
            return FAILED
        if lines[NEW]:
            return NEW
        return FAILED if lines[FAILED] and held[FAILED] < max(1, self._part_of_failed) else None

    def _hand_on(self) -> None:
        while (history := self._next()) is not None:
            line = self._lines[history]
            if history is NEW:
                # Half of these are for who came last, at any time: by turns, each quick answer to a fresh name would be
                # followed by an old one that is silent for long.
                fresh = self._fresh * 2 <= self._held[NEW]
                turn = line.take(last=fresh)
                turn.fresh = fresh
                self._fresh += fresh
            else:
                turn = line.take(last=False if history is ANSWERED else None)
            self._held[history] += 1
            if history is not ANSWERED:
                if not self._begun:
                    self._loop.call_soon(self._next_round)
                self._begun += 1
            if turn.begun.done():  # nobody waits for it any more
                self._end(turn)
            else:
                turn.begun.set_result(None)

    def _next_round(self) -> None:
        self._begun = 0
        self._hand_on()

    def _end(self, turn: _Turn) -> None:
        self._held[turn.history] -= 1
        self._fresh -= turn.fresh
        self._hand_on()
