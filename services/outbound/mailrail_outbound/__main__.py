"""Wires the outbound service together; the only module that names concrete adapters."""

import asyncio
import sys

from mailrail.core.revision.problem import POSTGRES_UNAVAILABLE, RevisionProblem
from mailrail.core.revision.revision import Role
from mailrail.kit import log, postgres, rpc
from mailrail.kit.config_client import ConfigClient, Configuration
from mailrail.kit.lookup_turns import LookupTurns
from mailrail.kit.open_files import raise_limit
from mailrail.kit.resolver import DnsResolver
from mailrail.kit.run import end, rest_collector, run
from mailrail.pb.outbound.v1 import outbound_pb2_grpc
from mailrail_outbound import metrics
from mailrail_outbound.app import Outbound
from mailrail_outbound.clients import LeaseClient
from mailrail_outbound.domain_recorder import DomainRecorder
from mailrail_outbound.domain_security import DomainSecurityReader
from mailrail_outbound.hops import Tables
from mailrail_outbound.open_files import fitting
from mailrail_outbound.pool import Pool
from mailrail_outbound.resolver_watch import watch
from mailrail_outbound.rpc import SERVICE, OutboundServicer
from mailrail_outbound.settings import OutboundSettings
from mailrail_outbound.store.connection import DomainDatabase
from mailrail_outbound.store.mta_sts import Room
from mailrail_outbound.tls_policy.cache import PolicyCache
from mailrail_outbound.tls_policy.dane import DaneLookup
from mailrail_outbound.tls_policy.fetch import PolicyFetcher
from mailrail_outbound.tls_policy.sts import StsLookup

POLICY_ROOM = Room(most=50_000, most_of_zone=2_000)
"""Domains in the shared cache of MTA-STS policies. A policy has 64 KiB at most, and most have 200 octets."""
_CALLERS = {SERVICE: frozenset({"ingress", "cli"})}


async def start(settings: OutboundSettings, stop: asyncio.Event) -> None:
    """Run until `stop` is set, then finish what is under way."""
    logger = log.get_logger()
    settings = fitting(settings, raise_limit())
    turns = LookupTurns(settings.lookups, settings.connection_wait)
    resolver = DnsResolver(
        settings.resolver,
        timeout=settings.dns_timeout,
        count=metrics.DNS.inc,
        turns=turns,
        trust_ad=settings.resolver_trust_ad,
    )
    metrics.TRUSTED_RESOLVER.set(resolver.trusted)
    if not resolver.trusted:
        logger.info("no DNS resolver is declared trusted, so no answer counts as proven by DNSSEC and there is no DANE")
    pool = Pool(settings)
    database = DomainDatabase(postgres.Login(settings), settings.node_id)
    fetcher = PolicyFetcher(settings, resolver)
    policies = PolicyCache(database, fetcher, room=POLICY_ROOM, fetch_seconds=settings.fetch_timeout)
    sts, recorder = StsLookup(resolver, policies), DomainRecorder(database)
    app: Outbound | None = None

    def configured(configuration: Configuration) -> None:
        assert app is not None
        app.tables = Tables.of(configuration.number, configuration.revision, configuration.secret)

    def problems() -> tuple[RevisionProblem, ...]:
        """For `mailrail config status`; it makes no object less ready."""
        gateway = next(iter(app.tables.gateways), None) if app is not None and app.tables is not None else None
        if not database.problem or gateway is None:
            return ()
        return (RevisionProblem(gateway, "postgres", POSTGRES_UNAVAILABLE, database.problem),)

    config = ConfigClient(settings, Role.OUTBOUND, configured, problems)
    queue = LeaseClient(settings, lambda: config.current.number if config.current is not None else 0)
    app = Outbound(
        settings,
        resolver=resolver,
        pool=pool,
        report=queue.report,
        resolved=queue.resolved,
        wait_for_revision=config.wait_for,
        sts=sts,
        recorder=recorder,
    )
    security = DomainSecurityReader(resolver, sts, DaneLookup(resolver, settings.digest_strength), database, settings)
    services = {
        SERVICE: (OutboundServicer(app, pool, security), outbound_pb2_grpc.add_OutboundServiceServicer_to_server)
    }
    async with config.running(), rpc.serve(settings, services, _CALLERS) as server:
        logger.info("listening", port=server.port)
        looks = watch(resolver, settings.resolver_probe)
        parts = (database.run(), policies.run(sts), recorder.run(), looks)
        behind = [asyncio.create_task(part) for part in parts]

        async def all_there() -> None:
            await asyncio.gather(config.wait_first(), database.wait_first(settings.database_wait))

        waiting = asyncio.create_task(all_there())
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait((waiting, stopping), return_when=asyncio.FIRST_COMPLETED)
        rest_collector()
        if not stop.is_set():
            link = asyncio.create_task(queue.run(app))
            try:
                while not stop.is_set():
                    await server.health.set(queue.connected)
                    await asyncio.wait((stopping, link), timeout=0.5, return_when=asyncio.FIRST_COMPLETED)
                    if link.done():
                        link.result()
                await server.health.set(False)
                queue.drain()
                pool.close_idle()
                await app.drained(settings.stop_grace)
                await app.close()
                await queue.flushed(2.0)
            finally:
                link.cancel()
                await asyncio.gather(link, return_exceptions=True)
        await end(waiting, *behind)
        await app.close()
        await recorder.flush(2.0)
        await fetcher.close()
        await database.close()


def main() -> int:
    """The `mailrail outbound` command."""
    return run("outbound", OutboundSettings, start)


if __name__ == "__main__":
    sys.exit(main())
