"""Mail in the queue's tables without a queue around it: for tests of what happens inside one transaction.

`Rig` holds a connection as the queue's lanes make them and a revision; `Rig.accept` stores a message with recipients,
`Rig.finish` makes a recipient final as a result would.
"""

import contextlib
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from mailrail.core.delivery.judge import Judgement, Standing, judge
from mailrail.core.delivery.outcome import of_reply
from mailrail.core.dsn.due import Asked
from mailrail.core.ids import header_key
from mailrail.core.limits import CHUNK_SIZE, INLINE_LIMIT
from mailrail.core.revision.revision import (
    Account,
    Alias,
    Domain,
    DomainDelivery,
    Gateway,
    Match,
    ObjectRef,
    Revision,
    RouteLevel,
    Rule,
    Transport,
    TransportKind,
)
from mailrail.core.route.site import shard
from mailrail.core.smtp.answer import Stage
from mailrail.core.smtp.reply import Reply
from mailrail.kit.postgres import Login
from mailrail.pb.queue.v1 import types_pb2
from mailrail_queue.delivery.ports import AttemptRecipient, Notice
from mailrail_queue.mailbox.delivery import MailboxDelivery
from mailrail_queue.notify.dsn import Notifier
from mailrail_queue.notify.signing import OwnMailSigner
from mailrail_queue.routing.addresses import Addresses
from mailrail_queue.routing.router import RecipientFacts, Router, domain_of, object_pb
from mailrail_queue.store import accept as accept_store
from mailrail_queue.store import content as content_store
from mailrail_queue.store import results as result_store
from mailrail_queue.store.accept import NewMessage, NewRecipient
from mailrail_queue.store.connection import Connection, Database
from mailrail_queue.store.fencing import Ownership
from mailrail_queue.store.results import Ending

GATEWAY = ObjectRef("MailGateway", "mail", "main")
ALICE = ObjectRef("MailAccount", "mail", "alice")
POSTMASTER = ObjectRef("MailAccount", "mail", "postmaster")
HERE = ObjectRef("MailDomain", "mail", "here")
RELAY = ObjectRef("MailTransport", "mail", "relay")
HEADER = (
    b"From: Alice <alice@here.example>\r\nTo: bob@there.example\r\nSubject: hello\r\nMessage-ID: <one@here.example>\r\n"
)
BODY = HEADER + b"\r\nhow are you?\r\n"


def revision(**changes: Any) -> Revision:
    """An installation with one mailbox domain, two accounts, an alias and a smarthost for `relayed.example`."""
    fields: dict[str, Any] = {
        "gateways": (Gateway(GATEWAY, "mx.here.example", (), POSTMASTER),),
        "domains": (
            Domain(
                HERE,
                "here.example",
                DomainDelivery.MAILBOX,
                gateway=GATEWAY,
                aliases=(Alias("team", ("alice@here.example", "carol@there.example")),),
            ),
        ),
        "accounts": (
            Account(ALICE, "uid-alice", HERE, "alice", ("alice@here.example",)),
            Account(POSTMASTER, "uid-postmaster", HERE, "postmaster", ("admin@here.example",)),
        ),
        "transports": (Transport(RELAY, TransportKind.SMTP, host="relay.example", port=25),),
        "global_routes": (
            RouteLevel(
                GATEWAY,
                (Rule(ObjectRef("MailRoute", "mail", "r"), 0, "0", (Match(("relayed.example",)),), RELAY),),
            ),
        ),
    }
    return Revision(**{**fields, **changes})


