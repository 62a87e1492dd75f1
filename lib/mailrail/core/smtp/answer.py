"""What decided about a recipient, or about a session: how far it had come, what the server said, or what went wrong."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from mailrail.core.smtp.reply import Reply
from mailrail.core.tlsrpt.result_type import TlsFault


class Stage(StrEnum):
    """What a session was doing when something happened: the command whose reply was awaited."""

    DNS = "dns"
    CONNECT = "connect"
    PROXY = "proxy"
    GREETING = "greeting"
    HELLO = "hello"
    STARTTLS = "starttls"
    HANDSHAKE = "handshake"
    AUTH = "auth"
    PLAN = "plan"  # no command: we saw ourselves that the message does not fit this server
    MAIL = "mail"
    RCPT = "rcpt"
    DATA = "data"
    CONTENT = "content"
    END = "end"  # the final dot, or BDAT LAST
    RSET = "rset"
    QUIT = "quit"


SET_UP = frozenset(
    {Stage.DNS, Stage.CONNECT, Stage.PROXY, Stage.GREETING, Stage.HELLO, Stage.STARTTLS, Stage.HANDSHAKE, Stage.AUTH}
)
"""Before a session stands: what fails here says nothing about a message."""
AFTER_MAIL = frozenset({Stage.RCPT, Stage.DATA, Stage.CONTENT, Stage.END})
"""While a message is under way."""


class Trouble(StrEnum):
    """Why there is no reply that decides."""

    DNS = "dns"
    NO_SUCH_DOMAIN = "no-such-domain"
    NULL_MX = "null-mx"
    NO_ADDRESS = "no-address"  # no MX record names a host, or the DNS has no address for it
    NO_FAMILY = "no-family"  # it has some, of families that our transport may not use
    PRIVATE_ADDRESS = "private-address"  # it has some, inside our own networks
    LOOP = "loop"  # the destination's MX is this system
    UNREACHABLE = "unreachable"  # refused, reset, no route, timed out before the greeting
    PROXY = "proxy"
    CLOSED = "closed"
    TIMEOUT = "timeout"
    PROTOCOL = "protocol"  # what came is not SMTP
    TLS = "tls"
    AUTH = "auth"
    TOO_LARGE = "too-large"  # the server's SIZE says that it cannot take this message
    NEEDS_SMTPUTF8 = "needs-smtputf8"  # it does not offer what an address needs
    UTF8_HEADER = "utf8-header"  # it does not offer SMTPUTF8, which the header needs
    REQUIRETLS = "requiretls"  # the message demands it and the server does not offer it
    TLS_DEMAND = "tls-demand"  # the message demands more of TLS than this way of delivery can prove
    TLS_FLOOR = "tls-floor"  # our configuration demands more, and says to fail
    TLS_POLICY = "tls-policy"  # the destination's policy, or our configuration, demands more than there is now
    NEEDS_8BITMIME = "needs-8bitmime"  # it does not offer what the content needs, which cannot be re-encoded
    NEEDS_BINARYMIME = "needs-binarymime"  # likewise
    UNCONVERTIBLE = "unconvertible"  # an address has control characters: no server can be told it
    MISSING = "missing"  # the transport is not there, or cannot be used
    LEASE = "lease"  # our lease ran low before the final dot (LSE-02)
    CANCELLED = "cancelled"  # by an administrator, before the final dot (ADM-02)
    FAULT = "fault"  # a mistake of our own program; its log has it


LACKING: Final = {
    Trouble.NEEDS_SMTPUTF8: "SMTPUTF8",
    Trouble.UTF8_HEADER: "SMTPUTF8",
    Trouble.NEEDS_8BITMIME: "8BITMIME",
    Trouble.NEEDS_BINARYMIME: "BINARYMIME",
}
"""What only says that this server cannot take the message, with the extension that it lacks: another route may do."""
OUR_OWN = frozenset({Trouble.LEASE, Trouble.CANCELLED, Trouble.FAULT})
"""What ends an attempt for reasons of this process: no host has anything to do with it."""

_END = Stage.END  # reading a member off its enum costs four times as much (CPython 3.11)


@dataclass(slots=True)
class Answer:
    """What decided about a recipient on one connection, or about a session. It is never changed, yet not frozen: it is
    made for each message, and freezing would cost five times as much."""

    stage: Stage
    reply: Reply | None = None
    """What the server said; with `trouble` set, our own words in its form, or None."""
    trouble: Trouble | None = None
    detail: str = ""
    """In words, for logs and people. Never holds credentials."""
    uncertain: bool = False
    """The final dot was sent whole and nothing came back: the server may have the message (LSE-08 a)."""
    fault: TlsFault | None = None
    """Of `Trouble.TLS`: what a report on TLS says of it (RFC 8460); None: nothing."""
    cause: str = ""
    """Of a host that was refused by a decision on TLS: a `Cause` of core/tlspolicy."""

    @property
    def accepted(self) -> bool:
        """The server took responsibility for the message for this recipient."""
        return self.stage is _END and self.reply is not None and self.reply.completed and self.trouble is None

    @property
    def remote(self) -> bool:
        """A remote server really said it."""
        return self.reply is not None and self.trouble is None
