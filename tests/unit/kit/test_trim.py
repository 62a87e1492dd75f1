"""Memory that connections left behind is given back, not for each of them, and not at every moment."""

from mailrail.kit.trim import MANY, PAUSE, SETTLING, Trimmer
from mailrail.kit.wheel import NEVER


class Watch:
    """A wheel of which only the deadline counts, and its clock."""

    def __init__(self) -> None:
        self.now = 100.0
        self.watched = 0
        self.trimmed: list[float] = []
        self.trimmer = Trimmer(self, lambda: self.now, lambda: self.trimmed.append(self.now))  # type: ignore[arg-type]

    def add(self, _: Trimmer) -> None:
        self.watched += 1

    def leave(self, connections: int) -> None:
        for _ in range(connections):
            self.trimmer.count()

    def go_on(self) -> None:
        self.now = self.trimmer.deadline
        self.trimmer.expire(self.now)


def test_memory_is_given_back_once_after_many_have_gone_together() -> None:
    watch = Watch()
    watch.leave(MANY - 1)
    assert watch.trimmer.deadline == NEVER
    watch.leave(10 * MANY)
    assert (watch.watched, watch.trimmer.deadline) == (1, 100.0 + SETTLING)
    watch.go_on()
    assert (watch.trimmed, watch.trimmer.deadline) == ([101.0], NEVER)


def test_a_flood_makes_it_look_every_few_seconds_and_no_oftener() -> None:
    watch = Watch()
    for _ in range(4):
        watch.leave(100 * MANY)
        watch.go_on()
    assert [later - earlier for earlier, later in zip(watch.trimmed, watch.trimmed[1:], strict=False)] == [PAUSE] * 3


def test_after_a_fault_the_next_ones_try_again() -> None:
    watch = Watch()
    watch.leave(MANY)
    watch.trimmer.give_up()
    watch.leave(1)
    assert watch.trimmer.deadline < NEVER
