"""How our own demands add up: those of gateway, domain, transport and route (decision 18).

The strictest minimum counts, of the proofs those that all of them allow, and the strictest word on what happens
otherwise. DANE and MTA-STS are two proofs, not two rungs of a ladder.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from mailrail.core.revision.revision import (
    NO_FLOOR,
    Domain,
    Gateway,
    Otherwise,
    Rule,
    Security,
    TlsMinimum,
    TlsProof,
    Transport,
    Unanswered,
)

_MINIMA = tuple(TlsMinimum)


@dataclass(frozen=True, slots=True)
class Demand:
    """A floor, and who set it."""

    owner: str
    """In words: an object, or a rule of a route."""
    security: Security


@dataclass(frozen=True, slots=True)
class Demanded:
    """All demands together."""

    security: Security = NO_FLOOR
    owners: tuple[str, ...] = ()
    """Those whose minimum is the strictest; none where nothing is demanded."""

    @property
    def impossible(self) -> bool:
        """No server can ever be good enough: it must be authenticated, and no proof is left that all allow."""
        return self.security.minimum is TlsMinimum.AUTHENTICATED and not self.security.proofs

    def __str__(self) -> str:
        """What is demanded, in a sentence; empty where nothing is."""
        floor = self.security
        said, verb = [], "demand" if len(self.owners) > 1 else "demands"
        if floor.minimum is TlsMinimum.ENCRYPTED:
            said.append(f"{self.by} {verb} TLS")
        elif floor.minimum is TlsMinimum.AUTHENTICATED:
            proofs = " or ".join(PROOF_NAMES[proof] for proof in floor.proofs) or "no proof that all allow"
            said.append(f"{self.by} {verb} a server authenticated by {proofs}")
        if said:
            said.append("mail that finds none " + ("fails" if floor.otherwise is Otherwise.FAIL else "waits"))
        if floor.when_unanswered is Unanswered.PROCEED:
            said.append("what the DNS does not answer counts as no demand of the destination")
        return "; ".join(said)

    @property
    def by(self) -> str:
        """Who demands it, in words."""
        return " and ".join(self.owners)


PROOF_NAMES: Final = {TlsProof.DANE: "DANE", TlsProof.MTA_STS: "MTA-STS", TlsProof.PKIX: "PKIX"}
NOTHING: Final = Demanded()


def add_up(demands: Iterable[Demand]) -> Demanded:
    """What all of them demand together. The order makes no difference to what is demanded."""
    given = tuple(demands)
    if not given:
        return NOTHING
    floors = tuple(each.security for each in given)
    minimum = max((floor.minimum for floor in floors), key=_MINIMA.index)
    said = {floor.when_unanswered for floor in floors}
    security = Security(
        minimum,
        tuple(proof for proof in TlsProof if all(proof in floor.proofs for floor in floors)),
        Otherwise.FAIL if any(floor.otherwise is Otherwise.FAIL for floor in floors) else Otherwise.DEFER,
        next((each for each in Unanswered if each in said), None),
    )
    if minimum is TlsMinimum.OPPORTUNISTIC:
        return Demanded(security)
    owners = dict.fromkeys(each.owner for each in given if each.security.minimum is minimum)
    if minimum is TlsMinimum.AUTHENTICATED and not security.proofs:
        # Who leaves none over is who said so, whatever his minimum.
        owners |= dict.fromkeys(each.owner for each in given if len(each.security.proofs) < len(TlsProof))
    return Demanded(security, tuple(owners))


def of_gateway(gateway: Gateway) -> Demand:
    """Of all mail that leaves by an installation."""
    return Demand(str(gateway.ref), gateway.security)


def of_domain(domain: Domain) -> Demand:
    """Of mail that is submitted with a sender of a domain of ours."""
    return Demand(str(domain.ref), domain.security)


def of_rule(rule: Rule) -> Demand:
    """Of mail that a rule of a route matches."""
    return Demand(f"{rule.route} rule {rule.name}", rule.require)


def of_transport(transport: Transport) -> Demand:
    """Of all mail that goes by a transport."""
    return Demand(str(transport.ref), transport.security)
