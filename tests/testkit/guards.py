"""Guards: what held once under kills, freezes, full disks and storms, and must go on holding.

Each guard is one test with one number, seconds or messages: a short form in `make test`, and a long one, marked `long`,
in `make test-long`.

    @short_and_long("seconds", 8, 60)
    def test_a_storm_of_kills_loses_nothing(seconds: float) -> None: ...

`Books` holds what a client was told against what arrived, recipient by recipient.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import pytest

from mailrail.sink import SinkMessage

from testkit.traffic import Fate, Traffic

Copy = tuple[str, str]
"""A try's id and one of its recipients: what may arrive once."""


def short_and_long(
    name: str, short: float, long: float, *, short_minutes: float = 3, long_minutes: float = 30
) -> pytest.MarkDecorator:
    """Run a test with one number for `name` in every run, and with another one in `make test-long` alone. The minutes
    are those after which the test is ended as hanging."""
    return pytest.mark.parametrize(
        name,
        [
            pytest.param(short, id="short", marks=pytest.mark.timeout(short_minutes * 60)),
            pytest.param(long, id="long", marks=[pytest.mark.long, pytest.mark.timeout(long_minutes * 60)]),
        ],
    )


@dataclass(frozen=True)
class Books:
    """The copies of one run, each a try and one of its recipients."""

    accepted: frozenset[Copy]
    """250 was read."""
    uncertain: frozenset[Copy]
    """The final dot was sent, and no answer was read (LSE-08 b)."""
    refused: frozenset[Copy]
    arrived: Counter[Copy]
    """How often each came."""
    first: dict[Copy, float]
    """When each came first (time.monotonic())."""
    began: dict[Copy, float]
    """When each try began (time.monotonic())."""
    bounces: Sequence[SinkMessage]
    """Notifications to the senders: mail with an empty reverse path."""

    @property
    def lost(self) -> set[Copy]:
        """Accepted, and not there."""
        return set(self.accepted - self.arrived.keys())

    @property
    def doubled(self) -> set[Copy]:
        """There more than once."""
        return {copy for copy, times in self.arrived.items() if times > 1}

    @property
    def unpromised(self) -> set[Copy]:
        """There, although they were refused or never offered."""
        return set(self.arrived.keys() - self.accepted - self.uncertain)

    def check(
        self,
        may_double: Callable[[float], bool] = lambda first: False,
        may_come: Callable[[float], bool] = lambda began: False,
    ) -> None:
        """Nothing lost, nothing doubled, nothing bounced, nothing from nowhere.

        `may_double`: whether a copy that arrived first at that moment may come again (LSE-08 a). `may_come`: whether
        one whose try began at that moment may arrive though it was answered 451 (LSE-08 c). Raises AssertionError.
        """
        assert not self.lost, f"{len(self.lost)} accepted copies did not arrive, such as {sorted(self.lost)[:5]}"
        came = [copy for copy in sorted(self.unpromised) if not (copy in self.refused and may_come(self.began[copy]))]
        assert not came, f"refused and yet delivered: {came[:5]}"
        doubled = sorted(copy for copy in self.doubled if not may_double(self.first[copy]))
        assert not doubled, f"{len(doubled)} copies came more than once and had no reason to, such as {doubled[:5]}"
        assert not self.bounces, f"{len(self.bounces)} bounces, the first one:\n{self.bounces[0].content[:2000]!r}"

    def __str__(self) -> str:
        return (
            f"{len(self.accepted)} copies accepted, {self.arrived.total()} arrived; {len(self.doubled)} more than once,"
            f" {len(self.uncertain & self.arrived.keys())} arrived although their answer was lost"
        )


def books(traffic: Traffic, receipts: Iterable[SinkMessage]) -> Books:
    """Hold the tries of a client against what arrived."""
    by_fate = {
        fate: frozenset((one.id, to) for one in traffic.tries if one.fate is fate for to in one.recipients)
        for fate in Fate
    }
    arrived: Counter[Copy] = Counter()
    first: dict[Copy, float] = {}
    bounces = []
    for receipt in receipts:
        if not receipt.sender:
            bounces.append(receipt)
            continue
        for to in receipt.recipients:
            copy = (receipt.header("X-Try") or "a message without X-Try", to)
            arrived[copy] += 1
            first.setdefault(copy, receipt.at)
    began = {(one.id, to): one.began for one in traffic.tries for to in one.recipients}
    return Books(by_fate[Fate.ACCEPTED], by_fate[Fate.UNCERTAIN], by_fate[Fate.REFUSED], arrived, first, began, bounces)
