"""Commits that wait to be stored, what is to be stored of them, and what their callers are answered."""

import math
from dataclasses import dataclass
from enum import Enum, auto
from typing import Protocol

from mailrail.pb.queue.v1 import enqueue_pb2, types_pb2
from mailrail_queue import metrics
from mailrail_queue.delivery.attempt import Delivery
from mailrail_queue.store.accept import NewMessage, NewRecipient

MAX_RECIPIENTS = 100_000
"""Recipients of one message. Ingress has a limit of its own far below; this one protects the batch."""


class CommitState(Enum):
    """What became of a message."""

    STORED = auto()
    EXISTED = auto()  # an earlier commit of the same id stored it: accepted, too
    BARRED = auto()  # its caller gave it up before it was stored (ACC-04)
    REFUSED = auto()


@dataclass(frozen=True, slots=True)
class CommitOutcome:
    """What became of a message, and what its caller is answered."""

    state: CommitState
    reason: str = ""
    """Label of `metrics.REFUSED`; empty for what is accepted."""
    reply: types_pb2.Reply | None = None
    """None for what is accepted."""

    @property
    def accepted(self) -> bool:
        """The message is in the queue."""
        return self.reply is None


def refusal(
    reason: str, code: int, enhanced: str, text: str, state: CommitState = CommitState.REFUSED
) -> CommitOutcome:
    """A refusal in our own words."""
    return CommitOutcome(state, reason, types_pb2.Reply(code=code, enhanced=enhanced, lines=[text]))


STORED = CommitOutcome(CommitState.STORED)
EXISTED = CommitOutcome(CommitState.EXISTED)
BARRED = refusal("barred", 451, "4.3.0", "this message was given up before it was committed", state=CommitState.BARRED)
UNAVAILABLE = refusal("unavailable", 451, "4.3.0", "the queue is unreachable, try again later")
LATE = refusal("late", 451, "4.3.0", "the message could not be stored in time, send it again")
UPLOAD_GONE = refusal("upload", 451, "4.3.0", "the content is no longer there, send it again")
FULL = refusal("full", 452, "4.3.1", "insufficient system storage, try again later")
NO_ROOM = refusal("room", 452, "4.3.1", "too many large messages are being received, try again later")
UNSTORABLE = refusal("data", 554, "5.6.0", "the message cannot be stored")
BROKEN = refusal("data", 451, "4.3.0", "the message could not be stored")
MALFORMED = refusal("data", 554, "5.6.0", "the queue does not support the form of this message")
OVER_LIMIT = refusal("limit", 452, "4.7.1", "the account has reached its limit for 24 hours, try again later")


class Caller(Protocol):
    """The stream that a commit came on."""

    def answer(self, message_id: bytes, outcome: CommitOutcome) -> None:
        """The commit is durable, or refused."""

    def leave_unanswered(self, message_id: bytes) -> None:
        """The outcome is unknown: the stream ends without an answer, and its other end asks GetOutcome."""


@dataclass(slots=True, eq=False)
class PendingCommit:
    """A message whose commit frame is here."""

    id: bytes
    commit: enqueue_pb2.Commit
    prefix: bytes
    """Of the content, as the commit brought it; so is the body."""
    body: bytes
    chunks: int
    caller: Caller
    size: int
    """Octets held in memory."""
    since: float
    until: float = math.inf
    """By Postgres's clock, Unix seconds: stored before that, or not at all (ACC-04)."""
    sent: bool = False
    """It went to Postgres, so it may be committed without our knowing."""
    duplicates: tuple[Caller, ...] = ()
    """Others that committed the same id in the same batch: they get the same answer."""
    born_leased: tuple[NewRecipient, ...] = ()
    """Of all tries: an earlier one may have been committed without our knowing."""

    def answer(self, outcome: CommitOutcome) -> None:
        """Tell every caller that waits for this id."""
        if outcome.reason:
            metrics.REFUSED.labels(reason=outcome.reason).inc()
        self.caller.answer(self.id, outcome)
        for caller in self.duplicates:
            caller.answer(self.id, outcome)

    def leave_unanswered(self) -> None:
        """Leave every caller that waits for this id without an answer."""
        for caller in (self.caller, *self.duplicates):
            caller.leave_unanswered(self.id)


@dataclass(slots=True, eq=False)
class PreparedCommit:
    """What one try is to store of a message. Nothing is reserved, and nothing leaves before the commit."""

    pending: PendingCommit
    message: NewMessage
    recipients: list[NewRecipient]
    deliveries: list[Delivery]
    """Of those recipients that are born leased."""
    expanded: bool
    """It was sent to a list, and its sender asked to be told (DSN-23)."""
    outcome: CommitOutcome | None = None
    """None: stored, or not decided yet."""
