"""Notifications, made and stored in the transaction that gives cause for them (FIN-01; design 9; standards 9).

A DSN is an ordinary message with a null sender that belongs to the postmaster account and is routed by design
section 4. A recipient gets one of a kind at most, by a row of `queue.dsn` that the same transaction writes. Recipients of
one message whose attempts end together share a DSN (DSN-21); those that were delivered are in none (DSN-25). A
null-sender message that fails makes no mail at all: a copy is written straight into the postmaster's built-in mailbox,
and never routed (DSN-10, DSN-24).
"""

# ruff: noqa: E501 -- statements keep their own lines

import asyncio
import contextlib
import functools
import secrets
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Final, LiteralString

from mailrail.core.delivery.hold import HoldRule, first_match
from mailrail.core.delivery.judge import EXPIRED, Judgement
from mailrail.core.dsn.build import (
    FULL_LIMIT,
    STRANGER_RECIPIENTS,
    Dsn,
    DsnRecipient,
    Original,
    ReportingMta,
    build,
    header_of,
    returns_full,
)
from mailrail.core.dsn.due import DsnKind
from mailrail.core.dsn.text import usable_message_id
from mailrail.core.ids import header_key
from mailrail.core.ids import message_id as new_message_id
from mailrail.core.limits import INLINE_LIMIT, SMALL_LIMIT
from mailrail.core.route.site import shard
from mailrail.core.smtp.reply import EnhancedCode, Reply
from mailrail.core.tlspolicy.facts import Requirement
from mailrail.core.tlspolicy.inherited import inherited
from mailrail.kit import log
from mailrail.pb.queue.v1 import types_pb2
from mailrail_queue.delivery.ports import AttemptRecipient, Notice, Notify
from mailrail_queue.mailbox import store as mailbox
from mailrail_queue.mailbox.delivery import MailboxDelivery, entry_of
from mailrail_queue.mailbox.store import Entry, MessageHead
from mailrail_queue.metrics import count_dsn
from mailrail_queue.notify.signing import OwnMailSigner
from mailrail_queue.routing.addresses import Resolved
from mailrail_queue.routing.router import RecipientFacts, Router, domain_of, object_pb, reference_text
from mailrail_queue.store import accept as accept_store
from mailrail_queue.store import blocks
from mailrail_queue.store import columns as c
from mailrail_queue.store import content as content_store
from mailrail_queue.store.accept import NewMessage, NewRecipient
from mailrail_queue.store.connection import Connection, run
from mailrail_queue.store.fencing import Ownership
from mailrail_queue.store.hold_rules import read_hold_rules
from mailrail_queue.store.rows import CONTENT_MISSING, REQUIREMENTS, envelope_of, requirement_of


class Kind(IntEnum):
    """Kinds of notifications as `queue.dsn` stores them."""

    FAILED = 1
    DELAYED = 2
    RELAYED = 3
    DELIVERED = 4
    EXPANDED = 5
    POSTMASTER = 6  # no DSN: the copy of what may not be answered

    @classmethod
    def of(cls, kind: DsnKind) -> "Kind":
        """The stored form."""
        return cls[kind.name]


# A recipient causes one notification of each kind (FIN-01): a row that exists stays, and no second one is made.
CLAIM: Final[LiteralString] = """INSERT INTO dsn (recipient_id, kind, about_message_id, dsn_message_id)
    SELECT * FROM unnest(%(recipient_id)s, %(kind)s, %(about)s, %(message_id)s) AS x ORDER BY 1, 2, 3
    ON CONFLICT (recipient_id, kind, about_message_id) DO NOTHING RETURNING recipient_id, kind"""
IDS: Final[LiteralString] = "SELECT next_recipient_block()"
_OWNERLESS = Ownership("", {})


def reply_of(attempt: types_pb2.Attempt) -> Reply | None:
    """What a remote server said in an attempt; None if none did (DSN-16a)."""
    said = attempt.reply
    if not said.remote or not 200 <= said.code <= 599:
        return None
    try:
        enhanced = EnhancedCode.parse(said.enhanced) if said.enhanced else None
    except ValueError:
        enhanced = None
    return Reply.of(said.code, enhanced, *said.lines)


