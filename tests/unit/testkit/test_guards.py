"""The books of a run: who must be there, who may not, and who came too often."""

import pytest

from mailrail.sink import SinkMessage

from testkit.guards import Books, books
from testkit.traffic import Fate, Traffic, Try

TRAFFIC = Traffic(
    [
        Try("1-1", ("a@x", "b@x"), Fate.ACCEPTED, "250", 1, 0),
        Try("2-2", ("a@x",), Fate.REFUSED, "451", 2, 1),
        Try("3-3", ("a@x",), Fate.UNCERTAIN, "", 3, 2),
    ]
)


def receipt(id_: str, *to: str, sender: str = "s@x", at: float = 5) -> SinkMessage:
    return SinkMessage(sender=sender, recipients=to, content=f"X-Try: {id_}\r\n\r\n".encode(), at=at)


WHOLE = [receipt("1-1", "a@x"), receipt("1-1", "b@x")]


@pytest.mark.parametrize("arrived", [WHOLE, [receipt("1-1", "a@x", "b@x")], [*WHOLE, receipt("3-3", "a@x")]])
def test_every_accepted_recipient_once_and_uncertain_ones_perhaps_is_as_promised(
    arrived: list[SinkMessage],
) -> None:
    books(TRAFFIC, arrived).check()


@pytest.mark.parametrize(
    ("arrived", "says"),
    [
        (WHOLE[:1], "1 accepted copies did not arrive, such as .*'1-1', 'b@x'"),
        ([*WHOLE, receipt("1-1", "b@x")], "1 copies came more than once"),
        ([*WHOLE, receipt("2-2", "a@x")], "refused and yet delivered"),
        ([*WHOLE, receipt("9-9", "a@x")], "refused and yet delivered"),
        ([*WHOLE, receipt("1-1", "c@x")], "refused and yet delivered"),
        ([*WHOLE, receipt("1-1", "s@x", sender="")], "1 bounces"),
    ],
)
def test_each_broken_promise_is_named(arrived: list[SinkMessage], says: str) -> None:
    with pytest.raises(AssertionError, match=says):
        books(TRAFFIC, arrived).check()


def test_a_second_copy_is_excused_by_when_the_first_one_came() -> None:
    found: Books = books(TRAFFIC, [*WHOLE, receipt("1-1", "b@x", at=9)])
    found.check(may_double=lambda first: first == 5)
    with pytest.raises(AssertionError, match="had no reason"):
        found.check(may_double=lambda first: first == 9)


def test_a_copy_that_was_refused_is_excused_by_when_its_try_began() -> None:
    found = books(TRAFFIC, [*WHOLE, receipt("2-2", "a@x")])
    found.check(may_come=lambda began: began == 1)
    with pytest.raises(AssertionError, match="refused and yet delivered"):
        found.check(may_come=lambda began: began == 2)
