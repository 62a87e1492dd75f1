"""What an interrupted attempt is recorded as, and how the one beyond the limit is judged (LSE-04)."""

from typing import Any, cast

from mailrail.core.delivery.judge import Judgement
from mailrail.core.delivery.outcome import Outcome, Verdict
from mailrail.pb.queue.v1 import types_pb2
from mailrail_queue.delivery.interruptions import Interruptions, interrupted_attempt
from mailrail_queue.delivery.ports import AttemptRecipient
from mailrail_queue.store.leases import Expired

from testkit.dispatching import Bench, waiting


def test_an_interrupted_attempt_has_a_number_a_reason_and_its_times() -> None:
    attempt = interrupted_attempt(Expired(1, 7, 0, 1000.5, 0, 3, 1, b"m" * 16), 1120.0)
    assert (attempt.number, attempt.outcome) == (1, types_pb2.OUTCOME_INTERRUPTED)
    assert attempt.reason == "the lease ran out before a result came"
    assert (attempt.started.ToMilliseconds(), attempt.ended.ToMilliseconds()) == (1_000_500, 1_120_000)


def test_one_interruption_too_many_is_judged_as_a_temporary_failure_LSE_04() -> None:
    asked: list[Verdict] = []

    def judge(verdict: Verdict, recipient: AttemptRecipient) -> Judgement:
        asked.append(verdict)
        return Judgement(verdict.outcome, verdict.status, 300.0, None)

    row, _ = waiting(Bench(), 1, "x.example", attempts=2, interruptions=11)
    attempt, recipient, judgement = Interruptions(cast(Any, None), judge).judge(row, types_pb2.Attempt(number=2))
    assert (recipient.id, recipient.attempts, judgement.retry_in) == (1, 2, 300.0)
    assert [(v.outcome, str(v.status)) for v in asked] == [(Outcome.DEFERRED, "4.4.2")]
    assert attempt.reply.lines == ["the attempt was interrupted, like several before"]
