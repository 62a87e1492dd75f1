"""`mailrail top` in a terminal of its own, against a queue that comes and goes."""

import asyncio
import json
import re
import signal
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
from mailrail.pb.queue.v1 import admin_pb2, admin_pb2_grpc, types_pb2

from testkit.ports import loopback_address
from testkit.terminal import terminal

SERVICE = "mailrail.queue.v1.QueueAdminService"
SITES = [admin_pb2.Site(name=f"s{n}.example", queued=n) for n in range(1, 6)]


class Queue(admin_pb2_grpc.QueueAdminServiceServicer):
    """The queue, as far as the command asks; with a network address that stays when it goes away."""

    def __init__(self, keys: Path) -> None:
        self.keys = keys
        self.address, self.port = loopback_address(), 0
        self.queued = 41
        self._running = AsyncExitStack()

    async def start(self) -> None:
        made = pki.ensure(self.keys)
        settings = ServiceSettings(tls_dir=made.role("queue"), grpc_listen=f"{self.address}:{self.port}", stop_grace=0)
        services = {SERVICE: (self, admin_pb2_grpc.add_QueueAdminServiceServicer_to_server)}
        server = await self._running.enter_async_context(rpc.serve(settings, services))
        self.port = server.port

    async def stop(self) -> None:
        await self._running.aclose()

    @property
    def command(self) -> list[str]:
        """The command, up to `top`."""
        place = ["--server", f"{self.address}:{self.port}", "--tls-dir", str(pki.ensure(self.keys).role("cli"))]
        return [sys.executable, "-m", "mailrail.cli", *place, "top"]

    async def GetStats(self, request: Any, context: Any) -> admin_pb2.GetStatsResponse:
        return admin_pb2.GetStatsResponse(queued=self.queued)

    async def ListSites(self, request: admin_pb2.ListSitesRequest, context: Any) -> admin_pb2.ListSitesResponse:
        first = int(request.page_token or 0)
        after = str(first + 3) if first + 3 < len(SITES) else ""
        return admin_pb2.ListSitesResponse(sites=SITES[first : first + 3], next_page_token=after)

    async def ListHistory(self, request: Any, context: Any) -> admin_pb2.ListHistoryResponse:
        failed = admin_pb2.Recipient(id=1, address="bad@example.org", state=types_pb2.RECIPIENT_STATE_FAILED)
        failed.finished.GetCurrentTime()
        return admin_pb2.ListHistoryResponse(recipients=[failed])


@pytest.fixture
async def queue(tmp_path: Path) -> AsyncIterator[Queue]:
    made = Queue(tmp_path / "keys")  # type: ignore[abstract]  # the command calls three methods
    await made.start()
    yield made
    await made.stop()


async def run(*command: str) -> tuple[int, str, str]:
    """Exit status and output of a command without a terminal; meanwhile the queue answers."""
    process = await asyncio.create_subprocess_exec(
        *command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


@pytest.mark.parametrize("option", [(), ("--once",)])
async def test_without_a_terminal_one_picture_of_all_sites_is_printed(queue: Queue, option: tuple[str, ...]) -> None:
    status, out, err = await run(*queue.command, *option)
    assert (status, err) == (0, "")
    assert re.findall(r"s[0-9]\.example", out) == [f"s{n}.example" for n in (5, 4, 3, 2, 1)]
    assert "41 recipients" in out
    assert "bad@example.org" in out
    assert "\x1b" not in out


async def test_programs_get_the_same_as_json(queue: Queue) -> None:
    status, out, _ = await run(*queue.command, "--json")
    found = json.loads(out)
    assert (status, found["stats"]["queued"], found["failed_per_second"]) == (0, 41, 0.017)
    assert [each["name"] for each in found["sites"]][:2] == ["s5.example", "s4.example"]
    assert found["failures"][0]["address"] == "bad@example.org"


async def test_a_picture_of_a_queue_that_is_away_is_exit_status_3(queue: Queue) -> None:
    await queue.stop()
    status, _, err = await run(*queue.command, "--once")
    assert (status, "does not answer" in err) == (3, True)


OTHER_SCREEN, FIRST_SCREEN = "\x1b[?1049h", "\x1b[?1049l"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo-terminals of this kind")
async def test_in_a_terminal_it_goes_on_while_the_queue_comes_and_goes_until_q(queue: Queue) -> None:
    with terminal([*queue.command, "--every", "0.1"]) as seen:
        await seen.shows("41 recipients")
        queue.queued = 42
        await seen.shows("42 recipients")
        await seen.shows("s5.example")
        await queue.stop()
        await seen.shows("does not answer")
        await seen.shows("42 recipients")
        queue.queued = 43
        await queue.start()
        await seen.shows("43 recipients")
        assert seen.written.startswith(OTHER_SCREEN)
        assert FIRST_SCREEN not in seen.written
        assert "\x1b[2J" not in seen.written  # nothing is cleared between two pictures
        seen.press(b"xq")
        assert await seen.ends() == 0
        assert FIRST_SCREEN in seen.written
        assert seen.is_as_before()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo-terminals of this kind")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_ends_it_and_leaves_the_terminal_as_it_was(queue: Queue, number: int) -> None:
    await queue.stop()
    with terminal(queue.command) as seen:
        await seen.shows("does not answer")
        seen.process.send_signal(number)
        assert await seen.ends() == 0
        assert FIRST_SCREEN in seen.written
        assert seen.is_as_before()
        assert "Traceback" not in seen.written
