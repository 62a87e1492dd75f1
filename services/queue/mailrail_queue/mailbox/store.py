"""The built-in mailbox in Postgres: statements that put messages in and read them, and the content that messages share.

A message in a mailbox shares the stored content of the message it came from; only the lines that delivery adds
(Return-Path, RFC 5321 4.4, exactly one: SIN-24a; Delivered-To) and what a list shows are its own. One recipient gives
one message at most (FIN-01). What is removed here is swept with its content later (FIN-02).
"""

# ruff: noqa: E501, S608 -- statements keep their own lines, and are put together from constants of this module alone

import contextlib
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Final, LiteralString
from uuid import UUID

from mailrail.core.limits import CHUNK_SIZE
from mailrail.core.message.header import Field, Header
from mailrail.core.message.summary import Summary, summarize
from mailrail_queue.store import columns as c
from mailrail_queue.store import content as content_store
from mailrail_queue.store.connection import Connection, run
from mailrail_queue.store.rows import CONTENT_INCOMPLETE

SEEN: Final = "\\Seen"
FLAGS: Final = frozenset({SEEN, "\\Answered", "\\Flagged", "\\Deleted", "\\Draft"})
"""System flags of RFC 9051 2.3.2; keywords may be added beside them."""
PATH_LIMIT: Final = 255
HEAD: Final = 128 * 1024
"""Octets at the beginning of a message in which its header is looked for."""


class ContentIncomplete(Exception):
    """A part of what is stored of a message is gone."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A message about to be put into a mailbox."""

    account: str
    """As `NAMESPACE/NAME`."""
    path: str
    message_id: bytes
    recipient_id: int | None
    recipient: str
    reverse_path: str
    delivered: bool = True
    """Delivery to its recipient, which adds Return-Path and Delivered-To; False: a copy for another account."""
    flags: tuple[str, ...] = ()
    dsn: bool = False
    note: str = ""


@dataclass(frozen=True, slots=True)
class MessageHead:
    """The beginning of a stored message."""

    mail_from: str
    size: int
    chunks: int
    envelope: bytes
    prefix: bytes
    octets: bytes
    """Prefix and the first octets of the body."""
    accepted: float


# The header of messages, whatever the size of their bodies.
HEADS: Final[LiteralString] = """SELECT m.id, m.mail_from, m.size, m.chunks, m.envelope, m.prefix,
    coalesce(substring(m.body FROM 1 FOR %(head)s), (SELECT substring(k.data FROM 1 FOR %(head)s) FROM chunk k WHERE k.message_id = m.id AND k.number = 0), ''),
    extract(epoch FROM m.accepted)::float8
    FROM message m WHERE m.id = ANY(%(id)s) AND NOT m.barred"""
# In order, so that two transactions never wait for each other in a ring. A look first: nearly always they are all there.
MAKE_MAILBOXES: Final[LiteralString] = """INSERT INTO mailbox (account, path)
    SELECT DISTINCT x.account, x.path FROM unnest(%(account)s, %(path)s) AS x (account, path)
    WHERE NOT EXISTS (SELECT FROM mailbox b WHERE b.account = x.account AND b.path = x.path)
    ORDER BY 1, 2 ON CONFLICT (account, path) DO NOTHING"""
PUT: Final[
    LiteralString
] = """INSERT INTO mailbox_message (mailbox_id, recipient_id, message_id, flags, size, prefix, header_from, header_to,
        subject, header_message_id, in_reply_to, header_references, recipient, reverse_path, dsn, note)
    SELECT b.id, NULLIF(x.recipient_id, 0), x.message_id, string_to_array(x.flags, ' '), x.size, x.prefix, x.header_from, x.header_to,
        x.subject, x.header_message_id, x.in_reply_to, string_to_array(x.header_references, ' '), x.recipient, x.reverse_path, x.dsn, x.note
    FROM unnest(%(account)s, %(path)s, %(recipient_id)s, %(message_id)s, %(flags)s, %(size)s, %(prefix)s, %(header_from)s, %(header_to)s,
                %(subject)s, %(header_message_id)s, %(in_reply_to)s, %(refs)s, %(recipient)s, %(reverse_path)s, %(dsn)s, %(note)s)
         AS x (account, path, recipient_id, message_id, flags, size, prefix, header_from, header_to, subject, header_message_id,
               in_reply_to, header_references, recipient, reverse_path, dsn, note)
    JOIN mailbox b ON b.account = x.account AND b.path = x.path
    ON CONFLICT (recipient_id, message_id) DO NOTHING RETURNING id"""


async def heads(connection: Connection, ids: Collection[bytes]) -> dict[bytes, MessageHead]:
    """The beginnings of these messages; those that are gone are missing."""
    rows = await run(connection, HEADS, {"id": c.uuids(list(ids)), "head": HEAD})
    return {row[0].bytes: MessageHead(row[1], row[2], row[3], row[4], row[5], row[5] + row[6], row[7]) for row in rows}


