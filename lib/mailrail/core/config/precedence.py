"""Rules that can never apply, and rules between which a mere name decides: the compiler's warnings about routes.

A rule is shadowed when an earlier one of its level takes every mail that it would match; ambiguous when a rule of
another route with the same priority overlaps it and names another transport. Levels may hold 10,000 rules, so earlier
rules are looked up by domain pattern instead of compared one by one; for one rule at most CANDIDATES_LIMIT are weighed.
The warnings are a service to people, never a condition of routing, so that bound may cost a warning and nothing else.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from mailrail.core.revision.revision import Match, Rule

CANDIDATES_LIMIT: Final = 16
_ANY: Final = "*"
"""Key of a match without a list of recipient domains. `*` is in no domain name."""


@dataclass(frozen=True, slots=True)
class Placed:
    """A rule in its level, with the priority of its route."""

    rule: Rule
    priority: int


@dataclass(frozen=True, slots=True)
class Overlap:
    """Two rules of one level, by their positions in it: `later` is hidden by, or undecided against, `earlier`."""

    earlier: int
    later: int


def _wider(pattern: str) -> Iterator[str]:
    """The pattern and every one that covers it: x.org is covered by x.org, .x.org and .org."""
    yield pattern
    if pattern == ".":
        return
    name = pattern.removeprefix(".")
    if not pattern.startswith("."):
        yield "." + name
    while "." in name:
        name = name.partition(".")[2]
        yield "." + name


def _covers_pattern(wide: str, narrow: str) -> bool:
    if wide == narrow:
        return True
    if wide == "." or narrow == "." or not wide.startswith("."):
        return False
    return narrow.endswith(wide) or narrow == wide[1:]


def _covers_list(wide: tuple[str, ...], narrow: tuple[str, ...]) -> bool:
    """Whether each pattern is covered. An empty list matches everything, so nothing but an empty one covers it."""
    if not wide:
        return True
    if not narrow:
        return False
    wide_set = frozenset(wide)
    return all(any(w in wide_set for w in _wider(n)) for n in narrow)


def covers(wide: Match, narrow: Match) -> bool:
    """Whether every mail that `narrow` matches is matched by `wide` too."""
    return (
        wide.minimum_attempts <= narrow.minimum_attempts
        and _covers_list(wide.to_domains, narrow.to_domains)
        and _covers_list(wide.from_domains, narrow.from_domains)
    )


def _lists_overlap(a: tuple[str, ...], b: tuple[str, ...]) -> bool:
    if not a or not b:
        return True
    small, large = (a, b) if len(a) <= len(b) else (b, a)
    exact = frozenset(large)
    suffixes = [p for p in large if p.startswith(".") and p != "."]
    for pattern in small:
        if any(w in exact for w in _wider(pattern)):
            return True
        if pattern.startswith(".") and any(_covers_pattern(pattern, p) for p in large):
            return True
        if any(_covers_pattern(s, pattern) for s in suffixes):
            return True
    return False


def overlap(a: Match, b: Match) -> bool:
    """Whether some mail is matched by both. Attempts always overlap: a late attempt satisfies both minimums."""
    return _lists_overlap(a.to_domains, b.to_domains) and _lists_overlap(a.from_domains, b.from_domains)


_EVERYTHING: Final = Match()


def _matches(rule: Rule) -> tuple[Match, ...]:
    return rule.matches or (_EVERYTHING,)


def shadowed(level: Sequence[Rule]) -> tuple[Overlap, ...]:
    """Each rule that an earlier one hides whole, with the first that hides (the last part of) it."""
    found: list[Overlap] = []
    by_recipient: dict[str, list[tuple[int, Match]]] = {}
    for position, rule in enumerate(level):
        hiding = -1
        for match in _matches(rule):
            first = match.to_domains[0] if match.to_domains else None
            keys = (_ANY, *_wider(first)) if first is not None else (_ANY,)
            hidden_by = -1
            for key in keys:
                for earlier, wide in by_recipient.get(key, ())[:CANDIDATES_LIMIT]:
                    if covers(wide, match):
                        hidden_by = earlier if hidden_by < 0 else min(hidden_by, earlier)
                        break
            if hidden_by < 0:
                hiding = -1
                break
            hiding = max(hiding, hidden_by)
        if hiding >= 0:
            found.append(Overlap(hiding, position))
            continue  # what it would hide, the other hides as well
        for match in _matches(rule):
            for pattern in match.to_domains or (_ANY,):
                by_recipient.setdefault(pattern, []).append((position, match))
    return tuple(found)


def ambiguous(level: Sequence[Placed]) -> tuple[Overlap, ...]:
    """Each rule that overlaps an earlier one of another route with equal priority and another transport."""
    found: list[Overlap] = []
    start = 0
    while start < len(level):
        end = start
        while end < len(level) and level[end].priority == level[start].priority:
            end += 1
        if level[start].rule.route != level[end - 1].rule.route:
            found += _ambiguous_among(level, start, end)
        start = end
    return tuple(found)


def _ambiguous_among(level: Sequence[Placed], start: int, end: int) -> Iterator[Overlap]:
    # Under each pattern: the matches that name it, and those that name something below it.
    named: dict[str, list[tuple[int, Match]]] = {}
    below: dict[str, list[tuple[int, Match]]] = {}
    everything: list[tuple[int, Match]] = []
    for position in range(start, end):
        rule = level[position].rule
        rival = -1
        for match in _matches(rule):
            for earlier, other in _rivals(match, named, below, everything):
                against = level[earlier].rule
                if against.route != rule.route and against.transport != rule.transport and overlap(match, other):
                    rival = earlier if rival < 0 else min(rival, earlier)
                    break
            if rival >= 0:
                break
        if rival >= 0:
            yield Overlap(rival, position)
        for match in _matches(rule):
            everything.append((position, match))
            for pattern in match.to_domains or (_ANY,):
                named.setdefault(pattern, []).append((position, match))
                if pattern != _ANY:
                    for wide in _wider(pattern):
                        if wide != pattern:
                            below.setdefault(wide, []).append((position, match))


def _rivals(
    match: Match,
    named: dict[str, list[tuple[int, Match]]],
    below: dict[str, list[tuple[int, Match]]],
    everything: list[tuple[int, Match]],
) -> Iterator[tuple[int, Match]]:
    """Earlier matches whose recipient domains may overlap, CANDIDATES_LIMIT of each kind."""
    if not match.to_domains:
        yield from everything[:CANDIDATES_LIMIT]
        return
    yield from named.get(_ANY, ())[:CANDIDATES_LIMIT]
    for pattern in match.to_domains[:CANDIDATES_LIMIT]:
        for wide in _wider(pattern):
            yield from named.get(wide, ())[:CANDIDATES_LIMIT]
        yield from below.get(pattern, ())[:CANDIDATES_LIMIT]
