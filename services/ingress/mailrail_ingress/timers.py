"""Deadlines of connections: one wheel and one timer a process, not one a command (performance rule 1).

A connection only moves its own `deadline`; the wheel looks at it when the slot comes round that it was last put into
and, finding the deadline moved, puts it into a later one. So activity costs an assignment, however many connections
there are.
"""

import asyncio
from typing import Protocol

from mailrail.kit import log

TICK = 0.5
"""Seconds between looks; deadlines are met this much late at most."""


NEVER = float("inf")
"""The deadline of something that has left the wheel."""


class Timed(Protocol):
    """Something with a deadline on the loop's clock."""

    deadline: float

    def expire(self, now: float) -> None:
        """The deadline has passed. It must move the deadline or leave the wheel."""
        ...


class Wheel:
    """Slots of one tick each, as far as anything is put."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._slots: dict[int, set[Timed]] = {}
        self._where: dict[Timed, int] = {}
        self._turned = int(loop.time() / TICK)
        self._handle: asyncio.TimerHandle | None = None

    def add(self, timed: Timed) -> None:
        """Watch its deadline from now on."""
        self._put(timed)
        if self._handle is None:
            self._turned = int(self._loop.time() / TICK)
            self._handle = self._loop.call_later(TICK, self._turn)

    def remove(self, timed: Timed) -> None:
        """Forget it; unknown ones are no mistake."""
        slot = self._where.pop(timed, None)
        if slot is not None and slot in self._slots:
            self._slots[slot].discard(timed)

    def hasten(self, timed: Timed) -> None:
        """Its deadline moved to before the slot it waits in."""
        self.remove(timed)
        self._put(timed)

    def _put(self, timed: Timed) -> None:
        slot = max(int(timed.deadline / TICK) + 1, self._turned + 1)
        waiting = self._slots.get(slot)
        if waiting is None:
            self._slots[slot] = {timed}
        else:
            waiting.add(timed)
        self._where[timed] = slot

    def _turn(self) -> None:
        self._handle = None
        now = self._loop.time()
        upto = int(now / TICK)
        while self._turned < upto:
            self._turned += 1
            for timed in self._slots.pop(self._turned, ()):
                if self._where.pop(timed, None) is None:
                    continue  # removed by one that expired before it
                if timed.deadline <= now:
                    try:
                        timed.expire(now)
                    except Exception:  # one that fails must not stop the clock of all others
                        log.get_logger().exception("a deadline was not met")
                if timed.deadline < NEVER:
                    self._put(timed)
        if self._where:
            self._handle = self._loop.call_later(TICK, self._turn)
