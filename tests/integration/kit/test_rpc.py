"""gRPC between services: mutual TLS, a role per caller, health on its own port, certificates that rotate."""

import asyncio
import contextlib
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from mailrail.kit import rpc
from mailrail.kit.settings import BadSettings, ServiceSettings
from mailrail.pb.queue.v1 import peer_pb2, peer_pb2_grpc

from testkit.faultproxy import FaultProxy

PEER = "mailrail.queue.v1.PeerService"


def issue(ca: trustme.CA, folder: Path, role: str) -> Path:
    folder.mkdir(exist_ok=True)
    certificate = ca.issue_cert(role + rpc.ROLE_SUFFIX, "localhost")
    (folder / "tls.crt").write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
    (folder / "tls.key").write_bytes(certificate.private_key_pem.bytes())
    (folder / "ca.crt").write_bytes(ca.cert_pem.bytes())
    return folder


class Peer(peer_pb2_grpc.PeerServiceServicer):
    async def Wake(self, request: peer_pb2.WakeRequest, context: object) -> peer_pb2.WakeResponse:
        return peer_pb2.WakeResponse()


@contextlib.asynccontextmanager
async def running(settings: ServiceSettings) -> AsyncIterator[rpc.Server]:
    services = {PEER: (Peer(), peer_pb2_grpc.add_PeerServiceServicer_to_server)}
    async with rpc.serve(settings, services, {PEER: frozenset({"queue"})}) as server:
        yield server


async def wake(identity: Path, port: int, expected_role: str = "queue") -> grpc.StatusCode:
    settings = ServiceSettings(tls_dir=identity)
    async with rpc.channel(settings, f"127.0.0.1:{port}", expected_role) as channel:
        stub: peer_pb2_grpc.PeerServiceAsyncStub = peer_pb2_grpc.PeerServiceStub(channel)
        try:
            await stub.Wake(peer_pb2.WakeRequest(), timeout=60)
        except grpc.aio.AioRpcError as error:
            return error.code()
    return grpc.StatusCode.OK


@pytest.fixture
def ca() -> trustme.CA:
    return trustme.CA(key_type=trustme.KeyType.ECDSA)


async def test_a_caller_gets_only_what_its_role_may_use(ca: trustme.CA, tmp_path: Path) -> None:
    async with running(ServiceSettings(tls_dir=issue(ca, tmp_path / "queue", "queue"))) as server:
        assert await wake(issue(ca, tmp_path / "peer", "queue"), server.port) is grpc.StatusCode.OK
        refused = await wake(issue(ca, tmp_path / "ingress", "ingress"), server.port)
        assert refused is grpc.StatusCode.PERMISSION_DENIED


async def test_a_caller_from_another_ca_gets_nothing(ca: trustme.CA, tmp_path: Path) -> None:
    async with running(ServiceSettings(tls_dir=issue(ca, tmp_path / "queue", "queue"))) as server:
        stranger = issue(trustme.CA(key_type=trustme.KeyType.ECDSA), tmp_path / "stranger", "queue")
        assert await wake(stranger, server.port) is grpc.StatusCode.UNAVAILABLE


async def test_a_caller_refuses_a_server_of_another_role(ca: trustme.CA, tmp_path: Path) -> None:
    async with running(ServiceSettings(tls_dir=issue(ca, tmp_path / "queue", "queue"))) as server:
        caller = issue(ca, tmp_path / "ingress", "ingress")
        assert await wake(caller, server.port, expected_role="config") is grpc.StatusCode.UNAVAILABLE


async def test_a_rotated_certificate_serves_without_a_restart(ca: trustme.CA, tmp_path: Path) -> None:
    folder = issue(ca, tmp_path / "queue", "queue")
    async with running(ServiceSettings(tls_dir=folder)) as server:
        other = trustme.CA(key_type=trustme.KeyType.ECDSA)
        caller = issue(other, tmp_path / "caller", "queue")
        assert await wake(caller, server.port) is grpc.StatusCode.UNAVAILABLE
        issue(other, folder, "queue")
        assert await wake(caller, server.port) is grpc.StatusCode.OK


async def test_a_handshake_that_takes_a_second_is_waited_for(ca: trustme.CA, tmp_path: Path) -> None:
    # As on a busy node, or between zones: a call that may not wait fails as soon as a dial has failed.
    async with running(ServiceSettings(tls_dir=issue(ca, tmp_path / "queue", "queue"))) as server:
        with FaultProxy(("127.0.0.1", server.port), address="127.0.0.1") as far:
            far.delay(0.3)
            assert await wake(issue(ca, tmp_path / "peer", "queue"), far.port) is grpc.StatusCode.OK


async def test_a_tool_learns_by_reflection_what_it_can_call() -> None:
    asked = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol=PEER),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="not.There"),
    ]
    async with (
        running(ServiceSettings(plaintext=True)) as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(asked, timeout=60)
        services, file, nothing = [answer async for answer in call]
    assert {one.name for one in services.list_services_response.service} == {
        PEER,
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    }
    assert any(b"WakeRequest" in text for text in file.file_descriptor_response.file_descriptor_proto)
    assert nothing.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]


