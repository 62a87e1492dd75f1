"""The ESMTP parameters of MAIL and RCPT as typed values, and the xtext encoding that some of them use.

Which parameters exist depends on what EHLO announced, so the parsers take the set of extensions on offer: whatever is
not in it is unknown (555 5.5.4), and after HELO the set is empty (SIN-20). A known parameter with a bad value, without
its value, or given twice is 501 5.5.4 (DSN-02).

SIZE: RFC 1870. BODY: RFC 6152, RFC 3030. SMTPUTF8: RFC 6531. RET, ENVID, NOTIFY, ORCPT: RFC 3461 4, RFC 6533 3.
AUTH: RFC 4954 5. HOLDFOR, HOLDUNTIL: RFC 4865. REQUIRETLS: RFC 8689 2.
"""

import re
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import Enum, StrEnum
from typing import Final

from mailrail.core.smtp.address import parse_address


class Extension(Enum):
    """An ESMTP extension that adds parameters."""

    SIZE = "SIZE"
    EIGHT_BIT_MIME = "8BITMIME"
    BINARY_MIME = "BINARYMIME"
    SMTPUTF8 = "SMTPUTF8"
    DSN = "DSN"
    AUTH = "AUTH"
    FUTURE_RELEASE = "FUTURERELEASE"
    REQUIRETLS = "REQUIRETLS"


class BodyType(StrEnum):
    """BODY= of MAIL: what octets and line ends the content may have."""

    SEVEN_BIT = "7BIT"
    EIGHT_BIT_MIME = "8BITMIME"
    BINARY_MIME = "BINARYMIME"


class Return(StrEnum):
    """RET= of MAIL: how much of the message a failure report returns (RFC 3461 4.3)."""

    FULL = "FULL"
    HEADERS = "HDRS"


class Notify(StrEnum):
    """NOTIFY= of RCPT (RFC 3461 4.1). NEVER stands alone."""

    NEVER = "NEVER"
    SUCCESS = "SUCCESS"
    FAILURE = "FAILURE"
    DELAY = "DELAY"


@dataclass(frozen=True, slots=True)
class FutureRelease:
    """When the message may be tried first, and the words for the DSN's Future-Release-Request (RFC 4865)."""

    at: datetime
    request: str  # "for;86400" or "until;2027-01-01T00:00:00Z"


@dataclass(frozen=True, slots=True)
class MailParameters:
    """What MAIL said besides the path. None = not said."""

    size: int | None = None  # octets
    body: BodyType | None = None
    smtputf8: bool = False
    ret: Return | None = None
    envid: str | None = None  # xtext
    auth: str | None = None  # "<>" or xtext
    release: FutureRelease | None = None
    require_tls: bool = False


@dataclass(frozen=True, slots=True)
class RcptParameters:
    """What RCPT said besides the path."""

    notify: tuple[Notify, ...] = ()  # empty = not said
    orcpt: str | None = None  # "type;address" as received, its address still encoded


NO_MAIL_PARAMETERS: Final = MailParameters()
NO_RCPT_PARAMETERS: Final = RcptParameters()


ENVID_LIMIT: Final = 1000
"""Characters. RFC 3461 4.4 asks for 100."""
ORCPT_LIMIT: Final = 1000
"""Characters. RFC 3461 4.2 asks for 500. Each copy of a message carries it, so a list multiplies it."""


class ParameterError(ValueError):
    """A parameter that is refused: 501 5.5.4, or 555 5.5.4 when it is unknown. The message is fit for a reply."""

    def __init__(self, text: str, code: int = 501) -> None:
        super().__init__(text)
        self.code = code


_XTEXT = re.compile(r"(?:[!-*,-<>-~]|\+[0-9A-Fa-f]{2})*")  # RFC 3461 4 has upper case alone, much software lower
_HEXCHAR = re.compile(r"\+([0-9A-Fa-f]{2})")
_PARAMETER = re.compile(r"([A-Za-z0-9][A-Za-z0-9-]*)(?:=([!-<>-~\u0080-\U0010ffff]+))?")
_ADDR_TYPE = re.compile(r"[A-Za-z0-9!#$%&'*/?^_`{|}~.-]+")
# RFC 6533 3, EmbeddedUnicodeChar: below U+0100 only what needs it, in particular no CR and no LF; no surrogates, and
# nothing past Unicode's end.
_EMBEDDED = (
    r"\\x\{(?:[01][1-9]|10|20|2B|3D|5C|7F|[89A-F][0-9A-F]|[1-9A-F][0-9A-F]{2}"
    r"|[1-9ABCEF][0-9A-F]{3}|D[0-7][0-9A-F]{2}|[1-9A-F][0-9A-F]{4}|10[0-9A-F]{4})\}"
)
# ... embedded in otherwise printable ASCII, with the characters that need it left out.
_UTF8_XTEXT = re.compile(rf"(?:[!-*,-<>-\[\]-~]|{_EMBEDDED}|\+[0-9A-F]{{2}})*")
_UTF8_UNITEXT = re.compile(rf"(?:[!-*,-<>-\[\]-~\u00a0-\U0010ffff]|{_EMBEDDED})*")
_UNTIL = re.compile(r"(\d{4}-\d\d-\d\d)[Tt](\d\d:\d\d:\d\d)(?:\.\d{1,9})?[Zz]")


