"""Reading notifications that others sent: bounded, and strict where a mistake would mislead (reference D4).

A notification is multipart/report with report-type=delivery-status and two or three parts (RFC 6522 3): something for
people, message/delivery-status or its global form, and perhaps the original or its header. Of the status, Reporting-MTA
and for each recipient Final-Recipient, Action and Status must be there once (RFC 3464 2.2, 2.3); a repeated field, an
unknown Action and a diagnostic that is not SMTP's make it unreadable, because whoever acts on it would act on a guess.

`read` raises `UnreadableDsn` for anything else, never another exception, and takes time linear in its input.
"""

import base64
import binascii
import quopri
import re
from dataclasses import dataclass

from mailrail.core.dsn.due import DsnKind
from mailrail.core.message.content_type import TEXT, ContentType, parse_content_type, transfer_encoding
from mailrail.core.smtp.reply import EnhancedCode

SIZE_LIMIT = 8 * 1024 * 1024
"""Octets of a notification that is looked at; larger ones are unreadable."""
STATUS_LIMIT = 256 * 1024
"""Octets of the status part."""
RECIPIENTS_LIMIT = 1000
FIELDS_LIMIT = 64
"""Fields of one group."""
_HEADER_LIMIT = 128 * 1024


class UnreadableDsn(ValueError):
    """Not a notification, or one that cannot be relied on. The message says why."""


@dataclass(frozen=True, slots=True)
class ReadRecipient:
    """What a notification says of one recipient. Text is the stranger's: sanitise before showing."""

    recipient: str
    recipient_type: str
    action: DsnKind
    status: EnhancedCode
    code: int
    """From Diagnostic-Code, else 400, 500 or 200 by the class of Status."""
    original_recipient: str | None = None
    """Address without its type."""
    remote_mta: str | None = None
    diagnostic: str | None = None
    last_attempt: str | None = None
    will_retry_until: str | None = None


@dataclass(frozen=True, slots=True)
class ReadDsn:
    """A notification as read."""

    reporting_mta: str
    recipients: tuple[ReadRecipient, ...]
    envelope_id: str | None = None
    arrival: str | None = None
    original_header: bytes | None = None
    """Header of the original, decoded; None if it was not returned."""

    @property
    def original_message_id(self) -> str | None:
        """Message-ID of the original with its brackets, if exactly one was returned."""
        found = re.findall(rb"(?im)^message-id:[ \t]*(?:\r?\n[ \t]+)?(<[^<>\s]{1,900}>)", self.original_header or b"")
        return found[0].decode("ascii", "replace") if len(found) == 1 else None


_FIELD = re.compile(rb"([!-9;-~]+)[ \t]*:(.*)\Z", re.DOTALL)
_DIAGNOSTIC = re.compile(r"([245][0-9][0-9])(?:[ -]|\Z)")

_STATUS_TYPES = ("message/delivery-status", "message/global-delivery-status")
_RETURNED_TYPES = ("message/rfc822", "text/rfc822-headers", "message/global", "message/global-headers")


def read(message: bytes) -> ReadDsn:
    """Read a whole message, header and body, with CRLF or LF line ends. Raises UnreadableDsn."""
    if len(message) > SIZE_LIMIT:
        raise UnreadableDsn(f"larger than {SIZE_LIMIT} octets")
    header, body = _split(message)
    top = _content_type(_fields(header, limit=1000, repeated=True))
    if top.kind != "multipart/report":
        raise UnreadableDsn(f"the content type is {top.kind}, not multipart/report")
    if top.parameters.get("report-type", "").lower() not in ("delivery-status", "global-delivery-status"):
        raise UnreadableDsn("the report type is neither delivery-status nor global-delivery-status")
    parts: list[bytes] = []
    for boundary in top.boundaries:
        parts = parts or _parts(body, boundary.encode("utf-8", "replace"))
    if not top.boundaries:
        raise UnreadableDsn("no usable boundary")
    if len(parts) not in (2, 3):
        raise UnreadableDsn(f"{len(parts)} parts where two or three are expected")
    status_fields, status_body = _opened(parts[1])
    status_kind = _content_type(status_fields).kind
    if status_kind not in _STATUS_TYPES:
        raise UnreadableDsn(f"the second part is {status_kind}, no delivery status")
    if len(status_body) > STATUS_LIMIT:
        raise UnreadableDsn(f"a status part of more than {STATUS_LIMIT} octets")
    original = None
    if len(parts) == 3:
        original_fields, original_body = _opened(parts[2])
        original_kind = _content_type(original_fields).kind
        if original_kind not in _RETURNED_TYPES:
            raise UnreadableDsn(f"the third part is {original_kind}, no returned message")
        original = _split(original_body)[0]
    return _status(status_body, original)


