"""SMTP replies: the value that every outcome is told in, and the bounded parser that reads them off the wire.

A reply is a three-digit code, perhaps an enhanced status code (RFC 3463, RFC 2034), and one line of text or several
(RFC 5321 4.2). Servers are strangers: a line, the number of lines and the whole reply are bounded, and whatever is
not a reply raises `BadReply` instead of being guessed at (SOUT-15). Codes that we do not know count by their first
digit (RFC 5321 4.2.1).
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache

MAX_LINE = 2048
"""Octets of one reply line without its end. RFC 5321 4.5.3.1.5 allows 512; real servers exceed that, none this much."""
MAX_LINES = 256
"""Lines of one reply: the longest EHLO answers seen have some thirty."""
MAX_REPLY = 65536
"""Octets of one whole reply."""


class Severity(IntEnum):
    """The first digit of a reply code (RFC 5321 4.2.1)."""

    PRELIMINARY = 1
    COMPLETED = 2
    INTERMEDIATE = 3
    TRANSIENT = 4
    PERMANENT = 5


@dataclass(frozen=True, slots=True, order=True)
class EnhancedCode:
    """An enhanced mail system status code `class.subject.detail` (RFC 3463 2)."""

    category: int
    """2 success, 4 persistent transient failure, 5 permanent failure."""
    subject: int
    detail: int

    def __str__(self) -> str:
        return f"{self.category}.{self.subject}.{self.detail}"

    @classmethod
    def parse(cls, text: str) -> "EnhancedCode":
        """Read `5.1.1`. Raises ValueError for anything else."""
        found = _ENHANCED.fullmatch(text)
        if found is None:
            raise ValueError(f"{text!r} is not an enhanced status code such as 5.1.1")
        return cls(int(found[1]), int(found[2]), int(found[3]))


_ENHANCED = re.compile(r"([245])\.([0-9]{1,3})\.([0-9]{1,3})")
_LEADING_ENHANCED = re.compile(r"([245])\.([0-9]{1,3})\.([0-9]{1,3})(?: +|\Z)")


@dataclass(frozen=True, slots=True)
class Reply:
    """What an SMTP server said: code, enhanced code where it gave a fitting one, and its lines."""

    code: int
    lines: tuple[str, ...] = ("",)
    """Text of each line after the code, enhanced code included, as it came; at least one line. Not yet sanitised."""
    enhanced: EnhancedCode | None = None

    @classmethod
    def of(cls, code: int, enhanced: str | EnhancedCode | None, *texts: str) -> "Reply":
        """A reply of our own: `Reply.of(550, "5.1.1", "no such user")`. Raises ValueError for a bad enhanced code."""
        if isinstance(enhanced, str):
            enhanced = EnhancedCode.parse(enhanced)
        lines = texts or ("",)
        if enhanced is not None:
            lines = tuple(f"{enhanced} {line}" if line else str(enhanced) for line in lines)
        return cls(code, lines, enhanced)

    @property
    def severity(self) -> Severity:
        """What the first digit says."""
        return Severity(self.code // 100)

    @property
    def positive(self) -> bool:
        """2yz, or 3yz: go on."""
        return self.code < 400

    @property
    def completed(self) -> bool:
        """2yz."""
        return 200 <= self.code < 300

    @property
    def transient(self) -> bool:
        """4yz: try again later."""
        return 400 <= self.code < 500

    @property
    def permanent(self) -> bool:
        """5yz: do not try again."""
        return self.code >= 500

    @property
    def text(self) -> str:
        """The lines joined by blanks, without the enhanced code at the head of each."""
        if len(self.lines) == 1:
            return _without_enhanced(self.lines[0])
        return " ".join(part for part in (_without_enhanced(line) for line in self.lines) if part)

    @property
    def texts(self) -> tuple[str, ...]:
        """The lines without the enhanced code at the head of each."""
        if len(self.lines) == 1:
            return (_without_enhanced(self.lines[0]),)
        return tuple(_without_enhanced(line) for line in self.lines)

    @property
    def status(self) -> EnhancedCode:
        """The enhanced code, or `class.0.0` of the reply code where the server gave none (DSN-17)."""
        return self.enhanced or EnhancedCode(min(self.code // 100, 5) if self.code >= 200 else 2, 0, 0)

    def __str__(self) -> str:
        """The full reply on one line, as a DSN's Diagnostic-Code and the log show it."""
        return f"{self.code} " + " ".join(self.lines) if self.lines != ("",) else str(self.code)

    def encode(self) -> bytes:
        """The reply as a server sends it, CRLF at each line's end (RFC 5321 4.2.1)."""
        if len(self.lines) == 1:
            return b"%d %s\r\n" % (self.code, self.lines[0].encode("utf-8", "surrogateescape"))
        last = len(self.lines) - 1
        return b"".join(
            b"%d%s%s\r\n" % (self.code, b"-" if i < last else b" ", line.encode("utf-8", "surrogateescape"))
            for i, line in enumerate(self.lines)
        )


