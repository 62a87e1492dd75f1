"""Recipients that become final without a lease: an administrator's request, or one interrupted attempt too many."""

from collections.abc import Sequence

from mailrail.core.delivery.judge import INTERRUPTIONS_FORGIVEN
from mailrail.pb.queue.v1 import types_pb2
from mailrail_queue.delivery.endings import Decided
from mailrail_queue.delivery.results import Finisher
from mailrail_queue.schedule.corrupt import CorruptMail
from mailrail_queue.store import faults
from mailrail_queue.store import results as result_store
from mailrail_queue.store.connection import Lane
from mailrail_queue.store.rows import attempt_of
from mailrail_queue.store.waiting import Waiting


class Endings:
    """Ends due recipients that are not leased."""

    def __init__(self, lane: Lane, finisher: Finisher, corrupt: CorruptMail) -> None:
        self._lane, self._finisher, self._corrupt = lane, finisher, corrupt

    async def end(self, finals: Sequence[Decided]) -> None:
        """Make these final. One that cannot be is put on hold, and what was asked for it is withdrawn (ADM-02)."""
        await faults.by_halves(
            finals,
            lambda some: self._finisher.end_waiting(self._lane, some),
            lambda one, error: self._corrupt.hold_one(one[0], error, withdraw=True),
        )

    async def end_over_interruption_limit(self, rows: Sequence[Waiting]) -> set[int]:
        """Judge recipients whose last attempt was interrupted once too often (LSE-04). Returns ids that are final now.

        An interrupted attempt has no result, so nobody else judges it: mail that kills every process that takes it
        would come back for ever.
        """
        over = [row for row in rows if row.interruptions > INTERRUPTIONS_FORGIVEN]
        if not over:
            return set()
        async with self._lane.use() as connection:
            newest = await result_store.newest_attempts(connection, [row.id for row in over])
        finals: list[Decided] = []
        for row in over:
            attempt = attempt_of(newest.get(row.id))
            if row.request or attempt.outcome != types_pb2.OUTCOME_INTERRUPTED:
                continue
            attempt, _, judgement = self._finisher.interruptions.judge(row, attempt)
            if judgement.final:
                finals.append((row, attempt, judgement, False))
        await self.end(finals)
        return {row.id for row, _, _, _ in finals}
