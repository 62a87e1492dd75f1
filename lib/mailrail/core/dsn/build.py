"""Writing delivery status notifications: RFC 3461 6, RFC 3464, RFC 6522, RFC 6533; standards 9, design 9.

A notification is an ordinary message with a null sender: multipart/report with a text for people, a machine-readable
status and, third, the original's headers or the original itself. Whatever came from outside is sanitised, so the
result has CRLF line ends only, is pure 7-bit below its header, and in its header as well unless the return path itself
needs SMTPUTF8. References and In-Reply-To name the original, so that mail clients thread it.

`build` is pure: time, message id and boundary are given.
"""

import contextlib
from dataclasses import dataclass
from ipaddress import ip_address

from mailrail.core.dsn import text
from mailrail.core.dsn.due import DsnKind
from mailrail.core.message.content_type import LINE_LIMIT, is_seven_bit
from mailrail.core.message.header import date
from mailrail.core.message.reencode import Target, Unconvertible, reencode
from mailrail.core.smtp.address import address_literal
from mailrail.core.smtp.reply import EnhancedCode, Reply
from mailrail.core.tlspolicy.facts import Requirement

HEADERS_LIMIT = 128 * 1024
"""Octets of the original's header that a notification returns; what is longer is cut after a whole line."""
FULL_LIMIT = 1024 * 1024
"""Octets up to which RET=FULL is honoured unless the gateway says otherwise (design 9)."""
STRANGER_FULL_LIMIT = 64 * 1024
"""The same for a sender that did not authenticate: a forged address must not receive a megabyte (DSN-26c)."""
STRANGER_RECIPIENTS = 50
"""Recipients that one notification reports to such a sender; it counts the others (DSN-26c)."""


@dataclass(frozen=True, slots=True)
class ReportingMta:
    """The system that writes the notification."""

    hostname: str
    """Fully qualified name of this installation (Reporting-MTA, DSN-14)."""
    postmaster: str
    """Address of a human (DSN-12)."""


@dataclass(frozen=True, slots=True)
class Original:
    """The message that is reported on. Times are Unix seconds."""

    reverse_path: str
    """The address that is notified; never empty (DSN-10)."""
    arrived: float
    header: bytes
    """Its header octets with CRLF line ends (prefix included); `header_of` cuts them from content."""
    content: bytes | None = None
    """All of it, when it is to be returned whole (see `returns_full`)."""
    message_id: str | None = None
    subject: str | None = None
    """For people; decoded."""
    envelope_id: str | None = None
    """ENVID as received, in xtext."""
    smtputf8: bool = False
    requirement: Requirement = Requirement.DEFAULT
    """The notification has the same (RFC 8689 5, RTLS-19a, RTLS-19c); under REQUIRED it has headers only (RTLS-20)."""
    future_release: str | None = None
    """`for;N` or `until;T` as requested (RFC 4865 5)."""


@dataclass(frozen=True, slots=True)
class DsnRecipient:
    """What happened to one recipient."""

    kind: DsnKind
    recipient: str
    """As this system received it, case kept."""
    status: EnhancedCode
    reason: str = ""
    """In our words; sanitised here."""
    original_recipient: str | None = None
    """ORCPT as received."""
    remote_host: str | None = None
    remote_ip: str | None = None
    reply: Reply | None = None
    """What the remote server said; None if none did (DSN-16a)."""
    last_attempt: float | None = None
    will_retry_until: float | None = None
    """With DELAYED only (DSN-18)."""


@dataclass(frozen=True, slots=True)
class Dsn:
    """A notification, ready for the queue: MAIL FROM:<> to `recipient`, NOTIFY=NEVER (DSN-11)."""

    recipient: str
    message_id: str
    subject: str
    content: bytes
    smtputf8: bool
    """The return path needs it."""
    requirement: Requirement


def header_of(content: bytes) -> bytes:
    """The header of a message with its last CRLF, without the empty line; cut after a whole line at HEADERS_LIMIT."""
    if content.startswith(b"\r\n"):
        return b""
    end = content.find(b"\r\n\r\n", 0, HEADERS_LIMIT)
    if end != -1:
        return content[: end + 2]
    head = content[:HEADERS_LIMIT]
    return head[: head.rfind(b"\r\n") + 2]


