"""Named statements about mail, and the typed rows that they give; those about sites are in `site_store`. What each is for
is in the comment above it.

Rules that hold for all: one statement a batch (`unnest` of columns); every write that leases or schedules compares
owner and epoch of the shard in the same statement (`own`, SHD-01); every write to a leased recipient names its token
(LSE-03); rows are reached by index only; nothing reads content but CONTENT and CHUNKS.
"""

# ruff: noqa: E501, S608 -- statements keep their own lines, and are put together from constants of this module alone

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, LiteralString
from uuid import UUID

import psycopg
from psycopg import AsyncConnection

from mailrail.kit.postgres import settle, storable
from mailrail_queue.store import columns as c
from mailrail_queue.store.connection import Jump, Row, Statement, run, run_columns

Connection = AsyncConnection[Row]

CHUNK = 256 * 1024
"""Octets of a row of a large body; the last one may be shorter (ACC-02)."""
PAGE: Final = 500
"""Rows of a page of what is walked by id."""
INLINE = 64 * 1024
"""Bodies up to this many octets are stored in the message's row and travel with the lease (ACC-02, LSE-06)."""

DELIVERED: Final = 3  # RecipientState
FAILED: Final = 4
CANCELLED: Final = 5


@dataclass(frozen=True, slots=True)
class Ownership:
    """This process as an owner: what fenced statements compare. `epochs`: shard → epoch under which it is held."""

    owner: str
    epochs: Mapping[int, int]

    def parameters(self, shards: Iterable[int]) -> dict[str, Any]:
        """The parameters `owner`, `own_shards`, `own_epochs` for those of `shards` that are held."""
        held = [s for s in set(shards) if s in self.epochs]
        return {
            "owner": self.owner,
            "own_shards": c.smallints(held),
            "own_epochs": c.bigints([self.epochs[s] for s in held]),
        }


_DEFERRED: Final = 3  # Outcome
_CANCELLED: Final = 8

# Whether anybody reads events; found out once a statement (mailrail_queue.notify.outbox).
_HEARD: Final = "EXISTS (SELECT FROM event_consumer WHERE seen > now() - interval '7 days')"

OWN: Final = """own AS (
    SELECT s.number FROM unnest(%(own_shards)s, %(own_epochs)s) AS o (number, epoch)
    JOIN shard s ON s.number = o.number AND s.owner = %(owner)s AND s.epoch = o.epoch
)"""

# The sites that `stored` rows (shard, site, due, waits) made due earlier than their row says. Most often that is none, and then nothing
# is written or locked. In order, so that two batches never wait for each other in a ring.
NOTE: Final = """INSERT INTO site_due (shard, site, next_due)
    SELECT n.shard, n.site, min(n.due) AS due FROM stored n
    WHERE n.waits AND NOT EXISTS (SELECT FROM site_due d WHERE d.shard = n.shard AND d.site = n.site AND d.next_due <= n.due)
    GROUP BY n.shard, n.site ORDER BY n.shard, n.site
    ON CONFLICT (shard, site) DO UPDATE SET next_due = LEAST(site_due.next_due, excluded.next_due)"""


# --- accept ---------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class NewMessage:
    """A message about to be stored."""

    id: bytes
    mail_from: str
    account: str | None
    size: int
    chunks: int
    envelope: bytes
    prefix: bytes
    body: bytes | None
    until: float = math.inf
    """By Postgres's clock, Unix seconds: stored before that, or not at all (ACC-04)."""


@dataclass(slots=True)
class NewRecipient:
    """A recipient about to be stored; with a token it is born leased."""

    id: int
    message_id: bytes
    shard: int
    site: str
    token: int  # 0: stored due
    release: float  # Unix seconds before which nothing is tried; 0: none
    hold_reason: str | None  # set: on hold
    tls_requirement: int
    origin: int
    sender_authentication: int
    address: str
    gateway: str | None
    account: str | None
    from_domain: str
    is_local: bool
    header_key: int  # mailrail.core.ids; 0: none
    envelope_recipient: bytes


