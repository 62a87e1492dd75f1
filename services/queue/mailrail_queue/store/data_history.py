"""The history of the queue's data, and what is known to be given from its counters (HIS-01, HIS-02).

Recipient ids and tokens come from sequences, in blocks. A database that went back gives blocks again that it gave
before; whoever holds something from beyond what a sequence has given is proof of that.
"""

from collections.abc import Callable, Iterable
from typing import Final, LiteralString

from mailrail.core.ids import history_of, unpack_recipient, unpack_token
from mailrail.kit import migrations
from mailrail.kit.history import History, NewHistory
from mailrail_queue.store import blocks
from mailrail_queue.store.connection import Connection, run

_COUNTERS: Final[LiteralString] = (
    "ARRAY[(SELECT last_value FROM recipient_block), (SELECT last_value FROM token_block)]"
)
# A sequence that did not come with its rows is behind them.
_BEHIND: Final[LiteralString] = """(SELECT greatest((SELECT max(id) FROM recipient),
        (SELECT max(id) FROM (SELECT id FROM history ORDER BY finished DESC LIMIT 1000) h)) >= last_value + 1000
    FROM recipient_block) IS TRUE
    OR (SELECT max(id) FROM event) > (SELECT last_value FROM event_id_seq)"""
_STAND: Final[LiteralString] = "SELECT b.last_value, t.last_value FROM recipient_block b, token_block t"


class QueueHistory:
    """This process in the history of the queue's data."""

    def __init__(self, process: str, begun: Callable[[NewHistory], None]) -> None:
        self._given = [0, 0]
        keys = migrations.keys("queue")  # read once: each connection that opens asks
        self.of = History(
            process,
            counters=_COUNTERS,
            given=lambda: self._given,
            behind=_BEHIND,
            complete=lambda connection: migrations.refuse_incomplete(connection, "queue", keys),
            raise_counters=self._raise,
            begun=begun,
        )

    @property
    def number(self) -> int:
        """Of the history that this process is in; 0 before it has looked."""
        return self.of.number or 0

    def gave(self, recipients: int, tokens: int) -> None:
        """These blocks were given to this process (the first number of each)."""
        self._given = [max(self._given[0], recipients), max(self._given[1], tokens)]

    async def doubt(self, connection: Connection, reason: str, number: int) -> None:
        """What history `number` gives was given before: another begins. Raises psycopg.Error."""
        await self.of.doubt(connection, number, reason)

    async def compare(self, connection: Connection, tokens: Iterable[int], recipients: Iterable[int]) -> None:
        """Somebody outside holds these. If they are from beyond what the database has given, it went back, and a new
        history begins. Raises psycopg.Error."""
        number = self.number
        token = max((unpack_token(t).counter for t in tokens if history_of(t) == number), default=0)
        recipient = max((unpack_recipient(r).counter for r in recipients), default=0)
        if not token:
            return
        ((given, given_tokens),) = await run(connection, _STAND)
        if token >= given_tokens + blocks.BLOCK:
            self.gave(min(recipient, given + _FURTHEST), token)
            await self.doubt(connection, "somebody holds a delivery that it has not given yet", number)

    async def _raise(self, connection: Connection) -> None:
        await run(connection, blocks.RAISE_IDS, {"recipients": self._given[0], "tokens": self._given[1]})


_FURTHEST: Final = 1 << 40
"""How far beyond the database somebody's word of a recipient id is believed: ids must not run out."""
