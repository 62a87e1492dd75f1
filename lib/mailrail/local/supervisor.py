"""`mailrail local`: the whole of Mailrail on one machine, as processes that this one starts, watches and stops.

Order of start: the state folder's lock, keys, Postgres, migrations, then all services at once and the folder watcher
that publishes the resources; services wait for each other by themselves. `ready` is said when every listener accepts.
Order of stop: ingress before outbound and queue, Postgres last, so that what is under way can still be committed.

A process that ends is started again, with growing pauses; Postgres too (database.py), on the same port. Nothing here
needs POSIX: children are stopped through their standard input, signals are used where they exist.
"""

import asyncio
import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import psycopg

from mailrail.kit import malloc, migrations
from mailrail.kit.files import show_no_boxes
from mailrail.kit.run import new_event_loop
from mailrail.local import example, pki
from mailrail.local.children import Child
from mailrail.local.database import SupervisedPostgres
from mailrail.local.documents import Folder
from mailrail.local.environments import Environments
from mailrail.local.forks import Forks
from mailrail.local.lock import FileLock, LockHeld
from mailrail.local.merged_metrics import MergedMetrics
from mailrail.local.options import (
    INTERNAL,
    INTERNAL_METRICS,
    LATER,
    METRICS,
    POLICIES,
    SERVICES,
    SMTP,
    SUBMISSION,
    SUBMISSIONS,
    WATCHER,
    LocalOptions,
)
from mailrail.local.output import Output
from mailrail.local.ports import TAKEN, dialled, host_port, port_near, why_not_free
from mailrail.local.postgres.account import PostgresUnavailable
from mailrail.local.readiness import Readiness
from mailrail.local.state import Client, StateFolder, UnusableState

_MODULES = {**{name: f"mailrail_{name}" for name in (*SERVICES, *LATER)}, WATCHER: "mailrail.local.folder"}
"""Child → what `python -m` runs."""
_WITHIN = {WATCHER: "mailrail_policy"}
"""Child → the package of a service that runs within it, where that is installed."""


class CannotRun(RuntimeError):
    """Local mode cannot start or cannot go on; the text says why and what to do."""