# The group commit: messages and their recipients, in one statement (ACC-02, SHD-02). An id that exists (or is barred, ACC-04) is left alone
# with all its recipients. A recipient is born leased only if its shard is still held under the epoch that the batch was made with. Nothing is
# stored if hold rules changed since the batch was made: what a rule holds must be on hold from the first. What nobody waits for any longer is
# not stored: a queue that stood still for a while must not commit what its sender was told to send again (ACC-04).
STORE: Final = Statement(
    "store",
    f"""WITH stored_message AS (
    INSERT INTO message (id, mail_from, account, size, chunks, envelope, prefix, body)
    SELECT x.id, x.mail_from, x.account, x.size, x.chunks, x.envelope, x.prefix, x.body
    FROM unnest(%(id)s, %(mail_from)s, %(account)s, %(size)s, %(chunks)s::int[], %(envelope)s, %(prefix)s, %(body)s, %(until)s)
         AS x (id, mail_from, account, size, chunks, envelope, prefix, body, until)
    WHERE (%(holds)s < 0 OR (SELECT version FROM hold_version) = %(holds)s) AND x.until > extract(epoch FROM clock_timestamp())::float8
    ON CONFLICT (id) DO NOTHING RETURNING id
), {OWN}, stored AS (
    INSERT INTO recipient (id, message_id, shard, site, due, token, lease_until, held_since, hold_reason, attempts, last_attempt_started,
                           tls_requirement, origin, sender_authentication, uncounted_seconds, address, gateway, account, from_domain, is_local,
                           header_key, envelope_recipient)
    SELECT x.id, x.message_id, x.shard, x.site, GREATEST(now(), to_timestamp(x.release)),
           CASE WHEN own.number IS NOT NULL THEN x.token END,
           CASE WHEN own.number IS NOT NULL THEN now() + %(lease)s * interval '1 second' END,
           CASE WHEN x.hold_reason IS NOT NULL THEN now() END, x.hold_reason,
           CASE WHEN own.number IS NOT NULL THEN 1 ELSE 0 END,
           CASE WHEN own.number IS NOT NULL THEN now() END,
           x.tls_requirement, x.origin, x.sender_authentication, GREATEST(0, x.release - extract(epoch FROM now())),
           x.address, x.gateway, x.account, x.from_domain, x.is_local, NULLIF(x.header_key, 0), x.envelope_recipient
    FROM unnest(%(r_id)s, %(r_message)s, %(r_shard)s, %(r_site)s, %(r_token)s, %(r_release)s, %(r_hold)s, %(r_tls_requirement)s, %(r_origin)s,
                %(r_sender_authentication)s, %(r_address)s, %(r_gateway)s, %(r_account)s, %(r_from)s, %(r_is_local)s,
                %(r_header_key)s, %(r_envelope_recipient)s)
         AS x (id, message_id, shard, site, token, release, hold_reason, tls_requirement, origin, sender_authentication, address, gateway, account,
               from_domain, is_local, header_key, envelope_recipient)
    JOIN stored_message m ON m.id = x.message_id
    LEFT JOIN own ON x.token <> 0 AND own.number = x.shard
    RETURNING shard, site, due, token IS NULL AND held_since IS NULL AS waits
), noted AS (
    {NOTE}
)
SELECT (SELECT count(*) FROM stored_message), (SELECT array_agg(number) FROM own),
       (SELECT version FROM hold_version), extract(epoch FROM now())::float8""",
)


@dataclass(frozen=True, slots=True)
class Stored:
    """What a group commit did."""

    messages: int
    """How many were new; fewer than given: ask EXISTING which."""
    owned: frozenset[int]
    """Shards under whose epoch recipients were born leased."""
    hold_version: int
    """Another one than was given: nothing was stored."""
    now: float


async def store(
    connection: Connection,
    ownership: Ownership,
    lease: float,
    messages: Sequence[NewMessage],
    recipients: Sequence[NewRecipient],
    *,
    holds: int = -1,
) -> Stored:
    """Store a batch (STORE), unless the version of hold rules is not `holds` (-1: any). Raises psycopg.Error; UnicodeEncodeError when a text cannot be UTF-8."""
    held = ownership.parameters(r.shard for r in recipients if r.token)
    rows = await run_columns(
        connection,
        STORE,
        {
            "id": c.uuids([m.id for m in messages]),
            "mail_from": c.names([m.mail_from for m in messages]),
            "account": c.names([m.account for m in messages]),
            "size": c.bigints([m.size for m in messages]),
            "chunks": c.bigints([m.chunks for m in messages]),
            "envelope": c.octets([m.envelope for m in messages]),
            "prefix": c.octets([m.prefix for m in messages]),
            "body": c.octets([m.body for m in messages]),
            "until": c.floats([m.until for m in messages]),
            "r_id": c.bigints([r.id for r in recipients]),
            "r_message": c.uuids([r.message_id for r in recipients]),
            "r_shard": c.smallints([r.shard for r in recipients]),
            "r_site": c.names([r.site for r in recipients]),
            "r_token": c.bigints([r.token for r in recipients]),
            "r_release": c.floats([r.release for r in recipients]),
            "r_hold": c.texts([r.hold_reason for r in recipients]),
            "r_tls_requirement": c.smallints([r.tls_requirement for r in recipients]),
            "r_origin": c.smallints([r.origin for r in recipients]),
            "r_sender_authentication": c.smallints([r.sender_authentication for r in recipients]),
            "r_address": c.names([r.address for r in recipients]),
            "r_gateway": c.names([r.gateway for r in recipients]),
            "r_account": c.names([r.account for r in recipients]),
            "r_from": c.names([r.from_domain for r in recipients]),
            "r_is_local": c.booleans([r.is_local for r in recipients]),
            "r_header_key": c.bigints([r.header_key for r in recipients]),
            "r_envelope_recipient": c.octets([r.envelope_recipient for r in recipients]),
            "lease": c.number(lease),
            "holds": c.number(holds),
            "owner": c.word(ownership.owner),
            "own_shards": held["own_shards"],
            "own_epochs": held["own_epochs"],
        },
    )
    count, owned, version, now = rows[0]
    return Stored(count, frozenset(owned or ()), version, now)


