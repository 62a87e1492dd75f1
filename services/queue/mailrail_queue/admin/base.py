"""What the parts of administration share."""

import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

from mailrail_queue.notify.dsn import Notifier
from mailrail_queue.routing.addresses import Addresses
from mailrail_queue.routing.router import Router


class AdminBase:
    """What administration works with; `administration.Administration` is made of the parts that stand on it."""

    def __init__(
        self,
        router: Callable[[], Router],
        addresses: Callable[[], Addresses],
        notifier: Notifier,
        *,
        changed: Callable[[set[int]], None] = lambda shards: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`changed` is told the shards whose recipients changed, to wake their owners (ADM-02)."""
        self._router = router
        self._addresses = addresses
        self._notifier = notifier
        self._changed = changed
        self._clock = clock


def stamp(field_of: Any, moment: datetime | None) -> None:
    """Set a Timestamp, if there is a time."""
    if moment is not None:
        field_of.FromDatetime(moment)


def backoff_names(sites: set[str]) -> set[str]:
    """Names under which these sites may rest: a proxy rests as a whole under the name of its transport."""
    return sites | {f"transport:{name.split(':')[1]}" for name in sites if name.startswith("proxy:")}
