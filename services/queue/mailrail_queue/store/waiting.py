"""Live recipients without their messages, found by what is asked of them: due, by id, or with a request (SHD-03, ADM-02)."""

# ruff: noqa: E501, S608 -- statements keep their own lines, and are put together from constants of ours alone

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, LiteralString

from mailrail_queue.store import columns as c
from mailrail_queue.store.connection import Connection, Row, run


class EndRequest(IntEnum):
    """`recipient.request`: an administrator wants it ended, and gets that when no attempt runs any more (ADM-02)."""

    NONE = 0
    FAIL = 1
    DROP = 2


PAGE: Final = 500
"""Rows of a page of what is walked by id."""


@dataclass(slots=True)
class Waiting:
    """A live recipient without its message: all that routing and judging need."""

    id: int
    message_id: bytes
    shard: int
    site: str
    version: int
    attempts: int
    interruptions: int
    tls_requirement: int
    origin: int
    sender_authentication: int
    queued: float  # Unix seconds, as all times here
    uncounted_seconds: float
    delayed_dsn_decided: bool
    address: str
    gateway: str | None
    account: str | None
    from_domain: str
    is_local: bool
    override_transport: str | None
    envelope_recipient: bytes
    dialled_hosts: bytes | None
    lacking: bytes | None
    token: int | None
    remaining: float  # seconds of the lease; 0 when there is none
    request: int
    request_reason: str | None
    started: float  # of the newest attempt; 0 before the first


WAITING: Final = """r.id, r.message_id, r.shard, r.site, r.version, r.attempts, r.interruptions, r.tls_requirement, r.origin, r.sender_authentication,
    extract(epoch FROM r.queued)::float8, r.uncounted_seconds, r.delayed_dsn_decided, r.address, r.gateway, r.account, r.from_domain, r.is_local,
    r.override_transport, r.envelope_recipient, r.dialled_hosts, r.lacking, r.token, coalesce(extract(epoch FROM r.lease_until - now()), 0)::float8,
    r.request, r.request_reason, coalesce(extract(epoch FROM r.last_attempt_started), 0)::float8"""


def waiting(row: Row) -> Waiting:
    return Waiting(row[0], row[1].bytes, *row[2:])


# Due recipients of some sites, oldest first, each by its own walk of recipient_due (SHD-03).
FETCH_DUE: Final[LiteralString] = f"""SELECT {WAITING}
    FROM unnest(%(shard)s, %(site)s, %(count)s) AS w (shard, site, count)
    CROSS JOIN LATERAL (
        SELECT * FROM recipient t WHERE t.shard = w.shard AND t.site = w.site AND t.token IS NULL AND t.held_since IS NULL AND t.due <= now()
        ORDER BY t.due LIMIT w.count
    ) r"""


async def fetch_due(connection: Connection, wanted: Sequence[tuple[int, str, int]]) -> list[Waiting]:
    """Due recipients of each (shard, site), so many at most each."""
    rows = await run(
        connection,
        FETCH_DUE,
        {
            "shard": c.smallints([w[0] for w in wanted]),
            "site": c.names([w[1] for w in wanted]),
            "count": c.bigints([w[2] for w in wanted]),
        },
    )
    return [waiting(row) for row in rows]


# Live recipients by id: after a restart, to adopt leases and to judge results of attempts that this process did not hand out (LSE-02, LSE-03).
LIVE: Final[LiteralString] = f"SELECT {WAITING} FROM recipient r WHERE r.id = ANY(%(id)s)"
# Fail and drop requests (ADM-02): those that can be granted now, and apart from them those under way, of which there may be many for as
# long as their attempts take. Each in pages by id, along recipient_requested.
REQUESTED: Final[LiteralString] = f"""SELECT {WAITING} FROM recipient r
    WHERE r.request <> 0 AND r.token IS NULL AND r.shard = ANY(%(shard)s) AND r.id > %(past)s ORDER BY r.id LIMIT {PAGE}"""
REQUESTED_LEASED: Final[LiteralString] = f"""SELECT r.id, r.token FROM recipient r
    WHERE r.request <> 0 AND r.token IS NOT NULL AND r.id > %(past)s ORDER BY r.id LIMIT {PAGE}"""


async def live(connection: Connection, ids: Sequence[int]) -> list[Waiting]:
    """Those of `ids` that are not final."""
    return [waiting(row) for row in await run(connection, LIVE, {"id": c.bigints(ids)})]


# Of these recipients, those that are live or final.
THERE: Final[LiteralString] = """SELECT x.id FROM unnest(%(id)s, %(message_id)s) AS x (id, message_id)
    WHERE EXISTS (SELECT FROM recipient r WHERE r.id = x.id AND r.message_id = x.message_id)
       OR EXISTS (SELECT FROM history h WHERE h.message_id = x.message_id AND h.id = x.id)"""


async def there(connection: Connection, wanted: Sequence[tuple[int, bytes]]) -> set[int]:
    """Those of (recipient id, message id) that the database has, live or in history."""
    parameters = {"id": c.bigints([i for i, _ in wanted]), "message_id": c.uuids([m for _, m in wanted])}
    return {row[0] for row in await run(connection, THERE, parameters)}


async def requested(connection: Connection, shards: Sequence[int], past: int) -> list[Waiting]:
    """Recipients that an administrator wants failed or dropped, and that are not leased: a page of PAGE past this id."""
    parameters = {"shard": c.smallints(shards), "past": past}
    return [waiting(row) for row in await run(connection, REQUESTED, parameters)]


async def requested_leased(connection: Connection, past: int) -> list[tuple[int, int]]:
    """(recipient id, token) of those that are leased, of all shards: a page of PAGE past this id."""
    return [(row[0], row[1]) for row in await run(connection, REQUESTED_LEASED, {"past": past})]
