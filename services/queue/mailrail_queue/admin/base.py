"""What the parts of administration share."""

import time
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from mailrail_queue.notify.dsn import Notifier
from mailrail_queue.routing.addresses import Addresses
from mailrail_queue.routing.router import Router

CALLER: Final[ContextVar[str]] = ContextVar("CALLER", default="")
"""The caller of an administrative call, for the log: the role of its certificate."""


@dataclass(frozen=True, slots=True)
class AdminContext:
    """What administration works with."""

    router: Callable[[], Router]
    addresses: Callable[[], Addresses]
    notifier: Notifier
    wake: Callable[[set[int]], None]
    """Wakes the owners of shards whose recipients changed (ADM-02)."""
    clock: Callable[[], float] = time.time
    counted: Callable[[str], int] = lambda _: 0
    """Recipients that this process counted at a site, where they are many; 0 for any other."""


def stamp(field_of: Any, moment: datetime | None) -> None:
    """Set a Timestamp, if there is a time."""
    if moment is not None:
        field_of.FromDatetime(moment)


def backoff_names(sites: set[str]) -> set[str]:
    """Names under which these sites may be in backoff: a proxy is so as a whole, under the name of its transport."""
    return sites | {f"transport:{name.split(':')[1]}" for name in sites if name.startswith("proxy:")}
