"""The operator as a process: `mailrail serve operator`, or `python -m mailrail_operator`.

It stands by until it holds the lease, then leads. Whoever loses the lease, or is superseded as publisher, exits with
status 1: a process that is started anew has forgotten everything, which is the state to be in.
"""

import asyncio
import contextlib
import sys
import time

from mailrail.kit import log
from mailrail.kit.config_client import keyring
from mailrail.kit.kubernetes import Api, connect, find_credentials
from mailrail.kit.publisher import Superseded
from mailrail.kit.run import run
from mailrail_operator import metrics, probes
from mailrail_operator.app import Leader
from mailrail_operator.lease import LeaderLease, Lost, Terms
from mailrail_operator.settings import OperatorSettings


class _Process:
    """What the probes ask about."""

    def __init__(self) -> None:
        self.leader: Leader | None = None

    def ready(self) -> tuple[bool, str]:
        """Standing by is ready: a rolling update must not wait for a lease that the old pod holds."""
        if self.leader is None:
            return True, "standing by"
        if not self.leader.synced:
            return False, "objects are not listed yet"
        if not self.leader.published:
            return False, "the last publish failed, or there was none yet"
        return True, "leading"


async def start(settings: OperatorSettings, stop: asyncio.Event) -> None:
    """Stand by, lead, and stop cleanly when told to. Raises BadSettings, Lost or Superseded."""
    process = _Process()
    settings.require_controller_names()
    settings.checked_ingress_ports()
    settings.checked_egress_addresses()  # a wrong one stops each replica at its start, not the one that comes to lead
    async with (
        connect(find_credentials(settings.kubeconfig)) as api,
        probes.serve(settings.probe_listen, process.ready),
    ):
        lease = None
        if settings.leader_election:
            lease = LeaderLease(
                api,
                settings.lease_namespace or api.credentials.namespace,
                settings.lease_name,
                settings.node_id,
                Terms(settings.lease_seconds, settings.renew_seconds, settings.retry_seconds),
                time.monotonic,
            )
        work = asyncio.create_task(_work(settings, api, lease, process))
        waiting = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait((work, waiting), return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
        finally:
            work.cancel()
            waiting.cancel()
            await asyncio.gather(work, waiting, return_exceptions=True)
            metrics.LEADER.set(0)
            if lease is not None and lease.held:
                await lease.release()


async def _work(settings: OperatorSettings, api: Api, lease: LeaderLease | None, process: _Process) -> None:
    keys = keyring(settings)
    logger = log.get_logger()
    if lease is not None:
        logger.info("standing by")
        await lease.acquire()
    logger.info("leading")
    metrics.LEADER.set(1)
    leader = process.leader = Leader(settings, api, keys, lambda: lease is None or lease.held)
    tasks = [asyncio.create_task(leader.lead())]
    if lease is not None:
        tasks.append(asyncio.create_task(lease.keep()))
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            try:
                task.result()
            except (Lost, Superseded) as error:
                logger.error("no longer the leader", reason=str(error))
                raise
    finally:
        for task in tasks:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*tasks, return_exceptions=True)


def main() -> int:
    """Run the process; returns its exit status."""
    return run("operator", OperatorSettings, start)


if __name__ == "__main__":
    sys.exit(main())
