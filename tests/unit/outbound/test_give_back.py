"""Which deliveries that wait for a connection go back, so that the queue has credit for others (SHD-03, LSE-04)."""

from collections.abc import Callable
from typing import NamedTuple

import pytest

from mailrail.core.delivery.shares import OCTETS_A_DELIVERY, QUICK, SLOW, UNPROVEN, SiteStanding, StreamCredit
from mailrail.core.line import Lines, Need
from mailrail.core.outbound.give_back import BACK, CreditHeld, Held, who_goes_back

from testkit.simulated import SimulatedTime


class Waiter(NamedTuple):
    """See give_back.Waiter."""

    name: str
    address: SiteStanding = SLOW
    since: float = 0.0
    counts_for: SiteStanding = UNPROVEN
    octets: int = 1000


def back(
    waiters: list[Waiter], *, most: int = 1000, octets: float = 1e9, whole: int = 40, whole_octets: int = 1_000_000
) -> list[str]:
    credit = CreditHeld(whole, whole_octets)
    for one in waiters:
        credit.add(one.counts_for, one.octets)
    return [one.name for one in who_goes_back(credit, waiters, now=1000.0, most=most, octets=octets)]


def waiters(count: int, **fields: object) -> list[Waiter]:
    return [Waiter(f"w{i}", since=float(i), **fields) for i in range(count)]  # type: ignore[arg-type]


def test_until_there_is_room_for_others_those_that_waited_longest_go_back_SHD_03() -> None:
    assert back(waiters(17)) == []
    assert back(waiters(18)) == ["w0"]  # 18 of the 20 that they may hold
    assert back(waiters(25)) == [f"w{i}" for i in range(8)]


def test_what_waits_for_a_slow_address_goes_before_what_waits_for_an_unknown_one_however_long() -> None:
    unknown = [Waiter(f"u{i}", UNPROVEN, -100.0 + i) for i in range(10)]
    assert back([*unknown, *waiters(12)]) == [f"w{i}" for i in range(5)]
    assert back([*unknown, *[Waiter("t", UNPROVEN, -200.0)] * 8, *waiters(1)]) == ["w0", "t"]


def test_what_waits_for_an_address_that_answers_stays() -> None:
    assert back(waiters(25, address=QUICK)) == []
    assert back([*waiters(25, address=QUICK), Waiter("slow")]) == ["slow"]


def test_mail_to_sites_that_answer_is_no_crowd() -> None:
    assert back(waiters(40, counts_for=QUICK)) == []


def test_unproven_and_slow_ones_together_leave_room_too() -> None:
    slow = [Waiter(f"s{i}", since=-float(i), counts_for=SLOW) for i in range(13)]
    assert back([*slow, *waiters(12)]) == ["s12"]  # 25 of the 28 that both may hold


def test_a_few_go_at_a_time_and_their_content_is_bounded_but_one_goes_always() -> None:
    assert back(waiters(25), most=3) == ["w0", "w1", "w2"]
    assert back(waiters(25), octets=2500) == ["w0", "w1"]
    assert back(waiters(25), octets=1) == ["w0"]


def test_large_messages_are_a_crowd_by_their_octets() -> None:
    assert back(waiters(5, octets=100_000)) == ["w0"]
    assert back([Waiter("small", octets=1), *waiters(5, octets=90_000)]) == ["small", "w0"]


def test_what_is_looked_up_or_dialled_takes_room_as_well_and_who_has_only_just_come_stays() -> None:
    credit = CreditHeld(40, 1_000_000)
    for _ in range(25):
        credit.add(UNPROVEN, 1000)
    found = waiters(10)
    assert [one.name for one in who_goes_back(credit, found, now=3.5, most=9, octets=1e9)] == ["w0", "w1", "w2"]


def test_a_closer_look_is_worth_its_while_as_soon_as_there_may_be_a_crowd() -> None:
    credit = CreditHeld(40, 1_000_000)
    for _ in range(9):
        credit.add(None, 1000)
        credit.add(QUICK, 1000)
    assert credit.may_be_crowded
    assert not credit.is_crowded
    credit.discard(QUICK, 1000)
    assert not credit.may_be_crowded
    credit.add(UNPROVEN, 441_000)
    assert credit.may_be_crowded


def test_a_copy_is_changed_alone() -> None:
    credit = CreditHeld(4, 1000)
    other = credit.copy()
    for _ in range(3):
        other.add(SLOW, 10)
    other.add(None, 10)
    assert other.is_crowded
    assert not credit.is_crowded
    assert not credit.may_be_crowded


