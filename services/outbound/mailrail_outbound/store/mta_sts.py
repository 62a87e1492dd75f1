"""Statements of the cache of MTA-STS policies, which all processes share (STS-17b).

Times go in and out as seconds since the epoch by Postgres's clock. What a row says is decided in core/mtasts/cache.py.
"""

# ruff: noqa: E501, S608 -- statements keep their own lines; what they are put together of are constants

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final, LiteralString

from mailrail.core.mtasts.answer import FetchFailed, FetchTrouble
from mailrail.core.mtasts.cache import LATELY, REFRESH_AGAIN, SHORT_LIVED, CachedPolicy, LastFailure, refresh_at
from mailrail.core.mtasts.policy import PolicyError, parse_policy
from mailrail.core.outbound.zone import zone_of
from mailrail.kit.postgres import storable
from mailrail_outbound.store.connection import Connection, Row, run

_COLUMNS: Final[LiteralString] = """m.record_id, m.policy, extract(epoch FROM m.fetched)::float8,
    m.failed_id, extract(epoch FROM m.failed)::float8, m.trouble, m.failure"""
READ: Final[LiteralString] = f"""SELECT d.domain, extract(epoch FROM clock_timestamp())::float8, {_COLUMNS}
    FROM unnest(%(domain)s::text[]) AS d (domain) LEFT JOIN mta_sts m ON m.domain = d.domain"""
# A row that is there is written whatever the bounds say. A new one has room while the table, and its zone, have less than their bound;
# policies that hold are never pushed out, so that nobody takes one away by naming other domains.
_ROOM: Final[LiteralString] = """(EXISTS (SELECT FROM mta_sts o WHERE o.domain = %(domain)s) OR (
        (SELECT count(*) FROM (SELECT FROM mta_sts LIMIT %(most)s) a) < %(most)s
        AND (SELECT count(*) FROM (SELECT FROM mta_sts z WHERE z.zone = %(zone)s LIMIT %(most_of_zone)s) b) < %(most_of_zone)s))"""
# Policies that are longer than nearly all are few, or strangers would fill the disk with them: also in rows that are there.
_LARGE: Final[LiteralString] = """(octet_length(%(policy)s) <= 4096 OR (
        (SELECT count(*) FROM (SELECT FROM mta_sts l WHERE octet_length(l.policy) > 4096 AND l.domain <> %(domain)s LIMIT %(most_large)s) c) < %(most_large)s
        AND (SELECT count(*) FROM (SELECT FROM mta_sts l WHERE octet_length(l.policy) > 4096 AND l.domain <> %(domain)s AND l.zone = %(zone)s LIMIT %(most_large_of_zone)s) d)
            < %(most_large_of_zone)s))"""
# STS-25: a policy that was fetched later replaces another one, a weaker one too.
STORE: Final[
    LiteralString
] = f"""INSERT INTO mta_sts AS m (domain, zone, record_id, policy, fetched, ends, refresh, forget)
    SELECT %(domain)s, %(zone)s, %(id)s, %(policy)s, f.fetched, f.fetched + make_interval(secs => %(life)s),
        f.fetched + make_interval(secs => %(refresh)s::float8), f.fetched + make_interval(secs => %(life)s) + interval '1 day'
    FROM (SELECT least(to_timestamp(%(fetched)s), now()) AS fetched) AS f WHERE {_ROOM} AND {_LARGE}
    ON CONFLICT (domain) DO UPDATE SET record_id = excluded.record_id, policy = excluded.policy, fetched = excluded.fetched,
        ends = excluded.ends, refresh = excluded.refresh, forget = excluded.forget,
        failed = NULL, failed_id = '', trouble = '', failure = '', claimed = '-infinity'
    WHERE m.fetched IS NULL OR m.fetched <= excluded.fetched
    RETURNING m.domain"""
STORE_FAILURE: Final[
    LiteralString
] = f"""INSERT INTO mta_sts AS m (domain, zone, failed, failed_id, trouble, failure, forget)
    SELECT %(domain)s, %(zone)s, now(), %(id)s, %(trouble)s, %(failure)s, now() + interval '1 day' WHERE {_ROOM}
    ON CONFLICT (domain) DO UPDATE SET failed = excluded.failed, failed_id = excluded.failed_id, trouble = excluded.trouble,
        failure = excluded.failure, claimed = '-infinity', forget = greatest(m.forget, excluded.forget),
        refresh = CASE WHEN m.refresh IS NOT NULL THEN greatest(m.refresh, now() + make_interval(secs => %(again)s)) END
    RETURNING m.domain"""
# Whether there is room tells a claim of another process from no room: its row may be younger than what this statement sees.
CLAIM: Final[LiteralString] = f"""WITH room AS (SELECT {_ROOM} AS there_is), mine AS (
        INSERT INTO mta_sts AS m (domain, zone, claimed, forget)
        SELECT %(domain)s, %(zone)s, now() + make_interval(secs => %(seconds)s), now() + interval '1 day' FROM room WHERE there_is
        ON CONFLICT (domain) DO UPDATE SET claimed = excluded.claimed WHERE m.claimed <= now()
        RETURNING m.domain
    )
    SELECT EXISTS (SELECT FROM mine), there_is FROM room"""
