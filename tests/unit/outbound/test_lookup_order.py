"""Whose look-up in the DNS is next, in simulated time."""

from collections.abc import Callable

import pytest

from mailrail.core.outbound.lookup_order import ANSWERED, FAILED, NEW, LookupOrder, LookupTurn, NameHistory
from mailrail.kit.lookup_turns import FIRST_PATIENCE, ROUND

from testkit.simulated import SimulatedTime

ROUND_SECONDS = 0.004  # of a busy event loop


def names(order: LookupOrder[LookupTurn], *turns: LookupTurn) -> None:
    for turn in turns:
        order.add(turn)


def taken(order: LookupOrder[LookupTurn]) -> list[LookupTurn]:
    return list(iter(order.take, None))


class SilentNames(SimulatedTime):
    """An outbound process that is handed a backlog at names of silent DNS, as the queue does: in turns of the oldest
    and the newest, each as soon as another has ended."""

    def __init__(self, waiting: int, backlog: int, lookups: int = 500) -> None:
        super().__init__()
        self._order = LookupOrder[LookupTurn](lookups)
        self._ends: dict[LookupTurn, Callable[[], None]] = {}
        self._answer: dict[LookupTurn, float] = {}
        self._begun = 0
        self._backlog = list(range(backlog))
        for i in range(waiting):
            self.at(i * 0.0005, self._handed_on)

    def look_up(self, mail_began: float, then: Callable[[], None], *, answered_after: float = 0.0) -> LookupTurn:
        """Look a new name up, which is silent unless it is `answered_after` so many seconds."""
        turn = LookupTurn(NEW, mail_began)
        self._ends[turn], self._answer[turn] = then, answered_after
        self._order.add(turn)
        self._begin()
        return turn

    def renew(self, turn: LookupTurn, mail_began: float) -> None:
        """A newer message waits for it, too."""
        self._order.renew(turn, mail_began)

    def _handed_on(self) -> None:
        if self._backlog:
            number = self._backlog.pop(0 if len(self._backlog) % 2 else -1)
            self.look_up(-1.0 - 1.0 / (1 + number), lambda: self.at(self.now + 0.02, self._handed_on))

    def _begin(self) -> None:
        while (turn := self._order.take(unknown=self._begun < ROUND)) is not None:
            if not self._begun:
                self.at(self.now + ROUND_SECONDS, self._next_round)
            self._begun += 1
            if answer := self._answer.pop(turn):
                self.at(self.now + answer, lambda turn=turn: self._end(turn))  # type: ignore[misc]
            else:
                self._look(turn, FIRST_PATIENCE)

    def _look(self, turn: LookupTurn, seconds: float) -> None:
        def look() -> None:
            if self._order.wanted(NEW):
                self._end(turn)
            else:
                self._look(turn, 0.5)

        self.at(self.now + seconds, look)

    def _next_round(self) -> None:
        self._begun = 0
        self._begin()

    def _end(self, turn: LookupTurn) -> None:
        self._order.end(turn)
        self._begin()
        self._ends.pop(turn)()


def test_the_first_mail_to_a_name_has_its_turns_at_once_whenever_it_comes_beside_20_000_silent_names() -> None:
    world = SilentNames(waiting=10_000, backlog=20_000)
    took: list[float] = []

    def mail(began: float, lookups: int = 3) -> None:
        if not lookups:
            took.append(world.now - began)
            return
        then = lambda: mail(began, lookups - 1)  # noqa: E731 -- its MX, its policy, its address
        world.look_up(began, then, answered_after=0.02)

    moments = [8.0 + i * 0.37 for i in range(100)]  # at any phase of the turns, which have a second each
    for moment in moments:
        world.at(moment, lambda moment=moment: mail(moment))  # type: ignore[misc]
    world.run(until=60.0)
    assert len(took) == len(moments)
    assert max(took) < 2 * FIRST_PATIENCE


def test_a_host_that_waits_for_old_mail_has_its_turn_at_once_when_the_newest_mail_waits_for_it() -> None:
    world = SilentNames(waiting=10_000, backlog=20_000)
    took: dict[float, float] = {}

    def named_by_a_stranger() -> None:
        began = world.now + 5.0

        def found() -> None:
            took[began] = world.now - began

        turn = world.look_up(-3.0, found, answered_after=0.02)
        world.at(began, lambda: world.renew(turn, began))

    moments = [8.0 + i * 0.37 for i in range(100)]
    for moment in moments:
        world.at(moment, named_by_a_stranger)
    world.run(until=60.0)
    assert len(took) == len(moments)
    assert min(took.values()) > 0, "it waited still"
    assert max(took.values()) < FIRST_PATIENCE


