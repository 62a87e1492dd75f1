"""The TXT record that asks for TLS reports: `_smtp._tls.<policy domain>` (RFC 8460 3, TRPT-01)."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from mailrail.core.lookups import NAME_LIMIT
from mailrail.core.policy_record import NoRecord, faulty, only_record
from mailrail.core.reports.addresses import Destinations, destinations
from mailrail.core.shown import shown_octets

RECORD_LABELS: Final = "_smtp._tls"
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
    return name if len(name) <= NAME_LIMIT else None


def read_records(answer: Sequence[Sequence[bytes]]) -> TlsRptRecord | NoRecord:
    """What the TXT records of `record_name` say: for each record its strings, in any order of records. Never raises.

    TRPT-01: the strings of a record are joined without blanks; records that do not start with `v=TLSRPTv1;` are those
    of others; exactly one must remain. It has a `rua`; fields that are not known are passed over, broken ones too.
    """
    found = only_record(answer, _VERSION, "v=TLSRPTv1;", _MEANT)
    return found if isinstance(found, NoRecord) else _read(found)


def _read(text: bytes) -> TlsRptRecord | NoRecord:
    for part in text.split(b";")[1:]:
        name, equals, value = part.partition(b"=")
        if not equals or name.strip(b" \t") != b"rua":
            continue
        try:
            uris = value.decode("ascii").split(",")
        except UnicodeDecodeError:
            return faulty(f"its rua is not ASCII: {shown_octets(value)}")
        found = destinations(uris, post=True)
        if not found.found:
            why = found.skipped[0]
            return faulty(f"its rua has no address that a report can be sent to: {why.uri}: {why.reason}")
        return TlsRptRecord(found)
    return faulty("the record is not valid: it has no rua")
