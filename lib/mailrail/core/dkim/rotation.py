"""Rotation of keys: when one is made, published, signs, stops, and goes; from times alone (RFC 6376 3.6.1, 5.2).

A key that replaces another is published first. It signs when every resolver can know it, which takes as long as the
answer "there is no such name" is kept. The key before it stays published after it has stopped, for mail that it signed
is still under way. Nothing here asks a clock or the DNS: when the record of a key was seen is told.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

DAY: Final = 86_400
PUBLISHED_BEFORE: Final = 2 * DAY
"""Seconds that a record has to be seen before its key signs: longer than resolvers keep an answer (RFC 2181 8 allows
more, RFC 8767 4 and common resolvers keep one day)."""
OVERLAP: Final = 14 * DAY
"""Seconds that a record stays after its key has stopped: longer than mail waits in queues, and is verified late."""


class KeyStage(Enum):
    """Where a key is in its life."""

    NEW = "new"  # its record has to be published, and was not seen yet
    WAITING = "waiting"  # its record was seen, and not every resolver can know it yet
    SIGNING = "signing"
    RETIRED = "retired"  # another one signs; its record must stay
    REMOVABLE = "removable"  # its record may go, and then the key


class SigningUse(Enum):
    """What the configuration says of a key."""

    AUTO = "auto"  # it signs when its time has come
    ALWAYS = "always"
    NEVER = "never"


@dataclass(frozen=True, slots=True)
class ConfiguredKey:
    """A key as the configuration has it."""

    selector: str
    key_type: str
    """`k=`."""
    use: SigningUse
    seen: float | None
    """As in KeyTimes."""


@dataclass(frozen=True, slots=True)
class KeyTimes:
    """A key of one domain and algorithm. Times are Unix time, in seconds."""

    selector: str
    made: float
    seen: float | None
    """Since when its record is in the DNS without a break; None: it is not there."""


@dataclass(frozen=True, slots=True)
class Rotation:
    """How keys of a domain change. All in seconds."""

    every: float
    """A key signs so long, then the next one does."""
    published_before: float = PUBLISHED_BEFORE
    overlap: float = OVERLAP


@dataclass(frozen=True, slots=True)
class RotationPlan:
    """What is to be done now."""

    stages: tuple[tuple[str, KeyStage], ...]
    """Of each key by its selector, in the order in which they were made."""
    make: bool
    """A new key has to be made and published."""
    next_look: float | None
    """When time alone changes something; None: only a record that is seen does."""

    def of(self, stage: KeyStage) -> tuple[str, ...]:
        """The selectors of the keys in this stage."""
        return tuple(selector for selector, each in self.stages if each is stage)


def plan(keys: Iterable[KeyTimes], rotation: Rotation, now: float) -> RotationPlan:
    """The stage of each key at `now`, and whether another one is needed.

    At most one key signs: the newest that every resolver can know. While there is none, nothing signs.
    """
    ordered = sorted(keys, key=lambda each: (each.made, each.selector))
    signer = max((at for at, each in enumerate(ordered) if _ready(each, rotation) <= now), default=None)
    stages = tuple((each.selector, _stage(at, ordered, signer, rotation, now)) for at, each in enumerate(ordered))
    make = not ordered or now >= _successor_due(ordered, rotation)
    times = [_ready(each, rotation) for each in ordered]
    times += [_ready(each, rotation) + rotation.overlap for each in ordered]
    times += [_successor_due(ordered, rotation)] if ordered else []
    return RotationPlan(stages, make, min((at for at in times if now < at < _NEVER), default=None))


_NEVER: Final = float("inf")


def _ready(key: KeyTimes, rotation: Rotation) -> float:
    """When the key may sign."""
    return _NEVER if key.seen is None else key.seen + rotation.published_before


def _successor_due(ordered: Sequence[KeyTimes], rotation: Rotation) -> float:
    """When the key after the newest one is made: so early that it is ready when the newest has signed long enough. A
    key that nobody has published yet needs no successor."""
    newest = ordered[-1]
    return _ready(newest, rotation) + max(0.0, rotation.every - rotation.published_before)


def _stage(at: int, ordered: Sequence[KeyTimes], signer: int | None, rotation: Rotation, now: float) -> KeyStage:
    if signer is None or at > signer:
        return KeyStage.NEW if ordered[at].seen is None else KeyStage.WAITING
    if at == signer:
        return KeyStage.SIGNING
    # It stopped when the first key after it was ready.
    stopped = min(_ready(each, rotation) for each in ordered[at + 1 : signer + 1])
    return KeyStage.REMOVABLE if now >= stopped + rotation.overlap else KeyStage.RETIRED


def stages(keys: Iterable[ConfiguredKey], now: float) -> tuple[Mapping[str, KeyStage], float | None]:
    """The stage of each configured key by its selector, and when time alone changes one (None: it does not).

    `keys` are those of one domain, the oldest first. Mail never goes unsigned for a rotation: while no key of a type is
    ready, the first that is published signs, or else the first.
    """
    found: dict[str, KeyStage] = {}
    times: list[float] = []
    by_type: defaultdict[str, list[ConfiguredKey]] = defaultdict(list)
    for key in keys:
        by_type[key.key_type].append(key)
    for of_type in by_type.values():
        always = [at for at, each in enumerate(of_type) if each.use is SigningUse.ALWAYS]
        planned = plan(
            (KeyTimes(each.selector, at, each.seen) for at, each in enumerate(of_type) if each.use is SigningUse.AUTO),
            Rotation(every=_NEVER),
            now,
        )
        made = dict(planned.stages)
        places = {each.selector: at for at, each in enumerate(of_type)}
        if planned.next_look is not None:
            times.append(planned.next_look)
        if always:
            made = {s: KeyStage.RETIRED if places[s] < always[-1] else _held_up(stage) for s, stage in made.items()}
        elif made and KeyStage.SIGNING not in made.values():
            published = (selector for selector, stage in made.items() if stage is KeyStage.WAITING)
            made[next(published, next(iter(made)))] = KeyStage.SIGNING
        for each in of_type:
            if each.use is SigningUse.ALWAYS:
                found[each.selector] = KeyStage.SIGNING
            else:
                found[each.selector] = made.get(each.selector, KeyStage.RETIRED)
    return found, min(times, default=None)


def _held_up(stage: KeyStage) -> KeyStage:
    """The stage of a newer key while an older one always signs."""
    return KeyStage.WAITING if stage is KeyStage.SIGNING else stage
