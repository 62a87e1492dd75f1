"""The DMARC policy record: what a domain asks of those who receive mail in its name (RFC 9989 4.7 and 4.8)."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, TypeVar

RECORD_LABEL: Final = "_dmarc"
RECORD_LIMIT: Final = 16 * 1024
"""Octets of a record that is read; real ones stay under 1,000."""
TAGS_LIMIT: Final = 100
"""Tags of a record that are read."""
URIS_LIMIT: Final = 100
"""URIs of a tag that are kept."""

_VERSION = re.compile(rb"[Vv][ \t]*=[ \t]*DMARC1[ \t]*(?:;|\Z)")  # DMRC-02: the value has case, the name has none (4.8)
_TAG = re.compile(rb"([A-Za-z]+)[ \t]*=[ \t]*([ -:<-~]+)")
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:[!-~]+")
_SECONDS = re.compile(r"[0-9]{1,9}")
_E = TypeVar("_E", bound=StrEnum)


class DmarcPolicy(StrEnum):
    """What is asked for mail that fails, in the words of p, sp and np; each is stricter than the one before."""

    NONE = "none"
    QUARANTINE = "quarantine"
    REJECT = "reject"

    @property
    def strictness(self) -> int:
        """Greater is stricter."""
        return _BY_STRICTNESS.index(self)

    @property
    def lowered(self) -> "DmarcPolicy":
        """One step down, as a test asks for (t=y)."""
        return _BY_STRICTNESS[max(0, self.strictness - 1)]


_BY_STRICTNESS: Final = tuple(DmarcPolicy)


class Alignment(StrEnum):
    """How alike two domains must be, in the words of adkim and aspf."""

    RELAXED = "r"
    """Of one organizational domain."""
    STRICT = "s"
    """Equal."""


class Psd(StrEnum):
    """Whether the domain is a public suffix, in the words of psd."""

    YES = "y"
    NO = "n"
    """It is an organizational domain."""
    UNKNOWN = "u"


class _Testing(StrEnum):
    YES = "y"
    NO = "n"


@dataclass(frozen=True, slots=True)
class DmarcRecord:
    """One record, with the default of each tag that it lacks or has with a bad value (DMRC-03a)."""

    p: DmarcPolicy = DmarcPolicy.NONE
    """DMRC-04: a record without p asks for none."""
    sp: DmarcPolicy | None = None
    """For names below that exist; None: as p."""
    np: DmarcPolicy | None = None
    """For names below that do not exist; None: as sp."""
    adkim: Alignment = Alignment.RELAXED
    aspf: Alignment = Alignment.RELAXED
    psd: Psd = Psd.UNKNOWN
    testing: bool = False
    """t=y: apply the policy one step down (DMRC-10)."""
    rua: tuple[str, ...] = ()
    """URIs for aggregate reports as they are written; `core.reports.addresses` reads them."""
    ruf: tuple[str, ...] = ()
    """The same for failure reports."""
    fo: str = ""
    """When failure reports are wanted; empty: the tag lacks, which means 0."""
    ri: int | None = None
    """Seconds between reports, as RFC 7489 had it; what comes of it is decided where reports are scheduled."""
    unusable: str = ""
    """Why DMARC does not apply to mail that this record is for (DMRC-04), in plain words; empty: it does. The record
    still counts in a walk."""
    faults: tuple[str, ...] = ()
    """What is wrong in it, in plain words, for people; each has been mended by a default."""


def record_name(domain: str) -> str:
    """Where the TXT record of a domain is."""
    return f"{RECORD_LABEL}.{domain}"


def read_records(texts: Sequence[bytes]) -> DmarcRecord | None:
    """What the TXT records of one name say, the strings of each joined without blanks.

    DMRC-02: what does not begin with the version is of others; of several that do, none counts. Never raises.
    """
    ours = [text for text in texts if _VERSION.match(text)]
    return read_record(ours[0]) if len(ours) == 1 else None


def read_record(text: bytes) -> DmarcRecord:
    """One record that begins with its version. Never raises."""
    faults: list[str] = []
    tags = _tags(text, faults)
    policies = {name: _word(tags, name, DmarcPolicy, faults) for name in ("p", "sp", "np")}
    rua, ruf = _uris(tags, "rua", faults), _uris(tags, "ruf", faults)
    seconds = tags.get("ri", "")
    unusable = ""
    wrong = [name for name in policies if name in tags and policies[name] is None]
    if wrong:
        # DMRC-04: with an address for reports the whole record acts as p=none, so that its owner hears of the fault.
        policies = dict.fromkeys(policies)
        if not rua:
            unusable = f"the value of {' and '.join(wrong)} is not valid, and there is no address for reports"
    return DmarcRecord(
        p=policies["p"] or DmarcPolicy.NONE,
        sp=policies["sp"],
        np=policies["np"],
        adkim=_word(tags, "adkim", Alignment, faults) or Alignment.RELAXED,
        aspf=_word(tags, "aspf", Alignment, faults) or Alignment.RELAXED,
        psd=_word(tags, "psd", Psd, faults) or Psd.UNKNOWN,
        testing=_word(tags, "t", _Testing, faults) is _Testing.YES,
        rua=rua,
        ruf=ruf,
        fo=_failures(tags, faults),
        ri=int(seconds) if _SECONDS.fullmatch(seconds) else None,
        unusable=unusable,
        faults=tuple(faults),
    )


def _tags(text: bytes, faults: list[str]) -> dict[str, str]:
    """DMRC-03a: what is no tag is left out, and so is what comes a second time; unknown names do no harm."""
    if len(text) > RECORD_LIMIT:
        faults.append(f"the record has {len(text)} octets; no more than {RECORD_LIMIT} are read")
    tags: dict[str, str] = {}
    for number, part in enumerate(text[:RECORD_LIMIT].split(b";")[1:]):
        if number >= TAGS_LIMIT:
            faults.append(f"no more than {TAGS_LIMIT} tags are read")
            break
        part = part.strip(b" \t")
        if not part:
            continue
        found = _TAG.fullmatch(part)
        if found is None:
            faults.append(f"{_shown(part.decode('utf-8', 'replace'))} is no tag of the form name=value")
            continue
        name = found[1].decode("ascii").lower()
        if name in tags:
            faults.append(f"the tag {name} is there twice; the first one counts")
        tags.setdefault(name, found[2].decode("ascii"))
    return tags


def _word(tags: Mapping[str, str], name: str, words: type[_E], faults: list[str]) -> _E | None:
    """A value that is one of few words, in any case (RFC 5234 2.3). None: it lacks or is another."""
    value = tags.get(name)
    if value is None:
        return None
    try:
        return words(value.lower())
    except ValueError:
        faults.append(f"{name}={_shown(value)} is not valid: it is one of {', '.join(words)}")
        return None


def _uris(tags: Mapping[str, str], name: str, faults: list[str]) -> tuple[str, ...]:
    """What is a URI by its form. Which of them are used is not decided here."""
    written = [uri.strip(" \t") for uri in tags.get(name, "").split(",")[:URIS_LIMIT]] if name in tags else []
    found = tuple(uri for uri in written if _URI.fullmatch(uri))
    if len(found) < len(written):
        faults.append(f"{name} has {len(written) - len(found)} entries that are no URIs")
    return found


def _failures(tags: Mapping[str, str], faults: list[str]) -> str:
    if "fo" not in tags:
        return ""
    value = tags["fo"].lower()
    options = [option.strip(" \t") for option in value.split(":")]
    if len(set(options)) < len(options) or not set(options) <= {"0", "1", "d", "s"} or {"0", "1"} <= set(options):
        faults.append(f"fo={_shown(value)} is not valid")
        return ""
    return ":".join(options)


def _shown(text: str) -> str:
    return ascii(text[:64]) + ("..." if len(text) > 64 else "")


def strictest(policies: Iterable[DmarcPolicy]) -> DmarcPolicy:
    """Of several; none if there is none."""
    return max(policies, key=lambda policy: policy.strictness, default=DmarcPolicy.NONE)
