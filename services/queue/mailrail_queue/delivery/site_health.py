"""What deliveries and other owners say of a site, and what it does to the site's window (SHD-04, SHD-05)."""

import random
from collections.abc import Sequence

from mailrail.core.delivery.mx_group import mx_group_of
from mailrail.core.delivery.shares import SiteStanding
from mailrail.core.delivery.window import Learned
from mailrail.core.route.site import SiteKind
from mailrail.kit import log
from mailrail.pb.queue.v1 import lease_pb2
from mailrail_queue.delivery.attempt import Delivery
from mailrail_queue.delivery.dispatcher import Dispatcher
from mailrail_queue.delivery.lease_writer import LeaseWriter, SiteBackoff
from mailrail_queue.delivery.sites import SiteState, TransportState
from mailrail_queue.delivery.verdicts import SiteVerdict, site_verdict_of
from mailrail_queue.store.sites import SiteRow


class SiteHealth:
    """Opens and closes the windows of sites, and lets other owners know."""

    def __init__(self, dispatcher: Dispatcher, writer: LeaseWriter) -> None:
        self._dispatcher = dispatcher
        self._writer = writer
        self._dice = random.Random()
        self._log = log.get_logger()

    def judge(self, delivery: Delivery, result: lease_pb2.DeliveryResult) -> None:
        """A delivery ended so: its site's window hears of it, before anything is written."""
        site = delivery.site
        site.claimed = False
        if site.kind is SiteKind.DOMAIN and (group := mx_group_of(result.mx_hosts)) is not None:
            site.mx_group = group
        verdict = site_verdict_of(result)
        if not verdict.dialled:
            site.window.undo()
        elif verdict.blamed is None:
            self._dispatcher.answered(delivery)
            self._succeed(site)
        elif verdict.transport_failed and site.kind is not SiteKind.TRANSPORT and site.transport is not None:
            site.window.undo()
            self._blame_transport(site, site.transport, verdict)
        else:
            self._blame(site, verdict)

    def _succeed(self, site: SiteState) -> None:
        probed = site.window.probing
        site.window.succeed()
        transport = site.transport
        if transport is not None and transport.window.probing:
            transport.window.recover()
            self._writer.note_backoff(transport.key, None)
        if probed:
            site.last_error = b""
            self._writer.note_backoff(site.key, None)
            self._dispatcher.wake_all()

    def _blame_transport(self, site: SiteState, transport: TransportState, verdict: SiteVerdict) -> None:
        now = self._dispatcher.clock()
        window = transport.window
        site.last_error = transport.last_error = verdict.last_error
        window.blame(now, verdict.error, jitter=self._dice.uniform(-1, 1), transport=True)
        seconds = (window.backoff_until or now) - now
        self._writer.note_backoff(transport.key, SiteBackoff(window.backoffs, seconds, site.last_error))

    def _blame(self, site: SiteState, verdict: SiteVerdict) -> None:
        now = self._dispatcher.clock()
        window = site.window
        site.standing = SiteStanding.UNPROVEN
        site.last_error = verdict.last_error
        jitter = self._dice.uniform(-1, 1)
        if not window.fail(now, verdict.error, jitter=jitter, transport=verdict.transport_failed):
            return
        seconds = max(0.0, (window.backoff_until or now) - now)
        self._writer.note_backoff(site.key, SiteBackoff(window.backoffs, seconds, site.last_error))
        self._log.info("site in backoff", site=site.key, seconds=round(seconds), error=window.last_error[:200])
        # What is leased for it is not to be dialled now: back, and the attempts undone (LSE-04).
        waiting = site.clear()
        if waiting:
            self._writer.take_back(waiting)

    def resolve(self, delivery: Delivery, hosts: Sequence[str]) -> None:
        """Outbound found the MX hosts of a delivery, and has not dialled yet (SHD-03)."""
        group = mx_group_of(hosts)
        if group is not None:
            self._dispatcher.resolve(delivery, group)

    def learn(self, row: SiteRow) -> None:
        """What another owner, or this process before a restart, wrote of a site or transport."""
        site = self._dispatcher.sites.get(row.name)
        known: SiteState | TransportState | None = site
        if known is None and row.name.startswith(f"{SiteKind.TRANSPORT}:"):
            known = self._dispatcher.transports.get(row.name.removeprefix(f"{SiteKind.TRANSPORT}:"))
        if known is None:
            return
        match known.window.adopt_backoff(self._dispatcher.clock(), row.backoff_seconds, row.failures):
            case Learned.ENDED:
                self._dispatcher.wake_all()
            case Learned.BACKOFF:
                if row.last_error:
                    known.last_error = row.last_error
            case Learned.NOTHING:
                pass