# Which of these ids are there, and whether as a message or as a bar (ACC-04).
EXISTING: Final[LiteralString] = "SELECT id, barred FROM message WHERE id = ANY(%(id)s)"


async def existing(connection: Connection, ids: Sequence[bytes]) -> dict[bytes, bool]:
    """Message id → barred, of those that exist."""
    return {row[0].bytes: row[1] for row in await run(connection, EXISTING, {"id": c.uuids(ids)})}


# Asks after a message and bars it if it is not there. The insert waits for a commit of the same id that is under way (ACC-04).
BAR: Final[LiteralString] = (
    "INSERT INTO message (id, barred) VALUES (%(id)s, true) ON CONFLICT (id) DO NOTHING RETURNING true"
)
OUTCOME: Final[LiteralString] = (
    "SELECT extract(epoch FROM accepted)::float8 FROM message WHERE id = ANY(%(id)s) AND NOT barred"
)


async def outcome(connection: Connection, message_id: bytes) -> float | None:
    """When the message was accepted; None: it was not and never will be, by this very call (ACC-04)."""
    if await run(connection, BAR, {"id": UUID(bytes=message_id)}):
        return None
    rows = await run(connection, OUTCOME, {"id": c.uuids([message_id])})
    await settle(connection)
    return float(rows[0][0]) if rows else None


# A part of a large body, before its commit (ACC-02). A later part needs the upload's row: the sweeper may have taken it.
FIRST_CHUNK: Final[LiteralString] = """WITH u AS (
    INSERT INTO upload (message_id) SELECT unnest(%(id)s) ON CONFLICT (message_id) DO UPDATE SET started = now() RETURNING message_id
) INSERT INTO chunk (message_id, number, data) SELECT message_id, %(number)s, %(data)s FROM u
  ON CONFLICT (message_id, number) DO UPDATE SET data = excluded.data"""
CHUNK_MORE: Final[LiteralString] = """INSERT INTO chunk (message_id, number, data)
    SELECT message_id, %(number)s, %(data)s FROM upload WHERE message_id = ANY(%(id)s) FOR KEY SHARE
    ON CONFLICT (message_id, number) DO UPDATE SET data = excluded.data RETURNING number"""


async def add_chunk(connection: Connection, message_id: bytes, number: int, data: bytes) -> bool:
    """Store chunk `number` (from 0). False: the upload was swept meanwhile."""
    parameters = {"id": c.uuids([message_id]), "number": number, "data": data}
    if number == 0:
        await run(connection, FIRST_CHUNK, parameters)
        return True
    return bool(await run(connection, CHUNK_MORE, parameters))


# The commit of a large body takes its upload away, in the transaction that names the chunks.
CLAIM_UPLOADS: Final[LiteralString] = "DELETE FROM upload WHERE message_id = ANY(%(id)s) RETURNING message_id"
ABORT_UPLOADS: Final[
    LiteralString
] = """WITH u AS (DELETE FROM upload WHERE message_id = ANY(%(id)s) RETURNING message_id)
    DELETE FROM chunk USING u WHERE chunk.message_id = u.message_id"""


async def claim_uploads(connection: Connection, ids: Sequence[bytes]) -> set[bytes]:
    """Those of `ids` whose chunks are there; they are the caller's now, if its transaction commits."""
    return {row[0].bytes for row in await run(connection, CLAIM_UPLOADS, {"id": c.uuids(ids)})}


async def abort_uploads(connection: Connection, ids: Sequence[bytes]) -> None:
    """Forget bodies whose commit will not come."""
    await run(connection, ABORT_UPLOADS, {"id": c.uuids(ids)})


