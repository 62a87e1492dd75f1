"""One service of the newest release among those of this Mailrail, as in an upgrade: mail of every size arrives whole.

What travels inside a commit and a delivery differs between releases (ACC-02, LSE-06); decision 30 says what each takes.
"""

import json
import smtplib
from pathlib import Path

import pytest

from testkit.conditions import wait_until
from testkit.next_hop import NextHop
from testkit.older import Older
from testkit.rail import Rail, basics, everything_through

LINE = b"0123456789abcdef" * 4 + b".\r\n"
SIZES = (1_000, 60_000, 100_000, 700_000, 1_500_000)

# Local mode starts a service that died with the interpreter that it runs under. This puts another in its place, with
# the settings that it knows: those of a later release are refused, and a release is given its own.
STAND_IN = """
import os, sys
older, module, known = {python!r}, {module!r}, {known!r}
if "-m" in sys.orig_argv and sys.orig_argv[sys.orig_argv.index("-m") + 1] == module and sys.executable != older:
    env = {{name: value for name, value in os.environ.items() if name in known or not name.startswith({prefix!r})}}
    os.execve(older, [older, *sys.orig_argv[1:]], env)
"""
CONTRACT = Path(__file__).resolve().parents[1] / "contract"


def stand_in(release: Older, service: str) -> str:
    """A `sitecustomize` by which this service is that of the release."""
    known = sorted(
        json.loads((CONTRACT / release.version.partition("+")[0] / "settings.json").read_text("utf-8"))[service]
    )
    prefix = f"MAILRAIL_{service.upper()}_"
    return STAND_IN.format(python=release.python, module=f"mailrail_{service}", known=known, prefix=prefix)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("service", ["ingress", "queue", "outbound"])
def test_mail_of_every_size_passes_a_service_of_the_newest_release_ACC_02_LSE_06(
    release: Older, hop: NextHop, tmp_path: Path, service: str
) -> None:
    (tmp_path / "sitecustomize.py").write_text(stand_in(release, service))
    documents = [*basics(), *everything_through(hop.address, hop.port)]
    with Rail(documents, env={"PYTHONPATH": str(tmp_path)}) as rail:
        rail.wait_until_back(service, rail.kill(service))
        wait_until(lambda: release.version in rail.versions(), 60, f"{service} is the newest release's")
        assert len(rail.versions()) == 2

        def send(name: str) -> dict[str, bytes]:
            bodies = {
                f"{name}{size}@partner.test": b"Subject: x\r\n\r\n" + LINE * (size // len(LINE)) for size in SIZES
            }
            with smtplib.SMTP(*rail.mx, timeout=60) as client:
                for recipient, body in bodies.items():
                    client.sendmail("bob@elsewhere.test", [recipient], body)
            return bodies

        sent = send("fresh")
        rail.wait_until_empty(60)
        pid = rail.kill("outbound")  # what comes now is read from the database later
        sent |= send("due")
        rail.wait_until_back("outbound", pid)
        rail.wait_until_empty(120)
        for recipient, body in sent.items():
            (message,) = hop.received(recipient)
            assert message.content.endswith(body), recipient


@pytest.mark.timeout(300)
def test_what_an_administrator_changed_stays_told_when_the_newest_release_ends_the_mail_ADM_05(
    release: Older, hop: NextHop, tmp_path: Path
) -> None:
    documents = [*basics(), *everything_through(hop.address, hop.port)]
    with Rail(documents, env={"PYTHONPATH": str(tmp_path)}) as rail:
        rail.cli("queue", "holds", "add", "--to-domain", "partner.test")
        with smtplib.SMTP(*rail.mx, timeout=60) as client:
            client.sendmail("bob@elsewhere.test", ["held@partner.test"], b"Subject: x\r\n\r\nbody\r\n")
        number = str(rail.wait_for_recipient("held@partner.test", lambda one: one["on_hold"])["id"])
        rail.cli("queue", "set-tls", "no", number, "--reason", "they asked for it")
        (tmp_path / "sitecustomize.py").write_text(stand_in(release, "queue"))
        rail.wait_until_back("queue", rail.kill("queue"))
        wait_until(lambda: release.version in rail.versions(), 60, "the queue is the newest release's")
        rail.cli("queue", "unhold", number)
        rail.wait_until_empty(60)
        assert len(hop.received("held@partner.test")) == 1
        (tmp_path / "sitecustomize.py").unlink()
        rail.wait_until_back("queue", rail.kill("queue"))
        wait_until(lambda: release.version not in rail.versions(), 60, "the queue is this release's")
        assert "they asked for it" in rail.cli("queue", "show", number)
        kept = (
            "SELECT count(*) FROM queue.history WHERE timeline IS NOT NULL AND NOT EXISTS (SELECT FROM queue.timeline)"
        )
        wait_until(lambda: rail.sql(kept) == [(1,)], 90, "the sweeper put it into history")
        assert "they asked for it" in rail.cli("queue", "show", number)
