"""TLS handshakes under way are bounded, and whoever is in earnest gets its own."""

from mailrail.kit.metrics import Count
from mailrail_ingress.handshakes import GRACE, Handshakes


def begun(limit: int, *names: str) -> tuple[Handshakes, list[str], Count]:
    """One after the other, 0.1 s apart, from 0.0 on."""
    handshakes, ended, level = Handshakes(limit), list[str](), Count()
    for number, name in enumerate(names):
        handshakes.begin(name, number / 10, lambda name=name: ended.append(name), level)  # type: ignore[misc]
    return handshakes, ended, level


def test_the_one_that_is_longest_under_way_ends_for_a_new_one() -> None:
    handshakes, ended, level = begun(3, "a", "b", "c")
    assert handshakes.make_room(5.0)
    assert (ended, level.number, len(handshakes)) == (["a"], 2, 2)
    handshakes.done("a")
    assert handshakes.make_room(5.0), "there is room: nobody has to go"
    assert (ended, level.number) == (["a"], 2)


def test_none_is_ended_that_has_only_just_begun() -> None:
    handshakes, ended, _ = begun(2, "a", "b")
    assert not handshakes.make_room(GRACE - 0.01)
    assert ended == []
    handshakes.done("a")
    assert handshakes.make_room(GRACE - 0.01)
    assert ended == []


def test_where_none_is_under_way_none_is_ended() -> None:
    handshakes, ended, _ = begun(2)
    assert not handshakes.end_oldest(100.0)
    assert ended == []
