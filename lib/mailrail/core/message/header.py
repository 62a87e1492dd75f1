"""The header of a message as octets: find fields, take some out, read the few that decide something, write ours.

Nothing here rewrites a field: what is kept is kept octet for octet (SIN-13), since signatures cover it. The block is
bounded (`HEADER_LIMIT`) and every pass over it is linear. Syntax is RFC 5322 2.2 and 3.4 with the obsolete forms that
real mail has; where an address decides about rights, what cannot be read for certain is an error, not a guess.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from email.errors import MessageError
from email.header import decode_header, make_header
from email.utils import format_datetime
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address
from itertools import islice, pairwise
from typing import Final, NamedTuple

from mailrail.core.smtp.address import Address, AddressError, address_literal, parse_address, parse_literal
from mailrail.core.smtp.tls import TlsFacts

HEADER_LIMIT: Final = 256 * 1024
"""Octets of a header block. It is held in memory while a message arrives; real ones stay under 64 KiB."""
FIELDS_LIMIT: Final = 1000
"""Fields of a header. Mail that came a long way, with fifty sets of ARC fields and a hundred Received, has some 300."""
MESSAGE_ID_LIMIT: Final = 900
"""Octets of a Message-ID that fits a line of References with the field's name (design 9)."""
AUTHOR_FIELDS_LIMIT: Final = 2
"""From fields of a message that are read. RFC 5322 3.6 allows one; some software writes it twice."""
ADDRESSES_SIZE: Final = 16 * 1024
"""Octets of an address field that is parsed. Other clients wait meanwhile."""
ADDRESSES_LIMIT: Final = 100
"""Authors in one field."""
SUBJECT_LIMIT: Final = 200
"""Characters kept of a subject, for people."""
RECEIVED_LIMIT: Final = 100
"""Received fields that a message may bring (SIN-15)."""

# Name, colon, the rest of the line, and lines that begin with a blank.
_FIELD = re.compile(rb"([!-9;-~]+)[ \t]*:([^\n]*(?:\n[ \t][^\n]*)*)(?:\n|\Z)")
# All of them, so that finding their end costs one call and not one per field.
_BLOCK = re.compile(rb"(?:[!-9;-~]+[ \t]*:[^\n]*(?:\n[ \t][^\n]*)*(?:\n|\Z))*")
# One field more than there may be, in one call that never goes back: a real header costs it 0.1 us a field, and one of
# sixty thousand fields no more than one of a thousand.
_TOO_MANY = re.compile(rb"(?:[!-9;-~]++[ \t]*+:[^\n]*+(?:\n[ \t][^\n]*+)*+(?:\n|\Z)){%d}" % (FIELDS_LIMIT + 1))
_FOLD = re.compile(rb"\r?\n(?=[ \t])")
_ID_WORD = "[!-;=?A-~]"  # neither `<`, `>` nor `@`
MESSAGE_ID: Final = re.compile(f"<{_ID_WORD}+@{_ID_WORD}+>")
"""A Message-ID with its brackets, more lenient than RFC 5322 3.6.4."""
MESSAGE_IDS: Final = re.compile(f"<{_ID_WORD}{{1,450}}@{_ID_WORD}{{1,450}}>")
"""The same to be searched for, in time linear in the text."""


class HeaderError(ValueError):
    """A field that decides something cannot be parsed. The text of the exception is fit for a reply."""


class Field(NamedTuple):  # a message has dozens, and a frozen dataclass takes three times as long to make
    """One header field and where it stands in its block."""

    name: bytes  # lower case
    start: int
    end: int  # after its line end
    value: bytes  # what follows the colon, folds and all

    @property
    def text(self) -> str:
        """The value unfolded and trimmed; octets that are not UTF-8 stay recognisable."""
        value = self.value
        if b"\n" in value:
            value = _FOLD.sub(b"", value)
        return value.strip().decode("utf-8", "backslashreplace")


