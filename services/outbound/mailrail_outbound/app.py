"""Outbound: takes deliveries, finds out where they go, has them sent, and reports what became of each recipient.

A delivery goes: its configuration (LSE-07) → the transport → the hosts → for each host the TLS decision, the addresses,
a job in the pool → the report. Every decision is asked of the core; this module only carries out.

Its steps are a generator, which stops only where something must be waited for: at what can be awaited (a configuration
or a DNS answer that is not here), for which a task is made, or at its job, whose end takes it further by a call. Most
deliveries find all they need at hand and wait for their job alone: no task, no future, no turn of the event loop.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

from mailrail.core.delivery.outcome import Outcome, Verdict, of_trouble
from mailrail.core.delivery.shares import SiteStanding
from mailrail.core.dsn.redact import CONTENT_LIMIT, redact
from mailrail.core.ids import began
from mailrail.core.outbound.captive import is_loopback, simulated_reply
from mailrail.core.outbound.host_failover import HostFailover, RecipientVerdict
from mailrail.core.outbound.learned import Offered
from mailrail.core.outbound.targets import MAX_SESSIONS, NoHosts, address_order
from mailrail.core.outbound.tls_answers import tls_failed, tls_refused
from mailrail.core.revision.revision import ObjectRef, TransportKind
from mailrail.core.route import LackingTransport
from mailrail.core.smtp.answer import LACKING, Answer, Stage, Trouble
from mailrail.core.smtp.reply import EnhancedCode, Reply
from mailrail.core.tlspolicy.cause import cause_of
from mailrail.core.tlspolicy.decision import TRY_LATER
from mailrail.core.tlspolicy.demands import NOTHING
from mailrail.core.tlspolicy.facts import Purpose, Requirement
from mailrail.core.tlsrpt.result import HostPolicies, SeenSession, sessions_of
from mailrail.kit import clock, log
from mailrail.kit.lookup_turns import MAIL_BEGAN
from mailrail.kit.resolver import DnsResolver
from mailrail_outbound import metrics
from mailrail_outbound.content import OutgoingContent
from mailrail_outbound.dialling import CannotDial, Dialler, Host
from mailrail_outbound.domain_recorder import DomainRecorder
from mailrail_outbound.hops import DIRECT, DialPlan, NextHop, Tables, Way
from mailrail_outbound.hosts import HostResolver, Steps
from mailrail_outbound.job import Attempt, HostJob
from mailrail_outbound.memory_budget import MemoryBudget
from mailrail_outbound.pool import Pool
from mailrail_outbound.ports import (
    Body,
    ConnectionFacts,
    ContentGone,
    Delivery,
    DeliveryReport,
    OutOfReach,
    RecipientReport,
    Result,
    Worker,
)
from mailrail_outbound.probes import Prober
from mailrail_outbound.settings import OutboundSettings
from mailrail_outbound.smtp import INTERNAL_ERROR, ClientConnection
from mailrail_outbound.tls_policy.cache import PolicyUnread
from mailrail_outbound.tls_policy.dane import DaneLookup
from mailrail_outbound.tls_policy.sts import NO_POLICY, DomainSts, StsLookup, unread
from mailrail_outbound.tls_reports import applied_to, seen_in

_RESULTS = {
    Outcome.DELIVERED: Result.DELIVERED,
    Outcome.RELAYED: Result.RELAYED,
    Outcome.DEFERRED: Result.DEFERRED,
    Outcome.FAILED: Result.FAILED,
}

_ANOTHER_ADDRESS_MAY_DO = frozenset({Stage.CONNECT, Stage.GREETING, Stage.HELLO})
"""Where a session failed that another address of the same host may give. CONNECT: a proxy could not reach this one; on
our own side the pool has tried them all."""
_LEASE_LOW = Answer(Stage.DNS, None, Trouble.LEASE, "too little of the lease is left")
_CANCELLED = Answer(Stage.DNS, None, Trouble.CANCELLED, "cancelled by an administrator")
_WENT = {
    Way.UNCHECKED: "; the certificate is not valid, which is only reported ({})",
    Way.PLAIN: "; it failed, so without ({})",
}
"""What the history says of how a host was tried, by what had failed before."""
_REQUIRED = Requirement.REQUIRED
_DECIDED = Way.DECIDED
_FAIL = TransportKind.FAIL  # reading a member off its enum costs more than what is asked of it for each message
_LEARNED_AT_ONCE = 20  # recipients of a message through a transport, of whose domains something is learned
_LOGGED = 2048  # octets of a server's words in a line of the log
_CLASSES = {2: "2yz", 3: "3yz", 4: "4yz", 5: "5yz"}


@dataclass(frozen=True, slots=True)
class Captured:
    """Captive mode kept a delivery on this machine."""

    why: str


class NotAttempted(Exception):
    """The attempt is to be undone (LSE-04); the text says why."""

    status = EnhancedCode(4, 3, 5)


class PolicyNotKnown(NotAttempted):
    """What the destination demands of TLS cannot be read. The queue knows it by its status, and lets it wait longer."""

    status = TRY_LATER


class BrokenOff(Exception):
    """An administrator broke a delivery off while it stood in line (ADM-02)."""


class Outbound(Worker):
    """The application of one process."""

    def __init__(
        self,
        settings: OutboundSettings,
        *,
        resolver: DnsResolver,
        pool: Pool,
        report: Callable[[DeliveryReport], None],
        resolved: Callable[[int, tuple[str, ...]], None],
        wait_for_revision: Callable[[int, float], Awaitable[bool]],
        sts: StsLookup | None = None,
        recorder: DomainRecorder | None = None,
    ) -> None:
        """`sts` None: no domain has a policy. `recorder` None: nobody is told what sessions show."""
        self.tables: Tables | None = None
        self._settings = settings
        self._pool = pool
        self._memory = MemoryBudget(settings.streamed_content)
        self._report = report
        self._resolved = resolved
        self._wait_for_revision = wait_for_revision
        self._loop = asyncio.get_running_loop()
        self._hosts = HostResolver(settings, resolver)
        self._sts, self._recorder = sts, recorder
        self._dane = DaneLookup(resolver, settings.digest_strength)
        self._dialler = Dialler(settings, resolver)
        self._prober = Prober(settings, resolver, self._dane, self._dialler, pool)
        self._running: dict[int, DeliveryInProgress] = {}
        self._all_done: asyncio.Event | None = None
        self._log = log.get_logger()
        # The fields of a line cost more than the question whether anybody wants it.
        self._logs_deliveries = self._log.is_enabled_for(logging.INFO)
        metrics.RUNNING.set_function(lambda: len(self._running))

    # --- for the Lease streams ---------------------------------------------------------------------------------

    def take(self, delivery: Delivery) -> None:
        """Begin a delivery; its report comes later. A token that is in progress is not begun again: its
        delivery goes on, and one of another message is returned (HIS-03)."""
        token = delivery.lease.token
        if token in self._running:
            self._refuse(delivery, self._running[token].delivery)
            return
        progress = DeliveryInProgress(delivery, self._loop.time(), self._go_on)
        self._running[token] = progress
        self._pool.credit.add(delivery.standing, delivery.held)
        progress.steps = self._attempt(progress)
        self._go_on(progress)

    def _refuse(self, delivery: Delivery, running: Delivery) -> None:
        token, message_id = delivery.lease.token, delivery.message_id
        if message_id == running.message_id:
            self._log.warning("delivery handed out twice; it goes on", token=token, message_id=message_id.hex())
            return
        other = running.message_id.hex()
        self._log.error("two deliveries have the same token", token=token, message_id=message_id.hex(), running=other)
        verdict = Verdict(Outcome.DEFERRED, EnhancedCode(4, 3, 5), "another delivery has its token")
        reports = [RecipientReport(i, Result.NOT_ATTEMPTED, verdict) for i in delivery.recipient_ids]
        now = time.time_ns()
        self._report(DeliveryReport(token, message_id, now, now, reports, {}, ()))

    def renew(self, token: int, remaining: float) -> None:
        """Extend a lease to `remaining` seconds from now."""
        progress = self._running.get(token)
        if progress is not None:
            lease = progress.delivery.lease
            lease.deadline = max(lease.deadline, clock.now() + remaining)

    def cancel(self, token: int) -> None:
        """Break a delivery off if its final dot is not sent (ADM-02)."""
        progress = self._running.get(token)
        if progress is None:
            return
        progress.delivery.lease.cancelled = True
        if progress.job is not None:
            progress.job.cancel(waits=self._pool.withdraw(progress.job))
        elif progress.waits_for_memory:
            self._loop.call_soon(
                progress.stop_waiting_for_memory
            )  # a task that has not begun would be cancelled without running at all

    @property
    def under_way(self) -> int:
        """How many deliveries are in progress."""
        return len(self._running)

    @property
    def running(self) -> dict[int, tuple[int, ...]]:
        """Token → recipient ids of everything in progress."""
        return {token: progress.delivery.recipient_ids for token, progress in self._running.items()}

    def mx_hosts(self, token: int) -> tuple[str, ...]:
        """See ports.Worker."""
        progress = self._running.get(token)
        return progress.mx_hosts if progress is not None else ()

    async def drained(self, within: float) -> bool:
        """Wait until no delivery is in progress, `within` seconds at most. Says whether that came."""
        if not self._running:
            return True
        self._all_done = self._all_done or asyncio.Event()
        self._all_done.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within):
                await self._all_done.wait()
        return not self._running

    async def close(self) -> None:
        """Break off what is in progress; nothing of it is reported, its leases run out."""
        deliveries, self._running = list(self._running.values()), {}
        for progress in deliveries:
            progress.stop()
        await asyncio.gather(
            *[progress.task for progress in deliveries if progress.task is not None], return_exceptions=True
        )
        await self._pool.close()

    # --- one delivery ---------------------------------------------------------------------------------------

    def _go_on(self, progress: "DeliveryInProgress", value: object = None, error: Exception | None = None) -> None:
        """Take a delivery as far as it can go now; `value`, or `error`, is what it waited for."""
        delivery = progress.delivery
        steps = progress.steps
        if steps is None:  # broken off
            return
        try:
            wanted = steps.send(value) if error is None else steps.throw(error)
        except StopIteration as end:
            reports: list[RecipientReport] = end.value
        except NotAttempted as reason:
            verdict = Verdict(Outcome.DEFERRED, reason.status, str(reason))
            reports = [RecipientReport(i, Result.NOT_ATTEMPTED, verdict) for i in delivery.recipient_ids]
            self._log.warning("delivery returned", token=delivery.lease.token, reason=str(reason))
        except Exception:
            message_id = delivery.message_id.hex()
            self._log.exception("delivery crashed", token=delivery.lease.token, message_id=message_id)
            reports = _after_crash(progress)
        else:
            if wanted is None:
                progress.waits_for_job = True
            else:
                progress.task = self._loop.create_task(self._wait(progress, wanted))
            return
        progress.steps = None
        try:
            self._finish(progress, reports)
        except Exception:  # must not reach the connection that brought the last answer
            self._log.exception("report lost", token=delivery.lease.token, message_id=delivery.message_id.hex())

    async def _wait(self, progress: "DeliveryInProgress", wanted: Awaitable[Any]) -> None:
        value: object = None
        error: Exception | None = None
        MAIL_BEGAN.set(began(progress.delivery.message_id))
        try:
            value = await wanted
        except asyncio.CancelledError:
            if progress.steps is None or not progress.waits_for_memory:  # the process stops
                self._running.pop(progress.delivery.lease.token, None)
                raise
            error = BrokenOff()
        except Exception as raised:
            error = raised
        progress.task = None
        self._go_on(progress, value, error)

    def _finish(self, progress: "DeliveryInProgress", reports: list[RecipientReport]) -> None:
        delivery = progress.delivery
        del self._running[delivery.lease.token]
        self._pool.credit.discard(delivery.standing, delivery.held)
        seconds = self._loop.time() - progress.clock
        metrics.SECONDS.observe(seconds)
        kind = progress.transport.kind
        for report in reports:
            metrics.DELIVERIES.inc(kind, report.result)
        if self._logs_deliveries:
            self._log_delivery(progress, reports, seconds)
        ended = time.time_ns()
        token, message_id = delivery.lease.token, delivery.message_id
        self._report(
            DeliveryReport(token, message_id, progress.started, ended, reports, progress.dialled, progress.mx_hosts)
        )
        if self._all_done is not None and not self._running:
            self._all_done.set()

    def _log_delivery(self, progress: "DeliveryInProgress", reports: list[RecipientReport], seconds: float) -> None:
        # One line for recipients that fared alike, which nearly always is all of them.
        delivery = progress.delivery
        groups: dict[tuple[Result, str, str], list[int]] = {}
        for index, each in enumerate(reports):
            groups.setdefault((each.result, each.text, each.ip), []).append(index)
        for (result, text, ip), indexes in groups.items():
            first = reports[indexes[0]]
            self._log.info(
                "delivery " + result,
                message_id=delivery.message_id.hex(),
                token=delivery.lease.token,
                attempt=delivery.attempt,
                transport=str(delivery.transport.name) if delivery.transport else "direct",
                to=[delivery.recipients[i].address for i in indexes[:20]],
                recipients=len(indexes),
                host=first.host,
                ip=ip,
                tls=first.tls.version if first.tls else "",
                verified=first.tls.verified if first.tls else False,
                resumed=first.tls.resumed if first.tls else False,
                status=str(first.status),
                reply=(str(first.reply) if first.reply is not None else text)[:_LOGGED],
                uncertain=first.uncertain,
                seconds=round(seconds, 4),
            )

    def _attempt(self, progress: "DeliveryInProgress") -> Steps[list[RecipientReport]]:
        delivery = progress.delivery
        tables = self.tables
        if tables is None or tables.number < delivery.config_revision:
            tables = yield from self._configured(delivery)
        hop = self._next_hop(tables, delivery)
        transport = progress.transport = hop.transport
        ids = delivery.recipient_ids
        reports: dict[int, RecipientReport] = {}
        if self._settings.captive:
            for i, recipient in enumerate(delivery.recipients):
                reply = simulated_reply(recipient.address.rpartition("@")[0], delivery.simulate[i])
                if reply is not None:
                    reports[i] = _own_words(ids[i], reply)
        if transport.kind is _FAIL:
            code = transport.code or 554
            text = transport.text or "delivery refused by configuration"
            for i in range(len(ids)):
                if i not in reports:
                    reports[i] = _own_words(ids[i], Reply.of(code, f"{code // 100}.7.0", text))
        if len(reports) < len(ids):
            failover = HostFailover(len(ids), hop=hop.kind)
            failover.leave_out(reports)
            content = OutgoingContent(delivery, reencode_signed=transport.reencode_signed)
            attempt = progress.attempt = Attempt(delivery, content, failover, tables, hop)
            if isinstance(delivery.body, bytes):
                stopped = yield from self._try_hosts(progress, attempt)
            else:
                stopped = yield from self._stream_to_hosts(progress, attempt)
            if stopped is None and delivery.requirement is _REQUIRED:
                redacted = yield from self._redacted(attempt)
                if redacted is not None:
                    progress.attempt = redacted
                    stopped = yield from self._try_hosts(progress, redacted)
            if isinstance(stopped, Captured):
                verdict = Verdict(Outcome.DELIVERED, EnhancedCode(2, 0, 0), stopped.why)
                for i in failover.open:
                    reports[i] = RecipientReport(ids[i], Result.CAPTURED, verdict)
                failover.leave_out(reports)
            elif stopped is not None:
                for i in failover.open:
                    reports[i] = RecipientReport(ids[i], _RESULTS[stopped.outcome], stopped, attempt.seen.get(i))
                failover.leave_out(reports)
            for i, settled in failover.conclude().items():
                reports[i] = _report(delivery, i, settled, attempt.seen.get(i))
        return [reports[i] for i in range(len(ids))]

    def _redacted(self, attempt: Attempt) -> Steps[Attempt | None]:
        """What goes to all hosts once more where none takes a notification as its message required: it without what it
        returns (RFC 8689 5, RTLS-21b). None: it is none, or nothing in it can be left out."""
        delivery, body = attempt.delivery, attempt.delivery.body
        if delivery.envelope.sender or not attempt.failover.wants_tls:
            return None
        if isinstance(body, bytes):
            original = delivery.prefix + body
        elif delivery.size > CONTENT_LIMIT:
            return None
        else:
            try:
                original = yield attempt.content.read()
            except ContentGone as error:  # it must not fail for that
                detail = f"the content could not be read to its end: {error}"
                attempt.failover.record_session_failure(Answer(Stage.PLAN, None, Trouble.LEASE, detail))
                return None
        content = redact(original)
        if content is None:
            return None
        metrics.REDACTED.inc()
        self._log.warning(
            "no host takes a notification with REQUIRETLS; it goes without, and without what it returns",
            message_id=delivery.message_id.hex(),
            token=delivery.lease.token,
        )
        changed = replace(
            delivery,
            prefix=b"",
            body=content,
            size=len(content),
            lines=attempt.content.lines,
            redacted=True,
        )
        # Whatever was signed is broken by now, so nothing is left to keep.
        return replace(attempt, delivery=changed, content=OutgoingContent(changed, reencode_signed=True))

    def _stream_to_hosts(self, progress: "DeliveryInProgress", attempt: Attempt) -> Steps[Captured | Verdict | None]:
        """`_try_hosts` for content that streams."""
        try:
            return (yield from self._try_hosts(progress, attempt))
        except BrokenOff:
            attempt.failover.record_session_failure(_CANCELLED)
            return None
        finally:
            if attempt.memory is not None:
                self._memory.give(attempt.memory)

    def _prepare_stream(
        self, progress: "DeliveryInProgress", attempt: Attempt, body: Body, standing: Callable[[], SiteStanding]
    ) -> Steps[None]:
        """Before content that streams is first sent: have memory for it, and a queue that can give it. Raises BrokenOff
        or NotAttempted."""
        if attempt.delivery.lease.cancelled:
            raise BrokenOff
        content = attempt.content
        progress.waits_for_memory = True
        try:
            attempt.memory = yield self._memory.take(content.held, self._settings.streamed_content_wait, standing)
        finally:
            progress.waits_for_memory = False
        if attempt.memory is None:
            raise NotAttempted("too much large content is being sent; no memory was free for more in time")
        if not body.within_reach:
            raise NotAttempted("no queue replica with the content is reachable")
        if content.header_unseen:
            try:
                yield content.look_at_header()
            except OutOfReach as error:
                raise NotAttempted(f"cannot get the content: {error}") from error

    def _configured(self, delivery: Delivery) -> Steps[Tables]:
        if not (yield self._wait_for_revision(delivery.config_revision, self._settings.revision_wait)):
            raise NotAttempted(f"configuration revision {delivery.config_revision} did not arrive in time")
        assert self.tables is not None
        return self.tables

    def _next_hop(self, tables: Tables, delivery: Delivery) -> NextHop:
        hop = tables.hops.get(delivery.transport)
        if hop is None:
            raise NotAttempted(f"transport {delivery.transport} is not in revision {tables.number}")
        if delivery.transport_digest and delivery.transport is not None and hop.digest != delivery.transport_digest:
            raise NotAttempted(f"transport {delivery.transport} is different in revision {tables.number}")
        return hop

    def _try_hosts(self, progress: "DeliveryInProgress", attempt: Attempt) -> Steps[Captured | Verdict | None]:
        """Go over the hosts until every recipient is settled or no host is left."""
        settings, delivery, failover = self._settings, attempt.delivery, attempt.failover
        tables, hop = attempt.tables, attempt.hop
        transport, by_mx = hop.transport, hop.by_mx
        if by_mx:
            if settings.captive and not settings.resolver and not delivery.domain.startswith("["):
                return Captured(f"captive: mail for {delivery.domain} would go to its MX")
            hosts = yield from self._hosts.of_domain(tables, delivery.domain)
            if isinstance(hosts, NoHosts):
                return of_trouble(hosts.trouble, stage=Stage.DNS, detail=hosts.detail)
            progress.mx_hosts = hosts.names
            self._resolved(delivery.lease.token, hosts.names)
            names = hosts.names
            port = settings.direct_port
            if settings.captive and hop.proxied and not (yield self._dialler.proxy_is_here(transport)):
                return Captured(f"captive: the proxy {transport.proxy_host} is not on this machine")
        else:
            names, port = hop.hosts, hop.port
        sts = (yield from self._policy_of(delivery)) if by_mx else NO_POLICY
        looped = False
        for name in names:
            if not failover.open:
                break
            if delivery.lease.cancelled:
                failover.record_session_failure(_CANCELLED)
                break
            if delivery.lease.deadline - clock.now() < settings.lease_margin:
                if not progress.dialled:
                    raise NotAttempted("too little of the lease is left to begin")
                failover.record_session_failure(_LEASE_LOW)
                break
            addresses = yield from self._hosts.addresses(name, transport, failover, by_mx=by_mx)
            if not addresses:
                if settings.captive and not by_mx:
                    return Captured(f"captive: {name} port {port} would be dialled; it has no address here")
                continue
            if settings.captive:
                local = tuple(filter(is_loopback, addresses))
                if not local:
                    return Captured(f"captive: {name} port {port} at {addresses[0]} would be dialled")
                addresses = local
            if by_mx:
                foreign = tuple(a for a in addresses if not self._hosts.is_own_mx(tables, a, port))
                if not foreign:
                    # SOUT-04: this host is us under another name. The hosts after it would hand the message back.
                    looped = True
                    break
                addresses = foreign
            ordered = address_order(addresses, delivery.dialled.get(name, ()))
            host = Host(name, port, ordered)
            if by_mx:
                # What is proven decides about TLS with the host (DANE-14b, DANE-15b, DANE-16b), and whether it is
                # dialled at all (DANE-03b).
                proven = yield from self._dane.of_host(delivery.domain, name, transport.families, port)
                host = host.proven(proven)._replace(sts=sts.facts(name))  # STS-10b
                if self._recorder is not None:
                    progress.applied = applied_to(delivery, name, sts, proven)
            elif (delivery.requirement is _REQUIRED or delivery.demanded is not NOTHING) and self._dialler.wants_tlsa(
                hop, delivery, host
            ):  # RTLS-25c
                host = host.proven((yield from self._dane.of_configured(name, transport.families, port)))
            yield from self._try_host(progress, attempt, host)
        if looped and not failover.tried:
            return of_trouble(Trouble.LOOP, detail=f"{delivery.domain} leads to our own MX listener")
        if by_mx and failover.open and sts.enforced and not progress.policy_asked_again:
            # STS-13b: the domain may have repaired its policy, which the new id of its record shows. What is kept of
            # that record must not make mail fail, and the attempt goes on by the new policy.
            progress.policy_asked_again = True
            changed = yield from self._policy_changed(delivery, sts)
            if changed:
                return (yield from self._try_hosts(progress, attempt))
            if changed is None and delivery.requirement is _REQUIRED and failover.wants_tls:
                return of_trouble(Trouble.TLS_POLICY, detail="whether the MTA-STS policy has changed is not known")
        return None

    def _policy_of(self, delivery: Delivery) -> Steps[DomainSts]:
        """What MTA-STS says of the recipient domain. Raises PolicyNotKnown."""
        if self._sts is None or self._settings.captive:
            return NO_POLICY
        try:
            return (yield from self._sts.of_domain(delivery.domain))
        except PolicyUnread as error:
            lenient = delivery.purpose is Purpose.TLS_REPORT and delivery.requirement is not _REQUIRED
            if lenient or delivery.requirement is Requirement.NO:  # RTLS-22b, TRPT-15: no policy holds it back
                return unread(delivery.domain)
            raise PolicyNotKnown(str(error)) from error

    def _tell(self, progress: "DeliveryInProgress", seen: SeenSession | None) -> None:
        """A session, or a host that is not dialled for a policy, is told in TLS reports (STS-12b, TRPT-06b)."""
        if self._recorder is not None and progress.applied is not None:
            self._recorder.report(sessions_of(progress.applied, seen, purpose=progress.delivery.purpose))

    def _learn(self, recorder: DomainRecorder, attempt: Attempt, offered: Offered) -> None:
        """A session showed what is worth knowing of the domains that its mail goes to (RTLS-29)."""
        delivery, hop = attempt.delivery, attempt.hop
        name, lately = hop.name, recorder.lately
        if hop.by_mx:
            if lately.get((delivery.domain, name)) != offered:
                recorder.learn(delivery.domain, name, offered)
            return
        for one in delivery.recipients[:_LEARNED_AT_ONCE]:
            domain = one.address.rpartition("@")[2]
            if lately.get((domain, name)) != offered and domain.isascii():
                recorder.learn(domain.lower(), name, offered)

    def _policy_changed(self, delivery: Delivery, before: DomainSts) -> Steps[bool | None]:
        """Whether the domain has another policy by now; None: that is not known."""
        assert self._sts is not None
        try:
            now = yield from self._sts.of_domain(delivery.domain, anew=True)
        except PolicyUnread:
            return None
        return now.policy != before.policy if now.answered else None

    def _try_host(self, progress: "DeliveryInProgress", attempt: Attempt, host: Host) -> Steps[None]:
        """All open recipients go to one host, and to its next address where one gives no session (SOUT-03)."""
        delivery, failover = attempt.delivery, attempt.failover
        sessions = 0
        while True:
            plan = self._dialler.plan_for(attempt.hop, delivery, host)
            decision = plan.decision
            if decision.refusal is not None:  # RTLS-11b, RTLS-12b: it is not dialled; RTLS-15b: the next one may do
                refused = tls_refused(decision.refusal)
                if host.dns_failure:
                    refused = replace(refused, detail=f"{refused.detail}: {host.dns_failure}")
                failover.record_session_failure(refused)
                self._tell(progress, None)
                return
            answer = yield from self._run_job(progress, attempt, plan, host, _DECIDED)
            if progress.applied is not None:
                seen = None
                if progress.connection is not None:
                    seen = seen_in(decision, answer, progress.connection, attempt.hop)
                if seen is not None:
                    self._tell(progress, seen)
            if decision.check_name is not None and answer is not None and _certificate_failed(answer):  # RTLS-22b
                self._log.info("a certificate is not valid, which is only reported", host=host.name, why=answer.detail)
                answer = yield from self._run_job(progress, attempt, plan, host, Way.UNCHECKED, failed=answer.detail)
            if (
                answer is not None
                and answer.trouble is Trouble.TLS
                and decision.plaintext_may_follow
                and not progress.had_tls  # a connection that is used up must not lead to one without TLS
            ):
                # TLS-07: on a new connection, and the history says so.
                self._log.info("TLS failed; continuing without TLS", host=host.name, reason=answer.detail)
                answer = yield from self._run_job(progress, attempt, plan, host, Way.PLAIN, failed=answer.detail)
            if answer is None:
                return
            answer = tls_failed(decision, answer)
            if answer.trouble is Trouble.LEASE and not attempt.seen:
                raise NotAttempted(answer.detail)
            failover.record_session_failure(answer)
            sessions += answer.stage is not Stage.CONNECT
            known = progress.dialled.get(host.name, ())
            rest = tuple(a for a in host.addresses if a not in known)
            if (
                not failover.open
                or answer.stage not in _ANOTHER_ADDRESS_MAY_DO
                or sessions >= MAX_SESSIONS
                or not 0 < len(rest) < len(host.addresses)
                or delivery.lease.cancelled
                or delivery.lease.deadline - clock.now() < self._settings.lease_margin
            ):
                return
            host = host._replace(addresses=rest)

    def _run_job(
        self,
        progress: "DeliveryInProgress",
        attempt: Attempt,
        plan: DialPlan,
        host: Host,
        way: Way,
        *,
        failed: str = "",
    ) -> Steps[Answer | None]:
        """Run one job. None: the host had a session for it; else why not. `failed`: why it did not go as decided."""
        decision = plan.decision
        dial = plan.dials.get(way)
        if dial is None:
            hop = attempt.hop
            try:
                proxy = (yield self._dialler.proxy_address(hop.transport)) if hop.proxied else ""
                gateway = attempt.delivery.gateway
                dial = self._dialler.dial(attempt.tables, hop, decision, gateway, host, proxy, way=way, dane=plan.dane)
            except CannotDial as error:
                return error.answer
            plan.dials[way] = dial
        reason = decision.reason
        if way is not _DECIDED:
            reason += _WENT[way].format(failed)
        if attempt.delivery.redacted:
            reason = f"redacted, as no host offers what was required; {reason}"
        job = HostJob(
            attempt,
            dial,
            decision,
            tls_verdict=reason,
            lease_margin=self._settings.lease_margin,
            on_done=progress.on_job_done,
        )
        body = attempt.delivery.body
        if not isinstance(body, bytes):
            if attempt.memory is None:
                yield from self._prepare_stream(progress, attempt, body, lambda: self._pool.standing(job))
            else:
                attempt.memory.standing = lambda: self._pool.standing(job)
        progress.job = job
        try:
            self._pool.submit(job)
            if not job.over:
                yield None
        except GeneratorExit:
            self._pool.withdraw(job)
            raise
        finally:
            progress.job = None
            progress.had_tls = job.had_tls
            progress.connection = job.connection
            if job.offered is not None and self._recorder is not None:
                self._learn(self._recorder, attempt, job.offered)
            if job.dialled:
                known = progress.dialled.setdefault(host.name, [])
                known += [ip for ip in job.dialled if ip not in known]
        return job.answer

    async def verify(self, address: str, ref: ObjectRef) -> Answer:
        """Ask the next hop of a transport about a recipient (recipients: Verify, design 5)."""
        return await self._prober.verify(self.tables, address, ref)

    def digest(self, ref: ObjectRef) -> str:
        """What a transport says now, as a digest; empty: it is not known."""
        hop = self.tables.hops.get(ref) if self.tables is not None else None
        return hop.digest if hop is not None else ""


class DeliveryInProgress:
    """A delivery from its arrival to its report: how far its steps have come, and what they wait for."""

    __slots__ = (
        "applied",
        "attempt",
        "clock",
        "connection",
        "delivery",
        "dialled",
        "had_tls",
        "job",
        "mx_hosts",
        "policy_asked_again",
        "resume",
        "started",
        "steps",
        "task",
        "transport",
        "waits_for_job",
        "waits_for_memory",
    )

    def __init__(self, delivery: Delivery, clock: float, resume: "Callable[[DeliveryInProgress], None]") -> None:
        """`clock`: the loop's time at which it came. `resume` takes it further once its job is over."""
        self.delivery = delivery
        self.clock = clock
        self.started = time.time_ns()
        self.transport = DIRECT
        self.attempt: Attempt | None = None
        """None until hosts are tried."""
        self.dialled: dict[str, list[str]] = {}
        self.mx_hosts: tuple[str, ...] = ()
        self.job: HostJob | None = None
        self.had_tls = False
        """The last job was sent from a connection with TLS to a fresh one."""
        self.applied: HostPolicies | None = None
        """What applies to the host that is tried, for TLS reports."""
        self.connection: ClientConnection | None = None
        """That of the last job's last transaction, or the one that gave it no session, if there was one."""
        self.policy_asked_again = False
        """Whether its MTA-STS record was, because no host of the policy took it."""
        self.steps: Steps[list[RecipientReport]] | None = None
        """What is still to do; None once it is over."""
        self.resume = resume
        self.waits_for_job = False
        self.task: asyncio.Task[None] | None = None
        """Awaits what the steps asked for."""
        self.waits_for_memory = False
        """Nothing was done yet: it can be broken off."""

    def on_job_done(self) -> None:
        """Go on. A job may be over before it is waited for."""
        if self.waits_for_job:
            self.waits_for_job = False
            self.resume(self)

    def stop_waiting_for_memory(self) -> None:
        """Break off the wait for memory, if there is one."""
        if self.waits_for_memory and self.task is not None:
            self.task.cancel()

    def stop(self) -> None:
        """Break off."""
        steps, self.steps = self.steps, None
        if self.task is not None:
            self.task.cancel()
        if steps is not None:
            steps.close()


