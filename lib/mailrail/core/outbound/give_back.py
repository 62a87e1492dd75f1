"""Which deliveries that wait for a connection go back to the queue, so that it has credit for others (SHD-03).

What waits holds credit of the queue for as long as servers please, and counts there for the standing that its site had
when it was handed out. The address that it waits for is another matter: a tarpit greets, is known as slow from then on,
and all that waits for it still counts as mail to sites that never answered. So credit is counted by what the queue
said, and who goes is chosen by what is known of the address. The first mail to a new site finds room then, instead of
waiting for a server that it has nothing to do with.

Nothing was dialled for who goes back: it is no attempt (LSE-04). There is no clock and no I/O; the pool of outbound
carries out.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol, TypeVar

from mailrail.core.delivery.shares import (
    OCTETS_A_DELIVERY,
    OTHERS_PART,
    QUICK,
    QUICK_SECONDS,
    SLOW,
    SLOW_PART,
    UNPROVEN,
    UNPROVEN_PART,
    SiteStanding,
)

CROWD = 0.9
"""Part of what deliveries of a standing may hold, from which those that wait go back: the rest is for who comes."""
AT_LEAST = 1.0
"""Seconds that one has waited that goes back: the first mail to a new site is dialled sooner (decision 31)."""
BACK = 50.0
"""Of them a second: each costs the queue some 0.5 ms."""
BACK_OCTETS = BACK * OCTETS_A_DELIVERY
"""Of their content a second: Postgres gives it again when they come again."""


class Held(NamedTuple):
    """What a delivery holds of the credit that the queue has."""

    standing: SiteStanding | None
    """Of its site, as the queue said when it handed the delivery out; None: a queue that does not say."""
    octets: int
    """Of its content."""
    begun: bool = False
    """Something was dialled for it: what became of that is an attempt, and it stays."""

    def after(self, seconds: float, address: Callable[[], SiteStanding]) -> SiteStanding | None:
        """The standing that it counts for in the queue after a wait of so many seconds. Where the queue did not say,
        `address` is asked how the address answered last that it waits for: only of those of which nothing is known is
        it certain enough that they are unproven there. None: it is not known."""
        if self.standing is None:
            return UNPROVEN if address() is UNPROVEN else None
        return SLOW if self.standing is QUICK and seconds >= QUICK_SECONDS else self.standing


class CreditHeld:
    """What deliveries in progress hold of the credit that the queue has, by the standing that they count for there."""

    def __init__(self, deliveries: int, octets: int) -> None:
        """Deliveries, and octets of their content, that the queue has credit for in all."""
        self._wholes = deliveries, octets
        self._held = [0, 0, 0], [0, 0, 0]
        self._unknown = [0, 0]
        """Of which it is not known what they count for."""

    def copy(self) -> "CreditHeld":
        """The same, to be changed."""
        made = CreditHeld(*self._wholes)
        made._held = self._held[0].copy(), self._held[1].copy()
        made._unknown = self._unknown.copy()
        return made

    def add(self, standing: SiteStanding | None, octets: int) -> None:
        """One more is in progress. `standing` None: it is not known."""
        self._change(standing, 1, octets)

    def discard(self, standing: SiteStanding | None, octets: int) -> None:
        """It is no more."""
        self._change(standing, -1, -octets)

    def _change(self, standing: SiteStanding | None, deliveries: int, octets: int) -> None:
        if standing is None:
            self._unknown[0] += deliveries
            self._unknown[1] += octets
        else:
            self._held[0][standing] += deliveries
            self._held[1][standing] += octets

    def leaves_room(self, standing: SiteStanding) -> bool:
        """Whether there is room for others of this standing. What is alone always leaves it."""
        (unproven, slow, _), _ = self._held
        if standing is QUICK or unproven + slow < 2:
            return True
        part = UNPROVEN_PART if standing is UNPROVEN else SLOW_PART
        return all(
            held[standing] < max(1, int(whole * part * CROWD))
            and held[UNPROVEN] + held[SLOW] < max(1, int(whole * OTHERS_PART * CROWD))
            for whole, held in zip(self._wholes, self._held, strict=True)
        )

    @property
    def is_crowded(self) -> bool:
        """Whether somebody has to go back."""
        return not (self.leaves_room(UNPROVEN) and self.leaves_room(SLOW))

    @property
    def may_be_crowded(self) -> bool:
        """Whether it would be, if all counted for what fills up first: whether a closer look is worth its while."""
        least = min(UNPROVEN_PART, SLOW_PART) * CROWD
        return any(
            sum(held) + unknown >= int(whole * least)
            for whole, held, unknown in zip(self._wholes, self._held, self._unknown, strict=True)
        )


class Waiter(Protocol):
    """A delivery that waits, and for which nothing was dialled."""

    @property
    def counts_for(self) -> SiteStanding:
        """The standing that it counts for in the queue."""

    @property
    def octets(self) -> int:
        """Of its content."""

    @property
    def address(self) -> SiteStanding:
        """How the address answered last that it waits for."""

    @property
    def since(self) -> float:
        """Since when it waits, in seconds of any clock."""


T = TypeVar("T", bound=Waiter)


def who_goes_back(credit: CreditHeld, waiters: Iterable[T], *, now: float, most: int, octets: float) -> list[T]:
    """Those of the waiters that go back, until `credit` leaves room: `most`, and so many `octets`, but one at least.
    What they held is taken from `credit`. `now`: the time, by the clock of the waiters.

    What waits for a slow address goes before what waits for an unknown one, whose next session may show that it
    answers; of each, who has waited longest goes first, as others had their chance since. What waits for an address
    that answers stays: it moves by itself.
    """
    found: list[T] = []
    able = (one for one in waiters if one.address is not QUICK and one.since <= now - AT_LEAST)
    for one in sorted(able, key=lambda one: (one.address is UNPROVEN, one.since)):
        if len(found) >= most:
            break
        if credit.leaves_room(one.counts_for) or (found and one.octets > octets):
            continue
        found.append(one)
        octets -= one.octets
        credit.discard(one.counts_for, one.octets)
    return found
