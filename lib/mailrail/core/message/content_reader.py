"""A message on its way in: its header is held back until it is whole, then the rest streams past (ACC-01a).

Submission takes fields out and puts fields in, loops are found by counting Received, and rights are judged by From:
all of that needs the header and none of it the body. So at most `HEADER_LIMIT` octets are held, however large the
message is. Where the empty line between header and body lacks, it is put in: every reader then agrees where that is.

A mailbox file has a line `From ...` above each message, and scripts pipe such files to us. At the head of a header that
line becomes the field X-Mailbox-Line, as in Postfix: else it would end the header before its first field.

With `shorten`, lines above the 998 octets of RFC 5322 2.1.1 are shortened by the re-encoder (SOUT-12d). A small message
is held until its end, and passes unchanged if all its lines are short enough; a larger one goes through the re-encoder,
which holds the beginning of each part. A message with a DKIM-Signature stays as it is, for its author signed it so.
"""

import re
from collections.abc import Callable
from enum import Enum, auto
from typing import Final

from mailrail.core.message.content_type import LINE_LIMIT, is_seven_bit
from mailrail.core.message.header import HEADER_LIMIT, Header, has_too_many_fields, header_end
from mailrail.core.message.reencode import Reencoder, Target, Unconvertible
from mailrail.core.smtp.line_facts import PLAIN, UNKNOWN, LineFacts
from mailrail.core.smtp.stuffing import has_bare_line_ends

_NO_FIELD: Final = 1000
"""Octets of a line after which a field's name is not to be hoped for any more (RFC 5322 2.1.1 allows 998)."""
LONGEST_LINE: Final = 64 * 1024
"""Octets of a text line (SOUT-12c). RFC 5322 2.1.1 allows 998; real mail has far longer ones."""
SMALL: Final = 64 * 1024
"""Octets of a message that is held until all its lines have been seen, where lines are shortened."""
PIECES_LIMIT: Final = 1024
"""Pieces of it that are kept apart: of two octets each, they would take thirty times what they hold."""
_MBOX: Final = re.compile(rb">*From [^\n]*\n[!-9;-~]+[ \t]*:")
_FROM_FIELD: Final = re.compile(rb"From[ \t]*:")

Edit = Callable[[Header], bytes | None]
"""What to keep as header block (fields with their line ends), or None: the message is refused."""
Listener = Callable[[], Callable[[bytes], None] | None]
"""Asked once the header was edited: who is to see the body as it came, piece by piece; None: nobody."""


class ContentFault(Enum):
    """Why a message cannot be taken, whatever is in it."""

    LONG_HEADER = auto()  # above HEADER_LIMIT
    MANY_FIELDS = auto()  # more of them than FIELDS_LIMIT
    LONG_LINE = auto()  # a text line above LONGEST_LINE
    UNCONVERTIBLE = auto()  # it has to be encoded anew, and a header within it has a bare CR or LF


