"""`mailrail routes diff`: exit statuses, what scripts and people read, and a terminal (DIF-05, DIF-08)."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from mailrail.kit import rpc
from mailrail.kit.settings import ServiceSettings
from mailrail.local import pki
from mailrail.pb.config.v1 import config_pb2, config_pb2_grpc
from mailrail.pb.queue.v1 import admin_pb2, admin_pb2_grpc, types_pb2

from testkit.ports import loopback_address
from testkit.terminal import terminal

CONFIG = "mailrail.config.v1.ConfigService"
QUEUE = "mailrail.queue.v1.QueueAdminService"
DOCUMENT = "kind: MailRoute\n"


class Services(config_pb2_grpc.ConfigServiceServicer, admin_pb2_grpc.QueueAdminServiceServicer):
    """Config and queue, as far as the command asks."""

    def __init__(self, keys: Path) -> None:
        self.keys, self.address, self.ports = keys, loopback_address(), dict[str, int]()
        self.tried: config_pb2.TrialRequest | None = None
        self.compared: admin_pb2.DiffRevisionRequest | None = None
        self.trial = config_pb2.TrialResponse(candidate=b"new", base=b"old", candidate_checksum="abc")
        self.answers = [admin_pb2.DiffRevisionResponse(looked_at=5, of_about=5, unchanged=5, complete=True, final=True)]
        self.goes_on = asyncio.Event()
        self.goes_on.set()
        self._running = AsyncExitStack()

    async def start(self) -> None:
        made = pki.ensure(self.keys)
        for role, name, add in (
            ("config", CONFIG, config_pb2_grpc.add_ConfigServiceServicer_to_server),
            ("queue", QUEUE, admin_pb2_grpc.add_QueueAdminServiceServicer_to_server),
        ):
            settings = ServiceSettings(tls_dir=made.role(role), grpc_listen=f"{self.address}:0", stop_grace=0)
            server = await self._running.enter_async_context(rpc.serve(settings, {name: (self, add)}))
            self.ports[role] = server.port

    async def stop(self) -> None:
        await self._running.aclose()

    def command(self, *words: str) -> list[str]:
        servers = ",".join(f"{role}={self.address}:{port}" for role, port in self.ports.items())
        place = ["--server", servers, "--tls-dir", str(pki.ensure(self.keys).role("cli"))]
        return [sys.executable, "-m", "mailrail.cli", *place, "routes", "diff", *words]

    async def Trial(self, request: config_pb2.TrialRequest, context: Any) -> config_pb2.TrialResponse:
        self.tried = request
        return self.trial

    async def DiffRevision(
        self, request: admin_pb2.DiffRevisionRequest, context: Any
    ) -> AsyncIterator[admin_pb2.DiffRevisionResponse]:
        self.compared = request
        for number, answer in enumerate(self.answers):
            if number:
                await self.goes_on.wait()
            yield answer


@pytest.fixture
async def services(tmp_path: Path) -> AsyncIterator[Services]:
    made = Services(tmp_path / "keys")  # type: ignore[abstract]  # the command calls two methods
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
def edited(tmp_path: Path) -> Path:
    path = tmp_path / "edited.yaml"
    path.write_text(DOCUMENT)
    return path


async def run(*command: str, given: bytes = b"") -> tuple[int, str, str]:
    """Exit status and output of a command without a terminal; meanwhile the services answer."""
    process = await asyncio.create_subprocess_exec(
        *command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    out, err = await process.communicate(given)
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


def a_difference(*, complete: bool = True) -> admin_pb2.DiffRevisionResponse:
    decision = admin_pb2.RouteDecision
    relay = types_pb2.ObjectRef(kind="MailTransport", namespace="default", name="relay")
    route = types_pb2.ObjectRef(kind="MailRoute", namespace="default", name="r")
    waits = admin_pb2.DiffGroup(
        before=decision(kind=decision.KIND_DIRECT),
        after=decision(kind=decision.KIND_DEFERRED, transport=relay, route=route, rule_index=0, rule="first"),
        recipients=2,
        domains=[admin_pb2.DomainCount(domain="a.example", recipients=2)],
        domain_count=7,
        samples=[11, 12],
    )
    return admin_pb2.DiffRevisionResponse(
        looked_at=10, of_about=40, unchanged=8, groups=[waits], deferred_new=2, complete=complete, final=True,
        config_revision=9,
    )  # fmt: skip


BAD = config_pb2.TrialResponse(
    bad=True,
    diagnostics='[{"origin": "edited.yaml", "line": 3, "severity": "error", "object": "", "message": "no such field"}]',
)


@pytest.mark.parametrize(
    ("options", "answer", "status"),
    [
        ((), None, 0),
        (("--exit-code",), None, 0),
        ((), a_difference(), 0),
        (("--exit-code",), a_difference(), 1),
        (("--exit-code", "--json"), a_difference(), 1),
        (("--exit-code",), admin_pb2.DiffRevisionResponse(looked_at=5, unchanged=5, final=True), 1),
    ],
)
async def test_the_exit_status_tells_of_a_difference_only_when_it_is_asked_for_DIF_08(
    services: Services, edited: Path, options: tuple[str, ...], answer: Any, status: int
) -> None:
    services.answers = [answer] if answer is not None else services.answers
    assert (await run(*services.command(str(edited), *options)))[0] == status
    assert services.tried is not None
    assert services.compared is not None
    assert [(f.name, f.content) for f in services.tried.files] == [(str(edited), DOCUMENT.encode())]
    assert (services.compared.candidate, services.compared.base) == (b"new", b"old")


async def test_bad_documents_are_status_2_and_named_with_their_line_DIF_08(services: Services, edited: Path) -> None:
    services.trial = BAD
    status, out, err = await run(*services.command(str(edited), "--exit-code"))
    assert (status, out) == (2, "")
    assert "edited.yaml:3: error: no such field" in err
    assert services.compared is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("absent.yaml",), "cannot be read"),
        (("--budget", "6m"), "between 1s and 5m"),
        (("--mode", "other"), "Invalid value"),
        (("--where", "state:asleep"), "write state: and one of"),
    ],
)
async def test_a_wrong_command_is_status_2_DIF_08(
    services: Services, edited: Path, words: tuple[str, ...], said: str
) -> None:
    status, _, err = await run(*services.command(str(edited), *words))
    assert status == 2
    assert said in " ".join(err.split())


async def test_services_out_of_reach_are_status_3_DIF_08(services: Services, edited: Path) -> None:
    await services.stop()
    status, _, err = await run(*services.command(str(edited)))
    assert (status, "does not answer" in err) == (3, True)


async def test_scripts_get_the_whole_shape_DIF_05(services: Services, edited: Path) -> None:
    services.answers = [a_difference(complete=False)]
    status, out, _ = await run(*services.command("-", "--json", "--mode", "replace"), given=b"kind: x")
    assert status == 0
    assert services.tried is not None
    assert services.tried.mode == config_pb2.TRIAL_MODE_REPLACE
    assert [f.content for f in services.tried.files] == [b"kind: x"]
    assert json.loads(out) == {
        "head": 9,
        "candidate": "abc",
        "looked_at": 10,
        "of_about": 40,
        "complete": False,
        "unchanged": 8,
        "groups": [
            {
                "before": {"decision": "direct", "route": None, "rule": None, "reason": ""},
                "after": {
                    "decision": "waits: default/relay is missing",
                    "route": "default/r",
                    "rule": "first",
                    "reason": "",
                },
                "recipients": 2,
                "domains": {"top": {"a.example": 2}, "count": 7},
                "samples": [11, 12],
            }
        ],
        "ungrouped": 0,
        "deferred_new": 2,
        "undeliverable_new": 0,
        "diagnostics": [],
    }


async def test_people_read_what_would_wait_first_and_how_much_was_looked_at_DIF_05(
    services: Services, edited: Path
) -> None:
    services.answers = [a_difference(complete=False)]
    _, out, err = await run(*services.command(str(edited)))
    first, second, *_ = out.splitlines()
    assert first == "2 of 10 recipients would go another way"
    assert second == "2 recipients would wait: what should deliver them is missing"
    assert "a.example and 6 more" in out
    assert "only 10 of about 40: --budget gives more time" in err


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo-terminals of this kind")
async def test_in_a_terminal_it_tells_how_far_it_is_and_that_goes_again(services: Services, edited: Path) -> None:
    services.goes_on.clear()
    services.answers = [admin_pb2.DiffRevisionResponse(looked_at=3, of_about=40, unchanged=3), a_difference()]
    with terminal(services.command(str(edited))) as seen:
        await seen.shows("looked at 3 of about 40 recipients")
        services.goes_on.set()
        await seen.shows("2 of 10 recipients would go another way")
        assert await seen.ends() == 0
        assert seen.written.rindex("\r\x1b[K") < seen.written.index("2 of 10")
