"""The report that a mail carries: which of its parts, whatever it is called, and of which kind (DAGG-21).

Senders agree in little: the report is the message itself or a part of any depth; it is called application/zip,
application/gzip, x-gzip, octet-stream, text/xml or nothing at all; it is packed once, twice or not. So parts are judged
by their octets, and their names only say which to try first.
"""

import codecs
import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from mailrail.core.message.multipart import MessagePart, MultipartError, parts_of
from mailrail.core.reports.unpack import BOUNDS, Bounds, ReportError, is_packed, unpack

MAIL_LIMIT: Final = 20 * 1024 * 1024
"""Octets of a mail whose report is read: the largest packed report, in base64."""
_TRIED: Final = 5
"""Parts of a mail that are unpacked."""
_NAMED = re.compile(r"\.(xml|json|gz|gzip|zip)$", re.IGNORECASE)
_TYPES: Final = ("application/tlsrpt+gzip", "application/tlsrpt+json")
_LIKELY: Final = (
    *("application/zip", "application/gzip", "application/x-gzip", "application/x-zip-compressed", "application/x-zip"),
    *("application/xml", "text/xml", "application/json"),
)
_FAILURE: Final = "message/feedback-report"


class ReportKind(StrEnum):
    """What a report is about."""

    DMARC = "dmarc"
    """Aggregate, in XML (RFC 9990, RFC 7489)."""
    TLS = "tls"
    """In JSON (RFC 8460)."""


@dataclass(frozen=True, slots=True)
class CarriedReport:
    """A report before it is read."""

    kind: ReportKind
    octets: bytes
    """Unpacked."""
    name: str = ""
    """The file name that its sender gave; empty: none."""


def carried_report(mail: bytes, bounds: Bounds = BOUNDS) -> CarriedReport:
    """The report of a mail: the first part that is one. Raises ReportError, which says of the likeliest why not."""
    if len(mail) > MAIL_LIMIT:
        raise ReportError(f"the mail has {len(mail)} octets; reports in more than {MAIL_LIMIT} are not looked for")
    try:
        parts = list(parts_of(mail))
    except MultipartError as error:
        raise ReportError(str(error)) from None
    why: ReportError | None = None
    for part in _likely(parts):
        try:
            return plain_report(part.body, part.name, bounds)
        except ReportError as error:
            why = why or error
    if any(part.type.kind == _FAILURE for part in parts):
        raise ReportError("it is a failure report on a single message (RFC 9991), and no aggregate report")
    raise why or ReportError("no part of the mail holds a report: neither XML nor JSON, packed or not")


def plain_report(octets: bytes, name: str = "", bounds: Bounds = BOUNDS) -> CarriedReport:
    """A report that came by itself: as a file, or as the body of a POST. Raises ReportError."""
    plain = unpack(octets, bounds)
    begins = plain[:1024].removeprefix(codecs.BOM_UTF8).lstrip()
    if plain.startswith((codecs.BOM_UTF16_BE, codecs.BOM_UTF16_LE)):
        begins = plain[2:6].replace(b"\0", b"").lstrip()
    if begins.startswith(b"<"):
        return CarriedReport(ReportKind.DMARC, plain, name)
    if begins.startswith(b"{"):
        return CarriedReport(ReportKind.TLS, plain, name)
    raise ReportError("it is neither XML nor JSON" if begins else "it is empty")


def _likely(parts: Iterable[MessagePart]) -> list[MessagePart]:
    """Those that may be a report, the likeliest first."""
    ranked = sorted(((_rank(part), part) for part in parts), key=lambda each: each[0])
    return [part for rank, part in ranked if rank < _NEVER][:_TRIED]


_NEVER: Final = 9


def _rank(part: MessagePart) -> int:
    if part.type.kind in _TYPES:
        return 0
    if part.type.kind in _LIKELY or _NAMED.search(part.name):
        return 1
    if part.type.kind == _FAILURE or part.type.kind == "text/html":
        return _NEVER
    begins = part.body[:64].removeprefix(codecs.BOM_UTF8).lstrip()
    if is_packed(part.body) or begins.startswith((b"<?xml", b"<feedback", b'{"', b"{\n", b"{\r")):
        return 2
    return _NEVER
