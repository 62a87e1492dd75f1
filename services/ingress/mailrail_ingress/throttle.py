"""Guessing passwords is slowed down by address: so many failures in a while, then 454 for the rest of it (AUTH-05).

Counted per process: an attacker who spreads over replicas gains a factor, not freedom. Memory is bounded; when the
table is full the oldest addresses are forgotten first.
"""

from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_network

FAILURES = 30
"""Failed logins of one address within WINDOW until it has to wait."""
WINDOW = 900.0
"""Seconds."""
ADDRESSES = 10_000


@lru_cache(maxsize=4096)
def neighbourhood(address: IPv4Address | IPv6Address) -> str:
    """What is counted as one client: an IPv4 address, or the /64 that one IPv6 customer has."""
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ip_network((address, 64), strict=False))
    return str(address)


class Throttle:
    """Failures by neighbourhood, in fixed windows that begin with the first failure."""

    def __init__(self) -> None:
        self._failures: dict[str, tuple[float, int]] = {}

    def blocks(self, client: str, now: float) -> bool:
        """Whether the client has to wait. `now` is monotonic seconds."""
        since, count = self._failures.get(client, (0.0, 0))
        return count >= FAILURES and now - since < WINDOW

    def failed(self, client: str, now: float) -> None:
        """Another wrong guess."""
        since, count = self._failures.pop(client, (now, 0))
        if now - since >= WINDOW:
            since, count = now, 0
        while len(self._failures) >= ADDRESSES:
            del self._failures[next(iter(self._failures))]
        self._failures[client] = (since, count + 1)