def returns_full(
    *, ret_full: bool, size: int, tls_required: bool, kind: DsnKind, authenticated: bool, limit: int = FULL_LIMIT
) -> bool:
    """Whether the whole original goes back: RET=FULL, a failure, small enough, not under REQUIRETLS (DSN-19, RTLS-20).

    Without RET headers go back (our choice); so they do for everything that is not a failure.
    """
    most = limit if authenticated else min(limit, STRANGER_FULL_LIMIT)
    return ret_full and kind is DsnKind.FAILED and not tls_required and size <= most


_SUBJECTS = {
    DsnKind.FAILED: "Mail delivery failed",
    DsnKind.DELAYED: "Mail delivery delayed",
    DsnKind.RELAYED: "Mail relayed",
    DsnKind.DELIVERED: "Mail delivered",
    DsnKind.EXPANDED: "Mail passed on to several recipients",
}
_OPENINGS = {
    DsnKind.FAILED: "Your message could not be delivered to the recipients below. No further attempt will be made.",
    DsnKind.DELAYED: "Your message has not been delivered to the recipients below yet. You need not send it again: "
    "delivery is still being attempted.",
    DsnKind.RELAYED: "Your message was handed to a mail server that does not confirm delivery. "
    "You may get no further notification.",
    DsnKind.DELIVERED: "Your message was delivered to the recipients below.",
    DsnKind.EXPANDED: "Your message was accepted for the addresses below, each of which stands for several recipients. "
    "You will only be notified of failures.",
}
_ORDER = tuple(DsnKind)
_STATUS_TYPES = {False: "delivery-status", True: "global-delivery-status"}


def build(
    original: Original,
    reports: tuple[DsnRecipient, ...],
    reporter: ReportingMta,
    *,
    message_id: str,
    boundary: str,
    now: float,
    unlisted: int = 0,
) -> Dsn:
    """One notification on all of `reports`, which are of one transaction (DSN-21).

    `unlisted`: recipients with the same fate that are counted and not reported (DSN-26c).

    `message_id` comes with its brackets, from the caller, so that the queue stores the same one; `boundary` is a random
    token. Raises ValueError for a null return path or no report: nothing answers those (DSN-10).
    """
    if not original.reverse_path or not reports:
        raise ValueError("a notification needs someone to tell and something to tell")
    kinds = {r.kind for r in reports}
    leading = next(kind for kind in _ORDER if kind in kinds)
    utf8 = original.smtputf8 and not _all_ascii(original, reports)
    parts = [
        _people(original, reports, reporter, original.smtputf8, unlisted),
        _machine(original, reports, reporter, utf8),
    ]
    returned = _returned(original, utf8)
    if returned is not None:
        parts.append(returned)
    marker = boundary
    while any(b"--" + marker.encode() in part for part in parts):
        marker += "="  # a random token is in no mail; a constant of the caller may be
    subject = _SUBJECTS[leading]
    return Dsn(
        recipient=original.reverse_path,
        message_id=message_id,
        subject=subject,
        content=_header(original, reporter, subject, message_id, marker, now, utf8) + _assemble(parts, marker),
        smtputf8=not original.reverse_path.isascii(),
        requirement=original.requirement,
    )


def _all_ascii(original: Original, reports: tuple[DsnRecipient, ...]) -> bool:
    """Whether the plain types of RFC 3464 can say it all. Few readers of DSNs know those of RFC 6533 (DSN-28)."""
    return (
        original.header.isascii()
        and original.reverse_path.isascii()
        and all(r.recipient.isascii() and (r.original_recipient or "").isascii() for r in reports)
    )


