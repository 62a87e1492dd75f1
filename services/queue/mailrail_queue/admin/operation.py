"""How far a change has come that must not be done twice: a call that repeats it goes on where it stopped (ADM-04)."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, LiteralString
from uuid import UUID

from mailrail_queue.admin.filters import BadRequest
from mailrail_queue.store.connection import Connection, run

_BEGIN: Final[LiteralString] = """INSERT INTO admin_operation (id, request) VALUES (%(id)s, %(request)s)
    ON CONFLICT (id) DO NOTHING"""
# Locked until the batch is committed: should the call before still run, the two take turns.
_PLACE: Final[LiteralString] = """SELECT request, began, position, finished FROM admin_operation
    WHERE id = %(id)s FOR UPDATE"""
_ADVANCE: Final[LiteralString] = """UPDATE admin_operation SET position = %(position)s, finished = %(finished)s,
    recipients = recipients + %(recipients)s, pending = pending + %(pending)s WHERE id = %(id)s"""
_COUNTS: Final[LiteralString] = "SELECT recipients, pending FROM admin_operation WHERE id = %(id)s"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a walk through recipients is."""

    began: datetime
    """Those that were queued later are not meant."""
    past: int = 0
    """The id of the last recipient that was looked at."""
    finished: bool = False


class Operation:
    """A change under an id that its caller chose."""

    def __init__(self, identity: bytes, request: bytes) -> None:
        """`request`: a digest of what is asked."""
        self._id = UUID(bytes=identity)
        self._request = request

    async def begin(self, connection: Connection) -> Place:
        """Write down that it began, unless it did before. Raises BadRequest if it began with another request."""
        await run(connection, _BEGIN, {"id": self._id, "request": self._request})
        return await self.place(connection)

    async def place(self, connection: Connection) -> Place:
        """Where it goes on, locked until the transaction ends. Raises BadRequest if it began with another request."""
        ((request, began, past, finished),) = await run(connection, _PLACE, {"id": self._id})
        if request != self._request:
            raise BadRequest("this operation id was used for another request: choose a new one")
        return Place(began, past, finished)

    async def advance(self, connection: Connection, place: Place, pending: Sequence[bool]) -> None:
        """A batch was done: `pending` of each recipient that was changed."""
        parameters = {
            "id": self._id,
            "position": place.past,
            "finished": place.finished,
            "recipients": len(pending),
            "pending": sum(pending),
        }
        await run(connection, _ADVANCE, parameters)

    async def counts(self, connection: Connection) -> tuple[int, int]:
        """Recipients that were changed, and of those the ones that wait for the end of an attempt."""
        ((recipients, pending),) = await run(connection, _COUNTS, {"id": self._id})
        return recipients, pending
