"""Several replicas of each service on one Postgres, without Kubernetes: what a message costs with 1, 2 and 4 of them.

A stand-in plays the config service; ingress, queue and outbound are the real ones. There is no mTLS between them.
"""

import contextlib
import smtplib
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psycopg

from bench.alone import make_folder, start_service, start_stand_in, wait_until_up
from bench.load import Sink
from bench.side import HERE
from mailrail.kit import migrations
from mailrail.local.postgres.server import EmbeddedPostgres

from testkit.conditions import wait_until
from testkit.ports import free_port, loopback_address


@dataclass(frozen=True)
class Fleet:
    """Running replicas."""

    listen: tuple[tuple[str, int], ...]
    """Where each ingress listens."""
    parts: Mapping[str, list[int]]
    url: str
    """Of the database, for its superuser."""

    def owners(self) -> int:
        """Queues that own shards; 0 while a shard has no owner."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            row = connection.execute(_OWNERS).fetchone()
        assert row is not None
        return int(row[0])

    def counted(self) -> "Counted":
        """What Postgres did so far. A session that has nothing to do tells its counters after ten seconds."""
        time.sleep(11)
        with psycopg.connect(self.url, autocommit=True) as connection:
            row = connection.execute(_COUNTED).fetchone()
        assert row is not None
        return Counted(int(row[0]), int(row[1]))

    @contextlib.contextmanager
    def waiting(self) -> Iterator[list[int]]:
        """During the context, five times a second: database sessions that wait for a lock of another one."""
        seen: list[int] = []
        stop = threading.Event()

        def look() -> None:
            with psycopg.connect(self.url, autocommit=True) as connection:
                while not stop.wait(0.2):
                    row = connection.execute(_WAITING).fetchone()
                    assert row is not None
                    seen.append(int(row[0]))

        thread = threading.Thread(target=look, daemon=True)
        thread.start()
        try:
            yield seen
        finally:
            stop.set()
            thread.join()


@dataclass(frozen=True)
class Counted:
    """Counters of Postgres."""

    transactions: int
    wal_octets: int


_COUNTED = """SELECT (SELECT sum(xact_commit + xact_rollback) FROM pg_stat_database),
    pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint"""
_OWNERS = "SELECT CASE WHEN bool_and(owner IS NOT NULL) THEN count(DISTINCT owner) ELSE 0 END FROM queue.shard"
_WAITING = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"


_POSTGRES = {"max_connections": "200"}
"""Local mode needs fewer: it has one queue."""


@contextlib.contextmanager
def fleet(replicas: int, sink: Sink) -> Iterator[Fleet]:
    """So many of ingress, queue and outbound each."""
    port = free_port()  # the revision names one port for every ingress; each has an address of its own
    addresses = [loopback_address() for _ in range(replicas)]
    queues = [f"127.0.0.1:{free_port()}" for _ in range(replicas)]
    already = sink.count()
    with contextlib.ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mailrail-fleet-")))
        place.chmod(0o711)  # as root the server runs as a user of its own, which must pass through
        postgres = stack.enter_context(EmbeddedPostgres(place / "server", settings=_POSTGRES))
        assert postgres.pid is not None
        migrations.migrate(postgres.url())
        keys, log = make_folder(stack)
        arguments = ["--listen-port", str(port), "--sink", f"{sink.address}:{sink.port}"]
        _, found = start_stand_in(stack, HERE, "bench.stand_in", arguments, log, rb"serving on (\S+)")
        config = {"CONFIG_TARGET": found[1].decode()}
        parts: dict[str, list[int]] = {"ingress": [], "queue": [], "outbound": [], "postgres": [postgres.pid]}

        def start(name: str, number: int, settings: Mapping[str, str]) -> None:
            own = config | {"NODE_ID": f"{name}-{number}"} | dict(settings)
            process = stack.enter_context(start_service(name, own, keys, HERE, log))
            parts[name].append(process.pid)
            if name == "ingress":
                wait_until_up(process, addresses[number], port, f"{name} {number}", log, HERE)
            elif name == "queue":
                host, _, own_port = queues[number].rpartition(":")
                wait_until_up(process, host, int(own_port), f"{name} {number}", log, HERE)

        for number in range(replicas):
            listen = {"GRPC_LISTEN": queues[number], "DATABASE_URL": postgres.url()}
            start("queue", number, listen)
        for number in range(replicas):
            start("outbound", number, {"QUEUE_TARGET": ",".join(queues), "CAPTIVE": "true"})
        for number in range(replicas):
            start("ingress", number, {"QUEUE_TARGET": queues[number], "SMTP_LISTEN": addresses[number]})
        running = Fleet(tuple((address, port) for address in addresses), parts, postgres.url())
        wait_until(lambda: running.owners() == replicas, 60, f"{replicas} queues share all shards")
        for address in addresses:
            wait_until(lambda at=address: _takes_mail(at, port), 60, f"the ingress at {address} takes mail")  # type: ignore[misc]
        wait_until(lambda: sink.count() - already >= replicas, 60, "what was tried is delivered")
        yield running


def _takes_mail(address: str, port: int) -> bool:
    with smtplib.SMTP(address, port, timeout=30) as client:
        client.sendmail("source@source.test", ["sink@sink.test"], b"Subject: first\r\n\r\n")
    return True
