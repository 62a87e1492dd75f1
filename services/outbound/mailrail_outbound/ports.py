"""What the application gets from outside and hands back: deliveries, leases, content, reports."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from mailrail.core.delivery.outcome import Scope, Verdict
from mailrail.core.delivery.shares import SiteStanding
from mailrail.core.outbound.envelope import Envelope, EnvelopeRecipient
from mailrail.core.revision.revision import ObjectRef, TlsProof
from mailrail.core.route import LackingTransport
from mailrail.core.smtp.line_facts import UNKNOWN, LineFacts
from mailrail.core.smtp.reply import EnhancedCode, Reply
from mailrail.core.tlspolicy.decision import Cause
from mailrail.core.tlspolicy.demands import NOTHING, Demanded
from mailrail.core.tlspolicy.facts import Purpose, Requirement


class Result(StrEnum):
    """What became of a recipient in this attempt."""

    DELIVERED = "delivered"
    RELAYED = "relayed"
    DEFERRED = "deferred"
    FAILED = "failed"
    CAPTURED = "captured"
    NOT_ATTEMPTED = "not_attempted"
    CANCELLED = "cancelled"


class Lease:
    """How long we may go on, and whether we still should. `deadline` is by kit.clock."""

    __slots__ = ("cancelled", "deadline", "token")

    def __init__(self, token: int, deadline: float) -> None:
        self.token = token
        self.deadline = deadline
        self.cancelled = False


class ContentGone(Exception):
    """The content of a delivery cannot be read: its lease was lost, or the queue is out of reach."""


class OutOfReach(ContentGone):
    """No queue replica answers; the content itself may be well."""


class Body(Protocol):
    """The content of a message below our prefix."""

    @property
    def within_reach(self) -> bool:
        """Whether anybody could give it now."""

    def chunks(self) -> AsyncIterator[bytes]:
        """The body from its start, in pieces of 256 KiB at most. Raises ContentGone."""


@dataclass(slots=True)
class Delivery:
    """One piece of work: recipients of one message for one next hop."""

    lease: Lease
    message_id: bytes
    config_revision: int
    transport: ObjectRef | None
    transport_digest: str
    domain: str
    envelope: Envelope
    requirement: Requirement
    recipients: tuple[EnvelopeRecipient, ...]
    recipient_ids: tuple[int, ...]
    simulate: tuple[str, ...]
    prefix: bytes
    body: bytes | Body
    size: int
    eight_bit: bool
    attempt: int
    gateway: ObjectRef | None
    dialled: dict[str, tuple[str, ...]] = field(default_factory=dict)
    lines: LineFacts = UNKNOWN
    """Of the body alone."""
    redacted: bool = False
    """It is a notification of a message that required TLS, without what it returned of that (RTLS-21b)."""
    purpose: Purpose = Purpose.MAIL
    demanded: Demanded = NOTHING
    """What the configuration demands of the security of its way."""
    standing: SiteStanding | None = None
    """What it counts for in the credit that the queue has; None: the queue does not say."""

    @property
    def held(self) -> int:
        """Octets of content that came with it."""
        body = self.body
        return len(self.prefix) + (len(body) if isinstance(body, bytes) else 0)


@dataclass(frozen=True, slots=True)
class TlsReport:
    """TLS of the connection that gave the result."""

    version: str
    cipher: str
    proof: TlsProof | None
    """What proved the server; None: nothing."""
    verdict: str
    offered: bool
    resumed: bool = False
    """What is verified was verified when the session began, on an earlier connection."""
    requiretls: bool = False
    """REQUIRETLS was offered inside TLS."""
    mx_proven: bool = True
    """False: the proof is a certificate for a name that came of the DNS unproven."""

    @property
    def verified(self) -> bool:
        """The server was proven to be the destination's (DANE-22)."""
        return self.proof is not None and self.mx_proven


@dataclass(frozen=True, slots=True)
class ConnectionFacts:
    """What is known of the connection that gave a recipient its answer."""

    host: str
    ip: str
    local_ip: str
    tls: TlsReport | None


@dataclass(slots=True)
class RecipientReport:
    """The result for one recipient."""

    recipient_id: int
    result: Result
    verdict: Verdict
    seen: ConnectionFacts | None = None
    """None: nothing was dialled for it."""
    remote: bool = False
    """A remote server really said what the verdict quotes."""
    uncertain: bool = False
    lacking: LackingTransport | None = None
    """It failed because no host of the transport offers what the message needs: another route may do (SOUT-18c)."""
    tls_cause: Cause | None = None
    """Why TLS kept it from the host that decided; None: it did not."""

    @property
    def status(self) -> EnhancedCode:
        """The enhanced code of the verdict."""
        return self.verdict.status

    @property
    def text(self) -> str:
        """The verdict in words."""
        return self.verdict.text

    @property
    def reply(self) -> Reply | None:
        """The reply that decided, if one did."""
        return self.verdict.reply

    @property
    def dialled(self) -> bool:
        """Whether anything was."""
        return self.seen is not None

    @property
    def host(self) -> str:
        """The host that answered, or was dialled last."""
        return self.seen.host if self.seen is not None else ""

    @property
    def ip(self) -> str:
        """Its address."""
        return self.seen.ip if self.seen is not None else ""

    @property
    def local_ip(self) -> str:
        """Ours."""
        return self.seen.local_ip if self.seen is not None else ""

    @property
    def tls(self) -> TlsReport | None:
        """TLS of the connection."""
        return self.seen.tls if self.seen is not None else None

    @property
    def dsn_passed_on(self) -> bool:
        """The hop took over our DSN parameters."""
        return self.verdict.dsn_passed_on

    @property
    def site_failure(self) -> bool:
        """The trouble is the site's."""
        return self.verdict.scope is Scope.SITE

    @property
    def transport_failure(self) -> bool:
        """The trouble is our own transport's."""
        return self.verdict.scope is Scope.TRANSPORT


@dataclass(slots=True)
class DeliveryReport:
    """The results of one delivery, complete. Times in nanoseconds since 1970, UTC."""

    token: int
    message_id: bytes
    started: int
    ended: int
    recipients: list[RecipientReport]
    dialled: dict[str, list[str]]
    mx_hosts: tuple[str, ...]


class Worker(Protocol):
    """Carries out deliveries."""

    def take(self, delivery: Delivery) -> None:
        """Begin a delivery; its report comes later."""

    def renew(self, token: int, remaining: float) -> None:
        """Extend its lease to `remaining` seconds from now."""

    def cancel(self, token: int) -> None:
        """Break it off if the final dot is not sent (ADM-02)."""

    @property
    def under_way(self) -> int:
        """How many deliveries are in progress."""

    @property
    def running(self) -> dict[int, tuple[int, ...]]:
        """Token → recipient ids of everything in progress."""

    def mx_hosts(self, token: int) -> tuple[str, ...]:
        """The MX hosts of a delivery in progress, the best first; empty while they are not found, or not asked for."""
