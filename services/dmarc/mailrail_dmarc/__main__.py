"""The dmarc service as a process: `mailrail serve dmarc`, or `python -m mailrail_dmarc`."""

import asyncio
import sys

from mailrail.kit import log, rpc
from mailrail.kit.run import rest_collector, run
from mailrail_dmarc.app import serving
from mailrail_dmarc.rpc import CALLERS, services
from mailrail_dmarc.settings import DmarcSettings

_LOOK = 0.5  # seconds between looks whether it is ready


async def start(settings: DmarcSettings, stop: asyncio.Event) -> None:
    """Serve until `stop` is set. Postgres may come and go; readiness follows it."""
    async with serving(settings) as process, rpc.serve(settings, services(process), CALLERS) as server:
        log.get_logger().info("listening", port=server.port)
        rest_collector()
        stopping = asyncio.create_task(stop.wait())
        while not stop.is_set():
            process.check()
            await server.health.set(process.ready)
            await asyncio.wait((stopping,), timeout=_LOOK)
        await server.health.set(False)
        process.stop()


def main() -> int:
    """Run the process; returns its exit status."""
    return run("dmarc", DmarcSettings, start)


if __name__ == "__main__":
    sys.exit(main())
