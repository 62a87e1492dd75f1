"""Large bodies that nobody has committed are bounded, by client and in all, and some of many become whole (ACC-07)."""

import random
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailrail.core.uncommitted import (
    NEAR,
    REMEMBERED,
    SETTLING,
    SOONER_PART,
    TRUST,
    Full,
    Uncommitted,
    UncommittedBody,
)

MIB = 1024 * 1024


def stored(held: Uncommitted, client: str, octets: int, size: int = 0, now: float = 0.0) -> UncommittedBody:
    """A body of which so much has come."""
    body = held.body(client, size)
    assert body.begin(now) is None
    assert body.add(octets, now) is None
    return body


def test_one_client_fills_its_part_and_no_more_ACC_07() -> None:
    held = Uncommitted(100 * MIB, 10 * MIB)
    body = held.body("a")
    assert [body.add(MIB, 0.0) for _ in range(11)] == [None] * 10 + [Full.CLIENT]
    assert held.body("a").begin(0.0) is Full.CLIENT
    assert held.body("b").begin(0.0) is None
    body.commit()
    assert held.body("a").begin(0.0) is None
    assert held.octets(0.0) == 0


def test_new_bodies_are_put_off_before_those_under_way_ACC_07() -> None:
    held = Uncommitted(10 * MIB, 10 * MIB)
    bodies = [stored(held, client, MIB) for client in "abcdefg"]
    bodies[0].count(MIB, 0.0)
    assert held.body("z").begin(0.0) is Full.ALL
    assert bodies[0].add(MIB, 0.0) is None
    assert bodies[0].add(2 * MIB, 0.0) is Full.ALL
    assert held.octets(0.0) == 9 * MIB


def test_what_was_given_up_counts_until_its_room_can_be_used_again_ACC_07() -> None:
    held = Uncommitted(100 * MIB, 10 * MIB)
    stored(held, "a", 10 * MIB).give_up(5.0)
    assert held.body("a").begin(5.0 + SETTLING - 0.1) is Full.CLIENT
    assert held.body("a").begin(5.0 + SETTLING) is None
    assert held.octets(5.0 + SETTLING) == 0


def test_what_a_client_declared_is_kept_for_it_from_the_beginning_on_ACC_07() -> None:
    held = Uncommitted(100 * MIB, 10 * MIB)
    first, second, third = (held.body("a", 4 * MIB) for _ in range(3))
    assert [body.begin(0.0) for body in (first, second, third)] == [None, None, Full.CLIENT]
    assert held.body("b", 4 * MIB).begin(0.0) is None, "it is another's business"
    undeclared = held.body("a")
    assert undeclared.begin(0.0) is Full.CLIENT
    undeclared.count(MIB, 0.0)  # a small message, sent on to save memory
    assert undeclared.add(MIB, 0.0) is Full.CLIENT, "it would take what the others were promised"
    for body in (first, second):
        assert [body.add(MIB, 0.0) for _ in range(4)] == [None] * 4


def test_a_client_that_counts_line_ends_as_one_octet_has_room_for_what_it_means_RFC_1870() -> None:
    lines = 100_000
    held = Uncommitted(100 * MIB, 3 * 78 * lines)
    bodies = [held.body("a", 77 * lines) for _ in range(3)]
    assert [body.begin(0.0) for body in bodies] == [None, None, Full.CLIENT]
    assert [body.add(78 * lines, 0.0) for body in bodies[:2]] == [None, None]
    assert Uncommitted(100 * MIB, 10 * MIB).body("a", 10 * MIB).begin(0.0) is None, "it is within the bound"


def test_what_was_merely_declared_is_free_at_once_ACC_07() -> None:
    held = Uncommitted(100 * MIB, 10 * MIB)
    for accepted in (False, True):
        body = held.body("a", 10 * MIB)
        assert body.begin(0.0) is None
        assert held.body("a", MIB).begin(0.0) is Full.CLIENT
        body.commit() if accepted else body.give_up(0.0)
        assert held.octets(0.0) == 0
    body = stored(held, "a", 2 * MIB, 10 * MIB)
    body.give_up(0.0)
    assert held.octets(0.0) == 2 * MIB
    assert held.body("a", 7 * MIB).begin(0.0) is None
    body.give_up(0.0)
    body.commit()
    assert held.octets(SETTLING) == 0, "it ends once"


def test_of_all_clients_nobody_holds_room_that_it_only_speaks_of_ACC_07() -> None:
    held = Uncommitted(100 * MIB, 25 * MIB)
    for client in ("a", "b", "c", "d"):
        assert held.body(client, 25 * MIB).begin(0.0) is None
    assert held.body("e", 25 * MIB).begin(0.0) is None
    stored(held, "f", 20 * MIB)


