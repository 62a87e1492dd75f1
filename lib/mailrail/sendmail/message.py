"""A message on its way from standard input into a file: line ends, the end, and the header made whole (SML-05).

Programs write messages as they write text: LF alone, no Date, a From without a domain. What leaves here is a message:
CRLF ends each line, Date, Message-ID and From are there, and Bcc is not. The Message-ID is made before the first
attempt, so a copy that a lost reply makes can be recognised. The body streams through in pieces; only the header is
held, and it is bounded (core/message/content_reader).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from email.errors import MessageError
from email.utils import formataddr, parseaddr
from typing import BinaryIO, Final

from mailrail.core.message.content_reader import ContentFault, ContentReader
from mailrail.core.message.header import (
    FIELDS_LIMIT,
    HEADER_LIMIT,
    HIDDEN,
    Field,
    Header,
    HeaderError,
    date,
    mailboxes,
)
from mailrail.core.smtp.address import Address
from mailrail.core.smtp.data import LineEndWatch
from mailrail.sendmail.addresses import recipients_of_field
from mailrail.sendmail.settings import RewriteFrom
from mailrail.sendmail.status import ExitStatus, Stop

PIECE: Final = 64 * 1024
"""Octets that are read and written at once."""
_TO: Final = (b"to", b"cc", b"bcc")
_RESENT: Final = (b"resent-to", b"resent-cc", b"resent-bcc")


@dataclass(frozen=True, slots=True)
class HeaderWishes:
    """What the header of a message shall have, and what is wanted of it."""

    author: Address
    """Of a From that is missing."""
    replacement: Address
    """Of a From that is rewritten."""
    full_name: str
    rewrite_from: RewriteFrom
    default_domain: str
    message_id: str
    """With its brackets; for a message that has none."""
    now: float
    """Unix time."""
    recipients: bool
    """-t: read them."""
    waive_tls: bool
    """Add `TLS-Required: No` (RFC 8689 3)."""
    local_domains: frozenset[str] = frozenset()
    """Domains that nobody outside could answer to, such as this machine's name without a dot."""


@dataclass(slots=True)
class MessageFacts:
    """What the server's abilities are compared with, found while the message passed."""

    size: int = 0
    eight_bit: bool = False
    header_utf8: bool = False
    """Its header has characters that are not ASCII, in UTF-8."""
    nul: bool = False
    longest: int = 0
    """Octets of the longest line without its end."""
    signed: bool = False
    """It has a DKIM-Signature: its octets stay as they are."""
    message_id: str = ""
    recipients: list[Address] = field(default_factory=list)
    """-t: those of the header; the domain of local names is empty."""


class InputLines:
    """Octets as a program writes them; text with CRLF comes out, in pieces. Ends at a lone dot where one ends it.

    Without `dot_is_text` a line with a dot alone ends the input on a terminal. From a pipe or a file it ends nothing,
    or mail would be cut short; it is taken for the end that its writer meant only as the very last line (SML-01).
    """

    def __init__(self, *, dot_is_text: bool, terminal: bool = False) -> None:
        self._dot_is_text = dot_is_text
        self._terminal = terminal
        self._watch = LineEndWatch(repair=True)
        self._held = b""  # the end of what came, which may be the last line, a dot alone
        self._line_start = True  # what is held begins a line
        self.ended = False
        """A dot on a terminal: nothing more is to be read."""

    def feed(self, data: bytes) -> bytes:
        """The next octets."""
        if self.ended:
            return b""
        text = self._held + self._watch.feed(data)
        self._held = b""
        if self._dot_is_text:
            return text
        if self._terminal:
            end = 0 if self._line_start and text.startswith(b".\r\n") else text.find(b"\r\n.\r\n") + 2
            if end != 1 and (end or text.startswith(b".\r\n")):
                self.ended = True
                return text[:end]
        for length in (5, 4, 3, 2, 1):  # CRLF, dot, CRLF, or a beginning of that
            if len(text) >= length and b"\r\n.\r\n"[:length] == text[-length:]:
                cut = len(text) - length + (2 if length > 2 else 0)
                break
        else:
            cut = len(text)
        if self._line_start and b".\r\n".startswith(text) and text:
            cut = 0  # all there is may be that line
        out, self._held = text[:cut], text[cut:]
        if out:
            self._line_start = out.endswith(b"\r\n")
        return out

    def finish(self) -> bytes:
        """The end: what was held back, unless it is a dot alone."""
        text = self._held + self._watch.finish()
        self._held = b""
        if not self._dot_is_text:
            if self._line_start and text in (b".", b".\r\n"):
                text = b""
            elif text.endswith((b"\r\n.\r\n", b"\r\n.")):
                text = text[: text.rindex(b".")]
        return text


class FactsOf:
    """Looks at a message as it passes."""

    def __init__(self, facts: MessageFacts) -> None:
        self._facts = facts
        self._line = 0  # octets of the line that the last piece ended in

    def see(self, data: bytes) -> None:
        """The next octets, as they are kept."""
        facts = self._facts
        facts.size += len(data)
        if not data.isascii():
            facts.eight_bit = True
        if b"\0" in data:
            facts.nul = True
        lines = data.split(b"\n")
        longest = max(map(len, lines[1:-1]), default=0)
        facts.longest = max(facts.longest, self._line + len(lines[0]), longest, len(lines[-1]))
        self._line = self._line + len(data) if len(lines) == 1 else len(lines[-1])

    def finish(self) -> None:
        """The end of the message."""
        self._facts.longest = max(0, self._facts.longest - 1)  # its CR was counted


