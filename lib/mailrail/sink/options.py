"""What a sink offers."""

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Mechanism = Literal["PLAIN", "LOGIN"]
MECHANISMS: tuple[Mechanism, ...] = ("PLAIN", "LOGIN")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a sink offers in EHLO or LHLO, and what it demands."""

    hostname: str = "sink.test"
    lmtp: bool = False
    """Speak LMTP (RFC 2033) instead of SMTP."""
    pipelining: bool = True
    eight_bit: bool = True
    """Offer 8BITMIME. Without it BODY= is refused."""
    smtputf8: bool = True
    dsn: bool = True
    """Offer DSN. Without it RET, ENVID, NOTIFY and ORCPT are refused."""
    size_limit: int = 100_000_000
    """Octets of the largest message; 0: nothing is too large, and SIZE is not offered."""
    size: bool = True
    """Offer SIZE with the limit. Without it SIZE= is refused, and what is too large is refused after it has come."""
    line_limit: int = 4096
    """Octets of the longest line that is taken, with its end (RFC 5321 4.5.3.1.6 asks for 1000)."""
    recipient_limit: int = 0
    """Recipients of one message; further ones are answered 452 (RFC 5321 4.5.3.1.10). 0: any number."""
    connection_limit: int = 0
    """Connections at a time; further ones are answered 421. 0: any number."""
    tls: ssl.SSLContext | None = None
    """Offer STARTTLS, or speak TLS from the first octet with `implicit_tls`."""
    implicit_tls: bool = False
    accounts: Mapping[str, str] = field(default_factory=dict)
    """Passwords by user name. AUTH is offered if there is one; MAIL is then refused until the client has logged in."""
    mechanisms: tuple[Mechanism, ...] = MECHANISMS
    plaintext_auth: bool = False
    """Offer AUTH without TLS, too."""