def xtext_decode(text: str) -> str:
    """The string that xtext stands for (RFC 3461 4). Raises ValueError for what is no xtext or stands for no ASCII."""
    if not _XTEXT.fullmatch(text):
        raise ValueError("not xtext")
    if "+" not in text:
        return text
    decoded = _HEXCHAR.sub(lambda found: chr(int(found[1], 16)), text)
    if not decoded.isascii():
        raise ValueError("xtext stands for octets above 127")
    return decoded


def _as_written(xtext: str) -> str:
    """xtext as RFC 3461 4 writes it, with upper-case hexadecimal: it is passed on to servers that may insist."""
    return _HEXCHAR.sub(lambda found: found[0].upper(), xtext)


def _printable_xtext(value: str, keyword: str) -> str:
    try:
        decoded = xtext_decode(value)
    except ValueError:
        raise ParameterError(f"{keyword} takes xtext") from None
    if not all(" " <= c <= "~" for c in decoded):
        raise ParameterError(f"{keyword} takes printable characters")
    return _as_written(value)


def _size(value: str) -> int:
    if not (value.isascii() and value.isdigit() and len(value) <= 20):
        raise ParameterError("SIZE takes a number of octets")
    return int(value)


def _auth(value: str) -> str:
    # RFC 4954 5: `<>`, or a mailbox in xtext.
    if value == "<>":
        return value
    try:
        parse_address(xtext_decode(value))
    except ValueError:
        raise ParameterError("AUTH takes <> or a mailbox in xtext") from None
    return _as_written(value)


def _body(value: str, extensions: frozenset[Extension]) -> BodyType:
    try:
        body = BodyType(value.upper())
    except ValueError:
        raise ParameterError("BODY takes 7BIT, 8BITMIME or BINARYMIME") from None
    if body is BodyType.BINARY_MIME and Extension.BINARY_MIME not in extensions:
        raise ParameterError("BODY=BINARYMIME is not offered")
    return body


def _hold_for(value: str, now: datetime, longest: int) -> FutureRelease:
    if not (value.isascii() and value.isdigit() and len(value) <= 9):
        raise ParameterError("HOLDFOR takes 1 to 9 digits, seconds")  # OPT-01
    if int(value) > longest:
        raise ParameterError(f"HOLDFOR takes at most {longest} seconds")
    return FutureRelease(now + timedelta(seconds=int(value)), f"for;{int(value)}")


def _hold_until(value: str, now: datetime, longest: int) -> FutureRelease:
    found = _UNTIL.fullmatch(value)
    try:
        at = datetime.fromisoformat(f"{found[1]}T{found[2]}+00:00") if found else None
    except ValueError:
        at = None
    if at is None:
        raise ParameterError("HOLDUNTIL takes a UTC time such as 2027-01-31T12:00:00Z")
    if at < now:
        raise ParameterError("HOLDUNTIL is in the past")
    if at > now + timedelta(seconds=longest):
        raise ParameterError(f"HOLDUNTIL takes a time at most {longest} seconds ahead")
    return FutureRelease(at, f"until;{at.strftime('%Y-%m-%dT%H:%M:%SZ')}")


def _notify(value: str) -> tuple[Notify, ...]:
    try:
        wanted = tuple(Notify(word.upper()) for word in value.split(","))
    except ValueError:
        raise ParameterError("NOTIFY takes NEVER, or a list of SUCCESS, FAILURE and DELAY") from None
    if len(set(wanted)) != len(wanted) or (Notify.NEVER in wanted and len(wanted) > 1):
        raise ParameterError("NOTIFY takes NEVER alone, or each of SUCCESS, FAILURE and DELAY once")
    return wanted


def _envid(value: str) -> str:
    if len(value) > ENVID_LIMIT:
        raise ParameterError(f"ENVID takes at most {ENVID_LIMIT} characters")
    return _printable_xtext(value, "ENVID")


