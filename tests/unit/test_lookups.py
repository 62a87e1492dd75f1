"""A decision that asks the DNS is driven by whoever has the answers."""

from ipaddress import IPv4Address

import pytest

from mailrail.core.lookups import (
    NO_NAME,
    Asking,
    DnsOutcome,
    DnsQuestion,
    LookupAnswer,
    answered,
    beside,
    remembering,
    together,
)


def _hosts_of(domain: str) -> Asking[tuple[IPv4Address, ...]]:
    (hosts,) = yield (DnsQuestion(domain, "MX"),)
    answers = yield tuple(DnsQuestion(host, "A") for _, host in hosts.hosts)
    return tuple(address for answer in answers for address in answer.records)


def test_each_question_gets_its_answer_in_the_order_of_asking() -> None:
    zone = {
        DnsQuestion("a.example", "MX"): LookupAnswer(DnsOutcome.FOUND, ((10, "one.a.example"), (20, "two.a.example"))),
        DnsQuestion("one.a.example", "A"): LookupAnswer(DnsOutcome.FOUND, (IPv4Address("127.0.0.1"),)),
        DnsQuestion("two.a.example", "A"): LookupAnswer(DnsOutcome.FOUND, (IPv4Address("127.0.0.2"),)),
    }
    found = answered(_hosts_of("a.example"), lambda question: zone.get(question, NO_NAME))
    assert found == (IPv4Address("127.0.0.1"), IPv4Address("127.0.0.2"))


def test_a_decision_that_asks_nothing_more_returns_at_once() -> None:
    asked = []

    def answer(question: DnsQuestion) -> LookupAnswer:
        asked.append(question)
        return NO_NAME

    assert answered(_hosts_of("none.example"), answer) == ()
    assert asked == [DnsQuestion("none.example", "MX")]


def counts(most: int) -> Asking[list[str]]:
    """Asks two questions a round, and returns the texts of all answers."""
    heard = []
    for number in range(most):
        questions = tuple(DnsQuestion(f"{kind}{number}.example", "TXT") for kind in "ab")
        heard += [answer.text for answer in (yield questions)]
    return heard


def echo(question: DnsQuestion) -> LookupAnswer:
    """The name as answer."""
    return LookupAnswer(DnsOutcome.TROUBLE, text=question.name)


def rounds_of(asking: Asking[object]) -> list[list[str]]:
    """The names that are asked in each round."""
    rounds = []
    try:
        questions = next(asking)
        while True:
            rounds.append([question.name for question in questions])
            questions = asking.send(tuple(map(echo, questions)))
    except StopIteration:
        return rounds


def test_decisions_side_by_side_are_answered_each_in_its_order() -> None:
    assert answered(together([counts(1), counts(0), counts(2)]), echo) == (
        ["a0.example", "b0.example"],
        [],
        ["a0.example", "b0.example", "a1.example", "b1.example"],
    )
    assert answered(together([]), echo) == ()


def test_what_several_decisions_ask_now_is_asked_at_once() -> None:
    assert rounds_of(together([counts(1), counts(2)])) == [
        ["a0.example", "b0.example", "a0.example", "b0.example"],
        ["a1.example", "b1.example"],
    ]


def test_two_decisions_of_different_kinds_stand_beside_each_other() -> None:
    assert answered(beside(counts(1), _hosts_of("none.example")), echo) == (["a0.example", "b0.example"], ())
    assert rounds_of(beside(counts(1), beside(counts(1), counts(2)))) == [
        ["a0.example", "b0.example"] * 3,
        ["a1.example", "b1.example"],
    ]


def test_with_a_memory_no_question_is_asked_twice_in_one_round_or_in_two() -> None:
    def twice() -> Asking[list[str]]:
        first, second = yield from together([counts(1), counts(1)])
        return first + second + (yield from counts(2))

    assert rounds_of(remembering(twice())) == [["a0.example", "b0.example"], ["a1.example", "b1.example"]]
    assert answered(remembering(twice()), echo) == ["a0.example", "b0.example"] * 3 + ["a1.example", "b1.example"]


def test_an_error_of_one_decision_ends_all() -> None:
    def fails() -> Asking[None]:
        yield (DnsQuestion("a.example", "A"),)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        answered(remembering(together([counts(2), fails()])), echo)
