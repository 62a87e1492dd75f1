"""A notification without what it returns of the message that it is about (RFC 8689 5, RFC 6522 3)."""

import re
from itertools import islice

from mailrail.core.message.content_type import parse_content_type
from mailrail.core.message.header import Header, header_end

CONTENT_LIMIT = 1024 * 1024
"""Octets of a report that is read for this. One on a message that required TLS has its header alone (RTLS-20)."""
_FOLD = re.compile(r"\r?\n(?=[ \t])")


def redact(content: bytes) -> bytes | None:
    """The report without its third part, the message or header that it returns. None: it is no report, its parts cannot
    be told apart for certain, or it is larger than CONTENT_LIMIT.

    The parts before it, which say in words and in fields what became of which recipient, stay as they are.
    """
    end = header_end(content) if len(content) <= CONTENT_LIMIT else -1
    if end < 0:
        return None
    header = Header(content[:end])
    fields = header.named(b"content-type", 2)
    if len(header.block) != end or len(fields) != 1:
        return None
    kind = parse_content_type(_FOLD.sub("", fields[0].value.decode("latin-1")))
    if kind is None or kind.kind != "multipart/report" or len(kind.boundaries) != 1:
        return None
    mark = b"--" + kind.boundaries[0].encode("latin-1")
    body = content[end:]
    closing = _delimiter(mark + b"--").search(body)
    if closing is None:
        return None
    # There may be very many, and three say all.
    parts = [found.start() for found in islice(_delimiter(mark).finditer(body, 0, closing.start()), 3)]
    if len(parts) < 2:  # those that a report must have
        return None
    kept = body[: parts[2] if len(parts) > 2 else closing.start()]
    return content[:end] + kept + b"\r\n" + mark + b"--\r\n"


def _delimiter(mark: bytes) -> re.Pattern[bytes]:
    """RFC 2046 5.1.1: it is at the beginning of a line, and the CRLF before it is part of it."""
    return re.compile(rb"\r\n%b[ \t]*+(?=\r\n|\Z)" % re.escape(mark))
