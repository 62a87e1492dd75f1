"""Recipients that become final without a lease: expired, interrupted too often, or by an administrator (ADM-02)."""

from collections.abc import Callable, Sequence

from mailrail.core.delivery.judge import Judgement, Standing, judge
from mailrail.core.delivery.outcome import Outcome, Verdict
from mailrail.core.dsn.due import Asked
from mailrail.core.revision.revision import RetrySchedule
from mailrail.core.smtp.reply import EnhancedCode
from mailrail.pb.queue.v1 import types_pb2
from mailrail_queue.delivery.ports import AttemptRecipient, Notice, Notify
from mailrail_queue.delivery.verdicts import attempt_recipient_of
from mailrail_queue.routing.router import RecipientFacts
from mailrail_queue.store import results as result_store
from mailrail_queue.store.connection import Connection
from mailrail_queue.store.results import Ending
from mailrail_queue.store.waiting import EndRequest, Waiting

_BY_ADMINISTRATOR = EnhancedCode(5, 7, 0)

Decided = tuple[Waiting, types_pb2.Attempt, Judgement | None, bool]
"""A recipient that is not leased and shall be final: its attempt, judgement (None: dropped), whether that counts."""


def standing_of(recipient: AttemptRecipient) -> Standing:
    """What judging an attempt asks of a recipient."""
    return Standing(
        accepted=recipient.accepted,
        attempts=recipient.attempts,
        uncounted_seconds=recipient.uncounted_seconds,
        null_sender=recipient.null_sender,
        sender_authentication=recipient.sender_authentication,
        notify=Asked(recipient.notify),
        delayed_dsn_decided=recipient.delayed_dsn_decided,
    )


def by_administrator(
    row: Waiting, request: int, reason: str | None, schedule: Callable[[RecipientFacts], RetrySchedule], now: float
) -> Decided:
    """What a fail or drop request makes of a recipient that is not leased (ADM-02). `now`: Unix seconds."""
    reason = reason or "delivery cancelled by an administrator"
    attempt = types_pb2.Attempt(number=row.attempts, reason=reason)
    attempt.started.FromNanoseconds(int(now * 1e9))
    attempt.ended.FromNanoseconds(int(now * 1e9))
    if request == EndRequest.DROP:
        return row, attempt, None, False
    attempt.reply.enhanced = str(_BY_ADMINISTRATOR)
    attempt.reply.code = 554
    attempt.reply.lines.append(reason)
    recipient = attempt_recipient_of(row)
    verdict = Verdict(Outcome.FAILED, _BY_ADMINISTRATOR, reason)
    judgement = judge(verdict, standing_of(recipient), schedule(recipient.facts), now=now, jitter=0.0)
    return row, attempt, judgement, False


async def end_unleased(connection: Connection, notify: Notify, decided: Sequence[Decided]) -> dict[int, int]:
    """Make recipients final, in the transaction of `notify`. Returns the outcome of each that became so.

    Without a judgement a recipient is dropped: cancelled, without a DSN. So is one on whose row a drop stands already.
    """
    endings: list[Ending] = []
    notices: dict[int, Notice] = {}
    for row, attempt, judgement, counted in decided:
        attempt.outcome = types_pb2.OUTCOME_CANCELLED if judgement is None else types_pb2.OUTCOME_FAILED
        state = result_store.CANCELLED if judgement is None else result_store.FAILED
        data = attempt.SerializeToString()
        endings.append(
            Ending(row.id, row.message_id, 0, row.version, state, attempt.outcome, data, 1 if counted else 0)
        )
        if judgement is not None and (judgement.dsn is not None or judgement.tell_postmaster):
            recipient = attempt_recipient_of(row, attempts=row.attempts + (1 if counted else 0))
            notices[row.id] = Notice(recipient, judgement, attempt)
    done = await result_store.finish_as(connection, endings) if endings else {}
    await notify([n for i, n in notices.items() if done.get(i) == result_store.FAILED])
    return {ending.id: ending.outcome for ending in endings if ending.id in done}
