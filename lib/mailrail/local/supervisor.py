"""`mailrail local`: the whole of Mailrail on one machine, as processes that this one starts, watches and stops.

Order of start: the state folder's lock, keys, Postgres, migrations, then all services at once and the folder watcher
that publishes the resources; services wait for each other by themselves. `ready` is said when every listener accepts.
Order of stop: who takes mail first, Postgres last, so that what is under way can still be committed.

Whatever ends is started again, with growing pauses; Postgres too, on the same port. Nothing here needs POSIX: children
are stopped through their standard input, signals are used where they exist.
"""

import asyncio
import contextlib
import errno
import ipaddress
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import grpc
import psycopg
from grpc_health.v1 import health_pb2, health_pb2_grpc

from mailrail.core.revision.revision import ListenerProtocol, Revision, UnreadableRevision, decode
from mailrail.kit import migrations, rpc
from mailrail.kit.run import new_event_loop
from mailrail.local import example, pki
from mailrail.local.children import Backoff, Child
from mailrail.local.documents import Folder
from mailrail.local.lock import FileLock, LockHeld
from mailrail.local.merged_metrics import MergedMetrics
from mailrail.local.postgres.account import PostgresUnavailable
from mailrail.local.postgres.server import EmbeddedPostgres
from mailrail.local.state import Client, StateFolder, UnusableState
from mailrail.pb.config.v1 import config_pb2, config_pb2_grpc

SMTP, SUBMISSION, SUBMISSIONS, CONSOLE, METRICS = 1025, 1587, 1465, 1080, 1081
"""Ports that people use, before `--port-offset` (design section 10)."""

SERVICES = ("config", "queue", "outbound", "ingress")
"""In the order in which they are worth starting; stopped the other way round."""

WATCHER = "folder"
"""The child that publishes the resources of the folder, in the operator's place."""

INTERNAL = {"config": 1091, "queue": 1092, "outbound": 1093, "ingress": 1094}
"""gRPC ports on 127.0.0.1, before the offset; another one is taken when somebody holds it. Below 32,768, where Linux
begins to hand ports to outgoing connections: a restarted child must find its port free."""

INTERNAL_METRICS = {"config": 1191, "queue": 1192, "outbound": 1193, "ingress": 1194, WATCHER: 1195}
"""Metrics ports of the children, likewise."""

HEALTH_NAMES = {
    "config": "mailrail.config.v1.ConfigService",
    "queue": "mailrail.queue.v1.EnqueueService",
    "outbound": "mailrail.outbound.v1.OutboundService",
    "ingress": "mailrail.ingress.v1.IngressService",
}


