"""The one MIME re-encoder: makes 8-bit or binary content fit for a hop that cannot take it, without loss.

8-bit parts become quoted-printable where they are text and base64 where they are not, binary parts base64; the decoded
content of every part stays the same, octet for octet (RFC 2045 6, RFC 6152 3, RFC 3030 3; EXT-08, SOUT-18a). Multiparts
and messages are followed, however deep up to a bound. Header fields stay as they are, byte for byte, except
Content-Transfer-Encoding of the entities that changed. No encoding is ever put into another. A message without
MIME-Version whose body has 8-bit octets gets the three MIME fields it lacks, as unknown 8-bit text.

What is made of parts is no part. A multipart and a message/rfc822 may say 7bit, 8bit or binary only (RFC 2045 6.4);
readers ignore any other label on them, and so does this: their parts are dealt with, and the label says the truth
afterwards. That the label is wrong shows where a part begins; until then nothing is put out, so what really is base64
or quoted-printable stays what it is. A multipart whose parts cannot be found (no boundary, or one that never comes) and
one that lies too deep are put into quoted-printable: no label is legal there, and this one loses nothing. Preamble and
epilogue are for nobody to read (RFC 2046 5.1.1): 8-bit octets there become `?`. So they do in those subtypes of message
that must be 7bit (delivery-status, partial and the like: RFC 3464 2.1, RFC 2046 5.2), since who reads these decodes
nothing; message/global and its kin may be encoded like leaves (RFC 6532 3.7, RFC 6533 6). No octet is ever taken out.

It streams: `Reencoder` takes octets in any split and holds at most one header section, one line, and the beginning of
one entity: up to `HOLD` octets are looked at before its encoding is chosen, so that parts which are fine stay
untouched; a longer part is encoded by what its header says, which is never wrong, only sometimes needless. What cannot
be parsed is treated as one opaque part: nothing is ever bounced for being 8-bit. A signature over 8-bit parts does not
outlive such a hop; signers know it and send 7bit (RFC 1847 2.1, RFC 6376 5.3), which is never touched.

With `longest_line` it also shortens lines (RFC 5322 2.1.1, SOUT-12b): a leaf with a longer one is encoded, a longer
line of encoded content is broken where that means nothing, header fields are folded at blanks. What `keep_signed`
protects stays.

Only CRLF ends a line. A CR or LF alone in a header section cannot stay, and as CRLF it would make a header field that
nobody wrote: such content is refused (`Unconvertible`). Outside of fields and parts, where nobody reads, it becomes a
space. The CRLF before a boundary belongs to the boundary (RFC 2046 5.1.1), so lines are handled as text with a CRLF in
front of each but the first. A header section ends at the first line that is no field, also without an empty line.
"""

import base64
import binascii
import re
import sys
from collections.abc import Callable
from enum import Enum, StrEnum, auto

from mailrail.core.message.content_type import LINE_LIMIT, TEXT, parse_content_type, transfer_encoding

MAX_HEADER = 262144
"""Octets of one header section that are held; of a longer one the rest passes unread, and its body is encoded."""
MAX_DEPTH = 100
"""Nested entities that are followed; deeper ones are opaque parts of their parent."""
MAX_PIECE = 65536
"""Octets of one body line that are held at once."""
HOLD = 1048576
"""Octets of one part that are looked at before its encoding is chosen."""

_CRLF = b"\r\n"
_BASE64_LINE = 57  # octets that make a line of 76 characters (RFC 2045 6.8)
_BARE = re.compile(rb"\r(?!\n)|(?<!\r)\n")
_NOT_SEVEN = re.compile(rb"[\x00\r\n\x80-\xff]")  # in a line, whose CRLF is taken off
_NOT_EIGHT = re.compile(rb"[\x00\r\n]")
_FIELD = re.compile(rb"[!-9;-~]*[ \t]*:|[ \t]")
_BASE64_LETTERS = re.compile(rb"[A-Za-z0-9+/]+={0,2}")
_MBOX = re.compile(rb">?From ")
_MIME_FIELDS = (b"content-type", b"content-transfer-encoding", b"mime-version")
_BLANKED = bytes.maketrans(b"\x00\r\n", b"?  ")
_MASKED = bytes.maketrans(bytes(range(128, 256)) + b"\x00\r\n", b"?" * 129 + b"  ")


