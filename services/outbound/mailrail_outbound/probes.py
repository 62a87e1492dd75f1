"""Probes: whether a transport's host would take a recipient (recipients: verify, design 5). Nothing is sent."""

import asyncio

from mailrail.core.outbound.captive import is_loopback
from mailrail.core.outbound.envelope import EnvelopeRecipient
from mailrail.core.revision.revision import ObjectRef, TransportKind
from mailrail.core.smtp.client import Answer, Stage, Trouble
from mailrail.core.tlspolicy.decision import Hop as TlsHop
from mailrail.core.tlspolicy.decision import decide
from mailrail.kit.resolver import DnsResolver, LookupFailed
from mailrail_outbound.dialling import CannotDial, Dialler
from mailrail_outbound.hops import Tables
from mailrail_outbound.job import ProbeJob
from mailrail_outbound.pool import Pool
from mailrail_outbound.settings import OutboundSettings


class Prober:
    """Asks hosts about recipients, on the connections that deliveries use."""

    def __init__(self, settings: OutboundSettings, resolver: DnsResolver, dialler: Dialler, pool: Pool) -> None:
        self._settings = settings
        self._resolver = resolver
        self._dialler = dialler
        self._pool = pool

    async def verify(self, tables: Tables | None, address: str, ref: ObjectRef) -> Answer:
        """Ask the next hop of a transport about a recipient."""
        hop = tables.hops.get(ref) if tables is not None else None
        if tables is None or hop is None or hop.by_mx or hop.transport.host is None:
            return Answer(Stage.DNS, None, Trouble.UNREACHABLE, f"transport {ref} has no host to ask")
        transport, host, port = hop.transport, hop.transport.host, hop.port
        try:
            addresses = tuple(await self._resolver.host_addresses(host))
            if self._settings.captive:
                addresses = tuple(a for a in addresses if is_loopback(a))
            if not addresses:
                return Answer(Stage.DNS, None, Trouble.NO_ADDRESS, f"{host} has no address that may be dialled")
            decision = decide(
                TlsHop(
                    host=host,
                    configured=transport.tls,
                    implicit=transport.kind is TransportKind.SUBMISSIONS,
                    carries_credentials=transport.username is not None,
                )
            )
            dial = self._dialler.dial(tables, hop, decision, None, (host, port, addresses), "", plaintext=False)
        except LookupFailed as error:
            return Answer(Stage.DNS, None, Trouble.DNS, str(error))
        except CannotDial as error:
            return error.answer
        job = ProbeJob(EnvelopeRecipient(address), dial, asyncio.get_running_loop().create_future())
        answer = await self._probe(job)
        if answer.trouble is Trouble.TLS and decision.plaintext_may_follow and not job.had_tls:
            # As a delivery would go (TLS-07), or the recipients of a server with bad TLS could never be verified.
            dial = self._dialler.dial(tables, hop, decision, None, (host, port, addresses), "", plaintext=True)
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
