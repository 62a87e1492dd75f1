"""A dispatcher with a clock of its own, the outbound processes that it hands deliveries to, and what it notices."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mailrail.core.delivery.shares import SiteStanding, StreamCredit
from mailrail.core.revision import revision as rev
from mailrail.pb.queue.v1 import types_pb2
from mailrail_queue.delivery.attempt import Delivery, DeliveryContent
from mailrail_queue.delivery.dispatcher import Dispatcher
from mailrail_queue.delivery.ports import AttemptRecipient
from mailrail_queue.delivery.sites import SiteState
from mailrail_queue.delivery.verdicts import facts_of
from mailrail_queue.routing.router import RecipientFacts, RoutePlan, Router
from mailrail_queue.store.waiting import Waiting

from testkit.queue import a_revision


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass(eq=False)
class Stream:
    node: str
    credit: StreamCredit = field(default_factory=lambda: StreamCredit(1000))
    sent: list[Delivery] = field(default_factory=list)
    remaining: list[float] = field(default_factory=list)
    cancelled: list[int] = field(default_factory=list)

    def send(self, delivery: Delivery, content: DeliveryContent, remaining: float) -> None:
        self.sent.append(delivery)
        self.remaining.append(remaining)

    def tell_history(self, number: int) -> None:
        """Nothing is done under another one here."""

    def cancel(self, token: int) -> None:
        self.cancelled.append(token)


@dataclass(eq=False)
class Events:
    """What the dispatcher noticed."""

    local: list[Delivery] = field(default_factory=list)
    back: list[Delivery] = field(default_factory=list)
    roomy: list[str] = field(default_factory=list)
    claimed: list[str] = field(default_factory=list)

    def deliver_locally(self, delivery: Delivery) -> None:
        self.local.append(delivery)

    def take_back(self, deliveries: Sequence[Delivery]) -> None:
        self.back.extend(deliveries)

    def fetch_more(self, site: SiteState) -> None:
        self.roomy.append(site.key)

    def claim_probe(self, site: SiteState) -> None:
        self.claimed.append(site.key)


class Bench:
    """A dispatcher with a clock of its own."""

    def __init__(
        self,
        revision: rev.Revision | None = None,
        *,
        content_budget: int = 1000,
        delivery_budget: int = 1000,
        rounds: int = 3,
    ) -> None:
        self.clock = Clock()
        self.router = Router(1, revision or a_revision())
        self.events = Events()
        self.dispatcher = Dispatcher(
            self.clock,
            self.events,
            handout_seconds=60.0,
            content_budget=content_budget,
            delivery_budget=delivery_budget,
            rounds=rounds,
        )
        self.token = 0

    def facts(self, domain: str) -> RecipientFacts:
        return RecipientFacts(domain, "away.example", None, False, False, None)

    def lease(self, domain: str, *, seconds: float = 120.0, size: int = 10, older: bool = False) -> Delivery:
        self.token += 1
        plan = self.router.plan(self.facts(domain), 0)
        site = self.dispatcher.site(plan)
        recipient = AttemptRecipient(
            id=self.token,
            message_id=b"m" * 16,
            shard=0,
            version=1,
            attempts=1,
            interruptions=0,
            accepted=0.0,
            uncounted_seconds=0.0,
            null_sender=False,
            sender_authentication=1,
            delayed_dsn_decided=False,
            tls_requirement=0,
            address=f"user@{domain}",
            facts=self.facts(domain),
            notify=0,
            envelope_recipient=b"",
        )
        content = DeliveryContent(b"", [{"id": self.token, "address": f"user@{domain}"}], b"", b"", 0)
        delivery = Delivery(
            self.token,
            b"m" * 16,
            plan,
            site,
            [recipient],
            size,
            self.clock.now + seconds,
            0.0,
            1,
            content,
        )
        self.dispatcher.add(delivery, older=older)
        return delivery

    def release(self, delivery: Delivery, *, well: bool = True) -> None:
        if well:
            self.dispatcher.answered(delivery)
            delivery.site.window.succeed()
        else:
            delivery.site.standing = SiteStanding.UNPROVEN
            delivery.site.window.fail(self.clock.now, "no")
        self.dispatcher.release(delivery)
        self.dispatcher.pump()


def waiting(bench: Bench, number: int, domain: str, **changes: Any) -> tuple[Waiting, RoutePlan]:
    """A due recipient where its route goes, and its plan."""
    rcpt = types_pb2.EnvelopeRecipient(address=f"u{number}@{domain}", rcpt_to=f"u{number}@{domain}")
    row = Waiting(
        id=number,
        message_id=b"1" * 16,
        shard=3,
        site="",
        version=1,
        attempts=0,
        interruptions=0,
        tls_requirement=0,
        origin=types_pb2.ORIGIN_MX,
        sender_authentication=1,
        queued=1000.0,
        uncounted_seconds=0.0,
        delayed_dsn_decided=False,
        address=rcpt.address,
        gateway=None,
        account=None,
        from_domain="away.example",
        is_local=False,
        override_transport=None,
        envelope_recipient=rcpt.SerializeToString(),
        dialled_hosts=None,
        lacking=None,
        token=None,
        remaining=0.0,
        request=0,
        request_reason=None,
        started=0.0,
    )
    for name, value in changes.items():
        setattr(row, name, value)
    plan = bench.router.plan(facts_of(row), row.attempts)
    if "site" not in changes:
        row.site = plan.key
    return row, plan
