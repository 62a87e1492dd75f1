"""From a commit to what is stored of it: rows, and the deliveries of recipients that are born leased. Without I/O.

A recipient is born leased (SHD-02, LSE-06) if this process owns its shard, it is neither on hold nor for later, its
body travels with the lease, and its site can take it soon.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from mailrail.core.delivery.hold import first_match
from mailrail.core.delivery.judge import Judgement
from mailrail.core.delivery.outcome import Outcome
from mailrail.core.dsn.due import Asked, DsnKind, due
from mailrail.core.ids import header_key
from mailrail.core.smtp.reply import EnhancedCode
from mailrail.pb.queue.v1 import types_pb2
from mailrail_queue.accept.pending import PendingCommit, PreparedCommit
from mailrail_queue.delivery.attempt import PER_DELIVERY, Delivery, DeliveryContent, in_parts, recipient_fields
from mailrail_queue.delivery.ports import AttemptRecipient, Notice
from mailrail_queue.delivery.sites import SiteState
from mailrail_queue.delivery.verdicts import asked_of
from mailrail_queue.routing.router import RecipientFacts, RoutePlan, Router, domain_of, reference_text
from mailrail_queue.store.accept import NewMessage, NewRecipient
from mailrail_queue.store.fencing import Ownership
from mailrail_queue.store.hold_rules import HoldRules

_OURS = (types_pb2.ORIGIN_SUBMISSION, types_pb2.ORIGIN_SYSTEM)
_EXPANDED = Judgement(Outcome.DELIVERED, EnhancedCode(2, 0, 0), None, DsnKind.EXPANDED)


class Ids(Protocol):
    """Ids at hand, as many as a batch needs."""

    def recipient(self) -> int:
        """The next recipient id."""

    def token(self) -> int:
        """The next token."""


class Sites(Protocol):
    """Which sites could take a fresh message soon."""

    def site(self, plan: RoutePlan) -> SiteState:
        """The state of a plan's site."""

    def accepts_fresh(self, site: SiteState, size: int, now: float) -> bool:
        """Whether it could take `size` octets more soon; `now` is of a steady clock."""


@dataclass(frozen=True, slots=True)
class Conditions:
    """What a batch is prepared under. Should they change before it is stored, it is prepared anew."""

    router: Router
    ownership: Ownership
    holds: HoldRules
    now: float
    """Unix seconds by Postgres's clock."""
    clock: float
    """Seconds of the steady clock of `Sites`."""


class Member(NamedTuple):
    """A recipient that may be born leased."""

    plan: RoutePlan
    new: NewRecipient
    recipient: AttemptRecipient
    fields: dict[str, Any]  # of its DeliveryRecipient


def prepare(pending: PendingCommit, under: Conditions, ids: Ids, sites: Sites) -> PreparedCommit:
    """Rows and deliveries of a message."""
    message_id, commit, prefix, body = pending.id, pending.commit, pending.prefix, pending.body
    envelope = commit.envelope
    # Of the message: copies of an alias and those that it forwards to others have it too (RTLS-10, RTLS-24).
    tls, origin_kind = envelope.tls_requirement, envelope.origin
    mail_from = envelope.mail_from
    from_domain = domain_of(mail_from) or (mail_from and "localhost")
    account = reference_text(envelope.account) if envelope.HasField("account") else None
    gateway = reference_text(envelope.gateway) if envelope.HasField("gateway") else None
    ours = origin_kind in _OURS
    sender_authentication = types_pb2.SENDER_AUTHENTICATION_YES if ours else envelope.sender_authentication
    release = release_time(envelope, under.now)
    key = header_key(envelope.message_id) if envelope.message_id else 0
    inline = pending.chunks == 0
    size = commit.size or len(prefix) + len(body)
    data = envelope.SerializeToString()
    message = NewMessage(
        message_id, mail_from, account, size, pending.chunks, data, prefix, body if inline else None, pending.until
    )
    router, rules, owned = under.router, under.holds.rules, under.ownership.epochs
    expanded = False
    recipients: list[NewRecipient] = []
    members: list[Member] = []
    for rcpt in commit.recipients:
        address = rcpt.address
        facts = RecipientFacts(
            domain_of(address), from_domain, account, ours, rcpt.HasField("domain"), gateway, reports=rcpt.reports
        )
        plan = router.plan(facts, 0)
        hold_reason = None
        if rules and not plan.probe:
            rule = first_match(rules, account=account, sender_domain=from_domain, recipient_domain=facts.domain)
            hold_reason = rule.reason if rule is not None else None
        row = rcpt.SerializeToString()
        new = NewRecipient(
            ids.recipient(),
            message_id,
            plan.shard,
            plan.key,
            0,
            release,
            hold_reason,
            tls,
            origin_kind,
            sender_authentication,
            address,
            gateway,
            account,
            from_domain,
            facts.is_local,
            key,
            row,
        )
        recipients.append(new)
        if rcpt.expanded and due(
            DsnKind.EXPANDED,
            Asked.SUCCESS,
            null_sender=not mail_from,
            sender_authentication=sender_authentication,
        ):
            expanded = True
        if hold_reason is None and not release and inline and plan.shard in owned and not plan.missing:
            # Positional: a class copies keyword arguments into a dict and back, and this is made for each recipient.
            recipient = AttemptRecipient(
                new.id,
                message_id,
                plan.shard,
                1,
                1,
                0,
                under.now,
                0.0,
                from_domain == "",
                sender_authentication,
                False,
                tls,
                address,
                facts,
                asked_of(rcpt.notify) if rcpt.notify else 0,
                row,
            )
            members.append(Member(plan, new, recipient, recipient_fields(new.id, rcpt)))
    deliveries = _born_leased(message, body, members, under, ids, sites) if members else []
    return PreparedCommit(pending, message, recipients, deliveries, expanded)


