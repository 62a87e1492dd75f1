"""What is asked of the DNS, what it answered, and how a record is judged by that."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, Final

from mailrail.core.lookups import NO_DATA, DnsOutcome, DnsQuestion, Kind, LookupAnswer

_VALUES_SHOWN: Final = 200
_ASKED: Final = {"AAAA": "A"}
"""What is asked for both families at once."""


class DnsReason(StrEnum):
    """Reasons of DNSConfigured. Closed, like those of the other conditions."""

    CONFIGURED = "Configured"
    """Every record that the domain needs is there."""
    RECORDS_MISSING = "RecordsMissing"
    """A record is missing or says something else; the message and `dnsRecords` say which."""
    LOOKUP_FAILED = "LookupFailed"
    """The resolver gave no answer for a record; nothing is known to be wrong."""
    PENDING = "Pending"
    """The domain was not looked up yet, or its MTA-STS policy is not served yet; the message says which."""
    NOT_CHECKED = "NotChecked"
    """The check is switched off, or the domain is not attached to a gateway."""


class RecordState(StrEnum):
    """Of one record."""

    MATCH = "Match"
    MISSING = "Missing"
    MISMATCH = "Mismatch"
    UNKNOWN = "Unknown"


@dataclass(frozen=True, slots=True, order=True)
class Question:
    """One lookup: TXT, MX, PTR (name is the address) or A (means A and AAAA)."""

    type: str
    name: str


@dataclass(frozen=True, slots=True)
class DnsAnswer:
    """What a lookup gave: texts (TXT joined; MX as `preference host`; PTR names; addresses). `failed`: no answer."""

    values: tuple[str, ...] = ()
    failed: bool = False


@dataclass(frozen=True, slots=True)
class Record:
    """A record that is needed, and how it fares."""

    purpose: str
    type: str
    name: str
    value: str
    state: RecordState
    message: str = ""
    held_back: bool = False
    """It is not known because it waits for our own services, not for the DNS: it is told once they are ready."""
    optional: bool = False
    """Nothing is wrong where it is missing."""

    @property
    def wanting(self) -> bool:
        """Whether somebody has to do something about it."""
        return self.state is RecordState.MISMATCH or (self.state is RecordState.MISSING and not self.optional)

    def as_status(self) -> dict[str, Any]:
        """As `status.dnsRecords` has it."""
        row = {"purpose": self.purpose, "type": self.type, "name": self.name, "value": self.value}
        row["state"] = self.state.value
        return row | ({"message": self.message[:1024]} if self.message else {})


@dataclass(frozen=True, slots=True)
class DnsVerdict:
    """The condition and the records behind it."""

    status: str
    reason: DnsReason
    message: str
    records: tuple[Record, ...] = ()

    @classmethod
    def pending(cls) -> "DnsVerdict":
        """Before the first look."""
        return cls("Unknown", DnsReason.PENDING, "DNS was not looked up yet")

    @classmethod
    def not_checked(cls, why: str) -> "DnsVerdict":
        """Nobody looks."""
        return cls("Unknown", DnsReason.NOT_CHECKED, why)


class Ask(Exception):
    """An answer is needed that is not there yet."""


class DnsAnswers:
    """The answers so far; what is asked and not there is collected, so that one round asks for all of it."""

    def __init__(self, known: Mapping[Question, DnsAnswer]) -> None:
        self._known = known
        self.open: set[Question] = set()

    def of(self, kind: str, name: str) -> DnsAnswer:
        """Raises Ask."""
        question = Question(kind, name)
        found = self._known.get(question)
        if found is None:
            self.open.add(question)
            raise Ask
        return found

    def of_lookups(self, asked: Sequence[DnsQuestion], client: IPv4Address | IPv6Address) -> tuple[LookupAnswer, ...]:
        """The answers to what a decision about `client` asks at once; by PTR it asks for the names of that address.
        Raises Ask for all that is not there."""
        questions = [
            Question("PTR", str(client))
            if each.kind == "PTR"
            else Question(_ASKED.get(each.kind, each.kind), each.name)
            for each in asked
        ]
        missing = [question for question in questions if question not in self._known]
        if missing:
            self.open.update(missing)
            raise Ask
        return tuple(_lookup(each.kind, self._known[question]) for each, question in zip(asked, questions, strict=True))


def _lookup(kind: Kind, answer: DnsAnswer) -> LookupAnswer:
    """An answer as decisions of the core take it. Whether a name without such records exists, it does not say."""
    if answer.failed:
        return LookupAnswer(DnsOutcome.TROUBLE)
    records: tuple[Any, ...]
    match kind:
        case "TXT":
            records = tuple(value.encode("utf-8", "replace") for value in answer.values)
        case "MX":
            rows = (value.split() for value in answer.values)
            records = tuple((0, row[-1].rstrip(".").casefold()) for row in rows if row)
        case "PTR":
            records = tuple(value.rstrip(".").casefold() for value in answer.values)
        case _:
            version = 4 if kind == "A" else 6
            records = tuple(a for a in map(ip_address, answer.values) if a.version == version)
    return LookupAnswer(DnsOutcome.FOUND, records) if records else NO_DATA


def judge(purpose: str, kind: str, name: str, value: str, answer: DnsAnswer, there: bool, wrong: str) -> Record:
    """A record that is right, wrong, missing, or not known."""
    if answer.failed:
        return Record(purpose, kind, name, value, RecordState.UNKNOWN, "the lookup failed")
    if not answer.values:
        return Record(purpose, kind, name, value, RecordState.MISSING, "there is no such record")
    return Record(
        purpose, kind, name, value, RecordState.MATCH if there else RecordState.MISMATCH, "" if there else wrong
    )


def tagged(answer: DnsAnswer, version: str) -> DnsAnswer:
    """Only the TXT records of one purpose."""
    wanted = version.casefold()
    values = tuple(
        v for v in answer.values if v.casefold() == wanted or v.casefold().startswith((f"{wanted} ", f"{wanted};"))
    )
    return DnsAnswer(values, answer.failed)


def tags(text: str) -> dict[str, str]:
    """A `tag=value; tag=value` list (RFC 6376 3.2), tags in lower case."""
    pairs = (part.partition("=") for part in text.split(";"))
    return {name.strip().casefold(): value.strip() for name, equals, value in pairs if equals}


def shown(values: Iterable[str]) -> str:
    """Values of strangers in words for people, printable and bounded."""
    text = "".join(c if c.isprintable() else "?" for c in ", ".join(values))
    return text if len(text) <= _VALUES_SHOWN else text[: _VALUES_SHOWN - 1] + "…"
