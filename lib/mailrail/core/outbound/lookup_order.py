"""Whose look-up in the DNS is next, of those that wait for one of a bounded number.

Names that never answered have half of the look-ups, and who failed last has half of that half while others wait. Of
each of these two halves, half is for the newest mail, and half for who has waited longest. Newest is what came to us
last, not to the resolver: the queue hands a backlog on in turns of the oldest and the newest, as fast as look-ups end,
so what it hands on next would stand before the first mail to a new domain at twice the rate of such turns.

There is no clock and no I/O; kit/lookup_turns.py carries out.
"""

from enum import IntEnum
from typing import Generic, TypeVar

from mailrail.core.line import DatedLine


class NameHistory(IntEnum):
    """What is known of a name before it is looked up."""

    NEW = 0
    FAILED = 1  # nothing answered for it
    ANSWERED = 2  # if only that there is none


NEW, FAILED, ANSWERED = NameHistory.NEW, NameHistory.FAILED, NameHistory.ANSWERED


class LookupTurn:
    """A turn, or the wait for one."""

    __slots__ = ("history", "mail_began", "of_newest")

    def __init__(self, history: NameHistory, mail_began: float) -> None:
        """`mail_began`: Unix seconds at which the message began for which a name is looked up."""
        self.history = history
        self.mail_began = mail_began
        self.of_newest = False
        """It had its turn for being that of the newest mail."""


T = TypeVar("T", bound=LookupTurn)


class LookupOrder(Generic[T]):
    """Look-ups that wait, and how many there are."""

    def __init__(self, most: int) -> None:
        """`most`: look-ups at a time."""
        self._most = most
        self._most_unknown = max(1, most // 2)
        self._part_of_failed = self._most_unknown // 2
        self._held = [0, 0, 0]  # by history
        self._of_newest = [0, 0, 0]  # of these
        self._newest_last = [False, False, False]  # whose turn it was, of who has one at a time
        self._lines = (DatedLine[T](), DatedLine[T](), DatedLine[T]())

    def add(self, turn: T) -> None:
        """Wait for a turn."""
        self._lines[turn.history].add(turn, turn.mail_began)

    def renew(self, turn: T, mail_began: float) -> None:
        """A message that began then waits for a turn, too, which counts if it is newer and the turn has not begun."""
        self._lines[turn.history].renew(turn, mail_began)

    def discard(self, turn: T) -> None:
        """Wait no more."""
        self._lines[turn.history].discard(turn)

    def take(self, *, unknown: bool = True) -> T | None:
        """Whose turn begins; None: nobody's. `unknown`: it may be that of a name that never answered, or failed
        last."""
        history = self._next(unknown=unknown)
        if history is None:
            return None
        newest = self._is_for_newest(history)
        turn = self._lines[history].take(newest=newest)
        turn.of_newest = newest
        self._held[history] += 1
        self._of_newest[history] += newest
        return turn

    def end(self, turn: T) -> None:
        """A turn is over."""
        self._held[turn.history] -= 1
        self._of_newest[turn.history] -= turn.of_newest

    def wanted(self, history: NameHistory) -> bool:
        """Whether somebody waits who could have the turn of a name with this history."""
        if self._lines[NEW]:
            return True
        return bool(self._lines[FAILED]) and (history is FAILED or self._held[FAILED] < max(1, self._part_of_failed))

    def _is_for_newest(self, history: NameHistory) -> bool:
        if history is ANSWERED:
            return False
        if held := self._held[history]:
            # Half at any time: by turns, each quick answer to a new name would be followed by an old, silent one.
            return self._of_newest[history] * 2 <= held
        if len(self._lines[history]) > 1:
            self._newest_last[history] = not self._newest_last[history]
        return self._newest_last[history]

    def _next(self, *, unknown: bool) -> NameHistory | None:
        lines, held = self._lines, self._held
        if sum(held) >= self._most:
            return None
        if lines[ANSWERED]:
            return ANSWERED
        if not unknown or held[NEW] + held[FAILED] >= self._most_unknown:
            return None
        if lines[FAILED] and held[FAILED] < self._part_of_failed:
            return FAILED
        if lines[NEW]:
            return NEW
        return FAILED if lines[FAILED] and held[FAILED] < max(1, self._part_of_failed) else None
