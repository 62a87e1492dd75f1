"""What the supervisor tells its children, and what it refuses before it starts any."""

import dataclasses
import errno
import io
import json
import re
import signal
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from mailrail.kit import migrations
from mailrail.kit.settings import ServiceSettings, load
from mailrail.local import example, pki, state
from mailrail.local.database import SupervisedPostgres
from mailrail.local.environments import Environments
from mailrail.local.folder import FolderSettings
from mailrail.local.options import LATER, METRICS, SERVICES, SMTP, SUBMISSION, SUBMISSIONS, WATCHER, LocalOptions
from mailrail.local.output import Output
from mailrail.local.postgres.account import PostgresUnavailable
from mailrail.local.supervisor import CannotRun, Supervisor
from mailrail_config.settings import ConfigSettings
from mailrail_dmarc.settings import DmarcSettings
from mailrail_ingress.settings import IngressSettings
from mailrail_outbound.settings import OutboundSettings
from mailrail_queue.settings import QueueSettings

from testkit.ports import free_offset

SETTINGS: dict[str, type[ServiceSettings]] = {
    "config": ConfigSettings,
    "queue": QueueSettings,
    "outbound": OutboundSettings,
    "ingress": IngressSettings,
    "dmarc": DmarcSettings,
    WATCHER: FolderSettings,
}
URL = "postgresql://mailrail:secret@127.0.0.1:5432/mailrail"


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> pki.Pki:
    """Keys of one installation."""
    return pki.ensure(tmp_path_factory.mktemp("keys") / "pki")


def _supervisor(tmp_path: Path, **options: object) -> Supervisor:
    return Supervisor(dataclasses.replace(LocalOptions(state=tmp_path), **options))  # type: ignore[arg-type]


def _environment(name: str, keys: pki.Pki, **options: object) -> dict[str, str]:
    folder = keys.sealing_keys.parent
    given = dataclasses.replace(LocalOptions(state=folder), **options)  # type: ignore[arg-type]
    targets = {name: f"127.0.0.1:{9000 + n}" for n, name in enumerate((*SERVICES, *LATER))}
    metrics = {name: f"127.0.0.1:{9100 + n}" for n, name in enumerate((*SERVICES, *LATER, WATCHER))}
    return Environments(given, URL, folder / "cache", keys, targets, metrics).of(name)


@pytest.mark.parametrize("name", SETTINGS)
def test_every_child_understands_the_settings_that_it_is_given(name: str, keys: pki.Pki) -> None:
    environment = _environment(name, keys, deliver=True)
    settings = load(SETTINGS[name], name, environment)
    assert settings.stop_with_parent is True
    assert settings.tls_dir is not None
    assert (settings.tls_dir / "tls.crt").exists()
    assert not settings.plaintext


def test_the_resolver_is_trusted_only_where_the_command_says_so_DANE_25(keys: pki.Pki) -> None:
    for trusted in (False, True):
        environment = _environment("outbound", keys, resolver="127.0.0.1:53", trust_ad=trusted)
        settings = load(OutboundSettings, "outbound", environment)
        assert (settings.resolver, settings.resolver_trust_ad) == ("127.0.0.1:53", trusted)