def read_message(
    pieces: Iterator[bytes],
    keep: Callable[[bytes], object],
    wishes: HeaderWishes,
    *,
    dot_is_text: bool,
    terminal: bool = False,
    limit: int,
) -> MessageFacts:
    """Pass a message on to `keep` as it shall be sent. `limit`: octets of it. Raises Stop, and what `pieces` and `keep`
    raise."""
    facts = MessageFacts()
    watch = FactsOf(facts)
    lines = InputLines(dot_is_text=dot_is_text, terminal=terminal)
    # Neither bounded nor shortened lines here: what a server needs of them is made when it is known (dialogue).
    reader = ContentReader(lambda header: _whole_header(header, wishes, facts), lines=False)

    def put(data: bytes) -> None:
        if data:
            watch.see(data)
            if facts.size > limit:
                raise Stop(
                    ExitStatus.DATA,
                    f"the message is larger than {limit} octets: send less, or raise input_limit",
                )
            keep(data)

    for piece in pieces:
        put(reader.feed(lines.feed(piece)))
        _check(reader.fault)
        if lines.ended:
            break
    put(reader.feed(lines.finish()))
    put(reader.finish())
    _check(reader.fault)
    watch.finish()
    return facts


def pieces_of(file: BinaryIO) -> Iterator[bytes]:
    """What a pipe or a file gives, as it comes."""
    read = getattr(file, "read1", file.read)
    while piece := read(PIECE):
        yield piece


def _check(fault: ContentFault | None) -> None:
    if fault is ContentFault.LONG_HEADER:
        raise Stop(
            ExitStatus.DATA,
            f"the header of the message is longer than {HEADER_LIMIT} octets: is there an empty line below it?",
        )
    if fault is ContentFault.MANY_FIELDS:
        raise Stop(ExitStatus.DATA, f"the header of the message has more than {FIELDS_LIMIT} fields")


# --- the header -------------------------------------------------------------------------------------------------------


def _whole_header(header: Header, wishes: HeaderWishes, facts: MessageFacts) -> bytes:
    """The header with what it lacks, and without what is for us alone. Notes the facts."""
    if wishes.recipients:
        names = _RESENT if any(header.has(name) for name in _RESENT) else _TO
        for name in names:
            for each in header.named(name):
                facts.recipients += recipients_of_field(each)
    facts.signed = header.has(b"dkim-signature")
    changes: dict[Field, bytes] = {}
    for name in HIDDEN:
        changes |= dict.fromkeys(header.named(name), b"")
    added = _author(header, wishes, changes)
    if not header.has(b"date"):
        added += b"Date: %b\r\n" % date(wishes.now).encode()
    ids = header.named(b"message-id")
    if any(each.value.strip() for each in ids):
        facts.message_id = ids[0].text
    else:
        changes |= dict.fromkeys(ids, b"")
        added += b"Message-ID: %b\r\n" % wishes.message_id.encode()
        facts.message_id = wishes.message_id
    if wishes.waive_tls:
        changes |= dict.fromkeys(header.named(b"tls-required"), b"")
        added += b"TLS-Required: No\r\n"
    block = header.changed(changes)
    if block and not block.endswith(b"\n"):  # the message is a header whose last line has no end
        block += b"\r\n"
    block += added
    facts.header_utf8 = not block.isascii() and _is_utf8(block)
    return block


def _is_utf8(octets: bytes) -> bool:
    try:
        octets.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _author(header: Header, wishes: HeaderWishes, changes: dict[Field, bytes]) -> bytes:
    """What is to be added as From; notes in `changes` what is replaced."""
    fields = header.named(b"from")
    written = [each for each in fields if each.value.strip()]
    if not written:
        changes |= dict.fromkeys(fields, b"")
        return _from(wishes.full_name, wishes.author)
    first = written[0]
    if wishes.rewrite_from is RewriteFrom.ALWAYS or (
        wishes.rewrite_from is RewriteFrom.LOCAL and _is_local(first, wishes)
    ):
        changes |= dict.fromkeys(fields, b"")
        changes[first] = _from(_name_of(first), wishes.replacement)
    return b""


def _is_local(author: Field, wishes: HeaderWishes) -> bool:
    """Whether nobody outside could answer to this From: an address without a domain, or with one of this machine."""
    try:
        found = list(mailboxes(author, "bare.invalid").addresses)
    except HeaderError:
        return False  # whoever sees it shall see what was written
    return any(
        each.domain == "bare.invalid" or "." not in each.domain.strip("[]") or each.domain in wishes.local_domains
        for each in found
        if not each.is_literal
    )


def _name_of(author: Field) -> str:
    try:
        return parseaddr(author.text[:1000])[0]
    except (MessageError, ValueError, IndexError):
        return ""


def _from(name: str, author: Address) -> bytes:
    name = "".join(c if c.isprintable() else " " for c in name[:200]).strip()
    try:
        text = formataddr((name, str(author))) if name else str(author)
    except (MessageError, UnicodeError, ValueError):  # an address that is not ASCII, or a lone surrogate in the name
        text = str(author)
    return f"From: {text}\r\n".encode("utf-8", "replace")
