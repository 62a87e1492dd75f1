"""The content of one message on its way from the client to the queue.

Up to INLINE_LIMIT it is kept and travels with the commit; above, it goes to the queue in frames, as fast as the queue
gives credit. What is kept counts against the budget of the process (held_octets.py), and what the queue was given and
may never become a message counts against the client (core/uncommitted.py): both bounds are ACC-07.
"""

from typing import Final

from mailrail.core.dkim.sign import MessageSigner, SigningError
from mailrail.core.limits import CHUNK_SIZE, INLINE_LIMIT, SMALL_LIMIT
from mailrail.core.message.content_reader import ContentReader
from mailrail.core.message.header import Header
from mailrail.core.smtp.reply import Reply
from mailrail.core.uncommitted import Full, UncommittedBody
from mailrail_ingress import metrics
from mailrail_ingress.active_config import QUEUE_AWAY
from mailrail_ingress.checks.content import ContentChecks
from mailrail_ingress.ports import NO_CREDIT, NO_ROOM, Upload, Wire
from mailrail_ingress.session_facts import SessionFacts

PARTS_LIMIT = 1024
"""Pieces of content that are kept apart: of two octets each, they would take thirty times what they hold."""


class _For:
    """What a client that is not read from waits for, as bits."""

    CREDIT = 1  # the queue takes no more of this message
    ROOM = 2  # more mail is kept than the budget allows
    STORAGE = 4  # as much is stored as may be before it is whole, and another message will be whole soon
    ANY = 7


_LABELS: Final = {_For.CREDIT: "credit", _For.ROOM: "memory", _For.STORAGE: "storage"}


def has_capacity(full: Full | None) -> bool:
    """Whether no bound is reached; counts a large message that is refused because one is."""
    if full is not None:
        metrics.UPLOADS_REFUSED.inc(full.value)
    return full is None


