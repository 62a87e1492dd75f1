"""Aggregate reports that others send us, read in both forms (RFC 9990 appendix A, RFC 7489 appendix C; DAGG-21).

A stranger wrote the XML. expat reads it piece by piece, and we keep what the form knows: no tree is built, no entity is
ever declared or fetched, depth, elements, records and the length of each text are bounded. Libraries on top of expat
that guard it (defusedxml) forbid entities alone, and lxml makes the whole tree first.

Real senders agree neither with the form nor with each other, and what they mean is plain all the same: elements in any
order, with or without the namespace, empty ones, blanks and decimals in numbers, `hardfail`, a root around the root, a
comment in between. That is read. A row with an address or a count that is none is dropped and counted, and the others
stay. What is not well-formed is refused with line and column: half of a report would be a wrong one.
"""

import codecs
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto
from ipaddress import ip_address
from typing import Final
from xml.parsers import expat

from mailrail.core.dmarc.report.build import NAMESPACE, AggregateForm
from mailrail.core.reports.clean import clean
from mailrail.core.reports.unpack import BOUNDS, ReportError
from mailrail.core.smtp.address import plain_ip

DEPTH_LIMIT: Final = 32
"""Elements within each other. The form has six; extensions may have more."""
ELEMENTS_LIMIT: Final = 3_000_000
RECORDS_LIMIT: Final = 100_000
TOKEN_LIMIT: Final = 256 * 1024
"""Octets of one tag, comment or the like."""
_RESULTS_LIMIT: Final = 100  # signatures of a record, and SPF results, and reasons
_ALL_RESULTS_LIMIT: Final = 500_000
"""Of a report. Each takes more memory than the octets that make it."""
_ERRORS_LIMIT: Final = 10
_WHY_LIMIT: Final = 10
_TEXT_KEPT: Final = 2000  # characters, before they are cleaned and cut
_PIECE: Final = 64 * 1024
_MOST: Final = 2**53 - 1
_LATEST: Final = 2**33
"""Unix seconds; the year 2242."""

_NUMBER = re.compile(r"([0-9]{1,18})(?:\.[0-9]*)?")
_ENCODING = re.compile(rb"""\A\s*<\?xml[^>]{0,100}?\sencoding\s*=\s*["']([A-Za-z0-9._-]{1,40})["']""")
_ENCODINGS: Final = frozenset(
    {"utf-8", "ascii", "iso8859-1", "iso8859-2", "iso8859-15", "cp1250", "cp1251", "cp1252", "koi8-r", "gb2312", "gbk"}
    | {"gb18030", "big5", "shift_jis", "euc_jp", "euc_kr", "iso2022_jp"}
)
"""By the names that Python gives them."""
_NOT_IN_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")
_SPF_WORDS: Final = {"hardfail": "fail", "unknown": "permerror", "error": "temperror"}
"""Words of older drafts of SPF."""
_METADATA: Final = ("org_name", "email", "extra_contact_info", "report_id", "generator")
_POLICY: Final = ("domain", "p", "sp", "np", "adkim", "aspf", "pct", "fo", "testing", "discovery_method")
_IDENTIFIERS: Final = ("header_from", "envelope_from", "envelope_to")
_NEW_FIELDS: Final = ("np", "testing", "discovery_method")


class _Part(Enum):
    """What an element is for."""

    HOLDER = auto()  # of others
    HEAD = auto()
    ERROR = auto()
    FIELD = auto()  # of a record
    DETAIL = auto()  # of a reason, signature or SPF result
    LISTED = auto()  # one of these
    RECORD = auto()


def _paths() -> dict[str, tuple[_Part, str]]:
    """The elements that are read, by where they stand below the root; others are passed over with what they hold."""
    held = {
        _Part.HEAD: (
            *("/version", *(f"/policy_published/{name}" for name in _POLICY)),
            *(f"/report_metadata/{name}" for name in _METADATA),
            *(f"/report_metadata/date_range/{name}" for name in ("begin", "end")),
        ),
        _Part.ERROR: ("/report_metadata/error",),
        _Part.FIELD: (
            *("/record/row/source_ip", "/record/row/count"),
            *(f"/record/row/policy_evaluated/{name}" for name in ("disposition", "dkim", "spf")),
            # The second name is that of an older draft.
            *(f"/record/{of}/{name}" for of in ("identifiers", "identities") for name in _IDENTIFIERS),
        ),
        _Part.LISTED: ("/record/row/policy_evaluated/reason", "/record/auth_results/dkim", "/record/auth_results/spf"),
        _Part.DETAIL: (
            *(f"/record/row/policy_evaluated/reason/{name}" for name in ("type", "comment")),
            *(f"/record/auth_results/dkim/{name}" for name in ("domain", "selector", "result", "human_result")),
            *(f"/record/auth_results/spf/{name}" for name in ("domain", "scope", "result", "human_result")),
        ),
        _Part.RECORD: ("/record",),
    }
    found = {path: (part, path.rpartition("/")[2]) for part, paths in held.items() for path in paths}
    holders = {path[:at] for path in found for at in range(len(path)) if path[at] == "/"} - {*found}
    return found | dict.fromkeys(holders, (_Part.HOLDER, ""))


