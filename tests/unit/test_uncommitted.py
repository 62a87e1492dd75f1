"""Large bodies that nobody has committed are bounded, by client and in all (ACC-07)."""

from hypothesis import given
from hypothesis import strategies as st

from mailrail.core.uncommitted import SETTLING, Full, Uncommitted

MIB = 1024 * 1024


def test_one_client_fills_its_part_and_no_more_ACC_07() -> None:
    held = Uncommitted(100 * MIB, 10 * MIB)
    assert [held.add("a", MIB, 0.0) for _ in range(11)] == [None] * 10 + [Full.CLIENT]
    assert held.admits("a", 0.0) is Full.CLIENT
    assert held.admits("b", 0.0) is None
    held.commit("a", 5 * MIB)
    assert held.admits("a", 0.0) is None
    assert held.octets(0.0) == 5 * MIB


def test_new_bodies_are_put_off_before_those_under_way_ACC_07() -> None:
    held = Uncommitted(10 * MIB, 10 * MIB)
    for client in "abcdefgh":
        held.count(client, MIB)
    assert held.admits("z", 0.0) is Full.ALL
    assert held.add("a", MIB, 0.0) is None
    assert held.add("a", 2 * MIB, 0.0) is Full.ALL
    assert held.octets(0.0) == 9 * MIB


def test_what_was_given_up_counts_until_its_room_can_be_used_again_ACC_07() -> None:
    held = Uncommitted(100 * MIB, 10 * MIB)
    held.count("a", 10 * MIB)
    held.give_up("a", 10 * MIB, 5.0)
    assert held.admits("a", 5.0 + SETTLING - 0.1) is Full.CLIENT
    assert held.admits("a", 5.0 + SETTLING) is None
    assert held.octets(5.0 + SETTLING) == 0


def test_a_body_says_its_size_and_is_put_off_before_it_comes_RFC_1870() -> None:
    held = Uncommitted(100 * MIB, 10 * MIB)
    held.count("a", 5 * MIB)
    assert held.admits("a", 0.0, 2 * MIB) is None
    assert held.admits("a", 0.0, 3 * MIB) is Full.CLIENT
    assert held.admits("b", 0.0, 9 * MIB) is None, "nothing else is there of it"


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.integers(0, 5), st.sampled_from(["add", "committed", "given up"])),
        max_size=60,
    )
)
def test_it_never_counts_more_than_it_may_and_forgets_nobody(steps: list[tuple[str, int, str]]) -> None:
    held, mine, now = Uncommitted(20, 8), dict.fromkeys("abc", 0), 0.0
    for client, octets, what in steps:
        now += 7.0
        if what == "add" and held.add(client, octets, now) is None:
            mine[client] += octets
        elif what != "add":
            octets = min(octets, mine[client])
            mine[client] -= octets
            held.commit(client, octets) if what == "committed" else held.give_up(client, octets, now)
        assert sum(mine.values()) <= held.octets(now) <= 20
    assert held.octets(now + SETTLING + 1) == sum(mine.values())
