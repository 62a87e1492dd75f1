"""Deadlines of connections: one wheel and one timer a process, not one a command (performance rule 1).

A connection moves its own `deadline`; the wheel looks at it when the slot comes round that it was last put into and,
finding the deadline moved on, puts it into a later one. So activity costs an assignment, however many connections there
are. A deadline that comes nearer is told to the wheel: `move` or `hasten`.

Whatever `expire` raises costs the connection that raised it and no other: the wheel lets go of it and calls `give_up`.
"""

import asyncio
from typing import Protocol

from mailrail.kit import log

TICK = 0.5
"""Seconds between looks where nothing else is asked for."""

NEVER = float("inf")
"""The deadline of something that has left the wheel."""


class Timed(Protocol):
    """Something with a deadline on the loop's clock, in seconds."""

    deadline: float

    def expire(self, now: float) -> None:
        """The deadline has passed. It must move the deadline, set it to NEVER, or leave the wheel."""
        ...

    def give_up(self) -> None:
        """`expire` raised, and the wheel has let go: close the socket at once, so that nothing stays for ever."""
        ...


class Wheel:
    """Slots of one tick each, as far as anything is put. A deadline is met up to two ticks late."""

    def __init__(self, loop: asyncio.AbstractEventLoop, tick: float = TICK) -> None:
        """`tick`: seconds between looks."""
        self._loop = loop
        self._tick = tick
        self._slots: dict[int, set[Timed]] = {}
        self._where: dict[Timed, int] = {}
        self._turned = int(loop.time() / tick)
        self._turning = False
        self._stopped = False
        self._handle: asyncio.TimerHandle | None = None

    def add(self, timed: Timed) -> None:
        """Watch its deadline from now on."""
        if self._stopped:
            return
        if self._handle is None and not self._turning:
            self._turned = int(self._loop.time() / self._tick)
            self._handle = self._loop.call_later(self._tick, self._turn)
        self._put(timed)

    def remove(self, timed: Timed) -> None:
        """Forget it; unknown ones are no mistake."""
        slot = self._where.pop(timed, None)
        if slot is not None and slot in self._slots:
            self._slots[slot].discard(timed)

    def hasten(self, timed: Timed) -> None:
        """Its deadline moved to before the slot it waits in."""
        self.remove(timed)
        if not self._stopped:
            self._put(timed)

    def move(self, timed: Timed, deadline: float) -> None:
        """Set its deadline, to whichever side. One that is not watched only keeps it."""
        timed.deadline = deadline
        slot = self._where.get(timed)
        if slot is not None and deadline < (slot - 1) * self._tick:
            self.hasten(timed)

    def stop(self) -> None:
        """No more looks."""
        self._stopped = True
        self._slots.clear()
        self._where.clear()
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _put(self, timed: Timed) -> None:
        if timed.deadline == NEVER:
            return
        slot = max(int(timed.deadline / self._tick) + 1, self._turned + 1)
        waiting = self._slots.get(slot)
        if waiting is None:
            self._slots[slot] = {timed}
        else:
            waiting.add(timed)
        self._where[timed] = slot

    def _turn(self) -> None:
        self._handle = None
        self._turning = True
        try:
            now = self._loop.time()
            upto = int(now / self._tick)
            while self._turned < upto:
                self._turned += 1
                for timed in self._slots.pop(self._turned, ()):
                    self._look_at(timed, now)
        finally:
            self._turning = False
            if self._where and not self._stopped:
                self._handle = self._loop.call_later(self._tick, self._turn)

    def _look_at(self, timed: Timed, now: float) -> None:
        where = self._where
        slot = self._turned
        if where.get(timed) != slot:
            return  # removed or moved by one that expired before it
        if timed.deadline <= now:
            try:
                timed.expire(now)
            except Exception:
                log.get_logger().exception("a deadline was not met; the connection is closed")
                self.remove(timed)
                try:
                    timed.give_up()
                except Exception:
                    log.get_logger().exception("a connection could not be closed")
                return
        if where.get(timed) == slot:  # it neither left nor moved itself
            del where[timed]
            self._put(timed)
