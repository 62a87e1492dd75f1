"""The config service, seen from the operator: who runs what. Publishing is the kit's (`mailrail.kit.publisher`)."""

from mailrail.core.config.diagnostics import ConsumerState
from mailrail.core.config.revision import Role
from mailrail.kit import rpc
from mailrail.kit.settings import ServiceSettings
from mailrail.pb.config.v1 import config_pb2 as pb
from mailrail.pb.config.v1 import config_pb2_grpc

_ROLES = frozenset(role.value for role in Role)


async def consumers(settings: ServiceSettings) -> tuple[tuple[ConsumerState, ...], int, bool]:
    """Everyone that reports, head, and whether head is pinned. Raises grpc.aio.AioRpcError."""
    async with rpc.channel(settings, settings.config_target, "config") as channel:
        stub: config_pb2_grpc.ConfigServiceAsyncStub = config_pb2_grpc.ConfigServiceStub(channel)
        response = await stub.ListConsumers(pb.ListConsumersRequest(), timeout=5)
    found = tuple(
        ConsumerState(c.node_id, Role(c.role), c.revision, c.rejected, c.error, c.live)
        for c in response.consumers
        if c.role in _ROLES
    )
    return found, response.head, response.pinned
