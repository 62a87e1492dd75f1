"""The policy service as a process: `mailrail serve policy`, or `python -m mailrail_policy`."""

import asyncio
import sys
from typing import Any, Final

from mailrail.kit import log, rpc
from mailrail.kit.run import rest_collector, run
from mailrail_policy.app import serving
from mailrail_policy.settings import PolicySettings

SERVICE: Final = "mailrail.policy"
"""By this name its health is asked for. Nobody calls it: it speaks HTTP alone."""


async def start(settings: PolicySettings, stop: asyncio.Event) -> None:
    """Serve until `stop` is set. It needs config once; a later revision takes the place of the one before."""
    async with serving(settings) as (policies, config), rpc.serve(settings, {SERVICE: (None, _no_calls)}) as server:
        log.get_logger().info("listening", port=server.port, http=policies.port)
        waiting = asyncio.create_task(config.wait_first())
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait((waiting, stopping), return_when=asyncio.FIRST_COMPLETED)
        rest_collector()
        await server.health.set(not stop.is_set())
        await stopping
        await server.health.set(False)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)


def _no_calls(_servicer: Any, _server: Any) -> None:
    """For rpc.serve: it has no calls of its own."""


def main() -> int:
    """Run the process; returns its exit status."""
    return run("policy", PolicySettings, start)


if __name__ == "__main__":
    sys.exit(main())
