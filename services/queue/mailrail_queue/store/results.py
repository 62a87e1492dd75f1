"""Statements about the ends of attempts: final, tried again, or recorded alone (FIN, LSE-03, LSE-04)."""

# ruff: noqa: E501, S608 -- statements keep their own lines, and are put together from constants of ours alone

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, LiteralString

import psycopg

from mailrail.pb.queue.v1 import types_pb2
from mailrail_queue.store import columns as c
from mailrail_queue.store.connection import Connection, Statement, run, run_columns
from mailrail_queue.store.fencing import NOTE, OWN, Ownership, by_id
from mailrail_queue.store.waiting import EndRequest

DELIVERED: Final = int(types_pb2.RECIPIENT_STATE_DELIVERED)
FAILED: Final = int(types_pb2.RECIPIENT_STATE_FAILED)
CANCELLED: Final = int(types_pb2.RECIPIENT_STATE_CANCELLED)
_DEFERRED: Final = int(types_pb2.OUTCOME_DEFERRED)
_CANCELLED: Final = int(types_pb2.OUTCOME_CANCELLED)

# Whether anybody reads events; found out once a statement (mailrail_queue.notify.outbox).
_HEARD: Final = "EXISTS (SELECT FROM event_consumer WHERE seen > now() - interval '7 days')"


@dataclass(slots=True)
class Ending:
    """A recipient to be made final."""

    id: int
    message_id: bytes
    """An id that came again is not the same recipient (HIS-03)."""
    token: int
    """Of the lease; 0: it is not leased and `version` must fit."""
    version: int
    state: int
    """A `RecipientState`."""
    outcome: int
    last_attempt: bytes | None
    """An `Attempt`, encoded."""
    counted: int = 0
    """1 when this was an attempt without a lease (SHD-05), to be counted."""


# Final, only if not final yet, and only under its token; `delivered` counts under an old one too and so revokes the newer lease
# (FIN-01, LSE-03). History takes what it shows (FIN-03). Most mail ends within its first attempt and has no earlier ones (`has_attempts`).
# What fails while a drop is asked for is dropped (ADM-02).
FINISH: Final = Statement(
    "finish",
    f"""WITH x AS (
    SELECT * FROM unnest(%(id)s, %(message_id)s, %(token)s, %(version)s, %(state)s, %(outcome)s, %(last_attempt)s, %(counted)s)
        AS x (id, message_id, token, version, state, outcome, last_attempt, counted)
), gone AS (
    DELETE FROM recipient r USING x
    WHERE r.id = x.id AND r.message_id = x.message_id
      AND (r.token = x.token OR (x.token <> 0 AND x.state = {DELIVERED})
                           OR (x.token = 0 AND r.token IS NULL AND r.version = x.version))
    RETURNING r.id, r.message_id, r.attempts, r.interruptions, r.tls_requirement, r.origin, r.queued, r.address, r.account, r.site, r.header_key, r.envelope_recipient,
              CASE WHEN r.request = {EndRequest.DROP:d} AND x.state = {FAILED} THEN {CANCELLED} ELSE x.state END AS state,
              CASE WHEN r.request = {EndRequest.DROP:d} AND x.state = {FAILED} THEN {_CANCELLED} ELSE x.outcome END AS outcome, x.last_attempt, x.counted, r.has_attempts
), forgotten AS (
    DELETE FROM attempt a USING gone g WHERE g.has_attempts AND a.recipient_id = g.id
), told AS (
    INSERT INTO event (kind, recipient_id, message_id, data)
    SELECT g.outcome, g.id, g.message_id, coalesce(g.last_attempt, '') FROM gone g WHERE {_HEARD}
)
INSERT INTO history (id, message_id, state, outcome, attempts, tls_requirement, origin, queued, size, address, mail_from, account, site, header_key,
                     envelope, envelope_recipient, last_attempt, earlier_attempts)
SELECT g.id, g.message_id, g.state, g.outcome, g.attempts + g.counted, g.tls_requirement, g.origin, g.queued, coalesce(m.size, 0), g.address,
       coalesce(m.mail_from, ''), g.account, g.site, g.header_key, coalesce(m.envelope, ''), g.envelope_recipient, g.last_attempt,
       CASE WHEN g.has_attempts
            THEN (SELECT array_agg(a.data ORDER BY a.id) FROM attempt a WHERE a.recipient_id = g.id) END
FROM gone g LEFT JOIN message m ON m.id = g.message_id
RETURNING id, state""",
)


async def finish(connection: Connection, finals: Sequence[Ending]) -> set[int]:
    """Make recipients final (FINISH). Returns the ids that became so by this call."""
    return set(await finish_as(connection, finals))


