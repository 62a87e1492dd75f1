"""Two Postgres servers, a primary and its streaming standby, behind one address: for failovers.

    with pair(synchronous=True) as servers:
        migrations.migrate(servers.url, migrations.load_all(("queue",)))
        async with running_queue(servers.url) as q:
            ...
            await servers.aside(servers.standby.stop)           # commits wait from now on
            await servers.aside(servers.primary.end_backends)   # ... and here they do not
            await servers.aside(servers.fail_over)              # the standby has the address now

`servers.url` leads to the primary through a proxy, as a Service or a floating address does; after `fail_over` new
connections go to the promoted server. `servers.both_url` names both, as libpq's `target_session_attrs` is used. All
operations block until they are done; `aside` runs one in a thread, for tests whose queue lives in the same loop.

`Ledger` counts every recipient of a run: accepted, delivered at the sink, failed, in the queue, lost, doubled.

The servers are those of the other tests (`MAILRAIL_TEST_POSTGRES` names another version) and end with them.
"""

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import psycopg
from psycopg import sql

from mailrail.local.postgres.binaries import Binaries
from mailrail.local.postgres.server import DATABASE, OWNER, SUPERUSER, EmbeddedPostgres

from testkit.conditions import wait_until
from testkit.faultproxy import FaultProxy
from testkit.postgres import SETTINGS
from testkit.processes import frozen

T = TypeVar("T")

REPLICATING = {
    "wal_keep_size": "256MB",  # a standby that was away finds what it missed
    "wal_retrieve_retry_interval": "200ms",  # and looks for it soon
    "wal_receiver_status_interval": "1s",
}
"""Settings of both servers over those of other tests."""


