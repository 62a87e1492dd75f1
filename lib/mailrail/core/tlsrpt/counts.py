"""Sessions, counted by UTC day and by what a report tells apart, before they are stored: a row is not one attempt."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date

from mailrail.core.outbound.zone import zone_of
from mailrail.core.tlsrpt.facts import ReportedSession


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

    def __init__(self, most: int, most_of_zone: int) -> None:
        """`most`: different facts; `most_of_zone`: of them, those of one zone."""
        self._most, self._most_of_zone = most, most_of_zone
        self._counts: dict[tuple[date, ReportedSession], int] = {}
        self._zones: dict[str, int] = {}
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
        zone = zone_of(facts.reported_to)
        of_zone = self._zones.get(zone, 0)
        if len(self._counts) >= self._most or of_zone >= self._most_of_zone:
            self.dropped += sessions
            return
        self._counts[key] = sessions
        self._zones[zone] = of_zone + 1

    def take(self, most: int) -> list[CountedSessions]:
        """Some of them, to be stored now; they count here no more."""
        taken = []
        for day, facts in list(self._counts)[:most]:
            one = CountedSessions(day, facts, self._counts.pop((day, facts)))
            left = self._zones[one.zone] - 1
            if left:
                self._zones[one.zone] = left
            else:
                del self._zones[one.zone]
            taken.append(one)
        return taken

    def put_back(self, batch: Iterable[CountedSessions]) -> None:
        """They could not be stored."""
        for one in batch:
            self.add(one.day, one.facts, one.sessions)
