"""Whether an installation is ready: every service serves, and every listener of the revision in force accepts."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from mailrail.core.revision.revision import ListenerProtocol, Revision, UnreadableRevision, decode
from mailrail.kit import rpc
from mailrail.local.options import SERVICES
from mailrail.local.ports import accepts, dialled, host_port
from mailrail.pb.config.v1 import config_pb2, config_pb2_grpc

HEALTH_NAMES = {
    "config": "mailrail.config.v1.ConfigService",
    "queue": "mailrail.queue.v1.EnqueueService",
    "outbound": "mailrail.outbound.v1.OutboundService",
    "ingress": "mailrail.ingress.v1.IngressService",
}

_SPOKEN = {
    ListenerProtocol.MX: "SMTP",
    ListenerProtocol.SUBMISSION: "STARTTLS, login",
    ListenerProtocol.SUBMISSIONS: "TLS, login",
}


@dataclass(slots=True)
class Readiness:
    """Asks the services of one installation."""

    identity: Path
    """Folder of the certificate to show them."""
    targets: Mapping[str, str]
    """Service → HOST:PORT of its gRPC server."""
    listen: str
    resources: Path
    listeners: dict[str, str] = field(default_factory=dict)
    """Name → HOST:PORT, of the revision in force when it was asked last."""

    async def waiting_for(self) -> list[str]:
        """What is not there yet, in words; empty when everything accepts."""
        identity = rpc.Identity.read(self.identity)
        if not await self._serving(identity, "config"):
            return ["config"]
        revision = await self._revision_in_force(identity)
        if revision is None:
            return [f"a first configuration from {self.resources}"]
        if not any(gateway.listeners for gateway in revision.gateways):
            return [f"a MailGateway with a listener (`mailrail config check {self.resources}` finds mistakes)"]
        waiting = [s for s in SERVICES if not await self._serving(identity, s)]
        if waiting:
            return waiting
        self.listeners = self._listeners_of(revision)
        closed = [where for where in self.listeners.values() if not accepts(where)]
        return [f"a listener on {where}" for where in closed]

    async def _serving(self, identity: rpc.Identity, service: str) -> bool:
        async with rpc.identity_channel(identity, self.targets[service], service) as channel:
            stub: health_pb2_grpc.HealthAsyncStub = health_pb2_grpc.HealthStub(channel)
            try:
                answer = await stub.Check(health_pb2.HealthCheckRequest(service=HEALTH_NAMES[service]), timeout=2)
            except grpc.aio.AioRpcError:
                return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    async def _revision_in_force(self, identity: rpc.Identity) -> Revision | None:
        async with rpc.identity_channel(identity, self.targets["config"], "config") as channel:
            stub: config_pb2_grpc.ConfigServiceAsyncStub = config_pb2_grpc.ConfigServiceStub(channel)
            try:
                answer = await stub.GetRevision(config_pb2.GetRevisionRequest(), timeout=5)
                return decode(answer.body) if answer.body else None
            except (grpc.aio.AioRpcError, UnreadableRevision):
                return None

    def _listeners_of(self, revision: Revision) -> dict[str, str]:
        return {
            f"{listener.name} ({_SPOKEN[listener.protocol]})": host_port(dialled(self.listen), listener.port)
            for gateway in revision.gateways
            for listener in gateway.listeners
        }
