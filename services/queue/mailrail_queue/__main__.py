"""Wires the queue service together; the only module that names concrete adapters."""

import asyncio
import contextlib
import sys
from collections.abc import Callable
from typing import Any

from mailrail.core.revision.revision import Role
from mailrail.kit import log, postgres, rpc
from mailrail.kit.config_client import ConfigClient
from mailrail.kit.run import rest_collector, run
from mailrail.pb.queue.v1 import enqueue_pb2_grpc, lease_pb2_grpc, peer_pb2_grpc
from mailrail_queue.app import QueueProcess
from mailrail_queue.rpc import admin as admin_rpc
from mailrail_queue.rpc.enqueue import EnqueueServicer
from mailrail_queue.rpc.lease import LeaseServicer
from mailrail_queue.rpc.peer import PeerServicer
from mailrail_queue.settings import QueueSettings

ENQUEUE = "mailrail.queue.v1.EnqueueService"
LEASE = "mailrail.queue.v1.LeaseService"
PEER = "mailrail.queue.v1.PeerService"
CALLERS = {
    ENQUEUE: frozenset({"ingress", "dmarc", "cli"}),
    LEASE: frozenset({"outbound"}),
    PEER: frozenset({"queue"}),
    **admin_rpc.CALLERS,
}

Services = dict[str, tuple[Any, Callable[[Any, Any], None]]]


def assemble(settings: QueueSettings) -> tuple[QueueProcess, Services]:
    """A queue, and the gRPC services in front of it."""
    queue = QueueProcess(settings)
    services: Services = {
        ENQUEUE: (EnqueueServicer(queue), enqueue_pb2_grpc.add_EnqueueServiceServicer_to_server),
        LEASE: (LeaseServicer(queue), lease_pb2_grpc.add_LeaseServiceServicer_to_server),
        PEER: (PeerServicer(queue), peer_pb2_grpc.add_PeerServiceServicer_to_server),
    }
    return queue, services


def address_for_peers(settings: QueueSettings, port: int) -> str:
    """HOST:PORT under which other replicas reach this one; an IPv6 address in brackets (RFC 3986 3.2.2)."""
    host = settings.peer_host or settings.grpc_listen.rpartition(":")[0]
    return f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"


async def start(settings: QueueSettings, stop: asyncio.Event) -> None:
    """Run until `stop` is set, then finish what is under way."""
    logger = log.get_logger()
    queue, services = assemble(settings)
    config = ConfigClient(settings, Role.QUEUE, queue.configure)
    administrators = postgres.pool(
        queue.login,
        "queue",
        size=settings.admin_connections,
        kept=0,  # most of the time nobody asks
        application=f"mailrail queue {settings.node_id} administration",
    )
    async with administrators as pool, config.running(), contextlib.AsyncExitStack() as stack:
        services |= admin_rpc.administration_services(queue, pool)
        server = await stack.enter_async_context(rpc.serve(settings, services, CALLERS))
        queue.shards.address = address_for_peers(settings, server.port)
        logger.info("listening", port=server.port)
        stopping = asyncio.create_task(stop.wait())
        preparing = asyncio.create_task(prepare(queue, config))
        await asyncio.wait((preparing, stopping), return_when=asyncio.FIRST_COMPLETED)
        try:
            if preparing.done():
                preparing.result()
                rest_collector()
                while not stop.is_set():
                    await server.health.set(queue.serving)
                    if (error := queue.failed()) is not None:
                        raise error
                    await asyncio.wait((stopping,), timeout=0.5)
        finally:
            preparing.cancel()
            await asyncio.gather(preparing, return_exceptions=True)
            await server.health.set(False)
            if queue.ready:
                await queue.stop(settings.stop_grace)
            stopping.cancel()


async def prepare(queue: QueueProcess, config: ConfigClient) -> None:
    """Everything that must be there before mail is taken."""
    await queue.prepare()
    await config.wait_first()
    await queue.start()


def main() -> int:
    """Entry point of `mailrail serve queue`."""
    return run("queue", QueueSettings, start)


if __name__ == "__main__":
    sys.exit(main())