def release_time(envelope: types_pb2.Envelope, now: float) -> float:
    """Unix seconds by Postgres's clock before which nothing is tried (RFC 4865); 0: at once."""
    if not envelope.HasField("release"):
        return 0.0
    release = float(envelope.release.seconds)
    if release and envelope.future_release_request.startswith("for;") and envelope.HasField("received"):
        # HOLDFOR counts from when ingress took the message, by whatever clock it has (RFC 4865 4.1).
        release += now - envelope.received.ToNanoseconds() / 1e9
    return release


def _born_leased(
    message: NewMessage, body: bytes, members: list[Member], under: Conditions, ids: Ids, sites: Sites
) -> list[Delivery]:
    """The deliveries of those `members` whose site can take them soon; their rows get the token."""
    held = len(message.prefix) + len(body)
    deliveries: list[Delivery] = []
    for group in group_by_transaction(members):
        plan = group[0].plan
        site = sites.site(plan)
        if not sites.accepts_fresh(site, held, under.clock):
            continue
        for part in in_parts(group, plan.transport.limits.recipients_per_message if plan.transport else PER_DELIVERY):
            token = ids.token()
            for member in part:
                member.new.token = token
            content = DeliveryContent(
                message.envelope, [member.fields for member in part], message.prefix, body, message.size
            )
            recipients = [member.recipient for member in part]
            deliveries.append(Delivery(token, message.id, plan, site, recipients, held, 0.0, under.now, 1, content))
    return deliveries


def group_by_transaction(members: list[Member]) -> Iterable[list[Member]]:
    """Recipients of a message that may share a transaction, in groups (design 4, Deliver)."""
    if len(members) == 1:
        return (members,)
    groups: dict[tuple[object, ...], list[Member]] = {}
    for member in members:
        plan = member.plan
        groups.setdefault((plan.grouping, plan.template.domain), []).append(member)
    return groups.values()


def without(delivery: Delivery, staying: set[int]) -> None:
    """Take recipients out of a delivery that was not handed on yet."""
    if staying and delivery.content is not None:
        delivery.recipients = [p for p in delivery.recipients if p.id not in staying]
        kept = [fields for fields in delivery.content.recipients if fields["id"] not in staying]
        delivery.content = delivery.content._replace(recipients=kept)


def expanded_notices(prepared: PreparedCommit) -> list[Notice]:
    """Notices of lists that were expanded, one for each address that was given (DSN-23); they are due (DSN-26a)."""
    notices: dict[str, Notice] = {}
    for new, rcpt in zip(prepared.recipients, prepared.pending.commit.recipients, strict=True):
        if rcpt.expanded and rcpt.rcpt_to not in notices:
            attempt = types_pb2.Attempt(number=0)
            facts = RecipientFacts(
                domain_of(rcpt.address), new.from_domain, new.account, True, new.is_local, new.gateway
            )
            recipient = AttemptRecipient(
                id=new.id,
                message_id=new.message_id,
                shard=new.shard,
                version=1,
                attempts=0,
                interruptions=0,
                accepted=0.0,
                uncounted_seconds=0.0,
                null_sender=new.from_domain == "",
                sender_authentication=new.sender_authentication,
                delayed_dsn_decided=False,
                tls_requirement=new.tls_requirement,
                address=rcpt.rcpt_to or rcpt.address,
                facts=facts,
                notify=int(Asked.SUCCESS),
                envelope_recipient=new.envelope_recipient,
            )
            notices[rcpt.rcpt_to] = Notice(recipient, _EXPANDED, attempt)
    return list(notices.values())