async def finish_as(connection: Connection, finals: Sequence[Ending]) -> dict[int, int]:
    """The same, with the RecipientState of each: a drop that was asked for takes the place of a failure (ADM-02)."""
    finals = sorted(finals, key=by_id)
    rows = await run_columns(
        connection,
        FINISH,
        {
            "id": c.bigints([f.id for f in finals]),
            "message_id": c.uuids([f.message_id for f in finals]),
            "token": c.bigints([f.token for f in finals]),
            "version": c.bigints([f.version for f in finals]),
            "state": c.smallints([f.state for f in finals]),
            "outcome": c.smallints([f.outcome for f in finals]),
            "last_attempt": c.octets([f.last_attempt for f in finals]),
            "counted": c.smallints([f.counted for f in finals]),
        },
    )
    return {row[0]: row[1] for row in rows}


PARTITIONS_AHEAD = 7
"""Days for which history has a partition, should nobody run for a while."""
MAKE_PARTITIONS: Final[LiteralString] = "SELECT queue.make_history_partitions(%(ahead)s)"


def lacks_partition(error: Exception) -> bool:
    """Whether history has no partition for now: the clock moved, or for days nobody was there to make one (FIN-03)."""
    return isinstance(error, psycopg.errors.CheckViolation) and error.diag.table_name == "history"


@dataclass(slots=True)
class Deferral:
    """A recipient to be tried again."""

    id: int
    message_id: bytes
    """An id that came again is not the same recipient (HIS-03)."""
    token: int
    """Of the lease; 0: it is not leased and `version` must fit (SHD-05: an attempt without a dial)."""
    version: int
    retry_in: float
    """Seconds."""
    last_attempt: bytes | None
    """An `Attempt`, encoded; None: the attempt is undone, it was not dialled (LSE-04)."""
    delayed_dsn_decided: bool = False
    dialled_hosts: bytes | None = None
    shard: int = 0
    site: str | None = None
    """Where it waits from now on, with `lacking`; None: where it was."""
    lacking: bytes | None = None
    """`LackingTransports`, encoded (SOUT-18c); None: as before."""
    cancelled: bool = False
    """The delivery was aborted for the sake of those that an administrator asked for; of the others it is undone."""


# Back to the schedule, under its token (LSE-03). What an administrator said meanwhile applies now (ADM-02). Who only shared a
# delivery with somebody that was cancelled keeps a record of it, and nothing else (LSE-04).
DEFER: Final[LiteralString] = f"""WITH x AS (
    SELECT * FROM unnest(%(id)s, %(message_id)s, %(token)s, %(retry)s, %(last_attempt)s, %(delayed_dsn_decided)s, %(dialled_hosts)s, %(cancelled)s, %(site)s, %(lacking)s)
        AS x (id, message_id, token, retry, last_attempt, delayed_dsn_decided, dialled_hosts, cancelled, site, lacking)
), stored AS (
    UPDATE recipient r SET token = NULL, lease_until = NULL, due = coalesce(r.due_after_attempt, now() + x.retry * interval '1 second'),
        due_after_attempt = NULL, last_attempt = CASE WHEN x.cancelled AND r.request = 0 THEN r.last_attempt ELSE coalesce(x.last_attempt, r.last_attempt) END,
        delayed_dsn_decided = r.delayed_dsn_decided OR x.delayed_dsn_decided, has_attempts = r.has_attempts OR x.last_attempt IS NOT NULL, dialled_hosts = coalesce(x.dialled_hosts, r.dialled_hosts),
        site = coalesce(x.site, r.site), lacking = coalesce(x.lacking, r.lacking),
        attempts = CASE WHEN x.last_attempt IS NULL OR (x.cancelled AND r.request = 0) THEN r.attempts - 1 ELSE r.attempts END
    FROM x WHERE r.id = x.id AND r.message_id = x.message_id AND r.token = x.token
    RETURNING r.id, r.message_id, r.shard, r.site, r.due, r.held_since IS NULL AS waits, r.request, x.token, x.last_attempt,
              x.last_attempt IS NULL OR (x.cancelled AND r.request = 0) AS undone
), recorded AS (
    INSERT INTO attempt (recipient_id, token, data) SELECT id, token, last_attempt FROM stored WHERE last_attempt IS NOT NULL
), told AS (
    INSERT INTO event (kind, recipient_id, message_id, data)
    SELECT {_DEFERRED}, id, message_id, last_attempt FROM stored WHERE NOT undone AND {_HEARD}
), noted AS (
    {NOTE}
)
SELECT id, shard, request FROM stored"""

