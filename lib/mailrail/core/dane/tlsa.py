"""TLSA records: read, judged usable or not, and thinned out by digest agility (RFC 6698 2, 7671 9, 7672 3.1)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, NamedTuple

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_der_public_key

from mailrail.core.dane.reading import UNREADABLE, without_warnings

MOST_RECORDS: Final = 200
"""Usable records of one host that count. A host has one for each key that it has or is about to have."""
MOST_SAID: Final = 5
"""Records of which it is said why they do not count."""
MOST_DATA: Final = 65_532
"""Octets of association data at most: RDATA has 65,535 with the three octets before it."""


class Usage(IntEnum):
    """What a record says of the certificate that it names (RFC 6698 2.1.1, RFC 7218 2.1)."""

    PKIX_TA = 0
    PKIX_EE = 1
    DANE_TA = 2
    """An issuer of the server's certificate, sent by the server or written out in the record."""
    DANE_EE = 3
    """The server's certificate."""


class Selector(IntEnum):
    """What of that certificate is compared (RFC 6698 2.1.2)."""

    CERTIFICATE = 0
    PUBLIC_KEY = 1


class Matching(IntEnum):
    """How it is written (RFC 6698 2.1.3)."""

    FULL = 0
    SHA256 = 1
    SHA512 = 2


STRENGTH: Final = (Matching.SHA512, Matching.SHA256)
"""Digests, the strongest first (RFC 7671 9)."""
_OCTETS: Final[dict[int, int]] = {Matching.SHA256: 32, Matching.SHA512: 64}


class TlsaRecord(NamedTuple):
    """One record as it was published; whatever its numbers say."""

    usage: int
    selector: int
    matching: int
    data: bytes

    @classmethod
    def from_wire(cls, rdata: bytes) -> "TlsaRecord":
        """From RDATA (RFC 6698 2.1). Raises ValueError."""
        if not 3 <= len(rdata) <= MOST_DATA + 3:
            raise ValueError(f"a TLSA record has 3 to {MOST_DATA + 3} octets, this one has {len(rdata)}")
        return cls(rdata[0], rdata[1], rdata[2], rdata[3:])

    @classmethod
    def from_text(cls, text: str) -> "TlsaRecord":
        """From `3 1 1 0123ABCD...`; the data may have blanks inside (RFC 6698 2.2). Raises ValueError."""
        words = text.split(None, 3)
        if len(words) < 3 or not all(word.isascii() and word.isdigit() and len(word) <= 3 for word in words[:3]):
            raise ValueError("a TLSA record begins with three numbers; write it as `3 1 1 HEX`")
        usage, selector, matching = map(int, words[:3])
        data = words[3] if len(words) == 4 else ""
        if max(usage, selector, matching) > 255 or len(data) > 4 * MOST_DATA:
            raise ValueError("the numbers of a TLSA record are at most 255, and its data has at most 65,532 octets")
        try:
            return cls.from_wire(bytes((usage, selector, matching)) + bytes.fromhex("".join(data.split())))
        except ValueError as error:
            raise ValueError(f"the data of a TLSA record is written in hexadecimal digits: {error}") from None

    def __str__(self) -> str:
        """As in a zone, the data cut short: for people."""
        data = self.data[:8].hex() + ("..." if len(self.data) > 8 else "")
        return f"{self.usage} {self.selector} {self.matching} {data}"


@dataclass(frozen=True, slots=True)
class JudgedRecords:
    """Which records of a host count."""

    usable: tuple[TlsaRecord, ...]
    """Those that a certificate may match: authentication is a must if there is one (DANE-14). In one order, whatever
    order they came in. Empty: TLS is a must, authentication is not (DANE-15)."""
    ignored: tuple[str, ...]
    """Why others do not count, in words; the first of them."""


def judge(records: Iterable[TlsaRecord], strength: Sequence[int] = STRENGTH) -> JudgedRecords:
    """Which of these records, all of one host, count. `strength`: matching types, the strongest first."""
    ignored: list[str] = []
    usable: list[TlsaRecord] = []
    for record in sorted(set(records)):
        why = why_unusable(record)
        if why is None:
            usable.append(record)
        else:
            ignored.append(f"{record}: {why}")
    agile = _strongest(usable, strength)
    # DANE-18: after what is unusable has gone; a malformed digest must not displace a good one.
    ignored += [f"{each}: only the strongest digest of its kind counts" for each in usable if each not in agile]
    if len(agile) > MOST_RECORDS:
        ignored.append(f"{len(agile) - MOST_RECORDS} records: only {MOST_RECORDS} are looked at")
    return JudgedRecords(tuple(agile[:MOST_RECORDS]), tuple(ignored[:MOST_SAID]))


def why_unusable(record: TlsaRecord) -> str | None:
    """Why a record cannot be used for SMTP, in words (DANE-09); None: it can."""
    if record.usage in (Usage.PKIX_TA, Usage.PKIX_EE):
        # RFC 7672 3.1.3: no set of public authorities is agreed on among mail servers.
        return f"certificate usage {record.usage} is not used for SMTP"
    if record.usage not in (Usage.DANE_TA, Usage.DANE_EE):
        return f"certificate usage {record.usage} is not known"
    if record.selector not in (Selector.CERTIFICATE, Selector.PUBLIC_KEY):
        return f"selector {record.selector} is not known"
    if record.matching == Matching.FULL:
        return _malformed(record)
    octets = _OCTETS.get(record.matching)
    if octets is None:
        return f"matching type {record.matching} is not known"
    if len(record.data) != octets:
        return f"a digest of matching type {record.matching} has {octets} octets, this one has {len(record.data)}"
    return None


def _malformed(record: TlsaRecord) -> str | None:
    try:
        with without_warnings():
            if record.selector == Selector.CERTIFICATE:
                x509.load_der_x509_certificate(record.data)
            else:
                load_der_public_key(record.data)
    except UnsupportedAlgorithm:
        return None  # well formed, of a kind that we cannot compute with: it is compared octet by octet
    except UNREADABLE:
        kind = "certificate" if record.selector == Selector.CERTIFICATE else "public key"
        return f"its data is not a {kind} in DER"
    return None


def _strongest(usable: Sequence[TlsaRecord], strength: Sequence[int]) -> list[TlsaRecord]:
    ranks = {matching: rank for rank, matching in enumerate(strength)}
    best: dict[tuple[int, int], int] = {}
    for each in usable:
        if each.matching != Matching.FULL:
            rank = ranks.get(each.matching, len(ranks))
            best[each[:2]] = min(rank, best.get(each[:2], rank))
    return [
        each
        for each in usable
        if each.matching == Matching.FULL or ranks.get(each.matching, len(ranks)) == best[each[:2]]
    ]