def _split(message: bytes) -> tuple[bytes, bytes]:
    """Header and body at the first empty line."""
    if message.startswith((b"\r\n", b"\n")):
        return b"", message[2:] if message.startswith(b"\r\n") else message[1:]
    found = re.compile(rb"\r?\n\r?\n").search(message, 0, _HEADER_LIMIT)
    if found is None:
        return message[:_HEADER_LIMIT], b""
    return message[: found.start()], message[found.end() :]


def _fields(block: bytes, *, limit: int, repeated: bool) -> dict[str, str]:
    """Fields by lower-case name, unfolded. The first of repeated ones counts, or they are an error."""
    found: dict[str, str] = {}
    unfolded: list[bytearray] = []
    for line in block.split(b"\n"):
        line = line.removesuffix(b"\r")
        if not line:
            continue
        if line[:1] in b" \t" and unfolded:
            unfolded[-1] += b" " + line.strip()
        else:
            unfolded.append(bytearray(line))
        if len(unfolded) > limit:
            raise UnreadableDsn(f"more than {limit} fields in a row")
    for raw in unfolded:
        match = _FIELD.match(bytes(raw))
        if match is None:
            if repeated:
                continue  # the header of a stranger's message: what is no field is passed over
            raise UnreadableDsn("a status line that is no field")
        name = match[1].decode("ascii").lower()
        if name in found:
            if not repeated:
                raise UnreadableDsn(f"{name} is given twice")
            continue
        found[name] = match[2].decode("utf-8", "replace").strip()
    return found


def _content_type(fields: dict[str, str]) -> ContentType:
    """What a part says it is; text/plain when nothing is said that can be read (RFC 2045 5.2)."""
    return parse_content_type(fields.get("content-type", "")) or TEXT


def _parts(body: bytes, boundary: bytes) -> list[bytes]:
    """The parts between boundary lines (RFC 2046 5.1.1); an unended last part counts, as reports are often cut."""
    mark = b"--" + boundary
    parts: list[bytes] = []
    start: int | None = None
    at = 0
    while True:
        at = body.find(mark, at)
        if at == -1:
            break
        line_end = body.find(b"\n", at)
        line_end = len(body) if line_end == -1 else line_end
        after = body[at + len(mark) : min(line_end, at + len(mark) + 80)].strip()
        if (at and body[at - 1 : at] != b"\n") or after not in (b"", b"--"):
            at += len(mark)
            continue
        if start is not None:
            end = at - 1
            parts.append(body[start : end - 1 if body[end - 1 : end] == b"\r" else end] if end > start else b"")
            if len(parts) > 3:
                raise UnreadableDsn("more than three parts")
        if after == b"--":
            return parts
        start = line_end + 1
        at = line_end
    if start is not None and start < len(body):
        parts.append(body[start:])
    return parts


def _opened(part: bytes) -> tuple[dict[str, str], bytes]:
    """Fields and decoded body of a part."""
    header, body = _split(part)
    fields = _fields(header, limit=FIELDS_LIMIT, repeated=True)
    encoding = transfer_encoding(fields.get("content-transfer-encoding", "7bit"))
    if encoding == "base64":
        try:
            body = base64.b64decode(body, validate=False)
        except (binascii.Error, ValueError):
            raise UnreadableDsn("base64 that does not decode") from None
    elif encoding == "quoted-printable":
        body = quopri.decodestring(body)
    return fields, body


