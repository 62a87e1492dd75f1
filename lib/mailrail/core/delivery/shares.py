"""Who may hold how much of what all sites share, so that mail to sites that answer waits for no others (SHD-03).

What outbound takes is shared by all sites, and a delivery holds its part until it ends: a moment where the next hop
answers, minutes where it does not. So a site has a *standing*, which is how its last delivery went, and sites of a
standing together have a share. A site that is new to us has to show first that it answers.

These are plain values without I/O; the dispatcher of the queue keeps one `StreamCredit` for each outbound process.
"""

from collections.abc import Sequence, Sized
from dataclasses import dataclass, field
from enum import IntEnum

QUICK_SECONDS = 10.0
"""From the hand-out to the result. A dialogue with TLS takes some ten round trips and one commit of the next hop, under
2 s on any continent; a server that makes strangers wait before its greeting takes up to 5 s more. Whoever is slower
holds his part a hundred times longer than most."""
UNPROVEN_PART = 0.5
"""Most that sites without a success may hold together: a queue that begins anew, where all sites are new, still moves
at half of what outbound takes."""
SLOW_PART = 0.5
"""Most that sites which answer slowly may hold together."""
OTHERS_PART = 0.7
"""Most that both may hold together; the rest is for quick sites alone, which need little, as they hold it briefly."""
FIRST_PART = 0.1
"""While slow and unproven sites together hold less than this, freed credit goes to them first: a flood of mail to
quick sites stops no first contact."""
OCTETS_A_DELIVERY = 64 * 1024
"""What an outbound process that does not speak of octets takes with each delivery of its credit."""
AHEAD_SECONDS = 2.0
"""So much of the recent throughput may be leased beyond what is free now: due work is looked for each second, and what
is leased and not handed on is kept from administrators and other routes (LSE-06)."""
SITE_AHEAD_SECONDS = 20.0
"""So much of a site's own throughput may wait in memory for its window: well below the 60 s after which it would be
given back to the database (LSE-01)."""


class SiteStanding(IntEnum):
    """How a site's last delivery went that was dialled."""

    UNPROVEN = 0  # it failed for the site's own trouble, or there was none
    SLOW = 1  # it was answered, after more than QUICK_SECONDS
    QUICK = 2


QUICK, SLOW, UNPROVEN = (
    SiteStanding.QUICK,
    SiteStanding.SLOW,
    SiteStanding.UNPROVEN,
)  # a look into an enum costs five of these


def standing_of(seconds: float) -> SiteStanding:
    """The standing of a site that answered a delivery `seconds` after it was handed out."""
    return QUICK if seconds < QUICK_SECONDS else SLOW


def may_add(standing: SiteStanding, held: list[int], whole: int) -> int:
    """How much more sites of this standing may hold, of a whole of which `held` says what each standing holds.

    Each part is one at least, however small the whole is.
    """
    unproven, slow, quick = held
    if standing is QUICK:
        return whole - unproven - slow - quick
    others = unproven + slow
    own, part = (unproven, UNPROVEN_PART) if standing is UNPROVEN else (slow, SLOW_PART)
    return min(
        whole - others - quick,
        max(1, int(whole * part)) - own,
        max(1, int(whole * OTHERS_PART)) - others,
    )


def whose_turn(waiting: Sequence[Sized], held: list[int], whole: int) -> SiteStanding | None:
    """The standing that has the next turn at what is free; None: of none whose line in `waiting` is not empty may more
    be held."""
    standings = [s for s in reversed(SiteStanding) if waiting[s] and may_add(s, held, whole) > 0]
    if not standings:
        return None
    others_first = held[UNPROVEN] + held[SLOW] < whole * FIRST_PART
    return standings[-1 if others_first else 0]


@dataclass(slots=True)
class StreamCredit:
    """What one outbound process takes: deliveries, and octets of their content.

    Octets may go below zero by the last delivery, so that one that is larger than all that was granted goes alone.
    """

    deliveries: int = 0
    """How many more it takes."""
    octets: int | None = None
    """How many more it takes; None: it speaks of deliveries only, and each is good for OCTETS_A_DELIVERY."""
    out: list[int] = field(default_factory=lambda: [0, 0, 0])
    """Deliveries that it works on, by standing."""
    octets_out: list[int] = field(default_factory=lambda: [0, 0, 0])
    """Their octets, by standing."""

    @property
    def octets_left(self) -> int:
        """How many more octets it takes."""
        if self.octets is not None:
            return self.octets
        return OCTETS_A_DELIVERY * (self.deliveries + sum(self.out)) - sum(self.octets_out)

    @property
    def whole(self) -> int:
        """Deliveries that it takes in all: those it works on, and those it would take."""
        return self.deliveries + sum(self.out)

    def grant(self, deliveries: int, octets: int | None) -> None:
        """It takes so many more. `octets` is None where it does not speak of them."""
        self.deliveries += deliveries
        if self.octets is not None:
            self.octets += octets or 0

    def free(self, standing: SiteStanding) -> int:
        """How many deliveries more it takes for sites of this standing."""
        left = self.deliveries
        if left <= 0:
            return 0
        octets = self.octets
        if octets is None:
            octets = self.octets_left
        if octets <= 0:
            return 0 if any(self.out) else 1
        if standing is QUICK:
            return left
        out = self.out
        octets_out = self.octets_out
        if octets_out[standing] and may_add(standing, octets_out, octets + sum(octets_out)) <= 0:
            return 0
        return max(0, may_add(standing, out, left + sum(out)))

    def take(self, standing: SiteStanding, octets: int) -> None:
        """A delivery is handed to it."""
        self.deliveries -= 1
        if self.octets is not None:
            self.octets -= octets
        self.out[standing] += 1
        self.octets_out[standing] += octets

    def hold(self, standing: SiteStanding, octets: int) -> None:
        """It works on a delivery, which is in its credit already."""
        self.out[standing] += 1
        self.octets_out[standing] += octets

    def let_go(self, standing: SiteStanding, octets: int) -> None:
        """It does not work on the delivery any more. What it takes instead it says itself (`grant`)."""
        self.out[standing] -= 1
        self.octets_out[standing] -= octets

    def move(self, octets: int, before: SiteStanding, after: SiteStanding) -> None:
        """A delivery that it works on counts for another standing from now on."""
        self.let_go(before, octets)
        self.hold(after, octets)


@dataclass(slots=True)
class Throughput:
    """Deliveries a second that end lately, by standing."""

    rate: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    ended: list[int] = field(default_factory=lambda: [0, 0, 0])
    """Since `since`."""
    since: float = 0.0

    def measure(self, now: float) -> None:
        """Count anew from `now` on, a second or more after the last time. Half of the rate is what was before."""
        seconds = max(1.0, now - self.since)
        self.rate = [(rate + ended / seconds) / 2 for rate, ended in zip(self.rate, self.ended, strict=True)]
        self.ended = [0, 0, 0]
        self.since = now

    def ahead(self, standing: SiteStanding) -> int:
        """Deliveries that end within AHEAD_SECONDS, if all goes on as it did."""
        return int(self.rate[standing] * AHEAD_SECONDS)