# What was claimed and not stored after all: nobody else would ever find it (ACC-02). A message that is there keeps its own.
DROP_CHUNKS: Final[LiteralString] = """DELETE FROM chunk c WHERE c.message_id = ANY(%(id)s)
    AND NOT EXISTS (SELECT FROM message m WHERE m.id = c.message_id AND m.chunks > 0)"""


async def drop_chunks(connection: Connection, ids: Sequence[bytes]) -> None:
    """Delete the chunks of those of `ids`, all claimed by this transaction, that it did not store."""
    await run(connection, DROP_CHUNKS, {"id": c.uuids(ids)})


# Chunks that have neither a message nor an upload: nothing makes them, and nobody else would ever find them. In steps by index, from where
# the step before ended: the last row that was looked at (none: that was all), and how many were deleted.
STRAY_CHUNKS: Final[LiteralString] = """WITH looked AS MATERIALIZED (
        SELECT message_id, number FROM chunk WHERE (message_id, number) > (%(after_id)s, %(after_number)s)
        ORDER BY message_id, number LIMIT %(count)s
    ), stray AS (
        DELETE FROM chunk c USING (SELECT DISTINCT message_id FROM looked) l WHERE c.message_id = l.message_id
          AND NOT EXISTS (SELECT FROM message m WHERE m.id = c.message_id AND m.chunks > 0)
          AND NOT EXISTS (SELECT FROM upload u WHERE u.message_id = c.message_id) RETURNING c.number
    )
    SELECT (SELECT count(*) FROM stray), message_id, number FROM (SELECT) one LEFT JOIN
        (SELECT message_id, number FROM looked ORDER BY message_id DESC, number DESC LIMIT 1) last ON true"""


async def sweep_stray_chunks(
    connection: Connection, after: tuple[UUID, int] | None, count: int
) -> tuple[int, tuple[UUID, int] | None]:
    """Look at `count` chunk rows behind `after` (None: from the first). Returns how many chunks without message and
    upload were deleted, and the last row looked at, None at the end. Raises psycopg.Error."""
    after_id, after_number = after if after is not None else (UUID(int=0), -1)
    rows = await run(connection, STRAY_CHUNKS, {"after_id": after_id, "after_number": after_number, "count": count})
    deleted, last_id, last_number = rows[0]
    return deleted, None if last_id is None else (last_id, last_number)


# What an account sent in the last 24 hours, under a lock that ends with the transaction (ACC-08).
LOCK_ACCOUNT: Final[LiteralString] = (
    "SELECT pg_advisory_xact_lock(hashtextextended('mailrail.queue.account:' || %(account)s, 0))"
)
USAGE: Final[LiteralString] = """SELECT coalesce(sum(messages), 0)::bigint, coalesce(sum(recipients), 0)::bigint
    FROM account_usage WHERE account = %(account)s AND hour > now() - interval '24 hours'"""
COUNT_USAGE: Final[LiteralString] = """INSERT INTO account_usage (account, hour, messages, recipients)
    VALUES (%(account)s, date_trunc('hour', now()), %(messages)s, %(recipients)s)
    ON CONFLICT (account, hour) DO UPDATE SET messages = account_usage.messages + excluded.messages,
                                              recipients = account_usage.recipients + excluded.recipients"""


async def lock_usage(connection: Connection, account: str) -> tuple[int, int]:
    """Messages and recipients of the last 24 hours; nobody else counts this account until the transaction ends."""
    await run(connection, LOCK_ACCOUNT, {"account": account})
    rows = await run(connection, USAGE, {"account": account})
    return rows[0][0], rows[0][1]


async def count_usage(connection: Connection, account: str, messages: int, recipients: int) -> None:
    """Add to what the account sent."""
    await run(connection, COUNT_USAGE, {"account": account, "messages": messages, "recipients": recipients})


# A block of 1000 ids each for recipients and tokens.
BLOCKS: Final[LiteralString] = "SELECT next_recipient_block(), nextval('token_block')"
BLOCK = 1000
# Ids go on beyond all that are stored, and beyond those that this process was given.
RAISE_IDS: Final[LiteralString] = "SELECT raise_ids(%(recipients)s, %(tokens)s)"


def given_twice(error: Exception) -> bool:
    """Whether a key was there already: always one of ours, because an id that others choose may be there (ACC-04).

    The database went back, or its sequences were not copied with its rows. New ids, and it can be done again.
    """
    return isinstance(error, psycopg.errors.UniqueViolation)


# --- due work -------------------------------------------------------------------------------------------------------


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
    token: int | None
    remaining: float  # seconds of the lease; 0 when there is none
    request: int
    request_reason: str | None
    started: float  # of the newest attempt; 0 before the first


