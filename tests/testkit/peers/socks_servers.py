"""Real SOCKS5 servers: Dante (no credentials), microsocks (with and without)."""

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from testkit.peers import program, require_peer
from testkit.ports import accepts, free_port, loopback_address
from testkit.processes import Program

_DANTE = """\
logoutput: stdout
internal: {address} port = {port}
external: {address}
clientmethod: none
socksmethod: none
client pass {{
    from: 127.0.0.0/8 to: 0.0.0.0/0
}}
socks pass {{
    from: 127.0.0.0/8 to: 127.0.0.0/8
    command: connect
    log: connect error
}}
socks block {{
    from: 0.0.0.0/0 to: 0.0.0.0/0
    log: connect error
}}
"""


@dataclass(frozen=True)
class SocksServer:
    """A running proxy; what it relays leaves from `address`."""

    address: str
    port: int
    program: Program
    username: str | None = None
    password: str | None = None


@contextlib.contextmanager
def dante() -> Iterator[SocksServer]:
    """Dante, which relays to 127.0.0.0/8 and blocks everything else."""
    require_peer("dante")
    address = "127.0.0.1"  # it serves only addresses that an interface lists
    port = free_port(address)
    with tempfile.TemporaryDirectory(prefix="mailrail-dante-") as folder:
        config = Path(folder) / "danted.conf"
        config.write_text(_DANTE.format(address=address, port=port))
        with Program([program("danted"), "-f", config, "-p", Path(folder) / "pid"], name="dante") as running:
            running.wait_until(lambda: accepts(address, port), 60, f"accepts connections at {address}:{port}")
            yield SocksServer(address, port, running)


@contextlib.contextmanager
def microsocks(*, username: str | None = None, password: str | None = None) -> Iterator[SocksServer]:
    """microsocks, which demands the credentials if there are any."""
    require_peer("microsocks")
    address = loopback_address()
    port = free_port(address)
    command = [program("microsocks"), "-i", address, "-p", str(port), "-b", address]
    if username is not None and password is not None:
        command += ["-u", username, "-P", password]
    with Program(command, name="microsocks") as running:
        running.wait_until(lambda: accepts(address, port), 60, f"accepts connections at {address}:{port}")
        yield SocksServer(address, port, running, username, password)
