"""The one MIME re-encoder: makes 8-bit or binary content fit for a hop that cannot take it, without loss.

8-bit parts become quoted-printable where they are text and base64 where they are not, binary parts base64; the decoded
content of every part stays the same, octet for octet (RFC 2045 6, RFC 6152 3, RFC 3030 3; EXT-08, SOUT-18). Multipart
and message/rfc822 are followed, however deep up to a bound. Header fields stay as they are, byte for byte, except
Content-Transfer-Encoding of the entities that changed (composite ones may say 7bit, 8bit or binary only, RFC 2045 6.4,
and say the new truth afterwards). No encoding is ever put into another. A message without MIME-Version whose body has
8-bit octets gets the three MIME fields it lacks, as unknown 8-bit text.

It streams: `Reencoder` takes octets in any split and holds at most one header section, one line, and the beginning of
one part: up to `HOLD` octets are looked at before a part's encoding is chosen, so that parts which are fine stay
untouched; a longer part is encoded by what its header says, which is never wrong, only sometimes needless. What cannot
be parsed is treated as one opaque part: nothing is ever bounced for being 8-bit. A signature over 8-bit parts does not
outlive such a hop; signers know it and send 7bit (RFC 1847 2.1, RFC 6376 5.3), which is never touched.

Only CRLF ends a line. A CR or LF alone in a header section cannot stay, and as CRLF it would make a header field that
nobody wrote: such content is refused (`Unconvertible`). Outside of fields and parts, where nobody reads, it becomes a
space. The CRLF before a boundary belongs to the boundary (RFC 2046 5.1.1), so lines are handled as
text with a CRLF in front of each but the first.
"""

import base64
import binascii
import re
from enum import Enum, StrEnum, auto

MAX_HEADER = 262144
"""Octets of one header section that are held; what has a longer one passes unread."""
MAX_DEPTH = 100
"""Nested entities that are followed; deeper ones are opaque parts of their parent."""
MAX_PIECE = 65536
"""Octets of one body line that are held at once."""
HOLD = 1048576
"""Octets of one part that are looked at before its encoding is chosen."""

_CRLF = b"\r\n"
_BASE64_LINE = 57  # octets that make a line of 76 characters (RFC 2045 6.8)
_BARE = re.compile(rb"\r(?!\n)|(?<!\r)\n")
_LONE = re.compile(rb"[\r\n]")  # in a line, whose CRLF is taken off
_NOT_SEVEN = re.compile(rb"[\x00\r\n\x80-\xff]")
_NOT_EIGHT = re.compile(rb"[\x00\r\n]")
_BOUNDARY = re.compile(rb';[ \t]*boundary[ \t]*=[ \t]*(?:"((?:[^"\\]|\\.){1,250})"|([^\s;"]{1,250}))', re.IGNORECASE)
_TYPE = re.compile(rb"\s*([^\s;/]+)\s*/\s*([^\s;]+)")
_MAX_FIELD = 8192  # octets of a Content-Type that are read


class Target(StrEnum):
    """What the next hop takes."""

    SEVEN_BIT = "7bit"
    EIGHT_BIT = "8bit"  # 8-bit octets in lines, but no NUL and no bare CR or LF


class Unconvertible(ValueError):
    """The message cannot be made fit for the target; the text says why."""


class _State(Enum):
    HEADER = auto()
    PASS = auto()  # preamble, epilogue, or what is not read
    HOLD = auto()  # a leaf whose encoding is not chosen yet
    CLEAN = auto()  # a leaf that is encoded already: only octets that do not belong there are dealt with
    QUOTED = auto()
    BASE64 = auto()


class _Encoding(Enum):
    SEVEN = auto()
    EIGHT = auto()
    BINARY = auto()
    QUOTED = auto()
    BASE64 = auto()


_ENCODINGS = {
    b"7bit": _Encoding.SEVEN,
    b"8bit": _Encoding.EIGHT,
    b"binary": _Encoding.BINARY,
    b"quoted-printable": _Encoding.QUOTED,
    b"base64": _Encoding.BASE64,
}