WAITING: Final = """r.id, r.message_id, r.shard, r.site, r.version, r.attempts, r.interruptions, r.tls_requirement, r.origin, r.sender_authentication,
    extract(epoch FROM r.queued)::float8, r.uncounted_seconds, r.delayed_dsn_decided, r.address, r.gateway, r.account, r.from_domain, r.is_local,
    r.override_transport, r.envelope_recipient, r.dialled_hosts, r.token, coalesce(extract(epoch FROM r.lease_until - now()), 0)::float8,
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


# The attempt is committed before anything is dialled (LSE-01). Version, hold and due time are looked at again (ADM-01).
LEASE: Final[LiteralString] = f"""WITH {OWN}
    UPDATE recipient r SET token = x.token, lease_until = now() + %(lease)s * interval '1 second', attempts = r.attempts + 1,
        last_attempt_started = now(), site = x.site
    FROM unnest(%(id)s, %(version)s, %(token)s, %(site)s) AS x (id, version, token, site)
    WHERE r.id = x.id AND r.version = x.version AND r.token IS NULL AND r.held_since IS NULL AND r.request = 0 AND r.due <= now()
      AND r.shard IN (SELECT number FROM own)
    RETURNING r.id, extract(epoch FROM now())::float8"""


async def lease(
    connection: Connection, ownership: Ownership, seconds: float, wanted: Sequence[tuple[Waiting, int, str]]
) -> tuple[set[int], float]:
    """Lease recipients under (token, site). Returns the ids that were still free, and Postgres's time."""
    rows = await run(
        connection,
        LEASE,
        {
            "id": c.bigints([w.id for w, _, _ in wanted]),
            "version": c.bigints([w.version for w, _, _ in wanted]),
            "token": c.bigints([token for _, token, _ in wanted]),
            "site": c.names([site for _, _, site in wanted]),
            "lease": seconds,
            **ownership.parameters(w.shard for w, _, _ in wanted),
        },
    )
    return {row[0] for row in rows}, (rows[0][1] if rows else 0.0)


@dataclass(slots=True)
class StoredMessage:
    """A message as a lease carries it."""

    id: bytes
    envelope: bytes
    prefix: bytes
    body: bytes | None  # None: in chunks
    size: int
    chunks: int  # 0: none


CONTENT: Final[LiteralString] = (
    "SELECT id, envelope, prefix, body, size, chunks FROM message WHERE id = ANY(%(id)s) AND NOT barred"
)
CHUNKS: Final[LiteralString] = """SELECT number, data FROM chunk
    WHERE message_id = ANY(%(id)s) AND number >= %(first)s ORDER BY number LIMIT %(count)s"""


# Content is handed out under a lease that stands.
IS_LEASED: Final[LiteralString] = (
    "SELECT 1 FROM recipient WHERE message_id = ANY(%(id)s) AND token = %(token)s AND lease_until > now() LIMIT 1"
)


async def is_leased(connection: Connection, message_id: bytes, token: int) -> bool:
    """Whether a recipient of the message is leased under this token."""
    return bool(await run(connection, IS_LEASED, {"id": c.uuids([message_id]), "token": token}))


async def contents(connection: Connection, ids: Iterable[bytes]) -> dict[bytes, StoredMessage]:
    """Messages with their inline bodies."""
    rows = await run(connection, CONTENT, {"id": c.uuids(list(ids))})
    return {row[0].bytes: StoredMessage(row[0].bytes, *row[1:]) for row in rows}


async def chunk(connection: Connection, message_id: bytes, number: int) -> bytes | None:
    """One chunk of a large body; None past the end."""
    rows = await run(connection, CHUNKS, {"id": c.uuids([message_id]), "first": number, "count": 1})
    return bytes(rows[0][1]) if rows and rows[0][0] == number else None


# All that is left of a message is on hold, which for one that is leased means: when its attempt ends.
HOLD_CORRUPT_MESSAGE: Final[LiteralString] = """WITH found AS (
        SELECT id FROM recipient WHERE message_id = %(id)s AND held_since IS NULL ORDER BY id FOR UPDATE
    )
    UPDATE recipient r SET held_since = now(), hold_reason = %(reason)s, version = r.version + 1 FROM found f WHERE r.id = f.id
    RETURNING r.id"""


async def hold_corrupt_message(connection: Connection, message_id: bytes, reason: str) -> list[int]:
    """Put all recipients of a message on hold. Returns the ids of those that were not."""
    rows = await run(connection, HOLD_CORRUPT_MESSAGE, {"id": UUID(bytes=message_id), "reason": reason})
    return [row[0] for row in rows]


