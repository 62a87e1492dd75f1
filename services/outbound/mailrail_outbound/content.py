"""The content of one delivery in the forms that servers need: as received, or re-encoded for them."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from concurrent.futures import ThreadPoolExecutor

from mailrail.core.limits import SMALL_LIMIT
from mailrail.core.message.reencode import HOLD, MAX_HEADER, Reencoder, Target, Unconvertible, reencode
from mailrail.core.outbound.envelope import ContentFacts, Form, carries_signature, header_end, inspect
from mailrail.core.smtp.answer import LACKING, Trouble
from mailrail.core.smtp.parameters import BodyType
from mailrail.core.smtp.stuffing import stuff, stuff_parts
from mailrail_outbound import metrics
from mailrail_outbound.ports import ContentGone, Delivery, OutOfReach

_AS_IS = Form.AS_IS
_ENCODING = ThreadPoolExecutor(1, "reencode")
"""Re-encodes what streams. A piece can take half a second, in which no other connection would be served; one thread,
since several would take turns with the event loop, which would wait for each."""
_TARGETS = {Form.EIGHT_BIT: Target.EIGHT_BIT, Form.SEVEN_BIT: Target.SEVEN_BIT}


class OutgoingContent:
    """The content of a delivery in the forms that servers need.

    Only what was received is kept, and re-encoded forms, which cost more than a copy: while a thousand servers take
    their time over the final dot, each further copy is one of all that is under way.
    """

    __slots__ = ("_body", "_keep_signed", "_reencoded", "facts", "lines", "prefix")

    def __init__(self, delivery: Delivery, *, reencode_signed: bool = False) -> None:
        """`reencode_signed`: what others signed is re-encoded as any mail is (SOUT-18b)."""
        self._keep_signed = not reencode_signed
        self.prefix = delivery.prefix
        self._body = body = delivery.body
        self.lines = delivery.lines.below(delivery.prefix)
        """What is known of the lines of all that was received."""
        self._reencoded: dict[Form, bytes] | None = None
        declared = delivery.envelope.body
        if isinstance(body, bytes):
            self.facts = inspect(delivery.prefix, body, declared=declared, whole_lines=self.lines.whole)
        else:
            binary = declared is BodyType.BINARY_MIME
            utf8 = delivery.envelope.smtputf8
            self.facts = ContentFacts(delivery.size, delivery.eight_bit or binary, binary, utf8 and delivery.eight_bit)

    def size(self, form: Form, limit: int | None) -> int:
        """Octets in this form. What is re-encoded while it streams is estimated, but not above the server's `limit`
        while the stored message keeps to it: only the server can know then, and nothing is bounced on a guess."""
        stored = self.facts.size
        if form is _AS_IS:
            return stored
        whole = self.whole(form)
        if whole is not None:
            return sum(map(len, whole))
        estimate = stored + stored * 2 // 5
        return max(stored, min(estimate, limit)) if limit is not None else estimate

    def whole(self, form: Form) -> tuple[bytes, ...] | None:
        """All of it, in parts that are not empty; None where it must stream. Raises Unconvertible."""
        body = self._body
        if not isinstance(body, bytes):
            return None
        if form is _AS_IS:
            return tuple(filter(None, (self.prefix, body)))
        if self._reencoded is None:
            self._reencoded = {}
        made = self._reencoded.get(form)
        if made is None:
            content = self.prefix + body
            if self._keep_signed:
                self._forbid_signed(content[: header_end(content)])
            if len(content) > SMALL_LIMIT:
                return None  # in pieces, by a thread: it would keep the event loop from everybody else
            metrics.REENCODED.inc(form)
            made = self._reencoded[form] = reencode(content, _TARGETS[form])
        return (made,)

    def stuffed(self, form: Form) -> tuple[bytes, ...] | None:
        """All of it for DATA, in parts; None where it must stream."""
        body = self._body
        if form is _AS_IS and isinstance(body, bytes) and not self.facts.binary:
            return stuff_parts(self.prefix, body, undotted=self.lines.undotted)
        whole = self.whole(form)
        return (stuff(b"".join(whole)),) if whole is not None else None

    @property
    def held(self) -> int:
        """Octets of memory that it takes to send content that streams: two pieces on their way, one of them stuffed or
        encrypted, and what the re-encoder looks at where it may be needed."""
        return 524288 + (HOLD if self.facts.eight_bit or self.facts.binary else 0)

    @property
    def header_unseen(self) -> bool:
        """Whether only a look at the header can tell if it needs SMTPUTF8: all that is known of content that streams is
        that there are 8-bit octets somewhere."""
        return not isinstance(self._body, bytes) and self.facts.header_eight_bit

    async def look_at_header(self) -> None:
        """Find out; what ends nowhere, or is not whole, keeps the cautious answer. Raises OutOfReach."""
        try:
            header = await self._header()
        except OutOfReach:
            raise
        except ContentGone:
            return
        if header is not None:
            self.facts.header_eight_bit = not header.isascii()

    async def _header(self) -> bytes | None:
        """The header of content that streams; None: it ends nowhere. Raises ContentGone."""
        head = b""
        async with contextlib.aclosing(self._stored()) as pieces:
            async for piece in pieces:
                head += piece
                end = header_end(head)
                if end < len(head):
                    return head[:end]
                if len(head) > MAX_HEADER:
                    break
        return None

    async def read(self) -> bytes:
        """All of it as it was received, for who knows that it is small. Raises ContentGone."""
        return b"".join([piece async for piece in self._stored()])

    async def pieces(self, form: Form) -> AsyncIterator[bytes]:
        """The content from its start. Raises ContentGone or Unconvertible."""
        if form is _AS_IS:
            async for piece in self._stored():
                yield piece
            return
        if self._keep_signed:
            self._forbid_signed(await self._header() or b"")
        metrics.REENCODED.inc(form)
        encoder = Reencoder(_TARGETS[form])
        loop = asyncio.get_running_loop()
        async for piece in self._stored():
            yield await loop.run_in_executor(_ENCODING, encoder.feed, piece)
        yield await loop.run_in_executor(_ENCODING, encoder.finish)

    async def _stored(self) -> AsyncGenerator[bytes]:
        body = self._body
        octets = len(self.prefix)
        if self.prefix:
            yield self.prefix
        if isinstance(body, bytes):
            for at in range(0, len(body), SMALL_LIMIT):
                yield body[at : at + SMALL_LIMIT]
            return
        async for chunk in body.chunks():
            octets += len(chunk)
            yield chunk
        if octets != self.facts.size:
            # A body that ends early looks like any other end: without this, half a message would get its final dot.
            raise ContentGone(f"{octets} octets came of a message of {self.facts.size}")

    @property
    def needs(self) -> Trouble:
        """What a server lacks that cannot take it as it is."""
        return Trouble.NEEDS_BINARYMIME if self.facts.binary else Trouble.NEEDS_8BITMIME

    def _forbid_signed(self, header: bytes) -> None:
        # SOUT-18b: nothing that we sign needs re-encoding (DKIM-09), so this signature is somebody else's.
        if carries_signature(header):
            lacking = LACKING[self.needs]
            raise Unconvertible(f"the server does not offer {lacking}, and re-encoding would break the DKIM-Signature")
