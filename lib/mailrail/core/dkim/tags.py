"""Lists of tags (`v=1; a=rsa-sha256; ...`): DKIM-Signature, the fields of ARC and the record of a key are such lists.

RFC 6376 3.2 gives the syntax, and RFC 8616 4 lets values be UTF-8. Reading is strict, since two readers that
understand one list differently are what a forger looks for: a name that comes twice, an empty part between two
semicolons or a stray character makes the whole list invalid.
"""

import base64
import re
from binascii import Error as NotBase64
from collections.abc import Mapping
from typing import Final

from mailrail.core.shown import shown_octets

TAGS_SIZE: Final = 16 * 1024
"""Octets of a list. A signature by RSA 4096 with a long `h=` has some 2 KiB."""
TAGS_LIMIT: Final = 64
"""Tags of a list. RFC 6376 3.5 knows 14."""

# Each octet can match in one way only, so reading is linear. Blanks are WSP and the line ends of folds (2.8).
_BLANK: Final = rb"[ \t\r\n]"
_TAG = re.compile(rb"%s*+([A-Za-z][A-Za-z0-9_]*+)%s*+=([^;\x00-\x08\x0b\x0c\x0e-\x1f\x7f]*+)" % (_BLANK, _BLANK))
_BLANKS = re.compile(rb"%s+" % _BLANK)
_BLANK_OCTETS: Final = b" \t\r\n"


class TagError(ValueError):
    """A list of tags, or the value of one, is not valid. The text says what is wrong, for people."""

    def __init__(self, text: str, before: Mapping[bytes, bytes] | None = None) -> None:
        super().__init__(text)
        self.before: Mapping[bytes, bytes] = before or {}
        """The tags of the list that stand before the fault: facts for a report, and no more."""


def read_tags(text: bytes) -> dict[bytes, bytes]:
    """The values by name in their order, without the blanks around them. Raises TagError.

    Names are compared with their letter case (RFC 6376 3.2).
    """
    if len(text) > TAGS_SIZE:
        raise TagError(f"the list of tags has {len(text)} octets, and more than {TAGS_SIZE} are not read")
    tags: dict[bytes, bytes] = {}
    at, end = 0, len(text)
    while True:
        found = _TAG.match(text, at)
        if found is None:
            raise TagError(
                f"{shown_octets(text[at:].partition(b';')[0].strip(_BLANK_OCTETS))} is no tag of the form name=value"
            )
        name, value = found[1], found[2].strip(_BLANK_OCTETS)
        if name in tags:
            raise TagError(f"the tag {name.decode()}= comes twice", tags)
        if len(tags) == TAGS_LIMIT:
            raise TagError(f"there are more than {TAGS_LIMIT} tags", tags)
        tags[name] = value
        at = found.end()
        if at < end and text[at] != 0x3B:
            raise TagError(f"the tag {name.decode()}= has a control character", tags)
        # One semicolon may end the list (RFC 6376 3.2), and nothing but blanks follows it then.
        if at >= end or not text[at + 1 :].strip(_BLANK_OCTETS):
            return tags
        at += 1


def without_blanks(value: bytes) -> bytes:
    """A value in which blanks mean nothing, such as base64, without them."""
    return _BLANKS.sub(b"", value)


def words(value: bytes) -> tuple[bytes, ...]:
    """The members of a list with colons, without the blanks around them."""
    return tuple(word.strip(_BLANK_OCTETS) for word in value.split(b":"))


def octets(value: bytes, name: str) -> bytes:
    """The octets that the base64 of a tag stands for, blanks ignored (RFC 6376 2.10). Raises TagError."""
    try:
        return base64.b64decode(without_blanks(value), validate=True)
    except (NotBase64, ValueError) as error:
        raise TagError(f"the tag {name}= is not base64") from error


def without_value(field: bytes, name: bytes) -> bytes:
    """A field's octets with the value of one tag and the blanks around it taken out (RFC 6376 3.7, of `b=`).

    `field` holds a list that `read_tags` has read, after its colon.
    """
    start = field.index(b":") + 1
    parts = field[start:].split(b";")
    for number, part in enumerate(parts):
        written, equals, _ = part.partition(b"=")
        if equals and written.strip(_BLANK_OCTETS) == name:
            parts[number] = written + b"="
    return field[:start] + b";".join(parts)
