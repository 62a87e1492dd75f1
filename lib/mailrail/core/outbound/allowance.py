"""How long one transaction may take in all (RFC 5321 4.5.3.2, SOUT-06).

The RFC gives each command its minutes and says nothing of their sum: a server that takes nearly five minutes for each
of a hundred RCPTs would hold a connection, a lease and a slot of the process for eight hours.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Allowance:
    """What a server may take for all of MAIL, RCPT, DATA and the content. The reply to the final dot has its own time
    beside it: cut short, it would make duplicates (RFC 5321 4.5.3.2.6)."""

    base: float = 1320.0
    """Seconds that each transaction has. What 4.5.3.2 gives one each of MAIL (5 min), RCPT (5), DATA (2) and the final
    dot (10)."""
    recipient: float = 30.0
    """Seconds more for each recipient: servers that slow strangers down do so by seconds."""
    rate: float = 16384.0
    """Octets a second that content may be slow at: 56 MiB in an hour."""

    def seconds(self, recipients: int, octets: int) -> float:
        """The limit for a transaction with this number of RCPTs and octets of content."""
        return self.base + self.recipient * recipients + octets / self.rate
