"""What is decided in one SMTP session: senders, recipients and content; logins are in authentication.py.

An `SmtpSession` answers the protocol's events from the configuration of its listener, collects the transaction, has the
content checked (checks/content.py) and handed to the queue, and answers 250 when the queue has committed (SIN-01,
ACC-01..07). It knows no socket; the shell that has one is told to go on (`Wire.pump`), to stop reading and to read
again.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from ipaddress import IPv4Address, IPv6Address
from typing import Any, Final, get_args

from mailrail.core.dmarc.disposition import DmarcAction
from mailrail.core.dsn.due import SenderAuthentication
from mailrail.core.limits import INLINE_LIMIT
from mailrail.core.message.header import Received, with_keyword
from mailrail.core.message_authentication.findings import findings_of
from mailrail.core.message_authentication.verdict import ClientIdentity
from mailrail.core.probe import SIZE_LIMIT, in_probe_domain
from mailrail.core.route.decision import RoutingFacts
from mailrail.core.route.recipients import (
    NOT_YOUR_ADDRESS,
    VERIFICATION_UNAVAILABLE,
    Destination,
    How,
    Resolution,
)
from mailrail.core.route.site import SiteKind
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
    MailEvent,
    RecipientGiven,
    SenderGiven,
)
from mailrail.core.smtp.line_facts import LineFacts
from mailrail.core.smtp.parameters import NO_RCPT_PARAMETERS, BodyType, MailParameters, xtext_decode
from mailrail.core.smtp.phrases import too_big
from mailrail.core.smtp.reply import Reply
from mailrail.core.smtp.server import ServerSession
from mailrail.core.tlspolicy.decision import Requirement
from mailrail_ingress import metrics
from mailrail_ingress.active_config import QUEUE_AWAY, ActiveConfig, ListenerConfig, MessageOrigin
from mailrail_ingress.authentication import Authentication
from mailrail_ingress.checks import authentication
from mailrail_ingress.checks.content import ContentChecks
from mailrail_ingress.checks.verdicts import CheckedMessage, SenderEvidence
from mailrail_ingress.content import IncomingContent, has_capacity
from mailrail_ingress.ports import (
    NO_ROOM,
    CommitAnswer,
    DomainFacts,
    Origin,
    Provenance,
    ReceivedMessage,
    RecordedRecipients,
    Wire,
)
from mailrail_ingress.recipients import AcceptedRecipient, recipients_of
from mailrail_ingress.session_facts import SessionFacts
from mailrail_ingress.transaction import MailTransaction

ACCOUNT_GONE: Final = Reply.of(525, "5.7.13", "the account that you logged in as no longer exists")
TOO_MANY_COPIES: Final = Reply.of(452, "4.5.3", "the aliases expand to too many recipients")
ORIGINS_LIMIT: Final = 1024
"""Clients that a listener's configuration remembers."""
COPIES_LIMIT: Final = 20_000
"""Recipients of one message, aliases expanded."""
_SENDER_FACTS: Final = {
    DomainFacts.NULL_MX: Reply.of(550, "5.7.27", "the sender's domain does not send mail (null MX)"),
    DomainFacts.DOES_NOT_EXIST: Reply.of(550, "5.1.8", "the sender's domain does not exist"),
    DomainFacts.UNKNOWN: Reply.of(451, "4.4.3", "the sender's domain cannot be looked up for now; try again later"),
}
NOT_OF_A_PROBE: Final = Reply.of(550, "5.1.1", "a probe goes to its own address alone")
NULL_MX_RECIPIENT: Final = Reply.of(556, "5.1.10", "the recipient's domain accepts no mail (null MX)")
JUNK: Final = "Junk"
"""The built-in mailbox for what is quarantined (RFC 6154 2)."""
_MX: Final = Origin.MX
_DEFAULT: Final = Requirement.DEFAULT
_REQUIRED: Final = Requirement.REQUIRED
_TO_MX: Final = frozenset({SiteKind.DOMAIN, SiteKind.PROXY})