def test_half_of_the_turns_of_new_names_are_for_the_newest_mail_and_half_for_who_waited_longest() -> None:
    order = LookupOrder[LookupTurn](8)
    newer, older = [[LookupTurn(NEW, 100.0 * n + i) for i in range(4)] for n in (2, 1)]
    names(order, *newer, *older)
    assert taken(order) == [newer[3], newer[0], newer[2], newer[1]]
    for i in (3, 2, 0, 1):  # who ends quickly gives way to one of his kind
        order.end(newer[i])
        assert taken(order) == [older[i]]


@pytest.mark.parametrize("history", [NEW, FAILED])
def test_a_turn_that_newer_mail_waits_for_too_takes_the_place_of_that(history: NameHistory) -> None:
    order = LookupOrder[LookupTurn](2)
    turns = [LookupTurn(history, 10.0 + i) for i in range(5)]
    names(order, *turns)
    order.renew(turns[2], 20.0)
    order.renew(turns[1], 9.0)
    (begun,) = taken(order)
    assert begun is turns[2]
    order.renew(begun, 30.0)  # it has its turn, and stands in line no more
    order.end(begun)
    assert taken(order) == [turns[0]]


@pytest.mark.parametrize("history", [NEW, FAILED])
def test_where_there_is_one_turn_at_a_time_it_is_that_of_the_newest_and_of_the_oldest_in_alternation(
    history: NameHistory,
) -> None:
    order = LookupOrder[LookupTurn](2)
    turns = [LookupTurn(history, float(i)) for i in range(5)]
    names(order, *turns)
    begun: list[LookupTurn] = []
    while found := taken(order):
        begun += found
        order.end(*found)
    assert begun == [turns[i] for i in (4, 0, 3, 1, 2)]


def test_who_has_waited_longest_has_turns_however_much_newer_mail_comes() -> None:
    order = LookupOrder[LookupTurn](4)
    first = [LookupTurn(NEW, 0.0) for _ in range(10)]
    names(order, *first)
    begun = taken(order)
    for ended in range(20):
        order.add(LookupTurn(NEW, 1.0 + ended))
        order.end(begun[ended])
        begun += taken(order)
    assert [turn for turn in begun if turn in first] == [first[9], *first[:9]]


@pytest.mark.parametrize("history", [NEW, FAILED])
def test_names_that_never_answered_have_half_of_the_lookups_and_known_ones_the_rest(history: NameHistory) -> None:
    order = LookupOrder[LookupTurn](10)
    names(order, *(LookupTurn(history, float(i)) for i in range(20)))
    assert len(taken(order)) == (5 if history is NEW else 2)
    known = [LookupTurn(ANSWERED, float(-i)) for i in range(20)]
    names(order, *known)
    found = taken(order)
    assert found == known[: len(found)], "in order, whatever they are for"
    assert len(found) == (5 if history is NEW else 8)


def test_names_that_failed_last_have_half_of_that_half_and_no_more() -> None:
    order = LookupOrder[LookupTurn](16)
    names(order, *(LookupTurn(history, float(i)) for i in range(20) for history in (FAILED, NEW)))
    begun = taken(order)
    assert [sum(turn.history is history for turn in begun) for history in (NEW, FAILED)] == [4, 4]
    assert order.wanted(NEW)
    assert order.wanted(FAILED)


def test_where_only_failed_names_wait_a_new_one_keeps_its_turn() -> None:
    order = LookupOrder[LookupTurn](16)
    names(order, *(LookupTurn(FAILED, float(i)) for i in range(20)))
    assert len(taken(order)) == 4
    assert not order.wanted(NEW)
    assert order.wanted(FAILED)


def test_known_names_begin_also_where_no_more_unknown_ones_may() -> None:
    order = LookupOrder[LookupTurn](16)
    new, failed, known = (LookupTurn(history, 0.0) for history in NameHistory)
    names(order, new, failed, known)
    assert order.take(unknown=False) is known
    assert order.take(unknown=False) is None
    assert order.take() is failed
    assert order.take() is new


def test_who_waits_no_more_has_no_turn() -> None:
    order = LookupOrder[LookupTurn](16)
    gone, there = LookupTurn(NEW, 1.0), LookupTurn(NEW, 0.0)
    names(order, gone, there)
    order.discard(gone)
    assert taken(order) == [there]
    order.discard(there)  # it has its turn, and keeps it until it ends
    order.end(there)
