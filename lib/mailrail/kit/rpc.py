"""gRPC between services: servers with health, reflection and mutual TLS; channels that know whom they talk to.

Each role has a certificate whose DNS names include `<role>.mailrail.internal`; a client asks for exactly that
name, and a server knows its caller's role by it. Files live in one folder per role: tls.crt, tls.key, ca.crt. A rotated
certificate is picked up by servers without a restart; channels are made anew by their owners when a stream breaks.
Streaming handlers are async generators, and end without `await`: when a caller dies, its reader sees the end and gRPC
cancels the handler, in either order, and what stands behind an `await` in `finally` would not run.
"""

import asyncio
import ipaddress
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from mailrail.kit import metrics
from mailrail.kit.settings import BadSettings, ServiceSettings, host_port

ROLE_SUFFIX = ".mailrail.internal"
_RESOLVE_WITHIN = 10.0  # seconds for the addresses of one name
MAX_MESSAGE = 64 * 1024 * 1024
"""Octets of one gRPC message: a configuration of 50,000 objects fits, a body never needs it (frames are 256 KiB)."""
_PING_MS = 10_000
"""Milliseconds between pings, and until one counts as lost: a neighbour that is gone is noticed within 20 s."""

_COMMON: list[tuple[str, Any]] = [
    ("grpc.max_receive_message_length", MAX_MESSAGE),
    ("grpc.max_send_message_length", MAX_MESSAGE),
    # Both sides ask whether the other is there. A node that dies says no farewell: without this a queue would hand
    # deliveries to an outbound that is gone for as long as TCP keeps trying, a quarter of an hour. It is the timeout of
    # a ping that counts; keepalive's own leaves it at a minute.
    ("grpc.keepalive_time_ms", _PING_MS),
    ("grpc.keepalive_timeout_ms", _PING_MS),
    ("grpc.http2.ping_timeout_ms", _PING_MS),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
]
_SERVER: list[tuple[str, Any]] = [
    *_COMMON,
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.so_reuseport", 0),
]
_CLIENT: list[tuple[str, Any]] = [
    *_COMMON,
    ("grpc.initial_reconnect_backoff_ms", 200),
    # Not how long to rest but how long a dial may take, TLS included: where a node is busy that is more than 200 ms.
    ("grpc.min_reconnect_backoff_ms", 5_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # gRPC's own 30 s would leave a client without any address when all pods of a service were replaced within them.
    ("grpc.dns_min_time_between_resolutions_ms", 1_000),
    ("grpc.service_config", '{"loadBalancingConfig":[{"round_robin":{}}]}'),
]


@dataclass(frozen=True)
class Identity:
    """PEM files of this process: its certificate, its key, and the CA of the installation."""

    certificate: bytes
    key: bytes = field(repr=False)
    ca: bytes

    @classmethod
    def read(cls, folder: Path) -> "Identity":
        """Read tls.crt, tls.key and ca.crt. Raises BadSettings naming what is missing."""
        try:
            identity = cls(*((folder / name).read_bytes() for name in ("tls.crt", "tls.key", "ca.crt")))
        except OSError as error:
            raise BadSettings(f"cannot read the certificate for gRPC in {folder}: {error}") from error
        metrics.certificates("services", [identity.certificate])
        return identity


def _identity_folder(settings: ServiceSettings) -> Path | None:
    if settings.tls_dir is None and not settings.plaintext:
        raise BadSettings("MAILRAIL_TLS_DIR is not set; it names the folder with tls.crt, tls.key and ca.crt for gRPC")
    return settings.tls_dir


def server_credentials(folder: Path) -> grpc.ServerCredentials:
    """Mutual TLS from `folder`, read again when the files change."""
    first = Identity.read(folder)
    seen = _stamp(folder)

    def configuration(identity: Identity) -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration([(identity.key, identity.certificate)], identity.ca)

    def fetch() -> Any:  # None: nothing new, which the stubs do not know
        nonlocal seen
        stamp = _stamp(folder)
        if stamp == seen:
            return None
        try:
            fresh = configuration(Identity.read(folder))
        except BadSettings:  # half-written: the old one serves, the next handshake looks again
            return None
        seen = stamp
        return fresh

    return grpc.dynamic_ssl_server_credentials(configuration(first), fetch, require_client_authentication=True)


def _stamp(folder: Path) -> tuple[int, ...]:
    try:
        return tuple((folder / n).stat().st_mtime_ns for n in ("tls.crt", "tls.key", "ca.crt"))
    except OSError:
        return ()


def caller_roles(context: grpc.aio.ServicerContext[Any, Any]) -> frozenset[str]:
    """The roles that the caller's certificate proves; empty on a plaintext server."""
    names = context.auth_context().get("x509_subject_alternative_name", ())
    return frozenset(n.decode().removesuffix(ROLE_SUFFIX) for n in names if n.decode().endswith(ROLE_SUFFIX))


class RoleGate(grpc.aio.ServerInterceptor):
    """Lets a caller use only the services that its role may use. `allowed` maps full service names to roles."""

    def __init__(self, allowed: Mapping[str, frozenset[str]]) -> None:
        self._allowed = allowed

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = await continuation(details)
        service = details.method.rsplit("/", 2)[-2] if "/" in details.method else ""
        roles = self._allowed.get(service)
        if handler is None or roles is None:
            return handler
        return _guarded(handler, roles, service)


def _guarded(handler: Any, roles: frozenset[str], service: str) -> Any:
    async def check(context: Any) -> None:
        proven = caller_roles(context)
        if not proven & roles:
            caller = ", ".join(sorted(proven)) or "without a role"
            text = f"{service} is for {', '.join(sorted(roles))}; this caller is {caller}"
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, text)

    if handler.response_streaming:
        inner = handler.stream_stream if handler.request_streaming else handler.unary_stream

        async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
            await check(context)
            async for response in inner(request, context):
                yield response

        make = (
            grpc.stream_stream_rpc_method_handler if handler.request_streaming else grpc.unary_stream_rpc_method_handler
        )
        return make(stream, handler.request_deserializer, handler.response_serializer)
    inner = handler.stream_unary if handler.request_streaming else handler.unary_unary

    async def unary(request: Any, context: Any) -> Any:
        await check(context)
        return await inner(request, context)

    make_unary = (
        grpc.stream_unary_rpc_method_handler if handler.request_streaming else grpc.unary_unary_rpc_method_handler
    )
    return make_unary(unary, handler.request_deserializer, handler.response_serializer)


