"""What a list of messages shows of one: its header read for people and for threading, decoded and bounded.

Nothing here decides about rights or delivery, so unlike `header`'s readers these never refuse: what cannot be decoded
is shown as it came (RFC 2047 6.3), without control characters.
"""

from dataclasses import dataclass
from typing import Final

from mailrail.core.message.header import MESSAGE_IDS, Header, decoded_words, message_id, subject

TEXT_LIMIT: Final = 500
"""Characters of From and To that are kept."""
REFERENCES_LIMIT: Final = 50
"""Message ids kept of References: the first and the newest, as RFC 5322 3.6.4 lets a reply shorten it."""


@dataclass(frozen=True, slots=True)
class Summary:
    """The fields of a message that a list shows; empty where it has none."""

    sender: str = ""
    to: str = ""
    subject: str = ""
    message_id: str = ""
    in_reply_to: str = ""
    references: tuple[str, ...] = ()


def readable(header: Header, name: bytes, limit: int = TEXT_LIMIT) -> str:
    """The first field of this lower-case name, encoded words decoded, without control characters, cut."""
    field = header.first(name)
    if field is None:
        return ""
    # Ten times the limit is enough of a stranger's encoded words.
    text = field.text[: 10 * limit]
    if "=?" in text:
        text = decoded_words(text)
    # Lone surrogates come out of broken encoded words; no database would take them.
    return "".join(c if c.isprintable() else " " for c in text[:limit]).strip()


def message_ids(header: Header, name: bytes) -> tuple[str, ...]:
    """The message ids in the first field of this name, at most REFERENCES_LIMIT: the first one and the last ones."""
    field = header.first(name)
    found = MESSAGE_IDS.findall(field.text[:100_000]) if field is not None else []
    if len(found) > REFERENCES_LIMIT:
        found = [found[0], *found[1 - REFERENCES_LIMIT :]]
    return tuple(found)


def summarize(header: Header) -> Summary:
    """Read the header of a message."""
    in_reply_to = message_ids(header, b"in-reply-to")
    return Summary(
        sender=readable(header, b"from"),
        to=readable(header, b"to"),
        subject=subject(header) or "",
        message_id=message_id(header) or "",
        in_reply_to=in_reply_to[0] if in_reply_to else "",
        references=message_ids(header, b"references"),
    )
