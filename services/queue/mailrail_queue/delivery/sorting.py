"""What a result of an attempt is written as: a decision without a database (FIN-01, LSE-03, LSE-04, HIS-03).

A result becomes an *ending* (the recipient is final), a *deferral* (it is tried again; or, without an attempt, the
attempt is undone because nothing was dialled), or only a *record* in the timeline, when it comes too late to count.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from mailrail.core.delivery.judge import Judgement
from mailrail.core.delivery.outcome import Verdict
from mailrail.core.dsn.due import Asked
from mailrail.core.route.site import SiteKind
from mailrail.core.smtp.reply import EnhancedCode
from mailrail.core.tlspolicy.decision import TRY_LATER
from mailrail.pb.queue.v1 import lease_pb2, types_pb2
from mailrail_queue.delivery.ports import Arrival, AttemptRecipient, Notice
from mailrail_queue.delivery.verdicts import MOST_OCTETS, dialled_before, verdict_of
from mailrail_queue.routing.router import RoutePlan
from mailrail_queue.store import results as result_store
from mailrail_queue.store.results import Deferral, Ending
from mailrail_queue.store.waiting import Waiting

SUCCEEDED = (types_pb2.OUTCOME_DELIVERED, types_pb2.OUTCOME_RELAYED, types_pb2.OUTCOME_CAPTURED)
"""Outcomes that count under an old token too: what was sent was sent (LSE-03)."""
NOT_DIALLED_DELAY = 1.0
"""Seconds until a recipient whose attempt was undone is due again: outbound may wait for a newer configuration."""
POLICY_UNREAD_DELAY = 10.0
"""The same where outbound could not read what the destination demands of TLS (4.7.5): it may be cut off from Postgres
for hours while we are not, and mail that came and went each second would take all that Postgres can write."""
_MOST_SAID = 250
"""Characters that are kept of what is wrong, so that the next rule fits behind it."""
_ASKED_SUCCESS = int(Asked.SUCCESS)

Judge = Callable[[Verdict, AttemptRecipient], Judgement]
"""What becomes of a recipient with this verdict, now."""

NextRoute = Callable[[AttemptRecipient, types_pb2.LackingTransport], tuple[RoutePlan, bytes] | None]
"""Where a recipient goes that a transport cannot take, and LackingTransports with it; None: no further rule matches."""


@dataclass(slots=True)
class Sorted:
    """What one result is written as, and what shares its transaction."""

    change: Ending | Deferral
    notice: Notice | None = None
    arrival: Arrival | None = None


def sort(
    found: lease_pb2.RecipientResult,
    recipient: AttemptRecipient,
    token: int,
    plan: RoutePlan | None,
    result: lease_pb2.DeliveryResult,
    judge: Judge,
    next_route: NextRoute,
) -> Sorted:
    """What a recipient's result under `token` is written as. `plan`: None for a delivery that we did not hand out.

    Where TLS is why, that is as any other reason: what says 5.7.10 or 5.7.30 ends at once and the sender is told
    (RTLS-16c), what says 4.7.5 is tried again and told of as delayed (STS-14b).
    """
    outcome = found.attempt.outcome
    if outcome in SUCCEEDED:
        return _delivered(found, recipient, token, plan, judge)
    if outcome == types_pb2.OUTCOME_NOT_ATTEMPTED:
        delay = POLICY_UNREAD_DELAY if found.attempt.status == str(TRY_LATER) else NOT_DIALLED_DELAY
        return Sorted(Deferral(recipient.id, recipient.message_id, token, recipient.version, delay, last_attempt=None))
    if outcome == types_pb2.OUTCOME_CANCELLED:  # an administrator's request stands on the row and is granted next
        return Sorted(_deferral(found.attempt, recipient, token, result, retry_in=0.0, cancelled=True))
    if outcome == types_pb2.OUTCOME_FAILED and found.HasField("lacking"):
        following = next_route(recipient, found.lacking)
        if following is not None:
            return Sorted(_passed_on(found, recipient, token, result, *following))
    judgement = judge(verdict_of(found), recipient)
    if judgement.final:
        return _failed(found.attempt, recipient, token, judgement)
    assert judgement.retry_in is not None, "what is not final is tried again"
    found.attempt.outcome = types_pb2.OUTCOME_DEFERRED
    delayed = judgement.dsn is not None
    return Sorted(
        _deferral(found.attempt, recipient, token, result, retry_in=judgement.retry_in, delayed_dsn_decided=delayed),
        Notice(recipient, judgement, found.attempt) if delayed else None,
    )


def _delivered(
    found: lease_pb2.RecipientResult, recipient: AttemptRecipient, token: int, plan: RoutePlan | None, judge: Judge
) -> Sorted:
    attempt = found.attempt
    change = Ending(
        recipient.id,
        recipient.message_id,
        token,
        recipient.version,
        result_store.DELIVERED,
        attempt.outcome,
        attempt.SerializeToString(),
    )
    arrives = attempt.outcome == types_pb2.OUTCOME_CAPTURED or (plan is not None and plan.site.kind is SiteKind.MAILBOX)
    if not arrives and not recipient.notify & _ASKED_SUCCESS:  # most mail: nothing to judge
        return Sorted(change)
    judgement = judge(verdict_of(found), recipient)
    return Sorted(
        change,
        Notice(recipient, judgement, attempt, found.dsn_passed_on) if judgement.dsn is not None else None,
        Arrival(recipient, plan, attempt) if arrives else None,
    )


def _failed(attempt: types_pb2.Attempt, recipient: AttemptRecipient, token: int, judgement: Judgement) -> Sorted:
    # A copy: should Postgres fail, the batch is judged again, and this reply did not say that it is final.
    ended = types_pb2.Attempt()
    ended.CopyFrom(attempt)
    ended.outcome = types_pb2.OUTCOME_FAILED
    change = Ending(
        recipient.id,
        recipient.message_id,
        token,
        recipient.version,
        result_store.FAILED,
        types_pb2.OUTCOME_FAILED,
        ended.SerializeToString(),
    )
    tells = judgement.dsn is not None or judgement.tell_postmaster
    return Sorted(change, Notice(recipient, judgement, ended) if tells else None)


def _passed_on(
    found: lease_pb2.RecipientResult,
    recipient: AttemptRecipient,
    token: int,
    result: lease_pb2.DeliveryResult,
    plan: RoutePlan,
    lacking: bytes,
) -> Deferral:
    """To the next route at once, without regard to the schedule: the transport alone was at fault (SOUT-18c)."""
    attempt = types_pb2.Attempt()  # a copy, as in `_failed`
    attempt.CopyFrom(found.attempt)
    attempt.outcome = types_pb2.OUTCOME_DEFERRED
    status = verdict_of(found).status
    attempt.status = attempt.reply.enhanced = str(EnhancedCode(4, status.subject, status.detail))
    said = " ".join(found.attempt.reply.lines)[:_MOST_SAID]
    attempt.reply.lines[:] = [f"{said}, so the next rule is tried: {plan.decision.rule}"[:MOST_OCTETS]]
    deferral = _deferral(attempt, recipient, token, result, retry_in=0.0)
    deferral.site, deferral.lacking = plan.key, lacking
    return deferral


def _deferral(
    attempt: types_pb2.Attempt,
    recipient: AttemptRecipient,
    token: int,
    result: lease_pb2.DeliveryResult,
    *,
    retry_in: float,
    delayed_dsn_decided: bool = False,
    cancelled: bool = False,
) -> Deferral:
    return Deferral(
        recipient.id,
        recipient.message_id,
        token,
        recipient.version,
        retry_in,
        attempt.SerializeToString(),
        delayed_dsn_decided,
        dialled_before(recipient.dialled_hosts, result),
        cancelled=cancelled,
    )


class Weight(Enum):
    """How a result counts that came from a delivery which this process did not hand out."""

    NONE = 0  # final already, another recipient's, or not so in this history
    RECORD = 1  # it came under an old token: it is shown in the timeline, no more (LSE-03)
    WHOLE = 2


def weigh_late(
    outcome: int, waiting: Waiting | None, token: int, message_id: bytes, *, other_history: bool, is_local: bool
) -> Weight:
    """How a result counts of a delivery from before a restart, or from another owner.

    `waiting`: the recipient as it is stored, None if it is final. It has to be the very recipient: its message has the
    same id. `other_history`: the delivery is of another history of the database; then it counts as delivered or not at
    all, because only what was delivered is so in any history (HIS-03). What the queue itself made (`is_local`) was not
    done before it was written.
    """
    if waiting is None or waiting.message_id != message_id:
        return Weight.NONE
    succeeded = outcome in SUCCEEDED
    if other_history and (not succeeded or is_local):
        return Weight.NONE
    return Weight.WHOLE if succeeded or waiting.token == token else Weight.RECORD