class Server:
    """One of the two. Every operation returns when it is done."""

    def __init__(self, folder: Path, programs: Binaries | None, **settings: str) -> None:
        self.folder = folder
        self.postgres = EmbeddedPostgres(folder, settings={**SETTINGS, **REPLICATING, **settings}, binaries=programs)
        self._copies = 0

    # --- what it is ---

    @property
    def url(self) -> str:
        """Straight to this server, as the role of the services."""
        return self.postgres.url(DATABASE)

    def program(self, name: str) -> str:
        """The path of one of its programs, such as `pg_dump`."""
        binaries = self.postgres._binaries
        assert binaries is not None, "it was never started"
        return binaries.program(name)

    @property
    def running(self) -> bool:
        """Whether its postmaster is there."""
        return self.postgres.running

    @property
    def is_standby(self) -> bool:
        """Whether it follows another (and refuses to write)."""
        return bool(self.one("SELECT pg_is_in_recovery()"))

    def sql(self, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """Rows of a query of the superuser in the services' database; each statement commits by itself, and waits for
        no standby."""
        with psycopg.connect(self.postgres.superuser_url(DATABASE), autocommit=True, connect_timeout=5) as connection:
            connection.execute("SET synchronous_commit = local")
            cursor = connection.execute(query.encode(), parameters or None)
            return cursor.fetchall() if cursor.description else []

    def one(self, query: str, *parameters: Any) -> Any:
        """The one value that a query gives."""
        rows = self.sql(query, *parameters)
        return rows[0][0] if rows else None

    def waits(self, application: str) -> int:
        """How many backends of this application (a part of its name) have committed and wait for the standby."""
        query = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND application_name LIKE %s"
        return int(self.one(query, f"%{application}%"))

    # --- its life ---

    def start(self) -> None:
        """Start it, on the port that it had; it accepts connections."""
        port = self.postgres._port
        self.postgres.start()
        assert port in (None, self.postgres.port), "another program took the port meanwhile"

    def stop(self) -> None:
        """A clean stop: sessions end, all that was committed is on disk (pg_ctl stop -m fast)."""
        self.postgres.halt()

    def stop_immediately(self) -> None:
        """End it without a word, as `pg_ctl stop -m immediate` and a power cut do: the next start recovers."""
        self._signal(signal.SIGQUIT)

    def kill(self) -> None:
        """SIGKILL to the postmaster; its backends end when they notice."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        pid = self.postgres.pid
        assert pid is not None, "it does not run"
        os.kill(pid, number)
        assert self.postgres.wait(60) is not None, "it goes on"

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """SIGSTOP to all of its processes, as a volume that stalls: connections stand, and nothing answers."""
        pid = self.postgres.pid
        assert pid is not None, "it does not run"
        with frozen(pid, descendants=True):
            yield

    def restart(self) -> None:
        """A clean stop and a start (pg_ctl restart -m fast)."""
        self.stop()
        self.start()

    def restart_with(self, **settings: str) -> None:
        """The same with other settings on its command line, which no ALTER SYSTEM reaches."""
        self.stop()
        self.postgres._settings.update(settings)
        self.start()

    def end_backends(self, application: str = "") -> int:
        """pg_terminate_backend for those whose application's name has this in it; how many there were."""
        rows = self.sql(
            "SELECT pid FROM pg_stat_activity, pg_terminate_backend(pid)"
            " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() AND application_name LIKE %s",
            f"%{application}%",
        )
        wait_until(
            lambda: not self.one("SELECT count(*) FROM pg_stat_activity WHERE pid = ANY(%s)", [pid for (pid,) in rows])
        )
        return len(rows)

    def kill_backend(self, application: str) -> None:
        """SIGKILL to one backend of that application: the postmaster ends all others and recovers."""
        began = self.one("SELECT pg_postmaster_start_time()"), self._backends_since()
        os.kill(int(self.one("SELECT pid FROM pg_stat_activity WHERE application_name LIKE %s", f"%{application}%")), 9)
        # The checkpointer is new after a crash; the postmaster is not.
        wait_until(
            lambda: self._backends_since() > began[1],
            60,
            "recovery after a crash",
            ignoring=(psycopg.OperationalError,),
        )

    def _backends_since(self) -> Any:
        return self.one("SELECT backend_start FROM pg_stat_activity WHERE backend_type = 'checkpointer'")

    def set(self, name: str, value: str) -> None:
        """ALTER SYSTEM, in force when this returns. Empty: the default."""
        statement = sql.SQL("ALTER SYSTEM SET {} = {}").format(sql.Identifier(name), sql.Literal(value))
        with psycopg.connect(self.postgres.superuser_url(), autocommit=True) as connection:
            connection.execute(statement)
        self.sql("SELECT pg_reload_conf()")
        wait_until(lambda: self.one("SELECT current_setting(%s)", name) == value, what=f"{name} = {value!r}")

    # --- as a standby ---

    def pause(self) -> None:
        """Receive nothing more from the primary, and be a lagging standby from now on."""
        self.set("primary_conninfo", "")
        wait_until(lambda: not self.one("SELECT count(*) FROM pg_stat_wal_receiver"), what="the walreceiver ends")

    def promote(self) -> None:
        """Be a primary. What was received and not replayed yet is replayed first."""
        assert self.one("SELECT pg_promote(true, 60)")

    # --- its data ---

    def copy(self) -> Path:
        """Stop it cleanly, copy its data folder, start it: a backup or a volume's snapshot."""
        self._copies += 1
        place = self.folder / f"copy-{self._copies}"
        self.stop()
        _copy(self.postgres.data, place)
        self.start()
        return place

    def put_back(self, copy: Path) -> None:
        """Stop it, put a copy of its data in the place of what it has, start it: same timeline, same identity."""
        self.stop()
        shutil.rmtree(self.postgres.data)
        _copy(copy, self.postgres.data)
        self.start()

    def follow(self, primary: "Server") -> None:
        """Be a standby of `primary`, from a fresh copy of it; what was here is forgotten."""
        self.postgres.halt()
        data = self.folder / "data"
        shutil.rmtree(data, ignore_errors=True)
        data.mkdir(mode=0o700, parents=True)
        self.folder.chmod(0o711)
        shutil.copy(primary.folder / "passwords.json", self.folder / "passwords.json")
        running = primary.postgres
        account = running._account
        if account is not None:
            os.chown(data, account.uid, account.gid)
        assert running._binaries is not None
        options = running._command_options()
        # Into a file of the data folder that only Postgres reads; not onto a command line.
        options["env"] |= {"PGPASSWORD": running._passwords[SUPERUSER]}
        command = [running._binaries.program("pg_basebackup"), "-D", str(data), "-R", "-X", "stream", "-c", "fast"]
        command += ["--no-sync", "-h", "127.0.0.1", "-p", str(running.port), "-U", SUPERUSER]
        done = subprocess.run(command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)
        assert done.returncode == 0, done.stdout.decode(errors="replace")
        self.start()


def _copy(source: Path, target: Path) -> None:
    """A folder with its owner and modes."""
    subprocess.run(["cp", "-a", str(source), str(target)], check=True)


class Pair:
    """See the module."""

    def __init__(self, folder: Path, programs: Binaries | None, *, synchronous: bool, **settings: str) -> None:
        self.primary = Server(folder / "a", programs, **settings)
        self.standby = Server(folder / "b", programs, **settings)
        self._servers = (self.primary, self.standby)
        self.proxy: FaultProxy | None = None
        try:
            self.primary.start()
            self.standby.follow(self.primary)
            if synchronous:
                self.primary.set("synchronous_standby_names", "*")
            self.proxy = FaultProxy(("127.0.0.1", self.primary.postgres.port))
            self.wait_until_followed(synchronous=synchronous)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End both servers and the address."""
        if self.proxy is not None:
            self.proxy.close()
        for server in self._servers:
            server.postgres.stop()

    @property
    def url(self) -> str:
        """The one address: it leads to the primary, after a failover to the promoted server."""
        assert self.proxy is not None
        password = urlsplit(self.primary.url).password
        return f"postgresql://{OWNER}:{password}@{self.proxy.endpoint}/{DATABASE}"

    @property
    def both_url(self) -> str:
        """Both servers by name, for a client that looks for the one that writes."""
        password = urlsplit(self.primary.url).password
        hosts = ",".join(f"127.0.0.1:{server.postgres.port}" for server in self._servers)
        return f"postgresql://{OWNER}:{password}@{hosts}/{DATABASE}?target_session_attrs=read-write"

    async def aside(self, operation: Callable[..., T], *arguments: Any) -> T:
        """Run an operation in a thread, while the test's loop goes on."""
        return await asyncio.to_thread(operation, *arguments)

    def wait_until_followed(self, *, synchronous: bool = False) -> None:
        """Wait until the standby has replayed all that the primary has written (and counts for its commits)."""
        states = ("sync", "quorum") if synchronous else ("sync", "quorum", "async", "potential")
        wait_until(
            lambda: self.primary.one(
                "SELECT count(*) FROM pg_stat_replication WHERE sync_state = ANY(%s) AND state = 'streaming'"
                " AND replay_lsn >= pg_current_wal_lsn()",
                list(states),
            ),
            60,
            "the standby follows",
        )

    def lead_to(self, server: Server, *, cut: bool = True) -> None:
        """New connections by the one address go to `server`. `cut`: those that stand are reset; else they are kept, as
        kube-proxy keeps them."""
        assert self.proxy is not None
        self.proxy.target = ("127.0.0.1", server.postgres.port)
        if cut:
            self.proxy.cut()

    def fail_over(self, end: Callable[[Server], None] = Server.stop_immediately) -> None:
        """The primary ends, by default without a word; the standby is promoted, commits alone, and has the address."""
        if self.primary.running:
            end(self.primary)
        if not self.standby.running:
            self.standby.start()
        self.standby.promote()
        self.standby.set("synchronous_standby_names", "")
        self.primary, self.standby = self.standby, self.primary
        self.lead_to(self.primary)


@contextlib.contextmanager
def pair(*, synchronous: bool = False, programs: Path | None = None, **settings: str) -> Iterator[Pair]:
    """A primary with a standby, in folders of their own that are removed with all that is in them."""
    with _folder() as (folder, binaries):
        servers = Pair(folder, _binaries_of(programs) or binaries, synchronous=synchronous, **settings)
        try:
            yield servers
        finally:
            servers.close()


@contextlib.contextmanager
def single(*, programs: Path | None = None, **settings: str) -> Iterator[Server]:
    """One server alone, for what needs no standby: copies that are put back."""
    with _folder() as (folder, binaries):
        server = Server(folder / "a", _binaries_of(programs) or binaries, **settings)
        try:
            server.start()
            yield server
        finally:
            server.postgres.stop()


def _binaries_of(programs: Path | None) -> Binaries | None:
    return Binaries(programs) if programs else None


@contextlib.contextmanager
def _folder() -> Iterator[tuple[Path, Binaries | None]]:
    other = os.environ.get("MAILRAIL_TEST_POSTGRES")
    folder = Path(tempfile.mkdtemp(prefix="mailrail-failover-"))
    folder.chmod(0o711)  # as root the servers run as a user of their own, which must pass through
    try:
        yield folder, _binaries_of(Path(other) if other else None)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# --- the ledger -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Count:
    """Where every recipient of a run is. A recipient stands in one set of each line, by its address."""

    accepted: frozenset[str]
    """250 was said."""
    refused: frozenset[str]

    delivered: frozenset[str]
    """At the sink."""
    doubled: frozenset[str]
    """More than once at the sink."""

    queued: frozenset[str]
    """Live in the database: waiting, leased or on hold."""
    failed: frozenset[str]
    """Final in the database, and not delivered."""
    said_delivered: frozenset[str]
    """Final in the database as delivered."""

    @property
    def lost(self) -> frozenset[str]:
        """Accepted, and neither at the sink nor in the database in any way."""
        return self.accepted - self.delivered - self.queued - self.failed - self.said_delivered

    @property
    def ended_unsent(self) -> frozenset[str]:
        """The database says that it was delivered, and the sink never saw it: lost with a lie about it."""
        return self.said_delivered - self.delivered

    @property
    def refused_and_sent(self) -> frozenset[str]:
        """Refused, and yet at the sink."""
        return self.refused & self.delivered

    def __str__(self) -> str:
        names = ("accepted", "refused", "delivered", "queued", "failed", "lost", "ended_unsent", "doubled")
        return ", ".join(f"{len(getattr(self, name))} {name.replace('_', ' ')}" for name in names)


@dataclass
class Ledger:
    """Every recipient of a run, each with an address of its own."""

    accepted: set[str] = field(default_factory=set)
    refused: set[str] = field(default_factory=set)
    sent: Counter[str] = field(default_factory=Counter)
    """How often each was at the sink."""

    def count(self, server: Server) -> Count:
        """Hold what was said and sent against what `server` has."""
        rows = server.sql(
            "SELECT address, 0 AS state FROM queue.recipient UNION ALL SELECT address, state FROM queue.history"
        )
        by_state: dict[int, set[str]] = {}
        for address, state in rows:
            by_state.setdefault(state, set()).add(address)
        queued, delivered = by_state.pop(0, set()), by_state.pop(3, set())
        return Count(
            frozenset(self.accepted),
            frozenset(self.refused),
            frozenset(self.sent),
            frozenset(address for address, times in self.sent.items() if times > 1),
            frozenset(queued),
            frozenset(address for found in by_state.values() for address in found),
            frozenset(delivered),
        )

    def settled(self, server: Server, within: float = 60.0) -> Count:
        """Wait until nothing is in the queue any more; where everything is then."""
        wait_until(lambda: not self.count(server).queued, within, lambda: f"all is final: {self.count(server)}")
        return self.count(server)