def _header(
    original: Original, reporter: ReportingMta, subject: str, message_id: str, boundary: str, now: float, utf8: bool
) -> bytes:
    fields = [
        text.field("From", f"Mail Delivery System <{reporter.postmaster}>"),
        # The same return path as in the envelope (DSN-12); a parsed address has no line ends.
        f"To: <{original.reverse_path}>\r\n",
        text.field("Subject", subject),
        text.field("Date", date(now)),
        f"Message-ID: {message_id}\r\n",
    ]
    reference = text.usable_message_id(original.message_id)
    if reference is not None:
        fields += [f"In-Reply-To: {reference}\r\n", f"References: {reference}\r\n"]
    if original.requirement is Requirement.NO:
        fields.append("TLS-Required: No\r\n")  # it is how the next hop hears of it (RTLS-19c)
    fields += [
        "Auto-Submitted: auto-replied\r\n",
        "MIME-Version: 1.0\r\n",
        # RFC 6522 3: the type of the report is the subtype of its second part.
        f'Content-Type: multipart/report; report-type={_STATUS_TYPES[utf8]};\r\n boundary="{boundary}"\r\n',
        "Content-Transfer-Encoding: 7bit\r\n",
    ]
    return "".join(fields).encode()


def _assemble(parts: list[bytes], boundary: str) -> bytes:
    mark = b"--" + boundary.encode()
    body = b"".join(b"\r\n" + mark + b"\r\n" + part for part in parts)
    return body + b"\r\n" + mark + b"--\r\n"


def _part(kind: str, description: str, body: bytes, *, parameters: str = "") -> bytes:
    """A MIME part whose body is 7-bit on the wire, encoded where it has to be (DSN-13, DSN-20, DSN-28)."""
    encoding = "7bit"
    if not is_seven_bit(body):
        # Quoted-printable keeps text readable; it needs CRLF lines to be lossless, so anything odd goes as base64.
        pairs = body.count(b"\r\n")
        tidy = body.count(b"\r") == pairs == body.count(b"\n") and b"\0" not in body
        encoding, body = ("quoted-printable", text.quoted_printable(body)) if tidy else ("base64", _base64(body))
    head = (
        f"Content-Type: {kind}{parameters}\r\n"
        f"Content-Description: {description}\r\n"
        f"Content-Transfer-Encoding: {encoding}\r\n\r\n"
    )
    return head.encode("ascii") + body


def _base64(body: bytes) -> bytes:
    return text.base64_lines(body)


def _people(
    original: Original, reports: tuple[DsnRecipient, ...], reporter: ReportingMta, utf8: bool, unlisted: int
) -> bytes:
    lines = [f"This is the mail system at {reporter.hostname}.", ""]
    for kind in _ORDER:
        chosen = [r for r in reports if r.kind is kind]
        if not chosen:
            continue
        lines += [*text.wrap(_OPENINGS[kind]), ""]
        for report in chosen:
            lines += _told(report, utf8)
    if unlisted:
        lines += [f"{unlisted} more recipients are not listed here.", ""]
    if original.subject and original.requirement is not Requirement.REQUIRED:
        # What may have to go without TLS has no word of it (RTLS-21b).
        lines += text.wrap("Subject: " + _shown(original.subject, utf8, 200))
    reference = text.usable_message_id(original.message_id)
    if reference is not None:
        lines.append(f"Message-ID: {reference}")
    lines.append(f"Received: {date(original.arrived)}")
    if original.requirement is Requirement.REQUIRED:
        lines += ["", *text.wrap("The message asked for protected transport only, so its body is not returned.")]
    body = "\r\n".join(lines).encode() + b"\r\n"
    charset = "us-ascii" if body.isascii() else "utf-8"
    return _part("text/plain", "Notification", body, parameters=f"; charset={charset}")


def _told(report: DsnRecipient, utf8: bool) -> list[str]:
    lines = [f"  {_shown(report.recipient, utf8, 600)}"]
    if report.reason:
        lines += text.wrap(text.ascii_text(report.reason), indent="    ")
    if report.reply is not None:
        host = _remote(report)
        lines.append(f"    {host} said:" if host else "    The remote server said:")
        for line in report.reply.lines[:20]:
            lines += text.wrap(f"{report.reply.code} {text.ascii_text(line, 1000)}", indent="      ")
    elif not report.reason:
        lines.append(f"    Status {report.status}")
    if report.kind is DsnKind.DELAYED and report.will_retry_until is not None:
        lines.append(f"    Attempts continue until {date(report.will_retry_until)}.")
    return [*lines, ""]


def _shown(value: str, utf8: bool, limit: int) -> str:
    if not utf8:
        return text.ascii_text(value, limit)
    return " ".join("".join(c if c.isprintable() else " " for c in value[:limit]).split())


