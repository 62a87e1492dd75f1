"""What an Authentication-Results field says, and the methods and results that IANA has registered (RFC 8601 2.7, 6)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

VERSION: Final = 1
"""Of RFC 8601 2.2; a field without a version has this one."""


class ResultsError(ValueError):
    """The field cannot be read. The text says what is wrong and echoes nothing of the field."""


@dataclass(frozen=True, slots=True)
class ResultProperty:
    """What a result is about, such as `header.d=example.org`."""

    ptype: str
    """Where it was found: `smtp`, `header`, `body` or `policy` (RFC 8601 2.3)."""
    name: str
    value: str


@dataclass(frozen=True, slots=True)
class MethodResult:
    """What one method found about the message."""

    method: str
    """Lower case, as `result`."""
    result: str
    properties: tuple[ResultProperty, ...] = ()
    reason: str = ""
    comment: str = ""
    """For people. It is written, and never read: comments decide nothing (RFC 8601 2.2)."""

    def value(self, ptype: str, name: str) -> str | None:
        """Of the first property with this type and name."""
        return next((p.value for p in self.properties if (p.ptype, p.name) == (ptype, name)), None)


@dataclass(frozen=True, slots=True)
class ResultsField:
    """One field, as it was read."""

    authserv_id: str
    """Who found it, as it is written."""
    results: tuple[MethodResult, ...]
    """Empty if nothing was checked, and for a version that we do not know: its results are not read (RFC 8601 2.6)."""
    version: int = VERSION
    flawed: bool = False
    """Parts were not by the grammar and were passed over."""

    @property
    def ignored(self) -> bool:
        """Whether the field is of a version that we do not know, so that nothing in it counts."""
        return self.version != VERSION


@dataclass(frozen=True, slots=True)
class RegisteredMethod:
    """A row of IANA's registry of methods, and those of its results."""

    results: frozenset[str]
    properties: frozenset[tuple[str, str]]
    """Property types and names."""


_ERRORS: Final = frozenset({"temperror", "permerror"})
_PLAIN: Final = frozenset({"none", "pass", "fail"})
REGISTERED: Final[Mapping[str, RegisteredMethod]] = {
    "arc": RegisteredMethod(_PLAIN, frozenset({("smtp", "remote-ip"), ("header", "oldest-pass")})),
    "auth": RegisteredMethod(_PLAIN | _ERRORS, frozenset({("smtp", "auth"), ("smtp", "mailfrom")})),
    "dkim": RegisteredMethod(
        _PLAIN | _ERRORS | {"neutral", "policy"}, frozenset(("header", name) for name in ("a", "b", "d", "i", "s"))
    ),
    "dmarc": RegisteredMethod(_PLAIN | _ERRORS, frozenset({("header", "from"), ("policy", "dmarc")})),
    "iprev": RegisteredMethod(frozenset({"pass", "fail"}) | _ERRORS, frozenset({("policy", "iprev")})),
    "spf": RegisteredMethod(
        _PLAIN | _ERRORS | {"neutral", "policy", "softfail"}, frozenset({("smtp", "helo"), ("smtp", "mailfrom")})
    ),
}
"""The methods that we write, with all that is registered for them: RFC 8601 2.7, RFC 8617 10, RFC 9989 9 (AR-03)."""
