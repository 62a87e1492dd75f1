"""A queue that is full, made by SQL in seconds: for what must cost the same however much waits.

`seed` fills the tables as a queue would have left them: recipients that wait, due or not, at many sites; some on hold,
bound to a transport, or leased; a thousand of them share a message. On the command line, for a database that has the
schema `queue`, from the folder `tests`:

    ../.venv/bin/python -m testkit.backlog postgresql://... 5000000
"""

# ruff: noqa: E501 -- statements keep their own lines

import argparse
import os
import time
from dataclasses import dataclass, replace
from typing import Any, Final

import psycopg

from mailrail.core import ids
from mailrail.core.route.site import shard
from mailrail_queue.store import columns as c

DEAD: Final = "dead.example"
"""The domain whose site holds `Backlog.at_one_site` recipients."""
BOUND: Final = "default/relay"
"""The transport that some recipients are bound to."""


@dataclass(frozen=True, slots=True)
class Backlog:
    """What a queue is filled with. A share is of all recipients, from 0 to 1."""

    recipients: int
    sites: int = 50_000
    at_one_site: float = 0.5
    """Share that waits at the site of DEAD; the others are spread evenly over `sites`."""
    due: float = 0.5
    """Share whose next attempt is due; the others are due within a day."""
    held: int = 200
    """So many are on hold, ..."""
    bound: int = 200
    """... and so many others bound to the transport BOUND."""
    leased: int = 0
    """So many have an attempt under way."""
    per_message: int = 1_000
    """Recipients that share a message."""
    octets: int = 2_000
    """Of each message's body."""


@dataclass(frozen=True, slots=True)
class Seeded:
    """What `seed` made."""

    first: int
    """Id of the first recipient; the others follow one by one."""
    count: int
    """Recipients."""
    seconds: float
    """That it took."""


# Ids go on beyond those that are seeded, as after a raise_ids.
_IDS = """SELECT setval('recipient_block', ((last_value + %(count)s) / 1000 + 2) * 1000), (last_value / 1000 + 1) * 1000
    FROM recipient_block"""
_MESSAGES = """INSERT INTO message (id, mail_from, size, envelope, prefix, body, accepted)
    SELECT id, 'sender@from' || number %% 100 || '.example', %(octets)s, '', '', convert_to(repeat('x', %(octets)s), 'UTF8'), now() - interval '1 hour'
    FROM seeded_message"""
# The number of a recipient decides all about it. Those at one site come first, and each 2nd, 3rd ... is due.
_RECIPIENTS = """INSERT INTO recipient (id, message_id, shard, site, due, token, lease_until, held_since, hold_reason, attempts, queued, address,
                       account, from_domain, override_transport, envelope_recipient)
    SELECT %(first)s + n, m.id, s.shard, 'domain:' || s.domain,
           now() + CASE WHEN (n * 7919) %% 1000 < %(due)s * 1000 THEN -1 ELSE 1 END * (1 + (n * 104729) %% 86400) * interval '1 second',
           CASE WHEN l.leased THEN %(first)s + n END, CASE WHEN l.leased THEN now() + (n %% 3 - 1) * interval '90 seconds' END,
           CASE WHEN k >= %(leased)s AND k < %(leased)s + %(held)s THEN now() END,
           CASE WHEN k >= %(leased)s AND k < %(leased)s + %(held)s THEN 'seeded' END,
           1, now() - interval '1 hour', 'user' || n || '@' || s.domain,
           'default/account' || n %% 1000, 'from' || n / %(per_message)s %% 100 || '.example',
           CASE WHEN k >= %(leased)s + %(held)s AND k < %(leased)s + %(held)s + %(bound)s THEN %(bound_to)s END, ''
    FROM generate_series(%(low)s::bigint, %(high)s::bigint - 1) n
    CROSS JOIN LATERAL (SELECT %(count)s - 1 - n AS k) last
    CROSS JOIN LATERAL (SELECT k < %(leased)s AS leased) l
    JOIN seeded_site s ON s.number = CASE WHEN n < %(at_one)s THEN 0 ELSE 1 + n %% %(sites)s END
    JOIN seeded_message m ON m.number = n / %(per_message)s"""