def test_what_those_lack_that_will_be_whole_sooner_is_kept_from_the_others_ACC_07() -> None:
    held = Uncommitted(100 * MIB)
    quick, slow = stored(held, "a", 20 * MIB, 50 * MIB), stored(held, "b", 10 * MIB, 40 * MIB)
    undeclared = stored(held, "c", 20 * MIB)
    assert undeclared.add(11 * MIB, 0.0) is Full.ALL
    assert slow.add(20 * MIB, 0.0) is Full.ALL
    assert quick.add(30 * MIB, 0.0) is None


def test_who_sends_more_than_it_declared_stands_in_front_of_nobody_ACC_07() -> None:
    held = Uncommitted(100 * MIB)
    more = stored(held, "a", 30 * MIB, 30 * MIB)
    stored(held, "b", 20 * MIB, 40 * MIB)
    assert more.add(31 * MIB, 0.0) is Full.ALL
    assert more.add(29 * MIB, 0.0) is None


def test_others_keep_a_part_of_the_room_whatever_is_declared_ACC_07() -> None:
    held = Uncommitted(100 * MIB)
    for client in range(20):
        stored(held, f"{client}", MIB // 4, 10 * MIB)
    others = stored(held, "z", MIB)
    assert others.add(int(100 * MIB * (1 - SOONER_PART)) - 6 * MIB, 0.0) is None


def commits(
    *, declared: bool, clients: int = 50, speed: int = 4 * MIB, seconds: int = 900, drips: int = 0
) -> list[int]:
    """When bodies of 100 MiB are whole. Each client sends one after the other at the same speed (octets a second), and
    comes back half a minute after a 452; the bounds are the default ones. So many strangers were there before them, and
    send 64 KiB a second."""
    size, limit, client_limit = 100 * MIB, 2048 * MIB, 512 * MIB
    held = Uncommitted(limit, client_limit)
    bodies: dict[int, UncommittedBody] = {}
    back = dict.fromkeys(range(clients), 0)
    times = []
    dripping = [stored(held, f"stranger {number}", MIB, size) for number in range(drips)]
    for now in range(1, seconds):
        for slow in dripping:
            slow.add(64 * 1024, now)
        for client in range(clients):
            body = bodies.get(client)
            if body is None:
                if back[client] > now:
                    continue
                body = held.body(f"{client}", size if declared else 0)
                full = body.begin(now)  # at MAIL
            else:
                full = (body.begin(now) if not body.octets else None) or body.add(speed, now)
            if full is not None:
                body.give_up(now)
                bodies.pop(client, None)
                back[client] = now + 30
            elif body.octets >= size:
                body.commit()
                bodies.pop(client)
                times.append(now)
            else:
                bodies[client] = body
            assert held.octets(now) <= limit
    return times


def test_of_many_bodies_that_grow_evenly_some_are_whole_all_the_time_ACC_07() -> None:
    without, times = commits(declared=False), commits(declared=True)
    assert not [now for now in without if now < 300], "they all stop short of the bound, again and again"
    assert len(times) >= 150
    for minute in range(1, 15):
        assert len([now for now in times if minute * 60 <= now < minute * 60 + 60]) >= 8


@pytest.mark.parametrize("strangers", [10, 30])
def test_strangers_who_were_there_first_and_send_little_hold_nobody_up_ACC_07(strangers: int) -> None:
    times = commits(declared=True, seconds=600, drips=strangers)
    for minute in range(1, 10):
        assert len([now for now in times if minute * 60 <= now < minute * 60 + 60]) >= 8


# --- before it sends: who may start ---


class Crowd:
    """Clients that send large bodies by a line whose octets those who send share evenly, second by second."""

    def __init__(self, *, asks: bool, line: int = 24 * MIB, limit: int = 2048 * MIB) -> None:
        """`asks`: whether who may start is asked before the content comes; `line`: octets a second."""
        self.held = Uncommitted(limit, 512 * MIB)
        self.whole: dict[str, float] = {}
        self.for_nothing = 0  # octets that came of what was refused in the middle
        self._asks = asks
        self._line = line
        self._random = random.Random(7)
        self._slow: set[str] = set()
        self._bodies: dict[str, UncommittedBody] = {}
        self._back: dict[str, float] = {}

    def run(self, clients: list[str], seconds: int, begin: int = 0, slow: tuple[str, ...] = ()) -> None:
        """`slow`: clients that send 20 KiB a second."""
        self._back |= dict.fromkeys((*clients, *slow), begin)
        self._slow.update(slow)
        for now in range(begin, begin + seconds):
            for client, back in list(self._back.items()):
                if client not in self._bodies and back <= now and client not in self.whole:
                    self._begin(client, now)
            share = self._line // max(1, len(self._bodies.keys() - self._slow))
            for client, body in list(self._bodies.items()):
                self._send(client, body, min(share, 20 * 1024) if client in self._slow else share, now)
            assert self.held.octets(now) <= self.held.limit

    def _begin(self, client: str, now: float) -> None:
        body = self.held.body(client, 100 * MIB)
        full = body.begin(now)
        if full is None and self._asks:
            full = body.start(now)
        if full is None:
            self._bodies[client] = body
        else:
            self._away(client, body, now)

    def _send(self, client: str, body: UncommittedBody, octets: int, now: float) -> None:
        octets = min(octets, 100 * MIB - body.octets)
        if (not body.octets and body.begin(now) is not None) or body.add(octets, now) is not None:
            self.for_nothing += 100 * MIB  # its rest is read as well
            self._away(client, body, now)
        elif body.octets >= 100 * MIB:
            body.commit()
            del self._bodies[client]
            self.whole[client] = now

    def _away(self, client: str, body: UncommittedBody, now: float) -> None:
        body.give_up(now)
        self._bodies.pop(client, None)
        self._back[client] = now + self._random.uniform(0.5, 90.0)


def test_of_a_hundred_large_bodies_at_once_none_comes_for_nothing_ACC_07() -> None:
    hundred = [f"client {number}" for number in range(100)]
    before, now = Crowd(asks=False), Crowd(asks=True)
    before.run(hundred, 900)
    now.run(hundred, 900)
    assert before.for_nothing > 1024 * MIB
    assert (now.for_nothing, len(now.whole)) == (0, 100)


@pytest.mark.parametrize("line", [9, 12, 50, 200])
def test_whatever_the_line_bodies_that_share_it_have_room_for_all_of_them_ACC_07(line: int) -> None:
    crowd = Crowd(asks=True, line=line * MIB)
    crowd.run([f"client {number}" for number in range(100)], 600)
    assert crowd.for_nothing == 0
    assert len(crowd.whole) >= min(100, line * 600 // 100 // 2)


def test_strangers_who_send_little_keep_the_others_from_no_more_than_a_part_ACC_07() -> None:
    crowd = Crowd(asks=True)
    crowd.run([], 30, slow=tuple(f"slow {number}" for number in range(60)))
    crowd.run([f"client {number}" for number in range(20)], 300, begin=30)
    assert len(crowd.whole) == 20


def test_a_word_is_believed_for_seconds_and_then_the_pace_tells_ACC_07() -> None:
    held = Uncommitted(100 * MIB)
    words = held.body("a", 20 * MIB)
    assert words.start(0.0) is None
    assert held.body("b", 20 * MIB).may_start(TRUST - 0.1) is Full.ALL, "strangers have announced enough"
    assert held.body("b", 20 * MIB, known=True).may_start(TRUST - 0.1) is None
    assert held.body("b", 20 * MIB).may_start(TRUST) is None, "nothing came of it"
    again = held.body("a", 20 * MIB)
    assert again.start(TRUST) is None
    assert held.body("b", 20 * MIB).may_start(TRUST) is None, "its word counts for nothing now"
    for body in (words, again):
        body.give_up(TRUST)
    assert held.body("a", 20 * MIB).start(TRUST + SETTLING) is None
    assert held.body("b", 20 * MIB).may_start(TRUST + SETTLING) is Full.ALL, "a minute later it does again"


def test_who_goes_away_before_its_body_is_whole_is_not_believed_for_a_minute_ACC_07() -> None:
    held = Uncommitted(100 * MIB)
    body = held.body("a", 20 * MIB)
    assert body.start(0.0) is None
    body.give_up(1.0)
    assert held.body("a", 20 * MIB).start(1.0) is None
    assert held.body("b", 20 * MIB).may_start(1.0) is None


@pytest.mark.parametrize("pace", ["announced", "slow", "quick"])
def test_strangers_keep_no_more_than_half_of_the_room_from_clients_that_are_known_ACC_07(pace: str) -> None:
    held, now = Uncommitted(1000 * MIB), 0.0
    for number in range(100):
        stranger = held.body(f"{number}", 100 * MIB)
        if stranger.start(now) is not None:
            continue
        if pace != "announced":
            now += TRUST
            stranger.add(MIB // 64 if pace == "slow" else 2 * MIB, now)
    friend = held.body("friend", 100 * MIB, known=True)
    assert friend.start(now) is None
    friend.add(100 * MIB, now)
    friend.commit()
    assert held.body("friend", 100 * MIB).known, "a large message of it became whole"


def test_a_known_client_that_breaks_its_word_counts_as_a_stranger_ACC_07() -> None:
    held = Uncommitted(100 * MIB)
    liar = held.body("a", 20 * MIB, known=True)
    assert liar.start(0.0) is None
    liar.give_up(0.0)
    assert held.body("b", 20 * MIB).start(0.0) is None
    assert held.body("a", 20 * MIB, known=True).may_start(0.0) is Full.ALL


def test_what_started_is_never_refused_for_a_body_that_came_later_ACC_07() -> None:
    held = Uncommitted(100 * MIB)
    first = held.body("a", 20 * MIB, known=True)
    assert first.start(0.0) is None
    others = [held.body(f"{number}", 20 * MIB, known=True) for number in range(5)]
    assert [other.start(0.0) for other in others] == [None, None, Full.ALL, Full.ALL, Full.ALL]
    for other in others[:2]:
        assert other.begin(0.0) is None
        assert other.add(20 * MIB, 0.0) is None
    assert (first.begin(1.0), first.add(20 * MIB, 1.0)) == (None, None)


# --- who waits in the middle ---


def test_it_is_worth_waiting_only_for_one_that_will_be_whole_soon_and_waits_for_nobody_ACC_07() -> None:
    held = Uncommitted(100 * MIB)
    body = stored(held, "a", 10 * MIB)
    assert not body.room_near(0.0), "nobody else is there"
    stored(held, "b", 10 * MIB)
    assert not body.room_near(0.0), "nobody knows when that will be whole"
    near, far = stored(held, "c", 10 * MIB, 20 * MIB), stored(held, "d", MIB // 4, 20 * MIB)
    assert body.room_near(0.0)
    assert body.room_near(NEAR - 1.0)
    assert not body.room_near(2 * NEAR), "it stands still"
    near.waits = True
    assert not body.room_near(0.0)
    far.add(MIB, 0.0)
    assert body.room_near(0.0)


def test_whoever_waits_is_woken_when_a_body_ends_ACC_07() -> None:
    held = Uncommitted(100 * MIB)
    woken: list[str] = []
    wakes = {name: partial(woken.append, name) for name in ("first", "second", "third")}
    bodies = [stored(held, "a", MIB) for _ in range(2)]
    for wake in wakes.values():
        held.wait(wake)
    held.forget(wakes["second"])
    bodies[0].commit()
    assert woken == ["first", "third"]
    held.wait(wakes["second"])
    bodies[1].give_up(0.0)
    assert woken == ["first", "third", "second"]
    bodies[1].give_up(0.0)
    assert len(woken) == 3


def test_clients_that_are_remembered_are_bounded_ACC_07() -> None:
    held = Uncommitted(100 * MIB)
    for number in range(REMEMBERED + 10):
        stored(held, f"{number}", 1).commit()
        liar = held.body(f"{number}", MIB)
        assert liar.start(0.0) is None
        liar.give_up(0.0)
    assert not held.body("0").known
    assert held.body(f"{REMEMBERED + 9}").known
    assert len(held._whole) == len(held._doubted) == REMEMBERED


@given(
    st.lists(
        st.tuples(
            st.sampled_from("abc"),
            st.integers(0, 5),
            st.integers(0, 9),
            st.sampled_from(["add", "new", "committed", "given up"]),
        ),
        max_size=60,
    )
)
def test_it_never_counts_more_than_it_may_and_forgets_nobody(steps: list[tuple[str, int, int, str]]) -> None:
    held, now = Uncommitted(20, 8), 0.0
    bodies: dict[str, list[UncommittedBody]] = {client: [] for client in "abc"}
    for client, octets, size, what in steps:
        now += 7.0
        mine = bodies[client]
        if what == "new":
            body = held.body(client, size)
            if body.begin(now) is None:
                mine.append(body)
                if size % 2:
                    body.start(now)
        elif mine and what == "add":
            before, full = mine[-1].octets, mine[-1].add(octets, now)
            assert mine[-1].octets == before + (octets if full is None else 0)
        elif mine:
            body = mine.pop(0)
            body.commit() if what == "committed" else body.give_up(now)
        assert all(sum(max(body.octets, body.size) for body in of_client) <= 8 for of_client in bodies.values())
        assert sum(body.octets for of_client in bodies.values() for body in of_client) <= held.octets(now) <= 20
    later = now + SETTLING + 1
    assert held.octets(later) == sum(body.octets for of_client in bodies.values() for body in of_client)
    for body in [body for of_client in bodies.values() for body in of_client]:
        body.commit()
    assert held.octets(later) == 0
    assert [held.body(client, 8).begin(later) for client in "abc"] == [None] * 3
