"""What is done with due recipients that were fetched: decisions without a database (SHD-03, SHD-04; design 4)."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from mailrail.core.delivery.schedule import is_last
from mailrail.core.revision.revision import RetrySchedule
from mailrail.pb.queue.v1 import types_pb2
from mailrail_queue.delivery.attempt import PER_DELIVERY, Delivery, DeliveryContent, in_parts, recipient_fields
from mailrail_queue.delivery.ports import AttemptRecipient
from mailrail_queue.delivery.sites import SiteState
from mailrail_queue.delivery.verdicts import attempt_recipient_of
from mailrail_queue.routing.router import RoutePlan
from mailrail_queue.store.content import StoredMessage
from mailrail_queue.store.rows import dialled_of
from mailrail_queue.store.waiting import Waiting


@dataclass(slots=True)
class DueWork:
    """Due recipients, by what is to be done with them."""

    groups: list[tuple[RoutePlan, list[Waiting]]] = field(default_factory=list)
    """Recipients of one message that may share a transaction."""
    moved: list[tuple[Waiting, str]] = field(default_factory=list)
    """Recipients that routing sends elsewhere now, and the site they wait at from now on (SHD-04)."""
    missing: list[tuple[Waiting, RoutePlan]] = field(default_factory=list)
    """Recipients whose transport is missing: a counted attempt without a dial."""


def sort_due(planned: Iterable[tuple[Waiting, RoutePlan]]) -> DueWork:
    """Sort recipients by where their route goes now. Those of a group have equal attempts and TLS requirements."""
    work = DueWork()
    groups: dict[tuple[object, ...], list[Waiting]] = {}
    for row, plan in planned:
        if plan.missing:
            work.missing.append((row, plan))
        elif plan.key != row.site:
            work.moved.append((row, plan.key))
        else:
            key = (row.message_id, plan.grouping, plan.template.domain, row.tls_requirement, row.attempts)
            if key not in groups:
                groups[key] = []
                work.groups.append((plan, groups[key]))
            groups[key].append(row)
    return work


def choose(
    groups: Sequence[tuple[RoutePlan, list[Waiting]]], room_of: Callable[[RoutePlan], int]
) -> tuple[list[tuple[RoutePlan, list[Waiting]]], set[tuple[int, str]]]:
    """Deliveries that their sites have room for, and the (shard, site) of which recipients were left for later.

    A group becomes as many deliveries as the transport's recipients a message ask for. `room_of`: how many more
    deliveries a plan's site takes; it is asked once a site.
    """
    room: dict[str, int] = {}
    chosen: list[tuple[RoutePlan, list[Waiting]]] = []
    left: set[tuple[int, str]] = set()
    for plan, members in groups:
        if plan.key not in room:
            room[plan.key] = room_of(plan)
        limit = plan.transport.limits.recipients_per_message if plan.transport is not None else PER_DELIVERY
        for part in in_parts(members, limit):
            if room[plan.key] <= 0:
                left.update((row.shard, row.site) for row in part)
                continue
            room[plan.key] -= 1
            chosen.append((plan, part))
    return chosen, left


def leased_delivery(
    plan: RoutePlan,
    site: SiteState,
    token: int,
    members: Sequence[Waiting],
    stored: StoredMessage,
    schedule: RetrySchedule,
    *,
    started: float,
    deadline: float,
) -> Delivery:
    """The delivery of recipients that were leased at `started` (Unix seconds) until `deadline` (monotonic)."""
    first = members[0]
    envelope = types_pb2.Envelope.FromString(stored.envelope)
    envelope.tls_requirement = types_pb2.TlsRequirement.ValueType(first.tls_requirement)
    last = is_last(
        schedule,
        attempts=first.attempts + 1,
        now=started,
        accepted=first.queued,
        uncounted_seconds=first.uncounted_seconds,
        null_sender=first.from_domain == "",
    )
    recipients: list[AttemptRecipient] = []
    handed: list[dict[str, Any]] = []
    hosts: dict[str, list[str]] = {}
    for row in members:
        recipients.append(attempt_recipient_of(row, attempts=row.attempts + 1))
        handed.append(recipient_fields(row.id, types_pb2.EnvelopeRecipient.FromString(row.envelope_recipient)))
        for host, ips in dialled_of(row.dialled_hosts).items():
            if len(ips) > len(hosts.get(host, ())):  # most often they travelled together
                hosts[host] = ips
    content = DeliveryContent(
        envelope.SerializeToString(), handed, stored.prefix, stored.body, stored.size, last, hosts
    )
    size = len(stored.prefix) + len(stored.body or b"")
    return Delivery(
        token, first.message_id, plan, site, recipients, size, deadline, started, first.attempts + 1, content
    )
