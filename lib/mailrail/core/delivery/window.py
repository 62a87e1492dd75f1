"""How many transactions a site may have in flight, and when it is in backoff (SHD-04, SHD-05; SOUT-08).

A new site starts small and doubles with each round of successes (slow start) until something fails. From then on each
result moves the window by 1/N of one transaction, where N is the window itself, so a cohort of N results changes it by
one. A cohort of failures in a row, without a success between, puts the site into backoff: nothing is dialled until the
backoff ends, and then one probe at a time. Each failed probe doubles the next backoff. Trouble of a transport (its
password is refused, its TLS is bad) needs no cohort: one failure says it all.

This is a plain state machine. The owner of the site calls it, passes the time as seconds of any steady clock, and
provides the jitter.
"""

from dataclasses import dataclass
from enum import Enum

INITIAL = 5.0
"""Transactions at once to a site that we know nothing of."""
LIMIT = 20.0
"""The most, unless the transport says otherwise."""
BACKOFF_FIRST = 60.0
"""Seconds of a site's first backoff; doubled each time a probe fails."""
BACKOFF_LIMIT = 3600.0
"""Seconds of the longest backoff."""
UNPROVEN = 3600.0
"""Seconds after a backoff in which a site without a success still counts as failing."""
COHORTS = 1.0
"""Cohorts of failures in a row that put a site into backoff."""


class Learned(Enum):
    """What an owner's word changed in the window of another owner."""

    NOTHING = 0
    BACKOFF = 1  # nothing may be dialled from now on
    ENDED = 2  # something may be dialled again


@dataclass(slots=True)
class SiteWindow:
    """The window of one site. `limit` is the configured maximum of transactions in flight."""

    limit: float = LIMIT
    size: float = INITIAL
    in_flight: int = 0
    backoff_until: float | None = None
    """When the backoff ends; it stays set until a probe succeeds."""
    backoffs: int = 0
    """Backoffs in a row since the last success."""
    last_error: str = ""
    _slow_start: bool = True
    _failed: float = 0.0
    """Cohorts of failures since the last success."""

    def __post_init__(self) -> None:
        self.limit = max(1.0, self.limit)
        self.size = min(self.size, self.limit)

    def in_backoff(self, now: float) -> bool:
        """Whether nothing may be dialled: a due recipient is then a counted attempt without a dial (SHD-05)."""
        return self.backoff_until is not None and now < self.backoff_until

    def failing(self, now: float) -> bool:
        """Whether it is in backoff, or was so within the last hour and nothing has succeeded since.

        A backoff ends by time alone, so between it and the next probe nothing is known to be better.
        """
        return self.backoff_until is not None and now < self.backoff_until + UNPROVEN

    @property
    def probing(self) -> bool:
        """A backoff began and no probe has succeeded since."""
        return self.backoff_until is not None

    def room(self, now: float) -> int:
        """Transactions that may start now. Waiting for room is no attempt (design 4, Attempt)."""
        if self.in_backoff(now):
            return 0
        allowed = 1 if self.probing else int(self.size)  # after a backoff: one probe at a time
        return max(0, allowed - self.in_flight)

    def start(self) -> None:
        """A transaction was handed out."""
        self.in_flight += 1

    def succeed(self) -> None:
        """A transaction ended and the site is well, whatever it said of the recipients."""
        self.in_flight = max(0, self.in_flight - 1)
        if self.backoff_until is not None:
            self.recover()
            return
        self._failed = 0.0
        self.last_error = ""
        self.size = min(self.limit, self.size + (1.0 if self._slow_start else 1.0 / self.size))

    def recover(self) -> None:
        """A probe succeeded, of ours or of another owner: begin anew, carefully."""
        self._failed = 0.0
        self.last_error = ""
        self.backoff_until = None
        self.backoffs = 0
        self.size = min(INITIAL, self.limit)
        self._slow_start = True

    def fail(self, now: float, error: str, *, jitter: float = 0.0, transport: bool = False) -> bool:
        """A transaction ended and the site is to blame (see `blame`). Returns whether the site is in backoff now."""
        self.in_flight = max(0, self.in_flight - 1)
        return self.blame(now, error, jitter=jitter, transport=transport)

    def blame(self, now: float, error: str, *, jitter: float = 0.0, transport: bool = False) -> bool:
        """Count a failure. Returns whether the site is in backoff now.

        `transport`: the trouble is our transport's own, one failure of which is enough. `jitter` in -1..1 moves the
        end of the backoff by up to a tenth.
        """
        self.last_error = error
        if self.in_backoff(now):
            return True  # others of the same cohort, handed out before the backoff began: they tell nothing new
        self._slow_start = False
        self._failed += 1.0 / self.size
        self.size = max(1.0, self.size - 1.0 / self.size)
        # 1e-9: a cohort of N failures counts as one although 1/N is not exact in binary.
        if transport or self.probing or self._failed >= COHORTS - 1e-9:
            self.backoffs += 1
            seconds = min(BACKOFF_LIMIT, BACKOFF_FIRST * 2.0 ** min(self.backoffs - 1, 16))
            self.backoff_until = now + seconds * (1.0 + 0.1 * max(-1.0, min(1.0, jitter)))
            self._failed = 0.0
            return True
        return False

    def undo(self) -> None:
        """A transaction was given back unattempted (LSE-04): as if it had never started."""
        self.in_flight = max(0, self.in_flight - 1)

    def wake(self) -> None:
        """An administrator kicked the site's mail, or the configuration changed: the backoff ends, one probe goes."""
        if self.probing:
            self.backoff_until = 0.0

    def adopt_backoff(self, now: float, seconds: float | None, backoffs: int) -> Learned:
        """Another owner of the site wrote that it is in its `backoffs`-th backoff, for `seconds` more (None: it ended).

        What this window has met already stays as it is.
        """
        if not backoffs:
            if self.probing:
                self.recover()
                return Learned.ENDED
        elif seconds is None or seconds <= 0:
            if self.in_backoff(now):  # an administrator kicked its mail
                self.wake()
                return Learned.ENDED
        elif not self.in_backoff(now) and not (self.probing and self.backoffs == backoffs):
            self.backoff_until = now + seconds
            self.backoffs = backoffs
            return Learned.BACKOFF
        return Learned.NOTHING
