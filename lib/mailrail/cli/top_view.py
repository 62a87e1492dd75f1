"""What `mailrail top` shows: figures of the queue in lines of text, from what it answered; without I/O.

The queue does not count what it delivers: rates come from the recipients that finished last. Sites come by name, a page
at a look, so that a queue with very many of them does no more work for it.
"""

import datetime
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

from mailrail.cli import output
from mailrail.cli.queue import SITE_COLUMNS, is_in_use, last_reply, site_row, stats_facts
from mailrail.pb.queue.v1 import admin_pb2, types_pb2

FINISHED_PAGE: Final = 200
"""Recipients that finished last, by which rates are told."""
SITES_PAGE: Final = 1000
"""Sites of one look. The larger the page, the fewer recipients the queue counts for each site."""
SITES_SHOWN: Final = 20
_SITES_KEPT: Final = 5000
_WINDOW: Final = 60.0
"""Seconds over which rates are told, where so few finished that all of them are known."""
_SHORTEST: Final = 0.5  # seconds, of a window in which very many finished
_RATES_KEPT: Final = 40
_FAILURES_KEPT: Final = 20
_FAILURES_SHOWN: Final = 5
_LEAST_SITES: Final = 3  # that are shown, however low the terminal is
_BARS: Final = "▁▂▃▄▅▆▇█"

DELIVERED, FAILED = types_pb2.RECIPIENT_STATE_DELIVERED, types_pb2.RECIPIENT_STATE_FAILED


class Emphasis(Enum):
    """How a line is shown on a terminal."""

    NONE = ""
    HEADING = "bold"
    TROUBLE = "bold red"


Line = tuple[str, Emphasis]


@dataclass(frozen=True, slots=True)
class QueueLook:
    """What the queue answered once."""

    stats: admin_pb2.GetStatsResponse
    sites: Sequence[admin_pb2.Site]
    """A page of them, by name."""
    last_sites: bool
    """The page is the last one."""
    finished: Sequence[admin_pb2.Recipient]
    """Those that finished last, the newest first."""
    all_finished: bool
    """There are no older ones."""


@dataclass(frozen=True, slots=True)
class Rates:
    """Recipients in a second."""

    delivered: float = 0.0
    failed: float = 0.0


def rates_of(finished: Sequence[admin_pb2.Recipient], *, all_finished: bool, now: datetime.datetime) -> Rates:
    """How many recipients finish in a second, by those that finished last.

    Where they were so many that the oldest known one is of this minute, the time since then counts; otherwise the
    minute.
    """
    times = [each.finished.ToDatetime(tzinfo=datetime.UTC) for each in finished]
    now = max([now, *times])  # the clock of the queue may be ahead
    ages = [(now - time).total_seconds() for time in times]
    is_cut_off = not all_finished and bool(ages) and max(ages) < _WINDOW
    span = max(max(ages), _SHORTEST) if is_cut_off else _WINDOW
    counts = {DELIVERED: 0, FAILED: 0}
    for age, each in zip(ages, finished, strict=True):
        if age <= span and each.state in counts:
            counts[each.state] += 1
    return Rates(counts[DELIVERED] / span, counts[FAILED] / span)


@dataclass(slots=True)
class SiteRound:
    """The sites of the queue, looked through a page at a time, again and again."""

    known: dict[str, admin_pb2.Site] = field(default_factory=dict)
    complete: bool = False
    """All of them were looked at once."""
    _seen: set[str] = field(default_factory=set)

    def take(self, page: Iterable[admin_pb2.Site], *, last: bool) -> None:
        """A page that came; after the `last` one the next round begins."""
        for site in page:
            self.known[site.name] = site
            self._seen.add(site.name)
        if last:
            self.known = {name: site for name, site in self.known.items() if name in self._seen}
            self._seen.clear()
            self.complete = True
        if len(self.known) > _SITES_KEPT:
            self.known = {site.name: site for site in self.busiest(_SITES_KEPT)}

    def busiest(self, most: int) -> list[admin_pb2.Site]:
        """Those with the most mail first."""
        used = filter(is_in_use, self.known.values())
        return sorted(used, key=lambda site: (-site.queued, -site.in_flight, site.name))[:most]


