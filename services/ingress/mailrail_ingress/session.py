"""What is decided in one SMTP session: senders, recipients and content; logins are in login.py.

A `SmtpSession` answers the session's events from the desk, collects the transaction, streams the content to the queue
and answers 250 when the queue has committed (SIN-01, ACC-01..07). Nothing here knows sockets; the shell that does is
told to go on (`Wire.pump`), to stop reading and to read again.
"""

import uuid
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from mailrail.core.message.content_reader import ContentReader
from mailrail.core.message.header import (
    HIDDEN,
    RECEIVED_LIMIT,
    Header,
    HeaderError,
    Received,
    author_addresses,
    date,
    foreign_results,
    message_id,
    subject,
    with_keyword,
)
from mailrail.core.route.recipients import (
    NOT_YOUR_ADDRESS,
    VERIFICATION_UNAVAILABLE,
    Resolution,
)
from mailrail.core.smtp.address import Address, AddressError, parse_address
from mailrail.core.smtp.events import (
    Abandoned,
    AuthCancelled,
    AuthRequested,
    AuthResponse,
    Content,
    ContentEnded,
    ContentStarted,
    Event,
    RecipientGiven,
    SenderGiven,
)
from mailrail.core.smtp.parameters import BodyType, MailParameters, xtext_decode
from mailrail.core.smtp.phrases import too_big
from mailrail.core.smtp.reply import Reply
from mailrail.core.smtp.server import ServerSession
from mailrail.core.smtp.stuffing import has_bare_line_ends
from mailrail.core.uncommitted import Full
from mailrail_ingress import metrics
from mailrail_ingress.active_config import QUEUE_AWAY, ActiveConfig, ListenerConfig, MessageOrigin
from mailrail_ingress.authentication import Authentication
from mailrail_ingress.ports import (
    FRAME_LIMIT,
    INLINE_LIMIT,
    NO_CREDIT,
    NO_ROOM,
    CommitAnswer,
    Origin,
    Provenance,
    ReceivedMessage,
    SenderDomain,
    Wire,
)
from mailrail_ingress.throttle import neighbourhood
from mailrail_ingress.transaction import AcceptedRecipient, MailTransaction, ends_here, recipients_of

LOOP: Final = Reply.of(554, "5.4.6", f"more than {RECEIVED_LIMIT} Received fields: the message is in a loop")
BAD_AUTHOR: Final = Reply.of(550, "5.6.0", "the From field cannot be read, so nobody can tell whose it is")
BARE_HEADER: Final = Reply.of(550, "5.6.0", "the message header has a CR or LF that stands alone")
"""BINARYMIME frees bodies from lines, not headers (RFC 3030 3): at the next hop without it such a CR or LF may become a
line end, and what stands behind it a field that nobody judged."""
NOT_YOUR_AUTHOR: Final = Reply.of(550, "5.7.1", "you may not send as an address of the From field")
ACCOUNT_GONE: Final = Reply.of(525, "5.7.13", "the account that you logged in as does not exist any more")
TOO_MANY_COPIES: Final = Reply.of(452, "4.5.3", "the aliases given stand for too many recipients")
ORIGINS_LIMIT: Final = 1024
"""Clients that a desk remembers."""
COPIES_LIMIT: Final = 20_000
"""Recipients of one message, aliases expanded."""
PARTS_LIMIT: Final = 1024
"""Pieces of content that are kept apart: of two octets each, they would take thirty times what they hold."""
_SENDER_FACTS: Final = {
    SenderDomain.NULL_MX: Reply.of(550, "5.7.27", "the sender's domain says that it sends no mail (null MX)"),
    SenderDomain.DOES_NOT_EXIST: Reply.of(550, "5.1.8", "the sender's domain does not exist"),
    SenderDomain.UNKNOWN: Reply.of(451, "4.4.3", "the sender's domain cannot be looked up for now; try again later"),
}
_MX: Final = Origin.MX


class _For:
    """What a client that is not read from waits for, as bits."""

    CREDIT = 1  # the queue takes no more of this message
    ROOM = 2  # too much mail is kept