class Target(StrEnum):
    """What the next hop takes."""

    SEVEN_BIT = "7bit"
    EIGHT_BIT = "8bit"  # 8-bit octets in lines, but no NUL and no bare CR or LF


class Unconvertible(ValueError):
    """The message cannot be made fit for the target; the text says why."""


class _State(Enum):
    HEADER = auto()
    LONG_HEADER = auto()  # the rest of a header section that is too long to be held
    KEEP = auto()  # what a signature covers: it passes octet for octet
    PASS = auto()  # epilogue, or what is fine
    MASK = auto()  # a part that must not be encoded
    HOLD = auto()  # an entity whose encoding is not chosen yet
    CLEAN = auto()  # what is encoded already: only octets that do not belong there are dealt with
    QUOTED = auto()
    BASE64 = auto()


class _Encoding(Enum):
    SEVEN = auto()
    EIGHT = auto()
    BINARY = auto()
    QUOTED = auto()
    BASE64 = auto()
    UNKNOWN = auto()  # says nothing about the octets


_ENCODINGS = {
    "7bit": _Encoding.SEVEN,
    "8bit": _Encoding.EIGHT,
    "binary": _Encoding.BINARY,
    "quoted-printable": _Encoding.QUOTED,
    "base64": _Encoding.BASE64,
}


class _Kind(Enum):
    """What an entity is to the re-encoder."""

    LEAF = auto()
    MULTIPART = auto()
    MESSAGE = auto()  # a header and what follows from it
    SEVEN = auto()  # a subtype of message that is 7bit and no encoding


_MESSAGES = ("message/rfc822", "message/news")


class _Header:
    """One header section: its raw lines, and what its MIME fields say."""

    __slots__ = (
        "boundaries",
        "encoding",
        "has_encoding",
        "has_type",
        "has_version",
        "kind",
        "lines",
        "separated",
        "type",
    )

    def __init__(self, lines: list[bytes], *, digest: bool, separated: bool = True) -> None:
        self.lines = lines
        self.separated = separated  # an empty line comes behind it
        self.type = "message/rfc822" if digest else "text/plain"
        self.boundaries: tuple[bytes, ...] = ()
        self.encoding = _Encoding.SEVEN
        fields = _fields(lines)
        self.has_type = b"content-type" in fields
        self.has_encoding = b"content-transfer-encoding" in fields
        self.has_version = b"mime-version" in fields
        if self.has_type:
            found = parse_content_type(fields[b"content-type"]) or TEXT
            self.type = found.kind
            self.boundaries = tuple(text.encode("latin-1", "replace") for text in found.boundaries)
        if self.has_encoding:
            name = transfer_encoding(fields[b"content-transfer-encoding"])
            self.encoding = _ENCODINGS.get(name, _Encoding.UNKNOWN)
        if self.type.startswith("multipart/"):
            self.kind = _Kind.MULTIPART
        elif self.type in _MESSAGES:
            self.kind = _Kind.MESSAGE
        elif self.type.startswith("message/") and not self.type.startswith("message/global"):
            self.kind = _Kind.SEVEN
        else:
            self.kind = _Kind.LEAF

    @property
    def encoded(self) -> bool:
        """Whether it says that its content is encoded."""
        return self.encoding in (_Encoding.QUOTED, _Encoding.BASE64)

    @property
    def text(self) -> bool:
        """Whether quoted-printable suits it better than base64: what people read, and what is made of lines."""
        return self.type.startswith(("text/", "message/global"))

    def truth(self, target: Target) -> str | None:
        """The label of a composite entity whose parts are fit for the target; None: as it is."""
        if self.encoding is _Encoding.SEVEN or (self.encoding is _Encoding.EIGHT and target is Target.EIGHT_BIT):
            return None
        return target.value

    def relabelled(self, encoding: str | None, *, top: bool, unknown_text: bool = False) -> list[bytes]:
        """The lines with another Content-Transfer-Encoding (None: as it is), and what a MIME message must have."""
        lines = self.lines
        if encoding is None:
            return lines
        label = b"Content-Transfer-Encoding: " + encoding.encode("ascii")
        out: list[bytes] = []
        dropping = placed = False
        for line in lines:
            if line[:1] not in (b" ", b"\t"):
                dropping = _is_encoding(line)
                if dropping:
                    if not placed:
                        out.append(label)
                        placed = True
                    continue
            elif dropping:
                continue
            out.append(line)
        if top and not self.has_version:
            out.append(b"MIME-Version: 1.0")
        if unknown_text and not self.has_type:
            out.append(b"Content-Type: text/plain; charset=unknown-8bit")  # RFC 1428 3
        if not placed:
            out.append(label)
        return out