def _after_crash(progress: DeliveryInProgress) -> list[RecipientReport]:
    """Reports of a delivery that a mistake of our own ended: what servers have taken stays taken."""
    verdict = Verdict(Outcome.DEFERRED, EnhancedCode(4, 3, 0), INTERNAL_ERROR)
    attempt = progress.attempt
    settled = attempt.failover.settled if attempt is not None else {}
    seen = attempt.seen if attempt is not None else {}
    return [
        _report(progress.delivery, i, settled[i], seen.get(i))
        if i in settled
        else RecipientReport(recipient_id, Result.DEFERRED, verdict, seen.get(i))
        for i, recipient_id in enumerate(progress.delivery.recipient_ids)
    ]


def _own_words(recipient_id: int, reply: Reply) -> RecipientReport:
    failed = reply.permanent
    verdict = Verdict(Outcome.FAILED if failed else Outcome.DEFERRED, reply.status, reply.text, reply)
    return RecipientReport(recipient_id, Result.FAILED if failed else Result.DEFERRED, verdict)


def _certificate_failed(answer: Answer) -> bool:
    return answer.trouble is Trouble.TLS and answer.fault is not None and answer.fault.of_certificate


def _what(answer: Answer) -> str:
    if answer.trouble is not None:
        return answer.trouble.replace("-", "_")
    return _CLASSES[answer.reply.code // 100] if answer.reply is not None else "none"


def _report(delivery: Delivery, index: int, settled: RecipientVerdict, seen: ConnectionFacts | None) -> RecipientReport:
    answer, verdict = settled.answer, settled.verdict
    metrics.ANSWERS.inc(answer.stage, _what(answer))
    result = Result.CANCELLED if settled.cancelled else _RESULTS[verdict.outcome]
    extension = LACKING.get(answer.trouble) if answer.trouble is not None else None
    lacking = LackingTransport(delivery.transport, delivery.transport_digest, extension) if extension else None
    return RecipientReport(
        delivery.recipient_ids[index],
        result,
        verdict,
        seen,
        verdict.reply is not None,
        answer.uncertain,
        lacking,
        cause_of(answer) if answer.trouble is not None else None,
    )
