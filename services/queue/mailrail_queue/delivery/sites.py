"""Sites, and the transports that they share: what one process remembers of each (SHD-03)."""

from collections import deque
from dataclasses import dataclass, field

from mailrail.core.delivery.mx_group import MxGroup
from mailrail.core.delivery.shares import SiteStanding
from mailrail.core.delivery.window import SiteWindow
from mailrail.core.line import Need
from mailrail.core.route.site import SiteKind
from mailrail_queue.delivery.attempt import Delivery, Stream

UNBOUNDED = 1_000_000.0


class Bucket:
    """Transactions a second of one transport (limits.rate)."""

    __slots__ = ("_level", "_moment", "rate")

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self._level = max(1.0, rate)
        self._moment = 0.0

    def wait(self, now: float) -> float:
        """Seconds until one more may start; 0 = now."""
        full = max(1.0, self.rate)
        self._level = min(full, self._level + (now - self._moment) * self.rate) if self._moment else full
        self._moment = now
        if self._level >= 1.0:
            return 0.0
        return (1.0 - self._level) / self.rate if self.rate > 0 else 60.0

    def take(self) -> None:
        """Count a transaction that starts."""
        self._level -= 1.0


@dataclass(slots=True, eq=False)
class TransportState:
    """What all sites of a transport share: connections and rate, as this owner's part of them (design 4, Scale out)."""

    name: str
    connections: int | None = None
    share: int | None = None
    in_flight: int = 0
    bucket: Bucket | None = None
    window: SiteWindow = field(default_factory=lambda: SiteWindow(limit=UNBOUNDED, size=UNBOUNDED))
    """Used for its backoff alone: trouble of the transport itself, met at one of its sites."""
    last_error: bytes = b""
    """An `Attempt`, encoded."""

    @property
    def key(self) -> str:
        """Its key in the table `site`, which holds its backoff beside those of sites."""
        return f"{SiteKind.TRANSPORT}:{self.name}"


@dataclass(slots=True, eq=False)
class SiteState:
    """A site that has, or lately had, something to do."""

    key: str
    kind: SiteKind
    window: SiteWindow
    transport: TransportState | None
    shared: bool
    """Its recipients may be in shards of several owners."""
    pending: deque[Delivery] = field(default_factory=deque)
    """Fresh mail, born leased, that waits to be handed on."""
    older: deque[Delivery] = field(default_factory=deque)
    """Mail leased from the database that waits to be handed on. While both wait, each has every other turn."""
    older_next: bool = True
    """Whose turn it is."""
    due: dict[int, bool] = field(default_factory=dict)
    """Shards in which it has due recipients in the database → found empty once already."""
    last_error: bytes = b""
    """An `Attempt`, encoded."""
    mx_group: MxGroup | None = None
    waits_for_mx: bool = False
    """It waits for a delivery of its MX group or host to end."""
    standing: SiteStanding = SiteStanding.UNPROVEN
    seconds: float = 1.0
    """From hand-out to result, of its latest deliveries; before the first, a guess."""
    tried: bool = False
    """A delivery was handed to outbound since the site is known."""
    starved: SiteStanding | None = None
    """It waits for credit, in the line of this standing."""
    parked: SiteStanding | None = None
    """Its due mail in the database waits until more may be leased for sites of this standing."""
    queued: bool = False
    """It is in the dispatcher's line."""
    grouped: bool = False
    """Messages with several recipients were seen here."""
    timed: bool = False
    """It waits for its transport's rate."""
    used: float = 0.0
    mail_began: float = 0.0
    """Unix seconds at which the newest message began that is known to have waited here while the site was unproven; of
    mail that was found in the database, when it was due. 0.0: none is known."""
    claimed: bool = False
    """This owner has the right to probe it (design 4, Attempt)."""
    order: tuple[Stream, ...] = ()
    generation: int = -1
    is_local: bool = field(init=False)
    """Its mail ends in the queue itself: nothing is dialled."""

    def __post_init__(self) -> None:
        self.is_local = self.kind in (SiteKind.MAILBOX, SiteKind.LOCAL)

    @property
    def waiting(self) -> int:
        """Deliveries that wait to be handed on."""
        return len(self.pending) + len(self.older)

    @property
    def need(self) -> Need:
        """With which need it waits for credit. One that has not shown that it answers needs a delivery that shows it,
        and no more until then."""
        if self.standing is not SiteStanding.UNPROVEN or self.window.in_flight > 0:
            return Need.MORE
        return Need.AGAIN if self.tried else Need.NEW

    def clear(self) -> list[Delivery]:
        """Take out all that wait."""
        found = [delivery for delivery in (*self.older, *self.pending) if not delivery.ended]
        self.pending.clear()
        self.older.clear()
        return found

    def in_backoff(self, now: float) -> bool:
        """The site, or its whole transport, is in backoff (SHD-05)."""
        return self.window.in_backoff(now) or (self.transport is not None and self.transport.window.in_backoff(now))
