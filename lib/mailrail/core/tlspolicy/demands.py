"""How our own demands add up: those of gateway, domain, transport and route (decision 18).

The strictest minimum counts, of the proofs those that all of them allow, and the strictest word on what happens
otherwise. DANE and MTA-STS are two proofs, not two rungs of a ladder.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from mailrail.core.revision.revision import NO_FLOOR, Otherwise, Security, TlsMinimum, TlsProof, Unanswered

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

    @property
    def by(self) -> str:
        """Who demands it, in words."""
        return " and ".join(self.owners)


NOTHING = Demanded()


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
