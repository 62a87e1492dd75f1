"""Whether a message comes back to where it was delivered before (RFC 9228)."""

import re
from collections.abc import Collection

from mailrail.core.message.header import Header

_BY = re.compile(r"\bby\s+([^\s;()]+)", re.IGNORECASE)


def was_delivered(header: Header, address: str, hostnames: Collection[str]) -> bool:
    """Whether this message was delivered to `address` by one of `hostnames` before: it is in a loop (OPT-06b).

    A Delivered-To field with the address says so if the Received field below it is ours: others may write the same
    address. Mail that somebody resent, with Resent fields on top, begins a new journey.
    """
    if not header.has(b"delivered-to"):
        return False
    ours = {name.lower() for name in hostnames}
    delivered = False
    for field in header.fields:
        if field.name.startswith(b"resent-"):
            return False
        if field.name == b"delivered-to":
            delivered = delivered or field.text == address
        elif field.name == b"received" and delivered:
            by = _BY.search(field.text)
            if by is not None and by[1].lower() in ours:
                return True
            delivered = False
    return False
