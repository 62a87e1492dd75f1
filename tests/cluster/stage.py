"""An operator under test: the process as a pod runs it, a real config service on a real Postgres, and their readers.

The operator has the rights of `operator/rbac` and no others: a service account with a token, and its own kubeconfig.
Consumers are the kit's own client, so what a test sees is what every service would run.
"""

import asyncio
import base64
import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import grpc
import psycopg
import yaml
from cluster.apiproxy import ApiProxy
from cluster.conftest import ROOT, Kubectl

from mailrail.core.revision.problem import RevisionProblem
from mailrail.core.revision.revision import Revision, Role
from mailrail.kit.config_client import ConfigClient, Configuration
from mailrail.kit.settings import ServiceSettings
from mailrail.pb.config.v1 import config_pb2, config_pb2_grpc

from testkit.background import background
from testkit.conditions import wait_until
from testkit.ports import free_port
from testkit.processes import Program

KEY = "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="


class Consumer:
    """One service, as far as configuration goes; it runs beside the test."""

    def __init__(self, settings: ServiceSettings, role: Role) -> None:
        self.role = role
        self.refuse = ""  # why the next revisions are rejected; empty: none is
        self.problems: list[RevisionProblem] = []  # what it reports beside the revision
        self.seen: list[int] = []
        self._client: ConfigClient | None = None
        self._stop: asyncio.Event
        self._settings = settings
        self._done = asyncio.run_coroutine_threadsafe(self._run(), background().loop)

    async def _run(self) -> None:
        self._stop = asyncio.Event()
        self._client = client = ConfigClient(self._settings, self.role, self._on_change, lambda: self.problems)
        async with client.running():
            await self._stop.wait()

    def _on_change(self, configuration: Configuration) -> None:
        if self.refuse:
            raise ValueError(self.refuse)
        self.seen.append(configuration.number)

    @property
    def current(self) -> Configuration:
        """What it runs. Raises LookupError before the first."""
        now = self._client.current if self._client is not None else None
        if now is None:
            raise LookupError(f"{self.role} has no configuration yet")
        return now

    @property
    def revision(self) -> Revision:
        """What it runs, without its number."""
        return self.current.revision

    def close(self) -> None:
        """Say goodbye and end."""
        background().loop.call_soon_threadsafe(self._stop.set)
        self._done.result(60)


