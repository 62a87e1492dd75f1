"""One connected outbound process: what is to be said to it gathers here until its stream takes it."""

import asyncio

from mailrail.pb.queue.v1 import lease_pb2
from mailrail_queue.delivery.attempt import Delivery, DeliveryContent

_ACKNOWLEDGE_WITHIN = 0.05
"""Seconds that outbound waits at most to hear that results are written, unless something else is to be said anyway."""


class OutboundStream:
    """One outbound process, connected. What is to be said gathers until the stream takes it."""

    def __init__(self, node: str, clock: float = 0.0) -> None:
        """`clock`: what the process said of its own with the first request."""
        self.node = node
        self.clock = clock
        """The latest that it said of its own clock."""
        self._clock = clock  # as of the last `take`: what gathered since then is no older
        self.credit = 0
        self.ready = asyncio.Event()
        self.closing = False
        self._deliveries: list[tuple[Delivery, DeliveryContent, float]] = []
        self._committed: list[int] = []
        self._cancel: list[int] = []
        self._renewals: list[lease_pb2.Renewal] = []
        self._go_away = False
        self._history: int | None = None

    def send(self, delivery: Delivery, content: DeliveryContent, remaining: float) -> None:
        """Hand on a delivery with the next batch."""
        self._deliveries.append((delivery, content, remaining))
        self.ready.set()

    def cancel(self, token: int) -> None:
        """Ask that a delivery be aborted if its final dot is not sent."""
        self._cancel.append(token)
        self.ready.set()

    def acknowledge(self, token: int) -> None:
        """The results under this token are in the database."""
        if not self._committed:
            asyncio.get_running_loop().call_later(_ACKNOWLEDGE_WITHIN, self.ready.set)
        self._committed.append(token)

    def tell_renewal(self, token: int, remaining: float) -> None:
        """The lease lasts so many seconds from now."""
        self._renewals.append(lease_pb2.Renewal(token=token, remaining_seconds=remaining))
        self.ready.set()

    def tell_history(self, number: int) -> None:
        """The history that the database is in: what it works on under another is of no use."""
        self._history = number
        self.ready.set()

    def go_away(self) -> None:
        """This replica stops: nothing more is handed out, what runs finishes."""
        self._go_away = True
        self.ready.set()

    def close(self) -> None:
        """The other side is gone."""
        self.closing = True
        self.ready.set()

    def take(self) -> list[lease_pb2.LeaseResponse]:
        """What is to be said now, in messages of bounded size."""
        self.ready.clear()
        responses: list[lease_pb2.LeaseResponse] = []
        clock, self._clock = self._clock, self.clock
        current = lease_pb2.LeaseResponse(
            committed=self._committed,
            cancel=self._cancel,
            renewals=self._renewals,
            go_away=self._go_away,
            clock=clock,
            history=self._history,
        )
        said = bool(self._committed or self._cancel or self._renewals or self._go_away or self._history is not None)
        self._committed, self._cancel, self._renewals, self._go_away = [], [], [], False
        self._history = None
        deliveries, self._deliveries = self._deliveries, []
        size = 0
        for delivery, content, remaining in deliveries:
            if delivery.ended:
                continue  # closed before it was told
            _write_delivery(current, delivery, content, remaining)
            said = True
            size += delivery.size
            if size > 2 * 1024 * 1024:
                responses.append(current)
                current, size, said = lease_pb2.LeaseResponse(clock=clock), 0, False
        if said:
            responses.append(current)
        return responses


def _write_delivery(
    response: lease_pb2.LeaseResponse, delivery: Delivery, content: DeliveryContent, remaining: float
) -> None:
    """written where it belongs: a delivery that is made apart is copied whole."""
    message = response.deliveries.add(
        token=delivery.token,
        message_id=delivery.message_id,
        remaining_seconds=remaining,
        prefix=content.prefix,
        body=content.body,
        size=content.size,
        attempt=delivery.attempt,
        last_attempt=content.last_attempt,
    )
    message.MergeFromString(delivery.plan.fields)
    message.envelope.MergeFromString(content.envelope)
    for fields in content.recipients:
        message.recipients.add(**fields)
    for host, ips in content.dialled_hosts.items():
        message.dialled_hosts.add(host=host, ips=ips)
