"""What a sink remembers of a message."""

import email
import email.message
import email.policy
import re
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class SinkMessage:
    """One message that was answered 2yz, for at least one recipient where LMTP answers each."""

    sender: str
    """Without the angle brackets; empty for the null reverse path."""
    recipients: tuple[str, ...]
    content: bytes = field(repr=False)
    """The octets between DATA and the final dot, without the dots that RFC 5321 4.5.2 adds."""
    sender_parameters: tuple[str, ...] = ()
    """The words behind the path in MAIL, as they were sent."""
    recipient_parameters: tuple[tuple[str, ...], ...] = ()
    """The words behind the path in each RCPT, in the order of `recipients`."""
    hello: str = ""
    """The client's name in EHLO, HELO or LHLO."""
    client: str = ""
    """The client's IP address."""
    tls: str = ""
    """The version of TLS ("TLSv1.3"), or empty."""
    login: str = ""
    """The user that the client logged in as, or empty."""
    at: float = 0.0
    """time.monotonic() when the final dot was read."""

    @property
    def parsed(self) -> email.message.EmailMessage:
        """The content as a message of the standard library."""
        return email.message_from_bytes(self.content, policy=email.policy.default)

    def header(self, name: str) -> str | None:
        """The first header field of that name. Only this field is read, so that thousands of messages can be asked."""
        found = re.search(rb"^" + re.escape(name.encode()) + rb":[ \t]*(.*)$", self.content, re.MULTILINE | re.I)
        return found[1].decode("utf-8", "replace").strip() if found else None


class CannotKeep(Exception):
    """A message cannot be kept now."""

    def __init__(self, reply: str) -> None:
        """`reply` is what the client hears at the final dot."""
        super().__init__(reply)
        self.reply = reply


Receive = Callable[[SinkMessage], None]
"""What gets each message of a sink before it is answered. May raise CannotKeep."""