# Leases that live on (LSE-01). One that ran out is not revived: it may be another's by now.
RENEW: Final[LiteralString] = """UPDATE recipient r SET lease_until = now() + %(lease)s * interval '1 second'
    FROM unnest(%(id)s, %(token)s) AS x (id, token)
    WHERE r.id = x.id AND r.token = x.token AND r.lease_until > now() RETURNING r.id"""


async def renew(connection: Connection, seconds: float, leases: Sequence[tuple[int, int]]) -> set[int]:
    """Renew (recipient id, token). Returns the ids whose lease still stood."""
    rows = await run(
        connection,
        RENEW,
        {"id": c.bigints([i for i, _ in leases]), "token": c.bigints([t for _, t in leases]), "lease": seconds},
    )
    return {row[0] for row in rows}


# --- results --------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Ending:
    """A recipient to be made final."""

    id: int
    message_id: bytes  # an id that came again is not the same recipient (HIS-03)
    token: int  # of the lease; 0: it is not leased and `version` must fit
    version: int
    state: int  # RecipientState
    outcome: int
    last_attempt: bytes | None  # Attempt
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
              CASE WHEN r.request = 2 AND x.state = {FAILED} THEN {CANCELLED} ELSE x.state END AS state,
              CASE WHEN r.request = 2 AND x.state = {FAILED} THEN {_CANCELLED} ELSE x.outcome END AS outcome, x.last_attempt, x.counted, r.has_attempts
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
    message_id: bytes  # an id that came again is not the same recipient (HIS-03)
    token: int  # of the lease; 0: it is not leased and `version` must fit (SHD-05: an attempt without a dial)
    version: int
    retry_in: float  # seconds
    last_attempt: bytes | None  # Attempt; None: the attempt is undone, it was not dialled (LSE-04)
    delayed_dsn_decided: bool = False
    dialled_hosts: bytes | None = None
    shard: int = 0
    cancelled: bool = False
    """The delivery was aborted for the sake of those that an administrator asked for; of the others it is undone."""


# Back to the schedule, under its token (LSE-03). What an administrator said meanwhile applies now (ADM-02). Who only shared a
# delivery with somebody that was cancelled keeps a record of it, and nothing else (LSE-04).
DEFER: Final[LiteralString] = f"""WITH x AS (
    SELECT * FROM unnest(%(id)s, %(message_id)s, %(token)s, %(retry)s, %(last_attempt)s, %(delayed_dsn_decided)s, %(dialled_hosts)s, %(cancelled)s)
        AS x (id, message_id, token, retry, last_attempt, delayed_dsn_decided, dialled_hosts, cancelled)
), stored AS (
    UPDATE recipient r SET token = NULL, lease_until = NULL, due = coalesce(r.due_after_attempt, now() + x.retry * interval '1 second'),
        due_after_attempt = NULL, last_attempt = CASE WHEN x.cancelled AND r.request = 0 THEN r.last_attempt ELSE coalesce(x.last_attempt, r.last_attempt) END,
        delayed_dsn_decided = r.delayed_dsn_decided OR x.delayed_dsn_decided, has_attempts = r.has_attempts OR x.last_attempt IS NOT NULL, dialled_hosts = coalesce(x.dialled_hosts, r.dialled_hosts),
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
BACK_OFF: Final[LiteralString] = f"""WITH {OWN}, x AS (
    SELECT * FROM unnest(%(id)s, %(version)s, %(retry)s, %(last_attempt)s, %(delayed_dsn_decided)s) AS x (id, version, retry, last_attempt, delayed_dsn_decided)
), stored AS (
    UPDATE recipient r SET due = now() + x.retry * interval '1 second', last_attempt = x.last_attempt, delayed_dsn_decided = r.delayed_dsn_decided OR x.delayed_dsn_decided,
        attempts = r.attempts + 1, last_attempt_started = now(), has_attempts = true
    FROM x WHERE r.id = x.id AND r.version = x.version AND r.token IS NULL AND r.held_since IS NULL AND r.request = 0 AND r.due <= now()
      AND r.shard IN (SELECT number FROM own)
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
        },
    )
    return [(row[0], row[1], row[2]) for row in rows]


async def back_off(connection: Connection, ownership: Ownership, deferrals: Sequence[Deferral]) -> set[int]:
    """Count an attempt without a dial (BACK_OFF). Returns the ids that it applied to."""
    rows = await run(
        connection,
        BACK_OFF,
        {
            "id": c.bigints([d.id for d in deferrals]),
            "version": c.bigints([d.version for d in deferrals]),
            "retry": c.floats([d.retry_in for d in deferrals]),
            "last_attempt": c.octets([d.last_attempt for d in deferrals]),
            "delayed_dsn_decided": c.booleans([d.delayed_dsn_decided for d in deferrals]),
            **ownership.parameters(d.shard for d in deferrals),
        },
    )
    return {row[0] for row in rows}


