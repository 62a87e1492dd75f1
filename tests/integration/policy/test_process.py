"""The policy service as processes, two of them, as a cluster runs it."""

import contextlib
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from mailrail.core.mtasts.policy import Mode, Policy
from mailrail.core.revision.revision import Domain, DomainDelivery, MtaSts, ObjectRef, Revision

from testkit.background import background
from testkit.conditions import wait_until
from testkit.ingress import FakeConfig
from testkit.ports import free_port, loopback_address
from testkit.processes import Program

ENFORCE = Policy(Mode.ENFORCE, 604_800, ("mx.example.org",))
TESTING = Policy(Mode.TESTING, 86_400, ("mx.example.org",))


def revision(policy: Policy) -> Revision:
    said = MtaSts(policy.mode, policy.max_age, policy.mx)
    ref = ObjectRef("MailDomain", "mail", "example-org")
    return Revision(domains=(Domain(ref, "example.org", DomainDelivery.MAILBOX, mta_sts=said),))


class Replica:
    """One process, without any key."""

    def __init__(self, name: str, config: FakeConfig, cache: Path) -> None:
        self.address = loopback_address()
        self.port, self.health = free_port(self.address), free_port(self.address)
        settings = {
            "NODE_ID": name,
            "PLAINTEXT": "true",
            "CONFIG_TARGET": f"127.0.0.1:{config.port}",
            "CACHE_DIR": str(cache / name),
            "LISTEN": f"{self.address}:{self.port}",
            "HEALTH_LISTEN": f"{self.address}:{self.health}",
        }
        environment = {f"MAILRAIL_POLICY_{key}": value for key, value in settings.items()}
        self._command = ([sys.executable, "-m", "mailrail_policy"], name, environment)
        self.program = self._start()

    def _start(self) -> Program:
        command, name, environment = self._command
        return Program(command, name=name, env={"PYTHONUNBUFFERED": "1", **environment})

    def kill_and_start(self) -> None:
        self.program.kill()
        self.program.stop()
        self.program = self._start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.program.stop()

    def served(self) -> str:
        """The policy, or the status that came in its place."""
        url = f"http://{self.address}:{self.port}/.well-known/mta-sts.txt"
        request = urllib.request.Request(url, headers={"Host": "mta-sts.example.org"})
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                body: bytes = answer.read()
                return body.decode()
        except urllib.error.HTTPError as error:
            with error:
                return str(error.code)

    def ready(self) -> bool:
        """What a probe of Kubernetes sees."""
        with grpc.insecure_channel(f"{self.address}:{self.health}") as channel:
            asked = health_pb2.HealthCheckRequest(service="mailrail.policy")
            try:
                answer = health_pb2_grpc.HealthStub(channel).Check(asked, timeout=10)
            except grpc.RpcError:
                return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


@pytest.fixture
def config() -> Iterator[FakeConfig]:
    made = FakeConfig()  # type: ignore[abstract]  # the calls that services make are all it answers
    background().call(made.serve())
    yield made
    background().call(made.stop())


def all_serve(replicas: list[Replica], served: str) -> None:
    for replica in replicas:
        wait_until(lambda r=replica: r.served() == served, within=60)  # type: ignore[misc]  # bound now


def test_replicas_serve_what_is_in_force_also_while_config_is_away(config: FakeConfig, tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        replicas = [stack.enter_context(Replica(name, config, tmp_path)) for name in ("policy-0", "policy-1")]
        all_serve(replicas, "503")
        assert not any(replica.ready() for replica in replicas)

        for policy in (ENFORCE, TESTING):
            background().call(config.publish(revision(policy), {}))
            all_serve(replicas, str(policy))
        wait_until(lambda: all(replica.ready() for replica in replicas))
        both = {("policy-0", "policy"), ("policy-1", "policy")}
        wait_until(lambda: {(r.process, r.role) for r in config.reports if r.revision == 2} == both)

        background().call(config.stop())
        replicas[0].kill_and_start()
        all_serve(replicas, str(TESTING))
        wait_until(lambda: all(replica.ready() for replica in replicas))
