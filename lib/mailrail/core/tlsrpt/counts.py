"""Sessions, counted by UTC day and by what a report tells apart, before they are stored: a row is not one attempt."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from typing import Final

from mailrail.core.outbound.zone import zone_of
from mailrail.core.tlsrpt.facts import ReportedSession

_WEIGHT: Final = 1024  # octets of facts, besides what the policy says
_TEXT_WEIGHT: Final = 60  # octets of a text, besides its letters


@dataclass(frozen=True, slots=True)
class CountedSessions:
    """Sessions of a day with equal facts."""

    day: date
    facts: ReportedSession
    sessions: int

    @property
    def zone(self) -> str:
        """Of the domain whose report tells them."""
        return zone_of(self.facts.reported_to)


class SessionCounts:
    """Bounded: strangers choose domains, and what their servers answer."""

    def __init__(self, most: int, most_of_zone: int, octets: int = 16 * 1024 * 1024) -> None:
        """`most`: different facts; `most_of_zone`: of them, those of one zone. `octets`: of memory, about; a
        zone has an eighth of it."""
        self._most, self._most_of_zone, self._octets = most, most_of_zone, octets
        self._counts: dict[tuple[date, ReportedSession], int] = {}
        self._zones: dict[str, list[int]] = {}
        """Facts of each zone, and their octets."""
        self._weight = 0
        self.dropped = 0
        """Sessions that found no place."""

    def __len__(self) -> int:
        """Different facts."""
        return len(self._counts)

    def add(self, day: date, facts: ReportedSession, sessions: int = 1) -> None:
        """Count sessions."""
        key = (day, facts)
        known = self._counts.get(key)
        if known is not None:
            self._counts[key] = known + sessions
            return
        zone, weight = zone_of(facts.reported_to), _weight_of(facts)
        of_zone, octets = self._zones.get(zone, (0, 0))
        full = len(self._counts) >= self._most or self._weight + weight > self._octets
        if full or of_zone >= self._most_of_zone or octets + weight > self._octets // 8:
            self.dropped += sessions
            return
        self._counts[key] = sessions
        self._weight += weight
        self._zones[zone] = [of_zone + 1, octets + weight]

    def take(self, most: int) -> list[CountedSessions]:
        """Some of them, to be stored now; they count here no more."""
        taken = []
        for day, facts in list(self._counts)[:most]:
            one = CountedSessions(day, facts, self._counts.pop((day, facts)))
            weight, of_zone = _weight_of(facts), self._zones[one.zone]
            self._weight -= weight
            of_zone[0] -= 1
            of_zone[1] -= weight
            if not of_zone[0]:
                del self._zones[one.zone]
            taken.append(one)
        return taken

    def put_back(self, batch: Iterable[CountedSessions]) -> None:
        """They could not be stored."""
        for one in batch:
            self.add(one.day, one.facts, one.sessions)


def _weight_of(facts: ReportedSession) -> int:
    policy = facts.policy
    return _WEIGHT + sum(_TEXT_WEIGHT + len(text) for text in (*policy.strings, *policy.mx))