def _is_encoding(line: bytes) -> bool:
    return line[:25].lower() == b"content-transfer-encoding" and line[25:].lstrip(b" \t")[:1] == b":"


def _fields(lines: list[bytes]) -> dict[bytes, str]:
    """The MIME fields, unfolded; the first of each name counts."""
    found: dict[bytes, list[bytes]] = {}
    value: list[bytes] = []  # of the field that a continuation goes on with
    for line in lines:
        if line[:1] in (b" ", b"\t"):
            value.append(line)
            continue
        value = []
        if line[:1] in b"cCmM":
            name, colon, rest = line.partition(b":")
            name = name.rstrip(b" \t").lower()
            if colon and name in _MIME_FIELDS and name not in found:
                value.append(rest)
                found[name] = value
    return {name: b" ".join(pieces).decode("latin-1") for name, pieces in found.items()}


def _begins_as_base64(content: bytes) -> bool:
    """Whether the first line that is not blank is base64, stray octets aside: no blank in it, its length a multiple of
    four, as every encoder makes them. `Hallo` is none; a word that is, once in a while, is taken for it."""
    line = content.lstrip()[: MAX_PIECE - 1].partition(_CRLF)[0].rstrip()
    letters = _NOT_SEVEN.sub(b"", line)
    if not letters:
        return not line
    return _BASE64_LETTERS.fullmatch(letters) is not None and (len(letters) % 4 == 0 or len(line) > LINE_LIMIT)


