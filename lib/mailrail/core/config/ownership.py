"""Who owns a name that only one object may have: a domain, an address, a login (CFG-10).

    decide(wishes, claims, released, now) → who wins, who loses and why, and the claims for the next compilation

1. The claim that the store holds goes first, as long as its object is there and wants the name.
2. Of an object that is gone the claim is kept for ten minutes: it gets the name back when it is made again under the
   same namespace and name. Meanwhile other namespaces do not get it; within the namespace it is free for the others.
   A claim ends at once when the object gave the name up, or lost the right to it.
3. Without a claim the oldest object wins (metadata.creationTimestamp), then namespace and name. So a new database
   decides as the old one did, and whoever places an object to wait for a disaster is younger than the owner.

Files have no age: in local mode namespace and name decide.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Final

from mailrail.core.config.state import NameClaim
from mailrail.core.resources.problems import Path
from mailrail.core.revision.revision import ObjectRef

KEPT_SECONDS: Final = 600
"""How long the claim of an object that is gone is kept."""
_YOUNGEST: Final = "~"
"""Sorts behind every time stamp."""


@dataclass(frozen=True, slots=True)
class Wish:
    """An object wants a name for itself alone, and may have it as far as whatever it attaches to is concerned."""

    key: str
    """Kind and name, `domain example.org`."""
    ref: ObjectRef
    parent: ObjectRef
    """What gives it the right to the name."""
    path: Path
    """The field that says so."""
    words: str
    """The name for a message."""
    created: str = ""
    """RFC 3339 in UTC; empty: not known."""

    @property
    def _order(self) -> tuple[str, ObjectRef]:
        return self.created or _YOUNGEST, self.ref


@dataclass(frozen=True, slots=True)
class Loss:
    """An object that does not get a name."""

    wish: Wish
    winner: ObjectRef | None
    """None: it is kept for an object that is gone."""
    message: str


@dataclass(slots=True)
class OwnershipDecision:
    """What was decided."""

    losses: dict[ObjectRef, Loss] = field(default_factory=dict)
    """The first loss of each object."""
    claims: list[NameClaim] = field(default_factory=list)
    """In order of names; of one name a kept claim before the one of who has it meanwhile."""


def decide(
    wishes: Iterable[Wish], claims: Mapping[str, tuple[NameClaim, ...]], released: Callable[[NameClaim], bool], now: int
) -> OwnershipDecision:
    """Who owns what. `released`: whether the object of a claim gave the name up, or lost the right to it; asked only of
    objects that do not want it. `now`: Unix seconds."""
    wanted: dict[str, list[Wish]] = {}
    for wish in wishes:
        wanted.setdefault(wish.key, []).append(wish)
    decided = OwnershipDecision()
    for key in sorted(wanted.keys() | claims.keys()):
        _decide_one(key, wanted.get(key, []), claims.get(key, ()), released, now, decided)
    return decided


def _decide_one(
    key: str,
    wishes: list[Wish],
    claims: tuple[NameClaim, ...],
    released: Callable[[NameClaim], bool],
    now: int,
    decided: OwnershipDecision,
) -> None:
    if len(wishes) == 1 and (not claims or claims[0].owner == wishes[0].ref):  # nearly every name, nearly always
        decided.claims.append(NameClaim(key, wishes[0].ref, wishes[0].parent))
        return
    claims = tuple(c for c in claims if c.gone_since is None or now - c.gone_since < KEPT_SECONDS)
    wanting = {wish.ref: wish for wish in wishes}
    owners = [claim.owner for claim in claims if claim.owner in wanting]
    kept: NameClaim | None = None
    if claims and claims[0].owner not in wanting:
        # Only the first: who had the name meanwhile, in the same namespace, has no claim of its own against it.
        gone = replace(claims[0], gone_since=now if claims[0].gone_since is None else claims[0].gone_since)
        if not released(gone):
            kept = gone
    order = [*owners, *(w.ref for w in sorted(wanting.values(), key=lambda w: w._order) if w.ref not in owners)]
    winner = next((ref for ref in order if kept is None or ref.namespace == kept.owner.namespace), None)
    if kept is not None:
        decided.claims.append(kept)
    if winner is not None:
        decided.claims.append(NameClaim(key, winner, wanting[winner].parent))
    for ref, wish in wanting.items():
        if ref != winner and ref not in decided.losses:
            decided.losses[ref] = Loss(wish, winner, _message(wish, winner, kept))


def _message(wish: Wish, winner: ObjectRef | None, kept: NameClaim | None) -> str:
    """Why; another team's object is not named."""
    if winner is None:
        assert kept is not None, "somebody wants it"
        until = datetime.fromtimestamp((kept.gone_since or 0) + KEPT_SECONDS, UTC)
        return (
            f"{wish.words} belonged to an object of another namespace that is gone, and is kept for it "
            f"until {until:%Y-%m-%dT%H:%M:%SZ}"
        )
    who = str(winner) if winner.namespace == wish.ref.namespace else "an object of another namespace"
    return f"{wish.words} belongs to {who}"


def next_change(claims: Iterable[NameClaim]) -> int | None:
    """When the first kept claim ends, in Unix seconds: to compile again then. None: no claim is kept."""
    return min((c.gone_since + KEPT_SECONDS for c in claims if c.gone_since is not None), default=None)


def grouped(claims: Iterable[NameClaim]) -> dict[str, tuple[NameClaim, ...]]:
    """Claims by name, as `decide` wants them."""
    found: dict[str, tuple[NameClaim, ...]] = {}
    for claim in claims:
        found[claim.key] = (*found.get(claim.key, ()), claim)
    return found
