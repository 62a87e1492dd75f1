"""The parts of a message that is whole in memory, and what they hold once decoded (RFC 2045, RFC 2046 5.1, RFC 2183).

For mail that we read ourselves, such as reports of others: a stranger wrote it. Depth, parts and octets are bounded,
time is linear in the message times its depth, and nothing but `MultipartError` is ever raised. What real mailers do is
taken: LF alone as line end, a multipart that never ends, octets in base64 that do not belong there, padding that lacks.
What passes on its way is the business of `reencode`, which streams.
"""

import binascii
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from string import ascii_letters, digits
from typing import Final

from mailrail.core.message.content_type import TEXT, ContentType, parse_content_type, transfer_encoding
from mailrail.core.message.header import HEADER_LIMIT, Header, decoded_words, has_too_many_fields

DEPTH_LIMIT: Final = 10
"""Entities within each other. A report that somebody forwarded as a message has four."""
PARTS_LIMIT: Final = 100
"""Entities of a message, multiparts counted."""
NAME_LIMIT: Final = 600
"""Characters of a file name; those of reports have two domain names and two times in them."""

_NOT_BASE64: Final = bytes(set(range(256)) - set(f"{ascii_letters}{digits}+/".encode()))
_MARK_END = re.compile(rb"(--)?[ \t]{0,100}(?:\r?\n|\Z)")
_MARKS_LIMIT: Final = 10_000
"""Lines that begin like a boundary, or are one."""
_MESSAGES: Final = ("message/rfc822", "message/global", "message/news")


class MultipartError(ValueError):
    """The parts of a message cannot be found, or are too many. The text says why, in one line."""


@dataclass(frozen=True)
class MessagePart:
    """An entity that is not made of others."""

    type: ContentType
    encoding: str
    """Content-Transfer-Encoding in lower case; empty: none is named."""
    name: str
    """The file name that it suggests, one line and never a path; empty: none."""
    raw: bytes
    """Its octets as they stand in the message."""

    @cached_property
    def body(self) -> bytes:
        """Its octets decoded; of an unknown encoding as they are. They are no more than those of `raw`."""
        if self.encoding == "base64":
            return _base64(self.raw)
        if self.encoding == "quoted-printable":
            return binascii.a2b_qp(self.raw)
        return self.raw


def parts_of(message: bytes) -> Iterator[MessagePart]:
    """The parts of a message in their order, those of messages within it too. Raises MultipartError.

    `message`: header and body, with CRLF or LF. The caller bounds its size.
    """
    begins = message.find(b"\n", 0, HEADER_LIMIT) + 1 if message.startswith(b"From ") else 0  # of a mailbox file
    return _Walk(message).entity(begins, len(message), TEXT, 1)


class _Walk:
    """Through a message by positions: entities within each other are not copied."""

    def __init__(self, message: bytes) -> None:
        self._message = message
        self._parts = self._marks = 0

    def entity(self, at: int, end: int, default: ContentType, depth: int) -> Iterator[MessagePart]:
        self._parts += 1
        if self._parts > PARTS_LIMIT:
            raise MultipartError(f"the message has more than {PARTS_LIMIT} parts")
        if depth > DEPTH_LIMIT:
            raise MultipartError(f"the parts of the message are nested more than {DEPTH_LIMIT} deep")
        header, at = self._header(at, end)
        kind = _type_of(header, default)
        field = header.first(b"content-transfer-encoding")
        encoding = transfer_encoding(field.text) if field is not None else ""
        if kind.kind.startswith("multipart/"):
            within = self._pieces(at, end, kind)
            if within is not None:
                default = _MESSAGE if kind.kind == "multipart/digest" else TEXT  # RFC 2046 5.1.5
                for begins, ends in within:
                    yield from self.entity(begins, ends, default, depth + 1)
                return
        elif kind.kind in _MESSAGES and encoding not in ("base64", "quoted-printable"):  # forbidden by RFC 2045 6.4
            yield from self.entity(at, end, TEXT, depth + 1)
            return
        yield MessagePart(kind, encoding, _name_of(header, kind), self._message[at:end])

    def _header(self, at: int, end: int) -> tuple[Header, int]:
        """The header of an entity, and where its body begins."""
        head = self._message[at : min(end, at + HEADER_LIMIT + 1)]
        if has_too_many_fields(head):
            raise MultipartError("a header of the message has too many fields")
        header = Header(head)
        if len(header.block) > HEADER_LIMIT:
            raise MultipartError(f"a header of the message has more than {HEADER_LIMIT} octets")
        at += len(header.block)
        for line_end in (b"\r\n", b"\n"):
            if self._message.startswith(line_end, at, end):
                return header, at + len(line_end)
        return header, at

    def _pieces(self, at: int, end: int, kind: ContentType) -> Iterator[tuple[int, int]] | None:
        """What stands between the boundaries of a multipart; None: there are none, so it is one part."""
        for boundary in kind.boundaries:
            line = b"--" + boundary.encode("utf-8", "replace")
            first = self._mark(at, end, line)
            if first is not None:
                return self._between(first[1], end, line) if not first[2] else None
        return None

    def _between(self, at: int, end: int, line: bytes) -> Iterator[tuple[int, int]]:
        last = False
        while not last:
            found = self._mark(at, end, line)
            if found is None:
                yield at, end
                return
            ends, after, last = found
            # The line end before a boundary belongs to it (RFC 2046 5.1.1).
            for line_end in (b"\n", b"\r"):
                if ends > at and self._message.startswith(line_end, ends - 1):
                    ends -= 1
            yield at, ends
            at = after

    def _mark(self, at: int, end: int, line: bytes) -> tuple[int, int, bool] | None:
        """Where the next boundary begins and what follows it begins, and whether it is the last."""
        while (found := self._message.find(line, at, end)) >= 0:
            self._marks += 1
            if self._marks > _MARKS_LIMIT:
                raise MultipartError(f"more than {_MARKS_LIMIT} lines of the message look like a boundary")
            tail = _MARK_END.match(self._message, found + len(line), end)
            if tail is not None and (found == 0 or self._message[found - 1] == 0x0A):
                return found, tail.end(), bool(tail[1])
            at = found + 1
        return None


_MESSAGE: Final = ContentType("message/rfc822", {})


def _type_of(header: Header, default: ContentType) -> ContentType:
    field = header.first(b"content-type")
    if field is None:
        return default
    return parse_content_type(field.text) or TEXT


def _name_of(header: Header, kind: ContentType) -> str:
    """From Content-Disposition, else from the type, as older mailers have it (RFC 2183 2.3)."""
    field = header.first(b"content-disposition")
    # The field has the form of a Content-Type, but for its subtype.
    disposition = parse_content_type(f"x/{field.text.lstrip()}") if field is not None else None
    for source, key in ((disposition, "filename"), (kind, "name")):
        if source is not None and (found := source.loose.get(key) or source.parameters.get(key)):
            # In quotes it is no encoded word by RFC 2047 5, and mailers write it so.
            name = decoded_words(found[: 2 * NAME_LIMIT])[:NAME_LIMIT].replace("\\", "/").rpartition("/")[2]
            return "".join(char if char.isprintable() else "?" for char in name).strip()
    return ""


def _base64(raw: bytes) -> bytes:
    """RFC 2045 6.8: what is not of the alphabet is passed over, and data ends at the padding."""
    letters = raw.partition(b"=")[0].translate(None, _NOT_BASE64)
    if len(letters) % 4 == 1:
        letters = letters[:-1]  # six bits are no octet
    return binascii.a2b_base64(letters + b"=" * (-len(letters) % 4))
