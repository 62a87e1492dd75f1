"""The content of a message, hashed as it streams for all signatures on it (RFC 6376 6.1.3, RFC 8617 5.2).

A signature in the header says how the body is to be hashed. So `ContentHasher` is made when the header is there, takes
the body in pieces as they come, and holds none of it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from mailrail.core.arc.sets import FoundChain, find_chain
from mailrail.core.arc.sets import body_forms as forms_of_chain
from mailrail.core.dkim.canonical import BodyForm, BodyHash, BodyHasher
from mailrail.core.dkim.verify import FoundSignature, find_signatures
from mailrail.core.dkim.verify import body_forms as forms_of_signatures
from mailrail.core.message.header import Header


@dataclass(frozen=True, slots=True)
class HashedContent:
    """A message as far as authentication needs it, without its body."""

    header: Header
    """As it came: signatures cover it."""
    received_at: float
    """Unix time."""
    signatures: tuple[FoundSignature, ...]
    chain: FoundChain
    hashes: Mapping[BodyForm, BodyHash]
    """Of the body, in all forms that signatures and chain ask for."""


class ContentHasher:
    """Hashes the body of one message. A message without signatures costs nothing here."""

    __slots__ = ("_chain", "_hasher", "_header", "_now", "_signatures")

    def __init__(self, header: Header, now: float) -> None:
        """`header`: as the client sent it, with CRLF. `now`: Unix time, after which signatures may expire."""
        self._header = header
        self._now = now
        self._signatures = find_signatures(header, now)
        self._chain = find_chain(header, now)
        forms = forms_of_signatures(self._signatures) | forms_of_chain(self._chain)
        self._hasher = BodyHasher(forms) if forms else None

    @property
    def wants_body(self) -> bool:
        """Whether anything comes of feeding the body."""
        return self._hasher is not None

    def feed(self, octets: bytes) -> None:
        """The next octets of the body, which begins after the empty line below the header."""
        if self._hasher is not None:
            self._hasher.feed(octets)

    def finish(self) -> HashedContent:
        """The message, at the end of its content. Call it once."""
        hashes = self._hasher.finish() if self._hasher is not None else {}
        return HashedContent(self._header, self._now, self._signatures, self._chain, hashes)


def hash_content(content: bytes, now: float) -> HashedContent:
    """A whole message, with CRLF, that is held already. Where the empty line below the header lacks, the body begins
    with the first line that is no field."""
    header = Header(content)
    hasher = ContentHasher(header, now)
    start = len(header.block)
    hasher.feed(content[start + 2 if content.startswith(b"\r\n", start) else start :])
    return hasher.finish()
