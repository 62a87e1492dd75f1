"""A line for something that is short: every other turn is that of the one that came last, or of the newest mail.

First come, first served would let what is fresh stand behind all that waits for servers which do not answer; last come,
first served would let somebody stand for ever.
"""

from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Hashable, Iterator
from enum import IntEnum
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)


class Line(Generic[T]):
    """Those that wait, each once."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[T, None] = OrderedDict()
        self._last = False

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[T]:
        """As they came; who leaves meanwhile disturbs nothing."""
        return iter(list(self._waiting))

    def add(self, one: T) -> None:
        """Stand in line."""
        self._waiting[one] = None

    def put_back(self, one: T) -> None:
        """Stand before all others: its turn came to nothing."""
        self._waiting[one] = None
        self._waiting.move_to_end(one, last=False)

    def discard(self, one: T) -> None:
        """Leave the line."""
        self._waiting.pop(one, None)

    def peek(self) -> T:
        """Whom `take` would take. Raises StopIteration when nobody waits."""
        return next(iter(self._waiting) if self._last else reversed(self._waiting))

    def take(self, *, last: bool | None = None) -> T:
        """Whose turn it is, or who came `last` or first; it leaves the line. Raises KeyError when nobody waits."""
        self._last = not self._last if last is None else last
        return self._waiting.popitem(last=self._last)[0]


class DatedLine(Generic[T]):
    """Those that wait, each once, for the sake of something that has a time of its own.

    Who hands on a backlog does it in an order of his own, so what came last need not be what is newest.
    """

    def __init__(self) -> None:
        self._waiting: OrderedDict[T, tuple[float, int]] = OrderedDict()
        self._by_time: list[tuple[float, int, T]] = []
        self._count = 0
        self._newest = False

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, one: T) -> bool:
        return one in self._waiting

    def __iter__(self) -> Iterator[T]:
        """As they came; who leaves meanwhile disturbs nothing."""
        return iter(list(self._waiting))

    def add(self, one: T, time: float) -> None:
        """Stand in line, who does not yet, for something of this `time`. Of the same time, who comes last is newest."""
        self._count += 1
        self._waiting[one] = (time, self._count)
        insort(self._by_time, (time, self._count, one))

    def renew(self, one: T, time: float) -> None:
        """Who stands in line waits for something of this `time`, too: the newest counts, and its wait goes on."""
        at = self._waiting.get(one)
        if at is not None and at[0] < time:
            del self._by_time[bisect_left(self._by_time, at)]
            self.add(one, time)  # a key keeps its place in an OrderedDict

    def put_back(self, one: T, time: float) -> None:
        """Stand before all others, for something of this `time`: its turn came to nothing."""
        self.add(one, time)
        self._waiting.move_to_end(one, last=False)

    def discard(self, one: T) -> None:
        """Leave the line."""
        at = self._waiting.pop(one, None)
        if at is not None:
            del self._by_time[bisect_left(self._by_time, at)]  # a short tuple sorts right before its longer one

    def take(self, *, newest: bool | None = None) -> T:
        """Who waits for what is `newest`, or who has waited longest, or each in alternation; it leaves the line.
        Raises KeyError when nobody waits."""
        if not self._waiting:
            raise KeyError("nobody waits")
        self._newest = not self._newest if newest is None else newest
        one = self._by_time[-1][2] if self._newest else next(iter(self._waiting))
        self.discard(one)
        return one


class Need(IntEnum):
    """What somebody has of what is short."""

    NEW = 0  # nothing yet
    AGAIN = 1  # nothing, but had some
    MORE = 2  # some: he can wait for more of it


class Lines(Generic[T]):
    """A line for each need: NEW and AGAIN have turns in alternation, and MORE has those that neither wants.

    Among the NEW, who waits for what is newest has every other turn (`DatedLine`), beginning with the first: who has
    been served before and comes again does not take it. AGAIN and MORE are served in order.
    """

    def __init__(self) -> None:
        self._new = DatedLine[T]()
        self._again: OrderedDict[T, None] = OrderedDict()
        self._more: OrderedDict[T, None] = OrderedDict()
        self._again_next = False

    def __len__(self) -> int:
        return len(self._new) + len(self._again) + len(self._more)

    def add(self, one: T, need: Need, time: float = 0.0) -> None:
        """Stand in line, for something of this `time`; who stands there already keeps its place, and the newest counts.
        Who stands there with another need stands in both, and leaves each by a turn of its own."""
        if need is Need.NEW:
            if one in self._new:
                self._new.renew(one, time)
            else:
                self._new.add(one, time)
        else:
            (self._again if need is Need.AGAIN else self._more)[one] = None

    def put_back(self, one: T, need: Need, time: float = 0.0) -> None:
        """Stand before all others of the line: its turn came to nothing."""
        if need is Need.NEW:
            self._new.discard(one)
            self._new.put_back(one, time)
        else:
            line = self._again if need is Need.AGAIN else self._more
            line[one] = None
            line.move_to_end(one, last=False)

    def take(self) -> T:
        """Whose turn it is; it leaves the line. Raises KeyError when nobody waits."""
        if self._new and not (self._again_next and self._again):
            self._again_next = True
            return self._new.take()
        self._again_next = False
        return (self._again or self._more).popitem(last=False)[0]