class ContentReader:
    """Content in, octets to store out. Once it has a fault, or the header was refused, nothing more comes out."""

    __slots__ = (
        "_edit",
        "_encoder",
        "_held",
        "_line",
        "_listener",
        "_pending",
        "_pending_size",
        "_rewritten",
        "_searched",
        "_see",
        "_shorten",
        "_stopped",
        "_target",
        "binary",
        "eight_bit",
        "fault",
        "needs_separator",
        "nul",
        "size",
    )

    def __init__(
        self, edit: Edit, *, lines: bool = True, shorten: bool = False, listener: Listener | None = None
    ) -> None:
        """`lines` false: the body is binary and has none (RFC 3030 3). `shorten`: see the head of the module."""
        self._listener = listener
        self._see: Callable[[bytes], None] | None = None
        self._edit = edit
        self._line = 0 if lines else -1  # octets so far of the line that the last piece ended in
        self._shorten = shorten and lines
        self._target = Target.EIGHT_BIT
        self.binary = not lines
        """What came out is not made of lines."""
        self._held: bytearray | None = bytearray()
        self._pending: list[bytes] | None = None  # of a small message whose lines may have to be shortened
        self._pending_size = 0
        self._encoder: Reencoder | None = None
        self._searched = 0
        self._rewritten = False  # what came out must be looked at anew
        self._stopped = False
        self.fault: ContentFault | None = None
        self.size = 0
        """Octets that came out."""
        self.eight_bit = False
        """An octet above 127 came, and came out again (EXT-09)."""
        self.nul = False
        """A NUL came."""
        self.needs_separator = False
        """The content does not begin with a header field: an empty line must follow what is put above it."""

    @property
    def held(self) -> int:
        """Octets that are held back."""
        if self._held is not None:
            return len(self._held)
        if self._pending is not None:
            return self._pending_size
        return self._encoder.held if self._encoder is not None else 0

    def lines(self, came: LineFacts) -> LineFacts:
        """What is known of the lines that came out, where `came` is what was seen of those that were fed."""
        return UNKNOWN if self.nul or self._rewritten else came

    def make_seven_bit(self) -> None:
        """What comes out is made 7-bit, in lines of ordinary length, so that no hop has to change it (DKIM-09). To be
        called by `edit`."""
        self._shorten = True
        self._target = Target.SEVEN_BIT

    def drop(self) -> None:
        """Nothing more is fed: forget what is held back."""
        self._stopped = True
        self._see = None
        self._held = self._pending = self._encoder = None

    def feed(self, data: bytes) -> bytes:
        """Take the next octets of the message; returns those that are to be stored by now."""
        if self._stopped:
            return b""
        if not self.eight_bit and self._encoder is None and not data.isascii():
            self.eight_bit = True
        if not self.nul and b"\0" in data:
            self.nul = True
        if self._line >= 0 and self._has_endless_line(data):
            self._stop(ContentFault.LONG_LINE)
            return b""
        held = self._held
        if held is None:
            if self._see is not None:
                self._see(data)
            return self._pass(data)
        if not held and 0 <= header_end(data) <= HEADER_LIMIT:
            return self._open(data)  # as with nearly every message, whose first piece brings the whole header
        held += data
        end = header_end(held, self._searched)
        if end < 0:
            self._searched = len(held)
            return b"" if len(held) <= HEADER_LIMIT else self._open_without_end(bytes(held))
        return self._open(bytes(held)) if end <= HEADER_LIMIT else self._open_without_end(bytes(held))

    def finish(self) -> bytes:
        """The message has ended: what was still held back."""
        if self._stopped:
            return b""
        out = self._open(bytes(self._held)) if self._held is not None else b""
        if self._pending is not None:
            rest = b"".join(self._pending)
            self._pending = None
            return out + self._put(rest if self._is_fit(rest) else self._encoded_whole(rest))
        if self._encoder is not None:
            out += self._encoded(self._encoder.finish)
            self._encoder = None
        return out

    def release(self) -> bytes:
        """Memory is short: what is held to spare a part a needless encoding."""
        out = self._encode_pending() if self._pending is not None else b""
        return out + self._encoded(self._encoder.release) if self._encoder is not None else out

    def _encoded_whole(self, content: bytes) -> bytes:
        """A whole message encoded anew; as it is where that cannot be done."""
        encoder = Reencoder(self._target, longest_line=LINE_LIMIT, keep_signed=True)
        try:
            out = encoder.feed(content) + encoder.finish()
        except Unconvertible:
            return content
        self._forget()
        self._note(out)
        return out

    def _is_fit(self, content: bytes) -> bool:
        """Whether a whole message needs no encoding."""
        if self._target is Target.SEVEN_BIT:
            return is_seven_bit(content)
        return len(max(content.split(b"\n"), key=len)) <= LINE_LIMIT + 1  # its CR

    # --- the header ---

    def _open_without_end(self, content: bytes) -> bytes:
        """So much has come, and no empty line: a header that is too large, or a body that has none above it."""
        head = _without_mailbox_line(content[:HEADER_LIMIT])
        if has_too_many_fields(head):
            self._stop(ContentFault.MANY_FIELDS)
            return b""
        rest = head[len(Header(head).block) :]
        if b"\n" in rest[:_NO_FIELD] or len(rest) > _NO_FIELD:
            return self._open(content)
        self._stop(ContentFault.LONG_HEADER)
        return b""

    def _open(self, content: bytes) -> bytes:
        self._held = None
        content = _without_mailbox_line(content)
        if has_too_many_fields(content):
            self._stop(ContentFault.MANY_FIELDS)
            return b""
        header = Header(content)
        edited = self._edit(header)
        if edited is None:
            self._stop(None)
            return b""
        at = len(header.block)
        if self._listener is not None:
            self._see = self._listener()
            if self._see is not None:
                self._see(content[at + 2 if content.startswith(b"\r\n", at) else at :])
        # A line that is no field ends the header, here and for everybody after us: fields below it were not judged, and
        # a more lenient reader must not find an author or results among them.
        separator = b"\r\n" if at < len(content) and not content.startswith(b"\r\n", at) else b""
        if not edited:
            self.needs_separator = bool(separator)
            separator = b""
        if edited == header.block and not separator:
            stored = content
        else:
            stored = edited + separator + content[at:]
            self._rewritten = LineFacts(True, True).below(edited + separator) != PLAIN
        if self._shorten and self.needs_separator:
            # What is put above it ends with an empty line, so all of it is body.
            self._shorten = False
        if self._shorten and not header.has(b"dkim-signature"):
            self._pending = []
        return self._pass(stored)

    # --- the body ---

    def _has_endless_line(self, data: bytes) -> bool:
        begun, last = self._line, data.rfind(b"\n")
        if last < 0:
            self._line = begun + len(data)
            return self._line > LONGEST_LINE
        self._line = len(data) - last - 1
        if begun + len(data) <= LONGEST_LINE:
            return False  # as with nearly every message: there is no room for such a line
        at = data.find(b"\n") + 1
        if begun + at > LONGEST_LINE + 1:
            return True
        while len(data) - at > LONGEST_LINE:  # `at` is where a line begins; the last one that ends in time is near
            at = data.rfind(b"\n", at, at + LONGEST_LINE + 1) + 1
            if not at:
                return True
        return False

    def _pass(self, data: bytes) -> bytes:
        """On the way out: past the re-encoder, where there is one."""
        if self._encoder is not None:
            return self._encoded(self._encoder.feed, data)
        if self._pending is None:
            self.size += len(data)
            return data
        if len(self._pending) >= PIECES_LIMIT:
            self._pending[:] = [b"".join(self._pending)]
        self._pending.append(data)
        self._pending_size += len(data)
        return b"" if self._pending_size <= SMALL else self._encode_pending()

    def _encode_pending(self) -> bytes:
        assert self._pending is not None
        pending, self._pending = b"".join(self._pending), None
        return self._encode(pending)

    def _encode(self, data: bytes) -> bytes:
        self._encoder = Reencoder(self._target, longest_line=LINE_LIMIT, keep_signed=True)
        self._forget()
        return self._encoded(self._encoder.feed, data)

    def _forget(self) -> None:
        """What came says nothing of what comes out of the re-encoder."""
        self._rewritten = True
        self.eight_bit = self.binary = False

    def _encoded(self, encode: Callable[..., bytes], *data: bytes) -> bytes:
        """What the re-encoder gives."""
        try:
            out = encode(*data)
        except Unconvertible:
            self._stop(ContentFault.UNCONVERTIBLE)
            return b""
        self._note(out)
        return self._put(out)

    def _note(self, out: bytes) -> None:
        """What came out of the re-encoder tells what the content is now."""
        if not out.isascii():
            self.eight_bit = True
        if self._line < 0 and (b"\0" in out or has_bare_line_ends(out)):  # of a part that its author signed
            self.binary = True

    def _put(self, data: bytes) -> bytes:
        self.size += len(data)
        return data

    def _stop(self, fault: ContentFault | None) -> None:
        self.fault = fault
        self.drop()


def _without_mailbox_line(content: bytes) -> bytes:
    """A line of a mailbox file above the header as a field of it."""
    if content[:1] not in (b"F", b">") or _MBOX.match(content) is None or _FROM_FIELD.match(content) is not None:
        return content
    return b"X-Mailbox-Line: " + content
