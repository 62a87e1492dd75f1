"""Text fit for a notification: what strangers said made harmless, addresses and dates as RFC 3464 and 6533 want them.

Remote text may hold line ends, parentheses, control characters and octets above 127 (reference H20). Each function
here returns printable ASCII without line ends unless it says otherwise, of bounded length.
"""

import base64
import quopri
import re
from collections.abc import Iterable

from mailrail.core.message.content_type import LINE_LIMIT
from mailrail.core.message.header import MESSAGE_ID, MESSAGE_ID_LIMIT
from mailrail.core.smtp.parameters import xtext_decode
from mailrail.core.smtp.reply import Reply

REPLY_LIMIT = 4000
"""Characters of a remote reply that are quoted."""

_ATOM = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+")  # what the type of an address is (RFC 3461 4.2)
_UNSAFE = re.compile(r"[^ -~]")
_BLANKS = re.compile(r"\s+")


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])
    return "?" if code < 0x20 or 0x7F <= code < 0xA0 else f"\\x{{{code:02X}}}"


def ascii_text(text: str, limit: int = REPLY_LIMIT) -> str:
    """One line of printable ASCII: blanks collapsed, controls as `?`, the rest as `\\x{HEX}` (RFC 6533 3), cut."""
    shown = _UNSAFE.sub(_escaped, _BLANKS.sub(" ", text[: limit * 2]).strip())
    return shown if len(shown) <= limit else shown[: limit - 3] + "..."


def comment(text: str, limit: int = 200) -> str:
    """The inside of an RFC 5322 comment: parentheses and backslashes would end or escape it, so they are replaced."""
    plain = ascii_text(text, limit).translate(str.maketrans("()\\", "[]/"))
    return plain.strip()


def diagnostic(reply: Reply) -> str:
    """A reply whole, on one line, as Diagnostic-Code shows it (DSN-16a, reference H9)."""
    return ascii_text(str(reply))


def usable_message_id(text: str | None) -> str | None:
    """The Message-ID with its brackets if it can be referred to: one, well-formed, at most 900 octets (design 9).

    Brackets are added where they lack (reference H19).
    """
    if not text:
        return None
    given = text.strip()
    bracketed = given if given.startswith("<") else f"<{given}>"
    return bracketed if len(bracketed) <= MESSAGE_ID_LIMIT and MESSAGE_ID.fullmatch(bracketed) else None


def typed_address(address: str, *, utf8: bool) -> str:
    """`type; address` of Final-Recipient (RFC 3464 2.1.2, RFC 6533 3).

    ASCII addresses are `rfc822` and keep their spelling. Others are `utf-8`: as they are in a global report, else with
    each non-ASCII character, backslash, plus and equals sign as `\\x{HEX}`.
    """
    if address.isascii():
        return f"rfc822; {_UNSAFE.sub('?', address)}"
    if utf8:
        return f"utf-8; {_CONTROLS.sub('?', address)}"
    return "utf-8; " + "".join(c if " " < c <= "~" and c not in "\\+=" else f"\\x{{{ord(c):02X}}}" for c in address)


_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def original_recipient(orcpt: str, *, utf8: bool) -> str | None:
    """`type; address` of Original-Recipient from ORCPT as received; None if it cannot be shown (DSN-15).

    The address is decoded from xtext, its case and type kept. The utf-8 type stays in the form it came in, except that
    raw characters are escaped for an ASCII report (DSN-27).
    """
    kind, semicolon, address = orcpt.partition(";")
    if not semicolon or not address or _ATOM.fullmatch(kind) is None:
        return None
    if kind.lower() != "utf-8":
        try:
            address = xtext_decode(address)
        except ValueError:
            return None
        if not all(" " <= c <= "~" for c in address):
            return None
        return f"{ascii_text(kind, 40)}; {address}"
    shown = address if utf8 else "".join(c if c.isascii() else f"\\x{{{ord(c):02X}}}" for c in address)
    return f"utf-8; {_CONTROLS.sub('?', shown)}"


def decoded_envelope_id(envid: str) -> str | None:
    """ENVID decoded from xtext (DSN-14); None if it is not printable."""
    try:
        decoded = xtext_decode(envid)
    except ValueError:
        return None
    return decoded if decoded and all(" " <= c <= "~" for c in decoded) else None


def field(name: str, value: str) -> str:
    """A header or report field, folded at blanks near 78 columns, with its CRLF. `value` holds no line ends."""
    line = f"{name}:"
    lines: list[str] = []
    for word in value.split(" "):
        # A line of blanks alone would read as the end of the fields, so nothing is folded before the first word.
        if len(line) + 1 + len(word) > 78 and line.strip() and line != f"{name}:":
            lines.append(line)
            line = ""
        line += f" {word}"
        while len(line) > LINE_LIMIT:  # one endless word: folded by force rather than breaking the line limit
            lines.append(line[: LINE_LIMIT - 1])
            line = " " + line[LINE_LIMIT - 1 :]
    lines.append(line)
    return "\r\n".join(lines) + "\r\n"


def base64_lines(data: bytes) -> bytes:
    """Base64 in CRLF lines of 76 characters (RFC 2045 6.8, reference H17)."""
    encoded = base64.b64encode(data)
    return b"".join(encoded[i : i + 76] + b"\r\n" for i in range(0, len(encoded), 76))


def quoted_printable(data: bytes) -> bytes:
    """Quoted-printable with CRLF line ends (RFC 2045 6.7). `data` has CRLF line ends."""
    encoded = quopri.encodestring(data.replace(b"\r\n", b"\n"), quotetabs=False)
    return encoded.replace(b"\r", b"=0D").replace(b"\n", b"\r\n")


def wrap(paragraph: str, width: int = 76, indent: str = "") -> Iterable[str]:
    """Lines of prose for people; a word that is longer than the line stands alone, cut at the line limit."""
    line = ""
    for word in paragraph.split():
        while len(word) > LINE_LIMIT - 80:
            head, word = word[: LINE_LIMIT - 80], word[LINE_LIMIT - 80 :]
            if line:
                yield indent + line
            line = head
        if line and len(indent) + len(line) + 1 + len(word) > width:
            yield indent + line
            line = word
        else:
            line = f"{line} {word}" if line else word
    if line:
        yield indent + line
