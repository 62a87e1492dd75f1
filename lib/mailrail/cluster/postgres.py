"""The bundled Postgres of the chart, for trying out: the embedded one of local mode, reached by other pods.

One server, no replica, no backup: mail is as safe as the volume below it. It runs as any user that /etc/passwd knows
(initdb asks for the name), from our own image, so that trying out needs no other one. Every client logs in with SCRAM.
"""

import json
import os
import secrets
import signal
import sys
import threading
from pathlib import Path

import psycopg
from psycopg import sql

from mailrail.local.files import write_private
from mailrail.local.postgres import OWNER, SUPERUSER, EmbeddedPostgres, PostgresUnavailable

PORT = 5432


def serve(folder: Path, password: str, *, port: int = PORT, listen: str = "*", buffers: str = "128MB") -> int:
    """Run it in the foreground until SIGTERM or SIGINT; the exit status.

    `password` is that of the services' role; another one than at the last start replaces that. Raises
    PostgresUnavailable.
    """
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    _set_password(folder, password)
    server = EmbeddedPostgres(
        folder,
        port=port,
        settings={"listen_addresses": listen, "shared_buffers": buffers, "max_wal_size": "1GB"},
        log=_say,
    )
    server.prepare()
    _admit_others(server.data)
    server.start(timeout=600)
    try:
        _use_password(server, password)
        _say(f"ready on port {port}")
        while not stop.wait(0.5):
            if not server.running:
                _say("Postgres ended by itself")
                return 1
    finally:
        server.stop()
    return 0


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _set_password(folder: Path, password: str) -> None:
    """The login of the services is given from outside; that of the superuser is made here and never leaves it."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = folder / "passwords.json"
    known: dict[str, str] = {}
    if path.exists():
        known = json.loads(path.read_text())
    if known.get(OWNER) != password:
        known = {SUPERUSER: secrets.token_urlsafe(24)} | known | {OWNER: password}
        write_private(path, json.dumps(known).encode())


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


def _use_password(server: EmbeddedPostgres, password: str) -> None:
    with psycopg.connect(server.superuser_url(), autocommit=True) as connection:
        verifier = connection.pgconn.encrypt_password(password.encode(), OWNER.encode(), b"scram-sha-256").decode()
        connection.execute(sql.SQL("ALTER ROLE {} PASSWORD {}").format(sql.Identifier(OWNER), sql.Literal(verifier)))


__all__ = ["PORT", "PostgresUnavailable", "serve"]
