"""Checks of the form of a message, of strangers and accounts alike."""

from typing import Final

from mailrail.core.message.content_reader import LONGEST_LINE, ContentFault
from mailrail.core.message.header import FIELDS_LIMIT, HEADER_LIMIT, RECEIVED_LIMIT
from mailrail.core.smtp.reply import Reply
from mailrail.core.smtp.stuffing import has_bare_line_ends
from mailrail_ingress.checks.verdicts import CheckedMessage, Refuse

HEADER_TOO_LONG: Final = Refuse(
    Reply.of(552, "5.3.4", f"the message header exceeds the limit of {HEADER_LIMIT} octets")
)
TOO_MANY_FIELDS: Final = Refuse(Reply.of(550, "5.6.0", f"the message header has more than {FIELDS_LIMIT} fields"))
LINE_TOO_LONG: Final = Refuse(Reply.of(550, "5.6.0", f"the message has a line of more than {LONGEST_LINE} octets"))
BAD_PART: Final = Refuse(Reply.of(550, "5.6.0", "a header within the message has a bare CR or LF"))
LOOP: Final = Refuse(
    Reply.of(554, "5.4.6", f"the message has more than {RECEIVED_LIMIT} Received fields: it is in a loop")
)
BARE_HEADER: Final = Refuse(Reply.of(550, "5.6.0", "the message header has a bare CR or LF"))
"""BINARYMIME frees bodies from lines, not headers (RFC 3030 3): at the next hop without it such a CR or LF may become a
line end, and what stands behind it a field that was not judged."""


def header_size(message: CheckedMessage) -> Refuse | None:
    """The header is held in memory, so it is bounded."""
    return HEADER_TOO_LONG if message.fault is ContentFault.LONG_HEADER else None


def header_fields(message: CheckedMessage) -> Refuse | None:
    """Each field takes its time in each check, while other clients wait."""
    return TOO_MANY_FIELDS if message.fault is ContentFault.MANY_FIELDS else None


def line_length(message: CheckedMessage) -> Refuse | None:
    """No text line is endless (SOUT-12c)."""
    return LINE_TOO_LONG if message.fault is ContentFault.LONG_LINE else None


def part_header(message: CheckedMessage) -> Refuse | None:
    """A message that has to be encoded anew, and cannot be."""
    return BAD_PART if message.fault is ContentFault.UNCONVERTIBLE else None


def loop(message: CheckedMessage) -> Refuse | None:
    """Each hop adds a Received field, so many of them are a loop (SIN-15)."""
    return LOOP if len(message.header.named(b"received", RECEIVED_LIMIT + 1)) > RECEIVED_LIMIT else None


def bare_line_ends(message: CheckedMessage) -> Refuse | None:
    """The header of a binary message consists of lines, too."""
    return BARE_HEADER if message.binary and has_bare_line_ends(message.header.block) else None
