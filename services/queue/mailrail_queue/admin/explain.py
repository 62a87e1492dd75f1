"""Where mail goes, when, and why: for a recipient in the queue or an imagined one (promise 3)."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Final
from uuid import UUID

from mailrail.core.delivery.schedule import base_delay, expires_at
from mailrail.core.outbound.captive import is_loopback
from mailrail.core.revision.revision import TransportKind
from mailrail.core.route import Explanation, RouteDecision, Via, explain
from mailrail.core.route.site import Site, shard
from mailrail.core.smtp.address import is_ip_address
from mailrail.core.tlspolicy.decision import Hop, Requirement, decide, wants_tlsa
from mailrail.core.tlspolicy.demands import Demanded
from mailrail.pb.queue.v1 import admin_pb2, types_pb2
from mailrail_queue.admin.base import AdminContext, backoff_names
from mailrail_queue.admin.filters import BadRequest, NotFound, domain_argument
from mailrail_queue.delivery.verdicts import facts_of
from mailrail_queue.routing.router import RecipientFacts, domain_of
from mailrail_queue.store import columns as c
from mailrail_queue.store import waiting as waiting_store
from mailrail_queue.store.connection import Connection, run
from mailrail_queue.store.rows import envelope_of

EXPLAINED_ATTEMPTS: Final = 200
"""Attempts to come that Explain looks ahead."""


class Explainer:
    """Explaining decisions."""

    def __init__(self, context: AdminContext) -> None:
        self._router, self._addresses, self._clock = context.router, context.addresses, context.clock

    async def explain(self, connection: Connection, request: admin_pb2.ExplainRequest) -> admin_pb2.ExplainResponse:
        """Where would this go at attempt n, and why (promise 3). Raises NotFound, BadRequest."""
        subject = await self._subject(connection, request)
        router = self._router()
        attempt = request.attempt if request.HasField("attempt") else subject.next_attempt
        if not 1 <= attempt <= 100_000:
            raise BadRequest("attempts are numbered from 1")
        envelope = router.envelope(subject.facts)
        # In a thread: among 100,000 rules it takes a tenth of a second, in which deliveries go on.
        explanation = await asyncio.to_thread(explain, router.table, envelope, attempt - 1)
        site = explanation.decision.site(subject.facts.domain)
        answer = admin_pb2.ExplainResponse(
            attempt=attempt,
            decision=subject.unknown or decision_pb(explanation.decision),
            config_revision=router.number,
            site=site.key,
            shard=shard(subject.facts.domain),
        )
        for note in subject.notes:
            answer.tried.add(level="recipient", matched=False, reason=note)
        if subject.unknown is None:
            _add_tried(answer, explanation)
            demanded = router.table.demanded(envelope, explanation.decision)
            for words in security_notes(explanation.decision, demanded):
                answer.tried.add(level="security", matched=False, reason=words)
            answer.requiretls_obstacle = requiretls_obstacle(explanation.decision, demanded)
            answer.by_mx, answer.final = _ends(explanation.decision)
            self._plan(answer, subject, attempt)
        if subject.message_id is not None:
            await _add_findings(connection, answer, subject.message_id)
        await self._add_pause(connection, answer, site)
        return answer

    async def _subject(self, connection: Connection, request: admin_pb2.ExplainRequest) -> "_Subject":
        if request.HasField("recipient_id"):
            known = request.recipient_id < 2**63
            rows = await waiting_store.live(connection, [request.recipient_id]) if known else []
            if not rows:
                raise NotFound(
                    f"recipient {request.recipient_id} is not in the queue; "
                    "if it was, `mailrail queue show` shows what happened to it"
                )
            row = rows[0]
            due = await run(connection, "SELECT due, token IS NULL FROM recipient WHERE id = %(id)s", {"id": row.id})
            return _Subject(
                facts_of(row),
                row.attempts + 1,
                accepted=row.queued,
                uncounted_seconds=row.uncounted_seconds,
                due=due[0][0].timestamp() if due and due[0][1] else self._clock(),
                message_id=row.message_id,
            )
        if not request.to:
            raise BadRequest("give a recipient in the queue, or an address `to`")
        addresses = self._addresses()
        sender, account = getattr(request, "from"), None
        if request.account:
            found = addresses.account(request.account)
            if found is None:
                raise BadRequest(f"no account {request.account}")
            account = f"{found.ref.namespace}/{found.ref.name}"
        to = self._address(request.to)
        resolved = addresses.resolve(to)
        first = resolved[0]
        notes = []
        if [r.address for r in resolved] != [to]:
            notes.append(f"{to} stands for {', '.join(r.address for r in resolved[:20])}; this is {first.address}")
        gateway = first.domain.gateway if first.domain is not None else None
        facts = RecipientFacts(
            domain_of(first.address),
            domain_of(self._address(sender)) if sender else "",
            account,
            account is not None,
            first.domain is not None,
            f"{gateway.namespace}/{gateway.name}" if gateway is not None else None,
            reports=first.reports,
        )
        unknown = None
        if first.domain is not None and first.domain.delivery.value == "mailbox" and first.account is None:
            unknown = admin_pb2.RouteDecision(
                kind=admin_pb2.RouteDecision.KIND_UNKNOWN_RECIPIENT,
                level="domain delivery",
                reason=f"{first.domain.ref} has no account, alias or catch-all for {first.address}: refused 550 5.1.1",
            )
        now = self._clock()
        return _Subject(facts, 1, accepted=now, uncounted_seconds=0.0, due=now, notes=notes, unknown=unknown)

    @staticmethod
    def _address(text: str) -> str:
        local, at, domain = text.rpartition("@")
        if not at or not local:
            raise BadRequest(f"{text!r} is not an address; write local@domain")
        return f"{local}@{domain_argument(domain)}"

    def _plan(self, answer: admin_pb2.ExplainResponse, subject: "_Subject", attempt: int) -> None:
        """The attempts to come, in runs of equal decision; the schedule without jitter."""
        router = self._router()
        schedule = router.schedule(subject.facts)
        expires = expires_at(
            schedule,
            accepted=subject.accepted,
            uncounted_seconds=subject.uncounted_seconds,
            null_sender=not subject.facts.from_domain,
        )
        due, before = subject.due, None
        for number in range(attempt, attempt + EXPLAINED_ATTEMPTS):
            decision = router.table.evaluate(router.envelope(subject.facts), number - 1)
            if decision != before:
                planned = answer.planned.add(attempt=number, decision=decision_pb(decision))
                planned.due.FromNanoseconds(int(due * 1e9))
                before = decision
            planned.last_attempt = number
            planned.last_due.FromNanoseconds(int(due * 1e9))
            if due >= expires or (schedule.max_attempts is not None and number >= schedule.max_attempts):
                return
            due += base_delay(schedule, number)

    async def _add_pause(self, connection: Connection, answer: admin_pb2.ExplainResponse, site: Site) -> None:
        rows = await run(
            connection,
            "SELECT max(backoff_until) FROM site WHERE name = ANY(%(name)s) AND backoff_until > now()",
            {"name": c.names(sorted(backoff_names({site.key})))},
        )
        if rows[0][0] is not None:
            answer.site_backoff_until.FromDatetime(rows[0][0])


async def _add_findings(connection: Connection, answer: admin_pb2.ExplainResponse, message_id: bytes) -> None:
    """What was found about who sent the message, if somebody looked."""
    rows = await run(connection, "SELECT envelope FROM message WHERE id = %(id)s", {"id": UUID(bytes=message_id)})
    envelope = envelope_of(rows[0][0]) if rows else types_pb2.Envelope()
    if envelope.HasField("authentication"):
        answer.authentication.CopyFrom(envelope.authentication)


_BY_MX: Final = frozenset({TransportKind.DIRECT, TransportKind.SOCKS})


def security_notes(decision: RouteDecision, demanded: Demanded) -> Iterator[str]:
    """What is demanded of the way, and whether mail with REQUIRETLS can go by it at all (RTLS-02)."""
    if words := str(demanded):
        yield words
    if words := requiretls_obstacle(decision, demanded):
        yield f"mail with REQUIRETLS fails this way, {words}"


def requiretls_obstacle(decision: RouteDecision, demanded: Demanded) -> str:
    """Why mail with REQUIRETLS fails by a host that the configuration names, with the status that its sender hears;
    empty: nothing is known against it. Of an MX host only the attempt knows."""
    transport = decision.transport
    if transport is None or transport.kind in _BY_MX or transport.kind is TransportKind.FAIL:
        return ""
    host = transport.host or ""
    hop = replace(
        Hop.by(transport, host),
        requirement=Requirement.REQUIRED,
        demanded=demanded,
        loopback=host == "localhost" or (is_ip_address(host) and is_loopback(host)),
    )
    refusal = decide(hop).refusal
    if refusal is None:
        return ""
    unless = "; unless its TLSA records prove it" if wants_tlsa(hop) and not is_ip_address(host) else ""  # DANE-21
    return f"{refusal.status}: {refusal.words}{unless}"


def _ends(decision: RouteDecision) -> tuple[bool, bool]:
    """Whether it goes to MX hosts, and whether it is delivered here."""
    kind = decision.transport.kind if decision.transport is not None else None
    by_mx = decision.via is Via.DIRECT or kind in _BY_MX
    return by_mx, decision.via is Via.MAILBOX or kind is TransportKind.LMTP


@dataclass(frozen=True, slots=True)
class _Subject:
    """What Explain is asked about. Times are Unix seconds."""

    facts: RecipientFacts
    next_attempt: int
    accepted: float
    uncounted_seconds: float
    due: float
    message_id: bytes | None = None
    """Of a recipient in the queue."""
    notes: list[str] = field(default_factory=list)
    unknown: admin_pb2.RouteDecision | None = None


_KINDS = {
    "transport": admin_pb2.RouteDecision.KIND_TRANSPORT,
    "direct": admin_pb2.RouteDecision.KIND_DIRECT,
    "mailbox": admin_pb2.RouteDecision.KIND_MAILBOX,
    "missing": admin_pb2.RouteDecision.KIND_DEFERRED,
}
_LEVELS = {"delivery": "domain delivery"}


def decision_pb(decision: RouteDecision) -> admin_pb2.RouteDecision:
    """A decision as the agreements write it."""
    found = admin_pb2.RouteDecision(
        kind=_KINDS[decision.via.value],
        level=_LEVELS.get(decision.level.value, decision.level.value),
        reason=decision.reason,
    )
    ref = decision.transport.ref if decision.transport is not None else decision.missing
    if ref is not None:
        found.transport.CopyFrom(types_pb2.ObjectRef(kind=ref.kind, namespace=ref.namespace, name=ref.name))
    if decision.rule is not None:
        route = decision.rule.route
        found.route.CopyFrom(types_pb2.ObjectRef(kind=route.kind, namespace=route.namespace, name=route.name))
        found.rule_index, found.rule = decision.rule.index, decision.rule.name
    return found


def _add_tried(answer: admin_pb2.ExplainResponse, explanation: Explanation) -> None:
    for step in explanation.tried:
        tried = answer.tried.add(
            level=_LEVELS.get(step.level.value, step.level.value), matched=step.matched, reason=step.reason
        )
        if step.rule is not None:
            route = step.rule.route
            tried.route.CopyFrom(types_pb2.ObjectRef(kind=route.kind, namespace=route.namespace, name=route.name))
            tried.rule_index, tried.rule = step.rule.index, step.rule.name
    if explanation.unlisted:
        answer.tried.add(level="", matched=False, reason=f"and {explanation.unlisted} more rules that do not match")
