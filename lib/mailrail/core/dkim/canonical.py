"""What is hashed: header fields and body in the forms simple and relaxed (RFC 6376 3.4, standards DKIM-06).

A body streams: `BodyHasher` takes it in pieces of any size, holds two octets and one number of it, and gives the hash
for every form and `l=` that somebody wants from one pass. The work is done by operations on whole pieces, never octet
by octet.
"""

import hashlib
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Final

_BLANK_LINES: Final = b"\r\n" * 4096
_RUN = re.compile(rb"[ \t]+")
_REVERSED_LINE_ENDS = re.compile(rb"(?:\n\r)*")


class Canonicalization(Enum):
    """A form in which header or body are hashed (RFC 6376 3.4)."""

    SIMPLE = b"simple"
    RELAXED = b"relaxed"


def simple_field(field: bytes) -> bytes:
    """A field as it is, with one CRLF at its end (RFC 6376 3.4.1)."""
    return field.rstrip(b"\r\n") + b"\r\n"


def relaxed_field(field: bytes) -> bytes:
    """A field unfolded, its name in lower case, runs of blanks as one space, none at the ends (RFC 6376 3.4.2)."""
    name, _, value = field.partition(b":")
    if b"\n" in value:
        value = value.replace(b"\r\n", b"").replace(b"\n", b"")
    if b"  " in value or b"\t" in value:
        value = _RUN.sub(b" ", value)
    return name.rstrip(b" \t").lower() + b":" + value.strip(b" \t") + b"\r\n"


FIELD: Final[dict[Canonicalization, Callable[[bytes], bytes]]] = {
    Canonicalization.SIMPLE: simple_field,
    Canonicalization.RELAXED: relaxed_field,
}


@dataclass(frozen=True, slots=True)
class BodyForm:
    """What a signature says of how the body was hashed."""

    canonicalization: Canonicalization
    length: int | None = None
    """`l=`: how many octets of the canonical body were hashed. None: all."""


@dataclass(frozen=True, slots=True)
class BodyHash:
    """SHA-256 of a canonical body, or of its beginning."""

    digest: bytes
    size: int
    """Octets of the whole canonical body, also of those that `length` leaves out."""


class _Digests:
    """One running hash for all lengths that are wanted: at each of them its state is copied."""

    __slots__ = ("_at", "_digests", "_hash", "_lengths")

    def __init__(self, lengths: Iterable[int]) -> None:
        self._hash = hashlib.sha256()
        self._at = 0
        self._lengths = sorted(set(lengths), reverse=True)  # the next one is the last
        self._digests: dict[int, bytes] = {}

    def update(self, data: bytes) -> None:
        start, end = 0, len(data)
        while self._lengths and self._lengths[-1] <= self._at + end:
            length = self._lengths.pop()
            cut = length - self._at
            self._hash.update(memoryview(data)[start:cut])
            start = cut
            self._digests[length] = self._hash.digest()
        self._hash.update(memoryview(data)[start:] if start else data)
        self._at += end

    def result(self, length: int | None) -> BodyHash:
        """A length that the body does not reach gets the hash of all of it; `size` tells."""
        whole = self._hash.digest()
        return BodyHash(whole if length is None else self._digests.get(length, whole), self._at)


class _SimpleBody:
    """Everything as it is, but for the empty lines at the end (RFC 6376 3.4.3)."""

    __slots__ = ("_line_ends", "_out", "_rest", "_started")

    def __init__(self, out: Callable[[bytes], None]) -> None:
        self._out = out
        self._rest = b""  # a CR whose LF may come
        self._line_ends = 0  # how many came last: empty lines if nothing else follows
        self._started = False

    def feed(self, data: bytes) -> None:
        data = self._rest + data if self._rest else data
        if data.endswith(b"\r"):
            self._rest = b"\r"
            data = data[:-1]
        else:
            self._rest = b""
        self._emit(data)

    def _emit(self, data: bytes) -> None:
        tail = data[len(data.rstrip(b"\r\n")) :]
        found = _REVERSED_LINE_ENDS.match(tail[::-1])
        ends = found.end() if found is not None else 0
        if ends < len(data):
            self._write_line_ends()
            self._out(data[: len(data) - ends] if ends else data)
            self._started = True
        self._line_ends += ends // 2

    def _write_line_ends(self) -> None:
        left = 2 * self._line_ends
        while left > 0:
            self._out(_BLANK_LINES[:left])
            left -= len(_BLANK_LINES)
        self._line_ends = 0

    @property
    def is_empty(self) -> bool:
        """Whether nothing but line ends came."""
        return not self._started and not self._rest

    def finish(self) -> None:
        self._emit(self._rest)
        self._out(b"\r\n")  # one, whether the body is empty, ends without, or ends with many


class _RelaxedBody:
    """No blanks at the ends of lines, runs of them as one space, and no empty lines at the end (RFC 6376 3.4.4)."""

    __slots__ = ("_lines", "_rest")

    def __init__(self, out: Callable[[bytes], None]) -> None:
        self._lines = _SimpleBody(out)
        self._rest = b""  # a blank or a CR, or both: what follows says what becomes of them

    def feed(self, data: bytes) -> None:
        data = self._rest + data if self._rest else data
        line = data[:-1] if data.endswith(b"\r") else data
        words = line.rstrip(b" \t")
        self._rest = (b" " if len(words) < len(line) else b"") + (b"\r" if len(line) < len(data) else b"")
        self._lines.feed(self._reduced(words))

    @staticmethod
    def _reduced(data: bytes) -> bytes:
        if b"\t" in data:
            data = data.replace(b"\t", b" ")
        while b"  " in data:  # each pass halves the runs
            data = data.replace(b"  ", b" ")
        return data.replace(b" \r\n", b"\r\n")

    def finish(self) -> None:
        # Blanks at the end of a last line without line end go, too; a CR alone ends no line.
        self._lines.feed(self._rest if self._rest.endswith(b"\r") else b"")
        if self._lines.is_empty:
            return  # an empty body stays empty (RFC 6376 3.4.4)
        self._lines.finish()


_BODY: Final[dict[Canonicalization, Callable[[Callable[[bytes], None]], _SimpleBody | _RelaxedBody]]] = {
    Canonicalization.SIMPLE: _SimpleBody,
    Canonicalization.RELAXED: _RelaxedBody,
}


class BodyHasher:
    """Takes a body in pieces and gives its hash in each form that is wanted."""

    __slots__ = ("_bodies", "_digests", "_wanted")

    def __init__(self, wanted: Iterable[BodyForm]) -> None:
        self._wanted = frozenset(wanted)
        lengths: defaultdict[Canonicalization, list[int]] = defaultdict(list)
        for form in self._wanted:
            lengths[form.canonicalization] += [] if form.length is None else [form.length]
        self._digests = {canonicalization: _Digests(each) for canonicalization, each in lengths.items()}
        self._bodies = [_BODY[canonicalization](digests.update) for canonicalization, digests in self._digests.items()]

    def feed(self, data: bytes) -> None:
        """The next octets of the body, which begins after the empty line below the header."""
        for body in self._bodies:
            body.feed(data)

    def finish(self) -> dict[BodyForm, BodyHash]:
        """The hashes of a body that has ended. Call it once."""
        for body in self._bodies:
            body.finish()
        return {form: self._digests[form.canonicalization].result(form.length) for form in self._wanted}
