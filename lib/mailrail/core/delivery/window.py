"""How many transactions a site may have in flight, and when it rests (SHD-04, SHD-05; SOUT-08).

A new site starts small and doubles with each round of successes (slow start) until something fails; from then on each
result moves the window by 1/N of one transaction, N being the window itself, so that a whole cohort of N results
changes it by one. A cohort's worth of failures in a row, without a success between, means that the site is dead: it
rests, longer each time, and comes back with a single probe. Trouble of a transport (its password is refused, its TLS is
bad) needs no cohort: one failure says it all.

A plain state machine: the owner of the site calls it, time is passed in as seconds of any steady clock, and the
rest's jitter comes from the caller.
"""

from dataclasses import dataclass

INITIAL = 5.0
"""Transactions at once to a site that we know nothing of."""
LIMIT = 20.0
"""The most, unless the transport says otherwise."""
REST_FIRST = 60.0
"""Seconds of the first rest of a dead site; doubled each time a probe fails."""
REST_LIMIT = 3600.0
COHORTS = 1.0
"""Cohorts of failures in a row that make a site dead."""


@dataclass(slots=True)
class SiteWindow:
    """The window of one site. `limit` is the configured maximum of transactions in flight."""

    limit: float = LIMIT
    size: float = INITIAL
    in_flight: int = 0
    resting_until: float | None = None
    last_error: str = ""
    _slow_start: bool = True
    _failed: float = 0.0
    """Cohorts of failures since the last success."""
    _rests: int = 0

    def __post_init__(self) -> None:
        self.limit = max(1.0, self.limit)
        self.size = min(self.size, self.limit)

    def resting(self, now: float) -> bool:
        """Whether the site is in backoff: a due recipient is then a counted attempt without a dial (SHD-05)."""
        return self.resting_until is not None and now < self.resting_until

    def room(self, now: float) -> int:
        """Transactions that may start now. Waiting for room is no attempt (design 4, Attempt)."""
        if self.resting(now):
            return 0
        allowed = 1 if self.resting_until is not None else int(self.size)  # after a rest: one probe at a time
        return max(0, allowed - self.in_flight)

    def start(self) -> None:
        """A transaction was handed out."""
        self.in_flight += 1

    def succeed(self) -> None:
        """A transaction ended and the site is well, whatever it said of the recipients."""
        self.in_flight = max(0, self.in_flight - 1)
        self._failed = 0.0
        self.last_error = ""
        if self.resting_until is not None:  # the probe came through: begin anew, carefully
            self.resting_until = None
            self._rests = 0
            self.size = min(INITIAL, self.limit)
            self._slow_start = True
            return
        self.size = min(self.limit, self.size + (1.0 if self._slow_start else 1.0 / self.size))

    def fail(self, now: float, error: str, *, jitter: float = 0.0, transport: bool = False) -> bool:
        """A transaction ended and the site is to blame. Returns whether the site rests from now on.

        `transport`: the trouble is our transport's own, one failure of which is enough. `jitter` in -1..1 moves the
        end of the rest by up to a tenth.
        """
        self.in_flight = max(0, self.in_flight - 1)
        self.last_error = error
        if self.resting(now):
            return True  # others of the same cohort, handed out before the rest began: they tell nothing new
        self._slow_start = False
        self._failed += 1.0 / self.size
        self.size = max(1.0, self.size - 1.0 / self.size)
        # 1e-9: a cohort of N failures counts as one although 1/N is not exact in binary.
        if transport or self.resting_until is not None or self._failed >= COHORTS - 1e-9:
            self._rests += 1
            rest = min(REST_LIMIT, REST_FIRST * 2.0 ** min(self._rests - 1, 16))
            self.resting_until = now + rest * (1.0 + 0.1 * max(-1.0, min(1.0, jitter)))
            self._failed = 0.0
            return True
        return False

    def undo(self) -> None:
        """A transaction was given back unattempted (LSE-04): as if it had never started."""
        self.in_flight = max(0, self.in_flight - 1)

    def wake(self) -> None:
        """An administrator kicked, or the configuration changed: no rest, but still one probe first."""
        if self.resting_until is not None:
            self.resting_until = 0.0