@dataclass
class Rig:
    """A database, a revision and the parts of the queue that work inside a transaction."""

    connection: Connection
    router: Router
    url: str = ""
    mailboxes: MailboxDelivery = field(init=False)
    notifier: Notifier = field(init=False)
    woken: list[set[int]] = field(default_factory=list)
    signer: OwnMailSigner = field(default_factory=OwnMailSigner)
    _next: int = 0

    def __post_init__(self) -> None:
        self.mailboxes = MailboxDelivery(lambda: self.router)
        self.notifier = Notifier(lambda: self.router, self.mailboxes, self.woken.append, self.signer)

    def configure(self, new: Revision) -> None:
        """Put another revision in force."""
        self.router = Router(self.router.number + 1, new)

    @property
    def addresses(self) -> Addresses:
        """Of the revision in force."""
        return self.mailboxes.addresses()

    async def accept(
        self,
        *addresses: str,
        mail_from: str = "alice@here.example",
        account: str | None = "mail/alice",
        body: bytes = BODY,
        notify: tuple[str, ...] = (),
        hold: str | None = None,
        token: int = 0,
        tls: int = 0,
        forged: bool = False,
        rcpt_fields: dict[str, Any] | None = None,
        **envelope_fields: Any,
    ) -> list[AttemptRecipient]:
        """Store a message; returns its recipients as an attempt would carry them (attempt 1)."""
        message_id = uuid.uuid4().bytes
        submitted = account is not None
        sender_authentication = (
            types_pb2.SENDER_AUTHENTICATION_YES
            if submitted
            else types_pb2.SENDER_AUTHENTICATION_FORGED
            if forged
            else types_pb2.SENDER_AUTHENTICATION_UNSPECIFIED
        )
        envelope = types_pb2.Envelope(
            mail_from=mail_from,
            origin=types_pb2.ORIGIN_SUBMISSION if submitted else types_pb2.ORIGIN_MX,
            gateway=object_pb(GATEWAY),
            message_id="<one@here.example>",
            subject="hello",
            sender_authentication=sender_authentication,
            **envelope_fields,
        )
        envelope.received.GetCurrentTime()
        chunked = len(body) > INLINE_LIMIT
        made: list[NewRecipient] = []
        recipients: list[AttemptRecipient] = []
        for address in addresses:
            self._next += 1
            local = domain_of(address) in self.router.table.by_name
            rcpt = types_pb2.EnvelopeRecipient(address=address, notify=notify, **(rcpt_fields or {}))
            found = self.addresses.resolve(address)[0]
            if found.account is not None:
                rcpt.mailbox_account.CopyFrom(object_pb(found.account))
                rcpt.mailbox = found.mailbox
            facts = RecipientFacts(domain_of(address), domain_of(mail_from), account, submitted, local, "mail/main")
            made.append(
                NewRecipient(
                    self._next,
                    message_id,
                    shard(facts.domain),
                    self.router.plan(facts, 0).key,
                    token,
                    0.0,
                    hold,
                    tls,
                    envelope.origin,
                    sender_authentication,
                    address,
                    facts.gateway,
                    account,
                    facts.from_domain,
                    local,
                    header_key(envelope.message_id),
                    rcpt.SerializeToString(),
                )
            )
            recipients.append(
                AttemptRecipient(
                    id=self._next,
                    message_id=message_id,
                    shard=shard(facts.domain),
                    version=1,
                    attempts=1,
                    interruptions=0,
                    accepted=0.0,
                    uncounted_seconds=0.0,
                    null_sender=not mail_from,
                    sender_authentication=sender_authentication,
                    delayed_dsn_decided=False,
                    tls_requirement=tls,
                    address=address,
                    facts=facts,
                    notify=int(Asked.of(notify)),
                    envelope_recipient=rcpt.SerializeToString(),
                )
            )
        if chunked:
            parts = [body[i : i + CHUNK_SIZE] for i in range(0, len(body), CHUNK_SIZE)]
            for number, part in enumerate(parts):
                await content_store.store_chunks(self.connection, [content_store.ChunkRows(message_id, number, [part])])
            await content_store.claim_uploads(self.connection, [message_id])
        message = NewMessage(
            message_id,
            mail_from,
            account,
            len(body),
            len(parts) if chunked else 0,
            envelope.SerializeToString(),
            b"",
            None if chunked else body,
        )
        await accept_store.store(
            self.connection, await self._owner(made) if token else Ownership("", {}), 120.0, [message], made
        )
        return recipients

    async def _owner(self, made: list[NewRecipient]) -> Ownership:
        await self.connection.execute("UPDATE shard SET owner = 'me', epoch = 1")
        return Ownership("me", {r.shard: 1 for r in made})

    def attempt(
        self, outcome: types_pb2.Outcome.ValueType, *lines: str, code: int = 0, enhanced: str = "", **fields: Any
    ) -> types_pb2.Attempt:
        """A finished attempt; with a code a remote server said so."""
        attempt = types_pb2.Attempt(number=1, outcome=outcome, **fields)
        attempt.started.GetCurrentTime()
        attempt.ended.GetCurrentTime()
        attempt.reply.code = code
        attempt.reply.enhanced = enhanced
        attempt.reply.lines.extend(lines)
        attempt.reply.remote = bool(code)
        return attempt

    def judged(self, recipient: AttemptRecipient, code: int, enhanced: str | None = None, **fields: Any) -> Judgement:
        """What the core says of a final reply."""
        standing = Standing(
            accepted=0.0,
            attempts=fields.pop("attempts", 1),
            null_sender=recipient.null_sender,
            sender_authentication=recipient.sender_authentication,
            notify=Asked(recipient.notify),
        )
        verdict = of_reply(Reply.of(code, enhanced, "text"), stage=Stage.END, **fields)
        return judge(verdict, standing, self.router.schedule(recipient.facts), now=1.0, jitter=0.0)

    def refused(self, recipient: AttemptRecipient) -> Notice:
        """550 5.1.1 from the remote server."""
        attempt = self.attempt(
            types_pb2.OUTCOME_FAILED,
            "no such user",
            code=550,
            enhanced="5.1.1",
            mx_host="mx.there.example",
            remote_ip="192.0.2.7",
        )
        return Notice(recipient, self.judged(recipient, 550, "5.1.1"), attempt)

    async def fail(self, *recipients: AttemptRecipient) -> None:
        """One transaction: final, and whoever is due is told (FIN-01)."""
        async with self.notifier.transaction(self.connection) as notify:
            endings = [
                Ending(p.id, p.message_id, 0, p.version, result_store.FAILED, types_pb2.OUTCOME_FAILED, b"")
                for p in recipients
            ]
            done = await result_store.finish(self.connection, endings)
            await notify([self.refused(p) for p in recipients if p.id in done])

    async def rows(self, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """Rows of a query."""
        cursor = await self.connection.execute(query, parameters)
        return list(await cursor.fetchall())


@contextlib.asynccontextmanager
async def rig(url: str, configured: Revision | None = None) -> AsyncIterator[Rig]:
    """A rig on a fresh queue database."""
    database = Database(Login.of(url), "test")
    async with database.lane("test").use() as connection:
        yield Rig(connection, Router(1, configured or revision()), url)
    await database.close()
