"""Starts ingress: configuration client, queue stream, listeners, gRPC; the only place that names concrete adapters."""

import asyncio
import contextlib
import sys
from typing import Any

from mailrail.core.revision.revision import Role
from mailrail.kit import log, rpc, run
from mailrail.kit.config_client import ConfigClient, Configuration, keyring
from mailrail.kit.open_files import connections_in, raise_limit
from mailrail.kit.wheel import Wheel
from mailrail_ingress import metrics
from mailrail_ingress.active_config import ActiveConfig
from mailrail_ingress.checks.authentication import DnsAuthenticator
from mailrail_ingress.checks.domain_dns import DomainDns
from mailrail_ingress.checks.next_hop import OutboundVerification
from mailrail_ingress.dmarc_records import DmarcRecorder
from mailrail_ingress.held_octets import HeldOctets
from mailrail_ingress.listeners import Listeners
from mailrail_ingress.open_files import check_limit
from mailrail_ingress.ports import OpenTransactions
from mailrail_ingress.probe_keys import ProbeKeys
from mailrail_ingress.queue_stream import EnqueueClient
from mailrail_ingress.rpc import SERVICE, services
from mailrail_ingress.settings import IngressSettings
from mailrail_ingress.smtp import Sessions


async def start(settings: IngressSettings, stop: asyncio.Event) -> None:
    """Run until `stop`. Then accept no connection, let messages under way end, and answer 421 to the other sessions."""
    async with contextlib.AsyncExitStack() as stack:
        budget = HeldOctets(settings.held_octets)
        metrics.HELD.set_function(lambda: budget.held)
        transactions = OpenTransactions()
        queue = await stack.enter_async_context(EnqueueClient(settings, budget, transactions).running())
        evaluations = await stack.enter_async_context(DmarcRecorder(settings).running())
        verification = None
        if settings.outbound_target:
            verification = await stack.enter_async_context(OutboundVerification(settings).running())
        active_config = ActiveConfig(
            settings,
            queue,
            fake_key=keyring(settings).derive(b"fake verifiers", b""),
            domains=DomainDns(settings) if settings.resolver else None,
            verification=verification,
            authenticator=DnsAuthenticator(settings),
            probes=ProbeKeys(lambda: keyring(settings)).know,
            budget=budget,
            transactions=transactions,
            evaluations=evaluations,
        )
        metrics.UPLOADING.set_function(lambda: active_config.uncommitted.octets(active_config.monotonic()))
        files = raise_limit()
        sessions = Sessions(active_config, Wheel(asyncio.get_running_loop()), connections_in(files))
        listeners = Listeners(settings, active_config, sessions)

        def swap(configuration: Configuration) -> None:
            active_config.configure(configuration.revision, configuration.number, configuration.secrets)
            check_limit(files, active_config.gateways)
            sessions.rebase()
            listeners.update()

        server = await stack.enter_async_context(
            rpc.serve(
                settings,
                services(active_config, sessions),
                {SERVICE: frozenset({"cli"})},
            )
        )
        config = ConfigClient(settings, Role.INGRESS, swap, listeners.problems, settings.gateway)
        await stack.enter_async_context(config.running())
        log.get_logger().info("serving gRPC", port=server.port)
        tasks = [
            asyncio.create_task(listeners.run()),
            asyncio.create_task(_keep_health(server.health, listeners)),
        ]
        run.rest_collector()
        waiting = asyncio.create_task(stop.wait())
        everything: list[asyncio.Task[Any]] = [waiting, *tasks]
        try:
            await asyncio.wait(everything, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done():
                    task.result()  # neither ends by itself: this raises what ended it
        finally:
            await server.health.set(False)
            for one in everything:
                one.cancel()
            await asyncio.gather(*everything, return_exceptions=True)
            listeners.close()
            await _drain(sessions, settings.stop_grace)


async def _keep_health(health: rpc.Health, listeners: Listeners) -> None:
    """Ready as the listeners are (`Listeners.ready`)."""
    while True:
        await health.set(listeners.ready.is_set())
        if listeners.ready.is_set():
            await asyncio.sleep(0.5)
        else:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.5):
                    await listeners.ready.wait()


async def _drain(sessions: Sessions, grace: float) -> None:
    """Sessions between messages hear 421 at once, the others when their message or the grace has ended."""
    sessions.stopping = True
    loop = asyncio.get_running_loop()
    until = loop.time() + grace
    while sessions.open and loop.time() < until:
        sessions.shut_down(all_of_them=False)
        await asyncio.sleep(0.05)
    sessions.shut_down(all_of_them=True)
    await asyncio.sleep(0)


def main() -> int:
    """Entry point of the process; returns the exit status."""
    return run.run("ingress", IngressSettings, start)


if __name__ == "__main__":
    sys.exit(main())
