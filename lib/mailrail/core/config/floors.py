"""Floors that add up to what nothing can meet: said when the configuration is compiled, not when mail waits.

A floor of one object alone is judged by the rules of its kind. Here are those that only several objects make together:
the gateway, a domain of its senders, a rule, and the transport that the rule names.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from mailrail.core.resources.problems import Path, show_path
from mailrail.core.revision.revision import (
    NO_FLOOR,
    Domain,
    Gateway,
    ObjectRef,
    Revision,
    RouteLevel,
    Rule,
    TlsMinimum,
    TlsMode,
    TlsProof,
    Transport,
    TransportKind,
)
from mailrail.core.smtp.address import is_ip_address
from mailrail.core.tlspolicy.demands import (
    PROOF_NAMES,
    Demand,
    Demanded,
    add_up,
    of_domain,
    of_gateway,
    of_rule,
    of_transport,
)

_DIALLED_IN_CLEAR = frozenset({TransportKind.SMTP})
_NAMES_A_HOST = frozenset({TransportKind.SMTP, TransportKind.SUBMISSION, TransportKind.SUBMISSIONS})


@dataclass(frozen=True, slots=True)
class Impossible:
    """One place where floors can never be met."""

    ref: ObjectRef
    path: Path
    message: str


def has_floors(revision: Revision) -> bool:
    """Whether anybody demands anything."""
    levels = (revision.account_routes, revision.domain_routes, revision.global_routes)
    return any(
        floor != NO_FLOOR
        for floor in (
            *(gateway.security for gateway in revision.gateways),
            *(domain.security for domain in revision.domains),
            *(transport.security for transport in revision.transports),
            *(rule.require for found in levels for level in found for rule in level.rules),
        )
    )


def impossible_floors(revision: Revision) -> Iterator[Impossible]:
    """Every domain and every rule whose mail could never leave, each once."""
    gateways = {gateway.ref: gateway for gateway in revision.gateways}
    domains = {domain.ref: domain for domain in revision.domains}
    accounts = {account.ref: domains.get(account.domain) for account in revision.accounts}
    transports = {transport.ref: transport for transport in revision.transports}
    for domain in revision.domains:
        why = _why(add_up(_senders(domain, gateways)), None)
        if why:
            path: Path = ("spec", "security")
            yield Impossible(domain.ref, path, f"{show_path(path)}: {why}; no mail of its senders leaves")
    told: set[tuple[ObjectRef, int]] = set()
    placed: list[tuple[RouteLevel, list[Demand]]] = []
    for level in revision.global_routes:
        gateway = gateways.get(level.parent)
        placed.append((level, [of_gateway(gateway)] if gateway is not None else []))
    placed += [(level, _senders(domains.get(level.parent), gateways)) for level in revision.domain_routes]
    placed += [(level, _senders(accounts.get(level.parent), gateways)) for level in revision.account_routes]
    for level, demands in placed:
        if add_up(demands).impossible:
            continue  # said of the domain
        for rule in level.rules:
            found = _of_rule(rule, demands, transports)
            if found is not None and (rule.route, rule.index) not in told:
                told.add((rule.route, rule.index))
                yield found


def _senders(domain: Domain | None, gateways: dict[ObjectRef, Gateway]) -> list[Demand]:
    """What is demanded of mail that the senders of a domain submit, wherever it goes."""
    if domain is None:
        return []
    gateway = gateways.get(domain.gateway) if domain.gateway is not None else None
    found = [of_domain(domain)]
    return found if gateway is None else [of_gateway(gateway), *found]


def _of_rule(rule: Rule, demands: list[Demand], transports: dict[ObjectRef, Transport]) -> Impossible | None:
    transport = transports.get(rule.transport) if rule.transport is not None else None
    if transport is not None and transport.kind in (TransportKind.FAIL, TransportKind.LMTP):
        return None  # nothing leaves
    every = [*demands, of_rule(rule)]
    if transport is not None:
        every.append(of_transport(transport))
    why = _why(add_up(every), transport)
    path: Path = ("spec", "rules", rule.index)
    return Impossible(rule.route, path, f"{show_path(path)}: {why}; matching mail cannot leave") if why else None


def _why(demanded: Demanded, transport: Transport | None) -> str:
    if demanded.impossible:
        return f"{demanded.by} leave no proof that all of them allow"
    minimum = demanded.security.minimum
    in_clear = transport is not None and transport.kind in _DIALLED_IN_CLEAR and transport.tls is TlsMode.NONE
    if transport is not None and in_clear and minimum is not TlsMinimum.OPPORTUNISTIC:
        said = f"{demanded.by} demands security.minimum {minimum.capitalize()}"
        return f"{said}, and {transport.ref} says tls.mode Disabled"
    if transport is not None and minimum is TlsMinimum.AUTHENTICATED and transport.kind in _NAMES_A_HOST:
        host, allowed = transport.host or "", demanded.security.proofs
        # STS-09c, DANE-21: what can prove a host that a transport names.
        possible = {TlsProof.PKIX} if is_ip_address(host) else {TlsProof.PKIX, TlsProof.DANE}
        if possible.isdisjoint(allowed):
            names = " or ".join(PROOF_NAMES[proof] for proof in allowed)
            said = f"{demanded.by} demands a server authenticated by {names}"
            return f"{said}, which the host {host} of {transport.ref} can never be; allow PKIX as well"
    return ""