# Leases that ran out (LSE-04): due again at once; the first ten of a recipient raise no count.
EXPIRED: Final[LiteralString] = f"""WITH found AS (
    SELECT id, token FROM recipient
    WHERE token IS NOT NULL AND lease_until < now() AND lease_until >= to_timestamp(%(since)s) AND shard = ANY(%(shard)s)
      AND id NOT IN (SELECT unnest(%(answered)s))
    ORDER BY lease_until LIMIT %(count)s FOR UPDATE SKIP LOCKED
), {OWN}, stored AS (
    UPDATE recipient r SET token = NULL, lease_until = NULL, due = coalesce(r.due_after_attempt, now()), due_after_attempt = NULL,
        interruptions = r.interruptions + 1, attempts = r.attempts - CASE WHEN r.interruptions < 10 THEN 1 ELSE 0 END
    FROM found f WHERE r.id = f.id AND r.shard IN (SELECT number FROM own)
    RETURNING r.id, f.token, r.shard, r.site, r.due, r.held_since IS NULL AS waits, r.attempts, r.last_attempt_started, r.request, r.interruptions, r.message_id
), noted AS (
    {NOTE}
)
SELECT id, token, attempts, extract(epoch FROM coalesce(last_attempt_started, now()))::float8, request, shard, interruptions, message_id FROM stored"""
NOW: Final[LiteralString] = "SELECT extract(epoch FROM now())::float8"
# Postgres's clock was set: leases of before last as long as they did. Forward, those that can only be of before; back, no lease lasts
# longer than a fresh one.
MOVE_LEASES: Final[LiteralString] = """WITH found AS (
        SELECT id FROM recipient WHERE token IS NOT NULL
          AND (lease_until <= to_timestamp(%(until)s) OR lease_until > now() + %(lease)s * interval '1 second')
        ORDER BY id FOR UPDATE
    )
    UPDATE recipient r SET lease_until = LEAST(r.lease_until + %(forward)s * interval '1 second', now() + %(lease)s * interval '1 second')
    FROM found f WHERE r.id = f.id AND r.token IS NOT NULL RETURNING 1"""


async def move_leases(connection: Connection, jump: Jump, lease: float) -> int:
    """Let leases last as long as they did before Postgres's clock was set (MOVE_LEASES). Returns how many.

    Of all shards: another process may do the same, and then some last up to a whole `lease` (seconds) again.
    """
    until = jump.before + lease if jump.seconds > 0 else 0.0
    parameters = {"until": until, "forward": max(0.0, jump.seconds), "lease": lease}
    return len(await run(connection, MOVE_LEASES, parameters))


FIRST_EXPIRED: Final[LiteralString] = """SELECT id, message_id, shard, version, token FROM recipient
    WHERE token IS NOT NULL AND lease_until < now() AND lease_until >= to_timestamp(%(since)s) AND shard = ANY(%(shard)s)
      AND id NOT IN (SELECT unnest(%(answered)s))
    ORDER BY lease_until LIMIT 1 FOR UPDATE SKIP LOCKED"""
# The same for leases that are known to be lost: the process that had them is back and does not have them (LSE-02).
LOST: Final[LiteralString] = f"""WITH stored AS (
    UPDATE recipient r SET token = NULL, lease_until = NULL, due = coalesce(r.due_after_attempt, now()), due_after_attempt = NULL,
        interruptions = r.interruptions + 1, attempts = r.attempts - CASE WHEN r.interruptions < 10 THEN 1 ELSE 0 END
    FROM unnest(%(id)s, %(message_id)s, %(token)s) AS x (id, message_id, token)
    WHERE r.id = x.id AND r.message_id = x.message_id AND r.token = x.token
    RETURNING r.id, x.token, r.shard, r.site, r.due, r.held_since IS NULL AS waits, r.attempts, r.last_attempt_started, r.request, r.interruptions, r.message_id
), noted AS (
    {NOTE}
)
SELECT id, token, attempts, extract(epoch FROM coalesce(last_attempt_started, now()))::float8, request, shard, interruptions, message_id FROM stored"""
# Of those that were taken back in this very transaction: not now, but later (unless an administrator said when).
PUT_OFF: Final[LiteralString] = """UPDATE recipient r SET due = now() + x.seconds * interval '1 second'
    FROM unnest(%(id)s, %(seconds)s) AS x (id, seconds) WHERE r.id = x.id AND r.token IS NULL AND r.due = now()"""


