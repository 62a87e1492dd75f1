"""What a sink was told to answer."""

import threading
from typing import Literal

Step = Literal["GREETING", "EHLO", "STARTTLS", "AUTH", "MAIL", "RCPT", "DATA", "END"]
"""Where an answer can differ from the usual one. EHLO is LHLO, too; END is the reply to the final dot."""
CLOSE = "close"
"""In place of a reply: the connection ends without one."""


class Answers:
    """Replies that stand in for the usual ones, by step and address. May be changed from any thread at any time.

    MAIL looks for the sender's address, RCPT and END for the recipients'. Each looks for the address first, then for
    its domain ("@example.org"; "@" is that of the null sender), then for what was given without an address.
    """

    def __init__(self, *, counting: bool = True) -> None:
        """`counting`: remember who was asked for, for `asked`; it takes memory for each address."""
        self.delays: dict[Step, float] = {}
        """Seconds that each reply of a step comes late. END is late after the message was taken."""
        self._given: dict[tuple[Step, str], tuple[str, int | None]] = {}
        self._asked: dict[tuple[Step, str], int] = {}
        self._counting = counting
        self._guard = threading.Lock()

    def give(self, step: Step, reply: str, *, to: str = "", times: int | None = None) -> None:
        """Answer `step` with `reply` or `CLOSE`, the next `times` or from now on.

        `to` is one address, "@domain", or empty for all.
        """
        with self._guard:
            self._given[step, to.lower()] = (reply, times)

    def withdraw(self, step: Step, *, to: str = "") -> None:
        """Undo `give` with the same step and address."""
        with self._guard:
            self._given.pop((step, to.lower()), None)

    def asked(self, step: Step, address: str) -> int:
        """How often `step` came with this address, whatever was answered."""
        return self._asked.get((step, address.lower()), 0)

    def take(self, step: Step, address: str = "") -> str | None:
        """The reply (or `CLOSE`) that is to be given now instead of the usual one, if any; it counts as given."""
        address = address.lower()
        with self._guard:
            if self._counting:
                self._asked[step, address] = self._asked.get((step, address), 0) + 1
            for key in (address or "@", "@" + address.rpartition("@")[2], ""):
                found = self._given.get((step, key))
                if found is None:
                    continue
                reply, times = found
                if times is not None:
                    self._given[step, key] = (reply, times - 1)
                    if times <= 1:
                        del self._given[step, key]
                return reply
        return None
