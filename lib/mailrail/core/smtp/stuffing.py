"""Content made ready for DATA: only CRLF ends a line, and no line of it ends the data (RFC 5321 4.5.2, SOUT-12a)."""

import re

_BARE = re.compile(rb"\r\n|\r|\n")


def has_bare_line_ends(content: bytes) -> bool:
    """Whether a CR or LF stands alone somewhere: such content must not be sent by DATA as it is (SOUT-12a)."""
    # Two passes that skip, where counting single octets looks at each of them: a quarter of the time.
    rest = content.replace(b"\r\n", b"")
    return b"\n" in rest or b"\r" in rest


def stuff(content: bytes, *, bare_line_ends: bool = True) -> bytes:
    """Whole content made ready for DATA: dots doubled at line starts, CRLF and the final dot at its end.

    Only CRLF ends a line on the wire (SOUT-12a): a bare CR or LF, of which the re-encoder leaves none, becomes CRLF,
    so that stored bytes can never end the data or begin a command. `bare_line_ends` false: somebody has
    looked (`has_bare_line_ends`), there are none.
    """
    if bare_line_ends and has_bare_line_ends(content):
        content = _BARE.sub(b"\r\n", content)
    if b"\r\n." in content:
        content = content.replace(b"\r\n.", b"\r\n..")
    if content.startswith(b"."):
        content = b"." + content
    if content.endswith(b"\r\n") or not content:
        return content + b".\r\n"
    return content + b"\r\n.\r\n"


class Stuffer:
    """`stuff` for content that comes in pieces, split anywhere."""

    __slots__ = ("_held", "_line_start")

    def __init__(self) -> None:
        self._line_start = True
        self._held = b""  # a CR whose LF may come with the next piece

    def feed(self, piece: bytes) -> bytes:
        """The octets to write for this piece."""
        data = self._held + piece
        self._held = b""
        if data.endswith(b"\r"):
            data, self._held = data[:-1], b"\r"
        if not data:
            return b""
        if has_bare_line_ends(data):
            data = _BARE.sub(b"\r\n", data)
        starts = self._line_start and data.startswith(b".")
        self._line_start = data.endswith(b"\r\n")
        if b"\r\n." in data:
            data = data.replace(b"\r\n.", b"\r\n..")
        return b"." + data if starts else data

    def finish(self) -> bytes:
        """What closes the data: the rest of the last line and the final dot."""
        if self._held:
            self._held, self._line_start = b"", True
            return b"\r\n.\r\n"
        return b".\r\n" if self._line_start else b"\r\n.\r\n"
