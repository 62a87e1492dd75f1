"""Large bodies that nobody has committed are bounded, by client and in all, and some of many become whole (ACC-07)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailrail.core.uncommitted import SETTLING, SOONER_PART, Full, Uncommitted, UncommittedBody

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
