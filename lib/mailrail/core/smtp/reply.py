"""SMTP replies: the value that every outcome quotes, and the bounded parser that reads them from the wire.

A reply is a three-digit code, perhaps an enhanced status code (RFC 3463, RFC 2034), and one line of text or several
(RFC 5321 4.2). Servers are strangers: what is kept of a line, of the lines and of the whole reply is bounded, and so is
what is read of one that never ends. The bounds cut text, never the code: a `250` stays a 250 however much follows it.
Whatever is not a reply raises `BadReply` instead of being guessed at (SOUT-15). Codes that we do not know count by
their first digit (RFC 5321 4.2.1).
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache

MAX_LINE = 2048
"""Octets kept of one reply line, its end not counted. RFC 5321 4.5.3.1.5 allows 512; real servers exceed that."""
MAX_LINES = 256
"""Lines kept of one reply: the longest EHLO answers seen have some thirty."""
MAX_REPLY = 65536
"""Octets kept of one whole reply."""
MAX_READ = 1048576
"""Octets read of one reply, kept or not, until it counts as one that never ends."""


class ReplyClass(IntEnum):
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
    cut: bool = False
    """Text past our bounds is missing, or the end has not come: the code can be gone by, the text cannot."""

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
    def severity(self) -> ReplyClass:
        """What the first digit says."""
        return ReplyClass(self.code // 100)

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
        """The lines joined by blanks, without the enhanced code at the head of each; one that does not fit the reply's
        code is text."""
        category = self.code // 100
        if len(self.lines) == 1:
            return _without_enhanced(self.lines[0], category)
        return " ".join(part for part in (_without_enhanced(line, category) for line in self.lines) if part)

    @property
    def parts(self) -> tuple[EnhancedCode | None, tuple[str, ...]]:
        """The enhanced code and the lines without it, such that `Reply.of(code, *parts)` has the very same lines. A
        code that is not at the head of every line stays in the lines, and the first part is None."""
        if self.enhanced is None:
            return None, self.lines
        head = str(self.enhanced)
        if len(self.lines) == 1:
            text = _after(self.lines[0], head)
            return (None, self.lines) if text is None else (self.enhanced, (text,))
        texts = [_after(line, head) for line in self.lines]
        if None in texts:
            return None, self.lines
        return self.enhanced, tuple(text or "" for text in texts)

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
def _without_enhanced(line: str, category: int) -> str:
    found = _LEADING_ENHANCED.match(line)
    return line[found.end() :] if found is not None and int(found[1]) == category else line


def _after(line: str, head: str) -> str | None:
    """The line without the code at its head; None: it is not there in the way in which `Reply.of` writes it."""
    if line.startswith(head + " ") and len(line) > len(head) + 1:
        return line[len(head) + 1 :]
    return "" if line == head else None


class BadReply(ValueError):
    """The peer sent something that is not an SMTP reply, or one without an end. The connection is unusable."""

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


def _build(code: int, lines: tuple[str, ...], *, cut: bool = False) -> Reply:
    for line in (lines[0], lines[-1]):  # of lines with different codes the last one has the code that counts
        found = _LEADING_ENHANCED.match(line)
        # RFC 2034 4: the class digit must agree with the code; one that does not is text.
        if found is not None and int(found[1]) == code // 100:
            return Reply(code, lines, EnhancedCode(int(found[1]), int(found[2]), int(found[3])), cut)
    return Reply(code, lines, None, cut)


class ReplyParser:
    """Bytes in, whole replies out, in any split (RFC 5321 4.2, 4.5.3.1.5).

    A line ends with CRLF; a bare LF is taken as well, as every client does. Text past the bounds is read and dropped:
    it never changes what the code says. Where the codes of the lines differ, the last one counts, as in Postfix. After
    `BadReply` the parser stays broken; `partial` tells what was read of the reply that has not ended.
    """

    __slots__ = (
        "_buffer",
        "_code",
        "_cut",
        "_in_long",
        "_kept",
        "_lines",
        "_octets",
        "max_line",
        "max_lines",
        "max_read",
        "max_reply",
    )

    def __init__(
        self,
        *,
        max_line: int = MAX_LINE,
        max_lines: int = MAX_LINES,
        max_reply: int = MAX_REPLY,
        max_read: int = MAX_READ,
    ) -> None:
        self.max_line = max_line
        self.max_lines = max_lines
        self.max_reply = max_reply
        self.max_read = max_read
        self._buffer = b""
        self._in_long = False  # _buffer is the head of a line whose rest is dropped
        self._lines: list[str] = []
        self._code = 0  # of the latest line; 0: no reply has begun
        self._kept = 0  # octets of text in _lines
        self._octets = 0  # read of the reply that has begun
        self._cut = False

    @property
    def pending(self) -> bool:
        """Whether part of a reply has come and its end has not."""
        return bool(self._buffer or self._code)

    @property
    def partial(self) -> Reply | None:
        """The reply that has not ended, as far as it was read; None: no code was read of one."""
        found = _LINE.match(self._buffer.removesuffix(b"\r")) if self._buffer else None
        if found is None:
            return _build(self._code, tuple(self._lines) or ("",), cut=True) if self._code else None
        text = _text(found[3] or b"")
        return _build(int(found[1]), (*self._lines, text), cut=True)

    def clear(self) -> None:
        """Forget what is buffered: after STARTTLS nothing said in plaintext may count (TLS-02)."""
        self._buffer = b""
        self._in_long = False
        self._reply_over()

    def _reply_over(self) -> None:
        self._lines = []
        self._code = self._kept = self._octets = 0
        self._cut = False

    def feed(self, data: bytes) -> list[Reply]:
        """Read on. Returns the replies completed by `data`; raises BadReply, which carries those before the fault."""
        replies: list[Reply] = []
        if self._in_long:
            _, line_end, after = data.partition(b"\n")
            self._octets += len(data) - len(after)
            if not line_end:
                self._bounded(replies)
                return replies
            self._in_long = False
            self._octets -= len(self._buffer)  # counted again as a line
            data = self._buffer + b"\n" + after
        elif self._buffer:
            data = self._buffer + data
        lines = data.split(b"\n")
        rest = self._buffer = lines.pop()
        for line in lines:
            if not self._code and not self._cut and len(line) <= self.max_line:
                alone = _single(line)
                if alone is not None:
                    replies.append(alone)
                    continue
            self._line(line, replies)
        if len(rest) > self.max_line + 1:  # + 1: the CR whose LF has not come
            self._octets += len(rest)
            self._buffer = rest[: self.max_line]
            self._in_long = self._cut = True
            if _LINE.match(self._buffer) is None:
                self._buffer = b""
                raise BadReply(f"not an SMTP reply: {_text(rest[:80])!r}", replies)
        self._bounded(replies)
        return replies

    def _line(self, line: bytes, replies: list[Reply]) -> None:
        """One line of a reply, the last one or not."""
        self._octets += len(line) + 1
        line = line.removesuffix(b"\r")
        if len(line) > self.max_line:
            line = line[: self.max_line]
            self._cut = True
        found = _LINE.match(line)
        if found is None:
            self._buffer = b""
            raise BadReply(f"not an SMTP reply: {_text(line[:80])!r}", replies)
        self._code = int(found[1])
        if len(self._lines) < self.max_lines and self._kept + len(line) <= self.max_reply:
            self._kept += len(line)
            self._lines.append(_text(found[3] or b""))
        else:
            self._cut = True
        if found[2] == b"-":
            self._bounded(replies)
        else:
            replies.append(_build(self._code, tuple(self._lines), cut=self._cut))
            self._reply_over()

    def _bounded(self, replies: list[Reply]) -> None:
        if self._octets > self.max_read:
            raise BadReply(f"the reply has no end within {self.max_read} octets", replies)
