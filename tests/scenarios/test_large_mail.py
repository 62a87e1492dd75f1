"""A large message streams through every service: memory does not grow with it (ACC-02, LSE-06)."""

import hashlib
import smtplib
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from testkit.conditions import wait_until
from testkit.peers.load import Sink, smtp_sink
from testkit.rail import SERVICES, Rail, basics, route, rule, transport

pytestmark = [pytest.mark.peer("smtp-sink"), pytest.mark.timeout(400)]

SIZE = 60 * 1024 * 1024
ALLOWED = 40 * 1024 * 1024  # octets of growth; the message itself would be 60 MB and more


@pytest.fixture
def sink(tmp_path: Path) -> Iterator[Sink]:
    with smtp_sink("-c") as running:
        yield running


def _resident(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0


class Watch:
    """The largest resident size of each service while it runs, looked at every 20 ms."""

    def __init__(self, rail: Rail) -> None:
        self._pids = {name: rail.pid(name) for name in SERVICES}
        self.before = {name: _resident(pid) for name, pid in self._pids.items()}
        self.most = dict(self.before)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()

    def _look(self) -> None:
        while not self._end.wait(0.02):
            for name, pid in self._pids.items():
                self.most[name] = max(self.most[name], _resident(pid))

    def stop(self) -> dict[str, int]:
        """End it; answers the growth of each service in octets."""
        self._end.set()
        self._thread.join()
        return {name: self.most[name] - self.before[name] for name in self._pids}


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads memory from /proc")
def test_a_message_of_60_MB_passes_without_60_MB_in_any_service(sink: Sink) -> None:
    hop = transport("hop", smtp={"host": sink.address, "port": sink.port})
    with Rail([*basics(), hop, route("all", ("MailGateway", "local"), rule("all", "hop"))]) as rail:
        line = hashlib.sha256(b"mailrail").hexdigest() + "\r\n"
        body = "Subject: large\r\n\r\n" + line * (SIZE // len(line))
        with smtplib.SMTP(*rail.mx, timeout=300) as client:
            client.sendmail("bob@elsewhere.test", ["warm@partner.test"], "Subject: small\r\n\r\nbody\r\n")
            rail.wait_until_empty()
            watch = Watch(rail)
            try:
                client.sendmail("bob@elsewhere.test", ["large@partner.test"], body)
                rail.wait_until_empty(180)
            finally:
                growth = watch.stop()
        wait_until(lambda: "mesg=2" in "".join(sink.program.lines), 60, sink.program.tail)
        assert max(growth.values()) < ALLOWED, {name: f"{value >> 20} MiB" for name, value in growth.items()}
