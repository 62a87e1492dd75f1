"""What people write to order answers and delays: `RCPT *@busy.example 2x 451 4.7.1 later`, `DATA 2.5`.

    STEP [ADDRESS] [Nx] REPLY
    STEP [ADDRESS] [Nx] close
    STEP SECONDS

A rule without an address holds for all. The most special rule wins, as in `Answers`: the address, then its domain.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, get_args

from mailrail.sink.answers import CLOSE, Answers, Step

STEPS: Final[tuple[Step, ...]] = get_args(Step)
ADDRESSED: Final[frozenset[Step]] = frozenset({"MAIL", "RCPT", "END"})
"""Steps that come with an address: the sender's, a recipient's, each recipient's."""
RULES_LIMIT: Final = 1000
"""Rules of one sink."""
DELAY_LIMIT: Final = 3600.0
"""Seconds of the longest delay: clients wait 10 minutes at most (RFC 5321 4.5.3.2.6)."""
_REPLY_LIMIT = 510  # octets of a reply line without its end (RFC 5321 4.5.3.1.5)
_TEXT_LIMIT = 2000  # characters of a rule: an address and a reply have room
_EXAMPLE = "write it as RCPT *@busy.example 451 4.7.1 later"


class BadRule(ValueError):
    """What was written is no rule. The text says what is wrong and what to write."""


@dataclass(frozen=True, slots=True)
class OrderedAnswer:
    """An answer that was ordered."""

    step: Step
    to: str
    """As `Answers.give` takes it: an address, `@domain`, `@` for the null sender, or empty for all."""
    reply: str
    """The reply line without its end, or `CLOSE`."""
    times: int | None = None
    """How often; None: from now on."""


def rule(text: str) -> OrderedAnswer:
    """The rule that `text` says. Raises BadRule."""
    if len(text) > _TEXT_LIMIT:
        raise BadRule(f"the rule has more than {_TEXT_LIMIT} characters; shorten it")
    step, rest = _step(text, _EXAMPLE)
    to, times = "", None
    word, _, after = rest.partition(" ")
    if not _begins_reply(word) and not _times(word):
        to, rest = _address(step, word), after.strip()
        word, _, after = rest.partition(" ")
    if found := _times(word):
        times, rest = found, after.strip()
    return OrderedAnswer(step, to, _reply(step, rest), times)


def delay(text: str) -> tuple[Step, float]:
    """The step and its delay in seconds that `text` says. Raises BadRule."""
    example = "write a step and seconds: DATA 2.5"
    step, rest = _step(text[:_TEXT_LIMIT], example)
    if not re.fullmatch(r"[0-9]{1,4}(\.[0-9]{1,6})?", rest) or float(rest) > DELAY_LIMIT:
        raise BadRule(f"{rest!r} is no delay from 0 to {DELAY_LIMIT:.0f} seconds; {example}")
    return step, float(rest)


def answers_of(rules: Iterable[OrderedAnswer], delays: Iterable[tuple[Step, float]], answers: Answers) -> None:
    """Order the rules and delays. Raises BadRule for two of the same step and address, and for too many."""
    ordered: set[tuple[Step, str]] = set()
    for each in rules:
        key = each.step, each.to.lower()
        if key in ordered:
            whom = each.to or "all"
            raise BadRule(f"{each.step} has two answers for {whom}; leave one out")
        ordered.add(key)
        if len(ordered) > RULES_LIMIT:
            raise BadRule(f"there are more than {RULES_LIMIT} answers; give one for a whole domain: *@DOMAIN")
        answers.give(each.step, each.reply, to=each.to, times=each.times)
    for step, seconds in delays:
        if step in answers.delays:
            raise BadRule(f"{step} has two delays; leave one out")
        answers.delays[step] = seconds


def _step(text: str, example: str) -> tuple[Step, str]:
    word, _, rest = text.strip().partition(" ")
    wanted = word.upper()
    for step in STEPS:
        if wanted in (step, "LHLO" if step == "EHLO" else step):
            return step, rest.strip()
    raise BadRule(f"{word!r} is no step; begin with one of {', '.join(STEPS)}: {example}")


def _begins_reply(word: str) -> bool:
    return word.lower() == CLOSE or re.fullmatch(r"[0-9]{3}", word) is not None


def _times(word: str) -> int:
    """How often, of `3x`; 0 if it is something else."""
    return int(word[:-1]) if re.fullmatch(r"[1-9][0-9]{0,8}[xX]", word) else 0


def _address(step: Step, word: str) -> str:
    if not word:
        raise BadRule(f"{step} has no reply; {_EXAMPLE}")
    if step not in ADDRESSED:
        raise BadRule(f"{step} comes without an address, and {word!r} is no reply; write {step} 451 4.3.0 later")
    if not word.isprintable():
        raise BadRule(f"{word!r} has characters that no address has; {_EXAMPLE}")
    if word == "*":
        return ""
    if word == "<>":
        return "@"
    bare = word[1:-1] if word.startswith("<") and word.endswith(">") else word
    bare = bare[1:] if bare.startswith("*@") else bare
    if not bare.strip("@") or set("*<>") & set(bare):
        raise BadRule(f"{word!r} is no address; write an address, *@DOMAIN, * for all, or <> for the null sender")
    return bare


def _reply(step: Step, text: str) -> str:
    if text.lower() == CLOSE:
        return CLOSE
    code, _, words = text.partition(" ")
    wanted = "[245][0-5][0-9]" if step in ADDRESSED else "[45][0-5][0-9]"
    if not re.fullmatch(wanted, code):
        kinds = "2yz, 4yz, 5yz" if step in ADDRESSED else "4yz, 5yz"
        raise BadRule(f"{code!r} is no reply to {step}; write a code {kinds} and a text, or close: {_EXAMPLE}")
    if not (words.isascii() and words.isprintable()) or len(text) > _REPLY_LIMIT:
        raise BadRule(f"the reply to {step} must be one line of ASCII with at most {_REPLY_LIMIT} characters")
    return f"{code} {words.strip() or 'as the sink was told'}"
