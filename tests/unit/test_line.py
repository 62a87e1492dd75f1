"""Turns in a line."""

import pytest

from mailrail.core.line import DatedLine, Line, Lines, Need


def test_the_one_that_came_last_has_every_other_turn() -> None:
    line = Line[str]()
    for name in "abcd":
        line.add(name)
    turns = [(line.peek(), line.take()) for _ in range(4)]
    assert turns == [(name, name) for name in "dacb"]


def test_who_leaves_has_no_turn() -> None:
    line = Line[str]()
    for name in "abb":
        line.add(name)
    line.discard("b")
    assert (len(line), line.take(), len(line)) == (1, "a", 0)


def test_whose_turn_came_to_nothing_stands_first() -> None:
    line = Line[str]()
    for name in "abc":
        line.add(name)
    line.put_back(line.take())
    assert [line.take() for _ in range(3)] == ["c", "b", "a"]


def test_who_waits_for_what_is_newest_need_not_have_come_last() -> None:
    line = DatedLine[str]()
    for name, time in (("a", 1.0), ("b", 3.0), ("c", 3.0), ("d", 2.0), ("e", 0.0)):
        line.add(name, time)
    line.discard("b")
    line.discard("b")
    assert len(line) == 4
    assert [line.take(newest=newest) for newest in (True, False, True, False)] == ["c", "a", "d", "e"]
    with pytest.raises(KeyError, match="nobody waits"):
        line.take(newest=True)


def test_who_waits_for_what_is_newest_has_every_other_turn_where_nobody_says_whose_it_is() -> None:
    line = DatedLine[str]()
    for name, time in (("a", 1.0), ("b", 3.0), ("c", 0.0), ("d", 2.0)):
        line.add(name, time)
    assert list(line) == ["a", "b", "c", "d"]
    assert [line.take() for _ in range(4)] == ["b", "a", "d", "c"]


def test_who_stands_in_line_for_something_newer_too_keeps_the_place_of_its_wait() -> None:
    line = DatedLine[str]()
    for name in "abc":
        line.add(name, 1.0)
    line.renew("a", 3.0)
    line.renew("a", 2.0)
    line.renew("b", 2.0)
    line.renew("gone", 4.0)
    assert len(line) == 3
    assert line.take(newest=True) == "a"
    assert line.take(newest=True) == "b"
    assert line.take(newest=False) == "c"
    for name in "abc":
        line.add(name, 1.0)
    line.renew("a", 2.0)
    assert line.take(newest=False) == "a"
    assert line.take(newest=True) == "c"
    assert line.take(newest=True) == "b"


def test_who_is_new_and_who_comes_again_alternate_and_who_wants_more_goes_last() -> None:
    lines = Lines[str]()
    for need, names in ((Need.MORE, "xyz"), (Need.AGAIN, "uvwz"), (Need.NEW, "abcde")):
        for name in names:
            lines.add(name, need)
    assert len(lines) == 12
    assert [lines.take() for _ in range(12)] == list("euavdwbzcxyz")


def test_of_those_who_are_new_who_waits_for_what_is_newest_has_every_other_turn() -> None:
    lines = Lines[str]()
    for name, time in (("a", 1.0), ("b", 9.0), ("c", 3.0), ("d", 2.0)):
        lines.add(name, Need.NEW, time)
    lines.add("d", Need.NEW, 8.0)  # for something newer, too: its wait goes on
    lines.add("c", Need.NEW, 0.0)
    assert len(lines) == 4
    assert [lines.take() for _ in range(4)] == ["b", "a", "d", "c"]


def test_whose_turn_came_to_nothing_waits_for_the_same_still() -> None:
    lines = Lines[str]()
    for name, time in (("a", 1.0), ("b", 3.0), ("c", 2.0)):
        lines.add(name, Need.NEW, time)
    assert lines.take() == "b"
    lines.add("b", Need.NEW, 3.0)  # it came again meanwhile
    lines.put_back("b", Need.NEW, 3.0)
    assert [lines.take() for _ in range(3)] == ["b", "c", "a"]


def test_whose_turn_came_to_nothing_stands_first_in_its_line() -> None:
    for need in Need:
        lines = Lines[str]()
        for name in "abc":
            lines.add(name, need)
        taken = lines.take()
        lines.put_back(taken, need)
        turns = [lines.take() for _ in range(3)]
        assert turns == (["c", "b", "a"] if need is Need.NEW else ["a", "b", "c"])
        assert not lines