RELEASE: Final[LiteralString] = "UPDATE mta_sts SET claimed = '-infinity' WHERE domain = %(domain)s"
# By mta_sts_refresh. What nobody mails any more leaves that index (STS-25), until mail goes there again; so does what has ended.
CLAIM_DUE: Final[LiteralString] = f"""WITH due AS (
        SELECT domain, mailed > now() - make_interval(secs => %(lately)s) AND ends > now() AS used FROM mta_sts
        WHERE refresh <= now() AND claimed <= now() ORDER BY refresh LIMIT %(count)s FOR UPDATE SKIP LOCKED
    )
    UPDATE mta_sts m SET claimed = CASE WHEN due.used THEN now() + make_interval(secs => %(seconds)s) ELSE m.claimed END,
        refresh = CASE WHEN due.used THEN m.refresh END
    FROM due WHERE m.domain = due.domain RETURNING due.used, m.domain, clock_timestamp(), {_COLUMNS}"""
MAILED: Final[LiteralString] = """UPDATE mta_sts m SET mailed = now(),
        refresh = CASE WHEN m.ends - m.fetched >= make_interval(secs => %(short)s) THEN coalesce(m.refresh, m.fetched) END
    FROM (SELECT o.domain FROM mta_sts o JOIN unnest(%(domain)s::text[]) AS d (domain) ON o.domain = d.domain
        WHERE o.mailed < now() - interval '12 hours' ORDER BY o.domain FOR UPDATE OF o) AS d
    WHERE m.domain = d.domain"""
# By mta_sts_forget.
FORGET: Final[LiteralString] = """DELETE FROM mta_sts WHERE domain = ANY (ARRAY(
        SELECT domain FROM mta_sts WHERE forget < now() AND claimed <= now() ORDER BY forget LIMIT %(count)s FOR UPDATE SKIP LOCKED
    )) RETURNING domain"""


@dataclass(frozen=True, slots=True)
class Room:
    """How many domains the cache takes."""

    most: int
    most_of_zone: int
    most_large: int = 2_000
    """Of them, those with a policy above 4 KiB: 16 times what the largest providers publish."""
    most_large_of_zone: int = 100


@dataclass(frozen=True, slots=True)
class StoredPolicy:
    """What the cache has of a domain."""

    domain: str
    cached: CachedPolicy | None
    """Expired or not."""
    failure: LastFailure | None


class Claim(Enum):
    """What came of a claim to fetch."""

    OURS = "ours"
    ANOTHERS = "another's"
    """Another process fetches."""
    NO_ROOM = "no room"
    """The cache takes no further domain, so nobody else knows who fetches."""


async def read(connection: Connection, domains: Sequence[str]) -> tuple[float, dict[str, StoredPolicy]]:
    """Postgres's time, and what the cache has of each domain: of one that it does not know nothing, which is an answer."""
    rows = await run(connection, READ, {"domain": list(domains)})
    return (rows[-1][1] if rows else 0.0), {row[0]: _stored(row[0], row[2:]) for row in rows}


async def store(connection: Connection, domain: str, cached: CachedPolicy, room: Room) -> bool:
    """Keep a policy that was fetched. False: there is no room, or a later one is there."""
    due = refresh_at(cached)
    parameters = {
        **_placed(domain, room),
        "id": cached.id,
        "policy": str(cached.policy),
        "fetched": cached.fetched,
        "most_large": room.most_large,
        "most_large_of_zone": room.most_large_of_zone,
        "life": float(cached.policy.max_age),
        "refresh": None if due is None else due - cached.fetched,
    }
    return bool(await run(connection, STORE, parameters))


async def store_failure(connection: Connection, domain: str, record_id: str, failed: FetchFailed, room: Room) -> bool:
    """Keep that a fetch has failed, for all processes (STS-18b). False: there is no room."""
    parameters = {
        **_placed(domain, room),
        "id": record_id,
        "trouble": failed.trouble.value,
        "failure": storable(failed.reason),
        "again": REFRESH_AGAIN,
    }
    return bool(await run(connection, STORE_FAILURE, parameters))


async def claim(connection: Connection, domain: str, seconds: float, room: Room) -> Claim:
    """Say that this process fetches the policy now; for so many seconds no other one does, unless it is done before."""
    ((ours, room_there_is),) = await run(connection, CLAIM, {**_placed(domain, room), "seconds": seconds})
    return Claim.OURS if ours else Claim.ANOTHERS if room_there_is else Claim.NO_ROOM


async def release(connection: Connection, domain: str) -> None:
    """Give a claim of ours back: nothing was fetched."""
    await run(connection, RELEASE, {"domain": domain})


async def claim_due(connection: Connection, count: int, seconds: float) -> list[StoredPolicy]:
    """Claim some of those that are to be fetched again without mail (STS-19b)."""
    rows = await run(connection, CLAIM_DUE, {"count": count, "seconds": seconds, "lately": LATELY})
    return [_stored(row[1], row[3:]) for row in rows if row[0]]


async def note_mailed(connection: Connection, domains: Sequence[str]) -> None:
    """Mail went to these domains."""
    await run(connection, MAILED, {"domain": list(domains), "short": float(SHORT_LIVED)})


async def forget(connection: Connection, count: int) -> int:
    """Delete some rows that are of no use any more; how many."""
    return len(await run(connection, FORGET, {"count": count}))


def _placed(domain: str, room: Room) -> dict[str, object]:
    return {"domain": domain, "zone": zone_of(domain), "most": room.most, "most_of_zone": room.most_of_zone}


def _stored(domain: str, columns: Row) -> StoredPolicy:
    record_id, policy, fetched, failed_id, failed, trouble, failure = columns
    cached = None
    if policy is not None:
        try:
            cached = CachedPolicy(record_id, parse_policy(policy.encode()), fetched)
        except PolicyError:  # of another release, or damaged: it is fetched again
            cached = None
    last = None
    if failed is not None:
        known = trouble if trouble in FetchTrouble._value2member_map_ else FetchTrouble.FETCH
        last = LastFailure(failed_id, failed, FetchFailed(FetchTrouble(known), failure))
    return StoredPolicy(domain, cached, last)