def _remote(report: DsnRecipient) -> str:
    """`host [ip]`, as far as known (reference H9, H20)."""
    host = text.ascii_text(report.remote_host or "", 255).replace(" ", "")
    address = text.comment(report.remote_ip or "", 60)
    if host and address:
        return f"{host} [{address}]"
    return host or (f"[{address}]" if address else "")


def _mta_name(host: str) -> str:
    """A host as an MTA name of type dns, which is a domain or an address literal (RFC 3461 9.3, DSN-16b)."""
    try:
        return address_literal(ip_address(host.strip("[]")))
    except ValueError:
        return host


def _machine(original: Original, reports: tuple[DsnRecipient, ...], reporter: ReportingMta, utf8: bool) -> bytes:
    message = [text.field("Reporting-MTA", f"dns; {reporter.hostname}")]
    envelope_id = text.decoded_envelope_id(original.envelope_id) if original.envelope_id else None
    if envelope_id is not None:
        message.insert(0, f"Original-Envelope-Id: {envelope_id}\r\n")
    message.append(text.field("Arrival-Date", date(original.arrived)))
    if original.future_release:
        message.append(text.field("Future-Release-Request", text.ascii_text(original.future_release, 100)))
    groups = ["".join(message)]
    groups += ["".join(_recipient_fields(report, utf8)) for report in reports]
    return _part(f"message/{_STATUS_TYPES[utf8]}", "Delivery report", "\r\n".join(groups).encode())


def _recipient_fields(report: DsnRecipient, utf8: bool) -> list[str]:
    fields: list[str] = []
    if report.original_recipient:
        original = text.original_recipient(report.original_recipient, utf8=utf8)
        if original is not None:
            fields.append(f"Original-Recipient: {original}\r\n")
    fields.append(f"Final-Recipient: {text.typed_address(report.recipient, utf8=utf8)}\r\n")
    fields.append(text.field("Action", report.kind.value))
    note = text.comment(report.reason)
    fields.append(text.field("Status", f"{report.status} ({note})" if note else str(report.status)))
    host = text.ascii_text(report.remote_host or "", 255).replace(" ", "")
    if report.reply is not None:
        if host:
            address = text.comment(report.remote_ip or "", 60)
            name = _mta_name(host)
            fields.append(text.field("Remote-MTA", f"dns; {name} ({address})" if address else f"dns; {name}"))
        fields.append(text.field("Diagnostic-Code", f"smtp; {text.diagnostic(report.reply)}"))
    if report.last_attempt is not None:
        fields.append(text.field("Last-Attempt-Date", date(report.last_attempt)))
    if report.kind is DsnKind.DELAYED and report.will_retry_until is not None:
        fields.append(text.field("Will-Retry-Until", date(report.will_retry_until)))
    return fields


def _returned(original: Original, utf8: bool) -> bytes | None:
    """The third part: the original whole where it was given and may travel so, else its header (DSN-19, DSN-20)."""
    content = None if original.requirement is Requirement.REQUIRED else original.content
    if content is not None:
        # message/rfc822 may only be 7bit here (RFC 3464 does not change RFC 2045 6.4), so its parts are re-encoded.
        seven = None if utf8 else _seven_bit(content)
        if seven is not None:
            return _part("message/rfc822", "Undelivered message", seven)
        if original.smtputf8:
            # message/global, unlike message/rfc822, may be encoded (RFC 6532 3.7).
            return _part("message/global", "Undelivered message", content)
    if not original.header:
        return None
    if utf8:
        return _part("message/global-headers", "Headers of the message", original.header)
    parameters = "" if original.header.isascii() else "; charset=utf-8"
    return _part("text/rfc822-headers", "Headers of the message", original.header, parameters=parameters)


def _seven_bit(content: bytes) -> bytes | None:
    """A message in 7-bit lines of ordinary length, its parts re-encoded where that takes it; None: it cannot be."""
    if is_seven_bit(content):
        return content
    with contextlib.suppress(Unconvertible):
        seven = reencode(content, Target.SEVEN_BIT, longest_line=LINE_LIMIT)
        if is_seven_bit(seven):
            return seven
    return None