class Header:
    """The fields at the head of a message. Reading stops at the first line that is neither field nor continuation.

    Callers ask for a few names and seldom for all fields; so a name is searched for in the octets, and a field is
    parsed only when its name matches.
    """

    __slots__ = ("_fields", "_searched", "block")

    def __init__(self, content: bytes) -> None:
        found = _BLOCK.match(content)
        assert found is not None  # it also matches nothing
        self.block = content[: found.end()]
        """The octets of the fields, without the empty line after them."""
        self._searched = b"\n" + self.block.lower()
        self._fields: tuple[Field, ...] | None = None

    @property
    def fields(self) -> tuple[Field, ...]:
        """All fields in order."""
        if self._fields is None:
            self._fields = tuple(
                Field(found[1].lower(), found.start(), found.end(), found[2]) for found in _FIELD.finditer(self.block)
            )
        return self._fields

    def named(self, name: bytes, most: int | None = None) -> list[Field]:
        """The fields of this lower-case name, in order; no more are looked for once there are `most`."""
        fields: list[Field] = []
        wanted = b"\n" + name
        searched = self._searched
        at = searched.find(wanted)
        while at >= 0 and (most is None or len(fields) < most):
            # A line of the block that does not begin with a blank begins a field; its name may be longer.
            found = _FIELD.match(self.block, at)
            if found is not None and found.end(1) - at == len(name):
                fields.append(Field(name, at, found.end(), found[2]))
            at = searched.find(wanted, at + 1)
        return fields

    def first(self, name: bytes) -> Field | None:
        """The first field of this lower-case name, if there is one."""
        fields = self.named(name, 1)
        return fields[0] if fields else None

    def has(self, name: bytes) -> bool:
        """Whether a field of this lower-case name is there."""
        return bool(self.named(name, 1))

    def changed(self, changes: Mapping[Field, bytes]) -> bytes:
        """The block with these fields replaced, or removed where the replacement is empty; other octets stay."""
        if not changes:
            return self.block
        parts: list[bytes] = []
        at = 0
        for field in sorted(changes, key=lambda f: f.start):
            parts += (self.block[at : field.start], changes[field])
            at = field.end
        parts.append(self.block[at:])
        return b"".join(parts)

    def with_value(self, field: Field, value: bytes) -> bytes:
        """The octets of the field with another value."""
        whole = self.block[field.start : field.end]
        line_end = b"\n" if whole.endswith(b"\n") else b""
        return whole[: len(whole) - len(line_end) - len(field.value)] + value + line_end

    def without(self, unwanted: Collection[Field]) -> bytes:
        """The block with these fields taken out."""
        return self.changed(dict.fromkeys(unwanted, b""))


def header_end(content: bytes | bytearray, start: int = 0) -> int:
    """Where the empty line after the header begins, searched from `start`; -1 while it has not come."""
    if content[:2] == b"\r\n":
        return 0
    found = content.find(b"\r\n\r\n", max(0, start - 3))
    return found + 2 if found >= 0 else -1


def has_too_many_fields(content: bytes) -> bool:
    """Whether the content begins with more than FIELDS_LIMIT fields; no more are looked at."""
    return len(content) > 3 * FIELDS_LIMIT and _TOO_MANY.match(content) is not None


# --- reading fields -----------------------------------------------------------------------------------------------


def message_id(header: Header) -> str | None:
    """The Message-ID with its brackets, if there is exactly one field and it parses (design 9)."""
    fields = header.named(b"message-id", 2)
    if len(fields) != 1:
        return None
    value = fields[0].value
    if b"\n" in value:
        value = _FOLD.sub(b"", value)
    value = value.strip()
    if len(value) > MESSAGE_ID_LIMIT or not value.isascii():
        return None
    text = value.decode("ascii")
    return text if MESSAGE_ID.fullmatch(text) else None


def subject(header: Header) -> str | None:
    """The first Subject, decoded (RFC 2047) and cut to SUBJECT_LIMIT characters, without control characters."""
    field = header.first(b"subject")
    if field is None:
        return None
    text = field.text
    if "=?" in text:
        # Ten times the limit is enough of a stranger's encoded words.
        text = decoded_words(text[: 10 * SUBJECT_LIMIT]).strip()
    text = text[:SUBJECT_LIMIT]
    return text if text.isprintable() else "".join(c if c.isprintable() else " " for c in text)


def decoded_words(text: str) -> str:
    """Text with its encoded words decoded (RFC 2047), or unchanged if one cannot be (6.3). The caller bounds it."""
    try:
        return str(make_header(decode_header(text)))
    except (MessageError, LookupError, ValueError):
        # What the library raises depends on what is broken: encoding, an unknown charset, one that is not even
        # ASCII (CharsetError, a MessageError), or octets that do not belong to it.
        return text