@dataclass(slots=True)
class TopView:
    """What is known of a queue, and the picture of it."""

    title: str
    sites: SiteRound = field(default_factory=SiteRound)
    stats: admin_pb2.GetStatsResponse | None = None
    rates: Rates = field(default_factory=Rates)
    trouble: str = ""
    """Why the last look brought nothing; empty: it brought what is shown."""
    since: datetime.datetime | None = None
    """Of the trouble."""
    _past: deque[Rates] = field(default_factory=lambda: deque(maxlen=_RATES_KEPT))
    _failures: dict[int, admin_pb2.Recipient] = field(default_factory=dict)

    def take(self, look: QueueLook, now: datetime.datetime) -> None:
        """An answer of the queue."""
        self.stats, self.trouble, self.since = look.stats, "", None
        self.sites.take(look.sites, last=look.last_sites)
        self.rates = rates_of(look.finished, all_finished=look.all_finished, now=now)
        self._past.append(self.rates)
        self._failures |= {each.id: each for each in look.finished if each.state == FAILED}
        self._failures = {each.id: each for each in self._newest_failures(_FAILURES_KEPT)}

    def fail(self, text: str, now: datetime.datetime) -> None:
        """The queue did not answer."""
        self.trouble = text
        self.since = self.since or now

    def _newest_failures(self, most: int) -> list[admin_pb2.Recipient]:
        newest = sorted(self._failures.values(), key=lambda r: (r.finished.ToNanoseconds(), r.id), reverse=True)
        return newest[:most]

    def as_json(self) -> dict[str, Any]:
        """All that is known, for programs."""
        return {
            "stats": self.stats,
            "delivered_per_second": round(self.rates.delivered, 3),
            "failed_per_second": round(self.rates.failed, 3),
            "sites": self.sites.busiest(SITES_SHOWN),
            "failures": self._newest_failures(_FAILURES_KEPT),
        }

    def lines(self, now: datetime.datetime, height: int | None = None, *, bars: bool = False) -> list[Line]:
        """The picture, of at most `height` lines. `bars`: rates are drawn, too, for whoever can show them."""
        made: list[Line] = [(f"{self.title}  {now.astimezone():%H:%M:%S}", Emphasis.HEADING)]
        if self.trouble:
            since = f"{self.since.astimezone():%H:%M:%S}" if self.since is not None else ""
            older = "; what stands below is older" if self.stats is not None else ""
            made.append((output.clean(f"{self.trouble} (since {since}){older}", keep=""), Emphasis.TROUBLE))
        if self.stats is None:
            return made
        facts = [
            ("delivered", self._rate([each.delivered for each in self._past], bars=bars)),
            ("failed", self._rate([each.failed for each in self._past], bars=bars)),
            *stats_facts(self.stats, now),
        ]
        made += [(line, Emphasis.NONE) for line in output.aligned([pair for pair in facts if pair[1]])]
        failures = [
            (output.when(each, "finished", now, brief=True), each.address, last_reply(each))
            for each in self._newest_failures(_FAILURES_SHOWN)
        ]
        below = len(failures) + 2 if failures else 0
        room = SITES_SHOWN if height is None else max(height - len(made) - 2 - below, _LEAST_SITES)
        rows = [site_row(each, now) for each in self.sites.busiest(min(room, SITES_SHOWN))]
        looked_at = "" if self.sites.complete else f" (of the first {len(self.sites.known)})"
        made += _table((f"BUSIEST {SITE_COLUMNS[0]}S{looked_at}", *SITE_COLUMNS[1:]), rows, "no site has mail waiting")
        made += _table(("FAILED LAST", "RECIPIENT", "REPLY"), failures, "")
        return made[:height]

    def _rate(self, past: Sequence[float], *, bars: bool) -> str:
        drawn = f"  {bars_of(past)}" if bars and any(past) else ""
        return f"{past[-1]:.2f}/s{drawn}" if past else ""


def bars_of(values: Sequence[float]) -> str:
    """The values as bars, the tallest for the largest."""
    most = max(values)
    return "".join(_BARS[round(value / most * (len(_BARS) - 1))] for value in values)


def can_show_bars(encoding: str) -> bool:
    """Whether a terminal with this encoding has the characters."""
    try:
        _BARS.encode(encoding)
    except (LookupError, UnicodeEncodeError):
        return False
    return True


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], none: str) -> list[Line]:
    if not rows:
        return [("", Emphasis.NONE), (none, Emphasis.NONE)] if none else []
    heading, *others = output.aligned([columns, *rows])
    return [("", Emphasis.NONE), (heading, Emphasis.HEADING), *((line, Emphasis.NONE) for line in others)]