_SITE_DUE = """INSERT INTO site_due (shard, site, next_due)
    SELECT shard, site, min(due) FROM recipient WHERE token IS NULL AND held_since IS NULL GROUP BY shard, site
    ON CONFLICT (shard, site) DO UPDATE SET next_due = LEAST(site_due.next_due, excluded.next_due)"""


def seed(connection: psycopg.Connection[Any], wanted: Backlog, *, step: int = 500_000) -> Seeded:
    """Fill the tables of schema `queue`, `step` recipients a transaction, and ANALYZE them.

    The last ones by id are leased, then come those on hold, then those that are bound. Raises psycopg.Error.
    """
    began = time.monotonic()
    if not connection.autocommit:
        raise ValueError("seed commits by itself: open the connection with autocommit=True")
    c.register(connection.adapters)
    connection.execute("SELECT set_config('search_path', 'queue', false)")
    row = connection.execute(_IDS, {"count": wanted.recipients}).fetchone()
    assert row is not None
    first = int(row[1])
    domains = [DEAD, *(f"d{n}.example" for n in range(wanted.sites))]
    messages = -(-wanted.recipients // wanted.per_message)
    accepted = time.time() - 3600
    connection.execute('CREATE TEMP TABLE seeded_site (number bigint, domain text COLLATE "C", shard smallint)')
    connection.execute(
        "INSERT INTO seeded_site SELECT * FROM unnest(%s::bigint[], %s::text[], %s::smallint[])",
        (c.bigints(range(len(domains))), c.names(domains), c.smallints([shard(domain) for domain in domains])),
    )
    connection.execute("CREATE TEMP TABLE seeded_message (number bigint, id uuid)")
    connection.execute(
        "INSERT INTO seeded_message SELECT * FROM unnest(%s::bigint[], %s::uuid[])",
        (
            c.bigints(range(messages)),
            c.uuids([ids.message_id(accepted + n / messages, os.urandom(10)) for n in range(messages)]),
        ),
    )
    connection.execute("ANALYZE seeded_site, seeded_message")
    connection.execute(_MESSAGES, {"octets": wanted.octets})
    for low in range(0, wanted.recipients, step):
        connection.execute(
            _RECIPIENTS,
            {
                "first": first,
                "low": low,
                "high": min(low + step, wanted.recipients),
                "count": wanted.recipients,
                "at_one": int(wanted.recipients * wanted.at_one_site),
                "sites": wanted.sites,
                "due": wanted.due,
                "held": wanted.held,
                "bound": wanted.bound,
                "bound_to": BOUND,
                "leased": wanted.leased,
                "per_message": wanted.per_message,
            },
        )
    connection.execute(_SITE_DUE)
    connection.execute("DROP TABLE seeded_site, seeded_message")
    connection.execute("ANALYZE message, recipient, site_due, site, attempt, history, shard")
    return Seeded(first, wanted.recipients, time.monotonic() - began)


def main() -> None:
    """Fill the database that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="of a database with the schema `queue`; the role must own its tables")
    parser.add_argument("recipients", type=int)
    parser.add_argument("--sites", type=int, default=Backlog.__dataclass_fields__["sites"].default)
    parser.add_argument(
        "--due", type=float, default=Backlog.__dataclass_fields__["due"].default, help="share that is due"
    )
    given = parser.parse_args()
    wanted = replace(Backlog(given.recipients), sites=given.sites, due=given.due)
    with psycopg.connect(given.url, autocommit=True) as connection:
        made = seed(connection, wanted)
        connection.execute("VACUUM ANALYZE queue.recipient")
    print(f"{made.count} recipients from {made.first} on in {made.seconds:.1f} s")


if __name__ == "__main__":
    main()