def _status(body: bytes, original: bytes | None) -> ReadDsn:
    blocks = [b for b in re.split(rb"(?:\r?\n){2,}", body.strip(b"\r\n")) if b.strip()]
    if len(blocks) < 2:
        raise UnreadableDsn("no recipient in the status")
    if len(blocks) > RECIPIENTS_LIMIT + 1:
        raise UnreadableDsn(f"more than {RECIPIENTS_LIMIT} recipients")
    message = _fields(blocks[0], limit=FIELDS_LIMIT, repeated=False)
    reporting = message.get("reporting-mta")
    if reporting is None:
        raise UnreadableDsn("Reporting-MTA is missing")
    return ReadDsn(
        reporting_mta=_typed(reporting)[1],
        recipients=tuple(_recipient(_fields(b, limit=FIELDS_LIMIT, repeated=False)) for b in blocks[1:]),
        envelope_id=_optional(message, "original-envelope-id"),
        arrival=_optional(message, "arrival-date"),
        original_header=original,
    )


def _recipient(fields: dict[str, str]) -> ReadRecipient:
    for name in ("final-recipient", "action", "status"):
        if name not in fields:
            raise UnreadableDsn(f"{name} is missing")
    kind, address = _typed(fields["final-recipient"])
    try:
        action = DsnKind(_without_comments(fields["action"]).lower())
    except ValueError:
        raise UnreadableDsn("an unknown Action") from None
    try:
        status = EnhancedCode.parse(_without_comments(fields["status"]))
    except ValueError:
        raise UnreadableDsn("a Status that is no status code") from None
    diagnostic, code = None, status.category * 100
    if "diagnostic-code" in fields:
        diagnostic_type, diagnostic = _typed(fields["diagnostic-code"], comments=False)
        if diagnostic_type != "smtp":
            raise UnreadableDsn("a diagnostic that is not SMTP's")
        found = _DIAGNOSTIC.match(diagnostic)
        code = int(found[1]) if found else code
    return ReadRecipient(
        recipient=address,
        recipient_type=kind,
        action=action,
        status=status,
        code=code,
        original_recipient=_typed(fields["original-recipient"])[1] if "original-recipient" in fields else None,
        remote_mta=_typed(fields["remote-mta"])[1] if "remote-mta" in fields else None,
        diagnostic=diagnostic,
        last_attempt=_optional(fields, "last-attempt-date"),
        will_retry_until=_optional(fields, "will-retry-until"),
    )


def _optional(fields: dict[str, str], name: str) -> str | None:
    return _without_comments(fields[name]) if fields.get(name) else None


def _typed(value: str, *, comments: bool = True) -> tuple[str, str]:
    """`type; value` apart. Raises UnreadableDsn when there is no type."""
    kind, semicolon, rest = value.partition(";")
    kind = _without_comments(kind).lower()
    if not semicolon or not kind:
        raise UnreadableDsn("a field without its type")
    # A diagnostic is the stranger's free text, where parentheses are no comments.
    return kind, _without_comments(rest) if comments else rest.strip()


def _without_comments(value: str) -> str:
    """`value` without RFC 5322 comments; parentheses in a quoted string stay, an unended comment goes to the end."""
    if "(" not in value:
        return value.strip()
    kept: list[str] = []
    depth, quoted, escaped = 0, False, False
    for character in value:
        if escaped:
            escaped = False
        elif character == "\\":
            escaped = True
        elif character == '"' and not depth:
            quoted = not quoted
        elif character == "(" and not quoted:
            depth += 1
            continue
        elif character == ")" and depth:
            depth -= 1
            continue
        if not depth:
            kept.append(character)
    return "".join(kept).strip()
