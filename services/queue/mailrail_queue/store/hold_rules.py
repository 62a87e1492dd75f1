"""The hold rules as Postgres has them."""

from dataclasses import dataclass
from datetime import datetime
from typing import Final, LiteralString

from mailrail.core.delivery.hold import HoldRule
from mailrail_queue.store.connection import Connection, run

_HOLD_RULES: Final[
    LiteralString
] = """SELECT v.version, r.id, r.account, r.from_domain, r.to_domain, r.comment, r.created
    FROM hold_version v LEFT JOIN hold_rule r ON true ORDER BY r.id"""


@dataclass(frozen=True, slots=True)
class HoldRules:
    """All hold rules as of a version, oldest first."""

    version: int = 0
    rules: tuple[HoldRule, ...] = ()
    created: tuple[datetime, ...] = ()
    """When each of them was made."""


async def read_hold_rules(connection: Connection) -> HoldRules:
    """The hold rules now. Raises psycopg.Error."""
    rows = await run(connection, _HOLD_RULES)
    found = [row for row in rows if row[1] is not None]
    return HoldRules(rows[0][0], tuple(HoldRule(*row[1:6]) for row in found), tuple(row[6] for row in found))
