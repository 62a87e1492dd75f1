"""Read an Authentication-Results field, and the one of an ARC set, by the grammar of RFC 8601 2.2.

Everybody can write such a field, so reading is bounded and linear. Comments, quoted strings and folds may stand
wherever the grammar lets them. What real software writes beside the grammar costs its own part and not the field: a
word without a property type (`action=none`), an empty part, a semicolon at the end. An authserv-id that cannot be read
costs the field, since it says who speaks.
"""

import re
from typing import Final

from mailrail.core.authres.results import VERSION, MethodResult, ResultProperty, ResultsError, ResultsField
from mailrail.core.message.header import unfolded

SIZE_LIMIT: Final = 16 * 1024
"""Octets of a field that is read. Real ones have some hundred."""
RESULTS_LIMIT: Final = 100
"""Results of a field that are read."""
PROPERTIES_LIMIT: Final = 50
"""Properties of a result that are read."""
_DEPTH_LIMIT: Final = 50
"""Comments within comments."""
_INSTANCE_LIMIT: Final = 50
"""ARC sets of a message (RFC 8617 4.2.1)."""

_BLANK = re.compile(r"[ \t\r\n]+")
_TOKEN = re.compile(r'[^\x00-\x20\x7f()<>@,;:\\"/\[\]?=]+')  # of RFC 2045 5.1, with letters beyond ASCII (RFC 8616)
_KEYWORD = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]*[A-Za-z0-9_])?")  # RFC 5321 4.1.2; some write underscores
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')
_BARE = re.compile(r'[^\x00-\x20\x7f();"\\]+')  # what is no token and often written without quotes: addresses, base64
_IN_COMMENT = re.compile(r"[^()\\]+|\\.|\(|\)")
_NUMBER = re.compile(r"[0-9]{1,9}")
_QUOTED_PAIR = re.compile(r"\\(.)")


class _Reader:
    """A field and how far it was read."""

    def __init__(self, value: bytes) -> None:
        if len(value) > SIZE_LIMIT:
            raise ResultsError(f"the field has more than {SIZE_LIMIT} octets")
        # A CR or LF that is left over stands in the value's end, or where none may.
        self._text = unfolded(value).strip("\r\n").encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        self._at = 0
        self.flawed = False

    def blanks(self) -> None:
        """Pass over blanks and comments (CFWS of RFC 5322 3.2.2)."""
        while True:
            found = _BLANK.match(self._text, self._at)
            if found is not None:
                self._at = found.end()
            elif self.peek() == "(":
                self._comment()
            else:
                return

    def _comment(self) -> None:
        depth = 0
        while True:
            found = _IN_COMMENT.match(self._text, self._at)
            if found is None:
                raise ResultsError("a comment has no end")
            self._at = found.end()
            if found[0] == "(":
                depth += 1
                if depth > _DEPTH_LIMIT:
                    raise ResultsError("comments are nested too deeply")
            elif found[0] == ")":
                depth -= 1
                if depth == 0:
                    return

    def peek(self) -> str:
        """The next character; empty at the end."""
        return self._text[self._at : self._at + 1]

    def take(self, character: str) -> bool:
        """Pass over the character if it is next, and say whether it was."""
        if self.peek() != character:
            return False
        self._at += 1
        return True

    def word(self, pattern: re.Pattern[str]) -> str:
        """What matches here, passed over; empty if nothing does."""
        found = pattern.match(self._text, self._at)
        if found is None:
            return ""
        self._at = found.end()
        return found[0]

    def quoted(self) -> str | None:
        """The content of the quoted string that is next, if one is."""
        if self.peek() != '"':
            return None
        found = _QUOTED.match(self._text, self._at)
        if found is None:
            raise ResultsError("a quoted string has no end")
        self._at = found.end()
        return _QUOTED_PAIR.sub(r"\1", found[1])

    def value(self, bare: re.Pattern[str]) -> str:
        """A quoted string's content, or what matches; empty if neither is there."""
        at = self._at
        text = self.quoted()
        if text is None:
            return self.word(bare)
        if self.peek() == "@":  # the local part of an address is quoted, and stays so
            self.word(bare)
            return self._text[at : self._at]
        return text

    def pass_over_word(self) -> None:
        """Leave out what is not understood, up to the next blank, comment or semicolon."""
        self.flawed = True
        if self.quoted() is None and not self.word(_BARE):
            self._at += 1

    def pass_over_part(self) -> None:
        """Leave out what is not understood, up to the next semicolon."""
        self.flawed = True
        self.blanks()
        while self.peek() not in ("", ";"):
            self.pass_over_word()
            self.blanks()