def reason_of(judgement: Judgement, attempt: types_pb2.Attempt) -> str:
    """In our words why, for people; what a remote server said is quoted beside it and not repeated here."""
    local = "" if attempt.reply.remote else " ".join(attempt.reply.lines)
    if judgement.dsn is DsnKind.FAILED and judgement.status == EXPIRED:
        return f"delivery time expired; the last attempt: {local}" if local else "delivery time expired"
    return local


@dataclass(slots=True)
class _Group:
    """Recipients of one message that one DSN reports."""

    kind: DsnKind
    head: MessageHead
    id: bytes
    notices: list[Notice]
    lost: bool = False
    """Nothing is left of the message but what its recipients say."""
    mail: bool = True
    """It is sent; else it is put into the postmaster's mailbox."""


class Notifier:
    """Makes and stores what is due (`ports.Notifications`)."""

    def __init__(
        self,
        router: Callable[[], Router],
        mailboxes: MailboxDelivery,
        wake: Callable[[set[int]], None],
        signer: OwnMailSigner,
    ) -> None:
        """`wake` is given the shards of DSNs that are committed."""
        self._signer = signer
        self._router = router
        self._mailboxes = mailboxes
        self._wake = wake
        self._log = log.get_logger()

    @asynccontextmanager
    async def transaction(self, connection: Connection) -> AsyncIterator[Notify]:
        """A transaction in which notifications may be made. Once committed, it wakes the owners of their shards."""
        shards: set[int] = set()

        async def notify(notices: Sequence[Notice]) -> None:
            shards.update(await self.notify(connection, notices))

        async with connection.transaction():
            yield notify
        if shards:
            self._wake(shards)

    async def notify(self, connection: Connection, notices: Sequence[Notice]) -> set[int]:
        """Store the notifications due, each once in its kind (FIN-01). Returns the shards where DSNs are due.

        Part of `transaction`, which wakes the owners of these shards.
        """
        claimed = await self._claim(connection, notices)
        if not claimed:
            return set()
        heads = await mailbox.heads(connection, {n.recipient.message_id for n, _, _ in claimed})
        groups: dict[tuple[bytes, DsnKind], _Group] = {}
        copies: list[Entry] = []
        for notice, kind, dsn_id in claimed:
            head = heads.get(notice.recipient.message_id)
            if head is None:
                self._report_lost(groups, notice, dsn_id)
                continue
            if kind is Kind.POSTMASTER:
                copies.append(self._copy(notice, head))
                continue
            assert notice.judgement.dsn is not None
            key = (notice.recipient.message_id, notice.judgement.dsn)
            groups.setdefault(key, _Group(notice.judgement.dsn, head, dsn_id, [])).notices.append(notice)
        if copies:
            await mailbox.put(connection, copies, heads)
        return await self._store(connection, list(groups.values())) if groups else set()

    def _report_lost(self, groups: dict[tuple[bytes, DsnKind], _Group], notice: Notice, dsn_id: bytes) -> None:
        """Report a failure although the message is gone: to the account that the recipient's columns name, if they do.

        Otherwise the sender is unknown, or may not be answered (DSN-10): the report goes into the postmaster's mailbox.
        """
        recipient = notice.recipient
        kind = notice.judgement.dsn or DsnKind.FAILED
        sender = self._sender_of(recipient) if notice.judgement.dsn is not None else None
        gateway = self._router().gateway(recipient.facts.gateway)
        postmaster = f"postmaster@{gateway.hostname if gateway is not None else 'localhost'}"
        head = MessageHead(sender or postmaster, 0, 0, b"", b"", b"", recipient.accepted)
        if dsn_id == recipient.message_id:
            dsn_id = new_message_id(time.time(), secrets.token_bytes(10))
        failed = replace(notice, judgement=replace(notice.judgement, dsn=kind))
        group = _Group(kind, head, dsn_id, [], lost=True, mail=sender is not None)
        groups.setdefault((recipient.message_id, kind), group).notices.append(failed)
        self._log.error(
            "a recipient failed whose message is missing", message=recipient.message_id.hex(), recipient=recipient.id
        )

    def _sender_of(self, recipient: AttemptRecipient) -> str | None:
        """An address of the account that submitted it, of the domain that it was sent from if there is one."""
        account = self._mailboxes.addresses().account(recipient.facts.account or "")
        if account is None:
            return None
        own = [address for address in (*account.received, *account.send_as) if not address.startswith("@")]
        fitting = [address for address in own if domain_of(address) == recipient.facts.from_domain]
        return next(iter((*fitting, *own)), None)

    async def _claim(self, connection: Connection, notices: Sequence[Notice]) -> list[tuple[Notice, Kind, bytes]]:
        wanted: list[tuple[Notice, Kind, bytes]] = []
        ids: dict[tuple[bytes, DsnKind], bytes] = {}
        for notice in notices:
            if notice.judgement.dsn is not None:
                key = (notice.recipient.message_id, notice.judgement.dsn)
                dsn_id = ids.setdefault(key, new_message_id(time.time(), secrets.token_bytes(10)))
                wanted.append((notice, Kind.of(notice.judgement.dsn), dsn_id))
            elif notice.judgement.tell_postmaster:
                wanted.append((notice, Kind.POSTMASTER, notice.recipient.message_id))
        if not wanted:
            return []
        rows = await run(
            connection,
            CLAIM,
            {
                "recipient_id": c.bigints([n.recipient.id for n, _, _ in wanted]),
                "kind": c.smallints([int(kind) for _, kind, _ in wanted]),
                "about": c.uuids([n.recipient.message_id for n, _, _ in wanted]),
                "message_id": c.uuids([dsn_id for _, _, dsn_id in wanted]),
            },
        )
        new = {(row[0], row[1]) for row in rows}
        return [w for w in wanted if (w[0].recipient.id, int(w[1])) in new]

    # --- the postmaster's copy ---

    def _copy(self, notice: Notice, head: MessageHead) -> Entry:
        recipient = notice.recipient
        account, path = self._postmaster(recipient.facts.gateway)
        said = str(reply_of(notice.attempt) or " ".join(notice.attempt.reply.lines) or notice.judgement.status)
        count_dsn("postmaster")
        self._log.info(
            "mail whose sender gets no notification failed",
            message=recipient.message_id.hex(),
            recipient=recipient.id,
            status=str(notice.judgement.status),
        )
        note = f"could not be delivered to {recipient.address}: {said}"[:1000]
        return entry_of(recipient, head, account, path, delivered=False, note=note)

    def _postmaster(self, gateway: str | None) -> tuple[str, str]:
        found = self._router().gateway(gateway) or next(iter(self._router().revision.gateways), None)
        if found is None:
            return "unknown/postmaster", "Postmaster"  # without any gateway the copy is kept all the same
        return reference_text(found.postmaster), found.postmaster_mailbox

    # --- DSNs ---

    async def _store(self, connection: Connection, groups: Sequence[_Group]) -> set[int]:
        rules = (await read_hold_rules(connection)).rules
        messages: list[NewMessage] = []
        recipients: list[NewRecipient] = []
        ids: list[int] = []
        reports: list[Entry] = []
        for group in groups:
            dsn = await self._compose(connection, group)
            signature = self._signer.sign(types_pb2.PURPOSE_NOTIFICATION, dsn.content, time.time())  # DKIM-10a
            message = self._message(group, dsn, signature)
            if not group.mail:
                reports.append(self._report_to_postmaster(group))
            made = [
                self._recipient(group, dsn, found, rules)
                for found in (self._mailboxes.addresses().resolve(dsn.recipient) if group.mail else ())
            ]
            for recipient in made:
                if not ids:
                    # A block each time: of one that was kept another process may hold the same on a new timeline (ACC-06).
                    first = (await run(connection, IDS))[0][0]
                    ids = list(range(first + blocks.BLOCK - 1, first - 1, -1))
                recipient.id = ids.pop()
            if len(dsn.content) > INLINE_LIMIT:
                message.body, message.chunks = None, await content_store.add_chunks(connection, message.id, dsn.content)
            messages.append(message)
            recipients += made
            count_dsn(group.kind.value)
        await accept_store.store(connection, _OWNERLESS, 0.0, messages, recipients)
        if reports:
            await mailbox.put(connection, reports)
        return {r.shard for r in recipients if r.hold_reason is None}

    def _report_to_postmaster(self, group: _Group) -> Entry:
        recipient = group.notices[0].recipient
        account, path = self._postmaster(recipient.facts.gateway)
        note = f"the stored message to {recipient.address} is missing, and its sender is unknown"
        return Entry(account, path, group.id, None, recipient.address, "", delivered=False, dsn=True, note=note)

    async def _compose(self, connection: Connection, group: _Group) -> Dsn:
        head = group.head
        envelope = envelope_of(head.envelope)
        first = group.notices[0].recipient
        gateway = self._router().gateway(first.facts.gateway)
        hostname = gateway.hostname if gateway is not None else "localhost"
        # An administrator may have changed the requirement since (RTLS-19a, RTLS-19c).
        requirement = inherited(
            requirement_of(envelope.tls_requirement),
            (requirement_of(n.recipient.tls_requirement) for n in group.notices),
        )
        authenticated = first.sender_authentication == types_pb2.SENDER_AUTHENTICATION_YES
        listed = group.notices if authenticated else group.notices[:STRANGER_RECIPIENTS]
        content = None
        if returns_full(
            ret_full=envelope.dsn_return == types_pb2.DSN_RETURN_FULL,
            size=head.size,
            tls_required=requirement is Requirement.REQUIRED,  # RTLS-20
            kind=group.kind,
            authenticated=authenticated,
            limit=gateway.dsn_full_limit if gateway is not None else FULL_LIMIT,
        ):
            message_id = uuid.UUID(bytes=first.message_id)
            with contextlib.suppress(mailbox.ContentIncomplete):  # then its header alone
                content = b"".join([part async for part in mailbox.content(connection, message_id)])
        original = Original(
            reverse_path=head.mail_from,
            arrived=envelope.received.ToNanoseconds() / 1e9 if envelope.HasField("received") else head.accepted,
            header=header_of(head.octets),
            content=content,
            message_id=usable_message_id(envelope.message_id) if envelope.HasField("message_id") else None,
            subject=envelope.subject or None,
            envelope_id=envelope.envelope_id if envelope.HasField("envelope_id") else None,
            smtputf8=envelope.smtputf8,
            requirement=requirement,
            future_release=envelope.future_release_request or None,
        )
        made = functools.partial(
            build,
            original,
            tuple(_report(notice, lost=group.lost) for notice in listed),
            ReportingMta(hostname, f"postmaster@{hostname}"),
            message_id=f"<{uuid.UUID(bytes=group.id)}@{hostname}>",
            boundary=f"=_{secrets.token_hex(12)}",
            now=_ended(group.notices[0].attempt, group.head.accepted),
            unlisted=len(group.notices) - len(listed),
        )
        # What a stranger sent is looked at line by line: half a second for a megabyte of short ones. Mail waits less.
        return await asyncio.to_thread(made) if content is not None and len(content) > SMALL_LIMIT else made()

    def _message(self, group: _Group, dsn: Dsn, signature: bytes) -> NewMessage:
        facts = group.notices[0].recipient.facts
        account = self._postmaster(facts.gateway)[0]
        gateway = self._router().gateway(facts.gateway)
        envelope = types_pb2.Envelope(
            body_type=types_pb2.BODY_TYPE_SEVEN_BIT,
            smtputf8=dsn.smtputf8,
            tls_requirement=REQUIREMENTS[dsn.requirement],
            origin=types_pb2.ORIGIN_SYSTEM,
            purpose=types_pb2.PURPOSE_NOTIFICATION,
            message_id=dsn.message_id,
            subject=dsn.subject,
            sender_authentication=types_pb2.SENDER_AUTHENTICATION_YES,
            eight_bit=not dsn.content.isascii(),
            config_revision=self._router().number,
        )
        if gateway is not None:
            envelope.gateway.CopyFrom(object_pb(gateway.ref))
            envelope.account.CopyFrom(object_pb(gateway.postmaster))
        envelope.received.FromNanoseconds(int(_ended(group.notices[0].attempt, group.head.accepted) * 1e9))
        return NewMessage(
            id=group.id,
            mail_from="",
            account=account,
            size=len(signature) + len(dsn.content),
            chunks=0,
            envelope=envelope.SerializeToString(),
            prefix=signature,
            body=dsn.content,
        )

    def _recipient(self, group: _Group, dsn: Dsn, found: Resolved, rules: Sequence[HoldRule]) -> NewRecipient:
        router = self._router()
        facts = group.notices[0].recipient.facts
        account = self._postmaster(facts.gateway)[0]
        domain = domain_of(found.address)
        ours = found.domain is not None
        plan = router.plan(RecipientFacts(domain, "", account, True, ours, facts.gateway, reports=found.reports), 0)
        # DSN-11: never a notification about a notification.
        rcpt = types_pb2.EnvelopeRecipient(address=found.address, rcpt_to=dsn.recipient, notify=["NEVER"])
        if found.domain is not None:
            rcpt.domain.CopyFrom(object_pb(found.domain.ref))
        if found.account is not None:
            rcpt.mailbox_account.CopyFrom(object_pb(found.account))
            rcpt.mailbox = found.mailbox
            rcpt.reports = found.reports
        hold = first_match(rules, account=account, sender_domain="", recipient_domain=domain)
        return NewRecipient(
            id=0,
            message_id=group.id,
            shard=shard(domain),
            site=plan.key,
            token=0,
            release=0.0,
            hold_reason=hold.reason if hold is not None else None,
            tls_requirement=REQUIREMENTS[dsn.requirement],
            origin=types_pb2.ORIGIN_SYSTEM,
            sender_authentication=types_pb2.SENDER_AUTHENTICATION_YES,
            address=found.address,
            gateway=facts.gateway,
            account=account,
            from_domain="",
            is_local=ours,
            header_key=header_key(dsn.message_id),
            envelope_recipient=rcpt.SerializeToString(),
        )


