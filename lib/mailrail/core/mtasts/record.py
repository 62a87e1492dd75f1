"""The TXT record that says that a domain has an MTA-STS policy, and the names that follow from the domain.

RFC 8461 3.1 and 3.3, standards STS-01, STS-02, STS-03, STS-09a.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from mailrail.core.lookups import NAME_LIMIT
from mailrail.core.policy_record import NoRecord, faulty, only_record
from mailrail.core.shown import shown_octets

RECORD_LABEL: Final = "_mta-sts"
POLICY_LABEL: Final = "mta-sts"
POLICY_PATH: Final = "/.well-known/mta-sts.txt"

_VERSION = re.compile(rb"v=STSv1;")
_MEANT: Final = b"v=sts"
_ID = re.compile(rb"[A-Za-z0-9]{1,32}")
_NAME = re.compile(rb"[A-Za-z0-9][A-Za-z0-9_.-]{0,31}")
_VALUE = re.compile(rb"[!-:<>-~]+")  # no "=", ";", blank or control character


@dataclass(frozen=True, slots=True)
class StsRecord:
    """The one valid record of a domain."""

    id: str
    """1 to 32 letters and digits; another one means that the policy may have changed."""

    def __str__(self) -> str:
        """The text of the record, as it is put into the DNS."""
        return f"v=STSv1; id={self.id};"


def policy_domain(next_hop: str) -> str | None:
    """The domain whose policy counts for mail to `next_hop`: the recipient's domain, or the domain of a smarthost.

    It is the name as it was given: no parent is asked, and no alias is followed (STS-09a). None for an address literal,
    and for a name that is too long to have a policy host.
    """
    name = next_hop.lower().removesuffix(".")
    if not name or name.startswith("[") or len(RECORD_LABEL) + 1 + len(name) > NAME_LIMIT:
        return None
    return name


def record_name(domain: str) -> str:
    """Where the TXT record of a policy domain is."""
    return f"{RECORD_LABEL}.{domain}"


def policy_host(domain: str) -> str:
    """The host that serves the policy of a policy domain, and whose name its certificate must carry."""
    return f"{POLICY_LABEL}.{domain}"


def read_records(answer: Sequence[Sequence[bytes]]) -> StsRecord | NoRecord:
    """What the TXT records of `record_name` say: for each record its strings, in any order of records.

    STS-01: the strings of a record are joined without blanks; records that do not start with `v=STSv1;` are those of
    others; exactly one must remain, and be valid. Never raises.
    """
    found = only_record(answer, _VERSION, "v=STSv1;", _MEANT)
    return found if isinstance(found, NoRecord) else _read(found)


def _read(text: bytes) -> StsRecord | NoRecord:
    # STS-02: fields in any order after the version, unknown ones are passed over, of two with a name the first counts.
    fields: dict[bytes, bytes] = {}
    parts = [part.strip(b" \t") for part in text.split(b";")[1:]]
    if not parts[-1]:
        parts.pop()  # a semicolon may end the record
    for part in parts:
        name, equals, value = part.partition(b"=")
        if not equals or not _NAME.fullmatch(name) or not _VALUE.fullmatch(value):
            return faulty(f"the record is not valid: {shown_octets(part)} is no field of the form name=value")
        fields.setdefault(name, value)
    found = fields.get(b"id")
    if found is None:
        return faulty("the record is not valid: it has no id")
    if not _ID.fullmatch(found):
        return faulty(f"the record is not valid: its id {shown_octets(found)} is not 1 to 32 letters and digits")
    return StsRecord(found.decode("ascii"))
