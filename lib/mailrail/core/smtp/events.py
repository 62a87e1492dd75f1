"""What passes between a server session and who drives it: what a listener offers, and the events of a session.

The session is `server.ServerSession`; an event that asks for something is answered by `accept`, `refuse` or their like.
"""

from dataclasses import dataclass
from typing import Final

from mailrail.core.smtp.address import Address
from mailrail.core.smtp.line_facts import UNKNOWN, LineFacts
from mailrail.core.smtp.parameters import Extension, MailParameters, RcptParameters


@dataclass(frozen=True, slots=True)
class ListenerOptions:
    """What one listener offers. A new configuration is put in place by assigning `session.options`."""

    hostname: str
    submission: bool = False
    size_limit: int = 100 * 1024 * 1024  # octets
    recipient_limit: int = 1000
    starttls: bool = False  # a certificate is configured
    starttls_ready: bool = True  # and could be loaded; else 454 (TLS-01)
    require_tls: bool = False  # TLS-03
    mechanisms: tuple[str, ...] = ()  # in the order that EHLO lists them; empty: no AUTH
    longest_hold: int = 5_184_000  # seconds, FUTURERELEASE
    error_limit: int = 20
    repair_chunks: bool = False  # BDAT text with bare line ends: repair rather than refuse (SIN-03)
    offer_requiretls: bool = True  # RFC 8689, inside TLS alone (RTLS-01)

    @property
    def extensions(self) -> frozenset[Extension]:
        """The extensions whose parameters MAIL and RCPT take after EHLO."""
        extensions = _SUBMISSION_EXTENSIONS if self.submission else _MX_EXTENSIONS
        return extensions if self.offer_requiretls else extensions - {Extension.REQUIRETLS}


_MX_EXTENSIONS: Final = frozenset(Extension) - {Extension.AUTH, Extension.FUTURE_RELEASE}
_SUBMISSION_EXTENSIONS: Final = frozenset(Extension)


# --- events -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SenderGiven:
    """MAIL was said well. Answer with `accept` or `refuse`. The sender is None for the null path."""

    sender: Address | None
    parameters: MailParameters


@dataclass(frozen=True, slots=True)
class RecipientGiven:
    """RCPT was said well. Answer with `accept` or `refuse`."""

    recipient: Address
    parameters: RcptParameters


@dataclass(frozen=True, slots=True)
class ContentStarted:
    """DATA or the first BDAT. Answer with `accept` or `refuse`."""


@dataclass(slots=True)  # not frozen: it is made for each message, and freezing triples what that costs
class Content:
    """The next octets of the message, dots unstuffed."""

    data: bytes


@dataclass(frozen=True, slots=True)
class ContentEnded:
    """The message is whole. Answer with `finish`, after the commit (SIN-01)."""

    lines: LineFacts = UNKNOWN
    """What was seen of its lines; NUL was not looked for."""


@dataclass(frozen=True, slots=True)
class Abandoned:
    """The transaction is over without a message: RSET, EHLO, QUIT, a refusal. Nothing to answer."""

    reason: str


@dataclass(frozen=True, slots=True)
class AuthRequested:
    """AUTH with an offered mechanism; None = no initial response. Answer: `challenge`, `authenticated` or `refuse`."""

    mechanism: str
    initial: bytes | None


@dataclass(frozen=True, slots=True)
class AuthResponse:
    """The client's answer to a challenge. Answer as for AuthRequested."""

    data: bytes


@dataclass(frozen=True, slots=True)
class AuthCancelled:
    """The exchange that was going on is over; its state can be dropped."""


@dataclass(frozen=True, slots=True)
class TlsRequested:
    """Send what is to be sent, then do the handshake, then `complete_tls`. Octets that came before it are dropped."""


@dataclass(frozen=True, slots=True)
class Closing:
    """Send what is to be sent and close. With `linger` the client may still be sending: read and drop for a while."""

    reason: str
    linger: bool = False


MailEvent = (
    SenderGiven
    | RecipientGiven
    | ContentStarted
    | Content
    | ContentEnded
    | Abandoned
    | AuthRequested
    | AuthResponse
    | AuthCancelled
)
"""What is decided about mail and logins."""

Event = MailEvent | TlsRequested | Closing
"""The last two are for the shell that has the socket."""
