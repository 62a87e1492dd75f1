"""A line for something that is short: every other turn is that of the one that came last.

First come, first served would let what is fresh stand behind all that waits for servers which do not answer; last come,
first served would let somebody stand for ever.
"""

from collections import OrderedDict
from collections.abc import Hashable, Iterator
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
