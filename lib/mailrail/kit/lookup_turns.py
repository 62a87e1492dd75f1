"""Turns at a bounded number of look-ups, each of which takes a socket or two.

A name server that is silent holds a look-up for all its time, and a stranger can have any number of names there. So
names that never answered have half of the look-ups, and wait in lines (core/outbound/lookup_order.py). A name that was
never looked up has a short turn, so that it does not wait for long however many silent ones come with it. A name that
failed last, as it does after such a turn, has a longer one among its kind, which have half of that half. A turn is only
broken off while others wait. A name that has answered before waits for none of these.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Hashable
from contextvars import ContextVar
from typing import Final

from mailrail.core.outbound.lookup_order import ANSWERED, NEW, LookupOrder, LookupTurn, NameHistory

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
MAIL_BEGAN: Final[ContextVar[float | None]] = ContextVar("MAIL_BEGAN", default=None)
"""Unix seconds at which the message began for which this task, and each that it makes, looks names up. None: it is for
no message, and counts as one that begins now."""


class NoTurn(Exception):
    """There were too many others for too long: nothing was asked, and nothing is known."""


class GaveWay(Exception):
    """There was no answer for so long, and others waited."""


class _Turn(LookupTurn):
    """A turn of somebody here."""

    __slots__ = ("begun",)

    def __init__(self, history: NameHistory, begun: "asyncio.Future[None]") -> None:
        super().__init__(history, _mail_began())
        self.begun = begun


def _mail_began() -> float:
    began = MAIL_BEGAN.get()
    return time.time() if began is None else began


class LookupTurns:
    """So many look-ups at a time."""

    def __init__(self, most: int, wait: float) -> None:
        """`wait`: seconds that a look-up stands in line at most."""
        self._wait = wait
        self._loop = asyncio.get_running_loop()
        self._order = LookupOrder[_Turn](most)
        self._waiting: dict[Hashable, _Turn] = {}
        self._begun = 0  # of this round, counted to ROUND

    @contextlib.asynccontextmanager
    async def turn(self, key: Hashable, history: NameHistory) -> AsyncIterator[None]:
        """Wait for a turn, and have it. One may wait for `key` at a time. Raises NoTurn or GaveWay."""
        async with self._turn(key, history):
            if history is ANSWERED:
                yield
                return
            async with self._patience(history):
                yield

    def renew(self, key: Hashable) -> None:
        """This task waits for the turn for `key` that another waits for, which takes the place of the newer mail."""
        # Who asked in this round of the event loop stands in line from the next one on.
        self._loop.call_soon(self._renew, key, _mail_began())

    def _renew(self, key: Hashable, mail_began: float) -> None:
        turn = self._waiting.get(key)
        if turn is not None:
            self._order.renew(turn, mail_began)

    @contextlib.asynccontextmanager
    async def _turn(self, key: Hashable, history: NameHistory) -> AsyncIterator[None]:
        turn = self._waiting[key] = _Turn(history, self._loop.create_future())
        self._order.add(turn)
        self._hand_on()
        try:
            async with asyncio.timeout(self._wait):
                await turn.begun
        except (TimeoutError, asyncio.CancelledError) as error:
            if turn.begun.done() and not turn.begun.cancelled():
                self._end(turn)
            else:
                self._order.discard(turn)
            if isinstance(error, TimeoutError):
                raise NoTurn("too many names that nobody answers for are being looked up") from error
            raise
        finally:
            del self._waiting[key]
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
            if self._order.wanted(history):
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

    def _hand_on(self) -> None:
        while (turn := self._order.take(unknown=self._begun < ROUND)) is not None:
            if turn.history is not ANSWERED:
                if not self._begun:
                    self._loop.call_soon(self._next_round)
                self._begun += 1
            if turn.begun.done():  # nobody waits for it any more
                self._order.end(turn)
            else:
                turn.begun.set_result(None)

    def _next_round(self) -> None:
        self._begun = 0
        self._hand_on()

    def _end(self, turn: _Turn) -> None:
        self._order.end(turn)
        self._hand_on()
