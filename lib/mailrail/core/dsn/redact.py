"""A notification without what it returns of the message that it is about (RFC 8689 5, RFC 6522 3)."""

import re

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
    # RFC 2046 5.1.1: a delimiter is at the beginning of a line, and its CRLF before it is part of it.
    delimiters = list(re.finditer(rb"\r\n%b(--)?[ \t]*(?=\r\n|\Z)" % re.escape(mark), content[end:]))
    closing = next((at for at, found in enumerate(delimiters) if found[1]), None)
    if closing is None or closing < 2:  # both parts that a report must have
        return None
    kept = content[: end + delimiters[2].start()]
    return kept + b"\r\n" + mark + b"--\r\n"
