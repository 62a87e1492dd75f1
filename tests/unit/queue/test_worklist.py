"""Sites whose due mail waits until more may be leased for their standing: their turns (LSE-06)."""

from typing import cast

from mailrail.core.delivery.shares import SiteStanding
from mailrail_queue.delivery.sites import SiteState
from mailrail_queue.schedule.peers import Peers
from mailrail_queue.schedule.worklist import Worklist

from testkit.dispatching import Bench, Stream

UNPROVEN, QUICK = SiteStanding.UNPROVEN, SiteStanding.QUICK


class Due:
    """A worklist with sites that have due mail."""

    def __init__(self, *names: str) -> None:
        self.bench = Bench()
        self.worklist = Worklist(self.bench.dispatcher, cast("Peers", None), lambda: self.bench.router, run_id="r")
        self.keys = [f"domain:{name}" for name in names]
        for key in self.keys:
            self.worklist.note(3, key)

    def site(self, key: str) -> SiteState:
        return self.bench.dispatcher.sites[key]

    def park(self) -> None:
        for key in self.keys:
            self.worklist.park(self.site(key))


def test_new_sites_have_turns_as_they_came_and_the_one_that_came_last_every_other() -> None:
    due = Due("a.example", "b.example", "c.example")
    due.park()
    assert not due.worklist.turn
    assert due.worklist.unpark(UNPROVEN, 2) == [due.keys[2], due.keys[0]]
    assert list(due.worklist.turn) == [due.keys[2], due.keys[0]]
    assert due.worklist.unpark(UNPROVEN, 2) == [due.keys[1]]


def test_a_new_site_with_the_newest_mail_has_every_other_turn_whenever_it_was_found() -> None:
    due = Due("a.example", "b.example", "c.example", "d.example")
    due.worklist.own(dict.fromkeys(range(256), 1))
    due.worklist.add_stored({(3, due.keys[1]): 2000.0})
    due.worklist.note(3, due.keys[2], 1000.0)
    due.park()
    assert due.worklist.unpark(UNPROVEN, 1) == due.keys[1:2]
    due.worklist.add_stored({(3, due.keys[0]): 1500.0, (3, due.keys[3]): 500.0})  # they keep their places
    assert due.worklist.unpark(UNPROVEN, 3) == [due.keys[0], due.keys[2], due.keys[3]]


def test_of_sites_that_had_a_delivery_those_that_waited_longest_have_their_turn_first() -> None:
    due = Due("a.example", "b.example", "c.example")
    for key in due.keys:
        due.site(key).tried = True
    due.park()
    assert due.worklist.unpark(UNPROVEN, 2) == due.keys[:2]
    assert due.worklist.unpark(UNPROVEN, 2) == due.keys[2:]


def test_fresh_mail_goes_behind_those_that_wait_and_that_of_quick_sites_does_not_LSE_06() -> None:
    due = Due("a.example")
    due.bench.dispatcher.connect(Stream("a"))
    fresh = due.bench.dispatcher.site(due.bench.router.plan(due.bench.facts("fresh.example"), 0))
    assert due.bench.dispatcher.accepts_fresh(fresh, 10, due.bench.clock.now)
    due.park()
    assert not due.bench.dispatcher.accepts_fresh(fresh, 10, due.bench.clock.now)
    fresh.standing = QUICK
    assert due.bench.dispatcher.accepts_fresh(fresh, 10, due.bench.clock.now)


def test_one_for_which_there_was_no_time_keeps_its_place() -> None:
    due = Due("a.example", "b.example")
    due.park()
    (called,) = due.worklist.unpark(UNPROVEN, 1)
    due.worklist.park(due.site(called), first=True)
    assert due.worklist.unpark(UNPROVEN, 2)[0] == called


def test_a_look_that_finds_a_site_again_does_not_move_it_ahead() -> None:
    due = Due("a.example", "b.example")
    due.park()
    due.worklist.note(3, due.keys[0])  # which would make it the last, whose turn it is
    due.worklist.fetch_more(due.site(due.keys[0]))
    assert not due.worklist.turn
    assert not due.worklist.wake.is_set()
    assert due.worklist.unpark(UNPROVEN, 1) == due.keys[1:]


def test_a_site_that_answers_waits_with_the_others_no_longer_SHD_03() -> None:
    due = Due("a.example", "b.example")
    due.park()
    due.site(due.keys[1]).standing = QUICK
    due.worklist.fetch_more(due.site(due.keys[1]))
    assert list(due.worklist.turn) == due.keys[1:]
    assert due.worklist.unpark(UNPROVEN, 5) == due.keys[:1]
    assert due.worklist.unpark(QUICK, 5) == []


def test_due_mail_of_a_site_that_went_into_backoff_is_counted_without_a_share_SHD_05() -> None:
    due = Due("a.example")
    due.park()
    due.site(due.keys[0]).window.fail(due.bench.clock.now, "no", transport=True)
    due.worklist.note(3, due.keys[0])
    assert list(due.worklist.turn) == due.keys
    assert due.worklist.unpark(UNPROVEN, 5) == []
