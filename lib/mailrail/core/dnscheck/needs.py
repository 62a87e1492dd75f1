"""What a domain needs of the DNS, as the configuration has it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from mailrail.core.dkim.rotation import KeyStage
from mailrail.core.mtasts.own import own_policy
from mailrail.core.mtasts.policy import Policy
from mailrail.core.revision.revision import Domain, DomainDelivery, Match, ObjectRef, Revision, TransportKind

ADDRESSES_LIMIT: Final = 32
"""Egress addresses of one domain that are checked."""


@dataclass(frozen=True, slots=True)
class Egress:
    """An address that the domain's mail can leave from, and the name that goes with it."""

    address: str
    hostname: str


@dataclass(frozen=True, slots=True)
class Needs:
    """What there is to know about a domain besides DNS itself."""

    domain: str
    receives: bool
    hostname: str
    """Of the gateway: target of MX, name in EHLO. Empty: the domain is not ours, and goes by names of its own."""
    egress: tuple[Egress, ...] = ()
    dkim: tuple[tuple[str, str], ...] = ()
    """(selector, text of the record)."""
    selectors: tuple[str, ...] = ()
    """Of keys whose records are not known here: each must be there, with a key."""
    notes: tuple[str, ...] = field(default=())
    """What cannot be checked, for people."""
    dmarc_reports: str = ""
    """The address for DMARC reports; empty: the domain has none, and the postmaster gets them. The same of the next."""
    tls_reports: str = ""
    policy: Policy | None = None
    """The MTA-STS policy that we serve for it; None: none of ours."""
    policy_served: bool = True
    """Every live policy process serves this policy, and there is one."""


def needs_of(domain: Domain, revision: Revision, addresses: Sequence[str]) -> Needs | None:
    """What a domain needs, from the revision. `addresses`: where direct mail of the cluster comes from, if known.

    None when the domain's gateway is not there.
    """
    gateway = next((g for g in revision.gateways if g.ref == domain.gateway), None)
    if gateway is None:
        return None
    transports = {t.ref: t for t in revision.transports}
    egress: dict[str, Egress] = {}
    direct = False
    for ref in _transports_of(domain, revision):
        transport = transports.get(ref) if ref is not None else None
        if ref is None or (transport is not None and transport.kind is TransportKind.DIRECT):
            own = transport.source_addresses if transport is not None else ()
            direct = direct or not own
            for address in own:
                egress[address] = Egress(address, gateway.hostname)
        elif transport is not None and transport.kind is TransportKind.SOCKS:
            for address in transport.remote_ips:
                egress[address] = Egress(address, transport.remote_hostname or gateway.hostname)
    if direct:
        for address in addresses:
            egress.setdefault(address, Egress(address, gateway.hostname))
    notes: list[str] = []
    if direct and not addresses:
        notes.append("not checked: the egress addresses of direct delivery are not known")
    if len(egress) > ADDRESSES_LIMIT:
        notes.append(f"only the first {ADDRESSES_LIMIT} of {len(egress)} egress addresses are checked")
    return Needs(
        domain.name,
        domain.delivery is not DomainDelivery.NONE,
        gateway.hostname,
        tuple(egress[a] for a in sorted(egress))[:ADDRESSES_LIMIT],
        # What is removable may be gone already.
        tuple((key.selector, key.record) for key in domain.dkim if key.stage is not KeyStage.REMOVABLE),
        notes=tuple(notes),
        dmarc_reports=f"{domain.reports.dmarc}@{domain.name}" if domain.reports is not None else "",
        tls_reports=f"{domain.reports.tls}@{domain.name}" if domain.reports is not None else "",
        policy=own_policy(domain, gateway.hostname),
    )


def _transports_of(domain: Domain, revision: Revision) -> Iterator[ObjectRef | None]:
    """Every transport that some rule may choose for mail from the domain; None is direct delivery.

    Account routes come first, then the domain's, then global ones; a rule that takes everything ends it, and what no
    rule takes is delivered directly (design 4).
    """
    accounts = {a.ref for a in revision.accounts if a.domain == domain.ref}
    for level in revision.account_routes:
        if level.parent in accounts:
            yield from (rule.transport for rule in level.rules)
    for levels, parent in ((revision.domain_routes, domain.ref), (revision.global_routes, domain.gateway)):
        for rule in (rule for level in levels if level.parent == parent for rule in level.rules):
            yield rule.transport
            if not rule.matches or any(m == Match() for m in rule.matches):
                return
    yield None