class Reencoder:
    """Feed it a whole message in any split; what it returns, joined, is the message for the target."""

    def __init__(
        self, target: Target, *, hold: int = HOLD, longest_line: int | None = None, keep_signed: bool = False
    ) -> None:
        """`longest_line`: octets of a line, without its end, that pass; None: any number. `keep_signed`: what is in a
        multipart/signed passes unchanged, whatever it is."""
        self._target = target
        self._longest = sys.maxsize if longest_line is None else longest_line
        self._bounded = longest_line is not None
        self._keep_signed = keep_signed
        self._unfit = _NOT_SEVEN if target is Target.SEVEN_BIT else _NOT_EIGHT
        self._mask = _MASKED if target is Target.SEVEN_BIT else _BLANKED
        self._hold_limit = hold
        self._buffer = b""
        self._inside_line = False  # the next piece goes on with the line of the one before
        self._out: list[bytes] = []
        self._first = True  # nothing was put out yet: no CRLF before the first line
        self._state = _State.HEADER
        self._levels: list[tuple[tuple[bytes, ...], bool]] = []  # boundaries of multiparts, innermost last; digest?
        self._names: dict[bytes, int] = {}  # boundary to the outermost level that has it
        self._depth = 0
        self._top = True
        self._digest = False
        self._lines: list[bytes] = []  # of the header that is being read
        self._size = 0
        self._header: _Header | None = None
        self._header_top = False
        self._held: list[bytes] = []  # content of an entity on hold
        self._seeking = False  # what is on hold is a multipart that is followed, its first part not found yet
        self._doubtful = False  # what is on hold says that it is encoded, and nothing in it shows yet whether it is
        self._leaf_begun = False  # the leaf has a line
        self._output_begun = False  # something of the encoded leaf was put out
        self._rest = b""  # base64: octets that do not fill a line yet
        self._broken = True  # quoted-printable: the last line put out ends hard, or is the first
        self._certain = False  # what is looked at again has an octet that shows labels to be wrong
        self._dropping = False  # a header too long to be held: a label is being left out
        self._unseparated = False  # the header of a message that is followed lacks its empty line

    def feed(self, data: bytes) -> bytes:
        """The next octets; returns what is ready. Raises Unconvertible."""
        lines = (self._buffer + data if self._buffer else data).split(_CRLF)
        rest = lines.pop()
        if not self._pass_on(lines):
            for line in lines:
                self._line(line, ended=True)
        while len(rest) > MAX_PIECE:
            self._line(rest[: MAX_PIECE - 1], ended=False)
            rest = rest[MAX_PIECE - 1 :]
        self._buffer = rest
        return self._take()

    def finish(self) -> bytes:
        """The end of the message; returns the rest. Raises Unconvertible."""
        self._line(self._buffer, ended=True)
        self._buffer = b""
        self._entity_ended(last_of_message=True)
        return self._take()

    def release(self) -> bytes:
        """Memory is short: choose the encoding of what is on hold, and of later parts at their first line."""
        self._hold_limit = 0
        if self._state is _State.HOLD and self._held and not self._seeking:
            self._choose(whole=False)
        return self._take()

    @property
    def held(self) -> int:
        """Octets that were fed and have not come out, about."""
        return len(self._buffer) + self._size

    def _pass_on(self, lines: list[bytes]) -> bool:
        """Put out lines of encoded content at once, where each is as it may be and none ends the entity. Nearly all of
        a large message is such content, and looking at each line would take ten times as long."""
        if self._state is not _State.CLEAN or not self._output_begun or self._inside_line or len(lines) < 2:
            return False
        content = _CRLF.join(lines)
        fit = (
            content.isascii()
            and b"\0" not in content
            and content.count(b"\r") == content.count(b"\n") == len(lines) - 1
            and b"\n--" not in content
            and not content.startswith(b"--")
            and len(max(lines, key=len)) <= self._longest
        )
        if fit:
            self._put_line(content)
        return fit

    def _take(self) -> bytes:
        out = b"".join(self._out)
        self._out.clear()
        return out

    def _put_line(self, line: bytes) -> None:
        if self._first:
            self._first = False
        else:
            self._out.append(_CRLF)
        self._out.append(line)

    # --- lines -------------------------------------------------------------------------------------------------------

    def _line(self, piece: bytes, *, ended: bool) -> None:
        goes_on, self._inside_line = self._inside_line, not ended
        if not goes_on and ended and self._names and piece.startswith(b"--") and self._delimiter(piece):
            return
        self._content(piece, goes_on=goes_on, ended=ended)

    def _content(self, piece: bytes, *, goes_on: bool, ended: bool) -> None:
        state = self._state
        if state is _State.HEADER:
            self._header_line(piece, goes_on=goes_on, ended=ended)
        elif state is _State.PASS or state is _State.MASK:
            self._put_piece(piece.translate(self._mask), goes_on)
        elif state is _State.KEEP:
            self._put_piece(piece, goes_on)
        elif state is _State.LONG_HEADER:
            self._long_header_line(piece, goes_on)
        else:
            before = _CRLF if self._leaf_begun and not goes_on else b""
            self._leaf_begun = True
            self._leaf(piece, before)

    def _put_piece(self, piece: bytes, goes_on: bool) -> None:
        if goes_on:
            self._out.append(piece)
        else:
            self._put_line(piece)

    def _delimiter(self, line: bytes) -> bool:
        name = line.rstrip(b" \t")[2:]
        closing = False
        level = self._names.get(name)
        if level is None and name.endswith(b"--"):
            closing = True
            level = self._names.get(name[:-2])
        if level is None:
            return False
        if self._seeking and level == len(self._levels) - 1 and not closing:
            self._follow_multipart(name)
        else:
            # A multipart that ends before its first part has no preamble: what is in it is its content.
            self._seeking = self._seeking and level != len(self._levels) - 1
            self._entity_ended(last_of_message=False)
        self._put_line(line)
        self._leave(level + (not closing))
        self._depth = level + 1
        self._digest = self._levels[level][1] if not closing else False
        self._state = _State.PASS if closing else _State.HEADER
        self._lines, self._size = [], 0
        return True

    def _leave(self, count: int) -> None:
        """Keep so many of the levels."""
        while len(self._levels) > count:
            names, _ = self._levels.pop()
            for name in names:
                if self._names.get(name) == len(self._levels):
                    del self._names[name]

    # --- headers -----------------------------------------------------------------------------------------------------

    def _header_line(self, piece: bytes, *, goes_on: bool, ended: bool) -> None:
        if not goes_on:
            if not piece:
                self._header_ended(separated=True)
                return
            if _FIELD.match(piece) is None and (self._lines or _MBOX.match(piece) is None):
                self._header_ended(separated=False)
                self._inside_line = False
                self._line(piece, ended=ended)
                return
        if b"\r" in piece or b"\n" in piece:
            raise Unconvertible("a header has a CR or LF that does not end its line")
        if goes_on and self._lines:
            self._lines[-1] += piece
        else:
            self._lines.append(piece)
        self._size += len(piece) + 2
        if self._size > MAX_HEADER:
            self._header_too_long()

    def _header_too_long(self) -> None:
        """The fields pass on but for the label, which comes last, when all labels were seen. What the body is nobody
        knows, so it is encoded unless the label says that it is."""
        header = _Header(self._lines, digest=self._digest)
        header.kind = _Kind.LEAF
        self._begin(header)
        self._state = _State.LONG_HEADER
        for line in header.lines:
            self._long_header_line(line, goes_on=False)

    def _long_header_line(self, piece: bytes, goes_on: bool) -> None:
        header = self._header
        assert header is not None
        if not piece and not goes_on:
            if self._header_top and not header.has_version:
                self._put_line(b"MIME-Version: 1.0")
            label = b"base64" if header.encoding is _Encoding.BASE64 else b"quoted-printable"
            self._put_line(b"Content-Transfer-Encoding: " + label)
            self._put_line(b"")
            self._state = _State.CLEAN if header.encoded else _State.QUOTED
            return
        if not goes_on and piece[:1] not in (b" ", b"\t"):
            self._dropping = _is_encoding(piece)
            if self._dropping and not header.has_encoding:
                header.has_encoding = True
                name = transfer_encoding(piece.partition(b":")[2].decode("latin-1"))
                header.encoding = _ENCODINGS.get(name, _Encoding.UNKNOWN)
            elif piece[:13].lower() == b"mime-version:":
                header.has_version = True
        if not self._dropping:
            self._put_piece(piece.translate(_BLANKED), goes_on)

    def _begin(self, header: _Header) -> None:
        self._header, self._header_top, self._top = header, self._top, False
        self._lines, self._size = [], 0
        self._leaf_begun = self._output_begun = self._seeking = self._doubtful = False
        self._held = []
        self._rest = b""
        self._broken = True

    def _header_ended(self, *, separated: bool) -> None:
        """The empty line came, or a line that is no field."""
        header = _Header(self._lines, digest=self._digest, separated=separated)
        self._begin(header)
        follow = self._depth < MAX_DEPTH
        if self._keep_signed and header.type == "multipart/signed":
            self._put_header(None)
            self._state = _State.KEEP
        elif follow and header.kind is _Kind.MULTIPART and header.boundaries:
            self._depth += 1
            level = len(self._levels)
            self._levels.append((header.boundaries, header.type == "multipart/digest"))
            for name in header.boundaries:
                self._names.setdefault(name, level)
            self._seeking = True
            self._state = _State.HOLD
        elif follow and header.kind is _Kind.MESSAGE and (self._certain or not header.encoded):
            self._follow_message()
        elif header.encoding is _Encoding.BASE64 or (header.encoded and follow and header.kind is _Kind.MESSAGE):
            self._doubtful = True
            self._state = _State.HOLD
        elif header.encoded:
            self._put_header(None)
            self._state = _State.CLEAN
        elif header.kind is _Kind.SEVEN:
            self._put_header(header.truth(self._target))
            self._state = _State.MASK
        else:
            self._state = _State.HOLD

    def _put_header(self, encoding: str | None, *, unknown_text: bool = False) -> None:
        header = self._header
        assert header is not None
        unseparated, self._unseparated = self._unseparated, False
        if unseparated and encoding is not None:
            self._put_line(b"")
        for line in header.relabelled(encoding, top=self._header_top, unknown_text=unknown_text):
            self._put_field_line(line)
        if header.separated or encoding is not None:
            self._put_line(b"")

    def _put_field_line(self, line: bytes) -> None:
        """A line of a header section, folded where it is too long and has blanks (RFC 5322 2.2.3)."""
        while len(line) > self._longest:
            # What stays before the fold must not be all blank: such a line would end no field, and begin none.
            start = len(line) - len(line.lstrip(b" \t"))
            at = max(line.rfind(b" ", start + 1, self._longest + 1), line.rfind(b"\t", start + 1, self._longest + 1))
            if at < 0 or not line[at:].strip(b" \t"):
                break
            self._put_line(line[:at])
            line = line[at:]
        self._put_line(line)

    # --- composite entities ------------------------------------------------------------------------------------------

    def _follow_multipart(self, name: bytes) -> None:
        """The first part of the multipart on hold begins, after a line with this boundary."""
        header = self._header
        assert header is not None
        self._put_header(header.truth(self._target))
        if self._leaf_begun:
            # By lines, for a CRLF between two of them is no CR or LF alone.
            for line in b"".join(self._held).split(_CRLF):
                self._put_line(line.translate(self._mask))
        level = len(self._levels) - 1
        for other in self._levels[level][0]:
            if other != name and self._names.get(other) == level:
                del self._names[other]
        self._held, self._size = [], 0
        self._seeking = False

    def _follow_message(self) -> None:
        """What comes is the header of a message, whatever the label of this one says."""
        header = self._header
        assert header is not None
        label = header.truth(self._target)
        self._put_header(label)
        self._unseparated = label is None and not header.separated
        self._depth += 1
        self._digest = self._doubtful = False
        self._state = _State.HEADER

    def _doubt(self) -> None:
        """Look at the next line on hold: does it show whether the label is right?

        Base64 shows in its first line. A message in quoted-printable has no octet that is not fit for the target.
        """
        header = self._header
        assert header is not None
        last = self._held[-1].removeprefix(_CRLF)
        if header.encoding is _Encoding.BASE64:
            if not last.strip():
                return
            self._doubtful = False
            wrong = not _begins_as_base64(last)
            if not wrong:
                self._choose(whole=False)
        else:
            wrong = self._unfit.search(last) is not None
        if not wrong or header.kind is not _Kind.MESSAGE or self._depth >= MAX_DEPTH:
            return
        content = b"".join(self._held)
        self._held, self._size = [], 0
        self._follow_message()
        inside_line, self._inside_line = self._inside_line, False
        self._certain = True  # else each message in the next would be held and looked at anew
        *lines, last = content.split(_CRLF)
        for line in lines:
            self._line(line, ended=True)
        self._line(last, ended=not inside_line)
        self._certain = False

    # --- leaves ------------------------------------------------------------------------------------------------------

    def _leaf(self, piece: bytes, before: bytes) -> None:
        match self._state:
            case _State.HOLD:
                self._held.append(before + piece)
                self._size += len(before) + len(piece)
                if self._doubtful:
                    self._doubt()
                if self._state is not _State.HOLD:
                    return
                if self._size > (max(self._hold_limit, HOLD) if self._seeking else self._hold_limit):
                    self._choose(whole=False)
            case _State.CLEAN:
                self._clean(piece, before)
            case _State.QUOTED:
                self._quote(piece, before)
            case _:
                self._base64(before + piece)

    def _entity_ended(self, *, last_of_message: bool) -> None:
        if self._state is _State.HEADER:
            # Something ended a header that has no body.
            for line in self._lines:
                self._put_field_line(line)
            self._top = False
        elif self._state is _State.HOLD:
            self._choose(whole=True)
        if self._state is _State.BASE64:
            if self._rest:
                self._put_base64(self._rest)
                self._rest = b""
            if last_of_message and self._output_begun:
                self._out.append(_CRLF)
        elif self._state is _State.QUOTED and last_of_message and not self._broken:
            # The content has no CRLF at its end, and DATA would give it one: a soft break does not count.
            self._out.append(b"=\r\n")
        self._state = _State.PASS

    def _choose(self, *, whole: bool) -> None:
        """Choose the encoding of the entity on hold; `whole`: all its content is there."""
        header = self._header
        assert header is not None
        content = b"".join(self._held)
        begun = self._leaf_begun
        self._held, self._size = [], 0
        if self._seeking:
            self._seeking = False
            self._leave(len(self._levels) - 1)
            self._depth -= 1
        self._doubtful = False
        eight = not content.isascii()
        binary = b"\0" in content or _BARE.search(content) is not None
        fine = not binary and (self._target is Target.EIGHT_BIT or not eight)
        if self._bounded and fine and header.kind in (_Kind.MULTIPART, _Kind.MESSAGE):
            # Its parts were not found. No label on it is legal, and lines that are long do less harm than a wrong one.
            self._put_header(None)
            self._state = _State.PASS
            if begun:
                self._put_line(content)
            return
        if fine and self._bounded and header.kind is _Kind.LEAF:
            fine = len(max(content.split(_CRLF), key=len)) <= self._longest
        if header.encoded and (fine or header.encoding is _Encoding.QUOTED or _begins_as_base64(content)):
            self._put_header(None)
            self._state = _State.CLEAN
            if begun:
                self._put_held(content, self._clean)
            return
        if header.kind is _Kind.SEVEN:
            self._put_header(header.truth(self._target))
            self._state = _State.MASK
            if begun:
                self._put_held(content, lambda line, _: self._put_line(line.translate(self._mask)))
            return
        composite = header.kind is not _Kind.LEAF
        if header.encoding is _Encoding.BINARY and not binary:
            binary = not whole or any(len(line) > LINE_LIMIT for line in content.split(_CRLF))
            fine = fine and not binary
        if fine and whole:
            self._put_header(self._honest(header, eight))
            self._state = _State.PASS
            if begun:
                self._put_line(content)
            return
        self._state = _State.QUOTED if composite or (header.text and not binary) else _State.BASE64
        self._put_header("quoted-printable" if self._state is _State.QUOTED else "base64", unknown_text=eight)
        if self._state is _State.BASE64:
            self._base64(content)
        else:
            self._put_held(content, self._quote)

    @staticmethod
    def _put_held(content: bytes, put: Callable[[bytes, bytes], None]) -> None:
        before = b""
        for line in content.split(_CRLF):
            put(line, before)
            before = _CRLF

    def _honest(self, header: _Header, eight: bool) -> str | None:
        """The label for content that stays as it is: changed only where it claims more than the hop may see."""
        if header.encoding is _Encoding.BINARY:
            return "8bit" if eight else "7bit"
        if header.encoding is _Encoding.EIGHT and self._target is Target.SEVEN_BIT:
            return "7bit"
        return None

    def _clean(self, piece: bytes, before: bytes) -> None:
        wrong = self._unfit
        if wrong.search(piece) is not None:
            header = self._header
            assert header is not None
            if header.encoding is _Encoding.QUOTED:
                # An octet that stands for itself where it should not is the same octet when it is quoted.
                piece = wrong.sub(lambda found: b"=%02X" % found[0][0], piece)
            else:
                piece = wrong.sub(b"?", piece)  # RFC 2045 6.8: decoders ignore what is no base64, this as well
        if len(piece) > self._longest:
            piece = self._shortened(piece)
        if before or not self._output_begun:
            self._output_begun = True
            self._put_line(piece)
        else:
            self._out.append(piece)

    def _shortened(self, piece: bytes) -> bytes:
        """A line of encoded content that is too long, in lines that mean the same (RFC 2045 6.7 and 6.8)."""
        header = self._header
        assert header is not None
        if header.encoding is not _Encoding.QUOTED:
            return _CRLF.join(piece[at : at + 76] for at in range(0, len(piece), 76))
        lines: list[bytes] = []
        while len(piece) > 76:
            end = 75
            if b"=" in piece[end - 2 : end]:
                end = piece.rindex(b"=", end - 2, end)  # a soft break must not part `=` from its digits
            lines.append(piece[:end] + b"=")
            piece = piece[end:]
            if piece.startswith(b"--"):
                piece = b"=2D" + piece[1:]  # else it might look like a boundary
        return _CRLF.join([*lines, piece])

    def _quote(self, piece: bytes, before: bytes) -> None:
        # Each CR or LF that is no line end is data here: istext=False quotes it.
        encoded = binascii.b2a_qp(piece, istext=False).replace(b"=\n", b"=\r\n")
        if b"=\r\n--" in encoded:
            # A soft break must not make a line that looks like a boundary.
            encoded = encoded.replace(b"=\r\n--", b"=\r\n=2D-")
        if before or not self._output_begun:
            self._output_begun = True
            self._put_line(encoded)
        elif encoded:
            self._out.append(b"=\r\n" + encoded)
        self._broken = not piece and bool(before)

    def _base64(self, content: bytes) -> None:
        data = self._rest + content
        whole = len(data) - len(data) % _BASE64_LINE
        self._rest = data[whole:]
        if whole:
            self._put_base64(data[:whole])

    def _put_base64(self, data: bytes) -> None:
        self._output_begun = True
        lines = base64.encodebytes(data).split(b"\n")  # lines of 76
        lines.pop()
        self._put_line(_CRLF.join(lines))


def reencode(content: bytes, target: Target, *, longest_line: int | None = None, keep_signed: bool = False) -> bytes:
    """A whole message for the target; see `Reencoder`. Raises Unconvertible."""
    encoder = Reencoder(target, hold=len(content) + 1, longest_line=longest_line, keep_signed=keep_signed)
    return encoder.feed(content) + encoder.finish()
