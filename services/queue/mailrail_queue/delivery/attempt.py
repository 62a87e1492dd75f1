"""A delivery: what is done under one committed lease, and what outbound is given for it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from mailrail.core.delivery.shares import SiteStanding, StreamCredit
from mailrail.pb.queue.v1 import types_pb2
from mailrail_queue.delivery.ports import AttemptRecipient
from mailrail_queue.routing.router import RoutePlan

if TYPE_CHECKING:
    from mailrail_queue.delivery.sites import SiteState  # which holds deliveries

Member = TypeVar("Member")

PER_DELIVERY = 100
"""Recipients of one transaction (RFC 5321 4.5.3.1.8; design 4, Deliver)."""


class Stream(Protocol):
    """An outbound process that takes deliveries."""

    node: str
    credit: StreamCredit

    def send(self, delivery: "Delivery", content: "DeliveryContent", remaining: float) -> None:
        """Hand on a delivery with the next batch; its lease lasts `remaining` seconds."""

    def cancel(self, token: int) -> None:
        """Ask that a delivery be aborted if its final dot is not sent."""

    def tell_history(self, number: int) -> None:
        """The database is in this history: the process may break off deliveries of another one."""


class DeliveryContent(NamedTuple):
    """The parts of a delivery that its plan and its lease do not hold."""

    envelope: bytes
    """An `Envelope`, encoded."""
    recipients: list[dict[str, Any]]
    """The fields of each `DeliveryRecipient`."""
    prefix: bytes
    body: bytes | None
    """None: it is fetched (LSE-06)."""
    size: int
    last_attempt: bool = False
    dialled_hosts: Mapping[str, Sequence[str]] = MappingProxyType({})
    """Host → addresses tried at earlier attempts, oldest first."""


def in_parts(group: list[Member], limit: int) -> Iterable[list[Member]]:
    """Recipients that may share a transaction, as many at a time as the next hop takes, and PER_DELIVERY at most."""
    step = max(1, min(PER_DELIVERY, limit))
    if len(group) <= step:
        return (group,)
    return (group[start : start + step] for start in range(0, len(group), step))


def recipient_fields(number: int, rcpt: types_pb2.EnvelopeRecipient) -> dict[str, Any]:
    """The fields of a recipient of a delivery."""
    fields: dict[str, Any] = {"id": number, "address": rcpt.address}
    if rcpt.HasField("original_recipient"):
        fields["original_recipient"] = rcpt.original_recipient
    if rcpt.notify:
        fields["notify"] = list(rcpt.notify)
    if rcpt.simulate:
        fields["simulate"] = rcpt.simulate
    return fields


@dataclass(slots=True, eq=False)
class Delivery:
    """One delivery under one lease."""

    token: int
    message_id: bytes
    plan: RoutePlan
    site: "SiteState"
    recipients: list[AttemptRecipient]
    size: int  # octets of content held in memory: prefix and inline body, as they count for outbound's credit
    deadline: float  # monotonic, counted from before the lease was sent to Postgres (LSE-01)
    started: float  # Unix seconds by Postgres's clock
    attempt: int
    content: DeliveryContent | None  # until handed on
    stream: Stream | None = None
    node: str = ""  # of the process that it was handed to
    ended: bool = False  # its results came, or it was taken back: it takes no part in any count
    standing: SiteStanding = (
        SiteStanding.UNPROVEN
    )  # that it counts for: its site's when it was added, then when handed on
    handed_on: float = 0.0  # monotonic; 0.0: not yet
    counted_by: tuple[str, ...] = ()  # MX group and host (`mx_counts`)
    answered: set[int] = field(default_factory=set)  # recipients with a result, when results come in parts
