"""PgBouncer: a pooler between a service and its Postgres, in session or in transaction mode."""

import contextlib
import os
import pwd
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from testkit.peers import program, require_peer
from testkit.ports import accepts, free_port, loopback_address
from testkit.processes import Program

_CONFIG = """\
[databases]
{database} = host={host} port={port} dbname={database} user={user} password='{password}'
[pgbouncer]
listen_addr = {address}
listen_port = {listen}
unix_socket_dir =
auth_type = any
pool_mode = {mode}
default_pool_size = {size}
max_client_conn = 200
ignore_startup_parameters = extra_float_digits
logfile =
pidfile =
{account}
"""


@contextlib.contextmanager
def pgbouncer(url: str, mode: str, *, size: int = 60) -> Iterator[str]:
    """The URL under which the database of `url` is reached through it. `size`: most connections to the server."""
    require_peer("pgbouncer")
    parts = urlsplit(url)
    address, listen = loopback_address(), 0
    listen = free_port(address)
    account = ""
    if hasattr(os, "geteuid") and os.geteuid() == 0:  # it refuses to run as root
        account = f"user = {pwd.getpwnam('nobody').pw_name}"
    with tempfile.TemporaryDirectory(prefix="mailrail-pgbouncer-") as folder:
        Path(folder).chmod(0o755)
        config = Path(folder) / "pgbouncer.ini"
        config.write_text(
            _CONFIG.format(
                database=unquote(parts.path.lstrip("/")),
                host=parts.hostname,
                port=parts.port,
                user=unquote(parts.username or ""),
                password=unquote(parts.password or "").replace("'", "''"),
                address=address,
                listen=listen,
                mode=mode,
                size=size,
                account=account,
            )
        )
        config.chmod(0o644)
        with Program([program("pgbouncer"), config], name="pgbouncer") as running:
            running.wait_until(lambda: accepts(address, listen), 60, f"accepts connections at {address}:{listen}")
            yield f"postgresql://{quote(parts.username or '')}:any@{address}:{listen}{parts.path}"
