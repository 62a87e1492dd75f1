"""`mailrail local`: start, ready, restarts after any kill, stop, and refusals that say what to do (design 10)."""

import contextlib
import os
import re
import signal
import smtplib
import socket
import stat
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from mailrail.local.options import METRICS, SMTP, SUBMISSION, SUBMISSIONS
from mailrail.local.postgres.binaries import wheel_binaries

from testkit.conditions import wait_until
from testkit.local import CHILDREN, Installation, installation, mailrail
from testkit.ports import accepts, free_port
from testkit.postgres import embedded_postgres, oldest_programs

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def local() -> Iterator[Installation]:
    """One installation for the tests that leave it as they found it."""
    with installation() as running:
        yield running


def _send(running: Installation, to: str) -> None:
    with smtplib.SMTP("127.0.0.1", running.port(SMTP), timeout=30) as client:
        client.sendmail("stranger@elsewhere.example", [to], b"Subject: hello\r\n\r\nhello\r\n")


def _send_once_it_can(running: Installation, to: str) -> None:
    """A client that is told to come back comes back."""

    def sent() -> bool:
        _send(running, to)
        return True

    wait_until(sent, 60, "mail is accepted", ignoring=(OSError, smtplib.SMTPException))


def _alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_ready_comes_last_after_the_login_and_every_listener_accepts(local: Installation) -> None:
    said = [line for line in local.program.lines if not re.match(r"\w+ +\| ", line)]
    login = next(n for n, line in enumerate(said) if "login of the example account: alice@example.org" in line)
    ready = next(n for n, line in enumerate(said) if " ready: " in line)
    assert login < ready
    assert sum("ready" in line for line in said) == 1
    for planned in (SMTP, SUBMISSION, SUBMISSIONS, METRICS):
        assert accepts("127.0.0.1", local.port(planned))


def test_the_printed_login_works_over_tls(local: Installation) -> None:
    line = local.program.wait_for_line(r"login of the example account: (\S+), password (\S+)")
    with smtplib.SMTP("127.0.0.1", local.port(SUBMISSION), timeout=30) as client:
        client.starttls()
        client.login(line[1], line[2])
        client.sendmail("alice@example.org", ["bob@elsewhere.example"], b"Subject: hello\r\n\r\nhello\r\n")


def test_the_command_finds_a_running_installation_by_its_state(local: Installation) -> None:
    status = local.ask("config", "status")
    assert {c["role"] for c in status["consumers"] if c["live"]} >= {"ingress", "queue", "outbound"}
    assert status["head"] >= 1


def test_one_page_holds_the_metrics_of_every_process(local: Installation) -> None:
    def page() -> dict[str, Any] | None:
        with urllib.request.urlopen(f"http://127.0.0.1:{local.port(METRICS)}/metrics", timeout=60) as answer:
            found = {f.name: f for f in text_string_to_metric_families(answer.read().decode())}
        up = {s.labels["service"]: s.value for s in found["mailrail_local_up"].samples}
        return found if up == dict.fromkeys(CHILDREN, 1.0) else None  # a busy one that answered late is left out

    families = wait_until(page, 60, "every process is up")
    assert {s.labels["service"] for s in families["process_cpu_seconds"].samples} == set(CHILDREN)
    assert {s.labels["service"] for s in families["mailrail_build_info"].samples} >= {"ingress", "queue"}


@pytest.mark.skipif(sys.platform != "linux", reason="children are forked on Linux alone")
def test_children_share_what_they_imported_and_ps_tells_them_apart() -> None:
    with installation() as fresh:
        for name in CHILDREN:
            process = psutil.Process(fresh.pid(name))
            module = "mailrail.local.folder" if name == "folder" else f"mailrail_{name}"
            assert process.cmdline() == [sys.executable, "-m", module]
            memory = process.memory_full_info()
            assert memory.uss < min(memory.rss / 2, 30 * 1024 * 1024), f"{name}: {memory}"


@pytest.mark.parametrize("name", CHILDREN)
def test_a_killed_child_is_started_again_and_mail_flows_on(local: Installation, name: str) -> None:
    old = local.kill(name)
    assert local.pid(name) != old
    local.program.wait_for_line(rf"{name} ended \(killed by signal 9\); restarting it in")
    _send_once_it_can(local, "alice@example.org")
    wait_until(lambda: local.cli("config", "status").returncode == 0, 60, "config answers")


def test_a_killed_postgres_comes_back_on_its_port_and_mail_flows_on(local: Installation) -> None:
    old = local.kill("postgres")
    local.program.wait_for_line(r"Postgres is back", 60)
    assert local.pid("postgres") != old
    _send_once_it_can(local, "alice@example.org")


def test_a_second_one_on_the_same_state_refuses_and_says_what_to_do(local: Installation) -> None:
    second = mailrail("local", "--state", str(local.state), "--port-offset", "0")
    assert second.returncode == 1
    assert f"another `mailrail local` runs on {local.state} (process {local.program.pid})" in second.stderr
    assert "--port-offset" in second.stderr
    assert local.program.running


def test_a_taken_port_is_named_before_anything_is_started(local: Installation, tmp_path: Path) -> None:
    second = mailrail("local", "--state", str(tmp_path / "other"), "--port-offset", str(local.offset))
    assert second.returncode == 1
    assert f"cannot listen on 127.0.0.1:{local.port(SMTP)} for SMTP: the port is taken" in second.stderr
    assert "--port-offset" in second.stderr
    assert not (tmp_path / "other" / "postgres").exists()


def test_an_address_that_is_not_ours_is_named(tmp_path: Path) -> None:
    refused = mailrail("local", "--state", str(tmp_path / "s"), "--listen", "192.0.2.1", "--port-offset", "9000")
    assert refused.returncode == 1
    assert "cannot listen on 192.0.2.1:10025" in refused.stderr