# A counted attempt without a dial (SHD-05; design 4, Attempt): its site is in backoff, or its transport is missing.
BACK_OFF: Final[LiteralString] = f"""WITH {OWN}, x AS MATERIALIZED (
    SELECT w.*, now() AS now FROM unnest(%(id)s, %(version)s, %(retry)s, %(last_attempt)s, %(delayed_dsn_decided)s, %(shard)s)
        AS w (id, version, retry, last_attempt, delayed_dsn_decided, shard)
    JOIN own ON own.number = w.shard ORDER BY w.id
), stored AS (
    UPDATE recipient r SET due = now() + x.retry * interval '1 second', last_attempt = x.last_attempt, delayed_dsn_decided = r.delayed_dsn_decided OR x.delayed_dsn_decided,
        attempts = r.attempts + 1, last_attempt_started = now(), has_attempts = true
    FROM x WHERE r.id = x.id AND r.shard = x.shard AND r.version = x.version AND r.token IS NULL AND r.held_since IS NULL
      AND r.request = 0 AND r.due <= x.now
    RETURNING r.id, r.message_id, x.last_attempt
), recorded AS (
    INSERT INTO attempt (recipient_id, data) SELECT id, last_attempt FROM stored
), told AS (
    INSERT INTO event (kind, recipient_id, message_id, data)
    SELECT {_DEFERRED}, id, message_id, last_attempt FROM stored WHERE {_HEARD}
)
SELECT id FROM stored"""


async def defer(connection: Connection, deferrals: Sequence[Deferral]) -> list[tuple[int, int, int]]:
    """Put leased recipients back (DEFER). Returns (id, shard, request) of those whose token still stood."""
    deferrals = sorted(deferrals, key=by_id)
    rows = await run(
        connection,
        DEFER,
        {
            "id": c.bigints([d.id for d in deferrals]),
            "message_id": c.uuids([d.message_id for d in deferrals]),
            "token": c.bigints([d.token for d in deferrals]),
            "retry": c.floats([d.retry_in for d in deferrals]),
            "last_attempt": c.octets([d.last_attempt for d in deferrals]),
            "delayed_dsn_decided": c.booleans([d.delayed_dsn_decided for d in deferrals]),
            "dialled_hosts": c.octets([d.dialled_hosts for d in deferrals]),
            "cancelled": c.booleans([d.cancelled for d in deferrals]),
            "site": c.names([d.site for d in deferrals]),
            "lacking": c.octets([d.lacking for d in deferrals]),
        },
    )
    return [(row[0], row[1], row[2]) for row in rows]


async def back_off(connection: Connection, ownership: Ownership, deferrals: Sequence[Deferral]) -> set[int]:
    """Count an attempt without a dial (BACK_OFF). Returns the ids that it applied to."""
    deferrals = sorted(deferrals, key=by_id)
    rows = await run(
        connection,
        BACK_OFF,
        {
            "id": c.bigints([d.id for d in deferrals]),
            "version": c.bigints([d.version for d in deferrals]),
            "retry": c.floats([d.retry_in for d in deferrals]),
            "last_attempt": c.octets([d.last_attempt for d in deferrals]),
            "delayed_dsn_decided": c.booleans([d.delayed_dsn_decided for d in deferrals]),
            "shard": c.smallints([d.shard for d in deferrals]),
            **ownership.parameters(d.shard for d in deferrals),
        },
    )
    return {row[0] for row in rows}


Record = tuple[int, bytes, int, bytes]
"""Recipient id, message id, token whose result it is (0: of none), Attempt."""
# In the timeline of recipients that are live, and stay so until this is committed; once for each token.
RECORD: Final[LiteralString] = """WITH x AS (
    SELECT * FROM unnest(%(id)s, %(message_id)s, %(token)s, %(data)s) AS x (id, message_id, token, data)
), stored AS (
    UPDATE recipient r SET has_attempts = true FROM x WHERE r.id = x.id AND r.message_id = x.message_id RETURNING r.id
)
INSERT INTO attempt (recipient_id, token, data) SELECT x.id, NULLIF(x.token, 0), x.data FROM x JOIN stored s ON s.id = x.id
WHERE NOT EXISTS (SELECT FROM attempt a WHERE a.recipient_id = x.id AND a.token = x.token)"""


async def record(connection: Connection, attempts: Sequence[Record]) -> None:
    """Add finished attempts to the timeline of live recipients (RECORD)."""
    # Said twice in one batch, it is in no table yet.
    once = {(i, token or -number): (i, m, token, data) for number, (i, m, token, data) in enumerate(attempts, 1)}
    found = sorted(once.values())
    parameters = {
        "id": c.bigints([i for i, _, _, _ in found]),
        "message_id": c.uuids([m for _, m, _, _ in found]),
        "token": c.bigints([t for _, _, t, _ in found]),
        "data": c.octets([d for _, _, _, d in found]),
    }
    await run(connection, RECORD, parameters)


NEWEST: Final[LiteralString] = """SELECT DISTINCT ON (recipient_id) recipient_id, data FROM attempt
    WHERE recipient_id = ANY(%(id)s) ORDER BY recipient_id, id DESC"""


async def newest_attempts(connection: Connection, ids: Sequence[int]) -> dict[int, bytes]:
    """Recipient id → its newest finished attempt, of those that have one."""
    return {row[0]: row[1] for row in await run(connection, NEWEST, {"id": c.bigints(ids)})}