class _Header:
    """One header section: its raw lines, and what its MIME fields say."""

    __slots__ = ("boundary", "encoding", "has_encoding", "has_type", "has_version", "lines", "maintype", "subtype")

    def __init__(self, lines: list[bytes], *, digest: bool) -> None:
        self.lines = lines
        self.maintype, self.subtype = (b"message", b"rfc822") if digest else (b"text", b"plain")
        self.boundary: bytes | None = None
        self.encoding = _Encoding.SEVEN
        self.has_type = self.has_encoding = self.has_version = False
        for name, value in _fields(lines):
            if name == b"content-type" and not self.has_type:
                self.has_type = True
                self._type(value[:_MAX_FIELD])
            elif name == b"content-transfer-encoding" and not self.has_encoding:
                self.has_encoding = True
                token = re.sub(rb"\([^()]*\)", b"", value[:256]).strip().lower()
                # An unknown name says nothing about the octets: they are looked at as if it said 8bit.
                self.encoding = _ENCODINGS.get(token, _Encoding.EIGHT)
            elif name == b"mime-version":
                self.has_version = True

    def _type(self, value: bytes) -> None:
        found = _TYPE.match(value)
        if found is None:
            return  # RFC 2045 5.2: unreadable is text/plain
        self.maintype, self.subtype = found[1].lower(), found[2].lower()
        if self.maintype == b"multipart":
            boundary = _BOUNDARY.search(value)
            if boundary is not None:
                quoted = boundary[1]
                self.boundary = re.sub(rb"\\(.)", rb"\1", quoted).rstrip() if quoted is not None else boundary[2]

    @property
    def multipart(self) -> bool:
        return self.boundary is not None and self._identity

    @property
    def message(self) -> bool:
        return self.maintype == b"message" and self.subtype in (b"rfc822", b"global", b"news") and self._identity

    @property
    def _identity(self) -> bool:
        return self.encoding not in (_Encoding.QUOTED, _Encoding.BASE64)

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
                dropping = line[:26].lower().rstrip(b" \t:") == b"content-transfer-encoding" and b":" in line
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


def _fields(lines: list[bytes]) -> list[tuple[bytes, bytes]]:
    fields: list[tuple[bytes, bytes]] = []
    for line in lines:
        if line[:1] in (b" ", b"\t") and fields:
            name, value = fields[-1]
            if name.startswith(b"content-") and len(value) < _MAX_FIELD:
                fields[-1] = (name, value + b" " + line.strip())
            continue
        name, colon, value = line.partition(b":")
        if colon:
            fields.append((name.strip().lower(), value.strip()))
    return fields


