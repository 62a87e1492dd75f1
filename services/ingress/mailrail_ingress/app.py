"""What ingress decides: senders, recipients, logins and content, for one client at a time.

`Reception` holds what a configuration revision means for each listener (`Desk`), and swaps it whole. A `Visit` goes
with one SMTP session: it answers the session's events from the desk, collects the transaction, streams the content to
the queue and answers 250 when the queue has committed (SIN-01, ACC-01..07). Nothing here knows sockets; the shell that
does is told to go on (`Wire.pump`), to stop reading and to read again.
"""

import asyncio
import logging
import os
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Final, NamedTuple, Protocol

from mailrail.core.config.revision import Account, Gateway, Listener, ObjectRef, Revision
from mailrail.core.config.revision import Protocol as ListenerProtocol
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
from mailrail.core.message.intake import Intake
from mailrail.core.recipients import (
    NOT_YOUR_ADDRESS,
    VERIFICATION_UNAVAILABLE,
    Destination,
    Directory,
    Resolution,
    passed_on,
)
from mailrail.core.sasl.server import (
    Challenge,
    CheckPassword,
    CramMd5,
    Failure,
    Login,
    Mechanism,
    Plain,
    Scram,
    Step,
    Success,
    UnexpectedInitialResponse,
    prepared,
)
from mailrail.core.smtp.address import Address, AddressError, parse_address
from mailrail.core.smtp.client import has_bare_line_ends
from mailrail.core.smtp.parameters import Body, MailParameters, RcptParameters, xtext_decode
from mailrail.core.smtp.reply import Reply
from mailrail.core.smtp.server import (
    Abandoned,
    AuthCancelled,
    AuthRequested,
    AuthResponse,
    Content,
    ContentEnded,
    ContentStarted,
    Event,
    Options,
    RecipientGiven,
    SenderGiven,
    ServerSession,
    too_big,
)
from mailrail.kit import log
from mailrail.kit import metrics as kit_metrics
from mailrail_ingress import metrics
from mailrail_ingress.accounts import Accounts
from mailrail_ingress.budget import Budget
from mailrail_ingress.ports import (
    FRAME_LIMIT,
    INLINE_LIMIT,
    NO_CREDIT,
    Answer,
    Message,
    Origin,
    Provenance,
    Queue,
    Recipient,
    SenderDomain,
    SenderDomains,
    Upload,
    Verification,
)
from mailrail_ingress.settings import IngressSettings
from mailrail_ingress.throttle import Throttle, neighbourhood
from mailrail_ingress.tls import BadCertificate, Identity, load

QUEUE_AWAY: Final = Reply.of(451, "4.3.0", "mail cannot be stored for now; try again later")
LOOP: Final = Reply.of(554, "5.4.6", f"more than {RECEIVED_LIMIT} Received fields: the message is in a loop")
BAD_AUTHOR: Final = Reply.of(550, "5.6.0", "the From field cannot be read, so nobody can tell whose it is")
BARE_HEADER: Final = Reply.of(550, "5.6.0", "the message header has a CR or LF that stands alone")
"""BINARYMIME frees bodies from lines, not headers (RFC 3030 3): at the next hop without it such a CR or LF may become a
line end, and what stands behind it a field that nobody judged."""
NOT_YOUR_AUTHOR: Final = Reply.of(550, "5.7.1", "you may not send as an address of the From field")
WRONG_CREDENTIALS: Final = Reply.of(535, "5.7.8", "login or password is wrong")
ACCOUNT_GONE: Final = Reply.of(525, "5.7.13", "the account that you logged in as does not exist any more")
WAIT_TO_LOGIN: Final = Reply.of(454, "4.7.0", "too many failed logins from your address; try again later")
LOGIN_UNAVAILABLE: Final = Reply.of(454, "4.7.0", "the login cannot be checked for now; try again later")
LOGIN_UNDER_ATTACK: Final = Reply.of(454, "4.7.0", "too many failed logins with this name; try again later")
NO_INITIAL_RESPONSE: Final = Reply.of(501, "5.7.0", "this mechanism takes no initial response")
TOO_MANY_COPIES: Final = Reply.of(452, "4.5.3", "the aliases given stand for too many recipients")
WHENCES_LIMIT: Final = 1024
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
_PROTOCOLS: Final = {
    ListenerProtocol.MX: Origin.MX,
    ListenerProtocol.SUBMISSION: Origin.SUBMISSION,
    ListenerProtocol.SUBMISSIONS: Origin.SUBMISSION,
}