def read_results(value: bytes) -> ResultsField:
    """The value of an Authentication-Results field: what follows the colon, folds and all.

    Raises ResultsError if it has no authserv-id, no result, or a comment or quoted string that does not end, and if it
    exceeds what is read.
    """
    return _payload(_Reader(value))


def read_arc_results(value: bytes) -> tuple[int, ResultsField]:
    """The value of an ARC-Authentication-Results field: its instance and the rest (RFC 8617 4.1.1). Raises
    ResultsError."""
    reader = _Reader(value)
    reader.blanks()
    name = reader.word(_KEYWORD)
    reader.blanks()
    equals = reader.take("=")
    reader.blanks()
    number = reader.word(_NUMBER)
    reader.blanks()
    if name.lower() != "i" or not equals or not number or not reader.take(";"):
        raise ResultsError("the field has no instance")
    if not 1 <= int(number) <= _INSTANCE_LIMIT:
        raise ResultsError("the instance is out of range")
    return int(number), _payload(reader)


def _payload(reader: _Reader) -> ResultsField:
    reader.blanks()
    authserv_id = reader.value(_TOKEN)
    reader.blanks()
    version = reader.word(_NUMBER)
    reader.blanks()
    if not authserv_id or reader.peek() not in ("", ";"):
        raise ResultsError("there is no authserv-id")  # as in `spf=pass; ...`
    number = int(version) if version else VERSION
    if number != VERSION:
        return ResultsField(authserv_id, (), number)
    results: list[MethodResult] = []
    nothing_checked = False
    parts = 0
    while reader.take(";"):
        parts += 1
        reader.blanks()
        if reader.peek() == "":
            break  # many end the field with a semicolon
        found = _result(reader)
        if found is None:
            reader.pass_over_part()
        elif isinstance(found, MethodResult):
            results.append(found)
            if len(results) > RESULTS_LIMIT:
                raise ResultsError(f"there are more than {RESULTS_LIMIT} results")
        else:
            nothing_checked = True
    if not results and not nothing_checked:
        raise ResultsError("there is no result")
    flawed = reader.flawed or (nothing_checked and parts > 1)
    return ResultsField(authserv_id, tuple(results), VERSION, flawed)


class _Nothing:
    """`none`: nothing was checked."""


def _result(reader: _Reader) -> MethodResult | _Nothing | None:
    """A method with its result and properties; None: it is not one."""
    method = reader.word(_KEYWORD).lower()
    reader.blanks()
    if method == "none" and reader.peek() in ("", ";"):
        return _Nothing()
    if reader.take("/"):  # the method's version
        reader.blanks()
        if not reader.word(_NUMBER):
            return None
        reader.blanks()
    if not method or not reader.take("="):
        return None
    reader.blanks()
    result = reader.word(_KEYWORD).lower()
    if not result:
        return None
    reason = ""
    properties: list[ResultProperty] = []
    while True:
        reader.blanks()
        if reader.peek() in ("", ";"):
            return MethodResult(method, result, tuple(properties), reason)
        ptype = reader.word(_KEYWORD).lower()
        reader.blanks()
        if ptype and reader.take("."):
            reader.blanks()
            name = reader.word(_KEYWORD).lower()
            reader.blanks()
            if not name or not reader.take("="):
                reader.flawed = True
                continue
            reader.blanks()
            properties.append(ResultProperty(ptype, name, reader.value(_BARE)))
            if len(properties) > PROPERTIES_LIMIT:
                raise ResultsError(f"a result has more than {PROPERTIES_LIMIT} properties")
        elif ptype == "reason" and reader.take("="):
            reader.blanks()
            reason = reader.value(_BARE)
        elif not ptype or reader.take("="):
            reader.blanks()
            if reader.peek() not in ("", ";"):
                reader.pass_over_word()
            reader.flawed = True
        else:
            reader.flawed = True
