"""How many files the process may have open: each connection is one, and a shell's usual limit is 1,024."""

import sys
from collections.abc import Iterable
from typing import Final

from mailrail.core.revision.revision import Gateway
from mailrail.kit import log

OTHERS: Final = 100
"""Files besides connections: listening sockets, gRPC, the event loop, libraries."""


def raise_limit() -> int:
    """Raise the limit of open files as far as the system lets us; returns it."""
    if sys.platform == "win32":  # which has no such limit
        return sys.maxsize
    import resource  # not for Windows

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (ValueError, OSError) as error:  # some systems have a lower bound of their own
            log.get_logger().warning("cannot raise the limit of open files", limit=soft, error=str(error))
        else:
            log.get_logger().info("raised the limit of open files", before=soft, limit=hard)
            soft = hard
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft


def check_limit(limit: int, gateways: Iterable[Gateway]) -> None:
    """Warn of a gateway that allows more connections than there can be: the system then closes them without a word."""
    for gateway in gateways:
        connections = gateway.limits.connections
        if connections + OTHERS > limit:
            log.get_logger().warning(
                "the limit of open files is too low for the gateway's connections; raise nofile, or lower "
                "limits.connections",
                gateway=f"{gateway.ref.namespace}/{gateway.ref.name}",
                connections=connections,
                limit=limit,
            )
