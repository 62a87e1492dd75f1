"""How many connections the process may open, by how many files."""

from dataclasses import replace

from mailrail.kit import log
from mailrail.kit.open_files import OTHERS
from mailrail_outbound.settings import OutboundSettings


def fitting(settings: OutboundSettings, limit: int) -> OutboundSettings:
    """`settings` with as many connections as a limit of open files has room for."""
    room = max(limit - OTHERS, 1)
    if settings.connections <= room:
        return settings
    log.get_logger().warning(
        "the limit of open files is too low for the connections of this process; raise nofile, or lower "
        "MAILRAIL_OUTBOUND_CONNECTIONS",
        limit=limit,
        connections=room,
        wanted=settings.connections,
    )
    return replace(settings, connections=room)
