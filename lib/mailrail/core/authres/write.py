"""Write our Authentication-Results field (RFC 8601 2.2, AR-03, AR-04).

Nearly every value in it was chosen by whoever sent the message. Each is therefore bounded, made ASCII and written so
that it ends where it should: as a token or an address where the grammar has them, else as a quoted string. Only what
IANA has registered is written; anything else is a mistake of the caller.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Final

from mailrail.core.authres.results import REGISTERED, MethodResult, ResultProperty
from mailrail.core.smtp.address import AddressError, domain_to_ascii

_NAME: Final = "Authentication-Results:"
_LINE: Final = 78
"""Characters of a line where that is possible (RFC 5322 2.1.1)."""
_VALUE_LIMIT: Final = 480
"""Characters of a value: quoted it may take twice as many, and a line has at most 998 (RFC 5322 2.1.1)."""
_TEXT_LIMIT: Final = 200
"""Characters of a reason or comment."""

_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`{|}~-]+")  # RFC 2045 5.1
# An address that every reader ends at the same place: no `=`, `/` or `?`, which are no part of tokens.
_ADDRESS = re.compile(r"(?:[A-Za-z0-9!#$%&'*+^_`{|}~-]+(?:\.[A-Za-z0-9!#$%&'*+^_`{|}~-]+)*)?@[A-Za-z0-9_.-]+")
_NOT_PRINTABLE = re.compile(r"[^ -~]")
_NOT_IN_COMMENT = re.compile(r"[^ -'*-\[\]-~]")  # nor brackets, nor a backslash


def results_field(authserv_id: str, results: Sequence[MethodResult]) -> bytes:
    """The whole field with its line end; without results it says that nothing was checked (AR-04).

    Raises ValueError for a method, result or property that is not registered.
    """
    lines = [f"{_NAME} {_value(authserv_id)};"]
    if not results:
        return f"{lines[0]} none\r\n".encode("ascii")
    for at, result in enumerate(results, 1):
        words = list(_words(result))
        if at < len(results):
            words[-1] += ";"
        lines += _folded(words)
    return ("\r\n\t".join(lines) + "\r\n").encode("ascii")


def _folded(words: Iterable[str]) -> list[str]:
    """The words in lines, of which each is preceded by a tab."""
    lines: list[str] = []
    for word in words:
        if lines and len(lines[-1]) + 1 + len(word) < _LINE:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def _words(result: MethodResult) -> Iterable[str]:
    """What stands between blanks. Registered things only (AR-03)."""
    method = REGISTERED.get(result.method)
    if method is None or result.result not in method.results:
        raise ValueError(f"{result.method}={result.result} is not registered")
    yield f"{result.method}={result.result}"
    comment = _NOT_IN_COMMENT.sub("?", result.comment[:_TEXT_LIMIT]).split()
    if comment:
        comment[0] = f"({comment[0]}"
        comment[-1] += ")"
        yield from comment
    if result.reason:
        yield f"reason={_quoted(_NOT_PRINTABLE.sub('?', result.reason[:_TEXT_LIMIT]))}"
    for one in result.properties:
        if (one.ptype, one.name) not in method.properties:
            raise ValueError(f"{result.method} has no property {one.ptype}.{one.name}")
        if 0 < len(one.value) <= _VALUE_LIMIT:  # a part of a name would be another name
            yield f"{one.ptype}.{one.name}={_value(one.value)}"


def _value(text: str) -> str:
    text = _NOT_PRINTABLE.sub("?", text)
    return text if _TOKEN.fullmatch(text) or _ADDRESS.fullmatch(text) else _quoted(text)


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


# --- results of each method -----------------------------------------------------------------------------------------


def spf_result(result: str, *, mail_from: str = "", helo: str = "", comment: str = "") -> MethodResult:
    """SPF, with the identity that gave the result and that one alone (AR-03): MAIL FROM, an address or a domain with or
    without angle brackets; else the name of HELO."""
    if mail_from:
        identity = ResultProperty("smtp", "mailfrom", _mailbox(mail_from))
    else:
        identity = ResultProperty("smtp", "helo", _domain(helo))
    return MethodResult("spf", result, (identity,), comment=comment)


def dkim_result(
    result: str, *, domain: str = "", selector: str = "", algorithm: str = "", signature: str = "", comment: str = ""
) -> MethodResult:
    """One DKIM signature: its d=, s=, a=, and of its b= as much as tells it from others (RFC 6008 4)."""
    values = (("d", _domain(domain)), ("s", _domain(selector)), ("a", algorithm), ("b", signature))
    properties = tuple(ResultProperty("header", name, value) for name, value in values if value)
    return MethodResult("dkim", result, properties, comment=comment)


def dmarc_result(result: str, *, author: str, policy: str = "", comment: str = "") -> MethodResult:
    """DMARC of one author domain. `policy`: what is asked for a message that fails, after all options of the record:
    none, quarantine or reject (RFC 9989 9.1); empty if there is no record."""
    properties = [ResultProperty("header", "from", _domain(author))]
    if policy:
        properties.append(ResultProperty("policy", "dmarc", policy))
    return MethodResult("dmarc", result, tuple(properties), comment=comment)


def auth_result(result: str, login: str) -> MethodResult:
    """SMTP AUTH (RFC 8601 2.7.4): who logged in."""
    return MethodResult("auth", result, (ResultProperty("smtp", "auth", _mailbox(login) if "@" in login else login),))


def _mailbox(text: str) -> str:
    """An address with its domain in A-labels. A local part is left out that is not ASCII, since the field would need
    SMTPUTF8 with it, or too long; the domain is what was checked."""
    local, at, domain = text.removeprefix("<").removesuffix(">").rpartition("@")
    domain = _domain(domain)
    return f"{local}{at}{domain}" if local.isascii() and len(local) + len(domain) < _VALUE_LIMIT else domain


def _domain(text: str) -> str:
    try:
        return domain_to_ascii(text.removesuffix("."), in_address=True)
    except AddressError:
        return text