def test_settings_that_this_process_was_started_with_do_not_leak_into_children(
    keys: pki.Pki, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAILRAIL_PLAINTEXT", "true")
    monkeypatch.setenv("MAILRAIL_QUEUE_UNSAFE", "true")
    monkeypatch.setenv("HARMLESS", "kept")
    environment = _environment("queue", keys)
    settings = load(QueueSettings, "queue", environment)
    assert (settings.plaintext, settings.unsafe) == (False, False)
    assert environment["HARMLESS"] == "kept"


def test_the_queue_keeps_history_for_as_many_days_as_the_command_line_says(keys: pki.Pki) -> None:
    environment = _environment("queue", keys, history_days=30)
    assert load(QueueSettings, "queue", environment).history_days == 30


def test_only_who_owns_a_schema_gets_the_database(keys: pki.Pki) -> None:
    holders = {n for n in SETTINGS if "secret" in " ".join(_environment(n, keys).values())}
    assert holders == {"config", "queue", "outbound", "dmarc"}


@pytest.mark.parametrize(
    ("options", "dials_only_here", "takes_any_recipient"),
    [
        ({}, True, True),
        ({"deliver": True}, False, False),
        ({"listen": "0.0.0.0"}, True, False),
        ({"listen": "192.0.2.1", "deliver": True}, False, False),
        ({"listen": "::1"}, True, True),
        ({"listen": "127.0.0.9"}, True, True),
        ({"listen": "localhost"}, True, True),
        ({"listen": "127.example.org"}, True, False),  # a name, and it may be that of any address
    ],
)
def test_any_recipient_is_taken_only_while_captive_and_on_loopback(
    options: dict[str, object], dials_only_here: bool, takes_any_recipient: bool, keys: pki.Pki
) -> None:
    outbound = load(OutboundSettings, "outbound", _environment("outbound", keys, **options))
    folder = load(FolderSettings, WATCHER, _environment(WATCHER, keys, **options))
    assert (outbound.captive, folder.captive) == (dials_only_here, takes_any_recipient)


def test_ingress_listens_where_it_is_told_and_the_offset_is_in_the_resources(keys: pki.Pki) -> None:
    options: dict[str, object] = {"listen": "127.0.0.9", "port_offset": 700}
    ingress = load(IngressSettings, "ingress", _environment("ingress", keys, **options))
    folder = load(FolderSettings, WATCHER, _environment(WATCHER, keys, **options))
    assert (ingress.smtp_listen, ingress.port_offset, folder.port_offset) == (("127.0.0.9",), 0, 700)


def test_a_taken_port_is_named_with_a_way_out(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)
        offset = taken.getsockname()[1] - METRICS
        if offset + SMTP < 1:
            pytest.skip("the system gave a port below ours")
        with pytest.raises(CannotRun, match=r"the port is taken.*--port-offset"):
            _supervisor(tmp_path, port_offset=offset)._require_ports()


def test_only_ports_that_the_resources_ask_for_must_be_free(tmp_path: Path) -> None:
    """Somebody who moved the listeners, because another program has 1025, was told all the same that it is taken."""
    example.write(tmp_path / "mail.d")
    gateway = tmp_path / "mail.d" / "10-gateway.yaml"
    gateway.write_text(gateway.read_text("utf-8").replace("port: 1025", "port: 1225"), "utf-8")
    offset = free_offset((SMTP, SMTP + 200, SUBMISSION, SUBMISSIONS, METRICS))
    supervisor = _supervisor(tmp_path, resources=tmp_path / "mail.d", port_offset=offset)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", SMTP + offset))
        taken.listen(1)
        supervisor._require_ports()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", SMTP + 200 + offset))
        taken.listen(1)
        with pytest.raises(CannotRun, match="for the listener mx: the port is taken"):
            supervisor._require_ports()


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no such signal here")
def test_under_nohup_it_outlives_its_terminal(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with _supervisor(tmp_path)._signals():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        with _supervisor(tmp_path)._signals():
            assert callable(signal.getsignal(signal.SIGHUP))
    finally:
        signal.signal(signal.SIGHUP, before)


def test_an_offset_that_leads_past_the_last_port_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CannotRun, match="--port-offset is too large"):
        _supervisor(tmp_path, port_offset=65000)._require_ports()


def test_a_state_folder_without_room_is_named_with_a_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "pki" / "tls.key"))

    monkeypatch.setattr(pki, "ensure", full)
    with pytest.raises(CannotRun, match=r"tls\.key: No space left on device; free some space.*--state"):
        _supervisor(tmp_path, port_offset=free_offset((SMTP, METRICS))).run()


