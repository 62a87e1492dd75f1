"""What is measured: Mailrail whole, and Postfix as the yardstick, each as a running system with named parts."""

import contextlib
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from bench.load import CountingSink
from bench.side import HERE, Side

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


@contextlib.contextmanager
def postfix(sink: CountingSink) -> Iterator[System]:
    """Postfix as it comes, relaying to the sink, without its limit of connections a client.

    `in_flow_delay = 0` and higher destination concurrency were tried: no faster than the defaults, within the noise.
    """
    with Postfix("postfix.test", relay_to=(sink.address, sink.port)) as running:
        yield System("Postfix", running.address, running.port, lambda: {"postfix": [running.pid]})


@dataclass(frozen=True)
class Mailrail(System):
    """The whole rail, with what only it is asked for."""

    rail: Rail


@contextlib.contextmanager
def mailrail(sink: CountingSink, side: Side = HERE) -> Iterator[Mailrail]:
    """`mailrail local` with its embedded Postgres; one global route hands everything on to the sink."""
    nobody = loopback_address()
    documents = [one for one in basics() if one["kind"] != "MailGateway"]
    documents += [
        gateway(retry={"delaysSeconds": [450, 900, 1800]}, limits={"connections": 10_000, "connectionsPerIP": 10_000}),
        transport("sink", smtp={"host": sink.address, "port": sink.port}),
        transport("dead", smtp={"host": nobody, "port": free_port(nobody)}),
        route(
            "everything",
            ("MailGateway", "local"),
            rule("dead", "dead", to=[DEAD_DOMAIN]),
            rule("sink", "sink"),
        ),
    ]
    with Rail(documents, options=["--log-level", "warning"], env=side.environment, python=side.python) as rail:

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