class SmtpSession:
    """One client's session, seen from what is decided about it."""

    __slots__ = ("_active_config", "_facts", "_protocol", "_transaction", "_wire", "authentication")

    def __init__(
        self,
        active_config: ActiveConfig,
        config: ListenerConfig,
        protocol: ServerSession,
        wire: Wire,
        client: IPv4Address | IPv6Address,
    ) -> None:
        self._active_config = active_config
        self._protocol = protocol
        self._wire = wire
        self._facts = SessionFacts(active_config, config, protocol, client)
        self._transaction: MailTransaction | None = None
        self.authentication = Authentication(self._facts, wire)

    @property
    def config(self) -> ListenerConfig:
        """What the client's listener offers."""
        return self._facts.config

    def rebase(self, config: ListenerConfig) -> None:
        """A new revision: what is said from now on is judged by it. A transaction that is open ends as it began."""
        facts = self._facts
        facts.config = config
        self._protocol.options = config.options
        if facts.account is not None:
            facts.account = config.directory.account(facts.account.ref) or facts.account

    def bind(self, bindings: Mapping[str, bytes]) -> None:
        """TLS began, with these channel bindings: who logged in before it has to again."""
        self._facts.bindings = bindings
        self.authentication.reset()

    def hang_up(self) -> None:
        """The client is gone. A commit that is under way goes on; whatever is not whole is dropped (SIN-18)."""
        self.authentication.hang_up()
        transaction = self._replace_transaction(None)
        if transaction is not None and not transaction.ended and transaction.content is not None:
            self._count(transaction, "abandoned")
            transaction.content.drop()

    @property
    def content_refused(self) -> bool:
        """Content that comes now is dropped: its message is refused, or there is none to which it belongs."""
        transaction = self._transaction
        return transaction is None or transaction.content is None or transaction.content.refusal is not None

    def time_out_credit(self) -> None:
        """The queue gave no credit for too long (ACC-07). A message that is whole is the queue's port to answer for."""
        transaction = self._transaction
        if transaction is not None and not transaction.ended and transaction.content is not None:
            transaction.content.time_out()

    def _replace_transaction(self, transaction: MailTransaction | None) -> MailTransaction | None:
        """Returns the one that was open."""
        before, self._transaction = self._transaction, transaction
        if transaction is not None:
            self._active_config.transactions.number += 1
        if before is not None:
            self._active_config.transactions.number -= 1
            if before.content is None and before.uncommitted is not None:  # else its content sees to it
                before.uncommitted.give_up(self._active_config.monotonic())
        return before

    def _count(self, transaction: MailTransaction, verdict: str) -> None:
        """A message that was not accepted; a probe counts in no metric of mail (decision 20)."""
        if not transaction.probe:
            metrics.MESSAGES.inc(self._facts.config.label, verdict)

    # --- senders ---

    def _on_sender(self, event: SenderGiven) -> None:
        sender, parameters = event.sender, event.parameters
        account, config = self._facts.account, self._facts.config
        limit = None
        if sender is not None and in_probe_domain(sender.domain) and self._active_config.probes(sender):
            self._begin_probe(sender, parameters)
            return
        if account is not None:
            if config.directory.account(account.ref) is None:
                self._refuse_sender(sender, ACCOUNT_GONE)
                return
            limit = account.limits.message_size
            if limit is not None and (parameters.size or 0) > limit:
                self._refuse_sender(sender, too_big(limit))
                return
            if sender is not None and not config.directory.may_send(account.ref, sender):
                self._refuse_sender(sender, NOT_YOUR_ADDRESS)
                return
        if not self._active_config.queue.available:
            self._refuse_sender(sender, QUEUE_AWAY)
            return
        domains = self._active_config.domains
        # SIN-23a: at the MX alone, and not for what is ours
        look_up = (
            domains is not None
            and config.origin is _MX
            and not config.listener.accept_any_recipient
            and sender is not None
            and not sender.is_literal
            and not config.directory.is_ours(sender.domain)
        )
        if not look_up:
            self._accept_sender(sender, parameters, limit)
            return
        assert domains is not None
        assert sender is not None

        def done(facts: DomainFacts) -> None:
            if self._protocol.closed:
                return
            refusal = _SENDER_FACTS.get(facts)
            if refusal is None:
                self._accept_sender(sender, parameters, limit)
            else:
                self._refuse_sender(sender, refusal)
            self._wire.pump()

        domains.look_up(sender.domain, done)

    def _begin_probe(self, sender: Address, parameters: MailParameters) -> None:
        """A message of our own operator to its own address (decision 20)."""
        if not self._active_config.queue.available:
            self._protocol.refuse(QUEUE_AWAY)
            return
        self._replace_transaction(MailTransaction(sender, parameters, probe=True))
        self._protocol.accept(size_limit=SIZE_LIMIT)

    def _accept_sender(self, sender: Address | None, parameters: MailParameters, limit: int | None) -> None:
        uncommitted = None
        if parameters.size is not None and parameters.size > INLINE_LIMIT:
            active_config = self._active_config
            facts, now = self._facts, active_config.monotonic()
            known = facts.account is not None or self._protocol.messages > 0
            uncommitted = active_config.uncommitted.body(facts.uploader, parameters.size, known=known)
            # ACC-07: before it sends, rather than in the middle
            if not has_capacity(uncommitted.may_start(now) or uncommitted.begin(now)):
                self._refuse_sender(sender, NO_ROOM)
                return
        self._replace_transaction(MailTransaction(sender, parameters, uncommitted))
        self._facts.config.accepted.senders.number += 1
        self._protocol.accept(size_limit=limit)

    def _refuse_sender(self, sender: Address | None, reply: Reply) -> None:
        metrics.SENDERS.inc(self._facts.config.label, "refused" if reply.permanent else "deferred")
        self._facts.log("sender refused", sender=str(sender or ""), reply=str(reply))
        self._protocol.refuse(reply)

    # --- recipients ---

    def _on_recipient(self, event: RecipientGiven) -> None:
        transaction = self._transaction
        assert transaction is not None
        if transaction.probe:
            self._on_probe_recipient(transaction, event)
            return
        config = self._facts.config
        found = config.directory.resolve(
            event.recipient,
            authenticated=self._facts.account is not None,
            captive=config.listener.accept_any_recipient,
        )
        if isinstance(found, Reply):
            self._refuse_recipient(event.recipient, found)
            return
        unsure = [d for d in found.destinations if d.verify]
        if not unsure:
            if self._facts.account is None:
                self._accept_recipient(transaction, event, found)
            else:
                self._look_up_recipient(transaction, event, found)
            return
        # An alias may lead to several such addresses; the one that was written is what the client can be told about.
        verification = self._active_config.verification
        transport = config.directory.transport(unsure[0].domain)
        if verification is None or transport is None:
            self._refuse_recipient(event.recipient, VERIFICATION_UNAVAILABLE)
            return

        def done(refusal: Reply | None) -> None:
            if self._protocol.closed or self._transaction is not transaction:
                return
            if refusal is None:
                self._accept_recipient(transaction, event, found)
            else:
                self._refuse_recipient(event.recipient, refusal)
            self._wire.pump()

        verification.verify(str(unsure[0].address), transport, done)

    def _on_probe_recipient(self, transaction: MailTransaction, event: RecipientGiven) -> None:
        """A probe goes to the address that it comes from, and to nobody else."""
        address = event.recipient
        if transaction.recipients or transaction.sender is None or address.key != transaction.sender.key:
            self._protocol.refuse(NOT_OF_A_PROBE)
            return
        resolution = Resolution(How.EXACT, (Destination(address),))
        transaction.recipients.append(AcceptedRecipient(address, NO_RCPT_PARAMETERS, resolution))
        self._protocol.accept()

    def _look_up_recipient(self, transaction: MailTransaction, event: RecipientGiven, found: Resolution) -> None:
        """Ask DNS whether the domain of an account's recipient takes mail at all, where we would deliver to its MX
        (SIN-23b)."""
        domains = self._active_config.domains
        recipient = event.recipient
        if domains is None or not self._goes_to_mx(transaction, recipient, found):
            self._accept_recipient(transaction, event, found)
            return

        def done(facts: DomainFacts) -> None:
            if self._protocol.closed or self._transaction is not transaction:
                return
            if facts is DomainFacts.NULL_MX:
                self._refuse_recipient(recipient, NULL_MX_RECIPIENT)
            else:
                self._accept_recipient(transaction, event, found)
            self._wire.pump()

        domains.look_up(recipient.domain, done)

    def _goes_to_mx(self, transaction: MailTransaction, recipient: Address, found: Resolution) -> bool:
        """Whether the first attempt would go to the MX of the recipient's domain, by us or by a SOCKS proxy."""
        config, account = self._facts.config, self._facts.account
        destination = found.destinations[0]
        if destination.domain is not None or destination.address is not recipient or recipient.is_literal:
            return False  # it is ours, or stands for another
        sender = transaction.sender
        facts = RoutingFacts(
            recipient_domain=recipient.domain,
            sender_domain=sender.domain if sender is not None else "",
            account=account.ref if account is not None else None,
            ours=account is not None,
            gateway=config.gateway.ref,
        )
        return config.routes.evaluate(facts, 0).site(recipient.domain).kind in _TO_MX

    def _accept_recipient(self, transaction: MailTransaction, event: RecipientGiven, found: Resolution) -> None:
        copies = transaction.copies + len(found.destinations)
        if copies > COPIES_LIMIT and transaction.recipients:
            self._refuse_recipient(event.recipient, TOO_MANY_COPIES)
            return
        if found.missing:
            self._tell_of_missing(event.recipient, found)
        transaction.copies = copies
        transaction.recipients.append(AcceptedRecipient(event.recipient, event.parameters, found))
        self._facts.config.accepted.recipients.number += 1
        self._protocol.accept()

    def _tell_of_missing(self, recipient: Address, found: Resolution) -> None:
        """Once a revision for each address: strangers may write to the alias as often as they like."""
        known = self._facts.config.missing
        new = [str(address) for address in found.missing if address.key not in known]
        if new:
            known.update(address.key for address in found.missing)
            self._active_config.log.warning(
                "alias has addresses that do not exist; mail goes to the others",
                recipient=str(recipient),
                missing=new[:20],
                count=len(new),
            )

    def _refuse_recipient(self, recipient: Address, reply: Reply) -> None:
        metrics.RECIPIENTS.inc(self._facts.config.label, "refused" if reply.permanent else "deferred")
        self._facts.log("recipient refused", recipient=str(recipient), reply=str(reply))
        self._protocol.refuse(reply)

    # --- content ---

    def _on_content_start(self, _: ContentStarted) -> None:
        transaction = self._transaction
        assert transaction is not None
        active_config, facts = self._active_config, self._facts
        if not active_config.queue.available:
            self._replace_transaction(None)
            self._protocol.refuse(QUEUE_AWAY)
            return
        uncommitted = transaction.uncommitted
        if uncommitted is not None and not has_capacity(uncommitted.start(active_config.monotonic())):
            self._count(transaction, "deferred")
            facts.log("content refused", sender=str(transaction.sender or ""), reply=str(NO_ROOM))
            self._replace_transaction(None)
            self._protocol.refuse(NO_ROOM)
            return
        now = active_config.clock()
        transaction.id = active_config.ids.new(now)
        transaction.name = transaction.id.hex()
        binary = transaction.parameters.body is BodyType.BINARY_MIME
        transaction.checks = ContentChecks(
            CheckedMessage(
                transaction.id,
                transaction.sender,
                transaction.recipients,
                facts.account,
                facts.config.directory,
                facts.config.gateway.hostname,
                facts.config.authserv_ids,
                now,
                binary,
                signers=facts.config.signers if facts.account is not None else None,
                requirement=_REQUIRED if transaction.parameters.require_tls else _DEFAULT,
                evidence=self._evidence(transaction),
            )
        )
        transaction.content = IncomingContent(
            facts,
            self._wire,
            transaction.id,
            transaction.checks,
            uncommitted=transaction.uncommitted,
            lines=not binary,
            shorten=facts.account is not None,
        )
        self._protocol.accept()

    def _evidence(self, transaction: MailTransaction) -> SenderEvidence | None:
        """By what it is judged who sent the message; None: nobody asks.

        SPF-17: whoever logs in is known, and so is a probe. This machine's own programs, and a proxy on it that hides
        its clients, come from the loopback; where it tells the real client, that one is asked about.
        """
        facts, authenticator = self._facts, self._active_config.authenticator
        config = facts.config
        if (
            authenticator is None
            or config.origin is not _MX
            or config.listener.accept_any_recipient
            or facts.account is not None
            or transaction.probe
            or facts.client.is_loopback
        ):
            return None
        rules = config.sender_checks.rules_for(transaction.recipients)
        if rules is None:
            return None
        client = ClientIdentity(facts.client, self._protocol.hello or "", transaction.sender)
        return SenderEvidence(authenticator, client, rules, config.sender_checks.by_list)

    def _on_content(self, event: Content) -> None:
        transaction = self._transaction
        if transaction is not None and transaction.content is not None:
            transaction.content.feed(event.data)

    def _on_content_end(self, event: ContentEnded) -> None:
        transaction = self._transaction
        assert transaction is not None
        content, checks = transaction.content, transaction.checks
        assert content is not None
        assert checks is not None
        body = content.finish()
        if content.refusal is not None:
            self._finish_refused(transaction, content.refusal)
            return
        lines = content.reader.lines(event.lines)
        checks.judge_end(partial(self._on_judged, transaction, content, checks, body, lines))

    def _on_judged(
        self,
        transaction: MailTransaction,
        content: IncomingContent,
        checks: ContentChecks,
        body: bytes | None,
        lines: LineFacts,
    ) -> None:
        """The checks at the end of the content are done, at once or later."""
        if self._transaction is not transaction:
            return  # the client has left, and the content is dropped
        if checks.refusal is not None:
            content.refuse(checks.refusal)
        self._record(transaction, checks, refused=content.refusal is not None)
        if content.refusal is not None:
            self._finish_refused(transaction, content.refusal)
        else:
            transaction.ended = self._active_config.clock()
            message = self._message(transaction, content, checks, body, lines)
            self._active_config.queue.commit(message, partial(self._on_answer, transaction, message))
        self._wire.pump()

    def _record(self, transaction: MailTransaction, checks: ContentChecks, *, refused: bool) -> None:
        """Tell what DMARC said of the message, for reports: also of one that is refused (DMRC-17b, SPF-14b)."""
        verdict, recorder = checks.message.verdict, self._active_config.evaluations
        if verdict is None or recorder is None:
            return
        directory = self._facts.config.directory
        domains = dict.fromkeys(one.address.domain for one in transaction.recipients)
        ours = [RecordedRecipients(domain) for domain in domains if directory.is_ours(domain)]
        recorder.record(verdict, ours, refused=refused)

    def _finish_refused(self, transaction: MailTransaction, reply: Reply) -> None:
        self._replace_transaction(None)
        self._count(transaction, "refused" if reply.permanent else "deferred")
        check = transaction.checks.refused_by if transaction.checks is not None else ""
        verdict = transaction.checks.message.verdict if transaction.checks is not None else None
        self._facts.log(
            "message refused",
            id=transaction.name,
            sender=str(transaction.sender or ""),
            reply=str(reply),
            **({"check": check} if check else {}),
            **({} if verdict is None else authentication.told(verdict)),
        )
        self._protocol.finish(reply)

    def _message_origin(self, *, smtputf8: bool, require_tls: bool, probe: bool) -> MessageOrigin:
        """Where a message comes from: made once for a client, which sends many in a session or comes again."""
        facts, protocol = self._facts, self._protocol
        config, account = facts.config, facts.account
        login = account.ref if account is not None else None
        tls = protocol.tls
        key = (facts.client_text, protocol.hello, protocol.extended, tls, smtputf8, require_tls, login, probe)
        origin = config.origins.get(key)
        if origin is None:
            keyword = with_keyword(
                extended=protocol.extended,
                tls=tls is not None,
                authenticated=account is not None,
                smtputf8=smtputf8,
            )
            origin = MessageOrigin(
                Provenance(
                    Origin.PROBE if probe else config.origin,
                    config.gateway.ref,
                    login,
                    facts.client_text,
                    protocol.hello or "",
                    config.revision,
                ),
                Received(
                    hello=protocol.hello or "unknown",
                    client=facts.client,
                    by=config.gateway.hostname,
                    protocol=keyword,
                    tls=tls,
                    require_tls=require_tls,
                ),
            )
            if len(config.origins) >= ORIGINS_LIMIT:
                config.origins.clear()
            config.origins[key] = origin
        return origin

    def _message(
        self,
        transaction: MailTransaction,
        content: IncomingContent,
        checks: ContentChecks,
        body: bytes | None,
        lines: LineFacts,
    ) -> ReceivedMessage:
        parameters, reader = transaction.parameters, content.reader
        if parameters.body is BodyType.BINARY_MIME and not reader.binary:  # it was made 7-bit, to be signed
            parameters = replace(parameters, body=BodyType.EIGHT_BIT_MIME if reader.eight_bit else BodyType.SEVEN_BIT)
        origin = self._message_origin(
            smtputf8=parameters.smtputf8, require_tls=parameters.require_tls, probe=transaction.probe
        )
        recipients = recipients_of(transaction.recipients)
        verdict, sender = checks.message.verdict, SenderAuthentication.UNKNOWN
        if verdict is not None and checks.enforces:
            sender = verdict.sender
            if verdict.action is DmarcAction.QUARANTINE:
                for recipient in recipients:
                    if recipient.account is not None:
                        recipient.mailbox = JUNK
        for_one = recipients[0].rcpt_to if len(transaction.recipients) == 1 else None
        prefix = checks.added + origin.received.field(transaction.name, for_one, transaction.ended)
        if reader.needs_separator:
            prefix += b"\r\n"
        return ReceivedMessage(
            transaction.id,
            origin.provenance,
            None if transaction.probe else transaction.sender,  # nothing ever answers a probe
            parameters,
            self._trusted_auth(parameters.auth),
            checks.message.message_id,
            checks.message.subject,
            transaction.ended,
            reader.eight_bit,
            recipients,
            prefix,
            body,
            len(prefix) + reader.size,
            lines,
            checks.message.requirement,
            sender,
            findings_of(verdict) if verdict is not None else None,
        )

    def _trusted_auth(self, auth: str | None) -> str | None:
        """AUTH= of MAIL: kept where the account owns the mailbox that it names, else `<>` (RFC 4954 5, AUTH-06)."""
        if auth is None or auth == "<>":
            return auth
        try:
            address = parse_address(xtext_decode(auth))
        except (AddressError, ValueError):
            return "<>"
        facts = self._facts
        owned = facts.account is not None and facts.config.directory.may_send(facts.account.ref, address)
        return auth if owned else "<>"

    def _on_answer(self, transaction: MailTransaction, message: ReceivedMessage, answer: CommitAnswer) -> None:
        active_config, protocol, config = self._active_config, self._protocol, self._facts.config
        probe = transaction.probe
        if not probe:
            metrics.COMMIT_SECONDS.observe(max(0.0, active_config.clock() - transaction.ended))
        assert transaction.content is not None
        transaction.content.settle(accepted=answer.accepted)
        heard = self._transaction is transaction and not protocol.closed
        refusal = None if answer.accepted else answer.refusal or QUEUE_AWAY
        if refusal is not None:
            self._count(transaction, "refused" if refusal.permanent else "deferred")
        elif not probe:
            config.accepted.messages.number += 1
            config.accepted.octets.number += message.size
            if message.requirement is not _DEFAULT:
                metrics.TLS_REQUIREMENTS.inc(config.label, message.requirement.value)
        if active_config.log_messages and not probe:
            verdict = transaction.checks.message.verdict if transaction.checks is not None else None
            self._facts.log(
                "message accepted" if refusal is None else "message refused",
                id=transaction.name,
                sender=str(message.sender or ""),
                recipients=len(message.recipients),
                size=message.size,
                header_id=message.message_id,
                heard=heard,
                **({} if message.requirement is _DEFAULT else {"tls_requirement": message.requirement.value}),
                **({} if refusal is None else {"reply": str(refusal)}),
                **({} if verdict is None else authentication.told(verdict)),
            )
        if heard:
            self._replace_transaction(None)
            protocol.finish(refusal, identifier=transaction.name)
            self._wire.pump()

    def _on_abandoned(self, event: Abandoned) -> None:
        transaction = self._replace_transaction(None)
        if transaction is not None and not transaction.ended and transaction.content is not None:
            self._count(transaction, "abandoned")
            self._facts.log("message abandoned", id=transaction.name, reason=event.reason)
            transaction.content.refuse(QUEUE_AWAY)  # the reply is never said; this frees what is held


HANDLERS: Final[Mapping[type[Event], Callable[[SmtpSession, Any], None]]] = {
    SenderGiven: SmtpSession._on_sender,
    RecipientGiven: SmtpSession._on_recipient,
    ContentStarted: SmtpSession._on_content_start,
    Content: SmtpSession._on_content,
    ContentEnded: SmtpSession._on_content_end,
    Abandoned: SmtpSession._on_abandoned,
    AuthRequested: lambda session, event: session.authentication.begin(event),
    AuthResponse: lambda session, event: session.authentication.respond(event),
    AuthCancelled: lambda session, _: session.authentication.cancel(),
}
"""Answers an event of the protocol, now or later; the events that are not here are the shell's. A table, since each
message has five events and comparing types in turn costs more than the call."""
assert set(HANDLERS) == set(get_args(MailEvent))
