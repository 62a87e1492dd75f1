"""The language in which recipients of the queue and of its history are searched: `field:value`, all of which must hold.

    to:alice@example.org state:deferred queued:<-2h

Pure: a text becomes conditions, or a QuerySyntaxError that points at the place and says what to write (QRY-01). What
the conditions mean in SQL, and which index leads there, is the queue's (mailrail_queue.admin.where). For people the
fields are in docs/reference/search.md.
"""

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum, StrEnum
from typing import Final
from uuid import UUID

from mailrail.core.moments import UnreadableTime, is_date, moment
from mailrail.core.smtp.address import AddressError, domain_to_ascii, parse_address, parse_literal

MOST_CHARACTERS: Final = 2_000
"""Of a query."""
MOST_CONDITIONS: Final = 20
"""Of a query; a range counts twice."""
MOST_VALUE: Final = 500
"""Characters of a value."""
_MOST_NUMBER: Final = 2**63 - 1


class SearchField(StrEnum):
    """What can be asked for."""

    ID = "id"
    MSG = "msg"
    MSGID = "msgid"
    TO = "to"
    DOMAIN = "domain"
    FROM = "from"
    FROM_DOMAIN = "from-domain"
    ACCOUNT = "account"
    SITE = "site"
    TRANSPORT = "transport"
    STATE = "state"
    DUE = "due"
    QUEUED = "queued"
    FINISHED = "finished"
    ATTEMPTS = "attempts"
    TLS = "tls"
    ORIGIN = "origin"


class Operator(StrEnum):
    """How a value is compared."""

    IS = ""
    LESS = "<"
    AT_MOST = "<="
    MORE = ">"
    AT_LEAST = ">="
    LIKE = "like"
    """The value is a pattern with `*`."""
    UNDER = "under"
    """A domain with its subdomains, or all of a namespace."""


class SearchPart(Enum):
    """Where recipients are looked for."""

    QUEUE = "the queue"
    HISTORY = "the history"


class SearchState(StrEnum):
    """What a recipient is, in the words that people read (PAG-03)."""

    QUEUED = "queued"
    SENDING = "sending"
    DEFERRED = "deferred"
    HELD = "held"
    SCHEDULED = "scheduled"
    DELIVERED = "delivered"
    RELAYED = "relayed"
    CAPTURED = "captured"
    FAILED = "failed"
    CANCELLED = "cancelled"


LIVE_STATES: Final = frozenset(
    {SearchState.QUEUED, SearchState.SENDING, SearchState.DEFERRED, SearchState.HELD, SearchState.SCHEDULED}
)
TLS_WORDS: Final = ("default", "required", "no")
ORIGIN_WORDS: Final = ("mx", "submission", "system")

Value = int | str | datetime | UUID


class QuerySyntaxError(ValueError):
    """The query cannot be read. The message says what to write instead; `at` is the place, from 0."""

    def __init__(self, problem: str, at: int) -> None:
        super().__init__(f"character {at + 1}: {problem}")
        self.problem, self.at = problem, at

    def pointed(self, query: str) -> str:
        """The problem, and below it the query with a mark under the place; of a long query what is around it."""
        begin = max(0, self.at - 60)
        shown = "".join(ch if ch.isprintable() else " " for ch in query[begin : self.at + 40])
        return f"{self.problem}\n  {shown}\n  {' ' * (self.at - begin)}^"


@dataclass(frozen=True, slots=True)
class Term:
    """One thing that must hold."""

    field: SearchField
    operator: Operator
    value: Value
    """UUID of `msg`, a number of `id` and `attempts`, a time (UTC) of `due`, `queued` and `finished`; else a text: an
    address or domain with A-labels, a domain or namespace that Operator.UNDER goes below, a word."""
    at: int = 0
    """Where the query says it."""
    guessed: bool = False
    """By the shape of a word that names no field."""

    def __str__(self) -> str:
        """As the query would say it."""
        return f"{self.field.value}:{_quoted(self._written())}"

    def _written(self) -> str:
        value = self.value
        if isinstance(value, datetime):
            return self.operator.value + value.isoformat().replace("+00:00", "Z")
        if self.operator is Operator.UNDER:
            return f"{value}/*" if self.field is SearchField.ACCOUNT else f".{value}"
        if self.field is SearchField.FROM and value == "":
            return "<>"
        return str(value) if self.operator is Operator.LIKE else f"{self.operator.value}{value}"