_PATHS: Final = _paths()


@dataclass(frozen=True, slots=True)
class ReceivedPolicy:
    """`policy_published`, in the words of its sender; empty: it is not said."""

    domain: str
    p: str
    sp: str
    np: str
    adkim: str
    aspf: str
    pct: str
    fo: str
    testing: str
    discovery_method: str


@dataclass(frozen=True, slots=True)
class ReceivedSignature:
    """`dkim`."""

    domain: str
    selector: str
    result: str
    human: str


@dataclass(frozen=True, slots=True)
class ReceivedSpf:
    """`spf`."""

    domain: str
    scope: str
    result: str
    """A word of RFC 8601, or another that the sender has."""
    human: str


@dataclass(frozen=True, slots=True)
class ReceivedReason:
    """`reason`."""

    type: str
    comment: str


@dataclass(frozen=True, slots=True)
class ReceivedRecord:
    """`record`."""

    source_ip: str
    """In its one spelling."""
    count: int
    disposition: str
    dkim: str
    """`pass` or `fail`, aligned; empty: it is not said."""
    spf: str
    reasons: tuple[ReceivedReason, ...]
    header_from: str
    envelope_from: str
    envelope_to: str
    signatures: tuple[ReceivedSignature, ...]
    spf_results: tuple[ReceivedSpf, ...]


@dataclass(frozen=True, slots=True)
class ReceivedAggregate:
    """A report that somebody sent."""

    form: AggregateForm
    """By its namespace, or by what only the newer form has."""
    organization: str
    """Never empty: without a name it is the domain of the address."""
    email: str
    extra_contact: str
    id: str
    begin: int
    """Unix seconds."""
    end: int
    errors: tuple[str, ...]
    generator: str
    policy: ReceivedPolicy
    records: tuple[ReceivedRecord, ...]
    rejected: int
    """Records that could not be read."""
    why: tuple[str, ...]
    """Of the first of them, in words."""

    @property
    def messages(self) -> int:
        """The sum of the counts."""
        return sum(record.count for record in self.records)

    @property
    def identity(self) -> tuple[str, str, str]:
        """Who reports, about which domain, under which id: a report with the same is the same report. An id alone is
        unique for its sender only."""
        return self.organization.lower(), self.policy.domain, self.id


def read_aggregate(octets: bytes) -> ReceivedAggregate:
    """A report in XML, unpacked. Raises ReportError, and nothing else."""
    if len(octets) > BOUNDS.unpacked:
        raise ReportError(f"it has {len(octets)} octets; reports of more than {BOUNDS.unpacked} are not read")
    document = _Document()
    # What the declaration says was heeded here, and expat is given UTF-8.
    parser = expat.ParserCreate("utf-8", " ")
    parser.buffer_text = True
    parser.StartElementHandler = document.start
    parser.EndElementHandler = document.end
    parser.CharacterDataHandler = document.text
    parser.StartDoctypeDeclHandler = document.doctype
    decoder = _decoder(octets)
    fed = 0
    try:
        for at in range(0, len(octets), _PIECE):
            text = decoder.decode(octets[at : at + _PIECE], at + _PIECE >= len(octets))
            piece = _NOT_IN_XML.sub(" ", text.lstrip() if not fed else text).encode()
            parser.Parse(piece, False)
            fed += len(piece)
            if fed - parser.CurrentByteIndex > TOKEN_LIMIT + _PIECE:
                raise ReportError(f"a tag or comment of it has more than {TOKEN_LIMIT} octets")
        parser.Parse(b"", True)
    except _Read:
        pass
    except expat.ExpatError as error:
        what = expat.ErrorString(error.code)
        raise ReportError(
            f"it is not well-formed XML: {what}, in line {error.lineno}, column {error.offset + 1}"
        ) from None
    return document.report()


