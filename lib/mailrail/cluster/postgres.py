"""The bundled Postgres of the chart, for trying out: the embedded one of local mode, reached by other pods.

One server, no replica, no backup: mail is as safe as the volume below it. It runs as any user that /etc/passwd knows
(initdb asks for the name), from our own image, so that trying out needs no other one. Every client logs in with SCRAM.

The data are in the subfolder `data` of its folder, so a volume may bring a `lost+found` of its own. Two servers never
share them: whoever has the lock of the folder is the only one, also where a pod that was deleted by force still runs
beside the one that replaced it on the same node; on other nodes the volume itself (ReadWriteOnce) keeps it away.
"""

import os
import signal
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psycopg
from psycopg import sql

from mailrail.cluster import POSTGRES_PORT, metrics
from mailrail.kit import metrics as kit_metrics
from mailrail.local.files import write_private
from mailrail.local.lock import LockHeld
from mailrail.local.postgres.account import PostgresUnavailable
from mailrail.local.postgres.server import OWNER, EmbeddedPostgres

STOP_GRACE = 50.0
"""Seconds for a fast shutdown. The chart's terminationGracePeriodSeconds is longer: what is killed has to recover."""
PREDECESSOR_GRACE = 300.0
"""Seconds to wait for another server on the same folder, as a pod that was deleted by force may be for a while."""


def serve(
    folder: Path,
    password: Callable[[], str],
    *,
    port: int = POSTGRES_PORT,
    listen: str = "*",
    buffers: str = "128MB",
    metrics_listen: str = "",
) -> int:
    """Run it in the foreground until SIGTERM or SIGINT; the exit status.

    `password` reads that of the services' role; where it answers another one than before, the role gets it within
    seconds: the Secret may be made anew while this goes on. `metrics_listen`: HOST:PORT of /metrics; empty: nowhere.
    Raises PostgresUnavailable, BadSettings.
    """
    stop = threading.Event()
    server = EmbeddedPostgres(
        folder,
        port=port,
        settings={
            "listen_addresses": listen,
            "shared_buffers": buffers,
            "max_wal_size": "1GB",
            "max_connections": "200",  # several pods of queue, config and outbound, and those of a roll-out beside them
        },
        log=_say,
        grace=STOP_GRACE,
    )

    def on_signal(*_: object) -> None:
        stop.set()
        # Also out of a recovery that takes long; not in the handler, which may interrupt whoever holds the same locks.
        threading.Thread(target=server.halt, daemon=True).start()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    try:
        if not _take(server, stop):
            return 0
        _admit_others(server.data)
        _close_to_others(server.data)
    except OSError as error:
        raise PostgresUnavailable(
            f"{folder} cannot be used by user {_user()}: {error}. Use a volume that honours fsGroup"
            " (podSecurityContext), or make that user the owner of the folder"
        ) from error
    try:
        with _metrics(folder, metrics_listen):
            server.start(timeout=600)
            used = password()
            _use_password(server, used)
            _say(f"ready on port {port}")
            while not stop.wait(0.5):
                if not server.running:
                    _say("Postgres ended by itself")
                    return 1
                if (wanted := password()) not in ("", used):
                    used = _replace_password(server, used, wanted)
    except PostgresUnavailable:
        if not stop.is_set():
            raise
    finally:
        server.stop()
    return 0


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@contextmanager
def _metrics(folder: Path, listen: str) -> Iterator[None]:
    """Serve them while the context lasts. Raises PostgresUnavailable where that cannot be, BadSettings."""
    with ExitStack() as stack:
        try:
            stack.enter_context(kit_metrics.serve(listen, metrics.SERVED))
        except OSError as error:
            raise PostgresUnavailable(f"metrics cannot be served at {listen}: {error}; free the port") from error
        metrics.watch(folder)
        yield


def _user() -> str:
    return "" if sys.platform == "win32" else str(os.geteuid())


def _take(server: EmbeddedPostgres, stop: threading.Event) -> bool:
    """Make the folder ours; False when we were told to stop before it was. Raises PostgresUnavailable, OSError."""
    deadline = time.monotonic() + PREDECESSOR_GRACE
    while not stop.is_set():
        try:
            server.prepare()
            return True
        except LockHeld as error:
            if time.monotonic() > deadline:
                raise PostgresUnavailable(
                    f"another Postgres uses {server.folder}: end the pod that still runs on this volume"
                ) from error
            _say(f"another Postgres uses {server.folder}; waiting until it ends")
    return False


def _close_to_others(data: Path) -> None:
    """Postgres refuses data that its group may write. The kubelet opens a volume so where fsGroup is set, at each mount
    or at the first one, as fsGroupChangePolicy says."""
    if sys.platform != "win32" and stat.S_IMODE(data.stat().st_mode) & 0o027:
        data.chmod(0o700)


def _admit_others(data: Path) -> None:
    """Let the services' role in from other addresses, with SCRAM; the superuser only from this one."""
    path = data / "pg_hba.conf"
    lines = [f"host {OWNER} {OWNER} 0.0.0.0/0 scram-sha-256", f"host {OWNER} {OWNER} ::/0 scram-sha-256"]
    text = path.read_text()
    missing = [line for line in lines if line not in text.splitlines()]
    if missing:
        before = path.stat()
        write_private(path, (text.rstrip("\n") + "\n" + "\n".join(missing) + "\n").encode())
        if sys.platform != "win32":
            os.chown(path, before.st_uid, before.st_gid)  # as root, the server runs as another user


def _replace_password(server: EmbeddedPostgres, used: str, wanted: str) -> str:
    """The password that the services' role has now."""
    try:
        _use_password(server, wanted)
    except psycopg.Error as error:
        _say(f"the new password is not in use yet: {str(error).strip()}")
        return used
    _say("the services' role has a new password")
    return wanted


def _use_password(server: EmbeddedPostgres, password: str) -> None:
    """The services' password is given from outside; that of the superuser is made here and never leaves the folder."""
    with psycopg.connect(server.superuser_url(), autocommit=True) as connection:
        verifier = connection.pgconn.encrypt_password(password.encode(), OWNER.encode(), b"scram-sha-256").decode()
        connection.execute(sql.SQL("ALTER ROLE {} PASSWORD {}").format(sql.Identifier(OWNER), sql.Literal(verifier)))


__all__ = ["PREDECESSOR_GRACE", "STOP_GRACE", "PostgresUnavailable", "serve"]
