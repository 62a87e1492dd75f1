"""Which connections are taken when there is not room for all, and which end for others (SIN-17).

A process takes so many connections, whoever comes first, and whoever holds one says a word every five minutes. Two
parts of them are therefore not for strangers at port 25: one is for submission listeners, where users log in, and one
for addresses that have delivered mail before. Once connections are scarce, idle strangers have less time, the addresses
of a network count as one client, and a newcomer takes the place of the connection that is longest idle and worth no
more than it.

All of this is decided here from numbers; the sockets are elsewhere.
"""

from collections.abc import Iterable
from enum import Enum, IntEnum, auto
from typing import Final, Generic, NamedTuple, TypeVar

PART: Final = 10
"""Each of the two parts that strangers at an MX listener do not get is one in so many of all connections."""
STRESS_BEGINS, STRESS_ENDS = 0.7, 0.6
"""Parts of all connections from which on a process is under stress, and below which it is no longer."""
STRESS_IDLE: Final = 10.0
"""Seconds of silence that end a stranger's session under stress, as in Postfix's stress mode. Where nobody else can go
for another, it is anybody who has been silent for so long."""
STRESS_PACE: Final = 500.0
"""Octets a second below which content ends the session of anybody under stress (Postfix: smtpd_min_data_rate). The
slowest modem sends ten times as many."""
LEAST_IDLE: Final = 1.0
"""Seconds of silence before a connection may have to go for another: one that is at work is never idle so long, but
for a client that is far away or asks DNS in between, and of those the longest idle goes first."""
AT_WORK_IDLE: Final = 3.0
"""The same for a stranger within a transaction, which goes after those who have begun none."""

T = TypeVar("T")


class Worth(IntEnum):
    """What is known of a client, the least first."""

    STRANGER = auto()
    """Nothing, and it came to an MX listener."""
    SUBMITTER = auto()
    """Nothing, and it came to a submission listener."""
    ACQUAINTANCE = auto()
    """Its address has delivered mail before, or logged in."""
    ACCOUNT = auto()
    """It has logged in on this connection; so no newcomer is one."""


class Admission(Enum):
    """What becomes of a newcomer."""

    GRANTED = auto()
    IN_PLACE_OF_ANOTHER = auto()
    """It gets in if another connection can be ended for it."""
    REFUSED = auto()


def room(limit: int, worth: Worth) -> int:
    """How many connections there may be in all, of `limit`, with one more of this worth among them."""
    return limit - (Worth.ACQUAINTANCE - worth) * (limit // PART)


def judge(
    worth: Worth, *, limit: int, client_limit: int, total: int, of_client: int, of_network: int, stress: bool
) -> Admission:
    """Whether a newcomer gets in. `total`, `of_client`, `of_network`: connections that there are, of the same client,
    and of the same network."""
    if of_client >= client_limit:
        return Admission.REFUSED
    if stress and worth is not Worth.ACQUAINTANCE and of_network >= client_limit:
        return Admission.REFUSED
    return Admission.GRANTED if total < room(limit, worth) else Admission.IN_PLACE_OF_ANOTHER


def under_stress(before: bool, *, limit: int, total: int) -> bool:
    """Whether connections are scarce, given whether they were `before`."""
    return total >= limit * (STRESS_ENDS if before else STRESS_BEGINS)


class Idle(NamedTuple, Generic[T]):
    """A connection whose client is to say something."""

    worth: Worth
    since: float
    """The loop's seconds."""
    in_transaction: bool
    """It has said MAIL."""
    connection: T


class Survey(Generic[T]):
    """Who is idle, as of one look at all connections."""

    def __init__(self, found: Iterable[Idle[T]], now: float, *, stress: bool) -> None:
        self.taken = now
        """When the look was."""
        self.expired: list[T] = []
        """Strangers whose time is over under stress."""
        self._strangers: list[Idle[T]] = []
        self._at_work: list[Idle[T]] = []  # strangers within a transaction
        self._acquaintances: list[Idle[T]] = []
        self._others: list[Idle[T]] = []  # who goes if nobody else can
        for idle in found:
            silent = now - idle.since
            if silent >= STRESS_IDLE:
                if stress and idle.worth < Worth.ACQUAINTANCE:
                    self.expired.append(idle.connection)
                else:
                    self._others.append(idle)
            elif idle.worth < Worth.ACQUAINTANCE:
                if silent >= (AT_WORK_IDLE if idle.in_transaction else LEAST_IDLE):
                    (self._at_work if idle.in_transaction else self._strangers).append(idle)
            elif silent >= LEAST_IDLE and idle.worth is Worth.ACQUAINTANCE and not idle.in_transaction:
                self._acquaintances.append(idle)
        for one in (self._strangers, self._at_work, self._acquaintances, self._others):
            one.sort(key=_recent_first)

    def next_for(self, newcomer: Worth) -> Idle[T] | None:
        """Whom this newcomer may displace: strangers first, the longest idle first. Each is named once, and may have
        spoken since the look. None: nobody is left."""
        for strangers in (self._strangers, self._at_work):
            if strangers:
                return strangers.pop()
        if self._acquaintances and newcomer >= Worth.ACQUAINTANCE:
            return self._acquaintances.pop()
        return self._others.pop() if self._others else None


class Pace(Generic[T]):
    """How fast content comes, from one look to the next."""

    def __init__(self) -> None:
        self._marks: dict[T, tuple[float, int]] = {}

    def slow(self, found: Iterable[tuple[T, int]], now: float) -> list[T]:
        """Of those that are sending content, each with its octets so far: who sends it too slowly. Who is not among
        them is forgotten."""
        marks: dict[T, tuple[float, int]] = {}
        slow: list[T] = []
        for connection, octets in found:
            since, before = self._marks.get(connection, (now, octets))
            if octets < before:  # of another message
                since, before = now, octets
            elif now - since >= STRESS_IDLE:
                if octets - before < STRESS_PACE * (now - since):
                    slow.append(connection)
                since, before = now, octets
            marks[connection] = since, before
        self._marks = marks
        return slow


def _recent_first(idle: Idle[T]) -> float:
    return -idle.since
