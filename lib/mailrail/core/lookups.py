"""DNS questions of a decision that cannot know beforehand what it will ask (SPF, DKIM keys, DMARC records).

Such a decision is a generator: it yields the questions that it can ask at once, receives one answer for each in the
same order, and returns its result. It does no I/O and never sees a clock; whoever drives it asks the resolver, bounds
the time, and answers `TROUBLE` for what came too late. A test drives it with a table (`answered`).

Several become one by `together` and `beside`, which ask side by side, and `remembering` lets none of them ask twice.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Address, IPv6Address
from itertools import islice
from typing import Any, Final, Literal, TypeVar, cast

Kind = Literal["A", "AAAA", "MX", "PTR", "TXT"]
"""The types of records that authentication of mail asks for."""
NAME_LIMIT: Final = 253
"""Octets of a name in the DNS without its final dot (RFC 1035 3.1)."""

_T = TypeVar("_T")
_A = TypeVar("_A")
_B = TypeVar("_B")


class DnsOutcome(Enum):
    """What the DNS said about a name and type."""

    FOUND = "found"
    NO_DATA = "no data"  # the name exists, without such records (RFC 2308 2.2)
    NO_NAME = "no name"  # NXDOMAIN (RFC 2308 2.1)
    TROUBLE = "trouble"  # SERVFAIL, a time-out, a broken answer: says nothing about the name


@dataclass(frozen=True, slots=True)
class DnsQuestion:
    """One name and type. `name` is in A-labels, without a dot at its end."""

    name: str
    kind: Kind


@dataclass(frozen=True, slots=True)
class LookupAnswer:
    """What one question brought. `records` is empty unless it was found, and holds for

    A, AAAA: `IPv4Address`, `IPv6Address`; MX: `(preference, host)`; PTR: names as `str`; TXT: `bytes`, the strings of
    one record joined without a space (RFC 7208 3.3). Hosts and names are lower case, without a dot at their end.
    """

    outcome: DnsOutcome
    records: tuple[Any, ...] = ()
    text: str = ""  # of trouble: what was wrong, in words, for people
    late: bool = False  # of trouble: what the whole decision may take is used up, so each further answer is late, too

    permanent: bool = False  # of trouble: the name server refuses the question, and will do so again (RFC 1035 4.1.1)

    @property
    def addresses(self) -> tuple[IPv4Address | IPv6Address, ...]:
        """The records of an A or AAAA question."""
        return self.records

    @property
    def texts(self) -> tuple[bytes, ...]:
        """The records of a TXT question."""
        return self.records

    @property
    def hosts(self) -> tuple[tuple[int, str], ...]:
        """The records of an MX question: preference and host."""
        return self.records

    @property
    def names(self) -> tuple[str, ...]:
        """The records of a PTR question."""
        return self.records


NO_NAME = LookupAnswer(DnsOutcome.NO_NAME)
NO_DATA = LookupAnswer(DnsOutcome.NO_DATA)

Asking = Generator[tuple[DnsQuestion, ...], tuple[LookupAnswer, ...], _T]
"""A decision that asks; each yield is answered by as many answers."""


def answered(asking: Asking[_T], answer: Callable[[DnsQuestion], LookupAnswer]) -> _T:
    """Drive a decision with answers that are known already, and return its result."""
    try:
        questions = next(asking)
        while True:
            questions = asking.send(tuple(answer(question) for question in questions))
    except StopIteration as done:
        result: _T = done.value
        return result


def together(askings: Sequence[Asking[_T]]) -> Asking[tuple[_T, ...]]:
    """Drive several decisions side by side: what all of them ask now is asked at once. Each goes on when all of that
    is answered, so none waits longer than for the slowest question of a round."""
    results: dict[int, _T] = {}
    waiting: dict[int, tuple[Asking[_T], tuple[DnsQuestion, ...]]] = {}

    def advance(at: int, asking: Asking[_T], answers: tuple[LookupAnswer, ...] | None) -> None:
        try:
            questions = next(asking) if answers is None else asking.send(answers)
        except StopIteration as done:
            results[at] = done.value
        else:
            waiting[at] = asking, questions

    for at, asking in enumerate(askings):
        advance(at, asking, None)
    while waiting:
        answers = iter((yield tuple(question for _, questions in waiting.values() for question in questions)))
        now, waiting = waiting, {}
        for at, (asking, questions) in now.items():
            advance(at, asking, tuple(islice(answers, len(questions))))
    return tuple(results[at] for at in range(len(askings)))


def beside(one: Asking[_A], other: Asking[_B]) -> Asking[tuple[_A, _B]]:
    """Drive two decisions with different results side by side, as `together` does."""
    found: tuple[Any, ...] = yield from together((cast(Asking[Any], one), cast(Asking[Any], other)))
    return found[0], found[1]


def remembering(asking: Asking[_T]) -> Asking[_T]:
    """Drive a decision with a memory: what was answered once is not asked again."""
    answers: dict[DnsQuestion, LookupAnswer] = {}
    try:
        questions = next(asking)
        while True:
            missing = tuple(question for question in dict.fromkeys(questions) if question not in answers)
            if missing:
                answers.update(zip(missing, (yield missing), strict=True))
            questions = asking.send(tuple(answers[question] for question in questions))
    except StopIteration as done:
        result: _T = done.value
        return result
