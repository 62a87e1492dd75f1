"""Statements of acceptance: the group commit, what became of a message, what an account sent (ACC)."""

# ruff: noqa: E501, S608 -- statements keep their own lines, and are put together from constants of ours alone

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, LiteralString
from uuid import UUID

from mailrail.kit.postgres import settle
from mailrail_queue.store import columns as c
from mailrail_queue.store.connection import Connection, Statement, run, run_columns
from mailrail_queue.store.fencing import NOTE, OWN, Ownership


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


# Once a message is final its row goes and those of its recipients stay in history (FIN-03).
IN_HISTORY: Final[LiteralString] = "SELECT true FROM history WHERE message_id = ANY(%(id)s) LIMIT 1"


async def in_history(connection: Connection, message_id: bytes) -> bool:
    """Whether a recipient of the message is in history."""
    return bool(await run(connection, IN_HISTORY, {"id": c.uuids([message_id])}))


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
