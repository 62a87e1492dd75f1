"""The wheel that meets the deadlines of all connections of a process, on a clock turned by hand."""

from dataclasses import dataclass
from types import SimpleNamespace

from mailrail.kit.wheel import NEVER, TICK, Wheel


class Loop:
    """A clock and one timer, turned by hand."""

    def __init__(self) -> None:
        self.now = 100.0
        self.due: list[tuple[float, object]] = []

    def time(self) -> float:
        return self.now

    def call_later(self, delay: float, callback: object) -> object:
        entry = (self.now + delay, callback)
        self.due.append(entry)
        return SimpleNamespace(cancel=lambda: self.due.remove(entry))

    def advance(self, seconds: float) -> None:
        until = self.now + seconds
        while self.due and min(at for at, _ in self.due) <= until:
            at, callback = min(self.due, key=lambda entry: entry[0])
            self.due.remove((at, callback))
            self.now = at
            assert callable(callback)
            callback()
        self.now = until


@dataclass(eq=False)
class Watched:
    deadline: float
    then: float = NEVER
    expired: int = 0

    given_up: int = 0

    def expire(self, now: float) -> None:
        assert now >= self.deadline
        self.expired += 1
        self.deadline = self.then

    def give_up(self) -> None:
        self.given_up += 1


def wheel() -> tuple[Wheel, Loop]:
    loop = Loop()
    return Wheel(loop), loop  # type: ignore[arg-type]


def test_a_deadline_is_met_within_a_tick_and_once() -> None:
    turning, loop = wheel()
    watched = Watched(loop.now + 10)
    turning.add(watched)
    loop.advance(10 - TICK)
    assert watched.expired == 0
    loop.advance(3 * TICK)
    assert watched.expired == 1
    loop.advance(100)
    assert watched.expired == 1
    assert loop.due == []  # nothing is watched, nothing turns


def test_a_deadline_that_moved_on_is_met_later_and_costs_nothing_before() -> None:
    turning, loop = wheel()
    watched = Watched(loop.now + 5)
    turning.add(watched)
    for _ in range(20):
        loop.advance(4)
        watched.deadline = loop.now + 5
    assert watched.expired == 0
    loop.advance(5 + 2 * TICK)
    assert watched.expired == 1


def test_a_deadline_that_comes_nearer_is_met_when_said_so() -> None:
    turning, loop = wheel()
    watched = Watched(loop.now + 300)
    turning.add(watched)
    watched.deadline = loop.now + 2
    turning.hasten(watched)
    loop.advance(2 + 2 * TICK)
    assert watched.expired == 1


class Broken(Watched):
    """Its deadline fails each time, and stays where it is."""

    def expire(self, now: float) -> None:
        self.expired += 1
        raise RuntimeError("a mistake of ours")


def test_a_deadline_that_raises_costs_its_own_connection_and_no_other_SIN_17() -> None:
    turning, loop = wheel()
    several = [Broken(loop.now + 10), Watched(loop.now + 10), Watched(loop.now + 20)]
    for watched in several:
        turning.add(watched)
    loop.advance(60)
    assert [watched.expired for watched in several] == [1, 1, 1]  # once: it is not asked again with each turn
    assert [watched.given_up for watched in several] == [1, 0, 0]
    assert loop.due == []


def test_one_that_cannot_even_be_closed_does_not_stop_the_others() -> None:
    turning, loop = wheel()

    class Worse(Broken):
        def give_up(self) -> None:
            super().give_up()
            raise RuntimeError("and another")

    several = [Worse(loop.now + 1), Watched(loop.now + 1), Watched(loop.now + 2)]
    for watched in several:
        turning.add(watched)
    loop.advance(5)
    assert [watched.expired for watched in several] == [1, 1, 1]
    assert several[0].given_up == 1


def test_move_sets_a_deadline_to_either_side_and_costs_a_place_only_when_it_comes_nearer() -> None:
    turning, loop = wheel()
    watched = Watched(loop.now + 300)
    turning.move(watched, loop.now + 200)  # before it is watched, it is only set
    assert loop.due == []
    turning.add(watched)
    turning.move(watched, loop.now + 2)
    loop.advance(1)
    turning.move(watched, loop.now + 10)
    loop.advance(9)
    assert watched.expired == 0
    loop.advance(1 + 2 * TICK)
    assert watched.expired == 1
    turning.move(watched, loop.now + 5)  # it has left
    loop.advance(10)
    assert watched.expired == 1


def test_one_that_leaves_while_it_expires_stays_away_whatever_its_deadline_says() -> None:
    turning, loop = wheel()

    class Leaving(Watched):
        def expire(self, now: float) -> None:
            super().expire(now)
            turning.remove(self)

    leaving = Leaving(loop.now + 1, then=loop.now + 2)
    turning.add(leaving)
    loop.advance(10)
    assert leaving.expired == 1
    assert loop.due == []


def test_one_that_is_added_while_the_wheel_turns_starts_no_second_timer() -> None:
    turning, loop = wheel()

    class Adding(Watched):
        def expire(self, now: float) -> None:
            super().expire(now)
            turning.add(Watched(now + 50))

    turning.add(Adding(loop.now + 1))
    loop.advance(5)
    assert len(loop.due) == 1


def test_a_wheel_that_was_stopped_looks_at_nothing_more() -> None:
    turning, loop = wheel()
    watched = Watched(loop.now + 1)
    turning.add(watched)
    turning.stop()
    turning.hasten(watched)
    turning.add(Watched(loop.now + 1))
    loop.advance(5)
    assert watched.expired == 0


def test_what_is_removed_never_expires_even_by_another_in_its_slot() -> None:
    turning, loop = wheel()

    class Killer(Watched):
        def expire(self, now: float) -> None:
            super().expire(now)
            for other in others:
                if other is not self:
                    turning.remove(other)
                    other.deadline = NEVER

    others = [Killer(loop.now + 1), Killer(loop.now + 1)]
    for other in others:
        turning.add(other)
    loop.advance(5)
    assert sum(other.expired for other in others) == 1
    turning.remove(Watched(0))