def _quoted(text: str) -> str:
    if text and not text.startswith('"') and not any(ch.isspace() for ch in text):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def parse(query: str, now: datetime) -> tuple[Term, ...]:
    """What a query asks for; nothing when it is empty. Raises QuerySyntaxError (QRY-01).

    `now`: what its relative times go by.
    """
    if len(query) > MOST_CHARACTERS:
        raise QuerySyntaxError(
            f"a query has at most {MOST_CHARACTERS} characters: leave some of it out", MOST_CHARACTERS
        )
    found: list[Term] = []
    for word in _words(query):
        found += _conditions(word, now)
        if len(found) > MOST_CONDITIONS:
            raise QuerySyntaxError(f"a query has at most {MOST_CONDITIONS} conditions: leave some out", word.at)
    return tuple(found)


def parts(conditions: Iterable[Term]) -> frozenset[SearchPart]:
    """Where anything can fulfil all of them."""
    found = frozenset(SearchPart)
    for condition in conditions:
        found &= _parts_of(condition)
    return found


def check_part(conditions: Iterable[Term], part: SearchPart) -> None:
    """Raise QuerySyntaxError for a condition that nothing in this part can fulfil, with where to look."""
    for condition in conditions:
        if part not in _parts_of(condition):
            (other,) = _parts_of(condition)
            command = "mailrail queue list" if other is SearchPart.QUEUE else "mailrail queue history"
            raise QuerySyntaxError(f"{condition} is of {other.value} alone: use `{command}`", condition.at)


def _parts_of(condition: Term) -> frozenset[SearchPart]:
    if condition.field is SearchField.STATE:
        return frozenset({SearchPart.QUEUE if condition.value in LIVE_STATES else SearchPart.HISTORY})
    if condition.field in (SearchField.DUE, SearchField.TRANSPORT):
        return frozenset({SearchPart.QUEUE})
    return frozenset({SearchPart.HISTORY}) if condition.field is SearchField.FINISHED else frozenset(SearchPart)


# --- words ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Word:
    field: str
    """Empty: the word names none."""
    value: str
    at: int
    value_at: int
    quoted: bool


_NAMED: Final = re.compile(r"([A-Za-z-]{1,30}):")


def _words(query: str) -> Iterator[_Word]:
    at, end = 0, len(query)
    while True:
        while at < end and query[at].isspace():
            at += 1
        if at == end:
            return
        named = _NAMED.match(query, at)
        value_at = named.end() if named else at
        quoted = query.startswith('"', value_at)
        value, after = _quoted_value(query, value_at) if quoted else _bare_value(query, value_at)
        if len(value) > MOST_VALUE:
            raise QuerySyntaxError(f"a value has at most {MOST_VALUE} characters", value_at)
        for place, character in enumerate(value):
            if not character.isprintable():
                raise QuerySyntaxError("a value has no control characters: leave them out", value_at + place)
        yield _Word(named[1].lower() if named else "", value, at, value_at, quoted)
        at = after


def _bare_value(query: str, at: int) -> tuple[str, int]:
    after = at
    while after < len(query) and not query[after].isspace():
        if query[after] == '"':
            raise QuerySyntaxError('a quotation mark stands around a whole value: write field:"two words"', after)
        after += 1
    return query[at:after], after


def _quoted_value(query: str, at: int) -> tuple[str, int]:
    value: list[str] = []
    place = at + 1
    while place < len(query):
        if query[place] == '"':
            after = place + 1
            if after < len(query) and not query[after].isspace():
                raise QuerySyntaxError("a blank is missing behind the quotation mark", after)
            return "".join(value), after
        place += query[place] == "\\"
        value.append(query[place : place + 1])
        place += 1
    raise QuerySyntaxError('the quotation mark is not closed: write " at the end of the value', at)


# --- values -----------------------------------------------------------------------------------------------------------


def _conditions(word: _Word, now: datetime) -> list[Term]:
    if not word.field:
        return [_guess(word)]
    try:
        field = SearchField(word.field)
    except ValueError:
        near = difflib.get_close_matches(word.field, [f.value for f in SearchField], 1)
        meant = (
            f", did you mean {near[0]}:?" if near else f"; the fields are {', '.join(f.value for f in SearchField)}."
        )
        raise QuerySyntaxError(
            f"there is no field {word.field}:{meant} A text with a colon stands in quotation marks", word.at
        ) from None
    if not word.value:
        raise QuerySyntaxError(f"behind {field}: a value is missing: write {_FORMS[field]}", word.value_at)
    if field in _TIMES:
        return _time_conditions(field, word, now)
    if field is SearchField.ATTEMPTS:
        return _number_conditions(field, word)
    operator, value = _READERS[field](word, field)
    return [Term(field, operator, value, word.at)]


