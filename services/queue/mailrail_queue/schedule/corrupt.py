"""Mail that cannot be read, routed, written or ended: it is put on hold with the reason, and all other mail goes on."""

from collections.abc import Sequence

from mailrail.kit import log
from mailrail_queue.delivery.parts import Parts
from mailrail_queue.delivery.verdicts import facts_of
from mailrail_queue.routing.router import RoutePlan, Router
from mailrail_queue.schedule.worklist import Worklist
from mailrail_queue.store import faults
from mailrail_queue.store.connection import Connection, Lane
from mailrail_queue.store.corrupt import CorruptRecipient
from mailrail_queue.store.rows import RECIPIENT_UNREADABLE, is_recipient
from mailrail_queue.store.waiting import Waiting


class CorruptMail:
    """Puts due recipients on hold that no attempt can be made for."""

    def __init__(self, parts: Parts, lane: Lane, worklist: Worklist) -> None:
        self._dispatcher = parts.dispatcher
        self._lane = lane
        self._worklist = worklist
        self.allowance = faults.HoldAllowance()
        """Of recipients on which work fails."""
        self._log = log.get_logger()

    async def readable(self, connection: Connection, rows: list[Waiting]) -> list[Waiting]:
        """Those of these recipients that can be read; the others are put on hold.

        One that an administrator wants failed or dropped need not be read for that, and stays.
        """
        corrupt = [row for row in rows if not row.request and not is_recipient(row.envelope_recipient)]
        if not corrupt:
            return rows
        await self.hold(connection, [(row, 0) for row in corrupt], RECIPIENT_UNREADABLE)
        held = {row.id for row in corrupt}
        return [row for row in rows if row.id not in held]

    async def hold(self, connection: Connection, rows: Sequence[tuple[Waiting, int]], reason: str) -> None:
        """Put (recipient, token of its lease or 0) on hold."""
        corrupt = [CorruptRecipient(row.id, row.message_id, row.shard, row.version, token) for row, token in rows]
        await faults.hold_corrupt(connection, self._worklist.ownership, corrupt, reason, self._log)

    async def hold_one(self, row: Waiting, error: Exception, *, withdraw: bool = False) -> None:
        """Put one on hold that work fails for. `withdraw`: and withdraw what an administrator asked for it.

        Raises `faults.TooManyFail` where that happened to too many lately: it stays due.
        """
        faults.failed(self._log, "due_mail", error, recipient=row.id)
        if not withdraw and not self.allowance.take(self._dispatcher.clock()):
            raise faults.TooManyFail(
                f"work fails for too many recipients to blame them: {faults.said(error)}"
            ) from error
        reason = f"this recipient cannot be stored: {faults.said(error)}"
        if withdraw and row.request:
            reason = f"the requested change is withdrawn; {reason}"
        corrupt = [CorruptRecipient(row.id, row.message_id, row.shard, row.version, 0)]
        async with self._lane.use() as connection:
            await faults.hold_corrupt(
                connection, self._worklist.ownership, corrupt, reason, self._log, undo=False, withdraw=withdraw
            )

    async def plan(self, router: Router, row: Waiting) -> RoutePlan | None:
        """Where a recipient goes now. None: routing fails for it, and it is put on hold."""
        try:
            return router.plan(facts_of(row), row.attempts)
        except Exception as error:
            await self.hold_one(row, error)
            return None