async def put_off(connection: Connection, waits: Sequence[tuple[int, float]]) -> None:
    """Let (recipient id, seconds) wait that this transaction made due (PUT_OFF)."""
    parameters = {"id": c.bigints([i for i, _ in waits]), "seconds": c.floats([s for _, s in waits])}
    await run(connection, PUT_OFF, parameters)


@dataclass(frozen=True, slots=True)
class CorruptRecipient:
    """A recipient to be put on hold because nobody can send or end it."""

    id: int
    message_id: bytes
    shard: int
    version: int
    token: int  # of its lease; 0: it is not leased, `version` must fit, and its shard must be ours


# On hold, out of the way of all other mail, with the reason. Under its token `undo` takes back an attempt that never began.
HOLD_CORRUPT: Final[LiteralString] = f"""WITH {OWN}
    UPDATE recipient r SET held_since = coalesce(r.held_since, now()), hold_reason = %(reason)s, version = r.version + 1, token = NULL, lease_until = NULL,
        due = coalesce(r.due_after_attempt, r.due), due_after_attempt = NULL,
        attempts = r.attempts - CASE WHEN r.token IS NULL OR NOT %(undo)s THEN 0 ELSE 1 END,
        request = CASE WHEN %(withdraw)s THEN 0 ELSE r.request END
    FROM unnest(%(id)s, %(version)s, %(token)s) AS x (id, version, token)
    WHERE r.id = x.id
      AND (r.token = x.token OR (x.token = 0 AND r.token IS NULL AND (r.held_since IS NULL OR %(withdraw)s) AND r.version = x.version
                                 AND r.shard IN (SELECT number FROM own)))
    RETURNING r.id"""


async def hold_corrupt(
    connection: Connection,
    ownership: Ownership,
    rows: Sequence[CorruptRecipient],
    reason: str,
    *,
    undo: bool,
    withdraw: bool,
) -> set[int]:
    """Put recipients on hold (HOLD_CORRUPT). Returns the ids that were still as they were found."""
    found = await run(
        connection,
        HOLD_CORRUPT,
        {
            "id": c.bigints([row.id for row in rows]),
            "version": c.bigints([row.version for row in rows]),
            "token": c.bigints([row.token for row in rows]),
            "reason": storable(reason),
            "undo": undo,
            "withdraw": withdraw,
            **ownership.parameters(row.shard for row in rows),
        },
    )
    return {row[0] for row in found}


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


@dataclass(frozen=True, slots=True)
class Expired:
    """A lease that was lost."""

    id: int
    token: int
    attempts: int
    started: float
    request: int
    shard: int
    interruptions: int
    message_id: bytes


def _expired(row: Row) -> Expired:
    return Expired(row[0], row[1], row[2], row[3], row[4], row[5], row[6], row[7].bytes)


async def expire(
    connection: Connection,
    ownership: Ownership,
    shards: Sequence[int],
    since: float,
    count: int,
    answered: Sequence[int] = (),
) -> list[Expired]:
    """Take back leases that ran out after `since` (EXPIRED), `count` at most; not of `answered`, whose results wait."""
    parameters = {
        "answered": c.bigints(answered),
        "shard": c.smallints(shards),
        "since": since,
        "count": count,
        **ownership.parameters(shards),
    }
    return [_expired(row) for row in await run(connection, EXPIRED, parameters)]


async def first_expired(
    connection: Connection, shards: Sequence[int], since: float, answered: Sequence[int] = ()
) -> CorruptRecipient | None:
    """The recipient that `expire` would take back first (FIRST_EXPIRED), locked."""
    parameters = {"shard": c.smallints(shards), "since": since, "answered": c.bigints(answered)}
    rows = await run(connection, FIRST_EXPIRED, parameters)
    return CorruptRecipient(rows[0][0], rows[0][1].bytes, *rows[0][2:]) if rows else None


async def lose(connection: Connection, leases: Sequence[tuple[int, bytes, int]]) -> list[Expired]:
    """Take back leases (recipient id, message id, token) that nobody works on (LOST)."""
    parameters = {
        "id": c.bigints([i for i, _, _ in leases]),
        "message_id": c.uuids([m for _, m, _ in leases]),
        "token": c.bigints([t for _, _, t in leases]),
    }
    return [_expired(row) for row in await run(connection, LOST, parameters)]


async def record(connection: Connection, attempts: Sequence[Record]) -> None:
    """Add finished attempts to the timeline of live recipients (RECORD)."""
    # Said twice in one batch, it is in no table yet.
    once = {(i, token or -number): (i, m, token, data) for number, (i, m, token, data) in enumerate(attempts, 1)}
    found = list(once.values())
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