def trace_lines(reverse_path: str, recipient: str) -> bytes:
    """What final delivery adds on top: Return-Path (RFC 5321 4.4, SIN-24a) and Delivered-To (OPT-06a)."""
    return f"Return-Path: <{reverse_path}>\r\nDelivered-To: {recipient}\r\n".encode()


def _foreign(header: Header) -> list[Field]:
    """Return-Path fields that came with a message: the one that final delivery writes is the only one (SIN-24b)."""
    return header.named(b"return-path") if len(header.block) < HEAD else []


async def put(
    connection: Connection, entries: Sequence[Entry], known: Mapping[bytes, MessageHead] | None = None
) -> int:
    """Put messages into mailboxes, inside the caller's transaction. Returns how many were new (FIN-01)."""
    known = known or {}
    wanted = {e.message_id for e in entries} - known.keys()
    found = {**known, **(await heads(connection, wanted) if wanted else {})}
    entries = [e for e in entries if e.message_id in found]
    if not entries:
        return 0
    summaries: dict[bytes, Summary] = {}
    foreign: dict[bytes, int] = {}  # octets that the mailbox does not show
    for entry in entries:
        if entry.message_id not in summaries:
            header = Header(found[entry.message_id].octets)
            summaries[entry.message_id] = summarize(header)
            foreign[entry.message_id] = sum(field.end - field.start for field in _foreign(header))
    shown = [summaries[e.message_id] for e in entries]
    prefixes = [trace_lines(e.reverse_path, e.recipient) if e.delivered else b"" for e in entries]
    places = {"account": c.names([e.account for e in entries]), "path": c.names([e.path for e in entries])}
    await run(connection, MAKE_MAILBOXES, places)
    rows = await run(
        connection,
        PUT,
        {
            **places,
            "recipient_id": c.bigints([e.recipient_id or 0 for e in entries]),
            "message_id": c.uuids([e.message_id for e in entries]),
            "flags": c.texts([" ".join(e.flags) for e in entries]),
            "size": c.bigints(
                [
                    found[e.message_id].size + len(p) - (foreign[e.message_id] if e.delivered else 0)
                    for e, p in zip(entries, prefixes, strict=True)
                ]
            ),
            "prefix": c.octets(prefixes),
            "header_from": c.texts([s.sender for s in shown]),
            "header_to": c.texts([s.to for s in shown]),
            "subject": c.texts([s.subject for s in shown]),
            "header_message_id": c.texts([s.message_id for s in shown]),
            "in_reply_to": c.texts([s.in_reply_to for s in shown]),
            "refs": c.texts([" ".join(s.references) for s in shown]),
            "recipient": c.texts([e.recipient for e in entries]),
            "reverse_path": c.texts([e.reverse_path for e in entries]),
            "dsn": c.booleans([e.dsn for e in entries]),
            "note": c.texts([e.note for e in entries]),
        },
    )
    return len(rows)


MAILBOXES: Final[
    LiteralString
] = """SELECT b.account, b.path, count(m.id), count(m.id) FILTER (WHERE NOT m.flags @> ARRAY['\\Seen'])
    FROM mailbox b LEFT JOIN mailbox_message m ON m.mailbox_id = b.id
    WHERE %(account)s = '' OR b.account = %(account)s GROUP BY b.account, b.path ORDER BY b.account, b.path"""
_SHOWN: Final = """m.id, b.account, b.path, m.received, m.flags, m.size, m.header_from, m.header_to, m.subject, m.header_message_id,
    m.in_reply_to, m.header_references, m.recipient, m.reverse_path, m.dsn, m.note, m.message_id, m.prefix, (SELECT n.envelope FROM message n WHERE n.id = m.message_id)"""
LISTED: Final[LiteralString] = f"""SELECT {_SHOWN} FROM mailbox b JOIN mailbox_message m ON m.mailbox_id = b.id
    WHERE (%(account)s = '' OR b.account = %(account)s) AND (%(path)s = '' OR b.path = %(path)s) AND m.id < %(before)s
      AND (%(without)s = '' OR NOT m.flags @> ARRAY[%(without)s::text])
    ORDER BY m.id DESC LIMIT %(count)s"""
ONE: Final[LiteralString] = (
    f"""SELECT {_SHOWN} FROM mailbox_message m JOIN mailbox b ON b.id = m.mailbox_id WHERE m.id = %(id)s"""
)
PLACES: Final[
    LiteralString
] = """SELECT DISTINCT b.account, b.path FROM mailbox_message m JOIN mailbox b ON b.id = m.mailbox_id
    WHERE m.id = ANY(%(id)s)"""