class CannotRun(RuntimeError):
    """Local mode cannot start or go on; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class LocalOptions:
    """What the command line decides."""

    state: Path
    resources: Path = Path("mail.d")
    listen: str = "127.0.0.1"
    port_offset: int = 0
    resolver: str | None = None  # HOST:PORT of a DNS server for `direct`
    database_url: str | None = None  # in place of the embedded Postgres
    deliver: bool = False  # send for real; else captive
    log_format: str = "console"
    log_level: str = "info"

    @property
    def loopback_only(self) -> bool:
        """Whether only this machine can connect: a condition for taking any recipient (design section 10)."""
        if self.listen == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.listen).is_loopback
        except ValueError:  # a name; `127.example.org` may be anywhere
            return False

    def port(self, planned: int) -> int:
        """A planned port with the offset."""
        return planned + self.port_offset

    def address(self, planned: int) -> str:
        """HOST:PORT that people connect to."""
        return _host_port(self.listen, self.port(planned))


def _host_port(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class Output:
    """Writes what the children say, one whole line at a time: prefixed for people, or JSON as it comes."""

    def __init__(self, log_format: str) -> None:
        self._json = log_format == "json"
        self._lock = threading.Lock()
        self._stream = sys.stderr.buffer  # standard output is for what people and scripts wait for: login and `ready`

    def lines(self, name: str, lines: list[bytes], level: str = "info") -> None:
        """Lines of a child, without their ends. `level`: of those that are no JSON yet."""
        if self._json:
            block = b"".join(_as_json(name, line, level) for line in lines)
        else:
            prefix = f"{name:<8} | ".encode()
            block = b"".join(prefix + line.rstrip(b"\r") + b"\n" for line in lines)
        with self._lock, contextlib.suppress(OSError, ValueError):
            self._stream.write(block)
            self._stream.flush()

    def say(self, text: str) -> None:
        """Words of the supervisor itself."""
        self.lines("local", text.encode().split(b"\n"))

    def warn(self, text: str) -> None:
        """Words of the supervisor about what should not have happened."""
        self.lines("local", text.encode().split(b"\n"), "warning")

    def announce(self, text: str) -> None:
        """A line on standard output, for people and scripts."""
        with self._lock, contextlib.suppress(OSError, ValueError):
            print(text, flush=True)


def _as_json(name: str, line: bytes, level: str) -> bytes:
    """A line as the services write theirs (kit/log.py)."""
    line = line.rstrip(b"\r")
    if line.startswith(b"{"):
        return line + b"\n"
    event = {"event": line.decode(errors="replace"), "service": name, "level": level, "timestamp": _now()}
    return json.dumps(event, ensure_ascii=False).encode() + b"\n"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


class Supervisor:
    """One local installation, from start to stop. `run` is called once, in the main thread."""

    def __init__(self, options: LocalOptions) -> None:
        self.options = options
        self.state = StateFolder(options.state.absolute())
        self.output = Output(options.log_format)
        self._stop = threading.Event()
        self._hurry = threading.Event()
        self._failure: str | None = None
        self._children: list[Child] = []
        self._postgres: EmbeddedPostgres | None = None
        self._postgres_restarts = 0
        self._keeper: threading.Thread | None = None
        self._metrics: MergedMetrics | None = None
        self._targets: dict[str, str] = {}
        self._listeners: dict[str, str] = {}

    def run(self) -> None:
        """Start everything, say `ready`, run until told to stop, stop everything. Raises CannotRun."""
        missing = [s for s in SERVICES if find_spec(f"mailrail_{s}") is None]
        if missing:
            raise CannotRun(f"not installed: {', '.join(missing)}; install the whole of Mailrail (`make install`)")
        with self._signals():
            try:
                self._with_state()
            except (LockHeld, PostgresUnavailable, UnusableState, migrations.MigrationError) as error:
                raise CannotRun(str(error).strip()) from error
            except psycopg.Error as error:  # out of reach, or a role that may not make our schemas
                hint = (
                    ""
                    if self.options.database_url is None
                    else "\nIs --database-url right, and may its role create schemas?"
                )
                raise CannotRun(f"the database cannot be used: {str(error).strip()}{hint}") from error
            except OSError as error:
                where = error.filename or self.state.folder
                raise CannotRun(
                    f"cannot write or read {where}: {error.strerror or error}; free some space or correct its "
                    f"permissions, or name"
                    " another state folder with --state"
                ) from error
        if self._failure is not None:
            raise CannotRun(self._failure)

    def _with_state(self) -> None:
        try:
            self.state.make()
        except OSError as error:
            raise CannotRun(
                f"cannot create the state folder {self.state.folder}: {error}; name another with --state"
            ) from error
        lock = FileLock(self.state.lock)
        try:
            lock.acquire()
        except LockHeld as error:
            raise CannotRun(
                f"another `mailrail local` runs on {self.state.folder} ({error.holder}). Stop it, or run a second one"
                " beside it with `--state ANOTHER_FOLDER --port-offset 100`"
            ) from error
        with lock:
            self._require_ports()
            keys = self._keys()
            try:
                url = self._database()
                if self._stop.is_set():
                    return
                self._migrate(url)
                self._start_children(url, keys)
                self._start_metrics()
                self.state.write_client(self._client())
                self._wait_until_ready(keys)
                self._watch(keys)
            finally:
                self._stop_everything()

    def _keys(self) -> pki.Pki:
        """Keys and certificates, made or renewed as needed; the SMTP certificate names where we can be reached."""
        names = ["localhost", "127.0.0.1", "::1"]
        if not self.options.loopback_only:
            names += [n for n in (self.options.listen, socket.gethostname()) if n and n not in ("0.0.0.0", "::")]  # noqa: S104
        return pki.ensure(self.state.pki, smtp_names=list(dict.fromkeys(names)))

    # --- start --------------------------------------------------------------------------------------------------

    def _require_ports(self) -> None:
        """Refuse to start when somebody holds one of our ports, before anything was started."""
        for planned, what in (*self._planned_listeners(), (METRICS, "metrics")):
            problem = _cannot_listen(self.options.listen, self.options.port(planned))
            if problem is not None:
                taken = (
                    " Is another `mailrail local` or mail server running? Stop it, or"
                    if problem == _TAKEN
                    else " Please"
                )
                raise CannotRun(
                    f"cannot listen on {self.options.address(planned)} for {what}: {problem}.{taken} choose other ports"
                    " with --port-offset, or another address with --listen"
                )

    def _planned_listeners(self) -> list[tuple[int, str]]:
        """Port and name of each listener that the resources ask for; those of the example before there are any."""
        found: list[tuple[int, str]] = []
        for document in Folder(self.options.resources).read().documents:
            spec = document.content.get("spec") if document.content.get("kind") == "MailGateway" else None
            listeners = spec.get("listeners") if isinstance(spec, dict) else None
            for listener in listeners if isinstance(listeners, list) else ():
                port = listener.get("port") if isinstance(listener, dict) else None
                if isinstance(port, int) and 0 < port < 65536:
                    found.append((port, f"the listener {str(listener.get('name'))[:63]}"))
        return found or [(SMTP, "SMTP"), (SUBMISSION, "submission"), (SUBMISSIONS, "submissions")]

    def _database(self) -> str:
        """The URL of the database: the given one, or that of the embedded server, started."""
        if self.options.database_url is not None:
            self.output.say("using the given database; the embedded Postgres stays off")
            return self.options.database_url
        new = not self.state.postgres.exists()
        self.output.say("making the database, once" if new else "starting Postgres")
        self._postgres = EmbeddedPostgres(self.state.postgres, log=self._postgres_says)
        self._postgres.start()
        self._note_postgres()
        self._keeper = threading.Thread(target=self._keep_postgres, name="postgres", daemon=True)
        self._keeper.start()
        return self._postgres.url()

    def _postgres_says(self, line: str) -> None:
        if self.options.log_level == "debug" or not any(
            noise in line
            for noise in (" LOG: ", "the database system is ", "terminating connection due to administrator")
        ):
            severity = next((level for word, level in _SEVERITIES if word in line), "info")
            self.output.lines("postgres", [line.encode()], severity)

    def _note_postgres(self) -> None:
        if self._postgres is not None and (pid := self._postgres.pid) is not None:
            self.state.write_pid("postgres", pid)

    def _keep_postgres(self) -> None:
        """Start Postgres again, on the same port, whenever it ends before we stop it."""
        assert self._postgres is not None
        backoff = Backoff()
        what = "Postgres ended"  # before anybody looked
        while not self._stop.is_set():
            began = time.monotonic()
            if self._postgres.running:
                status = self._postgres.wait()
                if self._stop.is_set():
                    return
                what = f"Postgres ended (exit status {status})"
            pause = backoff.after(time.monotonic() - began)
            self.output.warn(f"{what}; restarting it in {pause:g} s")
            if self._stop.wait(pause):
                return
            try:
                self._postgres.restart()
                self._postgres_restarts += 1
                self._note_postgres()
                self.output.say("Postgres is back")
            except (PostgresUnavailable, OSError) as error:  # a full disk is no reason to give it up
                what = str(error)

    def _migrate(self, url: str) -> None:
        done = migrations.migrate(
            url, say=lambda line: self.output.say(line) if self.options.log_level == "debug" else None
        )
        if done:
            schemas = ", ".join(dict.fromkeys(a.migration.schema for a in done))
            self.output.say(f"database brought up to date: {len(done)} steps in {schemas}")

    def _start_children(self, url: str, keys: pki.Pki) -> None:
        self._targets = {s: f"127.0.0.1:{_port_for(self.options.port(INTERNAL[s]))}" for s in SERVICES}
        self._metrics_of = {n: f"127.0.0.1:{_port_for(self.options.port(p))}" for n, p in INTERNAL_METRICS.items()}
        for name in (*SERVICES, WATCHER):
            module = "mailrail.local.folder" if name == WATCHER else f"mailrail_{name}"
            child = Child(
                name,
                [sys.executable, "-m", module],
                self._environment(name, url, keys),
                output=self.output.lines,
                say=self.output.warn,
                started=self.state.write_pid,
                hopeless=self._give_up,
            )
            self._children.append(child)
            child.start()

    def _environment(self, name: str, url: str, keys: pki.Pki) -> dict[str, str]:
        """The settings of a child (kit/settings.py). Ours replace any that this process was started with."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith("MAILRAIL_")}
        environment |= {"PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}
        options = self.options
        role = "operator" if name == WATCHER else name
        values = {
            "node_id": f"local-{name}",
            "metrics_listen": self._metrics_of[name],
            "tls_dir": str(keys.role(role)),
            "sealing_keys_dir": str(keys.sealing_keys),
            "cache_dir": str(self.state.cache),
            "log_format": options.log_format,
            "log_level": options.log_level,
            "stop_with_parent": "true",
        }
        if name != WATCHER:
            values["grpc_listen"] = self._targets[name]
        if name != "config":
            values["config_target"] = self._targets["config"]
        values |= self._special(name, url, keys)
        return environment | {f"MAILRAIL_{name.upper()}_{key.upper()}": value for key, value in values.items()}

    def _special(self, name: str, url: str, keys: pki.Pki) -> dict[str, str]:
        """Settings that only this child has."""
        options = self.options
        match name:
            case "config":
                return {"database_url": url}
            case "queue":
                return {"database_url": url}
            case "ingress":
                return {
                    "queue_target": self._targets["queue"],
                    "outbound_target": self._targets["outbound"],
                    "smtp_listen": options.listen,
                    "resolver": options.resolver or "",
                }
            case "outbound":
                return {
                    "queue_target": self._targets["queue"],
                    "captive": str(not options.deliver).lower(),
                    "resolver": options.resolver or "",
                    "own_mx": options.address(SMTP),
                }
            case _:
                return {
                    "resources": str(options.resources.absolute()),
                    "captive": str(not options.deliver and options.loopback_only).lower(),
                    "port_offset": str(options.port_offset),
                    "certificate": str(keys.smtp_certificate),
                    "certificate_key": str(keys.smtp_key),
                }

    def _give_up(self, name: str) -> None:
        self._fail(f"{name} rejects its settings; see its message above")

    def _fail(self, reason: str) -> None:
        if self._failure is None:
            self._failure = reason
        self._stop.set()

    def _start_metrics(self) -> None:
        address = (self.options.listen, self.options.port(METRICS))
        self._metrics = MergedMetrics(address, self._metrics_of, self._own_metrics)
        self._metrics.start()

    def _own_metrics(self) -> str:
        lines = [
            "# HELP mailrail_local_restarts_total Times that a process of local mode was restarted",
            "# TYPE mailrail_local_restarts_total counter",
            *(f'mailrail_local_restarts_total{{service="{c.name}"}} {c.restarts}' for c in self._children),
            f'mailrail_local_restarts_total{{service="postgres"}} {self._postgres_restarts}',
        ]
        return "\n".join(lines) + "\n"

    def _client(self) -> Client:
        return Client(
            targets=self._targets,
            tls_dir=str(self.state.pki / "cli"),
            listeners=self._listeners,
            resources=str(self.options.resources.absolute()),
            pid=os.getpid(),
        )

    # --- ready --------------------------------------------------------------------------------------------------

    def _wait_until_ready(self, keys: pki.Pki) -> None:
        """Wait for every service to serve and every listener to accept, and say so; meanwhile say what is missing."""
        told = time.monotonic()
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            while not self._stop.is_set():
                waiting = runner.run(self._waiting_for(keys))
                if not waiting:
                    break
                if time.monotonic() - told > 10:
                    self.output.say(f"still waiting for {', '.join(waiting)}")
                    told = time.monotonic()
                self._stop.wait(0.1)
        if self._stop.is_set():
            return
        self.state.write_client(self._client())
        self._introduce()

    async def _waiting_for(self, keys: pki.Pki) -> list[str]:
        """What is not there yet, in words; empty when everything accepts."""
        identity = rpc.Identity.read(keys.role("cli"))
        if not await self._serving(identity, "config"):
            return ["config"]
        revision = await self._revision_in_force(identity)
        if revision is None:
            return [f"a first configuration from {self.options.resources}"]
        if not any(gateway.listeners for gateway in revision.gateways):
            return [f"a MailGateway with a listener (`mailrail config check {self.options.resources}` finds mistakes)"]
        waiting = [s for s in SERVICES if not await self._serving(identity, s)]
        if waiting:
            return waiting
        self._listeners = self._listeners_of(revision)
        closed = [where for where in self._listeners.values() if not _accepts(where)]
        return [f"a listener on {where}" for where in closed]

    async def _serving(self, identity: rpc.Identity, service: str) -> bool:
        async with rpc.identity_channel(identity, self._targets[service], service) as channel:
            stub: health_pb2_grpc.HealthAsyncStub = health_pb2_grpc.HealthStub(channel)
            try:
                answer = await stub.Check(health_pb2.HealthCheckRequest(service=HEALTH_NAMES[service]), timeout=2)
            except grpc.aio.AioRpcError:
                return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    async def _revision_in_force(self, identity: rpc.Identity) -> Revision | None:
        async with rpc.identity_channel(identity, self._targets["config"], "config") as channel:
            stub: config_pb2_grpc.ConfigServiceAsyncStub = config_pb2_grpc.ConfigServiceStub(channel)
            try:
                answer = await stub.GetRevision(config_pb2.GetRevisionRequest(), timeout=5)
                return decode(answer.body) if answer.body else None
            except (grpc.aio.AioRpcError, UnreadableRevision):
                return None

    def _listeners_of(self, revision: Revision) -> dict[str, str]:
        return {
            f"{listener.name} ({_SPOKEN[listener.protocol]})": _host_port(_dialled(self.options.listen), listener.port)
            for gateway in revision.gateways
            for listener in gateway.listeners
        }

    def _introduce(self) -> None:
        mode = (
            "mail is sent for real (--deliver)"
            if self.options.deliver
            else "captive: only this machine is dialled; other mail is captured in mailboxes `Captured`; "
            "--deliver sends it"
        )
        self.output.announce(mode)
        login = example.login(self.options.resources)
        if login is not None:
            self.output.announce(f"login of the example account: {login.login}, password {login.password}")
        places = ", ".join(f"{name} {where}" for name, where in self._listeners.items())
        metrics = f"metrics http://{_host_port(_dialled(self.options.listen), self.options.port(METRICS))}/metrics"
        self.output.announce(f"mailrail {version('mailrail')} ready: {places}, {metrics}")

    # --- run ----------------------------------------------------------------------------------------------------

    def _watch(self, keys: pki.Pki) -> None:
        """Sit until told to stop; renew certificates that come near their expiry."""
        renewal = time.monotonic() + 86400
        while not self._stop.wait(0.5):  # short waits: on Windows a signal is seen between them
            if time.monotonic() > renewal:
                self._keys()
                renewal = time.monotonic() + 86400

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Stop on Ctrl-C, on SIGTERM, on the end of the terminal, on Ctrl-Break; a second one stops by force."""

        def told(number: int, _: object) -> None:
            if self._stop.is_set():
                self._hurry.set()
            self._stop.set()

        if threading.current_thread() is not threading.main_thread():
            yield
            return
        names = ["SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK"]
        if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
            names.remove("SIGHUP")  # nohup: it is to outlive its terminal
        before = {n: signal.signal(n, told) for n in (getattr(signal, x) for x in names if hasattr(signal, x))}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def stop(self) -> None:
        """Ask it to stop, from any thread."""
        self._stop.set()

    # --- stop ---------------------------------------------------------------------------------------------------

    def _stop_everything(self) -> None:
        self._stop.set()
        if self._children:
            self.output.say("stopping after the mail under way; press Ctrl-C again to stop at once")
        self.state.client_file.unlink(missing_ok=True)
        # The watcher changes nothing any more, ingress takes no more mail, outbound finishes, the queue commits.
        for name in (WATCHER, "ingress", "outbound", "queue", "config"):
            for child in (c for c in self._children if c.name == name):
                if not child.stop(15.0, self._hurry.is_set) and not self._hurry.is_set():
                    self.output.warn(f"{name} did not stop in time and was killed; no accepted mail is lost")
                self.state.remove_pid(name)
        if self._metrics is not None:
            self._metrics.stop()
        if self._postgres is not None:
            self._postgres.stop()
            if self._keeper is not None:
                self._keeper.join(10)
            self.state.remove_pid("postgres")
        if self._children:
            self.output.say("stopped")


_SPOKEN = {
    ListenerProtocol.MX: "SMTP",
    ListenerProtocol.SUBMISSION: "STARTTLS, login",
    ListenerProtocol.SUBMISSIONS: "TLS, login",
}


def _dialled(listen: str) -> str:
    """The address to connect to for one that is listened on."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(listen, listen)  # noqa: S104  # compared, not bound


_SEVERITIES = (
    (" PANIC: ", "error"),
    (" FATAL: ", "error"),
    (" ERROR: ", "error"),
    (" WARNING: ", "warning"),
)
"""Postgres's words for how bad it is, and ours."""
_TAKEN = "the port is taken"


def _cannot_listen(host: str, port: int) -> str | None:
    """Why nobody can listen there now; None when it is free."""
    if not 0 < port < 65536:
        return f"{port} is not a port number; --port-offset is too large"
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with contextlib.closing(socket.socket(family, socket.SOCK_STREAM)) as probe:
        if sys.platform != "win32":  # connections of a moment ago do not matter; on Windows it means something else
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return _TAKEN
            return str(error.strerror or error)
    return None


def _port_for(wanted: int) -> int:
    """The wanted port on 127.0.0.1, or one that the system gives when that is taken."""
    if _cannot_listen("127.0.0.1", wanted) is None:
        return wanted
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _accepts(where: str) -> bool:
    host, _, port = where.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=1):
            return True
    except OSError:
        return False