def test_one_that_waits_alone_stays_however_little_room_there_is() -> None:
    assert back(waiters(1), whole=1) == []
    assert back(waiters(1, octets=5000), whole_octets=1000) == []
    assert back(waiters(2), whole=1) == ["w0"]


@pytest.mark.parametrize(
    ("told", "seconds", "address", "counts_for"),
    [
        (UNPROVEN, 0.0, QUICK, UNPROVEN),
        (UNPROVEN, 100.0, SLOW, UNPROVEN),
        (SLOW, 0.0, UNPROVEN, SLOW),
        (QUICK, 9.9, SLOW, QUICK),
        (QUICK, 10.0, SLOW, SLOW),  # as in the queue
        (None, 100.0, UNPROVEN, UNPROVEN),  # a queue of before
        (None, 100.0, SLOW, None),
    ],
)
def test_a_delivery_counts_for_what_the_queue_said_and_without_a_word_by_its_address(
    told: SiteStanding | None, seconds: float, address: SiteStanding, counts_for: SiteStanding | None
) -> None:
    assert Held(told, 10).after(seconds, lambda: address) is counts_for


class Tarpit(SimulatedTime):
    """A queue with more due mail than outbound takes, to sites that never had any. All of them are at an address that
    greets after 20 s and takes 20 messages at a time, each for 100 s."""

    CAPACITY = 400
    SITES = 600
    LOOK = 0.5
    HANDED_ON = 0.05

    def __init__(self) -> None:
        super().__init__()
        self._credit = StreamCredit(self.CAPACITY, octets=self.CAPACITY * OCTETS_A_DELIVERY)
        self._held = CreditHeld(self.CAPACITY, self.CAPACITY * OCTETS_A_DELIVERY)
        self._lines = Lines[str]()
        self._waiting: dict[str, float] = {}  # since when
        self._dialled = 0
        self._new: dict[str, Callable[[], None]] = {}
        self.tarpit_took = 0
        for i in range(self.SITES):
            self.at(i * 0.001, lambda i=i: self._due(f"old{i}", Need.NEW, -1.0))  # type: ignore[misc]
        self.at(self.LOOK, self._look)

    def mail(self, name: str, then: Callable[[], None]) -> None:
        """The first mail to a site that answers."""
        self._new[name] = then
        self._due(name, Need.NEW, self.now)

    def _due(self, name: str, need: Need, began: float) -> None:
        self._lines.add(name, need, began)
        self._serve()

    def _serve(self) -> None:
        while self._lines and self._credit.free(UNPROVEN) > 0:
            name = self._lines.take()
            self._credit.take(UNPROVEN, 1000)
            self.at(self.now + self.HANDED_ON, lambda name=name: self._arrive(name))  # type: ignore[misc]

    def _arrive(self, name: str) -> None:
        self._held.add(UNPROVEN, 1000)
        if name in self._new:
            self._end()
            self._new.pop(name)()
        else:
            self._waiting[name] = self.now
            self._dial()

    def _dial(self) -> None:
        while self._waiting and self._dialled < (2 if self.now < 20 else 20):
            del self._waiting[next(iter(self._waiting))]
            self._dialled += 1
            self.at(self.now + 100.0, self._taken)

    def _taken(self) -> None:
        self._dialled -= 1
        self.tarpit_took += 1
        self._end()
        self._dial()

    def _end(self) -> None:
        self._held.discard(UNPROVEN, 1000)
        self._credit.let_go(UNPROVEN, 1000)
        self._credit.grant(1, 1000)
        self._serve()

    def _look(self) -> None:
        self.at(self.now + self.LOOK, self._look)
        self._dial()
        address = UNPROVEN if self.now < 20 else SLOW
        found = [Waiter(name, address, since) for name, since in self._waiting.items()]
        held = self._held.copy()
        for one in who_goes_back(held, found, now=self.now, most=int(self.LOOK * BACK), octets=1e9):
            del self._waiting[one.name]
            self._end()
            self.at(self.now + 1.0, lambda one=one: self._due(one.name, Need.AGAIN, -1.0))  # type: ignore[misc]


def test_the_first_mail_to_a_new_site_leaves_soon_whenever_it_comes_beside_a_backlog_at_a_tarpit_SHD_03() -> None:
    world = Tarpit()
    took: list[float] = []

    def mail(number: int) -> None:
        began = world.now
        world.mail(f"new{number}", lambda: took.append(world.now - began))

    for number in range(200):  # before the tarpit greets, and when it is known as slow
        world.at(4.0 + number * 0.37, lambda number=number: mail(number))  # type: ignore[misc]
    world.run(until=90.0)
    assert len(took) == 200
    assert max(took) < 2.0
    world.run(until=300.0)
    assert world.tarpit_took > 20, "it goes on for the tarpit as well"