class Stage:
    """One namespace with an operator and all that it needs."""

    def __init__(self, kubectl: Kubectl, database_url: str, folder: Path) -> None:
        self.kubectl, self.folder = kubectl, folder
        self.consumers: dict[Role, Consumer] = {}
        self.proxy: ApiProxy | None = None
        self._operators: list[Program] = []
        self._port = free_port()
        keys = folder / "keys"
        keys.mkdir()
        (keys / "k1").write_text(KEY, encoding="ascii")
        self._common = {
            "MAILRAIL_PLAINTEXT": "true",
            "MAILRAIL_SEALING_KEYS_DIR": str(keys),
            "MAILRAIL_CONFIG_TARGET": f"127.0.0.1:{self._port}",
        }
        self._config_environment = {
            **self._common,
            "MAILRAIL_CONFIG_GRPC_LISTEN": f"127.0.0.1:{self._port}",
            "MAILRAIL_CONFIG_DATABASE_URL": database_url,
        }
        self.config: Program
        self.kubeconfig: Path

    def start_config(self) -> Program:
        """The config service, on the port that everybody knows."""
        program = Program([sys.executable, "-m", "mailrail_config"], name="config", env=self._config_environment)
        self.config = program
        program.wait_for_line("starting")
        return program

    def account(self) -> Path:
        """A kubeconfig with the rights of operator/rbac in this namespace alone."""
        k = self.kubectl
        k("apply", "-f", str(ROOT / "operator/rbac/namespaced.yaml"))
        k("create", "serviceaccount", "mailrail-operator")
        for role in ("mailrail-operator", "mailrail-operator-lease"):
            account = f"--serviceaccount={k.namespace}:mailrail-operator"
            k("create", "rolebinding", role, f"--role={role}", account)
        return self.kubeconfig_of("mailrail-operator")

    def kubeconfig_of(self, account: str) -> Path:
        """A kubeconfig with a token of a service account."""
        view = json.loads(self.kubectl("config", "view", "--raw", "--minify", "-o", "json"))
        view["users"] = [{"name": account, "user": {"token": self.kubectl("create", "token", account).strip()}}]
        view["contexts"][0]["context"] |= {"user": account, "namespace": self.kubectl.namespace}
        path = self.folder / f"{account}.kubeconfig"
        path.write_text(yaml.safe_dump(view), encoding="utf-8")
        return path

    def start_operator(self, **settings: str) -> Program:
        """One operator. `settings`: names of its settings in lower case."""
        environment = {
            **self._common,
            "MAILRAIL_OPERATOR_KUBECONFIG": str(self.kubeconfig),
            "MAILRAIL_OPERATOR_NAMESPACES": self.kubectl.namespace,
            "MAILRAIL_OPERATOR_DNS_CHECK": "false",
            **{f"MAILRAIL_OPERATOR_{name.upper()}": value for name, value in settings.items()},
        }
        program = Program([sys.executable, "-m", "mailrail_operator"], name="operator", env=environment)
        self._operators.append(program)
        return program

    @staticmethod
    def pause(program: Program) -> None:
        """SIGSTOP: the process misses everything until it is resumed; its clock goes on."""
        os.kill(program.pid, signal.SIGSTOP)

    @staticmethod
    def resume(program: Program) -> None:
        """SIGCONT."""
        os.kill(program.pid, signal.SIGCONT)

    def through_proxy(self) -> ApiProxy:
        """Let operators that start from now on reach the API server through a proxy that can be away."""
        view = yaml.safe_load(self.kubeconfig.read_text(encoding="utf-8"))
        cluster = view["clusters"][0]["cluster"]
        ca = base64.b64decode(cluster.pop("certificate-authority-data")).decode()
        self.proxy = ApiProxy(cluster["server"], ca)
        cluster["server"] = self.proxy.url
        self.kubeconfig = self.folder / "proxied.kubeconfig"
        self.kubeconfig.write_text(yaml.safe_dump(view), encoding="utf-8")
        return self.proxy

    def resource_version(self) -> int:
        """Where the API server is now."""
        listed = json.loads(self.kubectl("get", "mgw", "-o", "json", "--chunk-size=0"))
        raw = json.loads(self.kubectl("get", "--raw", "/api/v1/namespaces/default/configmaps?limit=1"))
        return max(int(listed["metadata"].get("resourceVersion") or 0), int(raw["metadata"]["resourceVersion"]))

    def use_database(self, url: str) -> None:
        """Give the next config process another database."""
        self._config_environment["MAILRAIL_CONFIG_DATABASE_URL"] = url

    def sql(self, *statements: str) -> None:
        """Change the store behind everybody's back, in one transaction."""
        with psycopg.connect(self._config_environment["MAILRAIL_CONFIG_DATABASE_URL"]) as connection:
            connection.execute("SET search_path TO config")
            for statement in statements:
                connection.execute(statement.encode())

    def consumer(self, node_id: str, role: Role = Role.QUEUE) -> Consumer:
        """One more service that reads the configuration."""
        settings = ServiceSettings(
            node_id=node_id,
            plaintext=True,
            config_target=self._common["MAILRAIL_CONFIG_TARGET"],
            sealing_keys_dir=self.folder / "keys",
        )
        return Consumer(settings, role)

    def start_consumers(self, *roles: Role) -> None:
        """Services that read the configuration, and that config knows of from now on."""
        for role in roles or (Role.INGRESS, Role.QUEUE, Role.OUTBOUND):
            self.consumers[role] = self.consumer(f"{role.value}-{os.getpid()}", role)
        with grpc.insecure_channel(self._common["MAILRAIL_CONFIG_TARGET"]) as channel:
            stub = config_pb2_grpc.ConfigServiceStub(channel)

            def known() -> bool:
                found = stub.ListConsumers(config_pb2.ListConsumersRequest(), timeout=30).consumers
                return {role.value for role in self.consumers} <= {one.role for one in found if one.live}

            # One that has not reported yet is not waited for when an object is called Ready (CFG-05).
            wait_until(known, 60, lambda: f"config knows its consumers\n{self.tails()}", ignoring=(grpc.RpcError,))

    def queue(self) -> Revision:
        """What the queue runs."""
        return self.consumers[Role.QUEUE].revision

    def until_queue(self, condition: Callable[[Revision], object], within: float = 60.0, what: str = "") -> None:
        """Wait until the queue runs a configuration that fits."""
        wait_until(lambda: condition(self.queue()), within, lambda: f"{what}\n{self.tails()}")

    def until(self, condition: Callable[[], object], what: str, within: float = 60.0) -> None:
        """Wait for anything else."""
        wait_until(condition, within, lambda: f"{what}\n{self.tails()}", ignoring=(LookupError,))

    def get(self, kind: str, name: str) -> dict[str, Any]:
        """An object."""
        body: dict[str, Any] = json.loads(self.kubectl("get", kind, name, "-o", "json"))
        return body

    def condition(self, kind: str, name: str, condition: str) -> dict[str, Any]:
        """A condition of an object. Raises LookupError while it has none."""
        for row in self.get(kind, name).get("status", {}).get("conditions", ()):
            if row["type"] == condition:
                return dict(row)
        raise LookupError(f"{kind} {name} has no condition {condition}")

    def wait_condition(
        self, kind: str, name: str, condition: str, within: float = 60.0, **wanted: str
    ) -> dict[str, Any]:
        """Wait until a condition has these fields; with them `observedGeneration` must be the current one."""

        def met() -> dict[str, Any] | None:
            body = self.get(kind, name)
            row = next(r for r in body.get("status", {}).get("conditions", ()) if r["type"] == condition)
            current = row.get("observedGeneration") == body["metadata"]["generation"]
            return dict(row) if current and all(row[k] == v for k, v in wanted.items()) else None

        errors = (LookupError, StopIteration, AssertionError)
        words = f"{kind} {name}: {condition} {wanted}"
        return wait_until(met, within, lambda: f"{words}\n{self.tails()}", ignoring=errors)

    def wait_ready(self, *targets: str, within: int = 60) -> None:
        """`kubectl wait`, as people use it."""
        done = self.kubectl.try_("wait", "--for=condition=Ready", f"--timeout={within}s", *targets)
        assert done.returncode == 0, f"{done.stderr}\n{self.tails()}"

    def tails(self) -> str:
        """The last words of every process, for the text of a failure."""
        return "\n".join(p.tail(12) for p in self._programs())

    def _programs(self) -> list[Program]:
        return [*self._operators, *([self.config] if hasattr(self, "config") else [])]

    def close(self) -> None:
        """Stop everything."""
        for consumer in self.consumers.values():
            with contextlib.suppress(Exception):
                consumer.close()
        for program in self._programs():
            with contextlib.suppress(ProcessLookupError):
                self.resume(program)
            program.stop()
        if self.proxy is not None:
            self.proxy.close()