@lru_cache(maxsize=512)
def _without_enhanced(line: str) -> str:
    found = _LEADING_ENHANCED.match(line)
    return line[found.end() :] if found else line


class BadReply(ValueError):
    """The peer sent something that is no SMTP reply, or one beyond our bounds. The connection is of no more use."""

    def __init__(self, reason: str, complete: Iterable[Reply] = ()) -> None:
        super().__init__(reason)
        self.reason = reason
        self.complete = tuple(complete)
        """Replies that were read whole before the fault, in order; they still count."""


_LINE = re.compile(rb"([2-5][0-9][0-9])(?:([ -])(.*))?\Z", re.DOTALL)


@lru_cache(maxsize=512)
def _single(line: bytes) -> Reply | None:
    """The reply that a line is by itself, with or without the CR at its end; None: it is not, or not alone.

    Servers repeat themselves ("250 2.1.5 Ok"), so most replies are found here already made.
    """
    found = _LINE.match(line[:-1] if line.endswith(b"\r") else line)
    if found is None or found[2] == b"-":
        return None
    return _build(int(found[1]), (_text(found[3] or b""),))


def _text(raw: bytes) -> str:
    # UTF-8 is what RFC 6531 3.7.4 allows; other octets stay recognisable and cannot fail.
    return raw.decode("utf-8", "backslashreplace")


def _build(code: int, lines: tuple[str, ...]) -> Reply:
    enhanced = None
    found = _LEADING_ENHANCED.match(lines[0])
    # RFC 2034 4: the class digit must agree with the code; one that does not is text.
    if found is not None and int(found[1]) == code // 100:
        enhanced = EnhancedCode(int(found[1]), int(found[2]), int(found[3]))
    return Reply(code, lines, enhanced)


class ReplyParser:
    """Bytes in, whole replies out, in any split (RFC 5321 4.2, 4.5.3.1.5).

    A line ends with CRLF; a bare LF is taken as well, as every client does. After `BadReply` the parser stays broken.
    """

    __slots__ = ("_buffer", "_code", "_lines", "_octets", "max_line", "max_lines", "max_reply")

    def __init__(self, *, max_line: int = MAX_LINE, max_lines: int = MAX_LINES, max_reply: int = MAX_REPLY) -> None:
        self.max_line = max_line
        self.max_lines = max_lines
        self.max_reply = max_reply
        self._buffer = b""
        self._lines: list[str] = []
        self._code = 0
        self._octets = 0

    @property
    def pending(self) -> bool:
        """Whether part of a reply has come and its end has not."""
        return bool(self._buffer or self._lines)

    def clear(self) -> None:
        """Forget what is buffered: after STARTTLS nothing said in plaintext may count (TLS-02)."""
        self._buffer = b""
        self._lines = []
        self._octets = 0

    def feed(self, data: bytes) -> list[Reply]:
        """Read on. Returns the replies completed by `data`; raises BadReply, which carries those before the fault."""
        if self._buffer:
            data = self._buffer + data
        lines = data.split(b"\n")
        rest = lines.pop()
        replies: list[Reply] = []
        for line in lines:
            if not self._lines and len(line) <= self.max_line:
                alone = _single(line)
                if alone is not None:
                    replies.append(alone)
                    continue
            if line.endswith(b"\r"):
                line = line[:-1]
            if len(line) > self.max_line:
                raise BadReply(f"a reply line of more than {self.max_line} octets", replies)
            found = _LINE.match(line)
            if found is None:
                raise BadReply(f"not an SMTP reply: {_text(line[:80])!r}", replies)
            code = int(found[1])
            more = found[2] == b"-"
            if self._lines and code != self._code:
                raise BadReply(f"a reply that changes its code from {self._code} to {code}", replies)
            self._code = code
            self._octets += len(line)
            self._lines.append(_text(found[3] or b""))
            if len(self._lines) > self.max_lines or self._octets > self.max_reply:
                raise BadReply(f"a reply of more than {self.max_lines} lines or {self.max_reply} octets", replies)
            if not more:
                replies.append(_build(code, tuple(self._lines)))
                self._lines = []
                self._octets = 0
        if len(rest) > self.max_line + 1:  # + 1: the CR whose LF has not come
            raise BadReply(f"a reply line of more than {self.max_line} octets", replies)
        self._buffer = rest
        return replies
