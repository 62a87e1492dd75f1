"""What a process knows of due work: its shards, the sites in them that wait for their turn, and what woke it.

The group commit, the finisher, peers, heartbeats and administrators add to the list; the scheduler works through it.
The list is in memory only. A restart loses nothing: the scheduler finds due work again in the database.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence

from mailrail.core.delivery.shares import SiteStanding
from mailrail.core.line import Lines, Need
from mailrail.kit import log
from mailrail_queue import metrics
from mailrail_queue.delivery.dispatcher import Dispatcher
from mailrail_queue.delivery.sites import SiteState
from mailrail_queue.routing.router import Router
from mailrail_queue.schedule.peers import Peers
from mailrail_queue.store.fencing import Ownership


class Worklist:
    """The sites and shards that the scheduler has to look at."""

    def __init__(self, dispatcher: Dispatcher, peers: Peers, router: Callable[[], Router], *, run_id: str) -> None:
        self._dispatcher, self._peers, self._router = dispatcher, peers, router
        self._log = log.get_logger()
        self.run_id = run_id
        self.ownership = Ownership(run_id, {})
        """The shards of this process."""
        self.cursors: dict[int, float] = {}
        """Shard → time after which the next look at its sites begins; 0.0: it was woken and is looked at anew."""
        self.turn: dict[str, None] = {}
        """Keys of sites with due work in the database, in the order of their turns."""
        self.parked = (Lines[SiteState](), Lines[SiteState](), Lines[SiteState]())
        """Sites with due work in the database of whose standing no more may be leased: they have turns."""
        dispatcher.parked = self.parked
        self.requests = False
        """An administrator may have asked for something (ADM-02)."""
        self.unverified: list[int] = []
        """Shards that were taken over, and whose sites were not compared with their recipients since (SHD-02)."""
        self.wake = asyncio.Event()
        """Set when something was added."""
        self.revised = asyncio.Event()
        """Set when a revision came, or when shards came whose owner may have missed one."""
        self.changed: set[str] = set()
        """Transports that a revision changed, and whose mail was not looked at since."""

    # --- adding ---

    def add_stored(self, where: Mapping[tuple[int, str], float]) -> None:
        """Recipients were stored due in these (shard, site): look at ours, wake the owners of the others. With each is
        when the newest of their messages began (Unix seconds)."""
        others: set[int] = set()
        for (number, key), mail_began in where.items():
            if number in self.ownership.epochs:
                self.note(number, key, mail_began)
            else:
                others.add(number)
        if others:
            self._peers.wake(others)
        self.wake.set()

    def wake_shards(self, shards: Iterable[int]) -> None:
        """There may be due work, or an administrator's request, in these shards: look at those of ours."""
        for number in shards:
            if number in self.cursors:
                self.cursors[number] = 0.0
        self.requests = True
        self.wake.set()

    def wake_owners(self, shards: Iterable[int]) -> None:
        """Mail that the queue made itself is due in these shards: look at ours, wake the owners of the others."""
        found = set(shards)
        self.wake_shards(found)
        others = {n for n in found if n not in self.ownership.epochs}
        if others:
            self._peers.wake(others)

    def wake_everybody(self, shards: Iterable[int]) -> None:
        """An administrator changed recipients in these shards: look at once, here and everywhere (ADM-02)."""
        found = set(shards)
        self.wake_shards(found)
        self._peers.wake_everybody(found)

    def add_deferred(self, rows: Sequence[tuple[int, int]]) -> None:
        """Attempts of recipients in these (shard, request) ended, and the recipients are to be tried again."""
        asked = {number for number, request in rows if request}
        if asked:
            self.wake_owners(asked)  # ADM-02: the attempt is over; its shard may have another owner by now

    def wake_up(self) -> None:
        """There may be work that is due now."""
        self.wake.set()

    def revise(self, changed: Iterable[str]) -> None:
        """A new revision is in force, and it changed these transports ("NAMESPACE/NAME") (ADM-03)."""
        self.changed.update(changed)
        self.revised.set()

    # --- what is due ---

    def site(self, key: str) -> SiteState:
        """The state of a site; a new one if the site was unknown."""
        return self._dispatcher.site_of_key(key, self._router())

    def note(self, number: int, key: str, mail_began: float = 0.0) -> None:
        """A site has due work in a shard of ours. `mail_began`: Unix seconds at which the newest of it began, or was
        due, as far as that is known."""
        site = self.site(key)
        site.mail_began = max(site.mail_began, mail_began)
        site.due.setdefault(number, False)
        self._take_turn(site)

    def fetch_more(self, site: SiteState) -> None:
        """A site has room again for what is due in the database."""
        if self._take_turn(site):
            self.wake.set()

    def _take_turn(self, site: SiteState) -> bool:
        if site.parked is site.standing and not site.in_backoff(self._dispatcher.clock()):
            if site.need is not Need.MORE:  # it may have stood there for more until now
                self.parked[site.standing].add(site, site.need, site.mail_began)
            return False  # it keeps its place among those that wait
        site.parked = None
        self.turn.setdefault(site.key)
        return True

    def park(self, site: SiteState, *, first: bool = False) -> None:
        """No more may be leased for sites of this standing now: the site waits for its turn (LSE-06). `first`: it
        had its turn, and there was no time for it."""
        self.turn.pop(site.key, None)
        site.parked = site.standing
        waiting = self.parked[site.standing]
        if first:
            waiting.put_back(site, site.need, site.mail_began)
        else:
            waiting.add(site, site.need, site.mail_began)

    def unpark(self, standing: SiteStanding, most: int) -> list[str]:
        """So many sites of those that wait have their turn: their keys."""
        called: list[str] = []
        waiting = self.parked[standing]
        while waiting and len(called) < most:
            site = waiting.take()
            if site.parked is standing:
                site.parked = None
                self.turn.setdefault(site.key)
                called.append(site.key)
        return called

    def look_anew(self) -> None:
        """Look at the sites of all shards, from the beginning."""
        self.cursors = dict.fromkeys(self.cursors, 0.0)
        self.wake.set()

    @property
    def stale(self) -> bool:
        """Whether some shard is to be looked at anew."""
        return any(cursor == 0.0 for cursor in self.cursors.values())

    # --- shards ---

    def own(self, mine: dict[int, int]) -> None:
        """These shards (number → epoch) are ours from now on, and no others."""
        before = self.ownership.epochs
        if mine == before:
            return
        gained = [n for n, e in mine.items() if before.get(n) != e]
        gone = [n for n in before if n not in mine]
        self.ownership = Ownership(self.run_id, mine)
        self.cursors = {n: self.cursors.get(n, 0.0) if n in before else 0.0 for n in mine}
        for site in self._dispatcher.sites.values():
            for number in gone:
                site.due.pop(number, None)
        metrics.SHARDS.set(len(mine))
        self._log.info("shards changed", owned=len(mine), gained=len(gained), released=len(gone))
        self.requests = True
        if gained:
            self.revised.set()  # their owner may have been down when the revision came
        self.wake.set()

    def disown(self) -> None:
        """No shard is ours any more: this process goes."""
        self.ownership = Ownership(self.run_id, {})
        self.cursors = {}