def test_a_database_whose_role_may_make_no_schema_is_said_with_a_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise psycopg.errors.InsufficientPrivilege("permission denied for database mailrail")

    monkeypatch.setattr(migrations, "migrate", forbidden)
    with pytest.raises(CannotRun, match=r"permission denied for database mailrail\nIs --database-url right, and may"):
        _supervisor(tmp_path, port_offset=free_offset((SMTP, METRICS)), database_url=URL).run()


def test_a_file_that_cannot_be_removed_keeps_nothing_from_being_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "somebody has it open")

    class Stopped:
        name, stops = "queue", 0

        def stop(self, *_: object) -> bool:
            self.stops += 1
            return True

    supervisor = _supervisor(tmp_path)
    monkeypatch.setattr(state, "remove", refuse)
    child, postgres, metrics = Stopped(), Stopped(), Stopped()
    monkeypatch.setattr(supervisor, "_children", [child])
    monkeypatch.setattr(supervisor, "_postgres", postgres)
    monkeypatch.setattr(supervisor, "_metrics", metrics)
    supervisor._stop_everything()
    assert (child.stops, postgres.stops, metrics.stops) == (1, 1, 1)
    said = capsys.readouterr().err
    assert "while stopping: [Errno 13] somebody has it open" in said
    assert said.rstrip().endswith("stopped")


def _written(monkeypatch: pytest.MonkeyPatch, log_format: str, tell: Callable[[Output], None]) -> list[str]:
    stream = io.BytesIO()
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(stream))
    tell(Output(log_format))
    return stream.getvalue().decode().splitlines()


def test_lines_of_children_are_prefixed_or_stay_json(monkeypatch: pytest.MonkeyPatch) -> None:
    def tell(output: Output) -> None:
        output.lines("queue", [b"plain\r", b'{"a": 1}'])

    assert _written(monkeypatch, "console", tell) == ["queue    | plain", 'queue    | {"a": 1}']
    plain, structured = _written(monkeypatch, "json", tell)
    assert json.loads(plain).items() >= {"service": "queue", "event": "plain", "level": "info"}.items()
    assert structured == '{"a": 1}'


def test_the_supervisors_own_json_lines_have_a_level_and_a_time_as_those_of_services_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def tell(output: Output) -> None:
        output.say("stopped")
        output.warn("queue ended")

    said = [json.loads(line) for line in _written(monkeypatch, "json", tell)]
    assert [(one["service"], one["event"], one["level"]) for one in said] == [
        ("local", "stopped", "info"),
        ("local", "queue ended", "warning"),
    ]
    for one in said:
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", one["timestamp"])


def _postgres(folder: Path, output: Output, stopping: threading.Event) -> SupervisedPostgres:
    return SupervisedPostgres(folder, output, stopping, verbose=False, started=lambda _: None)


@pytest.mark.parametrize("trouble", [PostgresUnavailable("no"), OSError(errno.ENOSPC, "No space left on device")])
def test_a_postgres_that_ended_before_anybody_looked_is_started_until_it_runs(
    tmp_path: Path, trouble: Exception
) -> None:
    stopping = threading.Event()
    fails = [trouble]

    class Postgres:
        running = False
        pid = None

        def restart(self) -> None:
            if fails:
                raise fails.pop()
            stopping.set()

    kept = _postgres(tmp_path, Output("json"), stopping)
    kept._postgres = Postgres()  # type: ignore[assignment]
    kept._keep()
    assert kept.restarts == 1


def test_words_of_postgres_have_the_level_that_it_gave_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def tell(output: Output) -> None:
        kept = _postgres(tmp_path, output, threading.Event())
        kept.log("main FATAL:  out of memory")
        kept.log("main WARNING:  old")

    assert [json.loads(line)["level"] for line in _written(monkeypatch, "json", tell)] == ["error", "warning"]
