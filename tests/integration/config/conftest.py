"""The config service on a real Postgres, in this process, with watchers and publishers that speak real gRPC."""

import asyncio
import base64
import dataclasses
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from mailrail.core.config.loader import load
from mailrail.core.config.pieces import Piece, piece_of
from mailrail.core.config.reading import Sources
from mailrail.core.config.state import StoredPiece
from mailrail.core.resources import InvalidResource, Problem
from mailrail.core.revision.revision import ObjectRef, Role
from mailrail.kit import postgres as kit_postgres
from mailrail.kit import rpc
from mailrail.kit.config_client import ConfigClient, Configuration, keyring
from mailrail.kit.publisher import Publisher
from mailrail.kit.run import end
from mailrail.kit.settings import ServiceSettings
from mailrail.pb.config.v1 import config_pb2_grpc
from mailrail_config.app import HeadFollower
from mailrail_config.rpc import SERVICE, ConfigServicer
from mailrail_config.settings import ConfigSettings
from mailrail_config.store import RevisionStore

from testkit.ports import free_port

GATEWAY = """
apiVersion: mailrail.dev/v1alpha1
kind: MailGateway
metadata: {name: edge}
spec:
  hostname: mail.example.org
  listeners:
    - {name: mx, protocol: MX, port: 2525}
    - {name: submission, protocol: Submission, port: 2587}
  postmaster: {accountRef: {name: alice}}
---
apiVersion: mailrail.dev/v1alpha1
kind: MailDomain
metadata: {name: example-org}
spec: {domainName: example.org, gatewayRef: {name: edge}, delivery: {mailbox: {}}}
---
apiVersion: mailrail.dev/v1alpha1
kind: MailAccount
metadata: {name: alice}
spec: {domainRef: {name: example-org}, addresses: [alice], credentialsSecretRef: {name: alice-login}}
---
apiVersion: v1
kind: Secret
metadata: {name: alice-login}
stringData: {password: wonderland}
---
apiVersion: mailrail.dev/v1alpha1
kind: MailTransport
metadata: {name: relay}
spec: {submission: {host: relay.example.net, auth: {secretRef: {name: relay-login}}}}
---
apiVersion: v1
kind: Secret
metadata: {name: relay-login}
stringData: {username: us, password: looking-glass}
"""


def route(name: str, domain: str) -> str:
    """A document with one rule."""
    return f"""
---
apiVersion: mailrail.dev/v1alpha1
kind: MailRoute
metadata: {{name: {name}}}
spec:
  parentRefs: [{{kind: MailGateway, name: edge}}]
  rules:
    - matches: [{{toDomains: [{domain}]}}]
      transportRef: {{name: relay}}
"""


def sources(*texts: str) -> Sources:
    """Documents of one file."""
    return Sources.of(load("".join((GATEWAY, *texts)), "mail.d/all.yaml"), files={})


@dataclasses.dataclass
class Running:
    """A config service that runs."""

    settings: ConfigSettings
    store: RevisionStore
    follower: HeadFollower
    server: rpc.Server

    @property
    def port(self) -> int:
        return self.server.port

    @property
    def ready(self) -> bool:
        """Whether the process says that it is ready."""
        return self.server.health.serving

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    @asynccontextmanager
    async def stub(self) -> AsyncIterator["config_pb2_grpc.ConfigServiceAsyncStub"]:
        """A plain client."""
        async with rpc.channel(self.settings, self.target, "config") as channel:
            stub: config_pb2_grpc.ConfigServiceAsyncStub = config_pb2_grpc.ConfigServiceStub(channel)
            yield stub


@asynccontextmanager
async def config_service(url: str, port: int = 0, **more: Any) -> AsyncIterator[Running]:
    """The service as `__main__` wires it, without the process."""
    values: dict[str, Any] = {"plaintext": True, "node_id": "test", "stop_grace": 0.5, "heartbeat_seconds": 0.2}
    settings = ConfigSettings(**(values | {"database_url": url, "grpc_listen": f"127.0.0.1:{port}"} | more))
    made: list[RevisionStore] = []

    async def opened(connection: psycopg.AsyncConnection[Any]) -> None:
        for store in made:
            await store.data_history.check(connection)

    login = kit_postgres.Login(settings)
    async with kit_postgres.pool(login, "config", application="mailrail config", timeout=2, opened=opened) as pool:
        store = RevisionStore(pool)
        made.append(store)
        servers: list[rpc.Server] = []

        async def ready(serving: bool) -> None:
            for server in servers:
                await server.health.set(serving)

        follower = HeadFollower(settings, login, store, ready)
        servicer = ConfigServicer(settings, store, follower)
        services = {SERVICE: (servicer, config_pb2_grpc.add_ConfigServiceServicer_to_server)}
        async with rpc.serve(settings, services) as server:
            servers.append(server)
            following, watching = asyncio.create_task(follower.run()), asyncio.create_task(follower.watch.run())
            try:
                yield Running(settings, store, follower, server)
            finally:
                servicer.stop()
                await end(following, watching)
                if not following.cancelled():
                    following.result()  # raises what it failed with


Service = Callable[..., AbstractAsyncContextManager[Running]]


@pytest.fixture
def keys_dir(tmp_path: Path) -> Path:
    """A folder with one sealing key."""
    folder = tmp_path / "keys"
    folder.mkdir()
    (folder / "0001").write_bytes(base64.b64encode(bytes(range(32))))
    return folder


@dataclasses.dataclass
class Consumer:
    """A service that watches."""

    client: ConfigClient
    seen: list[Configuration]
    refuse: set[int]

    def on_change(self, configuration: Configuration) -> None:
        if configuration.number in self.refuse:
            raise ValueError("the test refuses it")
        self.seen.append(configuration)


def consumer(keys_dir: Path, target: str, role: Role, **more: Any) -> Consumer:
    """A watcher of that role, not yet running."""
    settings = ServiceSettings(
        plaintext=True, node_id=f"{role.value}-1", config_target=target, sealing_keys_dir=keys_dir, **more
    )
    made: list[Consumer] = []
    client = ConfigClient(settings, role, lambda c: made[0].on_change(c))
    made.append(Consumer(client, [], set()))
    return made[0]


def publisher(keys_dir: Path, target: str, identity: str = "test") -> Publisher:
    """A publisher."""
    settings = ServiceSettings(plaintext=True, node_id=identity, config_target=target, sealing_keys_dir=keys_dir)
    return Publisher(settings, keyring(settings), identity)


@pytest.fixture
def port() -> int:
    """A port that a restarted service finds free again."""
    return free_port()


@pytest.fixture
def cannot_read_a(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Makes this a version of the software that does not know the rules by which route `a` was written."""

    def become_another_version() -> None:
        def older(ref: ObjectRef, source: str) -> tuple[Piece, StoredPiece | None]:
            if "a.example" in source:
                raise InvalidResource([Problem(("spec",), "is of a later version")])
            return piece_of(ref, source)

        monkeypatch.setattr("mailrail.core.config.reading.piece_of", older)

    return become_another_version