def unfolded(value: bytes) -> str:
    """A field's value without the line ends of its folds; octets that are not UTF-8 become surrogates."""
    return _FOLD.sub(b"", value).decode("utf-8", "surrogateescape")


_TOKEN = re.compile(
    r"(?P<blank>[ \t\r\n]+)"
    r'|(?P<quoted>"(?:[^"\\\r\n]|\\[^\r\n])*")'
    r"|(?P<literal>\[[^\[\]\\\r\n]*\])"
    r"|(?P<special>[<>,;:@.])"
    r'|(?P<atom>[^\x00-\x20\x7f()<>\[\]:;@\\,."]+)'
)


def tokens(text: str) -> Iterator[tuple[str, str, int]]:
    """Lexical tokens of RFC 5322 3.2 and where they end, without blanks and comments. Raises HeaderError."""
    at, depth, end = 0, 0, len(text)
    while at < end:
        char = text[at]
        if char == "(":
            depth += 1
            at += 1
        elif depth:
            if char == "\\":
                at += 1
            elif char == ")":
                depth -= 1
            at += 1
        else:
            found = _TOKEN.match(text, at)
            if found is None:
                raise HeaderError("a character is out of place")
            if found.lastgroup != "blank":
                yield found.lastgroup or "", found[0], found.end()
            at = found.end()
    if depth:
        raise HeaderError("a comment has no end")


_TOKENS_AN_ADDRESS: Final = 32
"""Lexical tokens of a field of addresses, by address that it may have: reading takes some microseconds each, and other
clients wait meanwhile."""


_WORDS: Final = frozenset({"atom", "quoted", "."})


class _Addresses:
    """A mailbox list with groups (RFC 5322 3.4, RFC 6854), read from tokens."""

    def __init__(self, text: str, domain: str = "", most: int = ADDRESSES_LIMIT) -> None:
        """`domain`: of the local parts that stand alone; empty: they are errors. `most`: addresses."""
        limit = _TOKENS_AN_ADDRESS * most
        self._tokens = list(islice(tokens(text), limit + 1))
        if len(self._tokens) > limit:
            raise HeaderError("there are too many words")
        self._at = 0
        self._domain = domain
        self.found: list[str] = []
        self.bare: list[int] = []
        """Where in the text local parts that stand alone end."""

    def _peek(self) -> str:
        """The special character that is next, or its token's kind, or an empty string at the end."""
        if self._at >= len(self._tokens):
            return ""
        kind, text, _ = self._tokens[self._at]
        return text if kind == "special" else kind

    def _words(self) -> str:
        start = self._at
        while self._peek() in _WORDS:
            self._at += 1
        return "".join(text for _, text, _ in self._tokens[start : self._at])

    def _stands_alone(self, words: str, first: int) -> bool:
        """Whether the words just read are one local part without a domain; it is added to `found` then. `first`: where
        among the tokens they begin."""
        if not self._domain or not words.strip(".") or self._peek() not in ("", ",", ";", ">"):
            return False
        end = self._tokens[self._at - 1][2]
        if end - (self._tokens[first][2] - len(self._tokens[first][1])) != len(words):
            return False  # there are blanks or comments between them: it is a name, and no address
        self.bare.append(end)
        self.found.append(f"{words}@{self._domain}")
        return True

    def _spec(self, local: str) -> None:
        """What follows a local part: `@` and the domain."""
        if self._peek() != "@":
            raise HeaderError("an address has no domain")
        self._at += 1
        if self._peek() == "literal":
            domain = self._tokens[self._at][1]
            self._at += 1
        else:
            domain = self._words()
        self.found.append(f"{local}@{domain}")

    def _angle(self) -> None:
        self._at += 1
        while self._peek() == "@":  # an obsolete route (RFC 5322 4.4): its domains say nothing about the mailbox
            self._at += 1
            self._words()
            if self._peek() not in (",", ":"):  # `<@a@b:c@d>` is not a route, and readers differ about the mailbox
                raise HeaderError("a route is not valid")
            while self._peek() == ",":
                self._at += 1
            if self._peek() == ":":
                self._at += 1
                break
        first = self._at
        words = self._words()
        if not self._stands_alone(words, first):
            self._spec(words)
        if self._peek() != ">":
            raise HeaderError("an angle bracket is not closed")
        self._at += 1

    def read(self) -> list[str]:
        """The addresses, as they are written."""
        in_group = False
        while True:
            while self._peek() == ",":  # obsolete lists have empty members
                self._at += 1
            if self._peek() == ";" and in_group:
                in_group = False
                self._at += 1
            elif self._peek() == "":
                if in_group:
                    raise HeaderError("a group has no end")
                return self.found
            else:
                first = self._at
                words = self._words()
                after = self._peek()
                if after == "<":
                    self._angle()
                elif after == "@" and words:
                    self._spec(words)
                elif after == ":" and words and not in_group:
                    in_group = True
                    self._at += 1
                    continue
                elif after != ">" and self._stands_alone(words, first):
                    pass
                else:
                    raise HeaderError("an address is not valid")
            if self._peek() not in ("", ",", ";"):
                raise HeaderError("addresses are separated by commas")


