"""Content made ready for DATA: only CRLF ends a line, and no line of it ends the data (RFC 5321 4.5.2, SOUT-12a)."""

import re
from io import IncrementalNewlineDecoder

_BARE = re.compile(rb"\r\n|\r|\n")
_DOT_LINE = re.compile(rb"\r\n\.")
_DOTS = 64
"""Dots that are looked at one by one, a KiB each, before a search for all three octets is cheaper."""


def has_bare_line_ends(content: bytes) -> bool:
    """Whether a CR or LF stands alone somewhere: such content must not be sent by DATA as it is (SOUT-12a)."""
    # One pass; taking CRLF out and searching the rest takes five times as long, counting CRLF, CR and LF seven times.
    decoder = IncrementalNewlineDecoder(None, translate=False)
    decoder.decode(content.decode("latin-1"), final=True)
    return decoder.newlines not in (None, "\r\n")


def find_dot_line(content: bytes) -> int:
    """Where a CRLF and a dot stand first; -1: nowhere. The first line, which none precedes, is not looked at."""
    # One octet is found thirty times as fast as three, and most of what is large (base64) has hardly a dot.
    looks = min(_DOTS, len(content) >> 10)
    dot = content.find(b".", 2)
    while dot >= 0:
        if content.startswith(b"\r\n", dot - 2):
            return dot - 2
        if not looks:
            found = _DOT_LINE.search(content, dot - 1)
            return found.start() if found is not None else -1
        looks -= 1
        dot = content.find(b".", dot + 1)
    return -1


def stuff(content: bytes, *, bare_line_ends: bool = True) -> bytes:
    """Whole content made ready for DATA: dots doubled at line starts, CRLF and the final dot at its end.

    Only CRLF ends a line on the wire (SOUT-12a): a bare CR or LF, of which the re-encoder leaves none, becomes CRLF,
    so that stored bytes can never end the data or begin a command. `bare_line_ends` false: somebody has
    looked (`has_bare_line_ends`), there are none.
    """
    if bare_line_ends and has_bare_line_ends(content):
        content = _BARE.sub(b"\r\n", content)
    content = _double_dots(content)
    return content + _end_after(content)


def stuff_parts(prefix: bytes, body: bytes, *, undotted: bool) -> tuple[bytes, ...]:
    """`stuff` for content of which somebody has looked: no CR or LF stands alone in it. Its parts are not joined.

    `undotted`: no line of it begins with a dot, and the prefix ends with a line end or is empty.
    """
    if not undotted:
        if prefix and not prefix.endswith(b"\r\n"):
            return (stuff(prefix + body, bare_line_ends=False),)
        prefix, body = _double_dots(prefix), _double_dots(body)
    return prefix, body, _end_after(body or prefix)


def _double_dots(content: bytes) -> bytes:
    if find_dot_line(content) >= 0:
        content = content.replace(b"\r\n.", b"\r\n..")
    return b"." + content if content.startswith(b".") else content


def _end_after(content: bytes) -> bytes:
    """The final dot, on a line of its own."""
    return b".\r\n" if content.endswith(b"\r\n") or not content else b"\r\n.\r\n"


class Stuffer:
    """`stuff` for content that comes in pieces, split anywhere."""

    __slots__ = ("_held", "_line_start", "_undotted", "_whole")

    def __init__(self, *, whole: bool = False, undotted: bool = False) -> None:
        """What is known of all of it: no CR or LF stands alone (`whole`), no line begins with a dot (`undotted`)."""
        self._whole = whole
        self._undotted = undotted
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
        if not self._whole and has_bare_line_ends(data):
            data = _BARE.sub(b"\r\n", data)
        starts = self._line_start and data.startswith(b".")
        self._line_start = data.endswith(b"\r\n")
        if not self._undotted and find_dot_line(data) >= 0:
            data = data.replace(b"\r\n.", b"\r\n..")
        return b"." + data if starts else data

    def finish(self) -> bytes:
        """What closes the data: the rest of the last line and the final dot."""
        if self._held:
            self._held, self._line_start = b"", True
            return b"\r\n.\r\n"
        return b".\r\n" if self._line_start else b"\r\n.\r\n"
