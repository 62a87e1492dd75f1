"""Drives a decision that asks the DNS (`core.lookups`) with the resolver, within one bound of time and of questions.

The questions of one step are asked side by side. When the time is up, what is still asked for is given up, and this and
all that the decision asks later is answered as trouble that is `late`: it ends by its own rules, and at once.
"""

import asyncio
from collections.abc import Sequence
from ipaddress import ip_address
from typing import Any, Final, TypeVar

import dns.exception
import dns.name

from mailrail.core.lookups import NO_DATA, NO_NAME, Asking, DnsOutcome, DnsQuestion, LookupAnswer
from mailrail.kit.resolver import DnsResolver, LookupFailed, NoSuchDomain

_T = TypeVar("_T")
_PERMANENT: Final = frozenset({"FORMERR", "NOTIMP", "REFUSED"})
_TEXT_SHOWN: Final = 300  # characters of what went wrong


async def ask_dns(asking: Asking[_T], resolver: DnsResolver, *, seconds: float, questions: int) -> _T:
    """The result of the decision. `seconds`: for all of its look-ups together; `questions`: how many it may ask.

    Raises nothing but what the decision itself raises.
    """
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    left = questions
    try:
        asked = next(asking)
        while True:
            answers = await _answers(asked[: max(left, 0)], resolver, end - loop.time(), seconds)
            answers += [_late(f"it asks more than {questions} questions")] * (len(asked) - len(answers))
            left -= len(asked)
            asked = asking.send(tuple(answers))
    except StopIteration as done:
        result: _T = done.value
        return result


async def _answers(
    asked: Sequence[DnsQuestion], resolver: DnsResolver, left: float, seconds: float
) -> list[LookupAnswer]:
    """In the order of asking; those that do not come within the time that is `left` are late."""
    if not asked or left <= 0:
        return [_late(f"no answer within {seconds:g} s")] * len(asked)
    tasks = [asyncio.ensure_future(_answer(question, resolver)) for question in asked]
    try:
        await asyncio.wait(tasks, timeout=left)
    finally:
        for task in tasks:
            task.cancel()  # of no effect on those that are done; the look-up itself goes on for others that wait for it
    return [task.result() if task.done() else _late(f"no answer within {seconds:g} s") for task in tasks]


def _late(text: str) -> LookupAnswer:
    return LookupAnswer(DnsOutcome.TROUBLE, text=text, late=True)


async def _answer(question: DnsQuestion, resolver: DnsResolver) -> LookupAnswer:
    name = zone_form(question.name)
    if name is None:
        return NO_NAME
    try:
        found = await resolver.answer(name, question.kind)
    except NoSuchDomain:
        return NO_NAME
    except LookupFailed as error:
        text = str(error)[:_TEXT_SHOWN]
        return LookupAnswer(DnsOutcome.TROUBLE, text=text, permanent=error.rcode in _PERMANENT)
    records = tuple(_record(question.kind, record) for record in found.records)
    return LookupAnswer(DnsOutcome.FOUND, records) if records else NO_DATA


def zone_form(name: str) -> str | None:
    """The name with escapes for what means something else in a zone file, such as a blank (RFC 1035 5.1). None for what
    the DNS has no room for: nobody has to be asked for it."""
    try:
        labels = [label.encode("ascii") for label in name.split(".")]
        return dns.name.Name([*labels, b""]).to_text(omit_final_dot=True)
    except (UnicodeEncodeError, dns.exception.DNSException):
        return None


def _record(kind: str, record: Any) -> Any:
    """As `LookupAnswer` has it."""
    match kind:
        case "A" | "AAAA":
            return ip_address(record.address)
        case "MX":
            return record.preference, _host(record.exchange)
        case "TXT":
            return b"".join(record.strings)
        case _:
            return _host(record.target)


def _host(name: dns.name.Name) -> str:
    return name.to_text(omit_final_dot=True).lower() if name != dns.name.root else ""