class Wire(Protocol):
    """The shell around a session, as far as a visit needs it."""

    def pump(self) -> None:
        """An answer was given: go on with what has come meanwhile, unless that is being done."""
        ...

    def pause(self) -> None:
        """Stop reading the client (ACC-07)."""
        ...

    def resume(self) -> None:
        """Read again."""
        ...


@dataclass(frozen=True, slots=True, order=True)
class Door:
    """Which listener of which gateway; stays the same over revisions."""

    gateway: ObjectRef
    listener: str

    def __hash__(self) -> int:
        return hash((self.gateway.name, self.listener))  # each connection asks for it


@dataclass(frozen=True, slots=True, eq=False)
class Desk:
    """What one listener offers under one revision, indexed and ready."""

    door: Door
    gateway: Gateway
    listener: Listener
    options: Options
    directory: Directory
    accounts: Accounts
    identity: Identity | None
    bindings: Mapping[str, bytes]
    revision: int
    origin: Origin
    label: str
    """The `origin` label of metrics."""
    accepted: metrics.Mail
    """What is counted of accepted mail."""
    connections: metrics.Connections
    """What is counted of accepted connections."""
    whences: dict[tuple[object, ...], "_Whence"]
    """Where mail came from before; see Visit."""


class Reception:
    """All desks of the revision in force."""

    def __init__(
        self,
        settings: IngressSettings,
        queue: Queue,
        *,
        fake_key: bytes,
        senders: SenderDomains | None = None,
        verification: Verification | None = None,
        budget: Budget | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.settings = settings
        self.queue = queue
        self.senders = senders
        self.verification = verification
        self.clock = clock
        self.budget = budget or Budget(settings.held_octets)
        self.throttle = Throttle()
        self.ids = MessageIds()
        self.desks: dict[Door, Desk] = {}
        self.configured = False
        """Whether there ever was a revision; one without a gateway counts."""
        self.log = log.get_logger()
        self.log_messages = settings.log_messages and self.log.is_enabled_for(logging.INFO)
        self.transactions = 0
        """Transactions that are open: how much company a commit may expect on its way."""
        self._fake_key = fake_key
        self._identities: dict[str, Identity | None] = {}
        self._accounts: Accounts | None = None

    def configure(self, revision: Revision, number: int, secrets: Mapping[str, bytes]) -> None:
        """Swap to a revision. Raises ValueError when there is no gateway of the configured name in it."""
        gateways = [g for g in revision.gateways if self.settings.gateway in ("", f"{g.ref.namespace}/{g.ref.name}")]
        if self.settings.gateway and not gateways:
            raise ValueError(f"the configuration has no gateway {self.settings.gateway}")
        accounts = Accounts(revision, secrets, self._fake_key)
        identities: dict[str, Identity | None] = {}
        desks: dict[Door, Desk] = {}
        for gateway in gateways:
            directory = Directory(revision, gateway)
            for listener in gateway.listeners:
                identity = self._identity(listener, secrets, identities)
                desk = self._desk(gateway, listener, directory, accounts, identity, number)
                desks[desk.door] = desk
        self._identities = identities
        self.desks = desks
        self.configured = True
        kit_metrics.certificates("smtp", (secrets.get(path) if found else None for path, found in identities.items()))

    def _identity(
        self, listener: Listener, secrets: Mapping[str, bytes], identities: dict[str, Identity | None]
    ) -> Identity | None:
        if listener.certificate is None:
            return None
        path = listener.certificate.path
        if path not in identities:
            identities[path] = self._identities.get(path)
            if identities[path] is None:
                try:
                    identities[path] = load(secrets[path])
                except (KeyError, BadCertificate) as error:
                    # The listener serves without it: STARTTLS is answered 454, and the log says why (TLS-01).
                    reason = "it was not delivered" if isinstance(error, KeyError) else str(error)
                    self.log.error("certificate unusable", listener=listener.name, error=reason)
        return identities[path]

    def _desk(
        self,
        gateway: Gateway,
        listener: Listener,
        directory: Directory,
        accounts: Accounts,
        identity: Identity | None,
        number: int,
    ) -> Desk:
        bindings: dict[str, bytes] = {}
        if self.settings.bind_server_end_point and identity is not None and identity.end_point is not None:
            bindings["tls-server-end-point"] = identity.end_point
        mechanisms = tuple(
            name for name in listener.mechanisms if name in accounts.usable and (bindings or not name.endswith("-PLUS"))
        )
        origin = _PROTOCOLS[listener.protocol]
        submission = origin is Origin.SUBMISSION
        limits = gateway.limits
        options = Options(
            hostname=gateway.hostname,
            submission=submission,
            size_limit=limits.message_size,
            recipient_limit=limits.recipients,
            starttls=listener.certificate is not None,
            starttls_ready=identity is not None,
            require_tls=listener.require_tls,
            mechanisms=mechanisms if submission else (),  # AUTH is never offered to strangers (design 5)
            longest_hold=limits.future_release,
            error_limit=limits.errors,
            repair_chunks=self.settings.repair_chunks,
        )
        door = Door(gateway.ref, listener.name)
        label = origin.name.lower()
        return Desk(
            door=door,
            gateway=gateway,
            listener=listener,
            options=options,
            directory=directory,
            accounts=accounts,
            identity=identity,
            bindings=bindings,
            revision=number,
            origin=origin,
            label=label,
            accepted=metrics.Mail(label),
            connections=metrics.Connections(listener.protocol.value),
            whences={},
        )

    def resolve(self, address: Address, account: Account | None) -> Resolution | Reply:
        """How RCPT would be answered, for administrators (IngressService.ResolveRecipient)."""
        if not self.desks:
            return QUEUE_AWAY
        desk = next(iter(sorted(self.desks.values(), key=lambda d: d.door)))
        captive = account is None and any(d.listener.accept_any_recipient for d in self.desks.values())
        return desk.directory.resolve(address, authenticated=account is not None, captive=captive)


@dataclass(slots=True)
class _Given:
    """A recipient that was accepted, with what it stands for."""

    address: Address
    parameters: RcptParameters
    resolution: Resolution


class _Transaction:
    """From MAIL to the answer after the content."""

    __slots__ = (
        "charged",
        "copies",
        "ended",
        "given",
        "id",
        "intake",
        "message_id",
        "name",
        "parameters",
        "parts",
        "refusal",
        "sender",
        "stored",
        "subject",
        "upload",
    )

    def __init__(self, sender: Address | None, parameters: MailParameters) -> None:
        self.sender = sender
        self.parameters = parameters
        self.given: list[_Given] = []
        self.copies = 0
        self.id = b""
        self.name = ""  # the id in hexadecimal
        self.intake: Intake | None = None
        self.parts: list[bytes] = []
        self.stored = 0  # octets in `parts`
        self.charged = 0  # octets that the budget knows of
        self.upload: Upload | None = None
        self.refusal: Reply | None = None
        self.message_id: str | None = None
        self.subject: str | None = None
        self.ended = 0.0

    def drop(self) -> None:
        """Nothing of it will be committed."""
        self.parts.clear()
        self.stored = 0
        if self.intake is not None:
            self.intake.drop()
        if self.upload is not None:
            self.upload.abort()
            self.upload = None


class _Whence(NamedTuple):
    """What all messages of a client share."""

    provenance: Provenance
    received: Received


class MessageIds:
    """16 octets each, unique, sorted by time (UUID version 7), so that rows made together lie together (ACC-04)."""

    __slots__ = ("_at", "_random")

    def __init__(self) -> None:
        self._random = b""  # fetched for many at a time: asking the kernel takes longer than all else
        self._at = 0

    def new(self, now: float) -> bytes:
        """One for a message that begins now (Unix time)."""
        at = self._at
        if at == len(self._random):
            self._random = os.urandom(10 * 256)
            at = 0
        self._at = at + 10
        made = bytearray(int(now * 1000).to_bytes(6, "big") + self._random[at : at + 10])
        made[6] = 0x70 | (made[6] & 0x0F)
        made[8] = 0x80 | (made[8] & 0x3F)
        return bytes(made)


class _For:
    """What a client that is not read from waits for, as bits."""

    CREDIT = 1  # the queue takes no more of this message
    ROOM = 2  # too much mail is kept


class Visit:
    """One client's session, seen from what is decided about it."""

    __slots__ = (
        "_mechanism",
        "_mechanism_name",
        "_transaction",
        "_waits_for",
        "_wire",
        "account",
        "client",
        "client_text",
        "desk",
        "reception",
        "session",
    )

    def __init__(
        self, reception: Reception, desk: Desk, session: ServerSession, wire: Wire, client: IPv4Address | IPv6Address
    ) -> None:
        self.reception = reception
        self.desk = desk
        self.session = session
        self.client = client
        self.client_text = str(client)
        self.account: Account | None = None
        self._waits_for = 0
        self._wire = wire
        self._transaction: _Transaction | None = None
        self._mechanism: Mechanism | None = None
        self._mechanism_name = ""

    def rebase(self, desk: Desk) -> None:
        """A new revision: what is said from now on is judged by it. A transaction that is open ends as it began."""
        self.desk = desk
        self.session.options = desk.options
        if self.account is not None:
            self.account = desk.directory.account(self.account.ref) or self.account

    def handle(self, event: Event) -> None:
        """Answer an event of the session, now or later. Raises KeyError for those that are the shell's business."""
        HANDLERS[type(event)](self, event)

    def _hold(self, transaction: _Transaction | None) -> _Transaction | None:
        """Put another transaction, or none, in the place of the one that is open; returns that one."""
        before, self._transaction = self._transaction, transaction
        if transaction is not None:
            self.reception.transactions += 1
        if before is not None:
            self.reception.transactions -= 1
        return before

    def gone(self) -> None:
        """The client is gone. A commit that is under way goes on; whatever is not whole is dropped (SIN-18)."""
        transaction = self._hold(None)
        if transaction is not None and not transaction.ended:
            if transaction.intake is not None:
                metrics.count(metrics.MESSAGES, self.desk.label, "abandoned")
            self._drop(transaction)

    # --- senders ---

    def _sender(self, event: SenderGiven) -> None:
        sender, parameters = event.sender, event.parameters
        desk = self.desk
        limit = None
        if self.account is not None:
            if desk.directory.account(self.account.ref) is None:
                self._refuse_sender(sender, ACCOUNT_GONE)
                return
            limit = self.account.limits.message_size
            if limit is not None and (parameters.size or 0) > limit:
                self._refuse_sender(sender, too_big(limit))
                return
            if sender is not None and not desk.directory.may_send(self.account.ref, sender):
                self._refuse_sender(sender, NOT_YOUR_ADDRESS)
                return
        if not self.reception.queue.available:
            self._refuse_sender(sender, QUEUE_AWAY)
            return
        look_up = (
            self.reception.senders is not None
            and desk.origin is _MX
            and not desk.listener.accept_any_recipient
            and sender is not None
            and not sender.is_literal
            and not desk.directory.is_ours(sender.domain)
        )
        if not look_up:
            self._accept_sender(sender, parameters, limit)
            return
        assert self.reception.senders is not None
        assert sender is not None

        def done(facts: SenderDomain) -> None:
            if self.session.closed:
                return
            refusal = _SENDER_FACTS.get(facts)
            if refusal is None:
                self._accept_sender(sender, parameters, limit)
            else:
                self._refuse_sender(sender, refusal)
            self._wire.pump()

        self.reception.senders.look_up(sender.domain, done)

    def _accept_sender(self, sender: Address | None, parameters: MailParameters, limit: int | None) -> None:
        self._hold(_Transaction(sender, parameters))
        self.desk.accepted.senders.number += 1
        self.session.accept(size_limit=limit)

    def _refuse_sender(self, sender: Address | None, reply: Reply) -> None:
        metrics.count(metrics.SENDERS, self.desk.label, "refused" if reply.permanent else "deferred")
        self._log("sender refused", sender=str(sender or ""), reply=str(reply))
        self.session.refuse(reply)

    # --- recipients ---

    def _recipient(self, event: RecipientGiven) -> None:
        transaction = self._transaction
        assert transaction is not None
        desk = self.desk
        found = desk.directory.resolve(
            event.recipient, authenticated=self.account is not None, captive=desk.listener.accept_any_recipient
        )
        if isinstance(found, Reply):
            self._refuse_recipient(event.recipient, found)
            return
        unsure = [d for d in found.destinations if d.verify]
        if not unsure:
            self._accept_recipient(transaction, event, found)
            return
        # An alias may lead to several such addresses; the one that was written is what the client can be told about.
        verification = self.reception.verification
        transport = desk.directory.transport(unsure[0].domain)
        if verification is None or transport is None:
            self._refuse_recipient(event.recipient, VERIFICATION_UNAVAILABLE)
            return

        def done(refusal: Reply | None) -> None:
            if self.session.closed or self._transaction is not transaction:
                return
            if refusal is None:
                self._accept_recipient(transaction, event, found)
            else:
                self._refuse_recipient(event.recipient, refusal)
            self._wire.pump()

        verification.verify(str(unsure[0].address), transport, done)

    def _accept_recipient(self, transaction: _Transaction, event: RecipientGiven, found: Resolution) -> None:
        copies = transaction.copies + len(found.destinations)
        if copies > COPIES_LIMIT and transaction.given:
            self._refuse_recipient(event.recipient, TOO_MANY_COPIES)
            return
        transaction.copies = copies
        transaction.given.append(_Given(event.recipient, event.parameters, found))
        self.desk.accepted.recipients.number += 1
        self.session.accept()

    def _refuse_recipient(self, recipient: Address, reply: Reply) -> None:
        metrics.count(metrics.RECIPIENTS, self.desk.label, "refused" if reply.permanent else "deferred")
        self._log("recipient refused", recipient=str(recipient), reply=str(reply))
        self.session.refuse(reply)

    # --- content ---

    def _begin(self, _: ContentStarted) -> None:
        transaction = self._transaction
        assert transaction is not None
        if not self.reception.queue.available:
            self._hold(None)
            self.session.refuse(QUEUE_AWAY)
            return
        transaction.id = self.reception.ids.new(self.reception.clock())
        transaction.name = transaction.id.hex()
        transaction.intake = Intake(self._edit, lines=transaction.parameters.body is not Body.BINARY_MIME)
        self.session.accept()

    def _edit(self, header: Header) -> bytes | Reply:
        """Judge a header and say what is kept of it (SIN-13, SIN-15, SUB-03..05)."""
        transaction = self._transaction
        assert transaction is not None
        if header.count(b"received") > RECEIVED_LIMIT:
            return LOOP
        if transaction.parameters.body is Body.BINARY_MIME and has_bare_line_ends(header.block):
            return BARE_HEADER
        transaction.subject = subject(header)
        unwanted = foreign_results(header, self.desk.gateway.hostname)
        if self.account is None:
            transaction.message_id = message_id(header)
            written = header.named(b"return-path")
            if written and _ends_here(transaction.given):
                unwanted += written  # the mailbox writes the one that counts (RFC 5321 4.4, SIN-24)
            return header.without(unwanted)
        try:
            authors = author_addresses(header)
        except HeaderError:
            return BAD_AUTHOR
        if not all(self.desk.directory.may_send(self.account.ref, author) for author in authors):
            return NOT_YOUR_AUTHOR
        block = header.without([*unwanted, *(field for field in header.fields if field.name in HIDDEN)])
        added = b""
        if not header.has(b"date"):
            added += f"Date: {date(self.reception.clock())}\r\n".encode()
        transaction.message_id = message_id(header)
        if not header.has(b"message-id"):
            transaction.message_id = f"<{uuid.UUID(bytes=transaction.id)}@{self.desk.gateway.hostname}>"
            added += f"Message-ID: {transaction.message_id}\r\n".encode()
        if added and block and not block.endswith(b"\n"):
            block += b"\r\n"  # BDAT may end inside a line
        return block + added

    def _content(self, event: Content) -> None:
        transaction = self._transaction
        if transaction is None or transaction.refusal is not None:
            return
        assert transaction.intake is not None
        self._store(transaction, transaction.intake.feed(event.data))
        self._check(transaction)
        self._weigh(transaction)

    def _weigh(self, transaction: _Transaction) -> None:
        """Tell the budget what is kept of a message; who keeps more than its share while it is tight has to wait."""
        if transaction.refusal is not None:
            return
        assert transaction.intake is not None
        budget = self.reception.budget
        kept = transaction.intake.held + transaction.stored
        if kept != transaction.charged:
            budget.change(transaction.charged, kept)
            transaction.charged = kept
        if budget.tight and kept > budget.share:
            if not budget.waiting:
                self.reception.log.warning("too much mail is kept; clients wait", octets=budget.held)
            budget.wait(self._has_room)
            self._wait(_For.ROOM)

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

    def _drop(self, transaction: _Transaction) -> None:
        """Nothing of it will be committed, and nothing of it is kept."""
        transaction.drop()
        self._release(transaction)

    def _release(self, transaction: _Transaction) -> None:
        if transaction.charged:
            self.reception.budget.change(transaction.charged, 0)
            transaction.charged = 0
        if self._waits_for & _For.ROOM:
            self.reception.budget.forget(self._has_room)

    def _check(self, transaction: _Transaction) -> None:
        assert transaction.intake is not None
        if transaction.intake.refusal is not None:
            self._refuse_content(transaction, transaction.intake.refusal)

    def _refuse_content(self, transaction: _Transaction, reply: Reply) -> None:
        """It is read to its end all the same, and refused there (EXT-01, ACC-05)."""
        if transaction.refusal is None:
            transaction.refusal = reply
        self._drop(transaction)
        self._go_on(_For.CREDIT | _For.ROOM)

    def _store(self, transaction: _Transaction, data: bytes) -> None:
        if not data:
            return
        parts = transaction.parts
        if len(parts) >= PARTS_LIMIT:
            parts[:] = [b"".join(parts)]
        parts.append(data)
        transaction.stored += len(data)
        budget = self.reception.budget
        hurry = budget.tight and transaction.stored > budget.share
        if transaction.upload is None:
            if transaction.stored <= INLINE_LIMIT and not hurry:
                return
            transaction.upload = self.reception.queue.upload(
                transaction.id, lambda: self._credit(transaction), lambda: self._lost(transaction)
            )
        if hurry or transaction.stored >= FRAME_LIMIT:
            self._send(transaction, everything=hurry)

    def _send(self, transaction: _Transaction, *, everything: bool, last: bool = False) -> None:
        """Frames of FRAME_LIMIT octets; with `everything` the one at the end may be shorter. `last`: no more comes."""
        waiting = b"".join(transaction.parts)
        transaction.parts.clear()
        upload = transaction.upload
        assert upload is not None
        at = 0
        more = True
        while len(waiting) - at >= FRAME_LIMIT or (everything and at < len(waiting)):
            more = upload.send(waiting[at : at + FRAME_LIMIT])
            at += FRAME_LIMIT
        rest = waiting[at:]
        transaction.stored = len(rest)
        if rest:
            transaction.parts.append(rest)
        if not more and not last:
            self._wait(_For.CREDIT)

    def _credit(self, transaction: _Transaction) -> None:
        """The queue takes more."""
        if self._transaction is transaction:
            self._go_on(_For.CREDIT)

    def _lost(self, transaction: _Transaction) -> None:
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
        intake = transaction.intake
        assert intake is not None
        if transaction.refusal is None:
            self._store(transaction, intake.finish())
            self._check(transaction)
        if transaction.refusal is not None:
            self._hold(None)
            self._finish_refused(transaction, transaction.refusal)
            return
        if transaction.upload is not None:
            self._send(transaction, everything=True, last=True)
            body = None
        else:
            body = b"".join(transaction.parts)
        transaction.ended = self.reception.clock()
        self._weigh_whole(transaction, body)
        message = self._message(transaction, intake, body)
        transaction.parts.clear()
        self.reception.queue.commit(message, lambda answer: self._committed(transaction, message, answer))

    def _weigh_whole(self, transaction: _Transaction, body: bytes | None) -> None:
        """A message that is whole waits for its answer, and its client for nothing else."""
        kept = len(body) if body is not None else 0
        if kept != transaction.charged:
            self.reception.budget.change(transaction.charged, kept)
            transaction.charged = kept
        if self._waits_for:
            self.reception.budget.forget(self._has_room)
            self._go_on(_For.CREDIT | _For.ROOM)

    def _finish_refused(self, transaction: _Transaction, reply: Reply) -> None:
        metrics.count(metrics.MESSAGES, self.desk.label, "refused" if reply.permanent else "deferred")
        self._log("message refused", id=transaction.name, sender=str(transaction.sender or ""), reply=str(reply))
        self.session.finish(reply)

    def _whence(self, *, smtputf8: bool) -> _Whence:
        """Where a message comes from: made once for a client, which sends many in a session or comes again."""
        desk, session, account = self.desk, self.session, self.account
        login = account.ref if account is not None else None
        key = (self.client_text, session.hello, session.extended, session.tls, smtputf8, login)
        whence = desk.whences.get(key)
        if whence is None:
            protocol = with_keyword(
                extended=session.extended,
                tls=session.tls is not None,
                authenticated=account is not None,
                smtputf8=smtputf8,
            )
            whence = _Whence(
                Provenance(desk.origin, desk.gateway.ref, login, self.client_text, session.hello or "", desk.revision),
                Received(
                    hello=session.hello or "unknown",
                    client=self.client,
                    by=desk.gateway.hostname,
                    protocol=protocol,
                    tls=session.tls,
                ),
            )
            if len(desk.whences) >= WHENCES_LIMIT:
                desk.whences.clear()
            desk.whences[key] = whence
        return whence

    def _message(self, transaction: _Transaction, intake: Intake, body: bytes | None) -> Message:
        parameters, given = transaction.parameters, transaction.given
        whence = self._whence(smtputf8=parameters.smtputf8)
        recipients = _recipients(given)
        for_one = recipients[0].given if len(given) == 1 else None
        prefix = whence.received.field(transaction.name, for_one, transaction.ended)
        if intake.needs_separator:
            prefix += b"\r\n"
        return Message(
            id=transaction.id,
            provenance=whence.provenance,
            sender=transaction.sender,
            parameters=parameters,
            auth=self._trusted_auth(parameters.auth),
            message_id=transaction.message_id,
            subject=transaction.subject,
            received=transaction.ended,
            eight_bit=intake.eight_bit,
            recipients=recipients,
            prefix=prefix,
            body=body,
            size=len(prefix) + intake.size,
        )

    def _trusted_auth(self, auth: str | None) -> str | None:
        """AUTH= of MAIL: kept where the account owns the mailbox that it names, else `<>` (RFC 4954 5, AUTH-06)."""
        if auth is None or auth == "<>":
            return auth
        try:
            address = parse_address(xtext_decode(auth))
        except (AddressError, ValueError):
            return "<>"
        owned = self.account is not None and self.desk.directory.may_send(self.account.ref, address)
        return auth if owned else "<>"

    def _committed(self, transaction: _Transaction, message: Message, answer: Answer) -> None:
        reception, session = self.reception, self.session
        metrics.COMMIT_SECONDS.observe(max(0.0, reception.clock() - transaction.ended))
        self._release(transaction)
        heard = self._transaction is transaction and not session.closed
        refusal = None if answer.accepted else answer.refusal or QUEUE_AWAY
        if refusal is None:
            accepted = self.desk.accepted
            accepted.messages.number += 1
            accepted.octets.number += message.size
        else:
            metrics.count(metrics.MESSAGES, self.desk.label, "refused" if refusal.permanent else "deferred")
        if reception.log_messages:
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
            session.finish(refusal, identifier=transaction.name)
            self._wire.pump()

    def _abandoned(self, event: Abandoned) -> None:
        transaction = self._hold(None)
        if transaction is not None and not transaction.ended:
            if transaction.intake is not None:
                metrics.count(metrics.MESSAGES, self.desk.label, "abandoned")
                self._log("message abandoned", id=transaction.name, reason=event.reason)
            self._refuse_content(transaction, QUEUE_AWAY)  # nobody hears it; it frees what is held

    # --- logins ---

    def _login(self, event: AuthRequested) -> None:
        name = event.mechanism
        if self.reception.throttle.blocks(neighbourhood(self.client), asyncio.get_running_loop().time()):
            metrics.count(metrics.LOGINS, name, "throttled")
            self.session.refuse(WAIT_TO_LOGIN)
            return
        self._mechanism_name = name
        self._mechanism = self._make_mechanism(name)
        self._step(self._mechanism.start(event.initial))

    def _make_mechanism(self, name: str) -> Mechanism:
        desk = self.desk
        if name == "PLAIN":
            return Plain()
        if name == "LOGIN":
            return Login()
        if name == "CRAM-MD5":
            now = self.reception.clock()
            number = int.from_bytes(os.urandom(8), "big")
            return CramMd5(desk.accounts, f"<{number}.{now:.6f}@{desk.gateway.hostname}>")
        plus = self.session.tls is not None and any(m.endswith("-PLUS") for m in desk.options.mechanisms)
        bindings = desk.bindings if self.session.tls is not None else {}
        return Scram(name, desk.accounts, os.urandom(18).hex(), bindings, plus_offered=plus)

    def _response(self, event: AuthResponse) -> None:
        assert self._mechanism is not None
        self._step(self._mechanism.respond(event.data))

    def _step(self, step: Step) -> None:
        match step:
            case Challenge(data):
                # What SCRAM says next tells whether the guess was right.
                if not (isinstance(self._mechanism, Scram) and self._has_to_wait(self._mechanism.login)):
                    self.session.challenge(data)
            case Success(login):
                if isinstance(self._mechanism, Scram) or not self._has_to_wait(login):
                    self._logged_in(login)
            case CheckPassword(login, password):
                if not self._has_to_wait(login):
                    self._check_password(login, password)
            case UnexpectedInitialResponse():
                metrics.count(metrics.LOGINS, self._mechanism_name, "malformed")
                self.session.refuse(NO_INITIAL_RESPONSE)
            case Failure(reason, login):
                if not self._has_to_wait(login):  # else 454 would say that a guess was right
                    self._not_logged_in(login, reason)

    def _has_to_wait(self, login: str) -> bool:
        """Whether too many guess at this login to hear of another guess; that is answered then (AUTH-05)."""
        throttle = self.reception.throttle
        now = asyncio.get_running_loop().time()
        if not throttle.blocks_login(prepared(login), neighbourhood(self.client), now):
            return False
        self._mechanism = None
        metrics.count(metrics.LOGINS, self._mechanism_name, "throttled")
        self._log("login refused", mechanism=self._mechanism_name, attempted=login[:200], reason="too many guess at it")
        self.session.refuse(LOGIN_UNDER_ATTACK)
        return True

    def _check_password(self, login: str, password: str) -> None:
        accounts = self.desk.accounts
        if accounts.recall(login, password):
            self._logged_in(login)
            return

        def done(checked: "asyncio.Future[bool]") -> None:
            if self.session.closed:
                return
            if not checked.cancelled() and checked.exception() is None and checked.result():
                accounts.remember(login, password)
                self._logged_in(login)
            else:
                self._not_logged_in(login, "wrong login or password")
            self._wire.pump()

        # A millisecond of hashing without the GIL: in a thread, so that other clients do not wait for it.
        loop = asyncio.get_running_loop()
        loop.run_in_executor(None, accounts.admits, login, password).add_done_callback(done)

    def _logged_in(self, login: str) -> None:
        self._mechanism = None
        account = self.desk.accounts.find(login)
        if account is None:  # the account went away between the exchange's steps
            self._not_logged_in(login, "no such account any more")
            return
        self.account = account
        now = asyncio.get_running_loop().time()
        self.reception.throttle.succeeded(prepared(login), neighbourhood(self.client), now)
        metrics.count(metrics.LOGINS, self._mechanism_name, "accepted")
        self._log("logged in", mechanism=self._mechanism_name)
        self.session.authenticated(account.login)

    def _not_logged_in(self, login: str, reason: str) -> None:
        self._mechanism = None
        if self.desk.accounts.lacks_secret(login, self._mechanism_name):
            metrics.count(metrics.LOGINS, self._mechanism_name, "unavailable")
            self.reception.log.error("login cannot be checked: its secret was not delivered", login=login[:200])
            self.session.refuse(LOGIN_UNAVAILABLE)
            return
        now = asyncio.get_running_loop().time()
        self.reception.throttle.failed(prepared(login), neighbourhood(self.client), now)
        metrics.count(metrics.LOGINS, self._mechanism_name, "refused")
        self._log("login refused", mechanism=self._mechanism_name, attempted=login[:200], reason=reason)
        self.session.refuse(WRONG_CREDENTIALS)

    def _login_cancelled(self, _: AuthCancelled) -> None:
        self._mechanism = None

    def tls_started(self) -> None:
        """Whatever was known of the client before TLS is void (AUTH-07)."""
        self.account = None
        self._mechanism = None

    def _log(self, event: str, **fields: object) -> None:
        self.reception.log.info(
            event,
            listener=self.desk.listener.name,
            client=self.client_text,
            hello=self.session.hello,
            login=self.account.login if self.account is not None else None,
            tls=self.session.tls.version if self.session.tls is not None else None,
            **fields,
        )


def _ends_here(given: list[_Given]) -> bool:
    """Whether a built-in mailbox is among the destinations."""
    return any(destination.account is not None for one in given for destination in one.resolution.destinations)


def _recipients(given: list[_Given]) -> list[Recipient]:
    """Every destination once; the first mention decides about its DSN parameters."""
    if len(given) == 1 and len(given[0].resolution.destinations) == 1:
        return [_recipient(given[0], given[0].resolution.destinations[0], given[0].parameters, expanded=False)]
    found: dict[tuple[str, ObjectRef | None, str], Recipient] = {}
    for one in given:
        parameters, expanded = passed_on(one.parameters, one.resolution)
        shared: list[Recipient] = []
        for destination in one.resolution.destinations:
            key = (destination.address.key, destination.account, destination.mailbox)
            if key in found:
                shared.append(found[key])
                continue
            found[key] = _recipient(one, destination, parameters, expanded=expanded)
            expanded = False  # one DSN tells of the expansion, not one a copy (DSN-23)
        if expanded:
            _tell_of(one, shared)
    return list(found.values())


def _tell_of(one: _Given, shared: list[Recipient]) -> None:
    """All that an alias stands for was given before: one of those carries its `expanded` DSN (DSN-23).

    What was asked for that one's delivery stays. One with an ORCPT of its own, or that tells of another alias, has no
    room for it.
    """
    for recipient in shared:
        if not recipient.expanded and recipient.orcpt is None:
            recipient.expanded = True
            recipient.given = str(one.address)
            recipient.orcpt = one.parameters.orcpt
            return


def _recipient(one: _Given, destination: Destination, parameters: RcptParameters, *, expanded: bool) -> Recipient:
    given = str(one.address)
    return Recipient(
        address=given if destination.address is one.address else str(destination.address),
        given=given,
        notify=parameters.notify,
        orcpt=parameters.orcpt,
        expanded=expanded,
        domain=destination.domain,
        account=destination.account,
        mailbox=destination.mailbox,
    )


HANDLERS: Final[dict[type, Callable[[Visit, Event], None]]] = {
    SenderGiven: Visit._sender,  # type: ignore[dict-item]
    RecipientGiven: Visit._recipient,  # type: ignore[dict-item]
    ContentStarted: Visit._begin,  # type: ignore[dict-item]
    Content: Visit._content,  # type: ignore[dict-item]
    ContentEnded: Visit._end,  # type: ignore[dict-item]
    Abandoned: Visit._abandoned,  # type: ignore[dict-item]
    AuthRequested: Visit._login,  # type: ignore[dict-item]
    AuthResponse: Visit._response,  # type: ignore[dict-item]
    AuthCancelled: Visit._login_cancelled,  # type: ignore[dict-item]
}
"""What a visit does about an event. Those that are missing are the shell's business."""
