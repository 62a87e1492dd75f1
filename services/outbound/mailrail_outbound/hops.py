"""Next hops: a configuration, arranged for looking up how each of its transports delivers."""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

from mailrail.core.dane.demand import DaneDemand
from mailrail.core.delivery.outcome import HopKind
from mailrail.core.revision.revision import (
    Gateway,
    ListenerProtocol,
    ObjectRef,
    Revision,
    SecretRef,
    Transport,
    TransportKind,
)
from mailrail.core.tlspolicy.decision import TlsDecision
from mailrail_outbound.smtp import Dial

_PORTS = {
    TransportKind.SMTP: 25,
    TransportKind.SUBMISSION: 587,
    TransportKind.SUBMISSIONS: 465,
    TransportKind.LMTP: 24,  # LMTP-04: never 25; the configuration demands one, this is what IANA gives it
}
DIRECT = Transport(ObjectRef("MailTransport", "", ""), TransportKind.DIRECT)
_OURS = frozenset({TransportKind.SMTP, TransportKind.SUBMISSION, TransportKind.SUBMISSIONS})


@dataclass(frozen=True, slots=True)
class NextHop:
    """A transport, or direct delivery, with what each delivery by it asks."""

    transport: Transport
    digest: str
    """Empty for direct delivery."""
    kind: HopKind
    by_mx: bool
    """The MX hosts of the destination are dialled, not a host of our own."""
    proxied: bool
    hosts: tuple[str, ...]
    port: int
    """Of `hosts`, both only where not `by_mx`."""
    name: str
    """`namespace/name`; empty for direct delivery."""
    dial_plans: "dict[tuple[object, ...], DialPlan]" = field(default_factory=dict, repr=False)
    """How hosts are dialled, made once each."""

    @classmethod
    def of(cls, transport: Transport) -> "NextHop":
        """Arrange a transport."""
        kind = transport.kind
        proxied = kind is TransportKind.SOCKS
        return cls(
            transport,
            transport.digest if transport is not DIRECT else "",
            _hop(transport),
            by_mx=proxied or kind is TransportKind.DIRECT,
            proxied=proxied,
            hosts=(transport.host or "",),
            port=transport.port or _PORTS.get(kind, 0),
            name=f"{transport.ref.namespace}/{transport.ref.name}" if transport is not DIRECT else "",
        )


@dataclass(frozen=True)
class Tables:
    """A configuration, arranged for lookups."""

    number: int
    hops: dict[ObjectRef | None, NextHop]
    """By transport; None = direct delivery."""
    gateways: dict[ObjectRef, Gateway]
    names: frozenset[str]
    mx_ports: frozenset[int]
    hello_name: str
    secret: Callable[[SecretRef], bytes] = field(repr=False)

    @classmethod
    def of(cls, number: int, revision: Revision, secret: Callable[[SecretRef], bytes]) -> "Tables":
        """Arrange a revision."""
        listeners = [listener for gateway in revision.gateways for listener in gateway.listeners]
        return cls(
            number=number,
            hops={None: NextHop.of(DIRECT)} | {each.ref: NextHop.of(each) for each in revision.transports},
            gateways={gateway.ref: gateway for gateway in revision.gateways},
            names=frozenset(gateway.hostname.lower() for gateway in revision.gateways),
            mx_ports=frozenset(listener.port for listener in listeners if listener.protocol is ListenerProtocol.MX),
            hello_name=revision.gateways[0].hostname if revision.gateways else "",
            secret=secret,
        )


class Way(StrEnum):
    """How far a dial keeps to what was decided about TLS."""

    DECIDED = "decided"
    UNCHECKED = "unchecked"
    """Without the PKIX verification that is tried for reports alone (`TlsDecision.check_name`)."""
    PLAIN = "plain"
    """Without TLS, after it failed (TLS-07)."""


@dataclass(slots=True)
class DialPlan:
    """The TLS decision for a host, and how to dial it accordingly."""

    decision: TlsDecision
    dane: DaneDemand | None = None
    """What the decision's `verify_matching` or `check_matching` stands for."""
    dials: dict[Way, Dial] = field(default_factory=dict)
    """Made once each."""


def _hop(transport: Transport) -> HopKind:
    if transport.kind is TransportKind.LMTP:
        return HopKind.FINAL
    return HopKind.OWN if transport.kind in _OURS else HopKind.FOREIGN
