"""The TXT record that asks for TLS reports: `_smtp._tls.<policy domain>` (RFC 8460 3, TRPT-01)."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from mailrail.core.mtasts.record import NoRecord
from mailrail.core.reports.addresses import Destinations, destinations
from mailrail.core.shown import shown

RECORD_LABELS: Final = "_smtp._tls"
_LONGEST_NAME: Final = 253  # octets of a name without its final dot (RFC 1035 3.1)
_RECORD_LIMIT: Final = 4096  # octets
_VERSION = re.compile(rb"v=TLSRPTv1[ \t]*;")
_MEANT: Final = b"v=tlsrpt"


@dataclass(frozen=True, slots=True)
class TlsRptRecord:
    """The one valid record of a domain."""

    destinations: Destinations
    """Where its reports go; perhaps nowhere that we can reach."""


def record_name(domain: str) -> str | None:
    """Where the TXT record of a policy domain is; None: its name would be too long."""
    name = f"{RECORD_LABELS}.{domain}"
    return name if len(name) <= _LONGEST_NAME else None


def read_records(answer: Sequence[Sequence[bytes]]) -> TlsRptRecord | NoRecord:
    """What the TXT records of `record_name` say: for each record its strings, in any order of records. Never raises.

    TRPT-01: the strings of a record are joined without blanks; records that do not start with `v=TLSRPTv1;` are those
    of others; exactly one must remain. It has a `rua`; fields that are not known are passed over, broken ones too.
    """
    joined = [b"".join(strings) for strings in answer]
    ours = [text for text in joined if _VERSION.match(text)]
    if not ours:
        faulty = any(text[: len(_MEANT)].lower() == _MEANT for text in joined)
        return NoRecord("no TXT record starts with v=TLSRPTv1;" if joined else "there is no TXT record", faulty)
    if len(ours) > 1:
        return _faulty(f"{len(ours)} TXT records start with v=TLSRPTv1; where one may: they count as none")
    return _read(ours[0])


def _read(text: bytes) -> TlsRptRecord | NoRecord:
    if len(text) > _RECORD_LIMIT:
        return _faulty(f"the record has {len(text)} octets; more than {_RECORD_LIMIT} are not read")
    for part in text.split(b";")[1:]:
        name, equals, value = part.partition(b"=")
        if not equals or name.strip(b" \t") != b"rua":
            continue
        try:
            uris = value.decode("ascii").split(",")
        except UnicodeDecodeError:
            return _faulty(f"its rua is not ASCII: {shown(value)}")
        found = destinations(uris, post=True)
        if not found.found:
            why = found.skipped[0]
            return _faulty(f"its rua has no address that a report can be sent to: {why.uri}: {why.reason}")
        return TlsRptRecord(found)
    return _faulty("the record is not valid: it has no rua")


def _faulty(reason: str) -> NoRecord:
    return NoRecord(reason, faulty=True)
