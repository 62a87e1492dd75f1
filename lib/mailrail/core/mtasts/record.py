"""The TXT record that says that a domain has an MTA-STS policy, and the names that follow from the domain.

RFC 8461 3.1 and 3.3, standards STS-01, STS-02, STS-03, STS-09a.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from mailrail.core.shown import shown

RECORD_LABEL: Final = "_mta-sts"
POLICY_LABEL: Final = "mta-sts"
POLICY_PATH: Final = "/.well-known/mta-sts.txt"
_LONGEST_NAME: Final = 253  # octets of a name without its final dot (RFC 1035 3.1)
_RECORD_LIMIT: Final = 4096  # octets; the records of real domains have less than 100

_VERSION: Final = b"v=STSv1;"
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


@dataclass(frozen=True, slots=True)
class NoRecord:
    """The DNS has answered, and by its answer the domain has no policy."""

    reason: str
    faulty: bool = False
    """Somebody meant to publish one."""


def policy_domain(next_hop: str) -> str | None:
    """The domain whose policy counts for mail to `next_hop`: the recipient's domain, or the domain of a smarthost.

    It is the name as it was given: no parent is asked, and no alias is followed (STS-09a). None for an address literal,
    and for a name that is too long to have a policy host.
    """
    name = next_hop.lower().removesuffix(".")
    if not name or name.startswith("[") or len(RECORD_LABEL) + 1 + len(name) > _LONGEST_NAME:
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
    joined = [b"".join(strings) for strings in answer]
    ours = [text for text in joined if text.startswith(_VERSION)]
    if not ours:
        faulty = any(text[: len(_MEANT)].lower() == _MEANT for text in joined)
        return NoRecord("no TXT record starts with v=STSv1;" if joined else "there is no TXT record", faulty)
    if len(ours) > 1:
        return _faulty(f"{len(ours)} TXT records start with v=STSv1; where one may: they count as none")
    return _read(ours[0])


def _read(text: bytes) -> StsRecord | NoRecord:
    if len(text) > _RECORD_LIMIT:
        return _faulty(f"the record has {len(text)} octets; more than {_RECORD_LIMIT} are not read")
    # STS-02: fields in any order after the version, unknown ones are passed over, of two with a name the first counts.
    fields: dict[bytes, bytes] = {}
    parts = [part.strip(b" \t") for part in text[len(_VERSION) :].split(b";")]
    if not parts[-1]:
        parts.pop()  # a semicolon may end the record
    for part in parts:
        name, equals, value = part.partition(b"=")
        if not equals or not _NAME.fullmatch(name) or not _VALUE.fullmatch(value):
            return _faulty(f"the record is not valid: {shown(part)} is no field of the form name=value")
        fields.setdefault(name, value)
    found = fields.get(b"id")
    if found is None:
        return _faulty("the record is not valid: it has no id")
    if not _ID.fullmatch(found):
        return _faulty(f"the record is not valid: its id {shown(found)} is not 1 to 32 letters and digits")
    return StsRecord(found.decode("ascii"))


def _faulty(reason: str) -> NoRecord:
    return NoRecord(reason, faulty=True)
