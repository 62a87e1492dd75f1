"""Turns in a line."""

from mailrail.core.line import Line


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