class SmtpSession(Authentication):
    """One client's session, seen from what is decided about it."""

    __slots__ = ("_transaction", "_waits_for")

    def __init__(
        self,
        active_config: ActiveConfig,
        config: ListenerConfig,
        protocol: ServerSession,
        wire: Wire,
        client: IPv4Address | IPv6Address,
    ) -> None:
        super().__init__(active_config, config, protocol, wire, client)
        self._waits_for = 0
        self._transaction: MailTransaction | None = None

    def rebase(self, config: ListenerConfig) -> None:
        """A new revision: what is said from now on is judged by it. A transaction that is open ends as it began."""
        self.config = config
        self.protocol.options = config.options
        if self.account is not None:
            self.account = config.directory.account(self.account.ref) or self.account

    def handle(self, event: Event) -> None:
        """Answer an event of the session, now or later. Raises KeyError for those that are the shell's business."""
        HANDLERS[type(event)](self, event)

    def _hold(self, transaction: MailTransaction | None) -> MailTransaction | None:
        """Put another transaction, or none, in the place of the one that is open; returns that one."""
        before, self._transaction = self._transaction, transaction
        if transaction is not None:
            self.active_config.transactions += 1
        if before is not None:
            self.active_config.transactions -= 1
        return before

    def hang_up(self) -> None:
        """The client is gone. A commit that is under way goes on; whatever is not whole is dropped (SIN-18)."""
        super().hang_up()
        transaction = self._hold(None)
        if transaction is not None and not transaction.ended:
            if transaction.reader is not None:
                metrics.count(metrics.MESSAGES, self.config.label, "abandoned")
            self._drop(transaction)

    # --- senders ---

    def _sender(self, event: SenderGiven) -> None:
        sender, parameters = event.sender, event.parameters
        config = self.config
        limit = None
        if self.account is not None:
            if config.directory.account(self.account.ref) is None:
                self._refuse_sender(sender, ACCOUNT_GONE)
                return
            limit = self.account.limits.message_size
            if limit is not None and (parameters.size or 0) > limit:
                self._refuse_sender(sender, too_big(limit))
                return
            if sender is not None and not config.directory.may_send(self.account.ref, sender):
                self._refuse_sender(sender, NOT_YOUR_ADDRESS)
                return
        if not self.active_config.queue.available:
            self._refuse_sender(sender, QUEUE_AWAY)
            return
        if (parameters.size or 0) > INLINE_LIMIT and not self._may_upload(parameters.size or 0):
            self._refuse_sender(sender, NO_ROOM)
            return
        # SIN-23a: at the MX alone, and not for what is ours
        look_up = (
            self.active_config.senders is not None
            and config.origin is _MX
            and not config.listener.accept_any_recipient
            and sender is not None
            and not sender.is_literal
            and not config.directory.is_ours(sender.domain)
        )
        if not look_up:
            self._accept_sender(sender, parameters, limit)
            return
        assert self.active_config.senders is not None
        assert sender is not None

        def done(facts: SenderDomain) -> None:
            if self.protocol.closed:
                return
            refusal = _SENDER_FACTS.get(facts)
            if refusal is None:
                self._accept_sender(sender, parameters, limit)
            else:
                self._refuse_sender(sender, refusal)
            self._wire.pump()

        self.active_config.senders.look_up(sender.domain, done)

    def _accept_sender(self, sender: Address | None, parameters: MailParameters, limit: int | None) -> None:
        self._hold(MailTransaction(sender, parameters))
        self.config.accepted.senders.number += 1
        self.protocol.accept(size_limit=limit)

    def _refuse_sender(self, sender: Address | None, reply: Reply) -> None:
        metrics.count(metrics.SENDERS, self.config.label, "refused" if reply.permanent else "deferred")
        self._log("sender refused", sender=str(sender or ""), reply=str(reply))
        self.protocol.refuse(reply)

    # --- recipients ---

    def _recipient(self, event: RecipientGiven) -> None:
        transaction = self._transaction
        assert transaction is not None
        config = self.config
        found = config.directory.resolve(
            event.recipient, authenticated=self.account is not None, captive=config.listener.accept_any_recipient
        )
        if isinstance(found, Reply):
            self._refuse_recipient(event.recipient, found)
            return
        unsure = [d for d in found.destinations if d.verify]
        if not unsure:
            self._accept_recipient(transaction, event, found)
            return
        # An alias may lead to several such addresses; the one that was written is what the client can be told about.
        verification = self.active_config.verification
        transport = config.directory.transport(unsure[0].domain)
        if verification is None or transport is None:
            self._refuse_recipient(event.recipient, VERIFICATION_UNAVAILABLE)
            return

        def done(refusal: Reply | None) -> None:
            if self.protocol.closed or self._transaction is not transaction:
                return
            if refusal is None:
                self._accept_recipient(transaction, event, found)
            else:
                self._refuse_recipient(event.recipient, refusal)
            self._wire.pump()

        verification.verify(str(unsure[0].address), transport, done)

    def _accept_recipient(self, transaction: MailTransaction, event: RecipientGiven, found: Resolution) -> None:
        copies = transaction.copies + len(found.destinations)
        if copies > COPIES_LIMIT and transaction.given:
            self._refuse_recipient(event.recipient, TOO_MANY_COPIES)
            return
        if found.missing:
            self._tell_of_missing(event.recipient, found)
        transaction.copies = copies
        transaction.given.append(AcceptedRecipient(event.recipient, event.parameters, found))
        self.config.accepted.recipients.number += 1
        self.protocol.accept()

    def _tell_of_missing(self, recipient: Address, found: Resolution) -> None:
        """Once a revision for each address: strangers may write to the alias as often as they like."""
        new = [str(address) for address in found.missing if address.key not in self.config.missing]
        if new:
            self.config.missing.update(address.key for address in found.missing)
            self.active_config.log.warning(
                "alias has addresses that do not exist; mail goes to the others",
                recipient=str(recipient),
                missing=new[:20],
                count=len(new),
            )

    def _refuse_recipient(self, recipient: Address, reply: Reply) -> None:
        metrics.count(metrics.RECIPIENTS, self.config.label, "refused" if reply.permanent else "deferred")
        self._log("recipient refused", recipient=str(recipient), reply=str(reply))
        self.protocol.refuse(reply)

    # --- content ---

    def _begin(self, _: ContentStarted) -> None:
        transaction = self._transaction
        assert transaction is not None
        if not self.active_config.queue.available:
            self._hold(None)
            self.protocol.refuse(QUEUE_AWAY)
            return
        transaction.id = self.active_config.ids.new(self.active_config.clock())
        transaction.name = transaction.id.hex()
        transaction.reader = ContentReader(self._edit, lines=transaction.parameters.body is not BodyType.BINARY_MIME)
        self.protocol.accept()

    def _edit(self, header: Header) -> bytes | Reply:
        """Judge a header and say what is kept of it (SIN-13, SIN-15, SUB-03, SUB-04, SUB-05a)."""
        transaction = self._transaction
        assert transaction is not None
        if header.count(b"received", RECEIVED_LIMIT + 1) > RECEIVED_LIMIT:
            return LOOP
        if transaction.parameters.body is BodyType.BINARY_MIME and has_bare_line_ends(header.block):
            return BARE_HEADER
        transaction.subject = subject(header)
        unwanted = foreign_results(header, self.config.gateway.hostname)
        if self.account is None:
            transaction.message_id = message_id(header)
            written = header.named(b"return-path")
            if written and ends_here(transaction.given):
                unwanted += written  # the mailbox writes the one that counts (RFC 5321 4.4, SIN-24a)
            return header.without(unwanted)
        try:
            # The first that is not the account's is the last that is looked at.
            theirs = all(self.config.directory.may_send(self.account.ref, a) for a in author_addresses(header))
        except HeaderError:
            return BAD_AUTHOR
        if not theirs:
            return NOT_YOUR_AUTHOR
        block = header.without([*unwanted, *(field for name in HIDDEN for field in header.named(name))])
        added = b""
        if not header.has(b"date"):  # SUB-04
            added += f"Date: {date(self.active_config.clock())}\r\n".encode()
        transaction.message_id = message_id(header)
        if not header.has(b"message-id"):
            transaction.message_id = f"<{uuid.UUID(bytes=transaction.id)}@{self.config.gateway.hostname}>"
            added += f"Message-ID: {transaction.message_id}\r\n".encode()
        if added and block and not block.endswith(b"\n"):
            block += b"\r\n"  # BDAT may end inside a line
        return block + added

    def _content(self, event: Content) -> None:
        transaction = self._transaction
        if transaction is None or transaction.refusal is not None:
            return
        assert transaction.reader is not None
        self._store(transaction, transaction.reader.feed(event.data))
        self._check(transaction)
        self._weigh(transaction)

    def _weigh(self, transaction: MailTransaction) -> None:
        """Tell the budget what is kept of a message. While it is tight, who keeps more than its share sends the
        body on, and has to wait if it is a header."""
        if transaction.refusal is not None:
            return
        budget = self.active_config.budget
        kept = self._charge(transaction)
        if budget.tight and kept > budget.share and transaction.stored:
            self._upload(transaction)
            self._send(transaction, everything=True)
            self._charge(transaction)
        elif budget.tight and kept > budget.share:
            if not budget.waiting:
                self.active_config.log.warning(
                    "memory budget used up; reading from clients is paused", octets=budget.held
                )
            budget.wait(self._has_room)
            self._wait(_For.ROOM)

    def _charge(self, transaction: MailTransaction) -> int:
        """Returns the octets that are kept."""
        assert transaction.reader is not None
        kept = transaction.reader.held + transaction.stored
        if kept != transaction.charged:
            self.active_config.budget.change(transaction.charged, kept)
            transaction.charged = kept
        return kept

    def _has_room(self) -> None:
        self._go_on(_For.ROOM)

    def _wait(self, reason: int) -> None:
        if not self._waits_for & reason:
            metrics.count(metrics.PAUSES, "credit" if reason == _For.CREDIT else "memory")
        if not self._waits_for:
            self._wire.pause()
        self._waits_for |= reason

    def _go_on(self, reasons: int) -> None:
        if self._waits_for & reasons:
            self._waits_for &= ~reasons
            if not self._waits_for:
                self._wire.resume()

    def _drop(self, transaction: MailTransaction) -> None:
        """Nothing of it will be committed, and nothing of it is kept."""
        transaction.drop()
        self._give_up_upload(transaction)
        self._release(transaction)

    def _give_up_upload(self, transaction: MailTransaction) -> None:
        if transaction.uploaded:
            uncommitted = self.active_config.uncommitted
            uncommitted.given_up(transaction.uploader, transaction.uploaded, self.active_config.monotonic())
            transaction.uploaded = 0

    def _release(self, transaction: MailTransaction) -> None:
        if transaction.charged:
            self.active_config.budget.change(transaction.charged, 0)
            transaction.charged = 0
        if self._waits_for & _For.ROOM:
            self.active_config.budget.forget(self._has_room)

    def _check(self, transaction: MailTransaction) -> None:
        assert transaction.reader is not None
        if transaction.reader.refusal is not None:
            self._refuse_content(transaction, transaction.reader.refusal)

    def _refuse_content(self, transaction: MailTransaction, reply: Reply) -> None:
        """It is read to its end all the same, and refused there (EXT-01, ACC-05)."""
        if transaction.refusal is None:
            transaction.refusal = reply
        self._drop(transaction)
        self._go_on(_For.CREDIT | _For.ROOM)

    def _store(self, transaction: MailTransaction, data: bytes) -> None:
        if not data:
            return
        parts = transaction.parts
        if len(parts) >= PARTS_LIMIT:
            parts[:] = [b"".join(parts)]
        parts.append(data)
        transaction.stored += len(data)
        if transaction.upload is None:
            if transaction.stored <= INLINE_LIMIT:
                return
            if not self._may_upload():
                self._refuse_content(transaction, NO_ROOM)
                return
            self._upload(transaction)
        if transaction.stored >= FRAME_LIMIT:
            self._send(transaction, everything=False)

    @property
    def _uploader(self) -> str:
        """Whose large bodies are counted together (ACC-07)."""
        if self.account is not None:
            return f"{self.account.ref.namespace}/{self.account.ref.name}"
        return neighbourhood(self.client)

    def _may_upload(self, size: int = 0) -> bool:
        """Whether another large body, of so many octets if that is known, may begin."""
        full = self.active_config.uncommitted.admits(self._uploader, self.active_config.monotonic(), size)
        return self._has_capacity(full)

    def _has_capacity(self, full: Full | None) -> bool:
        if full is not None:
            metrics.count(metrics.UPLOADS_REFUSED, full.value)
        return full is None

    def _upload(self, transaction: MailTransaction) -> None:
        """Begin to send the body, unless that is begun."""
        if transaction.upload is None:
            transaction.uploader = self._uploader
            transaction.upload = self.active_config.queue.upload(
                transaction.id, lambda: self._credit(transaction), lambda: self._lost(transaction)
            )

    def _count_upload(self, transaction: MailTransaction, octets: int) -> bool:
        """Whether there is room for so much more of it. A small message, sent on to save memory, has it always."""
        uncommitted = self.active_config.uncommitted
        if transaction.uploaded + octets <= INLINE_LIMIT:
            uncommitted.count(transaction.uploader, octets)
        elif not self._has_capacity(uncommitted.add(transaction.uploader, octets, self.active_config.monotonic())):
            return False
        transaction.uploaded += octets
        return True

    def _send(self, transaction: MailTransaction, *, everything: bool, last: bool = False) -> None:
        """Frames of FRAME_LIMIT octets; with `everything` the one at the end may be shorter. `last`: no more comes."""
        waiting = b"".join(transaction.parts)
        transaction.parts.clear()
        upload = transaction.upload
        assert upload is not None
        at = 0
        more = True
        size = len(waiting) if everything else len(waiting) - len(waiting) % FRAME_LIMIT
        if not self._count_upload(transaction, size):
            self._refuse_content(transaction, NO_ROOM)
            return
        while len(waiting) - at >= FRAME_LIMIT or (everything and at < len(waiting)):
            more = upload.send(waiting[at : at + FRAME_LIMIT])
            at += FRAME_LIMIT
        rest = waiting[at:]
        transaction.stored = len(rest)
        if rest:
            transaction.parts.append(rest)
        if not more and not last:
            self._wait(_For.CREDIT)

    def _credit(self, transaction: MailTransaction) -> None:
        """The queue takes more."""
        if self._transaction is transaction:
            self._go_on(_For.CREDIT)

    def _lost(self, transaction: MailTransaction) -> None:
        """The queue went away and the body with it: read to the end, then 451, never resumed elsewhere (ACC-05)."""
        if self._transaction is transaction:
            transaction.upload = None
            self._refuse_content(transaction, QUEUE_AWAY)

    def out_of_credit(self) -> None:
        """No credit came for too long (ACC-07). A message that is whole is the queue's port to answer for."""
        if self._transaction is not None and not self._transaction.ended:
            self._refuse_content(self._transaction, NO_CREDIT)

    def _end(self, _: ContentEnded) -> None:
        transaction = self._transaction
        assert transaction is not None
        reader = transaction.reader
        assert reader is not None
        if transaction.refusal is None:
            self._store(transaction, reader.finish())
            self._check(transaction)
        uploaded = transaction.upload is not None
        if uploaded and transaction.refusal is None:
            self._send(transaction, everything=True, last=True)
        if transaction.refusal is not None:
            self._hold(None)
            self._finish_refused(transaction, transaction.refusal)
            return
        body = None if uploaded else b"".join(transaction.parts)
        transaction.ended = self.active_config.clock()
        self._weigh_whole(transaction, body)
        message = self._message(transaction, reader, body)
        transaction.parts.clear()
        self.active_config.queue.commit(message, lambda answer: self._on_answer(transaction, message, answer))

    def _weigh_whole(self, transaction: MailTransaction, body: bytes | None) -> None:
        """A message that is whole waits for its answer, and its client for nothing else."""
        kept = len(body) if body is not None else 0
        if kept != transaction.charged:
            self.active_config.budget.change(transaction.charged, kept)
            transaction.charged = kept
        if self._waits_for:
            self.active_config.budget.forget(self._has_room)
            self._go_on(_For.CREDIT | _For.ROOM)

    def _finish_refused(self, transaction: MailTransaction, reply: Reply) -> None:
        metrics.count(metrics.MESSAGES, self.config.label, "refused" if reply.permanent else "deferred")
        self._log("message refused", id=transaction.name, sender=str(transaction.sender or ""), reply=str(reply))
        self.protocol.finish(reply)

    def _message_origin(self, *, smtputf8: bool) -> MessageOrigin:
        """Where a message comes from: made once for a client, which sends many in a session or comes again."""
        config, protocol, account = self.config, self.protocol, self.account
        login = account.ref if account is not None else None
        key = (self.client_text, protocol.hello, protocol.extended, protocol.tls, smtputf8, login)
        origin = config.origins.get(key)
        if origin is None:
            keyword = with_keyword(
                extended=protocol.extended,
                tls=protocol.tls is not None,
                authenticated=account is not None,
                smtputf8=smtputf8,
            )
            origin = MessageOrigin(
                Provenance(
                    config.origin, config.gateway.ref, login, self.client_text, protocol.hello or "", config.revision
                ),
                Received(
                    hello=protocol.hello or "unknown",
                    client=self.client,
                    by=config.gateway.hostname,
                    protocol=keyword,
                    tls=protocol.tls,
                ),
            )
            if len(config.origins) >= ORIGINS_LIMIT:
                config.origins.clear()
            config.origins[key] = origin
        return origin

    def _message(self, transaction: MailTransaction, reader: ContentReader, body: bytes | None) -> ReceivedMessage:
        parameters, given = transaction.parameters, transaction.given
        origin = self._message_origin(smtputf8=parameters.smtputf8)
        recipients = recipients_of(given)
        for_one = recipients[0].given if len(given) == 1 else None
        prefix = origin.received.field(transaction.name, for_one, transaction.ended)
        if reader.needs_separator:
            prefix += b"\r\n"
        return ReceivedMessage(
            id=transaction.id,
            provenance=origin.provenance,
            sender=transaction.sender,
            parameters=parameters,
            auth=self._trusted_auth(parameters.auth),
            message_id=transaction.message_id,
            subject=transaction.subject,
            received=transaction.ended,
            eight_bit=reader.eight_bit,
            recipients=recipients,
            prefix=prefix,
            body=body,
            size=len(prefix) + reader.size,
        )

    def _trusted_auth(self, auth: str | None) -> str | None:
        """AUTH= of MAIL: kept where the account owns the mailbox that it names, else `<>` (RFC 4954 5, AUTH-06)."""
        if auth is None or auth == "<>":
            return auth
        try:
            address = parse_address(xtext_decode(auth))
        except (AddressError, ValueError):
            return "<>"
        owned = self.account is not None and self.config.directory.may_send(self.account.ref, address)
        return auth if owned else "<>"

    def _on_answer(self, transaction: MailTransaction, message: ReceivedMessage, answer: CommitAnswer) -> None:
        active_config, protocol = self.active_config, self.protocol
        metrics.COMMIT_SECONDS.observe(max(0.0, active_config.clock() - transaction.ended))
        self._release(transaction)
        if transaction.uploaded and answer.accepted:
            active_config.uncommitted.committed(transaction.uploader, transaction.uploaded)
        else:
            self._give_up_upload(transaction)
        heard = self._transaction is transaction and not protocol.closed
        refusal = None if answer.accepted else answer.refusal or QUEUE_AWAY
        if refusal is None:
            accepted = self.config.accepted
            accepted.messages.number += 1
            accepted.octets.number += message.size
        else:
            metrics.count(metrics.MESSAGES, self.config.label, "refused" if refusal.permanent else "deferred")
        if active_config.log_messages:
            self._log(
                "message accepted" if refusal is None else "message refused",
                id=transaction.name,
                sender=str(message.sender or ""),
                recipients=len(message.recipients),
                size=message.size,
                header_id=message.message_id,
                heard=heard,
                **({} if refusal is None else {"reply": str(refusal)}),
            )
        if heard:
            self._hold(None)
            protocol.finish(refusal, identifier=transaction.name)
            self._wire.pump()

    def _abandoned(self, event: Abandoned) -> None:
        transaction = self._hold(None)
        if transaction is not None and not transaction.ended:
            if transaction.reader is not None:
                metrics.count(metrics.MESSAGES, self.config.label, "abandoned")
                self._log("message abandoned", id=transaction.name, reason=event.reason)
            self._refuse_content(transaction, QUEUE_AWAY)  # nobody hears it; it frees what is held


HANDLERS: Final[dict[type, Callable[[SmtpSession, Event], None]]] = {
    SenderGiven: SmtpSession._sender,  # type: ignore[dict-item]
    RecipientGiven: SmtpSession._recipient,  # type: ignore[dict-item]
    ContentStarted: SmtpSession._begin,  # type: ignore[dict-item]
    Content: SmtpSession._content,  # type: ignore[dict-item]
    ContentEnded: SmtpSession._end,  # type: ignore[dict-item]
    Abandoned: SmtpSession._abandoned,  # type: ignore[dict-item]
    AuthRequested: SmtpSession._login,  # type: ignore[dict-item]
    AuthResponse: SmtpSession._response,  # type: ignore[dict-item]
    AuthCancelled: SmtpSession._login_cancelled,  # type: ignore[dict-item]
}
"""What a visit does about an event. Those that are missing are the shell's business."""
