"""Deliveries under way by MX group and first MX host, and the sites that wait for one of them to end (SHD-03)."""

from collections import deque
from collections.abc import Sequence

from mailrail.core.delivery.mx_group import MxGroup
from mailrail_queue.delivery.attempt import Delivery
from mailrail_queue.delivery.sites import SiteState


class MxCounts:
    """Counts deliveries under way. It names only what is under way, so its size has the bound that they have."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._waiting: dict[str, deque[SiteState]] = {}

    def room(self, site: SiteState) -> int:
        """Deliveries that may start beside those of sites with the same MX hosts, or with the same first one."""
        assert site.mx_group is not None
        limit = int(site.window.limit)
        return limit - max([self._counts.get(name, 0) for name in site.mx_group.counted_by(site.standing)])

    def wait(self, site: SiteState) -> None:
        """If the site has no room here, it waits until `leave` names it."""
        if site.mx_group is None or site.waits_for_mx:
            return
        limit = int(site.window.limit)
        for name in site.mx_group.counted_by(site.standing):
            if self._counts.get(name, 0) >= limit:
                site.waits_for_mx = True
                self._waiting.setdefault(name, deque()).append(site)
                return

    def enter(self, delivery: Delivery) -> None:
        """A delivery whose MX hosts are known is under way."""
        site = delivery.site
        assert site.mx_group is not None
        delivery.counted_by = site.mx_group.counted_by(site.standing)
        for name in delivery.counted_by:
            self._counts[name] = self._counts.get(name, 0) + 1

    def leave(self, delivery: Delivery) -> Sequence[SiteState]:
        """A delivery ended, or is counted otherwise from now on. Returns the sites that may have room now."""
        woken: Sequence[SiteState] = ()
        for name in delivery.counted_by:
            left = self._counts.get(name, 0) - 1
            if left > 0:
                self._counts[name] = left
            else:
                self._counts.pop(name, None)
            waiting = self._waiting.get(name)
            while waiting:
                site = waiting.popleft()
                site.waits_for_mx = False
                if site.waiting or site.due:
                    woken = (*woken, site)
                    break
            if waiting is not None and not waiting:
                del self._waiting[name]
        delivery.counted_by = ()
        return woken

    def move(self, delivery: Delivery, group: MxGroup) -> Sequence[SiteState]:
        """A delivery under way has these MX hosts. Returns the sites that may have room now."""
        if delivery.counted_by == group.counted_by(delivery.site.standing):
            return ()
        woken = self.leave(delivery)
        self.enter(delivery)
        return woken
