"""Turns at a bounded number of look-ups, each of which takes a socket or two.

A name server that is silent holds a look-up for all its time, and a stranger can have any number of names there. So
names that never answered have half of the look-ups, and those that wait do so in a line (core/line.py); a look-up that
is not answered for a while is broken off when others wait. A name that has answered before waits for none of these.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Final

from mailrail.core.line import Line

PATIENCE: Final = 5.0
"""Seconds without an answer after which a look-up of a name that never answered gives way to others."""
_LOOK: Final = 0.5
"""Seconds between looks whether others wait."""


class NoTurn(Exception):
    """There were too many others for too long: nothing was asked, and nothing is known."""


class GaveWay(Exception):
    """There was no answer for PATIENCE, and others waited."""


class LookupTurns:
    """So many look-ups at a time."""

    def __init__(self, most: int, wait: float) -> None:
        """`wait`: seconds that a look-up stands in line at most."""
        self._most = most
        self._wait = wait
        self._loop = asyncio.get_running_loop()
        self._all = 0
        self._unknown = 0
        self._fresh = 0  # those of them that had a turn for having come last
        self._line = Line[asyncio.Future[bool]]()
        self._known_waiting: dict[asyncio.Future[bool], None] = {}

    @contextlib.asynccontextmanager
    async def turn(self, *, known: bool) -> AsyncIterator[None]:
        """Wait for a turn, and have it. `known`: the name has answered before. Raises NoTurn or GaveWay."""
        if self._room(known):
            fresh = self._count(known)
        else:
            fresh = await self._stand(known)
        looks: asyncio.TimerHandle | None = None
        try:
            if known:
                yield
                return
            limit = asyncio.timeout(None)

            def look() -> None:
                nonlocal looks
                if self._line:
                    limit.reschedule(self._loop.time())
                else:
                    looks = self._loop.call_later(_LOOK, look)

            looks = self._loop.call_later(PATIENCE, look)
            try:
                async with limit:
                    yield
            except TimeoutError as error:
                if limit.expired():
                    raise GaveWay(f"no answer in {PATIENCE:.0f} s while others waited") from error
                raise
        finally:
            if looks is not None:
                looks.cancel()
            self._end(known, fresh)

    def _room(self, known: bool) -> bool:
        if self._all >= self._most:
            return False
        return known or self._unknown < max(1, self._most // 2)

    def _count(self, known: bool) -> bool:
        """Count a turn that begins; says whether it is one of those for who came last. These are half, at any time: by
        turns, each quick answer to a fresh name would be followed by an old one that is silent for long."""
        self._all += 1
        if known:
            return False
        fresh = self._next_is_fresh
        self._unknown += 1
        self._fresh += fresh
        return fresh

    @property
    def _next_is_fresh(self) -> bool:
        return self._fresh * 2 <= self._unknown

    def _end(self, known: bool, fresh: bool) -> None:
        self._all -= 1
        self._unknown -= not known
        self._fresh -= fresh
        self._hand_on()

    async def _stand(self, known: bool) -> bool:
        """Wait for a turn, which is counted when it comes; returns what `_count` did."""
        turn: asyncio.Future[bool] = self._loop.create_future()
        if known:
            self._known_waiting[turn] = None
        else:
            self._line.add(turn)
        try:
            async with asyncio.timeout(self._wait):
                return await turn
        except (TimeoutError, asyncio.CancelledError) as error:
            self._known_waiting.pop(turn, None)
            self._line.discard(turn)
            if turn.done() and not turn.cancelled():
                self._end(known, turn.result())
            if isinstance(error, TimeoutError):
                raise NoTurn("too many names that nobody answers for are being looked up") from error
            raise

    def _hand_on(self) -> None:
        while self._known_waiting and self._room(known=True):
            turn = next(iter(self._known_waiting))
            del self._known_waiting[turn]
            self._begin(turn, known=True)
        while self._line and self._room(known=False):
            self._begin(self._line.take(last=self._next_is_fresh), known=False)

    def _begin(self, turn: "asyncio.Future[bool]", *, known: bool) -> None:
        if not turn.done():
            turn.set_result(self._count(known))
