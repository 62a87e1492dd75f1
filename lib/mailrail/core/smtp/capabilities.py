"""What a server says that it can do: the reply to EHLO or LHLO (RFC 5321 4.1.1.1)."""

from dataclasses import dataclass
from functools import lru_cache

from mailrail.core.smtp.reply import Reply


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What the reply to EHLO or LHLO announced; all empty after HELO (SIN-20 from the other side)."""

    name: str = ""
    extended: bool = False
    pipelining: bool = False
    chunking: bool = False
    eight_bit_mime: bool = False
    binary_mime: bool = False
    smtputf8: bool = False
    dsn: bool = False
    starttls: bool = False
    require_tls: bool = False
    """REQUIRETLS, offered inside TLS: without it anybody on the way could have put it there (RTLS-14)."""
    size_offered: bool = False
    size: int | None = None
    """Octets; None = no limit was declared. SIZE 0 means none too (RFC 1870 4, reference H10)."""
    auth: tuple[str, ...] = ()
    max_recipients: int | None = None
    """LIMITS RCPTMAX (RFC 9422, OPT-07)."""
    max_transactions: int | None = None
    """LIMITS MAILMAX."""


def read_capabilities(reply: Reply, *, tls: bool) -> Capabilities:
    """Read an EHLO reply. Keywords in any case; unknown ones and nonsense are ignored (RFC 5321 4.1.1.1). `tls`: it
    came inside TLS."""
    return _capabilities(reply.lines, tls)


@lru_cache(maxsize=256)
def _capabilities(lines: tuple[str, ...], tls: bool) -> Capabilities:
    keywords: dict[str, list[str]] = {}
    for line in lines[1:]:
        words = line.split()
        if not words:
            continue
        # AUTH=LOGIN: an old spelling that some servers send in addition to the right one.
        keyword = words[0].upper()
        if keyword.startswith("AUTH="):
            words[1:1] = [keyword[5:]]
            keyword = "AUTH"
        keywords.setdefault(keyword, []).extend(word.upper() for word in words[1:])
    size = keywords.get("SIZE", [])
    limits = dict(word.split("=", 1) for word in keywords.get("LIMITS", []) if "=" in word)
    return Capabilities(
        name=lines[0].split(" ", 1)[0],
        extended=True,
        pipelining="PIPELINING" in keywords,
        chunking="CHUNKING" in keywords,
        eight_bit_mime="8BITMIME" in keywords,
        binary_mime="BINARYMIME" in keywords and "CHUNKING" in keywords,
        smtputf8="SMTPUTF8" in keywords,
        dsn="DSN" in keywords,
        starttls="STARTTLS" in keywords,
        require_tls=tls and "REQUIRETLS" in keywords,
        size_offered="SIZE" in keywords,
        size=_positive(size[0]) if size else None,
        auth=tuple(dict.fromkeys(keywords.get("AUTH", []))),
        max_recipients=_positive(limits.get("RCPTMAX", "")),
        max_transactions=_positive(limits.get("MAILMAX", "")),
    )


def _positive(text: str) -> int | None:
    return int(text) or None if text.isascii() and text.isdigit() and len(text) <= 18 else None
