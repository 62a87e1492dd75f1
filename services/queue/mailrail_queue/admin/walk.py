"""Going through recipients that no index leads to, a bounded stretch at a time (QRY-05).

A filter that finds little must not read a queue of millions. The recipients are gone through in the order of the list,
in steps; after ENTRIES of them, or SECONDS, the call ends with what it found and the place where the next one goes on.
What an index does lead to is the start of the walk (`Path.lead`), so that it goes through that alone.
"""

# ruff: noqa: S608 -- statements keep their own lines, and are put together from constants of our own alone

import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, LiteralString

from mailrail_queue.store.connection import Connection, Row, run

ENTRIES: Final = 50_000
"""Recipients that one call goes through at most."""
SECONDS: Final = 1.0
"""Seconds after which a call begins no further step."""
_STEP: Final = 5_000
"""Recipients of a step."""
_FIRST: Final = 100
"""Recipients of the first step, and more where more are wanted: most lists are full after it."""
END: Final = (datetime(9999, 1, 1, tzinfo=UTC), 2**62)
"""A place behind everything."""
BEGINNING: Final = (datetime(1970, 1, 1, tzinfo=UTC), 0)
"""A place before everything."""


@dataclass(frozen=True, slots=True)
class Path:
    """A list of recipients or of history, in its order, along one index."""

    table: LiteralString
    """With its alias."""
    alias: LiteralString
    column: LiteralString
    """The time by which the list is ordered; then by id."""
    lead: LiteralString
    """What the index leads to: conditions on the alias."""
    columns: LiteralString
    joined: LiteralString = ""
    descending: bool = False


@dataclass(slots=True)
class Budget:
    """What a call may still go through."""

    entries: int = ENTRIES
    until: float = 0.0

    def __post_init__(self) -> None:
        self.until = self.until or time.monotonic() + SECONDS

    @property
    def spent(self) -> bool:
        """No further step may begin."""
        return self.entries <= 0 or time.monotonic() >= self.until


@dataclass(slots=True)
class Walked:
    """What a walk found."""

    rows: list[Row]
    place: tuple[datetime, int]
    """Up to which all was looked at, unless `rows` is full."""
    ended: bool
    """There is nothing behind it."""


async def walk(
    connection: Connection,
    path: Path,
    where: LiteralString,
    parameters: Mapping[str, Any],
    place: tuple[datetime, int],
    count: int,
    budget: Budget,
) -> Walked:
    """Up to `count` rows of `path.columns` behind `place` that fulfil `where`. Raises psycopg.Error."""
    a, order = path.alias, path.alias + "." + path.column
    past: LiteralString = "<" if path.descending else ">"
    up_to: LiteralString = ">=" if path.descending else "<="
    way: LiteralString = "DESC" if path.descending else "ASC"
    from_here: LiteralString = f"FROM {path.table} WHERE {path.lead} AND ({order}, {a}.id) {past} (%(at)s, %(after)s)"
    end_of_step: LiteralString = (
        f"SELECT {order}, {a}.id {from_here} ORDER BY {order} {way}, {a}.id {way} OFFSET %(skip)s LIMIT 1"
    )
    # OFFSET 0: the step is read as it lies in the index, and the filter looks at nothing else.
    step: LiteralString = f"""SELECT {path.columns} FROM (
            SELECT * {from_here} AND ({order}, {a}.id) {up_to} (%(end_at)s, %(end_id)s) OFFSET 0
        ) {a} {path.joined} WHERE {where} ORDER BY {order} {way}, {a}.id {way} LIMIT %(count)s"""
    found: list[Row] = []
    size = max(_FIRST, count)
    while True:
        size = min(size, budget.entries)
        here = {**parameters, "at": place[0], "after": place[1]}
        ends = await run(connection, end_of_step, {**here, "skip": size - 1})
        last = (ends[0][0], ends[0][1]) if ends else BEGINNING if path.descending else END
        bounds = {"end_at": last[0], "end_id": last[1], "count": count - len(found)}
        found += await run(connection, step, {**here, **bounds})
        budget.entries -= size
        place = last
        if not ends or len(found) >= count or budget.spent:
            return Walked(found, place, not ends and len(found) < count)
        size = _STEP