class IncomingContent:
    """The content of one message. After a refusal the rest is read and dropped (EXT-01, ACC-05)."""

    __slots__ = (
        "_active_config",
        "_charged",
        "_checks",
        "_facts",
        "_message_id",
        "_over",
        "_parts",
        "_signer",
        "_stored",
        "_uncommitted",
        "_upload",
        "_waits_for",
        "_wire",
        "reader",
        "refusal",
    )

    def __init__(
        self,
        facts: SessionFacts,
        wire: Wire,
        message_id: bytes,
        checks: ContentChecks,
        *,
        uncommitted: UncommittedBody | None,
        lines: bool,
        shorten: bool,
    ) -> None:
        """`uncommitted`: what MAIL declared of a large body; `lines` and `shorten`: see `ContentReader`."""
        listener = checks.body_listener if checks.message.evidence is not None else None
        edit = self._edit if checks.message.signers else checks.edit
        self.reader = ContentReader(edit, lines=lines, shorten=shorten, listener=listener)
        self._checks = checks
        self._signer: MessageSigner | None = None
        self.refusal: Reply | None = None
        self._facts = facts
        self._active_config = facts.active_config
        self._wire = wire
        self._message_id = message_id
        self._parts: list[bytes] = []
        self._stored = 0  # octets in `_parts`
        self._charged = 0  # octets that the budget knows of
        self._upload: Upload | None = None
        self._uncommitted = uncommitted  # octets that the queue was given, or is going to be (ACC-07)
        self._waits_for = 0
        self._over = False  # it is committed, or dropped

    # --- the session's side ---

    def feed(self, data: bytes) -> None:
        """The next octets of the message."""
        if self.refusal is None:
            self._store(self.reader.feed(data))
            if self.reader.fault is not None or self._checks.refusal is not None:
                self._heed_reader()
            if self.refusal is None:
                self._weigh()

    def finish(self) -> bytes | None:
        """The message has ended. Returns its body, or None when the queue has it already; look at `refusal` first."""
        if self.refusal is None:
            self._store(self.reader.finish())
            if self.reader.fault is not None or self._checks.refusal is not None:
                self._heed_reader()
        uploaded = self._upload is not None
        if uploaded and self.refusal is None:
            self._send(everything=True, last=True)
        if self.refusal is not None:
            return None
        body = None if uploaded else b"".join(self._parts)
        self._parts.clear()
        # From now on the message waits for the queue's answer, and its client for nothing else.
        self._set_charge(len(body) if body is not None else 0)
        if self._waits_for:
            self._active_config.budget.forget(self._on_room)
            self._active_config.uncommitted.forget(self._on_storage)
            self._go_on(_For.ANY)
        return body

    def settle(self, *, accepted: bool) -> None:
        """The queue has answered the commit."""
        self._over = True
        self._release()
        if self._uncommitted is not None and accepted:
            self._uncommitted.commit()
        else:
            self._give_up_upload()

    def refuse(self, reply: Reply) -> None:
        """The message is refused: the rest is read to its end and dropped, and the client hears the reply there."""
        if self.refusal is None:
            self.refusal = reply
        self.drop()
        self._go_on(_For.ANY)

    def drop(self) -> None:
        """The message will not be committed: forget it."""
        self._over = True
        self._parts.clear()
        self._stored = 0
        self.reader.drop()
        if self._upload is not None:
            self._upload.abort()
            self._upload = None
        self._give_up_upload()
        self._release()

    def time_out(self) -> None:
        """The queue gave no credit for too long (ACC-07)."""
        self.refuse(NO_CREDIT)

    # --- keeping and sending ---

    def _edit(self, found: Header) -> bytes | None:
        """As the checks do. What is to be signed is made fit for every hop first."""
        kept = self._checks.edit(found)
        if kept is not None:
            self._signer = self._checks.message.signer
            if self._signer is not None:
                self.reader.make_seven_bit()
        return kept

    def _sign(self, data: bytes) -> None:
        assert self._signer is not None
        try:
            self._signer.feed(data)
        except SigningError as error:
            metrics.SIGNATURES.inc("failed")
            self._facts.log("message not signed", id=self._message_id.hex(), error=str(error))
            self._signer = self._checks.message.signer = None

    def _heed_reader(self) -> None:
        if self.reader.fault is not None:
            self._checks.judge_fault(self.reader.fault)
        if self._checks.refusal is not None:
            self.refuse(self._checks.refusal)

    def _store(self, data: bytes) -> None:
        if not data:
            return
        if self._signer is not None:
            self._sign(data)
        parts = self._parts
        if len(parts) >= PARTS_LIMIT:
            parts[:] = [b"".join(parts)]
        parts.append(data)
        self._stored += len(data)
        if self._upload is None:
            if self._stored <= INLINE_LIMIT:
                return
            if not has_capacity(self._counted().begin(self._active_config.monotonic())):
                self.refuse(NO_ROOM)
                return
            self._begin_upload()
        if self._stored >= CHUNK_SIZE:
            self._send(everything=False)

    def _begin_upload(self) -> None:
        """Begin to send the body, unless that is begun."""
        if self._upload is None:
            self._upload = self._active_config.queue.upload(
                self._message_id, self._on_credit, self._on_lost, self._counted().size
            )

    def _counted(self) -> UncommittedBody:
        """The body as it counts against the client; one that MAIL did not declare counts from here on."""
        if self._uncommitted is None:
            self._uncommitted = self._active_config.uncommitted.body(self._facts.uploader)
        return self._uncommitted

    def _count_upload(self, octets: int, *, last: bool) -> bool:
        """Whether there is room for so much more of it. A small message, sent on to save memory, has it always. Where
        there is none it waits if it can, else it is refused."""
        active_config, body = self._active_config, self._counted()
        now = active_config.monotonic()
        if body.octets + octets <= SMALL_LIMIT:
            body.count(octets, now)
            return True
        full = body.add(octets, now)
        body.waits = full is Full.ALL and not last and body.room_near(now)
        if body.waits:  # ACC-07: rather than to read its rest for nothing
            active_config.uncommitted.wait(self._on_storage)
            self._wait(_For.STORAGE)
            return False
        if not has_capacity(full):
            self.refuse(NO_ROOM)
            return False
        return True

    def _send(self, *, everything: bool, last: bool = False) -> None:
        """Frames of CHUNK_SIZE octets; with `everything` the one at the end may be shorter. `last`: no more comes."""
        waiting = b"".join(self._parts)
        self._parts.clear()
        upload = self._upload
        assert upload is not None
        at = 0
        more = True
        size = len(waiting) if everything else len(waiting) - len(waiting) % CHUNK_SIZE
        if not self._count_upload(size, last=last):
            if waiting and self.refusal is None:
                self._parts.append(waiting)
            return
        while len(waiting) - at >= CHUNK_SIZE or (everything and at < len(waiting)):
            more = upload.send(waiting[at : at + CHUNK_SIZE])
            at += CHUNK_SIZE
        rest = waiting[at:]
        self._stored = len(rest)
        if rest:
            self._parts.append(rest)
        if not more and not last:
            self._wait(_For.CREDIT)

    def _on_credit(self) -> None:
        """The queue takes more."""
        self._go_on(_For.CREDIT)

    def _on_storage(self) -> None:
        """Another large message has ended: there may be room for this one."""
        self._send(everything=False)
        if self.refusal is None and not self._counted().waits:
            self._set_charge(self.reader.held + self._stored)
            self._go_on(_For.STORAGE)

    def _on_lost(self) -> None:
        """The queue went away and the body with it: read to the end, then 451, never resumed elsewhere (ACC-05)."""
        if not self._over:
            self._upload = None
            self.refuse(QUEUE_AWAY)

    def _give_up_upload(self) -> None:
        self._active_config.uncommitted.forget(self._on_storage)
        if self._uncommitted is not None:
            self._uncommitted.give_up(self._active_config.monotonic())

    # --- the budget ---

    def _weigh(self) -> None:
        """Tell the budget what is kept. While it is tight, a message that keeps more than its share sends its body on;
        where that is its header, the client has to wait."""
        budget = self._active_config.budget
        kept = self.reader.held + self._stored
        self._set_charge(kept)
        if not budget.tight or kept <= budget.share:
            return
        self._store(self.reader.release())
        if self.reader.fault is not None:
            self._heed_reader()
        if self.refusal is None and self._stored:
            self._begin_upload()
            self._send(everything=True)
            if self.refusal is None:
                self._set_charge(self.reader.held + self._stored)
        elif self.refusal is None:
            if not budget.waiting:
                self._active_config.log.warning(
                    "memory budget used up; reading from clients is paused", octets=budget.held
                )
            budget.wait(self._on_room)
            self._wait(_For.ROOM)

    def _set_charge(self, octets: int) -> None:
        if octets != self._charged:
            before, self._charged = self._charged, octets
            self._active_config.budget.change(before, octets)

    def _release(self) -> None:
        self._set_charge(0)
        if self._waits_for & _For.ROOM:
            self._active_config.budget.forget(self._on_room)

    def _on_room(self) -> None:
        self._go_on(_For.ROOM)

    def _wait(self, reason: int) -> None:
        if not self._waits_for & reason:
            metrics.PAUSES.inc(_LABELS[reason])
        if not self._waits_for:
            self._wire.pause()
        self._waits_for |= reason

    def _go_on(self, reasons: int) -> None:
        if self._waits_for & reasons:
            self._waits_for &= ~reasons
            if not self._waits_for:
                self._wire.resume()
