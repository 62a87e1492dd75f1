"""Messages counted by day, policy domain and what an aggregate report tells apart (DAGG-01a, DAGG-03).

A million messages a day is little, and strangers choose how many of them differ: who sends from a million addresses, or
in the name of a million subdomains, makes a million records. So a message is one small key: its address and the number
of the rest of its facts, of which most messages share few.
"""

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date
from ipaddress import ip_address
from typing import Final

from mailrail.core.dmarc.report.facts import ReportedMessage, ReportedPolicy, decode, encode
from mailrail.core.outbound.zone import zone_of

_ROW_WEIGHT: Final = 130  # octets of a key with its place in a dictionary and its count
_FACTS_WEIGHT: Final = 200  # octets of facts, besides their letters
_DOMAIN_WEIGHT: Final = 2000  # octets of a policy domain without its rows
_SHARE: Final = 3 / 4  # of what there is, one zone may have so much


@dataclass(slots=True)
class _DomainDay:
    policy: ReportedPolicy
    seen: float
    required: int = 0
    dropped: int = 0
    rows: dict[bytes, int] = field(default_factory=dict)


class MessageCounts:
    """Bounded in memory; what found no room is counted."""

    def __init__(self, octets: int = 256 * 1024 * 1024) -> None:
        """`octets`: of memory, about. One zone has three quarters of it."""
        self._octets = octets
        self._days: dict[tuple[date, str], _DomainDay] = {}
        self._numbers: dict[bytes, int] = {}
        self._facts: list[bytes] = []
        self._weight = 0
        self._zones: dict[str, int] = {}
        self.dropped = 0
        """Messages that found no room."""

    @property
    def octets(self) -> int:
        """Of memory, about."""
        return self._weight

    def add(
        self,
        day: date,
        policy: ReportedPolicy,
        message: ReportedMessage,
        *,
        seen: float,
        count: int = 1,
        optional: bool = False,
    ) -> None:
        """Count messages. `seen`: when the policy was looked up, in Unix seconds.

        DAGG-01a: the policy domain has one report for itself and all subdomains that have no record of their own, and
        the policy that was seen last is the one that it tells. DAGG-18: `optional` messages are told, and are no cause
        for a report: those that bring reports to us.
        """
        key = (day, policy.domain)
        zone = zone_of(policy.domain)
        known = self._days.get(key)
        if known is None:
            if not self._room(zone, _DOMAIN_WEIGHT):
                self.dropped += count
                return
            known = self._days[key] = _DomainDay(policy, seen)
        elif seen >= known.seen:
            known.policy, known.seen = policy, seen
        row = self._row(zone, message)
        if row is None or (row not in known.rows and not self._room(zone, _ROW_WEIGHT)):
            known.dropped += count
            self.dropped += count
            return
        known.rows[row] = known.rows.get(row, 0) + count
        if not optional:
            known.required += count

    def _row(self, zone: str, message: ReportedMessage) -> bytes | None:
        facts = encode(message)
        number = self._numbers.get(facts)
        if number is None:
            if not self._room(zone, _FACTS_WEIGHT + len(facts)):
                return None
            number = self._numbers[facts] = len(self._facts)
            self._facts.append(facts)
        return ip_address(message.source_ip).packed + number.to_bytes(4, "big")

    def _room(self, zone: str, weight: int) -> bool:
        of_zone = self._zones.get(zone, 0) + weight
        if self._weight + weight > self._octets or of_zone > _SHARE * self._octets:
            return False
        self._weight += weight
        self._zones[zone] = of_zone
        return True

    def domains(self, day: date) -> list[str]:
        """Policy domains with rows of the day, each of which has a report: not those with optional messages alone."""
        return sorted(domain for (of, domain), one in self._days.items() if of == day and one.rows and one.required)

    def policy(self, day: date, domain: str) -> ReportedPolicy:
        """The policy that was seen last. Raises KeyError."""
        return self._days[day, domain].policy

    def messages(self, day: date, domain: str) -> tuple[int, int]:
        """Those that are counted, and those that found no room. Raises KeyError."""
        one = self._days[day, domain]
        return sum(one.rows.values()), one.dropped

    def rows(self, day: date, domain: str) -> Iterator[tuple[ReportedMessage, int]]:
        """The records of a report with their counts, in an order that follows from them alone. Raises KeyError."""
        rows = self._days[day, domain].rows
        ranks = array("L", bytes(array("L").itemsize * len(self._facts)))
        for rank, number in enumerate(sorted(range(len(self._facts)), key=self._facts.__getitem__)):
            ranks[number] = rank

        def order(row: bytes) -> bytes:
            """IPv4 before IPv6."""
            rank = ranks[int.from_bytes(row[-4:], "big")]
            return len(row).to_bytes(1, "big") + row[:-4] + rank.to_bytes(4, "big")

        for row in sorted(rows, key=order):
            facts = self._facts[int.from_bytes(row[-4:], "big")]
            yield decode(str(ip_address(row[:-4])), facts), rows[row]
