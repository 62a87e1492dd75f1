"""What the server's answers mean for the caller: sent, later, or refused with an exit status (SML-07, SML-09)."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto

from mailrail.core.smtp.answer import AFTER_MAIL, Answer, Stage, Trouble
from mailrail.sendmail.status import ExitStatus


class Fate(Enum):
    """What becomes of a recipient now."""

    SENT = auto()
    LATER = auto()
    """Out of reach, 4yz, or nothing heard after the final dot: it is tried again (RFC 5321 4.5.4)."""
    REFUSED = auto()


@dataclass(frozen=True, slots=True)
class RecipientFate:
    """One recipient after an attempt."""

    fate: Fate
    status: ExitStatus
    text: str
    """What was said, for people; without control characters."""


_LATER_TROUBLES = frozenset(
    {Trouble.DNS, Trouble.UNREACHABLE, Trouble.CLOSED, Trouble.TIMEOUT, Trouble.TLS, Trouble.PROXY, Trouble.NO_ADDRESS}
)
_BROKEN_MESSAGE = frozenset({Trouble.TOO_LARGE, Trouble.UNCONVERTIBLE})
_UNKNOWN_USER = frozenset({(1, 0), (1, 1), (1, 2), (1, 3), (1, 6), (1, 10), (2, 1)})
"""Subject and detail of enhanced codes that say so (RFC 3463 3.2, 3.3; RFC 7505)."""
_UNKNOWN_CODES = frozenset({550, 551, 553})


def fate_of(answer: Answer) -> RecipientFate:
    """What an answer means for its recipient."""
    text = in_words(answer)
    if answer.accepted:
        return RecipientFate(Fate.SENT, ExitStatus.OK, text)
    reply, trouble = answer.reply, answer.trouble
    if trouble is not None or reply is None:
        if trouble is None or trouble in _LATER_TROUBLES or answer.uncertain:
            return RecipientFate(Fate.LATER, ExitStatus.TRY_AGAIN, text)
        if trouble is Trouble.PROTOCOL:
            return RecipientFate(Fate.REFUSED, ExitStatus.PROTOCOL, text)
        if trouble is Trouble.AUTH:
            return RecipientFate(Fate.REFUSED, ExitStatus.NO_PERMISSION, text)
        if trouble is Trouble.FAULT:
            return RecipientFate(Fate.REFUSED, ExitStatus.IO, text)
        broken = trouble in _BROKEN_MESSAGE
        return RecipientFate(Fate.REFUSED, ExitStatus.DATA if broken else ExitStatus.UNAVAILABLE, text)
    if not reply.permanent:
        return RecipientFate(Fate.LATER, ExitStatus.TRY_AGAIN, text)
    return RecipientFate(Fate.REFUSED, _status_of_refusal(answer), text)


def _status_of_refusal(answer: Answer) -> ExitStatus:
    reply, stage = answer.reply, answer.stage
    assert reply is not None
    if stage in (Stage.AUTH, Stage.MAIL):
        return ExitStatus.NO_PERMISSION
    if stage is Stage.RCPT:
        enhanced = reply.enhanced
        if enhanced is not None:
            unknown = (enhanced.subject, enhanced.detail) in _UNKNOWN_USER
        else:
            unknown = reply.code in _UNKNOWN_CODES
        return ExitStatus.NO_USER if unknown else ExitStatus.UNAVAILABLE
    if stage in (Stage.CONTENT, Stage.END):
        return ExitStatus.DATA
    return ExitStatus.UNAVAILABLE


def says_nothing_of_the_message(answer: Answer) -> bool:
    """Whether the server failed for any message: before MAIL, or the connection. Who sends several stops then."""
    return answer.stage not in AFTER_MAIL and answer.stage not in (Stage.MAIL, Stage.PLAN)


_SEVERITY = {
    status: rank
    for rank, status in enumerate(
        (
            ExitStatus.OK,
            ExitStatus.TRY_AGAIN,
            ExitStatus.NO_USER,
            ExitStatus.UNAVAILABLE,
            ExitStatus.DATA,
            ExitStatus.PROTOCOL,
            ExitStatus.IO,
            ExitStatus.NO_PERMISSION,
        )
    )
}


def worst(fates: Sequence[RecipientFate]) -> ExitStatus:
    """The status that tells the caller most: a refusal before a delay, and of refusals the one that concerns all."""
    return max((each.status for each in fates), key=lambda status: _SEVERITY.get(status, len(_SEVERITY)))


_TEXT_LIMIT = 1000


def in_words(answer: Answer) -> str:
    """What the server said, or what went wrong."""
    if answer.detail and (answer.reply is None or answer.trouble is not None):
        text = answer.detail
    elif answer.reply is not None:
        text = f"{answer.reply.code} {' '.join(answer.reply.lines)}"
    else:
        text = "the server did not answer"
    if answer.uncertain:
        text += "; the server may have the message"
    return "".join(c if c.isprintable() else "?" for c in text[:_TEXT_LIMIT])
