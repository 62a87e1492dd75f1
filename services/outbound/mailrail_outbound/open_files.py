"""How many connections the process may open, by how many files."""

from dataclasses import replace

from mailrail.kit import log
from mailrail.kit.open_files import WAY_OUT, connections_in
from mailrail_outbound.settings import OutboundSettings

_OF_LOOKUP = 2
"""Sockets of one look-up at most: for A and for AAAA."""


def fitting(settings: OutboundSettings, limit: int) -> OutboundSettings:
    """`settings` with as many connections, and look-ups at a time, as a limit of open files has room for besides the
    fetches of policies."""
    wanted = settings.connections + _OF_LOOKUP * settings.lookups
    room = connections_in(limit) - settings.fetches
    if wanted <= room:
        return settings
    connections = max(1, settings.connections * room // wanted)
    lookups = max(1, settings.lookups * room // wanted)
    log.get_logger().warning(
        f"the limit of open files is too low for the connections of this process; {WAY_OUT} "
        "MAILRAIL_OUTBOUND_CONNECTIONS and MAILRAIL_OUTBOUND_LOOKUPS",
        limit=limit,
        connections=connections,
        lookups=lookups,
        wanted=wanted,
    )
    return replace(settings, connections=connections, lookups=lookups)