def _orcpt(value: str, utf8: bool) -> str:
    if len(value) > ORCPT_LIMIT:
        raise ParameterError(f"ORCPT takes at most {ORCPT_LIMIT} characters")
    kind, semicolon, address = value.partition(";")
    if not semicolon or not _ADDR_TYPE.fullmatch(kind) or not address:
        raise ParameterError("ORCPT takes an address type, a semicolon and an encoded address")
    if kind.lower() == "utf-8":
        # RFC 6533 3: unitext is for SMTPUTF8 transactions, the \x{} form for any.
        if not (_UTF8_UNITEXT if utf8 else _UTF8_XTEXT).fullmatch(address) and not _UTF8_XTEXT.fullmatch(address):
            raise ParameterError("ORCPT takes an address that is encoded as RFC 6533 says")
        return value
    return f"{kind};{_printable_xtext(address, 'ORCPT')}"


def _split(text: str) -> list[tuple[str, str | None]]:
    pairs: list[tuple[str, str | None]] = []
    for word in text.split(" "):
        if not word:
            continue  # more than one blank between parameters does no harm
        found = _PARAMETER.fullmatch(word)
        if found is None:
            raise ParameterError("parameters are KEYWORD or KEYWORD=value, separated by spaces")
        pairs.append((found[1].upper(), found[2]))
    return pairs


_MAIL_KEYWORDS: Final = {
    "SIZE": Extension.SIZE,
    "BODY": Extension.EIGHT_BIT_MIME,
    "SMTPUTF8": Extension.SMTPUTF8,
    "RET": Extension.DSN,
    "ENVID": Extension.DSN,
    "AUTH": Extension.AUTH,
    "HOLDFOR": Extension.FUTURE_RELEASE,
    "HOLDUNTIL": Extension.FUTURE_RELEASE,
    "REQUIRETLS": Extension.REQUIRETLS,
}
_WITHOUT_VALUE: Final = frozenset({"SMTPUTF8", "REQUIRETLS"})  # RFC 6531 3.4, RFC 8689 2 (RTLS-03)
_RCPT_KEYWORDS: Final = {"NOTIFY": Extension.DSN, "ORCPT": Extension.DSN}


def _known(text: str, keywords: dict[str, Extension], extensions: frozenset[Extension]) -> list[tuple[str, str]]:
    pairs = _split(text)
    seen: set[str] = set()
    for keyword, value in pairs:
        if keywords.get(keyword) not in extensions:
            raise ParameterError(f"the parameter {keyword[:40]} is not supported", 555)
        if keyword in seen:
            raise ParameterError(f"{keyword} is given twice")
        if (value is None) != (keyword in _WITHOUT_VALUE):
            raise ParameterError(f"{keyword} takes no value" if value is not None else f"{keyword} takes a value")
        seen.add(keyword)
    return [(keyword, value or "") for keyword, value in pairs]


def parse_mail_parameters(
    text: str, extensions: frozenset[Extension], *, now: datetime, longest_hold: int
) -> MailParameters:
    """Read what follows the path of MAIL. `now` is aware; `longest_hold` are seconds. Raises ParameterError."""
    if not text.strip(" "):
        return NO_MAIL_PARAMETERS
    if not text.startswith(" "):
        raise ParameterError("a space must follow the path")
    parameters = NO_MAIL_PARAMETERS
    for keyword, given in _known(text, _MAIL_KEYWORDS, extensions):
        if keyword == "SIZE":
            parameters = replace(parameters, size=_size(given))
        elif keyword == "BODY":
            parameters = replace(parameters, body=_body(given, extensions))
        elif keyword == "SMTPUTF8":
            parameters = replace(parameters, smtputf8=True)
        elif keyword == "REQUIRETLS":
            parameters = replace(parameters, require_tls=True)
        elif keyword == "RET":
            try:
                parameters = replace(parameters, ret=Return(given.upper()))
            except ValueError:
                raise ParameterError("RET takes FULL or HDRS") from None
        elif keyword == "ENVID":
            parameters = replace(parameters, envid=_envid(given))
        elif keyword == "AUTH":
            parameters = replace(parameters, auth=_auth(given))
        else:
            if parameters.release is not None:
                raise ParameterError("HOLDFOR and HOLDUNTIL exclude each other")
            hold = _hold_for if keyword == "HOLDFOR" else _hold_until
            parameters = replace(parameters, release=hold(given, now.astimezone(UTC), longest_hold))
    return parameters


def parse_rcpt_parameters(text: str, extensions: frozenset[Extension], *, utf8: bool) -> RcptParameters:
    """Read what follows the path of RCPT; `utf8` tells whether MAIL asked for SMTPUTF8. Raises ParameterError."""
    if not text.strip(" "):
        return NO_RCPT_PARAMETERS
    if not text.startswith(" "):
        raise ParameterError("a space must follow the path")
    parameters = NO_RCPT_PARAMETERS
    for keyword, given in _known(text, _RCPT_KEYWORDS, extensions):
        if keyword == "NOTIFY":
            parameters = replace(parameters, notify=_notify(given))
        else:
            parameters = replace(parameters, orcpt=_orcpt(given, utf8))
    return parameters