async def test_probes_reach_health_in_plaintext_on_a_port_of_its_own(ca: trustme.CA, tmp_path: Path) -> None:
    settings = ServiceSettings(tls_dir=issue(ca, tmp_path / "queue", "queue"), health_listen="127.0.0.1:0")
    async with running(settings) as server, grpc.aio.insecure_channel(f"127.0.0.1:{server.health_port}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)

        async def status(name: str) -> int:
            return int((await stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=60)).status)

        assert await status("") == health_pb2.HealthCheckResponse.SERVING
        assert await status(PEER) == health_pb2.HealthCheckResponse.NOT_SERVING
        await server.health.set(True)
        assert await status(PEER) == health_pb2.HealthCheckResponse.SERVING


async def test_without_a_certificate_it_refuses_to_start_unless_plaintext_is_said() -> None:
    with pytest.raises(BadSettings, match="MAILRAIL_TLS_DIR"):
        async with running(ServiceSettings()):
            pass
    async with running(ServiceSettings(plaintext=True)):
        pass


async def test_a_taken_port_is_named(ca: trustme.CA, tmp_path: Path) -> None:
    async with running(ServiceSettings(plaintext=True)) as server:
        with pytest.raises(BadSettings, match=f"cannot listen on 127.0.0.1:{server.port}"):
            async with running(ServiceSettings(plaintext=True, grpc_listen=f"127.0.0.1:{server.port}")):
                pass


async def test_endpoints_are_every_address_behind_the_names() -> None:
    assert await rpc.endpoints("127.0.0.2:1,127.0.0.1:2") == ["127.0.0.1:2", "127.0.0.2:1"]
    assert await rpc.endpoints("[::1]:3") == ["[::1]:3"]
    assert await rpc.endpoints("no-such-name.invalid:3") == []
    await asyncio.sleep(0)


class Waiting(peer_pb2_grpc.PeerServiceServicer):
    """A call that never ends by itself; says when it began and that it was cancelled."""

    def __init__(self) -> None:
        self.began, self.cancelled = asyncio.Event(), asyncio.Event()

    async def Wake(self, request: peer_pb2.WakeRequest, context: object) -> peer_pb2.WakeResponse:
        self.began.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return peer_pb2.WakeResponse()


async def test_a_caller_and_a_server_that_are_gone_without_a_word_are_noticed_within_half_a_minute() -> None:
    # As when a node dies, or a pod with its network: TCP itself would take a quarter of an hour.
    settings, waiting, forgetful = ServiceSettings(plaintext=True), Waiting(), Waiting()

    async def caller_notices() -> None:
        services = {PEER: (forgetful, peer_pb2_grpc.add_PeerServiceServicer_to_server)}
        async with rpc.serve(settings, services, {PEER: frozenset({"queue"})}) as server:
            with FaultProxy(("127.0.0.1", server.port)) as proxy:
                async with rpc.channel(settings, f"{proxy.address}:{proxy.port}", "queue") as channel:
                    call = await begin(channel, forgetful)
                    proxy.stall()
                    assert await asyncio.wait_for(call.code(), 30) is grpc.StatusCode.UNAVAILABLE
                proxy.resume()

    async def server_notices() -> None:
        services = {PEER: (waiting, peer_pb2_grpc.add_PeerServiceServicer_to_server)}
        async with rpc.serve(settings, services, {PEER: frozenset({"queue"})}) as server:
            with FaultProxy(("127.0.0.1", server.port)) as proxy:
                async with grpc.aio.insecure_channel(f"{proxy.address}:{proxy.port}") as channel:  # asks nothing itself
                    await begin(channel, waiting)
                    proxy.stall()
                    await asyncio.wait_for(waiting.cancelled.wait(), 30)
                proxy.resume()

    async def begin(channel: grpc.aio.Channel, service: Waiting) -> Any:
        stub: peer_pb2_grpc.PeerServiceAsyncStub = peer_pb2_grpc.PeerServiceStub(channel)
        call = stub.Wake(peer_pb2.WakeRequest())
        await asyncio.wait_for(service.began.wait(), 60)
        return call

    await asyncio.gather(caller_notices(), server_notices())


_LISTENS = """
import asyncio, sys
from pathlib import Path
from mailrail.kit import rpc
from mailrail.kit.settings import ServiceSettings

async def main():
    async with rpc.serve(ServiceSettings(tls_dir=Path(sys.argv[1])), {}, {}) as server:
        print(server.port, flush=True)
        await asyncio.to_thread(sys.stdin.read)

asyncio.run(main())
"""


def test_a_failed_handshake_writes_no_line_of_grpc_among_the_lines_of_the_log(ca: trustme.CA, tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _LISTENS, str(issue(ca, tmp_path / "queue", "queue"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # and no certificate of its own
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with (
            contextlib.suppress(OSError),
            socket.create_connection(("127.0.0.1", port)) as plain,
            context.wrap_socket(plain) as encrypted,
        ):
            encrypted.recv(1)
        _, said = process.communicate("", timeout=60)
    assert said == ""
