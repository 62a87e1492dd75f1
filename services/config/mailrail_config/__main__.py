"""The config service as a process: `mailrail serve config`, or `python -m mailrail_config`."""

import asyncio
import contextlib
import sys

from mailrail.kit import postgres, rpc
from mailrail.kit.run import end, run
from mailrail.pb.config.v1 import config_pb2_grpc
from mailrail_config.app import HeadFollower, keep_up
from mailrail_config.rpc import ALLOWED, SERVICE, ConfigServicer
from mailrail_config.settings import ConfigSettings
from mailrail_config.store import Store


async def start(settings: ConfigSettings, stop: asyncio.Event) -> None:
    """Serve until `stop` is set. Postgres may come and go; readiness follows it."""
    async with postgres.pool(postgres.database_of(settings), "config", application="mailrail config") as pool:
        store = Store(pool)
        health: rpc.Health | None = None

        async def ready(serving: bool) -> None:
            if health is not None:
                await health.set(serving)

        follower = HeadFollower(settings, store, ready)
        servicer = ConfigServicer(settings, store, follower)
        services = {SERVICE: (servicer, config_pb2_grpc.add_ConfigServiceServicer_to_server)}
        async with rpc.serve(settings, services, ALLOWED) as server:
            health = server.health
            tasks = [
                asyncio.create_task(follower.run(), name="head"),
                asyncio.create_task(keep_up(settings, store, follower), name="upkeep"),
            ]
            waiting = asyncio.create_task(stop.wait())
            done, _ = await asyncio.wait((waiting, *tasks), return_when=asyncio.FIRST_COMPLETED)
            servicer.stop()
            await end(waiting, *tasks)
            for task in done - {waiting}:
                with contextlib.suppress(asyncio.CancelledError):
                    task.result()  # a task that ends by itself failed; the process fails with it


def main() -> int:
    """Run the process; returns its exit status."""
    return run("config", ConfigSettings, start)


if __name__ == "__main__":
    sys.exit(main())