def _decoder(octets: bytes) -> codecs.IncrementalDecoder:
    """By the byte order mark, else by the declaration, else UTF-8. What is not of the encoding becomes U+FFFD."""
    name = "utf-8-sig"
    if octets.startswith((codecs.BOM_UTF16_BE, codecs.BOM_UTF16_LE)):
        name = "utf-16"
    elif (found := _ENCODING.match(octets)) is not None:
        try:
            named = codecs.lookup(found[1].decode()).name
        except LookupError:
            named = ""
        if named not in _ENCODINGS:
            raise ReportError(f"its encoding {found[1].decode()} is not read; reports are in UTF-8")
        name = "utf-8-sig" if named == "utf-8" else named
    return codecs.getincrementaldecoder(name)("replace")


class _Read(Exception):
    """The report is complete."""


class _Document:
    """What the elements so far said."""

    def __init__(self) -> None:
        self._depth = 0
        self._elements = 0
        self._root = ""
        self._around = 0  # elements around the root
        self._namespace: str | None = None  # of the root; None: it has not begun
        self._foreign = 0  # depth within an element that is not ours
        self._path = ""  # below the root
        self._text: list[str] = []
        self._kept = 0
        self._head: dict[str, str] = {}
        self._errors: list[str] = []
        self._record: dict[str, str] = {}
        self._within: dict[str, str] = {}
        """The reason, signature or SPF result that is open."""
        self._lists: dict[str, list[dict[str, str]]] = {}
        self._records: list[ReceivedRecord] = []
        self._results = 0
        self._rejected = 0
        self._why: list[str] = []
        self._same: dict[str, str] = {}

    # --- what the parser calls ---

    def doctype(self, name: str, system: str | None, public: str | None, internal: int) -> None:
        if internal:
            raise ReportError("it declares a document type of its own, and with it entities: a report has none")

    def start(self, name: str, attributes: Mapping[str, str]) -> None:
        self._depth += 1
        self._elements += 1
        if self._depth > DEPTH_LIMIT:
            raise ReportError(f"its elements are nested more than {DEPTH_LIMIT} deep")
        if self._elements > ELEMENTS_LIMIT:
            raise ReportError(f"it has more than {ELEMENTS_LIMIT} elements")
        namespace, _, local = name.rpartition(" ")
        if self._namespace is None:
            self._root = self._root or local
            if local == "feedback" and self._depth <= 2:  # one sender leaves an xs:schema open around it
                self._namespace, self._around = namespace, self._depth
            return
        # RFC 7489's form has a namespace for the root, and none for what is within.
        if self._foreign or namespace not in (self._namespace, ""):
            self._foreign += 1
            return
        path = f"{self._path}/{local}"
        if path not in _PATHS:
            self._foreign = 1
            return
        self._path = path
        self._text.clear()
        self._kept = 0

    def text(self, data: str) -> None:
        if not self._foreign and self._kept < _TEXT_KEPT:
            self._text.append(data[: _TEXT_KEPT - self._kept])
            self._kept += len(data)

    def end(self, name: str) -> None:
        self._depth -= 1
        if self._namespace is None:
            return
        if self._foreign:
            self._foreign -= 1
            return
        if self._depth < self._around:
            raise _Read
        part, key = _PATHS[self._path]
        self._path = self._path.rpartition("/")[0]
        self._closed(part, key)
        self._text.clear()

    # --- what it means ---

    def _closed(self, part: _Part, key: str) -> None:
        """An element has ended. Of two with a name the first counts."""
        if part is _Part.FIELD:
            self._record.setdefault(key, self._said())
        elif part is _Part.DETAIL:
            self._within.setdefault(key, self._said())
        elif part is _Part.LISTED:
            found = self._lists.setdefault(key, [])
            if len(found) < _RESULTS_LIMIT:
                found.append(self._within)
            self._within = {}
        elif part is _Part.RECORD:
            self._end_record()
        elif part is _Part.HEAD:
            self._head.setdefault(key, self._said())
        elif part is _Part.ERROR and (text := self._said()) and len(self._errors) < _ERRORS_LIMIT:
            self._errors.append(text)

    def _said(self) -> str:
        """What the element that ends now says."""
        return self._one(clean("".join(self._text)))

    def _one(self, text: str) -> str:
        """The same object for equal texts: most rows repeat them."""
        return self._same.setdefault(text, text)

    def _end_record(self) -> None:
        record, lists = self._record, self._lists
        self._record, self._lists, self._within = {}, {}, {}
        try:
            if len(self._records) >= RECORDS_LIMIT:
                raise ReportError(f"it has more than {RECORDS_LIMIT} records; the others are not read")
            self._results += sum(map(len, lists.values()))
            if self._results > _ALL_RESULTS_LIMIT:
                raise ReportError(f"it has more than {_ALL_RESULTS_LIMIT} results; records beyond them are not read")
            self._records.append(self._read_record(record, lists))
        except ReportError as error:
            self._rejected += 1
            if len(self._why) < _WHY_LIMIT:
                self._why.append(str(error))

    def _read_record(self, record: dict[str, str], lists: dict[str, list[dict[str, str]]]) -> ReceivedRecord:
        written = record.get("source_ip", "")
        try:
            source = str(plain_ip(ip_address(written)))
        except ValueError:
            raise ReportError(f"the source_ip of a row is {written[:40]!r}, and no address") from None
        return ReceivedRecord(
            source_ip=source,
            count=_number(record.get("count", ""), "the count of a row", _MOST),
            disposition=self._word(record, "disposition"),
            dkim=self._word(record, "dkim"),
            spf=self._word(record, "spf"),
            reasons=tuple(
                ReceivedReason(self._word(each, "type"), each.get("comment", ""))
                for each in lists.get("reason", [])
                if any(each.values())
            ),
            header_from=self._domain(record, "header_from"),
            envelope_from=self._domain(record, "envelope_from"),
            envelope_to=self._domain(record, "envelope_to"),
            signatures=tuple(
                ReceivedSignature(
                    self._domain(each, "domain"),
                    each.get("selector", ""),
                    self._word(each, "result"),
                    each.get("human_result", ""),
                )
                for each in lists.get("dkim", [])
            ),
            spf_results=tuple(
                ReceivedSpf(
                    self._domain(each, "domain"),
                    self._word(each, "scope"),
                    _SPF_WORDS.get(self._word(each, "result"), self._word(each, "result")),
                    each.get("human_result", ""),
                )
                for each in lists.get("spf", [])
            ),
        )

    def _word(self, holder: dict[str, str], key: str) -> str:
        return self._one(holder.get(key, "").lower()[:40])

    def _domain(self, holder: dict[str, str], key: str) -> str:
        return self._one(holder.get(key, "").lower().removesuffix("."))

    def report(self) -> ReceivedAggregate:
        """All of it. Raises ReportError where it does not say enough to be one."""
        if self._namespace is None:
            raise ReportError(f"its root is {self._root[:40]!r}, and not feedback" if self._root else "it has no root")
        head = self._head
        email = head.get("email", "")
        organization = head.get("org_name", "") or email.rpartition("@")[2]
        if not organization:
            raise ReportError("it does not say who reports: org_name and email are missing")
        if not head.get("report_id"):
            raise ReportError("it has no report_id")
        begin, end = (_number(head.get(key, ""), f"the {key} of its date_range", _LATEST) for key in ("begin", "end"))
        if begin > end:
            raise ReportError("its date_range ends before it begins")
        domain = self._domain(head, "domain")
        if not domain:
            raise ReportError("it does not say which domain it is about: policy_published has no domain")
        if self._rejected and not self._records:
            raise ReportError(f"none of its {self._rejected} records can be read: {self._why[0]}")
        new = self._namespace == NAMESPACE or any(head.get(key) for key in _NEW_FIELDS)
        return ReceivedAggregate(
            form=AggregateForm.RFC9990 if new else AggregateForm.RFC7489,
            organization=organization,
            email=email,
            extra_contact=head.get("extra_contact_info", ""),
            id=head["report_id"],
            begin=begin,
            end=end,
            errors=tuple(self._errors),
            generator=head.get("generator", ""),
            policy=ReceivedPolicy(
                domain=domain,
                p=self._word(head, "p"),
                sp=self._word(head, "sp"),
                np=self._word(head, "np"),
                adkim=self._word(head, "adkim"),
                aspf=self._word(head, "aspf"),
                pct=self._word(head, "pct"),
                fo=self._word(head, "fo"),
                testing=self._word(head, "testing"),
                discovery_method=self._word(head, "discovery_method"),
            ),
            records=tuple(self._records),
            rejected=self._rejected,
            why=tuple(self._why),
        )


def _number(text: str, what: str, most: int) -> int:
    found = _NUMBER.fullmatch(text)
    if found is None or int(found[1]) > most:
        raise ReportError(f"{what} is {text[:40]!r}, and no such number")
    return int(found[1])