def _ended(attempt: types_pb2.Attempt, otherwise: float) -> float:
    """When an attempt ended, in Unix seconds; `otherwise` where there was none (an expanded alias)."""
    for name in ("ended", "started"):
        if attempt.HasField(name):
            return float(getattr(attempt, name).ToNanoseconds()) / 1e9
    return otherwise


def _report(notice: Notice, *, lost: bool = False) -> DsnRecipient:
    rcpt = types_pb2.EnvelopeRecipient.FromString(notice.recipient.envelope_recipient)
    attempt, judgement = notice.attempt, notice.judgement
    assert judgement.dsn is not None
    reply = reply_of(attempt)
    expanded = judgement.dsn is DsnKind.EXPANDED
    reason = reason_of(judgement, attempt)
    if lost:
        reason = f"{reason}; {CONTENT_MISSING}" if reason else CONTENT_MISSING
    return DsnRecipient(
        kind=judgement.dsn,
        # Of an expanded alias the sender knows the alias; its members are not his business (DSN-23).
        recipient=rcpt.rcpt_to if expanded and rcpt.rcpt_to else notice.recipient.address,
        status=judgement.status,
        reason=reason,
        original_recipient=rcpt.original_recipient if rcpt.HasField("original_recipient") else None,
        remote_host=attempt.mx_host or None if reply is not None else None,
        remote_ip=attempt.remote_ip or None if reply is not None else None,
        reply=reply,
        last_attempt=None if expanded or not attempt.HasField("started") else attempt.started.ToNanoseconds() / 1e9,
        will_retry_until=judgement.will_retry_until,
    )
