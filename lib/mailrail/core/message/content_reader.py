"""A message on its way in: its header is held back until it is whole, then the rest streams past (ACC-01a).

Submission takes fields out and puts fields in, loops are found by counting Received, and rights are judged by From:
all of that needs the header and none of it the body. So at most `HEADER_LIMIT` octets are held, however large the
message is. Where the empty line between header and body lacks, it is put in: every reader then agrees where that is.
"""

from collections.abc import Callable
from typing import Final

from mailrail.core.message.header import HEADER_LIMIT, Header, header_end
from mailrail.core.smtp.reply import Reply

HEADER_TOO_BIG: Final = Reply.of(552, "5.3.4", f"the message header exceeds the limit of {HEADER_LIMIT} octets")

_NO_FIELD: Final = 1000
"""Octets of a line after which a field's name is not to be hoped for any more (RFC 5322 2.1.1 allows 998)."""

LINE_LIMIT: Final = 64 * 1024
"""Octets of a text line (SOUT-12c). RFC 5322 2.1.1 allows 998; real mail has far longer ones, which pass unchanged."""
LINE_TOO_LONG: Final = Reply.of(550, "5.6.0", f"the message has a line of more than {LINE_LIMIT} octets")

Edit = Callable[[Header], "bytes | Reply"]
"""What to keep as header block (fields with their line ends), or why the message is refused."""


class ContentReader:
    """Content in, octets to store out. After a refusal nothing more comes out."""

    __slots__ = ("_edit", "_held", "_line", "_searched", "eight_bit", "needs_separator", "refusal", "size")

    def __init__(self, edit: Edit, *, lines: bool = True) -> None:
        """`lines` false: the body is binary and has none (RFC 3030 3)."""
        self._edit = edit
        self._line = 0 if lines else -1  # octets so far of the line that the last piece ended in
        self._held: bytearray | None = bytearray()
        self._searched = 0
        self.refusal: Reply | None = None
        self.size = 0
        """Octets that came out."""
        self.eight_bit = False
        """An octet above 127 came in (EXT-09)."""
        self.needs_separator = False
        """The content does not begin with a header field: an empty line must follow what is put above it."""

    @property
    def held(self) -> int:
        """Octets that are held back until the header is whole."""
        return len(self._held) if self._held is not None else 0

    def drop(self) -> None:
        """Nothing more is fed: forget what is held back."""
        self._held = None

    def feed(self, data: bytes) -> bytes:
        """Take the next octets of the message; returns those that are to be stored by now."""
        if self.refusal is not None:
            return b""
        if not self.eight_bit and not data.isascii():
            self.eight_bit = True
        if self._line >= 0 and self._has_endless_line(data):
            self._refuse(LINE_TOO_LONG)
            return b""
        held = self._held
        if held is None:
            self.size += len(data)
            return data
        if not held and 0 <= header_end(data) <= HEADER_LIMIT:
            return self._open(data)  # as with nearly every message, whose first piece brings the whole header
        held += data
        end = header_end(held, self._searched)
        if end < 0:
            self._searched = len(held)
            return b"" if len(held) <= HEADER_LIMIT else self._open_without_end(bytes(held))
        return self._open(bytes(held)) if end <= HEADER_LIMIT else self._open_without_end(bytes(held))

    def _has_endless_line(self, data: bytes) -> bool:
        begun, last = self._line, data.rfind(b"\n")
        if last < 0:
            self._line = begun + len(data)
            return self._line > LINE_LIMIT
        self._line = len(data) - last - 1
        if begun + len(data) <= LINE_LIMIT:
            return False  # as with nearly every message: there is no room for such a line
        return begun + data.find(b"\n") > LINE_LIMIT or max(map(len, data.split(b"\n"))) > LINE_LIMIT

    def finish(self) -> bytes:
        """The message has ended: what was still held back."""
        if self._held is None or self.refusal is not None:
            return b""
        return self._open(bytes(self._held))

    def _open_without_end(self, content: bytes) -> bytes:
        """So much has come, and no empty line: a header that is too large, or a body that has none above it."""
        head = content[:HEADER_LIMIT]
        rest = head[len(Header(head).block) :]
        if b"\n" in rest[:_NO_FIELD] or len(rest) > _NO_FIELD:
            return self._open(content)
        self._refuse(HEADER_TOO_BIG)
        return b""

    def _open(self, content: bytes) -> bytes:
        self._held = None
        header = Header(content)
        edited = self._edit(header)
        if isinstance(edited, Reply):
            self._refuse(edited)
            return b""
        at = len(header.block)
        # A line that is no field ends the header, here and for everybody after us: fields below it were not judged, and
        # a more lenient reader must not find an author or results among them.
        separator = b"\r\n" if at < len(content) and not content.startswith(b"\r\n", at) else b""
        if not edited:
            self.needs_separator = bool(separator)
            separator = b""
        stored = content if edited == header.block and not separator else edited + separator + content[at:]
        self.size += len(stored)
        return stored

    def _refuse(self, reply: Reply) -> None:
        self.refusal = reply
        self._held = None
