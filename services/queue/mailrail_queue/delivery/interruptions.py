"""Attempts that were interrupted: their lease ran out or was lost before a result came (LSE-04)."""

from collections.abc import Sequence

from mailrail.core.delivery.judge import INTERRUPTIONS_FORGIVEN, Judgement
from mailrail.core.delivery.outcome import Outcome, Verdict
from mailrail.pb.queue.v1 import types_pb2
from mailrail_queue.delivery.ports import AttemptRecipient, Notice, Notify
from mailrail_queue.delivery.sorting import Judge
from mailrail_queue.delivery.verdicts import attempt_recipient_of, status_of
from mailrail_queue.store import leases as lease_store
from mailrail_queue.store import results as result_store
from mailrail_queue.store import waiting as waiting_store
from mailrail_queue.store.connection import Connection, Database
from mailrail_queue.store.leases import Expired
from mailrail_queue.store.results import Record
from mailrail_queue.store.rows import attempt_of
from mailrail_queue.store.waiting import Waiting


def interrupted_attempt(row: Expired, now: float) -> types_pb2.Attempt:
    """The attempt of a lease that was lost, as the timeline shows it."""
    attempt = types_pb2.Attempt(
        number=max(1, row.attempts),
        outcome=types_pb2.OUTCOME_INTERRUPTED,
        reason="the lease ran out before a result came",
    )
    attempt.started.FromNanoseconds(int(row.started * 1e9))
    attempt.ended.FromNanoseconds(int(now * 1e9))
    return attempt


class Interruptions:
    """Records interrupted attempts, and judges those beyond the limit."""

    def __init__(self, database: Database, judge: Judge) -> None:
        self._database = database
        self._judge = judge

    async def record(self, connection: Connection, rows: Sequence[Expired], notify: Notify) -> None:
        """Record attempts whose lease was lost, in the transaction that took it back.

        The first ten of a recipient leave it due at once. From then on they count, and it waits as after any failed
        attempt: mail that ends every process that takes it would end one every two minutes. A recipient whose last
        attempt this was stays due, and its owner ends it.
        """
        now = self._database.now()
        records: list[Record] = [
            (row.id, row.message_id, 0, interrupted_attempt(row, now).SerializeToString()) for row in rows
        ]
        if records:
            await result_store.record(connection, records)
        over = [row.id for row in rows if row.interruptions > INTERRUPTIONS_FORGIVEN]
        if not over:
            return
        waits: list[tuple[int, float]] = []
        notices: list[Notice] = []
        newest = await result_store.newest_attempts(connection, over)
        for row in await waiting_store.live(connection, over):
            attempt, recipient, judgement = self.judge(row, attempt_of(newest.get(row.id)))
            if judgement.retry_in is None:
                continue
            waits.append((row.id, judgement.retry_in))
            if judgement.dsn is not None:
                notices.append(Notice(recipient, judgement, attempt))
        await lease_store.put_off(connection, waits)
        await notify(notices)

    def judge(self, row: Waiting, attempt: types_pb2.Attempt) -> tuple[types_pb2.Attempt, AttemptRecipient, Judgement]:
        """What becomes of a recipient whose newest attempt was interrupted once too often."""
        attempt.reply.enhanced = "4.4.2"
        attempt.reply.lines.append("the attempt was interrupted, like several before")
        recipient = attempt_recipient_of(row)
        verdict = Verdict(Outcome.DEFERRED, status_of(attempt, "4.4.2"), attempt.reply.lines[0])
        return attempt, recipient, self._judge(verdict, recipient)
