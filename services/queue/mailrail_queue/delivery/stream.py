"""One connected outbound process: messages for it gather here until its stream takes them."""

import asyncio

from mailrail.core.delivery.shares import SiteStanding, StreamCredit
from mailrail.pb.queue.v1 import lease_pb2
from mailrail_queue.delivery.attempt import Delivery, DeliveryContent

_STANDINGS = {
    SiteStanding.UNPROVEN: lease_pb2.SITE_STANDING_UNPROVEN,
    SiteStanding.SLOW: lease_pb2.SITE_STANDING_SLOW,
    SiteStanding.QUICK: lease_pb2.SITE_STANDING_QUICK,
}
_ACKNOWLEDGE_WITHIN = 0.05
"""Seconds until outbound is told that results are written, unless another message goes out earlier."""


class OutboundStream:
    """One connected outbound process, and the messages for it."""

    def __init__(self, node: str, clock: float = 0.0, credit: StreamCredit | None = None) -> None:
        """`clock`: the process's own clock, as in its first request. `credit`: what it takes when it connects."""
        self.node = node
        self.clock = clock
        """The process's own clock, as in its latest request."""
        self._clock = clock  # as of the last `take`: what gathered since then is no older
        self.credit = credit or StreamCredit()
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
        """Tell that the results under this token are in the database."""
        if not self._committed:
            asyncio.get_running_loop().call_later(_ACKNOWLEDGE_WITHIN, self.ready.set)
        self._committed.append(token)

    def tell_renewal(self, token: int, remaining: float) -> None:
        """Tell that the lease lasts so many seconds from now."""
        self._renewals.append(lease_pb2.Renewal(token=token, remaining_seconds=remaining))
        self.ready.set()

    def tell_history(self, number: int) -> None:
        """Tell the history that the database is in: deliveries of another one may be broken off."""
        self._history = number
        self.ready.set()

    def go_away(self) -> None:
        """Tell that this replica stops: it hands out nothing more, and what runs finishes."""
        self._go_away = True
        self.ready.set()

    def close(self) -> None:
        """End the stream: the process is gone."""
        self.closing = True
        self.ready.set()

    def take(self) -> list[lease_pb2.LeaseResponse]:
        """The messages to send now, each of bounded size."""
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
                continue  # it ended before it was handed on
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
    """Write a delivery into a response in place; one that is built apart would be copied whole."""
    message = response.deliveries.add(
        token=delivery.token,
        message_id=delivery.message_id,
        remaining_seconds=remaining,
        prefix=content.prefix,
        body=content.body,
        size=content.size,
        attempt=delivery.attempt,
        last_attempt=content.last_attempt,
        standing=_STANDINGS[delivery.standing],
    )
    message.MergeFromString(delivery.plan.fields)
    message.envelope.MergeFromString(content.envelope)
    message.envelope.ClearField("authentication")  # it decides nothing about the way out, and may be large
    for fields in content.recipients:
        message.recipients.add(**fields)
    for host, ips in content.dialled_hosts.items():
        message.dialled_hosts.add(host=host, ips=ips)
