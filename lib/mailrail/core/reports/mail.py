"""The mail that carries a report of ours: a text for people and the report as a file (RFC 9990 3.5.1, RFC 8460 5.3).

Each address gets a mail of its own, so that no receiver sees the others (reference H40). It is 7-bit with short lines
throughout, as what is to be signed must be; only an address beyond ASCII is not.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from mailrail.core.dsn import text
from mailrail.core.message.header import date
from mailrail.core.reports.addresses import mailto
from mailrail.core.reports.incoming import ReportKind
from mailrail.core.reports.names import ReportName
from mailrail.core.smtp.address import Address

_ABOUT: Final = {
    ReportKind.DMARC: "This is a DMARC aggregate report about mail that claims to come from {domain}.",
    ReportKind.TLS: "This is a report on TLS connections for mail to {domain}.",
}


@dataclass(frozen=True, slots=True)
class ReportMail:
    """Ready to be signed and queued."""

    recipient: Address
    content: bytes
    smtputf8: bool
    """An address is beyond ASCII."""


def report_mail(
    name: ReportName, packed: bytes, sender: Address, recipient: Address, *, message_id: str, now: float
) -> ReportMail:
    """One mail with a report that gzip packed. `message_id` comes with its brackets, `now` in Unix seconds.

    TRPT-13a: the domain of the sender is the submitter, of the name too, or ValueError is raised.
    """
    if sender.domain != name.submitter:
        raise ValueError(f"the report is of {name.submitter}, and its sender of {sender.domain}: they must be the same")
    boundary = f"report-{name.unique}"  # it has a hyphen, which is not in base64, and the text is ours
    tls = name.kind is ReportKind.TLS
    kind = 'multipart/report; report-type="tlsrpt"' if tls else "multipart/mixed"
    fields = [
        text.field("From", f"<{sender}>"),
        f"To: <{recipient}>\r\n",  # a parsed address has no line ends
        text.field("Subject", name.subject),
        text.field("Date", date(now)),
        f"Message-ID: {message_id}\r\n",
        "Auto-Submitted: auto-generated\r\n",
    ]
    if tls:
        fields += [
            text.field("TLS-Report-Domain", name.domain),
            text.field("TLS-Report-Submitter", name.submitter),
            # RTLS-26, TRPT-15: a report on broken TLS must not wait for TLS that works.
            "TLS-Required: No\r\n",
        ]
    fields += [
        "MIME-Version: 1.0\r\n",
        f'Content-Type: {kind};\r\n boundary="{boundary}"\r\n',
        "Content-Transfer-Encoding: 7bit\r\n",
    ]
    people = "\r\n".join(_people(name)).encode() + b"\r\n"
    # DAGG-08, TRPT-11a, TRPT-12: gzip in base64, as an attachment.
    media = "application/tlsrpt+gzip" if tls else "application/gzip"
    parts = (
        b"Content-Type: text/plain; charset=us-ascii\r\nContent-Transfer-Encoding: 7bit\r\n\r\n" + people,
        f'Content-Type: {media};\r\n name="{name.file}"\r\n'.encode()
        + f'Content-Disposition: attachment;\r\n filename="{name.file}"\r\n'.encode()
        + b"Content-Transfer-Encoding: base64\r\n\r\n"
        + text.base64_lines(packed),
    )
    mark = b"--" + boundary.encode()
    body = b"".join(b"\r\n" + mark + b"\r\n" + part for part in parts) + b"\r\n" + mark + b"--\r\n"
    return ReportMail(recipient, "".join(fields).encode() + body, not f"{sender}{recipient}".isascii())


def too_large_mail(
    name: ReportName, packed: bytes, sender: Address, recipient: Address, *, message_id: str, now: float
) -> ReportMail:
    """A mail that says that the report is too large for an address, as RFC 7489 7.2.2 has it; parameters as above."""
    size = len(report_mail(name, packed, sender, recipient, message_id=message_id, now=now).content)
    fields = [
        text.field("From", f"<{sender}>"),
        f"To: <{recipient}>\r\n",
        text.field("Subject", f"DMARC aggregate reporting error report for {name.domain}"),
        text.field("Date", date(now)),
        f"Message-ID: {message_id}\r\n",
        "Auto-Submitted: auto-generated\r\n",
        "MIME-Version: 1.0\r\n",
        "Content-Type: text/plain; charset=us-ascii\r\n",
        "Content-Transfer-Encoding: 7bit\r\n",
    ]
    uri = mailto(recipient)
    lines = [
        f"Report-Date: {date(now)}",
        f"Report-Domain: {name.domain}",
        f"Report-ID: {name.id}",
        f"Report-Size: {size}",
        f"Submitter: {name.submitter}",
        f"Submitting-URI: {uri}",
    ]
    body = "".join(f"{line}\r\n" for line in lines)
    return ReportMail(recipient, f"{''.join(fields)}\r\n{body}".encode(), not f"{sender}{recipient}".isascii())


def _people(name: ReportName) -> list[str]:
    return [
        *text.wrap(_ABOUT[name.kind].format(domain=name.domain)),
        "",
        f"Submitter: {name.submitter}",
        f"Report-ID: {name.id}",
        f"Period: {_utc(name.period.begin)} to {_utc(name.period.end)} UTC",
        "",
        *text.wrap("The report itself is the attached file, in a form for programs."),
    ]


def _utc(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")  # reference H7: never local time