def test_two_run_side_by_side(local: Installation) -> None:
    with installation() as other:
        _send(other, "alice@example.org")
        _send(local, "alice@example.org")
        assert other.ask("config", "status")["head"] >= 1


def test_ctrl_c_stops_everything_cleanly_and_a_new_start_goes_on() -> None:
    with installation() as running:
        _send(running, "alice@example.org")
        family = running.program.descendants()
        assert len(family) >= len(CHILDREN)
        assert running.interrupt() == 0
        assert not [p for p in family if _alive(p.pid)]
        assert not (running.state / "client.json").exists()
        done = running.cli("queue", "list")
        assert done.returncode == 3
        assert "start it with `mailrail local`" in done.stderr
        running.start().wait_ready()
        assert running.program.stop(60) == 0


def test_ctrl_c_in_the_middle_of_the_first_start_leaves_nothing_running_and_nothing_broken() -> None:
    with installation(ready=False) as running:
        running.start()
        running.program.wait_for_line("making the database", 60)
        family = running.program.descendants()
        assert running.interrupt() == 0
        assert not [p for p in (*family, *running.program.descendants()) if _alive(p.pid)]
        running.start().wait_ready()


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_when_the_supervisor_is_killed_nothing_outlives_it_and_the_next_start_works() -> None:
    with installation() as running:
        family = running.program.descendants()
        running.program.kill()
        wait_until(lambda: not [p for p in family if _alive(p.pid)], 60, "everything ends with the supervisor")
        running.start().wait_ready()
        _send(running, "alice@example.org")


def test_it_waits_for_a_gateway_and_says_so_and_a_mended_file_makes_it_ready(tmp_path: Path) -> None:
    with installation(ready=False) as running:
        running.resources.mkdir()
        broken = "apiVersion: mailrail.dev/v1alpha1\nkind: MailGateway\nmetadata: {name: edge}\nspec: {hostname: 7}\n"
        (running.resources / "gateway.yaml").write_text(broken)
        running.start()
        running.program.wait_for_line(r"gateway\.yaml:4: MailGateway default/edge", 60)
        running.program.wait_for_line(r"still waiting for a MailGateway with a listener", 60)
        (running.resources / "gateway.yaml").write_text(f"""
apiVersion: mailrail.dev/v1alpha1
kind: MailGateway
metadata: {{name: edge}}
spec:
  hostname: mx.example.net
  postmaster: {{accountRef: {{name: postmaster}}}}
  listeners: [{{name: mx, protocol: MX, port: {SMTP}}}]
---
apiVersion: mailrail.dev/v1alpha1
kind: MailDomain
metadata: {{name: example-net}}
spec: {{domainName: example.net, gatewayRef: {{name: edge}}, delivery: {{mailbox: {{}}}}}}
---
apiVersion: mailrail.dev/v1alpha1
kind: MailAccount
metadata: {{name: postmaster}}
spec: {{domainRef: {{name: example-net}}, addresses: [postmaster]}}
""")
        running.wait_ready()
        _send(running, "postmaster@example.net")


def test_a_postgres_15_of_ones_own_takes_the_place_of_the_embedded_one_DBS_01() -> None:
    with embedded_postgres(oldest_programs()) as server, installation("--database-url", server.url()) as running:
        _send(running, "alice@example.org")
        assert not (running.state / "postgres").exists()


def test_a_database_out_of_reach_is_said_without_its_password(tmp_path: Path) -> None:
    url = f"postgresql://mailrail:hidden-word@127.0.0.1:{free_port()}/mailrail"
    refused = mailrail("local", "--state", str(tmp_path / "s"), "--database-url", url, "--port-offset", "9100")
    assert refused.returncode == 1
    assert "Connection refused" in refused.stderr
    assert "hidden-word" not in refused.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="Windows keeps rights in access lists, not in modes")
def test_no_mode_outside_the_state_folder_changes(tmp_path: Path) -> None:
    """The wheel's own start opens every folder above data and binaries to others; ours touches none."""
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    package = wheel_binaries().folder.parent.parent
    watched = [home, *home.parents, package, *package.parents, *(p for p in package.rglob("*") if not p.is_symlink())]
    before = {p: stat.S_IMODE(p.stat().st_mode) for p in watched}
    with installation(folder=home):
        pass
    assert {p: stat.S_IMODE(p.stat().st_mode) for p in watched} == before


@pytest.mark.skipif(sys.platform == "win32", reason="Windows keeps rights in access lists, not in modes")
def test_what_lies_in_the_state_is_for_its_owner_alone(local: Installation) -> None:
    """Each file is closed, or a folder above it is; Postgres' user may pass to its data, and read nothing else."""

    def look(folder: Path) -> None:
        for path in folder.iterdir():
            mode = stat.S_IMODE(path.lstat().st_mode)
            assert mode & 0o066 == 0, f"{path} {mode:o}"
            if path.is_dir() and mode & 0o011:
                assert path == local.state / "postgres"
                look(path)

    look(local.state)


def test_a_listener_that_somebody_takes_during_a_restart_is_waited_for(local: Installation) -> None:
    """Ingress is killed and a stranger sits on its port: it says so and takes the port when it is free again."""
    with socket.socket() as stranger:
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        os.kill(local.pid("ingress"), signal.SIGSTOP)
        try:
            local.kill("ingress")
            with contextlib.suppress(OSError):
                stranger.bind(("127.0.0.1", local.port(SUBMISSIONS)))
                stranger.listen(1)
            local.pid("ingress")
        finally:
            stranger.close()
    wait_until(lambda: accepts("127.0.0.1", local.port(SUBMISSIONS)), 60)
    _send_once_it_can(local, "alice@example.org")