SET_FLAGS: Final[LiteralString] = """UPDATE mailbox_message m SET flags = ARRAY(
        SELECT DISTINCT f FROM unnest(m.flags || %(add)s::text[]) AS f WHERE NOT f = ANY(%(remove)s::text[]) ORDER BY f)
    WHERE m.id = ANY(%(id)s) RETURNING m.id"""
# The content goes with its last reader: the sweeper looks after the message that lost one (FIN-02).
DELETE: Final[LiteralString] = """WITH gone AS (
        DELETE FROM mailbox_message WHERE id = ANY(%(id)s) RETURNING id, message_id
    ), swept AS (
        INSERT INTO sweep_candidate (message_id) SELECT DISTINCT message_id FROM gone ORDER BY 1
        ON CONFLICT (message_id) DO UPDATE SET due = excluded.due
    ) SELECT count(*) FROM gone"""


@dataclass(frozen=True, slots=True)
class Listed:
    """A message in a mailbox, without its content."""

    id: int
    account: str
    path: str
    received: datetime
    flags: list[str]
    size: int
    header_from: str
    header_to: str
    subject: str
    header_message_id: str
    in_reply_to: str
    references: list[str]
    recipient: str
    reverse_path: str
    dsn: bool
    note: str
    message_id: UUID
    prefix: bytes
    envelope: bytes | None
    """An `Envelope`, encoded: the tag of the message stays with it (RTLS-27c). None: the message is gone."""


async def mailboxes(connection: Connection, account: str) -> list[tuple[str, str, int, int]]:
    """(account, path, messages, unseen) of an account's mailboxes; an empty name: of all."""
    return [(r[0], r[1], r[2], r[3]) for r in await run(connection, MAILBOXES, {"account": account})]


async def list_messages(
    connection: Connection, account: str, path: str, before: int, count: int, without: str = ""
) -> list[Listed]:
    """Messages of an account (empty: of all), newest first, with ids below `before`; an empty path: of all mailboxes.
    `without`: only those that have not this flag."""
    parameters = {"account": account, "path": path, "before": before, "count": count, "without": without}
    return [Listed(*row) for row in await run(connection, LISTED, parameters)]


async def find_message(connection: Connection, number: int) -> Listed | None:
    """One message."""
    rows = await run(connection, ONE, {"id": number})
    return Listed(*rows[0]) if rows else None


async def places(connection: Connection, ids: Sequence[int]) -> list[tuple[str, str]]:
    """(account, path) of the mailboxes that these messages are in."""
    return [(row[0], row[1]) for row in await run(connection, PLACES, {"id": c.bigints(ids)})]


async def set_flags(connection: Connection, ids: Sequence[int], add: Sequence[str], remove: Sequence[str]) -> int:
    """Add and remove flags. Returns how many messages there were."""
    parameters = {"id": c.bigints(ids), "add": list(add), "remove": list(remove)}
    return len(await run(connection, SET_FLAGS, parameters))


async def delete(connection: Connection, ids: Sequence[int]) -> int:
    """Remove messages. Returns how many there were."""
    return int((await run(connection, DELETE, {"id": c.bigints(ids)}))[0][0])


async def content(connection: Connection, message_id: UUID) -> AsyncIterator[bytes]:
    """The stored content of a message, prefix first, in pieces of at most 256 KiB or so; nothing if it is gone.

    Raises ContentIncomplete in the middle, where a part is missing.
    """
    async for part in content_for(lambda: contextlib.nullcontext(connection), message_id):
        yield part


async def content_for(
    use: Callable[[], AbstractAsyncContextManager[Connection]], message_id: UUID
) -> AsyncIterator[bytes]:
    """The same for a reader of any speed: none of the connections that `use` gives is kept while it reads."""
    async with use() as connection:
        found = (await content_store.contents(connection, [message_id.bytes])).get(message_id.bytes)
    if found is None:
        return
    if found.prefix:
        yield found.prefix
    body = found.body or b""
    for start in range(0, len(body), CHUNK_SIZE):
        yield body[start : start + CHUNK_SIZE]
    for number in range(found.chunks):
        async with use() as connection:
            parts = await content_store.chunks(connection, message_id.bytes, number, 1)
        if not parts:
            raise ContentIncomplete(CONTENT_INCOMPLETE)
        yield parts[0]


async def delivered_content(
    use: Callable[[], AbstractAsyncContextManager[Connection]], message_id: UUID
) -> AsyncIterator[bytes]:
    """The same as its mailbox has it, below the lines that delivery added: without a foreign Return-Path (SIN-24b)."""
    head = b""
    parts = content_for(use, message_id)
    async for part in parts:
        head += part
        if len(head) >= HEAD:
            break
    header = Header(head)
    block = header.changed(dict.fromkeys(_foreign(header), b""))
    if head:
        yield block + head[len(header.block) :]
    async for part in parts:
        yield part
