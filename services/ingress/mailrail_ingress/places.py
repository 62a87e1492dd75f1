"""Who holds one of the connections that the process may have, and whose place a newcomer takes when there is none.

What is decided is in core/admission.py. Here is counted, and remembered which addresses have delivered mail.
"""

import sys
from collections.abc import Callable, Collection
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_network
from typing import Any, Final, NamedTuple, Protocol

from mailrail.core.admission import Admission, Idle, Pace, Survey, Worth, judge, under_stress
from mailrail.core.revision.revision import GatewayLimits
from mailrail.core.smtp.address import plain_ip
from mailrail.kit import log
from mailrail.kit.wheel import NEVER, Wheel
from mailrail_ingress import metrics
from mailrail_ingress.handshakes import Handshakes
from mailrail_ingress.throttle import neighbourhood

ACQUAINTANCES: Final = 20_000
"""Addresses that are remembered because they delivered mail or logged in; what was longest away is forgotten first."""
PARTING: Final = 50
"""Connections that may be on their way out for others at a time. Until they are gone each is one too many, and the
process may open only so many files."""
LOOK_AGAIN: Final = 0.25
"""Seconds between two looks at all connections for one that can go: a look at 10,000 takes some 10 ms."""
STRESS_LOOK: Final = 1.0
"""Seconds between two looks for idle strangers under stress."""


class ClientGroup(NamedTuple):
    """With whom a client is counted."""

    client: str
    """An IPv4 address, or an IPv6 /64."""
    network: str
    """An IPv4 /24, or an IPv6 /48: what one customer of a provider has at most, as a rule."""


@lru_cache(maxsize=4096)
def client_group(address: IPv4Address | IPv6Address) -> ClientGroup:
    """Of a client's address."""
    address = plain_ip(address)
    prefix = 24 if isinstance(address, IPv4Address) else 48
    return ClientGroup(neighbourhood(address), str(ip_network((address, prefix), strict=False)))


class Occupant(Protocol):
    """A connection that has a place."""

    def idleness(self) -> Idle[Any] | None:
        """Since when its client is to say something; None: it waits for us, or has not long to go."""
        ...

    def content_octets(self) -> int | None:
        """Octets so far of the message whose content its client is to send; None: of none."""
        ...

    def end_idle(self, *, displaced: bool) -> None:
        """Say 421 and close, for another or because its time is over."""
        ...


class Places:
    """The places of a process. While it is under stress, a `kit.wheel.Timed`."""

    def __init__(
        self,
        occupants: Collection[Occupant],
        handshakes: Handshakes,
        wheel: Wheel,
        clock: Callable[[], float],
        room: int = sys.maxsize,
    ) -> None:
        """`occupants`: those of which one may have to go. `clock`: that of the wheel's loop. `room`: how many
        connections the system lets the process have, whatever its gateways allow."""
        self.deadline = NEVER
        self.stress = False
        self.total = 0
        self._occupants = occupants
        self._handshakes = handshakes
        self._wheel = wheel
        self._clock = clock
        self._room = room
        self._limit = 0
        self._by_client: dict[str, int] = {}
        self._by_network: dict[str, int] = {}
        self._acquaintances: dict[str, None] = {}
        self._parting: set[Occupant] = set()
        self._survey: Survey[Occupant] = Survey((), -LOOK_AGAIN, stress=False)
        self._pace: Pace[Occupant] = Pace()

    def worth(self, of: ClientGroup, *, submission: bool) -> Worth:
        """What is known of a client before it says anything."""
        if of.client in self._acquaintances:
            return Worth.ACQUAINTANCE
        return Worth.SUBMITTER if submission else Worth.STRANGER

    def judge(self, of: ClientGroup, worth: Worth, limits: GatewayLimits) -> Admission:
        """Whether a newcomer gets a place."""
        return judge(
            worth,
            limit=min(limits.connections, self._room),
            client_limit=limits.connections_per_ip,
            total=self.total,
            of_client=self._by_client.get(of.client, 0),
            of_network=self._by_network.get(of.network, 0),
            stress=self.stress,
        )

    def take(self, of: ClientGroup, limits: GatewayLimits) -> None:
        """It has one."""
        self.total += 1
        self._by_client[of.client] = self._by_client.get(of.client, 0) + 1
        self._by_network[of.network] = self._by_network.get(of.network, 0) + 1
        self._limit = min(limits.connections, self._room)
        self._weigh()

    def leave(self, of: ClientGroup, occupant: Occupant | None = None) -> None:
        """It has none any more."""
        self.total -= 1
        _one_less(self._by_client, of.client)
        _one_less(self._by_network, of.network)
        if self._parting and occupant is not None:
            self._parting.discard(occupant)
        self._weigh()

    def remember(self, client: str) -> None:
        """It has delivered mail, or logged in."""
        self._acquaintances.pop(client, None)
        self._acquaintances[client] = None
        if len(self._acquaintances) > ACQUAINTANCES:
            del self._acquaintances[next(iter(self._acquaintances))]

    def make_room(self, worth: Worth) -> bool:
        """End another connection for a newcomer. False: nobody can go."""
        if len(self._parting) >= PARTING:
            return False
        now = self._clock()
        if self._displace(worth):
            return True
        if now - self._survey.taken >= LOOK_AGAIN:
            self._look(now)
            if self._survey.expired or self._displace(worth):
                return True
        return self._handshakes.end_oldest(now)

    def expire(self, now: float) -> None:
        """See Timed: idle strangers have less time under stress."""
        self._look(now)
        if self.stress:
            self.deadline = now + STRESS_LOOK
        else:
            self.deadline = NEVER
            log.get_logger().info("connections are no longer scarce", connections=self.total)

    def give_up(self) -> None:
        """See Timed: until stress begins anew, newcomers alone make it look."""
        self.deadline = NEVER

    def _displace(self, worth: Worth) -> bool:
        while (idle := self._survey.next_for(worth)) is not None:
            occupant = idle.connection
            if occupant.idleness() == idle:  # it has said nothing since the look
                self._parting.add(occupant)
                occupant.end_idle(displaced=True)
                return True
        return False

    def _look(self, now: float) -> None:
        looks = (occupant.idleness() for occupant in list(self._occupants))
        self._survey = Survey((idle for idle in looks if idle is not None), now, stress=self.stress)
        for occupant in self._survey.expired:
            occupant.end_idle(displaced=False)
        if self.stress:
            sending = ((occupant, occupant.content_octets()) for occupant in list(self._occupants))
            found = ((occupant, octets) for occupant, octets in sending if octets is not None)
            for occupant in self._pace.slow(found, now):
                occupant.end_idle(displaced=False)

    def _weigh(self) -> None:
        stress = under_stress(self.stress, limit=self._limit, total=self.total)
        if stress is self.stress:
            return
        self.stress = stress
        metrics.STRESS.of().number = float(stress)
        if stress and self.deadline == NEVER:
            log.get_logger().warning(
                "connections are scarce; idle strangers are ended after ten seconds",
                connections=self.total,
                limit=self._limit,
            )
            self.deadline = self._clock()
            self._wheel.add(self)


def _one_less(counts: dict[str, int], key: str) -> None:
    left = counts[key] - 1
    if left:
        counts[key] = left
    else:
        del counts[key]
