"""Waiting on conditions, never on time: a test says what must become true and by when, and fails with what it saw.

The pause between two looks grows from 5 ms to 100 ms, so short waits are quick and long ones leave the machine alone.
"""

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

_FIRST_PAUSE = 0.005  # seconds
_LONGEST_PAUSE = 0.1  # seconds
_WITHIN = 30.0
"""Seconds: long for any machine, and short beside the 60 and more that a test sets for what must not be waited for."""


class NeverTrue(AssertionError):
    """A condition did not become true in time; the text says which, how long it had, and what was seen last."""


def _failure(
    condition: Callable[[], object], what: str | Callable[[], str], within: float, seen: object, error: Exception | None
) -> str:
    said = what() if callable(what) else what
    text = said or inspect.getdoc(condition) or getattr(condition, "__qualname__", repr(condition))
    last = f"it raised {type(error).__name__}: {error}" if error is not None else f"last seen: {seen!r}"
    return f"not true within {within:g} s: {text} ({last})"


def wait_until(
    condition: Callable[[], T | None],
    within: float = _WITHIN,
    what: str | Callable[[], str] = "",
    *,
    ignoring: tuple[type[Exception], ...] = (OSError, AssertionError, LookupError),
) -> T:
    """Call `condition` until it answers something true, and return that.

    `within` is in seconds. `what` names the condition in the failure's text; a callable is asked only then, so it can
    add a log's tail. Exceptions of the types in `ignoring` count as "not yet". Raises NeverTrue.
    """
    deadline = time.monotonic() + within
    pause = _FIRST_PAUSE
    while True:
        seen: object = None
        error: Exception | None = None
        try:
            answer = condition()
            if answer:
                return answer
            seen = answer
        except ignoring as raised:
            error = raised
        if time.monotonic() >= deadline:
            raise NeverTrue(_failure(condition, what, within, seen, error)) from error
        time.sleep(pause)
        pause = min(pause * 1.5, _LONGEST_PAUSE)


async def eventually(
    condition: Callable[[], T | Awaitable[T | None] | None],
    within: float = _WITHIN,
    what: str | Callable[[], str] = "",
    *,
    ignoring: tuple[type[Exception], ...] = (OSError, AssertionError, LookupError),
) -> T:
    """`wait_until` for tests that run in an event loop; `condition` may be a plain function or a coroutine function."""
    deadline = time.monotonic() + within
    pause = _FIRST_PAUSE
    while True:
        seen: object = None
        error: Exception | None = None
        try:
            answer = condition()
            value = await answer if inspect.isawaitable(answer) else answer
            if value:
                return value
            seen = value
        except ignoring as raised:
            error = raised
        if time.monotonic() >= deadline:
            raise NeverTrue(_failure(condition, what, within, seen, error)) from error
        await asyncio.sleep(pause)
        pause = min(pause * 1.5, _LONGEST_PAUSE)


def keeps_to(promised: float, measure: Callable[[int], float], what: str, tries: int = 3) -> list[float]:
    """Measure what has a promised time, again if it took longer; answers the seconds that it took, the best one last.

    A machine that others share hesitates now and then, so one try within the time is enough; what is slow by itself is
    so each time. `measure` is given the number of the try, from 0. Raises AssertionError with all that was measured.
    """
    took: list[float] = []
    while len(took) < tries:
        took.append(measure(len(took)))
        if took[-1] < promised:
            return took
    seconds = ", ".join(f"{one:.2f} s" for one in took)
    raise AssertionError(f"{what} took {seconds}; {promised:g} s are promised")