_TIMES: Final = frozenset({SearchField.DUE, SearchField.QUEUED, SearchField.FINISHED})
_FORMS: Final = {
    SearchField.ID: "id:1234, the number of a recipient",
    SearchField.MSG: "msg: and a message id, as in our `250 accepted as ...`",
    SearchField.MSGID: "msgid:<part@example.org>, as the header Message-ID has it",
    SearchField.TO: "to:alice@example.org, to:alice* or to:*part*",
    SearchField.DOMAIN: "domain:example.org, or domain:.example.org with its subdomains",
    SearchField.FROM: "from:alice@example.org, from:<>, from:alice* or from:*part*",
    SearchField.FROM_DOMAIN: "from-domain:example.org, or from-domain:.example.org with its subdomains",
    SearchField.ACCOUNT: "account:NAMESPACE/NAME, or account:NAMESPACE/*",
    SearchField.SITE: "site: and a name from `mailrail queue sites`",
    SearchField.TRANSPORT: "transport:NAMESPACE/NAME",
    SearchField.STATE: f"state: and one of {', '.join(s.value for s in SearchState)}",
    SearchField.DUE: "due:<1h, due:>2026-11-22T18:00:00Z or due:2026-11-22..2026-11-23",
    SearchField.QUEUED: "queued:<-2h (earlier than two hours ago), queued:2026-11-22 or queued:2026-11-20..2026-11-22",
    SearchField.FINISHED: "finished:>-2h (within two hours), finished:2026-11-22 or finished:2026-11-20..2026-11-22",
    SearchField.ATTEMPTS: "attempts:3, attempts:>=3 or attempts:1..3",
    SearchField.TLS: f"tls: and one of {', '.join(TLS_WORDS)}",
    SearchField.ORIGIN: f"origin: and one of {', '.join(ORIGIN_WORDS)}",
}
"""How each field is written, for errors."""
_COMPARED: Final = re.compile(r"(<=|>=|<|>)?(.*)", re.DOTALL)


def _wrong(word: _Word, field: SearchField, why: str = "") -> QuerySyntaxError:
    said = f"{word.value[:80]!r} is not a value of {field}:"
    return QuerySyntaxError(f"{said}{f' ({why})' if why else ''} write {_FORMS[field]}", word.value_at)


def _number(word: _Word, field: SearchField, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20 and int(text) <= _MOST_NUMBER):
        raise _wrong(word, field)
    return int(text)


def _number_conditions(field: SearchField, word: _Word) -> list[Term]:
    first, dots, last = word.value.partition("..")
    if dots:
        return [
            Term(field, Operator.AT_LEAST, _attempts(word, field, first), word.at),
            Term(field, Operator.AT_MOST, _attempts(word, field, last), word.at),
        ]
    match = _COMPARED.fullmatch(word.value)
    assert match is not None  # it matches any text
    return [Term(field, Operator(match[1] or ""), _attempts(word, field, match[2]), word.at)]


def _attempts(word: _Word, field: SearchField, text: str) -> int:
    return min(_number(word, field, text), 2**31 - 1)  # as the column has it


def _time_conditions(field: SearchField, word: _Word, now: datetime) -> list[Term]:
    try:
        first, dots, last = word.value.partition("..")
        if dots or is_date(word.value):
            # A day alone, or as the end of a range, is all of that day.
            last = last if dots else first
            end, until = moment(last, now), Operator.AT_MOST
            if is_date(last):
                end, until = end + timedelta(days=1), Operator.LESS
            begin = Term(field, Operator.AT_LEAST, moment(first, now), word.at)
            return [begin, Term(field, until, end, word.at)]
        match = _COMPARED.fullmatch(word.value)
        assert match is not None  # it matches any text
        if not match[1]:
            raise UnreadableTime("say whether before or after: begin with < or >")
        return [Term(field, Operator(match[1]), moment(match[2], now), word.at)]
    except (UnreadableTime, OverflowError) as error:
        raise _wrong(word, field, str(error)) from None


