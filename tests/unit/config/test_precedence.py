"""Hidden and ambiguous rules, against a plain model of what rules match (design 5)."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mailrail.core.config import precedence
from mailrail.core.config.precedence import Overlap, Placed, ambiguous, covers, overlap, shadowed
from mailrail.core.revision.revision import Match, ObjectRef, Rule

LABELS = ("a", "b")
DOMAINS = ("", *LABELS, *(f"{x}.{y}" for x in LABELS for y in LABELS), "a.b.a", "b.a.b")
PATTERNS = (".", "a", "b", ".a", ".b", "a.b", "b.a", ".a.b", ".b.a")


def admits(pattern: str, domain: str) -> bool:
    """What one pattern means, as design 4 says it."""
    if pattern == ".":
        return domain == ""
    if pattern.startswith("."):
        return domain == pattern[1:] or domain.endswith(pattern)
    return domain == pattern


def matched(match: Match) -> set[tuple[str, str, int]]:
    """All mail of a small world that the match takes: recipient domain, sender domain, attempts."""
    return {
        (recipient, sender, attempts)
        for recipient in DOMAINS
        for sender in DOMAINS
        for attempts in range(3)
        if (not match.to_domains or any(admits(p, recipient) for p in match.to_domains))
        and (not match.from_domains or any(admits(p, sender) for p in match.from_domains))
        and attempts >= match.minimum_attempts
    }


patterns = st.lists(st.sampled_from(PATTERNS), max_size=2).map(tuple)
matches = st.builds(Match, patterns, patterns, st.integers(min_value=0, max_value=2))


def rule(n: int, *conditions: Match, route: str = "r", transport: str | None = None) -> Rule:
    target = ObjectRef("MailTransport", "default", transport) if transport else None
    return Rule(ObjectRef("MailRoute", "default", route), n, str(n), conditions, target)


@settings(max_examples=400)
@given(matches, matches)
def test_one_match_covers_another_only_if_it_takes_all_of_its_mail(wide: Match, narrow: Match) -> None:
    if covers(wide, narrow):
        assert matched(narrow) <= matched(wide)


@settings(max_examples=400)
@given(matches, matches)
def test_two_matches_overlap_exactly_if_they_share_mail(one: Match, other: Match) -> None:
    assert overlap(one, other) == overlap(other, one) == bool(matched(one) & matched(other))


@settings(max_examples=200)
@given(st.lists(st.lists(matches, max_size=2), min_size=1, max_size=6))
def test_a_shadowed_rule_really_gets_no_mail(conditions: list[list[Match]]) -> None:
    level = [rule(n, *of) for n, of in enumerate(conditions)]
    taken: set[tuple[str, str, int]] = set()
    hidden = {o.later for o in shadowed(level)}
    for n, one in enumerate(level):
        own = set().union(*(matched(m) for m in one.matches or (Match(),)))
        if n in hidden:
            assert own <= taken
        taken |= own


@pytest.mark.parametrize(
    ("earlier", "later", "hides"),
    [
        ("x.org", "x.org", True),
        (".x.org", "x.org", True),
        (".x.org", "a.b.x.org", True),
        (".x.org", ".a.x.org", True),
        (".org", ".x.org", True),
        ("x.org", ".x.org", False),
        ("a.x.org", "x.org", False),
        (".x.org", "ax.org", False),
        (".", "x.org", False),
        (".", ".", True),
        (".org", ".", False),
    ],
)
def test_patterns_hide_what_they_match(earlier: str, later: str, hides: bool) -> None:
    level = [rule(0, Match((earlier,))), rule(1, Match((later,)))]
    assert bool(shadowed(level)) is hides


def test_a_rule_hidden_by_several_earlier_ones_together_names_the_last_of_them() -> None:
    level = [rule(0, Match(("a.org",))), rule(1, Match(("b.org",))), rule(2, Match(("b.org",)), Match(("a.org",)))]
    assert shadowed(level) == (Overlap(1, 2),)


def test_a_rule_without_matches_hides_everything_after_it() -> None:
    level = [rule(0, Match(("a.org",))), rule(1), rule(2, Match(("a.org",), (), 5)), rule(3)]
    assert shadowed(level) == (Overlap(0, 2), Overlap(1, 3))


def test_later_attempts_are_not_hidden_by_an_earlier_rules_minimum() -> None:
    level = [rule(0, Match((), (), 3)), rule(1, Match())]
    assert shadowed(level) == ()
    assert shadowed(level[::-1]) == (Overlap(0, 1),)


def test_ambiguity_needs_another_route_equal_priority_and_another_transport() -> None:
    def found(*, route: str = "b", priority: int = 1, transport: str = "u", pattern: str = "a.x.org") -> bool:
        level = [
            Placed(rule(0, Match((".x.org",)), route="a", transport="t"), 1),
            Placed(rule(0, Match((pattern,)), route=route, transport=transport), priority),
        ]
        return bool(ambiguous(level))

    assert found()
    assert found(pattern=".org")
    assert found(pattern="x.org")
    assert not found(route="a")
    assert not found(priority=2)
    assert not found(transport="t")
    assert not found(pattern="y.org")


@pytest.mark.parametrize("kind", ["same recipient", "no recipient", "distinct", "nested"])
def test_ten_thousand_rules_of_any_shape_are_judged_without_comparing_all_pairs(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes: dict[str, Callable[[int], Match]] = {
        "same recipient": lambda n: Match(("gmail.example",), (f"d{n}.org",)),
        "no recipient": lambda n: Match((), (f"d{n}.org",)),
        "distinct": lambda n: Match((f"d{n}.org", f".e{n}.org"), ()),
        "nested": lambda n: Match((".".join(f"l{n >> k & 1}" for k in range(14)) + ".org",), ()),
    }
    compared = 0

    def counting(judge: Callable[[Match, Match], bool]) -> Callable[[Match, Match], bool]:
        def judged(one: Match, other: Match) -> bool:
            nonlocal compared
            compared += 1
            return judge(one, other)

        return judged

    monkeypatch.setattr(precedence, "covers", counting(covers))
    monkeypatch.setattr(precedence, "overlap", counting(overlap))
    level = [Placed(rule(n, shapes[kind](n), route=f"r{n}", transport=f"t{n % 7}"), 1) for n in range(10_000)]
    shadowed([p.rule for p in level])
    ambiguous(level)
    assert compared <= 10_000 * 4 * precedence.CANDIDATES_LIMIT  # all pairs would be 50 million
