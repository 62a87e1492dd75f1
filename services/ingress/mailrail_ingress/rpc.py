"""gRPC in: what ingress tells about itself. Messages to domain types and back, no decisions."""

from collections.abc import Callable
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from mailrail.core.sasl.server import prepared
from mailrail.core.smtp.address import AddressError, parse_address, parse_forward_path
from mailrail.core.smtp.reply import Reply
from mailrail.pb.ingress.v1 import ingress_pb2, ingress_pb2_grpc
from mailrail_ingress.active_config import ActiveConfig
from mailrail_ingress.smtp import ServerConnection, Sessions

SERVICE = "mailrail.ingress.v1.IngressService"
DEFAULT_LIMIT = 100
LIMIT = 10_000


def services(active_config: ActiveConfig, sessions: Sessions) -> dict[str, tuple[Any, Callable[[Any, Any], None]]]:
    """What the process's gRPC server serves, by full name."""
    return {SERVICE: (IngressServicer(active_config, sessions), ingress_pb2_grpc.add_IngressServiceServicer_to_server)}


class IngressServicer(ingress_pb2_grpc.IngressServiceServicer):
    """Answers administrators."""

    def __init__(self, active_config: ActiveConfig, sessions: Sessions) -> None:
        self._active_config = active_config
        self._sessions = sessions

    async def ListSessions(
        self, request: ingress_pb2.ListSessionsRequest, context: Any
    ) -> ingress_pb2.ListSessionsResponse:
        """Sessions open now, oldest first."""
        limit = min(request.limit or DEFAULT_LIMIT, LIMIT)
        found = sorted(self._sessions.open, key=lambda connection: connection.started)
        return ingress_pb2.ListSessionsResponse(
            sessions=[_session(connection) for connection in found[:limit]], total=len(found)
        )

    async def ResolveRecipient(
        self, request: ingress_pb2.ResolveRecipientRequest, context: Any
    ) -> ingress_pb2.ResolveRecipientResponse:
        """How RCPT would be answered."""
        try:
            bare = request.address.casefold() == "postmaster"
            address = parse_forward_path(b"<Postmaster>")[0] if bare else parse_address(request.address)
        except AddressError as error:
            return _refusal(Reply.of(501, "5.1.3", str(error)))
        account = None
        if request.login:
            config = next(iter(self._active_config.listeners.values()), None)
            account = config.accounts.find(prepared(request.login)) if config is not None else None
            if account is None:
                return _refusal(Reply.of(535, "5.7.8", "no such login"))
        found = self._active_config.resolve(address, account)
        if isinstance(found, Reply):
            return _refusal(found)
        return ingress_pb2.ResolveRecipientResponse(
            code=250,
            enhanced="2.1.5",
            text="recipient ok",
            recipients=[
                ingress_pb2.ResolvedRecipient(
                    address=str(destination.address), how=found.how.value, account=str(destination.account or "")
                )
                for destination in found.destinations
            ]
            + [ingress_pb2.ResolvedRecipient(address=str(address), how="missing") for address in found.missing],
        )


def _refusal(reply: Reply) -> ingress_pb2.ResolveRecipientResponse:
    return ingress_pb2.ResolveRecipientResponse(code=reply.code, enhanced=str(reply.status), text=reply.text)


def _session(connection: ServerConnection) -> ingress_pb2.Session:
    protocol = connection.protocol
    started = Timestamp()
    started.FromMilliseconds(int(connection.started * 1000))
    tls = protocol.tls if protocol is not None else None
    return ingress_pb2.Session(
        id=f"{id(connection):x}",
        listener=connection.listener_key.listener,
        client_ip=str(connection.client),
        client_name=(protocol.hello if protocol is not None else None) or "",
        login=(protocol.login if protocol is not None else None) or "",
        tls=f"{tls.version} {tls.cipher}" if tls is not None else "",
        state=protocol.state if protocol is not None else "connecting",
        messages=protocol.messages if protocol is not None else 0,
        started=started,
    )