@contextlib.contextmanager
def staged(kubectl: Kubectl, database_url: str, folder: Path) -> Iterator[Stage]:
    """A stage while the context lasts."""
    stage = Stage(kubectl, database_url, folder)
    try:
        stage.kubeconfig = stage.account()
        stage.start_config()
        yield stage
    finally:
        stage.close()


def status_writers(kubectl: Kubectl, target: str) -> set[str]:
    """Field managers of the status of an object (`KIND/NAME`)."""
    metadata = json.loads(kubectl("get", target, "-o", "json", "--show-managed-fields"))["metadata"]
    return {entry["manager"] for entry in metadata["managedFields"] if entry.get("subresource") == "status"}


def manifest(kind: str, name: str, spec: Mapping[str, Any]) -> str:
    """YAML of one of our resources."""
    body = {"apiVersion": "mailrail.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": dict(spec)}
    return yaml.safe_dump(body) + "---\n"


def basics(domain: str = "example.org", port: int = 2525) -> str:
    """A gateway with a domain and its postmaster."""
    return (
        manifest(
            "MailGateway",
            "mx1",
            {
                "hostname": f"mx1.{domain}",
                "listeners": [{"name": "mx", "protocol": "MX", "port": port}],
                "postmaster": {"accountRef": {"name": "postmaster"}},
            },
        )
        + manifest(
            "MailDomain", "org", {"domainName": domain, "gatewayRef": {"name": "mx1"}, "delivery": {"mailbox": {}}}
        )
        + manifest("MailAccount", "postmaster", {"domainRef": {"name": "org"}, "addresses": ["postmaster"]})
    )


def relay(name: str, host: str) -> str:
    """A smarthost."""
    return manifest("MailTransport", name, {"smtp": {"host": host}})


def route(name: str, transport: str, *, parent: str = "MailGateway/mx1", **more: Any) -> str:
    """A route that sends everything through one transport."""
    kind, _, of = parent.partition("/")
    spec = {"parentRefs": [{"kind": kind, "name": of}], "rules": [{"name": "all", "transportRef": {"name": transport}}]}
    return manifest("MailRoute", name, spec | more)
