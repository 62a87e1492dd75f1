"""Content-Type and Content-Transfer-Encoding as RFC 2045 5.1 and 6.1 write them: the one reader of both.

Comments, quoted strings and continued parameters (RFC 2231 3 and 4) are read as the RFCs have them. Much software
writes values without the quotes that they need, `boundary=----=_Part 1` for instance, and readers take them to the next
semicolon: such a value is kept beside the strict one. Everything takes time linear in its input.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import unquote_to_bytes

BOUNDARY_LIMIT: Final = 250
"""Characters of a boundary. RFC 2046 5.1.1 allows 70."""
LINE_LIMIT: Final = 998
"""Octets of a line of 7bit or 8bit content, its CRLF not counted (RFC 2045 2.7, RFC 5322 2.1.1)."""

_TOKEN = re.compile(r'[^\s;/()"]+')
_NAME = re.compile(r'[^\s;=()"]+')
_PLAIN = re.compile(r'[^\s;()"]+')
_QUOTED = re.compile(r'"([^"\\]*(?:\\.[^"\\]*)*)"?', re.DOTALL)  # one without an end goes to the end
_PAIR = re.compile(r"\\(.)", re.DOTALL)
_MARK = re.compile(r"\\.|[()]", re.DOTALL)
_UNREMARKABLE = re.compile(r'[^";(]*')
_CONTINUED = re.compile(r"([^*]+)\*(?:(0|[1-9][0-9]{0,2})(\*?))?")


@dataclass(frozen=True, slots=True)
class ContentType:
    """A media type with its parameters."""

    kind: str
    """`type/subtype`, lower case."""
    parameters: Mapping[str, str]
    """By lower-case name; of equal names the first counts, and a value in one piece before a continued one."""
    loose: Mapping[str, str] = field(default_factory=dict)
    """Values without quotes that go on where a token ends, up to the next semicolon, as many readers take them."""

    @property
    def boundaries(self) -> tuple[str, ...]:
        """What may be the boundary of a multipart, the likelier first; none when there is none."""
        found = (self.loose.get("boundary"), self.parameters.get("boundary"))
        usable = (value.rstrip() for value in found if value is not None)
        return tuple(dict.fromkeys(value for value in usable if 0 < len(value) <= BOUNDARY_LIMIT))


TEXT: Final = ContentType("text/plain", {})
"""What an entity is that says nothing, or nothing that can be read (RFC 2045 5.2)."""


class _Reader:
    """A field's value and how far it was read."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self._comments = True  # False once one had no end: a parenthesis is a character like any other from then on

    def blanks(self) -> None:
        """Pass over blanks and comments."""
        text = self.text
        while self.at < len(text):
            if text[self.at].isspace():
                self.at += 1
            elif text[self.at] != "(" or not self._comment():
                return

    def _comment(self) -> bool:
        if not self._comments:
            return False
        depth = 0
        for found in _MARK.finditer(self.text, self.at):
            depth += {"(": 1, ")": -1}.get(found[0], 0)
            if not depth:
                self.at = found.end()
                return True
        self._comments = False
        return False

    def take(self, pattern: re.Pattern[str]) -> str:
        """What matches here, perhaps nothing."""
        found = pattern.match(self.text, self.at)
        if found is None:
            return ""
        self.at = found.end()
        return found[0]

    def quoted(self) -> str:
        """The quoted string that begins here, without its quotes."""
        found = _QUOTED.match(self.text, self.at)
        assert found is not None
        self.at = found.end()
        return _PAIR.sub(r"\1", found[1])

    def next_parameter(self) -> bool:
        """Go behind the next semicolon, past whatever stands before it. Whether there is one."""
        text = self.text
        while True:
            self.take(_UNREMARKABLE)
            if self.at >= len(text):
                return False
            if text[self.at] == ";":
                self.at += 1
                return True
            if text[self.at] == '"':
                self.quoted()
            elif not self._comment():
                self.at += 1


def parse_content_type(value: str) -> ContentType | None:
    """A Content-Type field's value, unfolded or not. None when there is no type to be read from it."""
    reader = _Reader(value)
    reader.blanks()
    main = reader.take(_TOKEN)
    reader.blanks()
    if not main or value[reader.at : reader.at + 1] != "/":
        return None
    reader.at += 1
    reader.blanks()
    sub = reader.take(_PLAIN)
    if not sub or "/" in sub:
        return None
    parameters: dict[str, str] = {}
    loose: dict[str, str] = {}
    pieces: dict[str, dict[int, tuple[str, bool]]] = {}
    while reader.next_parameter():
        reader.blanks()
        name = reader.take(_NAME).lower()
        reader.blanks()
        if not name or value[reader.at : reader.at + 1] != "=":
            continue
        reader.at += 1
        begins = reader.at
        reader.blanks()
        if value[reader.at : reader.at + 1] == '"':
            given, whole = reader.quoted(), None
        else:
            given = reader.take(_PLAIN)
            end = value.find(";", begins)
            whole = value[begins : end if end >= 0 else len(value)].strip()
        continued = _CONTINUED.fullmatch(name)
        if continued is None:
            if name not in parameters:
                parameters[name] = given
                if whole is not None and whole != given:
                    loose[name] = whole
        else:
            number = int(continued[2]) if continued[2] is not None else 0
            encoded = continued[2] is None or bool(continued[3])
            pieces.setdefault(continued[1], {}).setdefault(number, (given, encoded))
    for name, numbered in pieces.items():
        joined = _joined(numbered)
        if joined is not None:
            parameters.setdefault(name, joined)
    return ContentType(f"{main}/{sub}".lower(), parameters, loose)


def _joined(numbered: Mapping[int, tuple[str, bool]]) -> str | None:
    """A continued value: its pieces from 0 on without a gap (RFC 2231 3); None when the first is missing."""
    if 0 not in numbered:
        return None
    joined: list[str] = []
    charset = "utf-8"
    for number in range(len(numbered)):
        if number not in numbered:
            break
        text, encoded = numbered[number]
        if encoded:
            if not number and text.count("'") >= 2:
                named, _, text = text.split("'", 2)
                charset = named or charset
            octets = unquote_to_bytes(text.encode("latin-1", "replace"))
            try:
                text = octets.decode(charset, "replace")
            except (LookupError, ValueError):
                text = octets.decode("latin-1")
        joined.append(text)
    return "".join(joined)


def transfer_encoding(value: str) -> str:
    """The name in a Content-Transfer-Encoding field, lower case; empty when there is none. What follows it is no part
    of it (`8bit (really)`, `base64;`)."""
    reader = _Reader(value)
    reader.blanks()
    return reader.take(_PLAIN).lower()


def is_seven_bit(data: bytes) -> bool:
    """Whether octets may travel as 7bit (RFC 2045 2.7): ASCII without NUL, CRLF only, lines within LINE_LIMIT."""
    if not data.isascii() or b"\0" in data:
        return False
    # Each CR and LF must be half of a CRLF.
    pairs = data.count(b"\r\n")
    if data.count(b"\r") != pairs or data.count(b"\n") != pairs:
        return False
    return all(len(line) <= LINE_LIMIT for line in data.split(b"\r\n"))
