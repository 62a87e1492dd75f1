"""What is measured: Mailrail whole, and Postfix as the yardstick, each as a running system with named parts."""

import contextlib
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.load import Sink
from bench.side import HERE, Side

from testkit.ca import Authority
from testkit.peers.postfix import Postfix
from testkit.ports import free_port, loopback_address
from testkit.rail import SERVICES, Rail, basics, gateway, route, rule, transport

SINK_DOMAIN = "sink.test"
DEAD_DOMAIN = "dead.test"
"""Mail for it goes to a port where nobody listens: it stays queued."""


@dataclass(frozen=True)
class System:
    """A running mail system that hands everything on to the sink."""

    name: str
    address: str
    port: int
    parts: Callable[[], Mapping[str, list[int]]]  # name of each part: its root processes, as they are now


_BY_MX = {
    "virtual_mailbox_domains": "",
    "smtp_dns_support_level": "enabled",
    "smtp_host_lookup": "dns",
}
"""Of main.cf, for a Postfix that would otherwise keep all mail."""


@contextlib.contextmanager
def postfix(
    sink: Sink | None, changes: Mapping[str, str] | None = None, *, resolver: str | None = None
) -> Iterator[System]:
    """Postfix as Debian configures it (TLS where it is offered, sessions cached), relaying to the sink.

    Its limit of connections a client is off, and messages may be as large as they may be in Mailrail. `changes` are
    further lines of main.cf. Without a sink everything goes by MX, as the `resolver` (an address, port 53) says.

    `in_flow_delay = 0` and higher destination concurrency were tried: no faster than the defaults, within the noise.
    """
    settings = {
        "smtp_tls_security_level": "may",
        "smtp_tls_session_cache_database": "btree:${data_directory}/smtp_scache",
        "message_size_limit": "110000000",
        "mailbox_size_limit": "0",
        **({} if sink is not None else _BY_MX),
        **(changes or {}),
    }
    certificate = Authority().issue("postfix.test")
    where = (sink.address, sink.port) if sink is not None else None
    with Postfix(
        "postfix.test", relay_to=where, certificate=certificate, settings=settings, resolver=resolver
    ) as running:
        yield System("Postfix", running.address, running.port, lambda: {"postfix": [running.pid]})


@dataclass(frozen=True)
class Mailrail(System):
    """The whole rail, with what only it is asked for."""

    rail: Rail


_NO_LIMITS: Mapping[str, object] = {"connections": 10_000, "connectionsPerIP": 10_000}
"""Of connections, as far as a generator at one address could run into them."""


@contextlib.contextmanager
def mailrail(
    sink: Sink | None,
    side: Side = HERE,
    settings: Mapping[str, str] | None = None,
    *,
    resolver: str | None = None,
    limits: Mapping[str, object] = _NO_LIMITS,
    options: Sequence[str] = (),
) -> Iterator[Mailrail]:
    """`mailrail local` with its embedded Postgres; one global route hands everything on to the sink.

    Without a sink everything goes by MX, as the `resolver` (HOST:PORT) says. `settings` are variables for the services,
    such as MAILRAIL_QUEUE_KEEP_CONTENT_SECONDS; `limits` are those of the gateway, `options` further ones of
    `mailrail local`.
    """
    nobody = loopback_address()
    documents = [one for one in basics() if one["kind"] != "MailGateway"]
    documents += [
        gateway(retry={"delaysSeconds": [450, 900, 1800]}, limits=dict(limits)),
        *([transport("sink", smtp={"host": sink.address, "port": sink.port})] if sink is not None else []),
        transport("dead", smtp={"host": nobody, "port": free_port(nobody)}),
        route(
            "everything",
            ("MailGateway", "local"),
            rule("dead", "dead", to=[DEAD_DOMAIN]),
            rule("sink", "sink" if sink is not None else None),
        ),
    ]
    words = ["--log-level", "warning", *(["--resolver", resolver] if resolver else []), *options]
    with Rail(documents, options=words, env=side.environment, python=side.python, settings=settings) as rail:

        def parts() -> dict[str, list[int]]:
            services = {name: [rail.pid(name)] for name in (*SERVICES, "postgres")}
            return services | {"local": [rail.program.pid]}

        yield Mailrail("Mailrail", *rail.mx, parts, rail)


@contextlib.contextmanager
def idle_sessions(address: str, port: int, count: int) -> Iterator[None]:
    """So many SMTP sessions that have said EHLO and nothing more."""
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            sock = stack.enter_context(contextlib.closing(socket.create_connection((address, port), timeout=30)))
            sock.recv(1000)
            sock.sendall(b"EHLO idle.test\r\n")
            sock.recv(4000)
        yield


@dataclass(frozen=True)
class Also:
    """Another mail system that whoever runs the bench has installed, and pointed at the sink."""

    name: str
    address: str
    port: int
    pids: tuple[int, ...]

    @classmethod
    def parse(cls, text: str) -> "Also":
        """Read NAME=HOST:PORT,PID[,PID...]. Raises ValueError with what is wrong and what is wanted."""
        name, _, rest = text.partition("=")
        where, *pids = rest.split(",")
        host, _, port = where.rpartition(":")
        try:
            found = cls(name.strip(), host, int(port), tuple(int(pid) for pid in pids))
        except ValueError:
            found = None
        if found is None or not (found.name and found.address and 0 < found.port < 65536 and found.pids):
            raise ValueError(f"{text!r}: NAME=HOST:PORT,PID[,PID...] is wanted, such as exim=127.0.0.1:2525,4711")
        if found.name in ("Mailrail", "Postfix"):
            raise ValueError(f"{found.name} is measured anyway; give {text!r} another name")
        return found

    def system(self) -> System:
        """It, as the bench measures it: the named processes and their children. Raises LookupError for a dead one."""
        for pid in self.pids:
            if not Path(f"/proc/{pid}").exists():
                raise LookupError(f"{self.name}: there is no process {pid}; name the one that runs it now")
        return System(self.name, self.address, self.port, lambda: {self.name.lower(): list(self.pids)})
