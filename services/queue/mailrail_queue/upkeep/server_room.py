"""How full the Postgres server is: its connections against what it allows, and the size of our database.

Any role may ask for both. How much room is left on its volume no role may ask, without rights on the server's files.
"""

from dataclasses import dataclass
from typing import Final, LiteralString

from mailrail_queue import metrics
from mailrail_queue.store.connection import Lane

# Sessions of clients have a user and a database; nothing else of those of others is shown to an ordinary role. Parallel
# workers look the same for as long as they run, though they count against no limit.
_ROOM: Final[LiteralString] = """WITH used AS (
    SELECT count(*) AS server, count(*) FILTER (WHERE datname = current_database()) AS database,
        count(*) FILTER (WHERE usename = session_user) AS role
    FROM pg_stat_activity WHERE usesysid IS NOT NULL AND datid IS NOT NULL
)
SELECT used.server, used.database, used.role,
    current_setting('max_connections')::integer - current_setting('superuser_reserved_connections')::integer
        - coalesce(current_setting('reserved_connections', true), '0')::integer,
    d.datconnlimit, r.rolconnlimit, pg_database_size(d.oid)
FROM used, pg_database d, pg_roles r WHERE d.datname = current_database() AND r.rolname = session_user"""


@dataclass(frozen=True, slots=True)
class ServerRoom:
    """What the server has in use, and what it allows."""

    connections: dict[str, int]
    """Sessions of clients that count against each limit: server, database, role."""
    limits: dict[str, int]
    """The limits that there are: of the server what it keeps for no administrator, and CONNECTION LIMIT of our database
    and our role."""
    octets: int
    """Our database on its volume, with its indexes and without WAL."""


async def measure(lane: Lane) -> ServerRoom:
    """Ask the server and set the gauges. Raises psycopg.Error, NotDurable."""
    ((server, database, role, allowed, of_database, of_role, octets),) = await lane.run(_ROOM)
    limits = {"server": int(allowed), "database": int(of_database), "role": int(of_role)}
    room = ServerRoom(
        {"server": int(server), "database": int(database), "role": int(role)},
        {what: limit for what, limit in limits.items() if limit >= 0},  # -1: there is none
        int(octets),
    )
    metrics.POSTGRES_CONNECTIONS.set({(what,): count for what, count in room.connections.items()})
    metrics.POSTGRES_CONNECTIONS_ALLOWED.set({(what,): limit for what, limit in room.limits.items()})
    metrics.POSTGRES_DATABASE_BYTES.set(room.octets)
    return room
