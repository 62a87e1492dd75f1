"""How many files the process may have open: each connection is one, and a shell's usual limit is 1,024."""

import sys
from typing import Final

from mailrail.kit import log

OTHERS: Final = 100
"""Files besides connections: listening sockets, gRPC, the event loop, libraries."""
_SELECT: Final = 512
"""Sockets that select() of Python takes on Windows, where our event loop stands on it (kit/run.py). One more ends the
loop."""
WAY_OUT: Final = "lower" if sys.platform == "win32" else "raise nofile, or lower"
"""What to do about a limit that is too low for a setting, whose name follows."""


def raise_limit() -> int:
    """Raise the limit of open files as far as the system lets us; returns it."""
    if sys.platform == "win32":
        return _SELECT
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


def connections_in(limit: int) -> int:
    """How many of so many files may be connections."""
    return max(1, limit - OTHERS)
