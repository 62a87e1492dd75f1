"""A policy: read, printed, and held against an MX host (RFC 8461 3.2 and 4.1; standards STS-06, STS-07, STS-08b).

A stranger wrote it, so it is read as its grammar says and no further: what is almost a policy might be half of one. The
reason in words goes to the log, to the timeline of the message and into reports.
"""

import re
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import ip_address
from typing import Final

from mailrail.core.shown import shown_octets
from mailrail.core.smtp.address import AddressError, domain_to_ascii

BODY_LIMIT: Final = 64 * 1024
"""Octets of a policy (RFC 8461 3.3 suggests 64 kilobytes)."""
MAX_MX: Final = 500
"""Different mx patterns of a policy. Those of the largest providers have a dozen."""
MAX_AGE_LIMIT: Final = 31_557_600
"""Seconds that a policy may live: one year (RFC 8461 3.2)."""
_IGNORED_LIMIT: Final = 10  # mx values that are kept to be told of

_KEY = re.compile(rb"[A-Za-z0-9][A-Za-z0-9_.-]{0,31}")
_DIGITS = re.compile(rb"[0-9]{1,10}")
_CONTROLS = re.compile(rb"[\x00-\x1f\x7f]")


class PolicyError(ValueError):
    """The text is no valid policy. The message says why, in one line of ASCII."""


class Mode(StrEnum):
    """What a sender does with a host that does not meet the policy."""

    ENFORCE = "enforce"
    """It gets no mail."""
    TESTING = "testing"
    """It gets mail, and the domain a report."""
    NONE = "none"
    """As if there were no policy."""


@dataclass(frozen=True, slots=True)
class Policy:
    """A valid policy."""

    mode: Mode
    max_age: int
    """Seconds from the last successful fetch, at most MAX_AGE_LIMIT."""
    mx: tuple[str, ...] = ()
    """Host names and `*.` patterns: lower-case A-labels without the final dot, each once, in their order."""
    ignored: tuple[str, ...] = field(default=(), compare=False)
    """The first values of `mx` that can match no host, as they were written: an address, a misplaced asterisk."""

    def matches(self, host: str) -> bool:
        """Whether an MX host is among those of the policy. `host`: the name in the MX record, in any letter case.

        STS-08b: never the name that an alias leads to. STS-07: a wildcard stands for exactly one label.
        """
        name = host.lower().removesuffix(".")
        label, _, parent = name.partition(".")
        return name in self.mx or (bool(label) and f"*.{parent}" in self.mx)

    def __str__(self) -> str:
        """The text of the policy with CRLF, as it is served (STS-23a)."""
        lines = [
            "version: STSv1",
            f"mode: {self.mode}",
            *(f"mx: {name}" for name in self.mx),
            f"max_age: {self.max_age}",
        ]
        return "".join(f"{line}\r\n" for line in lines)


def parse_policy(body: bytes) -> Policy:
    """The policy in the body of an answer. Raises PolicyError, and nothing else."""
    if len(body) > BODY_LIMIT:
        raise PolicyError(f"it has more than {BODY_LIMIT} octets")
    mx: dict[str, None] = {}
    ignored: list[str] = []
    found: dict[bytes, bytes] = {}
    for number, line in enumerate(_lines(body), 1):
        key, value = _field(number, line)
        if key != b"mx":
            found.setdefault(key, value)  # STS-06: of two with a name the first counts
        elif (pattern := mx_pattern(value)) is not None:
            mx[pattern] = None
        elif len(ignored) < _IGNORED_LIMIT:
            ignored.append(shown_octets(value))
    if len(mx) > MAX_MX:
        raise PolicyError(f"it has {len(mx)} mx; more than {MAX_MX} are not read")
    if _required(found, b"version") != b"STSv1":
        raise PolicyError(f"its version is {shown_octets(found[b'version'])}, not STSv1")
    mode = _mode(_required(found, b"mode"))
    age = _required(found, b"max_age")
    if not _DIGITS.fullmatch(age):
        raise PolicyError(f"its max_age {shown_octets(age)} is not a number of seconds of 1 to 10 digits")
    if mode is not Mode.NONE and not mx:
        what = f"none of its mx is a host name or a pattern: {', '.join(ignored)}" if ignored else "it has no mx"
        raise PolicyError(f"{what}; with mode {mode} it must name at least one")
    # STS-25: a policy that would live longer than RFC 8461 allows is a valid one that lives as long as it allows.
    return Policy(mode, min(int(age), MAX_AGE_LIMIT), tuple(mx), tuple(ignored))


def _lines(body: bytes) -> list[bytes]:
    """The lines without their ends: LF and CRLF, mixed too; the last one may have none."""
    if body.startswith(b"\xef\xbb\xbf"):
        raise PolicyError("it starts with a byte order mark; the first octets must be those of a field")
    lines = body.split(b"\n")
    if not lines[-1]:
        lines.pop()
    return [line.removesuffix(b"\r") for line in lines]


def _field(number: int, line: bytes) -> tuple[bytes, bytes]:
    line = line.rstrip(b" \t")
    if not line:
        raise PolicyError(f"line {number} is empty; each line must be a field")
    key, colon, value = line.partition(b":")
    value = value.lstrip(b" \t")
    if not colon or not _KEY.fullmatch(key) or not value:
        raise PolicyError(f"line {number} is no field of the form key: value: {shown_octets(line)}")
    try:
        value.decode("utf-8")
    except UnicodeDecodeError:
        raise PolicyError(f"line {number} is not UTF-8: {shown_octets(line)}") from None
    if _CONTROLS.search(value):
        raise PolicyError(f"line {number} has a control character: {shown_octets(line)}")
    return key, value


def _required(found: dict[bytes, bytes], key: bytes) -> bytes:
    value = found.get(key)
    if value is None:
        raise PolicyError(f"it has no {key.decode()}")
    return value


def _mode(value: bytes) -> Mode:
    try:
        return Mode(value.decode("utf-8"))
    except ValueError:
        raise PolicyError(
            f"its mode {shown_octets(value)} is none of enforce, testing and none, in small letters"
        ) from None


def mx_pattern(value: bytes) -> str | None:
    """An mx value as it is compared; None for one that no host can match (RFC 8461 3.2: `["*."] Domain`)."""
    star, name = ("*.", value[2:]) if value.startswith(b"*.") else ("", value)
    try:
        ascii_name = domain_to_ascii(name.decode("ascii").removesuffix("."))
    except (AddressError, UnicodeDecodeError):
        return None
    try:
        ip_address(ascii_name)
    except ValueError:
        return star + ascii_name
    return None
