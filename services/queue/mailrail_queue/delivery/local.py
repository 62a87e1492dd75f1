"""Deliveries that end in the queue itself: into the built-in mailbox, or refused by a `fail` transport."""

from mailrail.core.route.site import SiteKind
from mailrail.pb.queue.v1 import lease_pb2, types_pb2
from mailrail_queue.delivery.attempt import Delivery
from mailrail_queue.delivery.dispatcher import Dispatcher
from mailrail_queue.delivery.ports import Mailboxes
from mailrail_queue.delivery.results import DeliveryResults, Finisher
from mailrail_queue.routing.router import RoutePlan

_DELIVERED = types_pb2.Reply(code=250, enhanced="2.1.5", lines=["delivered to the built-in mailbox"])

_ARRIVED = types_pb2.Reply(code=250, enhanced="2.1.5", lines=["the probe has arrived"])


def refusal_of(plan: RoutePlan) -> types_pb2.Reply:
    """What a `fail` transport answers; its text may begin with the enhanced code."""
    transport = plan.transport
    code = transport.code if transport is not None and transport.code is not None else 554
    text = transport.text if transport is not None and transport.text else "delivery is refused by a route"
    first, _, rest = text.partition(" ")
    if first[:2] in ("4.", "5.") and first.count(".") == 2:
        return types_pb2.Reply(code=code, enhanced=first, lines=[rest or text])
    return types_pb2.Reply(code=code, enhanced=f"{code // 100}.7.0", lines=[text])


def local_result(delivery: Delivery, mailboxes: Mailboxes) -> lease_pb2.DeliveryResult:
    """What becomes of each recipient of a delivery that no outbound process takes part in."""
    result = lease_pb2.DeliveryResult(token=delivery.token, done=True)
    content = delivery.content
    head = content.prefix + (content.body or b"") if content is not None else b""
    for recipient in delivery.recipients:
        attempt = result.recipients.add(id=recipient.id).attempt
        attempt.dialled = False
        if delivery.plan.probe:
            reply = _ARRIVED
        elif delivery.plan.site.kind is SiteKind.MAILBOX:
            reply = mailboxes.refusal(recipient, head) or _DELIVERED
        else:
            reply = refusal_of(delivery.plan)
        attempt.reply.CopyFrom(reply)
        if reply.code < 400:
            attempt.outcome = types_pb2.OUTCOME_DELIVERED
        else:
            attempt.outcome = types_pb2.OUTCOME_FAILED if reply.code >= 500 else types_pb2.OUTCOME_DEFERRED
    return result


class LocalDelivery:
    """Takes the place of an outbound process for such deliveries."""

    def __init__(self, dispatcher: Dispatcher, finisher: Finisher, mailboxes: Mailboxes) -> None:
        self._dispatcher, self._finisher, self._mailboxes = dispatcher, finisher, mailboxes

    def deliver(self, delivery: Delivery) -> None:
        """End a delivery; its results are written with the next batch."""
        message = local_result(delivery, self._mailboxes)
        self._finisher.submit(DeliveryResults(delivery.token, message, delivery, "", lambda _: None))
        self._dispatcher.release(delivery)