def _id(word: _Word, field: SearchField) -> tuple[Operator, Value]:
    return Operator.IS, _number(word, field, word.value)


def _message(word: _Word, field: SearchField) -> tuple[Operator, Value]:
    try:
        return Operator.IS, UUID(word.value)
    except ValueError:
        raise _wrong(word, field) from None


def _header_id(word: _Word, field: SearchField) -> tuple[Operator, Value]:
    bare = word.value.removeprefix("<").removesuffix(">")
    if not bare or "<" in bare or ">" in bare:
        raise _wrong(word, field)
    return Operator.IS, f"<{bare}>"


def _address(word: _Word, field: SearchField) -> tuple[Operator, Value]:
    if word.value == "<>" and field is SearchField.FROM:
        return Operator.IS, ""
    if "*" in word.value:
        if not word.value.strip("*"):
            raise _wrong(word, field, "that means everything: leave it out")
        return Operator.LIKE, word.value
    try:
        return Operator.IS, str(parse_address(word.value.removeprefix("<").removesuffix(">")))
    except AddressError as error:
        raise _wrong(word, field, str(error)) from None


def _domain(word: _Word, field: SearchField) -> tuple[Operator, Value]:
    text = word.value.removesuffix(".")
    try:
        if text.startswith("["):
            return Operator.IS, parse_literal(text)
        domain = domain_to_ascii(text.removeprefix("."), in_address=True)
    except AddressError as error:
        raise _wrong(word, field, str(error)) from None
    return Operator.UNDER if text.startswith(".") else Operator.IS, domain


def _object(word: _Word, field: SearchField) -> tuple[Operator, Value]:
    namespace, _, name = word.value.partition("/")
    if not namespace or not name or "/" in name or "@" in word.value or "*" in namespace:
        raise _wrong(word, field)
    if name == "*" and field is SearchField.ACCOUNT:
        return Operator.UNDER, namespace
    if "*" in name:
        raise _wrong(word, field)
    return Operator.IS, word.value


def _site(word: _Word, field: SearchField) -> tuple[Operator, Value]:
    return Operator.IS, word.value


def _among(words: Sequence[str]) -> Callable[[_Word, SearchField], tuple[Operator, Value]]:
    def read(word: _Word, field: SearchField) -> tuple[Operator, Value]:
        if word.value.lower() not in words:
            raise _wrong(word, field)
        return Operator.IS, word.value.lower()

    return read


_READERS: Final[dict[SearchField, Callable[[_Word, SearchField], tuple[Operator, Value]]]] = {
    SearchField.ID: _id,
    SearchField.MSG: _message,
    SearchField.MSGID: _header_id,
    SearchField.TO: _address,
    SearchField.DOMAIN: _domain,
    SearchField.FROM: _address,
    SearchField.FROM_DOMAIN: _domain,
    SearchField.ACCOUNT: _object,
    SearchField.SITE: _site,
    SearchField.TRANSPORT: _object,
    SearchField.STATE: _among([s.value for s in SearchState]),
    SearchField.TLS: _among(TLS_WORDS),
    SearchField.ORIGIN: _among(ORIGIN_WORDS),
}


def _guess(word: _Word) -> Term:
    """What a word that names no field means, by its shape: the most exact that it can be (QRY-01)."""
    text = word.value
    if not word.quoted:
        shapes: list[tuple[SearchField, Callable[[_Word, SearchField], tuple[Operator, Value]]]] = []
        if text.startswith("<") and text.endswith(">") and len(text) > 2:
            shapes = [(SearchField.MSGID, _header_id)]
        elif text.isascii() and text.isdigit():
            shapes = [(SearchField.ID, _id)]
        elif "@" in text and "*" not in text:
            shapes = [(SearchField.TO, _address)]
        else:
            shapes = [(SearchField.MSG, _message)]
            if "." in text:
                shapes.append((SearchField.DOMAIN, _domain))
        for field, read in shapes:
            try:
                operator, value = read(word, field)
            except QuerySyntaxError:
                continue
            return Term(field, operator, value, word.at, guessed=True)
    if not text.strip("*"):
        raise QuerySyntaxError("this word means everything: leave it out", word.at)
    pattern = text if "*" in text else f"*{text}*"
    return Term(SearchField.TO, Operator.LIKE, pattern, word.at, guessed=True)