class Health:
    """grpc.health.v1 of a process: "" (liveness: the loop turns) and one name per service (readiness)."""

    def __init__(self, services: Sequence[str]) -> None:
        self.servicer = health.aio.HealthServicer()
        self._services = tuple(services)
        self._serving: bool | None = None

    async def set(self, serving: bool) -> None:
        """Readiness of all services of the process."""
        if serving == self._serving:
            return
        self._serving = serving
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in self._services:
            await self.servicer.set(name, status)

    @property
    def serving(self) -> bool:
        """Whether the process said that it is ready."""
        return bool(self._serving)


@dataclass
class Server:
    """A running gRPC server."""

    port: int
    health: Health
    health_port: int | None


@asynccontextmanager
async def serve(
    settings: ServiceSettings,
    services: Mapping[str, tuple[Any, Callable[[Any, Any], None]]],
    allowed: Mapping[str, frozenset[str]] | None = None,
) -> AsyncIterator[Server]:
    """Run a gRPC server while the context lasts.

    `services`: full name → (servicer, the generated add_..._to_server). `allowed`: full name → caller roles, which
    count only with TLS. It starts NOT_SERVING; the owner calls `server.health.set(True)`. On the way out it says
    NOT_SERVING, then finishes what runs within `settings.stop_grace` seconds.
    """
    folder = _identity_folder(settings)
    interceptors = [RoleGate(allowed)] if allowed and folder is not None else []
    server = grpc.aio.server(options=_SERVER, interceptors=interceptors)
    state = Health(list(services))
    for servicer, add in services.values():
        add(servicer, server)
    health_pb2_grpc.add_HealthServicer_to_server(state.servicer, server)
    reflection.enable_server_reflection([*services, health.SERVICE_NAME, reflection.SERVICE_NAME], server)
    port = _bind(server, settings.grpc_listen, None if folder is None else server_credentials(folder))
    probe: grpc.aio.Server | None = None
    probe_port: int | None = None
    if settings.health_listen:
        probe = grpc.aio.server(options=_SERVER)
        health_pb2_grpc.add_HealthServicer_to_server(state.servicer, probe)
        probe_port = _bind(probe, settings.health_listen, None)
    await state.set(False)
    await state.servicer.set("", health_pb2.HealthCheckResponse.SERVING)
    await server.start()
    if probe is not None:
        await probe.start()
    try:
        yield Server(port, state, probe_port)
    finally:
        await state.set(False)
        await server.stop(settings.stop_grace)
        if probe is not None:
            await probe.stop(0)


def _bind(server: grpc.aio.Server, listen: str, credentials: grpc.ServerCredentials | None) -> int:
    host_port(listen)
    try:
        if credentials is None:
            return int(server.add_insecure_port(listen))
        return int(server.add_secure_port(listen, credentials))
    except RuntimeError as error:
        raise BadSettings(f"cannot listen on {listen}: does another process use it? ({error})") from error


def channel(settings: ServiceSettings, target: str, role: str) -> grpc.aio.Channel:
    """A channel to `target` (HOST:PORT or any gRPC target), which must prove that it is `role`."""
    folder = _identity_folder(settings)
    if folder is None:
        return grpc.aio.insecure_channel(target, options=_CLIENT)
    return identity_channel(Identity.read(folder), target, role)


def identity_channel(identity: Identity, target: str, role: str) -> grpc.aio.Channel:
    """A channel under a given identity; for callers that are no service (the command line)."""
    credentials = grpc.ssl_channel_credentials(identity.ca, identity.key, identity.certificate)
    options = [*_CLIENT, ("grpc.ssl_target_name_override", role + ROLE_SUFFIX)]
    return grpc.aio.secure_channel(target, credentials, options=options)


async def endpoints(target: str) -> list[str]:
    """Every HOST:PORT behind `target` (comma-separated HOST:PORT, each name with all its addresses), sorted.

    For callers that speak to each replica on its own. An unresolvable name gives none: it may come later.
    """
    found: set[str] = set()
    for part in target.split(","):
        host, port = host_port(part.strip().removeprefix("dns:///"))
        try:
            ipaddress.ip_address(host)
            addresses = [host]
        except ValueError:
            try:
                async with asyncio.timeout(_RESOLVE_WITHIN):
                    answers = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
            except OSError:  # TimeoutError is one
                continue
            addresses = [str(a[4][0]) for a in answers]
        found.update(f"[{a}]:{port}" if ":" in a else f"{a}:{port}" for a in addresses)
    return sorted(found)