class Supervisor:
    """One local installation, from start to stop. `run` is called once, in the main thread."""

    def __init__(self, options: LocalOptions) -> None:
        self.options = options
        self.state = StateFolder(options.state.absolute())
        self.output = Output(options.log_format)
        self._stop = threading.Event()
        self._hurry = threading.Event()
        self._failure: str | None = None
        self._forks = Forks()
        self._children: list[Child] = []
        self._postgres: SupervisedPostgres | None = None
        self._metrics: MergedMetrics | None = None

    def run(self) -> None:
        """Start everything, say `ready`, run until told to stop, stop everything. Raises CannotRun."""
        malloc.tune()
        show_no_boxes()
        missing = [s for s in (*SERVICES, *LATER) if find_spec(f"mailrail_{s}") is None]
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
            try:
                # Now: keys and passwords are for the children that are given them, and a database has threads.
                self._forks = Forks.made({module: _within(name) for name, module in _MODULES.items()})
                if self._stop.is_set():  # importing takes a second or two
                    return
                keys = self._keys()
                url = self._database()
                if self._stop.is_set():
                    return
                self._migrate(url)
                targets, metrics = self._addresses()
                environments = Environments(self.options, url, self.state.cache, keys, targets, metrics)
                self._start_children(environments, [name for name in _MODULES if name not in LATER])
                self._start_metrics(metrics)
                self._write_client(targets, {})
                readiness = Readiness(keys.role("cli"), targets, self.options.listen, self.options.resources)
                if self._wait_until(readiness):
                    self._write_client(targets, readiness.listeners)
                    self._introduce(readiness.listeners)
                    self._start_children(environments, LATER)
                self._watch()
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
        """Refuse to start when another process holds one of our ports, before anything was started."""
        own = ((METRICS, "metrics"), (POLICIES, "MTA-STS policies"))
        for planned, what in (*_planned_listeners(self.options.resources), *own):
            problem = why_not_free(self.options.listen, self.options.port(planned))
            if problem is not None:
                taken = (
                    " Is another `mailrail local` or mail server running? Stop it, or"
                    if problem == TAKEN
                    else " Please"
                )
                raise CannotRun(
                    f"cannot listen on {self.options.address(planned)} for {what}: {problem}.{taken} choose other ports"
                    " with --port-offset, or another address with --listen"
                )

    def _database(self) -> str:
        """The URL of the database: the given one, or that of the embedded server, started."""
        if self.options.database_url is not None:
            self.output.say("using the given database; the embedded Postgres stays off")
            return self.options.database_url
        self._postgres = SupervisedPostgres(
            self.state.postgres,
            self.output,
            self._stop,
            verbose=self.options.log_level == "debug",
            started=lambda pid: self.state.write_pid("postgres", pid),
        )
        return self._postgres.start()

    def _migrate(self, url: str) -> None:
        done = migrations.migrate(
            url, say=lambda line: self.output.say(line) if self.options.log_level == "debug" else None
        )
        if done:
            schemas = ", ".join(dict.fromkeys(a.migration.schema for a in done))
            self.output.say(f"database brought up to date: {len(done)} steps in {schemas}")

    def _addresses(self) -> tuple[dict[str, str], dict[str, str]]:
        """HOST:PORT of each service's gRPC server, and of each child's metrics."""
        targets = {s: f"127.0.0.1:{port_near(self.options.port(p))}" for s, p in INTERNAL.items()}
        metrics = {n: f"127.0.0.1:{port_near(self.options.port(p))}" for n, p in INTERNAL_METRICS.items()}
        return targets, metrics

    def _start_children(self, environments: Environments, names: Iterable[str]) -> None:
        for name in names:
            child = Child(
                name,
                [sys.executable, "-m", _MODULES[name]],
                environments.of(name),
                output=self.output.lines,
                say=self.output.warn,
                started=self.state.write_pid,
                hopeless=self._give_up,
                launch=self._forks.launch,
            )
            self._children.append(child)
            child.start()

    def _give_up(self, name: str) -> None:
        self._fail(f"{name} rejects its settings; see its message above")

    def _fail(self, reason: str) -> None:
        if self._failure is None:
            self._failure = reason
        self._stop.set()

    def _start_metrics(self, of_children: dict[str, str]) -> None:
        address = (self.options.listen, self.options.port(METRICS))
        self._metrics = MergedMetrics(address, of_children, self._own_metrics)
        self._metrics.start()

    def _own_metrics(self) -> str:
        restarts = {child.name: child.restarts for child in self._children}
        restarts["postgres"] = 0 if self._postgres is None else self._postgres.restarts
        lines = [
            "# HELP mailrail_local_restarts_total Times that a process of local mode was restarted",
            "# TYPE mailrail_local_restarts_total counter",
            *(f'mailrail_local_restarts_total{{service="{name}"}} {count}' for name, count in restarts.items()),
        ]
        return "\n".join(lines) + "\n"

    def _write_client(self, targets: dict[str, str], listeners: dict[str, str]) -> None:
        """Tell the command line how to reach the services."""
        client = Client(
            targets=targets,
            tls_dir=str(self.state.pki / "cli"),
            listeners=listeners,
            resources=str(self.options.resources.absolute()),
            pid=os.getpid(),
        )
        self.state.write_client(client)

    # --- ready --------------------------------------------------------------------------------------------------

    def _wait_until(self, readiness: Readiness) -> bool:
        """Wait until it is ready, and say meanwhile what is missing. False when told to stop before."""
        said = time.monotonic()
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            while not self._stop.is_set():
                waiting = runner.run(readiness.waiting_for())
                if not waiting:
                    return True
                if time.monotonic() - said > 10:
                    self.output.say(f"still waiting for {', '.join(waiting)}")
                    said = time.monotonic()
                self._stop.wait(0.1)
        return False

    def _introduce(self, listeners: dict[str, str]) -> None:
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
        places = ", ".join(f"{name} {where}" for name, where in listeners.items())
        metrics = f"metrics http://{host_port(dialled(self.options.listen), self.options.port(METRICS))}/metrics"
        self.output.announce(f"mailrail {version('mailrail')} ready: {places}, {metrics}")

    # --- run ----------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        """Sit until told to stop; renew certificates that come near their expiry."""
        renewal = time.monotonic() + 86400
        while not self._stop.wait(0.5):  # short waits: on Windows a signal is seen between them
            if time.monotonic() > renewal:
                self._keys()
                renewal = time.monotonic() + 86400

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Stop on Ctrl-C, on SIGTERM, on the end of the terminal, on Ctrl-Break; a second one stops by force."""

        def on_signal(number: int, _: object) -> None:
            if self._stop.is_set():
                self._hurry.set()
            self._stop.set()

        if threading.current_thread() is not threading.main_thread():
            yield
            return
        names = ["SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK"]
        if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
            names.remove("SIGHUP")  # nohup: it is to outlive its terminal
        before = {n: signal.signal(n, on_signal) for n in (getattr(signal, x) for x in names if hasattr(signal, x))}
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
        self._whatever_happens(self.state.remove_client)
        # First the watcher, so that the configuration stays; then ingress, so that no new mail comes in.
        for name in (WATCHER, "ingress", *LATER, "outbound", "queue", "config"):
            for child in (c for c in self._children if c.name == name):
                self._whatever_happens(partial(self._stop_child, child))
        self._whatever_happens(self._forks.stop)
        if self._metrics is not None:
            self._whatever_happens(self._metrics.stop)
        if self._postgres is not None:
            self._whatever_happens(self._postgres.stop)
            self._whatever_happens(partial(self.state.remove_pid, "postgres"))
        if self._children:
            self.output.say("stopped")

    def _stop_child(self, child: Child) -> None:
        if not child.stop(15.0, self._hurry.is_set) and not self._hurry.is_set():
            self.output.warn(f"{child.name} did not stop in time and was killed; no accepted mail is lost")
        self.state.remove_pid(child.name)

    def _whatever_happens(self, step: Callable[[], object]) -> None:
        """Do a step of the stop. A file that cannot be removed must not keep the next step from being done."""
        try:
            step()
        except OSError as error:
            self.output.warn(f"while stopping: {error}; the next start puts that right")


def _within(child: str) -> tuple[str, ...]:
    package = _WITHIN.get(child)
    return (package,) if package is not None and find_spec(package) is not None else ()


def _planned_listeners(resources: Path) -> list[tuple[int, str]]:
    """Port and name of each listener in the resources; those of the example while there are none."""
    found: list[tuple[int, str]] = []
    for document in Folder(resources).read().documents:
        spec = document.content.get("spec") if document.content.get("kind") == "MailGateway" else None
        listeners = spec.get("listeners") if isinstance(spec, dict) else None
        for listener in listeners if isinstance(listeners, list) else ():
            port = listener.get("port") if isinstance(listener, dict) else None
            if isinstance(port, int) and 0 < port < 65536:
                found.append((port, f"the listener {str(listener.get('name'))[:63]}"))
    return found or [(SMTP, "SMTP"), (SUBMISSION, "submission"), (SUBMISSIONS, "submissions")]
