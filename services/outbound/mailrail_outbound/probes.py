"""Probes: whether a transport's host would take a recipient (recipients: Verify, design 5). Nothing is sent."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace

from mailrail.core.outbound.captive import is_loopback
from mailrail.core.outbound.envelope import ContentFacts, Envelope, EnvelopeRecipient, Form, plan
from mailrail.core.outbound.tls_answers import tls_is_gone, tls_refused
from mailrail.core.revision.revision import ObjectRef
from mailrail.core.smtp.answer import Answer, Stage, Trouble
from mailrail.core.smtp.client import ClientTransaction
from mailrail.core.smtp.stuffing import Stuffer
from mailrail.core.tlspolicy.decision import Hop as TlsHop
from mailrail.core.tlspolicy.decision import decide, wants_tlsa
from mailrail.core.tlspolicy.demands import add_up, of_transport
from mailrail.kit.resolver import DnsResolver, LookupFailed
from mailrail_outbound.dialling import CannotDial, Dialler, Host
from mailrail_outbound.hops import Tables, Way
from mailrail_outbound.hosts import awaited
from mailrail_outbound.pool import Pool, PoolJob
from mailrail_outbound.settings import OutboundSettings
from mailrail_outbound.smtp import INTERNAL_ERROR, ClientConnection, Dial
from mailrail_outbound.tls_policy.dane import DaneLookup

_PROBE = Envelope("")
_NOTHING = ContentFacts(0, False, False, False)


class ProbeJob(PoolJob):
    """Asks a host whether it would take a recipient, without sending anything (recipients: Verify, design 5)."""

    form = Form.AS_IS

    def __init__(self, recipient: EnvelopeRecipient, dial: Dial, done: asyncio.Future[Answer]) -> None:
        self.dial = dial
        self.dialled: list[str] = []
        self.fresh_only = False
        self.waits_since: float | None = None
        self._began = time.time()
        self.done = done
        self.had_tls = False
        """As of HostJob."""
        self._recipient = recipient

    def transaction(self, connection: ClientConnection) -> ClientTransaction | None:
        """See smtp.Job."""
        if self.had_tls and connection.tls_facts is None:
            self._over(tls_is_gone())
            return None
        capabilities = connection.session.capabilities
        made = plan(_PROBE, [(0, self._recipient)], _NOTHING, capabilities, form=Form.AS_IS)
        if made.rcpt_lines:
            return ClientTransaction(b"MAIL FROM:<>\r\n", made.rcpt_lines, probe=True)
        self._over(made.refused[0][1])
        return None

    def end_transaction(self, transaction: ClientTransaction, connection: ClientConnection) -> bool:
        """See smtp.Job."""
        answer = transaction.answers[0]
        assert answer is not None
        if not self.fresh_only and transaction.wants_fresh(answer):
            self.fresh_only = True
            self.had_tls = connection.tls_facts is not None
            return True
        self._over(answer)
        return False

    def end_without_session(self, answer: Answer, connection: ClientConnection | None) -> None:
        """See pool.PoolJob."""
        self._over(answer)

    def end_after_crash(self, transaction: ClientTransaction | None) -> None:
        """See smtp.Job."""
        self._over(Answer(Stage.PLAN, None, Trouble.FAULT, INTERNAL_ERROR))

    @property
    def mail_began(self) -> float:
        """See pool.PoolJob."""
        return self._began

    def end_waiting(self, seconds: float) -> None:
        """See pool.PoolJob."""
        self._over(Answer(Stage.PLAN, None, Trouble.LEASE, f"no connection was free for {seconds:.0f} s"))

    def _over(self, answer: Answer) -> None:
        if not self.done.done():
            self.done.set_result(answer)

    def may_finish(self) -> Trouble | None:
        """Never asked: a probe has no content."""
        return Trouble.CANCELLED

    @property
    def needs(self) -> Trouble:
        """Never asked."""
        raise NotImplementedError("a probe has no content")

    def content_at_hand(self, form: Form) -> tuple[bytes, ...] | None:
        """Never asked."""
        raise NotImplementedError("a probe has no content")

    content_in_chunks = content_at_hand

    def content(self, form: Form) -> AsyncIterator[bytes]:
        """Never asked."""
        raise NotImplementedError("a probe has no content")

    def stuffer(self, form: Form) -> Stuffer:
        """Never asked."""
        raise NotImplementedError("a probe has no content")


class Prober:
    """Asks hosts about recipients, on the connections that deliveries use."""

    def __init__(
        self, settings: OutboundSettings, resolver: DnsResolver, dane: DaneLookup, dialler: Dialler, pool: Pool
    ) -> None:
        self._settings = settings
        self._resolver = resolver
        self._dane = dane
        self._dialler = dialler
        self._pool = pool

    async def verify(self, tables: Tables | None, address: str, ref: ObjectRef) -> Answer:
        """Ask the next hop of a transport about a recipient."""
        hop = tables.hops.get(ref) if tables is not None else None
        if tables is None or hop is None or hop.by_mx or hop.transport.host is None:
            return Answer(Stage.DNS, None, Trouble.UNREACHABLE, f"transport {ref} has no host to ask")
        transport, name = hop.transport, hop.transport.host
        try:
            addresses = tuple(await self._resolver.host_addresses(name))
            if self._settings.captive:
                addresses = tuple(a for a in addresses if is_loopback(a))
            if not addresses:
                return Answer(Stage.DNS, None, Trouble.NO_ADDRESS, f"{name} has no address that may be dialled")
            host = Host(name, hop.port, addresses)
            asked = replace(TlsHop.by(transport, name), demanded=add_up([of_transport(transport)]))
            if wants_tlsa(asked):  # RTLS-25c: as a delivery would go
                known = await awaited(self._dane.of_configured(name, transport.families, hop.port))
                host = host.proven(known)
            decision = decide(replace(asked, dns=host.dns))
            if decision.refusal is not None:
                return tls_refused(decision.refusal)
            dial = self._dialler.dial(tables, hop, decision, None, host, "", dane=host.dane)
        except LookupFailed as error:
            return Answer(Stage.DNS, None, Trouble.DNS, str(error))
        except CannotDial as error:
            return error.answer
        job = ProbeJob(EnvelopeRecipient(address), dial, asyncio.get_running_loop().create_future())
        answer = await self._probe(job)
        if answer.trouble is Trouble.TLS and decision.plaintext_may_follow and not job.had_tls:
            # As a delivery would go (TLS-07), or the recipients of a server with bad TLS could never be verified.
            dial = self._dialler.dial(tables, hop, decision, None, host, "", way=Way.PLAIN)
            answer = await self._probe(
                ProbeJob(EnvelopeRecipient(address), dial, asyncio.get_running_loop().create_future())
            )
        return answer

    async def _probe(self, job: ProbeJob) -> Answer:
        self._pool.submit(job)
        try:
            async with asyncio.timeout(60):
                return await job.done
        except TimeoutError:
            return Answer(Stage.RCPT, None, Trouble.TIMEOUT, f"{job.dial.host} did not answer in time")
        finally:
            self._pool.withdraw(job)
