"""What a statement reads: each one that passes through a connection is explained, with the plan that it would get.

    async with explained(url, "force_generic_plan") as found:
        await lease_store.lease(found.connection, ...)
    found.plans[-1].buffers

Every statement runs twice: explained and undone, then as it is, so that whoever asked gets its answer. All of it is
rolled back in the end. The queue prepares its statements; what is measured is therefore a prepared one.
"""

import contextlib
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any, Final, Literal, LiteralString
from uuid import UUID

import psycopg

from mailrail.kit.postgres import Login
from mailrail_queue.store.columns import Column
from mailrail_queue.store.connection import Connection, Database, Statement

PlanMode = Literal["force_custom_plan", "force_generic_plan"]

_TYPES: Final[tuple[tuple[type, str], ...]] = (
    (bool, "boolean"),
    (float, "double precision"),
    (UUID, "uuid"),
    (datetime, "timestamptz"),
    (date, "date"),
    (bytes, "bytea"),
)


@dataclass(frozen=True, slots=True)
class Plan:
    """A statement and what its execution read."""

    statement: str
    """As the service writes it, with named parameters."""
    buffers: int
    """Blocks of 8 KiB that were looked at, in memory or not, temporary ones included."""
    milliseconds: float
    tree: Mapping[str, Any]
    """As EXPLAIN (FORMAT JSON) says it."""


@dataclass(slots=True)
class Explained:
    """A connection whose statements are explained."""

    connection: Connection
    plans: list[Plan] = field(default_factory=list)


def nodes(tree: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """A node of a plan and all below it."""
    yield tree
    for below in tree.get("Plans", ()):
        yield from nodes(below)


def _buffers(node: Mapping[str, Any]) -> int:
    kinds = ("Shared Hit", "Shared Read", "Local Hit", "Local Read", "Temp Read", "Temp Written")
    return sum(int(node.get(f"{kind} Blocks", 0)) for kind in kinds)


def _whole(tree: Mapping[str, Any]) -> int:
    """Of a whole statement. A node counts what is below it, but not the writing parts that no other part reads; those
    that another reads count twice here, which a bound has to allow for."""
    writing = (n for n in nodes(tree) if n["Node Type"] == "ModifyTable" and n is not tree)
    return _buffers(tree) + sum(map(_buffers, writing))


_watched: dict[int, Explained] = {}
"""By the id of their connections."""


class _ExplainingCursor(psycopg.AsyncCursor[Any]):
    async def execute(self, query: Any, params: Any = None, **how: Any) -> Any:
        # `run` prepares; a test's own queries are not, and what is asked while a statement is explained is ours.
        if how.get("prepare") and (found := _watched.pop(id(self.connection), None)) is not None:
            try:
                found.plans.append(await _explain(found.connection, query, params or {}))
            finally:
                _watched[id(self.connection)] = found
        return await super().execute(query, params, **how)


def _type(value: object) -> str:
    """Of a parameter that is no column, as psycopg would name it. A text's type follows from where it stands."""
    if isinstance(value, int) and not isinstance(value, bool):
        return "smallint" if abs(value) < 2**15 else "integer" if abs(value) < 2**31 else "bigint"
    if isinstance(value, list):
        return "text[]" if isinstance(value[0], str) else f"{_type(value[0])}[]"
    return next((text for python, text in _TYPES if isinstance(value, python)), "unknown")


async def _explain(connection: Connection, query: LiteralString, parameters: Mapping[str, Any]) -> Plan:
    async def value(asked: str, *given: Any) -> Any:
        row = await (await connection.execute(asked.encode(), given)).fetchone()
        assert row is not None
        return row[0]

    statement = Statement("explained", query)
    types, literals = [], []
    for name in statement.order:
        one = parameters[name]
        column = isinstance(one, Column)
        types.append(await value("SELECT format_type(%s::oid, NULL)", one.oid) if column else _type(one))
        literals.append(await value("SELECT quote_nullable((%s)::text)", one))
    async with connection.transaction(force_rollback=True):
        listed = f" ({', '.join(types)})" if types else ""
        await connection.execute(b"PREPARE explained" + listed.encode() + b" AS " + statement.text)
        given = f" ({', '.join(literals)})" if literals else ""
        try:
            answer = await value(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) EXECUTE explained{given}".replace("%", "%%"))
        finally:
            await connection.execute("DEALLOCATE explained")
    tree = answer[0]["Plan"]
    return Plan(query, _whole(tree), float(answer[0]["Execution Time"]), tree)


@contextlib.asynccontextmanager
async def explained(url: str, mode: PlanMode) -> AsyncIterator[Explained]:
    """A connection as the queue's lanes make it, in a transaction that is undone, whose statements are explained."""
    connection = await Database(Login.of(url), "plans").open("plans")
    try:
        async with explaining(connection, mode) as found:
            yield found
    finally:
        await connection.close()


@contextlib.asynccontextmanager
async def explaining(connection: Connection, mode: PlanMode) -> AsyncIterator[Explained]:
    """Within a transaction that is undone each statement of a connection is explained."""
    connection.cursor_factory = _ExplainingCursor
    found = Explained(connection)
    await connection.execute(f"SET plan_cache_mode = {mode}".encode())
    try:
        async with connection.transaction(force_rollback=True):
            _watched[id(connection)] = found
            yield found
            _watched.pop(id(connection), None)
    finally:
        _watched.pop(id(connection), None)
