"""What sessions show of recipient domains, and when it is worth a write (RTLS-29)."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

AGAIN: Final = 3600.0
"""Seconds after which what has not changed is written again, so that people see that it is still so."""


class Offered(NamedTuple):
    """What the server offered in a session."""

    starttls: bool
    """STARTTLS, or TLS from the first octet."""
    requiretls: bool
    """REQUIRETLS inside TLS (RTLS-14): what is offered before it counts for nothing."""


@dataclass(frozen=True, slots=True)
class LearnedDomain:
    """What the last session with a domain showed."""

    domain: str
    transport: str
    """`namespace/name`; empty: direct delivery."""
    offered: Offered
    seen: float
    """By the clock of `note`."""


class LearnedDomains:
    """What is to be written, by recipient domain and transport, whichever account sent (RTLS-29). Bounded."""

    def __init__(self, most: int, most_waiting: int) -> None:
        """`most`: pairs of domain and transport of which is known when they were written. `most_waiting`: those to be
        written; while nobody can, what is new finds no place then."""
        self._most, self._most_waiting = most, most_waiting
        self._written: OrderedDict[tuple[str, str], tuple[Offered, float]] = OrderedDict()
        self._waiting: dict[tuple[str, str], LearnedDomain] = {}
        self.dropped = 0
        """Sessions that found no place."""

    def __len__(self) -> int:
        return len(self._waiting)

    def note(self, domain: str, transport: str, offered: Offered, now: float) -> bool:
        """A session showed this. False: there was no place for it."""
        key = (domain, transport)
        written = self._written.get(key)
        if written is not None and written[0] == offered and 0 <= now - written[1] < AGAIN:
            self._waiting.pop(key, None)  # it changed and changed back before it was written
            return True
        if key not in self._waiting and len(self._waiting) >= self._most_waiting:
            self.dropped += 1
            return False
        self._waiting[key] = LearnedDomain(domain, transport, offered, now)
        return True

    def take(self, most: int) -> list[LearnedDomain]:
        """Some that wait, to be written now."""
        keys = list(self._waiting)[:most]
        return [self._waiting.pop(key) for key in keys]

    def wrote(self, batch: Sequence[LearnedDomain]) -> None:
        """They are written."""
        for one in batch:
            key = (one.domain, one.transport)
            self._written[key] = (one.offered, one.seen)
            self._written.move_to_end(key)
        while len(self._written) > self._most:
            self._written.popitem(last=False)

    def put_back(self, batch: Sequence[LearnedDomain]) -> None:
        """They could not be written. What sessions have shown since is newer."""
        for one in batch:
            key = (one.domain, one.transport)
            if key not in self._waiting and len(self._waiting) >= self._most_waiting:
                self.dropped += 1
            else:
                self._waiting.setdefault(key, one)