_plain_address = r"[^\x00-\x20\x7f()<>\[\]:;@\\,\"]+@[^\x00-\x20\x7f()<>\[\]:;@\\,\"]+"
_LOOSE_MAILBOX = re.compile(
    rf"[ \t]*(?:(?P<name>{_plain_address})"
    r'|(?:[^\x00-\x08\x0a-\x1f\x7f()<>:;@\\,"]|"[^\x00-\x1f\x7f()<>@\\"]*"|\([^\x00-\x1f\x7f()<>@\\"]*\))*)'
    rf"[ \t]*<(?P<address>{_plain_address})>[ \t]*"
)


_LOOSE_LIMIT: Final = 2000
"""Characters of a field that is read loosely: names are short, and reading takes time."""


def _loose_authors(text: str) -> list[Address]:
    """The author of a field that breaks RFC 5322 in the name alone, as `[tag] Ada <ada@example.org>`, or whose name is
    an address. Raises HeaderError.

    Real clients send both. Another author cannot be hidden there: every `@` of the field, in quotes and comments too,
    belongs to an address that is returned, and there is one pair of angle brackets; so no reader, however it splits
    what stands before them, has another address to find. Commas, colons and semicolons, which would make a list or a
    group, stay errors.
    """
    found = _LOOSE_MAILBOX.fullmatch(text) if len(text) <= _LOOSE_LIMIT else None
    written = [found[name] for name in ("name", "address") if found[name] is not None] if found is not None else []
    if not written or any("=?" in one for one in written):  # malformed words that some decode
        raise HeaderError("an author is not valid")
    try:
        return [parse_address(one) for one in written]
    except AddressError as error:
        raise HeaderError(str(error)) from error


class MailboxList(NamedTuple):
    """What a field of addresses names."""

    addresses: Iterator[Address]
    """Each is made when it is asked for, since an internationalized domain takes its time. Raises HeaderError."""
    completed: bytes | None
    """The field's value with a domain put to each local part that had none; None: all had one."""


def mailboxes(field: Field, domain: str = "", *, most: int = ADDRESSES_LIMIT) -> MailboxList:
    """Every address of a field. Raises HeaderError, now or at a later address, when one cannot be read for certain or
    there are too many. `domain`: of the local parts that stand alone; empty: they are errors. `most`: addresses that
    there may be; who reads the mail of its own user may allow more than who reads a stranger's."""
    if len(field.value) > ADDRESSES_SIZE * most // ADDRESSES_LIMIT:
        raise HeaderError("the field is too long")
    text = unfolded(field.value)
    found: list[str | Address] = []
    bare: list[int] = []
    try:
        strict = _Addresses(text, domain, most)
        found += strict.read()
        bare = strict.bare
    except HeaderError:
        found += _loose_authors(text.rstrip("\r\n"))
    if len(found) > most:
        raise HeaderError("there are too many addresses")
    if not bare:
        return MailboxList(_parsed(found), None)
    pieces = (text[start:end] for start, end in pairwise([0, *bare, len(text)]))
    return MailboxList(_parsed(found), f"@{domain}".join(pieces).encode("utf-8", "surrogateescape"))