class Reencoder:
    """Feed it a whole message in any split; what it returns, joined, is the message for the target."""

    def __init__(self, target: Target, *, hold: int = HOLD) -> None:
        self._target = target
        self._hold_limit = hold
        self._buffer = b""
        self._inside_line = False  # the next piece goes on with the line of the one before
        self._out: list[bytes] = []
        self._first = True  # nothing was put out yet: no CRLF before the first line
        self._state = _State.HEADER
        self._boundaries: list[tuple[bytes, bool]] = []  # innermost last; with: its parts default to message/rfc822
        self._depth = 0
        self._top = True
        self._digest = False
        self._lines: list[bytes] = []  # of the header that is being read
        self._size = 0
        self._header: _Header | None = None
        self._header_top = False
        self._held: list[bytes] = []  # content of a leaf on hold
        self._leaf_begun = False  # the leaf has a line
        self._output_begun = False  # something of the encoded leaf was put out
        self._rest = b""  # base64: octets that do not fill a line yet
        self._broken = True  # quoted-printable: the last line put out ends hard, or is the first

    def feed(self, data: bytes) -> bytes:
        """The next octets; returns what is ready. Raises Unconvertible."""
        lines = (self._buffer + data if self._buffer else data).split(_CRLF)
        rest = lines.pop()
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
        if self._state is _State.HEADER:
            self._header_ended(None)
        else:
            self._leaf_ended(last_of_message=True)
        return self._take()

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
        if not goes_on and ended and self._boundaries and piece.startswith(b"--") and self._delimiter(piece):
            return
        state = self._state
        if state is _State.HEADER:
            self._header_line(piece, goes_on)
        elif state is _State.PASS:
            if b"\r" in piece or b"\n" in piece:
                piece = _LONE.sub(b" ", piece)
            if goes_on:
                self._out.append(piece)
            else:
                self._put_line(piece)
        else:
            before = _CRLF if self._leaf_begun and not goes_on else b""
            self._leaf_begun = True
            self._leaf(piece, before, ended)

    def _delimiter(self, line: bytes) -> bool:
        stripped = line.rstrip(b" \t")
        for level in range(len(self._boundaries) - 1, -1, -1):
            boundary, digest = self._boundaries[level]
            if not stripped.startswith(boundary, 2):
                continue
            closing = stripped == b"--" + boundary + b"--"
            if not closing and stripped != b"--" + boundary:
                continue
            if self._state is _State.HEADER:
                self._header_ended(None)
            else:
                self._leaf_ended(last_of_message=False)
            self._put_line(line)
            del self._boundaries[level + (not closing) :]
            self._depth = level + 1
            self._digest = digest
            self._state = _State.PASS if closing else _State.HEADER
            self._lines, self._size = [], 0
            return True
        return False

    def _header_line(self, piece: bytes, goes_on: bool) -> None:
        if not piece and not goes_on:
            self._header_ended(piece)
            return
        if b"\r" in piece or b"\n" in piece:
            raise Unconvertible("a header has a CR or LF that does not end its line")
        if goes_on and self._lines:
            self._lines[-1] += piece
        else:
            self._lines.append(piece)
        self._size += len(piece) + 2
        if self._size > MAX_HEADER:
            for line in self._lines:
                self._put_line(line)
            self._lines = []
            self._state = _State.PASS

    def _header_ended(self, blank: bytes | None) -> None:
        """The blank line came, or (None) something else ended a header that has no body."""
        header = _Header(self._lines, digest=self._digest)
        top, self._top = self._top, False
        self._lines, self._size = [], 0
        self._header = None
        if blank is None:
            for line in header.lines:
                self._put_line(line)
            self._state = _State.PASS
            return
        if (header.multipart or header.message) and self._depth < MAX_DEPTH:
            self._depth += 1
            changes = header.encoding is _Encoding.BINARY or (
                header.encoding is _Encoding.EIGHT and self._target is Target.SEVEN_BIT
            )
            label = self._target.value if changes else None
            for line in header.relabelled(label, top=top):
                self._put_line(line)
            self._put_line(b"")
            if header.multipart:
                assert header.boundary is not None
                self._boundaries.append((header.boundary, header.subtype == b"digest"))
                self._state = _State.PASS
            else:
                self._digest = False
                self._state = _State.HEADER
            return
        self._header = header
        self._header_top = top
        self._leaf_begun = self._output_begun = False
        self._held = []
        self._rest = b""
        if header.encoding in (_Encoding.QUOTED, _Encoding.BASE64):
            self._put_header(None)
            self._state = _State.CLEAN
        else:
            self._state = _State.HOLD

    def _put_header(self, encoding: str | None, *, unknown_text: bool = False) -> None:
        assert self._header is not None
        for line in self._header.relabelled(encoding, top=self._header_top, unknown_text=unknown_text):
            self._put_line(line)
        self._put_line(b"")

    # --- leaves --------------------------------------------------------------------------------------------------

    def _leaf(self, piece: bytes, before: bytes, ended: bool) -> None:
        match self._state:
            case _State.HOLD:
                self._held.append(before + piece)
                self._size += len(before) + len(piece)
                if self._size > self._hold_limit:
                    self._choose(whole=False)
            case _State.CLEAN:
                self._clean(piece, before)
            case _State.QUOTED:
                self._quote(piece, before)
            case _:
                self._base64(before + piece)

    def _leaf_ended(self, *, last_of_message: bool) -> None:
        if self._state is _State.HOLD:
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
        """Choose the encoding of the leaf on hold; `whole`: all its content is there."""
        header = self._header
        assert header is not None
        content = b"".join(self._held)
        begun = self._leaf_begun
        self._held, self._size = [], 0
        binary = b"\0" in content or _BARE.search(content) is not None
        if header.encoding is _Encoding.BINARY and not binary:
            binary = not whole or any(len(line) > 998 for line in content.split(_CRLF))
        eight = not content.isascii()
        fine = not binary and (self._target is Target.EIGHT_BIT or not eight)
        if fine and whole:
            self._put_header(self._honest(header, eight))
            self._state = _State.PASS
            if begun:
                self._put_line(content)
            return
        text = header.maintype == b"text"
        self._state = _State.QUOTED if text and not binary else _State.BASE64
        self._put_header("quoted-printable" if self._state is _State.QUOTED else "base64", unknown_text=eight)
        if self._state is _State.BASE64:
            self._base64(content)
            return
        first = True
        for line in content.split(_CRLF):
            self._quote(line, b"" if first else _CRLF)
            first = False

    def _honest(self, header: _Header, eight: bool) -> str | None:
        """The label for content that stays as it is: changed only where it claims more than the hop may see."""
        if header.encoding is _Encoding.BINARY:
            return "8bit" if eight else "7bit"
        if header.encoding is _Encoding.EIGHT and header.has_encoding and self._target is Target.SEVEN_BIT:
            return "7bit"
        return None

    def _clean(self, piece: bytes, before: bytes) -> None:
        wrong = _NOT_SEVEN if self._target is Target.SEVEN_BIT else _NOT_EIGHT
        if wrong.search(piece) is not None:
            header = self._header
            assert header is not None
            if header.encoding is _Encoding.QUOTED:
                # An octet that stands for itself where it should not is the same octet when it is quoted.
                piece = wrong.sub(lambda found: b"=%02X" % found[0][0], piece)
            else:
                piece = wrong.sub(b"", piece)  # RFC 2045 6.8: decoders ignore what is no base64
        if before or not self._output_begun:
            self._output_begun = True
            self._put_line(piece)
        else:
            self._out.append(piece)

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


def reencode(content: bytes, target: Target) -> bytes:
    """A whole message for the target. Raises Unconvertible."""
    encoder = Reencoder(target, hold=len(content) + 1)
    return encoder.feed(content) + encoder.finish()
