"""The config service as a process: `mailrail serve config`, or `python -m mailrail_config`."""

import asyncio
import contextlib
import sys
from typing import Any

from psycopg import AsyncConnection

from mailrail.kit import postgres, rpc
from mailrail.kit.run import end, run
from mailrail.pb.config.v1 import config_pb2_grpc
from mailrail_config.app import DATABASE_ERRORS, HeadFollower, keep_up
from mailrail_config.rpc import ALLOWED, SERVICE, ConfigServicer
from mailrail_config.settings import ConfigSettings
from mailrail_config.store import RevisionStore


async def start(settings: ConfigSettings, stop: asyncio.Event) -> None:
    """Serve until `stop` is set. Postgres may come and go; readiness follows it."""
    made: list[RevisionStore] = []

    async def check_history(connection: AsyncConnection[Any]) -> None:
        for store in made:
            await store.data_history.check(connection)

    login = postgres.Login(settings)
    async with postgres.pool(login, "config", application="mailrail config", opened=check_history) as pool:
        store = RevisionStore(pool, settings.node_id)
        made.append(store)
        health: rpc.Health | None = None

        async def ready(serving: bool) -> None:
            if health is not None:
                await health.set(serving)

        follower = HeadFollower(settings, login, store, ready)
        servicer = ConfigServicer(settings, store, follower)
        services = {SERVICE: (servicer, config_pb2_grpc.add_ConfigServiceServicer_to_server)}
        async with rpc.serve(settings, services, ALLOWED) as server:
            health = server.health
            tasks = [
                asyncio.create_task(follower.watch.run(), name="watch"),
                asyncio.create_task(follower.run(), name="head"),
                asyncio.create_task(keep_up(settings, store, follower), name="upkeep"),
            ]
            waiting = asyncio.create_task(stop.wait())
            done, _ = await asyncio.wait((waiting, *tasks), return_when=asyncio.FIRST_COMPLETED)
            servicer.stop()
            await end(waiting, *tasks)
            with contextlib.suppress(TimeoutError, *DATABASE_ERRORS):
                async with asyncio.timeout(2):
                    await store.forget()
            for task in done - {waiting}:
                with contextlib.suppress(asyncio.CancelledError):
                    task.result()  # a task that ends by itself failed; the process fails with it


def main() -> int:
    """Run the process; returns its exit status."""
    return run("config", ConfigSettings, start)


if __name__ == "__main__":
    sys.exit(main())