def _parsed(found: Iterable[str | Address]) -> Iterator[Address]:
    for one in found:
        try:
            yield one if isinstance(one, Address) else parse_address(one)
        except AddressError as error:
            raise HeaderError(str(error)) from error


def waives_tls(header: Header) -> bool:
    """Whether the header says `TLS-Required: No` (RFC 8689 3): deliver rather than insist on TLS.

    The field may stand once and has one value. Of several, none counts unless all say No (CHOICE, RTLS-09): what is not
    understood must not weaken anything.
    """
    fields = header.named(b"tls-required")
    return bool(fields) and all(field.value.strip().lower() == b"no" for field in fields)


HIDDEN: Final = frozenset({b"bcc", b"resent-bcc", b"return-path"})
"""Fields that submission takes out: who else gets the message is not for its recipients (SUB-05a), and Return-Path is
for final delivery alone to write (RFC 5321 4.4)."""


# --- writing fields -------------------------------------------------------------------------------------------------

# OpenSSL's names of the TLS 1.2 suites that BCP 195 leaves, and IANA's, which RFC 8314 4.3 asks for. Those of
# TLS 1.3 agree.
_IANA: Final = {
    "ECDHE-ECDSA-AES128-GCM-SHA256": "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
    "ECDHE-ECDSA-AES256-GCM-SHA384": "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
    "ECDHE-ECDSA-CHACHA20-POLY1305": "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
    "ECDHE-RSA-AES128-GCM-SHA256": "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
    "ECDHE-RSA-AES256-GCM-SHA384": "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
    "ECDHE-RSA-CHACHA20-POLY1305": "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
}
_HOST = re.compile(r"[A-Za-z0-9._-]+")


def with_keyword(*, extended: bool, tls: bool, authenticated: bool, smtputf8: bool) -> str:
    """The `with` of Received (RFC 3848, RFC 6531 4.3, SIN-14). After HELO it is SMTP whatever else was used."""
    if not extended:
        return "SMTP"
    return ("UTF8SMTP" if smtputf8 else "ESMTP") + ("S" if tls else "") + ("A" if authenticated else "")


def _greeting_name(hello: str) -> str:
    """The EHLO argument as Received may carry it: a name, a literal, or its harmless characters."""
    if hello.startswith("["):
        try:
            return parse_literal(hello)
        except AddressError:
            pass
    return hello if _HOST.fullmatch(hello) else re.sub(r"[^A-Za-z0-9._-]", "?", hello)


class Received:
    """The Received fields (RFC 5321 4.4, SIN-13) that messages of one client get, with the `tls` clause of
    RFC 8314 4.3 (TLS-06). `require_tls`: a comment says that they came with REQUIRETLS.

    What is the same in all of them is written once.
    """

    __slots__ = ("_from", "_tls")

    def __init__(
        self,
        *,
        hello: str,
        client: IPv4Address | IPv6Address,
        by: str,
        protocol: str,
        tls: TlsFacts | None,
        require_tls: bool = False,
    ) -> None:
        source = f"from {_greeting_name(hello)} ({address_literal(client)})"
        comment = " (requiretls)" if require_tls else ""
        self._from = f"Received: {source}\r\n\tby {by} (Mailrail) with {protocol}{comment}\r\n\tid "
        self._tls = "" if tls is None else f"\r\n\ttls {_IANA.get(tls.cipher, tls.cipher)} ({tls.version})"

    def field(self, identifier: str, recipient: str | None, now: float) -> bytes:
        """The field of one message, `now` being Unix time. `recipient`: only if there is one.

        A recipient that is not ASCII is left out (the clause is optional, RFC 5321 4.4): with it in the header, a
        message that an alias sends on to an ASCII address could go only to hosts with SMTPUTF8 (EXT-11).
        """
        clause = "" if recipient is None or not recipient.isascii() else f"\r\n\tfor <{recipient}>"
        return f"{self._from}{identifier}{clause}{self._tls};\r\n\t{date(now)}\r\n".encode()


def date(now: float) -> str:
    """A date as RFC 5322 3.3 writes it, in UTC with a numeric zone; `now` is Unix time."""
    return _date(int(now))


@lru_cache(maxsize=8)
def _date(seconds: int) -> str:
    return format_datetime(datetime.fromtimestamp(seconds, UTC))
