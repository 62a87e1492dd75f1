"""Commits that wait to be stored, and what their callers are answered."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from mailrail.pb.queue.v1 import enqueue_pb2, types_pb2
from mailrail_queue.delivery.attempt import Delivery
from mailrail_queue.store.mail import NewMessage, NewRecipient

MAX_RECIPIENTS = 100_000
"""Recipients of one message. Ingress has a limit of its own far below; this one protects the batch."""


def refusal(code: int, enhanced: str, text: str) -> types_pb2.Reply:
    """A reply for the client, in our own words."""
    return types_pb2.Reply(code=code, enhanced=enhanced, lines=[text])


UNAVAILABLE = refusal(451, "4.3.0", "the queue is out of reach, try again later")
BARRED = refusal(451, "4.3.0", "this message was given up before it was committed")
LATE = refusal(451, "4.3.0", "the message could not be stored in time, send it again")
UPLOAD_GONE = refusal(451, "4.3.0", "the content is no longer there, send it again")
FULL = refusal(452, "4.3.1", "insufficient system storage, try again later")
NO_ROOM = refusal(452, "4.3.1", "too much large mail is on its way, try again later")
UNSTORABLE = refusal(554, "5.6.0", "the message cannot be stored")
BROKEN = refusal(451, "4.3.0", "the message could not be stored")
OVER_LIMIT = refusal(452, "4.7.1", "the account has sent all it may in 24 hours, try again later")
_REASONS = {OVER_LIMIT.lines[0]: "limit", LATE.lines[0]: "late", UPLOAD_GONE.lines[0]: "upload"}


class Caller(Protocol):
    """The stream that a commit came on."""

    def answer(self, message_id: bytes, accepted: bool, reply: types_pb2.Reply | None) -> None:
        """The commit is durable, or refused."""

    def lost(self, message_id: bytes) -> None:
        """Nobody knows: the stream ends without an answer, and its other end asks GetOutcome."""


@dataclass(slots=True, eq=False)
class PendingCommit:
    """A message whose commit frame is here."""

    id: bytes
    commit: enqueue_pb2.Commit
    prefix: bytes  # of the commit, as the body
    body: bytes
    chunks: int
    caller: Caller
    size: int  # octets held in memory
    since: float
    until: float = math.inf
    """By Postgres's clock, Unix seconds: stored before that, or not at all (ACC-04)."""
    sent: bool = False  # to Postgres, so that it may be committed without our knowing
    duplicates: tuple[Caller, ...] = ()
    """Others that committed the same id in the same batch: they get the same answer."""
    new: NewMessage | None = None
    recipients: Sequence[NewRecipient] = ()
    deliveries: Sequence[Delivery] = ()
    expanded: bool = False
    earlier: tuple[NewRecipient, ...] = ()
    """Born leased by a try of which nobody knows whether it was committed."""

    def answer(self, accepted: bool, reply: types_pb2.Reply | None) -> None:
        """Tell everybody who waits for this id."""
        self.caller.answer(self.id, accepted, reply)
        for caller in self.duplicates:
            caller.answer(self.id, accepted, reply)

    def lost(self) -> None:
        """Tell nobody anything."""
        for caller in (self.caller, *self.duplicates):
            caller.lost(self.id)
