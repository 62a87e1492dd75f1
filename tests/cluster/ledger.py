"""What was promised, held against what arrived: promise 1 and LSE-08, for any run of traffic through a cluster.

Each try to hand over a message has an id of its own, which travels in it. So afterwards every try that was answered 250
must have arrived, none that was refused may have, one whose answer was lost may or may not have (LSE-08 b), and a
second copy of one try may only be there where something was killed about its first delivery (LSE-08 a).
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from cluster.partner import Arrival

LEASE = 120 + 30  # seconds until a message whose lease was lost is due again (LSE-01, LSE-04)


@dataclass(frozen=True)
class Break:
    """Something that was killed or replaced, and between which moments (seconds since 1970) it was not whole."""

    what: str
    at: float
    back: float


@dataclass(frozen=True)
class Verdict:
    """The counts of one run."""

    messages: int
    tries: int
    doubled: int  # further copies of one try: LSE-08 (a)
    uncertain: int  # arrived although the client never read the answer: LSE-08 (b)

    def __str__(self) -> str:
        return (
            f"{self.messages} messages in {self.tries} tries, none lost; duplicates: {self.doubled} by LSE-08 (a), "
            f"{self.uncertain} by LSE-08 (b)"
        )


def silence(tries: Iterable[tuple[str, str, str, float]]) -> float:
    """The longest time in seconds from one accepted message of a run to the next."""
    moments = sorted(at for _, fate, _, at in tries if fate == "accepted")
    return max(later - earlier for earlier, later in pairwise(moments))


def judge(
    tries: Iterable[tuple[str, str, str, float]], arrivals: Sequence[Arrival], messages: int, breaks: Sequence[Break]
) -> Verdict:
    """Hold a run against its arrivals. Raises AssertionError naming the ids that break the promise."""
    made = list(tries)
    by_fate = {fate: {id_ for id_, its, _, _ in made if its == fate} for fate in ("accepted", "refused", "uncertain")}
    accepted, refused, uncertain = by_fate["accepted"], by_fate["refused"], by_fate["uncertain"]
    copies = Counter(one.try_id for one in arrivals if one.try_id is not None)
    arrived = set(copies)
    lost = accepted - arrived
    assert not lost, f"{len(lost)} accepted messages did not arrive: {sorted(lost)[:20]}"
    assert len(accepted) == messages, f"{len(accepted)} of {messages} were accepted; the last tries: {made[-5:]}"
    assert not refused & arrived, f"refused and yet delivered: {sorted(refused & arrived)[:20]}"
    assert arrived <= accepted | uncertain, f"from nowhere: {sorted(arrived - accepted - uncertain)[:20]}"
    for id_, count in copies.items():
        if count > 1:
            first = min(one.at for one in arrivals if one.try_id == id_)
            # 3 s before: a result may wait for its batch and its commit, not longer.
            assert any(one.at - 3 <= first <= one.back + LEASE for one in breaks), (
                f"{id_} arrived {count} times, and nothing was broken about its first delivery"
            )
    doubled = sum(count - 1 for count in copies.values())
    return Verdict(messages, len(made), doubled, len(arrived & uncertain))
