"""Throttles: failed logins, by address and by login (AUTH-05c), and new connections by address.

Counted per process: an attacker who spreads over replicas gains a factor, not freedom. Memory is bounded; when a table
is full, what was longest untouched is forgotten first.

A login that many addresses guess at is closed to unknown addresses alone. An address that logged in with it lately is
let in as before, and its failures count against the address only, so that an attacker cannot lock users out of their
usual places. From a new address a user has to wait, at most WINDOW after the guessing ends.
"""

from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_network
from typing import Final

from mailrail.core.smtp.address import plain_ip

FAILURES: Final = 30
"""Failed logins of one address within WINDOW until it has to wait."""
LOGIN_FAILURES: Final = 100
"""Failed logins with one login within WINDOW until strangers have to wait: more than a user's own devices get wrong,
since each address is stopped before."""
WINDOW: Final = 900.0
"""Seconds."""
ACQUAINTANCE: Final = 30 * 86_400.0
"""Seconds since a good login for which an address is no stranger to it."""
KEYS: Final = 10_000
"""Addresses, or logins, that are remembered."""
LOGIN_LENGTH: Final = 256
"""Characters of a login that are remembered: no account has a longer one, and guesses may be of any length."""
ACQUAINTANCES: Final = 50_000
"""Pairs of login and address that are remembered."""


@lru_cache(maxsize=4096)
def neighbourhood(address: IPv4Address | IPv6Address) -> str:
    """What is counted as one client: an IPv4 address, or the /64 that one IPv6 customer has."""
    address = plain_ip(address)
    if isinstance(address, IPv6Address):
        return str(ip_network((address, 64), strict=False))
    return str(address)


class Rate:
    """How often something happened by key, in fixed windows that begin with the first time."""

    def __init__(self, limit: int, window: float) -> None:
        """`limit`: times within `window` seconds."""
        self._limit = limit
        self._window = window
        self._counts: dict[str, tuple[float, int]] = {}

    def __len__(self) -> int:
        return len(self._counts)

    def reached(self, key: str, now: float) -> bool:
        """Whether it happened as often as it may. `now` is monotonic seconds."""
        since, count = self._counts.get(key, (0.0, 0))
        return count >= self._limit and now - since < self._window

    def add(self, key: str, now: float) -> None:
        """It happened."""
        since, count = self._counts.pop(key, (now, 0))
        if now - since >= self._window:
            since, count = now, 0
        while len(self._counts) >= KEYS:
            del self._counts[next(iter(self._counts))]
        self._counts[key] = (since, count + 1)


class Throttle:
    """Failed logins. Logins are given as they are compared (`core.sasl.server.prepared`); times are monotonic."""

    def __init__(self) -> None:
        self._by_client = Rate(FAILURES, WINDOW)
        self._by_login = Rate(LOGIN_FAILURES, WINDOW)
        self._acquainted: dict[tuple[str, str], float] = {}

    def blocks(self, client: str, now: float) -> bool:
        """Whether the client has to wait, whatever its login."""
        return self._by_client.reached(client, now)

    def blocks_login(self, login: str, client: str, now: float) -> bool:
        """Whether the client has to wait before it tries this login, which may exist or not."""
        return self._by_login.reached(login[:LOGIN_LENGTH], now) and not self._knows(login, client, now)

    def record_failure(self, login: str, client: str, now: float) -> None:
        """Another wrong guess."""
        self._by_client.add(client, now)
        if login and not self._knows(login, client, now):
            self._by_login.add(login[:LOGIN_LENGTH], now)

    def record_success(self, login: str, client: str, now: float) -> None:
        """The client proved to be this login."""
        self._acquainted.pop((login, client), None)
        while len(self._acquainted) >= ACQUAINTANCES:
            del self._acquainted[next(iter(self._acquainted))]
        self._acquainted[login, client] = now

    def _knows(self, login: str, client: str, now: float) -> bool:
        since = self._acquainted.get((login, client))
        return since is not None and now - since < ACQUAINTANCE
