"""What the queue asks of its own later parts, and the values that pass between them.

Two things happen inside the transaction that makes recipients final or defers them (FIN-01): notifications are made
and stored, and mail is put into the built-in mailbox. What they store becomes visible with that transaction or not at
all.
"""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from mailrail.core.delivery.judge import Judgement
from mailrail.pb.queue.v1 import types_pb2
from mailrail_queue.routing.router import RecipientFacts, RoutePlan
from mailrail_queue.store.connection import Connection


@dataclass(slots=True)
class AttemptRecipient:
    """A live recipient during an attempt: what judging its result takes, without the message."""

    id: int
    message_id: bytes
    shard: int
    version: int
    attempts: int
    """Counted attempts, the running one included."""
    interruptions: int
    accepted: float
    """Unix seconds by Postgres's clock, as all times here."""
    uncounted_seconds: float
    null_sender: bool
    sender_authentication: int
    """A `SenderAuthentication` of `mailrail.core.dsn.due`."""
    delayed_dsn_decided: bool
    tls_requirement: int
    address: str
    facts: RecipientFacts
    notify: int
    """An `Asked` of `mailrail.core.dsn.due`."""
    envelope_recipient: bytes
    """An `EnvelopeRecipient`, encoded."""
    dialled_hosts: bytes | None = None
    """A `DeliveryResult`, encoded, with only `dialled_hosts` set: of the attempts before."""
    request: int = 0
    request_reason: str | None = None


@dataclass(frozen=True, slots=True)
class Notice:
    """A recipient whose sender (or postmaster) is to be told of what an attempt did."""

    recipient: AttemptRecipient
    judgement: Judgement
    attempt: types_pb2.Attempt
    dsn_passed_on: bool = False


@dataclass(frozen=True, slots=True)
class Arrival:
    """A recipient that the built-in mailbox takes, or mail captured on its way out (outcome CAPTURED)."""

    recipient: AttemptRecipient
    plan: RoutePlan | None
    attempt: types_pb2.Attempt


Notify = Callable[[Sequence[Notice]], Awaitable[None]]
"""Stores the DSNs due for these recipients; recipients of one message may share a DSN (DSN-21)."""


class Schedule(Protocol):
    """What delivery tells the owner of shards (`schedule.worklist`)."""

    def add_deferred(self, rows: Sequence[tuple[int, int]]) -> None:
        """Attempts of recipients in these (shard, request) ended, and the recipients are to be tried again."""

    def wake_up(self) -> None:
        """There may be work that is due now."""


class Notifications(Protocol):
    """Makes and stores DSNs, and the copies for the postmaster of what may not be answered (design 9)."""

    def transaction(self, connection: Connection) -> AbstractAsyncContextManager[Notify]:
        """A transaction in which notifications may be made. Once committed, it wakes the owners of their shards."""


class Mailboxes(Protocol):
    """The built-in mailbox, seen by delivery."""

    def refusal(self, recipient: AttemptRecipient, head: bytes = b"") -> types_pb2.Reply | None:
        """Why no mailbox takes it now, as the reply of an attempt (4yz: it waits); None: one does.

        `head`: the message, or its beginning, as far as it is in memory.
        """

    async def deliver(self, connection: Connection, arrivals: Sequence[Arrival]) -> None:
        """Put each into its mailbox, once (unique recipient id)."""
